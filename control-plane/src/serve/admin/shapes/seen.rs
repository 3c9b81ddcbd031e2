//! What the control plane knows beside documents, as JSON: proxies, epochs, services, instances, tenants' usage.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::calls::EdgeReply;
use super::{AuditProofReply, Rest};

/// Every proxy the control plane knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProxyList {
    /// The present epoch.
    pub epoch: u64,
    /// By instance.
    pub items: Vec<ProxyReply>,
    /// What comes after this page.
    #[serde(flatten)]
    pub rest: Rest,
}

/// One proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxyReply {
    /// `namespace/instance`.
    pub instance: String,
    /// Its identity; none for an instance that has not connected since the control plane started.
    #[serde(default)]
    pub spiffe_id: Option<String>,
    /// It has an open config stream.
    pub connected: bool,
    /// Since when it is connected: seconds since 1970.
    #[serde(default)]
    pub connected_since_unix: Option<u64>,
    /// The epoch it acknowledged last.
    pub acked_epoch: u64,
    /// The epoch it ought to have.
    pub wanted_epoch: u64,
    /// Why it refused its last update, when it did: each complaint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nack: Option<Vec<String>>,
    /// The last epoch that it refused a part of, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nack_epoch: Option<u64>,
    /// Of its program.
    #[serde(default)]
    pub version: String,
    /// In one word, how it stands.
    #[serde(default)]
    pub state: ProxyState,
    /// Why it is not in step, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// When the certificate that its stream stands on ends, or, of one that is away, the last that is known: seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_not_after_unix: Option<u64>,
    /// `namespace/account` of its lease, while it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// The labels of its lease.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its application takes traffic; none without a lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy: Option<bool>,
    /// The Services it stands behind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
}

/// How a proxy stands to what it ought to have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProxyState {
    /// It is connected, and has everything.
    InStep,
    /// It is connected, and has not acknowledged the present epoch.
    Behind,
    /// It is connected, and refused a part of what it was told.
    Refused,
    /// It is not connected.
    #[default]
    Away,
}

/// How far one epoch has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EpochReply {
    /// The epoch.
    pub epoch: u64,
    /// Every proxy connected when it was made has acknowledged it, or gone.
    pub complete: bool,
    /// Each proxy.
    pub proxies: Vec<EpochProxy>,
}

/// How far one epoch has come at one proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EpochProxy {
    /// `namespace/instance`.
    pub instance: String,
    /// How far.
    pub state: EpochState,
    /// What it complained of.
    #[serde(default)]
    pub complaints: Vec<String>,
}

/// How far an epoch has come at a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EpochState {
    /// It has it.
    Acked,
    /// It was told, or is about to be.
    Pending,
    /// It refused part of it.
    Nacked,
    /// It was not connected when the epoch was made, or is not any more.
    Away,
}

/// Services and who stands behind them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceList {
    /// By name.
    pub items: Vec<ServiceReply>,
    /// What comes after this page.
    #[serde(flatten)]
    pub rest: Rest,
}

/// One Service and who stands behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceReply {
    /// `namespace/name`.
    pub service: String,
    /// Members that take traffic.
    pub healthy: usize,
    /// All members, those of `EndpointSlice` documents included.
    pub total: usize,
    /// The members that registered.
    pub members: Vec<MemberReply>,
    /// The labels of its document.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Instances that its selector selects and that are no members, because it does not list their accounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOutReply>,
    /// Addresses that `EndpointSlice` documents write down for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// The name outside the mesh that it stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_name: Option<String>,
}

/// An instance that a Service selects and leaves out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeftOutReply {
    /// Its id.
    pub instance: String,
    /// `namespace/account` it runs as.
    pub account: String,
    /// Why, for people.
    pub reason: String,
}

/// One Service, who stands behind it, what is written about it, and who calls whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceDetail {
    /// As in the list.
    #[serde(flatten)]
    pub service: ServiceReply,
    /// Its ports.
    #[serde(default)]
    pub ports: Vec<PortReply>,
    /// `namespace/account` of everybody who may stand behind it.
    #[serde(default)]
    pub accounts: Vec<String>,
    /// What its members carry.
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
    /// Routes and policies that name it, or that hold for its members.
    #[serde(default)]
    pub policies: Vec<RelatedReply>,
    /// Who called it lately.
    #[serde(default)]
    pub callers: Vec<EdgeReply>,
    /// Whom its accounts called lately.
    #[serde(default)]
    pub callees: Vec<EdgeReply>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortReply {
    /// Its name, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What callers name.
    pub port: u16,
    /// What the application listens on.
    pub target_port: u16,
    /// `http`, `http2`, `grpc` or `tcp`; none when nobody wrote it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// A document that has to do with a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RelatedReply {
    /// Its kind.
    pub kind: String,
    /// Its namespace, for kinds that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// How: it `names` the Service, it `sends` traffic to it, it `selects` its members, or it holds for the whole `namespace` or
    /// `mesh`.
    pub how: String,
}

