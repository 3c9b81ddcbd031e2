//! Faults made on purpose, to see how callers bear them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{HeaderMatch, Origin};
use crate::names::{PolicyName, ServiceName};

/// The meaning of a `FaultInjection`: carried out by the sidecars of those who call its Services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FaultInjection {
    /// The document.
    pub name: PolicyName,
    /// The Services whose callers meet the faults.
    pub services: Vec<ServiceName>,
    /// Only requests with all of these headers meet them.
    pub when: Vec<HeaderMatch>,
    /// Some requests wait.
    pub delay: Option<FaultDelay>,
    /// Some requests are answered with an error.
    pub abort: Option<FaultAbort>,
    /// A request may ask for its own faults, in Envoy's headers (`x-envoy-fault-...`).
    pub by_headers: bool,
    /// Where it was written.
    pub origin: Origin,
}

/// How many requests wait, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FaultDelay {
    /// Of a hundred requests so many.
    pub percent: u8,
    /// How long.
    pub fixed: Duration,
}

/// How many requests are answered with an error, and with which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FaultAbort {
    /// Of a hundred requests so many.
    pub percent: u8,
    /// With what.
    pub with: FaultStatus,
}

/// The error that a fault answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FaultStatus {
    /// An HTTP status from 400 to 599.
    Http(u16),
    /// A gRPC status code from 1 to 16.
    Grpc(u8),
}
