//! What a tenant may spend is told before it is spent, and counted for the tenant.

use anyhow::{Result, ensure};
use equerry_tests::Mesh;

use crate::{PAIR, program};

#[tokio::test]
async fn a_tenant_is_told_its_limit_and_its_calls_are_counted() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let facts = mesh.policies.facts()?;
    let bearer = format!("Bearer {}", mesh.issuer.mint(&facts.token().tenant(facts.tenant("acme")?)));
    let caller = mesh.town.home("orders")?.through_sidecar();
    equerry_tests::eventually(std::time::Duration::from_secs(15), "a slice of acme's quota", async || {
        let answer = caller.get("inventory", "/", &[("authorization", &bearer)]).await?;
        ensure!(matches!(answer.status, 200 | 429), "{}", answer.shown());
        Ok((answer.status == 200).then_some(()))
    })
    .await?;
    let mut counted = 0.0;
    for home in &mesh.town.homes {
        counted += home.scrape().await?.sum("equerry_quota_total", &[("tenant", "acme"), ("decision", "admitted")]);
    }
    ensure!(counted >= 1.0, "equerry_quota_total counts {counted} admitted calls of acme");
    Ok(())
}
