//! `Registry`: instances and their leases, as sidecars tell them. The account is the certificate's, whatever is asked.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use equerry_certs::skew;
use equerry_policies::names::{AccountName, InstanceId};
use equerry_policies::policy::{Labels, weight};
use equerry_wire::limits::MAX_ITEMS;
use equerry_wire::proto::registry_server::{Registry, RegistryServer};
use equerry_wire::proto::{LeaseRequest, LeaseResponse, ReleaseRequest, ReleaseResponse};
use tonic::{Request, Response, Status};

use super::workload_of;
use crate::control::{ControlPlane, LeaseError};
use crate::registry::{BEAT, InstanceKey, LEASE, Registration};

/// Longest text that says why an application is unhealthy.
const MAX_DETAIL: usize = 512;
/// Largest lease request in bytes.
const MAX_REQUEST: usize = 256 << 10;

/// The service.
pub(super) struct Leases {
    control: ControlPlane,
}

/// The service, ready to be routed to.
pub(super) fn service(control: ControlPlane) -> RegistryServer<Leases> {
    RegistryServer::new(Leases { control }).max_decoding_message_size(MAX_REQUEST)
}

#[tonic::async_trait]
impl Registry for Leases {
    async fn lease(&self, request: Request<LeaseRequest>) -> Result<Response<LeaseResponse>, Status> {
        let account = workload_of(&self.control, request.extensions())?.account_name();
        let asked = request.into_inner();
        let now_unix_ms = asked.now_unix_ms;
        let registration = read(asked, account)?;
        if self.control.instance(&registration.key()).is_none() {
            check_clock(now_unix_ms)?;
        }
        let services = self.control.put_instance(registration, None).await.map_err(|error| refusal(&error))?;
        Ok(Response::new(LeaseResponse {
            lease_ms: milliseconds(LEASE),
            beat_ms: milliseconds(BEAT),
            services: services.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        let account = workload_of(&self.control, request.extensions())?.account_name();
        let asked = request.into_inner();
        let key = InstanceKey { namespace: account.namespace.clone(), id: instance_id(&asked.instance_id)? };
        if self.control.instance(&key).is_some_and(|known| known.account != account) {
            return Err(Status::permission_denied(format!("instance {key} is held by another account than {account}")));
        }
        let released = self.control.delete_instance(&key, Some(asked.generation), None).await;
        released.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(ReleaseResponse {}))
    }
}

fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// A newcomer whose clock is off would judge tokens and windows wrongly. Clocks that go off later are not worth an outage.
fn check_clock(theirs_ms: u64) -> Result<(), Status> {
    if theirs_ms == 0 {
        return Ok(());
    }
    let theirs = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(theirs_ms));
    let theirs = theirs.ok_or_else(|| Status::invalid_argument("now_unix_ms: found a time beyond every calendar"))?;
    skew::check(theirs, SystemTime::now()).map_err(|skew| Status::failed_precondition(skew.to_string()))
}

/// What is asked, checked.
fn read(asked: LeaseRequest, account: AccountName) -> Result<Registration, Status> {
    if asked.labels.len() > MAX_ITEMS || asked.ports.len() > MAX_ITEMS {
        return Err(Status::invalid_argument(format!("found more than {MAX_ITEMS} labels or ports in one lease")));
    }
    let inbound: SocketAddr = asked.inbound.parse().map_err(|_| {
        Status::invalid_argument(format!(
            "inbound: found {:?}, expected IP:PORT of the sidecar's inbound listener",
            shown(&asked.inbound)
        ))
    })?;
    if inbound.ip().is_unspecified() || inbound.ip().is_multicast() || inbound.port() == 0 {
        let expected = "an address callers can connect to: start the sidecar with --advertise IP:PORT";
        return Err(Status::invalid_argument(format!("inbound: found {inbound}, expected {expected}")));
    }
    let mut ports = asked.ports.iter().map(|port| port_number(*port)).collect::<Result<Vec<u16>, Status>>()?;
    ports.sort_unstable();
    ports.dedup();
    let labels: Labels = asked.labels.into_iter().collect();
    weight(&labels).map_err(Status::invalid_argument)?;
    Ok(Registration {
        id: instance_id(&asked.instance_id)?,
        account,
        generation: asked.generation,
        labels,
        inbound,
        ports,
        healthy: asked.healthy,
        health_detail: asked.health_detail.chars().take(MAX_DETAIL).collect(),
        lease: LEASE,
        by_api: false,
    })
}

fn port_number(port: u32) -> Result<u16, Status> {
    let number = u16::try_from(port).ok().filter(|port| *port != 0);
    number.ok_or_else(|| Status::invalid_argument(format!("ports: found {port}, expected 1 to 65535")))
}

/// Reads an instance id.
pub(super) fn instance_id(text: &str) -> Result<InstanceId, Status> {
    InstanceId::parse(text).map_err(|bad| Status::invalid_argument(format!("instance_id: {bad}")))
}

/// A stranger's text, cut to a length that is safe to print.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

fn refusal(error: &LeaseError) -> Status {
    match error {
        LeaseError::Refused(_) => Status::failed_precondition(error.to_string()),
        LeaseError::NotListed(_) => Status::permission_denied(error.to_string()),
        LeaseError::Store(_) => Status::unavailable(error.to_string()),
    }
}
