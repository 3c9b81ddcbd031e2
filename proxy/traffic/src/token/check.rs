//! A token taken apart and held against the rules of its issuer: signature, times, audience, claims.

use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use equerry_policies::compile::keys::{Algorithm, Key, Material};
use equerry_policies::compile::{ClaimPath, Place, RuleKeys, TokenRule};
use http::header::{HeaderName, HeaderValue};
use jsonwebtoken::DecodingKey;
use serde_json::{Map, Value};

use super::{MAX_TOKEN, Verified, claim_texts, fault, json};
use crate::refusal::{Reason, Refusal};

/// A token taken apart; nothing of it is believed yet.
struct Parts<'a> {
    signed: &'a str,
    signature: &'a str,
    algorithm: Algorithm,
    key_id: Option<String>,
    claims: Map<String, Value>,
}

/// Which of the rules believes the token that was shown in `place`, and what it says.
pub(super) fn believe<'r>(
    token: &str,
    place: &Place,
    rules: impl Iterator<Item = &'r TokenRule>,
    now: SystemTime,
) -> Result<(usize, Arc<Verified>), Refusal> {
    let parts = take_apart(token)?;
    let Some(Value::String(issuer)) = parts.claims.get("iss") else {
        return Err(fault(Reason::TokenInvalid, "the token names no issuer", None));
    };
    // Several documents may accept the issuer: any one that believes the token is enough, and the last one that does not
    // says why; but one that might with other keys is heard before those that never will.
    let mut refused = fault(Reason::TokenInvalid, format!("issuer {issuer:?} is not accepted here"), None);
    let accepting = |rule: &TokenRule| *rule.issuer == **issuer && rule.places.contains(place);
    for (number, rule) in rules.enumerate().filter(|(_, rule)| accepting(rule)) {
        match check(&parts, rule, now) {
            Ok(key) => {
                let principal =
                    parts.claims.get("sub").and_then(Value::as_str).map(|subject| format!("{issuer}/{subject}"));
                let (issuer, policy, told) = (issuer.clone(), rule.policy.clone(), told(&parts.claims, rule));
                let ends_with = rule.end_streams.then(|| key.clone());
                let (times, claims) = (Times::read(&parts.claims, rule)?, parts.claims);
                let verified = Verified { issuer, principal, claims, times, policy, told, ends_with };
                return Ok((number, Arc::new(verified)));
            }
            Err(why) if refused.wants_keys().is_none() || why.wants_keys().is_some() => refused = why,
            Err(_) => {}
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

/// The key by which a rule believes a token of its issuer.
fn check<'r>(parts: &Parts<'_>, rule: &'r TokenRule, now: SystemTime) -> Result<&'r Key, Refusal> {
    let checked = check_signature(parts, rule);
    let asks = checked.as_ref().is_err_and(|refused| refused.wants_keys().is_some());
    match (checked, check_claims(&parts.claims, rule, now)) {
        (Ok(key), claims) => claims.map(|()| key),
        // For a token that is refused in any case nobody is asked for keys.
        (Err(_), Err(claims)) if asks => Err(claims),
        (Err(refused), _) => Err(refused),
    }
}

/// Whether a rule accepts what a token of its issuer says, signature aside.
pub(super) fn check_claims(claims: &Map<String, Value>, rule: &TokenRule, now: SystemTime) -> Result<(), Refusal> {
    Times::read(claims, rule)?.check(rule, now)?;
    check_meant(claims, rule)
}

/// The same, times aside.
pub(super) fn check_meant(claims: &Map<String, Value>, rule: &TokenRule) -> Result<(), Refusal> {
    check_audience(claims, rule)?;
    check_required(claims, rule)
}

fn check_signature<'r>(parts: &Parts<'_>, rule: &'r TokenRule) -> Result<&'r Key, Refusal> {
    let Some(keys) = rule.keys.now() else { return Err(unavailable(&rule.keys)) };
    let named = |key: &&Key| parts.key_id.as_deref().is_none_or(|id| key.id.as_deref() == Some(id));
    let mut known = keys.iter().filter(named).peekable();
    if known.peek().is_none() {
        return Err(unknown_key("the issuer's key set holds no key of that id", rule));
    }
    let mut fitting = known.filter(|key| key.algorithms.contains(&parts.algorithm)).peekable();
    if fitting.peek().is_none() {
        let detail = format!("{} is not an algorithm of the issuer's key", parts.algorithm.as_str());
        return Err(fault(Reason::TokenAlgorithm, detail, Some(rule)));
    }
    match (fitting.find(|key| signed_with(parts, key)), &parts.key_id) {
        (Some(key), _) => Ok(key),
        (None, Some(_)) => {
            Err(fault(Reason::TokenInvalid, "the signature is not of the key that the token names", Some(rule)))
        }
        (None, None) => Err(unknown_key("no key of the issuer's key set made the signature", rule)),
    }
}

/// Where keys are published, the one that is missing may be there by now.
fn unknown_key(detail: &str, rule: &TokenRule) -> Refusal {
    let mut refused = fault(Reason::TokenUnknownKey, detail, Some(rule));
    if let Refusal::Token(fault) = &mut refused {
        fault.ask = rule.keys.source().cloned();
    }
    refused
}

fn unavailable(keys: &RuleKeys) -> Refusal {
    match keys.source() {
        Some(from) => Refusal::KeysUnavailable {
            from: Arc::clone(from),
            why: "they were never fetched".to_owned(),
            retry_after: None,
        },
        // Written keys are always known.
        None => fault(Reason::TokenUnknownKey, "there are no keys", None),
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

/// When a token is good, in seconds since 1970.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Times {
    ends: f64,
    not_before: Option<f64>,
    issued: Option<f64>,
}

impl Times {
    /// As the claims say them; `rule` is who asks.
    fn read(claims: &Map<String, Value>, rule: &TokenRule) -> Result<Self, Refusal> {
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
        Ok(Self { ends, not_before: time("nbf")?, issued: time("iat")? })
    }

    /// Whether that is now, as exactly as the rule takes it.
    pub(super) fn check(&self, rule: &TokenRule, now: SystemTime) -> Result<(), Refusal> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let skew = rule.clock_skew.as_secs_f64();
        if now >= self.ends + skew {
            return Err(fault(
                Reason::TokenExpired,
                format!("the token ended {:.0} s ago", now - self.ends),
                Some(rule),
            ));
        }
        for (from, word) in [(self.not_before, "is valid only from"), (self.issued, "was issued at")] {
            if from.is_some_and(|from| from > now + skew) {
                return Err(fault(
                    Reason::TokenInvalid,
                    format!("the token {word} a moment in the future"),
                    Some(rule),
                ));
            }
        }
        Ok(())
    }
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

fn check_required(claims: &Map<String, Value>, rule: &TokenRule) -> Result<(), Refusal> {
    for required in &rule.required_claims {
        let found = claim_of(claims, &required.claim).filter(|claim| !claim.is_null());
        let wanted = |text: &str| required.values.iter().any(|value| **value == *text);
        let fits =
            found.is_some_and(|claim| required.values.is_empty() || claim_texts(claim).any(|text| wanted(&text)));
        if !fits {
            let lacks = if found.is_some() { "does not have a value that is asked for" } else { "is not there" };
            let detail = format!("the token's claim {} {lacks}", shown(&required.claim));
            return Err(fault(Reason::TokenInvalid, detail, Some(rule)));
        }
    }
    Ok(())
}

/// A claim as policies write it.
fn shown(path: &ClaimPath) -> String {
    match &**path {
        [only] => only.to_string(),
        several => several.iter().map(|part| format!("[{part}]")).collect(),
    }
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
