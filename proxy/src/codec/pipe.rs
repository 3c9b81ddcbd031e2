//! Bytes moved from one socket to another that nobody looks at: the system hands their pages on (splice(2)), and nothing
//! copies them. Between the two sockets they lie in a pipe, which is filled only when it is empty.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What a pipe holds when its pages are whole, of which the system allows that much to anybody.
const ROOM: usize = 256 * 1024;
/// A pipe that holds less is not worth its calls: the system gives such to a user who has many (`pipe-user-pages-soft`).
const LEAST: usize = 64 * 1024;
/// Pipes that a thread has in use at once: the system counts their pages, and each is two file descriptors.
const MOST: usize = 64;
/// Empty pipes that a thread keeps.
const SPARES: usize = 4;

thread_local! {
    static IN_USE: Cell<usize> = const { Cell::new(0) };
    static SPARE: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
    /// The system has said that it does not do this: nobody asks again.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

#[cfg(test)]
thread_local! {
    static MOVED: Cell<u64> = const { Cell::new(0) };
    static SANDBOXED: Cell<bool> = const { Cell::new(false) };
}

/// Bytes on their way. It is no pipe until it is first filled.
#[derive(Debug, Default)]
pub(crate) struct Pipe(Option<Box<Ends>>);

#[derive(Debug)]
struct Ends {
    reads: OwnedFd,
    writes: OwnedFd,
    held: usize,
}

impl Pipe {
    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.held() == 0
    }

    /// Bytes that are in it.
    pub(crate) fn held(&self) -> usize {
        self.0.as_ref().map_or(0, |ends| ends.held)
    }

    /// Moves into it what came to a socket, `most` bytes at most. 0: no more will come. `None`: there is no pipe to be had.
    pub(super) fn poll_fill(
        &mut self,
        from: &TcpStream,
        most: u64,
        cx: &mut Context<'_>,
    ) -> Option<Poll<io::Result<usize>>> {
        debug_assert!(self.is_empty(), "a full pipe could not be told from a socket to which nothing came");
        if self.0.is_none() {
            self.0 = Some(Box::new(Ends::take()?));
        }
        let ends = self.0.as_mut()?;
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(ROOM);
        let polled = poll_move(from, Interest::READABLE, cx, || {
            #[cfg(test)]
            if SANDBOXED.get() {
                return Err(Errno::PERM);
            }
            splice(from, None, &ends.writes, None, most, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)
        });
        match &polled {
            Poll::Ready(Ok(moved)) => {
                ends.held = *moved;
                #[cfg(test)]
                MOVED.set(MOVED.get() + *moved as u64);
            }
            Poll::Ready(Err(error)) if is_refusal(error) => {
                REFUSED.set(true);
                drop(std::mem::take(self));
                return None;
            }
            _ => {}
        }
        Some(polled)
    }

    /// Has the system refuse to move anything from now on, on this thread.
    #[cfg(test)]
    pub(crate) fn refuse() {
        SANDBOXED.set(true);
    }

    /// Bytes that pipes of this thread have taken in so far.
    #[cfg(test)]
    pub(crate) fn moved() -> u64 {
        MOVED.get()
    }

    /// Moves what is in it to a socket: how much of it that took at once. Not to be asked when it is empty.
    pub(super) fn poll_drain(&mut self, to: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(ends) = &mut self.0 else { return Poll::Ready(Ok(0)) };
        let moved = ready!(poll_move(to, Interest::WRITABLE, cx, || {
            splice(&ends.reads, None, to, None, ends.held, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)
        }))?;
        ends.held -= moved;
        Poll::Ready(Ok(moved))
    }
}

/// Whether this says that the system, or what guards it, does not move bytes so; nothing was lost then.
fn is_refusal(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| [Errno::PERM, Errno::ACCESS, Errno::NOSYS, Errno::INVAL].contains(&errno))
}

