//! Bodies on their way: what of a request is held for a retry, and a response with everything that must last as long.
//!
//! When the last byte of a response has passed, its record is closed; when the body is dropped before, its connection is
//! closed, which also ends the work upstream.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use equerry_traffic::{Reason, Refusal};
use http::header::HeaderName;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;

use super::connection::Busy;
use super::facts::Record;
use crate::codec::{BodyError, Incoming};
use crate::upstream::{BrokeOff, RequestBody, ResponseBody};

/// A body up to this size is held so that the request can be sent again (Linkerd's limit).
pub(crate) const LARGEST_HELD: u64 = 64 * 1024;

/// The body of a request, and whether it can be sent more than once.
#[derive(Debug)]
pub(crate) enum ToSend {
    /// As often as needed.
    Held(Bytes),
    /// Once; `None` when it is gone.
    Once {
        /// The body.
        body: Option<RequestBody>,
        /// Whether it ended early.
        broke_off: Rc<Cell<Option<BrokeOff>>>,
    },
}

impl ToSend {
    /// Takes the caller's body to be sent as it comes; trailers that are `withheld` stay here.
    pub(crate) fn streaming(from: Incoming, withheld: Box<[HeaderName]>, record: &Record) -> Self {
        if from.is_end_stream() {
            return Self::Held(Bytes::new());
        }
        let broke_off = Rc::default();
        let body =
            RequestBody::Streaming { from, passed: record.received(), broke_off: Rc::clone(&broke_off), withheld };
        Self::Once { body: Some(body), broke_off }
    }

    /// Takes the caller's body: held in memory when it may be needed again and is known to be small.
    ///
    /// # Errors
    /// When the caller breaks off while the body is being read.
    pub(crate) async fn take(from: Incoming, may_repeat: bool, record: &Record) -> Result<Self, Refusal> {
        let small = from.size_hint().exact().is_some_and(|length| length <= LARGEST_HELD);
        if !(may_repeat && small) || from.is_end_stream() {
            return Ok(Self::streaming(from, Box::default(), record));
        }
        let held = from.collect().await.map_err(|error| broken_off(BrokeOff::of(&error)))?.to_bytes();
        record.received().set(held.len() as u64);
        Ok(Self::Held(held))
    }

    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Held(bytes) if bytes.is_empty())
    }

    /// Whether it can be sent now, or again.
    pub(crate) fn is_left(&self) -> bool {
        !matches!(self, Self::Once { body: None, .. })
    }

    /// The body for the next try; `None` when it is gone.
    pub(crate) fn next(&mut self) -> Option<RequestBody> {
        match self {
            Self::Held(bytes) if bytes.is_empty() => Some(RequestBody::Empty),
            Self::Held(bytes) => Some(RequestBody::Whole(Some(bytes.clone()))),
            Self::Once { body, .. } => body.take(),
        }
    }

    /// Takes back a body of which nothing was sent.
    pub(crate) fn unsent(&mut self, body: RequestBody) {
        if let Self::Once { body: gone, .. } = self {
            *gone = Some(body);
        }
    }

    /// Why the caller did not send all of it, if so: then it is not the upstream that failed.
    pub(crate) fn broke_off(&self) -> Option<Refusal> {
        match self {
            Self::Once { broke_off, .. } => broke_off.get().map(broken_off),
            Self::Held(_) => None,
        }
    }
}

fn broken_off(how: BrokeOff) -> Refusal {
    match how {
        BrokeOff::Gone => Refusal::ClientGone,
        BrokeOff::Unreadable => Refusal::bad_request("the body of the request cannot be read: its framing is broken"),
    }
}

/// The body of a response to the caller.
pub(crate) struct Answer {
    content: Content,
    /// Data bytes still to come, when that is known.
    left: Option<u64>,
    /// Places in flight, given back when the exchange ends.
    _held: Held,
    record: Record,
}

/// What must last as long as an exchange: its place among the requests in flight, and that its connection is not quiet.
pub(crate) type Held = (Option<crate::live::Held>, Option<Busy>);

enum Content {
    Ours(Option<Bytes>),
    Theirs(ResponseBody),
    /// All of it has passed.
    Passed,
}

impl Answer {
    /// A body that the mesh made.
    pub(crate) fn ours(content: Bytes, record: Record) -> Self {
        let content = if content.is_empty() { Content::Passed } else { Content::Ours(Some(content)) };
        Self { content, left: None, _held: (None, None), record }
    }

    /// The upstream's body.
    pub(crate) fn theirs(from: ResponseBody, held: Held, record: Record) -> Self {
        let left = from.size_hint().exact();
        let content = if from.is_end_stream() { Content::Passed } else { Content::Theirs(from) };
        Self { content, left, _held: held, record }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match &mut this.content {
            Content::Passed => Poll::Ready(None),
            Content::Ours(content) => {
                let all = content.take().unwrap_or_default();
                this.record.sent(all.len());
                this.content = Content::Passed;
                Poll::Ready(Some(Ok(Frame::data(all))))
            }
            Content::Theirs(from) => {
                let polled = Pin::new(&mut *from).poll_frame(cx);
                match &polled {
                    Poll::Pending => {}
                    Poll::Ready(None) => this.content = Content::Passed,
                    Poll::Ready(Some(Err(_))) => {
                        this.record.broke(Reason::UpstreamReset);
                        this.content = Content::Passed;
                    }
                    Poll::Ready(Some(Ok(frame))) => {
                        let ended = from.is_end_stream();
                        if let Some(data) = frame.data_ref() {
                            this.record.sent(data.len());
                            this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                        }
                        if ended {
                            this.content = Content::Passed;
                        }
                    }
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Passed)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Passed => SizeHint::with_exact(0),
            Content::Ours(content) => SizeHint::with_exact(content.as_ref().map_or(0, |content| content.len() as u64)),
            Content::Theirs(from) => from.size_hint(),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // hyper lets go of a body as soon as the length that the head promised has passed, without asking for its end.
        let whole = matches!(self.content, Content::Passed) || self.left == Some(0);
        if !whole {
            self.record.broke(Reason::ClientGone);
        }
    }
}
