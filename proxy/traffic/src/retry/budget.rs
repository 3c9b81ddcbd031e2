//! The retry budget of one Service: retries may add a share to its load, never multiply it.
//!
//! A sliding window of one slot for each second, shared by all threads without a lock but for the turn of a second.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use equerry_policies::policy::RetryBudget as Allowance;

/// The budget looks back so many seconds, one slot each (Finagle's window).
pub(super) const WINDOW: u64 = 10;

/// Original requests and retries toward one Service over the last ten seconds. Shared by all threads.
#[derive(Debug, Default)]
pub struct RetryBudget {
    born: OnceLock<Instant>,
    /// The newest second the slots know.
    newest: AtomicU64,
    slots: [Slot; WINDOW as usize],
    turning: Mutex<()>,
}

#[derive(Debug, Default)]
struct Slot {
    originals: AtomicU32,
    retries: AtomicU32,
}

impl RetryBudget {
    /// Counts a request that a caller made.
    pub fn original(&self, now: Instant) {
        self.slot(now).originals.fetch_add(1, Relaxed);
    }

    /// Takes one retry out of the budget, if it is there: at most `percent` of the originals of the last ten seconds plus
    /// `min_per_second` for each of them.
    pub fn take(&self, allowance: &Allowance, now: Instant) -> bool {
        let slot = self.slot(now);
        // Counted first and taken back when it was too much, so that two threads cannot both take the last one.
        slot.retries.fetch_add(1, Relaxed);
        let (originals, retries) = self.slots.iter().fold((0u64, 0u64), |(o, r), slot| {
            (o + u64::from(slot.originals.load(Relaxed)), r + u64::from(slot.retries.load(Relaxed)))
        });
        let allowed = originals * u64::from(allowance.percent) / 100 + WINDOW * u64::from(allowance.min_per_second);
        let granted = retries <= allowed;
        if !granted {
            slot.retries.fetch_sub(1, Relaxed);
        }
        granted
    }

    /// The slot of this second, with the slots between the newest known and it cleared.
    fn slot(&self, now: Instant) -> &Slot {
        let born = *self.born.get_or_init(|| now);
        let second = now.saturating_duration_since(born).as_secs();
        if self.newest.load(Relaxed) < second {
            let _turning = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
            let newest = self.newest.load(Relaxed);
            for passed in (newest + 1..=second).rev().take(WINDOW as usize) {
                let slot = &self.slots[(passed % WINDOW) as usize];
                slot.originals.store(0, Relaxed);
                slot.retries.store(0, Relaxed);
            }
            self.newest.store(newest.max(second), Relaxed);
        }
        &self.slots[(second % WINDOW) as usize]
    }
}
