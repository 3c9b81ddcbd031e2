//! Routes sorted by the Gateway API's precedence, so that the first that matches is the one that is meant.
//!
//! Exact paths are found by lookup, prefixes by asking for the path's ancestors from the longest; what shares a path is
//! kept in order: a method first, more headers first, then the route's name, then the order written. Regular
//! expressions, whose place the specification leaves open, stand between the two, the longer first: behind prefixes,
//! the default `/` would hide them all.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method};
use regex::Regex;

use super::text::{HeaderPattern, whole};
use crate::complaint::Complaint;
use crate::names::{AccountName, PolicyName, ServiceName};
use crate::policy::{self, HttpRoute, Origin, PathMatch, Retry, ServicePort, TrafficPolicy};
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
    /// Where it was written.
    pub origin: Origin,
    routes: HashMap<u16, PortRoutes>,
}

/// The routes that hold on one Service port.
#[derive(Debug, Clone, Default)]
pub struct PortRoutes {
    exact: HashMap<Box<str>, Vec<RouteEntry>>,
    regex: Vec<(Regex, RouteEntry)>,
    prefix: HashMap<Box<str>, Vec<RouteEntry>>,
    /// Every rule, in the order of route names and rules: for explaining.
    pub rules: Vec<Arc<RouteRule>>,
}

/// One match of a rule, its path aside.
#[derive(Debug, Clone)]
pub struct RouteEntry {
    /// The method, if one is named.
    pub method: Option<Method>,
    /// Each must be there and match.
    pub headers: Vec<HeaderMatch>,
    /// What is meant when it matches.
    pub rule: Arc<RouteRule>,
    /// Its place among the rule's matches, counted from 0.
    pub number: usize,
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
    /// Where requests go, by weight; backends of weight 0 are kept for explaining.
    pub backends: Vec<Backend>,
    /// The sum of the weights; 0: there is nowhere to go.
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
}

impl CompiledDestination {
    /// The routes that hold on the Service port `port`; `None`: there is none, and requests go to the Service itself.
    pub fn routes(&self, port: u16) -> Option<&PortRoutes> {
        self.routes.get(&port)
    }
}

impl PortRoutes {
    /// Every match whose path fits, in the order of precedence. The first whose method and headers fit too is meant.
    pub fn on_path<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a RouteEntry> {
        let exact = self.exact.get(path).into_iter().flatten();
        let regex = self.regex.iter().filter(move |(regex, _)| regex.is_match(path)).map(|(_, entry)| entry);
        let prefix = ancestors(path).filter_map(|ancestor| self.prefix.get(ancestor)).flatten();
        exact.chain(regex).chain(prefix)
    }
}

/// `/a/b` → `/a/b`, `/a`, ``: every prefix of whole segments, without a trailing slash, the longest first.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let whole = path.strip_suffix('/').unwrap_or(path);
    std::iter::successors(Some(whole), |path| path.rfind('/').map(|end| &path[..end]))
}

pub(super) fn compile(view: &DestinationView) -> Result<CompiledDestination, Vec<Complaint>> {
    let mut complaints = Vec::new();
    let mut routes: HashMap<u16, PortRoutes> = HashMap::new();
    for route in by_name(&view.routes) {
        let compiled = rules(route, &mut complaints);
        for port in ports_of(route, view) {
            routes.entry(port).or_default().add(&compiled);
        }
    }
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
        origin: view.origin.clone(),
        routes,
    })
}

fn by_name(routes: &[HttpRoute]) -> Vec<&HttpRoute> {
    let mut sorted: Vec<&HttpRoute> = routes.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    sorted
}

/// The Service ports that a route is attached to.
fn ports_of(route: &HttpRoute, view: &DestinationView) -> Vec<u16> {
    let attached = |port: u16| {
        route.parents.iter().any(|(service, only)| *service == view.service && only.is_none_or(|only| only == port))
    };
    view.ports.iter().map(|port| port.port).filter(|port| attached(*port)).collect()
}

/// A rule's match, compiled.
struct Match {
    path: PathMatch,
    regex: Option<Regex>,
    entry: RouteEntry,
}

