//! The way from the application into the mesh: which stages, in which order.
//!
//! accept → detect → normalize → which Service is meant → may it leave → route → deadline → tries (breaker, balance,
//! connection, send, judge) → reply. The last eight are `exchange::serve::outbound`. What comes to a local port of `--tcp`
//! is nobody's request, unless its port declares nothing and HTTP comes: `tunnel::outbound` leads it on. CONNECT asks `tunnel::connect` for such a connection, and after an answer
//! that changed the protocol it goes on in `tunnel::opened_outbound`.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use equerry_policies::names::{Authority, Namespace};
use equerry_policies::quick::Quick;
use equerry_traffic::normalize::Normal;
use http::request::Parts;
use http::{HeaderValue, Response};
use tokio::net::TcpStream;

use crate::accept::detect::{self, Speaks, Spoken};
use crate::app::Shared;
use crate::codec::http1::Bad;
use crate::codec::http1::serve::Respond;
use crate::codec::{Early, Incoming, Link};
use crate::config::TcpPort;
use crate::exchange::body::Answer;
use crate::exchange::connection;
use crate::exchange::mirror::UnderWay;
use crate::exchange::{overload, serve};
use crate::observe::Direction;
use crate::tunnel;
use crate::upstream::Pool;

/// Readings of authorities that are remembered; the keys are the application's own, so that it could only slow itself down.
const NAMED_LATELY: usize = 64;

/// Where the sidecar listens for connections to the Service of `port`.
pub(crate) fn tcp_door(port: &TcpPort) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port.local).into()
}

/// The outbound side of one worker.
pub struct Outbound {
    pub(crate) shared: Shared,
    pub(crate) pool: Rc<Pool>,
    pub(crate) mirrors: UnderWay,
    /// What authorities named lately.
    named: RefCell<Quick<HeaderValue, Rc<Authority>>>,
}

/// How a request came out of the application.
#[derive(Debug)]
pub(crate) struct Via {
    /// The application's address.
    pub(crate) address: SocketAddr,
    /// The Service port that its requests are for, whatever they say themselves: they came by a local port that leads there.
    pub(crate) meant: Option<Rc<Authority>>,
}

impl Outbound {
    /// The outbound side of the current thread, which must be inside a `LocalSet`.
    pub fn new(shared: Shared) -> Self {
        Self { shared, pool: Pool::new(), mirrors: UnderWay::default(), named: RefCell::default() }
    }

    /// The Service of this mesh that a request may mean, read once: applications name few, again and again. `own` is this
    /// workload's namespace.
    pub(crate) fn meant(&self, normal: &Normal, own: &Namespace) -> Option<Rc<Authority>> {
        let mut named = self.named.borrow_mut();
        if let Some(known) = named.get(normal.host_header()) {
            return Some(Rc::clone(known));
        }
        let authority = Rc::new(Authority::parse(normal.authority(), own).ok()?);
        if named.len() >= NAMED_LATELY {
            named.clear();
        }
        // A copy: the header's memory is shared with all of its request.
        if let Ok(text) = HeaderValue::from_str(normal.authority()) {
            named.insert(text, Rc::clone(&authority));
        }
        Some(authority)
    }

    /// Serves one connection of the application until it ends.
    pub async fn serve(self: &Rc<Self>, stream: TcpStream, address: SocketAddr) {
        // While the process leaves, its application still needs a way out: none of its connections is closed by us, and the
        // process waits for the last of them.
        let _working = self.shared.drain.guard();
        let observe = &self.shared.observe;
        let _open = observe.connection(Direction::Outbound, false);
        if let Some(named) = self.named_by(&stream) {
            return Box::pin(tunnel::outbound(self, named, stream, address)).await;
        }
        let (speaks, stream) = match detect::detect(stream).await {
            Ok((Speaks::Tls, _)) => return observe.handshake_failed(Direction::Outbound, "tls_not_spoken_here"),
            Ok(spoken) => spoken,
            Err(error) => return tracing::debug!(%error, peer = %address, "an outbound connection said nothing"),
        };
        self.serve_requests(stream, speaks, Via { address, meant: None }).await;
    }

    /// Serves the requests of one connection until it ends.
    pub(crate) async fn serve_requests(self: &Rc<Self>, stream: Spoken<TcpStream>, speaks: Speaks, via: Via) {
        let peer = via.address;
        let responder = Responder { at: Rc::clone(self), via };
        if let Some(word) = connection::serve(stream, speaks, std::future::pending(), responder).await {
            tracing::debug!(reason = word, %peer, "an outbound connection ended badly");
        }
    }

    /// Tells a connection for which there is no room that it is one too many.
    pub async fn turn_away(self: &Rc<Self>, stream: TcpStream, address: SocketAddr) {
        if self.named_by(&stream).is_none() {
            overload::turn_away(stream, &self.shared, Direction::Outbound, address).await;
        }
    }

    /// The Service that the local port leads to, if it is one of `--tcp`; whoever connected there need not say anything.
    fn named_by(&self, stream: &TcpStream) -> Option<&str> {
        let named = &self.shared.settings.tcp;
        if named.is_empty() {
            return None;
        }
        let local = stream.local_addr().ok()?;
        named.iter().find(|port| local == tcp_door(port)).map(|port| port.service.as_str())
    }
}

/// Answers the requests of one connection.
struct Responder {
    at: Rc<Outbound>,
    via: Via,
}

impl Respond for Responder {
    type Answer = Answer;

    fn respond(&self, head: &mut Parts, body: Incoming, early: &Early) -> impl Future<Output = Response<Answer>> {
        serve::outbound(&self.at, &self.via, head, body, early)
    }

    fn refuse(&self, bad: Bad) -> Response<Answer> {
        serve::unreadable(&self.at.shared, Direction::Outbound, self.via.address, &bad)
    }

    async fn switch(&self, near: Link, answer: Answer) {
        tunnel::opened_outbound(near, answer).await;
    }
}
