//! Which tokens a workload accepts, and what it tells the application about them.

use std::time::Duration;

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
    /// The key set (RFC 7517) as canonical JSON text; already checked to hold at least one usable public key. Empty: it is
    /// fetched.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub jwks: String,
    /// Where the key set is fetched, when it is not written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<FetchedKeys>,
    /// Where in a request its tokens are; empty: in `Authorization: Bearer`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<TokenPlace>,
    /// The application is given the token too. A control plane that does not say so knew no other way.
    #[serde(default = "always")]
    pub forward: bool,
    /// Claims that must be there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub required_claims: Vec<RequiredClaim>,
    /// How far the clocks of issuer and workload may be apart.
    #[serde(default = "usual_clock_skew")]
    pub clock_skew: Duration,
    /// What a token let in ends with it: when it expires, or its key is withdrawn.
    #[serde(default)]
    pub end_streams_with_token: bool,
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

/// How far clocks may be apart where nothing is written (Envoy's default).
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// How long fetching a key set may take where nothing is written (Istio's default).
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

fn always() -> bool {
    true
}

fn usual_clock_skew() -> Duration {
    CLOCK_SKEW
}

/// A key set that its issuer publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FetchedKeys {
    /// An `https` URL.
    pub uri: String,
    /// Certificates (PEM) that its server's must lead to; `None`: those that the proxy's machine trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// How long fetching it may take.
    pub timeout: Duration,
}

/// A place in a request where tokens are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TokenPlace {
    /// A header, after a prefix.
    Header {
        /// The header, in lower case.
        name: String,
        /// What stands before the token.
        prefix: String,
    },
    /// The cookie of that name.
    Cookie(String),
    /// The query parameter of that name.
    Query(String),
}

/// A claim that must be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequiredClaim {
    /// Path of the claim.
    pub claim: Vec<String>,
    /// Any one of these, or a list with one of them; empty: whatever it says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}
