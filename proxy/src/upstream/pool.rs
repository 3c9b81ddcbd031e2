//! Connections kept for the next exchange, one pool for each worker thread.
//!
//! HTTP/1.1 connections are handed out the last first, so that the surplus grows old and is closed, sooner when there is little
//! to do; of HTTP/2 there is one for each destination and worker, and another when it is full. A kept connection is used only
//! while its peer is still accepted and our identity is still the one it was made with.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use equerry_certs::tls::{self, TicketWatch};
use equerry_policies::names::{ServiceName, SpiffeId};
use equerry_policies::policy::TrafficPolicy;
use equerry_policies::quick::Quick;
use futures_util::FutureExt;
use futures_util::future::Shared;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connect::{
    self, ConnectFailure, Connected, Counted, Http1, Http2, Places, Protocol, Session, Target, Tunnel, Whom,
};
use super::lease::{Exchanging, Kind, Lease};
use crate::codec::http1::call;
use crate::live::{Held, LimitState, TlsIdentity};
use crate::tidy::{self, Surplus};
use crate::timers::Timers;

/// How often idle connections are looked at.
const REAP_EVERY: Duration = Duration::from_secs(1);
/// So many idle HTTP/1.1 connections to one endpoint stay when there is little to do.
const FEW: usize = 4;
/// When there is little to do, an HTTP/2 connection beside another is needed no more after this.
const BESIDE: Duration = Duration::from_secs(5);
/// Exchanges that one HTTP/2 connection is given before its peer has said how many it takes: what sidecars take, and what RFC
/// 9113 (section 6.5.2) expects of others.
const OF_SIDECARS: usize = 1024;
const OF_OTHERS: usize = 100;
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
pub(super) struct Idle {
    pub(super) connection: Http1,
    pub(super) until: Instant,
}

/// The idle HTTP/1.1 connections that are interchangeable, the last used at the end.
#[derive(Default)]
pub(super) struct Shelf {
    pub(super) idle: RefCell<Vec<Idle>>,
    /// So many exchanges of this worker wait for one of them.
    pub(super) waiting: Cell<usize>,
    /// Those that were not needed lately.
    surplus: Surplus,
}

/// An HTTP/2 connection on its way, for all who wait for it.
type Coming = Shared<oneshot::Receiver<Result<Rc<SharedHttp2>, ConnectFailure>>>;

/// The HTTP/2 connections that are interchangeable: mostly one. There are more only while those before are full.
#[derive(Default)]
struct Slot {
    here: Vec<Rc<SharedHttp2>>,
    coming: Option<Coming>,
}

/// An HTTP/2 connection with the number of exchanges on it, and when the last one ended.
pub(super) struct SharedHttp2 {
    pub(super) connection: Http2,
    idle_timeout: Duration,
    pub(super) exchanges: Cell<usize>,
    pub(super) idle_since: Cell<Instant>,
}

