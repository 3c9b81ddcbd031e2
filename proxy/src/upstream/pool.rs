//! Connections kept for the next exchange, one pool for each worker thread.
//!
//! HTTP/1.1 connections are handed out the last first, so that the surplus grows old and is closed; of HTTP/2 there is one
//! for each destination and worker. A kept connection is used only while its peer is still accepted and our identity is
//! still the one it was made with.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use equerry_certs::tls::{self, TicketWatch};
use equerry_policies::names::{ServiceName, SpiffeId};
use futures_util::FutureExt;
use futures_util::future::Shared;
use http::{Request, Response};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{RequestBody, ResponseBody};
use super::connect::{self, ConnectFailure, Connected, Http1, Http2, Places, Protocol, Session, Target, Whom};
use crate::codec::Link;
use crate::codec::http1::call::{self, Call};
use crate::live::{Held, LimitState, TlsIdentity};

/// How often idle connections are looked at.
const REAP_EVERY: Duration = Duration::from_secs(1);
/// Session tickets remembered for each Service: eight for each of eight of its ports.
const TICKETS: usize = 64;

/// What makes two connections interchangeable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    address: SocketAddr,
    protocol: Protocol,
    /// Backend Service, application port, generation of our identity.
    mesh: Option<(ServiceName, u16, u64)>,
}

impl Key {
    fn of(target: &Target<'_>) -> Self {
        let mesh = target.whom.map(|whom| (whom.service.clone(), whom.port, whom.identity.generation));
        Self { address: target.address, protocol: target.protocol, mesh }
    }
}

/// An HTTP/1.1 connection nobody uses.
struct Idle {
    connection: Http1,
    until: Instant,
}

/// The idle HTTP/1.1 connections that are interchangeable, the last used at the end.
#[derive(Default)]
struct Shelf(RefCell<Vec<Idle>>);

/// An HTTP/2 connection on its way, for all who wait for it.
type Coming = Shared<oneshot::Receiver<Result<Rc<SharedHttp2>, ConnectFailure>>>;

/// An HTTP/2 connection, here or on its way.
enum Slot {
    Here(Rc<SharedHttp2>),
    Coming(Coming),
}

/// An HTTP/2 connection with the number of exchanges on it, and when the last one ended.
struct SharedHttp2 {
    connection: Http2,
    idle_timeout: Duration,
    exchanges: Cell<usize>,
    idle_since: Cell<Instant>,
}

/// The connections of one worker.
#[derive(Default)]
pub(crate) struct Pool {
    http1: RefCell<HashMap<Key, Rc<Shelf>>>,
    http2: RefCell<HashMap<Key, Slot>>,
    sessions: RefCell<HashMap<(ServiceName, Protocol), KeptSession>>,
}

/// A session is good while both whom we expect and who we are stay the same.
struct KeptSession {
    accounts: Arc<[SpiffeId]>,
    generation: u64,
    session: Rc<Session>,
}

