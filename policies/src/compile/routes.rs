//! The matches of one Service port, sorted by the Gateway API's precedence, so that the first that fits is the one that
//! is meant.
//!
//! Exact paths are found by lookup, prefixes by asking for the path's ancestors from the longest; what shares a path is
//! kept in order: a method first, more headers first, more parameters of the query first, then the route's name, then the
//! order written. Regular expressions, whose place the specification leaves open, stand between the two, the longer
//! first: behind prefixes, the default `/` would hide them all. In gRPC a service counts before a method, so there they
//! stand behind the services that are named exactly, and before what matches everything.

use std::cmp::Reverse;
use std::sync::Arc;

use http::Method;
use regex::Regex;

use super::destination::{HeaderMatch, RouteRule};
use super::text::{HeaderPattern, whole};
use crate::complaint::Complaint;
use crate::policy::{GrpcMethod, Origin, PathMatch, RouteKind, TextMatch};
use crate::quick::Quick;

/// The routes that hold on one Service port.
#[derive(Debug, Clone, Default)]
pub struct PortRoutes {
    exact: Quick<Box<str>, Vec<RouteEntry>>,
    regex: Vec<(PathRegex, RouteEntry)>,
    prefix: Quick<Box<str>, Vec<RouteEntry>>,
    grpc: bool,
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
    /// Each must be in the query, and its first value match.
    pub query: Vec<QueryMatch>,
    /// What is meant when it matches.
    pub rule: Arc<RouteRule>,
    /// Its place among the rule's matches, counted from 0.
    pub number: usize,
}

/// What one parameter of the query must be.
#[derive(Debug, Clone)]
pub struct QueryMatch {
    /// Its name.
    pub name: Box<str>,
    /// What its first value must be, percent-decoded.
    pub value: HeaderPattern,
}

/// A rule's match, compiled.
pub(super) struct Match {
    pub(super) path: PathForm,
    pub(super) entry: RouteEntry,
}

/// How a path is found.
pub(super) enum PathForm {
    Exact(Box<str>),
    /// Without a trailing slash.
    Prefix(Box<str>),
    Regex(PathRegex),
}

/// A regular expression for whole paths, and its place among others: what is longer comes first.
#[derive(Debug, Clone)]
pub(super) struct PathRegex {
    regex: Regex,
    /// Characters of the path, or of the gRPC service; of the gRPC method.
    length: (usize, usize),
}

impl PortRoutes {
    /// Whether only gRPC is matched here.
    pub fn grpc_alone(&self) -> bool {
        self.grpc
    }

    /// Every match whose path fits, in the order of precedence. The first whose method, headers and query fit too is
    /// meant.
    pub fn on_path<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a RouteEntry> {
        let (before, after) = if self.grpc { (0, self.regex.len()) } else { (self.regex.len(), 0) };
        let fitting = move |count: usize| {
            self.regex[..count].iter().filter(move |(at, _)| at.regex.is_match(path)).map(|(_, entry)| entry)
        };
        let exact = self.exact.get(path).into_iter().flatten();
        let below = ancestors(path).filter_map(|ancestor| self.prefix.get(ancestor)).flatten();
        let all = if path.starts_with('/') { self.prefix.get("") } else { None };
        exact.chain(fitting(before)).chain(below).chain(fitting(after)).chain(all.into_iter().flatten())
    }

    pub(super) fn add(&mut self, kind: RouteKind, rules: &[(Arc<RouteRule>, Vec<Match>)]) {
        self.grpc |= kind == RouteKind::Grpc;
        for (rule, matches) in rules {
            self.rules.push(Arc::clone(rule));
            for one in matches {
                let entry = one.entry.clone();
                match &one.path {
                    PathForm::Exact(path) => self.exact.entry(path.clone()).or_default().push(entry),
                    PathForm::Prefix(path) => self.prefix.entry(path.clone()).or_default().push(entry),
                    PathForm::Regex(regex) => self.regex.push((regex.clone(), entry)),
                }
            }
        }
    }

    /// Sorts are stable and rules were added in the order of route names, so ties keep that order.
    pub(super) fn sort(&mut self) {
        fn rank(entry: &RouteEntry) -> (bool, Reverse<usize>, Reverse<usize>) {
            (entry.method.is_none(), Reverse(entry.headers.len()), Reverse(entry.query.len()))
        }
        self.exact.values_mut().chain(self.prefix.values_mut()).for_each(|entries| entries.sort_by_key(rank));
        self.regex.sort_by_key(|(regex, entry)| (Reverse(regex.length), rank(entry)));
    }
}

/// `/a/b` → `/a/b`, `/a`: every prefix of whole segments, without a trailing slash, the longest first; without the empty
/// one, of which everything is below.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let whole = path.strip_suffix('/').unwrap_or(path);
    std::iter::successors(Some(whole), |path| path.rfind('/').map(|end| &path[..end])).filter(|path| !path.is_empty())
}

/// Compiles what a path must be; `key` names it in a complaint.
pub(super) fn path_regex(from: &PathMatch, origin: &Origin, key: &str) -> Result<PathForm, Complaint> {
    Ok(match from {
        PathMatch::Exact(path) => PathForm::Exact(path.as_str().into()),
        PathMatch::Prefix(path) => PathForm::Prefix(path.strip_suffix('/').unwrap_or(path).into()),
        PathMatch::Regex(text) => {
            PathForm::Regex(PathRegex { regex: whole(text, origin, key)?, length: (text.len(), 0) })
        }
        PathMatch::Grpc(GrpcMethod { service: Some(TextMatch::Exact(service)), method: None }) => {
            PathForm::Prefix(format!("/{service}").into())
        }
        PathMatch::Grpc(GrpcMethod {
            service: Some(TextMatch::Exact(service)),
            method: Some(TextMatch::Exact(method)),
        }) => PathForm::Exact(format!("/{service}/{method}").into()),
        PathMatch::Grpc(GrpcMethod { service: None, method: None }) => PathForm::Prefix("".into()),
        PathMatch::Grpc(GrpcMethod { service, method }) => {
            let (service, service_length) = part(service.as_ref());
            let (method, method_length) = part(method.as_ref());
            let regex = whole(&format!("/{service}/{method}"), origin, key)?;
            PathForm::Regex(PathRegex { regex, length: (service_length, method_length) })
        }
    })
}

/// A part of a gRPC path as a regular expression, and how many characters were written.
fn part(from: Option<&TextMatch>) -> (String, usize) {
    match from {
        None => ("[^/]+".to_owned(), 0),
        Some(TextMatch::Exact(text)) => (regex::escape(text), text.len()),
        Some(TextMatch::Regex(text)) => (format!("(?:{text})"), text.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::ancestors;

    #[test]
    fn a_path_has_its_whole_segments_as_ancestors() {
        let of = |path| ancestors(path).collect::<Vec<_>>();
        assert_eq!(of("/a/b"), ["/a/b", "/a"]);
        assert_eq!(of("/a/"), ["/a"]);
        assert_eq!(of("/"), [""; 0]);
        assert_eq!(of("*"), ["*"], "OPTIONS * is below nothing");
    }
}
