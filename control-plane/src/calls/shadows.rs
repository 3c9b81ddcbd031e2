//! What policies that are not enforced would have changed lately, from what sidecars report: a state machine that is told the time.
//!
//! As with calls, sidecars tell running totals, and what grew is counted in the present slot of a window. A sidecar is heard about
//! policies of its own namespace and of the mesh's.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, SystemTime};

use equerry_policies::names::{PolicyName, SYSTEM_NAMESPACE};
use equerry_wire::proto;

use super::{FIRST_WORDS, LONGEST, SILENCE, Speaker};
use crate::registry::InstanceKey;

/// How far back numbers reach.
pub const WINDOW: Duration = Duration::from_secs(300);
/// How long a slot of the window is.
const SLOT: Duration = Duration::from_secs(10);
/// Policies that are known, and policies of one sidecar.
const MOST_POLICIES: usize = 2_048;
const MOST_OF_ONE: usize = 256;

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
pub struct Shadows {
    reporters: HashMap<InstanceKey, Reporter>,
    policies: BTreeMap<PolicyName, Ring>,
    began: Option<Instant>,
}

#[derive(Debug)]
struct Reporter {
    started_unix_ms: u64,
    /// It had just started when it was first heard.
    young: bool,
    heard: Instant,
    told: Instant,
    totals: HashMap<PolicyName, Counts>,
}

#[derive(Debug, Default)]
struct Ring {
    slots: BTreeMap<u64, Counts>,
    last: Option<Change>,
    told: Option<Instant>,
}

impl Shadows {
    /// Takes a report; `clock` is the time that people read.
    pub fn take(&mut self, speaker: Speaker<'_>, report: &proto::CallReport, now: Instant, clock: SystemTime) {
        let began = *self.began.get_or_insert(now);
        let known = self.reporters.get(speaker.key);
        let goes_on = known.is_some_and(|known| {
            known.started_unix_ms == report.started_unix_ms && now.saturating_duration_since(known.told) <= SILENCE
        });
        if !goes_on {
            let begun = Reporter {
                started_unix_ms: report.started_unix_ms,
                young: Duration::from_millis(report.age_ms) <= SILENCE,
                heard: now,
                told: now,
                totals: HashMap::new(),
            };
            self.reporters.insert(speaker.key.clone(), begun);
        }
        let Some(reporter) = self.reporters.get_mut(speaker.key) else { return };
        reporter.told = now;
        // What a sidecar counted before anybody listened is not of these minutes, unless it had just started.
        let news_count = reporter.young || now.saturating_duration_since(reporter.heard) > FIRST_WORDS;
        let slot = slot_of(began, now);
        for told in &report.shadows {
            let Some(policy) = policy_of(speaker, told) else { continue };
            let totals =
                Counts { unchanged: told.unchanged, would_deny: told.would_deny, would_allow: told.would_allow };
            let room = reporter.totals.len() < MOST_OF_ONE;
            let before = match reporter.totals.get_mut(&policy) {
                Some(before) => std::mem::replace(before, totals),
                None if room => {
                    reporter.totals.insert(policy.clone(), totals);
                    if news_count { Counts::default() } else { totals }
                }
                None => continue,
            };
            if !self.policies.contains_key(&policy) && self.policies.len() >= MOST_POLICIES {
                continue;
            }
            let ring = self.policies.entry(policy).or_default();
            ring.told = Some(now);
            ring.slots.entry(slot).or_default().add(totals.since(before));
            ring.slots = ring.slots.split_off(&slot.saturating_sub(slots()));
            let change = told.last.as_ref().map(|last| change(last, clock));
            if change.as_ref().is_some_and(|change| ring.last.as_ref().is_none_or(|known| known.at < change.at)) {
                ring.last = change;
            }
        }
    }

    /// What is known of a policy.
    pub fn seen(&self, policy: &PolicyName, now: Instant) -> Seen {
        let (Some(ring), Some(began)) = (self.policies.get(policy), self.began) else { return Seen::default() };
        let first = slot_of(began, now).saturating_sub(slots() - 1);
        let mut counts = Counts::default();
        ring.slots.range(first..).for_each(|(_, slot)| counts.add(*slot));
        Seen { counts, last: ring.last.clone() }
    }

    /// Forgets sidecars that are gone, and policies that nobody tells of any more.
    pub fn forget(&mut self, now: Instant) {
        let gone = |told: Instant| now.saturating_duration_since(told) > 2 * WINDOW;
        self.reporters.retain(|_, reporter| !gone(reporter.told));
        let reporters = &self.reporters;
        let held = |policy: &PolicyName| reporters.values().any(|reporter| reporter.totals.contains_key(policy));
        self.policies.retain(|policy, ring| held(policy) || ring.told.is_some_and(|told| !gone(told)));
    }
}

const fn slots() -> u64 {
    WINDOW.as_secs() / SLOT.as_secs()
}

fn slot_of(began: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(began).as_secs() / SLOT.as_secs()
}

/// The policy that a count is about, if its speaker may speak of it.
fn policy_of(speaker: Speaker<'_>, told: &proto::ShadowCount) -> Option<PolicyName> {
    let policy = PolicyName::parse(&told.policy).ok()?;
    (policy.namespace == speaker.account.namespace || policy.namespace.as_str() == SYSTEM_NAMESPACE).then_some(policy)
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

impl Counts {
    fn add(&mut self, more: Self) {
        self.unchanged = self.unchanged.saturating_add(more.unchanged);
        self.would_deny = self.would_deny.saturating_add(more.would_deny);
        self.would_allow = self.would_allow.saturating_add(more.would_allow);
    }

    /// What came since running totals stood at `before`; all of it when they went back.
    fn since(self, before: Self) -> Self {
        let more = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        Self {
            unchanged: more(self.unchanged, before.unchanged),
            would_deny: more(self.would_deny, before.would_deny),
            would_allow: more(self.would_allow, before.would_allow),
        }
    }
}

#[cfg(test)]
mod tests {
    use equerry_policies::names::{AccountName, InstanceId, Namespace};

    use super::*;

    struct Mesh {
        shadows: Shadows,
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
            Self { shadows: Shadows::default(), start, now: start, key, account }
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
            self.shadows.take(speaker, &report, self.now, clock);
        }

        fn denied(&self, policy: &str) -> u64 {
            self.shadows.seen(&PolicyName::parse(policy).unwrap(), self.now).counts.would_deny
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
        let last = mesh.shadows.seen(&PolicyName::parse("shop/x").unwrap(), mesh.now).last.unwrap();
        assert_eq!(last.rule, "shop/x rules[2]");
        mesh.now += WINDOW + SLOT;
        assert_eq!(mesh.denied("shop/x"), 0);
        mesh.now += 2 * WINDOW;
        mesh.shadows.forget(mesh.now);
        assert!(mesh.shadows.policies.is_empty() && mesh.shadows.reporters.is_empty());
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
        assert!(mesh.shadows.policies.is_empty());
        mesh.told(1, 0, "equerry-system/x", 3);
        assert_eq!(mesh.denied("equerry-system/x"), 3);
        for number in 0..2 * MOST_OF_ONE {
            mesh.told(1, 0, &format!("shop/x{number}"), 3);
        }
        assert_eq!(mesh.shadows.policies.len(), MOST_OF_ONE);
    }
}
