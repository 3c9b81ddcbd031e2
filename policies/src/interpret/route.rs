//! `HTTPRoute` and `TCPRoute`, attached to Services; what `GRPCRoute` has in common with them.

use std::collections::BTreeSet;
use std::time::Duration;

use super::at::At;
use super::filter::filters;
use super::{World, existing};
use crate::document::Kind;
use crate::document::shape::Notes;
use crate::names::{PolicyName, ServiceName, nearest};
use crate::policy::{
    Backend, HeaderMatch, HttpRoute, Nowhere, PathMatch, QueryMatch, Retry, RouteFilter, RouteKind, RouteMatch,
    RouteRule, Service, TcpRoute, TextMatch, whole_match,
};

/// Matches in all rules of a route together (Gateway API).
const MAX_MATCHES: usize = 128;
/// The shortest wait before a retry where nothing is written: Envoy's and Istio's base interval.
const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);

pub(super) fn http_route(
    name: &PolicyName,
    root: &At<'_>,
    world: &mut World,
    notes: &mut Notes<'_>,
) -> Option<HttpRoute> {
    let spec = root.get("spec")?;
    let parents = parents(&spec, name, world, notes);
    let rules: Vec<RouteRule> = rules(&spec, notes).iter().map(|at| rule(at, name, world, notes)).collect();
    (!parents.is_empty() && !rules.is_empty()).then(|| HttpRoute {
        name: name.clone(),
        kind: RouteKind::Http,
        parents,
        rules,
        origin: root.origin(notes),
    })
}

pub(super) fn tcp_route(
    name: &PolicyName,
    root: &At<'_>,
    world: &mut World,
    notes: &mut Notes<'_>,
) -> Option<TcpRoute> {
    let spec = root.get("spec")?;
    let parents = parents(&spec, name, world, notes);
    let rules = spec.list("rules");
    let rule = rules.first()?;
    let (backends, nowhere) = backends(rule, &[], name, world, notes);
    let leads = !backends.is_empty() || !nowhere.is_empty();
    (leads && !parents.is_empty()).then(|| TcpRoute {
        name: name.clone(),
        parents,
        rule: rule.text_of("name").map(str::to_owned),
        backends,
        nowhere,
        origin: root.origin(notes),
    })
}

/// Reads `parentRefs`: each Service with the one port that is meant, if one is. On a port of a Service the routes of one
/// namespace are of one kind (GEP-1294 lets one kind hold and ignores the others; nothing is ignored here), and there is
/// one `TCPRoute` at most, since nothing could choose between two.
pub(super) fn parents(
    spec: &At<'_>,
    route: &PolicyName,
    world: &mut World,
    notes: &mut Notes<'_>,
) -> Vec<(ServiceName, Option<u16>)> {
    let mut parents: Vec<(ServiceName, Option<u16>)> = Vec::new();
    for at in spec.list("parentRefs") {
        let Some((service, port)) = parent(&at, route, world, notes) else { continue };
        let port = by_section(&at, &service, port, world, notes);
        let parent = (service, port);
        if parents.contains(&parent) {
            at.complain_of(notes, format!("Service {} a second time", parent.0), "each parent once");
        } else {
            world.claim_ports(&at, &route.namespace, &parent, notes);
        }
        parents.push(parent);
    }
    parents
}

/// The port that `sectionName` names, or the one named by number.
fn by_section(
    at: &At<'_>,
    service: &ServiceName,
    port: Option<u16>,
    world: &World,
    notes: &mut Notes<'_>,
) -> Option<u16> {
    let Some(section) = at.get("sectionName") else { return port };
    let known = world.services.as_ref().and_then(|services| services.get(service)?.as_ref());
    let (Some(known), Some(name)) = (known, section.text()) else { return port };
    let names = || known.ports.iter().filter_map(|p| p.name.as_deref());
    match known.ports.iter().find(|p| p.name.as_deref() == Some(name)) {
        Some(found) if port.is_some_and(|port| port != found.port) => {
            section.complain(notes, format!("the name of the port that `port` names; {name} is {}", found.port));
        }
        Some(found) => return Some(found.port),
        None => {
            let listed: Vec<&str> = names().collect();
            let expected = if listed.is_empty() {
                format!("no sectionName: no port of Service {service} has a name")
            } else {
                format!("the name of a port of Service {service}: {}", listed.join(", "))
            };
            section.complain_near(notes, expected, nearest(name, names()));
        }
    }
    port
}

