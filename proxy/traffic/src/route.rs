//! Where a request may go, and which rule and backend it goes by.
//!
//! [`may_leave`] settles which Service and port are meant, or refuses; [`decide`] takes that proof and picks by the Gateway
//! API's precedence, which compilation has put in order, and by weight. A rule may also answer by itself: then there is no
//! [`Choice`] that anything could be sent by.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use equerry_policies::compile::{CompiledDestination, PortRoutes, RouteEntry, RouteRule};
use equerry_policies::names::{Authority, ServiceName};
use equerry_policies::policy::{Retry, ServicePort};
use http::header::{CONTENT_TYPE, HeaderMap};
use http::request::Parts;

use crate::filter::{self, Answer, Filters};
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

/// What becomes of a request at its caller's side.
#[derive(Debug, Clone)]
pub enum Decision {
    /// It is sent somewhere.
    Forward(Choice),
    /// It is answered here, because a filter says so.
    Answer(Answer),
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
    /// Which of the rule's backends it is.
    number: usize,
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

    /// What is done to the request and its response, the rule's filters and then the backend's.
    pub fn filters(&self) -> Filters<'_> {
        self.rule.as_ref().map_or(Filters::NONE, |rule| Filters::of(rule, Some(self.number)))
    }

    /// The Service itself, where no route says otherwise.
    fn itself(leave: &MayLeave) -> Self {
        let (backend, port) = (leave.service.clone(), Some(leave.port));
        Self { rule: None, backend, port, method_named: false, number: 0 }
    }

    /// A backend of `rule`, drawn by weight.
    fn by(rule: &Arc<RouteRule>, leave: &MayLeave, rng: &mut fastrand::Rng) -> Result<Self, Refusal> {
        let number = weighted(rule, rng)?;
        let to = &rule.backends[number];
        let same = to.service == leave.service;
        Ok(Self {
            rule: Some(Arc::clone(rule)),
            backend: to.service.clone(),
            port: to.port.or(if same { Some(leave.port) } else { None }),
            method_named: false,
            number,
        })
    }
}

/// Decides what becomes of a request in its normal form.
///
/// # Errors
/// [`Refusal::NoRoute`] when there are routes and none matches, [`Refusal::NoBackend`] when the rule sends nowhere,
/// [`Refusal::InvalidBackend`] when the share of one that leads to nothing is drawn, [`Refusal::BadRequest`] where no HTTP is spoken.
pub fn decide(
    leave: &MayLeave,
    destination: &CompiledDestination,
    parts: &Parts,
    rng: &mut fastrand::Rng,
) -> Result<Decision, Refusal> {
    if destination.is_tcp(leave.port) {
        return Err(not_spoken(leave, "TCP", "HTTP"));
    }
    let Some(routes) = destination.routes(leave.port) else {
        return straight(leave, destination, rng).map(Decision::Forward);
    };
    let Some(entry) = matching(routes, parts).next() else {
        return Err(Refusal::NoRoute { service: leave.service.clone() });
    };
    let rule = &entry.rule;
    if !rule.filters.is_empty()
        && let Some(answer) = filter::answer(Filters::of(rule, None), rule, parts, leave.port)
    {
        return Ok(Decision::Answer(answer));
    }
    let mut choice = Choice::by(rule, leave, rng)?;
    choice.method_named = rule.method_named.as_ref() == Some(&parts.method);
    if !rule.backends[choice.number].filters.is_empty()
        && let Some(answer) = filter::answer(choice.filters(), rule, parts, leave.port)
    {
        return Ok(Decision::Answer(answer));
    }
    Ok(Decision::Forward(choice))
}

/// Chooses a backend for a connection of which nothing but its destination is known.
///
/// # Errors
/// [`Refusal::BadRequest`] where HTTP or gRPC is spoken, or rules about them hold: what is neither would pass them by.
/// [`Refusal::NoBackend`] when the `TCPRoute` sends nowhere, [`Refusal::InvalidBackend`] when that share is drawn.
pub fn connect(
    leave: &MayLeave,
    destination: &CompiledDestination,
    rng: &mut fastrand::Rng,
) -> Result<Choice, Refusal> {
    if !destination.port(leave.port).is_some_and(ServicePort::takes_bytes) {
        return Err(not_spoken(leave, "HTTP", "TCP"));
    }
    if destination.has_rules_about_http(leave.port) {
        return Err(Refusal::not_measured(leave.port, &leave.service));
    }
    straight(leave, destination, rng)
}

