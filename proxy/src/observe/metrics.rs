//! The families of metrics, whose names are a user interface, and the handles the request path keeps.
//!
//! `prometheus` looks a series up by hashing its label values under a lock; each worker thread therefore remembers the
//! handles of the label values it has seen. An exchange like the last one of its direction costs a few comparisons of
//! pointers, any other one hash of borrowed parts.

use std::cell::RefCell;
use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use equerry_policies::names::{ServiceName, SpiffeId, TenantName};
use equerry_policies::quick::Quick;
use equerry_traffic::Reason;
use equerry_traffic::authorize::Noted;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::family::Capped;
use super::shadows::{self, Change, Totals};
use super::standing::{Config, Connections, Dns, IssuerKeys};
use super::tally::{self, Tally, Way, tally};
use super::{Direction, Exchange, process, reason};

/// Seconds: from half a millisecond (a call within a machine) to ten seconds (longer than a caller waits).
pub(crate) const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// What stands for a part that is not known, as Istio writes it.
const UNKNOWN: &str = "unknown";

/// How many were made in this process: tests make several.
static OBSERVERS: AtomicU64 = AtomicU64::new(0);

/// All families of this process.
#[derive(Debug)]
pub(super) struct Metrics {
    /// Tells the observers of one process (of tests) apart in the handles threads keep.
    id: u64,
    registry: Registry,
    requests: Capped<IntCounterVec>,
    durations: Capped<HistogramVec>,
    tunnels: Capped<IntCounterVec>,
    tunnel_bytes: Capped<IntCounterVec>,
    audited: Capped<IntCounterVec>,
    shadows: Capped<IntCounterVec>,
    shadowed: shadows::Last,
    pub(super) quota: Capped<IntCounterVec>,
    pub(super) breaker_state: Capped<IntGaugeVec>,
    pub(super) endpoint_health: Capped<IntGaugeVec>,
    pub(super) retries: IntCounterVec,
    pub(super) ejections: IntCounterVec,
    pub(super) mirrored: IntCounterVec,
    pub(super) spans: IntCounterVec,
    pub(super) not_ejected: IntCounterVec,
    pub(super) connections: Connections,
    pub(super) config: Config,
    pub(super) cert_not_after: IntGaugeVec,
    pub(super) access_log_dropped: IntCounter,
    pub(super) dns: Dns,
    pub(super) issuer_keys: IssuerKeys,
    process: process::Process,
}

/// Handles of one combination of label values.
#[derive(Clone)]
struct Series {
    requests: IntCounter,
    duration: Histogram,
}

/// The label values of [`Series`], owned.
struct Key {
    observer: u64,
    direction: Direction,
    source: Option<SpiffeId>,
    destination: Option<ServiceName>,
    route: Option<Arc<str>>,
    status: u16,
    reason: Reason,
    tls: bool,
}

impl Key {
    fn of(observer: u64, exchange: &Exchange) -> Self {
        Self {
            observer,
            direction: exchange.direction,
            source: exchange.source.clone(),
            destination: exchange.destination.clone(),
            route: exchange.route.clone(),
            status: exchange.status,
            reason: exchange.reason,
            tls: exchange.tls,
        }
    }

    fn is_of(&self, observer: u64, exchange: &Exchange) -> bool {
        self.observer == observer
            && self.direction == exchange.direction
            && self.status == exchange.status
            && self.reason == exchange.reason
            && self.tls == exchange.tls
            && both(self.route.as_deref(), exchange.route.as_deref(), same)
            && both(self.destination.as_ref(), exchange.destination.as_ref(), |one, other| {
                same(one.name.as_str(), other.name.as_str()) && same(one.namespace.as_str(), other.namespace.as_str())
            })
            && both(self.source.as_ref(), exchange.source.as_ref(), |one, other| {
                same(one.account.as_str(), other.account.as_str())
                    && same(one.namespace.as_str(), other.namespace.as_str())
                    && same(one.trust_domain.as_str(), other.trust_domain.as_str())
            })
    }
}

/// Whether two texts are the same. Names are shared by all exchanges of a connection and of a generation of
/// configuration, so that nearly always they are one text in one place.
fn same(one: &str, other: &str) -> bool {
    std::ptr::eq(one, other) || one == other
}

