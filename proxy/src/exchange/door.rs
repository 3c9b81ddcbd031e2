//! Which port of the application is meant by what comes in, and whether it may be spoken to in this way.

use std::net::{Ipv4Addr, SocketAddr};

use equerry_policies::compile::CompiledWorkload;
use equerry_policies::names::ServiceName;
use equerry_policies::policy::{AppProtocol, ServicePort};
use equerry_traffic::Refusal;
use equerry_traffic::normalize::Normal;
use http::{HeaderMap, HeaderName};

use crate::app::Shared;
use crate::inbound::{Inbound, Via};
use crate::upstream::Protocol;

/// Which port of the application a sidecar means that speaks plain text with us: nothing else names it. It opens no door that the
/// port of a `Host` would not open too.
pub(super) const PORT: HeaderName = HeaderName::from_static("x-equerry-port");

/// The port that a request in plain text names so.
pub(super) fn named_in_plain_text(at: &Inbound, headers: &HeaderMap, via: &Via) -> Option<u16> {
    // To look for it costs a hash.
    if via.peer.is_some() || at.shared.settings.app_ports.len() == 1 {
        return None;
    }
    headers.get(PORT)?.to_str().ok()?.parse().ok()
}

/// The application's port that a request means.
#[derive(Debug)]
pub(crate) struct Door {
    /// As the mesh knows it.
    pub(crate) port: u16,
    /// Where the application listens.
    pub(crate) local: SocketAddr,
    /// What is spoken there.
    pub(crate) protocol: Protocol,
    /// The Service that the port belongs to.
    pub(crate) service: Option<ServiceName>,
}

/// Which port is meant, and whether it may be spoken to in this way. `named`: what [`named_in_plain_text`] found.
pub(crate) fn door(
    shared: &Shared,
    workload: &CompiledWorkload,
    via: &Via,
    normal: &Normal,
    named: Option<u16>,
) -> Result<Door, Refusal> {
    let settings = &shared.settings;
    let ports = || settings.app_ports.iter().map(|known| known.port);
    let named = if via.peer.is_some() { via.port } else { named.or_else(|| normal.port()) };
    let known = named.filter(|named| ports().any(|port| port == *named));
    let port = match known {
        Some(port) => port,
        // Plain text names no port of ours, but maybe that of this listener: the only one that takes it is meant.
        None => match only(ports().filter(|port| via.peer.is_none() && workload.mtls(*port).takes_plain_text())) {
            Some(only) => only,
            None => {
                // A stranger without identity gets no list of the ports of an instance that speaks to none.
                let open = |port: u16| workload.mtls(port).takes_plain_text();
                if via.peer.is_none() && !ports().any(open) {
                    return Err(Refusal::TlsRequired { port: named.or(ports().next()).unwrap_or_default() });
                }
                let of = "this instance".to_owned();
                return Err(Refusal::NoSuchPort { of, port: named.unwrap_or_default(), ports: ports().collect() });
            }
        },
    };
    if via.peer.is_none() && !workload.mtls(port).takes_plain_text() {
        return Err(Refusal::TlsRequired { port });
    }
    let local = settings.local_port(port).unwrap_or(port);
    let called = via.server_name.as_deref();
    let serving = |service: &&(ServiceName, Vec<ServicePort>)| service.1.iter().any(|known| known.target_port == port);
    let service = workload
        .services
        .iter()
        .filter(serving)
        .max_by_key(|(name, _)| called.is_some_and(|called| is_called(name, called)));
    let app_protocol = service
        .and_then(|(_, ports)| ports.iter().find(|known| known.target_port == port))
        .map(|known| known.app_protocol);
    if app_protocol == Some(AppProtocol::Tcp) {
        return Err(not_http(port));
    }
    Ok(Door {
        port,
        local: (Ipv4Addr::LOCALHOST, local).into(),
        protocol: Protocol::of(app_protocol.unwrap_or_default()),
        service: service.map(|(name, _)| name.clone()),
    })
}

/// The one of them, if there is one.
fn only(mut ports: impl Iterator<Item = u16>) -> Option<u16> {
    let first = ports.next()?;
    ports.next().is_none().then_some(first)
}

/// Nobody looks for requests where TCP is spoken, and nobody sends any.
pub(super) fn not_http(port: u16) -> Refusal {
    Refusal::bad_request(format!("port {port} speaks TCP, and this is HTTP"))
}

/// Whether `p<port>.<service>.<namespace>.mesh` names the Service.
pub(crate) fn is_called(service: &ServiceName, server_name: &str) -> bool {
    let rest = server_name.split_once('.').and_then(|(_, rest)| rest.strip_suffix(".mesh"));
    let namespace =
        rest.and_then(|rest| rest.strip_prefix(service.name.as_str())).and_then(|rest| rest.strip_prefix('.'));
    namespace == Some(service.namespace.as_str())
}
