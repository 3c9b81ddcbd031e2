//! The serving end over a real pair of streams: what a caller sends, byte by byte, and what it reads.

use std::cell::RefCell;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;

const PATIENCE: Patience = Patience { head: Duration::from_secs(10), idle: Duration::from_secs(120) };

/// Answers with what it was sent; `/early` without reading it, `/never` never.
#[derive(Default)]
struct Echo {
    seen: RefCell<Vec<String>>,
}

impl Respond for Echo {
    type Answer = Full<Bytes>;

    async fn respond(&self, head: &mut Parts, body: Incoming, _: &Early) -> Response<Full<Bytes>> {
        self.seen.borrow_mut().push(format!("{} {}", head.method, head.uri));
        let path = head.uri.path().to_owned();
        if path == "/never" {
            std::future::pending::<()>().await;
        }
        if path == "/early" {
            return Response::new(Full::new(Bytes::from_static(b"early")));
        }
        match body.collect().await {
            Ok(body) => Response::new(Full::new(body.to_bytes())),
            Err(error) => Response::new(Full::new(Bytes::from(error.to_string()))),
        }
    }

    fn refuse(&self, bad: Bad) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(bad.to_string())));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        response
    }
}

/// Lets a caller `talk` to a serving end; what came back, how the connection ended, and what was asked.
async fn served<F: Future<Output = Vec<u8>>>(talk: impl FnOnce(DuplexStream) -> F) -> (String, Ended, Vec<String>) {
    let (caller, ours) = tokio::io::duplex(1 << 16);
    let echo = Echo::default();
    let serving = serve(Link::new(ours), PATIENCE, std::future::pending(), &echo);
    let (ended, answered) = tokio::join!(serving, talk(caller));
    (String::from_utf8(answered).unwrap(), ended, echo.seen.into_inner())
}

/// Sends all of `said`, then reads until the other side ends.
async fn says(said: &[u8]) -> (String, Ended, Vec<String>) {
    let said = said.to_vec();
    served(|mut caller| async move {
        caller.write_all(&said).await.unwrap();
        let mut answered = Vec::new();
        let _ = caller.read_to_end(&mut answered).await;
        answered
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn requests_sent_together_are_answered_one_after_the_other() {
    let said = b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\noneGET /b HTTP/1.1\r\nhost: x\r\n\r\n\
        POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n3\r\ntwo\r\n2\r\n+3\r\n0\r\n\r\n";
    let (answered, ended, seen) = says(said).await;
    assert_eq!(ended, Ended::Well);
    assert_eq!(seen, ["POST /a", "GET /b", "POST /c"]);
    assert_eq!(
        answered,
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\noneHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n\
         HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\ntwo+3"
    );
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_word_before_the_body_gets_it_when_the_body_is_wanted() {
    let (answered, _, _) = served(|mut caller| async move {
        let head =
            b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\nconnection: close\r\n\r\n";
        caller.write_all(head).await.unwrap();
        let mut word = [0; 25];
        caller.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n");
        caller.write_all(b"ok").await.unwrap();
        let mut answered = Vec::new();
        caller.read_to_end(&mut answered).await.unwrap();
        answered
    })
    .await;
    assert!(answered.ends_with("\r\n\r\nok"), "{answered}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_read_is_skipped_when_it_is_here_and_else_ends_the_connection() {
    let (answered, ended, seen) =
        says(b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbodyGET /early HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert_eq!((ended, seen.len()), (Ended::Well, 2), "{answered}");

    let (answered, ended, seen) = says(b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 400\r\n\r\nbody").await;
    assert_eq!((ended, seen.len()), (Ended::Well, 1));
    assert!(answered.contains("connection: close") && answered.ends_with("early"), "{answered}");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_cannot_be_read_is_answered_and_ends_the_connection() {
    for (bad, word) in [
        (&b"GET / HTTP/1.1\nhost: x\n\n"[..], "malformed"),
        (b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", "malformed"),
        (b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", "http_version"),
    ] {
        let (answered, ended, seen) = says(bad).await;
        assert_eq!((ended, seen.len()), (Ended::Broken(word), 0), "{answered}");
        assert!(answered.starts_with("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n"), "{answered}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_not_finished_is_not_waited_for_like_a_next_request() {
    let begun = Instant::now();
    let (_, ended, seen) = says(b"GET /a HTTP/1.1\r\nhost: x\r\n\r\nGET /b HTTP/1.1\r\nho").await;
    assert_eq!((ended, seen.len()), (Ended::Broken("head_timeout"), 1));
    assert!(begun.elapsed() < PATIENCE.head + Duration::from_secs(1), "{:?}", begun.elapsed());

    let begun = Instant::now();
    let (_, ended, _) = says(b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(ended, Ended::Silent);
    assert!(begun.elapsed() >= PATIENCE.idle, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_ends_what_is_being_made_for_it() {
    let (_, ended, seen) = served(|mut caller| async move {
        caller.write_all(b"GET /never HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        Vec::new()
    })
    .await;
    assert_eq!((ended, seen.len()), (Ended::Broken("client_gone"), 1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_head_has_the_length_and_no_body_and_http_1_0_is_closed_unless_it_asks() {
    let (answered, _, _) = says(b"HEAD /early HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answered.ends_with("\r\n\r\n"), "{answered}");
    let (answered, ended, _) = says(b"GET /early HTTP/1.0\r\nhost: x\r\n\r\n").await;
    assert_eq!(ended, Ended::Well);
    assert!(answered.contains("connection: close\r\n") && answered.ends_with("early"), "{answered}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_is_an_error_for_whoever_reads_it() {
    let (answered, _, _) = served(|mut caller| async move {
        caller.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab").await.unwrap();
        caller.shutdown().await.unwrap();
        let mut answered = Vec::new();
        let _ = caller.read_to_end(&mut answered).await;
        answered
    })
    .await;
    assert!(answered.contains("the sender ended the connection in the middle of a body"), "{answered}");
    let (answered, _, _) =
        says(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5 \r\nabcde\r\n0\r\n\r\n").await;
    assert!(answered.contains("the framing of the body is broken"), "{answered}");
}
