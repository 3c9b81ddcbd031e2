//! A Service as its callers use it: the rules of its routes, compiled, on the ports they are attached to.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method};

use super::fault::{self, Fault};
use super::filter::{Filter, filters};
use super::routes::{Match, PortRoutes, QueryMatch, RouteEntry, path_regex};
use super::text::HeaderPattern;
use crate::complaint::Complaint;
use crate::names::{AccountName, PolicyName, ServiceName};
use crate::policy::{
    self, AppProtocol, GrpcMethod, HttpRoute, Nowhere, Origin, PathMatch, Retry, RouteKind, ServicePort, TcpRoute,
    TextMatch, TrafficPolicy,
};
use crate::quick::Quick;
use crate::view::DestinationView;

/// A Service as its callers use it.
#[derive(Debug, Clone)]
pub struct CompiledDestination {
    /// Its name.
    pub service: ServiceName,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Accounts its members may run as.
    pub accounts: Vec<AccountName>,
    /// How traffic to it is handled.
    pub traffic: TrafficPolicy,
    /// Every Service its routes can send to, itself included.
    pub backends: Vec<ServiceName>,
    /// Faults made on purpose for its callers, by name; the first that fits a request is meant.
    pub faults: Vec<Fault>,
    /// Where it was written.
    pub origin: Origin,
    routes: Quick<u16, PortRoutes>,
    tcp: Quick<u16, Arc<RouteRule>>,
}

/// What one header must be.
#[derive(Debug, Clone)]
pub struct HeaderMatch {
    /// Its name.
    pub name: HeaderName,
    /// What one of its values must be.
    pub value: HeaderPattern,
}

/// What one rule of a route does with a request.
#[derive(Debug, Clone)]
pub struct RouteRule {
    /// The route, `namespace/name`.
    pub route: Arc<str>,
    /// Its place in the route, counted from 0.
    pub number: usize,
    /// Its own name, if it has one.
    pub name: Option<Box<str>>,
    /// What is done to requests and responses, in this order.
    pub filters: Vec<Filter>,
    /// Where requests go, by weight; backends of weight 0 are kept for explaining.
    pub backends: Vec<Backend>,
    /// Those that lead to nothing.
    pub nowhere: Vec<Nowhere>,
    /// The sum of the weights of both; 0: there is nowhere to go.
    pub total_weight: u64,
    /// Time for the whole exchange, retries included.
    pub request_timeout: Option<Duration>,
    /// Time for each try.
    pub try_timeout: Option<Duration>,
    /// When to try again.
    pub retry: Option<Retry>,
    /// The one method that every match names: it may be retried even when it is not idempotent.
    pub method_named: Option<Method>,
    /// Its matches as they were written: for explaining.
    pub matches: Vec<policy::RouteMatch>,
    /// Where it was written.
    pub origin: Origin,
}

/// One destination of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// The Service.
    pub service: ServiceName,
    /// The Service port; `None`: its only one.
    pub port: Option<u16>,
    /// Its share among the rule's backends.
    pub weight: u32,
    /// What is done to requests that go there, after the rule's filters.
    pub filters: Vec<Filter>,
}

impl CompiledDestination {
    /// The routes that hold on the Service port `port`; `None`: there is none, and requests go to the Service itself.
    pub fn routes(&self, port: u16) -> Option<&PortRoutes> {
        self.routes.get(&port)
    }

    /// Whether nobody looks at the bytes that go to the Service port `port`.
    pub fn is_tcp(&self, port: u16) -> bool {
        is_tcp(&self.ports, port)
    }

    /// The Service port of that number.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|known| known.port == port)
    }

    /// Whether callers of the Service port `port` meet rules that only HTTP requests can be measured by.
    pub fn has_rules_about_http(&self, port: u16) -> bool {
        !self.is_tcp(port) && (self.routes.contains_key(&port) || !self.faults.is_empty())
    }

    /// The one rule of the `TCPRoute` that holds on the Service port `port`.
    pub fn tcp_route(&self, port: u16) -> Option<&Arc<RouteRule>> {
        self.tcp.get(&port)
    }
}

pub(super) fn compile(view: &DestinationView) -> Result<CompiledDestination, Vec<Complaint>> {
    let mut complaints = Vec::new();
    let mut routes: Quick<u16, PortRoutes> = Quick::default();
    for route in by_name(&view.routes) {
        let compiled = rules(route, &mut complaints);
        // What speaks no HTTP has no requests to route: a route for every port means every other port.
        for port in ports_of(&route.parents, view).into_iter().filter(|port| !is_tcp(&view.ports, *port)) {
            routes.entry(port).or_default().add(route.kind, &compiled);
        }
    }
    let mut tcp: Quick<u16, Arc<RouteRule>> = Quick::default();
    for route in &view.tcp_routes {
        let rule = Arc::new(tcp_rule(route));
        for port in ports_of(&route.parents, view) {
            tcp.entry(port).or_insert_with(|| Arc::clone(&rule));
        }
    }
    let faults = view.faults.iter().map(|from| fault::fault(from, &mut complaints)).collect();
    if !complaints.is_empty() {
        return Err(complaints);
    }
    routes.values_mut().for_each(PortRoutes::sort);
    Ok(CompiledDestination {
        service: view.service.clone(),
        ports: view.ports.clone(),
        accounts: view.accounts.clone(),
        traffic: view.traffic.clone(),
        backends: view.backends.clone(),
        faults,
        origin: view.origin.clone(),
        routes,
        tcp,
    })
}

fn by_name(routes: &[HttpRoute]) -> Vec<&HttpRoute> {
    let mut sorted: Vec<&HttpRoute> = routes.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    sorted
}

fn is_tcp(ports: &[ServicePort], port: u16) -> bool {
    ports.iter().any(|known| known.port == port && known.app_protocol == AppProtocol::Tcp)
}

