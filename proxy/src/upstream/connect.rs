//! A new connection: TCP, then mutual TLS to one of the identities accepted there, then HTTP.
//!
//! A TLS 1.3 server refuses a client's certificate after the client may already have written. A connection is
//! therefore [`Connected::confirmed`] only once the server's session ticket or any plain data has arrived, and an alert
//! before that counts as a failure to connect.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use equerry_certs::PeerFault;
use equerry_certs::tls::{self, TicketWatch};
use equerry_policies::names::{ServiceName, SpiffeId};
use equerry_policies::policy::{AppProtocol, TrafficPolicy};
use equerry_traffic::balance::InFlight;
use equerry_traffic::deadline;
use equerry_traffic::refusal::{Limited, OverLimit};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::codec::http1::call;
use crate::codec::http2::call::Caller;
use crate::codec::{self, Ahead, Link};
use crate::live::trust::{Distrust, Distrusted, Vouched};
use crate::live::{Held, LimitState, TlsIdentity};

/// What is spoken on a connection to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    /// HTTP/1.1, one exchange at a time.
    Http1,
    /// HTTP/2, with prior knowledge or by ALPN.
    Http2,
    /// Bytes that nobody looks at: a tunnel, never an exchange.
    Tcp,
}

impl Protocol {
    /// What an application speaks.
    pub(crate) fn of(app_protocol: AppProtocol) -> Self {
        match app_protocol {
            AppProtocol::Http => Self::Http1,
            AppProtocol::Http2 | AppProtocol::Grpc => Self::Http2,
            AppProtocol::Tcp => Self::Tcp,
        }
    }

    /// Which HTTP that is; `None`: it is none.
    pub(crate) fn version(self) -> Option<http::Version> {
        match self {
            Self::Http1 => Some(http::Version::HTTP_11),
            Self::Http2 => Some(http::Version::HTTP_2),
            Self::Tcp => None,
        }
    }

    pub(super) fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => tls::ALPN_H1,
            Self::Http2 => tls::ALPN_H2,
            Self::Tcp => tls::ALPN_TCP,
        }
    }
}

/// Where to connect, what to speak there, and how long things may take.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    /// The address.
    pub(crate) address: SocketAddr,
    /// What is spoken there.
    pub(crate) protocol: Protocol,
    /// Who must answer; `None`: whoever does, in plain text.
    pub(crate) whom: Option<Whom<'a>>,
    /// Time for TCP, TLS and the start of HTTP together.
    pub(crate) connect_timeout: Duration,
    /// An idle connection is closed after this.
    pub(crate) idle_timeout: Duration,
    /// Whose open connections are counted, and how many there may be.
    pub(crate) places: Option<Places<'a>>,
}

/// The open connections to one Service, and who waits for one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places<'a> {
    /// The Service.
    pub(crate) service: &'a ServiceName,
    /// How many there are.
    pub(crate) state: &'a Arc<LimitState>,
    /// How many there may be, and how old a connection may become.
    pub(crate) traffic: &'a TrafficPolicy,
}

impl Places<'_> {
    /// A place for an open connection, if there is one.
    pub(super) fn connection(&self) -> Option<Held> {
        self.state.connection(self.traffic.limits.connections)
    }

    /// A place among those who wait for a connection.
    pub(super) fn waiting(&self) -> Result<Held, ConnectFailure> {
        let pending = self.traffic.limits.pending;
        self.state.pending(pending).ok_or_else(|| self.over(Limited::Pending, pending, self.state.present().pending))
    }

    /// No connection became free in time.
    pub(super) fn waited(&self) -> ConnectFailure {
        let limits = &self.traffic.limits;
        self.over(Limited::Waited(limits.pending_timeout), limits.connections, self.state.present().connections)
    }

    fn over(&self, limit: Limited, value: Option<u32>, present: u32) -> ConnectFailure {
        ConnectFailure::NoPlace(Box::new(OverLimit {
            limit,
            service: self.service.clone(),
            value: value.unwrap_or(u32::MAX),
            present,
            policy: self.traffic.name.as_ref().map(|name| name.to_string().into()),
        }))
    }
}

