//! Who may do what, with Istio's meaning.
//!
//! These values travel to proxies. A program that does not know everything a rule asks must not enforce the rest of it, so
//! [`written`] gives what came later a form that older programs refuse.

mod written;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Origin, Target};
use crate::names::{AccountName, PolicyName};

/// The meaning of an `AuthorizationPolicy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "written::Policy", into = "written::Policy")]
pub struct AuthorizationPolicy {
    /// The document.
    pub name: PolicyName,
    /// Where it holds.
    pub target: Target,
    /// What a matching rule decides.
    pub action: Action,
    /// It is judged by, and nothing is enforced: only what it would change is told.
    pub shadow: bool,
    /// Any one that matches decides. None at all: an ALLOW policy denies everything, a DENY policy nothing.
    pub rules: Vec<AuthorizationRule>,
    /// Where it was written.
    pub origin: Origin,
}

/// What a matching rule decides. DENY is asked before ALLOW.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The request may pass.
    Allow,
    /// The request may not pass, whatever ALLOW policies say.
    Deny,
    /// That it matched is noted, and decides nothing.
    Audit,
}

impl Action {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
        }
    }
}

/// One rule: its three parts must hold together; an empty part holds always.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "written::Rule", into = "written::Rule")]
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

/// An address or a network: `(network, prefix length)`.
pub type IpBlock = (IpAddr, u8);

/// Who speaks. Each list that is not empty must hold: of a list any one value, of a `not_` list none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    /// Principals without `spiffe://`: `equerry.local/ns/shop/sa/orders`.
    pub principals: Vec<StringMatch>,
    /// Namespaces of the peer's identity.
    pub namespaces: Vec<StringMatch>,
    /// `issuer/subject` of the verified token.
    pub request_principals: Vec<StringMatch>,
    /// Addresses and networks of the direct peer.
    pub ip_blocks: Vec<IpBlock>,
    /// Accounts of the peer's identity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<AccountName>,
    /// Trust domains of the peer's identity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trust_domains: Vec<StringMatch>,
    /// Addresses and networks of whoever made the request, as far as trusted proxies in front say who that was.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remote_ip_blocks: Vec<IpBlock>,
    /// None of these principals.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<StringMatch>,
    /// None of these namespaces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<StringMatch>,
    /// None of these `issuer/subject`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_request_principals: Vec<StringMatch>,
    /// None of these addresses and networks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_ip_blocks: Vec<IpBlock>,
    /// None of these accounts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<AccountName>,
    /// None of these trust domains.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_trust_domains: Vec<StringMatch>,
    /// None of these addresses and networks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_remote_ip_blocks: Vec<IpBlock>,
}

/// What is done. Each list that is not empty must hold: of a list any one value, of a `not_` list none.
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
    /// None of these authorities.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_hosts: Vec<StringMatch>,
    /// None of these methods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_methods: Vec<StringMatch>,
    /// None of these paths.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_paths: Vec<StringMatch>,
    /// None of these ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_ports: Vec<u16>,
}

/// A condition of `when`: any one of some values, none of others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Condition {
    /// `source.*`, `remote.ip`, `request.auth.principal`: what a source asks, of one thing.
    Source(Box<Source>),
    /// `destination.port`: what an operation asks.
    Operation(Box<Operation>),
    /// `destination.ip`.
    DestinationIp {
        /// Any one of these; empty: any.
        values: Vec<IpBlock>,
        /// None of these.
        not_values: Vec<IpBlock>,
    },
    /// A text.
    Text {
        /// Which.
        of: Attribute,
        /// Any one of these; empty: any. What has several values matches when one of them does.
        values: Vec<StringMatch>,
        /// None of these, whichever of its values.
        not_values: Vec<StringMatch>,
    },
}

/// What a condition asks about, where neither a source nor an operation can.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Attribute {
    /// `request.headers[NAME]`, in lower case.
    Header(String),
    /// `request.auth.claims[a][b]`: `["a", "b"]`.
    Claim(Vec<String>),
    /// `request.auth.audiences`.
    Audiences,
    /// `request.auth.presenter`.
    Presenter,
    /// `connection.sni`.
    Sni,
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
    /// `/a/{*}/{**}`, of paths alone.
    Template(PathTemplate),
}

/// A path with places that are left open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PathTemplate(String);

impl PathTemplate {
    /// Reads a template: `{*}` is one segment that is not empty, `{**}`, which no other place follows, any number of
    /// characters.
    ///
    /// # Errors
    /// In words, when it is not of that form.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let Some(path) = text.strip_prefix('/') else { return Err("it does not begin with '/'") };
        let mut tail = false;
        for segment in path.split('/') {
            match segment {
                "{*}" | "{**}" if tail => return Err("{**} is the last place"),
                "{**}" => tail = true,
                "{*}" => {}
                text if text.contains(['{', '}', '*']) => return Err("a segment is a text, {*} or {**}"),
                _ => {}
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
