//! A sidecar's last good files, damaged.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use equerry::demo::town::SHOP;
use equerry_tests::{Mesh, eventually, run};

use crate::program;

const CONFIG: &str = "config.sealed";
const IDENTITY: &str = "identity.sealed";

#[tokio::test]
async fn a_corrupted_config_is_kept_aside_and_the_sidecar_waits_for_the_control_plane() -> Result<()> {
    let mesh = Mesh::up(program(), &SHOP[1..2]).await?;
    let home = mesh.town.home("orders")?;
    mesh.town.stop_sidecar(home).await;
    mesh.town.kill_control_plane().await;
    let file = home.state_dir().join(CONFIG);
    corrupt(&file)?;
    mesh.town.start_sidecar(home).await?;
    let said = eventually(Duration::from_secs(15), "the sidecar to say that it is not ready", async || {
        let answer = home.telemetry().get("localhost", "/healthz/ready", &[]).await?;
        Ok((answer.status == 503).then(|| answer.shown()))
    })
    .await?;
    let log = mesh.town.sidecar_log(home);
    ensure!(log.contains(CONFIG), "neither log nor readiness name {CONFIG}: {said}\n{log}");
    let kept = std::fs::read_dir(home.state_dir())?.flatten().any(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name != CONFIG && name.starts_with("config")
    });
    ensure!(kept, "the damaged file was not kept aside");
    mesh.town.start_control_plane(&[]).await?;
    mesh.town.wait_ready(home).await
}

#[tokio::test]
async fn a_corrupted_identity_needs_a_new_token_and_the_error_names_the_command() -> Result<()> {
    for damaged in [IDENTITY, "seal.key"] {
        let mesh = Mesh::up(program(), &SHOP[1..2]).await?;
        let home = mesh.town.home("orders")?;
        mesh.town.stop_sidecar(home).await;
        if damaged == IDENTITY {
            corrupt(&home.state_dir().join(IDENTITY))?;
        } else {
            std::fs::remove_file(home.state_dir().join(damaged))?;
        }
        // Its only token was used when it first joined.
        let args = mesh.town.sidecar_args(home);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let said = run(program(), &args, Duration::from_secs(30)).await?;
        ensure!(said.code.is_some_and(|code| code != 0), "{damaged}: it started");
        ensure!(said.everything().contains("equerry token create join"), "{damaged}: {}", said.everything());
        mesh.town.join(home).await?;
        mesh.town.start_sidecar(home).await?;
        mesh.town.wait_ready(home).await?;
    }
    Ok(())
}

fn corrupt(file: &Path) -> Result<()> {
    let mut bytes = std::fs::read(file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Ok(std::fs::write(file, bytes)?)
}
