//! One JSON line per exchange, under the key names Istio's access log uses, and ours beside them.
//!
//! Lines are rendered and written by a thread of their own, fed through a bounded channel: a slow disk costs lines, which
//! are counted, and never a request's time. Every text is escaped, so that nobody writes a line that is not ours.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::logged::Masks;
use super::{Exchange, reason};

/// Exchanges that may wait to be written.
const WAITING: usize = 8_192;
/// The writer rests this long between batches, so that under load nobody pays to wake it.
const REST: Duration = Duration::from_millis(5);
/// Of a header that is always logged at most so many bytes are.
const LONGEST_HEADER: usize = 1024;

/// Where access log lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// Appended to a file, which is opened again on SIGUSR1.
    File(PathBuf),
}

impl std::str::FromStr for AccessLogTarget {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "off" => Self::Off,
            "-" => Self::Stdout,
            path => Self::File(path.into()),
        })
    }
}

/// The way to the writer.
#[derive(Debug)]
pub(super) struct AccessLog {
    to_writer: Option<SyncSender<Message>>,
}

enum Message {
    Line(Box<Exchange>, SystemTime),
    Reopen,
    Flush(SyncSender<()>),
}

impl AccessLog {
    /// Opens the target and starts the writer.
    pub(super) fn start(target: AccessLogTarget) -> io::Result<Self> {
        if target == AccessLogTarget::Off {
            return Ok(Self { to_writer: None });
        }
        let sink = Sink::open(target)?;
        let (to_writer, messages) = sync_channel(WAITING);
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || write(sink, &messages))?;
        Ok(Self { to_writer: Some(to_writer) })
    }

    pub(super) fn is_on(&self) -> bool {
        self.to_writer.is_some()
    }

    /// Hands an exchange that ended just now to the writer; false when it was dropped.
    pub(super) fn offer(&self, exchange: Box<Exchange>) -> bool {
        let Some(to_writer) = &self.to_writer else { return true };
        to_writer.try_send(Message::Line(exchange, SystemTime::now())).is_ok()
    }

    pub(super) fn reopen(&self) {
        if let Some(to_writer) = &self.to_writer {
            // Waits for room when full: this is asked for by a signal, never by a request.
            let _ = to_writer.send(Message::Reopen);
        }
    }

    pub(super) fn flush(&self, patience: Duration) {
        let Some(to_writer) = &self.to_writer else { return };
        let (done, flushed) = sync_channel(1);
        match to_writer.try_send(Message::Flush(done)) {
            Ok(()) | Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => return,
        }
        let _ = flushed.recv_timeout(patience);
    }
}

/// Where bytes go.
enum Sink {
    Stdout,
    File(PathBuf, File),
}

impl Sink {
    fn open(target: AccessLogTarget) -> io::Result<Self> {
        match target {
            AccessLogTarget::Off | AccessLogTarget::Stdout => Ok(Self::Stdout),
            AccessLogTarget::File(path) => {
                let file = append(&path)?;
                Ok(Self::File(path, file))
            }
        }
    }

    fn reopen(&mut self) {
        let Self::File(path, file) = self else { return };
        match append(path) {
            Ok(again) => *file = again,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the access log cannot be reopened; writing goes on into the old file");
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()
            }
            Self::File(_, file) => file.write_all(bytes),
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|error| io::Error::new(error.kind(), format!("access log {}: {error}", path.display())))
}

/// The writer's life: it ends when the last way to it is gone.
fn write(mut sink: Sink, messages: &Receiver<Message>) {
    let (mut text, masks) = (String::new(), Masks::new());
    let mut told = false;
    while let Ok(first) = messages.recv() {
        let mut flushed = Vec::new();
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Line(exchange, ended) => render(&exchange, ended, &masks, &mut text),
                Message::Reopen => {
                    put(&mut sink, &mut text, &mut told);
                    sink.reopen();
                }
                Message::Flush(done) => flushed.push(done),
            }
            next = messages.try_recv().ok();
        }
        put(&mut sink, &mut text, &mut told);
        for done in flushed {
            let _ = done.try_send(());
        }
        std::thread::sleep(REST);
    }
}

