//! The same decisions in words, for people: each step with what it looked at, how it came out, and where that was written.
//!
//! Nothing is decided here a second time: the steps walk the same compiled values with the same predicates, and the
//! outcome is that of the deciding function itself.

mod balance;
mod callee;
mod routes;
mod verdict;

use std::time::SystemTime;

use equerry_policies::compile::{CompiledWorkload, Policy, Predicate, Turn};
use equerry_policies::names::SpiffeId;
use equerry_policies::policy::{self, Origin};
use http::header::HeaderMap;
use serde::{Deserialize, Serialize};

use crate::authorize::{
    self, Asked, Connection, Facts, Failed, Noted, Permit, Would, authorize, authorize_connection, rule_words,
};
use crate::csrf;
use crate::refusal::Refusal;
use crate::tenant;
use crate::token::{self, Caller, Shown};

pub use balance::{balancer, health};
pub use callee::{Coming, callee, mode};
pub use routes::{connect, route};
pub use verdict::{Callee, Explanation, Sidecar, Stage, Verdict};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// It fits, and nothing of it is enforced.
    Noted,
}

impl Step {
    fn new(subject: impl Into<String>, outcome: Outcome, because: impl Into<String>, origin: &Origin) -> Self {
        Self { subject: subject.into(), outcome, because: because.into(), origin: origin.clone() }
    }
}

/// The token's decision. Claim headers are stripped and set in what is `shown`, and the token taken out, as the proxy does.
pub fn token(
    workload: &CompiledWorkload,
    port: u16,
    shown: Shown<'_>,
    peer: Option<&SpiffeId>,
    now: SystemTime,
) -> (Vec<Step>, Result<Caller, Refusal>) {
    let outcome = token::verify(workload, port, shown, peer, now);
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

/// Authorization's decision, each rule of each policy that selects the workload: DENY first, then ALLOW, then those that look
/// on.
pub fn authorization(
    caller: &Caller,
    facts: &Facts<'_>,
    workload: &CompiledWorkload,
) -> (Vec<Step>, Result<(), Refusal>) {
    let outcome = authorize(caller, facts, workload);
    let noted = authorize::note(caller, facts, workload, &outcome);
    let judged = Judged { asked: Asked::request(caller, facts, workload), workload, outcome, noted };
    let mut steps = judged.steps();
    for policy in &workload.csrf {
        let words = csrf::words(policy);
        let (found, because) = if policy.holds_on(facts.connection.port) {
            let whence = csrf::whence(policy, facts.method, facts.authority, facts.headers);
            let decided = judged.outcome.as_ref().err().and_then(Refusal::cause) == Some(&words);
            (if decided { Outcome::Decided } else { Outcome::NoMatch }, whence.as_str().to_owned())
        } else {
            (Outcome::NotHere, format!("it does not hold on port {}", facts.connection.port))
        };
        steps.push(Step::new(words, found, because, &policy.origin));
    }
    (steps, judged.outcome.map(|_| ()))
}

/// The same, of a connection in whose bytes nobody looks for requests.
pub fn connection(
    caller: &Caller,
    connection: &Connection<'_>,
    workload: &CompiledWorkload,
) -> (Vec<Step>, Result<(), Refusal>) {
    let outcome = authorize_connection(caller, connection, workload);
    let noted = authorize::note_connection(caller, connection, workload, &outcome);
    let judged = Judged { asked: Asked::connection(caller, connection, workload), workload, outcome, noted };
    (judged.steps(), judged.outcome.map(|_| ()))
}

/// What authorization decided, to be told rule by rule.
struct Judged<'a> {
    asked: Asked<'a>,
    workload: &'a CompiledWorkload,
    outcome: Result<Permit, Refusal>,
    noted: Option<Box<Noted>>,
}

impl Judged<'_> {
    fn steps(&self) -> Vec<Step> {
        let all = &self.workload.authorization;
        let decided = match &self.outcome {
            Ok(permit) => permit.cause(self.workload),
            Err(refusal) => refusal.cause().unwrap_or_default().to_owned(),
        };
        let mut steps = Vec::new();
        for turn in Turn::ALL {
            for policy in all.policies().iter().filter(|policy| policy.turn == turn) {
                self.policy(policy, &decided, &mut steps);
            }
        }
        if all.holding(Turn::Allow, self.asked.port()).next().is_none() {
            let decides = decided == "Mesh.authorization.default";
            let found = if decides { Outcome::Decided } else { Outcome::TooLate };
            let word = if all.default == policy::Verdict::Allow { "ALLOW" } else { "DENY" };
            let because = format!("no ALLOW policy selects the workload here; the default is {word}");
            steps.push(Step::new("Mesh.authorization.default", found, because, &self.workload.mesh.origin));
        }
        if let Some((would, cause)) = self.noted.as_ref().and_then(|noted| noted.instead.as_ref()) {
            let because = format!("{} if it were enforced", would_words(*would));
            steps.push(Step::new(format!("shadow {cause}"), Outcome::Noted, because, &Origin::default()));
        }
        steps
    }

    /// The rules of one policy.
    fn policy(&self, policy: &Policy, decided: &str, steps: &mut Vec<Step>) {
        let all = &self.workload.authorization;
        let (word, port) = (policy.turn.as_str(), self.asked.port());
        let mut rules = all
            .rules()
            .filter(|(_, rule)| {
                let of = all.policy_of(rule);
                of.name == policy.name && of.turn == policy.turn
            })
            .peekable();
        if rules.peek().is_none() {
            let because = "it has no rules, so nothing matches";
            steps.push(Step::new(format!("{word} {}", policy.name), Outcome::NoMatch, because, &policy.origin));
        }
        for (_, rule) in rules {
            let words = rule_words(all, rule);
            let (found, because) = if !policy.holds_on(port) {
                (Outcome::NotHere, format!("it does not hold on port {port}"))
            } else {
                match (self.asked.missing(rule, policy.turn.action()), policy.turn) {
                    (Some(failed), _) => (Outcome::NoMatch, lacking(failed, &self.asked)),
                    (None, Turn::Audit) => (Outcome::Noted, "every part of it holds; it is noted".to_owned()),
                    (None, Turn::ShadowDeny | Turn::ShadowAllow) => {
                        (Outcome::Noted, "every part of it holds; nothing of it is enforced".to_owned())
                    }
                    (None, _) if words == decided => (Outcome::Decided, "every part of it holds".to_owned()),
                    (None, _) => (Outcome::TooLate, "every part of it holds, but another rule decided".to_owned()),
                }
            };
            steps.push(Step::new(format!("{word} {words}"), found, because, &rule.origin));
        }
    }
}

