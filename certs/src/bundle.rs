//! Whom a trust domain believes: its root certificates, less those identities that were revoked, and the pin by which a
//! newcomer knows the right root.
//!
//! A pin is the SHA-256 of a root's SubjectPublicKeyInfo, so that a root can be renewed under the same key without
//! breaking join tokens that were handed out.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use equerry_policies::names::{SpiffeId, TrustDomain};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::pem::{self, BadPem};

/// The SHA-256 of a root's public key (SubjectPublicKeyInfo), in 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pin(String);

impl Pin {
    /// The pin of a root certificate.
    ///
    /// # Errors
    /// When it is not a certificate.
    pub fn of(root: &CertificateDer<'_>) -> Result<Self, BundleFault> {
        let (_, certificate) = X509Certificate::from_der(root).map_err(|_| BundleFault::NotACertificate)?;
        Ok(Self(hex(digest::digest(&digest::SHA256, certificate.public_key().raw).as_ref())))
    }

    /// Reads a pin; `None` when it is not of that form.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = text.len() == 64 && text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
        fits.then(|| Self(text.to_owned()))
    }

    /// The pin as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The roots of one trust domain; at least one, each a certificate that may sign others. And who is not believed whatever
/// these have signed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "KeptBundle", into = "KeptBundle")]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
    generation: u64,
    revoked: Arc<BTreeSet<SpiffeId>>,
}

impl TrustBundle {
    /// Puts together a trust domain and its roots.
    ///
    /// # Errors
    /// When there is no root, or one is not a certificate that may sign others.
    pub fn new(trust_domain: TrustDomain, roots: Vec<CertificateDer<'static>>) -> Result<Self, BundleFault> {
        if roots.is_empty() {
            return Err(BundleFault::Empty);
        }
        for root in &roots {
            let (rest, certificate) = X509Certificate::from_der(root).map_err(|_| BundleFault::NotACertificate)?;
            if !rest.is_empty() {
                return Err(BundleFault::NotACertificate);
            }
            if !certificate.is_ca() {
                return Err(BundleFault::NotARoot { subject: certificate.subject().to_string() });
            }
        }
        Ok(Self { trust_domain, roots, generation: 0, revoked: Arc::default() })
    }

    /// The same roots, as the control plane's `generation` of trust, in which these identities are revoked.
    #[must_use]
    pub fn of_generation(self, generation: u64, revoked: BTreeSet<SpiffeId>) -> Self {
        Self { generation, revoked: Arc::new(revoked), ..self }
    }

    /// Which state of the control plane's trust this is; it grows with every change. 0: nobody said.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Identities that are not believed any more, whoever signed their certificates.
    pub fn revoked(&self) -> &Arc<BTreeSet<SpiffeId>> {
        &self.revoked
    }

    /// Whether this identity is believed no more.
    pub fn revokes(&self, id: &SpiffeId) -> bool {
        !self.revoked.is_empty() && self.revoked.contains(id)
    }

    /// The pins of all roots, in their order.
    pub fn pins(&self) -> Vec<Pin> {
        self.roots.iter().filter_map(|root| Pin::of(root).ok()).collect()
    }

    /// Reads the roots from PEM.
    ///
    /// # Errors
    /// As [`TrustBundle::new`], or when the text is not PEM.
    pub fn from_pem(trust_domain: TrustDomain, text: &str) -> Result<Self, BundleFault> {
        Self::new(trust_domain, pem::read_certificates(text)?)
    }

    /// The roots as PEM: what `ca.pem` holds.
    pub fn to_pem(&self) -> String {
        pem::certificates(&self.roots)
    }

    /// Whose roots these are.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root certificates.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The pin of the first root: the one that signs today.
    ///
    /// # Errors
    /// Never for a bundle that was made here: every root was read before.
    pub fn pin(&self) -> Result<Pin, BundleFault> {
        self.roots.first().ok_or(BundleFault::Empty).and_then(Pin::of)
    }

    /// Whether one of the roots has this pin.
    pub fn holds(&self, pin: &Pin) -> bool {
        self.roots.iter().any(|root| Pin::of(root).is_ok_and(|found| found == *pin))
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pins: Vec<_> =
            self.roots.iter().map(|root| Pin::of(root).map_or_else(|_| "?".to_owned(), |pin| pin.0)).collect();
        f.debug_struct("TrustBundle")
            .field("trust_domain", &self.trust_domain)
            .field("pins", &pins)
            .field("generation", &self.generation)
            .field("revoked", &self.revoked.len())
            .finish()
    }
}

/// A bundle as it is kept in files and messages: DER in base64.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeptBundle {
    trust_domain: TrustDomain,
    roots: Vec<String>,
    #[serde(default)]
    generation: u64,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    revoked: BTreeSet<SpiffeId>,
}

impl From<TrustBundle> for KeptBundle {
    fn from(bundle: TrustBundle) -> Self {
        let roots = bundle.roots.iter().map(|root| STANDARD.encode(root)).collect();
        let revoked = Arc::unwrap_or_clone(bundle.revoked);
        Self { trust_domain: bundle.trust_domain, roots, generation: bundle.generation, revoked }
    }
}

impl TryFrom<KeptBundle> for TrustBundle {
    type Error = BundleFault;
    fn try_from(kept: KeptBundle) -> Result<Self, BundleFault> {
        let roots = certificates_in(&kept.roots).ok_or(BundleFault::NotACertificate)?;
        Ok(Self::new(kept.trust_domain, roots)?.of_generation(kept.generation, kept.revoked))
    }
}

/// Certificates from base64 DER.
pub(crate) fn certificates_in(texts: &[String]) -> Option<Vec<CertificateDer<'static>>> {
    texts.iter().map(|text| STANDARD.decode(text).ok().map(CertificateDer::from)).collect()
}

/// Why these are not the roots of a trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleFault {
    /// No root at all.
    #[error("a trust bundle needs at least one root certificate")]
    Empty,
    /// Not DER of a certificate.
    #[error("found bytes that are not one certificate")]
    NotACertificate,
    /// A certificate that may not sign others.
    #[error("the certificate of {subject:?} may not sign others, so it cannot be a root")]
    NotARoot {
        /// Its subject.
        subject: String,
    },
    /// Not PEM.
    #[error(transparent)]
    Pem(#[from] BadPem),
}
