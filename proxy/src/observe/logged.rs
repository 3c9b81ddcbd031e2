//! What of an exchange is logged because `Mesh.accessLog` asks for it by name: headers, query parameters, cookies and claims.
//!
//! On the way of the request values are only held on to. The access log's writer decides what of them is written, and it alone:
//! what lets somebody in is masked whatever was asked, by the name it has and by the shape it has.

use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use aws_lc_rs::hmac;
use equerry_policies::compile::AccessLog;
use equerry_policies::policy::{Show, looks_secret};
use equerry_traffic::route::decoded;
use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use serde_json::Value;

/// Of each value at most so many characters are written.
const LONGEST: usize = 256;
/// Of one name at most so many values are.
const MOST_VALUES: usize = 8;
/// What stands for a value that is not told.
const MASKED: &str = "***";
/// Bytes of a hash that are told: enough to tell values of one log apart.
const HASHED: usize = 6;

/// The headers, cookies and claims of one exchange that are asked for.
#[derive(Clone)]
pub struct Logged {
    asked: Arc<AccessLog>,
    /// By the place of the name in the policy.
    request: Vec<(usize, HeaderValue)>,
    response: Vec<(usize, HeaderValue)>,
    /// As they came, where one of them is asked for.
    cookies: Vec<HeaderValue>,
    claims: Vec<(usize, String)>,
}

impl fmt::Debug for Logged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logged").field("asked", &self.asked).finish_non_exhaustive()
    }
}

impl Logged {
    /// What is asked of a request with these headers.
    pub(crate) fn of(asked: &Arc<AccessLog>, headers: &HeaderMap) -> Box<Self> {
        let request = found(asked.request_headers.iter().map(|header| headers.get_all(&header.name)));
        let lines = headers.get_all(COOKIE).iter().filter(|_| !asked.cookies.is_empty());
        let cookies = lines.take(MOST_VALUES).cloned().collect();
        Box::new(Self { asked: Arc::clone(asked), request, response: Vec::new(), cookies, claims: Vec::new() })
    }

    /// A token was verified: what its claims say, by their paths.
    pub(crate) fn claims<'c>(&mut self, claim: impl Fn(&[Box<str>]) -> Option<&'c Value>) {
        let asked = self.asked.claims.iter().enumerate();
        self.claims = asked.filter_map(|(at, asked)| Some((at, text(claim(&asked.path)?)))).collect();
    }

    /// The response has these headers.
    pub(crate) fn answered(&mut self, headers: &HeaderMap) {
        self.response = found(self.asked.response_headers.iter().map(|header| headers.get_all(&header.name)));
    }

    /// Calls `tell` with the title of each list that is asked for, and what it holds by name, as it may be written.
    pub(super) fn tell(&self, query: Option<&str>, masks: &Masks, mut tell: impl FnMut(&str, &[(&str, String)])) {
        let asked = &*self.asked;
        let header = |(at, value): &(usize, HeaderValue)| (*at, String::from_utf8_lossy(value.as_bytes()).into_owned());
        let names = asked.request_headers.iter().map(|header| (header.name.as_str(), header.show));
        let values: Vec<_> = self.request.iter().map(header).collect();
        told("request_headers", names, &values, masks, &mut tell);
        let names = asked.response_headers.iter().map(|header| (header.name.as_str(), header.show));
        let values: Vec<_> = self.response.iter().map(header).collect();
        told("response_headers", names, &values, masks, &mut tell);
        let names = asked.query_parameters.iter().map(|parameter| (&*parameter.name, parameter.show));
        let values = parameters(asked, query.unwrap_or_default());
        told("query_parameters", names, &values, masks, &mut tell);
        let names = asked.cookies.iter().map(|cookie| (&*cookie.name, cookie.show));
        told("cookies", names, &cookies(asked, &self.cookies), masks, &mut tell);
        let names = asked.claims.iter().map(|claim| (&*claim.name, claim.show));
        told("claims", names, &self.claims, masks, &mut tell);
    }
}

