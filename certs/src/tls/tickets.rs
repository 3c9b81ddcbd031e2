//! Knowing when the server's session ticket has arrived on one connection.
//!
//! A TLS 1.3 server refuses a client's certificate after the client may already have written. Its ticket comes only once
//! it has accepted: a request with a body waits for that, so that it is never lost in a refused connection.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use rustls::NamedGroup;
use rustls::client::{
    ClientConfig, ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue,
    Tls13ClientSessionValue,
};
use rustls_pki_types::ServerName;

/// A session store for one connection: passes everything to the store shared by all connections of a configuration, and
/// remembers that a ticket came by.
///
/// ```text
/// let sessions = TicketWatch::sessions(64);                      // one for each configuration
/// let (config, watch) = TicketWatch::on(&config, &sessions);     // one for each connection
/// let stream = connector(config).connect(name, tcp).await?;
/// std::future::poll_fn(|cx| watch.poll_arrived(cx)).await;       // while something reads from the stream
/// ```
pub struct TicketWatch {
    sessions: Arc<ClientSessionMemoryCache>,
    arrived: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl TicketWatch {
    /// The store shared by the connections of one configuration; remembers up to `tickets` tickets, eight for a name.
    pub fn sessions(tickets: usize) -> Arc<ClientSessionMemoryCache> {
        Arc::new(ClientSessionMemoryCache::new(tickets))
    }

    /// A copy of a configuration for one new connection, and the watch on it.
    pub fn on(config: &ClientConfig, sessions: &Arc<ClientSessionMemoryCache>) -> (Arc<ClientConfig>, Arc<Self>) {
        let watch =
            Arc::new(Self { sessions: sessions.clone(), arrived: AtomicBool::new(false), waiting: Mutex::default() });
        let mut watched = config.clone();
        watched.resumption = Resumption::store(watch.clone());
        (Arc::new(watched), watch)
    }

    /// Whether a ticket has arrived: the server has accepted this client.
    pub fn arrived(&self) -> bool {
        self.arrived.load(Ordering::Acquire)
    }

    /// Ready once a ticket has arrived. It arrives only while something reads from the connection.
    pub fn poll_arrived(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.arrived() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.arrived() {
            return Poll::Ready(());
        }
        if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            waiting.push(context.waker().clone());
        }
        Poll::Pending
    }

    fn note(&self) {
        self.arrived.store(true, Ordering::Release);
        for waker in self.waiting.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            waker.wake();
        }
    }
}

impl fmt::Debug for TicketWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketWatch").field("arrived", &self.arrived()).finish_non_exhaustive()
    }
}

impl ClientSessionStore for TicketWatch {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.sessions.set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.sessions.kx_hint(server)
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.sessions.insert_tls13_ticket(server, ticket);
        self.note();
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.sessions.take_tls13_ticket(server)
    }
}
