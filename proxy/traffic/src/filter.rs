//! What a route does to requests and responses beside sending them somewhere, carried out on their heads.
//!
//! Of a rule and its backend the rule's filters come first for requests, and last for responses: the rule is the outer of
//! the two. Without filters each function returns at once.

use std::sync::Arc;

use equerry_policies::compile::{Filter, HeaderEdits, Mirror, PathEdit, Redirect, RouteRule};
use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderValue, LOCATION, ORIGIN};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{StatusCode, Uri};

use crate::cors;
use crate::normalize::{self, Normal};
use crate::refusal::Refusal;

/// The filters that hold for a request: its rule's, and its backend's.
#[derive(Debug, Clone, Copy)]
pub struct Filters<'a> {
    rule: &'a [Filter],
    backend: &'a [Filter],
}

/// An answer that the mesh gives in place of a backend, because a filter says so.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The rule whose filter answers.
    pub rule: Arc<RouteRule>,
    /// What kind of answer: `redirect` or `preflight`.
    pub kind: &'static str,
    /// Its status.
    pub status: StatusCode,
    /// Its headers; it has no body.
    pub headers: HeaderMap,
}

impl<'a> Filters<'a> {
    /// No filters.
    pub const NONE: Self = Self { rule: &[], backend: &[] };

    /// Those of a rule, and of its backend number `backend` when one has been chosen.
    pub fn of(rule: &'a RouteRule, backend: Option<usize>) -> Self {
        let backend = backend.and_then(|number| rule.backends.get(number)).map(|to| to.filters.as_slice());
        Self { rule: &rule.filters, backend: backend.unwrap_or_default() }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rule.is_empty() && self.backend.is_empty()
    }

    /// In the order in which requests meet them.
    pub fn iter(self) -> impl Iterator<Item = &'a Filter> {
        self.rule.iter().chain(self.backend)
    }
}

/// The answer that a filter gives to a request in its normal form, if one does: to a preflight request of a browser
/// (GEP-1767), or a redirect. `port` is the Service port that was called.
pub(crate) fn answer(filters: Filters<'_>, rule: &Arc<RouteRule>, parts: &Parts, port: u16) -> Option<Answer> {
    let answer = |kind, status, mut headers: HeaderMap| {
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        Some(Answer { rule: Arc::clone(rule), kind, status, headers })
    };
    if cors::is_preflight(parts)
        && let Some(cors) =
            filters.iter().find_map(|filter| if let Filter::Cors(cors) = filter { Some(cors) } else { None })
    {
        let mut headers = HeaderMap::new();
        cors::preflight(cors, &parts.headers, &mut headers);
        return answer("preflight", StatusCode::OK, headers);
    }
    let to = filters.iter().find_map(|filter| if let Filter::Redirect(to) = filter { Some(to) } else { None })?;
    let mut headers = HeaderMap::new();
    headers.insert(LOCATION, location(to, parts, port)?);
    apply_response(filters, parts.headers.get(ORIGIN), &mut headers);
    answer("redirect", to.status, headers)
}

/// Where a redirect sends its caller. Applications speak plain HTTP to their sidecar, so the request's scheme is http.
fn location(to: &Redirect, parts: &Parts, called: u16) -> Option<HeaderValue> {
    let secure = to.secure.unwrap_or(false);
    let host = match &to.hostname {
        Some(host) => host,
        None => normalize::without_port(parts.headers.get(HOST)?.to_str().ok()?),
    };
    let usual = if secure { 443 } else { 80 };
    let port = to.port.unwrap_or(if to.secure.is_some() { usual } else { called });
    let scheme = if secure { "https" } else { "http" };
    let path = to.path.as_ref().map(|edit| edit.apply(parts.uri.path()));
    let path = path.as_deref().unwrap_or(parts.uri.path());
    let mut text = format!("{scheme}://{host}");
    if port != usual {
        text.push_str(&format!(":{port}"));
    }
    text.push_str(path);
    if let Some(query) = parts.uri.query() {
        text.push('?');
        text.push_str(query);
    }
    HeaderValue::try_from(text).ok()
}

/// Changes a request in its normal form as its filters say. What comes out is in the normal form again: `parts.uri`, `Host`
/// and the value returned agree.
///
/// # Errors
/// [`Refusal::BadRequest`] when a rewritten path has no normal form.
pub fn apply_request(filters: Filters<'_>, parts: &mut Parts, normal: Normal) -> Result<Normal, Refusal> {
    let mut normal = normal;
    for filter in filters.iter() {
        match filter {
            Filter::RequestHeaders(edits) => edit(edits, &mut parts.headers),
            Filter::Rewrite(to) => {
                let target = to.path.as_ref().map(|path| rewritten(path, parts.uri.path(), parts.uri.query()));
                normal = normalize::changed(normal, to.authority.as_ref(), target.transpose()?)?;
                parts.headers.insert(HOST, normal.host_header().clone());
                parts.uri = Uri::from(normal.target().clone());
            }
            Filter::ResponseHeaders(_) | Filter::Redirect(_) | Filter::Mirror(_) | Filter::Cors(_) => {}
        }
    }
    Ok(normal)
}

fn rewritten(edit: &PathEdit, path: &str, query: Option<&str>) -> Result<PathAndQuery, Refusal> {
    let mut text = edit.apply(path);
    if let Some(query) = query {
        text.push('?');
        text.push_str(query);
    }
    PathAndQuery::try_from(text)
        .map_err(|_| Refusal::bad_request("the rewritten path cannot be brought into its normal form"))
}

/// The `Origin` that responses to a request will be judged by, where a filter asks for it. To be kept before
/// [`apply_request`] changes the request.
pub fn origin(filters: Filters<'_>, headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = filters.iter().any(|filter| matches!(filter, Filter::Cors(_)));
    if asked { headers.get(ORIGIN).cloned() } else { None }
}

/// Changes a response's headers as the filters of its request say; `origin` is the request's `Origin`.
pub fn apply_response(filters: Filters<'_>, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    for filter in filters.backend.iter().chain(filters.rule) {
        match filter {
            Filter::ResponseHeaders(edits) => edit(edits, headers),
            Filter::Cors(cors) => cors::share(cors, origin, headers),
            Filter::RequestHeaders(_) | Filter::Redirect(_) | Filter::Rewrite(_) | Filter::Mirror(_) => {}
        }
    }
}

fn edit(edits: &HeaderEdits, headers: &mut HeaderMap) {
    for name in &edits.remove {
        headers.remove(name);
    }
    for (name, value) in &edits.set {
        headers.insert(name.clone(), value.clone());
    }
    for (name, value) in &edits.add {
        headers.append(name.clone(), value.clone());
    }
}

/// Where copies of this request go. A copy is what the backend gets, after [`apply_request`]; nobody sees the answer.
pub fn mirrors<'a>(filters: Filters<'a>, rng: &mut fastrand::Rng) -> Vec<&'a Mirror> {
    let mut copies = Vec::new();
    for filter in filters.iter() {
        if let Filter::Mirror(mirror) = filter
            && rng.u32(..mirror.out_of.max(1)) < mirror.share
        {
            copies.push(mirror);
        }
    }
    copies
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
