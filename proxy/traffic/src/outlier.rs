//! When the share of failures is too high, and how many endpoints of a Service may be kept away at once.
//!
//! [`Window`] belongs to the breaker of one endpoint and lives only while there are failures to remember, so that an endpoint
//! that does not fail costs nothing. [`may_eject`] keeps a cap that also means something where there are two endpoints.

use std::time::{Duration, Instant};

use equerry_policies::policy::{Breaker as Settings, FailurePercent};

/// A window is forgotten in so many steps.
const SLOTS: u64 = 10;

/// Requests and failures of one endpoint over the last interval. It begins with a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    began: Instant,
    interval: Duration,
    /// The newest slot known, counted from `began`.
    newest: u64,
    slots: [Slot; SLOTS as usize],
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Slot {
    requests: u32,
    failures: u32,
}

/// What a window has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Requests that ended within the interval.
    pub requests: u32,
    /// Those that failed.
    pub failures: u32,
}

impl Share {
    /// The share of failures in percent, rounded down.
    pub fn percent(self) -> u32 {
        u32::try_from(u64::from(self.failures) * 100 / u64::from(self.requests.max(1))).unwrap_or(u32::MAX)
    }

    /// Whether so many failures among so many requests open a breaker.
    pub fn is_too_high(self, settings: &FailurePercent) -> bool {
        self.requests >= settings.minimum_requests.max(1)
            && u64::from(self.failures) * 100 >= u64::from(self.requests) * u64::from(settings.threshold)
    }
}

impl Window {
    /// A window that has seen nothing, and looks back over `interval`.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self { began: now, interval, newest: 0, slots: [Slot::default(); SLOTS as usize] }
    }

    /// Whether it looks back over that long; a change of the setting begins a new one.
    pub fn looks_back(&self, interval: Duration) -> bool {
        self.interval == interval
    }

    /// Takes in how a request ended, and tells what there is now.
    pub fn record(&mut self, failed: bool, now: Instant) -> Share {
        self.turn(now);
        let slot = &mut self.slots[(self.newest % SLOTS) as usize];
        slot.requests = slot.requests.saturating_add(1);
        slot.failures = slot.failures.saturating_add(u32::from(failed));
        self.slots.iter().fold(Share { requests: 0, failures: 0 }, |sum, slot| Share {
            requests: sum.requests.saturating_add(slot.requests),
            failures: sum.failures.saturating_add(slot.failures),
        })
    }

    /// Forgets what is older than the interval. A moment before the newest, of a thread that was late, counts as the newest.
    fn turn(&mut self, now: Instant) {
        let step = (self.interval / SLOTS as u32).max(Duration::from_millis(1));
        let at = now.saturating_duration_since(self.began).as_nanos() / step.as_nanos();
        let at = u64::try_from(at).unwrap_or(u64::MAX);
        for passed in (self.newest.saturating_add(1)..=at).rev().take(SLOTS as usize) {
            self.slots[(passed % SLOTS) as usize] = Slot::default();
        }
        self.newest = self.newest.max(at);
    }
}

/// Whether one more endpoint may be kept away, where `ejected` of `total` are already.
///
/// The cap is `maxEjectedPercent` of all, rounded down, but at least one, so that it means something in a small Service; and
/// below 100 percent somebody always stays.
pub fn may_eject(ejected: usize, total: usize, settings: &Settings) -> bool {
    if settings.max_ejected_percent >= 100 {
        return true;
    }
    let share = total.saturating_mul(settings.max_ejected_percent as usize) / 100;
    ejected < share.max(1).min(total.saturating_sub(1))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to count from")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn capped(percent: u32) -> Settings {
        Settings { max_ejected_percent: percent, ..Settings::default() }
    }

    #[test]
    fn a_share_needs_enough_requests_before_it_says_anything() {
        let settings = FailurePercent { threshold: 50, interval: 10 * SECOND, minimum_requests: 10 };
        let too_high = |failures, requests| Share { requests, failures }.is_too_high(&settings);
        assert!(!too_high(9, 9) && too_high(5, 10) && !too_high(4, 10) && !too_high(499, 1000) && too_high(500, 1000));
        assert_eq!(Share { requests: 3, failures: 1 }.percent(), 33);
    }

    #[test]
    fn what_is_older_than_the_interval_is_forgotten() {
        let start = Instant::now();
        let mut window = Window::new(10 * SECOND, start);
        for _ in 0..10 {
            window.record(true, start);
        }
        assert_eq!(window.record(false, start + 9 * SECOND), Share { requests: 11, failures: 10 });
        assert_eq!(window.record(false, start + 10 * SECOND), Share { requests: 2, failures: 0 });
        assert_eq!(window.record(false, start + 1000 * SECOND), Share { requests: 1, failures: 0 });
        assert_eq!(window.record(true, start), Share { requests: 2, failures: 1 }, "a late thread counts as now");
    }

    #[test]
    fn the_cap_means_something_in_a_pool_of_two_and_somebody_always_stays() {
        let allowed = |total, percent| (0..=total).take_while(|out| may_eject(*out, total, &capped(percent))).count();
        assert_eq!([1, 10, 50, 99].map(|percent| allowed(2, percent)), [1, 1, 1, 1]);
        assert_eq!(allowed(1, 99), 0, "the only one is never kept away");
        assert_eq!([10, 33, 50].map(|percent| allowed(10, percent)), [1, 3, 5]);
        assert_eq!(allowed(3, 99), 2);
        assert!(may_eject(2, 2, &capped(100)), "unless all may be");
    }

    proptest! {
        /// Against a list of every request with its slot.
        #[test]
        fn a_window_agrees_with_a_list_of_requests(events in prop::collection::vec((0u64..4000, any::<bool>()), 1..200)) {
            let start = Instant::now();
            let mut window = Window::new(10 * SECOND, start);
            let (mut at, mut list) = (0, Vec::new());
            for (wait, failed) in events {
                at += wait;
                list.push((at / 1000, failed));
                let within: Vec<bool> = list.iter().filter(|(slot, _)| slot + SLOTS > at / 1000).map(|(_, f)| *f).collect();
                let failures = within.iter().filter(|failed| **failed).count() as u32;
                let expected = Share { requests: within.len() as u32, failures };
                prop_assert_eq!(window.record(failed, start + Duration::from_millis(at)), expected);
            }
        }
    }
}
