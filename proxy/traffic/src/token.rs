//! Whose token a request carries: verified here against the workload's key sets, or refused with the reason.
//!
//! Only the algorithms of the key are ever tried; what a token says about keys (`jwk`, `jku`, `x5u`) is never read; times
//! are judged against the `now` of the caller. Headers that carry claims to the application are stripped from every
//! request before anything else, and set from what was verified.

mod believed;
mod json;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use equerry_policies::compile::keys::{Algorithm, Key, Material};
use equerry_policies::compile::{CompiledWorkload, TokenRule};
use equerry_policies::names::SpiffeId;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use jsonwebtoken::DecodingKey;
use serde_json::{Map, Value};

pub use believed::Believed;
use believed::Known;

use crate::refusal::{Reason, Refusal, TokenFault};

/// Longest token read, in bytes.
pub const MAX_TOKEN: usize = 16 * 1024;
/// How far clocks may be apart (Envoy's default).
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Who speaks, as far as it was proved: by the connection, and by a token.
#[derive(Debug, Clone)]
pub struct Caller {
    peer: Option<SpiffeId>,
    token: Option<Arc<Verified>>,
}

/// What a verified token says.
#[derive(Debug)]
pub struct Verified {
    issuer: String,
    /// `issuer/subject`, when there is a subject.
    principal: Option<String>,
    claims: Map<String, Value>,
    policy: Box<str>,
    /// What the application is told of it.
    told: Vec<(HeaderName, HeaderValue)>,
}

impl Caller {
    /// The identity of the direct peer's certificate; `None`: plain text.
    pub fn peer(&self) -> Option<&SpiffeId> {
        self.peer.as_ref()
    }

    /// The issuer of the verified token.
    pub fn issuer(&self) -> Option<&str> {
        self.token.as_deref().map(|token| token.issuer.as_str())
    }

    /// `issuer/subject` of the verified token.
    pub fn request_principal(&self) -> Option<&str> {
        self.token.as_deref()?.principal.as_deref()
    }

    /// The document whose rule verified the token, `namespace/name`.
    pub fn token_policy(&self) -> Option<&str> {
        self.token.as_deref().map(|token| &*token.policy)
    }

    /// Every claim of the verified token.
    pub fn claims(&self) -> Option<&Map<String, Value>> {
        self.token.as_deref().map(|token| &token.claims)
    }

    /// A claim of the verified token, by its path.
    pub fn claim(&self, path: &[Box<str>]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.claims()?.get(&**first)?, |value, part| value.get(&**part))
    }
}

#[cfg(test)]
impl Caller {
    /// A caller as a test needs one: with this peer, and these claims as if verified.
    pub(crate) fn assumed(peer: Option<&str>, claims: Option<Value>) -> Self {
        let token = claims.map(|claims| {
            let Value::Object(claims) = claims else { panic!("claims are an object") };
            let principal =
                Some(format!("https://issuer/{}", claims.get("sub").and_then(Value::as_str).unwrap_or("nobody")));
            let (issuer, policy) = ("https://issuer".to_owned(), "shop/tokens".into());
            Arc::new(Verified { issuer, principal, claims, policy, told: vec![] })
        });
        Self { peer: peer.map(|peer| SpiffeId::parse(&format!("spiffe://{peer}")).unwrap()), token }
    }
}

/// The texts of a claim: itself when it is a text, a number or a truth, each such member when it is a list.
pub(crate) fn claim_texts(claim: &Value) -> impl Iterator<Item = Cow<'_, str>> {
    let members = if let Value::Array(members) = claim { members.as_slice() } else { std::slice::from_ref(claim) };
    members.iter().filter_map(|member| match member {
        Value::String(text) => Some(Cow::Borrowed(text.as_str())),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        Value::Bool(truth) => Some(Cow::Borrowed(if *truth { "true" } else { "false" })),
        _ => None,
    })
}

