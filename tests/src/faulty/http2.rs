//! The faulty application over HTTP/2: streams that are refused, reset in the middle or promised too much, and connections
//! that go away under them.
//!
//! Whatever ends a stream or a connection waits until all that was said before has left, so that callers see the middle of
//! an answer and not its absence.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::{ANSWER_LENGTH, Arrivals, End, Fault, SLOW, body};

/// What calls of gRPC are known by.
const GRPC: &str = "application/grpc";

/// What becomes of a stream or its connection when what was said has left.
enum After {
    GoOn,
    /// The stream is reset.
    Cut(SendStream<Bytes>, Reason),
    /// The connection takes no new streams.
    Goodbye,
    /// The connection goes away with all its streams.
    GoAway,
    /// The connection ends without a word.
    Ends(End),
    /// Nothing that makes sense is said any more.
    Babble(SendStream<Bytes>),
}

/// Serves a connection until it ends; says how it is to be closed.
pub(super) async fn serve(
    stream: &mut TcpStream,
    name: &'static str,
    arrivals: &Arrivals,
    fault: watch::Receiver<Fault>,
) -> Result<End, h2::Error> {
    let babbles = Arc::<AtomicBool>::default();
    let mut connection = h2::server::handshake(Tampered { stream, babbles: Arc::clone(&babbles) }).await?;
    let mut streams = FuturesUnordered::new();
    loop {
        let after = tokio::select! {
            accepted = connection.accept() => {
                let Some(accepted) = accepted else { return Ok(End::Close) };
                let (request, respond) = accepted?;
                streams.push(answer(name, arrivals, *fault.borrow(), request, respond));
                continue;
            }
            // A stream that the caller has left is the caller's business.
            Some(after) = streams.next() => after.unwrap_or(After::GoOn),
        };
        said(&mut connection).await;
        match after {
            After::GoOn => (),
            After::Cut(mut stream, why) => stream.send_reset(why),
            After::Goodbye => connection.graceful_shutdown(),
            After::GoAway => connection.abrupt_shutdown(Reason::INTERNAL_ERROR),
            After::Ends(end) => return Ok(end),
            After::Babble(mut stream) => {
                babbles.store(true, Ordering::Relaxed);
                stream.send_data(Bytes::from_static(b"unheard"), true)?;
            }
        }
    }
}

/// Gives what waits to be said to the socket.
async fn said(connection: &mut Connection<Tampered<'_>, Bytes>) {
    poll_fn(|cx| {
        let _ = connection.poll_closed(cx);
        Poll::Ready(())
    })
    .await;
}

async fn answer(
    name: &'static str,
    arrivals: &Arrivals,
    fault: Fault,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Result<After, h2::Error> {
    if fault == Fault::Refuses {
        // Nothing of it was done, which is what this reason says.
        respond.send_reset(Reason::REFUSED_STREAM);
        return Ok(After::GoOn);
    }
    let call = request.headers().get("x-call").and_then(|call| call.to_str().ok()).unwrap_or_default().to_owned();
    arrivals.add(&call);
    let is_grpc = request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == GRPC);
    let mut came = request.into_body();
    if !matches!(fault, Fault::AnswersEarly | Fault::RefusesEarly) {
        pass_over(&mut came).await?;
    }
    let whole = Bytes::from(body(name, &call));
    if is_grpc {
        return grpc(&framed(&whole), fault, respond).await;
    }
    let half = whole.slice(..ANSWER_LENGTH / 2);
    let begin = |respond: &mut SendResponse<Bytes>| respond.send_response(head(StatusCode::OK, ANSWER_LENGTH), false);
    match fault {
        Fault::Killed => Ok(After::Ends(End::Reset)),
        // Until whoever called has had enough.
        Fault::Frozen => poll_fn(|cx| respond.poll_reset(cx)).await.map(|_| After::GoOn),
        Fault::Slow => {
            tokio::time::sleep(SLOW).await;
            begin(&mut respond)?.send_data(whole, true).map(|()| After::GoOn)
        }
        Fault::Resets | Fault::Refuses => {
            respond.send_reset(Reason::INTERNAL_ERROR);
            Ok(After::GoOn)
        }
        Fault::ResetsMidBody => {
            let mut stream = begin(&mut respond)?;
            stream.send_data(half, false).map(|()| After::Cut(stream, Reason::INTERNAL_ERROR))
        }
        Fault::GoesAway => begin(&mut respond)?.send_data(half, false).map(|()| After::GoAway),
        Fault::SaysLess => begin(&mut respond)?.send_data(half, true).map(|()| After::GoOn),
        Fault::ClosesIdle => begin(&mut respond)?.send_data(whole, true).map(|()| After::Ends(End::Close)),
        Fault::SaysGoodbye => begin(&mut respond)?.send_data(whole, true).map(|()| After::Goodbye),
        Fault::SaysMore => {
            let mut stream = begin(&mut respond)?;
            stream.send_data(whole, false)?;
            stream.send_data(Bytes::from_static(b"SMUGGLED"), true).map(|()| After::GoOn)
        }
        Fault::BreaksChunks => {
            let mut stream = begin(&mut respond)?;
            stream.send_data(half, false).map(|()| After::Babble(stream))
        }
        Fault::Garbage => begin(&mut respond).map(After::Babble),
        Fault::RefusesEarly => {
            let mut stream = respond.send_response(head(StatusCode::PAYLOAD_TOO_LARGE, 8), false)?;
            stream.send_data(Bytes::from_static(b"too much"), true).map(|()| After::GoOn)
        }
        Fault::HeaderBomb => {
            let mut head = head(StatusCode::OK, 0);
            let line = HeaderValue::try_from("x".repeat(1000)).unwrap_or(HeaderValue::from_static("x"));
            for _ in 0..1000 {
                head.headers_mut().append("x-bomb", line.clone());
            }
            respond.send_response(head, true).map(|_| After::GoOn)
        }
        Fault::None | Fault::AnswersEarly => {
            begin(&mut respond)?.send_data(whole, true)?;
            pass_over(&mut came).await.map(|()| After::GoOn)
        }
    }
}

