//! Sidecars that report, and the running totals that each told last: what a total grew by is what counts.
//!
//! A sidecar that was silent for long is begun with anew, and so is one that started again. What is held of one does not depend on
//! what it invents, nor what is held of a namespace on how many instances it claims to have.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use equerry_policies::names::{Namespace, PolicyName};
use equerry_wire::proto;

use super::ring::Adds;
use super::shadows::{self, Counts};
use super::{Numbers, Pair, Side};
use crate::registry::InstanceKey;

/// A sidecar that was silent for longer is begun with anew: what it counted meanwhile is not of the window.
const SILENCE: Duration = Duration::from_secs(30);
/// The first reports of a sidecar, which tell all it has counted so far, come within this.
const FIRST_WORDS: Duration = Duration::from_secs(2);
/// Sidecars that are known of one namespace.
pub(super) const MOST_REPORTERS: usize = 10_000;
/// Pairs of one sidecar.
pub(super) const MOST_WAYS: usize = 4_096;
/// Different ends of all pairs of one sidecar.
pub(super) const MOST_ENDS_OF_ONE: usize = 16_384;

/// Every sidecar that reports, by namespace.
#[derive(Debug, Default)]
pub(super) struct Reporters(HashMap<Namespace, HashMap<InstanceKey, Reporter>>);

/// One sidecar.
#[derive(Debug)]
pub(super) struct Reporter {
    started_unix_ms: u64,
    /// It had just started when it was first heard.
    young: bool,
    /// When it was first heard.
    heard: Instant,
    told: Instant,
    /// Calls.
    pub(super) ways: Totals<(Side, Pair), Numbers>,
    /// Policies that are not enforced.
    pub(super) policies: Totals<PolicyName, Counts>,
}

impl Reporters {
    /// The sidecar whose report this is, as it was left at its report before; `None`: too many are known of its namespace.
    pub(super) fn hear(
        &mut self,
        key: &InstanceKey,
        report: &proto::CallReport,
        now: Instant,
    ) -> Option<&mut Reporter> {
        if !self.0.contains_key(&key.namespace) {
            self.0.insert(key.namespace.clone(), HashMap::new());
        }
        let here = self.0.get_mut(&key.namespace)?;
        let known = here.get(key);
        let goes_on =
            known.is_some_and(|known| known.started_unix_ms == report.started_unix_ms && !is_silent(known.told, now));
        if !goes_on {
            if known.is_none() && here.len() >= MOST_REPORTERS {
                return None;
            }
            here.insert(key.clone(), Reporter::begun(report, now));
        }
        let reporter = here.get_mut(key)?;
        reporter.told = now;
        Some(reporter)
    }

    /// How many are known, those that ended lately included.
    pub(super) fn known(&self) -> usize {
        self.0.values().map(HashMap::len).sum()
    }

    /// Those that report now.
    pub(super) fn present(&self, now: Instant) -> impl Iterator<Item = &InstanceKey> {
        self.0.values().flatten().filter(move |(_, one)| !is_silent(one.told, now)).map(|(key, _)| key)
    }

    /// All that are known.
    pub(super) fn all(&self) -> impl Iterator<Item = &Reporter> {
        self.0.values().flat_map(HashMap::values)
    }

    /// Forgets those that are gone.
    pub(super) fn forget(&mut self, gone: impl Fn(Instant) -> bool) {
        self.0.values_mut().for_each(|here| here.retain(|_, one| !gone(one.told)));
        self.0.retain(|_, here| !here.is_empty());
    }
}

fn is_silent(told: Instant, now: Instant) -> bool {
    now.saturating_duration_since(told) > SILENCE
}

impl Reporter {
    fn begun(report: &proto::CallReport, now: Instant) -> Self {
        Self {
            started_unix_ms: report.started_unix_ms,
            young: Duration::from_millis(report.age_ms) <= SILENCE,
            heard: now,
            told: now,
            ways: Totals::new(MOST_WAYS, MOST_ENDS_OF_ONE),
            policies: Totals::new(shadows::MOST_OF_ONE, shadows::MOST_OF_ONE),
        }
    }

    /// Whether what it tells of for the first time is of the window: not what it counted before anybody listened, unless it had
    /// just started.
    pub(super) fn news_count(&self, now: Instant) -> bool {
        self.young || now.saturating_duration_since(self.heard) > FIRST_WORDS
    }
}

/// Running totals of one sidecar, as it told them last.
#[derive(Debug)]
pub(super) struct Totals<K, T> {
    of: HashMap<K, T>,
    /// How many parts those have together.
    parts: usize,
    most: usize,
    most_parts: usize,
}

impl<K: Eq + Hash, T: Adds> Totals<K, T> {
    fn new(most: usize, most_parts: usize) -> Self {
        Self { of: HashMap::new(), parts: 0, most, most_parts }
    }

    /// What a total grew by; `None` when there would be too much to remember. Of one that is told for the first time, all of it
    /// when `news_count`, else nothing.
    pub(super) fn grew(&mut self, key: K, total: &T, news_count: bool) -> Option<T> {
        let before = self.of.get(&key);
        let parts = self.parts - before.map_or(0, T::parts) + total.parts();
        if parts > self.most_parts || (before.is_none() && self.of.len() >= self.most) {
            return None;
        }
        let more = match before {
            Some(before) => total.since(before),
            None if news_count => total.clone(),
            None => T::default(),
        };
        self.parts = parts;
        self.of.insert(key, total.clone());
        Some(more)
    }

    /// What totals are of.
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.of.keys()
    }

    /// How many parts they have together.
    #[cfg(test)]
    pub(super) fn parts(&self) -> usize {
        self.parts
    }
}