/// The rules of a route, having complained about too many matches and repeated names.
pub(super) fn rules<'d>(spec: &At<'d>, notes: &mut Notes<'_>) -> Vec<At<'d>> {
    let rules = spec.list("rules");
    let matches: usize = rules.iter().map(|rule| rule.list("matches").len()).sum();
    if let Some(at) = spec.get("rules").filter(|_| matches > MAX_MATCHES) {
        at.complain_of(notes, format!("{matches} matches"), format!("at most {MAX_MATCHES} in all rules together"));
    }
    let mut names = BTreeSet::new();
    for at in rules.iter().filter_map(|rule| rule.get("name")) {
        if at.text().is_some_and(|text| !names.insert(text)) {
            at.complain(notes, "each name of a rule once in a route");
        }
    }
    rules
}

/// Reads the Service of a parent, and its port; its group and kind are written out.
fn parent(at: &At<'_>, route: &PolicyName, world: &World, notes: &mut Notes<'_>) -> Option<(ServiceName, Option<u16>)> {
    // What is neither left out nor right has been complained about.
    if at.text_of("kind") != Some("Service") || !matches!(at.text_of("group"), Some("" | "core")) {
        return None;
    }
    let (service, port) = named(at, route)?;
    let known = world.service(&at.get("name")?, &service, notes)?;
    if let Some((number, expected, near)) = known.and_then(|known| wrong_port(at, known)) {
        number.complain_near(notes, expected, near.as_deref());
    }
    Some((service, port))
}

/// The Service and port that a parent or backend names.
fn named(at: &At<'_>, route: &PolicyName) -> Option<(ServiceName, Option<u16>)> {
    let namespace = at.parse("namespace").unwrap_or_else(|| route.namespace.clone());
    Some((ServiceName::new(namespace, at.parse("name")?), at.whole::<u16>("port")))
}

/// A port that its Service does not have: where it is written, what is expected, and the nearest.
fn wrong_port<'d>(at: &At<'d>, known: &Service) -> Option<(At<'d>, String, Option<String>)> {
    let port = at.whole::<u16>("port")?;
    if known.ports.iter().any(|p| p.port == port) {
        return None;
    }
    let ports: Vec<String> = known.ports.iter().map(|p| p.port.to_string()).collect();
    let near = nearest(&port.to_string(), ports.iter().map(String::as_str)).map(str::to_owned);
    Some((at.get("port")?, format!("a port of Service {}: {}", known.name, ports.join(", ")), near))
}

/// What a backend leads to: a Service and its port, or why to nothing.
pub(super) type Referent = Result<(ServiceName, Option<u16>), String>;

/// Reads what a backend leads to. What leads to nothing is no mistake (Gateway API), because it may come; the writer is warned
/// of it and told what happens `meanwhile`. A backend of a Service with several ports must name one.
pub(super) fn referent(
    at: &At<'_>,
    route: &PolicyName,
    world: &World,
    notes: &mut Notes<'_>,
    meanwhile: &str,
) -> Option<Referent> {
    let (group, kind) = (at.text_of("group").unwrap_or_default(), at.text_of("kind").unwrap_or("Service"));
    let (service, port) = named(at, route)?;
    if kind != "Service" || !matches!(group, "" | "core") {
        let written = at.get(if kind == "Service" { "group" } else { "kind" })?;
        let expected = format!("Service of the core group, \"\": this version sends to nothing else, and {meanwhile}");
        written.warn_near(notes, expected, if kind == "Service" { None } else { nearest(kind, ["Service"]) });
        let group = if group.is_empty() { String::new() } else { format!(" of {group}") };
        return Some(Err(format!("{kind}{group} {service} is no Service")));
    }
    let known = match &world.services {
        None => return Some(Ok((service, port))),
        Some(services) => services.get(&service),
    };
    let Some(known) = known else {
        let expected = format!("{}: until there is one, {meanwhile}", existing(&service));
        at.get("name")?.warn_near(notes, expected, world.nearest_service(&service).as_deref());
        return Some(Err(format!("Service {service} does not exist")));
    };
    let Some(known) = known else { return Some(Ok((service, port))) };
    if let Some((number, expected, near)) = wrong_port(at, known) {
        number.warn_near(notes, format!("{expected}; until it has this one, {meanwhile}"), near.as_deref());
        return Some(Err(format!("Service {service} has no port {}", port.unwrap_or_default())));
    }
    if port.is_none() && known.ports.len() > 1 {
        let ports: Vec<String> = known.ports.iter().map(|p| p.port.to_string()).collect();
        let found = format!("no port for Service {service}, which has several");
        at.complain_of(notes, found, format!("one of its ports: {}", ports.join(", ")));
    }
    Some(Ok((service, port)))
}

