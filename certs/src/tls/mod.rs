//! The rustls configurations of the mesh: TLS 1.3 only, aws-lc-rs, X25519MLKEM768 offered first, both ends named.
//!
//! Each configuration has a session store of its own, so that a resumed session never outlives a change of trust or of
//! expectations: make a new configuration and the old tickets are worth nothing. A resumed handshake is not verified
//! again by rustls; [`peer`] therefore judges the certificate's time anew, and is to be called after every handshake.

mod configs;
mod tickets;
mod verify;

use std::error::Error as StdError;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use equerry_policies::names::SpiffeId;
use rustls::crypto::CryptoProvider;
use rustls_pki_types::CertificateDer;

pub use self::configs::{
    ClientAuth, TlsFault, client_config, https_client_config, pinned_client_config, server_config,
};
pub use self::tickets::TicketWatch;
pub use self::verify::{learned, prove, vouching};
use crate::leaf::{Leaf, PeerFault};

/// HTTP/1.1 between sidecars.
pub const ALPN_H1: &[u8] = b"eq-h1";
/// HTTP/2 between sidecars.
pub const ALPN_H2: &[u8] = b"eq-h2";
/// Opaque TCP between sidecars.
pub const ALPN_TCP: &[u8] = b"eq-tcp";
/// HTTP/2 to the control plane.
pub const ALPN_GRPC: &[u8] = b"h2";

/// The one cryptography provider of every configuration: aws-lc-rs, never a process-wide default.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())).clone()
}

/// Reads the peer's certificate after a handshake, full or resumed, and judges its time against `now`.
///
/// # Errors
/// When there is none, it is not a workload's, or it does not hold now.
pub fn peer(chain: Option<&[CertificateDer<'_>]>, now: SystemTime) -> Result<Leaf, PeerFault> {
    let leaf = Leaf::read(chain.and_then(<[_]>::first).ok_or(PeerFault::NoCertificate)?)?;
    leaf.holds_at(now)?;
    Ok(leaf)
}

/// Who the peer is, without judging time: for a session that has just been verified in full.
///
/// # Errors
/// When there is no certificate, or it is not a workload's.
pub fn peer_id(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, PeerFault> {
    Leaf::read(chain.first().ok_or(PeerFault::NoCertificate)?).map(|leaf| leaf.id)
}

/// The fault behind a failed handshake, if it was this side that did not believe the peer.
pub fn fault_of(error: &rustls::Error) -> Option<&PeerFault> {
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => other.0.downcast_ref(),
        _ => None,
    }
}

/// As [`fault_of`], for the I/O error that a handshake over a stream ends with.
pub fn fault_of_io(error: &io::Error) -> Option<&PeerFault> {
    let mut cause: Option<&(dyn StdError + 'static)> = error.get_ref().map(|inner| inner as _);
    while let Some(inner) = cause {
        if let Some(error) = inner.downcast_ref::<rustls::Error>() {
            return fault_of(error);
        }
        cause = inner.source();
    }
    None
}

/// Whether a handshake failed because the peer proved to be somebody else than expected.
pub fn is_identity_mismatch(error: &rustls::Error) -> bool {
    matches!(fault_of(error), Some(PeerFault::OtherIdentity { .. } | PeerFault::OtherTrustDomain { .. }))
}
