//! The two doors: gRPC for sidecars over mutual TLS, HTTPS for people. What each call does is beside this file.
//!
//! A stranger without a certificate gets through the first door for `Sign` alone; everything else asks [`workload_of`]. A
//! connection ends with the certificate that opened it.

pub mod admin;
mod calls;
mod lease;
pub mod sign;
mod slices;
mod subscribe;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use equerry_certs::tls::{self, ALPN_GRPC, ClientAuth, TlsFault, server_config};
use equerry_certs::{Leaf, PeerFault, Pin, rfc3339};
use equerry_policies::names::SpiffeId;
use http::Extensions;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::{AlertDescription, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::Status;
use tonic::service::Routes;
use tower::ServiceExt;

use crate::authority::{Authority, AuthorityError};
use crate::control::ControlPlane;

/// A TLS handshake that takes longer has failed.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A silent sidecar is asked this often whether it is still there, and given up after the second ...
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_PATIENCE: Duration = Duration::from_secs(10);
/// How long open connections may take to end when stopping.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long to wait before accepting again when the process has too many files open.
const BREATHER: Duration = Duration::from_millis(100);
/// Streams on one connection: a sidecar needs three.
const STREAMS: u32 = 64;

/// Who is on the other side of a connection; an extension of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its identity, from its certificate; `None` without one.
    pub id: Option<SpiffeId>,
    /// The serial number of that certificate.
    pub serial: Option<String>,
    /// Where it is.
    pub address: SocketAddr,
    /// When its certificate ends, and so this connection; `None` without one.
    pub not_after: Option<SystemTime>,
}

/// The identity of the workload that calls.
///
/// # Errors
/// `UNAUTHENTICATED`, saying what to do, when it has none.
pub(crate) fn workload_of(control: &ControlPlane, extensions: &Extensions) -> Result<SpiffeId, Status> {
    let id = extensions.get::<Peer>().and_then(|peer| peer.id.clone());
    let id = id.ok_or_else(|| {
        Status::unauthenticated("found no client certificate: only Sign may be called without one; join with a token first (`equerry token create join`)")
    })?;
    if let Some(revocation) = control.authority().trust().revoked.get(&id) {
        let at = rfc3339(revocation.at);
        let how = format!("`equerry certs restore {id}` takes that back");
        return Err(Status::permission_denied(format!("{id} was revoked at {at}; {how}")));
    }
    let ours = control.authority().trust_domain();
    if id.trust_domain == *ours {
        Ok(id)
    } else {
        Err(Status::unauthenticated(format!("found {id}, expected an identity of trust domain {ours}")))
    }
}

/// Waits until the flag is true; for ever when nobody is left to set it.
pub(crate) async fn until_true(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|set| *set).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What both doors show: the control plane's own certificate, renewed as it ages.
#[derive(Debug)]
pub struct Face {
    grpc: ArcSwap<ServerConfig>,
    admin: ArcSwap<ServerConfig>,
}

/// Why there is no certificate to show.
#[derive(Debug, thiserror::Error)]
pub enum FaceError {
    /// It could not be issued.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// It cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsFault),
}

impl Face {
    /// Makes the first certificate; `names` are those people use. Returns when the next is due.
    ///
    /// # Errors
    /// When it cannot be issued or used.
    pub fn new(authority: &Authority, names: &[String], now: SystemTime) -> Result<(Self, SystemTime), FaceError> {
        let (grpc, admin, renew_at) = configs(authority, names, now)?;
        Ok((Self { grpc: ArcSwap::from_pointee(grpc), admin: ArcSwap::from_pointee(admin) }, renew_at))
    }

    /// Shows a new certificate from now on. Returns when the next is due.
    ///
    /// # Errors
    /// When it cannot be issued or used; the old one is still shown.
    pub fn renew(&self, authority: &Authority, names: &[String], now: SystemTime) -> Result<SystemTime, FaceError> {
        let (grpc, admin, renew_at) = configs(authority, names, now)?;
        self.grpc.store(Arc::new(grpc));
        self.admin.store(Arc::new(admin));
        Ok(renew_at)
    }
}

