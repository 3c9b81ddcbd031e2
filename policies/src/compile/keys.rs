//! Public keys that verify tokens, read from a key set (RFC 7517).
//!
//! Each key is pinned to the algorithms it may verify; what a token's header asks for never widens that. Private and
//! symmetric keys are refused: a set that holds one has been copied from the wrong place. Of a set that somebody else
//! publishes ([`read_published`]) a key that cannot be used is passed over; a set that is written down says no such thing by
//! intention.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// Smallest RSA modulus, in bits (RFC 7518 section 3.3).
const MIN_RSA_BITS: usize = 2048;
/// Largest RSA modulus, in bits: what the cryptography beneath accepts.
const MAX_RSA_BITS: usize = 8192;
/// Most keys of one set.
const MAX_KEYS: usize = 100;
/// Deepest nesting of a set: a key's lists (`key_ops`, `x5c`) are the third level.
const MAX_DEPTH: usize = 8;

/// A signature algorithm of RFC 7518 or RFC 8037 that this mesh verifies. `none` and the HMAC family are not here, and
/// so can never be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RS256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    RS384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    RS512,
    /// RSASSA-PSS with SHA-256.
    PS256,
    /// RSASSA-PSS with SHA-384.
    PS384,
    /// RSASSA-PSS with SHA-512.
    PS512,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// ECDSA on P-384 with SHA-384.
    ES384,
    /// Ed25519.
    EdDSA,
}

impl Algorithm {
    /// Every algorithm, with its registered name.
    pub const ALL: [(Self, &'static str); 9] = [
        (Self::RS256, "RS256"),
        (Self::RS384, "RS384"),
        (Self::RS512, "RS512"),
        (Self::PS256, "PS256"),
        (Self::PS384, "PS384"),
        (Self::PS512, "PS512"),
        (Self::ES256, "ES256"),
        (Self::ES384, "ES384"),
        (Self::EdDSA, "EdDSA"),
    ];

    /// The algorithm of that registered name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(algorithm, _)| *algorithm)
    }

    /// Its registered name.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(algorithm, _)| *algorithm == self).map_or("", |(_, name)| name)
    }
}

/// A public key, ready for use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its id, if the set gives one.
    pub id: Option<Box<str>>,
    /// What it may verify; never empty.
    pub algorithms: Vec<Algorithm>,
    /// The key itself.
    pub material: Material,
}

/// The numbers of a public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Material {
    /// RSA.
    Rsa {
        /// The modulus, big-endian.
        n: Box<[u8]>,
        /// The exponent, big-endian.
        e: Box<[u8]>,
    },
    /// A point of P-256 or P-384, uncompressed (`04 || x || y`).
    Ec(Box<[u8]>),
    /// An Ed25519 key.
    Ed25519(Box<[u8]>),
}

/// Why a key set cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKeySet {
    /// Not a JSON object with a list `keys`.
    #[error("not a key set: {0}")]
    NotASet(String),
    /// A key that must stay secret.
    #[error(
        "keys[{0}] is a private or symmetric key: whoever reads this document could sign tokens; publish the public key only, and replace this one"
    )]
    Secret(usize),
    /// A key that says it verifies signatures, but cannot.
    #[error("keys[{index}]: {why}")]
    Key {
        /// Its place in the set.
        index: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// Nothing in it verifies signatures with an algorithm of [`Algorithm`].
    #[error("no key that verifies signatures with RS256..512, PS256..512, ES256, ES384 or EdDSA")]
    NoUsableKey,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<serde::de::IgnoredAny>,
    p: Option<serde::de::IgnoredAny>,
    k: Option<serde::de::IgnoredAny>,
}

/// Reads a key set. Keys for encryption and of unknown kinds are passed over, as RFC 7517 section 5 asks.
///
/// # Errors
/// When it is no key set, holds a secret, holds a malformed key, or holds no usable one.
pub fn read(text: &str) -> Result<Vec<Key>, BadKeySet> {
    let (keys, mut passed_over) = sort(text)?;
    match passed_over.is_empty() {
        true if keys.is_empty() => Err(BadKeySet::NoUsableKey),
        true => Ok(keys),
        false => Err(passed_over.remove(0)),
    }
}

/// Reads a key set that an issuer publishes: the keys that can be used, and why others cannot (RFC 7517 section 5).
///
/// # Errors
/// When it is no key set, holds a secret, gives one id to two keys, or holds no usable key.
pub fn read_published(text: &str) -> Result<(Vec<Key>, Vec<BadKeySet>), BadKeySet> {
    let (keys, passed_over) = sort(text)?;
    if keys.is_empty() { Err(BadKeySet::NoUsableKey) } else { Ok((keys, passed_over)) }
}

