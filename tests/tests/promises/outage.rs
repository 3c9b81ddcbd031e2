//! Without a control plane the mesh goes on; nothing that was acknowledged is ever lost.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use equerry::demo::driver;
use equerry_tests::{Mesh, eventually};

use crate::{PAIR, program};

#[tokio::test]
async fn what_was_applied_survives_a_kill() -> Result<()> {
    let mesh = Mesh::up(program(), &[]).await?;
    let even = mesh.town.story("even-split.yaml").display().to_string();
    mesh.town.equerry(&["apply", "-f", &even]).await?.succeeded()?;
    let (epoch, documents) = (mesh.epoch().await?, routes(&mesh).await?);
    mesh.town.kill_control_plane().await;
    mesh.town.start_control_plane(&[]).await?;
    ensure!(mesh.epoch().await? == epoch, "the epoch changed with the kill");
    ensure!(routes(&mesh).await? == documents, "the documents changed with the kill");
    Ok(())
}

#[tokio::test]
async fn every_sidecar_starts_cold_without_a_control_plane() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let orders = mesh.town.home("orders")?;
    mesh.town.kill_control_plane().await;
    for home in &mesh.town.homes {
        mesh.town.stop_sidecar(home).await;
    }
    for home in &mesh.town.homes {
        mesh.town.start_sidecar(home).await?;
    }
    for home in &mesh.town.homes {
        mesh.town.wait_ready(home).await?;
    }
    let outcomes = driver::many(100, |_| orders.through_sidecar().get("inventory", "/", &[])).await;
    if let Some(failure) = driver::first_failure(&outcomes) {
        bail!(
            "after a cold start of everything: {failure}; log of orders' sidecar:\n{}",
            mesh.town.sidecar_log(orders)
        );
    }
    mesh.town.start_control_plane(&[]).await?;
    eventually(Duration::from_secs(20), "all proxies to be back", async || {
        let status = mesh.status().await?;
        let connected =
            status["proxies"].as_array().map_or(0, |all| all.iter().filter(|proxy| proxy["connected"] == true).count());
        Ok((connected == mesh.town.homes.len()).then_some(()))
    })
    .await
}

async fn routes(mesh: &Mesh) -> Result<String> {
    Ok(mesh.town.equerry(&["get", "httproutes", "-A", "-o", "json"]).await?.succeeded()?.out)
}
