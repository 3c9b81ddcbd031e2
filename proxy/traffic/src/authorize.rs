//! Who may do what: DENY rules first, then ALLOW rules, then the mesh's default, with Istio's meaning.
//!
//! Only rules that the index says might match are looked at. A [`Permit`] can be made here alone, and forwarding a request
//! takes one. A refusal is named in the words that log, response body and `explain` share.

mod connection;

use std::cell::OnceCell;
use std::net::IpAddr;

use equerry_policies::compile::{Authorization, CompiledWorkload, Operation, Pattern, Rule, RuleId, Source};
use equerry_policies::names::{PolicyName, SpiffeId};
use equerry_policies::policy::{Action, Origin, Verdict};
use http::Method;

use crate::refusal::Refusal;
use crate::token::{Caller, claim_texts};

pub use connection::authorize_connection;

/// What is known of a request, the caller aside.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The method.
    pub method: &'a Method,
    /// The normalised authority, with its port if one was named.
    pub authority: &'a str,
    /// The normalised path, without the query.
    pub path: &'a str,
    /// The application's port.
    pub port: u16,
    /// The address of the direct peer.
    pub peer_ip: IpAddr,
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

/// Decides whether the request may pass.
///
/// # Errors
/// [`Refusal::Authz`], naming what decided.
pub fn authorize(caller: &Caller, facts: &Facts<'_>, workload: &CompiledWorkload) -> Result<Permit, Refusal> {
    let asked = Asked::new(caller, facts);
    decide(workload, facts.port, |action| asked.first_match(&workload.authorization, action))
}

