//! Who called whom lately and how it went, from what sidecars report: a state machine that is told the time.
//!
//! Sidecars tell running totals; what grew since their report before is counted in the present slot of a window of one minute. Nobody
//! is believed about others: a caller's sidecar speaks for its own account, a callee's for the Services it stands behind.

pub mod lookers;
mod reporters;
mod ring;
pub mod shadows;

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant, SystemTime};

use equerry_policies::names::{AccountName, PolicyName, ServiceName};
use equerry_wire::limits::CALL_BOUNDS_MS;
use equerry_wire::proto;

use self::reporters::Reporters;
use self::ring::{Adds, Ring, Window, more};
use self::shadows::Shadows;
use crate::registry::InstanceKey;

/// How far back numbers reach.
pub const WINDOW: Duration = Duration::from_secs(60);
/// And in what steps.
const STEPS: Window = Window { whole: WINDOW, slot: Duration::from_secs(5) };
/// Two between whom nothing passed for so long are forgotten, and so are sidecars that are gone.
const FORGET: Duration = Duration::from_secs(600);
/// Pairs that are known.
const MOST_EDGES: usize = 50_000;
/// Different ends of one pair.
const MOST_ENDS: usize = 128;
/// The reason of what is beyond these.
const OVERFLOW: &str = "__overflow__";
/// Longest word of a report.
const LONGEST: usize = 600;
/// What sidecars say of whom they do not know, and of what is beyond their cap.
const WORDS: [&str; 2] = ["unknown", OVERFLOW];

/// Which side of a call saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// The caller's sidecars.
    Caller,
    /// The callee's.
    Callee,
}

/// Source and destination, as sidecars name them.
pub type Pair = (String, String);

/// How some calls ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct End {
    /// The status sent; 0 for TCP.
    pub status: u16,
    /// One of the reasons of the mesh.
    pub reason: String,
    /// They were TCP connections.
    pub tcp: bool,
    /// Neither the caller nor a policy is to blame.
    pub failed: bool,
    /// A policy, a token or a quota refused them.
    pub refused: bool,
}

/// Numbers that add up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Numbers {
    /// How often each end was met.
    pub ends: BTreeMap<End, u64>,
    /// How many took no longer than each of [`CALL_BOUNDS_MS`] and longer than the one before; the last: longer.
    pub took: Vec<u64>,
    /// Bytes of TCP connections, from whoever connected.
    pub bytes_in: u64,
    /// And to them.
    pub bytes_out: u64,
}

/// What one side saw within the window.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// All of it.
    pub numbers: Numbers,
    /// The part of the window in which somebody looked, at most all of it.
    pub over: Duration,
    /// When a sidecar told of it last.
    pub told: Instant,
}

/// A pair between whom something passed, and what each side saw of it.
pub type Edge = (Pair, Option<Seen>, Option<Seen>);

/// What is known of calls, and of policies that are not enforced.
#[derive(Debug, Default)]
pub struct Calls {
    reporters: Reporters,
    edges: BTreeMap<Pair, [Option<Ring<Numbers>>; 2]>,
    shadows: Shadows,
}

/// Who speaks in a report, and for whom they may speak.
#[derive(Debug, Clone, Copy)]
pub struct Speaker<'a> {
    /// The instance.
    pub key: &'a InstanceKey,
    /// Its account, which its certificate says.
    pub account: &'a AccountName,
    /// The Services it stands behind.
    pub services: &'a [ServiceName],
}

