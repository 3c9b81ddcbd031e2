//! `FaultInjection`.

use std::time::Duration;

use super::at::At;
use super::route::header_matches;
use super::{World, target};
use crate::document::shape::Notes;
use crate::document::shapes::GRPC_STATUSES;
use crate::names::{PolicyName, ServiceName};
use crate::policy::{FaultAbort, FaultDelay, FaultInjection, FaultStatus};

/// The longest wait: what waits longer holds its caller's connection for nothing anybody could learn.
const MAX_DELAY: Duration = Duration::from_mins(10);

pub(super) fn fault_injection(
    name: &PolicyName,
    root: &At<'_>,
    world: &World,
    notes: &mut Notes<'_>,
) -> Option<FaultInjection> {
    let spec = root.get("spec")?;
    let mut services: Vec<ServiceName> = Vec::new();
    for (service, at) in target::services(&spec, &name.namespace, world, notes) {
        if world.speaks_only_tcp(&service) {
            let found = format!("Service {service}, which speaks TCP on every port");
            at.complain_of(notes, found, "a Service with a port that speaks HTTP: faults are made of requests");
        }
        services.push(service);
    }
    let by_headers = spec.flag("headers").unwrap_or(false);
    if spec.get("delay").is_none() && spec.get("abort").is_none() && !by_headers {
        spec.complain_of(notes, "no fault", "delay, abort, or headers: true");
    }
    let delay = spec.get("delay").and_then(|d| delay(&d, notes));
    let abort = spec.get("abort").and_then(|a| abort(&a, notes));
    (!services.is_empty()).then(|| FaultInjection {
        name: name.clone(),
        services,
        when: spec.get("match").map(|m| header_matches(&m, notes)).unwrap_or_default(),
        delay,
        abort,
        by_headers,
        origin: root.origin(notes),
    })
}

fn delay(at: &At<'_>, notes: &mut Notes<'_>) -> Option<FaultDelay> {
    let fixed = at.duration("fixed")?;
    if let Some(written) = at.get("fixed").filter(|_| fixed.is_zero() || fixed > MAX_DELAY) {
        written.complain(notes, format!("a duration from 1ms to {}m", MAX_DELAY.as_secs() / 60));
    }
    Some(FaultDelay { percent: at.whole("percent").unwrap_or(100), fixed })
}

fn abort(at: &At<'_>, notes: &mut Notes<'_>) -> Option<FaultAbort> {
    let http: Option<u16> = at.whole("httpStatus");
    let place = at.text_of("grpcStatus").and_then(|word| GRPC_STATUSES.iter().position(|known| *known == word));
    let grpc = place.and_then(|place| u8::try_from(place + 1).ok());
    if at.get("httpStatus").is_some() == at.get("grpcStatus").is_some() {
        let both = at.get("httpStatus").is_some();
        let found = if both { "httpStatus beside grpcStatus" } else { "neither httpStatus nor grpcStatus" };
        at.complain_of(notes, found, "one of the two");
    }
    let with = http.map(FaultStatus::Http).or(grpc.map(FaultStatus::Grpc))?;
    Some(FaultAbort { percent: at.whole("percent").unwrap_or(100), with })
}
