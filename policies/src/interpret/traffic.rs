//! `TrafficPolicy`.

use std::time::Duration;

use super::at::At;
use super::{Claim, World, balance, health, target};
use crate::document::shape::Notes;
use crate::names::PolicyName;
use crate::policy::{Breaker, BreakerMode, FailurePercent, Limits, RetryBudget, TrafficPolicy};

/// The time over which a breaker takes the share of failures where nothing is written: Envoy's and Linkerd's.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
/// So few requests say nothing about a share of failures, where nothing is written.
const DEFAULT_MINIMUM: u32 = 20;

pub(super) fn traffic_policy(
    name: &PolicyName,
    root: &At<'_>,
    world: &mut World,
    notes: &mut Notes<'_>,
) -> Option<TrafficPolicy> {
    let spec = root.get("spec")?;
    let mut services = Vec::new();
    for (service, at) in target::services(&spec, &name.namespace, world, notes) {
        let found = format!("another TrafficPolicy for Service {service}");
        world.claim(&at, Claim::Traffic(service.clone()), &found, "one for each Service", notes);
        services.push(service);
    }
    if services.is_empty() {
        return None;
    }
    if services.iter().all(|service| world.speaks_only_tcp(service)) {
        refuse_without_requests(&spec, notes);
    }
    let budget = RetryBudget::default();
    let read_budget = |b: &At<'_>| RetryBudget {
        percent: b.whole("percent").unwrap_or(budget.percent),
        min_per_second: b.whole("minPerSecond").unwrap_or(budget.min_per_second),
    };
    let defaults = TrafficPolicy::default();
    let timeouts = spec.get("timeouts");
    Some(TrafficPolicy {
        name: Some(name.clone()),
        health_check: health::health_check(&spec, &services, world, notes),
        services,
        load_balancer: balance::load_balancer(&spec, notes),
        connect_timeout: positive(timeouts.as_ref(), "connect", defaults.connect_timeout, notes),
        idle_timeout: positive(timeouts.as_ref(), "idle", defaults.idle_timeout, notes),
        max_connection_age: match at_of(timeouts.as_ref(), "maxAge") {
            Some(age) => Some(age).filter(|age| !age.is_zero()),
            None => defaults.max_connection_age,
        },
        stream_idle_timeout: at_of(timeouts.as_ref(), "streamIdle"),
        stream_timeout: at_of(timeouts.as_ref(), "stream").filter(|timeout| !timeout.is_zero()),
        retry_buffer: spec.bytes("retryBuffer").unwrap_or(defaults.retry_buffer),
        retry_budget: spec.get("retryBudget").as_ref().map_or(budget, read_budget),
        breaker: spec.get("breaker").map(|b| breaker(&b, notes)),
        limits: spec.get("limits").map(|l| limits(&l, notes)).unwrap_or_default(),
        origin: root.origin(notes),
    })
}

/// Where every Service speaks nothing but TCP, what is about requests would do nothing.
fn refuse_without_requests(spec: &At<'_>, notes: &mut Notes<'_>) {
    const ABOUT_REQUESTS: [(&[&str], &str); 11] = [
        (&[], "retryBudget"),
        (&[], "retryBuffer"),
        (&["timeouts"], "idle"),
        (&["timeouts"], "maxAge"),
        (&["limits"], "requests"),
        (&["limits"], "retries"),
        (&["limits"], "requestBytes"),
        (&["limits"], "responseBytes"),
        (&["loadBalancer", "hash"], "header"),
        (&["loadBalancer", "hash"], "cookie"),
        (&["loadBalancer", "hash"], "query"),
    ];
    for (path, key) in ABOUT_REQUESTS {
        let within = path.iter().try_fold(spec.clone(), |at, key| at.get(key));
        if let Some(at) = within.and_then(|at| at.get(key)) {
            let found = format!("{key} for Services that speak TCP on every port");
            at.complain_of(notes, found, "nothing: it is about requests, and nobody looks for requests in their bytes");
        }
    }
}

fn breaker(at: &At<'_>, notes: &mut Notes<'_>) -> Breaker {
    let penalty = at.get("penalty");
    let penalty_min = positive(penalty.as_ref(), "min", Duration::from_secs(1), notes);
    let penalty_max = positive(penalty.as_ref(), "max", Duration::from_secs(60).max(penalty_min), notes);
    if penalty_max < penalty_min
        && let Some(at) = penalty.as_ref().and_then(|p| p.get("max"))
    {
        at.complain(notes, "a duration not shorter than penalty.min");
    }
    let defaults = Breaker::default();
    Breaker {
        consecutive_failures: at.whole("consecutiveFailures").unwrap_or(defaults.consecutive_failures),
        penalty_min,
        penalty_max,
        failure_percent: at.get("failurePercent").and_then(|share| failure_percent(&share, notes)),
        max_ejected_percent: at.whole("maxEjectedPercent").unwrap_or(defaults.max_ejected_percent),
        mode: match at.text_of("mode") {
            Some("observe") => BreakerMode::Observe,
            _ => BreakerMode::Enforce,
        },
    }
}

fn failure_percent(at: &At<'_>, notes: &mut Notes<'_>) -> Option<FailurePercent> {
    Some(FailurePercent {
        threshold: at.whole("threshold")?,
        interval: positive(Some(at), "interval", DEFAULT_INTERVAL, notes),
        minimum_requests: at.whole("minimumRequests").unwrap_or(DEFAULT_MINIMUM),
    })
}

fn limits(at: &At<'_>, notes: &mut Notes<'_>) -> Limits {
    let defaults = Limits::default();
    if let Some(waiting) = at.get("pendingTimeout").filter(|_| at.get("connections").is_none()) {
        waiting.complain_of(
            notes,
            "pendingTimeout without connections",
            "connections beside it: without that limit nobody waits",
        );
    }
    Limits {
        connections: at.whole("connections"),
        pending: at.whole("pending"),
        pending_timeout: positive(Some(at), "pendingTimeout", defaults.pending_timeout, notes),
        requests: at.whole("requests"),
        retries: at.whole("retries"),
        request_bytes: at.bytes("requestBytes"),
        response_bytes: at.bytes("responseBytes"),
    }
}

fn at_of(map: Option<&At<'_>>, key: &str) -> Option<Duration> {
    map.and_then(|map| map.duration(key))
}

/// A duration that must be longer than nothing.
pub(super) fn positive(map: Option<&At<'_>>, key: &str, default: Duration, notes: &mut Notes<'_>) -> Duration {
    let read = map.and_then(|m| m.duration(key));
    if let Some(at) = map.and_then(|m| m.get(key)).filter(|_| read == Some(Duration::ZERO)) {
        at.complain(notes, "a duration longer than 0s");
    }
    read.unwrap_or(default)
}
