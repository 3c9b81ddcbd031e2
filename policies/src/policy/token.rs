//! Which tokens a workload accepts, and what it tells the application about them.

use serde::{Deserialize, Serialize};

use super::{Origin, Target};
use crate::names::PolicyName;

/// The meaning of a `RequestAuthentication`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestAuthentication {
    /// The document.
    pub name: PolicyName,
    /// Where it holds.
    pub target: Target,
    /// One for each issuer; issuers are unique within a document.
    pub rules: Vec<JwtRule>,
    /// Where it was written.
    pub origin: Origin,
}

/// What one issuer's tokens must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JwtRule {
    /// Exactly the `iss` claim.
    pub issuer: String,
    /// Any one must be in `aud`; empty: not checked.
    pub audiences: Vec<String>,
    /// The key set (RFC 7517) as canonical JSON text; already checked to hold at least one usable public key.
    pub jwks: String,
    /// A request without a token is refused with 401.
    pub required: bool,
    /// Claims told to the application; the headers are always stripped from what callers send.
    pub claims_to_headers: Vec<ClaimHeader>,
    /// Where it was written.
    pub origin: Origin,
}

/// One claim, and the header it is told in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimHeader {
    /// Path of the claim.
    pub claim: Vec<String>,
    /// The header, in lower case.
    pub header: String,
}
