//! Whether a try that failed is made again, when, and why not.
//!
//! [`judge`] asks in this order: is it worth it, is it safe, is it still possible, is there budget. A retry budget is
//! always on: retries may add a share to the load of a destination, never multiply it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use equerry_policies::policy::{Retry, RetryBudget as Allowance};
use http::Method;

use crate::deadline::Deadline;
use crate::refusal::Reason;

/// The budget looks back so many seconds, one slot each (Finagle's window).
const WINDOW: u64 = 10;
/// The wait before a retry grows up to this many times the first (Envoy's default ratio).
const MAX_BACKOFF_FACTOR: u32 = 10;
/// A request that was certainly not processed is tried again so often where no policy says otherwise.
const UNPROCESSED_RETRIES: u32 = 1;

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

/// How a try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The application answered with this status.
    Status(u16),
    /// This proxy, or a believed peer, ended it so.
    Mesh {
        /// How.
        reason: Reason,
        /// With which status.
        status: u16,
        /// The application has certainly not seen the request.
        unprocessed: bool,
    },
}

impl Failure {
    /// A failure this proxy or a believed peer named.
    pub fn mesh(reason: Reason) -> Self {
        Self::Mesh { reason, status: reason.http_status(), unprocessed: reason.provably_unprocessed() }
    }

    fn unprocessed(self) -> bool {
        matches!(self, Self::Mesh { unprocessed: true, .. })
    }

    /// Whether a rule with this `retry` finds it worth trying again (GEP-1731: its codes, and connection errors always).
    fn worth(self, retry: Option<&Retry>) -> bool {
        match (self, retry) {
            (Self::Mesh { unprocessed: true, .. }, _) => true,
            (_, None) => false,
            (
                Self::Mesh {
                    reason:
                        Reason::ConnectFailed | Reason::IdentityMismatch | Reason::UpstreamReset | Reason::TryTimeout,
                    ..
                },
                Some(_),
            ) => true,
            // What a policy or the exchange's own limit decided will be decided so again.
            (Self::Mesh { reason, status, .. }, Some(retry)) => {
                reason.counts_against_endpoint() && reason != Reason::RequestTimeout && retry.codes.contains(&status)
            }
            (Self::Status(status), Some(retry)) => retry.codes.contains(&status),
        }
    }
}

/// What is known of the exchange when a try has failed.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// The method.
    pub method: &'a Method,
    /// The rule's `retry`.
    pub retry: Option<&'a Retry>,
    /// Every match of the rule names the method: its author meant this method when writing `retry`.
    pub method_named: bool,
    /// The body is empty, or held so that it can be sent again.
    pub replayable: bool,
    /// Retries made already.
    pub retries: u32,
    /// When the whole exchange ends.
    pub deadline: Deadline,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Try again after this wait; the budget has been charged.
    Again {
        /// How long to wait first.
        after: Duration,
    },
    /// Answer the caller with what there is.
    Stop(Stop),
}

/// Why there is no further try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It is no failure that a retry is for.
    NotRetriable,
    /// The method is not idempotent, and no rule is about it alone.
    Method,
    /// The body cannot be sent again.
    Body,
    /// All attempts are used.
    Attempts,
    /// The exchange's time would be over.
    Deadline,
    /// The destination's retry budget is spent.
    Budget,
}

impl Stop {
    /// The label in `equerry_retries_total{outcome}`; `None` when a retry was never a question.
    pub fn outcome(self) -> Option<&'static str> {
        match self {
            Self::NotRetriable => None,
            Self::Method => Some("skipped_method"),
            Self::Body => Some("skipped_body"),
            Self::Attempts => Some("exhausted"),
            Self::Deadline => Some("skipped_deadline"),
            Self::Budget => Some("skipped_budget"),
        }
    }
}

/// Decides whether to try again; charges the budget when it does.
pub fn judge(
    failure: Failure,
    attempt: &Attempt<'_>,
    budget: &RetryBudget,
    allowance: &Allowance,
    now: Instant,
    rng: &mut fastrand::Rng,
) -> Verdict {
    let unprocessed = failure.unprocessed();
    if !failure.worth(attempt.retry) {
        return Verdict::Stop(Stop::NotRetriable);
    }
    if !unprocessed && !attempt.method.is_idempotent() && !attempt.method_named {
        return Verdict::Stop(Stop::Method);
    }
    if !attempt.replayable {
        return Verdict::Stop(Stop::Body);
    }
    if attempt.retries >= attempt.retry.map_or(UNPROCESSED_RETRIES, |retry| retry.attempts) {
        return Verdict::Stop(Stop::Attempts);
    }
    let after = attempt.retry.map_or(Duration::ZERO, |retry| backoff(retry.backoff, attempt.retries, rng));
    if !attempt.deadline.allows(now, after) {
        return Verdict::Stop(Stop::Deadline);
    }
    if !budget.take(allowance, now) {
        return Verdict::Stop(Stop::Budget);
    }
    Verdict::Again { after }
}

