//! The circuit breaker of one endpoint: closed, open for a penalty, half-open with exactly one live request as probe.
//!
//! A state machine and nothing else; [`crate::balance::EndpointState`] shares one among threads. The settings are an
//! argument of every step, because the breaker outlives changes of policy.

use std::time::{Duration, Instant};

use equerry_policies::policy::Breaker as Settings;

/// Up to this share of a penalty is added at random, so that many callers do not probe in step.
const JITTER: f64 = 0.1;

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Requests pass; so many in a row have failed.
    Closed {
        /// Failures since the last success.
        failures: u32,
    },
    /// No request passes until a moment; then the next one is the probe.
    Open {
        /// When the penalty ends.
        until: Instant,
        /// How long it was, jitter left out.
        penalty: Duration,
    },
    /// One probe is under way; nothing else passes.
    HalfOpen {
        /// When the penalty before the probe ended.
        until: Instant,
        /// How long it was, jitter left out.
        penalty: Duration,
    },
}

/// A request may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// As any other.
    Closed,
    /// As the one probe: whoever holds this owes the breaker a verdict, or [`Breaker::abandon`].
    Probe,
}

/// Why a breaker changed its state, for logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// Closed to open: so many failures in a row.
    Opened {
        /// How many.
        failures: u32,
        /// For how long.
        penalty: Duration,
    },
    /// Half-open to open: the probe failed.
    Reopened {
        /// For how long.
        penalty: Duration,
    },
    /// Open to half-open: the penalty is over and this request is the probe.
    Probing,
    /// Half-open to closed: the probe succeeded.
    Closed,
}

impl Transition {
    /// Its reason in one word, for metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Opened { .. } => "consecutive_failures",
            Self::Reopened { .. } => "probe_failed",
            Self::Probing => "penalty_over",
            Self::Closed => "probe_succeeded",
        }
    }
}

/// One endpoint's breaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breaker {
    state: State,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed { failures: 0 } }
    }
}

impl Breaker {
    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether a request could pass now, and as what; changes nothing.
    pub fn would_admit(&self, now: Instant) -> Option<Admission> {
        match self.state {
            State::Closed { .. } => Some(Admission::Closed),
            State::Open { until, .. } if until <= now => Some(Admission::Probe),
            State::Open { .. } | State::HalfOpen { .. } => None,
        }
    }

    /// Lets a request pass, or not (`None`).
    pub fn admit(&mut self, now: Instant) -> Option<(Admission, Option<Transition>)> {
        let admission = self.would_admit(now)?;
        match (admission, self.state) {
            (Admission::Probe, State::Open { until, penalty }) => {
                self.state = State::HalfOpen { until, penalty };
                Some((Admission::Probe, Some(Transition::Probing)))
            }
            _ => Some((admission, None)),
        }
    }

    /// A request that was admitted so has succeeded.
    pub fn succeeded(&mut self, admitted: Admission) -> Option<Transition> {
        match (admitted, self.state) {
            (Admission::Probe, State::HalfOpen { .. }) => {
                self.state = State::Closed { failures: 0 };
                Some(Transition::Closed)
            }
            (_, State::Closed { .. }) => {
                self.state = State::Closed { failures: 0 };
                None
            }
            // A success of a request that left before the breaker opened says nothing about now.
            _ => None,
        }
    }

    /// A request that was admitted so has failed; `random` is in 0..1.
    pub fn failed(
        &mut self,
        admitted: Admission,
        settings: &Settings,
        now: Instant,
        random: f64,
    ) -> Option<Transition> {
        match (admitted, self.state) {
            (Admission::Probe, State::HalfOpen { penalty, .. }) => {
                let penalty = penalty
                    .saturating_mul(2)
                    .clamp(settings.penalty_min, settings.penalty_max.max(settings.penalty_min));
                self.open(penalty, now, random);
                Some(Transition::Reopened { penalty })
            }
            (_, State::Closed { failures }) => {
                let failures = failures.saturating_add(1);
                if failures < settings.consecutive_failures.max(1) {
                    self.state = State::Closed { failures };
                    return None;
                }
                let penalty = settings.penalty_min;
                self.open(penalty, now, random);
                Some(Transition::Opened { failures, penalty })
            }
            // A failure of a request that left before the breaker opened is already counted in its being open.
            _ => None,
        }
    }

