//! The one connection to the control plane: HTTP/2 over mutual TLS to the control plane's own identity.
//!
//! It is made when first used and again after it broke; a renewed identity opens a new one while the old finishes.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use equerry_certs::tls::{ALPN_GRPC, client_config};
use equerry_policies::names::control_plane_id;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::IdentityHandle;

/// A connection that takes longer, TLS included, has failed.
const CONNECT: Duration = Duration::from_secs(5);
/// A peer that answers no ping for this long is gone.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_PATIENCE: Duration = Duration::from_secs(5);

/// The way to the control plane. Clones share it.
#[derive(Clone)]
pub struct Link {
    channel: Arc<ArcSwap<Channel>>,
    make: Arc<dyn Fn() -> Channel + Send + Sync>,
    renewals: watch::Sender<u64>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Link {
    /// A link to `address` (`HOST:PORT`), under whatever identity is current when it connects.
    pub fn new(address: String, identity: IdentityHandle) -> Self {
        Self::with(move || {
            let (address, identity) = (address.clone(), identity.clone());
            channel(move || {
                let (address, identity) = (address.clone(), identity.clone());
                async move { secure(&address, &identity).await }
            })
        })
    }

    fn with(make: impl Fn() -> Channel + Send + Sync + 'static) -> Self {
        let (renewals, _) = watch::channel(0);
        Self { channel: Arc::new(ArcSwap::from_pointee(make())), make: Arc::new(make), renewals }
    }

    /// The channel for new calls.
    pub(crate) fn channel(&self) -> Channel {
        Channel::clone(&self.channel.load())
    }

    /// The identity was renewed: new calls go over a new connection, and streams are told to move there.
    pub(crate) fn renew(&self) {
        self.channel.store(Arc::new((self.make)()));
        self.renewals.send_modify(|n| *n += 1);
    }

    /// Sees each renewal from now on.
    pub(crate) fn renewals(&self) -> watch::Receiver<u64> {
        self.renewals.subscribe()
    }

    /// A link without TLS, for servers inside tests.
    #[cfg(test)]
    pub(crate) fn plain(address: std::net::SocketAddr) -> Self {
        Self::with(move || channel(move || async move { TcpStream::connect(address).await }))
    }
}

/// A channel that connects with `connect` when it is first used, and again when the connection broke.
pub(crate) fn channel<C, F, S>(connect: C) -> Channel
where
    C: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = std::io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // The name in the URI is only what `:authority` says; whom we speak to is decided by its certificate.
    let endpoint = Endpoint::from_static("http://control-plane.equerry-system")
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_PATIENCE)
        .keep_alive_while_idle(true);
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let connecting = connect();
        async move { connecting.await.map(TokioIo::new) }
    }))
}

async fn secure(
    address: &str,
    identity: &IdentityHandle,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let Some(current) = identity.latest() else {
        return Err(std::io::Error::other("there is no identity yet"));
    };
    let expected = control_plane_id(current.id.trust_domain.clone());
    let config = client_config(Some(&current.identity), &current.bundle, vec![expected], &[ALPN_GRPC])
        .map_err(std::io::Error::other)?;
    tls(address, Arc::new(config)).await
}

/// Connects to `address` and speaks TLS, within [`CONNECT`]. The name sent is the host's, for routers on the way; it decides nothing.
pub(crate) async fn tls(
    address: &str,
    config: Arc<rustls::ClientConfig>,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(config).connect(name, stream).await
    };
    tokio::time::timeout(CONNECT, connecting).await?
}
