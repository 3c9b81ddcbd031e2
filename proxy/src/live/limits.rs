//! What this proxy has in flight to one Service, so that `TrafficPolicy.limits` can be kept over all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Counters of one backend. A place is taken with one of the functions and given back by dropping [`Held`].
#[derive(Debug, Default)]
pub struct LimitState {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
    /// Requests that wait because every connection there may be is open.
    waiters: AtomicU32,
    freed: Notify,
}

/// So many of each there are now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Present {
    /// Open connections.
    pub connections: u32,
    /// Requests that wait for one.
    pub pending: u32,
    /// Requests in flight.
    pub requests: u32,
}

impl LimitState {
    /// Takes a place for an open connection; `None` when `limit` are open.
    pub fn connection(self: &Arc<Self>, limit: Option<u32>) -> Option<Held> {
        Held::take(self, Kind::Connection, limit)
    }

    /// Takes a place for a request that waits for a connection; `None` when `limit` wait.
    pub fn pending(self: &Arc<Self>, limit: Option<u32>) -> Option<Held> {
        Held::take(self, Kind::Pending, limit)
    }

    /// Takes a place for a request in flight; `None` when `limit` are.
    pub fn request(self: &Arc<Self>, limit: Option<u32>) -> Option<Held> {
        Held::take(self, Kind::Request, limit)
    }

    /// Takes a place for a retry in flight; `None` when `limit` are.
    pub fn retry(self: &Arc<Self>, limit: Option<u32>) -> Option<Held> {
        Held::take(self, Kind::Retry, limit)
    }

    /// Whether a retry would get a place now.
    pub fn has_place_for_retry(&self, limit: Option<u32>) -> bool {
        limit.is_none_or(|limit| self.retries.load(Ordering::Relaxed) < limit)
    }

    /// Waits in line for a connection that becomes free, for as long as what is returned lives.
    pub fn wait(self: &Arc<Self>) -> Held {
        self.waiters.fetch_add(1, Ordering::SeqCst);
        Held { of: Arc::clone(self), kind: Kind::Waiter }
    }

    /// Whether anybody waits for a connection to become free.
    pub fn is_waited_for(&self) -> bool {
        self.waiters.load(Ordering::SeqCst) > 0
    }

    /// Ready when a connection was closed, or nobody uses it any more, after this was enabled.
    pub fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// A connection is no longer in use: whoever waits may look for it.
    pub fn free(&self) {
        self.freed.notify_waiters();
    }

    /// What there is now.
    pub fn present(&self) -> Present {
        Present {
            connections: self.connections.load(Ordering::Relaxed),
            pending: self.pending.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
        }
    }

    fn counter(&self, kind: Kind) -> &AtomicU32 {
        match kind {
            Kind::Connection => &self.connections,
            Kind::Pending => &self.pending,
            Kind::Request => &self.requests,
            Kind::Retry => &self.retries,
            Kind::Waiter => &self.waiters,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Connection,
    Pending,
    Request,
    Retry,
    Waiter,
}

/// A place taken; given back when dropped.
#[derive(Debug)]
pub struct Held {
    of: Arc<LimitState>,
    kind: Kind,
}

impl Held {
    fn take(of: &Arc<LimitState>, kind: Kind, limit: Option<u32>) -> Option<Self> {
        let limit = limit.unwrap_or(u32::MAX);
        of.counter(kind)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| (taken < limit).then_some(taken + 1))
            .ok()
            .map(|_| Self { of: Arc::clone(of), kind })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.counter(self.kind).fetch_sub(1, Ordering::SeqCst);
        if self.kind == Kind::Connection {
            self.of.free();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_refused_at_the_limit_and_given_back_when_dropped() {
        let state = Arc::new(LimitState::default());
        let first = state.request(Some(1));
        assert!(first.is_some() && state.request(Some(1)).is_none());
        assert!(state.connection(Some(1)).is_some(), "each kind is counted alone");
        assert_eq!(state.present(), Present { connections: 0, pending: 0, requests: 1 });
        drop(first);
        assert!(state.request(Some(1)).is_some());
        let retry = state.retry(Some(1));
        assert!(retry.is_some() && !state.has_place_for_retry(Some(1)) && state.has_place_for_retry(None));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_connection_learns_that_one_was_closed() {
        let state = Arc::new(LimitState::default());
        let open = state.connection(Some(1));
        let waiting = state.wait();
        assert!(state.is_waited_for());
        let freed = state.freed();
        drop(open);
        freed.await;
        drop(waiting);
        assert!(!state.is_waited_for());
    }
}