impl Calls {
    /// Takes a report; `clock` is the time that people read. What the speaker may not speak of is left out. Returns how many counts
    /// of calls were.
    pub fn take(&mut self, speaker: Speaker<'_>, report: &proto::CallReport, now: Instant, clock: SystemTime) -> usize {
        let Some(reporter) = self.reporters.hear(speaker.key, report, now) else { return report.counts.len() };
        let news_count = reporter.news_count(now);
        for told in &report.shadows {
            let Some((policy, totals)) = shadows::read(speaker, told) else { continue };
            if let Some(more) = reporter.policies.grew(policy.clone(), &totals, news_count) {
                self.shadows.count(policy, &more, told.last.as_ref(), now, clock);
            }
        }
        let mut left_out = 0;
        for count in &report.counts {
            let counted = read(speaker, count).and_then(|(side, pair, totals)| {
                let more = reporter.ways.grew((side, pair.clone()), &totals, news_count)?;
                let room = self.edges.len() < MOST_EDGES || self.edges.contains_key(&pair);
                let edge = room.then(|| self.edges.entry(pair).or_default())?;
                edge[side as usize].get_or_insert_with(|| Ring::new(now)).count(STEPS, &more, now);
                Some(())
            });
            left_out += usize::from(counted.is_none());
        }
        left_out
    }

    /// Every pair that is `wanted`, by source and destination, and what each side saw of it within the window.
    pub fn edges(&self, wanted: impl Fn(&Pair) -> bool, now: Instant) -> Vec<Edge> {
        let seen = |ring: &Option<Ring<Numbers>>| {
            let ring = ring.as_ref()?;
            Some(Seen { numbers: ring.sum(STEPS, now), over: ring.over(STEPS, now), told: ring.told() })
        };
        let edges = self.edges.iter().filter(|(pair, _)| wanted(pair));
        edges.map(|(pair, [caller, callee])| (pair.clone(), seen(caller), seen(callee))).collect()
    }

    /// What a policy that is not enforced would have changed lately.
    pub fn shadow(&self, policy: &PolicyName, now: Instant) -> shadows::Seen {
        self.shadows.seen(policy, now)
    }

    /// How many sidecars have reported lately, those that ended since included.
    pub fn known(&self) -> usize {
        self.reporters.known()
    }

    /// The instances whose sidecars report, by name.
    pub fn reporters(&self, now: Instant) -> Vec<InstanceKey> {
        let mut keys: Vec<InstanceKey> = self.reporters.present(now).cloned().collect();
        keys.sort_unstable();
        keys
    }

    /// How many sidecars report.
    pub fn reporting(&self, now: Instant) -> usize {
        self.reporters.present(now).count()
    }

    /// Forgets sidecars that are gone, pairs between whom nothing passes any more, and policies that nobody tells of.
    pub fn forget(&mut self, now: Instant) {
        let gone = |told: Instant| now.saturating_duration_since(told) > FORGET;
        self.reporters.forget(gone);
        self.edges.retain(|_, sides| sides.iter().flatten().any(|ring| !gone(ring.told())));
        let held: HashSet<&PolicyName> = self.reporters.all().flat_map(|one| one.policies.keys()).collect();
        self.shadows.forget(|policy, told| !held.contains(policy) && gone(told));
    }
}

