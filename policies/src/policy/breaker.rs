//! What protects a destination from its callers, and callers from a broken endpoint.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Retries allowed beside the original requests, over a sliding 10 s: `percent` of the originals plus `min_per_second`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryBudget {
    /// 0 to 1000 percent. Default 20 (Finagle, Linkerd).
    pub percent: u32,
    /// Always allowed beside that. Default 10 (Finagle, Linkerd).
    pub min_per_second: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20, min_per_second: 10 }
    }
}

/// The circuit breaker of each endpoint: closed, open for a penalty, half-open with exactly one probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Breaker {
    /// This many failures in a row open it; at least 1. Default 5 (Envoy, Istio).
    pub consecutive_failures: u32,
    /// The first penalty. Default 1 s (Linkerd).
    pub penalty_min: Duration,
    /// The penalty doubles with each failed probe up to this. Default 60 s (Linkerd).
    pub penalty_max: Duration,
    /// What share of failures opens it, in a row or not; `None`: none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_percent: Option<FailurePercent>,
    /// Of the endpoints of a Service at most so many percent are kept open at once, rounded down; but one may always be where
    /// there are two or more, and below 100 never all. Default 100: a breaker asks nobody.
    #[serde(default = "all")]
    pub max_ejected_percent: u32,
    /// Whether it keeps requests away.
    #[serde(default)]
    pub mode: BreakerMode,
}

impl Breaker {
    /// What holds where `breaker: {}` is written.
    pub const DEFAULT: Self = Self {
        consecutive_failures: 5,
        penalty_min: Duration::from_secs(1),
        penalty_max: Duration::from_secs(60),
        failure_percent: None,
        max_ejected_percent: all(),
        mode: BreakerMode::Enforce,
    };
}

impl Default for Breaker {
    fn default() -> Self {
        Self::DEFAULT
    }
}

const fn all() -> u32 {
    100
}

/// The share of failures that opens a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailurePercent {
    /// So many percent or more, 1 to 100.
    pub threshold: u32,
    /// Of the requests of this last time. Default 10 s (Envoy, Linkerd).
    pub interval: Duration,
    /// Fewer requests than this say nothing. Default 20.
    pub minimum_requests: u32,
}

/// What a breaker does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BreakerMode {
    /// It keeps requests away from an endpoint while it is open.
    #[default]
    Enforce,
    /// It only reports what it would do.
    Observe,
}

/// Limits on what one sidecar has in flight to one Service; `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Open connections.
    pub connections: Option<u32>,
    /// Requests, and TCP connections, waiting for a connection.
    pub pending: Option<u32>,
    /// How long one of them waits at most. Default 1 s (Linkerd's failfast).
    #[serde(default = "a_second")]
    pub pending_timeout: Duration,
    /// Requests in flight.
    pub requests: Option<u32>,
    /// Retries in flight, beside what the budget says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// Bytes in the body of a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_bytes: Option<u64>,
    /// Bytes in the body of a response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_bytes: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: None,
            pending: None,
            pending_timeout: a_second(),
            requests: None,
            retries: None,
            request_bytes: None,
            response_bytes: None,
        }
    }
}

fn a_second() -> Duration {
    Duration::from_secs(1)
}