fn found<'h>(asked: impl Iterator<Item = http::header::GetAll<'h, HeaderValue>>) -> Vec<(usize, HeaderValue)> {
    let each = asked.enumerate();
    each.flat_map(|(at, values)| values.iter().take(MOST_VALUES).map(move |value| (at, value.clone()))).collect()
}

/// A claim in words: a text as it is, anything else as JSON.
fn text(claim: &Value) -> String {
    claim.as_str().map_or_else(|| claim.to_string(), str::to_owned)
}

/// The parameters of a query that are asked for, decoded.
fn parameters(asked: &AccessLog, query: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    if asked.query_parameters.is_empty() {
        return found;
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decoded(name);
        let place = asked.query_parameters.iter().position(|parameter| *parameter.name.as_bytes() == *name);
        let Some(at) = place else { continue };
        if found.iter().filter(|(other, _)| *other == at).count() < MOST_VALUES {
            found.push((at, String::from_utf8_lossy(&decoded(value)).into_owned()));
        }
    }
    found
}

/// The cookies that are asked for. Their names are told apart by case (RFC 6265 section 5.3).
fn cookies(asked: &AccessLog, lines: &[HeaderValue]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for line in lines {
        let line = String::from_utf8_lossy(line.as_bytes());
        for (name, value) in line.split(';').filter_map(|pair| pair.trim().split_once('=')) {
            let Some(at) = asked.cookies.iter().position(|cookie| *cookie.name == *name) else { continue };
            if found.iter().filter(|(other, _)| *other == at).count() < MOST_VALUES {
                found.push((at, value.trim_matches('"').to_owned()));
            }
        }
    }
    found
}

/// One list, where it is asked for; several values of a name stand behind each other.
fn told<'n>(
    title: &str,
    names: impl Iterator<Item = (&'n str, Show)>,
    values: &[(usize, String)],
    masks: &Masks,
    tell: &mut impl FnMut(&str, &[(&str, String)]),
) {
    let mut asked = false;
    let mut list: Vec<(&str, String)> = Vec::new();
    for (at, (name, show)) in names.enumerate() {
        asked = true;
        let shown = values.iter().filter(|(place, _)| *place == at).map(|(_, value)| masks.apply(show, value));
        let shown: Vec<String> = shown.collect();
        if !shown.is_empty() {
            list.push((name, shown.join(", ")));
        }
    }
    if asked {
        tell(title, &list);
    }
}

/// What makes of a value what may be written. The key is this process's own, made when it starts and never told: whoever reads a log
/// cannot try out what a hash may stand for.
pub(super) struct Masks(Option<hmac::Key>);

impl Masks {
    pub(super) fn new() -> Self {
        let mut key = [0; 32];
        // Without randomness there is no key; then values are masked that should have been told apart.
        let made = aws_lc_rs::rand::fill(&mut key).is_ok();
        Self(made.then(|| hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    fn apply(&self, show: Show, value: &str) -> String {
        match show {
            Show::Value if looks_secret(value) => MASKED.to_owned(),
            Show::Value => bounded(without_query(value)),
            Show::Hash => self.0.as_ref().map_or_else(|| MASKED.to_owned(), |key| hashed(key, value)),
            Show::Mask => MASKED.to_owned(),
        }
    }
}

fn hashed(key: &hmac::Key, value: &str) -> String {
    let mut text = String::from("#");
    for byte in hmac::sign(key, value.as_bytes()).as_ref().iter().take(HASHED) {
        // Writing into a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A URL without what follows its path: `referer` and `location` carry queries too, with whatever is in them.
fn without_query(value: &str) -> (&str, &str) {
    let is_url = value.starts_with('/') || value.contains("://");
    match value.find(['?', '#']).filter(|_| is_url) {
        Some(at) => (&value[..=at], MASKED),
        None => (value, ""),
    }
}

/// The beginning of a long value; an ellipsis says that there is more.
fn bounded((value, behind): (&str, &str)) -> String {
    match value.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => format!("{value}{behind}"),
    }
}

#[cfg(test)]
#[path = "logged_tests.rs"]
mod tests;