impl Adds for Numbers {
    fn add(&mut self, other: &Self) {
        for (end, count) in &other.ends {
            if let Some(counted) = self.ends.get_mut(end) {
                *counted = counted.saturating_add(*count);
                continue;
            }
            let room = self.ends.len() < MOST_ENDS;
            let end = if room { end.clone() } else { End { status: 0, reason: OVERFLOW.into(), ..end.clone() } };
            let counted = self.ends.entry(end).or_default();
            *counted = counted.saturating_add(*count);
        }
        if self.took.is_empty() {
            self.took.clone_from(&other.took);
        } else {
            self.took.iter_mut().zip(&other.took).for_each(|(mine, more)| *mine = mine.saturating_add(*more));
        }
        self.bytes_in = self.bytes_in.saturating_add(other.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(other.bytes_out);
    }

    fn less(&mut self, gone: &Self) {
        for (end, count) in &gone.ends {
            if let Some(counted) = self.ends.get_mut(end) {
                *counted = counted.saturating_sub(*count);
            }
        }
        self.ends.retain(|_, count| *count > 0);
        self.took.iter_mut().zip(&gone.took).for_each(|(mine, less)| *mine = mine.saturating_sub(*less));
        self.bytes_in = self.bytes_in.saturating_sub(gone.bytes_in);
        self.bytes_out = self.bytes_out.saturating_sub(gone.bytes_out);
    }

    fn is_exact(&self) -> bool {
        self.ends.len() < MOST_ENDS
    }

    fn since(&self, before: &Self) -> Self {
        let ends = self
            .ends
            .iter()
            .map(|(end, count)| (end.clone(), more(*count, before.ends.get(end).copied().unwrap_or(0))));
        let took =
            self.took.iter().enumerate().map(|(at, count)| more(*count, before.took.get(at).copied().unwrap_or(0)));
        Self {
            ends: ends.filter(|(_, count)| *count > 0).collect(),
            took: took.collect(),
            bytes_in: more(self.bytes_in, before.bytes_in),
            bytes_out: more(self.bytes_out, before.bytes_out),
        }
    }

    fn parts(&self) -> usize {
        self.ends.len()
    }
}

impl Numbers {
    /// How many ended, of those `counted`.
    pub fn count(&self, counted: impl Fn(&End) -> bool) -> u64 {
        self.ends.iter().filter(|(end, _)| counted(end)).map(|(_, count)| count).sum()
    }

    /// So many milliseconds the fastest `share` of them took at most, found within its bucket as Prometheus does
    /// (`histogram_quantile`); `None` when there are none.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let all: u64 = self.took.iter().fold(0, |all, count| all.saturating_add(*count));
        if all == 0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "counts of a minute")]
        let as_float = |count: u64| count as f64;
        let rank = share * as_float(all);
        let (mut passed, mut lower) = (0.0, 0.0);
        for (count, upper) in self.took.iter().zip(CALL_BOUNDS_MS) {
            let count = as_float(*count);
            if count > 0.0 && passed + count >= rank {
                return Some(lower + (upper - lower) * (rank - passed) / count);
            }
            passed += count;
            lower = upper;
        }
        Some(lower)
    }
}

/// A count, if it can be read and its speaker may speak of it.
fn read(speaker: Speaker<'_>, count: &proto::CallCount) -> Option<(Side, Pair, Numbers)> {
    let a_name = |text: &str, parses: bool| text.len() <= LONGEST && (parses || WORDS.contains(&text));
    let source = a_name(&count.source, AccountName::parse(&count.source).is_ok());
    let destination = ServiceName::parse(&count.destination);
    if !source || !a_name(&count.destination, destination.is_ok()) {
        return None;
    }
    let own = if count.outbound {
        count.source == speaker.account.to_string()
    } else {
        destination.is_ok_and(|service| speaker.services.contains(&service))
            || WORDS.contains(&count.destination.as_str())
    };
    let side = if count.outbound { Side::Caller } else { Side::Callee };
    let fits = count.ends.len() <= MOST_ENDS && count.took.len() <= CALL_BOUNDS_MS.len() + 1;
    let pair = (count.source.clone(), count.destination.clone());
    (own && fits).then(|| (side, pair, numbers(count)))
}

fn numbers(count: &proto::CallCount) -> Numbers {
    let end = |end: &proto::CallEnd| {
        let reason = end.reason.chars().take(64).collect();
        let status = u16::try_from(end.status).unwrap_or_default();
        (End { status, reason, tcp: end.tcp, failed: end.failed, refused: end.refused }, end.count)
    };
    // Buckets of another version are not these.
    let took = if count.took.len() == CALL_BOUNDS_MS.len() + 1 { count.took.clone() } else { Vec::new() };
    Numbers { ends: count.ends.iter().map(end).collect(), took, bytes_in: count.bytes_in, bytes_out: count.bytes_out }
}

#[cfg(test)]
mod tests;