/// The order in which actions are asked. `first_match` is the first rule of an action that matches.
fn decide(
    workload: &CompiledWorkload,
    port: u16,
    first_match: impl Fn(Action) -> Option<RuleId>,
) -> Result<Permit, Refusal> {
    let authorization = &workload.authorization;
    if let Some(id) = first_match(Action::Deny) {
        let rule = authorization.rule(id);
        return Err(denied(Denied {
            cause: rule_words(authorization, rule),
            policies: vec![authorization.policy_of(rule).name.clone()],
            origin: rule.origin.clone(),
        }));
    }
    if let Some(by) = first_match(Action::Allow) {
        return Ok(Permit { by: Some(by) });
    }
    let mut selecting = authorization.holding(Action::Allow, port).peekable();
    if let Some(first) = selecting.peek() {
        let origin = first.origin.clone();
        let policies: Vec<PolicyName> = selecting.map(|policy| policy.name.clone()).collect();
        let names: Vec<String> = policies.iter().map(ToString::to_string).collect();
        return Err(denied(Denied { cause: format!("no rule of {} matched", names.join(", ")), policies, origin }));
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

/// A request as rules ask about it. What costs an allocation is made once, and only when a rule asks.
pub(crate) struct Asked<'a> {
    caller: &'a Caller,
    facts: &'a Facts<'a>,
    principal: OnceCell<String>,
}

/// The part of a rule that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed<'r> {
    /// None of its sources.
    From,
    /// None of its operations.
    To,
    /// This claim.
    When(&'r [Box<str>]),
}

impl<'a> Asked<'a> {
    pub(crate) fn new(caller: &'a Caller, facts: &'a Facts<'a>) -> Self {
        Self { caller, facts, principal: OnceCell::new() }
    }

    /// The first rule, in the order written, that holds.
    fn first_match(&self, authorization: &Authorization, action: Action) -> Option<RuleId> {
        let lists =
            authorization.candidates(action, self.caller.peer(), self.caller.request_principal(), self.facts.path);
        let mut best: Option<RuleId> = None;
        for list in lists {
            let earlier = list.iter().copied().take_while(|id| best.is_none_or(|best| *id < best));
            let found = earlier.into_iter().find(|id| {
                let rule = authorization.rule(*id);
                authorization.policy_of(rule).holds_on(self.facts.port) && self.missing(rule).is_none()
            });
            best = found.or(best);
        }
        best
    }

    /// The first part of a rule that does not hold; `None`: it matches.
    pub(crate) fn missing<'r>(&self, rule: &'r Rule) -> Option<Failed<'r>> {
        if !rule.from.is_empty() && !rule.from.iter().any(|source| self.speaks(source)) {
            return Some(Failed::From);
        }
        if !rule.to.is_empty() && !rule.to.iter().any(|operation| self.does(operation)) {
            return Some(Failed::To);
        }
        rule.when.iter().find(|(claim, values)| !self.claims(claim, values)).map(|(claim, _)| Failed::When(claim))
    }

    fn speaks(&self, source: &Source) -> bool {
        let token = self.caller.request_principal();
        let by_token = |pattern: &Pattern| token.is_some_and(|principal| pattern.matches(principal));
        self.connects(source)
            && (source.request_principals.is_empty() || source.request_principals.iter().any(by_token))
    }

    /// Whether the connection is one of that source, whatever is said on it.
    fn connects(&self, source: &Source) -> bool {
        let peer = self.caller.peer();
        let holds = |list: &[Pattern], matches: &dyn Fn(&Pattern) -> bool| list.is_empty() || list.iter().any(matches);
        holds(&source.principals, &|pattern| peer.is_some_and(|peer| self.is_principal(pattern, peer)))
            && holds(&source.namespaces, &|pattern| peer.is_some_and(|peer| pattern.matches(peer.namespace.as_str())))
            && (source.ip_blocks.is_empty()
                || source.ip_blocks.iter().any(|block| contains(*block, self.facts.peer_ip)))
    }

    fn is_principal(&self, pattern: &Pattern, peer: &SpiffeId) -> bool {
        match pattern {
            Pattern::Present => true,
            Pattern::Exact(text) => is_exactly(peer, text),
            Pattern::Prefix(_) | Pattern::Suffix(_) => pattern.matches(self.principal.get_or_init(|| peer.principal())),
        }
    }

    fn does(&self, operation: &Operation) -> bool {
        let any = |patterns: &[Pattern], text: &str| patterns.iter().any(|pattern| pattern.matches(text));
        let authority = self.facts.authority;
        (operation.methods.is_empty() || any(&operation.methods, self.facts.method.as_str()))
            && (operation.paths.is_empty() || any(&operation.paths, self.facts.path))
            && (operation.hosts.is_empty()
                || any(&operation.hosts, authority)
                || any(&operation.hosts, host_of(authority)))
            && (operation.ports.is_empty() || operation.ports.contains(&self.facts.port))
    }

    fn claims(&self, claim: &[Box<str>], values: &[Pattern]) -> bool {
        let Some(value) = self.caller.claim(claim) else { return false };
        claim_texts(value).any(|text| values.iter().any(|pattern| pattern.matches(&text)))
    }
}

/// The authority without its port.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        // The colons inside an IPv6 literal are not the port's.
        Some((host, port)) if !port.contains(']') => host,
        _ => authority,
    }
}

/// Whether `text` is the principal of `peer`, compared part by part.
fn is_exactly(peer: &SpiffeId, text: &str) -> bool {
    text.strip_prefix(peer.trust_domain.as_str())
        .and_then(|rest| rest.strip_prefix("/ns/"))
        .and_then(|rest| rest.strip_prefix(peer.namespace.as_str()))
        .and_then(|rest| rest.strip_prefix("/sa/"))
        == Some(peer.account.as_str())
}

/// Whether a network contains an address; IPv4 addresses written as IPv6 are the IPv4 addresses they are.
fn contains((network, length): (IpAddr, u8), address: IpAddr) -> bool {
    match (network.to_canonical(), address.to_canonical()) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let rest = 32_u32.saturating_sub(u32::from(length));
            u32::from(network).checked_shr(rest) == u32::from(address).checked_shr(rest)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let rest = 128_u32.saturating_sub(u32::from(length));
            u128::from(network).checked_shr(rest) == u128::from(address).checked_shr(rest)
        }
        _ => false,
    }
}

#[cfg(test)]
#[path = "authorize_tests.rs"]
mod tests;
