//! Inline JSON Web Key Sets: public keys only, and at least one that this mesh can verify with.
//!
//! A private or symmetric key in a policy is a leak and never a way to configure anything: it is refused without showing
//! the line it stands on.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::at::At;
use crate::document::node::{Value as Found, quoted};
use crate::document::shape::Notes;

/// Members that only private keys (RFC 7518 section 6.2.2, 6.3.2; RFC 8037) and symmetric keys (section 6.4) have.
const PRIVATE: &[&str] = &["d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"];
/// RSA keys shorter than this are not accepted (RFC 7518 section 3.3), longer than the other cost too much to verify.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// Keys in one set.
const MAX_KEYS: usize = 100;

/// Reads a key set; what is left of it as canonical JSON are the keys that can be used.
pub(super) fn key_set(at: &At<'_>, notes: &mut Notes<'_>) -> Option<String> {
    let set = match &at.node.value {
        Found::Text(text) => match serde_json::from_str(text) {
            Ok(set) => set,
            Err(wrong) => {
                at.complain(notes, format!("a JSON Web Key Set as JSON text ({wrong})"));
                return None;
            }
        },
        _ => at.node.to_json(),
    };
    let Some(keys) = set.get("keys").and_then(Value::as_array) else {
        at.complain_of(notes, "JSON without a list of keys", "a JSON Web Key Set: {\"keys\": [...]}");
        return None;
    };
    let objects: Vec<&Map<String, Value>> = keys.iter().filter_map(Value::as_object).collect();
    if let Some(index) = objects.iter().position(|key| is_secret(key)) {
        at.complain_of(
            notes,
            format!("keys[{index}], a private or symmetric key: whoever reads this document could sign tokens with it"),
            "public keys only; treat this key as known to others, and replace it at the issuer",
        );
        if let Some(complaint) = notes.list.last_mut() {
            complaint.snippet = None;
        }
        return None;
    }
    let mut reasons = Vec::new();
    let mut usable: Vec<&Map<String, Value>> = Vec::new();
    for (index, key) in objects.iter().enumerate() {
        match unusable(key) {
            Some(why) => reasons.push(format!("keys[{index}]: {why}")),
            None => usable.push(key),
        }
    }
    if usable.is_empty() || keys.len() > MAX_KEYS || objects.len() < keys.len() {
        let why = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) };
        let found = format!("a key set of {} keys, of which {} can be used{why}", keys.len(), usable.len());
        at.complain_of(notes, found, format!("1 to {MAX_KEYS} public keys to verify with: RSA of 2048 bits or more, EC P-256 or P-384, Ed25519"));
        return None;
    }
    if let Some(twice) = duplicate_id(&usable) {
        at.complain_of(notes, format!("the key id {} twice", quoted(twice)), "each kid once");
        return None;
    }
    Some(canonical(&usable))
}

fn member<'k>(key: &'k Map<String, Value>, name: &str) -> &'k str {
    key.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn is_secret(key: &Map<String, Value>) -> bool {
    member(key, "kty") == "oct" || PRIVATE.iter().any(|name| key.contains_key(*name))
}

/// Why a key cannot verify tokens, if it cannot.
fn unusable(key: &Map<String, Value>) -> Option<&'static str> {
    if !matches!(member(key, "use"), "" | "sig") {
        return Some("its use is not sig");
    }
    if let Some(operations) = key.get("key_ops").and_then(Value::as_array)
        && !operations.iter().any(|op| op == "verify")
    {
        return Some("its key_ops do not include verify");
    }
    let bytes = |name: &str| URL_SAFE_NO_PAD.decode(member(key, name)).unwrap_or_default();
    let algorithm = member(key, "alg");
    let (well_formed, algorithms): (bool, &[&str]) = match (member(key, "kty"), member(key, "crv")) {
        ("RSA", _) => {
            let modulus = bytes("n");
            let first = modulus.iter().position(|b| *b != 0).unwrap_or(modulus.len());
            let bits = (modulus.len() - first) * 8 - modulus.get(first).map_or(0, |b| b.leading_zeros() as usize);
            let odd = |n: &[u8]| n.last().is_some_and(|b| b & 1 == 1);
            let exponent = bytes("e");
            (RSA_BITS.contains(&bits) && odd(&modulus) && odd(&exponent), &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"])
        }
        ("EC", "P-256") => (bytes("x").len() == 32 && bytes("y").len() == 32, &["ES256"]),
        ("EC", "P-384") => (bytes("x").len() == 48 && bytes("y").len() == 48, &["ES384"]),
        ("OKP", "Ed25519") => (bytes("x").len() == 32, &["EdDSA", "Ed25519"]),
        _ => return Some("its kty and crv are not supported"),
    };
    match () {
        () if !well_formed => Some("its numbers are missing, or not of the right length"),
        () if !algorithm.is_empty() && !algorithms.contains(&algorithm) => Some("its alg does not fit its kty and crv"),
        () => None,
    }
}

fn duplicate_id<'k>(keys: &[&'k Map<String, Value>]) -> Option<&'k str> {
    let mut ids: Vec<&str> = keys.iter().map(|key| member(key, "kid")).filter(|id| !id.is_empty()).collect();
    ids.sort_unstable();
    ids.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

/// The keys as JSON text, members sorted; certificates are left out, because nothing reads them.
fn canonical(keys: &[&Map<String, Value>]) -> String {
    let keys: Vec<Value> = keys
        .iter()
        .map(|key| {
            let mut members: Vec<_> = key.iter().filter(|(name, _)| !name.starts_with("x5")).collect();
            members.sort_by_key(|(name, _)| *name);
            Value::Object(members.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect())
        })
        .collect();
    serde_json::json!({ "keys": keys }).to_string()
}
