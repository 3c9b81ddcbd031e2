//! Which rules might match a request, by who speaks and the first segment of the path.
//!
//! The index never decides: it leaves out only rules that cannot match. What a rule excludes narrows it further and is not looked
//! at here.

use super::RuleId;
use crate::names::{AccountName, SpiffeId};
use crate::policy::{self, Condition, StringMatch};
use crate::quick::Quick;

/// Lists of rules that might match a request, each in the order written.
pub type Candidates<'a> = [&'a [RuleId]; 10];

/// Rules that are asked together, by who speaks.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    anybody: Paths,
    principals: Quick<SpiffeId, Paths>,
    accounts: Quick<AccountName, Paths>,
    namespaces: Quick<Box<str>, Paths>,
    request_principals: Quick<Box<str>, Paths>,
    /// Any of them leads to a rule.
    any: bool,
}

/// Rules by the first segment of the path.
#[derive(Debug, Clone, Default)]
struct Paths {
    anywhere: Vec<RuleId>,
    segments: Quick<Box<str>, Vec<RuleId>>,
}

impl Index {
    /// Whether it leads to any rule.
    pub(super) fn asks(&self) -> bool {
        self.any
    }

    pub(super) fn candidates(
        &self,
        peer: Option<&SpiffeId>,
        request_principal: Option<&str>,
        path: &str,
    ) -> Candidates<'_> {
        let segment = first_segment(path);
        let mut lists: Candidates<'_> = [&[]; 10];
        let by_principal = peer.and_then(|peer| self.principals.get(peer));
        let by_account =
            peer.filter(|_| !self.accounts.is_empty()).and_then(|peer| self.accounts.get(&peer.account_name()));
        let by_namespace = peer.and_then(|peer| self.namespaces.get(peer.namespace.as_str()));
        let by_request_principal = request_principal.and_then(|principal| self.request_principals.get(principal));
        let places = [Some(&self.anybody), by_principal, by_account, by_namespace, by_request_principal];
        for (place, paths) in places.into_iter().enumerate() {
            let Some(paths) = paths else { continue };
            lists[place * 2] = &paths.anywhere;
            if let Some(found) = segment.and_then(|segment| paths.segments.get(segment)) {
                lists[place * 2 + 1] = found;
            }
        }
        lists
    }

    pub(super) fn add(&mut self, id: RuleId, rule: &policy::AuthorizationRule) {
        self.any = true;
        let anybody = [policy::Source::default()];
        let anything = [policy::Operation::default()];
        let condition = rule.when.iter().find_map(|condition| match condition {
            Condition::Source(source) => Some(std::slice::from_ref(&**source)),
            _ => None,
        });
        let sources = if rule.from.is_empty() { condition.unwrap_or(&anybody) } else { &rule.from };
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
        } else if !source.service_accounts.is_empty() {
            for account in &source.service_accounts {
                list(self.accounts.entry(account.clone()).or_default());
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
            StringMatch::Template(template) => first_segment(template.as_str()).filter(|first| !first.contains('{')),
            StringMatch::Present | StringMatch::Suffix(_) => None,
        }
    }
    if paths.is_empty() { None } else { paths.iter().map(named).collect() }
}

fn first_segment(path: &str) -> Option<&str> {
    path.strip_prefix('/').map(|rest| rest.split('/').next().unwrap_or_default())
}
