//! A socket from which more is read than was asked for, when more is there.
//!
//! TLS asks for 4 KiB at a time, which makes five system calls of every record, and as many of a batch of short ones. Here one
//! call takes what there is into a buffer that the whole thread shares; a connection keeps only what it has not asked for yet.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::Wire;

/// What one read takes: four TLS records.
const LARGEST: usize = 64 * 1024;
/// More than this is kept where it came, rather than copied.
const MUCH: usize = 8 * 1024;

thread_local! {
    /// Whoever keeps much of what came keeps it in here, and leaves this empty.
    static COME: RefCell<Box<[u8]>> = RefCell::default();
}

/// The socket, with what was read ahead.
#[derive(Debug)]
pub(crate) struct Ahead<S> {
    stream: S,
    kept: Box<[u8]>,
    given: usize,
    ends: usize,
}

impl<S> Ahead<S> {
    /// A socket of which nothing was read ahead.
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, kept: Box::default(), given: 0, ends: 0 }
    }

    /// The socket.
    pub(crate) fn inner(&self) -> &S {
        &self.stream
    }

    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let now = (self.ends - self.given).min(buf.remaining());
        buf.put_slice(&self.kept[self.given..self.given + now]);
        self.given += now;
        if self.given == self.ends {
            (self.given, self.ends) = (0, 0);
            let emptied = std::mem::take(&mut self.kept);
            if emptied.len() == LARGEST {
                COME.set(emptied);
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Ahead<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.kept.is_empty() {
            this.give(buf);
            return Poll::Ready(Ok(()));
        }
        COME.with_borrow_mut(|come| {
            if come.is_empty() {
                *come = vec![0; LARGEST].into_boxed_slice();
            }
            let mut read = ReadBuf::new(come);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            let (came, now) = (read.filled().len(), read.filled().len().min(buf.remaining()));
            buf.put_slice(&come[..now]);
            if came - now > MUCH {
                (this.kept, this.given, this.ends) = (std::mem::take(come), now, came);
            } else if came > now {
                (this.kept, this.given, this.ends) = (Box::from(&come[now..came]), 0, came - now);
            }
            Poll::Ready(Ok(()))
        })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Ahead<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl<S: Wire> Wire for Ahead<S> {
    fn socket(&self) -> Option<&TcpStream> {
        self.stream.socket()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_comes_is_given_in_order_whatever_is_asked_for() {
        let (mut theirs, ours) = tokio::io::duplex(LARGEST * 2);
        let said: Vec<u8> = (0..LARGEST * 3 / 2).map(|at| (at % 251) as u8).collect();
        theirs.write_all(&said).await.unwrap();
        drop(theirs);
        let (mut ahead, mut heard) = (Ahead::new(ours), Vec::new());
        for ask in [1, 4096, 10, 70_000, 4096].into_iter().cycle() {
            let mut buf = vec![0; ask];
            match ahead.read(&mut buf).await.unwrap() {
                0 => break,
                read => heard.extend_from_slice(&buf[..read]),
            }
        }
        assert!(heard == said);
        assert_eq!(ahead.kept.len(), 0, "nothing is kept at rest");
    }
}
