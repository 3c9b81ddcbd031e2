//! Who may do what: DENY rules first, then ALLOW rules, then the mesh's default, with Istio's meaning.
//!
//! Only rules that the index says might match are looked at. A [`Permit`] can be made here alone, and forwarding a request
//! takes one. A refusal is named in the words that log, response body and `explain` share.

mod asked;
mod onlookers;
mod remote;

use std::fmt;
use std::net::IpAddr;

use equerry_policies::compile::{Authorization, CompiledWorkload, Rule, RuleId, Turn};
use equerry_policies::names::PolicyName;
use equerry_policies::policy::{Origin, Verdict};
use http::{HeaderMap, Method};

use crate::csrf;
use crate::refusal::Refusal;
use crate::token::Caller;

pub(crate) use asked::{Asked, Failed};
pub use onlookers::{Noted, Would, note, note_connection};

/// What is known of a connection, the caller aside.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// The application's port.
    pub port: u16,
    /// The address of the direct peer.
    pub peer_ip: IpAddr,
    /// The address it connected to, where that is known.
    pub local_ip: Option<IpAddr>,
    /// The server name of its TLS.
    pub sni: Option<&'a str>,
}

/// What is known of a request, the caller aside. Shown without its headers, which may carry secrets.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// The method.
    pub method: &'a Method,
    /// The normalised authority, with its port if one was named.
    pub authority: &'a str,
    /// The normalised path, without the query.
    pub path: &'a str,
    /// The headers, as they are forwarded.
    pub headers: &'a HeaderMap,
    /// The connection it came over.
    pub connection: Connection<'a>,
}

impl fmt::Debug for Facts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Facts");
        shown.field("method", self.method).field("authority", &self.authority).field("path", &self.path);
        shown.field("connection", &self.connection).finish_non_exhaustive()
    }
}

/// Proof that a request was authorized. Nobody else can make one.
#[derive(Debug)]
pub struct Permit {
    by: Option<RuleId>,
}

impl Permit {
    /// What allowed it: `POLICY rules[N]`, or `Mesh.authorization.default`.
    pub fn cause(&self, workload: &CompiledWorkload) -> String {
        match self.by {
            Some(id) => rule_words(&workload.authorization, workload.authorization.rule(id)),
            None => MESH_DEFAULT.to_owned(),
        }
    }
}

/// A refusal, and what decided it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// `POLICY rules[N]` for a DENY, `no rule of POLICY, ... matched` for ALLOW, `Mesh.authorization.default` otherwise.
    pub cause: String,
    /// The policies that decided it.
    pub policies: Vec<PolicyName>,
    /// Where the rule, the first policy or the mesh's default was written.
    pub origin: Origin,
}

/// What decides where no ALLOW policy does.
const MESH_DEFAULT: &str = "Mesh.authorization.default";

/// Decides whether the request may pass: whether its caller may make it, and whether no page of another site made a browser send it.
///
/// # Errors
/// [`Refusal::Authz`], naming what decided.
pub fn authorize(caller: &Caller, facts: &Facts<'_>, workload: &CompiledWorkload) -> Result<Permit, Refusal> {
    let permit = decide(&Asked::request(caller, facts, workload), workload)?;
    same_origin(facts, workload)?;
    Ok(permit)
}

fn same_origin(facts: &Facts<'_>, workload: &CompiledWorkload) -> Result<(), Refusal> {
    csrf::check(workload, facts.method, facts.authority, facts.headers, facts.connection.port)
}

/// Decides whether a connection in whose bytes nobody looks for requests may pass, with Istio's meaning: what a rule asks about
/// HTTP is not there. An ALLOW rule that asks for it anywhere never matches, and of a DENY rule the rest decides.
///
/// # Errors
/// [`Refusal::Authz`], naming what decided.
pub fn authorize_connection(
    caller: &Caller,
    connection: &Connection<'_>,
    workload: &CompiledWorkload,
) -> Result<Permit, Refusal> {
    decide(&Asked::connection(caller, connection, workload), workload)
}

/// The order in which rules are asked.
fn decide(asked: &Asked<'_>, workload: &CompiledWorkload) -> Result<Permit, Refusal> {
    let authorization = &workload.authorization;
    if let Some(id) = asked.first_match(authorization, Turn::Deny) {
        let rule = authorization.rule(id);
        return Err(denied(Denied {
            cause: rule_words(authorization, rule),
            policies: vec![authorization.policy_of(rule).name.clone()],
            origin: rule.origin.clone(),
        }));
    }
    if let Some(by) = asked.first_match(authorization, Turn::Allow) {
        return Ok(Permit { by: Some(by) });
    }
    let mut selecting = authorization.holding(Turn::Allow, asked.port()).peekable();
    if let Some(first) = selecting.peek() {
        let origin = first.origin.clone();
        let policies: Vec<PolicyName> = selecting.map(|policy| policy.name.clone()).collect();
        return Err(denied(Denied { cause: none_matched(&policies), policies, origin }));
    }
    match authorization.default {
        Verdict::Allow => Ok(Permit { by: None }),
        Verdict::Deny => Err(denied(Denied {
            cause: MESH_DEFAULT.to_owned(),
            policies: Vec::new(),
            origin: workload.mesh.origin.clone(),
        })),
    }
}

fn denied(denied: Denied) -> Refusal {
    Refusal::Authz(Box::new(denied))
}

/// `POLICY rules[N]`.
pub(crate) fn rule_words(authorization: &Authorization, rule: &Rule) -> String {
    format!("{} rules[{}]", authorization.policy_of(rule).name, rule.number)
}

/// `no rule of POLICY, ... matched`.
fn none_matched(policies: &[PolicyName]) -> String {
    let names: Vec<String> = policies.iter().map(ToString::to_string).collect();
    format!("no rule of {} matched", names.join(", "))
}

#[cfg(test)]
#[path = "authorize_tests.rs"]
mod tests;
