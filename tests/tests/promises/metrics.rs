//! Metrics are a user interface: every family has help and a type, and labels never come from a client.

use anyhow::{Result, ensure};
use equerry_tests::Mesh;

use crate::{PAIR, program};

#[tokio::test]
async fn what_callers_send_never_becomes_a_label() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let orders = mesh.town.home("orders")?;
    for number in 0..50 {
        let odd = format!("odd-{number}");
        let path = format!("/{odd}");
        orders.through_sidecar().get("inventory", &path, &[("user-agent", &odd), ("x-tenant", &odd)]).await?;
        orders.through_sidecar().call(&format!("ODD{number}"), &odd, "/", &[]).await?;
    }
    for home in &mesh.town.homes {
        let text = home.scrape().await?.text.to_lowercase();
        ensure!(
            !text.contains("odd-") && !text.contains("odd1"),
            "{}'s metrics carry what a caller sent",
            home.resident.name
        );
    }
    let text = orders.scrape().await?.text;
    for family in ["equerry_requests_total", "equerry_request_duration_seconds", "equerry_config_epoch"] {
        ensure!(
            text.contains(&format!("# HELP {family} ")) && text.contains(&format!("# TYPE {family} ")),
            "{family} is not explained"
        );
    }
    Ok(())
}

#[tokio::test]
async fn the_certificates_end_can_be_watched() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
    for home in &mesh.town.homes {
        let scrape = home.scrape().await?;
        let ends = scrape
            .samples
            .iter()
            .filter(|s| s.name == "equerry_cert_not_after_seconds")
            .map(|s| s.value)
            .fold(f64::INFINITY, f64::min);
        ensure!(ends > now + 3600.0 && ends < now + 366.0 * 86_400.0 * 11.0, "{} says {ends}", home.resident.name);
    }
    Ok(())
}