/// Who must answer on a mesh connection, and as whom we call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Whom<'a> {
    /// The backend Service.
    pub(crate) service: &'a ServiceName,
    /// The application's port behind the sidecar.
    pub(crate) port: u16,
    /// The identities accepted there.
    pub(crate) accounts: &'a Arc<[SpiffeId]>,
    /// Our own.
    pub(crate) identity: &'a Arc<TlsIdentity>,
}

impl Whom<'_> {
    /// The server name that tells the sidecar which port is meant.
    fn server_name(&self) -> String {
        format!("p{}.{}.{}.mesh", self.port, self.service.name, self.service.namespace)
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConnectFailure {
    /// Nobody answered, or TLS failed.
    Failed(String),
    /// Nothing stood after so long.
    TooSlow(Duration),
    /// Somebody else answered.
    IdentityMismatch {
        /// Who it was.
        found: Option<SpiffeId>,
    },
    /// As many connections are open, or requests waiting for one, as the limits allow.
    NoPlace(Box<OverLimit>),
}

/// What is known of a connection beside its HTTP.
#[derive(Debug, Default)]
pub(crate) struct Connected {
    /// Who answered, on a mesh connection.
    pub(crate) peer: Option<SpiffeId>,
    /// When the certificate they showed ends.
    pub(crate) not_after: Option<SystemTime>,
    /// Who vouched for them, for as long as they are believed.
    pub(crate) vouched: Option<Vouched>,
    /// Says when they no longer are.
    distrust: RefCell<Option<Distrust>>,
    /// It has said so: nothing is read from them.
    distrusted: OnceCell<Distrusted>,
    confirmed: Cell<bool>,
    refusal: OnceCell<String>,
    changed: Notify,
}

impl Connected {
    fn plain() -> Self {
        Self { confirmed: Cell::new(true), ..Self::default() }
    }

    /// The alert with which the peer ended a connection that it had not confirmed.
    pub(crate) fn refusal(&self) -> Option<&str> {
        self.refusal.get().map(String::as_str)
    }

    /// Why whoever answers is believed no more, if so; whoever asked last is woken then: that is who reads from the connection.
    pub(super) fn is_distrusted(&self, cx: &mut Context<'_>) -> Option<&Distrusted> {
        if self.distrusted.get().is_none()
            && let Some(why) = self.distrust.borrow_mut().as_mut()?.poll(cx)
        {
            tracing::warn!(%why, "a connection is ended");
            let _ = self.distrusted.set(why.clone());
        }
        self.distrusted.get()
    }

    /// The same, as far as anybody has noticed.
    pub(crate) fn distrusted(&self) -> Option<&Distrusted> {
        self.distrusted.get()
    }

    /// Waits until the peer has accepted our certificate; at once on a connection in use.
    ///
    /// # Errors
    /// When the peer refused it, or ended the connection.
    pub(crate) async fn confirmed(&self) -> Result<(), ConnectFailure> {
        while !self.confirmed.get() {
            if let Some(refusal) = self.refusal() {
                return Err(ConnectFailure::Failed(refusal.to_owned()));
            }
            self.changed.notified().await;
        }
        Ok(())
    }

    fn confirm(&self) {
        if !self.confirmed.replace(true) {
            self.changed.notify_waiters();
        }
    }

    fn refuse(&self, why: impl FnOnce() -> String) {
        if !self.confirmed.get() {
            self.refusal.get_or_init(why);
            self.changed.notify_waiters();
        }
    }
}

/// A connection that one exchange uses at a time.
#[derive(Debug)]
pub(super) struct Http1 {
    pub(super) link: Link,
    pub(super) facts: Rc<Connected>,
    /// Given back with the connection, not with its task: a connection that nobody can use is no longer counted.
    pub(super) place: Counted,
    /// After this it gets no further exchange.
    pub(super) young_until: Option<Instant>,
}

/// A connection's place among those that its Service's limits count.
pub(super) type Counted = Option<(Held, Arc<LimitState>)>;

impl Http1 {
    /// Waits until the peer has accepted our certificate; at once on a connection in use.
    ///
    /// # Errors
    /// When the peer refused it, or ended the connection.
    pub(super) async fn confirmed(&mut self) -> Result<(), ConnectFailure> {
        while !self.facts.confirmed.get() {
            let heard = call::heard(&mut self.link, || self.facts.confirmed.get()).await;
            if let Some(refusal) = self.facts.refusal() {
                return Err(ConnectFailure::Failed(refusal.to_owned()));
            }
            match heard {
                Ok(()) => {}
                Err(error) => return Err(ConnectFailure::Failed(error.to_string())),
            }
        }
        Ok(())
    }
}

/// Whether a connection is one of those that `state` counts.
pub(super) fn counted_for(place: &Counted, state: &Arc<LimitState>) -> bool {
    place.as_ref().is_some_and(|(_, of)| Arc::ptr_eq(of, state))
}

/// A connection that many exchanges share.
#[derive(Debug)]
pub(super) struct Http2 {
    pub(super) caller: Caller,
    pub(super) facts: Rc<Connected>,
    pub(super) place: Counted,
    /// After this it gets no further exchange.
    pub(super) young_until: Option<Instant>,
}

/// Until when a connection that is made now is young enough for another exchange; `None`: always.
fn young_until(target: &Target<'_>) -> Option<Instant> {
    let places = target.places?;
    let age = deadline::connection_age(places.traffic, &mut fastrand::Rng::new())?;
    Instant::now().checked_add(age)
}

/// Whether a connection may be used for one more exchange.
pub(super) fn is_young(until: Option<Instant>, now: Instant) -> bool {
    until.is_none_or(|until| now < until)
}

/// A connection for bytes that nobody looks at.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// The bytes.
    pub(crate) wire: Wire,
    /// What is known of it.
    pub(crate) facts: Rc<Connected>,
    /// Counts it at its endpoint for as long as it lasts, where that matters.
    pub(crate) in_flight: Option<InFlight>,
    place: Counted,
}

