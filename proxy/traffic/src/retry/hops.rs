//! In which traces this process lately made retries, so that whoever called its application makes none on top of them.
//!
//! The hop behind retries first, because it hears of a failure first. When its application then fails as well, the sidecar
//! beside it says to its caller that this was tried again already. Nothing is known of applications that do not pass
//! `traceparent` on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName};

/// W3C Trace Context.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Who waits longer for an answer than this, or twice this at most, is not told.
const KEPT: Duration = Duration::from_secs(30);
/// As many traces are remembered, twice at most: 200 KiB.
const MOST: usize = 2048;

/// A trace, by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

impl TraceId {
    /// The trace that a request is part of, if it says so.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let id = headers.get(TRACEPARENT)?.to_str().ok()?.split('-').nth(1).filter(|id| id.len() == 32)?;
        u128::from_str_radix(id, 16).ok().map(Self)
    }
}

/// The traces in which retries were made lately. Shared by all threads; costs nothing as long as there are none.
#[derive(Debug, Default)]
pub struct Hops {
    any: AtomicBool,
    lately: Mutex<Lately>,
}

/// In two halves, of which the older is forgotten when the younger is full, or old itself.
#[derive(Debug, Default)]
struct Lately {
    since: Option<Instant>,
    younger: HashMap<TraceId, Instant>,
    older: HashMap<TraceId, Instant>,
}

impl Hops {
    /// A retry is made in this trace, here or by a hop behind.
    pub fn retried(&self, trace: TraceId, now: Instant) {
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        lately.age(now);
        lately.younger.insert(trace, now);
        self.any.store(true, Relaxed);
    }

    /// Whether any trace is remembered. Mostly none is, and nothing else has to be asked.
    pub fn any(&self) -> bool {
        self.any.load(Relaxed)
    }

    /// Whether a retry was made in this trace since `began`: what came before was part of another call.
    pub fn since(&self, trace: TraceId, began: Instant, now: Instant) -> bool {
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        lately.age(now);
        self.any.store(!(lately.younger.is_empty() && lately.older.is_empty()), Relaxed);
        let last = lately.younger.get(&trace).or_else(|| lately.older.get(&trace));
        last.is_some_and(|last| *last >= began)
    }
}

impl Lately {
    fn age(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let age = now.saturating_duration_since(since);
        if age >= KEPT || self.younger.len() >= MOST {
            let old = std::mem::take(&mut self.younger);
            self.older = if age >= 2 * KEPT { HashMap::new() } else { old };
            self.since = Some(now);
        }
    }
}

#[cfg(test)]
#[path = "hops_tests.rs"]
mod tests;
