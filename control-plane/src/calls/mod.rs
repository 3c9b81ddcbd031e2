//! Who called whom lately and how it went, from what sidecars report: a state machine that is told the time.
//!
//! Sidecars tell running totals; what grew since their report before is counted in the present slot of a window of one minute. Nobody
//! is believed about others: a caller's sidecar speaks for its own account, a callee's for the Services it stands behind.

pub mod lookers;
pub mod shadows;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use equerry_policies::names::{AccountName, ServiceName};
use equerry_wire::limits::CALL_BOUNDS_MS;
use equerry_wire::proto;

use crate::registry::InstanceKey;

/// How far back numbers reach.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Slots of the window.
const SLOTS: u64 = 12;
/// How long a slot is.
const SLOT: Duration = Duration::from_secs(5);
/// A sidecar that was silent for longer is begun with anew: what it counted meanwhile is not of this minute.
const SILENCE: Duration = Duration::from_secs(30);
/// The first reports of a sidecar, which tell all it has counted so far, come within this.
const FIRST_WORDS: Duration = Duration::from_secs(2);
/// Two between whom nothing passed for so long are forgotten.
const FORGET: Duration = Duration::from_secs(600);
/// Pairs that are known, and pairs of one sidecar.
const MOST_EDGES: usize = 50_000;
const MOST_WAYS: usize = 4_096;
/// Different ends of one pair.
const MOST_ENDS: usize = 128;
/// Different ends of all pairs of one sidecar: what is held of one must not depend on what it invents.
const MOST_ENDS_OF_ONE: usize = 16_384;
/// The reason of what is beyond these.
const OVERFLOW: &str = "__overflow__";
/// Sidecars that are known of one namespace.
const MOST_REPORTERS: usize = 10_000;
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

/// What is known of calls.
#[derive(Debug, Default)]
pub struct Calls {
    reporters: HashMap<InstanceKey, Reporter>,
    edges: BTreeMap<Pair, [Option<Ring>; 2]>,
    began: Option<Instant>,
}

#[derive(Debug)]
struct Reporter {
    started_unix_ms: u64,
    /// It had just started when it was first heard.
    young: bool,
    /// When it was first heard.
    heard: Instant,
    told: Instant,
    totals: HashMap<(Side, Pair), Numbers>,
    /// How many ends those hold.
    ends: usize,
}

/// What one side saw, slot by slot.
#[derive(Debug)]
struct Ring {
    first: Instant,
    told: Instant,
    slots: BTreeMap<u64, Numbers>,
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
    /// Takes a report; counts that the speaker may not speak of are left out. Returns how many were.
    pub fn take(&mut self, speaker: Speaker<'_>, report: &proto::CallReport, now: Instant) -> usize {
        let began = *self.began.get_or_insert(now);
        let known = self.reporters.get(speaker.key);
        let goes_on = known.is_some_and(|known| {
            known.started_unix_ms == report.started_unix_ms && now.saturating_duration_since(known.told) <= SILENCE
        });
        if !goes_on {
            let of_namespace = || self.reporters.keys().filter(|key| key.namespace == speaker.key.namespace).count();
            if known.is_none() && of_namespace() >= MOST_REPORTERS {
                return report.counts.len();
            }
            let begun = Reporter {
                started_unix_ms: report.started_unix_ms,
                young: Duration::from_millis(report.age_ms) <= SILENCE,
                heard: now,
                told: now,
                totals: HashMap::new(),
                ends: 0,
            };
            self.reporters.insert(speaker.key.clone(), begun);
        }
        let Some(reporter) = self.reporters.get_mut(speaker.key) else { return 0 };
        reporter.told = now;
        // What a sidecar counted before anybody listened is not of this minute, unless it had just started.
        let news_count = reporter.young || now.saturating_duration_since(reporter.heard) > FIRST_WORDS;
        let slot = slot_of(began, now);
        let mut left_out = 0;
        for count in &report.counts {
            let Some((side, pair, numbers)) = read(speaker, count) else {
                left_out += 1;
                continue;
            };
            let key = (side, pair.clone());
            let held = reporter.totals.get(&key).map_or(0, |before| before.ends.len());
            let ends = reporter.ends - held + numbers.ends.len();
            if ends > MOST_ENDS_OF_ONE {
                left_out += 1;
                continue;
            }
            let room = reporter.totals.len() < MOST_WAYS;
            let before = match reporter.totals.get_mut(&key) {
                Some(before) => {
                    reporter.ends = ends;
                    std::mem::replace(before, numbers.clone())
                }
                None if room => {
                    reporter.ends = ends;
                    reporter.totals.insert(key, numbers.clone());
                    if news_count { Numbers::default() } else { numbers.clone() }
                }
                None => {
                    left_out += 1;
                    continue;
                }
            };
            let known = self.edges.contains_key(&pair);
            if known || self.edges.len() < MOST_EDGES {
                let ring = &mut self.edges.entry(pair).or_default()[side as usize];
                let ring = ring.get_or_insert_with(|| Ring { first: now, told: now, slots: BTreeMap::new() });
                ring.told = now;
                ring.slots.entry(slot).or_default().add(&numbers.since(&before));
                ring.slots = ring.slots.split_off(&slot.saturating_sub(SLOTS));
            } else {
                left_out += 1;
            }
        }
        left_out
    }

