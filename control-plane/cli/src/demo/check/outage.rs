//! The control plane dies: traffic goes on, a sidecar even starts cold; it comes back and nothing was lost.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Story, within};
use crate::demo::driver;

/// Calls made through the mesh while the control plane is away, before and after the cold start.
const CALLS: usize = 300;

pub(super) async fn check(story: &Story<'_>) -> Result<String> {
    let before = registered(&story.status().await?);
    let documents = documents(story).await?;
    let bearer = story.bearer();

    // Calls go on while it dies.
    let (during, ()) = tokio::join!(
        driver::steady(100.0, tokio::time::sleep(Duration::from_millis(800)), |_| story.front_call(&bearer)),
        async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            story.town.kill_control_plane().await;
        }
    );
    all_good(&during, "while the control plane died")?;
    all_good(&driver::many(CALLS, |_| story.front_call(&bearer)).await, "without a control plane")?;

    let orders = story.home("orders")?;
    story.town.stop_sidecar(orders).await;
    let cold = Instant::now();
    story.town.start_sidecar(orders).await?;
    story.town.wait_ready(orders).await.context("a cold start without a control plane")?;
    let cold = cold.elapsed();
    all_good(&driver::many(CALLS, |_| story.front_call(&bearer)).await, "after orders' sidecar started cold")?;
    let refused = story.home("frontend")?.through_sidecar().get("orders", "/stock", &[]).await?;
    ensure!(refused.status == 401, "after its cold start orders' sidecar answers {} without a token", refused.shown());

    story.town.start_control_plane(&[]).await.context("starting the control plane again")?;
    let back = Instant::now();
    within(Duration::from_secs(20), "all proxies to be in step again", async || {
        Ok(in_step(&story.status().await?, story.town.homes.len()))
    })
    .await?;
    let back = back.elapsed();
    let after = registered(&story.status().await?);
    ensure!(before == after, "registered before: {before:?}; after: {after:?}");
    ensure!(documents == self::documents(story).await?, "documents changed");
    all_good(&driver::many(CALLS, |_| story.front_call(&bearer)).await, "with the control plane back")?;
    Ok(format!(
        "killed -9: {} calls passed; orders' sidecar started cold in {:.1} s and {CALLS} more passed; back, all {} proxies in step within {:.1} s, all {} \
         members and {documents} documents still there",
        during.len() + CALLS,
        cold.as_secs_f64(),
        story.town.homes.len(),
        back.as_secs_f64(),
        after.values().map(Vec::len).sum::<usize>(),
    ))
}

fn all_good(outcomes: &[Result<crate::demo::web::Answer>], when: &str) -> Result<()> {
    match driver::first_failure(outcomes) {
        Some(failure) => bail!(
            "{} of {} calls failed {when}: {failure}",
            outcomes.len() - driver::with_status(outcomes, 200),
            outcomes.len()
        ),
        None => Ok(()),
    }
}

/// Members of each Service.
fn registered(status: &Value) -> BTreeMap<String, Vec<String>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let members = |service: &Value| {
        let mut members: Vec<String> = list(&service["members"])
            .iter()
            .map(|member| format!("{} at {}", text(&member["instance"]), text(&member["address"])))
            .collect();
        members.sort();
        members
    };
    list(&status["services"]).iter().map(|service| (text(&service["service"]), members(service))).collect()
}

fn in_step(status: &Value, everybody: usize) -> Result<(), String> {
    let proxies = status["proxies"].as_array().cloned().unwrap_or_default();
    let good = |proxy: &&Value| {
        let number = |key: &str| proxy[key].as_u64().unwrap_or_default();
        proxy["connected"] == true && number("ackedEpoch") >= number("wantedEpoch")
    };
    let count = proxies.iter().filter(good).count();
    if count == everybody { Ok(()) } else { Err(format!("{count} of {everybody}")) }
}

async fn documents(story: &Story<'_>) -> Result<usize> {
    let mut count = 0;
    for kind in ["services", "httproutes", "requestauthentications", "authorizationpolicies", "tenants", "meshes"] {
        let said = story
            .town
            .equerry(&["get", kind, "-A", "-o", "json"])
            .await?
            .succeeded()
            .with_context(|| format!("getting {kind}"))?;
        let json: Value = serde_json::from_str(&said.out).with_context(|| format!("reading {kind}"))?;
        count += json["items"].as_array().map_or(0, Vec::len);
    }
    ensure!(count > 0, "there are no documents");
    Ok(count)
}
