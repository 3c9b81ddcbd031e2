//! How long an exchange and each of its tries may take, and which limits hold for which kind of exchange.
//!
//! The exchange's time covers every try and every wait between them; a try that would outlive it ends with it, and the
//! refusal names the limit that it was and the document that set it. A streaming call has no end that anybody could know: once
//! its response has begun only a limit asked for it holds (`timeouts.stream`, or the caller's own `grpc-timeout`).

pub mod grpc_timeout;
mod kind;
mod pace;

use std::time::{Duration, Instant};

use equerry_policies::compile::RouteRule;
use equerry_policies::policy::TrafficPolicy;

pub use kind::Kind;
pub use pace::{Crawled, Pace};

use crate::refusal::{Expired, Refusal};

/// After its response head nothing may stand still for longer where nothing is written (Envoy's default).
const USUAL_STREAM_IDLE: Duration = Duration::from_secs(300);

/// A limit on time, by the name that its author knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// `timeouts.connect` of a TrafficPolicy.
    Connect,
    /// `timeouts.request` of a route's rule.
    Request,
    /// `timeouts.backendRequest` of a route's rule.
    BackendRequest,
    /// The caller's own `grpc-timeout`.
    GrpcTimeout,
    /// What is left of the deadline of the exchange that this one is part of, from `tracestate`.
    Inherited,
    /// `timeouts.stream` of a TrafficPolicy.
    Stream,
    /// `timeouts.streamIdle` of a TrafficPolicy.
    StreamIdle,
}

impl Timer {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "timeouts.connect",
            Self::Request => "timeouts.request",
            Self::BackendRequest => "timeouts.backendRequest",
            Self::GrpcTimeout => "grpc-timeout",
            Self::Inherited => "the deadline in tracestate",
            Self::Stream => "timeouts.stream",
            Self::StreamIdle => "timeouts.streamIdle",
        }
    }
}

/// Who set the limits of an exchange.
#[derive(Debug, Clone, Copy, Default)]
pub struct Authors<'a> {
    /// The rule that was chosen.
    pub rule: Option<&'a RouteRule>,
    /// What holds for the backend.
    pub policy: Option<&'a TrafficPolicy>,
}

impl Authors<'_> {
    /// The document behind a limit, as log and body name it; `None` for what the caller asked, and for defaults.
    pub fn of(&self, timer: Timer) -> Option<String> {
        match timer {
            Timer::Request | Timer::BackendRequest => {
                self.rule.map(|rule| format!("{} rules[{}]", rule.route, rule.number))
            }
            Timer::Connect | Timer::Stream | Timer::StreamIdle => self.policy?.name.as_ref().map(ToString::to_string),
            Timer::GrpcTimeout | Timer::Inherited => None,
        }
    }
}

/// When an exchange must have its response head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    at: Option<Instant>,
    allowed: Duration,
    by: Timer,
    /// What the caller asked for itself: holds for a stream too.
    asked: Option<(Instant, Duration)>,
}

/// When a try must have its response head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TryDeadline {
    /// The moment; `None`: no limit.
    pub at: Option<Instant>,
    /// How long the limit that decides was.
    allowed: Duration,
    by: Timer,
}

impl Deadline {
    /// What a rule's `timeouts.request` sets, counted from `now`; `None`: no limit.
    pub fn after(now: Instant, allowed: Option<Duration>) -> Self {
        // A limit so large that no clock can hold it is none.
        let at = allowed.and_then(|allowed| now.checked_add(allowed));
        Self { at, allowed: allowed.unwrap_or_default(), by: Timer::Request, asked: None }
    }

    /// The same, or what the caller's `grpc-timeout` says, if that is earlier.
    pub fn asked(self, now: Instant, timeout: Option<Duration>) -> Self {
        let asked = timeout.and_then(|timeout| Some((now.checked_add(timeout)?, timeout)));
        Self { asked, ..self.at_most(asked, Timer::GrpcTimeout) }
    }

    /// The same, or the deadline of the exchange that this one is part of, if that is earlier: somebody else's word is
    /// believed only to shorten.
    pub fn inherited(self, now: Instant, remaining: Option<Duration>) -> Self {
        let inherited = remaining.and_then(|remaining| Some((now.checked_add(remaining)?, remaining)));
        self.at_most(inherited, Timer::Inherited)
    }