impl Pool {
    /// An empty pool, and the task that closes what has been idle for too long. Needs a `LocalSet`.
    pub(crate) fn new() -> Rc<Self> {
        let pool = Rc::new(Self::default());
        let seen = Rc::downgrade(&pool);
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(REAP_EVERY).await;
                let Some(pool) = seen.upgrade() else { return };
                pool.reap();
            }
        });
        pool
    }

    /// A connection to `target`: a kept one unless `fresh` is asked for, else a new one.
    ///
    /// # Errors
    /// When there is none to be had.
    pub(crate) async fn checkout(self: &Rc<Self>, target: &Target<'_>, fresh: bool) -> Result<Lease, ConnectFailure> {
        let key = Key::of(target);
        match target.protocol {
            Protocol::Http1 => {
                let shelf = self.shelf(key);
                let kept = if fresh { None } else { shelf.take(target.whom) };
                let reused = kept.is_some();
                let connection = match kept {
                    Some(kept) => kept,
                    None => {
                        let session = self.session(target)?;
                        let _waiting = target.places.map(|places| places.waiting()).transpose()?;
                        self.make_place(target);
                        // Boxed: a handshake's state is large, and most exchanges never need it.
                        Box::pin(connect::http1(target, session.as_deref())).await?
                    }
                };
                Ok(Lease(Kind::Http1 {
                    connection,
                    reused,
                    shelf,
                    idle_timeout: target.idle_timeout,
                }))
            }
            Protocol::Http2 => {
                let (connection, reused) = self.shared_http2(&key, target, fresh).await?;
                connection.exchanges.set(connection.exchanges.get() + 1);
                Ok(Lease(Kind::Http2 { connection: Exchanging(connection), reused }))
            }
        }
    }

    fn shelf(&self, key: Key) -> Rc<Shelf> {
        Rc::clone(self.http1.borrow_mut().entry(key).or_default())
    }

    async fn shared_http2(
        self: &Rc<Self>,
        key: &Key,
        target: &Target<'_>,
        fresh: bool,
    ) -> Result<(Rc<SharedHttp2>, bool), ConnectFailure> {
        if !fresh && let Some(here) = self.kept_http2(key, target.whom) {
            return Ok((here, true));
        }
        let _waiting = target.places.map(|places| places.waiting()).transpose()?;
        let coming = match self.http2.borrow().get(key) {
            Some(Slot::Coming(coming)) => Some(coming.clone()),
            Some(Slot::Here(_)) | None => None,
        };
        let coming = match coming {
            Some(coming) => coming,
            None => self.start_http2(key, target)?,
        };
        let Ok(arrived) = coming.await else {
            // The task that was to connect is gone without a word: the next exchange starts another.
            self.http2.borrow_mut().remove(key);
            return Err(ConnectFailure::Failed("the attempt was given up".to_owned()));
        };
        let arrived = arrived?;
        if accepted(&arrived.connection.facts, target.whom) {
            Ok((arrived, false))
        } else {
            Err(ConnectFailure::IdentityMismatch { found: arrived.connection.facts.peer.clone() })
        }
    }

    fn kept_http2(&self, key: &Key, whom: Option<Whom<'_>>) -> Option<Rc<SharedHttp2>> {
        match self.http2.borrow().get(key) {
            Some(Slot::Here(here)) if here.is_usable() && accepted(&here.connection.facts, whom) => {
                Some(Rc::clone(here))
            }
            _ => None,
        }
    }

    /// Connects in a task of its own: who asked first may leave, others already wait for the same connection.
    fn start_http2(self: &Rc<Self>, key: &Key, target: &Target<'_>) -> Result<Coming, ConnectFailure> {
        let session = self.session(target)?;
        self.make_place(target);
        let (tell, told) = oneshot::channel();
        let coming = told.shared();
        self.http2.borrow_mut().insert(key.clone(), Slot::Coming(coming.clone()));
        let (owned, key, home) = (OwnedTarget::of(target), key.clone(), Rc::downgrade(self));
        tokio::task::spawn_local(async move {
            let made = connect::http2(&owned.target(), session.as_deref()).await.map(|connection| {
                Rc::new(SharedHttp2 {
                    connection,
                    idle_timeout: owned.idle_timeout,
                    exchanges: Cell::new(0),
                    idle_since: Cell::new(Instant::now()),
                })
            });
            if let Some(home) = home.upgrade() {
                let mut slots = home.http2.borrow_mut();
                match &made {
                    Ok(made) => slots.insert(key, Slot::Here(Rc::clone(made))),
                    Err(_) => slots.remove(&key),
                };
            }
            let _ = tell.send(made);
        });
        Ok(coming)
    }

    /// The TLS configuration and tickets for `target`; `None` for plain text.
    fn session(&self, target: &Target<'_>) -> Result<Option<Rc<Session>>, ConnectFailure> {
        let Some(whom) = target.whom else { return Ok(None) };
        let mut sessions = self.sessions.borrow_mut();
        let key = (whom.service.clone(), target.protocol);
        if let Some(kept) = sessions.get(&key)
            && kept.generation == whom.identity.generation
            && (Arc::ptr_eq(&kept.accounts, whom.accounts) || kept.accounts == *whom.accounts)
        {
            return Ok(Some(Rc::clone(&kept.session)));
        }
        let expected = whom.accounts.to_vec();
        let identity = whom.identity;
        let config =
            tls::client_config(Some(&identity.identity), &identity.bundle, expected, &[target.protocol.alpn()])
                .map_err(|fault| ConnectFailure::Failed(fault.to_string()))?;
        let session = Rc::new(Session { config, tickets: TicketWatch::sessions(TICKETS) });
        let (accounts, generation) = (Arc::clone(whom.accounts), identity.generation);
        sessions.retain(|_, kept| kept.generation == generation);
        sessions.insert(key, KeptSession { accounts, generation, session: Rc::clone(&session) });
        Ok(Some(session))
    }

    /// When as many connections are open as may be, closes one of the same Service that is idle here.
    fn make_place(&self, target: &Target<'_>) {
        let Some(places) = target.places else { return };
        if places.state.connection(places.connections).is_some() {
            return;
        }
        for shelf in self.http1.borrow().values() {
            let mut kept = shelf.0.borrow_mut();
            if let Some(idle) = kept.iter().position(|idle| idle.connection.counted_for(places.state)) {
                kept.remove(idle);
                return;
            }
        }
    }

    fn reap(&self) {
        let now = Instant::now();
        self.http1.borrow_mut().retain(|_, shelf| {
            shelf.0.borrow_mut().retain_mut(|idle| now < idle.until && call::is_quiet(&mut idle.connection.link));
            Rc::strong_count(shelf) > 1 || !shelf.0.borrow().is_empty()
        });
        self.http2.borrow_mut().retain(|_, slot| match slot {
            Slot::Coming(_) => true,
            Slot::Here(here) => here.is_usable() && !here.is_stale(now),
        });
    }
}

