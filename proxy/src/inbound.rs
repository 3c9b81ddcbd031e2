//! The way from the mesh to the application: which stages, in which order.
//!
//! accept → detect → TLS (who speaks, which port is meant) → normalize → token → authorize → quota → forward to the
//! application → reply. From normalize on it is `exchange::serve::inbound`; where TLS says that plain TCP is spoken,
//! `tunnel::inbound`, and after an answer that changed the protocol, `tunnel::upgraded_inbound`.

use std::cell::{OnceCell, RefCell};
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use equerry_policies::names::SpiffeId;
use equerry_traffic::Reason;
use equerry_traffic::authorize::Connection;
use equerry_traffic::token::Believed;
use http::request::Parts;
use http::{HeaderValue, Response};
use tokio::net::TcpStream;

use crate::accept::detect::{self, Speaks, Spoken};
use crate::accept::tls;
use crate::app::Shared;
use crate::codec::http1::Bad;
use crate::codec::http1::serve::Respond;
use crate::codec::{Ahead, Early, Incoming, Link, Seldom, Wire};
use crate::exchange::body::Answer;
use crate::exchange::facts;
use crate::exchange::rounds::Rounds;
use crate::exchange::{connection, overload, serve};
use crate::live::trust::Vouched;
use crate::observe::Direction;
use crate::tunnel::{self, Plain};
use crate::upstream::Pool;

/// How long a connection may take to end by itself when its caller is believed no more.
const TELLS_ITSELF: Duration = Duration::from_millis(50);

/// How long what is under way in plain text may go on where that is taken no more.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The inbound side of one worker.
pub struct Inbound {
    pub(crate) shared: Shared,
    pub(crate) pool: Rc<Pool>,
    /// Tokens verified lately.
    pub(crate) believed: RefCell<Believed>,
    /// Counts the changes of what is enforced here.
    pub(crate) rounds: Rc<Rounds>,
    handshakes: tls::Handshakes,
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
    /// Who vouched for the caller, for as long as they are believed.
    pub(crate) vouched: Option<Vouched>,
    /// Why they are believed no more, once that is so.
    pub(crate) distrusted: OnceCell<String>,
    /// The server name of the TLS connection.
    pub(crate) server_name: Option<Arc<str>>,
    /// The application port that it names.
    pub(crate) port: Option<u16>,
    /// The address it connected to.
    pub(crate) local: Option<IpAddr>,
    /// How the application is told who calls; made once for all requests of the connection.
    pub(crate) introduction: OnceCell<HeaderValue>,
}

impl Via {
    /// The connection, to the application port `port`, as authorization asks about it.
    pub(crate) fn connection(&self, port: u16) -> Connection<'_> {
        Connection { port, peer_ip: self.address.ip(), local_ip: self.local, sni: self.server_name.as_deref() }
    }
}

impl Inbound {
    /// The inbound side of the current thread, which must be inside a `LocalSet`.
    pub fn new(shared: Shared) -> Self {
        let (rounds, handshakes) = (Rounds::of(&shared.live), tls::Handshakes::default());
        Self { shared, pool: Pool::new(), believed: RefCell::default(), rounds, handshakes }
    }

    /// Serves one connection from the mesh until it ends.
    pub async fn serve(self: &Rc<Self>, stream: TcpStream, address: SocketAddr) {
        let _working = self.shared.drain.guard();
        let local = stream.local_addr().ok().map(|local| local.ip());
        let plain = tunnel::plain(self);
        let detected = match plain {
            Plain::Bytes(None) => Ok((None, Spoken::unheard(stream))),
            Plain::Bytes(Some(patience)) => detect::detect_within(patience, stream).await,
            Plain::Requests | Plain::AsItBegins { .. } => detect::detect_within(detect::PATIENCE, stream).await,
        };
        let (speaks, mut stream) = match detected {
            Ok(spoken) => spoken,
            Err(error) => return tracing::debug!(%error, peer = %address, "an inbound connection said nothing"),
        };
        if speaks == Some(Speaks::Tls) && plain != (Plain::AsItBegins { tls: false }) {
            return self.serve_secured(stream, address, local).await;
        }
        // Whether its port may be spoken to in plain text is judged for each request: an answer can then say why not.
        let (introduction, distrusted) = (OnceCell::new(), OnceCell::new());
        let (peer, not_after, vouched, server_name, port) = (None, None, None, None, None);
        let via = Via { address, peer, not_after, vouched, distrusted, server_name, port, local, introduction };
        let bytes = match (plain, speaks) {
            (Plain::Bytes(_), _) | (Plain::AsItBegins { .. }, Some(Speaks::Tls)) => true,
            // As much as a preface of HTTP/2 begins with, and no more.
            (Plain::AsItBegins { .. }, None) => stream.has_spoken(),
            (Plain::AsItBegins { .. }, Some(Speaks::Http1)) => {
                !detect::begins_a_request(&mut stream, detect::PATIENCE).await.unwrap_or(true)
            }
            _ => false,
        };
        match speaks {
            _ if bytes => {
                let _open = self.shared.observe.connection(Direction::Inbound, false);
                Box::pin(tunnel::plain_inbound(self, &via, stream)).await;
            }
            Some(speaks) => self.serve_exchanges(stream, speaks, via).await,
            None => tracing::debug!(peer = %address, "an inbound connection said nothing"),
        }
    }

    /// Tells a connection for which there is no room that it is one too many. One that begins with TLS is just closed: its
    /// caller goes elsewhere, and a handshake would cost more than it says.
    pub async fn turn_away(self: &Rc<Self>, stream: TcpStream, address: SocketAddr) {
        overload::turn_away(stream, &self.shared, Direction::Inbound, address).await;
    }

