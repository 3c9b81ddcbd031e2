//! How traffic to one Service is balanced, timed, limited and protected.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Breaker, HealthCheck, Limits, LoadBalancer, Origin, RetryBudget};
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
    /// A connection this old gets no further exchange, up to a tenth earlier at random; `None`: however old. Default 1 h.
    #[serde(default = "an_hour")]
    pub max_connection_age: Option<Duration>,
    /// An exchange in which nothing passes for so long, while its request's body comes or after its response head, is cut, and
    /// so is one whose caller takes nothing. `None`: nothing is written, so that it is 5 min, but silence never ends a streaming
    /// call; zero: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_idle_timeout: Option<Duration>,
    /// A streaming call that lasts longer is cut. `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_timeout: Option<Duration>,
    /// A request body up to so many bytes is held, so that it can be sent again. Default 64 KiB (Linkerd).
    #[serde(default = "linkerds_buffer")]
    pub retry_buffer: u64,
    /// Belongs to the Service the caller named.
    pub retry_budget: RetryBudget,
    /// `None`: off.
    pub breaker: Option<Breaker>,
    /// How endpoints without a sidecar are asked whether they are well; `None`: they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
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
            load_balancer: LoadBalancer::default(),
            connect_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(60),
            max_connection_age: an_hour(),
            stream_idle_timeout: None,
            stream_timeout: None,
            retry_buffer: linkerds_buffer(),
            retry_budget: RetryBudget::default(),
            breaker: None,
            health_check: None,
            limits: Limits::default(),
            origin: Origin::default(),
        }
    }
}

fn an_hour() -> Option<Duration> {
    Some(Duration::from_secs(3600))
}

fn linkerds_buffer() -> u64 {
    64 << 10
}
