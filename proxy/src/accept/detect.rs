//! What a connection speaks, told by its first bytes: a TLS record, HTTP/2's preface, or else HTTP/1.1.
//!
//! The bytes looked at are kept and read again by whoever serves the connection. A caller that says nothing within
//! [`PATIENCE`] is let go: until it has spoken it holds a socket and nothing else.

mod guess;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::codec::Wire;

pub(crate) use guess::{Guess, begins_a_request, guess};

/// How long the first bytes may take. The clock of an idle connection starts only after them.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// HTTP/2's connection preface (RFC 9113 section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The content type of a TLS handshake record (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// What the first bytes were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// A TLS ClientHello follows.
    Tls,
    /// HTTP/1.x, or nothing we know: its parser will say.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Bytes in which nobody looks for requests. First bytes never tell; only ALPN does.
    Tcp,
}

/// A connection whose first bytes were looked at, and will be read again.
#[derive(Debug)]
pub(crate) struct Spoken<S> {
    first: [u8; PREFACE.len()],
    read: u8,
    given: u8,
    stream: S,
}

/// Looks at the first bytes of `stream`.
///
/// # Errors
/// The connection's own, `UnexpectedEof` when it ends before it says anything, `TimedOut` after [`PATIENCE`].
pub(crate) async fn detect<S: AsyncRead + Unpin>(stream: S) -> io::Result<(Speaks, Spoken<S>)> {
    let (speaks, spoken) = detect_within(PATIENCE, stream).await?;
    let speaks = speaks.ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, "nothing was said"))?;
    Ok((speaks, spoken))
}

/// The same of a connection that may also say nothing in all of `patience`, or not enough to tell (`None`).
///
/// # Errors
/// The connection's own, `UnexpectedEof` when it ends before it says anything.
pub(crate) async fn detect_within<S: AsyncRead + Unpin>(
    patience: Duration,
    stream: S,
) -> io::Result<(Option<Speaks>, Spoken<S>)> {
    let mut spoken = Spoken::unheard(stream);
    match tokio::time::timeout(patience, spoken.look()).await {
        Ok(speaks) => Ok((Some(speaks?), spoken)),
        Err(_) => Ok((None, spoken)),
    }
}

impl<S> Spoken<S> {
    /// A connection at which nobody has looked yet.
    pub(crate) fn unheard(stream: S) -> Self {
        Self { first: [0; PREFACE.len()], read: 0, given: 0, stream }
    }

    /// Whether it has said anything.
    pub(crate) fn has_spoken(&self) -> bool {
        self.read > 0
    }

    /// The connection itself.
    pub(crate) fn inner(&self) -> &S {
        &self.stream
    }
}

impl Spoken<TcpStream> {
    /// Waits until whoever connected has left: the connection was reset, or ended before it said a word. One that ends after that
    /// may have closed its half alone, and waits for its answer.
    pub(crate) async fn left(&self) {
        if self.read == 0 && !matches!(self.stream.peek(&mut [0]).await, Ok(1..)) {
            return;
        }
        // What waits to be read would be told again and again; a reset is an error.
        let _ = self.stream.ready(Interest::ERROR).await;
    }
}

impl<S: Wire> Wire for Spoken<S> {
    fn socket(&self) -> Option<&TcpStream> {
        self.stream.socket()
    }

    fn plain(&self) -> Option<&TcpStream> {
        if self.given < self.read { None } else { self.stream.plain() }
    }
}

impl<S: AsyncRead + Unpin> Spoken<S> {
    async fn look(&mut self) -> io::Result<Speaks> {
        loop {
            let seen = usize::from(self.read);
            let read = self.stream.read(&mut self.first[seen..]).await?;
            let said = &self.first[..seen + read];
            if read == 0 && said.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.read = u8::try_from(said.len()).unwrap_or(u8::MAX);
            if said[0] == TLS_HANDSHAKE {
                return Ok(Speaks::Tls);
            }
            if !PREFACE.starts_with(said) || read == 0 {
                return Ok(Speaks::Http1);
            }
            if said.len() == PREFACE.len() {
                return Ok(Speaks::Http2);
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Spoken<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.given < this.read {
            let rest = &this.first[usize::from(this.given)..usize::from(this.read)];
            let now = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..now]);
            this.given += u8::try_from(now).unwrap_or(0);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Spoken<S> {
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

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn what_is(bytes: &[u8]) -> (Speaks, Vec<u8>) {
        let (mut caller, ours) = tokio::io::duplex(64);
        caller.write_all(bytes).await.unwrap();
        drop(caller);
        let (speaks, mut spoken) = detect(ours).await.unwrap();
        let mut again = Vec::new();
        spoken.read_to_end(&mut again).await.unwrap();
        (speaks, again)
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_bytes_tell_what_is_spoken_and_are_read_again() {
        for (said, speaks) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], Speaks::Http1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nabc", Speaks::Http2),
            (b"PRI * HTTP/1.1\r\n\r\n", Speaks::Http1),
            (b"PRI", Speaks::Http1),
            (b"\x16\x03\x01\x02\x00\x01", Speaks::Tls),
            (b"\x00", Speaks::Http1),
        ] {
            assert_eq!(what_is(said).await, (speaks, said.to_vec()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_preface_in_pieces_is_waited_for() {
        let (mut caller, ours) = tokio::io::duplex(64);
        let looking = tokio::spawn(detect(ours));
        for piece in PREFACE.chunks(5) {
            caller.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(looking.await.unwrap().unwrap().0, Speaks::Http2);
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_preface_and_then_silence_tells_nothing_and_is_kept() {
        let (mut caller, ours) = tokio::io::duplex(64);
        caller.write_all(b"PRI").await.unwrap();
        let (speaks, mut spoken) = detect_within(PATIENCE, ours).await.unwrap();
        assert!(speaks.is_none() && spoken.has_spoken());
        let mut again = [0; 3];
        spoken.read_exact(&mut again).await.unwrap();
        assert_eq!(&again, b"PRI");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_let_go() {
        let (_caller, ours) = tokio::io::duplex(64);
        assert_eq!(detect(ours).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let (caller, ours) = tokio::io::duplex(64);
        drop(caller);
        assert_eq!(detect(ours).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
