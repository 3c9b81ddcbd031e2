//! What policies are expected to decide, written down beside them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Origin, Verdict};
use crate::names::{AccountName, PolicyName};

/// The meaning of a `PolicyTest`. No proxy is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTest {
    /// The document.
    pub name: PolicyName,
    /// Each stands for itself; names are unique.
    pub cases: Vec<PolicyTestCase>,
    /// Where it was written.
    pub origin: Origin,
}

/// A request, and what must become of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTestCase {
    /// What it shows.
    pub name: String,
    /// Who makes the request.
    pub from: AccountName,
    /// The address of the caller's sidecar.
    pub from_ip: Option<IpAddr>,
    /// The account the callee runs as, where its Service lists several.
    pub to_account: Option<AccountName>,
    /// The method.
    pub method: String,
    /// Where it goes, as the application writes it: `http://orders/path`.
    pub url: String,
    /// Its headers: `(name, value)`.
    pub headers: Vec<(String, String)>,
    /// What its token says, as JSON text of an object; `None`: it carries none.
    pub claims: Option<String>,
    /// What must become of it.
    pub expect: Expectation,
    /// Where it was written.
    pub origin: Origin,
}

/// What must become of a request; what is not said is not looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Expectation {
    /// Whether it reaches the application.
    pub decision: Verdict,
    /// Why not: one of the mesh's reasons, such as `authz_denied`.
    pub reason: Option<String>,
    /// The rule of a route that chose: `shop/orders rules[0]`.
    pub route: Option<String>,
    /// What allowed or refused it, in the words of the log: `shop/callers rules[0]`.
    pub rule: Option<String>,
}