/// Writes what was rendered; says once when it cannot.
fn put(sink: &mut Sink, text: &mut String, told: &mut bool) {
    if let Err(error) = sink.write(text.as_bytes())
        && !std::mem::replace(told, true)
    {
        tracing::error!(%error, "the access log cannot be written; its lines are lost until that is mended");
    } else {
        *told = false;
    }
    text.clear();
}

/// Appends one line.
fn render(exchange: &Exchange, ended: SystemTime, masks: &Masks, out: &mut String) {
    let started = OffsetDateTime::from(ended.checked_sub(exchange.duration).unwrap_or(ended));
    let mut line = Line::open(out);
    line.text("start_time", started.format(&Rfc3339).ok().as_deref());
    line.text("direction", Some(exchange.direction.as_str()));
    let of_http = |text| Some(text).filter(|_| !exchange.tunnel);
    line.text("method", of_http(exchange.method.as_str()));
    line.text("path", of_http(exchange.target.path()));
    line.text("protocol", of_http(reason::protocol(exchange.protocol)).or(Some("TCP")));
    line.value("upgrade", exchange.upgrade.as_ref());
    line.value("authority", Some(&exchange.authority));
    line.number("response_code", u128::from(exchange.status));
    line.text("response_flags", Some(exchange.reason.flag()));
    line.text("response_code_details", Some(reason::details(exchange.reason)));
    line.text("reason", Some(exchange.reason.as_str()));
    line.text("policy", exchange.policy_rule.as_deref());
    let noted = exchange.noted.as_deref();
    let audited = noted.map(|noted| noted.audited.iter().map(|(_, rule)| rule.as_str()).collect::<Vec<_>>().join(", "));
    line.text("audit", audited.as_deref().filter(|audited| !audited.is_empty()));
    let instead = noted.and_then(|noted| noted.instead.as_ref());
    line.text("shadow", instead.map(|(would, cause)| format!("{}: {cause}", would.as_str())).as_deref());
    line.text("upstream_transport_failure_reason", exchange.detail.as_deref());
    line.number("bytes_received", u128::from(exchange.bytes_in));
    line.number("bytes_sent", u128::from(exchange.bytes_out));
    line.number("duration", exchange.duration.as_millis());
    line.maybe_number("upstream_service_time", exchange.upstream_time.map(|t| t.as_millis()));
    line.number("upstream_request_attempt_count", u128::from(exchange.attempts));
    line.text("retry_outcome", exchange.retry_outcome);
    line.shown("upstream_host", exchange.upstream_address.as_ref());
    line.text("upstream_protocol", exchange.upstream_protocol.map(reason::protocol));
    line.shown("upstream_cluster", exchange.destination.as_ref());
    line.text("route_name", exchange.route.as_deref());
    line.shown("downstream_remote_address", Some(&exchange.peer_address));
    line.text("requested_server_name", exchange.sni.as_deref());
    line.shown("source_principal", exchange.source.as_ref());
    line.shown("destination_principal", exchange.destination_principal.as_ref());
    line.text("tls", Some(reason::tls(exchange.tls)));
    line.shown("tenant", exchange.tenant.as_ref());
    line.number("epoch", u128::from(exchange.epoch));
    line.value("request_id", Some(&exchange.request_id));
    line.text("trace_id", exchange.traceparent.as_ref().and_then(trace_id));
    line.value("user_agent", exchange.user_agent.as_ref());
    line.value("x_forwarded_for", exchange.x_forwarded_for.as_ref());
    if let Some(logged) = &exchange.logged {
        logged.tell(exchange.target.query(), masks, |title, list| line.object(title, list));
    }
    line.close();
}

/// The second part of a well-formed `traceparent`.
fn trace_id(traceparent: &HeaderValue) -> Option<&str> {
    traceparent.to_str().ok()?.split('-').nth(1)
}

/// A JSON object being written on one line.
struct Line<'a> {
    out: &'a mut String,
    first: bool,
}

impl<'a> Line<'a> {
    fn open(out: &'a mut String) -> Self {
        out.push('{');
        Self { out, first: true }
    }

    fn key(&mut self, key: &str) {
        if !std::mem::take(&mut self.first) {
            self.out.push(',');
        }
        self.out.push('"');
        self.out.push_str(key);
        self.out.push_str("\":");
    }

