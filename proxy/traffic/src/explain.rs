//! The same decisions in words, for people: each step with what it looked at, how it came out, and where that was written.
//!
//! Nothing is decided here a second time: the steps walk the same compiled values with the same predicates, and the
//! outcome is that of the deciding function itself.

mod routes;

use std::time::SystemTime;

use equerry_policies::compile::{CompiledWorkload, Pattern, Rule};
use equerry_policies::names::SpiffeId;
use equerry_policies::policy::{Action, Origin, Verdict};
use http::header::HeaderMap;
use serde::Serialize;

use crate::authorize::{Asked, Facts, Failed, authorize, rule_words};
use crate::refusal::Refusal;
use crate::tenant;
use crate::token::{self, Caller};

pub use routes::route;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What: `shop/orders-routes rules[0]`.
    pub subject: String,
    /// How it came out.
    pub outcome: Outcome,
    /// Why, in a sentence's second half: `the method is GET, not POST`.
    pub because: String,
    /// Where it was written.
    pub origin: Origin,
}

/// How a step came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It fits, and decided.
    Decided,
    /// It fits, but another came first.
    TooLate,
    /// It does not fit.
    NoMatch,
    /// It does not hold here.
    NotHere,
}

impl Step {
    fn new(subject: impl Into<String>, outcome: Outcome, because: impl Into<String>, origin: &Origin) -> Self {
        Self { subject: subject.into(), outcome, because: because.into(), origin: origin.clone() }
    }
}

/// The token's decision. Claim headers are stripped and set in `headers`, as the proxy does.
pub fn token(
    workload: &CompiledWorkload,
    port: u16,
    headers: &mut HeaderMap,
    peer: Option<&SpiffeId>,
    now: SystemTime,
) -> (Vec<Step>, Result<Caller, Refusal>) {
    let outcome = token::verify(workload, port, headers, peer, now);
    let mut steps = Vec::new();
    for rule in workload.tokens.on(port) {
        let subject = format!("{} issuer {}", rule.policy, rule.issuer);
        let (found, because) = match &outcome {
            Ok(caller) if caller.token_policy() == Some(&*rule.policy) && caller.issuer() == Some(&*rule.issuer) => {
                let told: Vec<&str> = rule.claims_to_headers.iter().map(|told| told.header.as_str()).collect();
                let told =
                    if told.is_empty() { String::new() } else { format!("; claims told in {}", told.join(", ")) };
                (Outcome::Decided, format!("the token is believed{told}"))
            }
            Ok(caller) if caller.issuer().is_none() => {
                (Outcome::NoMatch, "there is no token, and none is required".to_owned())
            }
            Ok(_) => (Outcome::NoMatch, "the token is another issuer's".to_owned()),
            Err(refusal) if refusal.cause() == Some(&*rule.policy) => {
                (Outcome::Decided, format!("{}: {refusal}", refusal.reason()))
            }
            Err(refusal) => (Outcome::NoMatch, refusal.to_string()),
        };
        steps.push(Step::new(subject, found, because, &rule.origin));
    }
    (steps, outcome)
}