impl Tunnel {
    /// The bytes, its place among those that are counted, and what counts it at its endpoint.
    pub(super) fn into_parts(self) -> (Wire, Counted, Option<InFlight>) {
        (self.wire, self.place, self.in_flight)
    }
}

/// Opens a connection for bytes that nobody looks at, which has a place among those that are counted.
pub(super) async fn tunnel(
    target: &Target<'_>,
    session: Option<&Session>,
    place: Counted,
) -> Result<Tunnel, ConnectFailure> {
    in_time(target.connect_timeout, async {
        let (wire, facts) = open(target, session).await?;
        Ok(Tunnel { wire, facts, in_flight: None, place })
    })
    .await
}

/// The TLS side of connections to one Service as one identity: its session tickets are good for nobody else.
pub(super) struct Session {
    pub(super) config: rustls::ClientConfig,
    pub(super) tickets: Arc<rustls::client::ClientSessionMemoryCache>,
}

/// Opens an HTTP/1.1 connection, which has a place among those that are counted.
pub(super) async fn http1(
    target: &Target<'_>,
    session: Option<&Session>,
    place: Counted,
) -> Result<Http1, ConnectFailure> {
    in_time(target.connect_timeout, async {
        let (wire, facts) = open(target, session).await?;
        Ok(Http1 { link: Link::new(wire), facts, place, young_until: young_until(target) })
    })
    .await
}

/// Opens an HTTP/2 connection, which has a place among those that are counted.
pub(super) async fn http2(
    target: &Target<'_>,
    session: Option<&Session>,
    place: Counted,
) -> Result<Http2, ConnectFailure> {
    in_time(target.connect_timeout, async {
        let (wire, facts) = open(target, session).await?;
        let (caller, driving) = codec::http2::call::begin(Link::new(wire));
        drive(driving, &facts);
        Ok(Http2 { caller, facts, place, young_until: young_until(target) })
    })
    .await
}

async fn in_time<T>(
    limit: Duration,
    connecting: impl Future<Output = Result<T, ConnectFailure>>,
) -> Result<T, ConnectFailure> {
    tokio::time::timeout(limit, connecting).await.unwrap_or_else(|_| Err(ConnectFailure::TooSlow(limit)))
}

/// Runs the connection beside the exchanges that use it, until it ends.
fn drive(connection: impl Future<Output = String> + 'static, facts: &Rc<Connected>) {
    let facts = Rc::clone(facts);
    tokio::task::spawn_local(async move {
        let ended = connection.await;
        facts.refuse(|| ended);
    });
}

