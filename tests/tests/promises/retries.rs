//! Retries go where they help: to another endpoint, for calls that may be repeated.

use anyhow::{Result, ensure};
use equerry::demo::driver;
use equerry_tests::Mesh;

use crate::{PAIR, program};

#[tokio::test]
async fn a_get_that_meets_a_broken_instance_is_answered_by_the_other() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let story = std::fs::read_to_string(mesh.town.story("retries.yaml"))?;
    mesh.apply(&story).await?;
    mesh.town.home("inventory-v2")?.fail(1.0, None).await?;
    let caller = mesh.town.home("orders")?.through_sidecar();
    let outcomes = driver::many(200, |_| caller.get("inventory", "/", &[])).await;
    ensure!(driver::first_failure(&outcomes).is_none(), "{:?}", driver::first_failure(&outcomes));
    Ok(())
}
