//! What happened, told once: [`Observer::finished`] counts an exchange and hands it to the access log's writer.
//!
//! This module is told and never asks. Labels come from configuration only, never from a client, and each family of
//! series has a cap, so neither a stranger nor a large mesh can fill the memory.

mod access_log;
mod exchange;
mod family;
mod line;
mod logged;
pub(crate) mod lookout;
mod metrics;
mod process;
mod reason;
pub(crate) mod shadows;
mod standing;
pub(crate) mod tally;
pub(crate) mod trace;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use equerry_policies::names::{InstanceId, ServiceName, TenantName};
use equerry_traffic::Reason;

use access_log::AccessLog;
pub use access_log::AccessLogTarget;
pub(crate) use exchange::Sheet;
pub use exchange::{Direction, Exchange};
pub use logged::Logged;
use lookout::Lookout;
#[cfg(test)]
pub(crate) use metrics::BUCKETS;
use metrics::Metrics;
pub(crate) use process::processor_time;
use tally::{Tally, Way};
use trace::Tracer;
pub use trace::{B3Form, Trace};

/// Series a family may have before new ones are counted under `__overflow__`.
pub const SERIES_CAP: usize = 2_000;

/// State of a breaker as `equerry_breaker_state` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// 0: traffic flows.
    Closed,
    /// 1: one probe is out.
    HalfOpen,
    /// 2: no traffic.
    Open,
}

/// What became of a copy of a request that a route asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// It got an answer, which nobody saw.
    Answered,
    /// It got none.
    Failed,
    /// It was not made: the body is not held, because it is too large or of unknown length.
    SkippedBody,
    /// It was not made: too many are under way.
    SkippedBusy,
}

impl Copied {
    /// The metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::SkippedBody => "skipped_body",
            Self::SkippedBusy => "skipped_busy",
        }
    }
}

/// How much is remembered of names outside the mesh.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// Names remembered.
    pub names: usize,
    /// Of those, names whose addresses are used beyond their time, because the DNS does not answer.
    pub stale: usize,
    /// Lookups that found addresses, since the start.
    pub found: u64,
    /// Lookups that found that there is nobody.
    pub nobody: u64,
    /// Lookups that failed.
    pub failed: u64,
}

/// What an [`Observer`] is made with.
#[derive(Debug, Clone)]
pub struct ObserverOptions {
    /// Where access log lines go.
    pub access_log: AccessLogTarget,
    /// Series per family; [`SERIES_CAP`] outside tests.
    pub series_cap: usize,
}

/// Told of everything that happens. Clones share the counters: each exchange has one, so there is one count to change.
#[derive(Debug, Clone)]
pub struct Observer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    metrics: Metrics,
    lookout: Arc<Lookout>,
    cut_off: AtomicBool,
    access_log: AccessLog,
    tracer: OnceLock<Tracer>,
}

impl Observer {
    /// An observer, and the thread that writes its access log.
    ///
    /// # Errors
    /// When the access log cannot be opened.
    pub fn new(options: ObserverOptions) -> std::io::Result<Self> {
        let (metrics, lookout) = (Metrics::new(options.series_cap), Arc::new(Lookout::new()));
        let access_log = AccessLog::start(options.access_log)?;
        let (cut_off, tracer) = (AtomicBool::new(false), OnceLock::new());
        Ok(Self(Arc::new(Shared { metrics, lookout, cut_off, access_log, tracer })))
    }

    /// The same, taking part in traces from now on.
    pub(crate) fn with_tracer(self, tracer: Tracer) -> Self {
        let _ = self.0.tracer.set(tracer);
        self
    }

    /// Who takes part in traces; `None`: nobody.
    pub(crate) fn tracer(&self) -> Option<&Tracer> {
        self.0.tracer.get()
    }

    /// Where it is counted what becomes of spans.
    pub(crate) fn spans(&self) -> prometheus::IntCounterVec {
        self.0.metrics.spans.clone()
    }

    /// What ends from now on without a reason of its own is cut off by us, because this process ends.
    pub fn cut_off(&self) {
        self.0.cut_off.store(true, Ordering::Relaxed);
    }

    /// Counts the exchange on this sheet and logs it; gives the sheet back, empty, unless the log has it now. Never waits: a full
    /// log drops the line and counts that.
    pub(crate) fn finished(&self, mut sheet: Sheet) -> Option<Sheet> {
        if let Some(exchange) = sheet.as_mut() {
            if exchange.reason == Reason::ClientGone && self.0.cut_off.load(Ordering::Relaxed) {
                exchange.reason = Reason::Draining;
            }
            self.0.metrics.exchange(exchange);
            self.0.lookout.saw(exchange);
            if let (Some(trace), Some(tracer)) = (exchange.trace.take(), self.tracer()) {
                let dropped = tracer.finished(&trace, exchange);
                if dropped > 0 {
                    self.0.metrics.spans.with_label_values(&["dropped"]).inc_by(dropped);
                }
            }
        }
        if !self.0.access_log.is_on() || sheet.is_none() {
            *sheet = None;
            return Some(sheet);
        }
        sheet.iter_mut().for_each(Exchange::stand_alone);
        if !self.0.access_log.offer(sheet) {
            self.0.metrics.access_log_dropped.inc();
        }
        None
    }