fn sort(text: &str) -> Result<(Vec<Key>, Vec<BadKeySet>), BadKeySet> {
    if depth(text) > MAX_DEPTH {
        return Err(BadKeySet::NotASet(format!("nested deeper than {MAX_DEPTH}")));
    }
    let set: Set = serde_json::from_str(text).map_err(|error| BadKeySet::NotASet(error.to_string()))?;
    if set.keys.len() > MAX_KEYS {
        return Err(BadKeySet::NotASet(format!("{} keys, at most {MAX_KEYS} are read", set.keys.len())));
    }
    let (mut keys, mut bad): (Vec<Key>, _) = (Vec::new(), Vec::new());
    for (index, jwk) in set.keys.iter().enumerate() {
        if jwk.kty == "oct" || jwk.d.is_some() || jwk.p.is_some() || jwk.k.is_some() {
            return Err(BadKeySet::Secret(index));
        }
        if !jwk.verifies() {
            continue;
        }
        match jwk.read() {
            Ok(None) => {}
            // Which of the two made a signature nobody could say.
            Ok(Some(key)) if key.id.is_some() && keys.iter().any(|other| other.is_named_like(&key)) => {
                return Err(BadKeySet::Key { index, why: "its id is that of another key" });
            }
            Ok(Some(key)) => keys.push(key),
            Err(why) => bad.push(BadKeySet::Key { index, why }),
        }
    }
    Ok((keys, bad))
}

/// How deep lists and maps are nested in a JSON text; braces within texts do not count.
fn depth(text: &str) -> usize {
    let (mut now, mut deepest, mut quoted, mut escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => {
                now += 1;
                deepest = deepest.max(now);
            }
            b']' | b'}' if !quoted => now = now.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

impl Key {
    /// Whether both have the same id, and could verify the same signature.
    fn is_named_like(&self, other: &Self) -> bool {
        self.id == other.id && self.algorithms.iter().any(|algorithm| other.algorithms.contains(algorithm))
    }
}

impl Jwk {
    fn verifies(&self) -> bool {
        self.purpose.as_deref().is_none_or(|purpose| purpose == "sig")
            && self.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"))
    }

    fn read(&self) -> Result<Option<Key>, &'static str> {
        use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
        let (material, possible): (Material, &[Algorithm]) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => {
                let n = number(self.n.as_deref()).ok_or("RSA keys have n and e in base64url")?;
                let e = number(self.e.as_deref()).ok_or("RSA keys have n and e in base64url")?;
                let bits = n.len() * 8 - n.first().map_or(0, |byte| byte.leading_zeros() as usize);
                if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
                    return Err("RSA keys have 2048 to 8192 bits");
                }
                if *e == [1] || e.last().is_none_or(|byte| byte % 2 == 0) {
                    return Err("RSA exponents are odd and greater than 1");
                }
                (Material::Rsa { n, e }, &[RS256, RS384, RS512, PS256, PS384, PS512])
            }
            ("EC", Some("P-256")) => (Material::Ec(self.point(32)?), &[ES256]),
            ("EC", Some("P-384")) => (Material::Ec(self.point(48)?), &[ES384]),
            ("OKP", Some("Ed25519")) => (Material::Ed25519(coordinate(self.x.as_deref(), 32)?), &[EdDSA]),
            _ => return Ok(None),
        };
        let algorithms = match &self.alg {
            None => possible.to_vec(),
            Some(named) => match Algorithm::named(named).filter(|algorithm| possible.contains(algorithm)) {
                Some(algorithm) => vec![algorithm],
                None => return Err("alg does not fit the key, or is not one that is verified here"),
            },
        };
        Ok(Some(Key { id: self.kid.as_deref().map(Into::into), algorithms, material }))
    }

    fn point(&self, size: usize) -> Result<Box<[u8]>, &'static str> {
        let mut point = vec![4];
        point.extend_from_slice(&coordinate(self.x.as_deref(), size)?);
        point.extend_from_slice(&coordinate(self.y.as_deref(), size)?);
        Ok(point.into())
    }
}

/// A big-endian number without leading zeros.
fn number(text: Option<&str>) -> Option<Box<[u8]>> {
    let bytes = URL_SAFE_NO_PAD.decode(text?).ok()?;
    let first = bytes.iter().position(|byte| *byte != 0)?;
    Some(bytes[first..].into())
}

