//! Where a request may go, and which rule and backend it goes by.
//!
//! [`may_leave`] settles which Service and port are meant, or refuses; [`route`] takes that proof and picks by the Gateway
//! API's precedence, which compilation has put in order, and by weight.

use std::sync::Arc;
use std::time::Duration;

use equerry_policies::compile::{Backend, CompiledDestination, RouteEntry, RouteRule};
use equerry_policies::names::{Authority, ServiceName};
use equerry_policies::policy::Retry;
use http::Method;
use http::header::HeaderMap;
use http::request::Parts;

use crate::refusal::Refusal;

/// What is known of the Service that a request names.
#[derive(Debug, Clone, Copy)]
pub enum Known<'a> {
    /// It exists.
    Service(&'a CompiledDestination),
    /// It does not (`REGISTRY_ONLY`).
    Nothing {
        /// The nearest name that exists.
        nearest: Option<&'a str>,
    },
    /// The control plane did not say in time.
    NotYet,
}

/// Proof that a request may leave, and which Service and Service port it means.
#[derive(Debug, Clone)]
pub struct MayLeave {
    service: ServiceName,
    port: u16,
}

impl MayLeave {
    /// The Service meant.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// The Service port meant.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Whether a request that names `named` may leave, and by which port.
///
/// # Errors
/// [`Refusal::NoService`], [`Refusal::ConfigUnavailable`], [`Refusal::NoSuchPort`]; a name without a port for a Service
/// that has several is [`Refusal::BadRequest`], naming them.
pub fn may_leave(named: &Authority, known: Known<'_>) -> Result<MayLeave, Refusal> {
    let destination = match known {
        Known::Service(destination) => destination,
        Known::Nothing { nearest } => {
            return Err(Refusal::NoService { name: named.service.to_string(), nearest: nearest.map(str::to_owned) });
        }
        Known::NotYet => return Err(Refusal::ConfigUnavailable { service: named.service.clone() }),
    };
    let ports = || destination.ports.iter().map(|port| port.port);
    let port = match named.port {
        Some(port) if ports().any(|known| known == port) => port,
        Some(port) => {
            return Err(Refusal::NoSuchPort { of: named.service.to_string(), port, ports: ports().collect() });
        }
        None => match destination.ports.as_slice() {
            [only] => only.port,
            several => {
                let list: Vec<String> = several.iter().map(|port| port.port.to_string()).collect();
                return Err(Refusal::bad_request(format!("{} has ports {}: name one", named.service, list.join(", "))));
            }
        },
    };
    Ok(MayLeave { service: destination.service.clone(), port })
}

/// Where a request goes, and by which rule.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The rule; `None`: the Service has no routes, and the request goes to it as it is.
    pub rule: Option<Arc<RouteRule>>,
    /// The Service it is sent to.
    pub backend: ServiceName,
    /// The backend's Service port; `None`: its only one.
    pub port: Option<u16>,
    /// Every match of the rule names the request's method, so that it may be retried even when not idempotent.
    pub method_named: bool,
}

impl Choice {
    /// The route's name, `namespace/name`; `None` where no route was asked.
    pub fn route(&self) -> Option<&Arc<str>> {
        self.rule.as_ref().map(|rule| &rule.route)
    }

    /// Time for the whole exchange, retries included.
    pub fn request_timeout(&self) -> Option<Duration> {
        self.rule.as_ref()?.request_timeout
    }

    /// Time for each try.
    pub fn try_timeout(&self) -> Option<Duration> {
        self.rule.as_ref()?.try_timeout
    }

    /// When to try again.
    pub fn retry(&self) -> Option<&Retry> {
        self.rule.as_ref()?.retry.as_ref()
    }
}

/// Chooses rule and backend for a request in its normal form.
///
/// # Errors
/// [`Refusal::NoRoute`] when there are routes and none matches, [`Refusal::NoBackend`] when the rule sends nowhere.
pub fn route(
    leave: &MayLeave,
    destination: &CompiledDestination,
    parts: &Parts,
    rng: &mut fastrand::Rng,
) -> Result<Choice, Refusal> {
    let Some(routes) = destination.routes(leave.port) else {
        return Ok(Choice { rule: None, backend: leave.service.clone(), port: Some(leave.port), method_named: false });
    };
    let entry = routes.on_path(parts.uri.path()).find(|entry| fits(entry, &parts.method, &parts.headers));
    let Some(entry) = entry else {
        return Err(Refusal::NoRoute { service: leave.service.clone() });
    };
    let rule = &entry.rule;
    let Some(backend) = weighted(rule, rng) else {
        return Err(Refusal::NoBackend { route: rule.route.to_string(), rule: rule.number });
    };
    let same = backend.service == leave.service;
    Ok(Choice {
        rule: Some(Arc::clone(rule)),
        backend: backend.service.clone(),
        port: backend.port.or(if same { Some(leave.port) } else { None }),
        method_named: rule.method_named.as_ref() == Some(&parts.method),
    })
}

/// Whether method and headers of a match fit.
pub(crate) fn fits(entry: &RouteEntry, method: &Method, headers: &HeaderMap) -> bool {
    entry.method.as_ref().is_none_or(|wanted| wanted == method)
        && entry
            .headers
            .iter()
            .all(|header| headers.get_all(&header.name).iter().any(|value| header.value.matches(value.as_bytes())))
}

/// A backend, drawn by weight; `None` when all weights are 0.
fn weighted<'a>(rule: &'a RouteRule, rng: &mut fastrand::Rng) -> Option<&'a Backend> {
    if let [only] = rule.backends.as_slice() {
        return (only.weight > 0).then_some(only);
    }
    if rule.total_weight == 0 {
        return None;
    }
    let mut drawn = rng.u64(..rule.total_weight);
    rule.backends.iter().find(|backend| {
        let weight = u64::from(backend.weight);
        let found = drawn < weight;
        drawn = drawn.saturating_sub(weight);
        found
    })
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
