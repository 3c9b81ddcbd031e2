//! `apply --wait` never says more than is true.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use equerry_tests::{Mesh, eventually, refuser};

use crate::{PAIR, program};

#[tokio::test]
async fn apply_waits_for_a_proxy_that_sleeps_and_names_it() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let orders = mesh.town.home("orders")?;
    mesh.town.signal_sidecar(orders, rustix::process::Signal::STOP).await;
    let even = mesh.town.story("even-split.yaml").display().to_string();
    let said = mesh.town.equerry(&["apply", "--wait", "--timeout", "2s", "-f", &even]).await?;
    mesh.town.signal_sidecar(orders, rustix::process::Signal::CONT).await;
    ensure!(said.code == Some(3), "apply --wait ended with {:?}: {}", said.code, said.everything());
    ensure!(said.everything().contains("orders"), "the sleeping proxy is not named: {}", said.everything());
    let epoch = mesh.epoch().await?;
    eventually(Duration::from_secs(15), "the proxy to catch up", async || {
        #[expect(clippy::cast_precision_loss, reason = "a handful of epochs")]
        let enough = orders.scrape().await?.sum("equerry_config_epoch", &[]) >= epoch as f64;
        Ok(enough.then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_dry_run_says_what_would_change_and_changes_nothing() -> Result<()> {
    let mesh = Mesh::up(program(), &[]).await?;
    let before = mesh.epoch().await?;
    let even = mesh.town.story("even-split.yaml").display().to_string();
    let said = mesh.town.equerry(&["apply", "--dry-run", "-f", &even]).await?.succeeded()?;
    ensure!(said.out.contains("inventory"), "{}", said.out);
    ensure!(mesh.epoch().await? == before, "a dry run moved the epoch");
    Ok(())
}

#[tokio::test]
async fn applying_the_same_again_makes_no_new_epoch() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let before = mesh.epoch().await?;
    let set = mesh.town.policies().display().to_string();
    let said = mesh.town.equerry(&["apply", "--wait", "-o", "json", "-f", &set]).await?.succeeded()?;
    ensure!(mesh.epoch().await? == before, "nothing changed, but the epoch did");
    let counted: serde_json::Value = serde_json::from_str(&said.out).context("reading what apply said")?;
    let proxies = counted["proxies"].as_array().map_or(0, Vec::len);
    ensure!(
        proxies == mesh.town.homes.len(),
        "an apply counts the proxies connected now, not those of long ago: {counted}"
    );
    Ok(())
}

/// A proxy of another version finds a resource that it cannot compile. No program of this version does that, so the test
/// speaks for it.
#[tokio::test]
async fn a_proxy_that_refuses_an_epoch_ends_the_wait_at_once_with_its_words() -> Result<()> {
    let mesh = Mesh::up(program(), &[]).await?;
    let refusing = refuser::start(&mesh).await?;
    let even = mesh.town.story("even-split.yaml").display().to_string();
    let said = mesh.town.equerry(&["apply", "--wait", "-f", &even]).await?;
    drop(refusing);
    ensure!(said.code == Some(4), "apply --wait ended with {:?}: {}", said.code, said.everything());
    ensure!(said.everything().contains("a field of last year"), "the refusal's words are lost: {}", said.everything());
    Ok(())
}