    /// Adds empty sheets that the log has done with.
    pub(crate) fn blank_sheets(&self, to: &mut Vec<Sheet>) {
        self.0.access_log.blank_sheets(to);
    }

    /// Whether there is an access log.
    pub(crate) fn logs(&self) -> bool {
        self.0.access_log.is_on()
    }

    /// Single calls, for people who look on.
    pub(crate) fn lookout(&self) -> &Arc<Lookout> {
        &self.0.lookout
    }

    /// All calls counted since the start, by direction, source and destination.
    pub(crate) fn tally(&self) -> BTreeMap<Way, Tally> {
        self.0.metrics.tally()
    }

    /// How often policies that are not enforced looked since the start, by name, and what each would have changed last.
    pub(crate) fn shadows(&self) -> BTreeMap<String, (shadows::Totals, Option<shadows::Change>)> {
        self.0.metrics.shadows()
    }

    /// Counts an open connection for as long as the guard lives.
    pub fn connection(&self, direction: Direction, tls: bool) -> ConnectionOpen {
        let gauge = self.0.metrics.connections.open.with_label_values(&[direction.as_str(), reason::tls(tls)]);
        gauge.inc();
        ConnectionOpen { gauge }
    }

    /// A connection was one too many: for this process, or for whoever opened it.
    pub fn connection_refused(&self, direction: Direction, reason: &'static str) {
        self.0.metrics.connections.refused.with_label_values(&[direction.as_str(), reason]).inc();
    }

    /// No connection can be accepted for a moment, most likely because there are no file descriptors left.
    pub fn accept_paused(&self, direction: Direction) {
        self.0.metrics.connections.accept_pauses.with_label_values(&[direction.as_str()]).inc();
    }

    /// A connection ended before there was an exchange: `reason` is a fixed word such as `no_certificate`.
    pub fn handshake_failed(&self, direction: Direction, reason: &'static str) {
        self.0.metrics.connections.handshake_failures.with_label_values(&[direction.as_str(), reason]).inc();
    }

    /// Counts an outcome of retrying: `sent`, `succeeded`, `skipped_budget`, `skipped_body`, ...
    pub fn retry(&self, outcome: &'static str) {
        self.0.metrics.retries.with_label_values(&[outcome]).inc();
    }

    /// The breaker of one endpoint changed.
    pub fn breaker(&self, service: &ServiceName, instance: &InstanceId, state: BreakerState) {
        let value = match state {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen => 1,
            BreakerState::Open => 2,
        };
        self.0.metrics.breaker_state.get(&[&service.to_string(), instance.as_str()]).set(value);
    }

    /// An endpoint was taken out of balancing; `reason` is a fixed word such as `consecutive_failures`.
    pub fn ejected(&self, reason: &'static str) {
        self.0.metrics.ejections.with_label_values(&[reason]).inc();
    }

    /// A breaker would have taken an endpoint out, and did not: `observed` when it only observes, or what kept it.
    pub fn not_ejected(&self, reason: &'static str) {
        self.0.metrics.not_ejected.with_label_values(&[reason]).inc();
    }

    /// A copy of a request has come to its end, or was not made.
    pub fn mirrored(&self, became: Copied) {
        self.0.metrics.mirrored.with_label_values(&[became.as_str()]).inc();
    }