    /// Every pair that is `wanted`, by source and destination, and what each side saw of it within the window.
    pub fn edges(&self, wanted: impl Fn(&Pair) -> bool, now: Instant) -> Vec<Edge> {
        let began = self.began.unwrap_or(now);
        let seen = |ring: &Option<Ring>| ring.as_ref().map(|ring| ring.seen(slot_of(began, now), now));
        let edges = self.edges.iter().filter(|(pair, _)| wanted(pair));
        edges.map(|(pair, [caller, callee])| (pair.clone(), seen(caller), seen(callee))).collect()
    }

    /// How many sidecars have reported lately, those that ended since included.
    pub fn known(&self) -> usize {
        self.reporters.len()
    }

    /// The instances whose sidecars report, by name.
    pub fn reporters(&self, now: Instant) -> Vec<InstanceKey> {
        let here = |(_, one): &(&InstanceKey, &Reporter)| now.saturating_duration_since(one.told) <= SILENCE;
        let mut keys: Vec<InstanceKey> = self.reporters.iter().filter(here).map(|(key, _)| key.clone()).collect();
        keys.sort_unstable();
        keys
    }

    /// How many sidecars report.
    pub fn reporting(&self, now: Instant) -> usize {
        self.reporters.values().filter(|one| now.saturating_duration_since(one.told) <= SILENCE).count()
    }

    /// Forgets sidecars that are gone, and pairs between whom nothing passes any more.
    pub fn forget(&mut self, now: Instant) {
        let gone = |told: Instant| now.saturating_duration_since(told) > FORGET;
        self.reporters.retain(|_, reporter| !gone(reporter.told));
        self.edges.retain(|_, sides| sides.iter().flatten().any(|ring| !gone(ring.told)));
    }
}

fn slot_of(began: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(began).as_secs() / SLOT.as_secs()
}

impl Ring {
    fn seen(&self, present: u64, now: Instant) -> Seen {
        let mut numbers = Numbers::default();
        for slot in self.slots.range(present.saturating_sub(SLOTS - 1)..).map(|(_, slot)| slot) {
            numbers.add(slot);
        }
        // A first report tells of the time before it too.
        let over = (now.saturating_duration_since(self.first) + SLOT).min(WINDOW);
        Seen { numbers, over, told: self.told }
    }
}

impl Numbers {
    fn add(&mut self, other: &Self) {
        for (end, count) in &other.ends {
            let known = self.ends.len() < MOST_ENDS || self.ends.contains_key(end);
            let end = if known { end.clone() } else { End { status: 0, reason: OVERFLOW.into(), ..end.clone() } };
            let counted = self.ends.entry(end).or_default();
            *counted = counted.saturating_add(*count);
        }
        if self.took.is_empty() {
            self.took.clone_from(&other.took);
        } else {
            self.took.iter_mut().zip(&other.took).for_each(|(mine, more)| *mine += more);
        }
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
    }

    /// What came since running totals stood at `before`; all of it when they went back.
    fn since(&self, before: &Self) -> Self {
        let more = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
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

    /// How many ended, of those `counted`.
    pub fn count(&self, counted: impl Fn(&End) -> bool) -> u64 {
        self.ends.iter().filter(|(end, _)| counted(end)).map(|(_, count)| count).sum()
    }

    /// So many milliseconds the fastest `share` of them took at most, found within its bucket as Prometheus does
    /// (`histogram_quantile`); `None` when there are none.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let all: u64 = self.took.iter().sum();
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
