//! The way from the application into the mesh: which stages, in which order.
//!
//! accept → detect → normalize → which Service is meant → may it leave → route → deadline → tries (breaker, balance,
//! connection, send, judge) → reply. The last eight are `exchange::serve::outbound`. What comes to a local port of `--tcp`
//! is nobody's request: `tunnel::outbound` leads it on.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};
use tokio::net::TcpStream;

use crate::accept::detect::{self, Speaks};
use crate::app::Shared;
use crate::codec::http1::Bad;
use crate::codec::http1::serve::Respond;
use crate::codec::{Incoming, Seldom};
use crate::config::TcpPort;
use crate::exchange::body::Answer;
use crate::exchange::connection::{self, Quiet};
use crate::exchange::mirror::UnderWay;
use crate::exchange::serve;
use crate::observe::Direction;
use crate::tunnel;
use crate::upstream::Pool;

/// An application that has called nobody for so long is taken to have finished; idle connections it keeps do not count.
const QUIET: Duration = Duration::from_secs(5);

/// Where the sidecar listens for connections to the Service of `port`.
pub(crate) fn tcp_door(port: &TcpPort) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port.local).into()
}

/// The outbound side of one worker.
pub struct Outbound {
    pub(crate) shared: Shared,
    pub(crate) pool: Rc<Pool>,
    pub(crate) mirrors: UnderWay,
}

/// How a request came out of the application.
#[derive(Debug)]
pub(crate) struct Via {
    /// The application's address.
    pub(crate) address: SocketAddr,
    /// Whether its connection is in use.
    pub(crate) quiet: Rc<Quiet>,
}

impl Outbound {
    /// The outbound side of the current thread, which must be inside a `LocalSet`.
    pub fn new(shared: Shared) -> Self {
        Self { shared, pool: Pool::new(), mirrors: UnderWay::default() }
    }

    /// Serves one connection of the application until it ends.
    pub async fn serve(self: &Rc<Self>, stream: TcpStream, address: SocketAddr) {
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
        let via = Rc::new(Via { address, quiet: Quiet::new() });
        let responder = Responder { at: Rc::clone(self), via: Rc::clone(&via) };
        let holding = pin!(self.hold_the_process(&via));
        tokio::select! {
            ended = connection::serve(stream, speaks, std::future::pending(), responder) => if let Some(word) = ended {
                tracing::debug!(reason = word, peer = %address, "an outbound connection ended badly");
            },
            () = Seldom::new(holding) => {}
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

    /// While the process leaves, its application still needs a way out: it is waited for until it has been quiet for a
    /// while. The connection itself is never closed by us.
    async fn hold_the_process(&self, via: &Via) {
        let working = self.shared.drain.guard();
        self.shared.drain.wait_begun().await;
        via.quiet.for_so_long(QUIET).await;
        drop(working);
        std::future::pending::<()>().await;
    }
}

/// Answers the requests of one connection.
struct Responder {
    at: Rc<Outbound>,
    via: Rc<Via>,
}

impl Respond for Responder {
    type Answer = Answer;

    async fn respond(&self, request: Request<Incoming>) -> Response<Answer> {
        serve::outbound(&self.at, &self.via, request).await
    }

    fn refuse(&self, bad: Bad) -> Response<Answer> {
        serve::unreadable(&self.at.shared, Direction::Outbound, self.via.address, &bad)
    }
}
