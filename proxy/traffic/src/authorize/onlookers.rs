//! Policies that look on: AUDIT, whose matches are noted, and shadows, of which is told what they would change.
//!
//! Whatever they see, the outcome is the one that [`super::authorize`] came to without them.

use equerry_policies::compile::{Authorization, CompiledWorkload, RuleId, Turn};
use equerry_policies::names::PolicyName;

use super::{Asked, Connection, Facts, Permit, none_matched, rule_words, same_origin};
use crate::refusal::Refusal;
use crate::token::Caller;

/// What onlooking policies saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Noted {
    /// AUDIT policies that match, each with its first rule in words: `POLICY rules[N]`.
    pub audited: Vec<(PolicyName, String)>,
    /// Every shadow policy that holds on the port, and what enforcing all of them would change by its doing.
    pub shadows: Vec<(PolicyName, Would)>,
    /// What enforcing them would change, and what would decide then, in the words of a refusal.
    pub instead: Option<(Would, String)>,
}

/// What enforcing shadow policies would change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Would {
    /// What passes would be refused.
    Deny,
    /// What is refused would pass.
    Allow,
    /// Nothing.
    ChangeNothing,
}

impl Would {
    /// The metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "would_deny",
            Self::Allow => "would_allow",
            Self::ChangeNothing => "no_change",
        }
    }
}

/// What onlooking policies see in a request whose `outcome` is decided; `None`: there are none.
pub fn note(
    caller: &Caller,
    facts: &Facts<'_>,
    workload: &CompiledWorkload,
    outcome: &Result<Permit, Refusal>,
) -> Option<Box<Noted>> {
    if !workload.authorization.has_onlookers() {
        return None;
    }
    let mut noted = look(&Asked::request(caller, facts, workload), workload, outcome);
    // What a CsrfPolicy refuses stays refused.
    if outcome.is_err() && same_origin(facts, workload).is_err() {
        noted.instead = None;
        noted.shadows.iter_mut().for_each(|(_, would)| *would = Would::ChangeNothing);
    }
    Some(Box::new(noted))
}

/// The same, of a connection.
pub fn note_connection(
    caller: &Caller,
    connection: &Connection<'_>,
    workload: &CompiledWorkload,
    outcome: &Result<Permit, Refusal>,
) -> Option<Box<Noted>> {
    let any = workload.authorization.has_onlookers();
    any.then(|| Box::new(look(&Asked::connection(caller, connection, workload), workload, outcome)))
}

fn look(asked: &Asked<'_>, workload: &CompiledWorkload, outcome: &Result<Permit, Refusal>) -> Noted {
    let all = &workload.authorization;
    let mut audited: Vec<(PolicyName, String)> = Vec::new();
    for id in asked.all_matches(all, Turn::Audit) {
        let rule = all.rule(id);
        let name = &all.policy_of(rule).name;
        if audited.last().is_none_or(|(last, _)| last != name) {
            audited.push((name.clone(), rule_words(all, rule)));
        }
    }
    let instead = instead(asked, all, outcome);
    let blamed = |name: &PolicyName| match &instead {
        Some(instead) if instead.policies.contains(name) => instead.would,
        _ => Would::ChangeNothing,
    };
    let shadows = [Turn::ShadowDeny, Turn::ShadowAllow].into_iter().flat_map(|turn| all.holding(turn, asked.port()));
    let shadows = shadows.map(|policy| (policy.name.clone(), blamed(&policy.name))).collect();
    Noted { audited, shadows, instead: instead.map(|instead| (instead.would, instead.cause)) }
}

/// Another outcome, and whose doing it would be.
struct Instead {
    would: Would,
    cause: String,
    policies: Vec<PolicyName>,
}

/// What would be decided if every shadow policy were enforced, where that is another outcome.
fn instead(asked: &Asked<'_>, all: &Authorization, outcome: &Result<Permit, Refusal>) -> Option<Instead> {
    let by_rule = |would, id: RuleId| {
        let rule = all.rule(id);
        Instead { would, cause: rule_words(all, rule), policies: vec![all.policy_of(rule).name.clone()] }
    };
    match outcome {
        Ok(permit) => {
            if let Some(id) = asked.first_match(all, Turn::ShadowDeny) {
                return Some(by_rule(Would::Deny, id));
            }
            if permit.by.is_some() || asked.first_match(all, Turn::ShadowAllow).is_some() {
                return None;
            }
            // It passed because no ALLOW policy selects the workload here; a shadow would be the first.
            let policies: Vec<PolicyName> =
                all.holding(Turn::ShadowAllow, asked.port()).map(|policy| policy.name.clone()).collect();
            let cause = none_matched(&policies);
            (!policies.is_empty()).then_some(Instead { would: Would::Deny, cause, policies })
        }
        Err(_) => {
            let denied = asked.first_match(all, Turn::Deny).or_else(|| asked.first_match(all, Turn::ShadowDeny));
            // The mesh's default stands back where an ALLOW policy selects the workload; both refuse what no rule matches.
            let allowed = asked.first_match(all, Turn::ShadowAllow).filter(|_| denied.is_none());
            allowed.map(|id| by_rule(Would::Allow, id))
        }
    }
}
