//! What a link owes: order, and several pieces in one write, over sockets that take what they like.

use std::future::poll_fn;

use tokio::io::AsyncReadExt;

use super::*;

#[tokio::test]
async fn what_is_added_goes_out_in_its_order_whatever_is_taken_at_once() {
    let mut rng = fastrand::Rng::with_seed(11);
    for takes in [1, 100, 5_000, 20_000, 1 << 20] {
        let (mut theirs, ours) = tokio::io::duplex(takes);
        let (mut link, mut said, mut pieces) = (Link::new(ours), Vec::new(), 0);
        let saying = async {
            for _ in 0..40 {
                while !link.is_full() {
                    let length = [0, 1, 9, SMALL, SMALL + 1, 9_000, ENOUGH_LARGE][rng.usize(..7)];
                    let piece: Vec<u8> = (0..length).map(|_| rng.u8(..)).collect();
                    said.extend_from_slice(&piece);
                    if rng.bool() && length <= SMALL {
                        link.outbox().extend_from_slice(&piece);
                    } else {
                        link.add(piece.into());
                    }
                    pieces += 1;
                }
                // Now and then only as much as goes at once.
                if rng.bool() {
                    let _ = poll_fn(|cx| Poll::Ready(link.poll_send(cx))).await;
                } else {
                    poll_fn(|cx| link.poll_send(cx)).await.unwrap();
                    assert_eq!((link.waiting(), link.is_flushed()), (0, true));
                }
            }
            poll_fn(|cx| link.poll_send(cx)).await.unwrap();
            assert_eq!((link.more.capacity(), link.outbox.capacity()), (0, 0), "nothing is held at rest");
            drop(link);
        };
        let mut heard = Vec::new();
        let (_, read) = tokio::join!(saying, theirs.read_to_end(&mut heard));
        read.unwrap();
        assert!(pieces > 100 && heard == said, "{takes} bytes at once: {} of {} came", heard.len(), said.len());
    }
}

/// A wire that counts what it is asked to write, and takes all of it.
struct Counted(std::rc::Rc<std::cell::Cell<usize>>);

impl Wire for Counted {
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

impl AsyncRead for Counted {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Counted {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.set(self.0.get() + 1);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let _ = self.poll_write(cx, &[]);
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn records_that_come_one_by_one_leave_four_in_one_write() {
    let writes = std::rc::Rc::default();
    let mut link = Link::new(Counted(std::rc::Rc::clone(&writes)));
    for _ in 0..4 {
        assert!(!link.is_full());
        link.add(Bytes::from(vec![b'x'; GLANCE]));
    }
    assert!(link.is_full());
    poll_fn(|cx| link.poll_send(cx)).await.unwrap();
    assert_eq!((writes.get(), link.is_flushed()), (1, true));
}
