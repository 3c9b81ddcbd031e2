//! Every sidecar has an identity of its own, and keeps it fresh without anybody noticing.

use std::time::{Duration, SystemTime};

use anyhow::{Result, bail, ensure};
use equerry::demo::check::knock;
use equerry::demo::driver;
use equerry_certs::{Leaf, Request};
use equerry_tests::{Mesh, eventually, grpc};

use crate::{PAIR, program};

#[tokio::test]
async fn a_certificate_is_renewed_before_its_end_and_no_call_fails() -> Result<()> {
    let mesh = Mesh::plan(program(), &PAIR).await?;
    mesh.town.start_control_plane(&["--short-lived", "--certificate-lifetime", "1m"]).await?;
    bring_up_beside(&mesh).await?;
    let orders = mesh.town.home("orders")?;
    let v1 = mesh.town.home("inventory-v1")?;
    let trust = knock::trust(&mesh.town)?;
    let first = Leaf::read(&knock::shown_certificate(v1, &trust).await?)?;
    let renewed = eventually(Duration::from_secs(60), "a renewed certificate", async || {
        let now = Leaf::read(&knock::shown_certificate(v1, &trust).await?)?;
        Ok((now.not_after > first.not_after).then_some(now))
    });
    let over = tokio::sync::Notify::new();
    let (renewed, outcomes) = tokio::join!(
        async {
            let renewed = renewed.await;
            // On, until the first certificate has ended.
            let left = first.not_after.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::time::sleep(left + Duration::from_secs(2)).await;
            over.notify_one();
            renewed
        },
        driver::steady(40.0, over.notified(), |_| orders.through_sidecar().get("inventory", "/", &[])),
    );
    ensure!(renewed?.id == first.id, "the identity changed with its renewal");
    if let Some(failure) = driver::first_failure(&outcomes) {
        bail!("a call failed while certificates were renewed: {failure}");
    }
    Ok(())
}

#[tokio::test]
async fn a_join_token_lets_in_one_workload_only() -> Result<()> {
    let mesh = Mesh::up(program(), &[]).await?;
    let token = mesh.town.join_token("orders", "10m").await?;
    let signed = grpc::sign(&mesh.town, &token, Request::new()?.csr_der, 0).await?;
    ensure!(signed.as_deref().is_ok_and(|id| id == "spiffe://equerry.local/ns/shop/sa/orders"), "{signed:?}");
    let again = grpc::sign(&mesh.town, &token, Request::new()?.csr_der, 0).await?;
    let refusal = again.err().map(|status| status.message().to_owned()).unwrap_or_default();
    ensure!(refusal.contains("used"), "a token was used twice: {refusal:?}");
    Ok(())
}

/// What `Town::bring_up` does once the control plane runs.
async fn bring_up_beside(mesh: &Mesh) -> Result<()> {
    let town = &mesh.town;
    town.equerry(&["apply", "-f", &town.policies().display().to_string()]).await?.succeeded()?;
    for home in &town.homes {
        town.start_app(home).await?;
        town.join(home).await?;
        town.start_sidecar(home).await?;
    }
    for home in &town.homes {
        town.wait_ready(home).await?;
    }
    Ok(())
}
