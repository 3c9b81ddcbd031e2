//! The counters add up, and every `/metrics` is what Prometheus expects.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{Story, within};
use crate::demo::driver;
use crate::demo::scrape::Scrape;

/// Calls from outside; each is a call of frontend to orders and one of orders to inventory.
const CALLS: usize = 300;

pub(super) async fn check(story: &Story<'_>) -> Result<String> {
    story.apply("retries.yaml").await?;
    for home in story.inventories()? {
        home.fail(0.1, Some("GET")).await?;
    }
    let bearer = story.bearer();
    let before = totals(story).await?;
    driver::many(CALLS, |_| story.front_call(&bearer)).await;
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let calls = (CALLS * 2) as f64;
    let (inbound, sent) = within(Duration::from_secs(3), "inbound requests = calls + retries sent", async || {
        let now = totals(story).await?;
        let (inbound, sent) = (now.0 - before.0, now.1 - before.1);
        Ok(if inbound == calls + sent {
            Ok((inbound, sent))
        } else {
            Err(format!("{inbound} inbound, {calls} calls, {sent} retries sent"))
        })
    })
    .await?;
    story.restore().await?;
    ensure!(sent > 0.0, "no retry was sent, so nothing was proved");

    let mut texts = vec![("the control plane".to_owned(), story.admin_api("/metrics", false).await?)];
    for home in &story.town.homes {
        texts.push((format!("{}'s sidecar", home.resident.name), home.scrape().await?.text));
    }
    let checked = check_with_promtool(&texts).await?;
    Ok(format!("{inbound} inbound requests = {calls} calls + {sent} retries sent; {checked}"))
}

/// Inbound requests, and retries sent, over all sidecars.
async fn totals(story: &Story<'_>) -> Result<(f64, f64)> {
    let mut totals = (0.0, 0.0);
    for home in &story.town.homes {
        let scrape = home.scrape().await?;
        totals.0 += scrape.sum("equerry_requests_total", &[("direction", "inbound")]);
        totals.1 += scrape.sum("equerry_retries_total", &[("outcome", "sent")]);
    }
    Ok(totals)
}

/// Gives each text to `promtool check metrics`, where that is installed; otherwise reads it with our own eyes only.
async fn check_with_promtool(texts: &[(String, String)]) -> Result<String> {
    for (whose, text) in texts {
        ensure!(!Scrape::parse(text).samples.is_empty(), "/metrics of {whose} is empty");
        let spawned = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut promtool = match spawned {
            Ok(promtool) => promtool,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(format!(
                    "/metrics of all {} read (install promtool, in Debian's package prometheus, to check them strictly)",
                    texts.len()
                ));
            }
            Err(error) => return Err(error).context("starting promtool"),
        };
        let mut stdin = promtool.stdin.take().context("promtool has no stdin")?;
        stdin.write_all(text.as_bytes()).await.context("writing to promtool")?;
        drop(stdin);
        let output = promtool.wait_with_output().await.context("waiting for promtool")?;
        if !output.status.success() {
            bail!(
                "promtool on /metrics of {whose}: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    Ok(format!("promtool finds no fault with /metrics of all {}", texts.len()))
}
