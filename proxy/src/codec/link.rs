//! One connection as a codec sees it: bytes that came and were not understood yet, bytes that wait to be sent.
//!
//! At rest it holds no buffer. The first bytes of a message are read into a buffer that all connections of the thread
//! share, and what came is copied out once; a body in flow gets a buffer of its own, which grows while it is filled and
//! goes when the body ends. Small pieces to be sent are put together, large ones are handed to the system where they are.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use equerry_traffic::texts::Texts;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::Pipe;

/// The bytes of a connection, whatever protects them.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin {
    /// The socket below, if there is one.
    fn socket(&self) -> Option<&TcpStream>;

    /// The socket, where the next bytes of the connection are its own: nothing protects them, and none were read before.
    fn plain(&self) -> Option<&TcpStream> {
        None
    }

    /// Whether there is certainly nothing to be read now, which costs less to see than to try. Where that is not known: false.
    fn is_silent(&self) -> bool {
        false
    }
}

impl Wire for TcpStream {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn plain(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl<S: Wire> Wire for tokio_rustls::server::TlsStream<S> {
    fn socket(&self) -> Option<&TcpStream> {
        self.get_ref().0.socket()
    }
}

/// A connection that is over.
impl Wire for tokio::io::Empty {
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

#[cfg(test)]
impl Wire for tokio::io::DuplexStream {
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

/// What one read takes when nobody knows how much will come.
const GLANCE: usize = 16 * 1024;
/// The largest buffer of a body in flow: one read and one write move so much.
const LARGEST_BUFFER: usize = 64 * 1024;
/// Pieces up to this size are copied together rather than sent as separate slices.
const SMALL: usize = 4 * 1024;
/// Emptied outboxes that a thread keeps, and the largest: what many streams of a connection say at once.
const SPARES: usize = 4;
const LARGEST_SPARE: usize = 128 * 1024;
/// Up to this size, what is read is copied to where messages before it are.
const SHORT: usize = 2 * 1024;
/// As many bytes of short messages are in one place.
const SHEET: usize = 8 * 1024;
/// What waits to be sent is not added to beyond this.
const ENOUGH: usize = 32 * 1024;
/// The same of large pieces, which are not copied: four TLS records, which come one by one and go in one write.
const ENOUGH_LARGE: usize = 64 * 1024;
/// Large pieces beside the first that wait to be sent.
const MORE: usize = 7;

thread_local! {
    static GLANCED: RefCell<Box<[u8; GLANCE]>> = RefCell::new(Box::new([0; GLANCE]));
    static TEXTS: RefCell<Texts> = RefCell::new(Texts::of(SHEET));
    /// The memory of emptied outboxes, for whoever writes next.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A connection and what is on its way: in one place while it is handed from exchange to exchange.
pub(crate) struct Link(Box<Open>);

/// What a [`Link`] leads to.
pub(crate) struct Open {
    wire: Box<dyn Wire>,
    /// What was read and is not understood yet.
    pub(super) inbox: BytesMut,
    /// The size of the next read of a body in flow.
    flow: usize,
    /// The wire gives no more than a TLS record at a time: several go into one buffer.
    sips: bool,
    /// Small pieces to be sent, the first `sent` bytes of which were.
    pub(super) outbox: Vec<u8>,
    sent: usize,
    /// A large piece, to be sent after them.
    large: Bytes,
    /// Small pieces to be sent after that.
    after: Vec<u8>,
    /// More of both; nothing, where there is no first large piece.
    more: VecDeque<(Bytes, Vec<u8>)>,
    /// The wire may hold back what it took: TLS does when its socket is full.
    held_back: bool,
    /// Bytes that went out since this was asked last.
    moved: u64,
}

/// Where a link can be reached for a moment, while others who use it are at rest.
pub(super) trait LinkCell {
    /// Does `work` with it.
    fn link<T>(&self, work: impl FnOnce(&mut Link) -> T) -> T;
}

impl LinkCell for RefCell<Link> {
    fn link<T>(&self, work: impl FnOnce(&mut Link) -> T) -> T {
        work(&mut self.borrow_mut())
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("unread", &self.inbox.len()).finish_non_exhaustive()
    }
}

impl Deref for Link {
    type Target = Open;

    fn deref(&self) -> &Open {
        &self.0
    }
}

impl DerefMut for Link {
    fn deref_mut(&mut self) -> &mut Open {
        &mut self.0
    }
}

impl Link {
    /// A connection on which nothing was said yet.
    pub(crate) fn new(wire: impl Wire + 'static) -> Self {
        Self::resumed(wire, &[])
    }

    /// A connection that is over: nothing comes from it, and what is sent goes nowhere.
    pub(super) fn closed() -> Self {
        Self::new(tokio::io::empty())
    }

    /// A connection of which these bytes were read already.
    pub(crate) fn resumed(wire: impl Wire + 'static, read: &[u8]) -> Self {
        Self(Box::new(Open {
            wire: Box::new(wire),
            inbox: BytesMut::from(read),
            flow: GLANCE,
            sips: false,
            outbox: Vec::new(),
            sent: 0,
            large: Bytes::new(),
            after: Vec::new(),
            more: VecDeque::new(),
            held_back: false,
            moved: 0,
        }))
    }
}

impl Open {
    /// The socket below, if there is one.
    pub(crate) fn socket(&self) -> Option<&TcpStream> {
        self.wire.socket()
    }

    /// Reads what is there, without holding a buffer while nothing is. The number of bytes; 0: the peer will send no more.
    pub(super) fn poll_glance(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Self { wire, inbox, .. } = self;
        GLANCED.with_borrow_mut(|shared| {
            let mut read = ReadBuf::new(shared.as_mut_slice());
            let polled = Pin::new(wire).poll_read(cx, &mut read);
            if polled.is_pending() && inbox.is_empty() {
                // Of what has passed, nothing is kept alive.
                *inbox = BytesMut::new();
            }
            ready!(polled)?;
            let came = read.filled();
            if inbox.is_empty() {
                *inbox = copied(came);
            } else {
                inbox.extend_from_slice(came);
            }
            Poll::Ready(Ok(came.len()))
        })
    }

    /// Reads a piece of a body of which at most `left` bytes are still to come.
    pub(super) fn poll_flow(&mut self, left: Option<u64>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let left = left.and_then(|left| usize::try_from(left).ok()).unwrap_or(usize::MAX);
        if left <= GLANCE || self.flow == GLANCE {
            let came = ready!(self.poll_glance(cx))?;
            if came == GLANCE {
                self.flow = LARGEST_BUFFER;
            }
            return Poll::Ready(Ok(came));
        }
        let needed = if self.sips { GLANCE } else { self.flow };
        if self.inbox.capacity() - self.inbox.len() < needed {
            self.inbox.reserve(self.flow);
        }
        let polled = tokio_util::io::poll_read_buf(Pin::new(&mut self.wire), cx, &mut self.inbox);
        match &polled {
            // Nothing is held while waiting for a sender that is slower than we are.
            Poll::Pending if self.inbox.is_empty() => self.inbox = BytesMut::new(),
            // What only trickles needs no large buffer.
            Poll::Ready(Ok(came)) if *came < SMALL => self.flow = GLANCE,
            Poll::Ready(Ok(came)) => self.sips = *came <= GLANCE,
            _ => {}
        }
        polled
    }

    /// Moves what came of a body of which `left` bytes are still to come into a pipe. `None`: that cannot be done here, or not
    /// yet.
    pub(super) fn poll_fill(
        &mut self,
        pipe: &mut Pipe,
        left: u64,
        cx: &mut Context<'_>,
    ) -> Option<Poll<io::Result<usize>>> {
        if !self.inbox.is_empty() {
            return None;
        }
        // Nothing else is held meanwhile.
        self.inbox = BytesMut::new();
        pipe.poll_fill(self.wire.plain()?, left, cx)
    }

    /// Lets go of the buffers of a body that has passed.
    pub(super) fn rest(&mut self) {
        self.flow = GLANCE;
        if self.inbox.is_empty() {
            self.inbox = BytesMut::new();
        }
    }

    /// Whether the connection can be used for a request: open, and nothing came that nobody asked for.
    pub(super) fn is_quiet(&mut self) -> bool {
        if !self.inbox.is_empty() {
            return false;
        }
        if self.wire.is_silent() {
            // Of what has passed, nothing is kept alive.
            self.inbox = BytesMut::new();
            return true;
        }
        self.poll_glance(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Whether enough waits to be sent: nothing may be added then.
    pub(super) fn is_full(&self) -> bool {
        self.outbox.len() >= ENOUGH || !self.takes_large() || self.large_waiting() >= ENOUGH_LARGE
    }

    /// Whether anything was sent of the message that waits, or was sent, last.
    pub(super) fn has_sent(&self) -> bool {
        self.sent > 0 || self.is_empty()
    }

    /// Whether nothing waits to be sent.
    pub(super) fn is_flushed(&self) -> bool {
        self.is_empty() && !self.held_back
    }

    fn is_empty(&self) -> bool {
        self.outbox.is_empty() && self.large.is_empty()
    }

    /// Whether there is a place for another large piece, which would be copied otherwise.
    pub(super) fn takes_large(&self) -> bool {
        self.more.len() < MORE
    }

    fn large_waiting(&self) -> usize {
        self.large.len() + self.more.iter().map(|(large, _)| large.len()).sum::<usize>()
    }

    /// Bytes that wait to be sent.
    pub(super) fn waiting(&self) -> usize {
        let small = self.after.len() + self.more.iter().map(|(_, after)| after.len()).sum::<usize>();
        self.outbox.len() - self.sent + self.large_waiting() + small
    }

    /// How many bytes went out since this was asked last.
    pub(super) fn has_moved(&mut self) -> u64 {
        std::mem::take(&mut self.moved)
    }

    /// Where small pieces are added.
    pub(super) fn outbox(&mut self) -> &mut Vec<u8> {
        if let Some((_, after)) = self.more.back_mut() {
            return after;
        }
        if !self.large.is_empty() {
            return &mut self.after;
        }
        if self.outbox.capacity() == 0 {
            self.outbox = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        &mut self.outbox
    }

    /// Adds a piece of data.
    pub(super) fn add(&mut self, data: Bytes) {
        if data.len() <= SMALL || !self.takes_large() {
            self.outbox().extend_from_slice(&data);
        } else if self.large.is_empty() {
            self.large = data;
        } else {
            self.more.push_back((data, Vec::new()));
        }
    }

    /// Takes back what waits to be sent, but for its first `keep` bytes.
    pub(super) fn take_back(&mut self, keep: usize) {
        let mut left = self.sent + keep;
        let mut kept = |length: usize| {
            let kept = length.min(left);
            left -= kept;
            kept
        };
        self.outbox.truncate(kept(self.outbox.len()));
        self.large.truncate(kept(self.large.len()));
        self.after.truncate(kept(self.after.len()));
        for (large, after) in &mut self.more {
            large.truncate(kept(large.len()));
            after.truncate(kept(after.len()));
        }
        self.more.retain(|(large, _)| !large.is_empty());
        if self.sent == self.outbox.len() && self.large.is_empty() {
            self.sent = 0;
            self.outbox.clear();
        }
    }

    /// Sends what waits.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let small = &self.outbox[self.sent..];
            let wire = Pin::new(&mut self.wire);
            let taken = if self.large.is_empty() {
                ready!(wire.poll_write(cx, small))?
            } else {
                let mut pieces = [IoSlice::new(&[]); 2 * MORE + 3];
                let more = self.more.iter().flat_map(|(large, after)| [&large[..], &after[..]]);
                let all = [small, &self.large, &self.after].into_iter().chain(more);
                let mut count = 0;
                for (piece, bytes) in pieces.iter_mut().zip(all.filter(|bytes| !bytes.is_empty())) {
                    *piece = IoSlice::new(bytes);
                    count += 1;
                }
                ready!(wire.poll_write_vectored(cx, &pieces[..count]))?
            };
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.took(taken);
            self.held_back = true;
            self.moved += taken as u64;
        }
        ready!(Pin::new(&mut self.wire).poll_flush(cx))?;
        self.held_back = false;
        Poll::Ready(Ok(()))
    }

    /// Whether [`Self::poll_drain`] can be asked.
    pub(super) fn takes_pipes(&self) -> bool {
        self.wire.plain().is_some()
    }

    /// Sends what waits, and then what is in the pipe.
    pub(super) fn poll_drain(&mut self, pipe: &mut Pipe, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_flushed() {
            ready!(self.poll_send(cx))?;
        }
        while !pipe.is_empty() {
            let Some(socket) = self.wire.plain() else { return Poll::Ready(Err(io::ErrorKind::Unsupported.into())) };
            let moved = ready!(pipe.poll_drain(socket, cx))?;
            if moved == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.moved += moved as u64;
        }
        Poll::Ready(Ok(()))
    }

    /// So many bytes of what waits were sent.
    fn took(&mut self, mut taken: usize) {
        loop {
            let of_small = taken.min(self.outbox.len() - self.sent);
            let of_large = (taken - of_small).min(self.large.len());
            self.sent += of_small;
            self.large.advance(of_large);
            taken -= of_small + of_large;
            if self.sent < self.outbox.len() || !self.large.is_empty() {
                return;
            }
            (self.sent, self.large) = (0, Bytes::new());
            self.outbox.clear();
            // Kept by the thread, not by a connection that may now rest for long.
            keep_for_others(std::mem::replace(&mut self.outbox, std::mem::take(&mut self.after)));
            match self.more.pop_front() {
                Some(next) => (self.large, self.after) = next,
                None if self.outbox.is_empty() => {
                    self.more = VecDeque::new();
                    return;
                }
                None => {}
            }
        }
    }

    /// Says that nothing more will be sent.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}

fn keep_for_others(emptied: Vec<u8>) {
    if emptied.capacity() > 0 && emptied.capacity() <= LARGEST_SPARE {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARES {
                spare.push(emptied);
            }
        });
    }
}

/// What came, in memory of its own. Short messages share it: to allocate for each costs more than to copy it, and whoever
/// keeps a part of one keeps no more than a sheet alive.
fn copied(came: &[u8]) -> BytesMut {
    if came.len() > SHORT { BytesMut::from(came) } else { TEXTS.with_borrow_mut(|texts| texts.join(&[came])) }
}

/// As a stream of bytes, once no messages are read from it any more: first what was read and not understood, after what waits
/// to be sent.
impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.inbox.is_empty() {
            return Pin::new(&mut this.wire).poll_read(cx, buf);
        }
        let now = this.inbox.len().min(buf.remaining());
        buf.put_slice(&this.inbox.split_to(now));
        this.rest();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.is_flushed() {
            ready!(this.poll_send(cx))?;
        }
        Pin::new(&mut this.wire).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        this.poll_end(cx)
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
