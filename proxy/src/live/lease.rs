//! This instance's place in the registry: a lease, renewed every few seconds, given back when draining.
//!
//! Each beat carries the health verdict; a change of verdict is told at once. A refusal (an account that the Service
//! does not list, a clock that differs) is shown in the words the control plane used.

use std::time::{Duration, SystemTime};

use equerry_wire::proto;
use equerry_wire::proto::registry_client::RegistryClient;
use tokio::sync::watch;

use super::backoff::Backoff;
use super::health::Health;
use super::link::Link;
use super::renew::is_refusal;
use super::status::Status;
use crate::config::Settings;

/// A beat takes longer only when something is broken.
const PATIENCE: Duration = Duration::from_secs(3);
/// A refused registration is tried again this often: policy may change any time.
const AFTER_REFUSAL: Duration = Duration::from_secs(2);
/// While starting, readiness is looked at this often.
const SOON: Duration = Duration::from_millis(100);

/// What is registered.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    request: proto::LeaseRequest,
}

impl Lease {
    /// A lease for this start of the instance, reachable at `inbound`.
    pub(crate) fn new(settings: &Settings, inbound: std::net::SocketAddr) -> Self {
        let request = proto::LeaseRequest {
            instance_id: settings.instance.to_string(),
            generation: super::unix_ms(SystemTime::now()),
            labels: settings.labels.clone().into_iter().collect(),
            inbound: inbound.to_string(),
            ports: settings.app_ports.iter().map(|port| u32::from(port.port)).collect(),
            ..Default::default()
        };
        Self { request }
    }

    /// Beats until `drain` begins, then gives the lease back.
    pub(crate) async fn hold(
        self,
        link: Link,
        mut health: watch::Receiver<Health>,
        status: Status,
        drain: crate::drain::Drain,
    ) {
        tokio::select! {
            () = self.beat_for_ever(&link, &mut health, &status) => {}
            () = drain.wait_begun() => self.release(&link).await,
        }
    }

    async fn beat_for_ever(&self, link: &Link, health: &mut watch::Receiver<Health>, status: &Status) {
        let mut backoff = Backoff::default();
        let mut told: Option<String> = None;
        loop {
            // One look: what is told is what is waited for.
            let can_serve = status.can_serve();
            let starting = can_serve.is_err();
            let verdict = verdict(&health.borrow_and_update(), can_serve);
            let rest = match self.beat(link, &verdict).await {
                Ok(answer) => {
                    if !backoff.is_fresh() || told.is_some() {
                        tracing::info!(services = ?answer.services, "this instance is registered");
                    }
                    backoff.reset();
                    told = None;
                    status.lease(None);
                    Duration::from_millis(u64::from(answer.beat_ms))
                        .clamp(Duration::from_millis(100), Duration::from_secs(60))
                }
                Err(error) if is_refusal(error.code()) => {
                    if told.as_deref() != Some(error.message()) {
                        tracing::error!(error = error.message(), "the control plane refuses to register this instance");
                    }
                    status.lease(Some(error.message().to_owned()));
                    told = Some(error.message().to_owned());
                    AFTER_REFUSAL
                }
                Err(_) => backoff.next(),
            };
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = serving(status), if starting => {}
                changed = health.changed() => if changed.is_err() {
                    tokio::time::sleep(rest).await;
                },
            }
        }
    }

    async fn beat(&self, link: &Link, health: &Health) -> Result<proto::LeaseResponse, tonic::Status> {
        let mut request = tonic::Request::new(proto::LeaseRequest {
            healthy: health.healthy,
            health_detail: health.detail.clone(),
            now_unix_ms: super::unix_ms(SystemTime::now()),
            ..self.request.clone()
        });
        request.set_timeout(PATIENCE);
        Ok(RegistryClient::new(link.channel()).lease(request).await?.into_inner())
    }

    /// Takes this instance out of every caller's view.
    async fn release(&self, link: &Link) {
        let mut request = tonic::Request::new(proto::ReleaseRequest {
            instance_id: self.request.instance_id.clone(),
            generation: self.request.generation,
        });
        request.set_timeout(PATIENCE);
        if let Err(error) = RegistryClient::new(link.channel()).release(request).await {
            tracing::warn!(error = error.message(), "the lease cannot be given back; it runs out by itself");
        }
    }
}

/// Waits until the sidecar itself can serve.
async fn serving(status: &Status) {
    while status.can_serve().is_err() {
        tokio::time::sleep(SOON).await;
    }
}

/// The application's verdict, unless the sidecar itself cannot serve yet.
fn verdict(health: &Health, can_serve: Result<(), String>) -> Health {
    match can_serve {
        Ok(()) => health.clone(),
        Err(why) => Health { healthy: false, detail: why },
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
