//! What the tests of both ends share: bodies, a responder that does what its path says, a peer that is the `h2` crate.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::io::DuplexStream;
use tokio::task::LocalSet;

use super::serve;
use crate::codec::http1::Bad;
use crate::codec::http1::serve::{Ended, Patience, Respond};
use crate::codec::{BodyError, Early, Incoming, Link, Outgoing};

pub(super) const PATIENCE: Patience = Patience { head: Duration::from_secs(10), idle: Duration::from_secs(3600) };
/// Runs a test on one thread, with tasks that stay there.
pub(super) async fn local<T>(test: impl Future<Output = T>) -> T {
    local_within(Duration::from_secs(60), test).await
}

/// The same for a test whose clock may go on for longer.
pub(super) async fn local_within<T>(limit: Duration, test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(async { tokio::time::timeout(limit, test).await.expect("it does not end") }).await
}

/// Bytes that tell where they are, so that nothing is lost, doubled or exchanged unseen.
pub(super) fn pattern(length: usize) -> Bytes {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// A body for tests.
#[derive(Debug)]
pub(super) enum Content {
    /// These pieces, then perhaps trailers.
    Pieces(VecDeque<Bytes>, Option<HeaderMap>),
    /// What comes is sent back.
    Echo(Incoming),
    /// Pieces without an end.
    Endless,
    /// Nothing comes, ever; `true` is set when it is dropped.
    Silent(Rc<Cell<bool>>),
    /// It breaks.
    Broken,
}

impl Content {
    pub(super) fn of(bytes: Bytes) -> Self {
        Self::Pieces(if bytes.is_empty() { VecDeque::new() } else { VecDeque::from([bytes]) }, None)
    }

    pub(super) fn pieces(bytes: &Bytes, size: usize, trailers: Option<HeaderMap>) -> Self {
        Self::Pieces(bytes.chunks(size).map(Bytes::copy_from_slice).collect(), trailers)
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        if let Self::Silent(dropped) = self {
            dropped.set(true);
        }
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Pieces(pieces, trailers) => Poll::Ready(match pieces.pop_front() {
                Some(piece) => Some(Ok(Frame::data(piece))),
                None => trailers.take().map(|trailers| Ok(Frame::trailers(trailers))),
            }),
            Self::Echo(incoming) => Pin::new(incoming).poll_frame(cx),
            Self::Endless => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[7; 20_000]))))),
            Self::Silent(_) => Poll::Pending,
            Self::Broken => Poll::Ready(Some(Err(BodyError::Cut))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Pieces(pieces, trailers) => pieces.is_empty() && trailers.is_none(),
            Self::Echo(incoming) => incoming.is_end_stream(),
            Self::Endless | Self::Silent(_) | Self::Broken => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Pieces(pieces, None) => SizeHint::with_exact(pieces.iter().map(|piece| piece.len() as u64).sum()),
            Self::Echo(incoming) => incoming.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

impl Outgoing for Content {
    fn blocked(&mut self, _: u64, _: &mut Context<'_>) -> Result<(), BodyError> {
        Ok(())
    }
}

pub(super) fn trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("checksum", HeaderValue::from_static("none"));
    trailers
}

/// Does what the path of a request says.
#[derive(Default)]
pub(super) struct ByPath {
    /// Set when an exchange that waits is dropped.
    pub(super) dropped: Rc<Cell<bool>>,
    /// Exchanges that wait now.
    pub(super) waiting: Rc<Cell<usize>>,
    /// What was seen of requests.
    pub(super) seen: RefCell<Vec<Request<()>>>,
    pub(super) open_door: Rc<tokio::sync::Notify>,
}

struct Waiting(Rc<Cell<usize>>, Rc<Cell<bool>>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
        self.1.set(true);
    }
}

impl Respond for ByPath {
    type Answer = Content;

