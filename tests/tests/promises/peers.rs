//! The mesh speaks with programs that others wrote.

use anyhow::{Result, ensure};
use equerry_tests::{Mesh, peers};

use crate::{PAIR, program};

#[tokio::test]
async fn curl_calls_through_a_sidecar_in_every_form_it_knows() -> Result<()> {
    if !peers::installed("curl", "apt-get install curl")? {
        return Ok(());
    }
    let mesh = Mesh::up(program(), &PAIR).await?;
    let orders = mesh.town.home("orders")?;
    let sidecar = format!("http://{}/", orders.outbound.address());
    for more in [
        vec!["-H", "host: inventory", &sidecar],
        vec!["-H", "host: inventory.shop.svc.cluster.local:80", &sidecar],
        vec!["--http2-prior-knowledge", "-H", "host: inventory.shop", &sidecar],
        vec!["--proxy", &sidecar, "http://inventory/"],
        vec!["-H", "host: inventory", "--data", "a=1", &sidecar],
    ] {
        let mut args = vec!["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10"];
        args.extend(&more);
        let said = peers::run("curl", &args).await?.succeeded()?;
        ensure!(said.out.trim() == "200", "curl {more:?}: {}", said.out);
    }
    let unknown = ["-sS", "-w", "%{http_code}", "-H", "host: inventry", &sidecar];
    let said = peers::run("curl", &unknown).await?.succeeded()?;
    ensure!(
        said.out.ends_with("502") && said.out.contains("no_service") && said.out.contains("inventory"),
        "an unknown name: {}",
        said.out
    );
    Ok(())
}

#[tokio::test]
async fn h2load_finds_no_failed_request_over_either_version() -> Result<()> {
    if !peers::installed("h2load", "apt-get install nghttp2-client")? {
        return Ok(());
    }
    let mesh = Mesh::up(program(), &PAIR).await?;
    let sidecar = format!("--connect-to={}", mesh.town.home("orders")?.outbound.address());
    for version in [["--h1"].as_slice(), &["-p", "h2c"]] {
        let mut args = vec!["-n", "2000", "-c", "4", "-m", "4", &sidecar];
        args.extend(version);
        args.push("http://inventory/");
        let said = peers::run("h2load", &args).await?.succeeded()?;
        ensure!(said.out.contains("2000 succeeded, 0 failed, 0 errored"), "h2load {version:?}: {}", said.out);
        ensure!(said.out.contains("2000 2xx"), "h2load {version:?}: {}", said.out);
    }
    Ok(())
}

#[tokio::test]
async fn promtool_finds_no_fault_with_a_sidecars_metrics() -> Result<()> {
    if !peers::installed("promtool", "apt-get install prometheus")? {
        return Ok(());
    }
    let mesh = Mesh::up(program(), &PAIR).await?;
    let orders = mesh.town.home("orders")?;
    orders.through_sidecar().get("inventory", "/", &[]).await?;
    let file = mesh.file("metrics.txt", &orders.scrape().await?.text)?;
    let command = format!("promtool check metrics < {}", file.display());
    peers::run("sh", &["-c", &command]).await?.succeeded()?;
    Ok(())
}
