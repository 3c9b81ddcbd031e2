//! What an exchange leaves as spans, in the words of OpenTelemetry's conventions for HTTP and, for what they do not know,
//! `equerry.*`.
//!
//! Queries stay out: they may carry secrets. Names of spans are methods, because paths are without bound.

use std::time::{Duration, Instant, SystemTime};

use http::{Method, Version};

use super::otlp::{KeyValue, Kind, STATUS_ERROR, Span, Status, number, text};
use super::{Exchange, Trace, Try, TryOutcome};
use crate::observe::Direction;

/// The bits of a span's flags: kept, and whether its parent is elsewhere.
const FLAGS: u32 = 1 | 0x100;
const REMOTE_PARENT: u32 = 0x200;

/// The spans of an exchange that ended.
pub(super) fn of(trace: &Trace, exchange: &Exchange) -> Vec<Span> {
    let clock = Clock { wall: trace.began, monotonic: exchange.started };
    let ended = exchange.started + exchange.duration;
    let whole = |kind, attributes| {
        let mut made = make(trace, trace.span, trace.parent, exchange, kind);
        (made.start_time_unix_nano, made.end_time_unix_nano) = (clock.at(exchange.started), clock.at(ended));
        made.attributes.extend(attributes);
        // A server's span is no failure when it is the client's fault (HTTP conventions, status).
        let from = if kind == Kind::Server { 500 } else { 400 };
        fail(&mut made, exchange.status >= from, exchange, exchange.status);
        made
    };
    match (exchange.direction, trace.tries.as_slice()) {
        (Direction::Inbound, _) => vec![whole(Kind::Server, of_caller(exchange))],
        (Direction::Outbound, [only]) => vec![of_try(trace, only, (trace.parent, 0), exchange, (clock, ended))],
        (Direction::Outbound, tries) => {
            let around = whole(Kind::Internal, vec![number("equerry.attempts", i64::from(exchange.attempts))]);
            let last = tries.len().saturating_sub(1);
            let each = tries.iter().enumerate().map(|(n, one)| {
                let until = if n == last { ended } else { one.ended.unwrap_or(ended) };
                of_try(trace, one, (Some(trace.span), n), exchange, (clock, until))
            });
            std::iter::once(around).chain(each).collect()
        }
    }
}

/// Wall time of what is measured by a clock that never goes back.
#[derive(Clone, Copy)]
struct Clock {
    wall: SystemTime,
    monotonic: Instant,
}

