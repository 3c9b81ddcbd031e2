//! What the admin API takes and gives, as JSON; the `equerry` command reads the same types.
//!
//! A contract between versions: fields are added with defaults, never renamed.

mod calls;
mod seen;
mod shadows;
mod trust;

use equerry_policies::complaint::Complaint;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::access::{Limits, Role};
use crate::audit::Head;

pub use calls::{CallList, EdgeReply, EndReply, SampleList, SampleReply, SideReply};
pub use seen::{
    EpochProxy, EpochReply, EpochState, InstanceDetail, InstanceList, InstanceReply, InstanceRequest, InstancesReply,
    InstancesRequest, LeftOutReply, MemberReply, PortReply, ProxyList, ProxyReply, ProxyState, QuotaReply,
    RelatedReply, ServiceDetail, ServiceList, ServiceReply, ShareReply, UsageList, UsageReply, VersionReply,
};

pub use shadows::{ShadowChange, ShadowList, ShadowReply};
pub use trust::{
    AdvanceRequest, AnchorReply, BringRequest, CertificateReport, DarkReply, LeafReply, RevocationAnswer,
    RevocationList, RevocationReply, RevocationRequest, RotationReply, RotationRequest, WaitingReply,
};

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
    /// What is hardly meant as it is written, though nothing is refused for it: as complaints, each with `warning`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub warnings: Vec<Complaint>,
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

/// What is left of a list after a page of it; nothing when the page is the last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rest {
    /// With which the next page is asked for; none on the last.
    #[serde(default, rename = "continue", skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// How many are left after this page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining: Option<usize>,
}

/// Documents, as they were applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DocumentList {
    /// The epoch they are of.
    pub epoch: u64,
    /// The documents, by kind, namespace and name.
    #[schema(value_type = Vec<Object>)]
    pub items: Vec<Value>,
    /// What comes after this page.
    #[serde(flatten)]
    pub rest: Rest,
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

/// What was found when the audit log was read last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditProofReply {
    /// It proves itself, as far as it was read.
    pub verified: bool,
    /// The last entry that follows from all before it.
    pub up_to: u64,
    /// When it was read last: seconds since 1970; none when it was not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_unix: Option<u64>,
    /// What was found that cannot be what was written, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
}

/// What the operator set, as it is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigReply {
    /// Every setting, by name. None is a secret: those that have to do with one name the file that holds it.
    pub settings: Vec<SettingReply>,
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SettingReply {
    /// As in the file of `--config`, and as a flag.
    #[schema(example = "audit-retention")]
    pub name: String,
    /// Null: not set.
    #[schema(value_type = Value)]
    pub value: Value,
    /// Who said it: `default`, `flag`, a variable or a file.
    #[schema(example = "EQUERRY_AUDIT_RETENTION")]
    pub said: String,
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
    #[schema(value_type = String)]
    pub detail: Box<str>,
    /// Every mistake, each with file, line, column, key, found, expected, nearest and snippet.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub complaints: Box<[Complaint]>,
    /// Each place in the request that is wrong.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Vec<FieldError>)]
    pub errors: Box<[FieldError]>,
    /// Of a conflict: the version that is kept; none when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub current: Option<Box<str>>,
}

/// One place in a request that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// Where in the body, as a JSON pointer (RFC 6901); of files with documents, where in the document. Empty: the whole of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// Or which parameter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// What was found, and what is expected.
    pub detail: String,
}
