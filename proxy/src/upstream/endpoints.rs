//! Which endpoint a try goes to: among those that serve the port, by what this process has seen of each.

use std::net::SocketAddr;
use std::time::Instant;

use equerry_policies::view::EndpointAddress;
use equerry_traffic::Refusal;
use equerry_traffic::balance::{self, NoEndpoint, Try, Wanted};
use equerry_traffic::health::Because;

use crate::live::{Backend, Endpoint};

/// So many endpoints are named in a refusal; it is read by people.
const NAMED: usize = 3;

/// The endpoint of one try, which has begun.
#[derive(Debug)]
pub(crate) struct Chosen<'a> {
    /// The endpoint.
    pub(crate) endpoint: &'a Endpoint,
    /// Where to connect.
    pub(crate) address: SocketAddr,
    /// Whether mutual TLS is spoken there.
    pub(crate) mesh: bool,
    /// Whether plain text is spoken with a sidecar there, which must be told which port is meant.
    pub(crate) open: bool,
    /// The try: in flight until it is dropped, which is at the head of the response, or when a connection for bytes stands. What
    /// [`Try::goes_on`] gives is kept for as long as the response or the connection lasts.
    pub(crate) this_try: Try<'a>,
}

/// Chooses an endpoint of `backend` for its Service port `port` and begins a try there. `key` is what the backend's balancer
/// makes of the request. `tried` holds the places of the endpoints that this exchange has tried.
///
/// # Errors
/// When there is none, or all are kept away.
pub(crate) fn choose<'a>(
    backend: &'a Backend,
    port: u16,
    key: Option<u64>,
    tried: &[usize],
    now: Instant,
    rng: &mut fastrand::Rng,
) -> Result<Chosen<'a>, NoEndpoint> {
    let wanted = Wanted { key, tried, breaker: backend.traffic.breaker.as_ref(), now };
    let serves = |index: usize| reach(&backend.endpoints[index], port).is_some();
    let this_try = balance::choose(&backend.balancer, &backend.endpoints, serves, &wanted, rng)?;
    let endpoint = &backend.endpoints[this_try.index];
    let (address, mesh) = reach(endpoint, port).ok_or(NoEndpoint::None)?;
    let open = endpoint.open.contains(&port);
    Ok(Chosen { endpoint, address, mesh: mesh && !open, open, this_try })
}

/// Why no endpoint of `backend` can be tried, as its caller is told.
pub(crate) fn refusal(none: NoEndpoint, backend: &Backend, port: u16, now: Instant) -> Refusal {
    let service = backend.name.clone();
    match none {
        NoEndpoint::AllOpen => Refusal::BreakerOpen { service },
        NoEndpoint::None | NoEndpoint::NoneWell => {
            Refusal::NoHealthyEndpoint { service, why: why(backend, port, now).into() }
        }
    }
}

/// What keeps each endpoint away, the first few by name.
fn why(backend: &Backend, port: u16, now: Instant) -> String {
    let breaker = backend.traffic.breaker.as_ref();
    let told = |endpoint: &Endpoint| {
        let because = if reach(endpoint, port).is_none() {
            format!("it does not serve port {port}")
        } else {
            endpoint.state.health(breaker, now).because.to_string()
        };
        format!("{}: {because}", endpoint.instance)
    };
    let unwell = backend.unwell.iter().map(|one| format!("{}: {}", one.instance, Because::Leased(one.detail.clone())));
    let all = backend.endpoints.len() + backend.unwell.len();
    if all == 0 {
        return "no instance is registered, and no address is written down".to_owned();
    }
    let mut named: Vec<String> = backend.endpoints.iter().map(told).chain(unwell).take(NAMED).collect();
    if all > NAMED {
        named.push(format!("and {} more", all - NAMED));
    }
    named.join("; ")
}

/// How many endpoints of a backend stand how, by the word of what says so; see [`Because::WORDS`].
pub(crate) fn census(backend: &Backend, now: Instant) -> [(&'static str, usize); Because::WORDS.len()] {
    let mut counts = Because::WORDS.map(|word| (word, 0));
    let breaker = backend.traffic.breaker.as_ref();
    let judged = backend.endpoints.iter().map(|endpoint| endpoint.state.health(breaker, now).because.as_str());
    for word in judged.chain(backend.unwell.iter().map(|_| Because::Leased(String::new()).as_str())) {
        if let Some((_, count)) = counts.iter_mut().find(|(known, _)| *known == word) {
            *count += 1;
        }
    }
    counts
}

/// Where an endpoint serves a Service port, and whether mutual TLS is spoken there; a sidecar serves every port.
fn reach(endpoint: &Endpoint, port: u16) -> Option<(SocketAddr, bool)> {
    match &endpoint.address {
        EndpointAddress::Mesh(address) => Some((*address, true)),
        EndpointAddress::Plain(ports) => ports.iter().find(|(of, _)| *of == port).map(|(_, address)| (*address, false)),
    }
}
