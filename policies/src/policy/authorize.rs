//! Who may do what, with Istio's meaning.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Origin, Target};
use crate::names::PolicyName;

/// The meaning of an `AuthorizationPolicy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicy {
    /// The document.
    pub name: PolicyName,
    /// Where it holds.
    pub target: Target,
    /// What a matching rule decides.
    pub action: Action,
    /// Any one that matches decides. None at all: an ALLOW policy denies everything, a DENY policy nothing.
    pub rules: Vec<AuthorizationRule>,
    /// Where it was written.
    pub origin: Origin,
}

/// What a matching rule decides. DENY is asked before ALLOW.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// The request may pass.
    Allow,
    /// The request may not pass, whatever ALLOW policies say.
    Deny,
}

/// One rule: its three parts must hold together; an empty part holds always.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationRule {
    /// Any one of these sources.
    pub from: Vec<Source>,
    /// Any one of these operations.
    pub to: Vec<Operation>,
    /// All of these conditions.
    pub when: Vec<Condition>,
    /// Where it was written.
    pub origin: Origin,
}

/// Who speaks. Each list that is not empty must hold; in a list, any one value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    /// Principals without `spiffe://`: `equerry.local/ns/shop/sa/orders`.
    pub principals: Vec<StringMatch>,
    /// Namespaces of the peer's identity.
    pub namespaces: Vec<StringMatch>,
    /// `issuer/subject` of the verified token.
    pub request_principals: Vec<StringMatch>,
    /// Addresses and networks of the direct peer: `(network, prefix length)`.
    pub ip_blocks: Vec<(IpAddr, u8)>,
}

/// What is done. Each list that is not empty must hold; in a list, any one value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Operation {
    /// The authority, lower case; matched with and without its port.
    pub hosts: Vec<StringMatch>,
    /// The method, case-sensitive.
    pub methods: Vec<StringMatch>,
    /// The normalised path, without the query.
    pub paths: Vec<StringMatch>,
    /// The application's port.
    pub ports: Vec<u16>,
}

/// A claim of the verified token that must have one of some values (`when: key: request.auth.claims[a][b]`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Path of the claim: `["realm", "role"]`.
    pub claim: Vec<String>,
    /// Any one of these; a claim that is a list matches when any member does.
    pub values: Vec<StringMatch>,
}

/// Istio's string match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StringMatch {
    /// `*`: there is a value, and it is not empty.
    Present,
    /// `text`.
    Exact(String),
    /// `text*`.
    Prefix(String),
    /// `*text`.
    Suffix(String),
}