    /// A probe ended without a verdict, its caller gone for example: the next request is the probe.
    pub fn abandon(&mut self, admitted: Admission) {
        if let (Admission::Probe, State::HalfOpen { until, penalty }) = (admitted, self.state) {
            self.state = State::Open { until, penalty };
        }
    }

    fn open(&mut self, penalty: Duration, now: Instant, random: f64) {
        let until = now + penalty + penalty.mul_f64(JITTER * random.clamp(0.0, 1.0));
        self.state = State::Open { until, penalty };
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to count from")]
mod tests {
    use super::*;
    use Admission::{Closed, Probe};

    const SECOND: Duration = Duration::from_secs(1);
    const SETTINGS: Settings =
        Settings { consecutive_failures: 3, penalty_min: SECOND, penalty_max: Duration::from_secs(5) };

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            breaker.failed(Closed, &SETTINGS, now, 0.0);
        }
        breaker
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_a_success_between_them_starts_the_count_again() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        assert_eq!(breaker.failed(Closed, &SETTINGS, now, 0.0), None);
        assert_eq!(breaker.failed(Closed, &SETTINGS, now, 0.0), None);
        assert_eq!(breaker.succeeded(Closed), None);
        assert_eq!(breaker.failed(Closed, &SETTINGS, now, 0.0), None);
        assert_eq!(breaker.failed(Closed, &SETTINGS, now, 0.0), None);
        assert_eq!(
            breaker.failed(Closed, &SETTINGS, now, 0.0),
            Some(Transition::Opened { failures: 3, penalty: SECOND })
        );
        assert_eq!(breaker.admit(now + SECOND / 2), None);
    }

    #[test]
    fn after_the_penalty_exactly_one_request_is_the_probe() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.admit(now + SECOND), Some((Probe, Some(Transition::Probing))));
        assert_eq!(breaker.admit(now + SECOND), None);
        assert_eq!(breaker.succeeded(Probe), Some(Transition::Closed));
        assert_eq!(breaker.admit(now + SECOND), Some((Closed, None)));
    }

    #[test]
    fn the_penalty_doubles_with_each_failed_probe_up_to_its_maximum_and_is_forgotten_on_success() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for expected in [2, 4, 5, 5] {
            now += Duration::from_secs(5);
            assert!(breaker.admit(now).is_some());
            let penalty = expected * SECOND;
            assert_eq!(breaker.failed(Probe, &SETTINGS, now, 0.0), Some(Transition::Reopened { penalty }));
            assert_eq!(breaker.would_admit(now + penalty - Duration::from_nanos(1)), None);
        }
        now += Duration::from_secs(5);
        breaker.admit(now);
        breaker.succeeded(Probe);
        for _ in 0..2 {
            breaker.failed(Closed, &SETTINGS, now, 0.0);
        }
        assert_eq!(
            breaker.failed(Closed, &SETTINGS, now, 0.0),
            Some(Transition::Opened { failures: 3, penalty: SECOND })
        );
    }

    #[test]
    fn an_abandoned_probe_leaves_the_probe_to_the_next_request() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.admit(now + SECOND);
        breaker.abandon(Probe);
        assert_eq!(breaker.would_admit(now + SECOND), Some(Probe));
    }

    #[test]
    fn requests_that_left_before_it_opened_change_nothing() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let before = breaker.clone();
        assert_eq!(breaker.succeeded(Closed), None);
        assert_eq!(breaker.failed(Closed, &SETTINGS, now, 0.0), None);
        assert_eq!(breaker, before);
    }
}
