//! What this proxy has in flight to one Service, so that `TrafficPolicy.limits` can be kept over all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Counters of one backend. A place is taken with one of the functions and given back by dropping [`Held`].
#[derive(Debug, Default)]
pub struct LimitState {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
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

    fn counter(&self, kind: Kind) -> &AtomicU32 {
        match kind {
            Kind::Connection => &self.connections,
            Kind::Pending => &self.pending,
            Kind::Request => &self.requests,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Connection,
    Pending,
    Request,
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
        self.of.counter(self.kind).fetch_sub(1, Ordering::Relaxed);
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
        drop(first);
        assert!(state.request(Some(1)).is_some());
    }
}