fn would_words(would: Would) -> &'static str {
    match would {
        Would::Deny => "the request would be refused",
        Would::Allow => "the request would pass",
        Would::ChangeNothing => "nothing would change",
    }
}

/// What a rule lacks.
fn lacking(failed: Failed<'_>, asked: &Asked<'_>) -> String {
    match failed {
        Failed::NotHttp => "it asks about HTTP, which nobody looks for on this port".to_owned(),
        Failed::From(parts) | Failed::To(parts) => {
            let each = parts.iter().filter_map(|part| asked.first_failing(part));
            let mut words: Vec<String> = each.map(|predicate| unlike(predicate, asked)).collect();
            words.dedup();
            words.join("; and ")
        }
        Failed::When(predicate) => unlike(predicate, asked),
    }
}

/// How what there is differs from what a predicate asks for: `the method is GET, not POST`.
fn unlike(predicate: &Predicate, asked: &Asked<'_>) -> String {
    let (subject, found) = (predicate.subject(), asked.found(predicate));
    let (any, none) = predicate.wanted();
    match (found.is_empty(), none.is_empty()) {
        (true, _) => format!("there is no {subject}, and it must be {}", any.join(" or ")),
        (false, true) => format!("the {subject} is {}, not {}", found.join(", "), any.join(" or ")),
        (false, false) if any.is_empty() => {
            format!("the {subject} is {}, and must not be {}", found.join(", "), none.join(" or "))
        }
        (false, false) => {
            let (any, none) = (any.join(" or "), none.join(" or "));
            format!("the {subject} is {}, and must be {any} but not {none}", found.join(", "))
        }
    }
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
    use equerry_policies::policy::{
        Action, AuthorizationPolicy, AuthorizationRule, Mesh, MtlsMode, StringMatch, Target,
    };
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
            shadow: false,
            rules,
            origin: at(5),
        };
        compile::workload(&WorkloadView {
            mesh: Mesh { trust_domain: TrustDomain::parse("equerry.local").ok(), ..Mesh::default() },
            services: vec![],
            peer: MtlsMode::Strict,
            peer_ports: vec![],
            plain_only: false,
            plain_only_ports: Vec::new(),
            tokens: vec![],
            authorization: vec![Scoped { ports: None, policy: callers }],
            csrf: vec![],
            trusted_hops: vec![],
            tenants: vec![],
        })
        .unwrap()
    }

    fn told(peer: &str, method: &Method) -> (Vec<(Outcome, String, u32)>, Option<String>) {
        let connection = Connection { port: 8080, peer_ip: [10, 0, 0, 1].into(), local_ip: None, sni: None };
        let facts = Facts { method, authority: "inventory", path: "/", headers: &HeaderMap::new(), connection };
        let (steps, outcome) = authorization(&Caller::assumed(Some(peer), None), &facts, &workload());
        let steps = steps.into_iter().map(|step| (step.outcome, step.because, step.origin.line)).collect();
        (steps, outcome.err().and_then(|refusal| refusal.cause().map(str::to_owned)))
    }

    #[test]
    fn the_rule_that_decides_and_what_the_others_lack_are_named_with_their_lines() {
        let (steps, refused) = told("equerry.local/ns/shop/sa/orders", &Method::POST);
        assert_eq!(refused, None);
        assert_eq!(steps[0], (Outcome::NoMatch, "the method is POST, not GET".to_owned(), 10));
        assert_eq!(steps[1], (Outcome::Decided, "every part of it holds".to_owned(), 20));
    }

    #[test]
    fn a_refusal_is_named_as_the_proxy_names_it() {
        let (steps, refused) = told("equerry.local/ns/shop/sa/frontend", &Method::GET);
        assert_eq!(refused.as_deref(), Some("no rule of shop/inventory-callers matched"));
        let lacking = "the principal is equerry.local/ns/shop/sa/frontend, not equerry.local/ns/shop/sa/orders";
        assert!(
            steps.iter().all(|(outcome, because, _)| *outcome == Outcome::NoMatch && because == lacking),
            "{steps:?}"
        );
    }
}
