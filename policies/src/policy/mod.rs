//! What is meant: the values [`crate::interpret`] makes from documents, and that [`crate::view`] cuts to what one proxy
//! must know.
//!
//! These types travel to proxies as JSON, so their serde form is a contract between versions: fields are added with
//! defaults, never renamed.

mod access_log;
mod authorize;
mod balance;
mod breaker;
mod csrf;
mod fault;
mod filter;
mod health;
mod key_url;
mod mesh;
mod policy_test;
mod route;
mod service;
mod tenant;
mod text;
mod token;
mod traffic;

pub use access_log::{AccessLog, Logged, Show, holds_secret, looks_secret};
pub use authorize::{
    Action, Attribute, AuthorizationPolicy, AuthorizationRule, Condition, IpBlock, Operation, PathTemplate, Source,
    StringMatch,
};
pub use balance::{Algorithm, HashOn, LoadBalancer, MAX_WEIGHT, Maglev, RingHash, SlowStart, WEIGHT_LABEL, weight};
pub use breaker::{Breaker, BreakerMode, FailurePercent, Limits, RetryBudget};
pub use csrf::CsrfPolicy;
pub use fault::{FaultAbort, FaultDelay, FaultInjection, FaultStatus};
pub use filter::{
    CorsRules, HeaderEdits, OriginPattern, PathEdit, RequestMirror, RequestRedirect, RouteFilter, UrlRewrite,
};
pub use health::{Ask, HealthCheck, is_asked_path, statuses};
pub use key_url::{KeyUrl, UrlHost};
pub use mesh::{ErrorDetail, Http10, Mesh, MtlsMode, OutboundTraffic, PeerAuthentication, Verdict};
pub use policy_test::{Expectation, PolicyTest, PolicyTestCase};
pub use route::{
    Backend, GrpcMethod, HeaderMatch, HttpRoute, Nowhere, PathMatch, QueryMatch, Retry, RouteKind, RouteMatch,
    RouteRule, TcpRoute, TextMatch,
};
pub use service::{AppProtocol, Service, ServicePort, StaticEndpoints};
pub use tenant::{OnControlPlaneLoss, Quota, Tenant, TenantMatch};
pub use text::{bytes, certificates, claim_path, duration, whole_match};
pub use token::{
    CLOCK_SKEW, ClaimHeader, FETCH_TIMEOUT, FetchedKeys, JwtRule, RequestAuthentication, RequiredClaim, TokenPlace,
};
pub use traffic::TrafficPolicy;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::complaint::Complaint;
use crate::names::{PolicyName, ServiceName};

/// Labels of an instance, or the labels a selector asks for.
pub type Labels = BTreeMap<String, String>;

/// Where in somebody's file a thing was written; empty when it came through the API as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The file as it was named on the command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line, counted from 1; 0 when unknown.
    #[serde(default)]
    pub line: u32,
}

/// Which workloads a policy holds for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// Every workload of the mesh: a policy without selector in `equerry-system`.
    Mesh,
    /// Every workload of the policy's own namespace.
    Namespace,
    /// The workloads of the policy's own namespace that carry all of these labels.
    Workloads(Labels),
    /// Every member instance of these Services, on their target ports.
    Services(Vec<ServiceName>),
}

/// Everything a set of documents means together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Meaning {
    /// The one `Mesh` document, or its defaults.
    pub mesh: Mesh,
    /// Services by name.
    pub services: BTreeMap<ServiceName, Service>,
    /// Static endpoints (`EndpointSlice`) by document name.
    pub endpoints: BTreeMap<PolicyName, StaticEndpoints>,
    /// HTTP routes by document name.
    pub routes: BTreeMap<PolicyName, HttpRoute>,
    /// gRPC routes by document name.
    pub grpc_routes: BTreeMap<PolicyName, HttpRoute>,
    /// TCP routes by document name.
    pub tcp_routes: BTreeMap<PolicyName, TcpRoute>,
    /// Faults made on purpose, by document name.
    pub faults: BTreeMap<PolicyName, FaultInjection>,
    /// Who may speak in plain text.
    pub peers: BTreeMap<PolicyName, PeerAuthentication>,
    /// Which tokens are accepted.
    pub tokens: BTreeMap<PolicyName, RequestAuthentication>,
    /// Who may do what.
    pub authorization: BTreeMap<PolicyName, AuthorizationPolicy>,
    /// Which pages may change something.
    pub csrf: BTreeMap<PolicyName, CsrfPolicy>,
    /// What all of this is expected to decide.
    pub tests: BTreeMap<PolicyName, PolicyTest>,
    /// How traffic to a Service is balanced, limited and protected.
    pub traffic: BTreeMap<PolicyName, TrafficPolicy>,
    /// Tenants and their quotas, by name.
    pub tenants: BTreeMap<crate::names::TenantName, Tenant>,
    /// What is hardly meant as it is written, though nothing is refused for it; in the order of files and lines.
    pub warnings: Vec<Complaint>,
}