impl Clock {
    fn at(&self, at: Instant) -> u64 {
        let wall = match at.checked_duration_since(self.monotonic) {
            Some(later) => self.wall + later,
            None => self.wall - self.monotonic.saturating_duration_since(at).min(Duration::from_secs(3600)),
        };
        let since = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// One try: until its response head, or, of the one that was answered, until the exchange's end.
fn of_try(
    trace: &Trace,
    one: &Try,
    (parent, resent): (Option<u64>, usize),
    exchange: &Exchange,
    (clock, until): (Clock, Instant),
) -> Span {
    let mut made = make(trace, one.span, parent, exchange, Kind::Client);
    (made.start_time_unix_nano, made.end_time_unix_nano) = (clock.at(one.began), clock.at(until.max(one.began)));
    if parent == Some(trace.span) {
        made.flags = FLAGS;
    }
    made.attributes.push(text("network.peer.address", one.address.ip().to_string()));
    made.attributes.push(number("network.peer.port", one.address.port()));
    if resent > 0 {
        made.attributes.push(number("http.request.resend_count", i64::try_from(resent).unwrap_or(i64::MAX)));
    }
    match one.outcome {
        TryOutcome::Status(status) => {
            made.attributes.push(number("http.response.status_code", status));
            fail(&mut made, status >= 400, exchange, status);
        }
        TryOutcome::Failed(reason) => {
            made.attributes.push(text("error.type", reason));
            made.status = Some(Status { message: reason.to_owned(), code: STATUS_ERROR });
        }
        TryOutcome::Unknown => fail(&mut made, true, exchange, exchange.status),
    }
    made
}

fn make(trace: &Trace, span: u64, parent: Option<u64>, exchange: &Exchange, kind: Kind) -> Span {
    let flags = if parent.is_some() { FLAGS | REMOTE_PARENT } else { FLAGS };
    let (method, original) = method(&exchange.method);
    let mut attributes = vec![
        text("http.request.method", method),
        text("url.scheme", "http"),
        text("url.path", exchange.target.path()),
        text("network.protocol.name", "http"),
        text("network.protocol.version", version(exchange.protocol)),
        text("equerry.direction", exchange.direction.as_str()),
        text("equerry.reason", exchange.reason.as_str()),
        number("equerry.epoch", i64::try_from(exchange.epoch).unwrap_or(i64::MAX)),
        text("equerry.request_id", String::from_utf8_lossy(exchange.request_id.as_bytes())),
    ];
    attributes.extend(original.map(|original| text("http.request.method_original", original)));
    server(&mut attributes, exchange);
    let named = [
        ("equerry.source", exchange.source.as_ref().map(ToString::to_string)),
        ("equerry.destination", exchange.destination.as_ref().map(ToString::to_string)),
        ("equerry.destination_principal", exchange.destination_principal.as_ref().map(ToString::to_string)),
        ("equerry.route", exchange.route.as_deref().map(str::to_owned)),
        ("equerry.policy", exchange.policy_rule.clone()),
        ("equerry.tenant", exchange.tenant.as_ref().map(ToString::to_string)),
    ];
    attributes.extend(named.into_iter().filter_map(|(key, value)| Some(text(key, value?))));
    if kind != Kind::Client && exchange.status != 0 {
        attributes.push(number("http.response.status_code", exchange.status));
    }
    Span {
        trace_id: trace.trace.to_be_bytes().to_vec(),
        span_id: span.to_be_bytes().to_vec(),
        parent_span_id: parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
        name: if method == "_OTHER" { "HTTP".to_owned() } else { method.to_owned() },
        kind: kind.into(),
        start_time_unix_nano: 0,
        end_time_unix_nano: 0,
        attributes,
        status: None,
        flags,
    }
}

/// Whom the caller named.
fn server(attributes: &mut Vec<KeyValue>, exchange: &Exchange) {
    let authority = exchange.authority.to_str().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') => (host, port.parse::<u16>().ok()),
        _ => (authority, None),
    };
    if !host.is_empty() {
        attributes.push(text("server.address", host));
        attributes.extend(port.map(|port| number("server.port", port)));
    }
}

fn of_caller(exchange: &Exchange) -> Vec<KeyValue> {
    let mut attributes = vec![
        text("client.address", exchange.peer_address.ip().to_string()),
        text("network.peer.address", exchange.peer_address.ip().to_string()),
        number("network.peer.port", exchange.peer_address.port()),
    ];
    let agent = exchange.user_agent.as_ref().and_then(|agent| agent.to_str().ok());
    attributes.extend(agent.map(|agent| text("user_agent.original", agent)));
    attributes
}

/// Says that it failed, where it did: for the mesh's reason, or by its status.
fn fail(made: &mut Span, failed: bool, exchange: &Exchange, status: u16) {
    if !failed {
        return;
    }
    let reason = exchange.reason.as_str();
    let kind = if reason == "ok" { status.to_string() } else { reason.to_owned() };
    made.attributes.push(text("error.type", kind));
    made.status = Some(Status { message: exchange.detail.clone().unwrap_or_default(), code: STATUS_ERROR });
}

/// A method that is known, and the one that came where it is not: nobody fills a collector with new ones.
fn method(given: &Method) -> (&str, Option<&str>) {
    const KNOWN: [&str; 9] = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE"];
    let text = given.as_str();
    if KNOWN.contains(&text) { (text, None) } else { ("_OTHER", Some(text)) }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}
