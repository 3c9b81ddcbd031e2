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
#[serde(from = "WrittenRule", into = "WrittenRule")]
pub struct JwtRule {
    /// Exactly the `iss` claim.
    pub issuer: String,
    /// Any one must be in `aud`; empty: not checked.
    pub audiences: Vec<String>,
    /// The key set (RFC 7517) as canonical JSON text; already checked to hold at least one usable public key. Empty: it is
    /// fetched.
    pub jwks: String,
    /// Where the key set is fetched, when it is not written down.
    pub fetched: Option<FetchedKeys>,
    /// Where in a request its tokens are; empty: in `Authorization: Bearer`.
    pub places: Vec<TokenPlace>,
    /// The application is given the token too.
    pub forward: bool,
    /// Claims that must be there.
    pub required_claims: Vec<RequiredClaim>,
    /// How far the clocks of issuer and workload may be apart.
    pub clock_skew: Duration,
    /// What a token let in ends with it: when it expires, or its key is withdrawn.
    pub end_streams_with_token: bool,
    /// A request without a token is refused with 401.
    pub required: bool,
    /// Claims told to the application; the headers are always stripped from what callers send.
    pub claims_to_headers: Vec<ClaimHeader>,
    /// Where it was written.
    pub origin: Origin,
}

/// A rule as it is sent to proxies. The first version knew no rule without `jwks`: one that asks for more than that version
/// could check has its keys elsewhere, so that such a proxy refuses it and keeps what it had.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenRule {
    issuer: String,
    audiences: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    jwks: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    keys: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fetched: Option<FetchedKeys>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    places: Vec<TokenPlace>,
    /// A control plane that does not say so knew no other way.
    #[serde(default = "always")]
    forward: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    required_claims: Vec<RequiredClaim>,
    #[serde(default = "usual_clock_skew")]
    clock_skew: Duration,
    #[serde(default)]
    end_streams_with_token: bool,
    required: bool,
    claims_to_headers: Vec<ClaimHeader>,
    origin: Origin,
}

impl From<JwtRule> for WrittenRule {
    fn from(rule: JwtRule) -> Self {
        let asks_more = !rule.required_claims.is_empty() || rule.end_streams_with_token || rule.clock_skew < CLOCK_SKEW;
        let (jwks, keys) = if asks_more { (String::new(), rule.jwks) } else { (rule.jwks, String::new()) };
        Self {
            issuer: rule.issuer,
            audiences: rule.audiences,
            jwks,
            keys,
            fetched: rule.fetched,
            places: rule.places,
            forward: rule.forward,
            required_claims: rule.required_claims,
            clock_skew: rule.clock_skew,
            end_streams_with_token: rule.end_streams_with_token,
            required: rule.required,
            claims_to_headers: rule.claims_to_headers,
            origin: rule.origin,
        }
    }
}

impl From<WrittenRule> for JwtRule {
    fn from(written: WrittenRule) -> Self {
        Self {
            issuer: written.issuer,
            audiences: written.audiences,
            jwks: if written.jwks.is_empty() { written.keys } else { written.jwks },
            fetched: written.fetched,
            places: written.places,
            forward: written.forward,
            required_claims: written.required_claims,
            clock_skew: written.clock_skew,
            end_streams_with_token: written.end_streams_with_token,
            required: written.required,
            claims_to_headers: written.claims_to_headers,
            origin: written.origin,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> JwtRule {
        let first =
            r#"{"issuer":"a","audiences":[],"jwks":"{}","required":true,"claimsToHeaders":[],"origin":{"line":1}}"#;
        serde_json::from_str(first).unwrap()
    }

    #[test]
    fn a_rule_of_the_first_version_means_what_it_meant() {
        let rule = rule();
        assert!(
            rule.forward && rule.clock_skew == CLOCK_SKEW && rule.places.is_empty() && !rule.end_streams_with_token
        );
        assert!(serde_json::to_string(&rule).unwrap().contains(r#""jwks":"{}""#), "and is sent as it was");
    }

    #[test]
    fn a_rule_that_the_first_version_would_check_in_part_is_one_that_it_cannot_read() {
        let claim = RequiredClaim { claim: vec!["a".into()], values: vec![] };
        for asks_more in [
            JwtRule { required_claims: vec![claim], ..rule() },
            JwtRule { end_streams_with_token: true, ..rule() },
            JwtRule { clock_skew: Duration::ZERO, ..rule() },
        ] {
            let text = serde_json::to_string(&asks_more).unwrap();
            assert!(!text.contains("jwks"), "{text}");
            assert_eq!(serde_json::from_str::<JwtRule>(&text).unwrap(), asks_more);
        }
    }
}
