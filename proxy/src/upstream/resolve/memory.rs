//! What is remembered of one name, as a function of what lookups found and when: how long an answer holds, when to ask again,
//! and what is still used while the DNS is down.
//!
//! An answer that came is believed until its time is over. A lookup that failed changes nothing that is in use: the
//! addresses that came last stay good for [`Bounds::last_good`], and the name is asked for again, more and more seldom.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most addresses of one name that are used: a balancer needs no more, and whoever answers could send thousands.
const MOST_ADDRESSES: usize = 64;
/// How long a name without addresses is believed to have none, where the answer does not say (no SOA record).
const NEGATIVE: Duration = Duration::from_secs(5);
/// How much an answer's time is cut for the next lookup, at least and at most: it must come before the answer expires, and
/// not at the same moment for every name.
const AHEAD: (f64, f64) = (0.05, 0.2);

/// Settings; the defaults hold in every process, tests shorten them.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// An answer holds at least for this: a time of 0 would mean one lookup for each request.
    pub(crate) shortest: Duration,
    /// And at most for this.
    pub(crate) longest: Duration,
    /// A name without addresses is believed to have none at most for this.
    pub(crate) longest_negative: Duration,
    /// Between two lookups of a name that fails, at most.
    pub(crate) longest_rest: Duration,
    /// How long after their time addresses are used while the DNS is down.
    pub(crate) last_good: Duration,
    /// A name nobody has used for this long is let go.
    pub(crate) unused: Duration,
    /// How long a request waits for an answer.
    pub(crate) patience: Duration,
    /// Most names that callers may have this process remember.
    pub(crate) names: usize,
    /// Most lookups at the same time.
    pub(crate) at_once: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            shortest: Duration::from_secs(1),
            longest: Duration::from_secs(300),
            longest_negative: Duration::from_secs(30),
            longest_rest: Duration::from_secs(30),
            last_good: Duration::from_secs(3600),
            unused: Duration::from_secs(300),
            patience: Duration::from_secs(1),
            names: 1024,
            at_once: 64,
        }
    }
}

/// How one lookup ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The name has addresses.
    Found {
        /// They, in any order.
        addresses: Vec<IpAddr>,
        /// For how long.
        ttl: Duration,
    },
    /// The name does not exist, or has no address.
    Nobody {
        /// For how long, if that was said.
        ttl: Option<Duration>,
    },
    /// Nobody answered, or nobody could say.
    Failed(String),
}

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Its addresses, each once, sorted.
    Addresses(Arc<[IpAddr]>),
    /// It has none.
    Nobody,
    /// It could not be looked up, and nothing that was known before can be used any more.
    Failed(Arc<str>),
}

/// What is remembered of one name.
#[derive(Debug, Default)]
pub(super) struct Memory {
    known: Option<Known>,
}

#[derive(Debug)]
struct Known {
    answer: Answer,
    /// When to ask again.
    ask_at: Instant,
    /// Until then nobody need ask again before using the answer.
    good_until: Instant,
    /// Addresses are not used beyond this.
    keep_until: Instant,
    /// Lookups that failed in a row.
    failures: u32,
}

/// What a lookup changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Learned {
    /// Nothing that is in use.
    Same,
    /// The answer.
    Changed,
    /// Nothing yet: the lookup failed after others had not, and what came last stays in use.
    Kept,
    /// The lookup failed, and what came last is too old now.
    Lost,
    /// The DNS answers again.
    Recovered,
}

impl Memory {
    /// Takes in how a lookup ended; `random` is in 0..1.
    pub(super) fn learn(&mut self, outcome: Outcome, now: Instant, bounds: &Bounds, random: f64) -> Learned {
        let before = self.known.take();
        let (next, learned) = match outcome {
            Outcome::Found { addresses, ttl } if !addresses.is_empty() => {
                let ttl = ttl.clamp(bounds.shortest, bounds.longest);
                let ahead = ttl.mul_f64(AHEAD.0 + random * (AHEAD.1 - AHEAD.0));
                let known = Known {
                    answer: Answer::Addresses(in_order(addresses, before.as_ref())),
                    ask_at: now + (ttl - ahead),
                    good_until: now + ttl,
                    keep_until: now + ttl + bounds.last_good,
                    failures: 0,
                };
                let learned = changed(before.as_ref(), &known);
                (known, learned)
            }
            Outcome::Found { ttl, .. } => nobody(Some(ttl), before.as_ref(), now, bounds),
            Outcome::Nobody { ttl } => nobody(ttl, before.as_ref(), now, bounds),
            Outcome::Failed(why) => failed(&why, before, now, bounds, random),
        };
        self.known = Some(next);
        learned
    }

