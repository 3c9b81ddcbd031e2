//! Authorization rules, indexed by who speaks and where they go, so that a request meets only rules that might match.
//!
//! A rule is listed under the exact principals, namespaces or request principals it asks for, and there under the first
//! segments of its paths; what asks for neither is met by everybody. The index never decides: it leaves out only
//! rules that cannot match, and keeps the order in which they were written.

use std::collections::HashMap;
use std::net::IpAddr;

use super::in_scope;
use super::text::Pattern;
use super::tokens::{ClaimPath, path};
use crate::names::{PolicyName, SpiffeId};
use crate::policy::{self, Action, AuthorizationPolicy, Origin, StringMatch, Verdict};
use crate::view::Scoped;

/// Who may do what at a workload.
#[derive(Debug, Clone)]
pub struct Authorization {
    /// What holds where no ALLOW policy does.
    pub default: Verdict,
    policies: Vec<Policy>,
    rules: Vec<Rule>,
    deny: Index,
    allow: Index,
}

/// One policy.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The document.
    pub name: PolicyName,
    /// What its rules decide.
    pub action: Action,
    /// Where it was written.
    pub origin: Origin,
    ports: Option<Vec<u16>>,
}

/// One rule of a policy: its three parts must hold together; an empty part holds always.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Any one of these sources.
    pub from: Vec<Source>,
    /// Any one of these operations.
    pub to: Vec<Operation>,
    /// All of these claims: the claim, and what it must be.
    pub when: Vec<(ClaimPath, Vec<Pattern>)>,
    /// Its place in its policy, counted from 0.
    pub number: u32,
    /// Where it was written.
    pub origin: Origin,
    policy: u32,
}

/// Who speaks. Each list that is not empty must hold; in a list, any one value.
#[derive(Debug, Clone)]
pub struct Source {
    /// The peer's principal, without `spiffe://`.
    pub principals: Vec<Pattern>,
    /// The namespace of the peer's identity.
    pub namespaces: Vec<Pattern>,
    /// `issuer/subject` of the verified token.
    pub request_principals: Vec<Pattern>,
    /// The address of the direct peer: network and prefix length.
    pub ip_blocks: Vec<(IpAddr, u8)>,
}

/// What is done. Each list that is not empty must hold; in a list, any one value.
#[derive(Debug, Clone)]
pub struct Operation {
    /// The authority in lower case, with or without its port.
    pub hosts: Vec<Pattern>,
    /// The method.
    pub methods: Vec<Pattern>,
    /// The path.
    pub paths: Vec<Pattern>,
    /// The application's port.
    pub ports: Vec<u16>,
}

/// Names a rule of one [`Authorization`]; grows in the order in which rules were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleId(u32);