/// One member of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberReply {
    /// Its instance.
    pub instance: String,
    /// `namespace/account`.
    pub account: String,
    /// Where its sidecar listens.
    pub address: String,
    /// It takes traffic.
    pub healthy: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Milliseconds left of its lease.
    pub lease_ms: u64,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The application's ports.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Those of them that take nothing but plain text, which the sidecars of callers speak there too: nobody is known by identity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plain_text: Vec<u16>,
    /// Its proxy has an open config stream.
    #[serde(default)]
    pub connected: bool,
}

/// Registered instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceList {
    /// By namespace and id.
    pub items: Vec<InstanceDetail>,
    /// What comes after this page.
    #[serde(flatten)]
    pub rest: Rest,
}

/// One registered instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceDetail {
    /// `namespace/id`.
    pub instance: String,
    /// `namespace/account`.
    pub account: String,
    /// Where its sidecar's inbound port listens.
    pub inbound: String,
    /// The application's ports.
    pub ports: Vec<u16>,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// It takes traffic.
    pub healthy: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Grows with each start of it.
    pub generation: u64,
    /// Milliseconds left of its lease.
    pub lease_ms: u64,
    /// How long its lease is, in seconds: put again within that time, it stays.
    pub lease_seconds: u64,
    /// The Services it stands behind.
    pub services: Vec<String>,
    /// Its proxy has an open config stream.
    pub connected: bool,
    /// Its own sidecar registered it; else somebody did over this API, and no proxy of it is expected.
    #[serde(default = "yes")]
    pub sidecar: bool,
}

/// An instance that somebody else registers; it stays for one lease unless it is put again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstanceRequest {
    /// Its id; in a path, that of the path holds.
    #[serde(default)]
    pub id: Option<String>,
    /// `namespace/account` it runs as.
    #[schema(example = "shop/orders")]
    pub account: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Where its sidecar's inbound port listens.
    #[schema(value_type = String, example = "10.0.0.7:15006")]
    pub inbound: std::net::SocketAddr,
    /// The application's ports.
    pub ports: Vec<u16>,
    /// It takes traffic.
    #[serde(default = "yes")]
    pub healthy: bool,
    /// Why not, for people.
    #[serde(default)]
    pub detail: String,
    /// How long it stays without being put again, 1 s to 24 h.
    #[serde(default = "usual_lease")]
    pub lease_seconds: u64,
}

fn yes() -> bool {
    true
}

fn usual_lease() -> u64 {
    crate::registry::LEASE.as_secs()
}

/// The Services that instances stand behind now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstancesReply {
    /// In the order they were given.
    pub items: Vec<InstanceReply>,
}

/// The Services that an instance stands behind now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceReply {
    /// `namespace/instance`.
    pub instance: String,
    /// `namespace/name` of each.
    #[serde(default)]
    pub services: Vec<String>,
    /// How long it stays without being put again, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
}

/// Many instances at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstancesRequest {
    /// At most 10,000.
    pub instances: Vec<InstanceRequest>,
}

/// What a tenant has spent in the present windows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageReply {
    /// The tenant.
    pub tenant: String,
    /// Each of its quotas.
    pub quotas: Vec<QuotaReply>,
}

/// What has been spent of one quota in its present window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuotaReply {
    /// `TENANT/INDEX`.
    pub quota: String,
    /// The Services it is counted at.
    #[serde(default)]
    pub services: Vec<String>,
    /// When the present window began: seconds since 1970.
    pub began_unix: u64,
    /// The window's length in seconds.
    pub window_seconds: u64,
    /// What may be spent in it.
    pub limit: u64,
    /// What sidecars hold of it, spent or not.
    pub granted: u64,
    /// What they said they have spent.
    pub spent: u64,
    /// Milliseconds left of the window.
    #[serde(default)]
    pub ends_in_ms: u64,
    /// Each sidecar's part.
    #[serde(default)]
    pub shares: Vec<ShareReply>,
}

/// One sidecar's part of a quota in its present window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShareReply {
    /// `namespace/instance`.
    pub instance: String,
    /// What it holds, spent or not.
    pub granted: u64,
    /// What it said it has spent.
    pub spent: u64,
}

/// What every tenant has spent in the present windows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageList {
    /// By tenant.
    pub items: Vec<UsageReply>,
    /// What comes after this page.
    #[serde(flatten)]
    pub rest: Rest,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionReply {
    /// Of the control plane's program.
    pub version: String,
    /// The present epoch.
    pub epoch: u64,
    /// What was found when the audit log was read last; none: an older control plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditProofReply>,
}