    /// So many endpoints of each destination stand how, by the word of what says so.
    pub fn endpoint_health(&self, census: impl Iterator<Item = (ServiceName, &'static str, usize)>) {
        let family = &self.0.metrics.endpoint_health;
        family.clear();
        for (destination, verdict, count) in census {
            family.get(&[&destination.to_string(), verdict]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// An endpoint is no longer known here: its series end.
    pub fn endpoint_forgotten(&self, service: &ServiceName, instance: &InstanceId) {
        self.0.metrics.breaker_state.remove(&[&service.to_string(), instance.as_str()]);
    }

    /// A request was counted against a tenant's quota.
    pub fn quota(&self, tenant: &TenantName, admitted: bool) {
        self.0.metrics.quota(tenant, admitted);
    }

    /// A configuration is in force.
    pub fn config_applied(&self, epoch: u64) {
        self.0.metrics.config.epoch.set(i64::try_from(epoch).unwrap_or(i64::MAX));
    }

    /// So many generations of configuration are held by exchanges, the one in force included.
    pub fn config_generations(&self, generations: usize) {
        self.0.metrics.config.generations.set(i64::try_from(generations).unwrap_or(i64::MAX));
    }

    /// A configuration was refused, in part or wholly.
    pub fn config_refused(&self) {
        self.0.metrics.config.nacks.inc();
    }

    /// Whether the configuration stream stands.
    pub fn control_plane_connected(&self, connected: bool) {
        self.0.metrics.config.connected.set(i64::from(connected));
    }

    /// So much is known of names outside the mesh; told before metrics are read.
    pub fn dns(&self, census: &Census) {
        for (state, count) in [("stale", census.stale), ("fresh", census.names.saturating_sub(census.stale))] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.0.metrics.dns.names.with_label_values(&[state]).set(count);
        }
        for (outcome, count) in [("found", census.found), ("nobody", census.nobody), ("failed", census.failed)] {
            let counter = self.0.metrics.dns.lookups.with_label_values(&[outcome]);
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }

    /// A try to fetch an issuer's keys came out so.
    pub(crate) fn keys_fetched(&self, issuer: &str, outcome: &str) {
        self.0.metrics.issuer_keys.fetches.get(&[issuer, outcome]).inc();
    }

    /// So old are the keys of each issuer; told before metrics are read.
    pub(crate) fn keys_age(&self, ages: &BTreeMap<String, Duration>) {
        let family = &self.0.metrics.issuer_keys.age;
        family.clear();
        for (issuer, age) in ages {
            family.get(&[issuer]).set(i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        }
    }

    /// A certificate of `kind` (`leaf`, `root`) ends at `not_after`.
    pub fn certificate(&self, kind: &'static str, not_after: SystemTime) {
        let seconds = not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.0.metrics.cert_not_after.with_label_values(&[kind]).set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// All metrics in Prometheus' text format 0.0.4.
    pub fn render(&self) -> String {
        self.0.metrics.render()
    }

    /// Opens the access log's file again, after somebody moved it away.
    pub fn reopen_access_log(&self) {
        self.0.access_log.reopen();
    }

    /// Writes what the access log still holds; at most `patience` long.
    pub fn flush(&self, patience: Duration) {
        self.0.access_log.flush(patience);
    }
}

/// An open connection, counted until dropped.
#[derive(Debug)]
pub struct ConnectionOpen {
    gauge: prometheus::IntGauge,
}

impl Drop for ConnectionOpen {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Instant;

    use equerry_policies::names::SpiffeId;

    use super::*;

    /// An exchange as the tests of this module's children need one.
    pub(crate) fn an_exchange() -> Exchange {
        Exchange {
            direction: Direction::Outbound,
            started: Instant::now(),
            duration: Duration::from_millis(3),
            upstream_time: Some(Duration::from_millis(2)),
            epoch: 7,
            method: http::Method::GET,
            target: http::uri::PathAndQuery::from_static("/"),
            authority: http::HeaderValue::from_static("orders.shop"),
            protocol: http::Version::HTTP_11,
            tunnel: false,
            upgrade: None,
            status: 200,
            reason: Reason::Ok,
            bytes_in: 0,
            bytes_out: 2,
            source: Some(SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/frontend").unwrap()),
            destination: Some(ServiceName::parse("shop/orders").unwrap()),
            destination_principal: None,
            route: Some("shop/orders/0".into()),
            policy_rule: None,
            noted: None,
            tenant: None,
            attempts: 1,
            retry_outcome: None,
            upstream_address: None,
            upstream_protocol: None,
            peer_address: ([127, 0, 0, 1], 40_000).into(),
            request_id: http::HeaderValue::from_static("one"),
            traceparent: None,
            trace: None,
            tls: true,
            user_agent: None,
            x_forwarded_for: None,
            sni: None,
            detail: None,
            logged: None,
            copies: None,
        }
    }

    #[test]
    fn what_waits_for_the_log_keeps_nothing_of_its_messages() {
        let read = bytes::Bytes::from(b"orders.shop one /a?b=c 00-1-2-01 curl 10.0.0.1".to_vec());
        let part = |from: usize, to: usize| http::HeaderValue::from_maybe_shared(read.slice(from..to)).unwrap();
        let mut exchange = an_exchange();
        (exchange.authority, exchange.request_id) = (part(0, 11), part(12, 15));
        exchange.target = http::uri::PathAndQuery::from_maybe_shared(read.slice(16..22)).unwrap();
        (exchange.traceparent, exchange.user_agent) = (Some(part(23, 32)), Some(part(33, 37)));
        exchange.x_forwarded_for = Some(part(38, 46));
        let before = exchange.clone();
        exchange.stand_alone();
        assert_eq!(exchange.told(), before.told());
        let [agent, query] = [&b"curl"[..], b"b=c"];
        let [_, _, _, user_agent, _, upgrade, _, its_query] = exchange.told();
        assert_eq!((user_agent, upgrade, its_query), (Some(agent), None, Some(query)));
        drop(before);
        assert!(read.is_unique());
    }

    fn observer(series_cap: usize) -> Observer {
        Observer::new(ObserverOptions { access_log: AccessLogTarget::Off, series_cap }).unwrap()
    }

    #[test]
    fn an_exchange_is_counted_under_the_names_of_the_design() {
        let observer = observer(SERIES_CAP);
        observer.finished(Box::new(Some(an_exchange())));
        observer.finished(Box::new(Some(an_exchange())));
        let text = observer.render();
        let line = text.lines().find(|line| line.starts_with("equerry_requests_total{")).unwrap();
        assert_eq!(
            line,
            "equerry_requests_total{code=\"200\",destination=\"shop/orders\",direction=\"outbound\",reason=\"ok\",\
             route=\"shop/orders/0\",source=\"shop/frontend\",tls=\"mutual\"} 2"
        );
        assert!(text.contains("equerry_request_duration_seconds_count{"), "{text}");
    }

    #[test]
    fn past_the_cap_exchanges_are_counted_in_the_overflow_member() {
        let observer = observer(2);
        for code in 200..210 {
            for _ in 0..3 {
                observer.finished(Box::new(Some(Exchange { status: code, ..an_exchange() })));
            }
        }
        let text = observer.render();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("equerry_requests_total{")).collect();
        assert_eq!(lines.len(), 3, "two of their own and the overflow: {lines:?}");
        assert!(lines.iter().any(|line| line.contains("code=\"__overflow__\"") && line.ends_with(" 24")), "{lines:?}");
    }

    #[test]
    fn the_series_of_a_forgotten_endpoint_ends_and_makes_room() {
        let observer = observer(1);
        let service = ServiceName::parse("shop/orders").unwrap();
        let (one, two) = (InstanceId::parse("one").unwrap(), InstanceId::parse("two").unwrap());
        observer.breaker(&service, &one, BreakerState::Open);
        assert!(observer.render().contains("instance=\"one\"} 2"));
        observer.endpoint_forgotten(&service, &one);
        observer.breaker(&service, &two, BreakerState::HalfOpen);
        let text = observer.render();
        assert!(!text.contains("instance=\"one\"") && text.contains("instance=\"two\"} 1"), "{text}");
    }

    #[test]
    fn an_open_connection_is_counted_until_it_is_dropped() {
        let observer = observer(SERIES_CAP);
        let open = observer.connection(Direction::Inbound, true);
        assert!(observer.render().contains("equerry_connections{direction=\"inbound\",tls=\"mutual\"} 1"));
        drop(open);
        assert!(observer.render().contains("equerry_connections{direction=\"inbound\",tls=\"mutual\"} 0"));
    }

    #[test]
    fn lookups_are_counted_once_however_often_they_are_told() {
        let observer = observer(SERIES_CAP);
        let census = Census { names: 3, stale: 1, found: 7, nobody: 2, failed: 0 };
        observer.dns(&census);
        observer.dns(&census);
        observer.dns(&Census { found: 9, ..census });
        let text = observer.render();
        for line in [
            "equerry_dns_names{state=\"stale\"} 1",
            "equerry_dns_names{state=\"fresh\"} 2",
            "equerry_dns_lookups_total{outcome=\"found\"} 9",
            "equerry_dns_lookups_total{outcome=\"nobody\"} 2",
            "equerry_dns_lookups_total{outcome=\"failed\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }

    #[test]
    fn promtool_finds_nothing_to_complain_about() {
        use std::io::Write;
        let observer = observer(SERIES_CAP);
        observer.finished(Box::new(Some(an_exchange())));
        observer.retry("sent");
        observer.dns(&Census::default());
        observer.certificate("leaf", SystemTime::now());
        let Ok(mut promtool) = std::process::Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
        else {
            assert!(std::env::var_os("EQUERRY_REQUIRE_PEERS").is_none(), "promtool is not installed");
            eprintln!("skipped: promtool is not installed; install with `apt-get install prometheus`");
            return;
        };
        promtool.stdin.take().unwrap().write_all(observer.render().as_bytes()).unwrap();
        let said = promtool.wait_with_output().unwrap();
        assert!(
            said.status.success(),
            "{}{}",
            String::from_utf8_lossy(&said.stdout),
            String::from_utf8_lossy(&said.stderr)
        );
    }
}