fn configs(
    authority: &Authority,
    names: &[String],
    now: SystemTime,
) -> Result<(ServerConfig, ServerConfig, SystemTime), FaceError> {
    let identity = authority.server_identity(names, now)?;
    // Who was revoked gets through this door, to be told so by each call.
    let bundle = authority.bundle();
    let grpc = server_config(&identity, &bundle, ClientAuth::Optional, &[ALPN_GRPC])?;
    let admin = server_config(&identity, &bundle, ClientAuth::None, &[b"h2", b"http/1.1"])?;
    Ok((grpc, admin, identity.renew_at()))
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({flag}): {error}{}", if .error.kind() == io::ErrorKind::AddrInUse { "; another program has this port: stop it, or choose another address" } else { "" })]
pub struct ListenError {
    flag: &'static str,
    address: SocketAddr,
    error: io::Error,
}

/// Listens on `address`, which the operator chose with `flag`.
///
/// # Errors
/// When that is not possible, such as when the port is taken.
pub async fn listen(flag: &'static str, address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|error| ListenError { flag, address, error })
}

/// Serves sidecars until the control plane stops.
pub async fn serve_grpc(control: ControlPlane, face: Arc<Face>, listener: TcpListener) {
    let routes = Routes::new(sign::Signer::service(control.clone()))
        .add_service(subscribe::service(control.clone()))
        .add_service(lease::service(control.clone()))
        .add_service(slices::service(control.clone()))
        .add_service(calls::service(control.clone()))
        .prepare();
    let stopping = control.stopping();
    accept(listener, stopping.clone(), move |stream, address| {
        let (face, routes, stopping) = (Arc::clone(&face), routes.clone(), stopping.clone());
        let control = control.clone();
        async move {
            let Some(stream) = secure(stream, address, face.grpc.load_full()).await else { return };
            let leaf = match tls::peer(stream.get_ref().1.peer_certificates(), SystemTime::now()) {
                Ok(leaf) => Some(leaf),
                Err(PeerFault::NoCertificate) => None,
                Err(fault) => return tracing::warn!(%address, %fault, "a peer is refused"),
            };
            let expiry = leaf.as_ref().map(time_left);
            let not_after = leaf.as_ref().map(|leaf| leaf.not_after);
            let (id, serial) = leaf.map(|leaf| (leaf.id, leaf.serial)).unzip();
            let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let vouching = tls::vouching(shown, &control.authority().trust().roots, SystemTime::now());
            let revoked = until_believed_no_more(control, id.clone(), vouching);
            let spiffe_id = id.as_ref().map(ToString::to_string);
            let peer = Peer { id, serial, address, not_after };
            let served = async {
                tokio::select! {
                    () = attend_grpc(stream, peer, routes, stopping) => {}
                    () = revoked => tracing::warn!(%address, spiffe_id, "a connection is ended: its identity was revoked, or its certificate leads to no root that is believed"),
                }
            };
            match expiry {
                // A connection outlives neither the certificate that opened it nor, without one, what joining takes.
                Some(left) => drop(tokio::time::timeout(left, served).await),
                None => drop(tokio::time::timeout(HANDSHAKE * 6, served).await),
            }
        }
    })
    .await;
}

/// Waits until an identity that was believed when it connected is revoked, or none of the roots that vouched for it is believed any
/// more. One that was revoked before is told so by each call, and its connections end soon after.
async fn until_believed_no_more(control: ControlPlane, id: Option<SpiffeId>, vouching: Vec<Pin>) {
    let Some(id) = id else { return std::future::pending().await };
    let mut changes = control.authority().changes();
    if control.authority().trust().revokes(&id) {
        return tokio::time::sleep(HANDSHAKE).await;
    }
    while changes.changed().await.is_ok() {
        let trust = control.authority().trust();
        let vouched = trust.anchors.iter().any(|anchor| vouching.contains(&anchor.pin));
        if trust.revokes(&id) || !vouched {
            return;
        }
    }
    std::future::pending::<()>().await;
}

fn time_left(leaf: &Leaf) -> Duration {
    leaf.not_after.duration_since(SystemTime::now()).unwrap_or_default()
}

async fn attend_grpc(stream: TlsStream<TcpStream>, peer: Peer, routes: Routes, mut stopping: watch::Receiver<bool>) {
    let address = peer.address;
    let service = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer.clone());
        routes.clone().oneshot(request)
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_PATIENCE)
        .max_concurrent_streams(STREAMS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = until_true(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%address, %error, "a sidecar's connection ended");
    }
}

/// Serves people until the control plane stops.
pub async fn serve_admin(control: ControlPlane, face: Arc<Face>, listener: TcpListener) {
    let stopping = control.stopping();
    let router = admin::router(control);
    accept(listener, stopping.clone(), move |stream, address| {
        let (face, router, mut stopping) = (Arc::clone(&face), router.clone(), stopping.clone());
        async move {
            let Some(stream) = secure(stream, address, face.admin.load_full()).await else { return };
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE);
            builder.http2().timer(TokioTimer::new()).keep_alive_interval(PING_EVERY).keep_alive_timeout(PING_PATIENCE);
            let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = until_true(&mut stopping) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%address, %error, "an admin connection ended");
            }
        }
    })
    .await;
}

/// Accepts until the control plane stops, then gives open connections a moment to end.
async fn accept<F>(
    listener: TcpListener,
    mut stopping: watch::Receiver<bool>,
    attend: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    connections.spawn(attend(stream, address));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; when too many files are open, raise LimitNOFILE (ulimit -n)");
                    tokio::time::sleep(BREATHER).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = until_true(&mut stopping) => break,
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_WORDS, all_ended).await.is_err() {
        tracing::warn!("some connections did not end in time and are cut off");
    }
}

async fn secure(stream: TcpStream, address: SocketAddr, config: Arc<ServerConfig>) -> Option<TlsStream<TcpStream>> {
    // Small messages both ways: waiting to fill packets only adds delay.
    let _ = stream.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::info!(%address, error = why_not(&error), "a TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::info!(%address, "a TLS handshake took too long");
            None
        }
    }
}

/// Why a handshake failed, for people: a certificate that is not believed, on either side, is what an operator can mend.
fn why_not(error: &io::Error) -> String {
    if let Some(fault) = tls::fault_of_io(error) {
        return fault.to_string();
    }
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::AlertReceived(
            AlertDescription::UnknownCA | AlertDescription::CertificateUnknown | AlertDescription::BadCertificate,
        )) => format!(
            "it does not believe the certificate of this control plane ({error}): it holds the ca.pem, or the identity, of another one, \
             or asked for a name that --advertise does not list"
        ),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod harness;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trust_tests;
