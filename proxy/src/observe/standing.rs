//! Families that tell how this process stands: its connections, the configuration it holds, and the names it remembers.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::family::Capped;
use super::metrics::Families;

/// Connections from callers.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) open: IntGaugeVec,
    pub(super) refused: IntCounterVec,
    pub(super) accept_pauses: IntCounterVec,
    pub(super) handshake_failures: IntCounterVec,
}

impl Connections {
    pub(super) fn new(make: &Families<'_>) -> Self {
        Self {
            open: make.gauges("equerry_connections", "Connections open now.", &["direction", "tls"]),
            refused: make.counters(
                "equerry_connections_refused_total",
                "Connections that were one too many: for this process (process_full), or for one peer (peer_share).",
                &["direction", "reason"],
            ),
            accept_pauses: make.counters(
                "equerry_accept_pauses_total",
                "Moments in which no connection could be accepted, for want of file descriptors.",
                &["direction"],
            ),
            handshake_failures: make.counters(
                "equerry_handshake_failures_total",
                "Connections that ended before an exchange, by reason.",
                &["direction", "reason"],
            ),
        }
    }
}

/// The configuration in force, and the stream it comes over.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) epoch: IntGauge,
    pub(super) generations: IntGauge,
    pub(super) nacks: IntCounter,
    pub(super) connected: IntGauge,
}

impl Config {
    pub(super) fn new(make: &Families<'_>) -> Self {
        Self {
            epoch: make.gauge("equerry_config_epoch", "Epoch of the configuration in force."),
            generations: make
                .gauge("equerry_config_generations", "Generations of configuration still held by exchanges."),
            nacks: make.counter("equerry_config_nacks_total", "Updates of configuration refused in part or wholly."),
            connected: make.gauge("equerry_control_plane_connected", "1 while the configuration stream stands."),
        }
    }
}

/// Names outside the mesh.
#[derive(Debug)]
pub(super) struct Dns {
    pub(super) names: IntGaugeVec,
    pub(super) lookups: IntCounterVec,
}

impl Dns {
    pub(super) fn new(make: &Families<'_>) -> Self {
        Self {
            names: make.gauges(
                "equerry_dns_names",
                "Names outside the mesh that are remembered: stale ones are used beyond their time, because the DNS does not answer.",
                &["state"],
            ),
            lookups: make.counters(
                "equerry_dns_lookups_total",
                "Lookups of names outside the mesh, by outcome.",
                &["outcome"],
            ),
        }
    }
}

/// Keys that issuers publish.
#[derive(Debug)]
pub(super) struct IssuerKeys {
    pub(super) age: Capped<IntGaugeVec>,
    pub(super) fetches: Capped<IntCounterVec>,
}

impl IssuerKeys {
    pub(super) fn new(make: &Families<'_>, cap: usize) -> Self {
        let age = make.gauges(
            "equerry_jwks_age_seconds",
            "How long ago the keys of each issuer were fetched; issuers that never answered have none.",
            &["issuer"],
        );
        let fetches = make.counters(
            "equerry_jwks_fetches_total",
            "Tries to fetch the keys of each issuer: ok, or why not.",
            &["issuer", "outcome"],
        );
        Self { age: Capped::new(age, cap), fetches: Capped::new(fetches, cap) }
    }
}
