//! One connection from a caller, and the exchanges on it, until it ends or this process leaves.
//!
//! When it is time to go, HTTP/2 callers are told soon (GOAWAY loses nothing). Over HTTP/1.1 closing an idle connection
//! can cross a request already under way, so answers say `Connection: close` and the idle ones follow a little later.

use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use super::body::Answer;
use crate::accept::detect::Speaks;
use crate::codec::http1::serve::{self, Ended, Patience, Respond};
use crate::codec::{Link, Wire, http2};
use crate::drain::Drain;
use crate::live::trust::Vouched;

/// How long a head may take, and so how long a kept connection may be idle. Longer than any sidecar keeps one
/// (`upstream::LONGEST_IDLE`), so that it is the caller who closes and no request meets a closing connection.
const HEAD_PATIENCE: Duration = Duration::from_secs(120);
/// How long the first head of an HTTP/1.1 connection may take: until it is there, the connection is nobody's.
const FIRST_HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// How long idle HTTP/1.1 connections outlive the beginning of a drain: callers learn meanwhile that we leave.
const LINGER: Duration = Duration::from_secs(2);
/// Connections do not all end in one moment, or their callers would all come back in one: each waits a part of this, at random.
const JITTER: Duration = Duration::from_millis(500);
/// How long an HTTP/2 connection may be idle (Envoy's hour): who gives signs of life may keep it, and is told when it ends.
const IDLE_PATIENCE: Duration = Duration::from_secs(3600);

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
    let link = Link::new(stream);
    let ended = if speaks == Speaks::Http2 {
        let patience = Patience { head: FIRST_HEAD_PATIENCE, idle: IDLE_PATIENCE };
        http2::serve::serve(link, patience, time_to_go, Rc::new(responder)).await
    } else {
        let patience = Patience { head: FIRST_HEAD_PATIENCE, idle: HEAD_PATIENCE };
        serve::serve(link, patience, time_to_go, &responder).await
    };
    match ended {
        Ended::Well | Ended::Silent => None,
        Ended::Broken(word) => Some(word),
    }
}