fn rule(at: &At<'_>, route: &PolicyName, world: &World, notes: &mut Notes<'_>) -> RouteRule {
    let mut matches: Vec<RouteMatch> = at.list("matches").iter().map(|m| route_match(m, notes)).collect();
    if matches.is_empty() {
        matches.push(RouteMatch {
            path: PathMatch::Prefix("/".into()),
            headers: Vec::new(),
            query: Vec::new(),
            method: None,
        });
    }
    let timeouts = at.get("timeouts");
    let timeout = |key: &str| timeouts.as_ref().and_then(|t| t.duration(key)).filter(|t| !t.is_zero());
    let (request_timeout, try_timeout) = (timeout("request"), timeout("backendRequest"));
    if let (Some(request), Some(one)) = (request_timeout, try_timeout)
        && one > request
        && let Some(at) = timeouts.as_ref().and_then(|t| t.get("backendRequest"))
    {
        at.complain(notes, "a duration not longer than timeouts.request, which holds for all tries together");
    }
    let filters = filters(at, &matches, route, world, notes);
    let (backends, nowhere) = backends(at, &matches, route, world, notes);
    if filters.iter().any(|filter| matches!(filter, RouteFilter::Redirect(_)))
        && let Some(at) = at.get("backendRefs")
    {
        at.complain_of(notes, "backendRefs beside a RequestRedirect", "none: what is redirected is sent nowhere");
    }
    RouteRule {
        name: at.text_of("name").map(str::to_owned),
        filters,
        matches,
        backends,
        nowhere,
        request_timeout,
        try_timeout,
        retry: at.get("retry").and_then(|r| retry(&r, notes)),
        origin: at.origin(notes),
    }
}

/// Reads `backendRefs` of a rule with these matches: those that lead somewhere, and those that do not.
pub(super) fn backends(
    rule: &At<'_>,
    matches: &[RouteMatch],
    route: &PolicyName,
    world: &World,
    notes: &mut Notes<'_>,
) -> (Vec<Backend>, Vec<Nowhere>) {
    let meanwhile = match notes.document.kind() {
        Kind::TcpRoute => "connections of its share are refused",
        Kind::GrpcRoute => "calls of its share are answered UNAVAILABLE",
        _ => "requests of its share are answered 500",
    };
    let (mut backends, mut nowhere) = (Vec::new(), Vec::new());
    for (index, at) in rule.list("backendRefs").iter().enumerate() {
        let filters = filters(at, matches, route, world, notes);
        let weight = at.whole("weight").unwrap_or(1);
        match referent(at, route, world, notes, meanwhile) {
            Some(Ok((service, port))) => backends.push(Backend { service, port, weight, filters }),
            Some(Err(why)) => nowhere.push(Nowhere { index, weight, why }),
            // What cannot be read has been complained about.
            None => {}
        }
    }
    (backends, nowhere)
}

/// `None` where 0 attempts are written: nothing is tried again.
fn retry(at: &At<'_>, notes: &mut Notes<'_>) -> Option<Retry> {
    let mut codes = Vec::new();
    for code in at.list("codes") {
        let Some(number) = code.number::<u16>() else { continue };
        if codes.contains(&number) {
            code.complain(notes, "each status code once");
        }
        codes.push(number);
    }
    let attempts = at.whole("attempts").unwrap_or(1);
    let backoff = at.duration("backoff").unwrap_or(DEFAULT_BACKOFF);
    (attempts > 0).then_some(Retry { codes, attempts, backoff })
}

fn route_match(at: &At<'_>, notes: &mut Notes<'_>) -> RouteMatch {
    RouteMatch {
        path: path(at.get("path").as_ref(), notes),
        headers: header_matches(at, notes),
        query: query_matches(at, notes),
        method: at.text_of("method").map(str::to_owned),
    }
}

