//! What one proxy must know, cut out of everything that is meant.
//!
//! The control plane sends these values; `explain` makes the same ones from a directory of files. All functions are
//! pure and their results deterministic: same meaning, same bytes.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::names::{AccountName, InstanceId, Namespace, ServiceName};
use crate::policy::{
    AuthorizationPolicy, HttpRoute, JwtRule, Labels, Meaning, Mesh, MtlsMode, Origin, Quota, ServicePort, Tenant, TrafficPolicy,
};

/// A part of a workload's policy, with the application ports it holds on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scoped<T> {
    /// The application ports; `None`: all.
    pub ports: Option<Vec<u16>>,
    /// What holds there.
    pub policy: T,
}

/// What is known of the workload a view is cut for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadFacts {
    /// Its namespace and account.
    pub account: AccountName,
    /// Its instance's labels.
    pub labels: Labels,
    /// The application ports it registered.
    pub ports: Vec<u16>,
}

/// Everything a proxy enforces at its inbound: the resource `workload`, named `self`. Security: without it, deny.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadView {
    /// Mesh-wide settings.
    pub mesh: Mesh,
    /// The Services this workload is a member of, each with its ports.
    pub services: Vec<(ServiceName, Vec<ServicePort>)>,
    /// What inbound accepts where `peer_ports` says nothing.
    pub peer: MtlsMode,
    /// Modes of single application ports.
    pub peer_ports: Vec<(u16, MtlsMode)>,
    /// Token rules, by issuer; each keeps the name of its document for logs.
    pub tokens: Vec<Scoped<NamedJwtRule>>,
    /// Authorization policies that select this workload, by name.
    pub authorization: Vec<Scoped<AuthorizationPolicy>>,
    /// All tenants that have a quota counted here, with only those quotas, and the ports each is counted on.
    pub tenants: Vec<TenantView>,
}

/// A token rule and the document that set it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedJwtRule {
    /// The document, `namespace/name`.
    pub policy: String,
    /// The rule.
    pub rule: JwtRule,
}

/// A tenant as one workload must know it: every tenant is listed (so that it can be named in logs), with the quotas that
/// are counted here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantView {
    /// The tenant; its `quotas` are left empty.
    pub tenant: Tenant,
    /// The quotas counted here.
    pub quotas: Vec<Scoped<Quota>>,
}

/// A Service as its callers must know it: the resource `destination`, named `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationView {
    /// Its name.
    pub service: ServiceName,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Accounts its members may run as: the identities a caller accepts.
    pub accounts: Vec<AccountName>,
    /// The routes attached to it that hold for this caller, by name. A consumer route replaces producer routes.
    pub routes: Vec<HttpRoute>,
    /// How traffic to it is handled.
    pub traffic: TrafficPolicy,
    /// Every Service its routes can send to, itself included, sorted: what a proxy subscribes to next.
    pub backends: Vec<ServiceName>,
    /// Where it was written.
    pub origin: Origin,
}

/// Where a Service can be reached now: the resource `endpoints`, named `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointsView {
    /// The Service.
    pub service: ServiceName,
    /// By instance id.
    pub endpoints: Vec<EndpointView>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointView {
    /// The instance, or `static-ADDRESS` for one from an `EndpointSlice`.
    pub instance: InstanceId,
    /// Where to connect: a sidecar's inbound port, or a plain application port.
    pub address: EndpointAddress,
}

/// Where to connect, and what to speak there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EndpointAddress {
    /// Mutual TLS to a sidecar's inbound port.
    Mesh(SocketAddr),
    /// Plain text: `(Service port, address)` for each Service port it serves.
    Plain(Vec<(u16, SocketAddr)>),
}

/// A live instance, as the registry knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceFacts {
    /// Its id.
    pub id: InstanceId,
    /// Its account, from its certificate.
    pub account: AccountName,
    /// Its labels.
    pub labels: Labels,
    /// Its sidecar's inbound address.
    pub inbound: SocketAddr,
    /// The application ports it serves.
    pub ports: Vec<u16>,
    /// Its application is healthy.
    pub healthy: bool,
}
