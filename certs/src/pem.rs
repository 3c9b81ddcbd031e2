//! PEM, for the few things that people and files hold: certificates and private keys.
//!
//! Reading is rustls-pki-types'; writing is RFC 7468's 64 characters a line.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

/// A text that is not the PEM it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("found no usable PEM, expected {expected} ({error})")]
pub struct BadPem {
    /// What is expected there.
    pub expected: &'static str,
    /// What the reader said.
    pub error: String,
}

/// Writes certificates, in order.
pub fn certificates(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|certificate| block("CERTIFICATE", certificate)).collect()
}

/// Writes a PKCS#8 private key.
pub fn private_key(pkcs8: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(block("PRIVATE KEY", pkcs8))
}

/// Reads every certificate of a text; at least one.
///
/// # Errors
/// When there is none, or one is broken.
pub fn read_certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, BadPem> {
    let bad = |error: String| BadPem { expected: "-----BEGIN CERTIFICATE-----", error };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let all = all.map_err(|error| bad(error.to_string()))?;
    if all.is_empty() { Err(bad("there is none in the text".to_owned())) } else { Ok(all) }
}

/// Reads a PKCS#8 private key.
///
/// # Errors
/// When there is none, or it is broken.
pub fn read_private_key(text: &str) -> Result<Zeroizing<Vec<u8>>, BadPem> {
    PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
        .map(|key| Zeroizing::new(key.secret_pkcs8_der().to_vec()))
        .map_err(|error| BadPem { expected: "-----BEGIN PRIVATE KEY----- (PKCS#8)", error: error.to_string() })
}

fn block(label: &str, der: &[u8]) -> String {
    let body = Zeroizing::new(STANDARD.encode(der));
    let mut text = String::with_capacity(body.len() + body.len() / 32 + 64);
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
