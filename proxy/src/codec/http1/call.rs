//! The calling end of an HTTP/1.1 connection: one request, and the response to it.
//!
//! Whoever asks for the response moves the request along too: a body that is still being sent is sent on while the response
//! is read, so that an early answer waits for nobody. Nothing runs beside its caller.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::HeaderMap;
use http::{Method, StatusCode, response};
use http_body::Frame;

use super::framing::Decoder;
use super::head::{self, ResponseHead};
use super::send::{Sending, Unsent};
use super::serve::{poll_body, poll_fill};
use super::{Framing, write};
use crate::codec::{BodyError, Early, Link, Outgoing, Pipe, spare};

/// A request's head, borrowed: it may have to be sent again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head<'a> {
    /// The method.
    pub(crate) method: &'a Method,
    /// The target as it stands in the request line.
    pub(crate) target: &'a str,
    /// The headers, framing aside.
    pub(crate) headers: &'a HeaderMap,
    /// Whoever is told of what comes before the answer.
    pub(crate) early: &'a Early,
}

/// An exchange under way on a connection.
#[derive(Debug)]
pub(crate) struct Call<B> {
    link: RefCell<Link>,
    sending: Sending<B>,
    /// The request can be sent no further; the response may still come.
    cut_off: bool,
    decoder: Decoder,
    keep_alive: bool,
    /// The response was 101: what follows on the connection is no HTTP.
    switched: bool,
}

/// A request that got no response head.
#[derive(Debug)]
pub(crate) struct NoAnswer<B> {
    /// Nothing at all was sent.
    pub(crate) unsent: bool,
    /// Its body, when nothing of that was taken.
    pub(crate) body: Option<B>,
    /// What happened, in words.
    pub(crate) detail: String,
}

/// Whether a connection can carry a request.
pub(crate) fn is_quiet(link: &mut Link) -> bool {
    link.is_quiet()
}

/// Listens until `enough`, or until bytes came.
///
/// # Errors
/// When the connection ends first.
pub(crate) async fn heard(link: &mut Link, enough: impl Fn() -> bool) -> io::Result<()> {
    poll_fn(|cx| match link.poll_glance(cx) {
        Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        Poll::Ready(Ok(_)) => Poll::Ready(Ok(())),
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        Poll::Pending if enough() => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    })
    .await
}

impl<B> Call<B>
where
    B: Outgoing,
    B::Error: std::fmt::Display,
{
    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    /// When the connection ends first, or what comes is no response.
    pub(crate) async fn send(
        mut link: Link,
        request: Head<'_>,
        body: B,
    ) -> Result<(response::Parts, Self), NoAnswer<B>> {
        let framing = match body.size_hint().exact() {
            _ if body.is_end_stream() => Framing::Empty,
            Some(length) => Framing::Length(length),
            None => Framing::Chunked,
        };
        write::request_head(link.outbox(), request.method, request.target, request.headers, framing);
        let mut call = Self {
            link: RefCell::new(link),
            sending: Sending::new(body, framing),
            cut_off: false,
            decoder: Decoder::new(Framing::Empty),
            keep_alive: false,
            switched: false,
        };
        let head = poll_fn(|cx| call.poll_head(&request, cx)).await;
        match head {
            Ok(head) => {
                call.decoder = Decoder::new(head.framing);
                call.switched = head.parts.status == StatusCode::SWITCHING_PROTOCOLS;
                call.keep_alive = head.keep_alive && !call.switched;
                Ok((head.parts, call))
            }
            Err(detail) => {
                let unsent = !call.link.get_mut().has_sent();
                Err(NoAnswer { unsent, body: call.sending.into_body(), detail })
            }
        }
    }

    /// Sends on what is left of the request. An error is kept quiet: the response may say more.
    fn send_on(&mut self, cx: &mut Context<'_>) -> Result<(), String> {
        if self.cut_off || self.sending.is_whole() && self.link.get_mut().is_flushed() {
            return Ok(());
        }
        match self.sending.poll(&self.link, cx) {
            Poll::Ready(Ok(_)) | Poll::Pending => Ok(()),
            Poll::Ready(Err(unsent)) => {
                self.cut_off = true;
                match unsent {
                    Unsent::Wire => Ok(()),
                    Unsent::Body(error) => Err(error.to_string()),
                    Unsent::Length => Err("the body of the request is not as long as its head says".to_owned()),
                }
            }
        }
    }

    fn poll_head(&mut self, request: &Head<'_>, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, String>> {
        if let Err(broken) = self.send_on(cx) {
            return Poll::Ready(Err(broken));
        }
        let link = self.link.get_mut();
        loop {
            if !link.inbox.is_empty() {
                match head::take_response(&mut link.inbox, request.method, spare::headers()) {
                    // What an application says while it works (RFC 9110 section 15.2) is not its answer.
                    Ok(Some(head)) if is_interim(head.parts.status) => {
                        if let Err(too_many) = request.early.tell(head.parts.status, head.parts.headers) {
                            return Poll::Ready(Err(format!("no answer came: {too_many}")));
                        }
                        continue;
                    }
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    Ok(None) => {}
                    Err(bad) => return Poll::Ready(Err(format!("the response cannot be read: {bad}"))),
                }
            }
            match ready!(link.poll_glance(cx)) {
                Ok(0) if link.inbox.is_empty() => {
                    return Poll::Ready(Err("the connection was closed before a response came".to_owned()));
                }
                Ok(0) => return Poll::Ready(Err("the connection was closed in the middle of a response".to_owned())),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(error.to_string())),
            }
        }
    }

    /// Reads the next piece of the response, and sends on what is left of the request.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // A caller that breaks off does so on its own connection, where it is noticed.
        let _ = self.send_on(cx);
        poll_body(self.link.get_mut(), &mut self.decoder, cx)
    }

    /// As [`Self::poll_frame`], into a pipe, where that can be.
    pub(crate) fn poll_fill(&mut self, pipe: &mut Pipe, cx: &mut Context<'_>) -> Option<Poll<Result<u64, BodyError>>> {
        let _ = self.send_on(cx);
        poll_fill(self.link.get_mut(), &mut self.decoder, pipe, cx)
    }

    /// Whether the response was 101 to a request that was sent whole: what follows is no HTTP.
    pub(crate) fn is_switched(&self) -> bool {
        self.switched && self.sending.is_whole() && !self.cut_off
    }

    /// Whether all of the response has passed.
    pub(crate) fn is_end(&self) -> bool {
        self.decoder.is_end() && !self.switched
    }

    /// Data bytes of the response still to come, when that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        self.decoder.left()
    }

    /// The connection, with what came over it after the head, when it [`Self::is_switched`].
    pub(crate) fn into_switched(self) -> Option<Link> {
        self.is_switched().then(|| self.link.into_inner())
    }

    /// The connection, when it can carry another exchange.
    pub(crate) fn into_link(self) -> Option<Link> {
        let link = self.link.into_inner();
        let clean = self.keep_alive && self.sending.is_whole() && self.decoder.is_end();
        (clean && !self.cut_off && link.is_flushed() && link.inbox.is_empty()).then_some(link)
    }
}

fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}