fn coordinate(text: Option<&str>, size: usize) -> Result<Box<[u8]>, &'static str> {
    let bytes = text.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()).unwrap_or_default();
    if bytes.len() == size {
        Ok(bytes.into())
    } else {
        Err("a coordinate is missing, not base64url, or not of the curve's size")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: &str = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4";
    const Y: &str = "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM";

    #[test]
    fn each_key_is_pinned_to_what_it_may_verify() {
        let text = format!(
            r#"{{"keys":[{{"kty":"EC","crv":"P-256","kid":"a","x":"{X}","y":"{Y}"}},{{"kty":"OKP","crv":"Ed25519","x":"{X}"}},
            {{"kty":"EC","crv":"P-256","use":"enc","x":"{X}","y":"{Y}"}},{{"kty":"AKP","pub":"x"}}]}}"#
        );
        let keys = read(&text).unwrap();
        assert_eq!(keys.len(), 2);
        assert_eq!((keys[0].id.as_deref(), keys[0].algorithms.as_slice()), (Some("a"), &[Algorithm::ES256][..]));
        assert_eq!(keys[1].algorithms, [Algorithm::EdDSA]);
    }

    #[test]
    fn a_secret_key_is_refused_naming_the_danger() {
        for jwk in [
            format!(r#"{{"kty":"EC","crv":"P-256","x":"{X}","y":"{Y}","d":"AAAA"}}"#),
            r#"{"kty":"oct","k":"AAAA"}"#.to_owned(),
        ] {
            let refused = read(&format!(r#"{{"keys":[{jwk}]}}"#)).unwrap_err();
            assert_eq!(refused, BadKeySet::Secret(0));
            assert!(refused.to_string().contains("could sign tokens"));
        }
    }

    #[test]
    fn of_a_published_set_only_keys_that_cannot_be_used_are_passed_over() {
        let good = format!(r#"{{"kty":"EC","crv":"P-256","kid":"a","x":"{X}","y":"{Y}"}}"#);
        let weak = r#"{"kty":"RSA","kid":"old","n":"AQAB","e":"AQAB"}"#;
        let (keys, bad) = read_published(&format!(r#"{{"keys":[{weak},{good}]}}"#)).unwrap();
        assert_eq!((keys.len(), keys[0].id.as_deref()), (1, Some("a")));
        assert!(bad.len() == 1 && bad[0].to_string().starts_with("keys[0]: RSA keys have 2048"), "{bad:?}");
        assert!(read(&format!(r#"{{"keys":[{weak},{good}]}}"#)).is_err(), "written down it is a mistake");
        let secret = format!(r#"{{"kty":"EC","crv":"P-256","x":"{X}","y":"{Y}","d":"AAAA"}}"#);
        assert_eq!(read_published(&format!(r#"{{"keys":[{good},{secret}]}}"#)), Err(BadKeySet::Secret(1)));
        assert_eq!(read_published(&format!(r#"{{"keys":[{weak}]}}"#)), Err(BadKeySet::NoUsableKey));
    }

    #[test]
    fn one_id_for_two_keys_of_a_kind_is_refused() {
        let key = |kid: &str| format!(r#"{{"kty":"EC","crv":"P-256","kid":"{kid}","x":"{X}","y":"{Y}"}}"#);
        let other = format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"a","x":"{X}"}}"#);
        assert_eq!(read(&format!(r#"{{"keys":[{},{other},{}]}}"#, key("a"), key("b"))).unwrap().len(), 3);
        let refused = read_published(&format!(r#"{{"keys":[{},{}]}}"#, key("a"), key("a"))).unwrap_err();
        assert!(refused.to_string().contains("keys[1]: its id"), "{refused}");
    }

    #[test]
    fn nesting_is_bounded_wherever_it_is() {
        let deep = |levels: usize| {
            format!(r#"{{"x":"[[[\"[[[","y":{}1{},"keys":[]}}"#, "[".repeat(levels), "]".repeat(levels))
        };
        assert!(matches!(read(&deep(7)), Err(BadKeySet::NoUsableKey)), "{:?}", read(&deep(7)));
        for levels in [8, 100_000] {
            assert!(matches!(read(&deep(levels)), Err(BadKeySet::NotASet(why)) if why.contains("nested")));
        }
    }

    #[test]
    fn malformed_weak_and_useless_sets_are_refused() {
        for (text, part) in [
            ("[]", "not a key set"),
            (r#"{"keys":[]}"#, "no key"),
            (r#"{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}"#, "coordinate"),
            (r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#, "2048"),
        ] {
            assert!(read(text).unwrap_err().to_string().contains(part), "{text}");
        }
        let wrong = format!(r#"{{"keys":[{{"kty":"EC","crv":"P-256","alg":"HS256","x":"{X}","y":"{Y}"}}]}}"#);
        assert!(read(&wrong).unwrap_err().to_string().contains("alg"));
    }
}