/// Does `work` once the socket is ready for it.
fn poll_move(
    socket: &TcpStream,
    interest: Interest,
    cx: &mut Context<'_>,
    mut work: impl FnMut() -> rustix::io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        let is_read = interest == Interest::READABLE;
        ready!(if is_read { socket.poll_read_ready(cx) } else { socket.poll_write_ready(cx) })?;
        match socket.try_io(interest, || Ok(rustix::io::retry_on_intr(&mut work)?)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}

impl Ends {
    /// A spare pipe, or a new one, unless too many are in use.
    fn take() -> Option<Self> {
        if IN_USE.get() >= MOST || REFUSED.get() {
            return None;
        }
        let ends = SPARE.with_borrow_mut(Vec::pop).or_else(|| {
            let (reads, writes) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
            // Where that is too much it holds less.
            let _ = fcntl_setpipe_size(&writes, ROOM);
            let ends = Self { reads, writes, held: 0 };
            ends.is_roomy().then_some(ends)
        })?;
        IN_USE.set(IN_USE.get() + 1);
        Some(ends)
    }
}

impl Ends {
    fn is_roomy(&self) -> bool {
        fcntl_getpipe_size(&self.writes).is_ok_and(|size| size >= LEAST)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let Some(ends) = self.0.take() else { return };
        IN_USE.set(IN_USE.get().saturating_sub(1));
        // What is still in it is for nobody else.
        if ends.held == 0 {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < SPARES {
                    spare.push(*ends);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Both ends of a connection.
    async fn both_ends() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (one, other) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (one.unwrap(), other.unwrap().0)
    }

    async fn fill(pipe: &mut Pipe, from: &TcpStream, most: u64) -> Option<usize> {
        poll_fn(|cx| match pipe.poll_fill(from, most, cx) {
            None => Poll::Ready(None),
            Some(polled) => polled.map(|moved| Some(moved.unwrap())),
        })
        .await
    }

    #[tokio::test]
    async fn what_comes_to_one_socket_goes_to_another_as_it_came_and_no_more_than_asked_for() {
        let ((mut says, from), (to, mut hears)) = (both_ends().await, both_ends().await);
        says.write_all(b"all of this, and the next message").await.unwrap();
        let mut pipe = Pipe::default();
        assert_eq!(fill(&mut pipe, &from, 12).await, Some(12));
        assert_eq!((pipe.held(), pipe.is_empty()), (12, false));
        assert_eq!(poll_fn(|cx| pipe.poll_drain(&to, cx)).await.unwrap(), 12);
        let mut heard = [0; 12];
        hears.read_exact(&mut heard).await.unwrap();
        assert_eq!((&heard, pipe.is_empty()), (b"all of this,", true));
        drop(says);
        assert_eq!(fill(&mut pipe, &from, 1000).await, Some(21), "the rest is where it was");
        poll_fn(|cx| pipe.poll_drain(&to, cx)).await.unwrap();
        assert_eq!(fill(&mut pipe, &from, 1000).await, Some(0), "no more will come");
    }

    #[test]
    fn a_pipe_of_a_page_or_two_is_not_used() {
        let ends = |room: usize| {
            let (reads, writes) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            fcntl_setpipe_size(&writes, room).unwrap();
            Ends { reads, writes, held: 0 }
        };
        assert!(!ends(4096).is_roomy() && !ends(LEAST / 2).is_roomy() && ends(LEAST).is_roomy());
        assert!(Ends::take().is_some_and(|ends| ends.is_roomy()));
        IN_USE.set(0);
    }

    #[tokio::test]
    async fn pipes_are_used_again_unless_something_is_left_in_them_and_are_not_made_without_end() {
        let (mut says, from) = both_ends().await;
        says.write_all(&[b'x'; 2 * MOST]).await.unwrap();
        let mut left = Pipe::default();
        fill(&mut left, &from, 1).await.unwrap();
        drop(left);
        assert_eq!((SPARE.with_borrow(Vec::len), IN_USE.get()), (0, 0), "what is in it is for nobody else");
        let mut all = Vec::new();
        for _ in 0..MOST {
            let mut pipe = Pipe::default();
            assert_eq!(fill(&mut pipe, &from, 1).await, Some(1));
            all.push(pipe);
        }
        assert_eq!(fill(&mut Pipe::default(), &from, 1).await, None, "one too many");
        let (to, _hears) = both_ends().await;
        for pipe in &mut all {
            poll_fn(|cx| pipe.poll_drain(&to, cx)).await.unwrap();
        }
        drop(all);
        assert_eq!((SPARE.with_borrow(Vec::len), IN_USE.get()), (SPARES, 0));
        let mut again = Pipe::default();
        assert_eq!(fill(&mut again, &from, 1).await, Some(1));
        assert_eq!(SPARE.with_borrow(Vec::len), SPARES - 1);
    }
}
