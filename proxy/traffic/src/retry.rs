//! Whether a try that failed is made again, when, and why not.
//!
//! [`judge`] asks in this order: is it worth it, is it safe, does another hop do it, is it still possible, is there budget. A
//! retry budget is always on: retries may add a share to the load of a destination, never multiply it. Of a chain of hops only
//! one retries: requests carry the mark of a hop before ([`crate::trace_state`]), failures that of a hop behind ([`Hops`]).

mod budget;
mod grpc;
mod hint;
mod hops;

use std::time::{Duration, Instant};

use equerry_policies::policy::{Retry, RetryBudget as Allowance};
use http::Method;

pub use budget::RetryBudget;
pub(crate) use grpc::is_grpc;
pub use grpc::{http_code, may_look_for_trailers, owes_status, status};
pub use hint::{Pushback, pushback, retry_after};
pub use hops::{Hops, TraceId};

use crate::deadline::Deadline;
use crate::refusal::Reason;

/// The wait before a retry grows up to this many times the first (Envoy's default ratio).
const MAX_BACKOFF_FACTOR: u32 = 10;
/// A request that was certainly not processed is tried again so often where no policy says otherwise.
const UNPROCESSED_RETRIES: u32 = 1;

/// How a try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The application answered with this status.
    Status(u16),
    /// The application answered with this gRPC status, in the head or in trailers that follow it at once.
    Grpc(u8),
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

    /// Whether it is a failure of any kind.
    pub fn is_one(self) -> bool {
        match self {
            Self::Status(status) => status >= 400,
            Self::Grpc(status) => status > 0,
            Self::Mesh { .. } => true,
        }
    }

    fn unprocessed(self) -> bool {
        matches!(self, Self::Mesh { unprocessed: true, .. })
    }

    /// Whether a rule with this `retry` finds it worth trying again (GEP-1731: its codes, and connection errors always).
    pub fn worth(self, retry: Option<&Retry>) -> bool {
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
            (Self::Grpc(status), Some(retry)) => http_code(status).is_some_and(|code| retry.codes.contains(&code)),
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
    /// The request is itself a retry that a hop before us makes: see [`crate::trace_state::Carried`].
    pub marked: bool,
    /// The failure is one of which a hop behind us says that it has made retries already: see [`Hops`].
    pub behind: bool,
    /// What the failed answer says about trying again.
    pub pushback: Pushback,
    /// There is a place among the retries in flight (`limits.retries`).
    pub place: bool,
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
    /// A hop before us makes retries already, or one behind us has.
    Hop,
    /// The answer asks for none, or for a longer wait than anybody has.
    Pushback,
    /// The body cannot be sent again.
    Body,
    /// The gRPC status came in trailers, after data that the caller has already seen. [`judge`] never says this: who passes
    /// the trailers on does.
    Trailers,
    /// All attempts are used.
    Attempts,
    /// As many retries as `limits.retries` allows are in flight.
    Limit,
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
            Self::Hop => Some("skipped_hop"),
            Self::Pushback => Some("skipped_pushback"),
            Self::Body => Some("skipped_body"),
            Self::Trailers => Some("skipped_trailers"),
            Self::Attempts => Some("exhausted"),
            Self::Limit => Some("skipped_limit"),
            Self::Deadline => Some("skipped_deadline"),
            Self::Budget => Some("skipped_budget"),
        }
    }
}

/// Decides whether to try again; charges the budget when it does.
///
/// A request that was certainly not processed multiplies no work, so that neither the mark of another hop nor its method
/// stands against trying it again.
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
    if !unprocessed && (attempt.marked || attempt.behind) {
        return Verdict::Stop(Stop::Hop);
    }
    let Some(asked) = attempt.pushback.wait() else {
        return Verdict::Stop(Stop::Pushback);
    };
    if !attempt.replayable {
        return Verdict::Stop(Stop::Body);
    }
    if attempt.retries >= attempt.retry.map_or(UNPROCESSED_RETRIES, |retry| retry.attempts) {
        return Verdict::Stop(Stop::Attempts);
    }
    if !attempt.place {
        return Verdict::Stop(Stop::Limit);
    }
    let after = attempt.retry.map_or(Duration::ZERO, |retry| backoff(retry.backoff, attempt.retries, rng));
    let after = after.max(asked);
    if !attempt.deadline.allows(now, after) {
        return Verdict::Stop(Stop::Deadline);
    }
    if !budget.take(allowance, now) {
        return Verdict::Stop(Stop::Budget);
    }
    Verdict::Again { after }
}

/// The wait before the next retry: never less than `base`, which the rule asks for, and above it at random up to `base`,
/// 3 × `base`, 7 × `base` and so on, but not beyond 10 × `base` in all (Envoy's full jitter above GEP-1731's minimum).
pub fn backoff(base: Duration, retries: u32, rng: &mut fastrand::Rng) -> Duration {
    let most = 2u32.saturating_pow(retries.saturating_add(1)).saturating_sub(1).min(MAX_BACKOFF_FACTOR - 1);
    base.saturating_add(base.saturating_mul(most).mul_f64(rng.f64()))
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
