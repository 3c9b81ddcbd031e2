//! Who calls whom and how it went, as JSON: what sidecars counted, and samples of single calls.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Rest;

/// Who called whom lately, as sidecars report it every few seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CallList {
    /// How far back numbers reach, in seconds.
    pub window_seconds: u64,
    /// Sidecars that report.
    pub reporting: usize,
    /// By source and destination.
    pub items: Vec<EdgeReply>,
    /// What comes after this page.
    #[serde(flatten)]
    pub rest: Rest,
}

/// One caller and one Service it calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EdgeReply {
    /// `namespace/account`, or `unknown`: without an identity.
    pub source: String,
    /// `namespace/name`, or `unknown`: no Service of the mesh.
    pub destination: String,
    /// As the caller's sidecars saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<SideReply>,
    /// As the sidecars of the Service saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callee: Option<SideReply>,
}

/// What one side's sidecars saw of the calls between two, all of them together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SideReply {
    /// Requests and connections finished per second.
    pub requests_per_second: f64,
    /// Of these, failed: a status of 500 or more, or an end that neither the caller nor a policy is to blame for.
    pub failed_per_second: f64,
    /// Of these, refused by the mesh because of a policy, a token or a quota.
    pub refused_per_second: f64,
    /// Half of them took no longer, in milliseconds, as far as buckets tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<f64>,
    /// 95 of a hundred took no longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95_ms: Option<f64>,
    /// 99 of a hundred took no longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
    /// Requests and connections finished within the window.
    pub requests: u64,
    /// Of these, failed.
    pub failed: u64,
    /// Of these, refused.
    pub refused: u64,
    /// Of these, TCP connections.
    pub connections: u64,
    /// Bytes of TCP connections, from whoever connected.
    pub bytes_in: u64,
    /// Bytes of TCP connections, to whoever connected.
    pub bytes_out: u64,
    /// How they ended, the most frequent first.
    pub ends: Vec<EndReply>,
    /// When a sidecar reported last: milliseconds since 1970.
    pub last_report_unix_ms: u64,
}

/// How some calls ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndReply {
    /// The status sent; 0 for TCP.
    pub status: u16,
    /// One of the mesh's reasons; `ok` when it was the application's answer.
    pub reason: String,
    /// How many, within the window.
    pub requests: u64,
}

/// Single calls, the newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SampleList {
    /// Sidecars that were asked.
    pub asked: usize,
    /// Of these, those that answered in time.
    pub answered: usize,
    /// Sidecars that were not asked, because they would have been too many.
    pub left_out: usize,
    /// The calls.
    pub items: Vec<SampleReply>,
}

/// One call as one sidecar saw it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SampleReply {
    /// `namespace/id` of the instance whose sidecar saw it.
    pub instance: String,
    /// `inbound` or `outbound`.
    pub direction: String,
    /// When its head had been read: milliseconds since 1970.
    pub started_unix_ms: u64,
    /// From then to the end of the response, in milliseconds.
    pub duration_ms: f64,
    /// How long the other side, or the application, took to answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_ms: Option<f64>,
    /// `namespace/account` of the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// `namespace/name` of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// None for TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Without its query, which may carry secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Whom the caller asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// `HTTP/1.1`, `HTTP/2`, `TCP`.
    pub protocol: String,
    /// The status sent; 0 for TCP.
    pub status: u16,
    /// How it ended.
    pub reason: String,
    /// Policy and rule of a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The route and rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The tenant it was counted for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Tries made.
    pub attempts: u32,
    /// The endpoint of the last try, or the application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// Body bytes from the caller.
    pub bytes_in: u64,
    /// Body bytes to the caller.
    pub bytes_out: u64,
    /// `x-request-id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The trace it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Mutual TLS on the mesh's side of it.
    pub tls: bool,
    /// The epoch it was decided by.
    pub epoch: u64,
    /// Why it failed, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}
