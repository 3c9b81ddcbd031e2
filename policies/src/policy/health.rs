//! How endpoints without a sidecar are asked whether they are well.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The callers' sidecars ask each endpoint that has no sidecar of its own (`EndpointSlice`, `ExternalName`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// What is asked.
    pub ask: Ask,
    /// The Service port at whose address it is asked; `None`: the first that the endpoint serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// From one question to the next. Default 3 s (Envoy Gateway).
    pub interval: Duration,
    /// Up to so many percent of the interval are added at random, so that many sidecars do not ask in step. Default 10.
    pub jitter_percent: u32,
    /// A question that is not answered by then has failed. Default 1 s (Envoy Gateway).
    pub timeout: Duration,
    /// So many good answers in a row make an endpoint well again. Default 1 (Envoy Gateway).
    pub healthy_threshold: u32,
    /// So many failures in a row make it unwell. Default 3 (Envoy Gateway).
    pub unhealthy_threshold: u32,
    /// While a smaller share of the endpoints than this is well, all are used, well or not. Default 0: never (Istio).
    pub panic_percent: u32,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ask {
    /// `GET path` is answered with one of the statuses.
    Http {
        /// Path and query.
        path: String,
        /// What stands in `Host`; `None`: the address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// From one to another, inclusive. Default 200 alone (Envoy).
        statuses: Vec<(u16, u16)>,
    },
    /// `grpc.health.v1.Health/Check` says `SERVING`.
    Grpc {
        /// Of this service; empty: of the server as a whole.
        service: String,
    },
    /// It accepts a connection.
    Tcp {},
}

impl HealthCheck {
    /// What holds where nothing but the question is written.
    pub fn asking(ask: Ask) -> Self {
        Self {
            ask,
            port: None,
            interval: Duration::from_secs(3),
            jitter_percent: 10,
            timeout: Duration::from_secs(1),
            healthy_threshold: 1,
            unhealthy_threshold: 3,
            panic_percent: 0,
        }
    }
}

/// Reads an expected status, `204`, or several, `200-299`; `None` for anything else.
pub fn statuses(text: &str) -> Option<(u16, u16)> {
    let one = |text: &str| {
        let digits = text.len() == 3 && text.bytes().all(|c| c.is_ascii_digit());
        text.parse::<u16>().ok().filter(|code| digits && (100..600).contains(code))
    };
    match text.split_once('-') {
        Some((from, to)) => one(from).zip(one(to)).filter(|(from, to)| from <= to),
        None => one(text).map(|code| (code, code)),
    }
}

/// Whether a path and query can be asked for as they stand.
pub fn is_asked_path(text: &str) -> bool {
    text.starts_with('/') && text.len() <= 1024 && text.bytes().all(|c| c.is_ascii_graphic() && c != b'#')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_stands_alone_or_for_a_range() {
        assert_eq!((statuses("204"), statuses("200-299")), (Some((204, 204)), Some((200, 299))));
        for wrong in ["", "2xx", "99", "0200", "600", "299-200", "200-", "-200", "200-299-300", "+20"] {
            assert_eq!(statuses(wrong), None, "{wrong}");
        }
        assert!(is_asked_path("/healthz?deep=1") && !is_asked_path("healthz") && !is_asked_path("/a b"));
    }
}