/// Lists of rules that might match a request, each in the order written.
pub type Candidates<'a> = [&'a [RuleId]; 8];

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

    /// The policies of that action that hold on the application port `port`.
    pub fn holding(&self, action: Action, port: u16) -> impl Iterator<Item = &Policy> {
        self.policies.iter().filter(move |policy| policy.action == action && policy.holds_on(port))
    }

    /// The rules of policies of `action` that might match a request from `peer` with a token of `request_principal`
    /// (`issuer/subject`) for `path`. Rules left out cannot match; rules listed may still not, and may not hold on
    /// its port.
    pub fn candidates(
        &self,
        action: Action,
        peer: Option<&SpiffeId>,
        request_principal: Option<&str>,
        path: &str,
    ) -> Candidates<'_> {
        let index = match action {
            Action::Allow => &self.allow,
            Action::Deny => &self.deny,
        };
        let segment = first_segment(path);
        let mut lists: Candidates<'_> = [&[]; 8];
        let by_principal = peer.and_then(|peer| index.principals.get(peer));
        let by_namespace = peer.and_then(|peer| index.namespaces.get(peer.namespace.as_str()));
        let by_request_principal = request_principal.and_then(|principal| index.request_principals.get(principal));
        for (place, paths) in
            [Some(&index.anybody), by_principal, by_namespace, by_request_principal].into_iter().enumerate()
        {
            let Some(paths) = paths else { continue };
            lists[place * 2] = &paths.anywhere;
            if let Some(found) = segment.and_then(|segment| paths.segments.get(segment)) {
                lists[place * 2 + 1] = found;
            }
        }
        lists
    }

    pub(super) fn compile(from: &[Scoped<AuthorizationPolicy>], default: Verdict) -> Self {
        let mut all =
            Self { default, policies: Vec::new(), rules: Vec::new(), deny: Index::default(), allow: Index::default() };
        for Scoped { ports, policy } in from {
            let place = u32::try_from(all.policies.len()).unwrap_or(u32::MAX);
            all.policies.push(Policy {
                name: policy.name.clone(),
                action: policy.action,
                origin: policy.origin.clone(),
                ports: ports.clone(),
            });
            for (number, rule) in (0..).zip(&policy.rules) {
                let id = RuleId(u32::try_from(all.rules.len()).unwrap_or(u32::MAX));
                match policy.action {
                    Action::Allow => all.allow.add(id, rule),
                    Action::Deny => all.deny.add(id, rule),
                }
                all.rules.push(Rule::compile(rule, number, place));
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
    fn compile(from: &policy::AuthorizationRule, number: u32, policy: u32) -> Self {
        let patterns = |matches: &[StringMatch]| matches.iter().map(Pattern::new).collect::<Vec<_>>();
        Self {
            from: from
                .from
                .iter()
                .map(|source| Source {
                    principals: patterns(&source.principals),
                    namespaces: patterns(&source.namespaces),
                    request_principals: patterns(&source.request_principals),
                    ip_blocks: source.ip_blocks.clone(),
                })
                .collect(),
            to: from
                .to
                .iter()
                .map(|operation| Operation {
                    hosts: operation.hosts.iter().map(Pattern::lower_case).collect(),
                    methods: patterns(&operation.methods),
                    paths: patterns(&operation.paths),
                    ports: operation.ports.clone(),
                })
                .collect(),
            when: from.when.iter().map(|condition| (path(&condition.claim), patterns(&condition.values))).collect(),
            number,
            origin: from.origin.clone(),
            policy,
        }
    }
}

/// Rules of one action, by who speaks.
#[derive(Debug, Clone, Default)]
struct Index {
    anybody: Paths,
    principals: HashMap<SpiffeId, Paths>,
    namespaces: HashMap<Box<str>, Paths>,
    request_principals: HashMap<Box<str>, Paths>,
}

/// Rules by the first segment of the path.
#[derive(Debug, Clone, Default)]
struct Paths {
    anywhere: Vec<RuleId>,
    segments: HashMap<Box<str>, Vec<RuleId>>,
}

impl Index {
    fn add(&mut self, id: RuleId, rule: &policy::AuthorizationRule) {
        let anybody = [policy::Source::default()];
        let anything = [policy::Operation::default()];
        let sources = if rule.from.is_empty() { &anybody[..] } else { &rule.from };
        let operations = if rule.to.is_empty() { &anything[..] } else { &rule.to };
        for source in sources {
            for operation in operations {
                let segments = segments(&operation.paths);
                self.each(source, |paths| paths.add(id, segments.as_deref()));
            }
        }
    }

    /// Every place where a rule with this source must be listed.
    fn each(&mut self, source: &policy::Source, mut list: impl FnMut(&mut Paths)) {
        if let Some(exact) = all_exact(&source.principals) {
            // A text that is no SPIFFE id of this mesh's form is nobody's principal.
            for principal in exact.iter().filter_map(|text| SpiffeId::parse(&format!("spiffe://{text}")).ok()) {
                list(self.principals.entry(principal).or_default());
            }
        } else if let Some(exact) = all_exact(&source.namespaces) {
            for namespace in exact {
                list(self.namespaces.entry(namespace.into()).or_default());
            }
        } else if let Some(exact) = all_exact(&source.request_principals) {
            for principal in exact {
                list(self.request_principals.entry(principal.into()).or_default());
            }
        } else {
            list(&mut self.anybody);
        }
    }
}

impl Paths {
    fn add(&mut self, id: RuleId, segments: Option<&[&str]>) {
        let add = |list: &mut Vec<RuleId>| {
            // Ids only grow, so a rule already listed here is the last one.
            if list.last() != Some(&id) {
                list.push(id);
            }
        };
        match segments {
            None => add(&mut self.anywhere),
            Some(segments) => {
                for segment in segments {
                    add(self.segments.entry((*segment).into()).or_default());
                }
            }
        }
    }
}

/// The exact texts, when there are some and nothing else.
fn all_exact(matches: &[StringMatch]) -> Option<Vec<&str>> {
    let exact = |one: &'_ StringMatch| matches!(one, StringMatch::Exact(_));
    (!matches.is_empty() && matches.iter().all(exact)).then(|| {
        matches
            .iter()
            .filter_map(|one| if let StringMatch::Exact(text) = one { Some(text.as_str()) } else { None })
            .collect()
    })
}

/// The first segments of all paths that could match, when each match names one whole.
fn segments(paths: &[StringMatch]) -> Option<Vec<&str>> {
    fn named(one: &StringMatch) -> Option<&str> {
        match one {
            StringMatch::Exact(text) => first_segment(text),
            StringMatch::Prefix(text) => first_segment(text).filter(|segment| text.len() > segment.len() + 1),
            StringMatch::Present | StringMatch::Suffix(_) => None,
        }
    }
    if paths.is_empty() { None } else { paths.iter().map(named).collect() }
}

fn first_segment(path: &str) -> Option<&str> {
    path.strip_prefix('/').map(|rest| rest.split('/').next().unwrap_or_default())
}
