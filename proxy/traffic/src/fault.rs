//! Faults made on purpose: whether a request waits, and whether it is answered with an error, before anything is sent.

use std::time::Duration;

use equerry_policies::compile::{CompiledDestination, Fault};
use equerry_policies::policy::FaultStatus;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName};

use crate::refusal::Refusal;

/// The longest wait that a request may ask for.
const MAX_DELAY: Duration = Duration::from_mins(10);

/// Envoy's names, which tools know.
const DELAY: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request");
const DELAY_PERCENT: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request-percentage");
const ABORT: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request");
const ABORT_GRPC: HeaderName = HeaderName::from_static("x-envoy-fault-abort-grpc-request");
const ABORT_PERCENT: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request-percentage");

/// What is done to one request: at least one of the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injected<'a> {
    /// The document that says so, `namespace/name`.
    pub policy: &'a str,
    /// It waits so long.
    pub delay: Option<Duration>,
    /// Then it is answered so.
    pub abort: Option<Abort>,
}

/// An error in place of an answer: a status for callers of each protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abort {
    /// For HTTP.
    pub status: StatusCode,
    /// For gRPC.
    pub grpc: u8,
}

impl Injected<'_> {
    /// What the caller is told, when it waited and is to be answered with an error.
    pub fn refusal(&self) -> Option<Refusal> {
        self.abort.map(|abort| Refusal::Fault { policy: self.policy.into(), abort })
    }
}

impl Abort {
    /// With an HTTP status; gRPC callers get the code that gRPC maps it to.
    pub fn http(status: StatusCode) -> Self {
        let grpc = match status.as_u16() {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502..=504 => 14,
            _ => 2,
        };
        Self { status, grpc }
    }

    /// With a gRPC status; HTTP callers get the status that google.rpc maps it to.
    pub fn grpc(code: u8) -> Self {
        let status = match code {
            1 => 499,
            3 | 9 | 11 => 400,
            4 => 504,
            5 => 404,
            6 | 10 => 409,
            7 => 403,
            8 => 429,
            12 => 501,
            14 => 503,
            16 => 401,
            _ => 500,
        };
        Self { status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), grpc: code }
    }

    fn of(status: FaultStatus) -> Option<Self> {
        match status {
            FaultStatus::Http(status) => StatusCode::from_u16(status).ok().map(Self::http),
            FaultStatus::Grpc(code) => Some(Self::grpc(code)),
        }
    }
}

/// The fault that a request to `destination` with these headers meets, if any. The first document, by name, whose `match`
/// fits is the one that is asked.
#[inline]
pub fn inject<'a>(
    destination: &'a CompiledDestination,
    headers: &HeaderMap,
    rng: &mut fastrand::Rng,
) -> Option<Injected<'a>> {
    if destination.faults.is_empty() {
        return None;
    }
    let fault = destination.faults.iter().find(|fault| holds(fault, headers))?;
    let asked = asked(fault, headers);
    let mut drawn = |percent: u8| rng.u8(..100) < percent;
    let own_delay = || fault.delay.map(|delay| (delay.fixed, delay.percent));
    let own_abort = || fault.abort.and_then(|abort| Some((Abort::of(abort.with)?, abort.percent)));
    let delay = asked.delay.or_else(own_delay).filter(|(_, percent)| drawn(*percent)).map(|(time, _)| time);
    let abort = asked.abort.or_else(own_abort).filter(|(_, percent)| drawn(*percent)).map(|(abort, _)| abort);
    let meets = delay.is_some() || abort.is_some();
    meets.then_some(Injected { policy: &fault.policy, delay, abort })
}

/// Whether a document's `match` fits.
pub(crate) fn holds(fault: &Fault, headers: &HeaderMap) -> bool {
    fault
        .when
        .iter()
        .all(|wanted| headers.get_all(&wanted.name).iter().any(|value| wanted.value.matches(value.as_bytes())))
}

/// What a request asks for itself, each with its percentage.
#[derive(Default)]
struct Asked {
    delay: Option<(Duration, u8)>,
    abort: Option<(Abort, u8)>,
}

/// What does not read as it should asks for nothing.
fn asked(fault: &Fault, headers: &HeaderMap) -> Asked {
    if !fault.by_headers {
        return Asked::default();
    }
    let number = |name: &HeaderName| -> Option<u64> { headers.get(name)?.to_str().ok()?.parse().ok() };
    let percent = |name: &HeaderName| match headers.get(name) {
        None => Some(100),
        Some(_) => number(name).and_then(|percent| u8::try_from(percent.min(100)).ok()),
    };
    let delay = number(&DELAY).filter(|time| *time > 0).map(|time| Duration::from_millis(time).min(MAX_DELAY));
    let status = number(&ABORT).filter(|status| (400..600).contains(status));
    let http = status.and_then(|status| StatusCode::from_u16(u16::try_from(status).ok()?).ok()).map(Abort::http);
    let code = number(&ABORT_GRPC).filter(|code| (1..=16).contains(code));
    let grpc = code.and_then(|code| u8::try_from(code).ok()).map(Abort::grpc);
    Asked { delay: delay.zip(percent(&DELAY_PERCENT)), abort: http.or(grpc).zip(percent(&ABORT_PERCENT)) }
}

#[cfg(test)]
#[path = "fault_tests.rs"]
mod tests;
