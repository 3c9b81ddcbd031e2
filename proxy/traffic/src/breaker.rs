//! The circuit breaker of one endpoint: closed, open for a penalty, half-open with exactly one live request as probe.
//!
//! A state machine and nothing else; [`crate::balance::EndpointState`] shares one among threads. The settings are an
//! argument of every step, because the breaker outlives changes of policy. One that only observes takes every step, and lets
//! everybody pass.

use std::time::{Duration, Instant};

use equerry_policies::policy::{Breaker as Settings, BreakerMode};

use crate::outlier::{Share, Window};

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

/// What opens a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// So many failures in a row.
    Consecutive(u32),
    /// The share of failures among the requests of the interval.
    TooHigh(Share),
}

impl Cause {
    /// In one word, for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive(_) => "consecutive_failures",
            Self::TooHigh(_) => "failure_percent",
        }
    }
}

/// Why a breaker changed its state, for logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// Closed to open.
    Opened {
        /// By what.
        cause: Cause,
        /// For how long.
        penalty: Duration,
    },
    /// It would have opened, but `maxEjectedPercent` of the endpoints are kept away already. It counts from the beginning.
    Kept {
        /// By what it would have been opened.
        cause: Cause,
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
            Self::Opened { cause, .. } => cause.as_str(),
            Self::Kept { .. } => "max_ejected_percent",
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
    /// While closed, and where a share of failures opens it: since the first failure, until all are forgotten.
    window: Option<Box<Window>>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed { failures: 0 }, window: None }
    }
}

impl Breaker {
    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether it keeps requests away, were it to enforce: open, or waiting for its probe.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }

    /// Whether a request could pass now, and as what; changes nothing.
    pub fn would_admit(&self, settings: &Settings, now: Instant) -> Option<Admission> {
        match self.state {
            State::Closed { .. } => Some(Admission::Closed),
            State::Open { until, .. } if until <= now => Some(Admission::Probe),
            State::Open { .. } | State::HalfOpen { .. } if settings.mode == BreakerMode::Observe => {
                Some(Admission::Closed)
            }
            State::Open { .. } | State::HalfOpen { .. } => None,
        }
    }

    /// Lets a request pass, or not (`None`).
    pub fn admit(&mut self, settings: &Settings, now: Instant) -> Option<(Admission, Option<Transition>)> {
        let admission = self.would_admit(settings, now)?;
        match (admission, self.state) {
            (Admission::Probe, State::Open { until, penalty }) => {
                self.state = State::HalfOpen { until, penalty };
                Some((Admission::Probe, Some(Transition::Probing)))
            }
            _ => Some((admission, None)),
        }
    }

    /// A request that was admitted so has succeeded.
    pub fn succeeded(&mut self, admitted: Admission, settings: &Settings, now: Instant) -> Option<Transition> {
        match (admitted, self.state) {
            (Admission::Probe, State::HalfOpen { .. }) => {
                *self = Self::default();
                Some(Transition::Closed)
            }
            (_, State::Closed { .. }) => {
                self.state = State::Closed { failures: 0 };
                self.record(false, settings, now);
                None
            }
            // A success of a request that left before the breaker opened says nothing about now.
            _ => None,
        }
    }

    /// A request that was admitted so has failed. `may_eject` is asked before it opens: whether one more endpoint of its
    /// Service may be kept away. `random` is in 0..1.
    pub fn failed(
        &mut self,
        admitted: Admission,
        settings: &Settings,
        may_eject: impl FnOnce() -> bool,
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
                self.state = State::Closed { failures };
                let share = self.record(true, settings, now);
                let too_high = share.filter(|share| settings.failure_percent.is_some_and(|at| share.is_too_high(&at)));
                let cause = if failures >= settings.consecutive_failures.max(1) {
                    Cause::Consecutive(failures)
                } else {
                    Cause::TooHigh(too_high?)
                };
                if !may_eject() {
                    *self = Self::default();
                    return Some(Transition::Kept { cause });
                }
                let penalty = settings.penalty_min;
                self.open(penalty, now, random);
                Some(Transition::Opened { cause, penalty })
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

    /// Whatever penalty is left is over: the next request is the probe.
    pub fn end_penalty(&mut self, now: Instant) {
        if let State::Open { until, .. } = &mut self.state {
            *until = now.min(*until);
        }
    }

    /// Takes a result into the window, which begins with a failure and ends when the last one is forgotten.
    fn record(&mut self, failed: bool, settings: &Settings, now: Instant) -> Option<Share> {
        let Some(interval) = settings.failure_percent.map(|share| share.interval) else {
            self.window = None;
            return None;
        };
        let mut window = match self.window.take().filter(|window| window.looks_back(interval)) {
            Some(window) => window,
            None if failed => Box::new(Window::new(interval, now)),
            None => return None,
        };
        let share = window.record(failed, now);
        self.window = Some(window).filter(|_| share.failures > 0);
        Some(share)
    }

    fn open(&mut self, penalty: Duration, now: Instant, random: f64) {
        let until = now + penalty + penalty.mul_f64(JITTER * random.clamp(0.0, 1.0));
        self.state = State::Open { until, penalty };
        self.window = None;
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
