//! Signatures over plain bytes (Ed25519) and their hashes (SHA-256), for what must be seen to be unchanged later.

use std::fmt;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use zeroize::Zeroizing;

use crate::bundle::hex;
use crate::pem;
use crate::request::KeyFault;

/// A key that signs.
pub struct SigningKey(Ed25519KeyPair);

/// The key that proves a signature; its text is hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyingKey([u8; 32]);

impl SigningKey {
    /// Makes a new key: it, and its PEM (PKCS#8) to be kept.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn create() -> Result<(Self, Zeroizing<String>), KeyFault> {
        let key = Ed25519KeyPair::generate().map_err(|_| KeyFault::NoRandomness)?;
        let pkcs8 = key.to_pkcs8().map_err(|_| KeyFault::NoRandomness)?;
        Ok((Self(key), pem::private_key(pkcs8.as_ref())))
    }

    /// Reads the PEM that was kept.
    ///
    /// # Errors
    /// When it is no PEM, or not of an Ed25519 key.
    pub fn read(text: &str) -> Result<Self, pem::BadPem> {
        let pkcs8 = pem::read_private_key(text)?;
        let bad =
            |error: &dyn fmt::Display| pem::BadPem { expected: "an Ed25519 key (PKCS#8)", error: error.to_string() };
        Ed25519KeyPair::from_pkcs8(&pkcs8).map(Self).map_err(|error| bad(&error))
    }

    /// Signs; 64 bytes as hexadecimal.
    pub fn sign(&self, message: &[u8]) -> String {
        hex(self.0.sign(message).as_ref())
    }

    /// The key that proves its signatures.
    pub fn verifying_key(&self) -> VerifyingKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.public_key().as_ref());
        VerifyingKey(bytes)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.verifying_key())
    }
}

impl VerifyingKey {
    /// Reads its hexadecimal text.
    pub fn parse(text: &str) -> Option<Self> {
        unhex(text)?.try_into().ok().map(Self)
    }

    /// Whether `signature` (hexadecimal) is this key's over `message`.
    pub fn proves(&self, message: &[u8], signature: &str) -> bool {
        unhex(signature).is_some_and(|bytes| UnparsedPublicKey::new(&ED25519, self.0).verify(message, &bytes).is_ok())
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// SHA-256 as hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_proved_by_its_key_over_its_message_and_by_nothing_else() {
        let (key, kept) = SigningKey::create().unwrap();
        let signature = SigningKey::read(&kept).unwrap().sign(b"entry 7");
        let verifying = VerifyingKey::parse(&key.verifying_key().to_string()).unwrap();
        assert!(verifying.proves(b"entry 7", &signature));
        assert!(!verifying.proves(b"entry 8", &signature));
        let (other, _) = SigningKey::create().unwrap();
        assert!(!other.verifying_key().proves(b"entry 7", &signature));
        for broken in ["", "zz", "abc", "ÄÄ", &signature[2..]] {
            assert!(!verifying.proves(b"entry 7", broken), "{broken}");
        }
    }

    #[test]
    fn a_hash_is_that_of_the_standard() {
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_file_that_is_no_key_is_refused() {
        assert!(SigningKey::read("").is_err());
        assert!(SigningKey::read(&pem::private_key(b"nothing")).is_err());
    }
}
