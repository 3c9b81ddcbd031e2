//! Routes attached to Services (GAMMA), as the Gateway API defines them. HTTP and gRPC routes are one type: both choose
//! among HTTP requests, and differ in how paths match and which match comes first.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Origin, RouteFilter};
use crate::names::{PolicyName, ServiceName};

/// What kind of document a route was written as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RouteKind {
    /// An `HTTPRoute`.
    #[default]
    Http,
    /// A `GRPCRoute`: it matches gRPC requests alone.
    Grpc,
}

impl RouteKind {
    /// As written after `kind:`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
        }
    }

    fn is_http(&self) -> bool {
        *self == Self::Http
    }
}

/// The meaning of an `HTTPRoute` or `GRPCRoute`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRoute {
    /// The document.
    pub name: PolicyName,
    /// Which of the two it is.
    #[serde(default, skip_serializing_if = "RouteKind::is_http")]
    pub kind: RouteKind,
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
    /// What is done to requests and responses beside that, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<RouteFilter>,
    /// Where matched requests go, by weight. Empty, or all weights 0: they are answered with 500, unless a filter
    /// answers them.
    pub backends: Vec<Backend>,
    /// Those of its `backendRefs` that lead to nothing: their share is answered with 500. An older proxy, which does not know
    /// them, shares all out among the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nowhere: Vec<Nowhere>,
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
    /// Each named parameter must be in the query, and its first value match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<QueryMatch>,
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
    /// It is `/SERVICE/METHOD` of gRPC, each of them as said.
    Grpc(GrpcMethod),
}

/// What gRPC service and method must be; `None`: any.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GrpcMethod {
    /// The service with its package, such as `shop.Orders`.
    pub service: Option<TextMatch>,
    /// The method, such as `Get`.
    pub method: Option<TextMatch>,
}

/// What one parameter of the query must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueryMatch {
    /// Its name, exactly so.
    pub name: String,
    /// What its first value must be, percent-decoded.
    pub value: TextMatch,
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
    /// What is done to requests that go there, after the rule's filters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<RouteFilter>,
}

/// A backend that does not exist, or is nothing that requests can be sent to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Nowhere {
    /// Its place among the `backendRefs` of its rule, counted from 0.
    pub index: usize,
    /// Its share among the rule's backends.
    pub weight: u32,
    /// What is wrong with it, in words.
    pub why: String,
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

/// The meaning of a `TCPRoute`: where connections go, by weight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpRoute {
    /// The document.
    pub name: PolicyName,
    /// The Services it is attached to, each with the one Service port it is limited to, if any.
    pub parents: Vec<(ServiceName, Option<u16>)>,
    /// The name of its one rule, if it has one.
    pub rule: Option<String>,
    /// Where connections go, by weight; all weights 0: they are refused.
    pub backends: Vec<Backend>,
    /// Those of its `backendRefs` that lead to nothing: their share is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nowhere: Vec<Nowhere>,
    /// Where it was written.
    pub origin: Origin,
}