impl Shelf {
    /// The most recently used connection that still stands and whose peer is still accepted.
    fn take(&self, whom: Option<Whom<'_>>) -> Option<Http1> {
        let mut kept = self.0.borrow_mut();
        // What is met on the way is looked at, not all of them: there may be hundreds.
        while let Some(Idle { mut connection, .. }) = kept.pop() {
            if accepted(&connection.facts, whom) && call::is_quiet(&mut connection.link) {
                return Some(connection);
            }
        }
        None
    }
}

/// Whether the peer of a kept connection is one that `whom` accepts, by a certificate that still holds.
fn accepted(facts: &Connected, whom: Option<Whom<'_>>) -> bool {
    match (&facts.peer, whom) {
        (None, None) => true,
        (Some(peer), Some(whom)) => {
            whom.accounts.contains(peer) && facts.not_after.is_some_and(|end| SystemTime::now() < end)
        }
        _ => false,
    }
}

impl SharedHttp2 {
    fn is_usable(&self) -> bool {
        self.connection.send.is_ready()
    }

    fn is_stale(&self, now: Instant) -> bool {
        self.exchanges.get() == 0 && now.duration_since(self.idle_since.get()) >= self.idle_timeout
    }
}

/// A target that does not borrow, for a task of its own.
struct OwnedTarget {
    address: SocketAddr,
    protocol: Protocol,
    whom: Option<OwnedWhom>,
    connect_timeout: Duration,
    idle_timeout: Duration,
    places: Option<OwnedPlaces>,
}

struct OwnedWhom {
    service: ServiceName,
    port: u16,
    accounts: Arc<[SpiffeId]>,
    identity: Arc<TlsIdentity>,
}

struct OwnedPlaces {
    service: ServiceName,
    state: Arc<LimitState>,
    connections: Option<u32>,
    pending: Option<u32>,
}

impl OwnedTarget {
    fn of(target: &Target<'_>) -> Self {
        let Target { address, protocol, whom, connect_timeout, idle_timeout, places } = *target;
        let whom = whom.map(|Whom { service, port, accounts, identity }| OwnedWhom {
            service: service.clone(),
            port,
            accounts: Arc::clone(accounts),
            identity: Arc::clone(identity),
        });
        let places = places.map(|Places { service, state, connections, pending }| OwnedPlaces {
            service: service.clone(),
            state: Arc::clone(state),
            connections,
            pending,
        });
        Self { address, protocol, whom, connect_timeout, idle_timeout, places }
    }

    fn target(&self) -> Target<'_> {
        let Self { address, protocol, ref whom, connect_timeout, idle_timeout, ref places } = *self;
        let whom = whom.as_ref().map(|OwnedWhom { service, port, accounts, identity }| Whom {
            service,
            port: *port,
            accounts,
            identity,
        });
        let places = places.as_ref().map(|OwnedPlaces { service, state, connections, pending }| Places {
            service,
            state,
            connections: *connections,
            pending: *pending,
        });
        Target { address, protocol, whom, connect_timeout, idle_timeout, places }
    }
}

/// The right to send one request on a connection.
pub(crate) struct Lease(Kind);

enum Kind {
    Http1 { connection: Http1, reused: bool, shelf: Rc<Shelf>, idle_timeout: Duration },
    Http2 { connection: Exchanging, reused: bool },
}

/// Where an HTTP/1.1 connection goes when its exchange is over.
pub(super) struct Place {
    shelf: Rc<Shelf>,
    facts: Rc<Connected>,
    counted: Option<(Held, Arc<LimitState>)>,
    idle_timeout: Duration,
}

impl Place {
    pub(super) fn give_back(self, link: Link) {
        let connection = Http1 { link, facts: self.facts, place: self.counted };
        self.shelf.0.borrow_mut().push(Idle { connection, until: Instant::now() + self.idle_timeout });
    }
}

/// An exchange on a shared connection; over when dropped.
pub(super) struct Exchanging(Rc<SharedHttp2>);

impl Drop for Exchanging {
    fn drop(&mut self) {
        self.0.exchanges.set(self.0.exchanges.get() - 1);
        self.0.idle_since.set(Instant::now());
    }
}

