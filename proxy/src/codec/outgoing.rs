//! A body on its way out, which knows for how long whoever it goes to may take nothing.

use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Body;

use super::Pipe;

/// A body that is being sent. It is kept until its last byte was sent.
pub(crate) trait Outgoing: Body<Data = Bytes> + Unpin {
    /// What was taken from it waits, because whoever it goes to takes nothing now. `moved`: so many bytes went out since this was
    /// said last.
    ///
    /// # Errors
    /// When that has lasted too long, or they crawl: the rest need not be sent.
    fn blocked(&mut self, moved: u64, cx: &mut Context<'_>) -> Result<(), Self::Error>;

    /// A code of ours, once it was cut, for a peer that knows what it means; said where the protocol has a place for one.
    fn cut_code(&self) -> Option<u32> {
        None
    }

    /// Moves the next piece into `pipe`, which is empty: so many bytes, never none. `None`: it must be asked for as a frame.
    fn poll_fill(&mut self, pipe: &mut Pipe, cx: &mut Context<'_>) -> Option<Poll<Result<u64, Self::Error>>> {
        let _ = (pipe, cx);
        None
    }
}

#[cfg(test)]
impl Outgoing for http_body_util::Full<Bytes> {
    fn blocked(&mut self, _: u64, _: &mut Context<'_>) -> Result<(), Self::Error> {
        Ok(())
    }
}
