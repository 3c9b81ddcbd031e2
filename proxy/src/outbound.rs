//! The way from the application into the mesh: which stages, in which order.
//!
//! accept → detect → normalize → which Service is meant → may it leave → route → deadline → tries (breaker, balance,
//! connection, send, judge) → reply. The last eight are `exchange::serve::outbound`.

use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::TcpStream;

use crate::accept::detect::{self, Speaks};
use crate::app::Shared;
use crate::exchange::{connection, serve};
use crate::observe::Direction;
use crate::upstream::Pool;

/// The outbound side of one worker.
pub struct Outbound {
    pub(crate) shared: Shared,
    pub(crate) pool: Rc<Pool>,
}

impl Outbound {
    /// The outbound side of the current thread, which must be inside a `LocalSet`.
    pub fn new(shared: Shared) -> Self {
        Self { shared, pool: Pool::new() }
    }

    /// Serves one connection of the application until it ends.
    pub async fn serve(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr) {
        let observe = &self.shared.observe;
        let _open = observe.connection(Direction::Outbound, false);
        let (speaks, stream) = match detect::detect(stream).await {
            Ok((Speaks::Tls, _)) => return observe.handshake_failed(Direction::Outbound, "tls_not_spoken_here"),
            Ok(spoken) => spoken,
            Err(error) => return tracing::debug!(%error, %peer, "an outbound connection said nothing"),
        };
        let this = Rc::clone(self);
        let respond = move |request| {
            let this = Rc::clone(&this);
            async move { serve::outbound(&this, peer, request).await }
        };
        // While this process leaves, the application still needs its way out: each exchange holds the drain, not the
        // connection.
        if let Err(error) = connection::serve(stream, speaks, std::future::pending(), respond).await {
            tracing::debug!(%error, %peer, "an outbound connection ended badly");
        }
    }
}
