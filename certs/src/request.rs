//! A workload's side of getting a certificate: a key that never leaves it, and a request that proves it has it.
//!
//! The request names nobody: who the workload is follows from its join token or its present certificate.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::PrivatePkcs8KeyDer;
use zeroize::Zeroizing;

/// Why a key could not be made or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// The system gives no random bytes.
    #[error("the system gives no random bytes, so no key or token can be made")]
    NoRandomness,
    /// Not a key that can sign certificates.
    #[error("found a key that cannot sign certificates, expected ECDSA, RSA or Ed25519 in PKCS#8 ({error})")]
    Unknown {
        /// What the reader said.
        error: String,
    },
    /// A key could not be made, or could not sign.
    #[error("the key cannot be used: {error}")]
    Unusable {
        /// What the library said.
        error: String,
    },
}

/// A new private key and the request to certify it.
#[derive(Clone)]
pub struct Request {
    /// The private key, PKCS#8 DER; overwritten when dropped.
    pub key: Zeroizing<Vec<u8>>,
    /// The PKCS#10 request, without any name.
    pub csr_der: Vec<u8>,
}

impl Request {
    /// Makes a new ECDSA P-256 key and its request.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new() -> Result<Self, KeyFault> {
        let (pair, key) = new_key()?;
        let mut nameless = CertificateParams::default();
        nameless.distinguished_name = DistinguishedName::new();
        let csr = nameless.serialize_request(&pair).map_err(unusable)?;
        Ok(Self { key, csr_der: csr.der().to_vec() })
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("csr_der", &self.csr_der.len()).finish_non_exhaustive()
    }
}

/// A new ECDSA P-256 key, as the library holds it and as PKCS#8.
pub(crate) fn new_key() -> Result<(KeyPair, Zeroizing<Vec<u8>>), KeyFault> {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(unusable)?;
    let pkcs8 = Zeroizing::new(pair.serialize_der());
    Ok((pair, pkcs8))
}

/// Reads a key of any kind that can sign certificates: ECDSA, RSA or Ed25519.
pub(crate) fn any_key_in(pkcs8: &[u8]) -> Result<KeyPair, KeyFault> {
    KeyPair::try_from(&PrivatePkcs8KeyDer::from(pkcs8)).map_err(|error| KeyFault::Unknown { error: error.to_string() })
}

#[expect(clippy::needless_pass_by_value, reason = "shaped for map_err")]
fn unusable(error: rcgen::Error) -> KeyFault {
    KeyFault::Unusable { error: error.to_string() }
}
