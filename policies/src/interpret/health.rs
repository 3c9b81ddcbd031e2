//! `healthCheck` of a `TrafficPolicy`: one question, and somebody without a sidecar to ask it.

use super::World;
use super::at::At;
use super::traffic::positive;
use crate::document::shape::Notes;
use crate::names::ServiceName;
use crate::policy::{Ask, HealthCheck, statuses};

pub(super) fn health_check(
    spec: &At<'_>,
    services: &[ServiceName],
    world: &World,
    notes: &mut Notes<'_>,
) -> Option<HealthCheck> {
    let at = spec.get("healthCheck")?;
    for service in services {
        refuse_unasked(&at, service, world, notes);
    }
    let asks = asks(&at);
    if asks.len() != 1 {
        at.complain_of(notes, format!("{} things to ask", asks.len()), "exactly one of http, grpc, tcp");
    }
    let defaults = HealthCheck::asking(asks.into_iter().next()?);
    Some(HealthCheck {
        port: at.whole("port"),
        interval: positive(Some(&at), "interval", defaults.interval, notes),
        jitter_percent: at.whole("jitterPercent").unwrap_or(defaults.jitter_percent),
        timeout: positive(Some(&at), "timeout", defaults.timeout, notes),
        healthy_threshold: at.whole("healthyThreshold").unwrap_or(defaults.healthy_threshold),
        unhealthy_threshold: at.whole("unhealthyThreshold").unwrap_or(defaults.unhealthy_threshold),
        panic_percent: at.whole("panicPercent").unwrap_or(defaults.panic_percent),
        ..defaults
    })
}

fn asks(at: &At<'_>) -> Vec<Ask> {
    let http = at.get("http").and_then(|http| {
        let written: Vec<(u16, u16)> = http.texts("statuses").iter().filter_map(|text| statuses(text)).collect();
        Some(Ask::Http {
            path: http.text_of("path")?.to_owned(),
            host: http.text_of("host").map(str::to_owned),
            statuses: if written.is_empty() { vec![(200, 200)] } else { written },
        })
    });
    let grpc = at.get("grpc").map(|grpc| Ask::Grpc { service: grpc.text_of("service").unwrap_or_default().to_owned() });
    let tcp = at.get("tcp").map(|_| Ask::Tcp {});
    [http, grpc, tcp].into_iter().flatten().collect()
}

/// Complains about a Service that has nobody to ask, or not the port that is asked at.
fn refuse_unasked(at: &At<'_>, service: &ServiceName, world: &World, notes: &mut Notes<'_>) {
    let Some(known) = world.services.as_ref().and_then(|services| services.get(service)?.as_ref()) else { return };
    if known.external.is_none() && !world.written.contains(service) {
        let found = format!("a health check of Service {service}, which has no endpoint without a sidecar");
        let expected =
            "an EndpointSlice of it, or type: ExternalName; a sidecar asks its own application (--health-path)";
        at.complain_of(notes, found, expected);
    }
    if let Some(port) = at.get("port")
        && let Some(number) = at.whole::<u16>("port").filter(|port| !known.ports.iter().any(|p| p.port == *port))
    {
        let ports: Vec<String> = known.ports.iter().map(|p| p.port.to_string()).collect();
        port.complain_of(notes, number.to_string(), format!("a port of Service {service}: {}", ports.join(", ")));
    }
}