    fn text(&mut self, key: &str, value: Option<&str>) {
        self.key(key);
        match value {
            Some(value) => quote(value, self.out),
            None => self.out.push_str("null"),
        }
    }

    /// What a caller wrote, at most [`LONGEST_HEADER`] bytes of it.
    fn value(&mut self, key: &str, value: Option<&HeaderValue>) {
        let shown = |value: &HeaderValue| {
            let bytes = value.as_bytes();
            let mut text = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST_HEADER)]).into_owned();
            if bytes.len() > LONGEST_HEADER {
                text.push('…');
            }
            text
        };
        self.text(key, value.map(shown).as_deref());
    }

    fn object(&mut self, key: &str, members: &[(&str, String)]) {
        self.key(key);
        self.out.push('{');
        self.first = true;
        for (name, value) in members {
            self.member(name);
            quote(value, self.out);
        }
        self.out.push('}');
        self.first = false;
    }

    /// A key that is not of our own choice.
    fn member(&mut self, name: &str) {
        if !std::mem::take(&mut self.first) {
            self.out.push(',');
        }
        quote(name, self.out);
        self.out.push(':');
    }

    fn shown(&mut self, key: &str, value: Option<&impl ToString>) {
        self.text(key, value.map(ToString::to_string).as_deref());
    }

    fn number(&mut self, key: &str, value: u128) {
        self.maybe_number(key, Some(value));
    }

    fn maybe_number(&mut self, key: &str, value: Option<u128>) {
        self.key(key);
        // Writing into a String does not fail.
        let _ = match value {
            Some(value) => write!(self.out, "{value}"),
            None => write!(self.out, "null"),
        };
    }

    fn close(self) {
        self.out.push_str("}\n");
    }
}

/// A JSON string in which nothing is left that a terminal or a line reader would act on: control characters of both
/// sets (C0 and C1, so also the one-byte CSI), DEL, and the two Unicode line separators.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::super::tests::an_exchange;
    use super::*;

    #[test]
    fn a_forged_line_break_or_escape_stays_inside_its_field() {
        let mut exchange = an_exchange();
        exchange.policy_rule = Some("/a\n{\"reason\":\"ok\"}".to_owned());
        exchange.detail = Some("x\u{1b}[31m\u{9b}31m\u{7f}\"\\ \u{2028}é".to_owned());
        exchange.sni = Some("\r\nforged".into());
        let mut text = String::new();
        render(&exchange, SystemTime::now(), &Masks::new(), &mut text);

        assert_eq!(text.matches('\n').count(), 1, "one line: {text}");
        assert!(!text.trim_end().chars().any(char::is_control), "{text}");
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["policy"], exchange.policy_rule.unwrap().as_str());
        assert_eq!(read["upstream_transport_failure_reason"], exchange.detail.unwrap().as_str());
        assert_eq!(read["requested_server_name"], "\r\nforged");
    }

    #[test]
    fn a_line_carries_istios_keys_and_ours() {
        let mut text = String::new();
        render(&an_exchange(), SystemTime::now(), &Masks::new(), &mut text);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        for key in [
            "start_time",
            "response_code",
            "response_flags",
            "upstream_cluster",
            "upstream_protocol",
            "route_name",
            "request_id",
            "reason",
            "epoch",
            "tenant",
        ] {
            assert!(read.get(key).is_some(), "{key} in {text}");
        }
        assert_eq!(read["source_principal"], "spiffe://equerry.local/ns/shop/sa/frontend");
    }

    #[test]
    fn a_log_moved_away_is_written_anew_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let log = AccessLog::start(AccessLogTarget::File(path.clone())).unwrap();
        assert!(log.offer(an_exchange().into()));
        log.flush(Duration::from_secs(10));
        std::fs::rename(&path, &moved).unwrap();
        log.reopen();
        assert!(log.offer(an_exchange().into()));
        log.flush(Duration::from_secs(10));
        let lines = |p: &Path| std::fs::read_to_string(p).unwrap().lines().count();
        assert_eq!((lines(&moved), lines(&path)), (1, 1));
    }

    #[test]
    fn a_log_that_cannot_be_opened_says_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let error = AccessLog::start(AccessLogTarget::File(dir.path().join("no/such/dir.log"))).unwrap_err();
        assert!(error.to_string().contains("no/such/dir.log"), "{error}");
    }
}
