//! Waiting for what seldom happens beside what happens all the time, without asking for it each time.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// A future that is polled only when it asked to be: the task it is in wakes for every byte, it only once in a while.
pub(crate) struct Seldom<F> {
    future: F,
    bell: Arc<Bell>,
    waker: Waker,
    over: bool,
}

#[derive(Debug)]
struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<F: Future<Output = ()> + Unpin> Seldom<F> {
    /// Waits for `future`.
    pub(crate) fn new(future: F) -> Self {
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), task: AtomicWaker::new() });
        let waker = Waker::from(Arc::clone(&bell));
        Self { future, bell, waker, over: false }
    }

    /// Whether it has happened.
    pub(crate) fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.over && self.bell.rung.load(Ordering::Acquire) {
            self.bell.task.register(cx.waker());
            self.bell.rung.store(false, Ordering::Release);
            self.over = Pin::new(&mut self.future).poll(&mut Context::from_waker(&self.waker)).is_ready();
        }
        self.over
    }

    /// From now on this task asks.
    pub(crate) fn asked_by(&self, task: &Waker) {
        self.bell.task.register(task);
    }

    /// The future.
    pub(crate) fn future(&self) -> &F {
        &self.future
    }

    /// The future, to change what it waits for: it is asked again.
    pub(crate) fn change(&mut self) -> &mut F {
        self.over = false;
        self.bell.rung.store(true, Ordering::Release);
        &mut self.future
    }
}

impl<F: Future<Output = ()> + Unpin> Future for Seldom<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.get_mut().is_over(cx) { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_seldom_happens_is_asked_for_seldom_and_seen_in_time() {
        let (asked, begun) = (Cell::new(0), tokio::time::Instant::now());
        let mut sleep = Box::pin(tokio::time::sleep(Duration::from_secs(1)));
        let counted = std::future::poll_fn(|cx| {
            asked.set(asked.get() + 1);
            sleep.as_mut().poll(cx)
        });
        let mut seldom = Seldom::new(counted);
        let busy = async {
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = &mut seldom => {}
            () = busy => {}
        }
        assert!(begun.elapsed() >= Duration::from_secs(1));
        assert!(asked.get() <= 3, "{}", asked.get());
    }
}
