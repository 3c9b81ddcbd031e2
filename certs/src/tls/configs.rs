//! The configurations themselves, each a few lines: who shows what, and who is believed.
//!
//! Mesh and gRPC connections check SPIFFE identities; the admin API is ordinary HTTPS, checked by host name.

use std::sync::Arc;

use equerry_policies::names::SpiffeId;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::NoClientAuth;
use rustls::server::danger::ClientCertVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::provider;
use super::verify::{Believed, MeshClients, Servers, store};
use crate::bundle::{Pin, TrustBundle};
use crate::identity::Identity;

/// Whether clients must show a certificate. One that is shown is always verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// No certificate, no connection: between sidecars.
    Required,
    /// A newcomer with a join token has none yet: at the control plane. The root is sent with the chain, so that the
    /// newcomer can find its pin there.
    Optional,
    /// Nobody is asked: the admin API, where people show tokens. Ordinary HTTPS, if the certificate carries host names.
    None,
}

/// Why a configuration could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsFault {
    /// The roots cannot be used.
    #[error("the trust bundle cannot be used: {error}")]
    Roots {
        /// What rustls said.
        error: String,
    },
    /// The identity cannot be used.
    #[error("the identity cannot be used: {error}")]
    Identity {
        /// What rustls said.
        error: String,
    },
    /// Nobody is expected, so nobody could answer.
    #[error("no identity is expected there: the Service lists no account")]
    NobodyExpected,
}

impl TlsFault {
    #[expect(clippy::needless_pass_by_value, reason = "shaped for map_err")]
    fn identity(error: rustls::Error) -> Self {
        Self::Identity { error: error.to_string() }
    }
}

/// A server: shows `identity`, believes clients of `bundle`'s trust domain. Sends one session ticket.
///
/// # Errors
/// When identity or roots cannot be used.
pub fn server_config(
    identity: &Identity,
    bundle: &TrustBundle,
    auth: ClientAuth,
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsFault> {
    let clients: Arc<dyn ClientCertVerifier> = match auth {
        ClientAuth::Required | ClientAuth::Optional => Arc::new(MeshClients::new(bundle, auth)?),
        ClientAuth::None => Arc::new(NoClientAuth),
    };
    let mut chain = identity.chain().to_vec();
    if auth == ClientAuth::Optional {
        chain.extend(bundle.roots().iter().filter(|root| !identity.chain().contains(root)).cloned());
    }
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsFault::identity)?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, private_key(identity))
        .map_err(TlsFault::identity)?;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.ticketer = Ticketer::new().map_err(TlsFault::identity)?;
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// A client of the mesh: shows `identity` if it has one, believes only `expected` of `bundle`'s trust domain.
///
/// For connections whose first request has a body, see [`TicketWatch`](super::TicketWatch).
///
/// # Errors
/// When identity or roots cannot be used, or nobody is expected.
pub fn client_config(
    identity: Option<&Identity>,
    bundle: &TrustBundle,
    expected: Vec<SpiffeId>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, TlsFault> {
    if expected.is_empty() {
        return Err(TlsFault::NobodyExpected);
    }
    let known = Believed::Known { bundle: bundle.clone(), roots: store(bundle)?, expected };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsFault::identity)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Servers::new(known)));
    let mut config = match identity {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain().to_vec(), private_key(identity))
            .map_err(TlsFault::identity)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

/// A newcomer's client: shows nothing, believes only a control plane whose chain holds the root with this pin. Nothing is
/// sent over a connection whose chain does not.
///
/// # Errors
/// When the provider cannot speak TLS 1.3.
pub fn pinned_client_config(pin: &Pin) -> Result<ClientConfig, TlsFault> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsFault::identity)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Servers::new(Believed::Pinned(pin.clone()))))
        .with_no_client_auth();
    config.alpn_protocols = vec![super::ALPN_GRPC.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// A client of the admin API: ordinary HTTPS, the server's host name checked against the roots of a `--ca` file.
///
/// # Errors
/// When the roots cannot be used.
pub fn https_client_config(roots: &[CertificateDer<'static>], alpn: &[&[u8]]) -> Result<ClientConfig, TlsFault> {
    let mut believed = RootCertStore::empty();
    for root in roots {
        believed.add(root.clone()).map_err(|error| TlsFault::Roots { error: error.to_string() })?;
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsFault::identity)?
        .with_root_certificates(believed)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

fn private_key(identity: &Identity) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key().to_vec()))
}
