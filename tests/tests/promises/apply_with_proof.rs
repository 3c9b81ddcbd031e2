//! `apply --wait` never says more than is true.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use equerry_tests::{Mesh, eventually, grpc};
use equerry_wire::proto::config_client::ConfigClient;
use equerry_wire::proto::from_proxy::Message;
use equerry_wire::proto::registry_client::RegistryClient;
use equerry_wire::proto::{self, Ack, FromProxy, Hello, Interest, LeaseRequest, Nack, ResourceName};

use crate::{PAIR, program};

#[tokio::test]
async fn apply_waits_for_a_proxy_that_sleeps_and_names_it() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let orders = mesh.town.home("orders")?;
    mesh.town.signal_sidecar(orders, rustix::process::Signal::STOP).await;
    let even = mesh.town.story("even-split.yaml").display().to_string();
    let said = mesh.town.equerry(&["apply", "--wait", "--timeout", "2s", "-f", &even]).await?;
    mesh.town.signal_sidecar(orders, rustix::process::Signal::CONT).await;
    ensure!(said.code == Some(3), "apply --wait ended with {:?}: {}", said.code, said.everything());
    ensure!(said.everything().contains("orders"), "the sleeping proxy is not named: {}", said.everything());
    let epoch = mesh.epoch().await?;
    eventually(Duration::from_secs(15), "the proxy to catch up", async || {
        #[expect(clippy::cast_precision_loss, reason = "a handful of epochs")]
        let enough = orders.scrape().await?.sum("equerry_config_epoch", &[]) >= epoch as f64;
        Ok(enough.then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_dry_run_says_what_would_change_and_changes_nothing() -> Result<()> {
    let mesh = Mesh::up(program(), &[]).await?;
    let before = mesh.epoch().await?;
    let even = mesh.town.story("even-split.yaml").display().to_string();
    let said = mesh.town.equerry(&["apply", "--dry-run", "-f", &even]).await?.succeeded()?;
    ensure!(said.out.contains("inventory"), "{}", said.out);
    ensure!(mesh.epoch().await? == before, "a dry run moved the epoch");
    Ok(())
}

#[tokio::test]
async fn applying_the_same_again_makes_no_new_epoch() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let before = mesh.epoch().await?;
    let set = mesh.town.policies().display().to_string();
    let said = mesh.town.equerry(&["apply", "--wait", "-o", "json", "-f", &set]).await?.succeeded()?;
    ensure!(mesh.epoch().await? == before, "nothing changed, but the epoch did");
    let counted: serde_json::Value = serde_json::from_str(&said.out).context("reading what apply said")?;
    let proxies = counted["proxies"].as_array().map_or(0, Vec::len);
    ensure!(
        proxies == mesh.town.homes.len(),
        "an apply counts the proxies connected now, not those of long ago: {counted}"
    );
    Ok(())
}

/// A proxy of another version finds a resource that it cannot compile. No program of this version does that, so the test
/// speaks for it.
#[tokio::test]
async fn a_proxy_that_refuses_an_epoch_ends_the_wait_at_once_with_its_words() -> Result<()> {
    let mesh = Mesh::up(program(), &[]).await?;
    let channel = grpc::joined(&mesh.town, &mesh.town.join_token("orders", "10m").await?).await?;
    let lease = LeaseRequest {
        instance_id: "orders-of-next-year".into(),
        generation: 1,
        labels: [("app".to_owned(), "orders".to_owned())].into(),
        inbound: "127.0.0.1:9".into(),
        ports: vec![8080],
        healthy: true,
        now_unix_ms: u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis())?,
        ..LeaseRequest::default()
    };
    RegistryClient::new(channel.clone()).lease(lease).await?;
    let (say, said) = tokio::sync::mpsc::unbounded_channel();
    let hello = Hello { instance_id: "orders-of-next-year".into(), ..Hello::default() };
    let workload = ResourceName { r#type: "workload".into(), name: "self".into() };
    let interest = Interest { subscribe: vec![workload], ..Interest::default() };
    for message in [Message::Hello(hello), Message::Interest(interest)] {
        say.send(FromProxy { message: Some(message) })?;
    }
    let told = tokio_stream::wrappers::UnboundedReceiverStream::new(said);
    let mut updates = ConfigClient::new(channel).subscribe(told).await?.into_inner();
    let epoch = mesh.epoch().await?;
    let refusing = tokio::spawn(async move {
        while let Some(update) = updates.message().await? {
            let complaint = proto::Complaint {
                r#type: "workload".into(),
                name: "self".into(),
                message: "a field of last year".into(),
            };
            let message = if update.to_epoch > epoch {
                Message::Nack(Nack { nonce: update.nonce, complaints: vec![complaint] })
            } else {
                Message::Ack(Ack { nonce: update.nonce })
            };
            say.send(FromProxy { message: Some(message) })?;
        }
        anyhow::Ok(())
    });
    let even = mesh.town.story("even-split.yaml").display().to_string();
    let said = mesh.town.equerry(&["apply", "--wait", "-f", &even]).await?;
    refusing.abort();
    ensure!(said.code == Some(4), "apply --wait ended with {:?}: {}", said.code, said.everything());
    ensure!(said.everything().contains("a field of last year"), "the refusal's words are lost: {}", said.everything());
    Ok(())
}