/// Whether neither is there, or both are and they are alike.
fn both<T>(one: Option<T>, other: Option<T>, alike: impl Fn(T, T) -> bool) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => alike(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// What one thread remembers.
#[derive(Default)]
struct Remembered {
    hasher: RandomState,
    by_hash: HashMap<u64, Vec<Rc<(Key, Series)>>>,
    /// The last of each direction.
    last: [Option<Rc<(Key, Series)>>; 2],
    /// What quotas decided for a tenant, as this observer counts it: refused, admitted.
    quotas: Quick<TenantName, (u64, [IntCounter; 2])>,
}

thread_local! {
    static REMEMBERED: RefCell<Remembered> = RefCell::default();
}

impl Metrics {
    /// Makes the families; `cap` is the number of series each may have.
    // The names and label names are constants of valid form, and each name is used once.
    #[allow(
        clippy::expect_used,
        reason = "a family refused here would be a mistake in this function, seen by its first test"
    )]
    pub(super) fn new(cap: usize) -> Self {
        let registry = Registry::new();
        let make = Families { registry: &registry };
        let counters = |name: &str, help: &str, labels: &[&str]| Capped::new(make.counters(name, help, labels), cap);
        Self {
            id: OBSERVERS.fetch_add(1, Ordering::Relaxed),
            requests: counters(
                "equerry_requests_total",
                "Exchanges finished, by how they ended.",
                &["direction", "source", "destination", "route", "code", "reason", "tls"],
            ),
            durations: Capped::new(
                make.histograms(
                    "equerry_request_duration_seconds",
                    "Time from an exchange's head to the end of its response.",
                    &["direction", "source", "destination"],
                ),
                cap,
            ),
            tunnels: counters(
                "equerry_tcp_connections_total",
                "TCP connections finished, by how they ended.",
                &["direction", "source", "destination", "route", "reason", "tls"],
            ),
            tunnel_bytes: counters(
                "equerry_tcp_bytes_total",
                "Bytes of finished TCP connections, received from whoever connected or sent to them.",
                &["direction", "source", "destination", "way"],
            ),
            audited: counters(
                "equerry_authz_audit_total",
                "Requests and connections that a rule of an AUDIT policy matched.",
                &["policy"],
            ),
            shadowed: shadows::Last::default(),
            shadows: counters(
                "equerry_authz_shadow_total",
                "Requests and connections that a shadow policy looked at, by what enforcing it would change.",
                &["policy", "decision"],
            ),
            quota: counters(
                "equerry_quota_total",
                "Requests counted against tenants' quotas, by decision.",
                &["tenant", "decision"],
            ),
            breaker_state: Capped::new(
                make.gauges(
                    "equerry_breaker_state",
                    "State of the breaker of each endpoint: 0 closed, 1 half-open, 2 open.",
                    &["destination", "instance"],
                ),
                cap,
            ),
            endpoint_health: Capped::new(
                make.gauges(
                    "equerry_endpoint_health",
                    "Endpoints of each destination by what their health rests on: well, or what keeps them away.",
                    &["destination", "verdict"],
                ),
                cap,
            ),
            retries: make.counters(
                "equerry_retries_total",
                "Outcomes of retrying, one for each decision.",
                &["outcome"],
            ),
            not_ejected: make.counters(
                "equerry_endpoint_ejections_withheld_total",
                "Endpoints that their breaker would have taken out of balancing, by what kept them.",
                &["reason"],
            ),
            ejections: make.counters(
                "equerry_endpoint_ejections_total",
                "Endpoints taken out of balancing, by reason.",
                &["reason"],
            ),
            spans: make.counters("equerry_spans_total", "Spans of traces, by what became of them.", &["outcome"]),
            mirrored: make.counters(
                "equerry_mirrored_total",
                "Copies of requests that routes ask for, by what became of them.",
                &["outcome"],
            ),
            connections: Connections::new(&make),
            config: Config::new(&make),
            cert_not_after: make.gauges(
                "equerry_cert_not_after_seconds",
                "When certificates end, in seconds since 1970.",
                &["kind"],
            ),
            access_log_dropped: make.counter(
                "equerry_access_log_dropped_total",
                "Access log lines dropped because the writer fell behind.",
            ),
            dns: Dns::new(&make),
            issuer_keys: IssuerKeys::new(&make, cap),
            process: process::Process::new(&make),
            registry,
        }
    }

    /// Counts one exchange.
    pub(super) fn exchange(&self, exchange: &Exchange) {
        if let Some(noted) = &exchange.noted {
            self.noted(noted);
            self.shadowed.note(exchange, noted);
        }
        if exchange.tunnel {
            return self.tunnel(exchange);
        }
        REMEMBERED.with_borrow_mut(|remembered| {
            let Remembered { hasher, by_hash, last, .. } = remembered;
            let last = &mut last[exchange.direction as usize];
            if let Some(like) = last.as_ref().filter(|like| like.0.is_of(self.id, exchange)) {
                return like.1.count(exchange);
            }
            let hash = hasher.hash_one((
                self.id,
                exchange.direction,
                exchange.status,
                exchange.reason.as_str(),
                exchange.tls,
                &exchange.route,
                &exchange.destination,
                exchange.source.as_ref().map(|id| (&id.namespace, &id.account)),
            ));
            let same_hash = by_hash.entry(hash).or_default();
            if let Some(like) = same_hash.iter().find(|like| like.0.is_of(self.id, exchange)) {
                *last = Some(Rc::clone(like));
                return like.1.count(exchange);
            }
            let (series, room) = self.series(exchange);
            series.count(exchange);
            if room {
                same_hash.push(Rc::new((Key::of(self.id, exchange), series)));
            } else if same_hash.is_empty() {
                by_hash.remove(&hash);
            }
        });
    }

    /// Counts what a tenant's quota decided.
    pub(super) fn quota(&self, tenant: &TenantName, admitted: bool) {
        REMEMBERED.with_borrow_mut(|Remembered { quotas, .. }| {
            if let Some((_, counters)) = quotas.get(tenant).filter(|(of, _)| *of == self.id) {
                return counters[usize::from(admitted)].inc();
            }
            match ["refused", "admitted"].map(|decision| self.quota.admit(&[tenant.as_str(), decision])) {
                [Some(refused), Some(granted)] => {
                    let counters = [refused, granted];
                    counters[usize::from(admitted)].inc();
                    quotas.insert(tenant.clone(), (self.id, counters));
                }
                _ => self.quota.overflow(2).inc(),
            }
        });
    }

    /// Counts what onlooking policies saw.
    fn noted(&self, noted: &Noted) {
        for (policy, _) in &noted.audited {
            self.audited.get(&[&policy.to_string()]).inc();
        }
        for (policy, would) in &noted.shadows {
            self.shadows.get(&[&policy.to_string(), would.as_str()]).inc();
        }
    }

    /// Counts one TCP connection: seldom enough to look its series up.
    fn tunnel(&self, exchange: &Exchange) {
        let (source, destination) = ends(exchange);
        let (direction, route) = (exchange.direction.as_str(), exchange.route.as_deref().unwrap_or(""));
        let (reason, tls) = (exchange.reason.as_str(), reason::tls(exchange.tls));
        self.tunnels.get(&[direction, &source, &destination, route, reason, tls]).inc();
        for (way, bytes) in [("received", exchange.bytes_in), ("sent", exchange.bytes_out)] {
            self.tunnel_bytes.get(&[direction, &source, &destination, way]).inc_by(bytes);
        }
    }

    /// The series of an exchange, and whether it is its own (and so worth remembering).
    fn series(&self, exchange: &Exchange) -> (Series, bool) {
        let (source, destination) = ends(exchange);
        let direction = exchange.direction.as_str();
        let code = exchange.status.to_string();
        let labels = [
            direction,
            source.as_str(),
            destination.as_str(),
            exchange.route.as_deref().unwrap_or(""),
            code.as_str(),
            exchange.reason.as_str(),
            reason::tls(exchange.tls),
        ];
        let own = self.requests.admit(&labels);
        let room = own.is_some();
        let series = Series {
            requests: own.unwrap_or_else(|| self.requests.overflow(labels.len())),
            duration: self.durations.get(&[direction, &source, &destination]),
        };
        (series, room)
    }

    /// All calls counted since the start.
    pub(super) fn tally(&self) -> BTreeMap<Way, Tally> {
        tally(&tally::Families {
            requests: self.requests.read(),
            durations: self.durations.read(),
            tunnels: self.tunnels.read(),
            bytes: self.tunnel_bytes.read(),
        })
    }

    /// How often policies that are not enforced looked since the start, and what each would have changed last.
    pub(super) fn shadows(&self) -> BTreeMap<String, (Totals, Option<Change>)> {
        let totals = tally::shadows(&self.shadows.read());
        totals.into_iter().map(|(policy, totals)| (policy.clone(), (totals, self.shadowed.of(&policy)))).collect()
    }

    /// The text format 0.0.4.
    pub(super) fn render(&self) -> String {
        self.process.refresh();
        let mut text = Vec::with_capacity(16 * 1024);
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::warn!(%error, "metrics cannot be written as text");
        }
        String::from_utf8(text).unwrap_or_default()
    }
}

