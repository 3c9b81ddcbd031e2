//! What the admin API takes and gives, as JSON; the `equerry` command reads the same types.
//!
//! A contract between versions: fields are added with defaults, never renamed.

use equerry_policies::complaint::Complaint;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::access::{Limits, Role};
use crate::audit::Head;

/// Files with documents, to be made true together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// At least one.
    pub files: Vec<ApplyFile>,
}

/// A file with documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyFile {
    /// As the person named it; complaints repeat it.
    #[schema(example = "policies/orders.yaml")]
    pub name: String,
    /// One or more YAML documents.
    pub text: String,
}

/// Documents to be taken away together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeleteRequest {
    /// At least one.
    pub documents: Vec<DocumentName>,
    /// Those that are not there are no mistake.
    #[serde(default)]
    pub ignore_not_found: bool,
}

/// What names a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DocumentName {
    /// Its kind, in any spelling.
    #[schema(example = "HTTPRoute")]
    pub kind: String,
    /// Its namespace, for kinds that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// What an apply or a delete changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApplyReply {
    /// The epoch that holds now; of a dry run, the present one.
    pub epoch: u64,
    /// Nothing was stored.
    #[serde(default)]
    pub dry_run: bool,
    /// One for each document.
    pub changes: Vec<ChangeReply>,
}

/// What became of one document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChangeReply {
    /// Its kind.
    #[schema(example = "HTTPRoute")]
    pub kind: String,
    /// Its namespace, for kinds that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// `created`, `configured`, `unchanged` or `deleted`.
    #[schema(example = "configured")]
    pub action: String,
    /// The hash of its content.
    #[serde(default)]
    pub version: String,
}

/// Documents, as they were applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DocumentList {
    /// The epoch they are of.
    pub epoch: u64,
    /// The documents, by kind, namespace and name.
    #[schema(value_type = Vec<Object>)]
    pub items: Vec<Value>,
}

/// Every proxy the control plane knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProxyList {
    /// The present epoch.
    pub epoch: u64,
    /// By instance.
    pub items: Vec<ProxyReply>,
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
    /// Of its program.
    #[serde(default)]
    pub version: String,
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
}

/// One Service and who stands behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceReply {
    /// `namespace/name`.
    pub service: String,
    /// Members that take traffic.
    pub healthy: usize,
    /// All members, those of `EndpointSlice` documents included.
    pub total: usize,
    /// The members that registered.
    pub members: Vec<MemberReply>,
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
    pub labels: std::collections::BTreeMap<String, String>,
    /// Where its sidecar's inbound port listens.
    #[schema(value_type = String, example = "10.0.0.7:15006")]
    pub inbound: std::net::SocketAddr,
    /// The application's ports.
    pub ports: Vec<u16>,
    /// It takes traffic.
    #[serde(default = "yes")]
    pub healthy: bool,
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
pub struct InstanceReply {
    /// `namespace/instance`.
    pub instance: String,
    /// `namespace/name` of each.
    #[serde(default)]
    pub services: Vec<String>,
    /// Why it was refused, when it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// Many instances at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstancesRequest {
    /// At most 10,000.
    pub instances: Vec<InstanceRequest>,
}

/// Where the audit log ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditHead {
    /// The last entry and the hash of its line.
    #[serde(flatten)]
    pub head: Head,
    /// The public key (Ed25519, hexadecimal) that proves its checkpoints.
    pub key: String,
}

/// A token to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum TokenRequest {
    /// With which one sidecar joins, once.
    #[serde(rename_all = "camelCase")]
    Join {
        /// Namespace of the workload.
        namespace: String,
        /// Account of the workload.
        account: String,
        /// How long it can be used, 1 s to 7 days.
        ttl_seconds: u64,
    },
    /// For this API.
    Admin {
        /// Whom it is for.
        name: String,
        /// What it is good for.
        #[serde(default = "every_right")]
        role: Role,
        /// Where; without, everywhere.
        #[serde(default, skip_serializing_if = "Limits::is_empty")]
        limits: Limits,
    },
}

fn every_right() -> Role {
    Role::Admin
}

/// Tokens of this API, without their secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AdminTokenList {
    /// Oldest first.
    pub items: Vec<AdminTokenReply>,
}

/// One token of this API, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdminTokenReply {
    /// Its public part.
    pub id: String,
    /// Whom it was made for.
    pub name: String,
    /// What it is good for.
    pub role: Role,
    /// Where; without, everywhere.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// When it was made: seconds since 1970.
    pub created_unix: u64,
}

/// A token that was made; it is not shown again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenReply {
    /// The token.
    pub token: String,
}

/// Join tokens, without their secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenList {
    /// Newest first.
    pub items: Vec<JoinTokenReply>,
}

/// One join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JoinTokenReply {
    /// Its public part.
    pub id: String,
    /// `namespace/account` it lets in.
    pub account: String,
    /// `unused`, `used`, `expired` or `revoked`.
    pub state: String,
    /// Seconds since 1970.
    pub expires_unix: u64,
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
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionReply {
    /// Of the control plane's program.
    pub version: String,
    /// The present epoch.
    pub epoch: u64,
}

/// Why something was refused (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `about:blank`: the status says it.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    pub kind: Box<str>,
    /// The status in words.
    #[schema(value_type = String)]
    pub title: Box<str>,
    /// The status.
    pub status: u16,
    /// One word for programs.
    #[schema(value_type = String, example = "invalid")]
    pub reason: Box<str>,
    /// What happened and what to do, for people.
    pub detail: String,
    /// Every mistake, each with file, line, column, key, found, expected, nearest and snippet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub complaints: Vec<Complaint>,
}
