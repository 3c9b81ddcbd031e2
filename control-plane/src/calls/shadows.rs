//! What policies that are not enforced would have changed lately, from what sidecars report beside calls. A sidecar is heard about
//! policies of its own namespace and of the mesh's.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use equerry_policies::names::{PolicyName, SYSTEM_NAMESPACE};
use equerry_wire::proto;

use super::ring::{Adds, Ring, Window, more};
use super::{LONGEST, Speaker};

/// How far back numbers reach.
pub const WINDOW: Duration = Duration::from_secs(300);
/// And in what steps.
const STEPS: Window = Window { whole: WINDOW, slot: Duration::from_secs(10) };
/// Policies that are known, and policies of one sidecar.
const MOST_POLICIES: usize = 2_048;
pub(super) const MOST_OF_ONE: usize = 256;

/// Numbers that add up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Nothing would have changed.
    pub unchanged: u64,
    /// What passed would have been refused.
    pub would_deny: u64,
    /// What was refused would have passed.
    pub would_allow: u64,
}

/// The last request or connection that a policy would have met otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// When, by this clock.
    pub at: SystemTime,
    /// `namespace/account`; empty: nobody known.
    pub source: String,
    /// `namespace/name`; empty when it is not known.
    pub destination: String,
    /// What would have decided.
    pub rule: String,
    /// It would have passed; else it would have been refused.
    pub allow: bool,
}

/// What is known of one policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Within the window.
    pub counts: Counts,
    /// Whenever it was.
    pub last: Option<Change>,
}

/// What is known of policies that are not enforced.
#[derive(Debug, Default)]
pub(super) struct Shadows(BTreeMap<PolicyName, Shadow>);

#[derive(Debug)]
struct Shadow {
    counts: Ring<Counts>,
    last: Option<Change>,
}

impl Shadows {
    /// A sidecar met a policy so much `more` often, and tells of the `last` that it would have changed.
    pub(super) fn count(
        &mut self,
        policy: PolicyName,
        more: &Counts,
        last: Option<&proto::ShadowChange>,
        now: Instant,
        clock: SystemTime,
    ) {
        if !self.0.contains_key(&policy) && self.0.len() >= MOST_POLICIES {
            return;
        }
        let shadow = self.0.entry(policy).or_insert_with(|| Shadow { counts: Ring::new(now), last: None });
        shadow.counts.count(STEPS, more, now);
        let last = last.map(|last| change(last, clock));
        if last.as_ref().is_some_and(|last| shadow.last.as_ref().is_none_or(|known| known.at < last.at)) {
            shadow.last = last;
        }
    }

    /// What is known of a policy.
    pub(super) fn seen(&self, policy: &PolicyName, now: Instant) -> Seen {
        let seen = |shadow: &Shadow| Seen { counts: shadow.counts.sum(STEPS, now), last: shadow.last.clone() };
        self.0.get(policy).map(seen).unwrap_or_default()
    }

    /// Forgets policies that are `gone`, which is asked with when somebody told of one last.
    pub(super) fn forget(&mut self, gone: impl Fn(&PolicyName, Instant) -> bool) {
        self.0.retain(|policy, shadow| !gone(policy, shadow.counts.told()));
    }
}

/// A policy and its totals, if the speaker may speak of it.
pub(super) fn read(speaker: Speaker<'_>, told: &proto::ShadowCount) -> Option<(PolicyName, Counts)> {
    let policy = PolicyName::parse(&told.policy).ok()?;
    let own = policy.namespace == speaker.account.namespace || policy.namespace.as_str() == SYSTEM_NAMESPACE;
    let totals = Counts { unchanged: told.unchanged, would_deny: told.would_deny, would_allow: told.would_allow };
    own.then_some((policy, totals))
}

fn change(last: &proto::ShadowChange, clock: SystemTime) -> Change {
    let short = |text: &str| text.chars().take(LONGEST).collect();
    Change {
        at: clock.checked_sub(Duration::from_millis(last.ago_ms)).unwrap_or(SystemTime::UNIX_EPOCH),
        source: short(&last.source),
        destination: short(&last.destination),
        rule: short(&last.rule),
        allow: last.allow,
    }
}

impl Adds for Counts {
    fn add(&mut self, more: &Self) {
        self.unchanged = self.unchanged.saturating_add(more.unchanged);
        self.would_deny = self.would_deny.saturating_add(more.would_deny);
        self.would_allow = self.would_allow.saturating_add(more.would_allow);
    }

    fn less(&mut self, gone: &Self) {
        self.unchanged = self.unchanged.saturating_sub(gone.unchanged);
        self.would_deny = self.would_deny.saturating_sub(gone.would_deny);
        self.would_allow = self.would_allow.saturating_sub(gone.would_allow);
    }

