//! Traces: which exchanges are sampled, how the next one is told, and the spans they leave.
//!
//! Nothing of this costs anything while it is off, and little for what is not sampled. A span inbound is the server's; outbound
//! each try is a client's, and an exchange that took several, or none, has one around them. Spans go to the exporter's task
//! by a bounded queue: a slow collector costs spans, which are counted, and never a request's time.

mod collector;
mod context;
mod export;
mod otlp;
mod span;

use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use http::HeaderMap;
use http::header::HeaderValue;
use tokio::sync::mpsc;

pub(crate) use collector::{Collector, Endpoint, Headers};
pub use context::B3Form;
pub(crate) use context::Forms;
use context::{Came, Context};
pub(crate) use context::{TRACEPARENT, w3c_of_b3};
pub(crate) use export::{Exporter, Exports};
pub(crate) use otlp::Span;

use super::{Direction, Exchange};

/// Spans that may wait to be sent (OpenTelemetry's usual number).
const WAITING: usize = 2_048;

/// Decides what is sampled, and hands on what was. Clones share the way to the exporter.
#[derive(Debug, Clone)]
pub(crate) struct Tracer {
    /// A trace that begins here is kept when the lower half of its id is below.
    below: u64,
    keeps_all: bool,
    forms: Forms,
    to_exporter: mpsc::Sender<Span>,
}

/// The trace of one sampled exchange.
#[derive(Debug, Clone)]
pub struct Trace {
    trace: u128,
    /// Who asked; `None`: the trace began here.
    parent: Option<u64>,
    span: u64,
    debug: bool,
    forms: Forms,
    began: SystemTime,
    tries: Vec<Try>,
}

#[derive(Debug, Clone)]
struct Try {
    span: u64,
    began: Instant,
    ended: Option<Instant>,
    address: SocketAddr,
    outcome: TryOutcome,
}

/// How a try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TryOutcome {
    /// It did not; the caller left.
    Unknown,
    /// With a response head of this status.
    Status(u16),
    /// Without one; the reason's word.
    Failed(&'static str),
}

impl Tracer {
    /// Samples a `share` (0..1) of the traces that begin here, and writes `forms` beside W3C's; and where its spans come out.
    pub(crate) fn new(share: f64, forms: Forms) -> (Self, mpsc::Receiver<Span>) {
        let (to_exporter, spans) = mpsc::channel(WAITING);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of all numbers; to the last one matters to nobody"
        )]
        let below = (share.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
        (Self { below, keeps_all: share >= 1.0, forms, to_exporter }, spans)
    }

    /// Takes part in the trace of a request, or begins one; writes what the application or the mesh behind is told. The trace
    /// when it is sampled, and what is forwarded.
    pub(crate) fn begin(
        &self,
        direction: Direction,
        headers: &mut HeaderMap,
        began: SystemTime,
    ) -> (Option<Box<Trace>>, HeaderValue) {
        let came = Came::read(headers);
        let (trace, parent) = came.ids.map_or_else(|| (fastrand::u128(1..), None), |(trace, span)| (trace, Some(span)));
        let sampled = came.sampled.unwrap_or_else(|| self.keeps(trace));
        // What came is told on as it came where this hop has no span; outbound each try is told its own.
        let nothing_new = !sampled || direction == Direction::Outbound;
        if came.by_w3c && nothing_new {
            let forwarded = headers.get(&TRACEPARENT).cloned().unwrap_or(HeaderValue::from_static(""));
            return (self.kept(&came, (trace, parent, new_span()), sampled, began), forwarded);
        }
        let span = new_span();
        let told = parent.filter(|_| nothing_new).unwrap_or(span);
        let context =
            Context { trace, span: told, parent: parent.filter(|_| !nothing_new), sampled, debug: came.debug };
        // Where no span is ours, B3 stands as it came.
        let forms = if parent.is_some() && nothing_new { Forms::default() } else { self.forms.and(came.forms) };
        let forwarded = context.write(headers, forms);
        (self.kept(&came, (trace, parent, span), sampled, began), forwarded)
    }

    fn kept(
        &self,
        came: &Came,
        (trace, parent, span): (u128, Option<u64>, u64),
        sampled: bool,
        began: SystemTime,
    ) -> Option<Box<Trace>> {
        let forms = self.forms.and(came.forms);
        sampled.then(|| Box::new(Trace { trace, parent, span, debug: came.debug, forms, began, tries: Vec::new() }))
    }

    /// The same share of traces everywhere: by their ids.
    fn keeps(&self, trace: u128) -> bool {
        #[allow(clippy::cast_possible_truncation, reason = "the lower half is meant")]
        let lower = trace as u64;
        self.keeps_all || lower < self.below
    }

    /// Hands the spans of an exchange that ended to the exporter; how many there was no room for.
    pub(super) fn finished(&self, trace: &Trace, exchange: &Exchange) -> u64 {
        let mut dropped = 0;
        for span in span::of(trace, exchange) {
            dropped += u64::from(self.to_exporter.try_send(span).is_err());
        }
        dropped
    }
}

impl Trace {
    /// A try goes out: it is told its own span.
    pub(crate) fn begins_try(&mut self, began: Instant, address: SocketAddr, headers: &mut HeaderMap) {
        let span = new_span();
        let context = Context { trace: self.trace, span, parent: self.parent, sampled: true, debug: self.debug };
        context.write(headers, self.forms);
        self.tries.push(Try { span, began, ended: None, address, outcome: TryOutcome::Unknown });
    }

    /// The try that went out last came back.
    pub(crate) fn ends_try(&mut self, ended: Instant, outcome: TryOutcome) {
        if let Some(last) = self.tries.last_mut() {
            (last.ended, last.outcome) = (Some(ended), outcome);
        }
    }
}

fn new_span() -> u64 {
    fastrand::u64(1..)
}

#[cfg(test)]
mod collector_tests;
#[cfg(test)]
mod tests;
