//! The timer behind hyper's patience with heads: one registration for each connection, not one for each request.
//!
//! hyper asks for a sleep whenever it waits for a head and drops it when the head is there, nearly always long before its
//! end. Such sleeps share one of the runtime's here, which is left where it is when a later end is asked for, and moved
//! on only when it has passed.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

/// The timer of one connection. Of its sleeps only the one polled last is woken: hyper has one at a time.
#[derive(Debug, Clone, Default)]
pub(super) struct OneTimer(Registered);

/// The runtime's sleep, once there was something to wait for. hyper wants a timer to be `Sync`; no other thread is there.
type Registered = Arc<Mutex<Option<Pin<Box<tokio::time::Sleep>>>>>;

/// One sleep of many.
struct Until {
    end: Instant,
    registered: Registered,
}

impl Timer for OneTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, end: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Until { end, registered: Arc::clone(&self.0) })
    }

    fn now(&self) -> Instant {
        super::now()
    }
}

impl Sleep for Until {}

impl Future for Until {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let end = self.end.into();
        let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        let sleep = registered.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        if sleep.deadline() > end {
            sleep.as_mut().reset(end);
        }
        while sleep.as_mut().poll(context).is_ready() {
            if sleep.deadline() >= end {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(end);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn each_sleep_ends_when_it_said_though_they_share_one() {
        let (timer, begun) = (OneTimer::default(), tokio::time::Instant::now());
        for seconds in [10, 3, 20, 20] {
            // What is dropped before its end leaves its registration behind.
            assert!(tokio::time::timeout(SECOND, timer.sleep(2 * SECOND)).await.is_err());
            let asked = begun.elapsed();
            timer.sleep(seconds * SECOND).await;
            let after = begun.elapsed() - asked;
            assert!((seconds * SECOND..seconds * SECOND + SECOND / 10).contains(&after), "{seconds}: {after:?}");
        }
        assert!(timer.0.lock().unwrap().is_some());
    }
}
