//! A route's decision in words: which rule is meant, what each other lacks, what the filters do, which faults are made.

use equerry_policies::compile::{
    CompiledDestination, Fault, Filter, HeaderEdits, PathEdit, PortRoutes, RouteEntry, RouteRule,
};
use equerry_policies::policy::{FaultStatus, GrpcMethod, PathMatch, RouteMatch, TextMatch};
use http::header::{HeaderMap, LOCATION};
use http::request::Parts;

use super::{Outcome, Step};
use crate::fault;
use crate::filter::Answer;
use crate::refusal::Refusal;
use crate::route::{self, Decision, MayLeave};

/// So often chance is asked again where it drew a backend that leads to nothing.
const REDRAWN: usize = 1000;

/// The route's decision: each rule in the order of route names, then the faults made for callers of the Service.
pub fn route(
    leave: &MayLeave,
    destination: &CompiledDestination,
    parts: &Parts,
    rng: &mut fastrand::Rng,
) -> (Vec<Step>, Result<Decision, Refusal>) {
    let mut outcome = route::decide(leave, destination, parts, rng);
    // What is sent somewhere has more to be explained than the share that is not, which is told beside it.
    for _ in 0..REDRAWN {
        if !matches!(outcome, Err(Refusal::InvalidBackend { .. })) {
            break;
        }
        outcome = route::decide(leave, destination, parts, rng);
    }
    if let (true, Err(refusal)) = (destination.is_tcp(leave.port()), &outcome) {
        let step = Step::new(leave.service().to_string(), Outcome::Decided, refusal.to_string(), &destination.origin);
        return (vec![step], outcome);
    }
    let mut steps = match (destination.routes(leave.port()), destination.tcp_route(leave.port())) {
        (Some(routes), _) => rules(routes, parts, &outcome),
        (None, Some(rule)) => vec![by_tcp_route(rule)],
        (None, None) => {
            let because = "it has no routes: requests go to the Service itself";
            vec![Step::new(leave.service().to_string(), Outcome::Decided, because, &destination.origin)]
        }
    };
    steps.extend(faults(destination, &parts.headers));
    (steps, outcome)
}

/// The same of a connection in whose bytes nobody looks for requests.
pub fn connect(
    leave: &MayLeave,
    destination: &CompiledDestination,
    rng: &mut fastrand::Rng,
) -> (Vec<Step>, Result<Decision, Refusal>) {
    let outcome = route::connect(leave, destination, rng);
    let step = match (&outcome, destination.tcp_route(leave.port())) {
        (Err(refusal), rule) => {
            let origin = rule.map_or(&destination.origin, |rule| &rule.origin);
            Step::new(leave.service().to_string(), Outcome::Decided, refusal.to_string(), origin)
        }
        (Ok(_), Some(rule)) => by_tcp_route(rule),
        (Ok(_), None) => {
            let because = "it has no TCPRoute: connections go to the Service itself";
            Step::new(leave.service().to_string(), Outcome::Decided, because, &destination.origin)
        }
    };
    (vec![step], outcome.map(Decision::Forward))
}

fn by_tcp_route(rule: &RouteRule) -> Step {
    let because = format!("connections go by it, whatever they say{}", destinations(rule));
    Step::new(format!("{} rules[0]", rule.route), Outcome::Decided, because, &rule.origin)
}

fn rules(routes: &PortRoutes, parts: &Parts, outcome: &Result<Decision, Refusal>) -> Vec<Step> {
    let on_path: Vec<&RouteEntry> = routes.on_path(parts.uri.path()).collect();
    let fitting: Vec<&RouteEntry> = route::matching(routes, parts).collect();
    let winner = fitting.first();
    let mut steps = Vec::new();
    for rule in &routes.rules {
        let subject = format!("{} rules[{}]", rule.route, rule.number);
        let (found, because) = if winner.is_some_and(|entry| same(&entry.rule, rule)) {
            let told = match outcome {
                Ok(Decision::Answer(answer)) => format!("it matches, and answers: {}", answer_words(answer)),
                _ => format!("it matches{}{}", destinations(rule), filters_words(&rule.filters)),
            };
            (Outcome::Decided, told)
        } else if let Some(entry) = fitting.iter().find(|entry| same(&entry.rule, rule)) {
            let first =
                winner.map_or_else(String::new, |entry| format!("{} rules[{}]", entry.rule.route, entry.rule.number));
            (Outcome::TooLate, format!("matches[{}] fits, but {first} takes precedence", entry.number))
        } else if routes.grpc_alone() && !route::is_grpc(&parts.headers) {
            (
                Outcome::NoMatch,
                "a GRPCRoute matches gRPC alone, and the content type is not application/grpc".to_owned(),
            )
        } else {
            (Outcome::NoMatch, unmet(rule, &on_path, parts))
        };
        steps.push(Step::new(subject, found, because, &rule.origin));
    }
    steps
}