/// When the mesh's side of a connection ends: this process leaves, the peer's certificate is over at `not_after`, or the root is gone
/// that vouched for them.
pub(crate) async fn time_to_go(speaks: Speaks, drain: &Drain, not_after: Option<SystemTime>, vouched: Option<Vouched>) {
    let linger = if speaks == Speaks::Http2 { Duration::ZERO } else { LINGER };
    let expired = async {
        match not_after.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default()) {
            Some(left) => tokio::time::sleep(left).await,
            None => std::future::pending().await,
        }
    };
    let doubted = async {
        match vouched {
            Some(vouched) => vouched.doubted().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = expired => {}
        // They learn of it when we do, and begin nothing more over it.
        () = doubted => tokio::time::sleep(linger).await,
        () = drain.wait_begun() => {
            tokio::time::sleep(linger + JITTER.mul_f64(fastrand::f64())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Response;
    use http::request::Parts;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::super::facts::Record;
    use super::*;
    use crate::codec::http1::Bad;
    use crate::codec::{Early, Incoming};
    use crate::observe::{AccessLogTarget, Observer, ObserverOptions, SERIES_CAP};

    const MS: Duration = Duration::from_millis(1);

    /// Answers a great deal, and bad heads in their own words.
    struct Talkative(Observer);

    impl Talkative {
        fn new() -> Self {
            let options = ObserverOptions { access_log: AccessLogTarget::Off, series_cap: SERIES_CAP };
            Self(Observer::new(options).unwrap())
        }

        fn says(&self, content: Bytes) -> Response<Answer> {
            Response::new(Answer::ours(content, Record::untold(&self.0)))
        }
    }

    impl Respond for Talkative {
        type Answer = Answer;

        async fn respond(&self, _: &mut Parts, _: Incoming, _: &Early) -> Response<Answer> {
            self.says(Bytes::from(vec![b'x'; 1 << 20]))
        }

        fn refuse(&self, bad: Bad) -> Response<Answer> {
            self.says(bad.to_string().into())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_head_that_does_not_come_is_not_waited_for_as_long_as_the_next_and_its_sender_is_told() {
        let begun = Instant::now();
        let (mut caller, ours) = tokio::io::duplex(64);
        let serving = async {
            let ended = serve(ours, Speaks::Http1, std::future::pending(), Talkative::new()).await;
            assert_eq!(ended, Some("head_timeout"));
        };
        let dawdling = async {
            caller.write_all(b"GET / HTTP/1.1\r\nhost: ord").await.unwrap();
            let mut told = String::new();
            caller.read_to_string(&mut told).await.unwrap();
            assert!(told.ends_with("a head that was not whole after 10s"), "{told}");
            begun.elapsed()
        };
        let ((), after) = tokio::join!(serving, dawdling);
        assert!(after < FIRST_HEAD_PATIENCE + 100 * MS, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_takes_nothing_of_its_answer_is_not_waited_for_without_end() {
        let begun = Instant::now();
        let (mut caller, ours) = tokio::io::duplex(64);
        let serving = async {
            let ended = serve(ours, Speaks::Http1, std::future::pending(), Talkative::new()).await;
            (ended, begun.elapsed())
        };
        let asking = async {
            caller.write_all(b"GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await.unwrap();
            // It takes a little at first: the time begins anew with each piece.
            tokio::time::sleep(200_000 * MS).await;
            caller.read_exact(&mut [0; 32]).await.unwrap();
            std::future::pending::<()>().await;
        };
        let (ended, after) = tokio::select! {
            ended = serving => ended,
            () = asking => unreachable!("it waits for ever"),
        };
        assert_eq!(ended, Some("body_broken"));
        assert!((500_000 * MS..501_000 * MS).contains(&after), "{after:?}");
    }

    /// A caller takes so many bytes each second, and not a byte more; how its connection ended, and after how long.
    async fn taking(each_second: usize) -> (Option<&'static str>, Duration) {
        let begun = Instant::now();
        let (mut caller, ours) = tokio::io::duplex(1024);
        let serving = async {
            let ended = serve(ours, Speaks::Http1, std::future::pending(), Talkative::new()).await;
            (ended, begun.elapsed())
        };
        let asking = async {
            caller.write_all(b"GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut piece = vec![0; each_second];
            while caller.read_exact(&mut piece).await.is_ok() {
                tokio::time::sleep(1000 * MS).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = serving => ended,
            () = asking => unreachable!("it waits for ever"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_takes_its_answer_at_a_crawl_is_cut_and_one_that_takes_it_slowly_gets_all_of_it() {
        let (ended, after) = taking(50).await;
        assert_eq!(ended, Some("body_broken"));
        // What lies between the two counts at first.
        assert!((30_000 * MS..70_000 * MS).contains(&after), "{after:?}");
        let (ended, after) = taking(100).await;
        assert_eq!(ended, None, "after {after:?}");
        assert!(after > 10_000_000 * MS, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_time_to_go_when_the_peers_certificate_ends_or_we_leave() {
        let drain = Drain::new();
        let begun = Instant::now();
        let soon = SystemTime::now() + 1000 * MS;
        time_to_go(Speaks::Http2, &drain, Some(soon), None).await;
        assert!((900 * MS..=1100 * MS).contains(&begun.elapsed()));
        drain.begin();
        let left = Instant::now();
        time_to_go(Speaks::Http2, &drain, None, None).await;
        assert!(left.elapsed() <= JITTER + MS, "GOAWAY loses nothing");
        time_to_go(Speaks::Http1, &drain, None, None).await;
        assert!(left.elapsed() >= LINGER);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_do_not_all_end_in_one_moment() {
        let drain = Drain::new();
        drain.begin();
        let begun = Instant::now();
        let mut ends = futures_util::future::join_all((0..64).map(|_| async {
            time_to_go(Speaks::Http2, &drain, None, None).await;
            begun.elapsed()
        }))
        .await;
        ends.sort();
        assert!(ends[63] <= JITTER + MS && ends[63] - ends[0] > JITTER / 2, "{ends:?}");
    }
}
