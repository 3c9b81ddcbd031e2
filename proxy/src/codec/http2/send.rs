//! A body on its way out: its head is in the outbox already, it follows as it comes and as the peer has room.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::bad::Code;
use super::conn::Hold;
use super::room::Put;
use super::streams::Over;
use crate::codec::Outgoing;

/// What is still to be sent on a stream. Dropped before its end, the stream is reset.
#[derive(Debug)]
pub(super) struct Sending<B> {
    hold: Hold,
    body: B,
    /// Taken from the body, and not sent yet.
    piece: Bytes,
    /// Nothing follows the piece.
    last: bool,
    /// Something of the body was taken.
    taken: bool,
    /// Bytes that were sent since the body was told that it waits.
    moved: u64,
}

/// Why it was not sent whole.
#[derive(Debug)]
pub(super) enum Unsent<E> {
    /// The body failed.
    Body(E),
    /// The stream is over.
    Over,
}

impl<B: Outgoing> Sending<B> {
    /// The body behind a head.
    pub(super) fn new(hold: Hold, body: B) -> Self {
        Self { hold, body, piece: Bytes::new(), last: false, taken: false, moved: 0 }
    }

    /// The body, to be sent elsewhere, when nothing of it was taken.
    pub(super) fn into_body(self) -> Option<B> {
        (!self.taken).then_some(self.body)
    }

    /// The body failed; where that was because of us, the peer may be told why.
    fn broken(&self, error: B::Error) -> Unsent<B::Error> {
        if let Some(code) = self.body.cut_code() {
            self.hold.with(|conn, key| conn.reset(key, Code(code), Over::Dropped));
        }
        Unsent::Body(error)
    }

    /// Sends what there is and what there is room for; ready when that was all.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Unsent<B::Error>>> {
        loop {
            if !self.piece.is_empty() || self.last {
                let before = self.piece.len();
                let put = self.hold.with(|conn, key| conn.put_data(key, &mut self.piece, self.last, cx));
                self.moved += (before - self.piece.len()) as u64;
                match put {
                    Put::All if self.last => return Poll::Ready(Ok(())),
                    Put::All => {}
                    Put::Over => return Poll::Ready(Err(Unsent::Over)),
                    Put::Blocked => {
                        let waited = self.body.blocked(std::mem::take(&mut self.moved), cx);
                        return waited.map_or_else(|error| Poll::Ready(Err(self.broken(error))), |()| Poll::Pending);
                    }
                }
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(frame)) => frame.map_err(|error| self.broken(error))?,
                Poll::Ready(None) => {
                    self.last = true;
                    continue;
                }
                Poll::Pending => {
                    let over = self.hold.with(|conn, key| conn.poll_over(key, cx));
                    return over.map(|_| Err(Unsent::Over));
                }
            };
            self.taken = true;
            match frame.into_data() {
                Ok(data) => (self.piece, self.last) = (data, self.body.is_end_stream()),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    let put = self.hold.with(|conn, key| conn.put_trailers(key, &trailers));
                    return Poll::Ready(put.map_err(|_| Unsent::Over));
                }
            }
        }
    }
}
