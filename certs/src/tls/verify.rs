//! The verifiers behind every mesh connection: first the chain (webpki), then the strict reading of the leaf.
//!
//! rustls asks them once for each full handshake. What they refuse reaches the caller as a [`PeerFault`] inside the
//! handshake's error, and the peer as a TLS alert.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use equerry_policies::names::{SpiffeId, TrustDomain, control_plane_id};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::configs::{ClientAuth, TlsFault};
use super::provider;
use crate::bundle::{Pin, TrustBundle};
use crate::leaf::{Leaf, PeerFault};

/// Whom a client believes.
#[derive(Debug)]
pub(super) enum Believed {
    /// A chain to our roots, and one of the identities expected there; never empty.
    Known { bundle: TrustBundle, roots: RootCertStore, expected: Vec<SpiffeId> },
    /// The control plane of whatever mesh the root with this pin has made: all that a newcomer knows.
    Pinned(Pin),
}

/// Checks servers.
#[derive(Debug)]
pub(super) struct Servers {
    believed: Believed,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Servers {
    pub(super) fn new(believed: Believed) -> Self {
        Self { believed, algorithms: provider().signature_verification_algorithms }
    }

    fn judge(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>], now: UnixTime) -> Result<(), PeerFault> {
        match &self.believed {
            Believed::Known { bundle, roots, expected } => {
                chain(leaf, others, roots, bundle.trust_domain(), now, &self.algorithms)?;
                let leaf = Leaf::read(leaf)?;
                of_bundle(&leaf, bundle)?;
                one_of(leaf.id, expected)
            }
            Believed::Pinned(pin) => {
                let root = pinned_root(others, pin)?;
                let id = Leaf::read(leaf)?.id;
                let mut roots = RootCertStore::empty();
                roots.add(root.clone().into_owned()).map_err(|_| PeerFault::NotACertificate)?;
                chain(leaf, others, &roots, &id.trust_domain, now, &self.algorithms)?;
                let expected = control_plane_id(id.trust_domain.clone());
                one_of(id, &[expected])
            }
        }
    }
}

/// Somebody of the trust domain who was not revoked.
fn of_bundle(leaf: &Leaf, bundle: &TrustBundle) -> Result<(), PeerFault> {
    leaf.belongs_to(bundle.trust_domain())?;
    if bundle.revokes(&leaf.id) { Err(PeerFault::Revoked { found: leaf.id.clone() }) } else { Ok(()) }
}

fn one_of(found: SpiffeId, expected: &[SpiffeId]) -> Result<(), PeerFault> {
    if expected.contains(&found) {
        Ok(())
    } else {
        Err(PeerFault::OtherIdentity { found, expected: expected.to_vec() })
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(leaf, others, now).map(|()| ServerCertVerified::assertion()).map_err(told)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(never_asked())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        proof: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, proof, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// What a newcomer learns from the chain of a control plane that its pin has vouched for: the trust domain and its root.
///
/// # Errors
/// As the pinned handshake itself: call it with the chain of a connection made by
/// [`pinned_client_config`](super::pinned_client_config).
pub fn learned(shown: &[CertificateDer<'_>], pin: &Pin) -> Result<TrustBundle, PeerFault> {
    let (leaf, others) = shown.split_first().ok_or(PeerFault::NoCertificate)?;
    let root = pinned_root(others, pin)?;
    let id = Leaf::read(leaf)?.id;
    TrustBundle::new(id.trust_domain.clone(), vec![root.clone().into_owned()]).map_err(|_| PeerFault::NotACertificate)
}

fn pinned_root<'a, 'b>(others: &'a [CertificateDer<'b>], pin: &Pin) -> Result<&'a CertificateDer<'b>, PeerFault> {
    let other_pin = || PeerFault::OtherPin { expected: pin.to_string(), shown: others.len() + 1 };
    others.iter().find(|shown| Pin::of(shown).is_ok_and(|found| found == *pin)).ok_or_else(other_pin)
}

/// Checks clients: a chain to our roots, and an identity of our trust domain.
#[derive(Debug)]
pub(super) struct MeshClients {
    bundle: TrustBundle,
    mandatory: bool,
    inner: Arc<dyn ClientCertVerifier>,
}

impl MeshClients {
    pub(super) fn new(bundle: &TrustBundle, auth: ClientAuth) -> Result<Self, TlsFault> {
        let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(store(bundle)?), provider())
            .build()
            .map_err(|error| TlsFault::Roots { error: error.to_string() })?;
        Ok(Self { bundle: bundle.clone(), mandatory: auth == ClientAuth::Required, inner })
    }

    fn judge(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>], now: UnixTime) -> Result<(), PeerFault> {
        let verified = self.inner.verify_client_cert(leaf, others, now);
        verified.map_err(|error| chain_fault(error, self.bundle.trust_domain()))?;
        of_bundle(&Leaf::read(leaf)?, &self.bundle)
    }
}

