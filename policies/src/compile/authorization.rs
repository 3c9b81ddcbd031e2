//! Authorization rules, indexed by who speaks and where they go, so that a request meets only rules that might match.
//!
//! A rule is listed under the exact principals, accounts, namespaces or request principals it asks for, and there under the
//! first segments of its paths; what asks for none of them is met by everybody. The index keeps the order in which rules were written.

mod index;
mod predicate;

use index::Index;

use super::in_scope;
use crate::complaint::Complaint;
use crate::names::{PolicyName, SpiffeId};
use crate::policy::{self, Action, AuthorizationPolicy, Origin, Verdict};
use crate::view::Scoped;

pub use index::Candidates;
pub use predicate::{Predicate, TokenPattern, Values};

/// Who may do what at a workload.
#[derive(Debug, Clone)]
pub struct Authorization {
    /// What holds where no ALLOW policy does.
    pub default: Verdict,
    policies: Vec<Policy>,
    rules: Vec<Rule>,
    /// By [`Turn`].
    indexes: [Index; Turn::ALL.len()],
    onlookers: bool,
}

/// When the rules of a policy are asked: those of one turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// First.
    Deny,
    /// Second.
    Allow,
    /// Only to be noted.
    Audit,
    /// As [`Turn::Deny`] would be, were it enforced.
    ShadowDeny,
    /// As [`Turn::Allow`] would be, were it enforced.
    ShadowAllow,
}

impl Turn {
    /// Every turn, in the order in which they are told.
    pub const ALL: [Self; 5] = [Self::Deny, Self::Allow, Self::Audit, Self::ShadowDeny, Self::ShadowAllow];

    /// In words: the action as it is written, and whether it is a shadow.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "DENY",
            Self::Allow => "ALLOW",
            Self::Audit => "AUDIT",
            Self::ShadowDeny => "shadow DENY",
            Self::ShadowAllow => "shadow ALLOW",
        }
    }

    /// What a matching rule decides, or would decide.
    pub fn action(self) -> Action {
        match self {
            Self::Deny | Self::ShadowDeny => Action::Deny,
            Self::Allow | Self::ShadowAllow => Action::Allow,
            Self::Audit => Action::Audit,
        }
    }

    fn of(policy: &AuthorizationPolicy) -> Self {
        match (policy.action, policy.shadow) {
            (Action::Deny, false) => Self::Deny,
            (Action::Allow, false) => Self::Allow,
            (Action::Audit, _) => Self::Audit,
            (Action::Deny, true) => Self::ShadowDeny,
            (Action::Allow, true) => Self::ShadowAllow,
        }
    }
}

/// One policy.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The document.
    pub name: PolicyName,
    /// When its rules are asked.
    pub turn: Turn,
    /// Where it was written.
    pub origin: Origin,
    ports: Option<Vec<u16>>,
}

/// One rule of a policy: its three parts must hold together; an empty part holds always.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Any one of these sources, each all of what it asks.
    pub from: Vec<Vec<Predicate>>,
    /// Any one of these operations, each all of what it asks.
    pub to: Vec<Vec<Predicate>>,
    /// All of these.
    pub when: Vec<Predicate>,
    /// Its place in its policy, counted from 0.
    pub number: u32,
    /// Where it was written.
    pub origin: Origin,
    policy: u32,
    about_http: bool,
}

/// Names a rule of one [`Authorization`]; grows in the order in which rules were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleId(u32);

impl Authorization {
    /// Every policy that selects the workload, in the order of their names.
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// The rule of that id.
    pub fn rule(&self, id: RuleId) -> &Rule {
        &self.rules[id.0 as usize]
    }

    /// The policy that a rule belongs to.
    pub fn policy_of(&self, rule: &Rule) -> &Policy {
        &self.policies[rule.policy as usize]
    }

    /// Every rule, in the order written.
    pub fn rules(&self) -> impl Iterator<Item = (RuleId, &Rule)> {
        (0..).map(RuleId).zip(&self.rules)
    }

    /// The policies of that turn that hold on the application port `port`.
    pub fn holding(&self, turn: Turn, port: u16) -> impl Iterator<Item = &Policy> {
        self.policies.iter().filter(move |policy| policy.turn == turn && policy.holds_on(port))
    }

    /// Whether some policy asks to be told of and not enforced: AUDIT, or a shadow.
    pub fn has_onlookers(&self) -> bool {
        self.onlookers
    }

    /// Whether any rule is asked in `turn`.
    pub fn asks(&self, turn: Turn) -> bool {
        self.indexes[turn as usize].asks()
    }

    /// The rules of `turn` that might match a request from `peer` with a token of `request_principal` (`issuer/subject`) for
    /// `path`. Rules left out cannot match; rules listed may still not, and may not hold on its port.
    pub fn candidates(
        &self,
        turn: Turn,
        peer: Option<&SpiffeId>,
        request_principal: Option<&str>,
        path: &str,
    ) -> Candidates<'_> {
        self.indexes[turn as usize].candidates(peer, request_principal, path)
    }

    pub(super) fn compile(
        from: &[Scoped<AuthorizationPolicy>],
        default: Verdict,
        complaints: &mut Vec<Complaint>,
    ) -> Self {
        let (policies, rules) = (Vec::new(), Vec::new());
        let mut all = Self { default, policies, rules, indexes: Default::default(), onlookers: false };
        for Scoped { ports, policy } in from {
            let place = u32::try_from(all.policies.len()).unwrap_or(u32::MAX);
            let turn = Turn::of(policy);
            all.onlookers |= !matches!(turn, Turn::Deny | Turn::Allow);
            all.policies.push(Policy {
                name: policy.name.clone(),
                turn,
                origin: policy.origin.clone(),
                ports: ports.clone(),
            });
            for (number, rule) in (0..).zip(&policy.rules) {
                let id = RuleId(u32::try_from(all.rules.len()).unwrap_or(u32::MAX));
                all.indexes[turn as usize].add(id, rule);
                all.rules.push(Rule::compile(rule, number, place, complaints));
            }
        }
        all
    }
}

impl Policy {
    /// Whether it holds on the application port `port`.
    pub fn holds_on(&self, port: u16) -> bool {
        in_scope(self.ports.as_deref(), port)
    }
}

impl Rule {
    /// Whether some part of it asks about what only an HTTP request has.
    pub fn about_http(&self) -> bool {
        self.about_http
    }

    fn compile(from: &policy::AuthorizationRule, number: u32, policy: u32, complaints: &mut Vec<Complaint>) -> Self {
        let mut when = Vec::new();
        for condition in &from.when {
            when.extend(predicate::of_condition(condition, &from.origin, complaints));
        }
        let mut rule = Self {
            from: from.from.iter().map(predicate::of_source).collect(),
            to: from.to.iter().map(predicate::of_operation).collect(),
            when,
            number,
            origin: from.origin.clone(),
            policy,
            about_http: false,
        };
        let parts = rule.from.iter().chain(&rule.to).flatten().chain(&rule.when);
        rule.about_http = parts.into_iter().any(Predicate::about_http);
        rule
    }
}
