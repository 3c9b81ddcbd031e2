//! A proxy and a control plane of different versions go on together: what the older one does not know, neither of them needs.

use std::time::Duration;

use anyhow::{Result, ensure};
use equerry_tests::previous::Previous;
use equerry_tests::{Mesh, eventually};

use crate::{PAIR, program};

#[tokio::test]
async fn sidecars_and_control_plane_do_all_their_work_over_the_protocol_of_the_version_before() -> Result<()> {
    let mesh = Mesh::plan(program(), &PAIR).await?;
    mesh.town.start_control_plane(&[]).await?;
    let hop = Previous::before(&mesh.town).await?;
    mesh.town.equerry(&["apply", "-f", &mesh.town.policies().display().to_string()]).await?.succeeded()?;
    for home in &mesh.town.homes {
        mesh.town.start_app(home).await?;
    }
    // They join, subscribe and lease there, or would not become ready.
    mesh.start_sidecars(&["--control-plane", &hop.address()]).await?;
    mesh.settle().await?;

    // Every proxy acknowledges what changes.
    let even = mesh.town.story("even-split.yaml").display().to_string();
    mesh.town.equerry(&["apply", "--wait", "-f", &even]).await?.succeeded()?;
    let status = mesh.status().await?;
    let proxies = status["proxies"].as_array().map_or(0, Vec::len);
    ensure!(proxies == PAIR.len(), "{status}");

    // Policy, tokens and a tenant's quota, which needs its slices, hold.
    let orders = mesh.town.home("orders")?;
    let facts = mesh.policies.facts()?;
    let acme = format!("Bearer {}", mesh.issuer.mint(&facts.token().tenant(facts.tenant("acme")?)));
    let answer = orders.through_sidecar().get("inventory", "/", &[("authorization", &acme)]).await?;
    ensure!(answer.status == 200, "{}", answer.shown());
    ensure!(!answer.header("ratelimit").is_empty(), "no share of the quota is told: {:?}", answer.headers);
    let refused = orders.through_sidecar().get("inventory", "/", &[("authorization", "Bearer forged")]).await?;
    ensure!(refused.status == 401, "{}", refused.shown());

    // Whoever leaves says so: long before its lease ends.
    mesh.town.stop_sidecar(mesh.town.home("inventory-v2")?).await;
    eventually(Duration::from_secs(8), "callers to learn that inventory-v2 left", async || {
        let headers = [("authorization", acme.as_str())];
        let answer = orders.through_sidecar().get("inventory-v2", "/", &headers).await?;
        Ok((answer.status == 503 && answer.json()["reason"] == "no_healthy_endpoint").then_some(()))
    })
    .await
}
