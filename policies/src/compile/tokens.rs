//! Token rules by issuer, with their keys read and their header names checked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::in_scope;
use super::keys::{self, Key};
use crate::complaint::Complaint;
use crate::policy::{self, KeyUrl, Origin, TokenPlace, certificates};
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
    /// Whose signature is believed.
    pub keys: RuleKeys,
    /// Where in a request its tokens are; never empty.
    pub places: Vec<Place>,
    /// The application is given the token too.
    pub forward: bool,
    /// Claims that must be there.
    pub required_claims: Vec<RequiredClaim>,
    /// How far clocks may be apart.
    pub clock_skew: Duration,
    /// What its tokens let in ends with them.
    pub end_streams: bool,
    /// A request without a token is refused.
    pub required: bool,
    /// Claims told to the application.
    pub claims_to_headers: Vec<ClaimHeader>,
    ports: Option<Vec<u16>>,
}

/// The keys of a rule.
#[derive(Debug, Clone)]
pub enum RuleKeys {
    /// Those that the document holds; never empty.
    Written(Vec<Key>),
    /// Those that their issuer publishes.
    Fetched {
        /// Where.
        from: Arc<KeySource>,
        /// What was there; `None`: nobody knows yet. Never empty.
        now: Option<Arc<[Key]>>,
    },
}

impl RuleKeys {
    /// The keys, where they are known.
    pub fn now(&self) -> Option<&[Key]> {
        match self {
            Self::Written(keys) => Some(keys),
            Self::Fetched { now, .. } => now.as_deref(),
        }
    }

    /// Where they are published, if they are.
    pub fn source(&self) -> Option<&Arc<KeySource>> {
        match self {
            Self::Written(_) => None,
            Self::Fetched { from, .. } => Some(from),
        }
    }
}

/// Where an issuer publishes its keys, and how they are fetched.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeySource {
    /// The issuer.
    pub issuer: Box<str>,
    /// Where.
    pub url: KeyUrl,
    /// Certificates (DER) that the server's must lead to; `None`: those that the machine trusts.
    pub ca: Option<Vec<Vec<u8>>>,
    /// How long it may take.
    pub timeout: Duration,
}

/// Keys as they were fetched.
pub type FetchedKeys = BTreeMap<Arc<KeySource>, Arc<[Key]>>;

/// A place in a request where tokens are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `Authorization: Bearer`, in any case (RFC 6750 section 2.1).
    Bearer,
    /// A header, after a prefix that is compared exactly.
    Header(HeaderName, Box<str>),
    /// A cookie.
    Cookie(Box<str>),
    /// A query parameter.
    Query(Box<str>),
}

/// A claim that must be there.
#[derive(Debug, Clone)]
pub struct RequiredClaim {
    /// The claim.
    pub claim: ClaimPath,
    /// Any one of these, or a list with one of them; empty: whatever it says.
    pub values: Vec<Box<str>>,
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

    /// The rules of all ports.
    pub(super) fn rules(&self) -> &[TokenRule] {
        &self.rules
    }

    /// Every header that any rule tells a claim in: never believed from a caller, on any port.
    pub fn claim_headers(&self) -> &[HeaderName] {
        &self.claim_headers
    }

    /// Every place where keys are published that some rule believes.
    pub fn sources(&self) -> impl Iterator<Item = &Arc<KeySource>> {
        self.rules.iter().filter_map(|rule| rule.keys.source())
    }

    /// Puts keys in force that were fetched; of those not among them nothing is known.
    pub(super) fn set_fetched(&mut self, fetched: &FetchedKeys) {
        for rule in &mut self.rules {
            if let RuleKeys::Fetched { from, now } = &mut rule.keys {
                *now = fetched.get(from).filter(|keys| !keys.is_empty()).cloned();
            }
        }
    }

    pub(super) fn set_keys_of(&mut self, source: &KeySource, keys: &Arc<[Key]>) {
        for rule in &mut self.rules {
            if let RuleKeys::Fetched { from, now } = &mut rule.keys
                && **from == *source
            {
                *now = Some(Arc::clone(keys));
            }
        }
    }

    pub(super) fn compile(from: &[Scoped<NamedJwtRule>], complaints: &mut Vec<Complaint>) -> Self {
        let mut tokens = Self::default();
        for Scoped { ports, policy: NamedJwtRule { policy, rule } } in from {
            let complain = |key: &str, found: String, expected: &str| {
                Complaint::at(&rule.origin, key, found, expected)
                    .in_document(format_args!("RequestAuthentication {policy}"))
            };
            let keys = rule_keys(rule).unwrap_or_else(|(key, found, expected)| {
                complaints.push(complain(key, found, expected));
                RuleKeys::Written(Vec::new())
            });
            let places = places(&rule.places).unwrap_or_else(|name| {
                complaints.push(complain("fromHeaders", format!("{name:?}"), "the name of a header"));
                Vec::new()
            });
            let required = |claim: &policy::RequiredClaim| RequiredClaim {
                claim: path(&claim.claim),
                values: claim.values.iter().map(|value| value.as_str().into()).collect(),
            };
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
                places,
                forward: rule.forward,
                required_claims: rule.required_claims.iter().map(required).collect(),
                clock_skew: rule.clock_skew,
                end_streams: rule.end_streams_with_token,
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

/// What is wrong: the key, what was found, what is expected.
type Wrong = (&'static str, String, &'static str);

fn rule_keys(rule: &policy::JwtRule) -> Result<RuleKeys, Wrong> {
    let Some(fetched) = &rule.fetched else {
        let keys = keys::read(&rule.jwks);
        return keys
            .map(RuleKeys::Written)
            .map_err(|bad| ("jwks", bad.to_string(), "a JSON Web Key Set of public keys"));
    };
    let url =
        KeyUrl::parse(&fetched.uri).map_err(|why| ("jwksUri", format!("{:?}: {why}", fetched.uri), "an https URL"))?;
    let ca = match &fetched.ca {
        Some(text) => {
            let found = certificates(text).filter(|found| !found.is_empty());
            Some(found.ok_or_else(|| ("jwksCa", "something else".to_owned(), "certificates as PEM"))?)
        }
        None => None,
    };
    let from = KeySource { issuer: rule.issuer.as_str().into(), url, ca, timeout: fetched.timeout };
    Ok(RuleKeys::Fetched { from: Arc::new(from), now: None })
}

fn places(written: &[TokenPlace]) -> Result<Vec<Place>, &str> {
    if written.is_empty() {
        return Ok(vec![Place::Bearer]);
    }
    written.iter().map(place).collect()
}

fn place(written: &TokenPlace) -> Result<Place, &str> {
    Ok(match written {
        TokenPlace::Header { name, prefix } if name == "authorization" && prefix.eq_ignore_ascii_case("bearer ") => {
            Place::Bearer
        }
        TokenPlace::Header { name, prefix } => {
            let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| name.as_str())?;
            Place::Header(header, prefix.as_str().into())
        }
        TokenPlace::Cookie(name) => Place::Cookie(name.as_str().into()),
        TokenPlace::Query(name) => Place::Query(name.as_str().into()),
    })
}