/// Verifies the token of a request to the application port `app_port`. Claim headers that came with the request are
/// stripped in any case; those of a verified token are set.
///
/// # Errors
/// [`Refusal::Token`] with one of the `token_*` reasons, when a token is required and missing, or cannot be believed.
pub fn verify(
    workload: &CompiledWorkload,
    app_port: u16,
    headers: &mut HeaderMap,
    peer: Option<&SpiffeId>,
    now: SystemTime,
) -> Result<Caller, Refusal> {
    let believe = |token: &str| Ok(believe(token, workload.tokens.on(app_port), now)?.1);
    judge(workload, app_port, headers, peer, believe)
}

/// The same as [`verify`]; a token that was `believed` lately under this very configuration is not taken apart again.
///
/// # Errors
/// As [`verify`].
pub fn verify_remembering(
    believed: &mut Believed,
    workload: &Arc<CompiledWorkload>,
    app_port: u16,
    headers: &mut HeaderMap,
    peer: Option<&SpiffeId>,
    now: SystemTime,
) -> Result<Caller, Refusal> {
    let mut rules = workload.tokens.on(app_port);
    let believe = |token: &str| {
        if let Some(known) = believed.recall(workload, app_port, token) {
            // Everything but its times holds of a token as long as the configuration does, and with it the rule.
            let gone = || fault(Reason::TokenInvalid, "the rule that believed the token is gone", None);
            check_times(&known.verified.claims, rules.nth(known.rule).ok_or_else(gone)?, now)?;
            return Ok(Arc::clone(&known.verified));
        }
        let (rule, verified) = believe(token, rules, now)?;
        believed.remember(token, Known { port: app_port, rule, verified: Arc::clone(&verified) });
        Ok(verified)
    };
    judge(workload, app_port, headers, peer, believe)
}

fn judge(
    workload: &CompiledWorkload,
    app_port: u16,
    headers: &mut HeaderMap,
    peer: Option<&SpiffeId>,
    believe: impl FnOnce(&str) -> Result<Arc<Verified>, Refusal>,
) -> Result<Caller, Refusal> {
    for header in workload.tokens.claim_headers() {
        headers.remove(header);
    }
    let mut caller = Caller { peer: peer.cloned(), token: None };
    let mut rules = workload.tokens.on(app_port).peekable();
    if rules.peek().is_none() {
        return Ok(caller);
    }
    let Some(token) = bearer(headers)? else {
        return match rules.find(|rule| rule.required) {
            Some(rule) => Err(fault(Reason::TokenMissing, "a token is required, and there is none", Some(rule))),
            None => Ok(caller),
        };
    };
    let verified = believe(token)?;
    for (header, value) in &verified.told {
        headers.insert(header.clone(), value.clone());
    }
    caller.token = Some(verified);
    Ok(caller)
}

fn fault(reason: Reason, detail: impl Into<String>, rule: Option<&TokenRule>) -> Refusal {
    Refusal::Token(Box::new(TokenFault { reason, detail: detail.into(), policy: rule.map(|rule| rule.policy.clone()) }))
}

/// The token of `Authorization: Bearer`; another scheme is no token.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(fault(Reason::TokenInvalid, "there is more than one Authorization header", None));
    }
    let text = value.to_str().map_err(|_| fault(Reason::TokenInvalid, "the Authorization header is not text", None))?;
    let Some((scheme, token)) = text.split_once(' ') else { return Ok(None) };
    Ok(scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()))
}

/// A token taken apart; nothing of it is believed yet.
struct Parts<'a> {
    signed: &'a str,
    signature: &'a str,
    algorithm: Algorithm,
    key_id: Option<String>,
    claims: Map<String, Value>,
}

