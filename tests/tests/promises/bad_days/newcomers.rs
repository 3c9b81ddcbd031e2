//! Strangers at the control plane's door.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use equerry::demo::town::{Resident, SHOP};
use equerry_certs::{JoinToken, Request};
use equerry_tests::{Mesh, eventually, grpc};
use equerry_wire::proto::config_client::ConfigClient;
use equerry_wire::proto::registry_client::RegistryClient;
use equerry_wire::proto::{FromProxy, Hello, LeaseRequest, from_proxy};
use tokio_stream::StreamExt as _;

use crate::program;

#[tokio::test]
async fn a_certificate_request_for_another_identity_is_refused_naming_both() -> Result<()> {
    let mesh = Mesh::up(program(), &[]).await?;
    let token = mesh.town.join_token("orders", "10m").await?;
    let wanted = "spiffe://equerry.local/ns/shop/sa/frontend";
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names.push(rcgen::SanType::URI(wanted.try_into()?));
    let key = rcgen::KeyPair::generate()?;
    let csr = params.serialize_request(&key)?.der().to_vec();
    let refused = grpc::sign(&mesh.town, &token, csr, 0).await?;
    let status = refused.err().context("a certificate for somebody else was signed")?;
    ensure!(status.message().contains(wanted) && status.message().contains("shop/sa/orders"), "{status:?}");
    // Nothing is half-done: the honest owner of the token still gets in.
    let honest = grpc::sign(&mesh.town, &token, Request::new()?.csr_der, 0).await?;
    ensure!(honest.as_deref().is_ok_and(|id| id == "spiffe://equerry.local/ns/shop/sa/orders"), "{honest:?}");
    Ok(())
}

#[tokio::test]
async fn a_clock_an_hour_off_is_refused_naming_both_times() -> Result<()> {
    let mesh = Mesh::up(program(), &[]).await?;
    for offset in [3600, -3600] {
        let token = mesh.town.join_token("orders", "10m").await?;
        let refused = grpc::sign(&mesh.town, &token, Request::new()?.csr_der, offset).await?;
        let status = refused.err().context("a clock an hour off was accepted")?;
        let times = status.message().matches("Z").count();
        ensure!(status.message().contains("clock") && times >= 2, "{status:?}");
        let honest = grpc::sign(&mesh.town, &token, Request::new()?.csr_der, 0).await?;
        ensure!(honest.is_ok(), "after a refusal for its clock the token is gone: {honest:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_without_a_certificate_is_refused_and_told_how_to_get_one() -> Result<()> {
    let mesh = Mesh::up(program(), &[]).await?;
    let token = JoinToken::parse(&mesh.town.join_token("orders", "10m").await?)?;
    let channel = grpc::without_certificate(&mesh.town, token.pin()).await?;
    let hello = FromProxy {
        message: Some(from_proxy::Message::Hello(Hello { instance_id: "orders-1".into(), ..Hello::default() })),
    };
    // The refusal may come as the answer or as the stream's first message.
    let status = match ConfigClient::new(channel.clone()).subscribe(stays_open(hello)).await {
        Err(status) => status,
        Ok(answer) => answer.into_inner().message().await.err().context("a stream without a certificate was served")?,
    };
    ensure!(status.code() == tonic::Code::Unauthenticated && status.message().contains("certificate"), "{status:?}");

    let lease = LeaseRequest { instance_id: "orders-1".into(), generation: 1, ..LeaseRequest::default() };
    let status =
        RegistryClient::new(channel).lease(lease).await.err().context("a lease without a certificate was granted")?;
    ensure!(status.code() == tonic::Code::Unauthenticated && status.message().contains("certificate"), "{status:?}");
    Ok(())
}

/// A stream of one message that then stays open.
fn stays_open<T: Send + 'static>(message: T) -> impl tokio_stream::Stream<Item = T> + Send + 'static {
    tokio_stream::iter([message]).chain(tokio_stream::pending())
}

#[tokio::test]
async fn a_proxy_of_an_account_that_a_service_does_not_list_is_left_out_and_told() -> Result<()> {
    let stranger = Resident { name: "orders-2", account: "stranger", labels: &[("app", "orders")], calls: None };
    let mesh = Mesh::plan(program(), &[SHOP[1], stranger]).await?;
    mesh.town.start_control_plane(&[]).await?;
    mesh.town.equerry(&["apply", "-f", &mesh.town.policies().display().to_string()]).await?.succeeded()?;
    for home in &mesh.town.homes {
        mesh.town.start_app(home).await?;
        mesh.town.join(home).await?;
        mesh.town.start_sidecar(home).await?;
    }
    mesh.town.wait_ready(mesh.town.home("orders")?).await?;
    let home = mesh.town.home("orders-2")?;
    eventually(Duration::from_secs(15), "the refusal in the stranger's log", async || {
        let log = mesh.town.sidecar_log(home);
        Ok(log.lines().any(|line| line.contains("shop/orders") && line.contains("stranger")).then_some(()))
    })
    .await?;
    let status = mesh.status().await?;
    let orders = status["services"]
        .as_array()
        .and_then(|all| all.iter().find(|service| service["service"] == "shop/orders"))
        .context("no shop/orders")?;
    let members = orders["members"].to_string();
    ensure!(members.contains("orders") && !members.contains("orders-2"), "members of shop/orders: {members}");
    Ok(())
}