/// The account that called and the Service that was called, as labels.
fn ends(exchange: &Exchange) -> (String, String) {
    let account = exchange.source.as_ref().map(|id| format!("{}/{}", id.namespace, id.account));
    let service = exchange.destination.as_ref().map(ToString::to_string);
    (account.unwrap_or_else(|| UNKNOWN.to_owned()), service.unwrap_or_else(|| UNKNOWN.to_owned()))
}

impl Series {
    fn count(&self, exchange: &Exchange) {
        self.requests.inc();
        self.duration.observe(exchange.duration.as_secs_f64());
    }
}

/// Makes and registers families.
pub(super) struct Families<'a> {
    registry: &'a Registry,
}

#[allow(clippy::expect_used, reason = "names are constants of this crate, made valid and unique by its tests")]
impl Families<'_> {
    fn register<C: prometheus::core::Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let family = made.expect("name and labels are of valid form");
        self.registry.register(Box::new(family.clone())).expect("each name is registered once");
        family
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    pub(super) fn float_gauge(&self, name: &str, help: &str) -> prometheus::Gauge {
        self.register(prometheus::Gauge::new(name, help))
    }

    pub(super) fn float_counter(&self, name: &str, help: &str) -> prometheus::Counter {
        self.register(prometheus::Counter::new(name, help))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()), labels))
    }
}
