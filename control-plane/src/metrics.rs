//! What the control plane counts about itself, for Prometheus.
//!
//! Handles are made once; nothing is looked up by a text a client sent: label values are words of this file or route
//! templates of the admin API. Gauges that mirror the facade's state are set when somebody scrapes.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::control::AuditProof;
use crate::store::unix_ms;

/// Upper bounds in seconds of admin request durations: a read is under a millisecond, an apply waits for one fsync.
const DURATION_BUCKETS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 10.0];

/// What can become of a certificate request.
pub const SIGN_OUTCOMES: [&str; 3] = ["issued", "renewed", "refused"];
/// What can become of a lease.
pub const LEASE_OUTCOMES: [&str; 5] = ["registered", "renewed", "refused", "expired", "released"];

/// All metric families of the control plane, registered in a registry of their own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    epoch: IntGauge,
    documents: IntGauge,
    proxies: IntGaugeVec,
    instances: IntGaugeVec,
    sign: IntCounterVec,
    leases: IntCounterVec,
    nacks: IntCounter,
    quota_granted: IntCounter,
    admin: HistogramVec,
    admin_refused: IntCounterVec,
    certificates: IntGaugeVec,
    audit_verified: IntGauge,
    audit_entries: IntGauge,
    audit_read: IntGauge,
}

/// What a scrape sets: a reading of the facade.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// When certificates end, in seconds since 1970: `root` and `issuing` of what signs, `coming_root` during a rotation,
    /// `first_leaf` and `last_leaf` of the workloads that are connected.
    pub ends: Vec<(&'static str, u64)>,
    /// The store's epoch.
    pub epoch: u64,
    /// Documents stored.
    pub documents: usize,
    /// Proxies with an open config stream.
    pub connected: usize,
    /// Proxies known without one.
    pub away: usize,
    /// Connected proxies that have not acknowledged the present epoch.
    pub behind: usize,
    /// Live instances whose application is healthy.
    pub healthy: usize,
    /// Live instances whose application is not.
    pub unhealthy: usize,
    /// What is known of the audit log.
    pub audit: AuditProof,
}