    /// What can be used now, if anything is known.
    pub(super) fn answer(&self, now: Instant) -> Option<Answer> {
        let known = self.known.as_ref()?;
        if matches!(known.answer, Answer::Addresses(_)) && now >= known.keep_until {
            return Some(Answer::Failed("what the DNS said last is too old to be used".into()));
        }
        Some(known.answer.clone())
    }

    /// Whether [`Memory::answer`] may be used without waiting for a lookup: its time is not over; or the DNS is down, so
    /// that waiting would bring nothing, and there are addresses.
    pub(super) fn is_ready(&self, now: Instant) -> bool {
        self.known.as_ref().is_some_and(|known| {
            now < known.good_until || (known.failures > 0 && matches!(known.answer, Answer::Addresses(_)))
        })
    }

    /// When to look the name up again; `None`: at once.
    pub(super) fn ask_at(&self) -> Option<Instant> {
        self.known.as_ref().map(|known| known.ask_at)
    }

    /// Whether addresses are used whose time is over.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.known.as_ref().is_some_and(|known| {
            matches!(known.answer, Answer::Addresses(_)) && now >= known.good_until && known.failures > 0
        })
    }
}

/// Each address once and sorted; the very list from before when nothing changed, so that those who hold it can tell.
fn in_order(mut addresses: Vec<IpAddr>, before: Option<&Known>) -> Arc<[IpAddr]> {
    for address in &mut addresses {
        *address = address.to_canonical();
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(MOST_ADDRESSES);
    match before.map(|known| &known.answer) {
        Some(Answer::Addresses(known)) if **known == *addresses => Arc::clone(known),
        _ => addresses.into(),
    }
}

fn changed(before: Option<&Known>, now: &Known) -> Learned {
    match before {
        Some(before) if before.answer == now.answer && before.failures > 0 => Learned::Recovered,
        Some(before) if before.answer == now.answer => Learned::Same,
        _ => Learned::Changed,
    }
}

/// The DNS says that there is nobody: that is believed at once, whatever it said before.
fn nobody(ttl: Option<Duration>, before: Option<&Known>, now: Instant, bounds: &Bounds) -> (Known, Learned) {
    let ttl = ttl.unwrap_or(NEGATIVE).clamp(bounds.shortest, bounds.longest_negative.max(bounds.shortest));
    let until = now + ttl;
    let known = Known { answer: Answer::Nobody, ask_at: until, good_until: until, keep_until: until, failures: 0 };
    let learned = changed(before, &known);
    (known, learned)
}

/// Full jitter over the upper half, so that names which failed together do not ask together.
fn failed(why: &str, before: Option<Known>, now: Instant, bounds: &Bounds, random: f64) -> (Known, Learned) {
    let failures = before.as_ref().map_or(0, |known| known.failures);
    let rest = bounds.shortest.saturating_mul(1 << failures.min(16)).min(bounds.longest_rest);
    let ask_at = now + rest.mul_f64(0.5 + random / 2.0);
    let failures = failures.saturating_add(1);
    match before {
        Some(known) if matches!(known.answer, Answer::Addresses(_)) && now < known.keep_until => {
            let learned = if known.failures == 0 { Learned::Kept } else { Learned::Same };
            (Known { ask_at, failures, ..known }, learned)
        }
        before => {
            let answer = Answer::Failed(why.into());
            let learned = match before.map(|known| known.answer) {
                Some(Answer::Addresses(_)) => Learned::Lost,
                Some(Answer::Failed(_)) => Learned::Same,
                _ => Learned::Changed,
            };
            (Known { answer, ask_at, good_until: ask_at, keep_until: ask_at, failures }, learned)
        }
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
