//! Which endpoint a try goes to: among those that serve the port, by what this process has seen of each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use equerry_policies::policy::LoadBalancer;
use equerry_policies::view::EndpointAddress;
use equerry_traffic::balance::{self, EndpointState, NoEndpoint, P2cEwma, Pick, Try};

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
    pub(crate) this_try: Try,
}

/// Chooses an endpoint of `backend` for its Service port `port` and begins a try there. `tried` holds the places of the
/// endpoints that this exchange has tried, and is added to.
///
/// # Errors
/// When there is none, or every breaker is open.
pub(crate) fn choose<'a>(
    backend: &'a Backend,
    port: u16,
    tried: &mut Vec<usize>,
    now: Instant,
    rng: &mut fastrand::Rng,
) -> Result<Chosen<'a>, NoEndpoint> {
    let pick = match backend.traffic.load_balancer {
        LoadBalancer::P2cEwma => P2cEwma,
    };
    let all_serve = backend.endpoints.iter().all(|endpoint| matches!(endpoint.address, EndpointAddress::Mesh(_)));
    if all_serve {
        choose_among(&pick, &backend.endpoints, backend, port, tried, now, rng)
    } else {
        let serving = backend.endpoints.iter().enumerate().filter(|(_, endpoint)| reach(endpoint, port).is_some());
        let serving: Vec<Serving<'a>> = serving.map(|(place, endpoint)| Serving { place, endpoint }).collect();
        choose_among(&pick, &serving, backend, port, tried, now, rng)
    }
}

fn choose_among<'a, C: Candidate>(
    pick: &impl Pick,
    candidates: &[C],
    backend: &'a Backend,
    port: u16,
    tried: &mut Vec<usize>,
    now: Instant,
    rng: &mut fastrand::Rng,
) -> Result<Chosen<'a>, NoEndpoint> {
    // A first try, which is most of them, has nothing to leave out and looks at no list.
    let skip: Vec<usize> = if tried.is_empty() {
        Vec::new()
    } else {
        (0..candidates.len()).filter(|index| tried.contains(&candidates[*index].place(*index))).collect()
    };
    let this_try = balance::choose(pick, candidates, &skip, backend.traffic.breaker.as_ref(), now, rng)?;
    let place = candidates[this_try.index].place(this_try.index);
    let endpoint = &backend.endpoints[place];
    let (address, mesh) = reach(endpoint, port).ok_or(NoEndpoint::None)?;
    tried.push(place);
    Ok(Chosen { endpoint, address, mesh, this_try })
}

/// Where an endpoint serves a Service port, and whether mutual TLS is spoken there; a sidecar serves every port.
fn reach(endpoint: &Endpoint, port: u16) -> Option<(SocketAddr, bool)> {
    match &endpoint.address {
        EndpointAddress::Mesh(address) => Some((*address, true)),
        EndpointAddress::Plain(ports) => ports.iter().find(|(of, _)| *of == port).map(|(_, address)| (*address, false)),
    }
}

/// What can be chosen: an endpoint, or one taken out of the list to leave out those that do not serve the port.
trait Candidate: AsRef<EndpointState> + AsRef<Arc<EndpointState>> {
    /// Its place in the backend's list, `index` being its place among the candidates.
    fn place(&self, index: usize) -> usize;
}

impl Candidate for Endpoint {
    fn place(&self, index: usize) -> usize {
        index
    }
}

struct Serving<'a> {
    place: usize,
    endpoint: &'a Endpoint,
}

impl Candidate for Serving<'_> {
    fn place(&self, _: usize) -> usize {
        self.place
    }
}

impl AsRef<EndpointState> for Serving<'_> {
    fn as_ref(&self) -> &EndpointState {
        self.endpoint.as_ref()
    }
}

impl AsRef<Arc<EndpointState>> for Serving<'_> {
    fn as_ref(&self) -> &Arc<EndpointState> {
        self.endpoint.as_ref()
    }
}
