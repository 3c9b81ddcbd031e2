//! Which port of the application is meant by what comes in, and whether it may be spoken to in this way.

use std::net::{Ipv4Addr, SocketAddr};

use equerry_policies::compile::CompiledWorkload;
use equerry_policies::names::ServiceName;
use equerry_policies::policy::{AppProtocol, MtlsMode, ServicePort};
use equerry_traffic::Refusal;
use equerry_traffic::normalize::Normal;

use crate::inbound::{Inbound, Via};
use crate::upstream::Protocol;

/// The application's port that a request means.
#[derive(Debug)]
pub(super) struct Door {
    /// As the mesh knows it.
    pub(super) port: u16,
    /// Where the application listens.
    pub(super) local: SocketAddr,
    /// What is spoken there.
    pub(super) protocol: Protocol,
    /// The Service that the port belongs to.
    pub(super) service: Option<ServiceName>,
}

/// Which port is meant, and whether it may be spoken to in this way.
pub(super) fn door(at: &Inbound, workload: &CompiledWorkload, via: &Via, normal: &Normal) -> Result<Door, Refusal> {
    let settings = &at.shared.settings;
    let ports = || settings.app_ports.iter().map(|known| known.port);
    let named = if via.peer.is_some() { via.port } else { normal.port() };
    let known = named.filter(|named| ports().any(|port| port == *named));
    let port = match (known, named, settings.app_ports.as_slice()) {
        (Some(port), ..) => port,
        // Plain text names no port of ours, but maybe that of this listener: the only one is meant.
        (None, _, [only]) if via.peer.is_none() => only.port,
        (None, named, all) => {
            // A stranger without identity gets no list of the ports of an instance that speaks to none.
            let strict = |port: u16| workload.mtls(port) == MtlsMode::Strict;
            if via.peer.is_none() && all.iter().all(|known| strict(known.port)) {
                let port = named.or(all.first().map(|known| known.port)).unwrap_or_default();
                return Err(Refusal::TlsRequired { port });
            }
            let of = "this instance".to_owned();
            return Err(Refusal::NoSuchPort { of, port: named.unwrap_or_default(), ports: ports().collect() });
        }
    };
    if via.peer.is_none() && workload.mtls(port) == MtlsMode::Strict {
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