    fn at_most(self, other: Option<(Instant, Duration)>, by: Timer) -> Self {
        match (self.at, other) {
            (Some(at), Some((earlier, allowed))) if earlier < at => Self { at: Some(earlier), allowed, by, ..self },
            (None, Some((earlier, allowed))) => Self { at: Some(earlier), allowed, by, ..self },
            _ => self,
        }
    }

    /// The moment; `None`: no limit.
    pub fn at(&self) -> Option<Instant> {
        self.at
    }

    /// How much is left; `None`: no limit.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        self.at.map(|at| at.saturating_duration_since(now))
    }

    /// How much is left of what the caller asked for itself: what the next hop is told in `grpc-timeout`.
    pub fn asked_remaining(&self, now: Instant) -> Option<Duration> {
        self.asked.map(|(at, _)| at.saturating_duration_since(now))
    }

    /// Whether a try could still begin after waiting for `wait`.
    pub fn allows(&self, now: Instant, wait: Duration) -> bool {
        self.remaining(now).is_none_or(|left| left > wait)
    }

    /// Lets a request go on only while somebody waits for its answer.
    ///
    /// # Errors
    /// When the deadline has passed: work that nobody waits for is not sent.
    pub fn still_wanted(&self, now: Instant) -> Result<(), Refusal> {
        if self.allows(now, Duration::ZERO) { Ok(()) } else { Err(Refusal::TooLate(self.expired())) }
    }

    fn expired(&self) -> Expired {
        Expired { timer: self.by, after: self.allowed, document: None }
    }

    /// The deadline of a try that begins now and may take `try_timeout`.
    pub fn for_try(&self, now: Instant, try_timeout: Option<Duration>) -> TryDeadline {
        let own = try_timeout.and_then(|allowed| Some((now.checked_add(allowed)?, allowed)));
        let earlier = match (self.at, own) {
            (Some(whole), Some((own, allowed))) if own < whole => Some((own, allowed)),
            (None, own) => own,
            _ => None,
        };
        match earlier {
            Some((at, allowed)) => TryDeadline { at: Some(at), allowed, by: Timer::BackendRequest },
            None => TryDeadline { at: self.at, allowed: self.allowed, by: self.by },
        }
    }

    /// What holds from the response head on, for an exchange of `kind` that began at `began`.
    pub fn after_head(&self, kind: Kind, began: Instant, policy: &TrafficPolicy) -> Rest {
        let (idle, unread) = (idle(kind, policy), unread(policy));
        if !kind.is_streaming() {
            return Rest { end: TryDeadline { at: self.at, allowed: self.allowed, by: self.by }, idle, unread };
        }
        let stream = policy.stream_timeout.and_then(|allowed| Some((began.checked_add(allowed)?, allowed)));
        let none = Self { at: None, allowed: Duration::ZERO, by: Timer::Stream, asked: None };
        let end = none.at_most(stream, Timer::Stream).at_most(self.asked, Timer::GrpcTimeout);
        Rest { end: TryDeadline { at: end.at, allowed: end.allowed, by: end.by }, idle, unread }
    }

    /// What holds from the response head on at the callee: the time that came with the request. How long its response may
    /// stand still is for the caller's policy to say; only who takes nothing of it is not waited for.
    pub fn after_head_at_callee(&self, kind: Kind, began: Instant) -> Rest {
        Rest { idle: None, ..self.after_head(kind, began, &TrafficPolicy::default()) }
    }
}

/// For how long nothing of a request's body may come, and from the response head on nothing may pass, in an exchange of `kind`;
/// `None`: however long. Who streams may be silent where nothing is written.
pub fn idle(kind: Kind, policy: &TrafficPolicy) -> Option<Duration> {
    match policy.stream_idle_timeout {
        Some(written) => Some(written).filter(|idle| !idle.is_zero()),
        None => usual_idle(kind),
    }
}

/// The same where nothing is written.
pub fn usual_idle(kind: Kind) -> Option<Duration> {
    Some(USUAL_STREAM_IDLE).filter(|_| !kind.is_streaming())
}

