//! `GRPCRoute`, attached to Services: the same meaning as an `HTTPRoute`, matched by gRPC service and method.

use super::World;
use super::at::At;
use super::filter::filters;
use super::route::{self, backends, header_matches, regex};
use crate::document::shape::Notes;
use crate::names::PolicyName;
use crate::policy::{GrpcMethod, HttpRoute, PathMatch, RouteKind, RouteMatch, RouteRule, TextMatch};

pub(super) fn grpc_route(
    name: &PolicyName,
    root: &At<'_>,
    world: &mut World,
    notes: &mut Notes<'_>,
) -> Option<HttpRoute> {
    let spec = root.get("spec")?;
    let parents = route::parents(&spec, name, world, notes);
    let rules: Vec<RouteRule> = route::rules(&spec, notes).iter().map(|at| rule(at, name, world, notes)).collect();
    (!parents.is_empty() && !rules.is_empty()).then(|| HttpRoute {
        name: name.clone(),
        kind: RouteKind::Grpc,
        parents,
        rules,
        origin: root.origin(notes),
    })
}

fn rule(at: &At<'_>, route: &PolicyName, world: &World, notes: &mut Notes<'_>) -> RouteRule {
    let mut matches: Vec<RouteMatch> = at.list("matches").iter().map(|m| grpc_match(m, notes)).collect();
    if matches.is_empty() {
        matches.push(RouteMatch {
            path: PathMatch::Grpc(GrpcMethod::default()),
            headers: Vec::new(),
            query: Vec::new(),
            method: None,
        });
    }
    let (backends, nowhere) = backends(at, &matches, route, world, notes);
    RouteRule {
        name: at.text_of("name").map(str::to_owned),
        filters: filters(at, &matches, route, world, notes),
        matches,
        backends,
        nowhere,
        request_timeout: None,
        try_timeout: None,
        retry: None,
        origin: at.origin(notes),
    }
}

fn grpc_match(at: &At<'_>, notes: &mut Notes<'_>) -> RouteMatch {
    let method = at.get("method").map(|m| grpc_method(&m, notes)).unwrap_or_default();
    RouteMatch { path: PathMatch::Grpc(method), headers: header_matches(at, notes), query: Vec::new(), method: None }
}

fn grpc_method(at: &At<'_>, notes: &mut Notes<'_>) -> GrpcMethod {
    if at.get("service").is_none() && at.get("method").is_none() {
        at.complain_of(notes, "neither service nor method", "at least one of the two");
    }
    let by_regex = at.text_of("type") == Some("RegularExpression");
    let mut read = |key: &str, dots: bool| {
        let value = at.get(key)?;
        let text = value.text()?;
        if by_regex {
            return Some(TextMatch::Regex(regex(&value, text, notes)));
        }
        if !is_grpc_name(text, dots) {
            let what = if dots { "a gRPC service: identifiers joined by dots" } else { "a gRPC method: an identifier" };
            value.complain(notes, what);
        }
        Some(TextMatch::Exact(text.to_owned()))
    };
    GrpcMethod { service: read("service", true), method: read("method", false) }
}

/// Identifiers of Protocol Buffers, joined by dots where `dots` allows them; one dot may stand before them.
fn is_grpc_name(text: &str, dots: bool) -> bool {
    let identifier = |part: &str| {
        !part.is_empty()
            && !part.starts_with(|c: char| c.is_ascii_digit())
            && part.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
    };
    if dots { text.strip_prefix('.').unwrap_or(text).split('.').all(identifier) } else { identifier(text) }
}
