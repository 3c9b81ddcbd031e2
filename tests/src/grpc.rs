//! Port 15012 as a gRPC client of our own sees it: a stranger without a certificate, and a workload that joined.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use equerry::demo::town::Town;
use equerry_certs::tls::{ALPN_GRPC, client_config, pinned_client_config};
use equerry_certs::{Identity, JoinToken, Pin, Request, TrustBundle};
use equerry_policies::names::control_plane_id;
use equerry_wire::proto::identity_client::IdentityClient;
use equerry_wire::proto::{SignRequest, SignResponse};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

/// A channel to the town's control plane that shows no certificate.
///
/// # Errors
/// When it cannot connect, or the control plane's root has another pin.
pub async fn without_certificate(town: &Town, pin: &Pin) -> Result<Channel> {
    connect(town, pinned_client_config(pin)?).await
}

/// A channel that shows the certificate of a workload which joined with this token.
///
/// # Errors
/// When the control plane does not sign, or cannot be reached.
pub async fn joined(town: &Town, token: &str) -> Result<Channel> {
    let parsed = JoinToken::parse(token)?;
    let request = Request::new()?;
    let signed = ask_to_sign(town, &parsed, request.csr_der, 0).await??;
    let der = |der: Vec<Vec<u8>>| der.into_iter().map(CertificateDer::from).collect::<Vec<_>>();
    let identity = Identity::new(request.key, der(signed.chain_der))?;
    let bundle = TrustBundle::new(identity.id().trust_domain.clone(), der(signed.roots_der))?;
    with_certificate(town, &identity, &bundle).await
}

/// A channel that shows this certificate.
///
/// # Errors
/// When the control plane cannot be reached.
pub async fn with_certificate(town: &Town, identity: &Identity, bundle: &TrustBundle) -> Result<Channel> {
    let control_plane = control_plane_id(bundle.trust_domain().clone());
    connect(town, client_config(Some(identity), bundle, vec![control_plane], &[ALPN_GRPC])?).await
}

async fn connect(town: &Town, config: rustls::ClientConfig) -> Result<Channel> {
    channel(town.grpc.address(), config).await
}

/// A channel to a control plane at `address`.
///
/// # Errors
/// When it cannot connect.
pub(crate) async fn channel(address: String, config: rustls::ClientConfig) -> Result<Channel> {
    let config = Arc::new(config);
    let connector = tower::service_fn(move |_: Uri| {
        let (config, address) = (Arc::clone(&config), address.clone());
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("localhost").map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(TlsConnector::from(config).connect(name, stream).await?))
        }
    });
    Endpoint::from_static("http://control-plane")
        .connect_with_connector(connector)
        .await
        .context("connecting to the control plane")
}

/// Asks for a certificate with a join token; the proxy's clock is `offset_seconds` off.
///
/// # Errors
/// The control plane's refusal.
pub async fn sign(
    town: &Town,
    token: &str,
    csr_der: Vec<u8>,
    offset_seconds: i64,
) -> Result<Result<String, tonic::Status>> {
    let signed = ask_to_sign(town, &JoinToken::parse(token)?, csr_der, offset_seconds).await?;
    Ok(signed.map(|response| response.spiffe_id))
}

async fn ask_to_sign(
    town: &Town,
    token: &JoinToken,
    csr_der: Vec<u8>,
    offset_seconds: i64,
) -> Result<Result<SignResponse, tonic::Status>> {
    let channel = without_certificate(town, token.pin()).await?;
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let request = SignRequest {
        csr_der,
        join_token: token.credential().to_string(),
        now_unix_ms: u64::try_from(now + offset_seconds * 1000)?,
    };
    Ok(IdentityClient::new(channel).sign(request).await.map(tonic::Response::into_inner))
}