/// The same to a call of gRPC: what it is not told by its status, it was not told.
async fn grpc(message: &Bytes, fault: Fault, mut respond: SendResponse<Bytes>) -> Result<After, h2::Error> {
    let half = message.slice(..message.len() / 2);
    let mut begins = Response::new(());
    begins.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
    let well = |mut stream: SendStream<Bytes>| {
        stream.send_data(message.clone(), false)?;
        stream.send_trailers(grpc_status("0"))
    };
    match fault {
        Fault::Killed => Ok(After::Ends(End::Reset)),
        Fault::Resets | Fault::Refuses => {
            respond.send_reset(Reason::INTERNAL_ERROR);
            Ok(After::GoOn)
        }
        Fault::ResetsMidBody | Fault::GoesAway | Fault::Garbage => {
            let mut stream = respond.send_response(begins, false)?;
            stream.send_data(half, false)?;
            Ok(match fault {
                Fault::ResetsMidBody => After::Cut(stream, Reason::INTERNAL_ERROR),
                Fault::GoesAway => After::GoAway,
                _ => After::Babble(stream),
            })
        }
        // Everything is there but the word that all is well.
        Fault::SaysLess => respond.send_response(begins, false)?.send_data(message.clone(), true).map(|()| After::GoOn),
        // 200, and then that it is not.
        Fault::RefusesEarly => {
            respond.send_response(begins, false)?.send_trailers(grpc_status("14")).map(|()| After::GoOn)
        }
        Fault::SaysGoodbye => well(respond.send_response(begins, false)?).map(|()| After::Goodbye),
        _ => well(respond.send_response(begins, false)?).map(|()| After::GoOn),
    }
}

/// A message of gRPC.
fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap_or_default().to_be_bytes();
    [&[0], length.as_slice(), message].concat().into()
}

fn grpc_status(code: &'static str) -> HeaderMap {
    let message = if code == "0" { "" } else { "unavailable: so it says itself" };
    let fields = [("grpc-status", code), ("grpc-message", message)];
    fields.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).into_iter().collect()
}

fn head(status: StatusCode, length: usize) -> Response<()> {
    let mut head = Response::new(());
    *head.status_mut() = status;
    head.headers_mut().insert("content-length", HeaderValue::from(length));
    head
}

/// Reads a body and forgets it.
async fn pass_over(body: &mut RecvStream) -> Result<(), h2::Error> {
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
    }
    Ok(())
}

/// A socket on which other bytes than were meant can be sent.
struct Tampered<'a> {
    stream: &'a mut TcpStream,
    babbles: Arc<AtomicBool>,
}

impl AsyncRead for Tampered<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Tampered<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.babbles.load(Ordering::Relaxed) {
            let garbage = [0xff, 159, 146, 150, b'\r', b'\n', b'\r', b'\n'].repeat(32);
            ready!(Pin::new(&mut *self.stream).poll_write(cx, &garbage))?;
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut *self.stream).poll_write(cx, bytes)
    }

    /// A head and its body leave together, as a library's own socket would send them.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.babbles.load(Ordering::Relaxed) {
            let first = bytes.iter().find(|bytes| !bytes.is_empty());
            return self.poll_write(cx, first.map_or(&[], |bytes| bytes));
        }
        Pin::new(&mut *self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}
