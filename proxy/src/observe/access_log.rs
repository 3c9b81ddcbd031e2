//! One JSON line per exchange, under the key names Istio's access log uses, and ours beside them. What an exchange does not have
//! (a retry, a tenant, ...) is left out of its line.
//!
//! Lines are rendered and written by a thread of their own, fed through a bounded channel: a slow disk costs lines, which
//! are counted, and never a request's time.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use equerry_policies::names::{ServiceName, SpiffeId, TenantName};
use equerry_traffic::Reason;

use super::line::{Clock, Last, Line, key};
use super::logged::Masks;
use super::{Direction, Exchange, Sheet, reason};

/// Exchanges that may wait to be written.
const WAITING: usize = 8_192;
/// The writer rests this long between batches, so that under load nobody pays to wake it.
const REST: Duration = Duration::from_millis(5);
/// Empty sheets that are kept, and how many of them a worker takes at once.
const MOST_BLANK: usize = 128;
const SOME: usize = 16;
/// So much is written at once: what waits is not put into words all together.
const ENOUGH: usize = 64 * 1024;

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
    blank: Arc<Blank>,
}

/// Sheets of which the writer has made lines. Whoever needs some takes many: memory that one thread asks for and another gives back
/// would have both wait for the allocator.
type Blank = Mutex<Vec<Sheet>>;

enum Message {
    Line(Sheet),
    Reopen,
    Flush(SyncSender<()>),
}

