//! Knocking at a sidecar's inbound port directly, as somebody who is not its peer would.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use equerry_certs::tls::client_config;
use equerry_certs::{Authority, CertificateDer, Identity, Request, TrustBundle};
use equerry_policies::names::{SpiffeId, TrustDomain};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::demo::town::{Home, MESH_PORT, Town};

/// How long one knock may take.
const LIMIT: Duration = Duration::from_secs(5);

/// What this town's mesh trusts.
///
/// # Errors
/// When the control plane's `ca.pem` cannot be read.
pub fn trust(town: &Town) -> Result<TrustBundle> {
    let pem = std::fs::read_to_string(town.control_plane_state().join("ca.pem"))
        .context("reading the control plane's ca.pem")?;
    TrustBundle::from_pem(TrustDomain::parse("equerry.local")?, &pem).context("reading the control plane's ca.pem")
}

/// An identity of the same form that another authority issued.
///
/// # Errors
/// When it cannot be made.
pub fn stranger(trust_domain: &str, account: &str) -> Result<Identity> {
    let now = SystemTime::now();
    let authority = Authority::create(TrustDomain::parse(trust_domain)?, now)?;
    let id = SpiffeId::parse(&format!("spiffe://{trust_domain}/ns/shop/sa/{account}"))?;
    let request = Request::new()?;
    let issued = authority.sign(&request.csr_der, &id, Duration::from_secs(3600), now)?;
    Ok(Identity::new(request.key, issued.chain)?)
}

/// Who a home's sidecar is.
///
/// # Errors
/// Never, for the names of this town.
pub fn expected(home: &Home) -> Result<SpiffeId> {
    Ok(SpiffeId::parse(&format!("spiffe://equerry.local/ns/shop/sa/{}", home.resident.account))?)
}

/// The certificate a sidecar shows, once its chain and name were checked against the town's trust.
///
/// # Errors
/// When it shows none, or one that is not its own.
pub async fn shown_certificate(home: &Home, trust: &TrustBundle) -> Result<CertificateDer<'static>> {
    let stream = tokio::time::timeout(LIMIT, connect(home, trust, None))
        .await
        .map_err(|_| anyhow!("no handshake within {LIMIT:?}"))??;
    let chain = stream.get_ref().1.peer_certificates().context("no certificate was shown")?;
    Ok(chain.first().context("no certificate was shown")?.clone().into_owned())
}

/// Makes one GET over TLS as `identity` and gives its status.
///
/// # Errors
/// When the connection is refused, which is what strangers should see.
pub async fn get_over_tls(home: &Home, trust: &TrustBundle, identity: Option<&Identity>) -> Result<u16> {
    let exchange = async {
        let stream = connect(home, trust, identity).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = http::Request::get("/").header("host", home.resident.account).body(Empty::<Bytes>::new())?;
        let sent = sender.send_request(request).await;
        drop(sender);
        match sent {
            Ok(response) => {
                let status = response.status().as_u16();
                let _ = response.into_body().collect().await;
                Ok(status)
            }
            // The connection knows the alert that the request died of.
            Err(error) => match driver.await {
                Ok(Err(cause)) => Err(anyhow!(cause)),
                _ => Err(anyhow!(error)),
            },
        }
    };
    tokio::time::timeout(LIMIT, exchange)
        .await
        .map_err(|_| anyhow!("neither an answer nor a refusal within {LIMIT:?}"))?
}

async fn connect(home: &Home, trust: &TrustBundle, identity: Option<&Identity>) -> Result<TlsStream<TcpStream>> {
    let config = client_config(identity, trust, vec![expected(home)?], &[b"eq-h1"])?;
    let name = ServerName::try_from(format!("p{MESH_PORT}.{}.shop.mesh", home.resident.account))?;
    let stream = TcpStream::connect(home.inbound.address()).await?;
    Ok(TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
}
