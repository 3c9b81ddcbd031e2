//! HTTP routes attached to Services (GAMMA), as the Gateway API defines them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Origin;
use crate::names::{PolicyName, ServiceName};

/// The meaning of an `HTTPRoute`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRoute {
    /// The document.
    pub name: PolicyName,
    /// The Services it is attached to, each with the one Service port it is limited to, if any.
    pub parents: Vec<(ServiceName, Option<u16>)>,
    /// Rules in the order written; at least one.
    pub rules: Vec<RouteRule>,
    /// Where it was written.
    pub origin: Origin,
}

/// One rule of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteRule {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Any one of these matches; never empty (the default match is path prefix `/`).
    pub matches: Vec<RouteMatch>,
    /// Where matched requests go, by weight. Empty, or all weights 0: they are answered with 500.
    pub backends: Vec<Backend>,
    /// Time for the whole exchange, retries included; `None` or zero: no limit.
    pub request_timeout: Option<Duration>,
    /// Time for each try; `None` or zero: no limit.
    pub try_timeout: Option<Duration>,
    /// When to try again.
    pub retry: Option<Retry>,
    /// Where it was written.
    pub origin: Origin,
}

/// What a request must look like; all parts must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteMatch {
    /// The normalised path.
    pub path: PathMatch,
    /// Header names are lower case; each named header must be there and match.
    pub headers: Vec<HeaderMatch>,
    /// The method, in upper case.
    pub method: Option<String>,
}

/// What a path must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    /// Exactly this path.
    Exact(String),
    /// This path or one below it, element by element: `/a` matches `/a` and `/a/b`, never `/ab`.
    Prefix(String),
    /// The whole path matches this linear-time regular expression.
    Regex(String),
}

/// What one header must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderMatch {
    /// Its name, in lower case.
    pub name: String,
    /// What one of its values must be.
    pub value: TextMatch,
}

/// What a text must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TextMatch {
    /// Exactly this.
    Exact(String),
    /// All of it matches this linear-time regular expression.
    Regex(String),
}

/// One destination of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// The Service.
    pub service: ServiceName,
    /// The Service port; `None` when the document names none and the Service has only one.
    pub port: Option<u16>,
    /// Its share among the rule's backends; 0 sends it nothing.
    pub weight: u32,
}

/// When a try that failed is made again (GEP-1731). Connection errors are always worth a retry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Status codes that are retried.
    pub codes: Vec<u16>,
    /// How many retries at most, the first try not counted.
    pub attempts: u32,
    /// The shortest wait before the first retry; it doubles, with full jitter above the minimum. Default 25 ms.
    pub backoff: Duration,
}