/// Reads `headers` of a match.
pub(super) fn header_matches(at: &At<'_>, notes: &mut Notes<'_>) -> Vec<HeaderMatch> {
    let mut headers: Vec<HeaderMatch> = Vec::new();
    for header in at.list("headers") {
        let (Some(name), Some(value)) = (header.get("name"), text_match(&header, notes)) else { continue };
        let Some(text) = name.text().map(str::to_ascii_lowercase) else { continue };
        if text.starts_with(super::tenant::RESERVED) {
            name.complain(
                notes,
                format!("a header that callers can send: {}* is reserved and stripped", super::tenant::RESERVED),
            );
        } else if text == "host" {
            name.complain(notes, "a header other than Host, which names the Service");
        } else if headers.iter().any(|h| h.name == text) {
            name.complain(notes, "each header once in a match; write a regular expression for several values");
        }
        headers.push(HeaderMatch { name: text, value });
    }
    headers
}

fn query_matches(at: &At<'_>, notes: &mut Notes<'_>) -> Vec<QueryMatch> {
    let mut query: Vec<QueryMatch> = Vec::new();
    for parameter in at.list("queryParams") {
        let (Some(name), Some(value)) = (parameter.get("name"), text_match(&parameter, notes)) else { continue };
        let Some(text) = name.text().map(str::to_owned) else { continue };
        if query.iter().any(|known| known.name == text) {
            name.complain(notes, "each parameter once in a match; write a regular expression for several values");
        }
        query.push(QueryMatch { name: text, value });
    }
    query
}

/// `type` and `value` of a header or parameter.
fn text_match(at: &At<'_>, notes: &mut Notes<'_>) -> Option<TextMatch> {
    let value = at.get("value")?;
    let wanted = value.text()?;
    Some(match at.text_of("type") {
        Some("RegularExpression") => TextMatch::Regex(regex(&value, wanted, notes)),
        _ => TextMatch::Exact(wanted.to_owned()),
    })
}

fn path(at: Option<&At<'_>>, notes: &mut Notes<'_>) -> PathMatch {
    let kind = at.and_then(|p| p.text_of("type")).unwrap_or("PathPrefix");
    let Some(value) = at.and_then(|p| p.get("value")) else {
        return match kind {
            "Exact" => PathMatch::Exact("/".into()),
            "RegularExpression" => PathMatch::Regex("/".into()),
            _ => PathMatch::Prefix("/".into()),
        };
    };
    let text = value.text().unwrap_or("/").to_owned();
    if kind == "RegularExpression" {
        return PathMatch::Regex(regex(&value, &text, notes));
    }
    if let Some(wrong) = not_normal(&text) {
        value.complain(notes, format!("a normalised path that starts with '/'; {wrong}"));
    }
    if kind == "Exact" { PathMatch::Exact(text) } else { PathMatch::Prefix(text) }
}

pub(super) fn regex(at: &At<'_>, pattern: &str, notes: &mut Notes<'_>) -> String {
    if let Err(wrong) = whole_match(pattern) {
        at.complain(notes, format!("a regular expression that can be matched in linear time ({wrong})"));
    }
    pattern.to_owned()
}

/// Why no normalised path can be `path` or start with it, if so. What the Gateway API refuses, and what would need
/// percent-decoding to be compared.
pub(super) fn not_normal(path: &str) -> Option<&'static str> {
    let lower = path.to_ascii_lowercase();
    match () {
        () if !path.starts_with('/') => Some("this one does not"),
        () if path.contains("//") => Some("\"//\" never stands in one"),
        () if path.contains("/./") || path.contains("/../") || path.ends_with("/.") || path.ends_with("/..") => {
            Some("\".\" and \"..\" never stand in one")
        }
        () if path.contains(['?', '#']) => Some("query and fragment are not part of it"),
        () if lower.contains("%2f") || lower.contains("%5c") || lower.contains("%00") || path.contains('\\') => {
            Some("encoded slashes, backslashes and zero bytes are refused before it is asked")
        }
        () if path.bytes().any(|c| c <= b' ' || c >= 0x7f) => {
            Some("other characters than visible ASCII are percent-encoded")
        }
        () => None,
    }
}
