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

/// The per-endpoint circuit breaker: closed, open for a penalty, half-open with exactly one probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Breaker {
    /// This many failures in a row open it; at least 1.
    pub consecutive_failures: u32,
    /// The first penalty. Default 1 s.
    pub penalty_min: Duration,
    /// The penalty doubles with each failed probe up to this. Default 60 s.
    pub penalty_max: Duration,
}

/// Limits on what one sidecar has in flight to one Service; `None`: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Open connections.
    pub connections: Option<u32>,
    /// Requests waiting for a connection.
    pub pending: Option<u32>,
    /// Requests in flight.
    pub requests: Option<u32>,
}
