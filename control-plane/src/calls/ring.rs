//! What came within a window of time, slot by slot: what is older falls out. It is told the time.
//!
//! Whoever looks is told the sum at once, however many slots there are: all but the oldest are kept added up.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Numbers that add up, and of which running totals are told.
pub(super) trait Adds: Clone + Default {
    /// Adds what came.
    fn add(&mut self, more: &Self);
    /// Takes off what was added.
    fn less(&mut self, gone: &Self);
    /// Whether taking off gives just what there was before: not where room ran out.
    fn is_exact(&self) -> bool;
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
    /// By their number, oldest first.
    slots: VecDeque<(u64, T)>,
    /// All slots but the oldest, added up.
    later: T,
}

impl<T: Adds> Ring<T> {
    /// Nothing yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { first: now, told: now, slots: VecDeque::new(), later: T::default() }
    }

    /// Counts what came.
    pub(super) fn count(&mut self, window: Window, more: &T, now: Instant) {
        let (present, begin) = (self.slot(window, now), self.begin(window, now));
        self.told = now;
        while self.slots.front().is_some_and(|(number, _)| *number < begin) {
            self.drop_oldest();
        }
        if self.slots.back().is_none_or(|(number, _)| *number < present) {
            self.slots.push_back((present, T::default()));
        }
        if self.slots.len() > 1 {
            self.later.add(more);
        }
        if let Some((_, slot)) = self.slots.back_mut() {
            slot.add(more);
        }
    }

    /// The one after the oldest is the oldest now, and no longer among the later ones.
    fn drop_oldest(&mut self) {
        self.slots.pop_front();
        if self.later.is_exact() {
            if let Some((_, oldest)) = self.slots.front() {
                self.later.less(oldest);
            }
        } else {
            self.later = sum(self.slots.iter().skip(1));
        }
    }

    /// All that came within the window.
    pub(super) fn sum(&self, window: Window, now: Instant) -> T {
        let begin = self.begin(window, now);
        match (self.slots.front(), self.slots.get(1)) {
            (Some((number, oldest)), _) if *number >= begin => {
                let mut sum = self.later.clone();
                sum.add(oldest);
                sum
            }
            (_, Some((number, _))) if *number >= begin => self.later.clone(),
            _ => sum(self.slots.iter().filter(|(number, _)| *number >= begin)),
        }
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

fn sum<'s, T: Adds + 's>(slots: impl Iterator<Item = &'s (u64, T)>) -> T {
    let mut sum = T::default();
    slots.for_each(|(_, slot)| sum.add(slot));
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { whole: Duration::from_secs(60), slot: Duration::from_secs(5) };

    #[derive(Debug, Clone, Default, PartialEq)]
    struct Count {
        of: u64,
        /// It has no room for more, and says so.
        is_full: bool,
    }

    impl Adds for Count {
        fn add(&mut self, more: &Self) {
            self.of += more.of;
            self.is_full |= more.is_full;
        }

        fn less(&mut self, gone: &Self) {
            assert!(!self.is_full);
            self.of -= gone.of;
        }

        fn is_exact(&self) -> bool {
            !self.is_full
        }

        fn since(&self, before: &Self) -> Self {
            Self { of: more(self.of, before.of), ..self.clone() }
        }

        fn parts(&self) -> usize {
            1
        }
    }

    #[test]
    fn the_sum_is_that_of_all_slots_of_the_window_whenever_it_is_asked() {
        let start = Instant::now();
        for full_at in [u64::MAX, 40] {
            let (mut ring, mut told) = (Ring::new(start), Vec::new());
            for beat in 0..400_u64 {
                // Mostly every two seconds, now and then after a pause of half a minute, or of more than the window.
                let at = beat * 2 + beat / 50 * 33 + beat / 90 * 75;
                let more = Count { of: beat % 7 + 1, is_full: beat == full_at };
                ring.count(WINDOW, &more, start + Duration::from_secs(at));
                told.push((at, more.of));
                for later in [0, 3, 5, 31, 64, 200] {
                    let asked = at + later;
                    let begin = (asked / 5 + 1).saturating_sub(12) * 5;
                    let all: u64 = told.iter().filter(|(at, _)| *at >= begin).map(|(_, of)| of).sum();
                    assert_eq!(ring.sum(WINDOW, start + Duration::from_secs(asked)).of, all, "asked at {asked}");
                }
            }
        }
    }
}
