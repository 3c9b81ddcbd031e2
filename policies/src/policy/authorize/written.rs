//! How authorization is written down for proxies. What the first version knew keeps its form; what came later takes forms that it
//! refuses: an action it has never heard of, a rule without the parts it looks for. A proxy that is older than its control plane
//! then keeps the policy it had, instead of enforcing half of a new one.

use serde::{Deserialize, Serialize};

use super::super::{Origin, Target};
use super::{Action, Attribute, AuthorizationPolicy, AuthorizationRule, Condition, Operation, Source, StringMatch};
use crate::names::PolicyName;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Policy {
    name: PolicyName,
    target: Target,
    action: Word,
    rules: Vec<AuthorizationRule>,
    origin: Origin,
}

/// Action and mode in one word.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Word {
    Allow,
    Deny,
    Audit,
    ShadowAllow,
    ShadowDeny,
}

impl From<AuthorizationPolicy> for Policy {
    fn from(policy: AuthorizationPolicy) -> Self {
        let action = match (policy.action, policy.shadow) {
            (Action::Allow, false) => Word::Allow,
            (Action::Deny, false) => Word::Deny,
            (Action::Audit, _) => Word::Audit,
            (Action::Allow, true) => Word::ShadowAllow,
            (Action::Deny, true) => Word::ShadowDeny,
        };
        Self { name: policy.name, target: policy.target, action, rules: policy.rules, origin: policy.origin }
    }
}

impl From<Policy> for AuthorizationPolicy {
    fn from(written: Policy) -> Self {
        let (action, shadow) = match written.action {
            Word::Allow => (Action::Allow, false),
            Word::Deny => (Action::Deny, false),
            Word::Audit => (Action::Audit, false),
            Word::ShadowAllow => (Action::Allow, true),
            Word::ShadowDeny => (Action::Deny, true),
        };
        Self {
            name: written.name,
            target: written.target,
            action,
            shadow,
            rules: written.rules,
            origin: written.origin,
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Rule {
    /// What every version understands.
    First { from: Vec<Source>, to: Vec<Operation>, when: Vec<Claim>, origin: Origin },
    /// What the first version would misunderstand.
    Later { later: Parts, origin: Origin },
}

/// The first version's only condition.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Claim {
    claim: Vec<String>,
    values: Vec<StringMatch>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Parts {
    from: Vec<Source>,
    to: Vec<Operation>,
    when: Vec<Condition>,
}

impl From<AuthorizationRule> for Rule {
    fn from(rule: AuthorizationRule) -> Self {
        let AuthorizationRule { from, to, when, origin } = rule;
        let claims: Option<Vec<Claim>> = when.iter().map(claim).collect();
        match claims {
            Some(when) if from.iter().all(of_first_source) && to.iter().all(of_first_operation) => {
                Self::First { from, to, when, origin }
            }
            _ => Self::Later { later: Parts { from, to, when }, origin },
        }
    }
}

impl From<Rule> for AuthorizationRule {
    fn from(written: Rule) -> Self {
        match written {
            Rule::First { from, to, when, origin } => {
                let condition = |one: Claim| Condition::Text {
                    of: Attribute::Claim(one.claim),
                    values: one.values,
                    not_values: Vec::new(),
                };
                Self { from, to, when: when.into_iter().map(condition).collect(), origin }
            }
            Rule::Later { later: Parts { from, to, when }, origin } => Self { from, to, when, origin },
        }
    }
}

/// The condition as the first version knew it, if it did.
fn claim(condition: &Condition) -> Option<Claim> {
    match condition {
        Condition::Text { of: Attribute::Claim(claim), values, not_values } if not_values.is_empty() => {
            Some(Claim { claim: claim.clone(), values: values.clone() })
        }
        _ => None,
    }
}

/// Whether it asks nothing that came after the first version.
fn of_first_source(source: &Source) -> bool {
    let Source { principals, namespaces, request_principals, ip_blocks, .. } = source.clone();
    *source == Source { principals, namespaces, request_principals, ip_blocks, ..Source::default() }
}

/// Whether it asks nothing that came after the first version.
fn of_first_operation(operation: &Operation) -> bool {
    let Operation { hosts, methods, paths, ports, .. } = operation.clone();
    let template = |one: &StringMatch| matches!(one, StringMatch::Template(_));
    !paths.iter().any(template) && *operation == Operation { hosts, methods, paths, ports, ..Operation::default() }
}

#[cfg(test)]
mod tests {
    use super::super::PathTemplate;
    use super::*;

    /// A rule as a program of the first version reads it.
    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only whether it can be read is asked")]
    struct FirstRule {
        from: Vec<Source>,
        to: Vec<Operation>,
        when: Vec<Claim>,
        origin: Origin,
    }

    fn rule(from: Source, to: Operation, when: Vec<Condition>) -> AuthorizationRule {
        AuthorizationRule { from: vec![from], to: vec![to], when, origin: Origin::default() }
    }

    fn text(of: Attribute, not_values: Vec<StringMatch>) -> Condition {
        Condition::Text { of, values: vec![StringMatch::Present], not_values }
    }

    #[test]
    fn a_rule_is_read_as_it_was_written_and_an_older_program_reads_only_what_it_would_enforce_wholly() {
        let plain = Source { principals: vec![StringMatch::Present], ..Source::default() };
        let get = Operation { methods: vec![StringMatch::Exact("GET".to_owned())], ..Operation::default() };
        let claim = Attribute::Claim(vec!["role".to_owned()]);
        let template = StringMatch::Template(PathTemplate::parse("/a/{*}").unwrap());
        let cases = [
            (true, rule(plain.clone(), get.clone(), vec![text(claim.clone(), vec![])])),
            (true, AuthorizationRule { from: vec![], to: vec![], when: vec![], origin: Origin::default() }),
            (false, rule(plain.clone(), get.clone(), vec![text(claim, vec![StringMatch::Present])])),
            (false, rule(plain.clone(), get.clone(), vec![text(Attribute::Sni, vec![])])),
            (false, rule(Source { not_namespaces: vec![StringMatch::Present], ..plain.clone() }, get.clone(), vec![])),
            (false, rule(plain.clone(), Operation { not_ports: vec![80], ..get.clone() }, vec![])),
            (false, rule(plain, Operation { paths: vec![template], ..get }, vec![])),
        ];
        for (known_to_the_first, rule) in cases {
            let bytes = serde_json::to_string(&rule).unwrap();
            assert_eq!(serde_json::from_str::<AuthorizationRule>(&bytes).unwrap(), rule, "{bytes}");
            assert_eq!(serde_json::from_str::<FirstRule>(&bytes).is_ok(), known_to_the_first, "{bytes}");
        }
    }

    #[test]
    fn action_and_mode_are_one_word_that_older_programs_know_or_refuse() {
        let policy = |action, shadow| AuthorizationPolicy {
            name: PolicyName::parse("shop/a").unwrap(),
            target: Target::Namespace,
            action,
            shadow,
            rules: vec![],
            origin: Origin::default(),
        };
        for (action, shadow, word) in [
            (Action::Allow, false, "ALLOW"),
            (Action::Deny, false, "DENY"),
            (Action::Audit, false, "AUDIT"),
            (Action::Allow, true, "SHADOW_ALLOW"),
            (Action::Deny, true, "SHADOW_DENY"),
        ] {
            let bytes = serde_json::to_value(policy(action, shadow)).unwrap();
            assert_eq!(bytes["action"], word);
            assert_eq!(serde_json::from_value::<AuthorizationPolicy>(bytes).unwrap(), policy(action, shadow));
        }
    }
}