impl AccessLog {
    /// Opens the target and starts the writer.
    pub(super) fn start(target: AccessLogTarget) -> io::Result<Self> {
        if target == AccessLogTarget::Off {
            return Ok(Self { to_writer: None, blank: Arc::default() });
        }
        let sink = Sink::open(target)?;
        let (to_writer, messages) = sync_channel(WAITING);
        let blank = Arc::<Blank>::default();
        let done = Arc::clone(&blank);
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || write(sink, &messages, &done))?;
        Ok(Self { to_writer: Some(to_writer), blank })
    }

    pub(super) fn is_on(&self) -> bool {
        self.to_writer.is_some()
    }

    /// Hands an exchange that has ended to the writer; false when it was dropped.
    pub(super) fn offer(&self, exchange: Sheet) -> bool {
        let Some(to_writer) = &self.to_writer else { return true };
        to_writer.try_send(Message::Line(exchange)).is_ok()
    }

    /// Adds some empty sheets, if there are any.
    pub(super) fn blank_sheets(&self, to: &mut Vec<Sheet>) {
        if let Ok(mut blank) = self.blank.try_lock() {
            let kept = blank.len().saturating_sub(SOME);
            to.extend(blank.drain(kept..));
        }
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
fn write(mut sink: Sink, messages: &Receiver<Message>, blank: &Blank) {
    let (mut text, masks, mut words) = (Vec::new(), Masks::new(), Words::default());
    let mut told = false;
    while let Ok(first) = messages.recv() {
        let (mut flushed, mut clocks) = (Vec::new(), Clocks::now());
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Line(mut sheet) => {
                    if let Some(exchange) = &*sheet {
                        render(exchange, &clocks, &mut words, &masks, &mut text);
                    }
                    *sheet = None;
                    keep(sheet, blank);
                    if text.len() >= ENOUGH {
                        put(&mut sink, &mut text, &mut told);
                        clocks = Clocks::now();
                    }
                }
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

/// Keeps a sheet for whoever needs the next.
fn keep(sheet: Sheet, blank: &Blank) {
    if let Ok(mut blank) = blank.lock()
        && blank.len() < MOST_BLANK
    {
        blank.push(sheet);
    }
}

/// Writes what was rendered; says once when it cannot.
fn put(sink: &mut Sink, text: &mut Vec<u8>, told: &mut bool) {
    if let Err(error) = sink.write(text)
        && !std::mem::replace(told, true)
    {
        tracing::error!(%error, "the access log cannot be written; its lines are lost until that is mended");
    } else {
        *told = false;
    }
    text.clear();
}

/// Both clocks, read together: exchanges are timed by the one that never jumps, and lines tell the other.
struct Clocks {
    steady: Instant,
    wall: SystemTime,
}

impl Clocks {
    fn now() -> Self {
        Self { steady: Instant::now(), wall: SystemTime::now() }
    }

    /// What the wall showed then.
    fn moment(&self, then: Instant) -> SystemTime {
        let before = self.wall.checked_sub(self.steady.saturating_duration_since(then));
        before.and_then(|before| before.checked_add(then.saturating_duration_since(self.steady))).unwrap_or(self.wall)
    }
}

/// Words that the next line most likely has too.
#[derive(Default)]
struct Words {
    clock: Clock,
    outcome: Last<Outcome>,
    upstream: Last<SocketAddr>,
    ends: Last<Ends>,
}

/// How an exchange went: what most others say too.
#[derive(Clone, Copy, PartialEq)]
struct Outcome {
    direction: Direction,
    tunnel: bool,
    protocol: http::Version,
    status: u16,
    reason: Reason,
    attempts: u32,
    retry_outcome: Option<&'static str>,
    upstream_protocol: Option<http::Version>,
    tls: bool,
    epoch: u64,
}

impl Outcome {
    fn of(exchange: &Exchange) -> Self {
        let &Exchange { direction, tunnel, protocol, status, reason, .. } = exchange;
        let &Exchange { attempts, retry_outcome, upstream_protocol, tls, epoch, .. } = exchange;
        Self { direction, tunnel, protocol, status, reason, attempts, retry_outcome, upstream_protocol, tls, epoch }
    }

    fn tell(&self, line: &mut Line<'_>) {
        line.word(key!("direction"), Some(self.direction.as_str()));
        line.word(key!("protocol"), Some(if self.tunnel { "TCP" } else { reason::protocol(self.protocol) }));
        line.number(key!("response_code"), Some(self.status.into()));
        line.word(key!("response_flags"), Some(self.reason.flag()));
        line.word(key!("response_code_details"), Some(reason::details(self.reason)));
        line.word(key!("reason"), Some(self.reason.as_str()));
        line.number(key!("upstream_request_attempt_count"), Some(self.attempts.into()));
        line.word(key!("retry_outcome"), self.retry_outcome);
        line.word(key!("upstream_protocol"), self.upstream_protocol.map(reason::protocol));
        line.word(key!("tls"), Some(reason::tls(self.tls)));
        line.number(key!("epoch"), Some(self.epoch));
    }
}

/// Between whom an exchange went.
struct Ends {
    destination: Option<ServiceName>,
    route: Option<Arc<str>>,
    source: Option<SpiffeId>,
    destination_principal: Option<SpiffeId>,
    tenant: Option<TenantName>,
}

impl Ends {
    fn of(exchange: &Exchange) -> Self {
        Self {
            destination: exchange.destination.clone(),
            route: exchange.route.clone(),
            source: exchange.source.clone(),
            destination_principal: exchange.destination_principal.clone(),
            tenant: exchange.tenant.clone(),
        }
    }

    fn are_of(&self, exchange: &Exchange) -> bool {
        self.destination == exchange.destination
            && self.route == exchange.route
            && self.source == exchange.source
            && self.destination_principal == exchange.destination_principal
            && self.tenant == exchange.tenant
    }
}

fn tell_ends(exchange: &Exchange, line: &mut Line<'_>) {
    line.shown(key!("upstream_cluster"), exchange.destination.as_ref());
    line.text(key!("route_name"), exchange.route.as_deref());
    line.shown(key!("source_principal"), exchange.source.as_ref());
    line.shown(key!("destination_principal"), exchange.destination_principal.as_ref());
    line.shown(key!("tenant"), exchange.tenant.as_ref());
}

/// Appends one line.
fn render(exchange: &Exchange, clocks: &Clocks, words: &mut Words, masks: &Masks, out: &mut Vec<u8>) {
    let [authority, request_id, traceparent, user_agent, x_forwarded_for, upgrade, path, query] = exchange.told();
    let mut line = Line::open(out);
    line.moment(key!("start_time"), clocks.moment(exchange.started), &mut words.clock);
    let outcome = Outcome::of(exchange);
    line.together(&mut words.outcome, |last| *last == outcome, || outcome, |line| outcome.tell(line));
    if !exchange.tunnel {
        line.text(key!("method"), Some(exchange.method.as_str()));
        line.bytes(key!("path"), path);
    }
    line.value(key!("upgrade"), upgrade);
    line.value(key!("authority"), authority);
    line.text(key!("policy"), exchange.policy_rule.as_deref());
    let noted = exchange.noted.as_deref();
    let audited = noted.map(|noted| noted.audited.iter().map(|(_, rule)| rule.as_str()).collect::<Vec<_>>().join(", "));
    line.text(key!("audit"), audited.as_deref().filter(|audited| !audited.is_empty()));
    let instead = noted.and_then(|noted| noted.instead.as_ref());
    line.text(key!("shadow"), instead.map(|(would, cause)| format!("{}: {cause}", would.as_str())).as_deref());
    line.text(key!("upstream_transport_failure_reason"), exchange.detail.as_deref());
    line.number(key!("bytes_received"), Some(exchange.bytes_in));
    line.number(key!("bytes_sent"), Some(exchange.bytes_out));
    line.number(key!("duration"), Some(milliseconds(exchange.duration)));
    line.number(key!("upstream_service_time"), exchange.upstream_time.map(milliseconds));
    if let Some(upstream) = exchange.upstream_address {
        let tell = |line: &mut Line<'_>| line.address(key!("upstream_host"), upstream);
        line.together(&mut words.upstream, |last| *last == upstream, || upstream, tell);
    }
    line.together(
        &mut words.ends,
        |last| last.are_of(exchange),
        || Ends::of(exchange),
        |line| tell_ends(exchange, line),
    );
    line.address(key!("downstream_remote_address"), exchange.peer_address);
    line.text(key!("requested_server_name"), exchange.sni.as_deref());
    line.value(key!("request_id"), request_id);
    line.bytes(key!("trace_id"), traceparent.and_then(trace_id));
    line.value(key!("user_agent"), user_agent);
    line.value(key!("x_forwarded_for"), x_forwarded_for);
    if let Some(logged) = &exchange.logged {
        let query = query.and_then(|query| std::str::from_utf8(query).ok());
        logged.tell(query, masks, |title, list| line.object(title, list));
    }
    line.close();
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The second part of a `traceparent`, which is well-formed: `VERSION-TRACE-SPAN-FLAGS`.
fn trace_id(traceparent: &[u8]) -> Option<&[u8]> {
    traceparent.get(3..35)
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
        let mut text = Vec::new();
        render(&exchange, &Clocks::now(), &mut Words::default(), &Masks::new(), &mut text);
        let text = String::from_utf8(text).unwrap();

        assert_eq!(text.matches('\n').count(), 1, "one line: {text}");
        assert!(!text.trim_end().chars().any(char::is_control), "{text}");
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["policy"], exchange.policy_rule.unwrap().as_str());
        assert_eq!(read["upstream_transport_failure_reason"], exchange.detail.unwrap().as_str());
        assert_eq!(read["requested_server_name"], "\r\nforged");
    }

    #[test]
    fn a_line_tells_when_its_exchange_began_by_the_wall_clock() {
        let clocks = Clocks::now();
        let second = Duration::from_secs(1);
        assert_eq!(clocks.moment(clocks.steady), clocks.wall);
        assert_eq!(clocks.moment(clocks.steady - second), clocks.wall - second);
        assert_eq!(clocks.moment(clocks.steady + second), clocks.wall + second, "read a little before it began");
    }

    #[test]
    fn a_line_carries_istios_keys_and_ours_for_what_there_is() {
        let mut text = Vec::new();
        let mut exchange = an_exchange();
        exchange.tenant = Some(TenantName::parse("acme").unwrap());
        exchange.upstream_protocol = Some(http::Version::HTTP_2);
        render(&exchange, &Clocks::now(), &mut Words::default(), &Masks::new(), &mut text);
        let text = String::from_utf8(text).unwrap();
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
        for key in ["policy", "upgrade", "retry_outcome", "upstream_host", "trace_id", "user_agent"] {
            assert_eq!(read.get(key), None, "{key} in {text}");
        }
    }

    #[test]
    fn a_log_moved_away_is_written_anew_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let log = AccessLog::start(AccessLogTarget::File(path.clone())).unwrap();
        assert!(log.offer(Box::new(Some(an_exchange()))));
        log.flush(Duration::from_secs(10));
        std::fs::rename(&path, &moved).unwrap();
        log.reopen();
        assert!(log.offer(Box::new(Some(an_exchange()))));
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
