//! One connection from a caller, and the exchanges on it, until it ends or this process leaves.
//!
//! When it is time to go, HTTP/2 callers are told at once (GOAWAY loses nothing). Over HTTP/1.1 closing an idle connection
//! can cross a request already under way, so answers say `Connection: close` and the idle ones follow a little later.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::body::Answer;
use super::timer::OneTimer;
use crate::accept::detect::Speaks;
use crate::drain::Drain;
use crate::upstream::{MAX_HEADER_BYTES, MAX_HEADERS, OnThisThread};

/// How long a head may take, and so how long a kept connection may be idle. Longer than any sidecar keeps one
/// (`upstream::LONGEST_IDLE`), so that it is the caller who closes and no request meets a closing connection.
const HEAD_PATIENCE: Duration = Duration::from_secs(120);
/// How long the first head of an HTTP/1.1 connection may take: until it is there, the connection is nobody's.
const FIRST_HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// How long idle HTTP/1.1 connections outlive the beginning of a drain: callers learn meanwhile that we leave.
const LINGER: Duration = Duration::from_secs(2);
/// Exchanges at once on one HTTP/2 connection (Envoy's 1,024).
const STREAMS: u32 = 1024;
/// An HTTP/2 caller is asked for a sign of life this often.
const PING_EVERY: Duration = Duration::from_secs(30);

/// Serves the exchanges of one connection with `respond`. Once it is `time_to_go`, what is under way is finished and
/// nothing more is taken.
pub(crate) async fn serve<S, R, F>(
    stream: S,
    speaks: Speaks,
    time_to_go: impl Future<Output = ()>,
    respond: R,
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    R: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Answer>> + 'static,
{
    let asked = Cell::new(false);
    let service = service_fn(|request| {
        asked.set(true);
        let response = respond(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let stream = TokioIo::new(stream);
    match speaks {
        Speaks::Http2 => {
            let mut connection = pin!(
                http2::Builder::new(OnThisThread)
                    .timer(TokioTimer::new())
                    .max_header_list_size(MAX_HEADER_BYTES)
                    .max_concurrent_streams(STREAMS)
                    .keep_alive_interval(PING_EVERY)
                    .auto_date_header(false)
                    .serve_connection(stream, service)
            );
            tokio::select! {
                ended = connection.as_mut() => return ended,
                () = time_to_go => connection.as_mut().graceful_shutdown(),
            }
            connection.await
        }
        Speaks::Http1 | Speaks::Tls => {
            let mut connection = pin!(
                http1::Builder::new()
                    .timer(OneTimer::default())
                    .header_read_timeout(HEAD_PATIENCE)
                    .max_headers(MAX_HEADERS)
                    .max_header_size(MAX_HEADER_BYTES as usize)
                    .auto_date_header(false)
                    .serve_connection(stream, service)
            );
            tokio::select! {
                ended = connection.as_mut() => return ended,
                () = time_to_go => connection.as_mut().graceful_shutdown(),
                () = nothing_asked(&asked) => {
                    tracing::debug!("let go of a connection without a whole head after {FIRST_HEAD_PATIENCE:?}");
                    return Ok(());
                }
            }
            connection.await
        }
    }
}

/// Ends when nothing was `asked` in time; never, when something was.
async fn nothing_asked(asked: &Cell<bool>) {
    tokio::time::sleep(FIRST_HEAD_PATIENCE).await;
    if asked.get() {
        std::future::pending::<()>().await;
    }
}

/// Why a connection ended in the middle of a request's head, in a word for metrics; `None`: it did not. hyper has answered
/// such a head itself, with 400 or 431.
pub(crate) fn bad_head(error: &hyper::Error) -> Option<&'static str> {
    if error.is_parse_too_large() {
        Some("head_too_large")
    } else if error.is_parse() {
        Some("malformed_head")
    } else {
        None
    }
}

/// Whether exchanges are under way on a connection, and since when not.
#[derive(Debug)]
pub(crate) struct Quiet {
    exchanges: Cell<usize>,
    since: Cell<Instant>,
}

/// An exchange under way; over when dropped.
#[derive(Debug)]
pub(crate) struct Busy(Rc<Quiet>);

impl Quiet {
    /// Nothing is under way yet.
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self { exchanges: Cell::new(0), since: Cell::new(Instant::now()) })
    }

    /// An exchange begins.
    pub(crate) fn begin(self: &Rc<Self>) -> Busy {
        self.exchanges.set(self.exchanges.get() + 1);
        Busy(Rc::clone(self))
    }

    /// Waits until nothing was under way for `long`.
    pub(crate) async fn for_so_long(&self, long: Duration) {
        loop {
            let until = if self.exchanges.get() > 0 { Instant::now() + long } else { self.since.get() + long };
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.exchanges.set(self.0.exchanges.get() - 1);
        self.0.since.set(Instant::now());
    }
}

/// When the mesh's side of a connection ends: this process leaves, or the peer's certificate is over at `not_after`.
pub(crate) async fn time_to_go(speaks: Speaks, drain: &Drain, not_after: Option<SystemTime>) {
    let expired = async {
        match not_after.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default()) {
            Some(left) => tokio::time::sleep(left).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = expired => {}
        () = drain.wait_begun() => if speaks != Speaks::Http2 { tokio::time::sleep(LINGER).await },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_quiet_only_so_long_after_its_last_exchange() {
        let quiet = Quiet::new();
        let begun = Instant::now();
        let busy = quiet.begin();
        let waiting = async {
            quiet.for_so_long(100 * MS).await;
            begun.elapsed()
        };
        let working = async {
            tokio::time::sleep(250 * MS).await;
            drop(busy);
        };
        let (after, ()) = tokio::join!(waiting, working);
        assert!((350 * MS..=400 * MS).contains(&after), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_head_that_does_not_come_is_not_waited_for_as_long_as_the_next() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let begun = Instant::now();
        let (mut caller, ours) = tokio::io::duplex(64);
        let never = |_: Request<Incoming>| std::future::pending::<Response<Answer>>();
        let serving = async {
            serve(ours, Speaks::Http1, std::future::pending(), never).await.unwrap();
            begun.elapsed()
        };
        let dawdling = async {
            caller.write_all(b"GET / HTTP/1.1\r\nhost: ord").await.unwrap();
            let _ = caller.read_u8().await;
        };
        let (after, ()) = tokio::join!(serving, dawdling);
        assert!(after < FIRST_HEAD_PATIENCE + 100 * MS, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_time_to_go_when_the_peers_certificate_ends_or_we_leave() {
        let drain = Drain::new();
        let begun = Instant::now();
        let soon = SystemTime::now() + 1000 * MS;
        time_to_go(Speaks::Http2, &drain, Some(soon)).await;
        assert!((900 * MS..=1100 * MS).contains(&begun.elapsed()));
        drain.begin();
        let left = Instant::now();
        time_to_go(Speaks::Http2, &drain, None).await;
        assert!(left.elapsed() < MS, "GOAWAY loses nothing");
        time_to_go(Speaks::Http1, &drain, None).await;
        assert!(left.elapsed() >= LINGER);
    }
}
