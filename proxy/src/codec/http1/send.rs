//! A message on its way out: its head is in the link's outbox already, its body follows as it comes.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::Framing;
use super::write;
use crate::codec::link::{Link, LinkCell};
use crate::codec::{Outgoing, Pipe};

/// A body of which so much is left is moved rather than copied.
const WORTH_MOVING: u64 = 64 * 1024;

/// What is still to be sent of a message.
#[derive(Debug)]
pub(super) struct Sending<B> {
    /// Kept until its last byte was sent, because it knows for how long nobody may take them; `None`: there is none.
    body: Option<B>,
    /// All of it was added to the outbox.
    ended: bool,
    framing: Framing,
    /// Bytes still owed, where the head promised a length.
    owed: u64,
    /// Something of the body was taken.
    taken: bool,
    /// What of it goes from socket to socket.
    pipe: Pipe,
}

/// Why a message was not sent whole.
#[derive(Debug)]
pub(super) enum Unsent<E> {
    /// The connection failed.
    Wire,
    /// Its body did.
    Body(E),
    /// The body is not as long as the head says.
    Length,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// All of it was sent.
    Done,
    /// What there was of the body was sent; more is to come.
    Waiting,
}

impl<B> Sending<B>
where
    B: Outgoing,
{
    /// A message whose head waits in the outbox.
    pub(super) fn new(body: B, framing: Framing) -> Self {
        let owed = if let Framing::Length(length) = framing { length } else { 0 };
        let ended = framing == Framing::Empty;
        Self { body: Some(body).filter(|_| !ended), ended, framing, owed, taken: false, pipe: Pipe::default() }
    }

    /// Whether all of it was added to the outbox, and sent where it was not.
    pub(super) fn is_whole(&self) -> bool {
        self.ended && self.pipe.is_empty()
    }

    /// The body, to be sent over another connection, when nothing of it was taken.
    pub(super) fn into_body(self) -> Option<B> {
        self.body.filter(|_| !self.taken && !self.ended)
    }

    /// Sends what there is. Pending: the connection takes no more now.
    pub(super) fn poll(
        &mut self,
        cell: &impl LinkCell,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Progress, Unsent<B::Error>>> {
        loop {
            let waits = self.gather(cell, cx).inspect_err(|_| {
                // What came before it broke is passed on, as far as it goes at once.
                let _ = cell.link(|link| link.poll_send(cx));
            })?;
            let sent = cell.link(|link| link.poll_drain(&mut self.pipe, cx));
            if let (Poll::Pending, Some(body)) = (&sent, &mut self.body) {
                body.blocked(cell.link(|link| link.has_moved()), cx).map_err(Unsent::Body)?;
            }
            ready!(sent).map_err(|_| Unsent::Wire)?;
            if self.ended {
                self.body = None;
                return Poll::Ready(Ok(Progress::Done));
            }
            if waits {
                return Poll::Ready(Ok(Progress::Waiting));
            }
        }
    }

    /// Adds pieces of the body to the outbox until it is full; whether the body is being waited for. The link is left alone
    /// while the body is asked: it may itself be read from there.
    fn gather(&mut self, cell: &impl LinkCell, cx: &mut Context<'_>) -> Result<bool, Unsent<B::Error>> {
        while let Some(body) = self.body.as_mut().filter(|_| !self.ended) {
            if !self.pipe.is_empty() || cell.link(|link| link.is_full()) {
                return Ok(false);
            }
            match Self::fill(body, &mut self.pipe, self.owed, cell, cx) {
                None => {}
                Some(Poll::Pending) => return Ok(true),
                Some(Poll::Ready(moved)) => {
                    self.taken = true;
                    self.owed = self.owed.checked_sub(moved.map_err(Unsent::Body)?).ok_or(Unsent::Length)?;
                    if body.is_end_stream() {
                        cell.link(|link| self.end(link, None))?;
                    }
                    return Ok(false);
                }
            }
            let frame = match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => return Ok(true),
                // Whoever was promised so much has all of it, and may have gone on to something else.
                Poll::Ready(Some(Err(_)))
                    if self.taken && matches!(self.framing, Framing::Length(_)) && self.owed == 0 =>
                {
                    return cell.link(|link| self.end(link, None)).map(|()| false);
                }
                Poll::Ready(Some(frame)) => frame.map_err(Unsent::Body)?,
                Poll::Ready(None) => return cell.link(|link| self.end(link, None)).map(|()| false),
            };
            self.taken = true;
            let ended = body.is_end_stream();
            match frame.into_data() {
                Ok(data) => cell.link(|link| self.data(link, data))?,
                Err(frame) => {
                    let trailers = frame.into_trailers().ok();
                    return cell.link(|link| self.end(link, trailers.as_ref())).map(|()| false);
                }
            }
            // Asked here, so that the end goes out with the last piece.
            if ended {
                cell.link(|link| self.end(link, None))?;
            }
        }
        Ok(false)
    }

    /// Has the next piece moved from socket to socket, where much is owed and nothing is written around it.
    fn fill(
        body: &mut B,
        pipe: &mut Pipe,
        owed: u64,
        cell: &impl LinkCell,
        cx: &mut Context<'_>,
    ) -> Option<Poll<Result<u64, B::Error>>> {
        if owed < WORTH_MOVING || !cell.link(|link| link.takes_pipes()) {
            return None;
        }
        body.poll_fill(pipe, cx)
    }

    fn data(&mut self, link: &mut Link, data: Bytes) -> Result<(), Unsent<B::Error>> {
        if data.is_empty() {
            return Ok(());
        }
        match self.framing {
            Framing::Chunked => {
                write::chunk_start(link.outbox(), data.len());
                link.add(data);
                link.outbox().extend_from_slice(b"\r\n");
            }
            Framing::Length(_) => {
                self.owed = self.owed.checked_sub(data.len() as u64).ok_or(Unsent::Length)?;
                link.add(data);
            }
            Framing::UntilClose | Framing::Empty => link.add(data),
        }
        Ok(())
    }

    fn end(&mut self, link: &mut Link, trailers: Option<&http::HeaderMap>) -> Result<(), Unsent<B::Error>> {
        self.ended = true;
        match self.framing {
            Framing::Length(_) if self.owed > 0 => return Err(Unsent::Length),
            Framing::Chunked => write::last_chunk(link.outbox(), trailers),
            Framing::Length(_) | Framing::UntilClose | Framing::Empty => {}
        }
        Ok(())
    }
}
