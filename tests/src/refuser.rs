//! A proxy of another version, which finds a resource that it cannot compile: it refuses every epoch after the one it met. No
//! program of this version does that, so tests speak for it.

use std::time::SystemTime;

use anyhow::Result;
use equerry_wire::proto::config_client::ConfigClient;
use equerry_wire::proto::from_proxy::Message;
use equerry_wire::proto::registry_client::RegistryClient;
use equerry_wire::proto::{Ack, Complaint, FromProxy, Hello, Interest, LeaseRequest, Nack, ResourceName};
use tokio::task::JoinHandle;

use crate::{Mesh, grpc};

/// Refuses as long as this lives.
#[derive(Debug)]
pub struct Refuser(JoinHandle<Result<()>>);

impl Drop for Refuser {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An instance `orders-of-next-year` that speaks with the mesh's control plane.
///
/// # Errors
/// When it is not let in.
pub async fn start(mesh: &Mesh) -> Result<Refuser> {
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
    Ok(Refuser(tokio::spawn(async move {
        while let Some(update) = updates.message().await? {
            let complaint =
                Complaint { r#type: "workload".into(), name: "self".into(), message: "a field of last year".into() };
            let message = if update.to_epoch > epoch {
                Message::Nack(Nack { nonce: update.nonce, complaints: vec![complaint] })
            } else {
                Message::Ack(Ack { nonce: update.nonce })
            };
            say.send(FromProxy { message: Some(message) })?;
        }
        Ok(())
    })))
}