impl Metrics {
    /// All families, at zero.
    ///
    /// # Errors
    /// When a family is declared wrong; a test makes one, so never in a program that was tested.
    pub fn new() -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| IntGauge::new(name, help);
        let counters = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let gauges = |name: &str, help: &str, labels: &[&str]| IntGaugeVec::new(Opts::new(name, help), labels);
        let metrics = Self {
            epoch: gauge("equerry_control_plane_epoch", "Epoch of the stored documents.")?,
            documents: gauge("equerry_control_plane_documents", "Documents stored.")?,
            proxies: gauges(
                "equerry_control_plane_proxies",
                "Proxies by state: connected, away, behind (connected, not at the present epoch).",
                &["state"],
            )?,
            instances: gauges(
                "equerry_control_plane_instances",
                "Registered instances by the verdict of their sidecar's health probe.",
                &["health"],
            )?,
            sign: counters(
                "equerry_control_plane_certificates_total",
                "Certificate requests by outcome.",
                &["outcome"],
            )?,
            leases: counters("equerry_control_plane_leases_total", "Leases by outcome.", &["outcome"])?,
            nacks: IntCounter::new("equerry_control_plane_nacks_total", "Updates a proxy refused.")?,
            quota_granted: IntCounter::new(
                "equerry_control_plane_quota_granted_total",
                "Tokens of tenant quotas granted to sidecars.",
            )?,
            admin: HistogramVec::new(
                HistogramOpts::new(
                    "equerry_control_plane_admin_request_duration_seconds",
                    "Time to answer a request of the admin API.",
                )
                .buckets(DURATION_BUCKETS.to_vec()),
                &["route", "method", "code"],
            )?,
            admin_refused: counters(
                "equerry_control_plane_admin_refused_total",
                "Admin requests refused at the door, by reason.",
                &["reason"],
            )?,
            certificates: gauges(
                "equerry_control_plane_cert_not_after_seconds",
                "When certificates end, in seconds since 1970: root and issuing of what signs, coming_root during a rotation, first_leaf and last_leaf of connected workloads.",
                &["kind"],
            )?,
            audit_verified: gauge(
                "equerry_control_plane_audit_verified",
                "1: the audit log proves itself as far as it was read; 0: it was edited, cut off, or is not signed by this control plane.",
            )?,
            audit_entries: gauge(
                "equerry_control_plane_audit_verified_entries",
                "The last entry of the audit log that follows from all before it.",
            )?,
            audit_read: gauge(
                "equerry_control_plane_audit_verified_timestamp_seconds",
                "When the audit log was read last to prove it, in seconds since 1970; 0: not yet.",
            )?,
            registry,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.epoch.clone()))?;
        registry.register(Box::new(metrics.documents.clone()))?;
        registry.register(Box::new(metrics.proxies.clone()))?;
        registry.register(Box::new(metrics.instances.clone()))?;
        registry.register(Box::new(metrics.sign.clone()))?;
        registry.register(Box::new(metrics.leases.clone()))?;
        registry.register(Box::new(metrics.nacks.clone()))?;
        registry.register(Box::new(metrics.quota_granted.clone()))?;
        registry.register(Box::new(metrics.admin.clone()))?;
        registry.register(Box::new(metrics.admin_refused.clone()))?;
        registry.register(Box::new(metrics.certificates.clone()))?;
        registry.register(Box::new(metrics.audit_verified.clone()))?;
        registry.register(Box::new(metrics.audit_entries.clone()))?;
        registry.register(Box::new(metrics.audit_read.clone()))?;
        for outcome in SIGN_OUTCOMES {
            metrics.sign.with_label_values(&[outcome]);
        }
        for outcome in LEASE_OUTCOMES {
            metrics.leases.with_label_values(&[outcome]);
        }
        Ok(Arc::new(metrics))
    }

    /// A certificate request ended; `outcome` is one of [`SIGN_OUTCOMES`].
    pub fn signed(&self, outcome: &'static str) {
        self.sign.with_label_values(&[outcome]).inc();
    }

    /// A lease was asked for or ended; `outcome` is one of [`LEASE_OUTCOMES`].
    pub fn lease(&self, outcome: &'static str) {
        self.leases(outcome, 1);
    }

    /// The same became of so many.
    pub fn leases(&self, outcome: &'static str, count: usize) {
        self.leases.with_label_values(&[outcome]).inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// A proxy refused an update.
    pub fn nack(&self) {
        self.nacks.inc();
    }

    /// So many tokens of a tenant's quota were granted to a sidecar.
    pub fn quota_granted(&self, tokens: u64) {
        self.quota_granted.inc_by(tokens);
    }

    /// The admin API answered; `route` is the template of the route, never the path a client sent.
    pub fn admin_answered(&self, route: &str, method: &'static str, code: u16, took: Duration) {
        self.admin.with_label_values(&[route, method, &code.to_string()]).observe(took.as_secs_f64());
    }

    /// The admin API refused somebody before a route was asked: `token`, `size`, `overload`.
    pub fn admin_refused(&self, reason: &'static str) {
        self.admin_refused.with_label_values(&[reason]).inc();
    }

    /// Everything in Prometheus' text format, the gauges as they are read now.
    ///
    /// # Errors
    /// When the encoder refuses a family.
    pub fn text(&self, reading: Reading) -> Result<String, prometheus::Error> {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.epoch.set(i64::try_from(reading.epoch).unwrap_or(i64::MAX));
        self.documents.set(number(reading.documents));
        for (state, count) in [("connected", reading.connected), ("away", reading.away), ("behind", reading.behind)] {
            self.proxies.with_label_values(&[state]).set(number(count));
        }
        for (health, count) in [("healthy", reading.healthy), ("unhealthy", reading.unhealthy)] {
            self.instances.with_label_values(&[health]).set(number(count));
        }
        self.certificates.reset();
        for (kind, end) in reading.ends {
            self.certificates.with_label_values(&[kind]).set(i64::try_from(end).unwrap_or(i64::MAX));
        }
        self.audit_verified.set(i64::from(reading.audit.tampered.is_none()));
        self.audit_entries.set(i64::try_from(reading.audit.up_to).unwrap_or(i64::MAX));
        let read = reading.audit.at.map_or(0, |at| unix_ms(at) / 1_000);
        self.audit_read.set(i64::try_from(read).unwrap_or(i64::MAX));
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_shows_what_was_read_and_counted() {
        let metrics = Metrics::new().unwrap();
        metrics.signed("issued");
        metrics.quota_granted(40);
        metrics.admin_answered("/api/v1/apply", "POST", 422, Duration::from_millis(3));
        let text = metrics.text(Reading { epoch: 7, connected: 2, behind: 1, ..Reading::default() }).unwrap();
        for line in [
            "equerry_control_plane_epoch 7",
            "equerry_control_plane_proxies{state=\"connected\"} 2",
            "equerry_control_plane_proxies{state=\"behind\"} 1",
            "equerry_control_plane_certificates_total{outcome=\"issued\"} 1",
            "equerry_control_plane_certificates_total{outcome=\"refused\"} 0",
            "equerry_control_plane_quota_granted_total 40",
            "equerry_control_plane_admin_request_duration_seconds_bucket{code=\"422\",method=\"POST\",route=\"/api/v1/apply\",le=\"0.005\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing from\n{text}");
        }
    }
}
