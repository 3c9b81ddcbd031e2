//! The way from the mesh to the application: which stages, in which order.
//!
//! accept → detect → TLS (who speaks, which port is meant) → normalize → token → authorize → quota → forward to the
//! application → reply. From normalize on it is `exchange::serve::inbound`; where TLS says that plain TCP is spoken,
//! `tunnel::inbound`.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use equerry_policies::names::SpiffeId;
use equerry_traffic::token::Believed;
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::accept::detect::{self, Speaks, Spoken};
use crate::accept::tls;
use crate::app::Shared;
use crate::codec::Incoming;
use crate::codec::http1::Bad;
use crate::codec::http1::serve::Respond;
use crate::exchange::body::Answer;
use crate::exchange::{connection, serve};
use crate::observe::Direction;
use crate::tunnel;
use crate::upstream::Pool;

/// The inbound side of one worker.
pub struct Inbound {
    pub(crate) shared: Shared,
    pub(crate) pool: Rc<Pool>,
    /// Tokens verified lately.
    pub(crate) believed: RefCell<Believed>,
}

/// How a request came in: what its connection proved, and what it named.
#[derive(Debug, Clone)]
pub(crate) struct Via {
    /// The caller's address.
    pub(crate) address: SocketAddr,
    /// Who speaks, by certificate; `None`: plain text.
    pub(crate) peer: Option<SpiffeId>,
    /// When that certificate ends, and with it the connection.
    pub(crate) not_after: Option<SystemTime>,
    /// The server name of the TLS connection.
    pub(crate) server_name: Option<Arc<str>>,
    /// The application port that it names.
    pub(crate) port: Option<u16>,
}

impl Inbound {
    /// The inbound side of the current thread, which must be inside a `LocalSet`.
    pub fn new(shared: Shared) -> Self {
        Self { shared, pool: Pool::new(), believed: RefCell::default() }
    }

    /// Serves one connection from the mesh until it ends.
    pub async fn serve(self: &Rc<Self>, stream: TcpStream, address: SocketAddr) {
        let _working = self.shared.drain.guard();
        let (speaks, stream) = match detect::detect(stream).await {
            Ok(spoken) => spoken,
            Err(error) => return tracing::debug!(%error, peer = %address, "an inbound connection said nothing"),
        };
        if speaks == Speaks::Tls {
            self.serve_secured(stream, address).await;
        } else {
            // Whether its port may be spoken to in plain text is judged for each request: an answer can then say why not.
            let via = Via { address, peer: None, not_after: None, server_name: None, port: None };
            self.serve_exchanges(stream, speaks, via).await;
        }
    }

    async fn serve_secured(self: &Rc<Self>, stream: Spoken<TcpStream>, address: SocketAddr) {
        let observe = &self.shared.observe;
        let Some(identity) = self.shared.identity.current() else {
            // The exchange with nobody's certificate would prove nothing to the caller.
            return observe.handshake_failed(Direction::Inbound, "identity_expired");
        };
        match tls::secure(stream, &identity.server).await {
            Ok(secured) => {
                let via = Via {
                    address,
                    peer: Some(secured.peer),
                    not_after: Some(secured.not_after),
                    server_name: Some(secured.server_name),
                    port: secured.port,
                };
                if secured.speaks == Speaks::Tcp {
                    let _open = observe.connection(Direction::Inbound, true);
                    Box::pin(tunnel::inbound(self, &via, secured.stream)).await;
                } else {
                    self.serve_exchanges(secured.stream, secured.speaks, via).await;
                }
            }
            Err(refused) => {
                observe.handshake_failed(Direction::Inbound, refused.word);
                tracing::info!(peer = %address, reason = refused.word, detail = refused.detail, "refused a TLS handshake");
            }
        }
    }

    async fn serve_exchanges<S>(self: &Rc<Self>, stream: S, speaks: Speaks, via: Via)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let _open = self.shared.observe.connection(Direction::Inbound, via.peer.is_some());
        let address = via.address;
        let time_to_go = connection::time_to_go(speaks, &self.shared.drain, via.not_after);
        let responder = Responder { at: Rc::clone(self), via };
        if let Some(word) = connection::serve(stream, speaks, time_to_go, responder).await {
            tracing::debug!(reason = word, peer = %address, "an inbound connection ended badly");
        }
    }
}

/// Answers the requests of one connection.
struct Responder {
    at: Rc<Inbound>,
    via: Via,
}

impl Respond for Responder {
    type Answer = Answer;

    async fn respond(&self, request: Request<Incoming>) -> Response<Answer> {
        serve::inbound(&self.at, &self.via, request).await
    }

    fn refuse(&self, bad: Bad) -> Response<Answer> {
        serve::unreadable(&self.at.shared, Direction::Inbound, self.via.address, &bad)
    }
}