/// Which of the rules believes the token, and what it says.
fn believe<'r>(
    token: &str,
    rules: impl Iterator<Item = &'r TokenRule>,
    now: SystemTime,
) -> Result<(usize, Arc<Verified>), Refusal> {
    let parts = take_apart(token)?;
    let Some(Value::String(issuer)) = parts.claims.get("iss") else {
        return Err(fault(Reason::TokenInvalid, "the token names no issuer", None));
    };
    // Several documents may accept the issuer: any one that believes the token is enough, and the last one that does not
    // says why.
    let mut refused = fault(Reason::TokenInvalid, format!("issuer {issuer:?} is not accepted here"), None);
    for (number, rule) in rules.enumerate().filter(|(_, rule)| *rule.issuer == **issuer) {
        match check(&parts, rule, now) {
            Ok(()) => {
                let principal =
                    parts.claims.get("sub").and_then(Value::as_str).map(|subject| format!("{issuer}/{subject}"));
                let (issuer, policy, told) = (issuer.clone(), rule.policy.clone(), told(&parts.claims, rule));
                return Ok((number, Arc::new(Verified { issuer, principal, claims: parts.claims, policy, told })));
            }
            Err(why) => refused = why,
        }
    }
    Err(refused)
}

fn take_apart(token: &str) -> Result<Parts<'_>, Refusal> {
    let invalid = |why: &str| fault(Reason::TokenInvalid, why, None);
    if token.len() > MAX_TOKEN {
        return Err(invalid("the token is longer than 16 KiB"));
    }
    let (signed, signature) = token.rsplit_once('.').ok_or_else(|| invalid("the token is not of three parts"))?;
    let (header, claims) = signed.split_once('.').ok_or_else(|| invalid("the token is not of three parts"))?;
    if claims.contains('.') {
        return Err(invalid("the token is not of three parts"));
    }
    let header = object(header)
        .ok_or_else(|| invalid("the token's header is not a JSON object in base64url, or repeats a name"))?;
    let algorithm = match header.get("alg") {
        Some(Value::String(name)) => Algorithm::named(name).ok_or_else(|| {
            fault(Reason::TokenAlgorithm, format!("the algorithm {:?} is never accepted", cut(name)), None)
        })?,
        _ => return Err(fault(Reason::TokenAlgorithm, "the token names no algorithm", None)),
    };
    if header.contains_key("crit") {
        return Err(invalid("the token's header has critical extensions, none of which is known here"));
    }
    let key_id = match header.get("kid") {
        None => None,
        Some(Value::String(id)) => Some(id.clone()),
        Some(_) => return Err(invalid("the token's key id is not text")),
    };
    let claims = object(claims)
        .ok_or_else(|| invalid("the token's claims are not a JSON object in base64url, or repeat a name"))?;
    Ok(Parts { signed, signature, algorithm, key_id, claims })
}

fn object(encoded: &str) -> Option<Map<String, Value>> {
    json::object(&URL_SAFE_NO_PAD.decode(encoded).ok()?)
}

