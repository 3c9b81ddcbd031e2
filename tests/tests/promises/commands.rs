//! The command line shows a living mesh: what has to do with a service, who calls it, which call failed and why; as text without
//! escape sequences where nobody asked for colour, and as JSON for programs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use equerry_tests::{Mesh, eventually};
use serde_json::Value;

use crate::{PAIR, program};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_person_finds_out_who_calls_what_and_why_a_call_failed() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let town = &mesh.town;
    let orders = town.home("orders")?;
    for version in ["inventory-v1", "inventory-v2"] {
        town.home(version)?.fail(1.0, None).await?;
    }
    let failed = orders.through_sidecar().get("inventory", "/broken", &[]).await?;
    ensure!(failed.status >= 500, "{}", failed.shown());

    // The caller's side of it and the callee's, with the failure on them.
    let top = eventually(SOON, "the call to be on the map", async || {
        let shown = town.equerry(&["top", "--once"]).await?.succeeded()?.out;
        let told = shown.lines().any(|line| line.starts_with("shop/orders") && line.contains("503"));
        ensure!(told, "{shown}");
        Ok(Some(shown))
    })
    .await?;
    ensure!(top.contains("FAILED/S") && !top.contains('\u{1b}'), "{top}");

    let tapped = town.equerry(&["tap", "--recent", "--failed", "--path", "/broken"]).await?.succeeded()?;
    ensure!(tapped.out.contains("shop/orders -> shop/inventory  GET /broken"), "{}", tapped.out);
    ensure!(tapped.err.contains(" calls"), "no legend: {}", tapped.err);
    let json = town.equerry(&["tap", "--recent", "--path", "/broken", "-o", "json"]).await?.succeeded()?.out;
    let json: Value = serde_json::from_str(&json).context("tap -o json")?;
    ensure!(json["items"][0]["path"] == "/broken", "{json}");

    let described = town.equerry(&["describe", "service", "inventory", "-n", "shop"]).await?.succeeded()?.out;
    for part in ["Healthy:         2 of 2", "connected", "Called by", "shop/orders"] {
        ensure!(described.contains(part), "{part} is not in\n{described}");
    }
    let proxy = town.equerry(&["describe", "proxy", "orders", "-n", "shop"]).await?.succeeded()?.out;
    ensure!(proxy.contains("State:           in step") && proxy.contains("Certificate:     until 20"), "{proxy}");
    let wide =
        town.equerry(&["get", "instances", "-n", "shop", "-l", "app=inventory", "-o", "wide"]).await?.succeeded()?.out;
    ensure!(wide.lines().count() == 3 && wide.contains("shop/inventory"), "{wide}");

    // What stands is no difference to itself.
    let stored = town.equerry(&["get", "all", "-A", "-o", "yaml"]).await?.succeeded()?.out;
    let file = tempfile::NamedTempFile::with_suffix(".yaml")?;
    std::fs::write(file.path(), stored)?;
    let path = file.path().to_str().context("a path")?;
    let same = town.equerry(&["diff", "-f", path]).await?;
    ensure!(same.code == Some(0) && same.out.is_empty(), "{:?} {} {}", same.code, same.out, same.err);
    Ok(())
}