    fn is_exact(&self) -> bool {
        true
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            unchanged: more(self.unchanged, before.unchanged),
            would_deny: more(self.would_deny, before.would_deny),
            would_allow: more(self.would_allow, before.would_allow),
        }
    }

    fn parts(&self) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use equerry_policies::names::{AccountName, InstanceId, Namespace};

    use super::super::Calls;
    use super::super::reporters::MOST_REPORTERS;
    use super::*;
    use crate::registry::InstanceKey;

    struct Mesh {
        calls: Calls,
        start: Instant,
        now: Instant,
        key: InstanceKey,
        account: AccountName,
    }

    impl Mesh {
        fn new() -> Self {
            let key =
                InstanceKey { namespace: Namespace::parse("shop").unwrap(), id: InstanceId::parse("o1").unwrap() };
            let account = AccountName::parse("shop/orders").unwrap();
            let start = Instant::now();
            Self { calls: Calls::default(), start, now: start, key, account }
        }

        fn told(&mut self, started_unix_ms: u64, age_ms: u64, policy: &str, would_deny: u64) {
            let last = proto::ShadowChange {
                source: "shop/frontend".to_owned(),
                destination: "shop/orders".to_owned(),
                rule: format!("{policy} rules[{would_deny}]"),
                allow: false,
                ago_ms: 0,
            };
            let count = proto::ShadowCount {
                policy: policy.to_owned(),
                would_deny,
                unchanged: 1,
                would_allow: 0,
                last: Some(last),
            };
            let report =
                proto::CallReport { started_unix_ms, age_ms, shadows: vec![count], ..proto::CallReport::default() };
            let speaker = Speaker { key: &self.key, account: &self.account, services: &[] };
            let clock = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000) + (self.now - self.start);
            self.calls.take(speaker, &report, self.now, clock);
        }

        fn denied(&self, policy: &str) -> u64 {
            self.calls.shadow(&PolicyName::parse(policy).unwrap(), self.now).counts.would_deny
        }
    }

    #[test]
    fn what_grew_within_the_window_is_counted_and_the_last_is_named() {
        let mut mesh = Mesh::new();
        mesh.told(1, 100, "shop/x", 3);
        assert_eq!(mesh.denied("shop/x"), 3, "a sidecar that has just started");
        mesh.now += Duration::from_secs(100);
        mesh.told(1, 100_100, "shop/x", 3);
        mesh.told(1, 100_100, "shop/x", 8);
        // It was silent for longer than anybody is: what it counted meanwhile is not known to be of these minutes.
        assert_eq!(mesh.denied("shop/x"), 8);
        for _ in 0..10 {
            mesh.now += Duration::from_secs(20);
            mesh.told(1, 200_000, "shop/x", 8);
        }
        assert_eq!(mesh.denied("shop/x"), 5, "the first three are too long ago");
        mesh.now += Duration::from_secs(20);
        mesh.told(2, 10, "shop/x", 2);
        assert_eq!(mesh.denied("shop/x"), 7, "another start counts from nothing");
        let last = mesh.calls.shadow(&PolicyName::parse("shop/x").unwrap(), mesh.now).last.unwrap();
        assert_eq!(last.rule, "shop/x rules[2]");
        mesh.now += WINDOW + STEPS.slot;
        assert_eq!(mesh.denied("shop/x"), 0);
        mesh.now += 2 * WINDOW;
        mesh.calls.forget(mesh.now);
        assert!(mesh.calls.shadows.0.is_empty() && mesh.calls.known() == 0);
    }

    #[test]
    fn what_was_counted_before_anybody_listened_is_left_out() {
        let mut mesh = Mesh::new();
        mesh.told(1, 3_600_000, "shop/x", 1_000);
        assert_eq!(mesh.denied("shop/x"), 0);
        mesh.told(1, 3_600_000, "shop/x", 1_002);
        assert_eq!(mesh.denied("shop/x"), 2);
    }

    #[test]
    fn nobody_speaks_of_the_policies_of_others_and_nobody_fills_the_memory() {
        let mut mesh = Mesh::new();
        for other in ["bank/x", "no name at all", "__overflow__"] {
            mesh.told(1, 0, other, 3);
        }
        assert!(mesh.calls.shadows.0.is_empty());
        mesh.told(1, 0, "equerry-system/x", 3);
        assert_eq!(mesh.denied("equerry-system/x"), 3);
        for number in 0..2 * MOST_OF_ONE {
            mesh.told(1, 0, &format!("shop/x{number}"), 3);
        }
        assert_eq!(mesh.calls.shadows.0.len(), MOST_OF_ONE);
        for number in 0..MOST_REPORTERS {
            mesh.key.id = InstanceId::parse(&format!("more-{number}")).unwrap();
            mesh.told(1, 0, "shop/x0", 1);
        }
        let all = u64::try_from(MOST_REPORTERS - 1).unwrap() + 3;
        assert_eq!((mesh.calls.known(), mesh.denied("shop/x0")), (MOST_REPORTERS, all), "nobody hears the last");
    }
}
