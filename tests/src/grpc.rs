//! Port 15012 as a stranger with a gRPC client sees it: no certificate, and the control plane checked by pin.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use equerry::demo::town::Town;
use equerry_certs::tls::pinned_client_config;
use equerry_certs::{JoinToken, Pin};
use equerry_wire::proto::SignRequest;
use equerry_wire::proto::identity_client::IdentityClient;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

/// A channel to the town's control plane that shows no certificate.
///
/// # Errors
/// When it cannot connect, or the control plane's root has another pin.
pub async fn without_certificate(town: &Town, pin: &Pin) -> Result<Channel> {
    let config = Arc::new(pinned_client_config(pin)?);
    let address = town.grpc.address();
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
    let token = JoinToken::parse(token)?;
    let channel = without_certificate(town, token.pin()).await?;
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let request = SignRequest {
        csr_der,
        join_token: token.credential().to_string(),
        now_unix_ms: u64::try_from(now + offset_seconds * 1000)?,
    };
    let signed = IdentityClient::new(channel).sign(request).await;
    Ok(signed.map(|response| response.into_inner().spiffe_id))
}