/// The wait before the next retry: never less than `base`, and up to the doubled wait of each retry made, at random.
pub fn backoff(base: Duration, retries: u32, rng: &mut fastrand::Rng) -> Duration {
    let most = base.saturating_mul(2u32.saturating_pow(retries).min(MAX_BACKOFF_FACTOR));
    base + most.saturating_sub(base).max(base).mul_f64(rng.f64())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to count from")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NOTHING_FREE: Allowance = Allowance { percent: 20, min_per_second: 0 };

    fn retry() -> Retry {
        Retry { codes: vec![503], attempts: 3, backoff: Duration::from_millis(25) }
    }

    fn attempt<'a>(method: &'a Method, retry: Option<&'a Retry>, now: Instant) -> Attempt<'a> {
        Attempt {
            method,
            retry,
            method_named: false,
            replayable: true,
            retries: 0,
            deadline: Deadline::after(now, Some(SECOND)),
        }
    }

    fn verdict(failure: Failure, attempt: &Attempt<'_>, now: Instant) -> Verdict {
        judge(failure, attempt, &RetryBudget::default(), &Allowance::default(), now, &mut fastrand::Rng::with_seed(1))
    }

    fn again(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Again { .. })
    }

    #[test]
    fn a_get_is_tried_again_for_the_codes_of_its_rule_and_for_connection_errors() {
        let (now, retry) = (Instant::now(), retry());
        let get = attempt(&Method::GET, Some(&retry), now);
        assert!(again(verdict(Failure::Status(503), &get, now)));
        assert!(again(verdict(Failure::mesh(Reason::UpstreamReset), &get, now)));
        assert!(again(verdict(Failure::mesh(Reason::TryTimeout), &get, now)));
        assert_eq!(verdict(Failure::Status(500), &get, now), Verdict::Stop(Stop::NotRetriable));
        assert_eq!(verdict(Failure::mesh(Reason::RequestTimeout), &get, now), Verdict::Stop(Stop::NotRetriable));
        assert_eq!(verdict(Failure::mesh(Reason::AuthzDenied), &get, now), Verdict::Stop(Stop::NotRetriable));
    }

    #[test]
    fn a_post_is_tried_again_only_by_a_rule_about_it_or_when_it_was_certainly_not_processed() {
        let (now, retry) = (Instant::now(), retry());
        let mut post = attempt(&Method::POST, Some(&retry), now);
        assert_eq!(verdict(Failure::Status(503), &post, now), Verdict::Stop(Stop::Method));
        assert!(again(verdict(Failure::mesh(Reason::Draining), &post, now)));
        post.method_named = true;
        assert!(again(verdict(Failure::Status(503), &post, now)));
        let unruled = attempt(&Method::POST, None, now);
        assert!(again(verdict(Failure::mesh(Reason::ConnectFailed), &unruled, now)));
    }

    #[test]
    fn body_attempts_and_deadline_each_stop_it_and_say_so() {
        let (now, retry) = (Instant::now(), retry());
        let stop = |change: &dyn Fn(&mut Attempt<'_>)| {
            let mut get = attempt(&Method::GET, Some(&retry), now);
            change(&mut get);
            verdict(Failure::Status(503), &get, now)
        };
        assert_eq!(stop(&|a| a.replayable = false), Verdict::Stop(Stop::Body));
        assert_eq!(stop(&|a| a.retries = 3), Verdict::Stop(Stop::Attempts));
        assert_eq!(
            stop(&|a| a.deadline = Deadline::after(now, Some(Duration::from_millis(20)))),
            Verdict::Stop(Stop::Deadline)
        );
    }

    #[test]
    fn the_budget_allows_its_share_and_forgets_what_is_older_than_its_window() {
        let budget = RetryBudget::default();
        let start = Instant::now();
        for _ in 0..100 {
            budget.original(start);
        }
        let granted = (0..100).filter(|_| budget.take(&NOTHING_FREE, start)).count();
        assert_eq!(granted, 20);
        assert!(!budget.take(&NOTHING_FREE, start + 9 * SECOND));
        for _ in 0..5 {
            budget.original(start + 10 * SECOND);
        }
        assert!(budget.take(&NOTHING_FREE, start + 10 * SECOND));
        assert!(!budget.take(&NOTHING_FREE, start + 10 * SECOND));
        assert!(!budget.take(&NOTHING_FREE, start + 1000 * SECOND));
    }

    #[test]
    fn the_wait_is_never_shorter_than_asked_and_never_grows_without_bound() {
        let mut rng = fastrand::Rng::with_seed(7);
        let base = Duration::from_millis(25);
        for retries in 0..40 {
            let wait = backoff(base, retries, &mut rng);
            assert!(wait >= base && wait <= base * MAX_BACKOFF_FACTOR, "{retries}: {wait:?}");
        }
    }

    proptest! {
        /// Against a plain model: a list of every event with its second.
        #[test]
        fn the_budget_agrees_with_a_list_of_events(events in prop::collection::vec((0u64..3, any::<bool>()), 1..300), percent in 0u32..200, least in 0u32..3) {
            let budget = RetryBudget::default();
            let allowance = Allowance { percent, min_per_second: least };
            let start = Instant::now();
            let (mut second, mut originals, mut retries) = (0u64, Vec::new(), Vec::new());
            budget.original(start);
            originals.push(0);
            for (wait, is_original) in events {
                second += wait;
                let now = start + Duration::from_secs(second);
                if is_original {
                    budget.original(now);
                    originals.push(second);
                } else {
                    let within = |list: &[u64]| list.iter().filter(|at| **at + WINDOW > second).count() as u64;
                    let expected = within(&retries) < within(&originals) * u64::from(percent) / 100 + WINDOW * u64::from(least);
                    prop_assert_eq!(budget.take(&allowance, now), expected);
                    if expected {
                        retries.push(second);
                    }
                }
            }
        }
    }
}
