//! Limits of time that are hardly ever reached.
//!
//! To set a timer and to take it back costs several times as much as to look at one that is set. So a timer that is not needed any
//! more stays set and is given to whoever waits next: it may ring too early for them, and is set anew then, but never too late.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// Timers that are kept: as many exchanges as wait for their answers together.
const KEPT: usize = 64;
/// So many stay where nothing is asked.
const FEW: usize = 4;

/// The timers of one worker that nobody needs now.
#[derive(Debug, Default)]
pub(crate) struct Timers(RefCell<Vec<Pin<Box<Sleep>>>>);

impl Timers {
    /// Does `work` until it is done, or until `at`: then there is nothing of it.
    pub(crate) async fn within<T>(&self, at: Instant, mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        let mut timer = None;
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            timer.get_or_insert_with(|| self.set(at)).poll(cx).map(|()| None)
        })
        .await
    }

    /// A timer that rings at `at`.
    fn set(&self, at: Instant) -> Timer<'_> {
        let mut sleep = self.0.borrow_mut().pop().unwrap_or_else(|| Box::pin(sleep_until(at)));
        if sleep.deadline() > at || sleep.is_elapsed() {
            sleep.as_mut().reset(at);
        }
        Timer { timers: self, sleep: Some(sleep), at }
    }

    /// Lets go of all but a few; whether there were more.
    pub(crate) fn put_down(&self) -> bool {
        let mut kept = self.0.borrow_mut();
        let more = kept.len() > FEW;
        kept.truncate(FEW);
        more
    }
}

/// A timer in use, which is kept afterwards.
struct Timer<'a> {
    timers: &'a Timers,
    /// Set for `at`, or for some time before. There until this is dropped.
    sleep: Option<Pin<Box<Sleep>>>,
    at: Instant,
}

impl Timer<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(sleep) = &mut self.sleep else { return Poll::Ready(()) };
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= self.at {
                return Poll::Ready(());
            }
            // It rang for somebody who has gone.
            sleep.as_mut().reset(self.at);
        }
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        let Some(mut sleep) = self.sleep.take() else { return };
        // Nobody is woken for who has gone, and nothing of theirs is kept alive.
        let _ = sleep.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let mut kept = self.timers.0.borrow_mut();
        if kept.len() < KEPT {
            kept.push(sleep);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::pin::pin;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn kept(timers: &Timers) -> usize {
        timers.0.borrow().len()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_done_at_once_needs_no_timer_and_what_is_done_in_time_is_not_cut() {
        let (timers, began) = (Timers::default(), Instant::now());
        assert_eq!(timers.within(began, pin!(ready(1))).await, Some(1));
        assert_eq!(kept(&timers), 0);
        let work = async {
            tokio::time::sleep(SECOND).await;
            2
        };
        assert_eq!(timers.within(began + 2 * SECOND, pin!(work)).await, Some(2));
        assert_eq!((kept(&timers), began.elapsed()), (1, SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_kept_to_the_moment_whatever_its_timer_was_set_for() {
        let timers = Timers::default();
        // For later, for earlier, for the same, for what has passed, and after it rang for nobody.
        for (before, limit, rest) in [(9, 5, 0), (3, 5, 0), (5, 5, 0), (2, 0, 0), (2, 5, 4), (5, 2, 3)] {
            let began = Instant::now();
            let glance = pin!(async { tokio::time::sleep(SECOND / 2).await });
            assert_eq!(timers.within(began + before * SECOND, glance).await, Some(()));
            tokio::time::sleep(rest * SECOND).await;
            let began = Instant::now();
            assert_eq!(timers.within(began + limit * SECOND, pin!(pending::<()>())).await, None);
            assert_eq!(began.elapsed(), limit * SECOND, "{before} {limit} {rest}");
            assert_eq!(kept(&timers), 1, "one timer does for all who wait one after another");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_is_kept_keeps_nobody_alive() {
        struct Somebody;
        impl std::task::Wake for Somebody {
            fn wake(self: Arc<Self>) {}
        }
        let (timers, somebody) = (Timers::default(), Arc::new(Somebody));
        let mut waits = Box::pin(async { timers.within(Instant::now() + SECOND, pin!(pending::<()>())).await });
        let waker = Waker::from(Arc::clone(&somebody));
        assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop((waker, waits));
        assert_eq!((kept(&timers), Arc::strong_count(&somebody)), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_timers_some_are_kept_and_fewer_where_nothing_is_asked() {
        let timers = Timers::default();
        let at = Instant::now() + SECOND;
        let wait = || async { timers.within(at, pin!(pending::<()>())).await };
        let mut all: Vec<_> = (0..2 * KEPT).map(|_| Box::pin(wait())).collect();
        poll_fn(|cx| {
            all.iter_mut().for_each(|one| assert!(one.as_mut().poll(cx).is_pending()));
            Poll::Ready(())
        })
        .await;
        drop(all);
        assert_eq!(kept(&timers), KEPT);
        assert!(timers.put_down());
        assert_eq!(kept(&timers), FEW);
        assert!(!timers.put_down());
    }
}