/// Authorization's decision, each rule of each policy that selects the workload: DENY first, then ALLOW.
pub fn authorization(
    caller: &Caller,
    facts: &Facts<'_>,
    workload: &CompiledWorkload,
) -> (Vec<Step>, Result<(), Refusal>) {
    let all = &workload.authorization;
    let outcome = authorize(caller, facts, workload);
    let decided = match &outcome {
        Ok(permit) => permit.cause(workload),
        Err(refusal) => refusal.cause().unwrap_or_default().to_owned(),
    };
    let asked = Asked::new(caller, facts);
    let mut steps = Vec::new();
    for action in [Action::Deny, Action::Allow] {
        let word = if action == Action::Deny { "DENY" } else { "ALLOW" };
        for policy in all.policies().iter().filter(|policy| policy.action == action) {
            let mut rules = all
                .rules()
                .filter(|(_, rule)| all.policy_of(rule).name == policy.name && all.policy_of(rule).action == action)
                .peekable();
            if rules.peek().is_none() {
                steps.push(Step::new(
                    format!("{word} {}", policy.name),
                    Outcome::NoMatch,
                    "it has no rules, so nothing matches",
                    &policy.origin,
                ));
            }
            for (_, rule) in rules {
                let words = rule_words(all, rule);
                let (found, because) = if !policy.holds_on(facts.port) {
                    (Outcome::NotHere, format!("it does not hold on port {}", facts.port))
                } else {
                    match asked.missing(rule) {
                        None if words == decided => (Outcome::Decided, "every part of it holds".to_owned()),
                        None => (Outcome::TooLate, "every part of it holds, but another rule decided".to_owned()),
                        Some(failed) => (Outcome::NoMatch, lacking(failed, rule, caller, facts)),
                    }
                };
                steps.push(Step::new(format!("{word} {words}"), found, because, &rule.origin));
            }
        }
    }
    if all.holding(Action::Allow, facts.port).next().is_none() {
        let decides = decided == "Mesh.authorization.default";
        let found = if decides { Outcome::Decided } else { Outcome::TooLate };
        let word = if all.default == Verdict::Allow { "ALLOW" } else { "DENY" };
        let because = format!("no ALLOW policy selects the workload here; the default is {word}");
        steps.push(Step::new("Mesh.authorization.default", found, because, &workload.mesh.origin));
    }
    (steps, outcome.map(|_| ()))
}

/// What a rule lacks.
fn lacking(failed: Failed<'_>, rule: &Rule, caller: &Caller, facts: &Facts<'_>) -> String {
    match failed {
        Failed::From => {
            let who = caller.peer().map_or_else(|| "nobody (plain text)".to_owned(), SpiffeId::principal);
            let wanted: Vec<String> = rule.from.iter().map(source_words).collect();
            let subject =
                caller.request_principal().map(|principal| format!(" with a token of {principal}")).unwrap_or_default();
            format!("the caller is {who}{subject}, not {}", wanted.join(" or "))
        }
        Failed::To => {
            let wanted: Vec<String> = rule.to.iter().map(operation_words).collect();
            format!(
                "the request is {} {}{} on port {}, not {}",
                facts.method,
                facts.authority,
                facts.path,
                facts.port,
                wanted.join(" or ")
            )
        }
        Failed::When(claim) => {
            let name = claim.join(".");
            match caller.claim(claim) {
                Some(value) => format!("the claim {name} is {value}"),
                None => format!("there is no verified claim {name}"),
            }
        }
    }
}

fn words(name: &str, patterns: &[Pattern]) -> Option<String> {
    let texts: Vec<String> = patterns.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| format!("{name} {}", texts.join("|")))
}