fn same(one: &RouteRule, other: &RouteRule) -> bool {
    one.route == other.route && one.number == other.number
}

/// `: SERVICE:PORT weight N, ...`, each with what is done on the way there.
fn destinations(rule: &RouteRule) -> String {
    let parts: Vec<String> = rule
        .backends
        .iter()
        .map(|backend| {
            let port = backend.port.map_or_else(String::new, |port| format!(":{port}"));
            let filters = filters_words(&backend.filters).replacen("; ", " (", 1);
            let close = if filters.is_empty() { "" } else { ")" };
            format!("{}{port} weight {}{filters}{close}", backend.service, backend.weight)
        })
        .collect();
    let nowhere = rule.nowhere.iter().map(|to| format!("500, because {} weight {}", to.why, to.weight));
    let parts: Vec<String> = parts.into_iter().chain(nowhere).collect();
    if parts.is_empty() { ", and sends nowhere".to_owned() } else { format!(": {}", parts.join(", ")) }
}

fn answer_words(answer: &Answer) -> String {
    let to = answer.headers.get(LOCATION).and_then(|to| to.to_str().ok());
    let to = to.map_or_else(String::new, |to| format!(" to {to}"));
    format!("{} {}{to}", answer.kind, answer.status.as_u16())
}

/// `; FILTER, FILTER`; nothing where there is none.
fn filters_words(filters: &[Filter]) -> String {
    let words: Vec<String> = filters.iter().map(filter_words).collect();
    if words.is_empty() { String::new() } else { format!("; {}", words.join(", ")) }
}

fn filter_words(filter: &Filter) -> String {
    match filter {
        Filter::RequestHeaders(edits) => format!("changes the request's headers ({})", edit_words(edits)),
        Filter::ResponseHeaders(edits) => format!("changes the response's headers ({})", edit_words(edits)),
        Filter::Redirect(to) => format!("redirects with {}", to.status.as_u16()),
        Filter::Rewrite(to) => {
            let host =
                to.authority.as_ref().and_then(|host| host.to_str().ok()).map(|host| format!("the host to {host}"));
            let path = to.path.as_ref().map(|path| match path {
                PathEdit::Full(path) => format!("the path to {path}"),
                PathEdit::Prefix { from, to } => format!("the prefix {from}/ to {to}/"),
            });
            format!("rewrites {}", host.into_iter().chain(path).collect::<Vec<_>>().join(" and "))
        }
        Filter::Mirror(to) if to.share == to.out_of => format!("copies each to {}", to.service),
        Filter::Mirror(to) => format!("copies {} of {} to {}", to.share, to.out_of, to.service),
        Filter::Cors(cors) => format!("shares with {} origins (CORS)", cors.origins.len()),
    }
}

