//! The demo's own token issuer: an ES256 key made at each start, its public key set, and tokens of every bad sort.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

/// How long a token of the demo is good.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Signs tokens.
#[derive(Debug)]
pub struct Issuer {
    key: EcdsaKeyPair,
    key_id: String,
}

impl Issuer {
    /// Makes a key and keeps it in a new file that only its owner may read.
    ///
    /// # Errors
    /// When the key cannot be made or the file not be written.
    pub fn create(file: &Path) -> Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map_err(|_| anyhow!("making the issuer's key"))?;
        std::fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)
            .and_then(|mut out| out.write_all(pkcs8.as_ref()))
            .with_context(|| format!("writing {}", file.display()))?;
        Self::from_pkcs8(pkcs8.as_ref())
    }

    /// Reads a key that [`Issuer::create`] kept.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(file: &Path) -> Result<Self> {
        let pkcs8 = std::fs::read(file).with_context(|| format!("reading the issuer's key {}", file.display()))?;
        Self::from_pkcs8(&pkcs8)
    }

    fn from_pkcs8(pkcs8: &[u8]) -> Result<Self> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8)
            .map_err(|_| anyhow!("the issuer's key is damaged"))?;
        Ok(Self { key, key_id: "demo".to_owned() })
    }

    /// A key that no key set lists, under an id that none lists either.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn stranger() -> Result<Self> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(|_| anyhow!("making a key"))?;
        Ok(Self { key, key_id: "stranger".to_owned() })
    }

    /// Another key under the same id: its signatures do not verify.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn impostor() -> Result<Self> {
        Ok(Self { key_id: "demo".to_owned(), ..Self::stranger()? })
    }

    /// The public key set (RFC 7517) as JSON on one line.
    pub fn key_set(&self) -> String {
        // An uncompressed point: one byte 4, then both coordinates.
        let point = &self.key.public_key().as_ref()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        let part = |bytes| URL_SAFE_NO_PAD.encode(bytes);
        json!({"keys": [{"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.key_id, "x": part(x), "y": part(y)}]})
            .to_string()
    }

    /// A signed token.
    pub fn mint(&self, token: &Token) -> String {
        let head = json!({"alg": "ES256", "typ": "JWT", "kid": self.key_id});
        let text = signing_input(&head, token);
        // Fails only for want of randomness; such a token is refused as every other bad one.
        let signature = self.key.sign(&SystemRandom::new(), text.as_bytes());
        format!("{text}.{}", signature.map(|bytes| URL_SAFE_NO_PAD.encode(bytes)).unwrap_or_default())
    }
}

/// A token with `alg: none` and no signature.
pub fn unsigned(token: &Token) -> String {
    format!("{}.", signing_input(&json!({"alg": "none", "typ": "JWT"}), token))
}

fn signing_input(head: &Value, token: &Token) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(head), part(&Value::Object(token.claims.clone())))
}

/// What a token says.
#[derive(Debug, Clone)]
pub struct Token {
    claims: Map<String, Value>,
}

impl Token {
    /// A token that says exactly this.
    pub fn of(claims: Map<String, Value>) -> Self {
        Self { claims }
    }

    /// A good token for an hour of `issuer` and `audience`, speaking for `subject`.
    pub fn new(issuer: &str, audience: Option<&str>, subject: &str) -> Self {
        let now = now();
        let mut claims = Map::new();
        claims.insert("iss".into(), issuer.into());
        claims.insert("sub".into(), subject.into());
        claims.insert("iat".into(), now.into());
        claims.insert("exp".into(), (now + LIFETIME.as_secs()).into());
        if let Some(audience) = audience {
            claims.insert("aud".into(), audience.into());
        }
        Self { claims }
    }

    /// Sets the claim at a path, making the objects on the way.
    pub fn claim(mut self, path: &[String], value: &str) -> Self {
        set(&mut self.claims, path, value);
        self
    }

    /// Sets the claim that names a tenant: its path and value.
    pub fn tenant(self, (path, value): (&[String], &str)) -> Self {
        self.claim(path, value)
    }

    /// Makes it expired ten minutes ago, well beyond any allowed clock skew.
    pub fn expired(mut self) -> Self {
        let now = now();
        self.claims.insert("iat".into(), (now - 1200).into());
        self.claims.insert("exp".into(), (now - 600).into());
        self
    }

    /// Makes it for somebody else.
    pub fn audience(mut self, audience: &str) -> Self {
        self.claims.insert("aud".into(), audience.into());
        self
    }

    /// The claim at a path, when it is text.
    pub fn text(&self, path: &[String]) -> Option<&str> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.claims.get(first)?, |value, name| value.get(name))?.as_str()
    }
}

fn set(claims: &mut Map<String, Value>, path: &[String], value: &str) {
    match path {
        [] => {}
        [last] => {
            claims.insert(last.clone(), value.into());
        }
        [first, rest @ ..] => {
            let inner = claims.entry(first.clone()).or_insert_with(|| json!({}));
            if let Some(inner) = inner.as_object_mut() {
                set(inner, rest, value);
            }
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
