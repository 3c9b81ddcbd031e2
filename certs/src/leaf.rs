//! The strict reading of a peer's certificate, after its chain has been verified.
//!
//! Exactly one URI name, in exactly the form this mesh issues; no fallback to a common name; a certificate that may sign
//! others is no peer; both uses (server and client) must be allowed. Every way to fail has its own [`PeerFault`].

use std::time::SystemTime;

use equerry_policies::names::{SpiffeId, TrustDomain};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::bundle::hex;
use crate::skew::{from_unix, rfc3339};

/// What a workload's certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Who it is.
    pub id: SpiffeId,
    /// From when it holds.
    pub not_before: SystemTime,
    /// Until when it holds.
    pub not_after: SystemTime,
    /// Its serial number, in lower-case hexadecimal.
    pub serial: String,
}

impl Leaf {
    /// Reads a certificate whose chain is verified by the caller, before or after.
    ///
    /// # Errors
    /// A [`PeerFault`] that names what is wrong with it.
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, PeerFault> {
        let (rest, certificate) = X509Certificate::from_der(certificate).map_err(|_| PeerFault::NotACertificate)?;
        if !rest.is_empty() {
            return Err(PeerFault::NotACertificate);
        }
        let id = the_one_id(&certificate)?;
        refuse_signers(&certificate)?;
        require_both_uses(&certificate)?;
        let validity = certificate.validity();
        let time = |seconds| from_unix(seconds).ok_or(PeerFault::NotACertificate);
        Ok(Self {
            id,
            not_before: time(validity.not_before.timestamp())?,
            not_after: time(validity.not_after.timestamp())?,
            serial: hex(certificate.raw_serial()),
        })
    }

    /// Whether the certificate holds at a time. A resumed TLS session is not verified again, so whoever keeps sessions
    /// asks this after every handshake.
    ///
    /// # Errors
    /// [`PeerFault::Clock`], naming both times.
    pub fn holds_at(&self, now: SystemTime) -> Result<(), PeerFault> {
        if now < self.not_before || now > self.not_after {
            return Err(PeerFault::Clock { now, not_before: Some(self.not_before), not_after: Some(self.not_after) });
        }
        Ok(())
    }

    /// Whether it belongs to a trust domain.
    ///
    /// # Errors
    /// [`PeerFault::OtherTrustDomain`], naming both.
    pub fn belongs_to(&self, expected: &TrustDomain) -> Result<(), PeerFault> {
        if self.id.trust_domain == *expected {
            Ok(())
        } else {
            Err(PeerFault::OtherTrustDomain { found: self.id.clone(), expected: expected.clone() })
        }
    }
}

/// Until when a certificate holds, whosever it is; `None`: it is none.
pub fn holds_until(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    from_unix(certificate.validity().not_after.timestamp())
}

fn the_one_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, PeerFault> {
    let mut uris = Vec::new();
    let mut seen = 0;
    for extension in certificate.extensions().iter().filter(|e| e.oid == OID_X509_EXT_SUBJECT_ALT_NAME) {
        seen += 1;
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
            return Err(PeerFault::NotACertificate);
        };
        for name in &names.general_names {
            match name {
                GeneralName::URI(uri) => uris.push(*uri),
                GeneralName::Invalid(..) => return Err(PeerFault::NotACertificate),
                _ => {}
            }
        }
    }
    match (seen, uris.as_slice()) {
        (0 | 1, []) => Err(PeerFault::NoUri),
        (1, [uri]) => SpiffeId::parse(uri).map_err(|_| PeerFault::BadUri { found: uri.chars().take(80).collect() }),
        _ => Err(PeerFault::SeveralUris { found: uris.len() }),
    }
}

