//! An instance that fails is left alone; one that is gone altogether too.

use std::time::Duration;

use anyhow::{Result, ensure};
use equerry::demo::driver;
use equerry_tests::{Mesh, eventually};

use crate::{PAIR, program};

#[tokio::test]
async fn an_open_breaker_is_seen_in_metrics_and_closes_when_the_instance_is_well() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let story = std::fs::read_to_string(mesh.town.story("breaker.yaml"))?;
    mesh.apply(&story).await?;
    let broken = mesh.town.home("inventory-v2")?;
    let orders = mesh.town.home("orders")?;
    broken.fail(1.0, None).await?;
    let state = async || {
        driver::many(50, |_| orders.through_sidecar().get("inventory", "/", &[])).await;
        let scrape = orders.scrape().await?;
        Ok::<_, anyhow::Error>(
            scrape.samples.iter().filter(|s| s.name == "equerry_breaker_state").map(|s| s.value).fold(0.0, f64::max),
        )
    };
    eventually(Duration::from_secs(10), "the breaker to open", async || Ok((state().await? >= 1.0).then_some(())))
        .await?;
    ensure!(orders.scrape().await?.sum("equerry_endpoint_ejections_total", &[]) >= 1.0, "no ejection was counted");
    broken.fail(0.0, None).await?;
    eventually(Duration::from_secs(20), "the breaker to close", async || Ok((state().await? == 0.0).then_some(())))
        .await
}