fn source_words(source: &equerry_policies::compile::Source) -> String {
    let blocks: Vec<String> = source.ip_blocks.iter().map(|(network, length)| format!("{network}/{length}")).collect();
    let parts = [
        words("principal", &source.principals),
        words("namespace", &source.namespaces),
        words("token of", &source.request_principals),
        (!blocks.is_empty()).then(|| format!("address in {}", blocks.join("|"))),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
}

fn operation_words(operation: &equerry_policies::compile::Operation) -> String {
    let ports: Vec<String> = operation.ports.iter().map(ToString::to_string).collect();
    let parts = [
        words("method", &operation.methods),
        words("path", &operation.paths),
        words("host", &operation.hosts),
        (!ports.is_empty()).then(|| format!("port {}", ports.join("|"))),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
}

/// The tenant a request belongs to, and the quotas that count it.
pub fn tenant(workload: &CompiledWorkload, caller: &Caller, headers: &HeaderMap, port: u16) -> Vec<Step> {
    let Some(tenant) = tenant::which(workload, caller, headers) else {
        return vec![Step::new(
            "tenant",
            Outcome::NoMatch,
            "no claim or trusted header names a tenant",
            &Origin::default(),
        )];
    };
    let mut steps = vec![Step::new(
        format!("Tenant {}", tenant.name),
        Outcome::Decided,
        "the request belongs to it",
        &tenant.origin,
    )];
    for quota in tenant.quotas(port) {
        let because = format!("counted here: {} requests in {:?}", quota.requests, quota.window);
        steps.push(Step::new(format!("quota {}", quota.id), Outcome::Decided, because, &tenant.origin));
    }
    steps
}

#[cfg(test)]
mod tests {
    use equerry_policies::compile;
    use equerry_policies::names::{PolicyName, TrustDomain};
    use equerry_policies::policy::{self, AuthorizationPolicy, AuthorizationRule, Mesh, MtlsMode, StringMatch, Target};
    use equerry_policies::view::{Scoped, WorkloadView};
    use http::Method;

    use super::*;

    fn at(line: u32) -> Origin {
        Origin { file: Some("policies.yaml".to_owned()), line }
    }

    fn workload() -> CompiledWorkload {
        let rule = |principal: &str, method: &str, line| AuthorizationRule {
            from: vec![policy::Source {
                principals: vec![StringMatch::Exact(principal.to_owned())],
                ..policy::Source::default()
            }],
            to: vec![policy::Operation {
                methods: vec![StringMatch::Exact(method.to_owned())],
                ..policy::Operation::default()
            }],
            when: vec![],
            origin: at(line),
        };
        let rules = vec![
            rule("equerry.local/ns/shop/sa/orders", "GET", 10),
            rule("equerry.local/ns/shop/sa/orders", "POST", 20),
        ];
        let callers = AuthorizationPolicy {
            name: PolicyName::parse("shop/inventory-callers").unwrap(),
            target: Target::Namespace,
            action: Action::Allow,
            rules,
            origin: at(5),
        };
        compile::workload(&WorkloadView {
            mesh: Mesh { trust_domain: TrustDomain::parse("equerry.local").ok(), ..Mesh::default() },
            services: vec![],
            peer: MtlsMode::Strict,
            peer_ports: vec![],
            tokens: vec![],
            authorization: vec![Scoped { ports: None, policy: callers }],
            tenants: vec![],
        })
        .unwrap()
    }

    fn told(peer: &str, method: &Method) -> (Vec<(Outcome, String, u32)>, Option<String>) {
        let facts = Facts { method, authority: "inventory", path: "/", port: 8080, peer_ip: [10, 0, 0, 1].into() };
        let (steps, outcome) = authorization(&Caller::assumed(Some(peer), None), &facts, &workload());
        let steps = steps.into_iter().map(|step| (step.outcome, step.because, step.origin.line)).collect();
        (steps, outcome.err().and_then(|refusal| refusal.cause().map(str::to_owned)))
    }

    #[test]
    fn the_rule_that_decides_and_what_the_others_lack_are_named_with_their_lines() {
        let (steps, refused) = told("equerry.local/ns/shop/sa/orders", &Method::POST);
        assert_eq!(refused, None);
        assert_eq!(
            steps[0],
            (Outcome::NoMatch, "the request is POST inventory/ on port 8080, not method GET".to_owned(), 10)
        );
        assert_eq!(steps[1], (Outcome::Decided, "every part of it holds".to_owned(), 20));
    }

    #[test]
    fn a_refusal_is_named_as_the_proxy_names_it() {
        let (steps, refused) = told("equerry.local/ns/shop/sa/frontend", &Method::GET);
        assert_eq!(refused.as_deref(), Some("no rule of shop/inventory-callers matched"));
        let lacking = "the caller is equerry.local/ns/shop/sa/frontend, not principal equerry.local/ns/shop/sa/orders";
        assert!(
            steps.iter().all(|(outcome, because, _)| *outcome == Outcome::NoMatch && because == lacking),
            "{steps:?}"
        );
    }
}
