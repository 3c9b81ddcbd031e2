//! Bodies: of a request on its way out (nothing, bytes held for a retry, or the caller's own stream), and of its response,
//! with the connection it comes over.

use std::cell::Cell;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use equerry_traffic::normalize;
use http::header::HeaderName;
use http_body::{Body, Frame, SizeHint};

use super::connect::Connected;
use super::pool::{Exchanging, Place};
use crate::codec::http1::call::Call;
use crate::codec::{BodyError, Incoming};

/// How the caller's stream ended early: no fault of whoever it was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BrokeOff {
    /// The caller went away.
    Gone,
    /// What the caller sent is no body.
    Unreadable,
}

impl BrokeOff {
    /// What an error of the caller's stream means.
    pub(crate) fn of(error: &BodyError) -> Self {
        let BodyError::Http2(error) = error else {
            return if matches!(error, BodyError::Malformed(_)) { Self::Unreadable } else { Self::Gone };
        };
        let kind = error.source().and_then(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
        match kind {
            Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => Self::Unreadable,
            _ => Self::Gone,
        }
    }
}

/// What is sent to an upstream. Bytes are counted as they pass.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// There is none.
    Empty,
    /// All of it, held here; `None` once it was sent.
    Whole(Option<Bytes>),
    /// As the caller sends it.
    Streaming {
        /// The caller's stream.
        from: Incoming,
        /// Bytes passed so far, shared with whoever reports the exchange.
        passed: Rc<Cell<u64>>,
        /// Set when the caller's stream ends early, for whoever waits for the answer.
        broke_off: Rc<Cell<Option<BrokeOff>>>,
        /// Trailers that are not passed on, beside those that never are.
        withheld: Box<[HeaderName]>,
    },
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => {
                Poll::Ready(bytes.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes))))
            }
            Self::Streaming { from, passed, broke_off, withheld } => {
                let mut frame = ready!(Pin::new(from).poll_frame(cx));
                match &mut frame {
                    Some(Ok(frame)) => {
                        passed.set(passed.get() + frame.data_ref().map_or(0, |data| data.len() as u64));
                        if let Some(trailers) = frame.trailers_mut() {
                            normalize::trailers(trailers, withheld);
                        }
                    }
                    Some(Err(error)) => broke_off.set(Some(BrokeOff::of(error))),
                    None => {}
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Streaming { from, .. } => from.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Streaming { from, .. } => from.size_hint(),
        }
    }
}

/// The body of a response. When it has passed, its connection is given back; when it is dropped before, an HTTP/1.1
/// connection is closed, and so the work at its other end is over.
pub(crate) struct ResponseBody {
    facts: Rc<Connected>,
    from: From,
}

enum From {
    Http1 { call: Box<Call<RequestBody>>, place: Place },
    Http2 { body: hyper::body::Incoming, _exchanging: Exchanging },
    /// All of it has passed.
    Passed,
}

impl ResponseBody {
    pub(super) fn http1(facts: Rc<Connected>, call: Call<RequestBody>, place: Place) -> Self {
        Self { facts, from: From::Http1 { call: Box::new(call), place } }.unless_passed()
    }

    pub(super) fn http2(facts: Rc<Connected>, body: hyper::body::Incoming, exchanging: Exchanging) -> Self {
        Self { facts, from: From::Http2 { body, _exchanging: exchanging } }.unless_passed()
    }

    /// Who answers there, if a certificate says so.
    pub(crate) fn peer(&self) -> Option<&equerry_policies::names::SpiffeId> {
        self.facts.peer.as_ref()
    }

    fn unless_passed(mut self) -> Self {
        let ended = match &self.from {
            From::Http1 { call, .. } => call.is_end(),
            From::Http2 { body, .. } => body.is_end_stream(),
            From::Passed => false,
        };
        if ended {
            self.passed();
        }
        self
    }

    fn passed(&mut self) {
        if let From::Http1 { call, place } = std::mem::replace(&mut self.from, From::Passed)
            && let Some(link) = call.into_link()
        {
            place.give_back(link);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let (frame, ended) = match &mut this.from {
            From::Http1 { call, .. } => (ready!(call.poll_frame(cx)), call.is_end()),
            From::Http2 { body, .. } => {
                let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
                (frame.map(|frame| frame.map_err(BodyError::Http2)), body.is_end_stream())
            }
            From::Passed => return Poll::Ready(None),
        };
        match &frame {
            Some(Err(_)) => this.from = From::Passed,
            None => this.passed(),
            Some(Ok(_)) if ended => this.passed(),
            Some(Ok(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.from, From::Passed)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.from {
            From::Http1 { call, .. } => call.left().map(SizeHint::with_exact).unwrap_or_default(),
            From::Http2 { body, .. } => body.size_hint(),
            From::Passed => SizeHint::with_exact(0),
        }
    }
}
