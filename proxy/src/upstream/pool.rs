//! Connections kept for the next exchange, one pool for each worker thread.
//!
//! HTTP/1.1 connections are handed out the last first, so that the surplus grows old and is closed; of HTTP/2 there is one
//! for each destination and worker. A kept connection is used only while its peer is still accepted and our identity is
//! still the one it was made with.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use equerry_certs::tls::{self, TicketWatch};
use equerry_policies::names::{ServiceName, SpiffeId};
use futures_util::FutureExt;
use futures_util::future::Shared;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::RequestBody;
use super::connect::{self, ConnectFailure, Connected, Http1, Http2, Places, Protocol, Session, Target, Whom};
use crate::live::{LimitState, TlsIdentity};

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
    http1: RefCell<HashMap<Key, Vec<Idle>>>,
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
                let kept = if fresh { None } else { self.kept_http1(&key, target.whom) };
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
                    home: Rc::downgrade(self),
                    key,
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

    /// The most recently used connection that still stands and whose peer is still accepted.
    fn kept_http1(&self, key: &Key, whom: Option<Whom<'_>>) -> Option<Http1> {
        let mut all = self.http1.borrow_mut();
        let kept = all.get_mut(key)?;
        // Only what is met on the way is looked at: at every request there may be hundreds.
        let mut looked_at = kept.len();
        while looked_at > 0 {
            looked_at -= 1;
            let Http1 { send, facts, .. } = &kept[looked_at].connection;
            if send.is_closed() || !accepted(facts, whom) {
                kept.remove(looked_at);
            } else if send.is_ready() {
                return Some(kept.remove(looked_at).connection);
            }
            // Else its last request is still being sent (it was answered early): it is left for later.
        }
        None
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
        for kept in self.http1.borrow_mut().values_mut() {
            if let Some(idle) = kept.iter().position(|idle| idle.connection.counted_for(places.state)) {
                kept.remove(idle);
                return;
            }
        }
    }

    fn reap(&self) {
        let now = Instant::now();
        self.http1.borrow_mut().retain(|_, kept| {
            kept.retain(|idle| !idle.connection.send.is_closed() && now < idle.until);
            !kept.is_empty()
        });
        self.http2.borrow_mut().retain(|_, slot| match slot {
            Slot::Coming(_) => true,
            Slot::Here(here) => here.is_usable() && !here.is_stale(now),
        });
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
    Http1 { connection: Http1, reused: bool, home: Weak<Pool>, key: Key, idle_timeout: Duration },
    Http2 { connection: Exchanging, reused: bool },
}

/// An exchange on a shared connection; over when dropped.
struct Exchanging(Rc<SharedHttp2>);

impl Drop for Exchanging {
    fn drop(&mut self) {
        self.0.exchanges.set(self.0.exchanges.get() - 1);
        self.0.idle_since.set(Instant::now());
    }
}

/// A request that got no response head.
#[derive(Debug)]
pub(crate) struct SendFailure {
    /// The request, when nothing of it was sent.
    pub(crate) unsent: Option<Request<RequestBody>>,
    /// The peer says that it did not process it.
    pub(crate) refused: bool,
    /// The peer did not accept us: the connection never stood.
    pub(crate) not_connected: bool,
    /// What happened, in words.
    pub(crate) detail: String,
}

impl Lease {
    /// Whether the connection had carried an exchange before: then the peer may have closed it at any moment.
    pub(crate) fn reused(&self) -> bool {
        match &self.0 {
            Kind::Http1 { reused, .. } | Kind::Http2 { reused, .. } => *reused,
        }
    }

    /// Who answers there, if a certificate says so.
    pub(crate) fn peer(&self) -> Option<&SpiffeId> {
        self.facts().peer.as_ref()
    }

    /// Waits until the peer has accepted our certificate.
    ///
    /// # Errors
    /// When it has not.
    pub(crate) async fn confirmed(&self) -> Result<(), ConnectFailure> {
        self.facts().confirmed().await
    }

    /// Sends the request and waits for the head of the response.
    ///
    /// # Errors
    /// When the connection ends first; says what became of the request.
    pub(crate) async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, SendFailure> {
        let sent = match &mut self.0 {
            Kind::Http1 { connection, .. } => connection.send.try_send_request(request).await,
            Kind::Http2 { connection, .. } => connection.0.connection.send.clone().try_send_request(request).await,
        };
        sent.map_err(|mut failure| {
            let unsent = failure.take_message();
            let error = failure.into_error();
            let refusal = self.facts().refusal();
            SendFailure {
                refused: unsent.is_some() || is_refused_stream(&error),
                not_connected: refusal.is_some(),
                detail: refusal.map_or_else(|| connect::in_words(&error), str::to_owned),
                unsent,
            }
        })
    }

    /// Gives the connection back, after the response was read to its end. Dropping the lease instead closes an HTTP/1.1
    /// connection, and so ends what is still under way on it.
    pub(crate) fn give_back(self) {
        if let Kind::Http1 { connection, home, key, idle_timeout, .. } = self.0
            && let Some(home) = home.upgrade()
            && !connection.send.is_closed()
        {
            let until = Instant::now() + idle_timeout;
            home.http1.borrow_mut().entry(key).or_default().push(Idle { connection, until });
        }
    }

    fn facts(&self) -> &Rc<Connected> {
        match &self.0 {
            Kind::Http1 { connection, .. } => &connection.facts,
            Kind::Http2 { connection, .. } => &connection.0.connection.facts,
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
