//! How traffic to one Service is balanced, timed, limited and protected.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Breaker, Limits, Origin, RetryBudget};
use crate::names::{PolicyName, ServiceName};

/// The meaning of a `TrafficPolicy`, and of there being none (`TrafficPolicy::for_nobody`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicy {
    /// The document; `None` for the defaults.
    pub name: Option<PolicyName>,
    /// The Services it is for.
    pub services: Vec<ServiceName>,
    /// How an endpoint is chosen.
    pub load_balancer: LoadBalancer,
    /// Time to connect, TLS included. Default 1 s.
    pub connect_timeout: Duration,
    /// An idle pooled connection is closed after this. Default 60 s.
    pub idle_timeout: Duration,
    /// Belongs to the Service the caller named.
    pub retry_budget: RetryBudget,
    /// `None`: off.
    pub breaker: Option<Breaker>,
    /// What may be in flight.
    pub limits: Limits,
    /// Where it was written.
    pub origin: Origin,
}

impl Default for TrafficPolicy {
    fn default() -> Self {
        Self {
            name: None,
            services: Vec::new(),
            load_balancer: LoadBalancer::P2cEwma,
            connect_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(60),
            retry_budget: RetryBudget::default(),
            breaker: None,
            limits: Limits::default(),
            origin: Origin::default(),
        }
    }
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoadBalancer {
    /// The better of two random endpoints by peak-EWMA latency times requests in flight.
    #[default]
    P2cEwma,
}