async fn open(target: &Target<'_>, session: Option<&Session>) -> Result<(Wire, Rc<Connected>), ConnectFailure> {
    let failed = |error: io::Error| ConnectFailure::Failed(error.to_string());
    let stream = TcpStream::connect(target.address).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let (Some(whom), Some(session)) = (target.whom, session) else {
        return Ok((Wire::Plain(stream), Rc::new(Connected::plain())));
    };
    let (config, ticket) = TicketWatch::on(&session.config, &session.tickets);
    let name = ServerName::try_from(whom.server_name()).map_err(|error| ConnectFailure::Failed(error.to_string()))?;
    let stream =
        TlsConnector::from(config).connect(name, Ahead::new(stream)).await.map_err(|error| tls_failure(&error))?;
    let (_, secured) = stream.get_ref();
    if secured.alpn_protocol() != Some(target.protocol.alpn()) {
        return Err(ConnectFailure::Failed("the peer does not speak the protocol asked for (ALPN)".to_owned()));
    }
    // A resumed session is not verified again by rustls, so time and identity are judged here for every connection.
    let shown = secured.peer_certificates();
    let leaf = tls::peer(shown, SystemTime::now()).map_err(|fault| peer_failure(&fault))?;
    let vouched = whom.identity.vouched(leaf.id.clone(), shown);
    if !whom.accounts.contains(&leaf.id) {
        return Err(ConnectFailure::IdentityMismatch { found: Some(leaf.id) });
    }
    let distrust = RefCell::new(Some(Distrust::of(vouched.clone())));
    let (peer, not_after, vouched) = (Some(leaf.id), Some(leaf.not_after), Some(vouched));
    let facts = Rc::new(Connected { peer, not_after, vouched, distrust, ..Connected::default() });
    Ok((Wire::Mesh { stream: Box::new(stream), ticket, facts: Rc::clone(&facts) }, facts))
}

fn tls_failure(error: &io::Error) -> ConnectFailure {
    match tls::fault_of_io(error) {
        Some(fault) => peer_failure(fault),
        None => ConnectFailure::Failed(error.to_string()),
    }
}

/// Somebody else answered, or nobody who could show who they are.
fn peer_failure(fault: &PeerFault) -> ConnectFailure {
    match fault {
        PeerFault::OtherIdentity { found, .. } | PeerFault::OtherTrustDomain { found, .. } => {
            ConnectFailure::IdentityMismatch { found: Some(found.clone()) }
        }
        _ => ConnectFailure::Failed(fault.to_string()),
    }
}

/// The bytes of a connection, plain or mutual TLS.
#[derive(Debug)]
pub(crate) enum Wire {
    Plain(TcpStream),
    Mesh { stream: Box<TlsStream<Ahead<TcpStream>>>, ticket: Arc<TicketWatch>, facts: Rc<Connected> },
}

impl Wire {
    /// The socket.
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Mesh { stream, .. } => stream.get_ref().0.inner(),
        }
    }
}

impl codec::Wire for Wire {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self.socket())
    }

    fn plain(&self) -> Option<&TcpStream> {
        if let Self::Plain(stream) = self { Some(stream) } else { None }
    }

    fn is_silent(&self) -> bool {
        // TLS may hold what its socket gave.
        let Self::Plain(stream) = self else { return false };
        let came = stream.try_io(Interest::READABLE, || Ok(()));
        came.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Mesh { stream, ticket, facts } => {
                if let Some(why) = facts.is_distrusted(cx) {
                    return Poll::Ready(Err(why.clone().into()));
                }
                let before = buf.filled().len();
                let read = Pin::new(stream).poll_read(cx, buf);
                if facts.confirmed.get() {
                    return read;
                }
                match &read {
                    Poll::Ready(Err(error)) => facts.refuse(|| error.to_string()),
                    Poll::Ready(Ok(())) if buf.filled().len() > before => facts.confirm(),
                    _ if ticket.arrived() => facts.confirm(),
                    Poll::Ready(Ok(())) => facts.refuse(|| "the peer closed the connection".to_owned()),
                    Poll::Pending => {}
                }
                read
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Mesh { stream, .. } => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Mesh { stream, .. } => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Mesh { stream, .. } => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Mesh { stream, .. } => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Mesh { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