impl ClientCertVerifier for MeshClients {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// No hints: the subjects would tell strangers the mesh's roots, and every workload has one certificate anyway.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(leaf, others, now).map(|()| ClientCertVerified::assertion()).map_err(told)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(never_asked())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        proof: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, leaf, proof)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Which roots of a bundle a chain leads to, leaf first, as a peer showed it in a handshake that was verified.
pub fn vouching(shown: &[CertificateDer<'_>], bundle: &TrustBundle, now: SystemTime) -> Vec<Pin> {
    let Some((leaf, others)) = shown.split_first() else { return Vec::new() };
    let algorithms = provider().signature_verification_algorithms;
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    let leads_to = |root: &&CertificateDer<'static>| {
        let mut alone = RootCertStore::empty();
        alone.add((*root).clone()).is_ok()
            && chain(leaf, others, &alone, bundle.trust_domain(), now, &algorithms).is_ok()
    };
    bundle.roots().iter().filter(leads_to).filter_map(|root| Pin::of(root).ok()).collect()
}

/// Judges a chain as both ends of a mesh connection would: as a server's and as a client's.
///
/// # Errors
/// What is wrong with it.
pub fn prove(shown: &[CertificateDer<'_>], bundle: &TrustBundle, now: SystemTime) -> Result<Leaf, PeerFault> {
    let (first, others) = shown.split_first().ok_or(PeerFault::NoCertificate)?;
    let unusable = |fault: TlsFault| PeerFault::UnknownSigner {
        trust_domain: bundle.trust_domain().clone(),
        error: fault.to_string(),
    };
    let at = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    MeshClients::new(bundle, ClientAuth::Required).map_err(unusable)?.judge(first, others, at)?;
    let roots = store(bundle).map_err(unusable)?;
    let algorithms = provider().signature_verification_algorithms;
    chain(first, others, &roots, bundle.trust_domain(), at, &algorithms)?;
    Leaf::read(first)
}

/// The roots of a bundle as rustls keeps them.
pub(super) fn store(bundle: &TrustBundle) -> Result<RootCertStore, TlsFault> {
    let mut roots = RootCertStore::empty();
    for root in bundle.roots() {
        roots.add(root.clone()).map_err(|error| TlsFault::Roots { error: error.to_string() })?;
    }
    Ok(roots)
}

fn chain(
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    roots: &RootCertStore,
    trust_domain: &TrustDomain,
    now: UnixTime,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<(), PeerFault> {
    ParsedCertificate::try_from(leaf)
        .and_then(|parsed| verify_server_cert_signed_by_trust_anchor(&parsed, roots, others, now, algorithms.all))
        .map_err(|error| chain_fault(error, trust_domain))
}

fn chain_fault(error: Error, trust_domain: &TrustDomain) -> PeerFault {
    let Error::InvalidCertificate(kind) = error else {
        return PeerFault::UnknownSigner { trust_domain: trust_domain.clone(), error: error.to_string() };
    };
    match kind {
        CertificateError::NotValidYetContext { time, not_before } => {
            PeerFault::Clock { now: at(time), not_before: Some(at(not_before)), not_after: None }
        }
        CertificateError::ExpiredContext { time, not_after } => {
            PeerFault::Clock { now: at(time), not_before: None, not_after: Some(at(not_after)) }
        }
        CertificateError::BadEncoding => PeerFault::NotACertificate,
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => PeerFault::WrongUse,
        other => PeerFault::UnknownSigner { trust_domain: trust_domain.clone(), error: format!("{other:?}") },
    }
}

fn at(time: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

fn told(fault: PeerFault) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(fault))))
}

/// TLS 1.2 is not offered by any configuration, so rustls never asks for its signatures.
fn never_asked() -> Error {
    Error::General("TLS 1.2 is not spoken in this mesh".to_owned())
}
