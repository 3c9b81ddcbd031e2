//! Who is speaking: the mesh's certificate authority, requests for certificates, and the strict reading of a peer's.
//!
//! Nothing here reads a clock or a file: `now` is an argument, and keys arrive as bytes. With the feature `tls` it also
//! makes the rustls configurations that both ends of every mesh connection use.

pub mod authority;
pub mod bundle;
pub mod identity;
pub mod join;
pub mod leaf;
pub mod pem;
pub mod request;
pub mod signing;
pub mod skew;
#[cfg(feature = "tls")]
pub mod tls;

pub use authority::brought::{BroughtFault, Part, Texts};
pub use authority::{Authority, AuthorityFault, AuthorityPem, HostName, Issued, SignFault};
pub use bundle::{BundleFault, Pin, TrustBundle};
pub use identity::{Identity, IdentityFault};
pub use join::{AdminToken, BadToken, JoinToken, SecretHash};
pub use leaf::{Leaf, PeerFault, holds_until};
pub use request::{KeyFault, Request};
pub use signing::{SigningKey, VerifyingKey};
pub use skew::{MAX_SKEW, Skew, rfc3339};

/// DER of one certificate.
pub use rustls_pki_types::CertificateDer;
/// Bytes that are overwritten when they are dropped.
pub use zeroize::Zeroizing;

/// How far back the start of every certificate is set, so that a clock a little behind the authority's accepts it.
pub const BACKDATE: std::time::Duration = std::time::Duration::from_secs(5 * 60);
