//! Who called whom how often, how it ended and how long it took: read out of the metrics, so that requests pay nothing for it and
//! both always say the same.

use std::collections::BTreeMap;

use equerry_traffic::Reason;
use prometheus::proto::{Metric, MetricFamily};

use super::Direction;
use super::lookout::{failed, refused};
use super::shadows::Totals;

/// All calls of one direction between two.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// By status, reason, and whether they were TCP connections.
    pub(crate) ends: BTreeMap<(u16, String, bool), u64>,
    /// How many took no longer than each bound and longer than the one before; the last: longer.
    pub(crate) took: Vec<u64>,
    /// Bytes of TCP connections from whoever connected.
    pub(crate) bytes_in: u64,
    /// And to them.
    pub(crate) bytes_out: u64,
}

/// Direction, source and destination, as the metrics name them.
pub(crate) type Way = (Direction, String, String);

/// What the four families say together.
pub(super) struct Families {
    pub(super) requests: Vec<MetricFamily>,
    pub(super) durations: Vec<MetricFamily>,
    pub(super) tunnels: Vec<MetricFamily>,
    pub(super) bytes: Vec<MetricFamily>,
}

/// All calls counted since the start.
pub(super) fn tally(families: &Families) -> BTreeMap<Way, Tally> {
    let mut all: BTreeMap<Way, Tally> = BTreeMap::new();
    for (metrics, tcp) in [(&families.requests, false), (&families.tunnels, true)] {
        for (way, metric) in ways(metrics) {
            let status = label(metric, "code").parse().unwrap_or_default();
            let end = (status, label(metric, "reason").to_owned(), tcp);
            *all.entry(way).or_default().ends.entry(end).or_default() += whole(metric.get_counter().get_value());
        }
    }
    for (way, metric) in ways(&families.durations) {
        let histogram = metric.get_histogram();
        let took = &mut all.entry(way).or_default().took;
        let mut before = 0;
        for bucket in histogram.get_bucket() {
            took.push(bucket.cumulative_count().saturating_sub(before));
            before = bucket.cumulative_count();
        }
        took.push(histogram.get_sample_count().saturating_sub(before));
    }
    for (way, metric) in ways(&families.bytes) {
        let tally = all.entry(way).or_default();
        let bytes = whole(metric.get_counter().get_value());
        if label(metric, "way") == "received" { tally.bytes_in += bytes } else { tally.bytes_out += bytes }
    }
    all
}

/// How often each policy that is not enforced looked since the start.
pub(super) fn shadows(families: &[MetricFamily]) -> BTreeMap<String, Totals> {
    let mut all: BTreeMap<String, Totals> = BTreeMap::new();
    for metric in families.iter().flat_map(MetricFamily::get_metric) {
        let totals = all.entry(label(metric, "policy").to_owned()).or_default();
        let count = whole(metric.get_counter().get_value());
        match label(metric, "decision") {
            "would_deny" => totals.would_deny += count,
            "would_allow" => totals.would_allow += count,
            _ => totals.unchanged += count,
        }
    }
    all
}

/// Each series with the direction and the two that it is about.
fn ways(families: &[MetricFamily]) -> impl Iterator<Item = (Way, &Metric)> {
    families.iter().flat_map(MetricFamily::get_metric).map(|metric| {
        let outbound = label(metric, "direction") == Direction::Outbound.as_str();
        let direction = if outbound { Direction::Outbound } else { Direction::Inbound };
        ((direction, label(metric, "source").to_owned(), label(metric, "destination").to_owned()), metric)
    })
}

fn label<'m>(metric: &'m Metric, name: &str) -> &'m str {
    metric.get_label().iter().find(|label| label.name() == name).map_or("", |label| label.value())
}

/// Counters count whole things; the library keeps them as floating point.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of whole things, never negative")]
fn whole(value: f64) -> u64 {
    value as u64
}

/// Whether an end was a failure or a refusal, by the words of the metrics. What passed the cap has no words.
pub(crate) fn verdict(status: u16, reason: &str) -> (bool, bool) {
    reason.parse::<Reason>().map_or((false, false), |reason| (failed(reason, status), refused(reason)))
}
