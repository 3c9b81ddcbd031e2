//! How endpoints stand, for people and for metrics: the verdict on each, what it rests on, and since when.

use std::time::SystemTime;

use equerry_policies::names::ServiceName;
use equerry_policies::view::EndpointAddress;
use equerry_traffic::health::{Because, Standing};
use serde_json::{Value, json};

use crate::live::{Backend, Endpoint, Live};
use crate::upstream;

/// So many endpoints of each destination, by the word of what their health rests on; words that hold for none are left out,
/// but for `well`.
pub(super) fn census(live: &Live) -> impl Iterator<Item = (ServiceName, &'static str, usize)> {
    let now = tokio::time::Instant::now().into_std();
    live.destinations.values().flat_map(move |destination| {
        let backend = &destination.backend;
        let told = |(word, count): &(&'static str, usize)| *count > 0 || *word == Because::Nothing.as_str();
        let counts = upstream::census(backend, now).into_iter().filter(told);
        counts.map(|(word, count)| (backend.name.clone(), word, count)).collect::<Vec<_>>()
    })
}

/// Every destination with its endpoints, by name.
pub(super) fn shown(live: &Live) -> Value {
    let mut backends: Vec<&Backend> = live.destinations.values().map(|destination| &*destination.backend).collect();
    backends.sort_by(|one, other| one.name.cmp(&other.name));
    backends
        .into_iter()
        .map(|backend| {
            let endpoints = backend.endpoints.iter().map(|it| endpoint(backend, it));
            let unwell = backend.unwell.iter().map(|one| {
                let because = Because::Leased(one.detail.clone());
                json!({
                    "instance": one.instance,
                    "health": Standing::Unusable.as_str(),
                    "by": because.as_str(),
                    "because": because.to_string(),
                })
            });
            json!({ "service": backend.name, "endpoints": endpoints.chain(unwell).collect::<Vec<_>>() })
        })
        .collect()
}

fn endpoint(backend: &Backend, endpoint: &Endpoint) -> Value {
    let now = tokio::time::Instant::now().into_std();
    let health = endpoint.state.health(backend.traffic.breaker.as_ref(), now);
    let since = health.since.and_then(|since| SystemTime::now().checked_sub(now.saturating_duration_since(since)));
    let (address, mesh) = match &endpoint.address {
        EndpointAddress::Mesh(address) => (json!(address), true),
        EndpointAddress::Plain(ports) => (ports.iter().map(|(_, address)| json!(address)).collect(), false),
    };
    json!({
        "instance": endpoint.instance,
        "address": address,
        "mutualTls": mesh,
        "plainTextToItsSidecar": endpoint.open,
        "health": health.standing.as_str(),
        "by": health.because.as_str(),
        "because": health.because.to_string(),
        "since": since.map(equerry_certs::rfc3339),
        "inFlight": endpoint.state.in_flight(),
    })
}
