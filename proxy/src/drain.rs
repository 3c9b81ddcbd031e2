//! Leaving without cutting anybody off: once begun, a drain is seen by every task, and whoever still works holds a
//! guard, so that the process ends when the last one is done, or when the grace period ends and the rest is cut off.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

/// The one drain of the process. Clones share it.
#[derive(Debug, Clone)]
pub struct Drain {
    shared: Arc<Shared>,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    Draining,
    /// The grace period is over.
    CutOff,
}

#[derive(Debug)]
struct Shared {
    stage: watch::Sender<Stage>,
    working: AtomicUsize,
    gone: Notify,
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// A drain that has not begun.
    pub fn new() -> Self {
        let (stage, _) = watch::channel(Stage::Serving);
        Self { shared: Arc::new(Shared { stage, working: AtomicUsize::new(0), gone: Notify::new() }) }
    }

    /// Begins: inbound connections should end as soon as their exchange in flight is answered.
    pub fn begin(&self) {
        self.reach(Stage::Draining);
    }

    /// What is still open now is cut off.
    pub fn cut_off(&self) {
        self.reach(Stage::CutOff);
    }

    fn reach(&self, stage: Stage) {
        self.shared.stage.send_if_modified(|present| std::mem::replace(present, stage.max(*present)) < stage);
    }

    /// Whether it has begun.
    pub fn begun(&self) -> bool {
        *self.shared.stage.borrow() >= Stage::Draining
    }

    /// Waits until it begins. Safe to drop at any point.
    pub async fn wait_begun(&self) {
        self.wait_for(Stage::Draining).await;
    }

    /// Waits until what is open is cut off. Safe to drop at any point.
    pub async fn wait_cut_off(&self) {
        self.wait_for(Stage::CutOff).await;
    }

    async fn wait_for(&self, stage: Stage) {
        let mut seen = self.shared.stage.subscribe();
        // The sender lives in `self`, so the only error (it was dropped) cannot happen while we wait.
        let _ = seen.wait_for(|present| *present >= stage).await;
    }

    /// Held by each connection, inbound and outbound, for as long as it lives.
    pub fn guard(&self) -> Working {
        self.shared.working.fetch_add(1, Ordering::Relaxed);
        Working { drain: self.clone() }
    }

    /// How many guards are held.
    pub fn working(&self) -> usize {
        self.shared.working.load(Ordering::Acquire)
    }

    /// Waits until nobody holds a guard, at most `grace`; whether that was reached.
    pub async fn all_gone(&self, grace: Duration) -> bool {
        let gone = async {
            loop {
                let noticed = self.shared.gone.notified();
                tokio::pin!(noticed);
                noticed.as_mut().enable();
                if self.working() == 0 {
                    return;
                }
                noticed.await;
            }
        };
        tokio::time::timeout(grace, gone).await.is_ok()
    }
}

/// Proof of work in progress; ends when dropped.
#[derive(Debug)]
pub struct Working {
    drain: Drain,
}

impl Drop for Working {
    fn drop(&mut self) {
        if self.drain.shared.working.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.drain.shared.gone.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_last_guard_ends_the_wait_and_the_grace_period_bounds_it() {
        let drain = Drain::new();
        let (first, second) = (drain.guard(), drain.guard());
        assert!(!drain.all_gone(Duration::from_secs(30)).await, "two still work");
        drop(first);
        let waiting = tokio::spawn({
            let drain = drain.clone();
            async move { drain.all_gone(Duration::from_secs(30)).await }
        });
        tokio::task::yield_now().await;
        drop(second);
        assert!(waiting.await.unwrap());
        assert!(drain.all_gone(Duration::ZERO).await || drain.working() == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_sees_the_beginning_also_who_looks_late() {
        let drain = Drain::new();
        let early = tokio::spawn({
            let drain = drain.clone();
            async move { drain.wait_begun().await }
        });
        tokio::task::yield_now().await;
        assert!(!drain.begun() && !early.is_finished());
        drain.begin();
        early.await.unwrap();
        drain.wait_begun().await;
        assert!(drain.begun());
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_never_goes_back_and_what_is_cut_off_has_begun_to_leave() {
        let drain = Drain::new();
        drain.cut_off();
        drain.begin();
        drain.wait_begun().await;
        drain.wait_cut_off().await;
    }
}
