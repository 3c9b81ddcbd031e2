//! The body of a request on its way out: nothing, bytes held for a retry, or the caller's own stream.

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
use hyper::body::Incoming;

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
    pub(crate) fn of(error: &hyper::Error) -> Self {
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
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
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
