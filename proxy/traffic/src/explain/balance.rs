//! How an endpoint of a backend is chosen, and who says whether it is well, in words.

use equerry_policies::names::ServiceName;
use equerry_policies::policy::{Algorithm, Ask, HashOn, HealthCheck, Service, TrafficPolicy};
use http::request::Parts;

use super::{Outcome, Step};
use crate::balance::Source;
use crate::balance::hash::{Hash, hash_key};

/// How one of the endpoints of `backend` is chosen for a request, or for a connection (`None`).
pub fn balancer(backend: &ServiceName, policy: &TrafficPolicy, request: Option<&Parts>, source: &Source<'_>) -> Step {
    let balancer = &policy.load_balancer;
    let (how, hashed) = match &balancer.algorithm {
        Algorithm::P2cEwma => ("p2c_ewma: the better of two drawn at random, by latency and what is in flight", None),
        Algorithm::LeastRequest => ("least_request: the better of two drawn at random, by what is in flight", None),
        Algorithm::RoundRobin => ("round_robin: one after the other", None),
        Algorithm::Random => ("random", None),
        Algorithm::RingHash(ring) => ("ring_hash", Some((&ring.hash, ring.bounded_load))),
        Algorithm::Maglev(maglev) => ("maglev", Some((&maglev.hash, None))),
    };
    let mut because = how.to_owned();
    if let Some((on, bound)) = hashed {
        because += &format!(" by {}: {}", words(on), alike(on, request, source));
        if let Some(percent) = bound {
            because += &format!("; none has more than {percent}% of its share in flight");
        }
    }
    if let Some(ramp) = balancer.slow_start {
        because += &format!("; a new one is warmed up over {:?}", ramp.window);
    }
    Step::new(format!("balancer of {backend}"), Outcome::Decided, because, &policy.origin)
}

/// Whether a request has what is hashed.
fn alike(on: &HashOn, request: Option<&Parts>, source: &Source<'_>) -> String {
    let key = match (on, request) {
        (HashOn::SourceAddress | HashOn::Identity, None) => Some(0),
        (_, None) => None,
        (_, Some(request)) => Hash::new(on).and_then(|hash| hash_key(&hash, request, source)),
    };
    match (key, request) {
        (Some(_), _) => "all that are alike go to the same endpoint".to_owned(),
        (None, Some(_)) => "the request does not have it, so it goes to one at random".to_owned(),
        (None, None) => "a connection does not have it, so it goes to one at random".to_owned(),
    }
}

fn words(on: &HashOn) -> String {
    match on {
        HashOn::Header(name) => format!("the header {name}"),
        HashOn::Cookie(name) => format!("the cookie {name}"),
        HashOn::Query(name) => format!("the parameter {name} of the query"),
        HashOn::SourceAddress => "the instance that calls".to_owned(),
        HashOn::Identity => "the identity that calls".to_owned(),
    }
}

/// Who says whether the endpoints of a Service are well.
pub fn health(backend: &Service, policy: &TrafficPolicy) -> Vec<Step> {
    let mut steps = Vec::new();
    let subject = format!("health of {}", backend.name);
    if !backend.selector.is_empty() {
        let because = "the sidecar beside each instance asks its application, and says so with its lease";
        steps.push(Step::new(&*subject, Outcome::Decided, because, &backend.origin));
    }
    match &policy.health_check {
        Some(check) => steps.push(Step::new(&*subject, Outcome::Decided, asked(check), &policy.origin)),
        None if backend.selector.is_empty() => {
            let because = "nobody asks: it has no sidecar, and no healthCheck is written";
            steps.push(Step::new(&*subject, Outcome::NotHere, because, &backend.origin));
        }
        None => {}
    }
    steps
}

fn asked(check: &HealthCheck) -> String {
    let what = match &check.ask {
        Ask::Http { path, statuses, .. } => {
            let one = |(from, to): &(u16, u16)| if from == to { from.to_string() } else { format!("{from}-{to}") };
            format!("GET {path} is answered with {}", statuses.iter().map(one).collect::<Vec<_>>().join(" or "))
        }
        Ask::Grpc { service } if service.is_empty() => "its gRPC health service says SERVING".to_owned(),
        Ask::Grpc { service } => format!("its gRPC health service says SERVING of {service}"),
        Ask::Tcp {} => "it accepts a connection".to_owned(),
    };
    let panic = if check.panic_percent == 0 {
        String::new()
    } else {
        format!("; all are used while less than {}% are well", check.panic_percent)
    };
    format!(
        "endpoints without a sidecar are asked every {:?}, and well if {what} within {:?}; {} failures in a row take one out, \
         {} good answers bring it back{panic}",
        check.interval, check.timeout, check.unhealthy_threshold, check.healthy_threshold
    )
}
