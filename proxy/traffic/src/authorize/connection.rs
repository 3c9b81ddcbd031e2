//! Authorization of a connection in whose bytes nobody looks for requests, with Istio's meaning: what a rule asks about HTTP
//! is not there, so an ALLOW rule that asks for it never matches, and of a DENY rule the rest decides.

use std::net::IpAddr;

use equerry_policies::compile::{CompiledWorkload, Operation, Rule, Source};
use equerry_policies::policy::Action;
use http::Method;

use super::{Asked, Facts, Permit, decide};
use crate::refusal::Refusal;
use crate::token::Caller;

/// Decides whether a connection from `peer_ip` to the application port `port` may pass.
///
/// # Errors
/// [`Refusal::Authz`], naming what decided.
pub fn authorize_connection(
    caller: &Caller,
    port: u16,
    peer_ip: IpAddr,
    workload: &CompiledWorkload,
) -> Result<Permit, Refusal> {
    let facts = Facts { method: &Method::CONNECT, authority: "", path: "", port, peer_ip };
    let asked = Asked::new(caller, &facts);
    let authorization = &workload.authorization;
    decide(workload, port, |action| {
        let matching = |rule: &Rule| {
            let policy = authorization.policy_of(rule);
            policy.action == action && policy.holds_on(port) && asked.matches_connection(rule, action)
        };
        authorization.rules().find(|(_, rule)| matching(rule)).map(|(id, _)| id)
    })
}

impl Asked<'_> {
    fn matches_connection(&self, rule: &Rule, action: Action) -> bool {
        // What is not there fails a rule that allows, and is passed over in one that denies.
        let absent = |asked_for: bool| !asked_for || action == Action::Deny;
        let from = |source: &Source| absent(!source.request_principals.is_empty()) && self.connects(source);
        let to = |operation: &Operation| {
            let about_http =
                !operation.methods.is_empty() || !operation.paths.is_empty() || !operation.hosts.is_empty();
            absent(about_http) && (operation.ports.is_empty() || operation.ports.contains(&self.facts.port))
        };
        (rule.from.is_empty() || rule.from.iter().any(from))
            && (rule.to.is_empty() || rule.to.iter().any(to))
            && absent(!rule.when.is_empty())
    }
}
