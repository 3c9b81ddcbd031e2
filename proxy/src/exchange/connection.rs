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

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::Instant;

use super::body::Answer;
use crate::accept::detect::Speaks;
use crate::codec::http1::serve::{self, Ended, Patience, Respond};
use crate::codec::{Incoming, Link, MAX_HEADER_BYTES, Seldom, Wire};
use crate::drain::Drain;
use crate::upstream::OnThisThread;

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

/// Serves the exchanges of one connection with `responder`. Once it is `time_to_go`, what is under way is finished and
/// nothing more is taken. Ends with a word for metrics when it ended badly.
pub(crate) async fn serve<R>(
    stream: impl Wire + 'static,
    speaks: Speaks,
    time_to_go: impl Future<Output = ()>,
    responder: R,
) -> Option<&'static str>
where
    R: Respond<Answer = Answer> + 'static,
{
    if speaks == Speaks::Http2 {
        return serve_http2(stream, time_to_go, Rc::new(responder)).await;
    }
    let patience = Patience { head: FIRST_HEAD_PATIENCE, idle: HEAD_PATIENCE };
    match serve::serve(Link::new(stream), patience, time_to_go, &responder).await {
        Ended::Well | Ended::Silent => None,
        Ended::Broken(word) => Some(word),
    }
}

async fn serve_http2<R>(
    stream: impl Wire + 'static,
    time_to_go: impl Future<Output = ()>,
    responder: Rc<R>,
) -> Option<&'static str>
where
    R: Respond<Answer = Answer> + 'static,
{
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let responder = Rc::clone(&responder);
        async move { Ok::<_, Infallible>(responder.respond(request.map(Incoming::Http2)).await) }
    });
    let mut connection = pin!(
        http2::Builder::new(OnThisThread)
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_HEADER_BYTES)
            .max_concurrent_streams(STREAMS)
            .keep_alive_interval(PING_EVERY)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(stream), service)
    );
    let time_to_go = pin!(time_to_go);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = Seldom::new(time_to_go) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    ended.err().map(|error| {
        tracing::debug!(%error, "an HTTP/2 connection ended badly");
        "http2"
    })
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
    use http::{Request, Response};

    use super::*;
    use crate::codec::http1::Bad;

    const MS: Duration = Duration::from_millis(1);

    struct Never;

    impl Respond for Never {
        type Answer = Answer;

        async fn respond(&self, _: Request<Incoming>) -> Response<Answer> {
            std::future::pending().await
        }

        fn refuse(&self, bad: Bad) -> Response<Answer> {
            panic!("{bad}")
        }
    }

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
        let serving = async {
            serve(ours, Speaks::Http1, std::future::pending(), Never).await;
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
