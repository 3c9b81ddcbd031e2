//! Requests that a page of another site makes a browser send, with credentials that the browser adds.
//!
//! A browser says where a request comes from: `Sec-Fetch-Site` (Fetch Metadata), or at least `Origin`. Whoever sends neither is no
//! browser, or one so old that nothing of this could protect it; nobody's page rides on such a request.

use equerry_policies::compile::{CompiledWorkload, Csrf};
use equerry_policies::names::PolicyName;
use equerry_policies::policy::Origin;
use http::header::{HeaderName, ORIGIN, UPGRADE};
use http::{HeaderMap, Method};

use crate::authorize::Denied;
use crate::refusal::Refusal;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What is known of where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// It changes nothing: GET, HEAD and OPTIONS, unless the connection is to change its protocol.
    Harmless,
    /// A page of the authority that is called, or nobody's page.
    Own,
    /// No browser says where it comes from.
    Untold,
    /// A page of an origin that is allowed.
    Allowed,
    /// A page of another origin.
    Elsewhere,
}

impl From {
    fn passes(self) -> bool {
        self != Self::Elsewhere
    }

    /// In words.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Harmless => "the method changes nothing",
            Self::Own => "it comes from a page of its own origin, or from none",
            Self::Untold => "no browser says where it comes from",
            Self::Allowed => "it comes from a page of an allowed origin",
            Self::Elsewhere => "a page of another origin made a browser send it",
        }
    }
}

/// Decides whether every policy that holds on the port lets the request pass.
///
/// # Errors
/// [`Refusal::Authz`], naming the first policy that does not.
pub(crate) fn check(
    workload: &CompiledWorkload,
    method: &Method,
    authority: &str,
    headers: &HeaderMap,
    port: u16,
) -> Result<(), Refusal> {
    let refusing = |policy: &&Csrf| policy.holds_on(port) && !whence(policy, method, authority, headers).passes();
    let Some(policy) = workload.csrf.iter().find(refusing) else { return Ok(()) };
    let (name, origin): (PolicyName, Origin) = (policy.name.clone(), policy.origin.clone());
    Err(Refusal::Authz(Box::new(Denied { cause: words(policy), policies: vec![name], origin })))
}

/// A policy as log and `explain` name it.
pub(crate) fn words(policy: &Csrf) -> String {
    format!("CsrfPolicy {}", policy.name)
}

/// Where a request comes from, as a policy sees it.
pub(crate) fn whence(policy: &Csrf, method: &Method, authority: &str, headers: &HeaderMap) -> From {
    let safe = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    if safe && !headers.contains_key(UPGRADE) {
        return From::Harmless;
    }
    let (sites, origins) = (headers.get_all(SEC_FETCH_SITE), headers.get_all(ORIGIN));
    let own_site = |value: &http::HeaderValue| matches!(value.as_bytes(), b"same-origin" | b"none");
    let own_origin = |value: &http::HeaderValue| value.to_str().is_ok_and(|origin| is_of(origin, authority));
    let allowed = |value: &http::HeaderValue| {
        value.to_str().is_ok_and(|origin| policy.allowed.iter().any(|pattern| pattern.matches(origin)))
    };
    let (sites, origins): (Vec<_>, Vec<_>) = (sites.iter().collect(), origins.iter().collect());
    if !origins.is_empty() && origins.iter().all(|origin| allowed(origin)) {
        return From::Allowed;
    }
    match (sites.is_empty(), origins.is_empty()) {
        (true, true) => From::Untold,
        // What is there twice must be right twice.
        (false, _) if sites.iter().all(|site| own_site(site)) => From::Own,
        (true, false) if origins.iter().all(|origin| own_origin(origin)) => From::Own,
        _ => From::Elsewhere,
    }
}

/// Whether an `Origin` is that of an authority. Which of the two schemes was used nobody behind the door knows; a port that is not
/// named is the scheme's.
fn is_of(origin: &str, authority: &str) -> bool {
    let (host, default) = match origin.split_once("://") {
        Some(("https", host)) => (host, ":443"),
        Some(("http", host)) => (host, ":80"),
        _ => return false,
    };
    let bare = |text: &str| text.strip_suffix(default).unwrap_or(text).to_ascii_lowercase();
    bare(host) == bare(authority)
}

#[cfg(test)]
#[path = "csrf_tests.rs"]
mod tests;
