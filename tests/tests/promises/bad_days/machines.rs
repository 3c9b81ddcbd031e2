//! Ports, directories and disks that are not as they should be.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Result, ensure};
use equerry::demo::ports::HeldPort;
use equerry::demo::process::Said;
use equerry::demo::town::SHOP;
use equerry_tests::{Mesh, run};

use crate::program;

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_second_control_plane_on_one_state_directory_is_refused() -> Result<()> {
    let mesh = Mesh::up(program(), &[]).await?;
    let state = mesh.town.control_plane_state().display().to_string();
    let said = control_plane(&state, &free(), &free()).await?;
    ensure!(said.code.is_some_and(|code| code != 0), "it started");
    ensure!(
        said.everything().contains(&state) && said.everything().to_lowercase().contains("process"),
        "{}",
        said.everything()
    );
    mesh.status().await?;
    Ok(())
}

#[tokio::test]
async fn a_control_plane_whose_port_is_taken_says_which() -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    for (grpc, admin) in [(address.clone(), free()), (free(), address.clone())] {
        let state = tempfile::tempdir()?;
        let said = control_plane(&state.path().display().to_string(), &grpc, &admin).await?;
        ensure!(said.code.is_some_and(|code| code != 0), "it started");
        ensure!(said.everything().contains(&address), "{}", said.everything());
    }
    Ok(())
}

#[tokio::test]
async fn a_proxy_whose_port_is_taken_says_which() -> Result<()> {
    let mesh = Mesh::plan(program(), &SHOP[1..2]).await?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let home = mesh.town.home("orders")?;
    for port in ["--outbound", "--inbound", "--admin", "--telemetry"] {
        for held in [&home.outbound, &home.inbound, &home.admin, &home.telemetry] {
            held.release();
        }
        std::fs::write(
            mesh.town.dir().join("orders").join("join-token"),
            equerry_certs::JoinToken::create(a_pin()?)?.reveal().as_str(),
        )?;
        let mut args = mesh.town.sidecar_args(home);
        if let Some(at) = args.iter().position(|arg| arg == port) {
            args[at + 1].clone_from(&address);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let said = run(program(), &args, SOON).await?;
        ensure!(said.code.is_some_and(|code| code != 0), "{port}: it started");
        ensure!(said.everything().contains(&address), "{port}: {}", said.everything());
    }
    Ok(())
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_written_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("a-file");
    std::fs::write(&file, "no directory")?;
    let state = file.join("state").display().to_string();
    let said = control_plane(&state, &free(), &free()).await?;
    ensure!(said.code.is_some_and(|code| code != 0) && said.everything().contains("a-file"), "{}", said.everything());

    let mesh = Mesh::plan(program(), &SHOP[1..2]).await?;
    let home = mesh.town.home("orders")?;
    std::fs::write(
        mesh.town.dir().join("orders").join("join-token"),
        equerry_certs::JoinToken::create(a_pin()?)?.reveal().as_str(),
    )?;
    let mut args = mesh.town.sidecar_args(home);
    if let Some(at) = args.iter().position(|arg| arg == "--state-dir") {
        args[at + 1].clone_from(&state);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let said = run(program(), &args, SOON).await?;
    ensure!(said.code.is_some_and(|code| code != 0) && said.everything().contains("a-file"), "{}", said.everything());
    Ok(())
}

#[tokio::test]
async fn a_full_store_refuses_the_whole_apply_and_goes_on_serving() -> Result<()> {
    let mesh = Mesh::plan(program(), &[]).await?;
    mesh.town.start_control_plane(&["--max-pages", "120"]).await?;
    mesh.town.equerry(&["apply", "-f", &mesh.town.policies().display().to_string()]).await?.succeeded()?;
    let (epoch, before) = (mesh.epoch().await?, documents(&mesh).await?);
    let mut many = String::new();
    for number in 0..1500 {
        write!(
            many,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: filler-{number}, namespace: shop, annotations: {{equerry.dev/accounts: filler, note: \"{}\"}}}}\n\
             spec: {{selector: {{app: filler}}, ports: [{{port: 80}}]}}\n",
            "x".repeat(400)
        )?;
    }
    let file = mesh.file("many.yaml", &many)?.display().to_string();
    let said = mesh.town.equerry(&["apply", "-f", &file]).await?;
    ensure!(said.code == Some(1), "a full store ended with {:?}: {}", said.code, said.everything());
    ensure!(said.everything().to_lowercase().contains("full"), "{}", said.everything());
    ensure!(mesh.epoch().await? == epoch && documents(&mesh).await? == before, "something of it was kept");
    // It goes on: what fits is still accepted.
    let even = mesh.town.story("even-split.yaml").display().to_string();
    mesh.town.equerry(&["apply", "-f", &even]).await?.succeeded()?;
    Ok(())
}

async fn documents(mesh: &Mesh) -> Result<String> {
    Ok(mesh.town.equerry(&["get", "all", "-A", "-o", "json"]).await?.succeeded()?.out)
}

async fn control_plane(state: &str, grpc: &str, admin: &str) -> Result<Said> {
    run(program(), &["control-plane", "serve", "--state-dir", state, "--grpc", grpc, "--admin", admin], SOON).await
}

fn free() -> String {
    HeldPort::take().map(|port| port.address()).unwrap_or_default()
}

/// The pin of an authority that nobody runs.
fn a_pin() -> Result<equerry_certs::Pin> {
    let authority = equerry_certs::Authority::create(
        equerry_policies::names::TrustDomain::parse("equerry.local")?,
        std::time::SystemTime::now(),
    )?;
    Ok(authority.roots()?.pin()?)
}