    async fn serve_secured(self: &Rc<Self>, stream: Spoken<TcpStream>, address: SocketAddr, local: Option<IpAddr>) {
        let observe = &self.shared.observe;
        let Some(identity) = self.shared.identity.current() else {
            // The exchange with nobody's certificate would prove nothing to the caller.
            return observe.handshake_failed(Direction::Inbound, "identity_expired");
        };
        let takes_tls =
            |port| self.shared.live.load().workload.as_ref().is_none_or(|policy| policy.mtls(port).takes_tls());
        match self.handshakes.secure(Ahead::new(stream), &identity.server, takes_tls).await {
            Ok(secured) => {
                let shown = secured.stream.get_ref().1.peer_certificates();
                let vouched = Some(identity.vouched(secured.peer.clone(), shown));
                let via = Via {
                    address,
                    vouched,
                    distrusted: OnceCell::new(),
                    peer: Some(secured.peer),
                    not_after: Some(secured.not_after),
                    server_name: Some(secured.server_name),
                    port: secured.port,
                    local,
                    introduction: OnceCell::new(),
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
        S: Wire + 'static,
    {
        let _open = self.shared.observe.connection(Direction::Inbound, via.peer.is_some());
        let address = via.address;
        let drain = Rc::clone(self);
        let (not_after, vouched) = (via.not_after, via.vouched.clone());
        let time_to_go = {
            let turned = out_of_place(self, &via);
            async move {
                tokio::select! {
                    () = connection::time_to_go(speaks, &drain.shared.drain, not_after, vouched) => {}
                    () = turned => {}
                }
            }
        };
        let (over, why) = (over(self, &via), OnceCell::new());
        let mut over = Seldom::new(Box::pin(async {
            let _ = why.set(over.await);
        }));
        let mut listening = self.rounds.listening();
        let via = Rc::new(via);
        let responder = Responder { at: Rc::clone(self), via: Rc::clone(&via) };
        let mut serving = Box::pin(connection::serve(stream, speaks, time_to_go, responder));
        let ended = poll_fn(|cx| {
            listening.listen(cx);
            if over.is_over(cx) { Poll::Ready(None) } else { serving.as_mut().poll(cx).map(Some) }
        });
        if let Some(ended) = ended.await {
            if let Some(word) = ended {
                tracing::debug!(reason = word, peer = %address, "an inbound connection ended badly");
            }
        } else if let Some((reason, why)) = why.get() {
            tracing::warn!(peer = %address, %why, "a connection is ended");
            // What goes on without HTTP sees for itself, and tells more. What waits, or goes on for long, is judged again and told.
            if *reason == Reason::IdentityRevoked {
                let _ = via.distrusted.set(why.clone());
                self.rounds.begin();
            }
            if tokio::time::timeout(TELLS_ITSELF, serving.as_mut()).await.is_err() {
                facts::cut(*reason, why, || drop(serving));
            }
        }
    }
}

/// When nothing may go on over a connection, and why: whoever is at its other end is believed no more, or it is plain text that
/// nobody takes any more, and what was under way has had its time.
fn over(at: &Rc<Inbound>, via: &Via) -> impl Future<Output = (Reason, String)> + use<> {
    let (vouched, turned) = (via.vouched.clone(), out_of_place(at, via));
    async move {
        if let Some(vouched) = vouched {
            return (Reason::IdentityRevoked, vouched.believed_no_more().await);
        }
        turned.await;
        tokio::time::sleep(LAST_WORDS).await;
        (Reason::TlsRequired, "plain text is taken here no more".to_owned())
    }
}

/// Waits until a connection is out of place: mutual TLS where only plain text is taken now, or plain text where that is taken no more.
/// The mode may have changed during the handshake. Requests that come meanwhile are judged one by one.
fn out_of_place(at: &Rc<Inbound>, via: &Via) -> impl Future<Output = ()> + use<> {
    let (at, secured, port) = (Rc::clone(at), via.peer.is_some(), via.port);
    let mut modes = at.shared.live.modes();
    async move {
        // Whoever begins in plain text where it is not taken is told so in an answer.
        if secured && !fits(&at, secured, port) {
            return;
        }
        while modes.changed().await.is_ok() {
            if !fits(&at, secured, port) {
                return;
            }
        }
        std::future::pending::<()>().await;
    }
}

/// Whether a connection is one of those that are taken now, to the port that it names.
fn fits(at: &Inbound, secured: bool, port: Option<u16>) -> bool {
    let live = at.shared.live.load();
    let Some(workload) = &live.workload else { return true };
    if secured {
        return port.is_none_or(|port| workload.mtls(port).takes_tls());
    }
    at.shared.settings.app_ports.iter().any(|known| workload.mtls(known.port).takes_plain_text())
}

/// Answers the requests of one connection.
struct Responder {
    at: Rc<Inbound>,
    via: Rc<Via>,
}

impl Respond for Responder {
    type Answer = Answer;

    fn respond(&self, head: &mut Parts, body: Incoming, early: &Early) -> impl Future<Output = Response<Answer>> {
        serve::inbound(&self.at, &self.via, head, body, early)
    }

    fn refuse(&self, bad: Bad) -> Response<Answer> {
        serve::unreadable(&self.at.shared, Direction::Inbound, self.via.address, &bad)
    }

    async fn switch(&self, near: Link, answer: Answer) {
        tunnel::upgraded_inbound(&self.via, near, answer).await;
    }

    fn round(&self) -> u64 {
        self.at.rounds.now()
    }
}