/// Where a connection goes that leaves the mesh: what is spoken there is nobody's business.
pub fn connect_outside(leave: &MayLeave) -> Choice {
    Choice::itself(leave)
}

fn not_spoken(leave: &MayLeave, spoken: &str, met: &str) -> Refusal {
    Refusal::bad_request(format!("port {} of {} speaks {spoken}, and this is {met}", leave.port, leave.service))
}

/// Where everything goes that comes to a port without routes for HTTP: by its `TCPRoute`, else to the Service itself.
fn straight(leave: &MayLeave, destination: &CompiledDestination, rng: &mut fastrand::Rng) -> Result<Choice, Refusal> {
    match destination.tcp_route(leave.port) {
        Some(rule) => Choice::by(rule, leave, rng),
        None => Ok(Choice::itself(leave)),
    }
}

/// The matches that fit a request, the one that is meant first.
pub(crate) fn matching<'a>(routes: &'a PortRoutes, parts: &'a Parts) -> impl Iterator<Item = &'a RouteEntry> {
    let spoken = !routes.grpc_alone() || is_grpc(&parts.headers);
    routes.on_path(parts.uri.path()).filter(move |entry| spoken && fits(entry, parts))
}

/// `application/grpc`, alone or with a suffix or parameters.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(|kind| kind.as_bytes()).unwrap_or_default();
    kind.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Whether method, headers and query of a match fit.
pub(crate) fn fits(entry: &RouteEntry, parts: &Parts) -> bool {
    entry.method.as_ref().is_none_or(|wanted| *wanted == parts.method)
        && entry.headers.iter().all(|header| has_header(header, &parts.headers))
        && entry.query.iter().all(|wanted| has_parameter(wanted, parts.uri.query()))
}

pub(crate) fn has_header(wanted: &equerry_policies::compile::HeaderMatch, headers: &HeaderMap) -> bool {
    headers.get_all(&wanted.name).iter().any(|value| wanted.value.matches(value.as_bytes()))
}

pub(crate) fn has_parameter(wanted: &equerry_policies::compile::QueryMatch, query: Option<&str>) -> bool {
    let named = |pair: &&str| *decoded(pair.split('=').next().unwrap_or_default()) == *wanted.name.as_bytes();
    let first = query.unwrap_or_default().split('&').find(named);
    first.is_some_and(|pair| wanted.value.matches(&decoded(pair.split_once('=').map_or("", |(_, value)| value))))
}

/// A name or value of the query as an application reads it: percent-decoded, `+` for a space (the URL standard's form
/// encoding). A percent sign that begins no escape stands for itself.
pub fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text.as_bytes());
    }
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let escape = (*byte == b'%').then(|| hex(bytes.get(at + 1)).zip(hex(bytes.get(at + 2)))).flatten();
        match escape.and_then(|(high, low)| u8::try_from(high << 4 | low).ok()) {
            Some(value) => {
                out.push(value);
                at += 2;
            }
            None => out.push(if *byte == b'+' { b' ' } else { *byte }),
        }
        at += 1;
    }
    Cow::Owned(out)
}

/// The place of a backend, drawn by weight: also of those that lead to nothing, whose share is refused.
fn weighted(rule: &RouteRule, rng: &mut fastrand::Rng) -> Result<usize, Refusal> {
    if rule.total_weight == 0 {
        return Err(Refusal::NoBackend { route: rule.route.to_string(), rule: rule.number });
    }
    if rule.backends.len() == 1 && rule.nowhere.is_empty() {
        return Ok(0);
    }
    let mut drawn = rng.u64(..rule.total_weight);
    let mut is_drawn = |weight: u32| {
        let found = drawn < u64::from(weight);
        drawn = drawn.saturating_sub(u64::from(weight));
        found
    };
    if let Some(number) = rule.backends.iter().position(|to| is_drawn(to.weight)) {
        return Ok(number);
    }
    let gone = rule.nowhere.iter().find(|to| is_drawn(to.weight));
    let (index, why) = gone.map_or((0, ""), |gone| (gone.index, gone.why.as_str()));
    let place = format!("{} rules[{}].backendRefs[{index}]", rule.route, rule.number);
    Err(Refusal::InvalidBackend { place: place.into(), why: why.into() })
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
