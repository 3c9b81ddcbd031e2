//! `TrafficPolicy`.

use std::time::Duration;

use super::at::At;
use super::{Claim, World, target};
use crate::document::shape::Notes;
use crate::names::PolicyName;
use crate::policy::{Breaker, Limits, LoadBalancer, RetryBudget, TrafficPolicy};

/// Failures in a row that open a breaker where nothing is written: Envoy's and Istio's `consecutive5xxErrors`.
const DEFAULT_FAILURES: u32 = 5;

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
    let budget = RetryBudget::default();
    let read_budget = |b: &At<'_>| RetryBudget {
        percent: b.whole("percent").unwrap_or(budget.percent),
        min_per_second: b.whole("minPerSecond").unwrap_or(budget.min_per_second),
    };
    let defaults = TrafficPolicy::default();
    let timeouts = spec.get("timeouts");
    Some(TrafficPolicy {
        name: Some(name.clone()),
        services,
        load_balancer: LoadBalancer::P2cEwma,
        connect_timeout: positive(timeouts.as_ref(), "connect", defaults.connect_timeout, notes),
        idle_timeout: positive(timeouts.as_ref(), "idle", defaults.idle_timeout, notes),
        retry_budget: spec.get("retryBudget").as_ref().map_or(budget, read_budget),
        breaker: spec.get("breaker").map(|b| breaker(&b, notes)),
        limits: spec.get("limits").map(|l| limits(&l)).unwrap_or_default(),
        origin: root.origin(notes),
    })
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
    Breaker {
        consecutive_failures: at.whole("consecutiveFailures").unwrap_or(DEFAULT_FAILURES),
        penalty_min,
        penalty_max,
    }
}

fn limits(at: &At<'_>) -> Limits {
    Limits { connections: at.whole("connections"), pending: at.whole("pending"), requests: at.whole("requests") }
}

/// A duration that must be longer than nothing.
fn positive(map: Option<&At<'_>>, key: &str, default: Duration, notes: &mut Notes<'_>) -> Duration {
    let read = map.and_then(|m| m.duration(key));
    if let Some(at) = map.and_then(|m| m.get(key)).filter(|_| read == Some(Duration::ZERO)) {
        at.complain(notes, "a duration longer than 0s");
    }
    read.unwrap_or(default)
}
