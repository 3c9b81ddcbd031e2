//! Plain TCP through the mesh: a connection is authorized, an endpoint picked, and bytes are copied both ways until both
//! ends are done; a half that is closed stays closed while the other goes on.
//!
//! Ports declared `appProtocol: tcp` are reached, where nobody looks at the bytes and nobody waits for the first of them, so that
//! whoever speaks first may; and ports that declare nothing ([`undeclared`]), where no rule about HTTP holds. Between sidecars (ALPN `eq-tcp`) the callee's first line is the reason for which it goes no
//! further, or `ok`; then the application's bytes begin. What is cut later is reset: nobody takes half for all.
//!
//! A connection comes to a local port that names a Service, by CONNECT, or out of HTTP after 101.

mod connect;
mod inbound;
mod limits;
mod opened;
mod outbound;
mod undeclared;

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use equerry_policies::names::ServiceName;
use equerry_traffic::{Reason, Refusal};
use http::Request;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::app::Shared;
use crate::exchange::facts::{self, Record};
use crate::live::trust::Distrusted;
use crate::observe::Direction;

pub(crate) use connect::connect;
pub(crate) use inbound::{Plain, inbound, opens, plain, plain_inbound};
pub(crate) use opened::{opened_outbound, upgraded_inbound};
pub(crate) use undeclared::outbound;

/// A peer that went silent is asked for a sign of life after this, and then this often.
const SIGN_OF_LIFE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(10));
/// What one read takes.
const BUFFER: usize = 16 * 1024;

/// Why a connection does not go on.
#[derive(Debug)]
struct Cut {
    reason: Reason,
    /// The policy that decided it.
    cause: Option<String>,
    detail: String,
}

impl From<Refusal> for Cut {
    fn from(refusal: Refusal) -> Self {
        Self { reason: refusal.reason(), cause: refusal.cause().map(str::to_owned), detail: refusal.to_string() }
    }
}

/// Bytes that passed, and when the last ones did.
struct Flow {
    received: Cell<u64>,
    sent: Cell<u64>,
    last: Cell<Instant>,
}

impl Flow {
    fn new() -> Self {
        Self { received: Cell::new(0), sent: Cell::new(0), last: Cell::new(Instant::now()) }
    }

    /// Waits until nothing has passed for `long`.
    async fn stands_still(&self, long: Duration) {
        loop {
            let until = self.last.get() + long;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// Which end of one way broke.
enum Broke {
    Reading(io::Error),
    Writing(io::Error),
}

/// Copies both ways until both ends have said all; `early` was read from `far` already.
async fn carry<N, F>(near: &mut N, far: &mut F, early: &[u8], flow: &Flow) -> Result<(), Cut>
where
    N: AsyncRead + AsyncWrite + Unpin,
    F: AsyncRead + AsyncWrite + Unpin,
{
    let (near_reads, near_writes) = tokio::io::split(near);
    let (far_reads, far_writes) = tokio::io::split(far);
    let out = async {
        one_way(&[], near_reads, far_writes, &flow.received, flow).await.map_err(|broke| match broke {
            Broke::Reading(error) => Cut::by_the_caller(&error),
            Broke::Writing(error) => Cut::by_the_other(&error),
        })
    };
    let back = async {
        one_way(early, far_reads, near_writes, &flow.sent, flow).await.map_err(|broke| match broke {
            Broke::Reading(error) => Cut::by_the_other(&error),
            Broke::Writing(error) => Cut::by_the_caller(&error),
        })
    };
    tokio::try_join!(out, back).map(drop)
}

impl Cut {
    fn by_the_caller(error: &io::Error) -> Self {
        Self { reason: Reason::ClientGone, cause: None, detail: error.to_string() }
    }

    fn by_the_other(error: &io::Error) -> Self {
        if let Some(why) = Distrusted::in_error(error) {
            return Refusal::Distrusted { why: why.to_string() }.into();
        }
        Refusal::UpstreamReset { detail: error.to_string() }.into()
    }
}

async fn one_way(
    early: &[u8],
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    count: &Cell<u64>,
    flow: &Flow,
) -> Result<(), Broke> {
    let mut buffer = vec![0; BUFFER];
    let mut passing = early;
    loop {
        if !passing.is_empty() {
            to.write_all(passing).await.map_err(Broke::Writing)?;
            // TLS may hold back what the socket did not take.
            to.flush().await.map_err(Broke::Writing)?;
            count.set(count.get() + passing.len() as u64);
            flow.last.set(Instant::now());
        }
        let read = from.read(&mut buffer).await.map_err(Broke::Reading)?;
        passing = &buffer[..read];
        if read == 0 {
            return match to.shutdown().await {
                // The other side had left already; it was told nothing that it did not know.
                Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(Broke::Writing(error)),
                _ => Ok(()),
            };
        }
    }
}

fn open(direction: Direction, from: SocketAddr, shared: &Shared) -> Record {
    let mut head = Request::new(()).into_parts().0;
    let mut about = facts::describe(direction, &mut head, from);
    // Nobody tells the other side which trace a connection belongs to.
    (about.tunnel, about.traceparent) = (true, None);
    Record::open(about, &shared.observe)
}

fn ended(record: &mut Record, flow: &Flow, end: Result<(), Cut>) {
    let received = record.received();
    received.set(received.get() + flow.received.get());
    record.sent(usize::try_from(flow.sent.get()).unwrap_or(usize::MAX));
    match end {
        Ok(()) => record.broke(Reason::Ok),
        Err(Cut { reason, cause, detail }) => {
            record.broke(reason);
            record.note(|exchange| (exchange.policy_rule, exchange.detail) = (cause, Some(detail)));
        }
    }
}

fn ask_for_life(socket: &TcpStream) {
    let (after, every) = SIGN_OF_LIFE;
    let asking = socket2::TcpKeepalive::new().with_time(after).with_interval(every);
    if let Err(error) = socket2::SockRef::from(socket).set_tcp_keepalive(&asking) {
        tracing::debug!(%error, "a connection cannot be asked for signs of life");
    }
}

/// Makes dropping the connection a reset: its end must not look like the end of what was to be said.
fn reset(socket: &TcpStream) {
    // A connection that is gone already needs none.
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

fn not_tcp(port: u16, of: &ServiceName) -> Refusal {
    Refusal::bad_request(format!("port {port} of {of} speaks HTTP, and this is TCP"))
}