/// The rules of one route, each with its matches.
fn rules(route: &HttpRoute, complaints: &mut Vec<Complaint>) -> Vec<(Arc<RouteRule>, Vec<Match>)> {
    let name: Arc<str> = route.name.to_string().into();
    let mut compiled = Vec::new();
    for (number, from) in route.rules.iter().enumerate() {
        let rule = Arc::new(RouteRule {
            route: Arc::clone(&name),
            number,
            name: from.name.as_deref().map(Into::into),
            backends: from
                .backends
                .iter()
                .map(|to| Backend { service: to.service.clone(), port: to.port, weight: to.weight })
                .collect(),
            total_weight: from.backends.iter().map(|backend| u64::from(backend.weight)).sum(),
            request_timeout: from.request_timeout.filter(|timeout| !timeout.is_zero()),
            try_timeout: from.try_timeout.filter(|timeout| !timeout.is_zero()),
            retry: from.retry.clone(),
            method_named: method_named(from),
            matches: from.matches.clone(),
            origin: from.origin.clone(),
        });
        let mut matches = Vec::new();
        for (place, one) in from.matches.iter().enumerate() {
            match compile_match(one, &rule, place, &route.name) {
                Ok(done) => matches.push(done),
                Err(complaint) => complaints.push(complaint),
            }
        }
        compiled.push((rule, matches));
    }
    compiled
}

fn method_named(rule: &policy::RouteRule) -> Option<Method> {
    let first = rule.matches.first()?.method.as_ref()?;
    let all = rule.matches.iter().all(|one| one.method.as_ref() == Some(first));
    if all { Method::from_bytes(first.as_bytes()).ok() } else { None }
}

fn compile_match(
    from: &policy::RouteMatch,
    rule: &Arc<RouteRule>,
    number: usize,
    route: &PolicyName,
) -> Result<Match, Complaint> {
    let place = format!("spec.rules[{}].matches[{number}]", rule.number);
    let about = |complaint: Complaint| complaint.in_document(format_args!("HTTPRoute {route}"));
    let regex = match &from.path {
        PathMatch::Regex(text) => Some(whole(text, &rule.origin, &format!("{place}.path.value")).map_err(about)?),
        PathMatch::Exact(_) | PathMatch::Prefix(_) => None,
    };
    let mut headers = Vec::new();
    for (index, header) in from.headers.iter().enumerate() {
        let key = format!("{place}.headers[{index}]");
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| {
            about(Complaint::at(&rule.origin, key.as_str(), format!("{:?}", header.name), "the name of a header"))
        })?;
        headers
            .push(HeaderMatch { name, value: HeaderPattern::new(&header.value, &rule.origin, &key).map_err(about)? });
    }
    let method = match &from.method {
        Some(text) => Some(Method::from_bytes(text.as_bytes()).map_err(|_| {
            about(Complaint::at(&rule.origin, format!("{place}.method"), format!("{text:?}"), "an HTTP method"))
        })?),
        None => None,
    };
    Ok(Match { path: from.path.clone(), regex, entry: RouteEntry { method, headers, rule: Arc::clone(rule), number } })
}

impl PortRoutes {
    fn add(&mut self, rules: &[(Arc<RouteRule>, Vec<Match>)]) {
        for (rule, matches) in rules {
            self.rules.push(Arc::clone(rule));
            for one in matches {
                let entry = one.entry.clone();
                match (&one.path, &one.regex) {
                    (_, Some(regex)) => self.regex.push((regex.clone(), entry)),
                    (PathMatch::Exact(path), None) => self.exact.entry(path.as_str().into()).or_default().push(entry),
                    (PathMatch::Prefix(path) | PathMatch::Regex(path), None) => {
                        let prefix = path.strip_suffix('/').unwrap_or(path);
                        self.prefix.entry(prefix.into()).or_default().push(entry);
                    }
                }
            }
        }
    }

    /// Sorts are stable and rules were added in the order of route names, so ties keep that order.
    fn sort(&mut self) {
        fn rank(entry: &RouteEntry) -> (bool, Reverse<usize>) {
            (entry.method.is_none(), Reverse(entry.headers.len()))
        }
        self.exact.values_mut().chain(self.prefix.values_mut()).for_each(|entries| entries.sort_by_key(rank));
        self.regex.sort_by_key(|(regex, entry)| (Reverse(regex.as_str().len()), rank(entry)));
    }
}

#[cfg(test)]
mod tests {
    use super::ancestors;

    #[test]
    fn a_path_has_its_whole_segments_as_ancestors() {
        let of = |path| ancestors(path).collect::<Vec<_>>();
        assert_eq!(of("/a/b"), ["/a/b", "/a", ""]);
        assert_eq!(of("/a/"), ["/a", ""]);
        assert_eq!(of("/"), [""]);
        assert_eq!(of("*"), ["*"], "OPTIONS * is below nothing");
    }
}
