//! Who is meant by what an application asks for: a Service, somebody outside the mesh, nobody; and which of its ports.
//!
//! Requests, tunnels and copies all ask here, so that a name means the same to each.

use std::rc::Rc;
use std::sync::Arc;

use equerry_policies::names::{Authority, ServiceName};
use equerry_policies::policy::{OutboundTraffic, ServicePort};
use equerry_traffic::normalize::Normal;
use equerry_traffic::refusal::{Limited, OverLimit};
use equerry_traffic::route::{self, Choice, Known, MayLeave};
use equerry_traffic::{Refusal, outside};

use crate::live::{self, Backend, Destination, Live, NotThere};
use crate::outbound::Outbound;

/// A name with its port, as it was read, and what was found under it.
pub(crate) type Named = (Rc<Authority>, Found);

/// Which Service is meant, and the configuration that knows it: at most a second later, the first time it is named.
pub(crate) async fn resolve(at: &Outbound, live: Arc<Live>, normal: &Normal) -> Result<(Arc<Live>, Named), Refusal> {
    let Some(authority) = at.meant(normal, &live.own.namespace) else {
        let named = Box::pin(outside(at, &live, normal, None)).await?;
        return Ok((live, named));
    };
    match wanted(at, live, &authority.service).await {
        (live, Found::Unknown { nearest }) if outbound_traffic(&live) == OutboundTraffic::AllowAny => {
            let named = Box::pin(outside(at, &live, normal, nearest)).await?;
            Ok((live, named))
        }
        (live, found) => Ok((live, (authority, found))),
    }
}

/// The Service that is meant, whatever a request names: never anybody outside the mesh.
pub(super) async fn fixed(at: &Outbound, live: Arc<Live>, meant: &Rc<Authority>) -> (Arc<Live>, Named) {
    let (live, found) = wanted(at, live, &meant.service).await;
    (live, (Rc::clone(meant), found))
}

/// What is known of a Service, and the configuration that knows it.
async fn wanted(at: &Outbound, live: Arc<Live>, service: &ServiceName) -> (Arc<Live>, Found) {
    if let Some(here) = live.destination(service).cloned() {
        return (live, Found::Known(here));
    }
    match at.shared.live.want(service).await {
        Ok(live) => {
            let found = live.destination(service).cloned().map_or(Found::NotYet, Found::Known);
            (live, found)
        }
        Err(NotThere::Unknown { nearest }) => (live, Found::Unknown { nearest }),
        Err(NotThere::Unavailable) => (live, Found::NotYet),
    }
}

/// Whoever a name means that no Service has, where callers may name anybody (`ALLOW_ANY`): never asked while the control
/// plane has not said that there is no such Service. `nearest` is the name nearest to it that is known.
async fn outside(at: &Outbound, live: &Live, normal: &Normal, nearest: Option<String>) -> Result<Named, Refusal> {
    let to = outside::may_leave(normal.authority(), nearest.as_deref(), outbound_traffic(live))?;
    let destination = at.shared.outsiders.reach(&to).await.map_err(|refusal| match refusal {
        Refusal::NoService { name, .. } => Refusal::NoService { name, nearest },
        other => other,
    })?;
    let named = Authority { service: destination.backend.name.clone(), port: Some(to.port()) };
    Ok((Rc::new(named), Found::Known(destination)))
}

/// While this workload's policy is not known, nothing leaves the mesh.
fn outbound_traffic(live: &Live) -> OutboundTraffic {
    live.workload.as_ref().map_or(OutboundTraffic::RegistryOnly, |workload| workload.mesh.outbound_traffic)
}

/// What asking for a Service found.
#[derive(Debug)]
pub(crate) enum Found {
    /// A Service, or somebody outside the mesh.
    Known(Arc<Destination>),
    /// Nobody.
    Unknown {
        /// The nearest name that is known.
        nearest: Option<String>,
    },
    /// The control plane has not said.
    NotYet,
}

/// Whether it may be called, and what is known of it.
pub(crate) fn may_leave(named: &Named) -> Result<(MayLeave, &Destination), Refusal> {
    let (authority, found) = named;
    let known = match found {
        Found::Known(destination) => Known::Service(&destination.compiled),
        Found::Unknown { nearest } => Known::Nothing { nearest: nearest.as_deref() },
        Found::NotYet => Known::NotYet,
    };
    let may_leave = route::may_leave(authority, known)?;
    match found {
        Found::Known(destination) => Ok((may_leave, destination)),
        _ => Err(Refusal::ConfigUnavailable { service: authority.service.clone() }),
    }
}

/// The destination itself, or another Service that its route chose. A backend need not be one that callers may name yet: its
/// own routes are not asked.
pub(crate) fn backend<'a>(
    live: &'a Live,
    destination: &'a Destination,
    choice: &Choice,
) -> Result<&'a Arc<Backend>, Refusal> {
    if destination.backend.name == choice.backend {
        return Ok(&destination.backend);
    }
    live.destinations
        .get(&choice.backend)
        .map(|destination| &destination.backend)
        .ok_or_else(|| Refusal::ConfigUnavailable { service: choice.backend.clone() })
}

/// The port of a backend that is meant.
pub(crate) fn service_port(backend: &Backend, named: Option<u16>) -> Result<&ServicePort, Refusal> {
    let found = match (named, backend.ports.as_slice()) {
        (Some(port), ports) => ports.iter().find(|known| known.port == port),
        (None, [only]) => Some(only),
        (None, _) => None,
    };
    found.ok_or_else(|| Refusal::NoSuchPort {
        of: backend.name.to_string(),
        port: named.unwrap_or_default(),
        ports: backend.ports.iter().map(|known| known.port).collect(),
    })
}

pub(super) fn take_place(backend: &Backend) -> Result<live::Held, Refusal> {
    let limit = backend.traffic.limits.requests;
    backend.limits.request(limit).ok_or_else(|| {
        Refusal::Limit(Box::new(OverLimit {
            limit: Limited::Requests,
            service: backend.name.clone(),
            value: limit.unwrap_or(u32::MAX),
            present: backend.limits.present().requests,
            policy: backend.traffic.name.as_ref().map(|name| name.to_string().into()),
        }))
    })
}
