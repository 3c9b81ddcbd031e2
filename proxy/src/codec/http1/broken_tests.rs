//! Answers that break off, as callers see them over real sockets: what came of them is read, and that there is no more.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Bad;
use super::serve::{Ended, Patience, Respond, serve};
use crate::codec::{BodyError, Early, Incoming, Link, Outgoing};

/// Pieces of a body that promises `length` bytes, and then breaks.
#[derive(Debug, Clone)]
struct Breaks {
    pieces: VecDeque<&'static str>,
    length: Option<u64>,
}

impl Body for Breaks {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let piece = self.get_mut().pieces.pop_front();
        Poll::Ready(Some(piece.map(|piece| Frame::data(Bytes::from(piece))).ok_or(BodyError::Cut)))
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map(SizeHint::with_exact).unwrap_or_default()
    }
}

impl Outgoing for Breaks {
    fn blocked(&mut self, _: u64, _: &mut Context<'_>) -> Result<(), BodyError> {
        Ok(())
    }
}

/// Answers before it has read what comes, of which it reads no more when it has answered.
#[derive(Debug)]
struct Hasty(Option<Incoming>);

impl Body for Hasty {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(self.get_mut().0.take().map(|_| Ok(Frame::data(Bytes::from_static(b"too much")))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(8)
    }
}

impl Outgoing for Hasty {
    fn blocked(&mut self, _: u64, _: &mut Context<'_>) -> Result<(), BodyError> {
        Ok(())
    }
}

impl Respond for Hasty {
    type Answer = Self;

    async fn respond(&self, _: &mut Parts, body: Incoming, _: &Early) -> Response<Self> {
        Response::new(Self(Some(body)))
    }

    fn refuse(&self, _: Bad) -> Response<Self> {
        Response::new(Self(None))
    }
}

/// Answers so at once, whatever comes.
impl Respond for Breaks {
    type Answer = Self;

    async fn respond(&self, _: &mut Parts, _: Incoming, _: &Early) -> Response<Self> {
        let mut response = Response::new(self.clone());
        response.headers_mut().insert("x-served", HeaderValue::from_static("here"));
        response
    }

    fn refuse(&self, _: Bad) -> Response<Self> {
        Response::new(self.clone())
    }
}

/// What a caller reads who has sent all of `said`, and how the connection ended on both sides.
async fn says(said: &[u8], answer: impl Respond) -> (String, std::io::Result<usize>, Ended) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (ours, _) = listener.accept().await.unwrap();
    let patience = Patience { head: Duration::from_secs(10), idle: Duration::from_secs(10) };
    let serving = serve(Link::new(ours), patience, std::future::pending(), &answer);
    let calling = async {
        caller.write_all(said).await.unwrap();
        let mut heard = Vec::new();
        let end = caller.read_to_end(&mut heard).await;
        drop(caller);
        (String::from_utf8(heard).unwrap(), end)
    };
    let (ended, (heard, end)) = tokio::join!(serving, calling);
    (heard, end, ended)
}

#[tokio::test]
async fn whoever_still_sends_reads_the_beginning_of_an_answer_that_breaks_off() {
    let upload = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n{}", "b".repeat(4_000_000));
    let answer = Breaks { pieces: VecDeque::from(["half"]), length: Some(8) };
    let (heard, end, ended) = says(upload.as_bytes(), answer).await;
    assert!(heard.ends_with("content-length: 8\r\n\r\nhalf"), "{heard}");
    assert!(end.is_ok(), "{end:?}");
    assert_eq!(ended, Ended::Broken("body_broken"));
}

#[tokio::test]
async fn whoever_is_answered_before_they_have_sent_all_is_told_that_the_connection_ends() {
    let upload = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n{}", "b".repeat(4_000_000));
    let (heard, end, ended) = says(upload.as_bytes(), Hasty(None)).await;
    assert_eq!(heard, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 8\r\n\r\ntoo much");
    assert!(end.is_ok() && ended == Ended::Well, "{end:?} {ended:?}");
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_reset_where_it_breaks_off() {
    let answer = Breaks { pieces: VecDeque::from(["half"]), length: None };
    let (heard, end, ended) = says(b"GET / HTTP/1.0\r\n\r\n", answer).await;
    assert_eq!(end.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset), "{heard}");
    assert_eq!(ended, Ended::Broken("body_broken"));
}

#[tokio::test]
async fn what_breaks_behind_all_that_was_promised_is_nothing_to_the_caller() {
    let answer = Breaks { pieces: VecDeque::from(["al", "l"]), length: Some(3) };
    let twice = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\nGET /b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let (heard, end, ended) = says(twice, answer).await;
    assert_eq!(heard.matches("\r\n\r\nall").count(), 2, "{heard}");
    assert!(end.is_ok() && ended == Ended::Well, "{end:?} {ended:?}");
}