/// A request in the form that a connection takes.
#[derive(Debug)]
pub(crate) enum Message<'a> {
    /// Its head is left where it is.
    Http1(call::Head<'a>, RequestBody),
    /// All of it is handed over.
    Http2(Request<RequestBody>),
}

/// A request that got no response head.
#[derive(Debug)]
pub(crate) struct SendFailure {
    /// The peer has certainly not processed it: nothing was sent, or the peer says so.
    pub(crate) refused: bool,
    /// What can be sent over another connection.
    pub(crate) untouched: Untouched,
    /// The peer did not accept us: the connection never stood.
    pub(crate) not_connected: bool,
    /// What happened, in words.
    pub(crate) detail: String,
}

/// The parts of a request that were handed over and not used.
#[derive(Debug, Default)]
pub(crate) struct Untouched {
    /// Its headers.
    pub(crate) headers: Option<http::HeaderMap>,
    /// Its body.
    pub(crate) body: Option<RequestBody>,
}

impl Lease {
    /// Whether the connection had carried an exchange before: then the peer may have closed it at any moment.
    pub(crate) fn reused(&self) -> bool {
        match &self.0 {
            Kind::Http1 { reused, .. } | Kind::Http2 { reused, .. } => *reused,
        }
    }

    /// Waits until the peer has accepted our certificate.
    ///
    /// # Errors
    /// When it has not.
    pub(crate) async fn confirmed(&mut self) -> Result<(), ConnectFailure> {
        match &mut self.0 {
            Kind::Http1 { connection, .. } => connection.confirmed().await,
            Kind::Http2 { connection, .. } => connection.0.connection.facts.confirmed().await,
        }
    }

    /// Sends the request and waits for the head of the response.
    ///
    /// # Errors
    /// When the connection ends first; says what became of the request.
    pub(crate) async fn send(self, message: Message<'_>) -> Result<Response<ResponseBody>, SendFailure> {
        match (self.0, message) {
            (Kind::Http1 { connection, shelf, idle_timeout, .. }, Message::Http1(head, body)) => {
                let Http1 { link, facts, place } = connection;
                match Call::send(link, head, body).await {
                    Ok((parts, call)) => {
                        let place = Place { shelf, facts: Rc::clone(&facts), counted: place, idle_timeout };
                        Ok(Response::from_parts(parts, ResponseBody::http1(facts, call, place)))
                    }
                    Err(failure) => {
                        let untouched = Untouched { headers: None, body: failure.body };
                        Err(SendFailure::new(&facts, failure.detail, failure.unsent, untouched))
                    }
                }
            }
            (Kind::Http2 { connection, .. }, Message::Http2(request)) => {
                let shared = Rc::clone(&connection.0);
                match shared.connection.send.clone().try_send_request(request).await {
                    Ok(response) => {
                        let (parts, body) = response.into_parts();
                        let facts = Rc::clone(&shared.connection.facts);
                        Ok(Response::from_parts(parts, ResponseBody::http2(facts, body, connection)))
                    }
                    Err(mut failure) => {
                        let unsent = failure.take_message().map(Request::into_parts);
                        let error = failure.into_error();
                        let refused = unsent.is_some() || is_refused_stream(&error);
                        let untouched = unsent
                            .map(|(head, body)| Untouched { headers: Some(head.headers), body: Some(body) })
                            .unwrap_or_default();
                        Err(SendFailure::new(&shared.connection.facts, connect::in_words(&error), refused, untouched))
                    }
                }
            }
            (_, message) => {
                let untouched = match message {
                    Message::Http1(_, body) => Untouched { headers: None, body: Some(body) },
                    Message::Http2(request) => {
                        let (head, body) = request.into_parts();
                        Untouched { headers: Some(head.headers), body: Some(body) }
                    }
                };
                let detail = "the connection speaks another protocol".to_owned();
                Err(SendFailure { refused: true, untouched, not_connected: false, detail })
            }
        }
    }
}

impl SendFailure {
    fn new(facts: &Connected, detail: String, refused: bool, untouched: Untouched) -> Self {
        let refusal = facts.refusal();
        Self {
            refused,
            untouched,
            not_connected: refusal.is_some(),
            detail: refusal.map_or(detail, str::to_owned),
        }
    }
}

/// HTTP/2 says so itself when a stream was not processed (RFC 9113 sections 6.8 and 8.7).
fn is_refused_stream(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(error) = inner.downcast_ref::<h2::Error>() {
            return error.reason() == Some(h2::Reason::REFUSED_STREAM);
        }
        cause = inner.source();
    }
    false
}
