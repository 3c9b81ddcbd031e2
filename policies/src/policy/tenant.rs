//! Who a tenant is, and what it may spend.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Origin;
use crate::names::{AccountName, ServiceName, TenantName};

/// The meaning of a `Tenant`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tenant {
    /// Its name.
    pub name: TenantName,
    /// Any one names the tenant; across all tenants claims are asked first, then headers.
    pub matches: Vec<TenantMatch>,
    /// What it may spend.
    pub quotas: Vec<Quota>,
    /// What holds while the control plane cannot be reached.
    pub on_control_plane_loss: OnControlPlaneLoss,
    /// Where it was written.
    pub origin: Origin,
}

/// What names a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TenantMatch {
    /// A claim of a token verified at this workload has exactly this value.
    Claim {
        /// Path of the claim.
        name: Vec<String>,
        /// Its value.
        value: String,
    },
    /// A header has exactly this value, and the direct peer is one of these accounts.
    #[serde(rename_all = "camelCase")]
    Header {
        /// The header, in lower case.
        name: String,
        /// Its value.
        value: String,
        /// Whose word is taken for it; never empty.
        trusted_from: Vec<AccountName>,
    },
}

/// So many requests in each window, over all instances of some Services together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quota {
    /// Names the quota across versions: `TENANT/INDEX`.
    pub id: String,
    /// Counted once, at the inbound of these Services.
    pub services: Vec<ServiceName>,
    /// How many requests.
    pub requests: u64,
    /// In how long; windows are aligned to Unix time. Whole seconds, 1 s to 24 h.
    pub window: Duration,
}

/// What a sidecar admits while the control plane cannot be reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnControlPlaneLoss {
    /// In each window what it was granted in its last connected window.
    #[default]
    LastShare,
    /// Nothing.
    Deny,
    /// Everything.
    Allow,
}
