//! Token rules by issuer, with their keys read and their header names checked.

use http::HeaderName;

use super::in_scope;
use super::keys::{self, Key};
use crate::complaint::Complaint;
use crate::policy::Origin;
use crate::view::{NamedJwtRule, Scoped};

/// Which tokens a workload accepts, on which of its ports.
#[derive(Debug, Clone, Default)]
pub struct Tokens {
    rules: Vec<TokenRule>,
    claim_headers: Vec<HeaderName>,
}

/// What one issuer's tokens must be, and where.
#[derive(Debug, Clone)]
pub struct TokenRule {
    /// The document that set it, `namespace/name`.
    pub policy: Box<str>,
    /// Where it was written.
    pub origin: Origin,
    /// Exactly the `iss` claim.
    pub issuer: Box<str>,
    /// Any one must be in `aud`; empty: not checked.
    pub audiences: Vec<Box<str>>,
    /// Whose signature is believed; never empty.
    pub keys: Vec<Key>,
    /// A request without a token is refused.
    pub required: bool,
    /// Claims told to the application.
    pub claims_to_headers: Vec<ClaimHeader>,
    ports: Option<Vec<u16>>,
}

/// One claim, and the header it is told in.
#[derive(Debug, Clone)]
pub struct ClaimHeader {
    /// The claim.
    pub claim: ClaimPath,
    /// The header.
    pub header: HeaderName,
}

/// The path of a claim: `realm`, `role`.
pub type ClaimPath = Box<[Box<str>]>;

/// A claim's path in the form it is kept.
pub(super) fn path(from: &[String]) -> ClaimPath {
    from.iter().map(|part| part.as_str().into()).collect()
}

impl Tokens {
    /// The rules that hold on the application port `port`.
    pub fn on(&self, port: u16) -> impl Iterator<Item = &TokenRule> {
        self.rules.iter().filter(move |rule| in_scope(rule.ports.as_deref(), port))
    }

    /// Every header that any rule tells a claim in: never believed from a caller, on any port.
    pub fn claim_headers(&self) -> &[HeaderName] {
        &self.claim_headers
    }

    pub(super) fn compile(from: &[Scoped<NamedJwtRule>], complaints: &mut Vec<Complaint>) -> Self {
        let mut tokens = Self::default();
        for Scoped { ports, policy: NamedJwtRule { policy, rule } } in from {
            let complain = |key: &str, found: String, expected: &str| {
                Complaint::at(&rule.origin, key, found, expected)
                    .in_document(format_args!("RequestAuthentication {policy}"))
            };
            let keys = keys::read(&rule.jwks).unwrap_or_else(|bad| {
                complaints.push(complain("jwks", bad.to_string(), "a JSON Web Key Set of public keys"));
                Vec::new()
            });
            let mut claims_to_headers = Vec::new();
            for told in &rule.claims_to_headers {
                match HeaderName::from_bytes(told.header.as_bytes()) {
                    Ok(header) => claims_to_headers.push(ClaimHeader { claim: path(&told.claim), header }),
                    Err(_) => complaints.push(complain(
                        "claimsToHeaders",
                        format!("{:?}", told.header),
                        "the name of a header",
                    )),
                }
            }
            tokens.claim_headers.extend(claims_to_headers.iter().map(|told| told.header.clone()));
            tokens.rules.push(TokenRule {
                policy: policy.as_str().into(),
                origin: rule.origin.clone(),
                issuer: rule.issuer.as_str().into(),
                audiences: rule.audiences.iter().map(|audience| audience.as_str().into()).collect(),
                keys,
                required: rule.required,
                claims_to_headers,
                ports: ports.clone(),
            });
        }
        tokens.claim_headers.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        tokens.claim_headers.dedup();
        tokens
    }
}