/// The connections of one worker.
#[derive(Default)]
pub(crate) struct Pool {
    http1: RefCell<Quick<Key, Rc<Shelf>>>,
    http2: RefCell<HashMap<Key, Slot>>,
    sessions: RefCell<HashMap<(ServiceName, Protocol), KeptSession>>,
    /// Of those who wait for answers.
    pub(crate) timers: Timers,
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
                if tidy::is_calm() && pool.put_down() {
                    tidy::put_down();
                }
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
                let mut reused = kept.is_some();
                let connection = match kept {
                    Some(kept) => kept,
                    None => {
                        // Boxed: a handshake's state is large, and most exchanges never need it.
                        let (connection, kept) = Box::pin(self.http1(target, &shelf, fresh)).await?;
                        reused = kept;
                        connection
                    }
                };
                Ok(Lease(Kind::Http1 { connection, reused, shelf, idle_timeout: target.idle_timeout }))
            }
            Protocol::Http2 => {
                let (connection, reused) = self.shared_http2(&key, target, fresh).await?;
                Ok(Lease(Kind::Http2 { connection: Exchanging::on(connection), reused }))
            }
            Protocol::Tcp => Err(ConnectFailure::Failed("a tunnel carries no exchange".to_owned())),
        }
    }

    /// A connection that is made, or one that became free while there was no place for another; and whether it is that.
    async fn http1(&self, target: &Target<'_>, shelf: &Shelf, fresh: bool) -> Result<(Http1, bool), ConnectFailure> {
        let session = self.session(target)?;
        let _pending = target.places.map(|places| places.waiting()).transpose()?;
        let kept = || if fresh { None } else { shelf.take(target.whom) };
        let place = match target.places {
            None => None,
            Some(places) => match self.place(&places, shelf, kept).await? {
                Place::Kept(connection) => return Ok((connection, true)),
                Place::Free(place) => Some((place, Arc::clone(places.state))),
            },
        };
        connect::http1(target, session.as_deref(), place).await.map(|connection| (connection, false))
    }

    /// A place for one more connection, or what `kept` finds: at once, or as soon as another connection is closed or free.
    ///
    /// # Errors
    /// When none is for as long as a request may wait.
    async fn place<T>(
        &self,
        places: &Places<'_>,
        shelf: &Shelf,
        kept: impl Fn() -> Option<T>,
    ) -> Result<Place<T>, ConnectFailure> {
        if let Some(place) = places.connection() {
            return Ok(Place::Free(place));
        }
        let until = Instant::now() + places.traffic.limits.pending_timeout;
        let _waits = (places.state.wait(), Waits::on(shelf));
        loop {
            let mut freed = pin!(places.state.freed());
            freed.as_mut().enable();
            if let Some(kept) = kept() {
                return Ok(Place::Kept(kept));
            }
            self.close_idle(places.state);
            if let Some(place) = places.connection() {
                return Ok(Place::Free(place));
            }
            tokio::time::timeout_at(until, freed).await.map_err(|_| places.waited())?;
        }
    }

    /// A place for a connection that no kept one can stand for; see [`Self::place`].
    async fn new_place(&self, target: &Target<'_>) -> Result<Counted, ConnectFailure> {
        let Some(places) = target.places else { return Ok(None) };
        match self.place(&places, &Shelf::default(), || None::<Infallible>).await? {
            Place::Free(place) => Ok(Some((place, Arc::clone(places.state)))),
            Place::Kept(never) => match never {},
        }
    }

    /// A new connection for bytes that nobody looks at; never kept for another. It waits for a place as a request does, unless
    /// whoever wants it has `left` meanwhile: then there is none.
    ///
    /// # Errors
    /// When there is none to be had.
    pub(crate) async fn tunnel(
        &self,
        target: &Target<'_>,
        left: impl Future<Output = ()>,
    ) -> Result<Option<Tunnel>, ConnectFailure> {
        let session = self.session(target)?;
        let _pending = target.places.map(|places| places.waiting()).transpose()?;
        let place = tokio::select! {
            biased;
            place = Box::pin(self.new_place(target)) => place?,
            () = left => return Ok(None),
        };
        Box::pin(connect::tunnel(target, session.as_deref(), place)).await.map(Some)
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
        loop {
            let arrived = self.new_http2(key, target).await?;
            if !accepted(&arrived.connection.facts, target.whom) {
                return Err(ConnectFailure::IdentityMismatch { found: arrived.connection.facts.peer.clone() });
            }
            // More may have waited for it than it can carry.
            if !arrived.is_full() {
                return Ok((arrived, false));
            }
        }
    }

    async fn new_http2(self: &Rc<Self>, key: &Key, target: &Target<'_>) -> Result<Rc<SharedHttp2>, ConnectFailure> {
        let coming = self.http2.borrow().get(key).and_then(|slot| slot.coming.clone());
        let coming = match coming {
            Some(coming) => coming,
            None => self.start_http2(key, target)?,
        };
        let Ok(arrived) = coming.await else {
            // The task that was to connect is gone without a word: the next exchange starts another.
            if let Some(slot) = self.http2.borrow_mut().get_mut(key) {
                slot.coming = None;
            }
            return Err(ConnectFailure::Failed("the attempt was given up".to_owned()));
        };
        arrived
    }

    fn kept_http2(&self, key: &Key, whom: Option<Whom<'_>>) -> Option<Rc<SharedHttp2>> {
        let fits =
            |here: &&Rc<SharedHttp2>| here.is_usable() && !here.is_full() && accepted(&here.connection.facts, whom);
        self.http2.borrow().get(key)?.here.iter().find(fits).map(Rc::clone)
    }

    /// Connects in a task of its own: who asked first may leave, others already wait for the same connection.
    fn start_http2(self: &Rc<Self>, key: &Key, target: &Target<'_>) -> Result<Coming, ConnectFailure> {
        let session = self.session(target)?;
        let (tell, told) = oneshot::channel();
        let coming = told.shared();
        self.http2.borrow_mut().entry(key.clone()).or_default().coming = Some(coming.clone());
        let (owned, key, home) = (OwnedTarget::of(target), key.clone(), Rc::downgrade(self));
        tokio::task::spawn_local(async move {
            let made = http2(&home, &owned.target(), session.as_deref()).await.map(|connection| {
                Rc::new(SharedHttp2 {
                    connection,
                    idle_timeout: owned.idle_timeout,
                    exchanges: Cell::new(0),
                    idle_since: Cell::new(Instant::now()),
                })
            });
            if let Some(home) = home.upgrade() {
                let mut slots = home.http2.borrow_mut();
                let slot = slots.entry(key).or_default();
                slot.coming = None;
                // What it replaces ends with its last exchange; what is only full will be used again.
                slot.here.retain(|before| before.is_usable() && before.is_full());
                slot.here.extend(made.as_ref().ok().map(Rc::clone));
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

    /// Closes a connection of the same Service that is idle here, whatever endpoint it leads to.
    fn close_idle(&self, state: &Arc<LimitState>) {
        for shelf in self.http1.borrow().values() {
            let mut kept = shelf.idle.borrow_mut();
            if let Some(idle) = kept.iter().position(|idle| connect::counted_for(&idle.connection.place, state)) {
                kept.remove(idle);
                return;
            }
        }
        let mut slots = self.http2.borrow_mut();
        for slot in slots.values_mut() {
            let is_idle = |here: &Rc<SharedHttp2>| {
                here.exchanges.get() == 0 && connect::counted_for(&here.connection.place, state)
            };
            if let Some(idle) = slot.here.iter().position(is_idle) {
                slot.here.remove(idle);
                return;
            }
        }
    }

    fn reap(&self) {
        let now = Instant::now();
        self.http1.borrow_mut().retain(|_, shelf| {
            let unwanted = |connection: &Http1| shelf.waiting.get() == 0 && is_waited_for(&connection.place);
            let keep = |idle: &mut Idle| {
                let fit = now < idle.until && connect::is_young(idle.connection.young_until, now);
                fit && !unwanted(&idle.connection) && call::is_quiet(&mut idle.connection.link)
            };
            shelf.idle.borrow_mut().retain_mut(keep);
            Rc::strong_count(shelf) > 1 || !shelf.idle.borrow().is_empty()
        });
        self.http2.borrow_mut().retain(|_, slot| {
            slot.here.retain(|here| {
                let unwanted = here.exchanges.get() == 0 && is_waited_for(&here.connection.place);
                here.is_usable() && !here.is_stale(now) && !unwanted
            });
            slot.coming.is_some() || !slot.here.is_empty()
        });
    }

    /// Closes what a load that is over has left: most of the idle HTTP/1.1 connections to an endpoint that nobody has needed
    /// since this was last asked, beyond a few, those unused longest first; and HTTP/2 connections without an exchange beside
    /// another to the same endpoint; and timers. Whether there were any.
    fn put_down(&self) -> bool {
        let mut any = self.timers.put_down();
        for shelf in self.http1.borrow().values() {
            let mut kept = shelf.idle.borrow_mut();
            let more = shelf.surplus.too_many(kept.len(), FEW);
            if more > 0 {
                kept.drain(..more);
                kept.shrink_to_fit();
                any = true;
            }
        }
        let now = Instant::now();
        for slot in self.http2.borrow_mut().values_mut() {
            let before = slot.here.len();
            let mut first = true;
            slot.here.retain(|here| std::mem::take(&mut first) || !here.is_unneeded(now));
            any |= slot.here.len() < before;
        }
        any
    }
}

impl Shelf {
    /// The most recently used connection that still stands and whose peer is still accepted.
    fn take(&self, whom: Option<Whom<'_>>) -> Option<Http1> {
        let mut kept = self.idle.borrow_mut();
        // What is met on the way is looked at, not all of them: there may be hundreds.
        while let Some(Idle { mut connection, .. }) = kept.pop() {
            self.surplus.taken(kept.len());
            if accepted(&connection.facts, whom) && call::is_quiet(&mut connection.link) {
                return Some(connection);
            }
        }
        None
    }
}

/// What whoever wants a connection gets.
enum Place<T> {
    /// Leave to make one.
    Free(Held),
    /// One that is there.
    Kept(T),
}

/// An exchange that waits for a connection of a shelf, until it is dropped.
struct Waits<'a>(&'a Shelf);

impl<'a> Waits<'a> {
    fn on(shelf: &'a Shelf) -> Self {
        shelf.waiting.set(shelf.waiting.get() + 1);
        Self(shelf)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

/// Makes an HTTP/2 connection once there is a place for it.
async fn http2(home: &Weak<Pool>, target: &Target<'_>, session: Option<&Session>) -> Result<Http2, ConnectFailure> {
    let gone = || ConnectFailure::Failed("the attempt was given up".to_owned());
    let place = home.upgrade().ok_or_else(gone)?.new_place(target).await?;
    connect::http2(target, session, place).await
}

/// Whether somebody waits for a connection to the same Service to be closed or free.
pub(super) fn is_waited_for(place: &Counted) -> bool {
    place.as_ref().is_some_and(|(_, state)| state.is_waited_for())
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
        self.connection.caller.is_open() && connect::is_young(self.connection.young_until, Instant::now())
    }

    /// Whether it carries as many exchanges as its peer allows, as far as that is known.
    fn is_full(&self) -> bool {
        let unknown = if self.connection.facts.peer.is_some() { OF_SIDECARS } else { OF_OTHERS };
        self.exchanges.get() >= self.connection.caller.most_streams().unwrap_or(unknown).max(1)
    }

    fn is_stale(&self, now: Instant) -> bool {
        self.is_idle_for(self.idle_timeout, now)
    }

    /// Where another one can carry what comes.
    fn is_unneeded(&self, now: Instant) -> bool {
        self.is_idle_for(BESIDE, now)
    }

    fn is_idle_for(&self, time: Duration, now: Instant) -> bool {
        self.exchanges.get() == 0 && now.duration_since(self.idle_since.get()) >= time
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
    traffic: TrafficPolicy,
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
        let places = places.map(|Places { service, state, traffic }| OwnedPlaces {
            service: service.clone(),
            state: Arc::clone(state),
            traffic: traffic.clone(),
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
        let places = places.as_ref().map(|OwnedPlaces { service, state, traffic }| Places { service, state, traffic });
        Target { address, protocol, whom, connect_timeout, idle_timeout, places }
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
