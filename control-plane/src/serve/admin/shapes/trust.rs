//! Certificates, the roots they lead to, and identities that are believed no more.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What anchors what, who holds which certificate until when, and when the mesh goes dark if nothing renews.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateReport {
    /// Name of the mesh in every identity.
    pub trust_domain: String,
    /// The control plane's clock, seconds since 1970.
    pub now_unix: u64,
    /// How long a certificate holds that is issued now, in seconds.
    pub lifetime_seconds: u64,
    /// How far a rotation of the root is.
    #[serde(flatten)]
    pub rotation: RotationReply,
    /// Every certificate of a workload that is about, as far as the token sees its namespace.
    pub leaves: Vec<LeafReply>,
    /// The token sees certificates of some namespaces only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub limited: bool,
    /// When workloads that are connected go dark if nothing is renewed from now on; absent: none is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dark: Option<DarkReply>,
    /// How many identities are revoked.
    pub revoked: usize,
}

/// When workloads go dark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DarkReply {
    /// When the first certificate ends, seconds since 1970.
    pub first_unix: u64,
    /// Whose it is.
    pub first: String,
    /// When the last one ends: from then on nobody is reached.
    pub last_unix: u64,
}

/// A certificate of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeafReply {
    /// Whose it is.
    pub spiffe_id: String,
    /// The instance that shows it; absent: no proxy that is connected does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Serial number, hexadecimal; absent: an older proxy that does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Pin of the root it leads to; absent: unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Until when it holds, seconds since 1970.
    pub not_after_unix: u64,
    /// The generation of trust that is in force at that proxy; absent: it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Why what that proxy says of its certificate is not believed; absent: it agrees with what was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<String>,
}

/// A root that is believed, and what signs under it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AnchorReply {
    /// SHA-256 of the root's public key.
    pub pin: String,
    /// Whether certificates are signed under it now.
    pub signs: bool,
    /// Whether it is the one that comes in.
    pub coming: bool,
    /// Whether the root is somebody else's, and the issuing certificate was brought.
    pub brought: bool,
    /// Until when the root holds, seconds since 1970.
    pub root_not_after_unix: u64,
    /// Until when what signs under it holds, seconds since 1970.
    pub issuing_not_after_unix: u64,
}

/// How far a rotation of the root is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RotationReply {
    /// `steady`: one root; `trusting`: two are believed, the old one signs; `issuing`: two are believed, the new one signs.
    pub phase: String,
    /// When it began, seconds since 1970; absent: none is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began_unix: Option<u64>,
    /// Grows with every change of what is believed.
    pub generation: u64,
    /// Every root that is believed, the one that signs first.
    pub anchors: Vec<AnchorReply>,
    /// Who would be stranded by the next step; empty: it can be taken.
    pub waiting: Vec<WaitingReply>,
}

/// Somebody who would be stranded by the next step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WaitingReply {
    /// An instance, or an identity.
    pub who: String,
    /// What is lacking there, and what to do.
    pub why: String,
}

/// How a rotation begins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RotationRequest {
    /// An authority that is brought; absent: a new root is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bring: Option<BringRequest>,
}

/// An authority that is brought: three texts of PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BringRequest {
    /// The root's certificate.
    pub root: String,
    /// The issuing certificate, then those between it and the root.
    pub issuer_cert: String,
    /// The issuing key, PKCS#8.
    pub issuer_key: String,
}

impl std::fmt::Debug for BringRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BringRequest").finish_non_exhaustive()
    }
}

/// How a rotation goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdvanceRequest {
    /// Leave behind who would be stranded: they need new join tokens.
    #[serde(default)]
    pub force: bool,
}

/// An identity to be revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevocationRequest {
    /// Which: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT`, or `NAMESPACE/ACCOUNT`.
    #[schema(example = "shop/frontend")]
    pub identity: String,
    /// Why, for those who come later.
    #[serde(default)]
    pub reason: String,
}

/// What a revocation, or its end, has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevocationAnswer {
    /// The identity.
    pub spiffe_id: String,
    /// The generation of trust that says so: a proxy that reports it, or a later one, acts on it.
    pub generation: u64,
    /// Whether anything changed.
    pub changed: bool,
}

/// An identity that is believed no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevocationReply {
    /// Which.
    pub spiffe_id: String,
    /// Why, as it was said.
    pub reason: String,
    /// Who did it.
    pub by: String,
    /// When, seconds since 1970.
    pub at_unix: u64,
}

/// Identities that are believed no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevocationList {
    /// Each of them.
    pub items: Vec<RevocationReply>,
}