fn edit_words(edits: &HeaderEdits) -> String {
    let named = |word: &str, names: Vec<&str>| (!names.is_empty()).then(|| format!("{word} {}", names.join(", ")));
    let parts = [
        named("set", edits.set.iter().map(|(name, _)| name.as_str()).collect()),
        named("add", edits.add.iter().map(|(name, _)| name.as_str()).collect()),
        named("remove", edits.remove.iter().map(http::HeaderName::as_str).collect()),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// What each match of a rule lacks.
fn unmet(rule: &RouteRule, on_path: &[&RouteEntry], parts: &Parts) -> String {
    let one = |(number, wanted): (usize, &RouteMatch)| {
        let entry = on_path.iter().find(|entry| same(&entry.rule, rule) && entry.number == number);
        let why = match entry {
            None => format!("the path {} is not {}", parts.uri.path(), path_words(&wanted.path)),
            Some(entry) => lacking(entry, parts),
        };
        if rule.matches.len() == 1 { why } else { format!("matches[{number}]: {why}") }
    };
    rule.matches.iter().enumerate().map(one).collect::<Vec<_>>().join("; ")
}

/// What a match lacks beside its path.
fn lacking(entry: &RouteEntry, parts: &Parts) -> String {
    if let Some(method) = entry.method.as_ref().filter(|method| **method != parts.method) {
        return format!("the method is {}, not {method}", parts.method);
    }
    if let Some(header) = entry.headers.iter().find(|header| !route::has_header(header, &parts.headers)) {
        return format!("the header {} is not as it must be", header.name);
    }
    let query = parts.uri.query();
    let parameter = entry.query.iter().find(|wanted| !route::has_parameter(wanted, query));
    format!("the parameter {} of the query is not as it must be", parameter.map_or("", |wanted| &wanted.name))
}

fn path_words(path: &PathMatch) -> String {
    match path {
        PathMatch::Exact(path) => path.clone(),
        PathMatch::Prefix(path) => format!("{path} or below"),
        PathMatch::Regex(regex) => format!("of the form {regex}"),
        PathMatch::Grpc(GrpcMethod { service, method }) => {
            format!("/{}/{}", part_words(service.as_ref(), "SERVICE"), part_words(method.as_ref(), "METHOD"))
        }
    }
}

fn part_words(part: Option<&TextMatch>, any: &str) -> String {
    match part {
        None => any.to_owned(),
        Some(TextMatch::Exact(text) | TextMatch::Regex(text)) => text.clone(),
    }
}

/// What is made to go wrong on purpose. Chance decides each time, so the shares are told.
fn faults(destination: &CompiledDestination, headers: &HeaderMap) -> Vec<Step> {
    let mut first = true;
    let told = destination.faults.iter().map(|from| {
        let subject = format!("FaultInjection {}", from.policy);
        let (found, because) = if !fault::holds(from, headers) {
            (Outcome::NoMatch, "the headers are not as they must be".to_owned())
        } else if std::mem::take(&mut first) {
            (Outcome::Decided, fault_words(from))
        } else {
            (Outcome::TooLate, "it fits, but another comes first by name".to_owned())
        };
        Step::new(subject, found, because, &from.origin)
    });
    told.collect()
}

fn fault_words(from: &Fault) -> String {
    let delay = from.delay.map(|delay| format!("{}% wait {:?}", delay.percent, delay.fixed));
    let abort = from.abort.map(|abort| match abort.with {
        FaultStatus::Http(status) => format!("{}% are answered with {status}", abort.percent),
        FaultStatus::Grpc(code) => format!("{}% are answered with gRPC status {code}", abort.percent),
    });
    let asked = from.by_headers.then(|| "a request may ask for its own".to_owned());
    delay.into_iter().chain(abort).chain(asked).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use equerry_policies::names::{Authority, ServiceName};
    use equerry_policies::{compile, document, interpret, view};
    use http::Request;

    use super::*;
    use crate::normalize::{Direction, normalize};
    use crate::route::{Known, may_leave};

    const SHOP: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {ports: [{name: http, port: 80}, {name: raw, port: 81}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: orders, port: 80}]
  rules:
  - matches: [{path: {value: /a}, queryParams: [{name: q, value: "1"}]}]
    filters:
    - {type: URLRewrite, urlRewrite: {hostname: b.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: orders, port: 80}, percent: 5}}
    backendRefs: [{name: orders, port: 80, filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x, value: "1"}], remove: [server]}}]}]
  - matches: [{path: {value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: new.example}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: raw, namespace: shop}
spec: {parentRefs: [{group: "", kind: Service, name: orders, sectionName: raw}], rules: [{backendRefs: [{name: orders, port: 81}]}]}
---
apiVersion: equerry.dev/v1
kind: FaultInjection
metadata: {name: slow, namespace: shop}
spec: {targetRefs: [{kind: Service, name: orders}], match: {headers: [{name: x-chaos, value: "on"}]}, delay: {percent: 10, fixed: 2s}}
"#;

    fn told(url: &str, headers: &[(&str, &str)]) -> Vec<(Outcome, String)> {
        let meaning = interpret::interpret(&document::read("shop.yaml", SHOP).unwrap()).unwrap();
        let orders = ServiceName::parse("shop/orders").unwrap();
        let to = compile::destination(&view::destination(&meaning, &orders, &orders.namespace).unwrap()).unwrap();
        let mut request = Request::builder().uri(format!("http://{url}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        let normal = normalize(&mut parts, Direction::Outbound).unwrap();
        let named = Authority::parse(normal.authority(), &orders.namespace).unwrap();
        let leave = may_leave(&named, Known::Service(&to)).unwrap();
        let (steps, _) = route(&leave, &to, &parts, &mut fastrand::Rng::with_seed(1));
        assert!(steps.iter().all(|step| step.origin.line > 0));
        steps.into_iter().map(|step| (step.outcome, step.because)).collect()
    }

    #[test]
    fn filters_are_told_beside_where_a_request_goes() {
        let steps = told("orders:80/a/c?q=1", &[]);
        let words = "it matches: shop/orders:80 weight 1 (changes the response's headers (set x; remove server)); \
                     rewrites the host to b.example and the prefix /a/ to /b/, copies 5 of 100 to shop/orders";
        assert_eq!(steps[0], (Outcome::Decided, words.to_owned()));
        assert_eq!(steps[2], (Outcome::NoMatch, "the headers are not as they must be".to_owned()));
    }

    #[test]
    fn an_answer_of_the_mesh_and_a_fault_are_told() {
        let steps = told("orders:80/old/x", &[("x-chaos", "on")]);
        let words = "it matches, and answers: redirect 302 to http://new.example/old/x";
        assert_eq!(steps[1], (Outcome::Decided, words.to_owned()));
        assert_eq!(steps[2], (Outcome::Decided, "10% wait 2s".to_owned()));
        assert_eq!(told("orders:80/a?q=2", &[])[0].1, "the parameter q of the query is not as it must be");
        let raw = told("orders:81/", &[]);
        assert_eq!(raw[0].1, "connections go by it, whatever they say: shop/orders:81 weight 1");
    }
}