fn refuse_signers(certificate: &X509Certificate<'_>) -> Result<(), PeerFault> {
    let constraints = certificate.basic_constraints().map_err(|_| PeerFault::NotACertificate)?;
    let usage = certificate.key_usage().map_err(|_| PeerFault::NotACertificate)?;
    let signs = usage.is_some_and(|usage| usage.value.key_cert_sign() || usage.value.crl_sign());
    if signs || constraints.is_some_and(|constraints| constraints.value.ca) { Err(PeerFault::Signer) } else { Ok(()) }
}

fn require_both_uses(certificate: &X509Certificate<'_>) -> Result<(), PeerFault> {
    let uses = certificate.extended_key_usage().map_err(|_| PeerFault::NotACertificate)?;
    if uses.is_some_and(|uses| uses.value.server_auth && uses.value.client_auth) {
        Ok(())
    } else {
        Err(PeerFault::WrongUse)
    }
}

/// Why a peer is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerFault {
    /// It showed no certificate.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// Not DER of one certificate, or names in it cannot be read.
    #[error("the peer's certificate cannot be read")]
    NotACertificate,
    /// Not signed by anybody this trust domain believes.
    #[error("the peer's certificate is not signed by the roots of {trust_domain} ({error})")]
    UnknownSigner {
        /// Whose roots were asked.
        trust_domain: TrustDomain,
        /// What the verifier said.
        error: String,
    },
    /// Not valid now: expired, or one of the two clocks is wrong.
    #[error("the clock says {}, but the peer's certificate holds{}{}: it has expired, or one of the two clocks is wrong (they must agree within 5 minutes)",
        rfc3339(*.now),
        .not_before.map(|t| format!(" from {}", rfc3339(t))).unwrap_or_default(),
        .not_after.map(|t| format!(" until {}", rfc3339(t))).unwrap_or_default())]
    Clock {
        /// This machine's time.
        now: SystemTime,
        /// From when the certificate holds, if known.
        not_before: Option<SystemTime>,
        /// Until when the certificate holds, if known.
        not_after: Option<SystemTime>,
    },
    /// No URI among its names, so no identity.
    #[error(
        "the peer's certificate names no identity: expected exactly one URI, spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT"
    )]
    NoUri,
    /// More than one URI among its names.
    #[error("the peer's certificate names {found} URIs, expected exactly one")]
    SeveralUris {
        /// How many.
        found: usize,
    },
    /// A URI of another form.
    #[error("the peer's certificate names {found:?}, expected spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT")]
    BadUri {
        /// The URI, cut to a length that is safe to print.
        found: String,
    },
    /// A certificate that may sign others.
    #[error("the peer showed a certificate that may sign others; workloads never carry one")]
    Signer,
    /// Not allowed to be used by both servers and clients.
    #[error("the peer's certificate is not meant for both TLS servers and TLS clients (extended key usage)")]
    WrongUse,
    /// Somebody of another trust domain.
    #[error("the peer is {found}, expected somebody of trust domain {expected}")]
    OtherTrustDomain {
        /// Who it is.
        found: SpiffeId,
        /// Whom this mesh believes.
        expected: TrustDomain,
    },
    /// Somebody else than expected.
    #[error("the peer is {found}, expected {}", .expected.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "))]
    OtherIdentity {
        /// Who it is.
        found: SpiffeId,
        /// Who was expected.
        expected: Vec<SpiffeId>,
    },
    /// Somebody whose identity was revoked.
    #[error("the identity {found} was revoked; `equerry certs revocations` says when and by whom")]
    Revoked {
        /// Who it is.
        found: SpiffeId,
    },
    /// The root of a join token is not among what the control plane showed.
    #[error(
        "no root with the join token's pin {expected} among the {shown} certificates the control plane showed: \
         the token is of another control plane, or somebody stands between; nothing was sent"
    )]
    OtherPin {
        /// The pin of the token.
        expected: String,
        /// How many certificates were shown.
        shown: usize,
    },
    /// The proof that the peer holds its key does not verify.
    #[error("the peer did not prove that it holds its certificate's key ({error})")]
    BadProof {
        /// What the verifier said.
        error: String,
    },
}