/// The Service ports that a route with these parents is attached to.
fn ports_of(parents: &[(ServiceName, Option<u16>)], view: &DestinationView) -> Vec<u16> {
    let attached = |port: u16| {
        parents.iter().any(|(service, only)| *service == view.service && only.is_none_or(|only| only == port))
    };
    view.ports.iter().map(|port| port.port).filter(|port| attached(*port)).collect()
}

/// The rules of one route, each with its matches.
fn rules(route: &HttpRoute, complaints: &mut Vec<Complaint>) -> Vec<(Arc<RouteRule>, Vec<Match>)> {
    let name: Arc<str> = route.name.to_string().into();
    let mut compiled = Vec::new();
    let mut wrong = Vec::new();
    for (number, from) in route.rules.iter().enumerate() {
        let rule = Arc::new(rule(&name, number, from, &mut wrong));
        let mut matches = Vec::new();
        for (place, one) in from.matches.iter().enumerate() {
            match compile_match(one, &rule, place) {
                Ok(done) => matches.push(done),
                Err(complaint) => wrong.push(complaint),
            }
        }
        compiled.push((rule, matches));
    }
    complaints.extend(wrong.into_iter().map(|complaint| about(complaint, route.kind, &route.name)));
    compiled
}

fn about(complaint: Complaint, kind: RouteKind, route: &PolicyName) -> Complaint {
    complaint.in_document(format_args!("{} {route}", kind.as_str()))
}

fn rule(route: &Arc<str>, number: usize, from: &policy::RouteRule, wrong: &mut Vec<Complaint>) -> RouteRule {
    let place = format!("spec.rules[{number}]");
    let is_here = |index: &usize| from.nowhere.iter().all(|gone| gone.index != *index);
    let backend = |(index, to): (usize, &policy::Backend)| Backend {
        service: to.service.clone(),
        port: to.port,
        weight: to.weight,
        filters: filters(
            &to.filters,
            &from.matches,
            &from.origin,
            &format!("{place}.backendRefs[{index}].filters"),
            wrong,
        ),
    };
    let backends = (0..).filter(is_here).zip(&from.backends).map(backend).collect();
    RouteRule {
        route: Arc::clone(route),
        number,
        name: from.name.as_deref().map(Into::into),
        filters: filters(&from.filters, &from.matches, &from.origin, &format!("{place}.filters"), wrong),
        backends,
        nowhere: from.nowhere.clone(),
        total_weight: total_weight(&from.backends, &from.nowhere),
        request_timeout: from.request_timeout.filter(|timeout| !timeout.is_zero()),
        try_timeout: from.try_timeout.filter(|timeout| !timeout.is_zero()),
        retry: from.retry.clone(),
        method_named: method_named(from),
        matches: from.matches.clone(),
        origin: from.origin.clone(),
    }
}

fn total_weight(backends: &[policy::Backend], nowhere: &[Nowhere]) -> u64 {
    backends.iter().map(|to| to.weight).chain(nowhere.iter().map(|to| to.weight)).map(u64::from).sum()
}

/// A `TCPRoute` as a rule without matches: connections have nothing that could be matched.
fn tcp_rule(from: &TcpRoute) -> RouteRule {
    let backend = |to: &policy::Backend| Backend {
        service: to.service.clone(),
        port: to.port,
        weight: to.weight,
        filters: Vec::new(),
    };
    RouteRule {
        route: from.name.to_string().into(),
        number: 0,
        name: from.rule.as_deref().map(Into::into),
        filters: Vec::new(),
        backends: from.backends.iter().map(backend).collect(),
        nowhere: from.nowhere.clone(),
        total_weight: total_weight(&from.backends, &from.nowhere),
        request_timeout: None,
        try_timeout: None,
        retry: None,
        method_named: None,
        matches: Vec::new(),
        origin: from.origin.clone(),
    }
}

/// A gRPC method that is named exactly is POST: whoever wrote it meant that method.
fn method_named(rule: &policy::RouteRule) -> Option<Method> {
    let named = |one: &policy::RouteMatch| match &one.path {
        PathMatch::Grpc(GrpcMethod { service: Some(TextMatch::Exact(_)), method: Some(TextMatch::Exact(_)) }) => {
            Some(Method::POST)
        }
        _ => Method::from_bytes(one.method.as_ref()?.as_bytes()).ok(),
    };
    let first = named(rule.matches.first()?)?;
    rule.matches.iter().all(|one| named(one).as_ref() == Some(&first)).then_some(first)
}

fn compile_match(from: &policy::RouteMatch, rule: &Arc<RouteRule>, number: usize) -> Result<Match, Complaint> {
    let place = format!("spec.rules[{}].matches[{number}]", rule.number);
    let mut headers = Vec::new();
    for (index, header) in from.headers.iter().enumerate() {
        headers.push(HeaderMatch::new(header, &rule.origin, &format!("{place}.headers[{index}]"))?);
    }
    let mut query = Vec::new();
    for (index, parameter) in from.query.iter().enumerate() {
        let value = HeaderPattern::new(&parameter.value, &rule.origin, &format!("{place}.queryParams[{index}]"))?;
        query.push(QueryMatch { name: parameter.name.as_str().into(), value });
    }
    let method = match &from.method {
        Some(text) => Some(Method::from_bytes(text.as_bytes()).map_err(|_| {
            Complaint::at(&rule.origin, format!("{place}.method"), format!("{text:?}"), "an HTTP method")
        })?),
        None => None,
    };
    let entry = RouteEntry { method, headers, query, rule: Arc::clone(rule), number };
    Ok(Match { path: path_regex(&from.path, &rule.origin, &format!("{place}.path.value"))?, entry })
}
