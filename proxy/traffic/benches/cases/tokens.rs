//! Tokens of every algorithm, and workloads that want them.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaEncoding};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use equerry_policies::compile::CompiledWorkload;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde_json::{Value, json};

/// All that are believed.
pub(crate) const ALGORITHMS: [&str; 9] =
    ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];

/// Where a process is given an RSA key: making one takes too long under callgrind.
pub(crate) const RSA_KEY: &str = "EQUERRY_DECISIONS_RSA_KEY";

type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The RSA key, as it can be given to another process.
pub(crate) fn rsa_key() -> String {
    let der: Pkcs8V1Der<'_> = rsa().as_der().unwrap();
    b64(AsRef::<[u8]>::as_ref(&*der))
}

fn rsa() -> &'static RsaKeyPair {
    static KEY: OnceLock<RsaKeyPair> = OnceLock::new();
    KEY.get_or_init(|| match std::env::var(RSA_KEY) {
        Ok(given) => RsaKeyPair::from_pkcs8(&URL_SAFE_NO_PAD.decode(given).unwrap()).unwrap(),
        Err(_) => RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
    })
}

fn rsa_signer(padding: &'static dyn RsaEncoding) -> (Value, Sign) {
    let public = rsa().public_key();
    let n = b64(public.modulus().big_endian_without_leading_zero());
    let jwk = json!({"kty": "RSA", "n": n, "e": b64(public.exponent().big_endian_without_leading_zero())});
    let sign = move |message: &[u8]| {
        let mut signature = vec![0; rsa().public_modulus_len()];
        rsa().sign(padding, &SystemRandom::new(), message, &mut signature).unwrap();
        signature
    };
    (jwk, Box::new(sign))
}

fn ecdsa_signer(algorithm: &'static EcdsaSigningAlgorithm, curve: &str) -> (Value, Sign) {
    let key = EcdsaKeyPair::generate(algorithm).unwrap();
    let point = &key.public_key().as_ref()[1..];
    let (x, y) = point.split_at(point.len() / 2);
    let jwk = json!({"kty": "EC", "crv": curve, "x": b64(x), "y": b64(y)});
    (jwk, Box::new(move |message| key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()))
}

/// A public key as a key set holds it, and how its private key signs.
fn signer(algorithm: &str) -> (Value, Sign) {
    match algorithm {
        "RS256" => rsa_signer(&signature::RSA_PKCS1_SHA256),
        "RS384" => rsa_signer(&signature::RSA_PKCS1_SHA384),
        "RS512" => rsa_signer(&signature::RSA_PKCS1_SHA512),
        "PS256" => rsa_signer(&signature::RSA_PSS_SHA256),
        "PS384" => rsa_signer(&signature::RSA_PSS_SHA384),
        "PS512" => rsa_signer(&signature::RSA_PSS_SHA512),
        "ES256" => ecdsa_signer(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
        "ES384" => ecdsa_signer(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
        _ => {
            let key = Ed25519KeyPair::generate().unwrap();
            let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": b64(key.public_key())});
            (jwk, Box::new(move |message| key.sign(message).as_ref().to_vec()))
        }
    }
}

/// A workload with so many rules that wants a token, and the headers that carry one.
pub(crate) fn wanted(algorithm: &str, rules: usize) -> (Arc<CompiledWorkload>, HeaderMap, SystemTime) {
    let now = SystemTime::now();
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let (mut jwk, sign) = signer(algorithm);
    jwk["alg"] = algorithm.into();
    let head = b64(json!({"alg": algorithm}).to_string());
    let claims =
        json!({"iss": "https://issuer", "sub": "alice", "aud": "orders", "exp": seconds + 3600, "tenant": "acme"});
    let signed = format!("{head}.{}", b64(claims.to_string()));
    let bearer = format!("Bearer {signed}.{}", b64(sign(signed.as_bytes())));
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::from_str(&bearer).unwrap());
    (super::workload(rules, Some(json!({"keys": [jwk]}).to_string())), headers, now)
}
