//! Which endpoint a try goes to: among those that serve the port, by what this process has seen of each.

use std::net::SocketAddr;
use std::time::Instant;

use equerry_policies::view::EndpointAddress;
use equerry_traffic::balance::{self, NoEndpoint, Try, Wanted};

use crate::live::{Backend, Endpoint};

/// The endpoint of one try, which has begun.
#[derive(Debug)]
pub(crate) struct Chosen<'a> {
    /// The endpoint.
    pub(crate) endpoint: &'a Endpoint,
    /// Where to connect.
    pub(crate) address: SocketAddr,
    /// Whether mutual TLS is spoken there.
    pub(crate) mesh: bool,
    /// The try: in flight until it is dropped, which is at the head of the response.
    pub(crate) this_try: Try<'a>,
}

/// Chooses an endpoint of `backend` for its Service port `port` and begins a try there. `key` is what the backend's balancer
/// makes of the request. `tried` holds the places of the endpoints that this exchange has tried, and is added to.
///
/// # Errors
/// When there is none, or every breaker is open.
pub(crate) fn choose<'a>(
    backend: &'a Backend,
    port: u16,
    key: Option<u64>,
    tried: &mut Vec<usize>,
    now: Instant,
    rng: &mut fastrand::Rng,
) -> Result<Chosen<'a>, NoEndpoint> {
    let wanted = Wanted { key, tried, breaker: backend.traffic.breaker.as_ref(), now };
    let serves = |index: usize| reach(&backend.endpoints[index], port).is_some();
    let this_try = balance::choose(&backend.balancer, &backend.endpoints, serves, &wanted, rng)?;
    let endpoint = &backend.endpoints[this_try.index];
    let (address, mesh) = reach(endpoint, port).ok_or(NoEndpoint::None)?;
    tried.push(this_try.index);
    Ok(Chosen { endpoint, address, mesh, this_try })
}

/// Where an endpoint serves a Service port, and whether mutual TLS is spoken there; a sidecar serves every port.
fn reach(endpoint: &Endpoint, port: u16) -> Option<(SocketAddr, bool)> {
    match &endpoint.address {
        EndpointAddress::Mesh(address) => Some((*address, true)),
        EndpointAddress::Plain(ports) => ports.iter().find(|(of, _)| *of == port).map(|(_, address)| (*address, false)),
    }
}
