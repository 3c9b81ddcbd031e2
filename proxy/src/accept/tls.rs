//! Mutual TLS at the inbound door: who speaks, which application port they mean, and in which protocol.
//!
//! A caller without a certificate of this trust domain is refused in the handshake and never gets to say anything.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use equerry_certs::PeerFault;
use equerry_certs::tls;
use equerry_policies::names::SpiffeId;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::detect::Speaks;

/// How long a handshake may take: longer than any caller waits for a connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// Handshakes under way at once on one worker: they cost the most of all that a stranger can ask for, and of many that are
/// begun together each ends later than its caller waits.
const AT_ONCE: usize = 128;
/// How long a handshake may wait for its turn: callers wait no longer for a connection.
const TURN_PATIENCE: Duration = Duration::from_secs(1);
/// A handshake that takes longer waits for its caller, not for us, and keeps nobody from a turn.
const TURN: Duration = Duration::from_millis(500);

/// The alert of a server that will not go on, before anything is protected (RFC 8446, sections 5.1 and 6).
const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// The turns of the handshakes of one worker.
#[derive(Debug)]
pub(crate) struct Handshakes(Semaphore);

impl Default for Handshakes {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

impl Handshakes {
    /// So many at once.
    #[cfg(test)]
    pub(crate) fn at_once(most: usize) -> Self {
        Self(Semaphore::new(most))
    }

    /// Makes a handshake when its turn has come. `takes_tls`: whether the port that is asked for does.
    ///
    /// # Errors
    /// As [`secure`], and when its turn does not come.
    pub(crate) async fn secure<S>(
        &self,
        stream: S,
        server: &Arc<rustls::ServerConfig>,
        takes_tls: impl Fn(u16) -> bool,
    ) -> Result<Secured<S>, Unsecured>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let overload =
            || Unsecured { word: "overload", detail: format!("no turn for a handshake within {TURN_PATIENCE:?}") };
        let turn = tokio::time::timeout(TURN_PATIENCE, self.0.acquire()).await.map_err(|_| overload())?;
        let mut handshake = pin!(secure(stream, server, takes_tls));
        if let Ok(secured) = tokio::time::timeout(TURN, handshake.as_mut()).await {
            return secured;
        }
        drop(turn);
        handshake.await
    }
}

/// A connection whose peer is known.
#[derive(Debug)]
pub(crate) struct Secured<S> {
    /// The bytes within TLS.
    pub(crate) stream: TlsStream<S>,
    /// Who speaks.
    pub(crate) peer: SpiffeId,
    /// When the peer's certificate ends.
    pub(crate) not_after: SystemTime,
    /// What is spoken.
    pub(crate) speaks: Speaks,
    /// The server name asked for.
    pub(crate) server_name: Arc<str>,
    /// The application port that it names; `None` when it names none.
    pub(crate) port: Option<u16>,
}

/// Why a caller is not let in: a word for metrics, a sentence for logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unsecured {
    /// One of a fixed set of words.
    pub(crate) word: &'static str,
    /// What happened.
    pub(crate) detail: String,
}

/// Makes the handshake, and reads from it who speaks and what they want.
///
/// # Errors
/// When it fails or takes too long, the peer is nobody of this mesh, or the port they mean takes plain text only.
async fn secure<S>(
    stream: S,
    server: &Arc<rustls::ServerConfig>,
    takes_tls: impl Fn(u16) -> bool,
) -> Result<Secured<S>, Unsecured>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = async {
        let mut begun =
            LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(|error| handshake_failed(&error))?;
        if let Some(port) = begun.client_hello().server_name().and_then(port_named_by).filter(|port| !takes_tls(*port))
        {
            // Nobody knows yet who asks, and nothing was agreed upon.
            let _ = begun.io.write_all(&ACCESS_DENIED).await;
            let _ = begun.io.shutdown().await;
            let detail = format!("port {port} takes plain text only (PeerAuthentication DISABLE)");
            return Err(Unsecured { word: "plain_text_only", detail });
        }
        begun.into_stream(Arc::clone(server)).await.map_err(|error| handshake_failed(&error))
    };
    let stream = tokio::time::timeout(PATIENCE, handshake)
        .await
        .map_err(|_| Unsecured { word: "timeout", detail: format!("no handshake within {PATIENCE:?}") })??;
    let (_, session) = stream.get_ref();
    // A resumed session is not verified again by rustls, so its certificate's time is judged here for every connection.
    let leaf = tls::peer(session.peer_certificates(), SystemTime::now()).map_err(|fault| not_believed(&fault))?;
    let speaks = match session.alpn_protocol() {
        Some(tls::ALPN_H1) => Speaks::Http1,
        Some(tls::ALPN_H2) => Speaks::Http2,
        Some(tls::ALPN_TCP) => Speaks::Tcp,
        other => {
            let offered = String::from_utf8_lossy(other.unwrap_or_default()).into_owned();
            return Err(Unsecured {
                word: "protocol",
                detail: format!("ALPN {offered:?} is not supported by this version"),
            });
        }
    };
    let server_name: Arc<str> = session.server_name().unwrap_or_default().into();
    let port = port_named_by(&server_name);
    Ok(Secured { stream, peer: leaf.id, not_after: leaf.not_after, speaks, server_name, port })
}

/// The port in `p<targetPort>.<service>.<namespace>.mesh`.
fn port_named_by(server_name: &str) -> Option<u16> {
    let rest = server_name.strip_suffix(".mesh")?;
    let (port, service) = rest.split_once('.')?;
    let port = port.strip_prefix('p')?.parse().ok()?;
    (service.contains('.') && port != 0).then_some(port)
}

fn handshake_failed(error: &io::Error) -> Unsecured {
    if let Some(fault) = tls::fault_of_io(error) {
        return not_believed(fault);
    }
    let tls_error = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let word = match tls_error {
        Some(rustls::Error::NoCertificatesPresented) => "no_certificate",
        Some(rustls::Error::InvalidCertificate(_)) => "certificate",
        Some(rustls::Error::NoApplicationProtocol) => "protocol",
        Some(rustls::Error::AlertReceived(_)) => "refused_by_peer",
        Some(_) => "handshake",
        None => "connection",
    };
    Unsecured { word, detail: error.to_string() }
}

fn not_believed(fault: &PeerFault) -> Unsecured {
    let word = match fault {
        PeerFault::NoCertificate => "no_certificate",
        PeerFault::OtherTrustDomain { .. } => "trust_domain",
        PeerFault::UnknownSigner { .. } => "signer",
        PeerFault::Clock { .. } => "clock",
        PeerFault::Revoked { .. } => "revoked",
        _ => "certificate",
    };
    Unsecured { word, detail: fault.to_string() }
}

#[cfg(test)]
mod tests {
    use super::port_named_by;

    #[test]
    fn a_server_name_of_the_mesh_names_the_port() {
        assert_eq!(port_named_by("p8080.orders.shop.mesh"), Some(8080));
        for bad in [
            "",
            "orders.shop.mesh",
            "p.orders.shop.mesh",
            "p0.orders.shop.mesh",
            "p8080.mesh",
            "p70000.orders.shop.mesh",
            "p8080.orders.shop",
        ] {
            assert_eq!(port_named_by(bad), None, "{bad}");
        }
    }
}
