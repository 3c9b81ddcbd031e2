//! A workload's own identity: its key, its chain, and until when it holds.
//!
//! The two are checked to belong together when they are put together, so that a mix-up is found before the first
//! handshake. It can be kept (serde); the key is in there, so whoever keeps it encrypts it.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use equerry_policies::names::SpiffeId;
use rcgen::PublicKeyData as _;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::{Zeroize as _, Zeroizing};

use crate::bundle::certificates_in;
use crate::leaf::{Leaf, PeerFault};
use crate::request::{KeyFault, any_key_in};

/// A key and the chain that says whose it is.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "KeptIdentity", into = "KeptIdentity")]
pub struct Identity {
    leaf: Leaf,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<Zeroizing<Vec<u8>>>,
}

impl Identity {
    /// Puts together a PKCS#8 key and its chain, leaf first.
    ///
    /// # Errors
    /// When the leaf is not a workload's certificate, or not of this key.
    pub fn new(key: Zeroizing<Vec<u8>>, chain: Vec<CertificateDer<'static>>) -> Result<Self, IdentityFault> {
        let first = chain.first().ok_or(IdentityFault::NoChain)?;
        let leaf = Leaf::read(first)?;
        if !key_signs(&key, first)? {
            return Err(IdentityFault::OtherKey { id: leaf.id });
        }
        Ok(Self { leaf, chain, key: Arc::new(key) })
    }

    /// Who this is.
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// The serial number of its certificate, in lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.leaf.serial
    }

    /// From when it holds.
    pub fn not_before(&self) -> SystemTime {
        self.leaf.not_before
    }

    /// Until when it holds.
    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after
    }

    /// When to ask for the next one: two thirds of the life that was left when it was issued. Jitter is the caller's.
    pub fn renew_at(&self) -> SystemTime {
        let issued = self.leaf.not_before + crate::BACKDATE;
        let life = self.leaf.not_after.duration_since(issued).unwrap_or_default();
        issued + life * 2 / 3
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The private key, PKCS#8 DER.
    pub fn key(&self) -> &[u8] {
        &self.key
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("leaf", &self.leaf).field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}

/// Whether a certificate is of this private key.
pub(crate) fn key_signs(pkcs8: &[u8], certificate: &CertificateDer<'_>) -> Result<bool, KeyFault> {
    let pair = any_key_in(pkcs8)?;
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Ok(false) };
    Ok(certificate.public_key().subject_public_key.data.as_ref() == pair.der_bytes())
}

/// An identity as it is kept: DER in base64. The key's text is overwritten when dropped.
#[derive(Serialize, Deserialize)]
struct KeptIdentity {
    key: String,
    chain: Vec<String>,
}

impl Drop for KeptIdentity {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl From<Identity> for KeptIdentity {
    fn from(identity: Identity) -> Self {
        let chain = identity.chain.iter().map(|certificate| STANDARD.encode(certificate)).collect();
        Self { key: STANDARD.encode(identity.key()), chain }
    }
}

impl TryFrom<KeptIdentity> for Identity {
    type Error = IdentityFault;
    fn try_from(kept: KeptIdentity) -> Result<Self, IdentityFault> {
        let key = STANDARD.decode(&kept.key).map_err(|_| IdentityFault::NotKept)?;
        Self::new(Zeroizing::new(key), certificates_in(&kept.chain).ok_or(IdentityFault::NotKept)?)
    }
}

/// Why a key and a chain are no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityFault {
    /// No certificate at all.
    #[error("an identity needs at least one certificate")]
    NoChain,
    /// The leaf is not a workload's.
    #[error(transparent)]
    Leaf(#[from] PeerFault),
    /// The key is not usable.
    #[error(transparent)]
    Key(#[from] KeyFault),
    /// The leaf is of another key.
    #[error("the certificate of {id} belongs to another key")]
    OtherKey {
        /// Whose certificate it is.
        id: SpiffeId,
    },
    /// What was kept cannot be read.
    #[error("the kept identity is not base64 of a key and its certificates")]
    NotKept,
}