/// For how long a caller may take nothing of a response that waits for it; `None`: however long.
pub fn unread(policy: &TrafficPolicy) -> Option<Duration> {
    Some(policy.stream_idle_timeout.unwrap_or(USUAL_STREAM_IDLE)).filter(|idle| !idle.is_zero())
}

/// What a try is refused with that had no connection after so long.
pub fn no_connection(after: Duration) -> Refusal {
    Refusal::ConnectTimeout(Expired { timer: Timer::Connect, after, document: None })
}

fn stream_idle(after: Duration) -> Expired {
    Expired { timer: Timer::StreamIdle, after, document: None }
}

/// What an exchange is refused with whose caller sent nothing of its request's body for so long.
pub fn nothing_came(after: Duration) -> Refusal {
    Refusal::BodyTimeout(stream_idle(after))
}

/// How long somebody is waited for before the rate is judged at which they send or take.
pub const CRAWL: Duration = Duration::from_secs(30);
/// The fewest bytes a second of a body that are worth waiting for, in both directions, where there is a limit on silence at all:
/// fewer than the slowest modem's, and than Kestrel's 240.
pub const SLOWEST: u64 = 64;

/// Whether a caller who was waited for, and sent so many bytes in `after`, crawls.
///
/// # Errors
/// When it does.
pub fn not_crawling(bytes: u64, after: Duration) -> Result<(), Refusal> {
    if pace::is_crawl(bytes, after) {
        return Err(Refusal::BodyCrawls { bytes, after });
    }
    Ok(())
}

/// What an exchange is ended with that stood still for so long, though there was something to pass on.
pub fn stood_still(after: Duration) -> Refusal {
    Refusal::StreamIdle(stream_idle(after))
}

/// What a response is cut with of which its caller took nothing for so long.
pub fn nobody_reads(after: Duration) -> Refusal {
    Refusal::Unread(stream_idle(after))
}

/// How old a connection that is made now may become before it gets no further exchange: `timeouts.maxAge`, up to a tenth less
/// at random, so that connections made together do not end together. `None`: however old.
pub fn connection_age(policy: &TrafficPolicy, rng: &mut fastrand::Rng) -> Option<Duration> {
    policy.max_connection_age.map(|age| age - (age / 10).mul_f64(rng.f64()))
}

/// The limits on the rest of an exchange whose response has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    /// When the last byte must have passed.
    pub end: TryDeadline,
    /// For how long nothing may pass; `None`: however long.
    pub idle: Option<Duration>,
    /// For how long the caller may take nothing of what waits for it; `None`: however long.
    pub unread: Option<Duration>,
}

impl Rest {
    /// What an exchange that stood still for too long is cut with.
    pub fn stood_still(&self) -> Refusal {
        stood_still(self.idle.unwrap_or_default())
    }

    /// What an exchange whose caller takes nothing is cut with.
    pub fn nobody_reads(&self) -> Refusal {
        nobody_reads(self.unread.unwrap_or_default())
    }
}

impl TryDeadline {
    /// What a try that reached it is refused with.
    pub fn passed(&self) -> Refusal {
        let expired = Expired { timer: self.by, after: self.allowed, document: None };
        if self.by == Timer::BackendRequest { Refusal::TryTimeout(expired) } else { Refusal::RequestTimeout(expired) }
    }

    /// Asked when the moment has come: whether it is over, or until when there is more time.
    ///
    /// In a gRPC call the caller may stream for as long as it likes before there is anything to answer, so that a rule's time
    /// begins when its request has ended (`ended`; `None`: it has not). What the caller itself asked for knows no such mercy.
    ///
    /// # Errors
    /// With what the try is refused with.
    pub fn or_more_time(&self, kind: Kind, ended: Option<Instant>, now: Instant) -> Result<Instant, Refusal> {
        let of_a_rule = matches!(self.by, Timer::Request | Timer::BackendRequest);
        if kind != Kind::Grpc || !of_a_rule {
            return Err(self.passed());
        }
        let until = ended.unwrap_or(now).checked_add(self.allowed).filter(|until| *until > now);
        until.ok_or_else(|| self.passed())
    }
}

#[cfg(test)]
#[path = "deadline_tests.rs"]
mod tests;
