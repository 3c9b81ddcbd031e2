//! What came within a window of time, slot by slot: what is older falls out. It is told the time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Numbers that add up, and of which running totals are told.
pub(super) trait Adds: Clone + Default {
    /// Adds what came.
    fn add(&mut self, more: &Self);
    /// What came since running totals stood at `before`; all of it when they went back.
    fn since(&self, before: &Self) -> Self;
    /// What it takes to remember them, in whatever is counted of them.
    fn parts(&self) -> usize;
}

/// How much more a total is now; all of it when it went back.
pub(super) fn more(now: u64, before: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

/// How far back numbers reach, and in what steps they fall out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) whole: Duration,
    pub(super) slot: Duration,
}

impl Window {
    fn slots(self) -> u64 {
        self.whole.as_secs() / self.slot.as_secs()
    }
}

/// The numbers of a window; it begins with the first that is told.
#[derive(Debug)]
pub(super) struct Ring<T> {
    first: Instant,
    told: Instant,
    slots: BTreeMap<u64, T>,
}

impl<T: Adds> Ring<T> {
    /// Nothing yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { first: now, told: now, slots: BTreeMap::new() }
    }

    /// Counts what came.
    pub(super) fn count(&mut self, window: Window, more: &T, now: Instant) {
        let present = self.slot(window, now);
        self.told = now;
        self.slots.entry(present).or_default().add(more);
        self.slots = self.slots.split_off(&self.begin(window, now));
    }

    /// All that came within the window.
    pub(super) fn sum(&self, window: Window, now: Instant) -> T {
        let mut sum = T::default();
        self.slots.range(self.begin(window, now)..).for_each(|(_, slot)| sum.add(slot));
        sum
    }

    /// The part of the window that was listened to, at most all of it. A first report tells of the time before it too.
    pub(super) fn over(&self, window: Window, now: Instant) -> Duration {
        (now.saturating_duration_since(self.first) + window.slot).min(window.whole)
    }

    /// When something was counted last.
    pub(super) fn told(&self) -> Instant {
        self.told
    }

    fn slot(&self, window: Window, now: Instant) -> u64 {
        now.saturating_duration_since(self.first).as_secs() / window.slot.as_secs()
    }

    /// The first slot that is of the window.
    fn begin(&self, window: Window, now: Instant) -> u64 {
        (self.slot(window, now) + 1).saturating_sub(window.slots())
    }
}
