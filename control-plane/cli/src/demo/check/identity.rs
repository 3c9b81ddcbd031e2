//! Each sidecar holds its own certificate, issued against its own token; bad tokens let nobody in.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use equerry_certs::Leaf;
use serde_json::Value;

use super::{Story, knock};
use crate::demo::ports::HeldPort;
use crate::demo::process::run_to_end;
use crate::demo::town::write_secret;

pub(super) async fn check(story: &Story<'_>) -> Result<String> {
    // Made first, so that it has expired when it is tried.
    let expiring = story.town.join_token("orders", "1s").await?;
    let made = tokio::time::Instant::now();
    let certificates = certificates(story).await?;
    own_tokens(story).await?;

    let used = std::fs::read_to_string(story.town.dir().join("orders").join("join-token"))
        .context("reading the token orders joined with")?;
    let used = refused(story, "used", &used, &["used"]).await?;
    let pinned = story.town.join_token("orders", "10m").await?;
    let pinned = refused(story, "wrong-pin", &with_another_pin(&pinned)?, &["pin"]).await?;
    tokio::time::sleep_until(made + Duration::from_millis(2100)).await;
    let expired = refused(story, "expired", &expiring, &["expired"]).await?;
    Ok(format!("{certificates}; used token: {used:?}; wrong pin: {pinned:?}; expired token: {expired:?}"))
}

async fn certificates(story: &Story<'_>) -> Result<String> {
    let trust = knock::trust(story.town)?;
    let mut different = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for home in &story.town.homes {
        let certificate = knock::shown_certificate(home, &trust)
            .await
            .with_context(|| format!("asking {}'s sidecar who it is", home.resident.name))?;
        let leaf = Leaf::read(&certificate)?;
        leaf.holds_at(SystemTime::now())?;
        ensure!(leaf.id == knock::expected(home)?, "{}'s sidecar is {}", home.resident.name, leaf.id);
        ids.insert(leaf.id.to_string());
        different.insert(certificate.as_ref().to_vec());
    }
    ensure!(different.len() == story.town.homes.len(), "sidecars share certificates");
    Ok(format!(
        "{} certificates, each against its own token, for {}",
        different.len(),
        ids.into_iter().collect::<Vec<_>>().join(", ")
    ))
}

/// Each sidecar joined with a token of its own, which the control plane knows as used.
async fn own_tokens(story: &Story<'_>) -> Result<()> {
    let listed: Value = serde_json::from_str(&story.admin_api("/api/v1/tokens", true).await?)
        .context("reading the list of join tokens")?;
    let listed = listed["items"].as_array().cloned().unwrap_or_default();
    let mut ids = BTreeSet::new();
    for home in &story.town.homes {
        let token = std::fs::read_to_string(story.town.dir().join(home.resident.name).join("join-token"))
            .context("reading a join token")?;
        let id = token.split('.').nth(1).unwrap_or_default().to_owned();
        let known = listed
            .iter()
            .find(|one| one["id"] == id.as_str())
            .with_context(|| format!("the control plane does not list token {id}"))?;
        let account = format!("shop/{}", home.resident.account);
        ensure!(
            known["state"] == "used" && known["account"] == account.as_str(),
            "the token {} joined with is listed as {known}",
            home.resident.name
        );
        ids.insert(id);
    }
    ensure!(ids.len() == story.town.homes.len(), "sidecars shared a token");
    Ok(())
}

/// Starts a sidecar with a token that must not let it in; gives the line in which it says so.
async fn refused(story: &Story<'_>, name: &str, token: &str, words: &[&str]) -> Result<String> {
    let dir = story.town.dir().join(format!("refused-{name}"));
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let file = dir.join("join-token");
    write_secret(&file, token.trim())?;
    let ports = [HeldPort::take()?, HeldPort::take()?, HeldPort::take()?, HeldPort::take()?];
    let [outbound, inbound, admin, telemetry] = ports.each_ref().map(|port| {
        port.release();
        port.address()
    });
    let (file, state) = (file.display().to_string(), dir.join("state").display().to_string());
    let grpc = story.town.grpc.address();
    let args: Vec<OsString> = [
        "proxy",
        "run",
        "--control-plane",
        &grpc,
        "--join-token-file",
        &file,
        "--instance",
        "refused",
        "--label",
        "app=orders",
        "--app-port",
        "8080",
        "--state-dir",
        &state,
        "--outbound",
        &outbound,
        "--inbound",
        &inbound,
        "--advertise",
        &inbound,
        "--admin",
        &admin,
        "--telemetry",
        &telemetry,
    ]
    .iter()
    .map(OsString::from)
    .collect();
    let said = run_to_end(story.town.program(), &args, &[], Duration::from_secs(15))
        .await
        .with_context(|| format!("a sidecar with a token that is {name}"))?;
    let text = said.everything();
    if said.code == Some(0) {
        bail!("a sidecar with a token that is {name} was let in: {}", text.trim());
    }
    let line = text.lines().rev().find(|line| words.iter().all(|word| line.to_lowercase().contains(word)));
    let line = line
        .with_context(|| format!("a sidecar with a token that is {name} ended, but not for that: {}", text.trim()))?;
    Ok(line.trim().chars().take(160).collect())
}

/// The same token with another root's pin: `eqj1.ID.SECRET.PIN`.
fn with_another_pin(token: &str) -> Result<String> {
    let (rest, pin) = token.rsplit_once('.').with_context(|| "a join token without a pin")?;
    let (first, others) = pin.split_at(1);
    Ok(format!("{rest}.{}{others}", if first == "0" { "1" } else { "0" }))
}