fn cut(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Whether a rule believes a token of its issuer.
fn check(parts: &Parts<'_>, rule: &TokenRule, now: SystemTime) -> Result<(), Refusal> {
    check_signature(parts, rule)?;
    check_times(&parts.claims, rule, now)?;
    check_audience(&parts.claims, rule)
}

fn check_signature(parts: &Parts<'_>, rule: &TokenRule) -> Result<(), Refusal> {
    let named = |key: &&Key| parts.key_id.as_deref().is_none_or(|id| key.id.as_deref() == Some(id));
    let mut known = rule.keys.iter().filter(named).peekable();
    if known.peek().is_none() {
        return Err(fault(Reason::TokenUnknownKey, "the issuer's key set holds no key of that id", Some(rule)));
    }
    let mut fitting = known.filter(|key| key.algorithms.contains(&parts.algorithm)).peekable();
    if fitting.peek().is_none() {
        let detail = format!("{} is not an algorithm of the issuer's key", parts.algorithm.as_str());
        return Err(fault(Reason::TokenAlgorithm, detail, Some(rule)));
    }
    if fitting.any(|key| signed_with(parts, key)) {
        return Ok(());
    }
    match parts.key_id {
        Some(_) => Err(fault(Reason::TokenInvalid, "the signature is not of the key that the token names", Some(rule))),
        None => Err(fault(Reason::TokenUnknownKey, "no key of the issuer's key set made the signature", Some(rule))),
    }
}

fn signed_with(parts: &Parts<'_>, key: &Key) -> bool {
    let material = match &key.material {
        Material::Rsa { n, e } => DecodingKey::from_rsa_raw_components(n, e),
        Material::Ec(point) => DecodingKey::from_ec_der(point),
        Material::Ed25519(x) => DecodingKey::from_ed_der(x),
    };
    let algorithm = match parts.algorithm {
        Algorithm::RS256 => jsonwebtoken::Algorithm::RS256,
        Algorithm::RS384 => jsonwebtoken::Algorithm::RS384,
        Algorithm::RS512 => jsonwebtoken::Algorithm::RS512,
        Algorithm::PS256 => jsonwebtoken::Algorithm::PS256,
        Algorithm::PS384 => jsonwebtoken::Algorithm::PS384,
        Algorithm::PS512 => jsonwebtoken::Algorithm::PS512,
        Algorithm::ES256 => jsonwebtoken::Algorithm::ES256,
        Algorithm::ES384 => jsonwebtoken::Algorithm::ES384,
        Algorithm::EdDSA => jsonwebtoken::Algorithm::EdDSA,
    };
    jsonwebtoken::crypto::verify(parts.signature, parts.signed.as_bytes(), &material, algorithm).unwrap_or(false)
}

fn check_times(claims: &Map<String, Value>, rule: &TokenRule, now: SystemTime) -> Result<(), Refusal> {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let skew = CLOCK_SKEW.as_secs_f64();
    let time = |name: &str| match claims.get(name) {
        None => Ok(None),
        // A JSON number is always finite, so it compares.
        Some(value) => value
            .as_f64()
            .map(Some)
            .ok_or_else(|| fault(Reason::TokenInvalid, format!("the token's {name} is not a number"), Some(rule))),
    };
    let ends = time("exp")?
        .ok_or_else(|| fault(Reason::TokenInvalid, "the token does not say when it ends (exp)", Some(rule)))?;
    if now >= ends + skew {
        return Err(fault(Reason::TokenExpired, format!("the token ended {:.0} s ago", now - ends), Some(rule)));
    }
    for (name, word) in [("nbf", "is valid only from"), ("iat", "was issued at")] {
        if time(name)?.is_some_and(|from| from > now + skew) {
            return Err(fault(Reason::TokenInvalid, format!("the token {word} a moment in the future"), Some(rule)));
        }
    }
    Ok(())
}

fn check_audience(claims: &Map<String, Value>, rule: &TokenRule) -> Result<(), Refusal> {
    if rule.audiences.is_empty() {
        return Ok(());
    }
    let wanted = |audience: &str| rule.audiences.iter().any(|wanted| **wanted == *audience);
    let meant = match claims.get("aud") {
        Some(Value::String(audience)) => wanted(audience),
        Some(Value::Array(audiences)) => audiences.iter().filter_map(Value::as_str).any(wanted),
        _ => false,
    };
    if meant {
        return Ok(());
    }
    let detail = format!("the token is not meant for {}", rule.audiences.join(" or "));
    Err(fault(Reason::TokenAudience, detail, Some(rule)))
}

fn claim_of<'a>(claims: &'a Map<String, Value>, path: &[Box<str>]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(claims.get(&**first)?, |value, part| value.get(&**part))
}

/// The headers that carry claims to the application.
fn told(claims: &Map<String, Value>, rule: &TokenRule) -> Vec<(HeaderName, HeaderValue)> {
    let told = rule.claims_to_headers.iter();
    told.filter_map(|told| Some((told.header.clone(), claim_of(claims, &told.claim).and_then(header_value)?))).collect()
}

/// A claim as a header's value: texts, numbers and truths. A text that a header cannot carry exactly (control characters,
/// spaces at its ends) is not told at all.
fn header_value(claim: &Value) -> Option<HeaderValue> {
    if claim.is_array() {
        return None;
    }
    let text = claim_texts(claim).next()?;
    if text.trim() == text { HeaderValue::from_bytes(text.as_bytes()).ok() } else { None }
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
