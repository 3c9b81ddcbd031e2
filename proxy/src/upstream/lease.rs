//! The right to send one request on a connection, what is sent, and where the connection goes afterwards.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use tokio::time::Instant;

use super::connect::{self, ConnectFailure, Connected, Counted, Http1};
use super::pool::{Idle, SharedHttp2, Shelf, is_waited_for};
use super::{RequestBody, ResponseBody};
use crate::codec::http1::call::{self, Call};
use crate::codec::{Link, http2};

/// The right to send one request on a connection.
pub(crate) struct Lease(pub(super) Kind);

/// Which connection that is.
pub(super) enum Kind {
    Http1 { connection: Http1, reused: bool, shelf: Rc<Shelf>, idle_timeout: Duration },
    Http2 { connection: Exchanging, reused: bool },
}

/// Where an HTTP/1.1 connection goes when its exchange is over.
pub(super) struct Home {
    shelf: Rc<Shelf>,
    facts: Rc<Connected>,
    counted: Counted,
    young_until: Option<Instant>,
    idle_timeout: Duration,
}

impl Home {
    /// What is known of the connection.
    pub(super) fn facts(&self) -> &Connected {
        &self.facts
    }

    pub(super) fn give_back(self, link: Link) {
        let Self { shelf, facts, counted, young_until, idle_timeout } = self;
        let waited_for = is_waited_for(&counted);
        // Whoever waits on another worker, or for another endpoint, is helped by a place and not by this connection.
        let unwanted = waited_for && shelf.waiting.get() == 0;
        let now = Instant::now();
        if unwanted || !connect::is_young(young_until, now) {
            return;
        }
        let state = counted.as_ref().filter(|_| waited_for).map(|(_, state)| Arc::clone(state));
        let connection = Http1 { link, facts, place: counted, young_until };
        shelf.idle.borrow_mut().push(Idle { connection, until: now + idle_timeout });
        if let Some(state) = state {
            state.free();
        }
    }
}

/// An exchange on a shared connection; over when dropped.
pub(super) struct Exchanging(Rc<SharedHttp2>);

impl Exchanging {
    /// An exchange begins.
    pub(super) fn on(connection: Rc<SharedHttp2>) -> Self {
        connection.exchanges.set(connection.exchanges.get() + 1);
        Self(connection)
    }
}

impl Drop for Exchanging {
    fn drop(&mut self) {
        self.0.exchanges.set(self.0.exchanges.get() - 1);
        self.0.idle_since.set(Instant::now());
        if let Some((_, state)) = self.0.connection.place.as_ref().filter(|_| self.0.exchanges.get() == 0)
            && state.is_waited_for()
        {
            state.free();
        }
    }
}

/// A request in the form that a connection takes. Its head is left where it is.
#[derive(Debug)]
pub(crate) enum Message<'a> {
    /// Over HTTP/1.1.
    Http1(call::Head<'a>, RequestBody),
    /// Over HTTP/2.
    Http2(http2::call::Head<'a>, RequestBody),
}

/// A request that got no response head.
#[derive(Debug)]
pub(crate) struct SendFailure {
    /// The peer has certainly not processed it: nothing was sent, or the peer says so.
    pub(crate) refused: bool,
    /// That is because the peer takes leave of the connection: over another one it may be welcome.
    pub(crate) took_leave: bool,
    /// Its body, which can be sent over another connection: nothing of it was taken.
    pub(crate) body: Option<RequestBody>,
    /// The peer did not accept us: the connection never stood.
    pub(crate) not_connected: bool,
    /// Whoever would have answered is believed no more; `detail` says why.
    pub(crate) distrusted: bool,
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
                let Http1 { link, facts, place: counted, young_until } = connection;
                match Call::send(link, head, body).await {
                    Ok((parts, call)) => {
                        let home = Home { shelf, facts: Rc::clone(&facts), counted, young_until, idle_timeout };
                        Ok(Response::from_parts(parts, ResponseBody::http1(facts, call, home)))
                    }
                    Err(failure) => Err(SendFailure::new(&facts, failure.detail, failure.unsent, failure.body)),
                }
            }
            (Kind::Http2 { connection, .. }, Message::Http2(head, body)) => {
                let facts = Rc::clone(&connection.0.connection.facts);
                match connection.0.connection.caller.send(head, body).await {
                    Ok((parts, call)) => Ok(Response::from_parts(parts, ResponseBody::http2(facts, call, connection))),
                    Err(failure) => {
                        let took_leave = failure.refused && !connection.0.connection.caller.is_open();
                        let failure = SendFailure::new(&facts, failure.detail, failure.refused, failure.body);
                        Err(SendFailure { took_leave, ..failure })
                    }
                }
            }
            (_, Message::Http1(_, body) | Message::Http2(_, body)) => {
                let detail = "the connection speaks another protocol".to_owned();
                let (took_leave, not_connected, distrusted) = (false, false, false);
                Err(SendFailure { refused: true, took_leave, body: Some(body), not_connected, distrusted, detail })
            }
        }
    }
}

impl SendFailure {
    fn new(facts: &Connected, detail: String, refused: bool, body: Option<RequestBody>) -> Self {
        let refusal = facts.refusal();
        let distrusted = facts.distrusted();
        let detail = refusal.map(str::to_owned).or(distrusted.map(ToString::to_string)).unwrap_or(detail);
        let (took_leave, not_connected, distrusted) = (false, refusal.is_some(), distrusted.is_some());
        Self { refused, took_leave, body, not_connected, distrusted, detail }
    }
}
