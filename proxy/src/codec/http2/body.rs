//! A body as it comes in: of a request where we serve, of a response where we call.

use std::cell::Cell;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::Frame;

use super::conn::{Hold, State};
use super::message;
use super::streams::{Key, Over};
use crate::codec::{BodyError, http1};

/// What comes on a stream behind its head. Dropped before its end, the peer is asked to send no more.
#[derive(Debug)]
pub(crate) struct Body {
    hold: Hold,
    /// The peer waits for a word before it sends.
    expects_continue: Cell<bool>,
}

impl Body {
    pub(super) fn new(hold: Hold, expects_continue: bool) -> Self {
        Self { hold, expects_continue: Cell::new(expects_continue) }
    }

    /// Leaves it to whoever the request is passed on to to say that the body should come.
    pub(crate) fn leave_the_word(&self) {
        self.expects_continue.set(false);
    }

    pub(super) fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Whether all of it has passed.
    pub(crate) fn is_end(&self) -> bool {
        self.hold.with(|conn, key| conn.streams.at(key).is_read())
    }

    /// Data bytes still to come, when that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        self.hold.with(|conn, key| conn.streams.at(key).left())
    }

    /// The next piece.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let expects = self.expects_continue.take();
        self.hold.with(|conn, key| {
            if expects {
                conn.ask_for_body(key);
            }
            conn.poll_body(key, cx)
        })
    }
}

impl State {
    fn ask_for_body(&mut self, key: Key) {
        let stream = self.streams.at(key);
        if !stream.recv_ended && stream.unread == 0 {
            self.put_early(key, StatusCode::CONTINUE, &HeaderMap::new());
        }
    }

    /// Says something before the answer. Where the peer takes nothing it is not said: such words only spare time.
    pub(super) fn put_early(&mut self, key: Key, status: StatusCode, headers: &HeaderMap) {
        let stream = self.streams.at(key);
        if stream.is_closed() || stream.has_answered || !(status == StatusCode::CONTINUE || self.has_room()) {
            return;
        }
        let (id, max_frame) = (self.streams.at(key).id, self.max_frame);
        self.say(|out, encoder| message::put_response(out, encoder, id, status, headers, false, max_frame));
    }

    fn poll_body(&mut self, key: Key, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let stream = self.streams.at(key);
        if let Some(data) = stream.came.pop_front() {
            self.read(key, data.len());
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(trailers) = stream.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if stream.recv_ended {
            return Poll::Ready(None);
        }
        if let Some(over) = stream.over {
            return Poll::Ready(Some(Err(over.into())));
        }
        stream.wake_reader_of(cx);
        Poll::Pending
    }
}

impl From<Over> for BodyError {
    fn from(over: Over) -> Self {
        match over {
            Over::Reset(code) => Self::Reset(code),
            Over::Broken(why) => Self::Malformed(http1::Bad::Malformed(why)),
            Over::Dropped => Self::Cut,
            Over::Refused | Over::Gone => Self::Gone(None),
        }
    }
}