    async fn respond(&self, head: &mut Parts, body: Incoming, early: &Early) -> Response<Content> {
        let (path, query) = (head.uri.path().to_owned(), head.uri.query().unwrap_or_default().to_owned());
        let size = query.parse().unwrap_or_default();
        self.seen.borrow_mut().push(Request::from_parts(head.clone(), ()));
        if path == "/early" {
            for at in 0..size {
                let hint = HeaderMap::from_iter([(http::header::LINK, HeaderValue::from(at))]);
                if early.tell(StatusCode::from_u16(103).unwrap(), hint).is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        let content = match path.as_str() {
            "/echo" => Content::Echo(body),
            "/collect" => Content::of(body.collect().await.unwrap().to_bytes()),
            "/size" => Content::of(pattern(size)),
            "/pieces" => Content::pieces(&pattern(size), 999, None),
            "/trailers" => Content::pieces(&pattern(size), 5_000, Some(trailers())),
            "/only-trailers" => Content::Pieces(VecDeque::new(), Some(trailers())),
            "/ignore" => Content::of(Bytes::from_static(b"no thanks")),
            "/endless" => Content::Endless,
            "/silent" => Content::Silent(Rc::clone(&self.dropped)),
            "/broken" => Content::Broken,
            "/wait" => {
                self.waiting.set(self.waiting.get() + 1);
                let _waiting = Waiting(Rc::clone(&self.waiting), Rc::clone(&self.dropped));
                self.open_door.notified().await;
                Content::of(Bytes::from_static(b"at last"))
            }
            "/204" => {
                let mut response = Response::new(Content::of(Bytes::new()));
                *response.status_mut() = StatusCode::NO_CONTENT;
                return response;
            }
            _ => Content::of(Bytes::new()),
        };
        let mut response = Response::new(content);
        response.headers_mut().insert("x-served", HeaderValue::from_static("here"));
        response
    }

    fn refuse(&self, bad: Bad) -> Response<Content> {
        let status = if bad == Bad::TooLarge { 431 } else { 400 };
        let mut response = Response::new(Content::of(bad.to_string().into()));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response
    }
}

/// A server of ours, and the other end of its connection.
pub(super) fn our_server(responder: &Rc<ByPath>) -> (DuplexStream, tokio::task::JoinHandle<Ended>) {
    our_server_until(responder, std::future::pending())
}

pub(super) fn our_server_until(
    responder: &Rc<ByPath>,
    time_to_go: impl Future<Output = ()> + 'static,
) -> (DuplexStream, tokio::task::JoinHandle<Ended>) {
    let (theirs, ours) = tokio::io::duplex(256 * 1024);
    let responder = Rc::clone(responder);
    let serving = async move { serve::serve(Link::new(ours), PATIENCE, time_to_go, responder).await };
    (theirs, tokio::task::spawn_local(serving))
}

/// The `h2` crate as a client.
pub(super) async fn h2_client(stream: DuplexStream, window: u32) -> h2::client::SendRequest<Bytes> {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(window)
        .initial_connection_window_size(window.max(65_535))
        .max_send_buffer_size(64 * 1024);
    let (client, connection) = builder.handshake(stream).await.unwrap();
    tokio::task::spawn_local(async move {
        let _ = connection.await;
    });
    client
}

/// Reads a body that `h2` receives, giving room as it is read.
pub(super) async fn read_all(body: &mut h2::RecvStream) -> Result<Bytes, h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok(all.into())
}

/// Sends a body with `h2` as it has room.
pub(super) async fn send_all(stream: &mut h2::SendStream<Bytes>, mut bytes: Bytes, end: bool) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let room = match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(room) => room?,
            None => return Ok(()),
        };
        let piece = bytes.split_to(room.min(bytes.len()));
        stream.send_data(piece, end && bytes.is_empty())?;
    }
    Ok(())
}

/// A request for `h2`.
pub(super) fn ask(method: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://orders.shop{path}")).body(()).unwrap()
}
