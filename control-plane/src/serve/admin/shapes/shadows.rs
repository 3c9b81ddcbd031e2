//! Policies that are not enforced, as the admin API tells of them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Rest;

/// Policies that are not enforced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShadowList {
    /// By namespace and name.
    pub items: Vec<ShadowReply>,
    /// What comes after this page.
    #[serde(flatten)]
    pub rest: Rest,
}

/// An `AuthorizationPolicy` in shadow mode, and what enforcing it would have changed lately.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShadowReply {
    /// `namespace/name`.
    pub policy: String,
    /// How many seconds the numbers reach back.
    pub seconds: u64,
    /// Requests and connections that it looked at and would have left as they were.
    pub unchanged: u64,
    /// Those that passed and would have been refused.
    pub would_deny: u64,
    /// Those that were refused and would have passed.
    pub would_allow: u64,
    /// The last that it would have changed, whenever that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<ShadowChange>,
}

/// What would have come out differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShadowChange {
    /// When.
    pub at: String,
    /// `namespace/account` of who called, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// `namespace/name` of the Service called, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// What would have decided, in the words of a refusal.
    pub rule: String,
    /// `deny` or `allow`.
    pub would: String,
}
