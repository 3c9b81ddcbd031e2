//! `loadBalancer` of a `TrafficPolicy`: what fits which algorithm, and the field's defaults.

use std::time::Duration;

use super::at::At;
use crate::document::shape::Notes;
use crate::policy::{Algorithm, HashOn, LoadBalancer, Maglev, RingHash, SlowStart};

/// The keys of `hash`.
const HASHES: &str = "header, cookie, query, sourceAddress, identity";

/// Reads `loadBalancer` of a policy's `spec`; the default where there is none.
pub(super) fn load_balancer(spec: &At<'_>, notes: &mut Notes<'_>) -> LoadBalancer {
    let Some(at) = spec.get("loadBalancer") else { return LoadBalancer::default() };
    let Some(word) = at.text_of("type") else { return LoadBalancer::default() };
    refuse_misplaced(&at, word, notes);
    // All of it is read, so that all its mistakes are named.
    let (ring, table_size) = (ring_hash(&at, notes), table_size(&at, notes));
    let algorithm = match word {
        "least_request" => Algorithm::LeastRequest,
        "round_robin" => Algorithm::RoundRobin,
        "random" => Algorithm::Random,
        "ring_hash" => needed_hash(&at, word, notes)
            .map_or_else(Algorithm::default, |hash| Algorithm::RingHash(RingHash { hash, ..ring })),
        "maglev" => needed_hash(&at, word, notes)
            .map_or_else(Algorithm::default, |hash| Algorithm::Maglev(Maglev { hash, table_size })),
        _ => Algorithm::P2cEwma,
    };
    LoadBalancer { algorithm, slow_start: at.get("slowStart").and_then(|ramp| slow_start(&ramp, notes)) }
}

/// Settings of one algorithm beside another would do nothing.
fn refuse_misplaced(at: &At<'_>, word: &str, notes: &mut Notes<'_>) {
    let hashes = matches!(word, "ring_hash" | "maglev");
    let known = hashes || matches!(word, "p2c_ewma" | "least_request" | "round_robin" | "random");
    let places = [
        (
            "slowStart",
            !hashes,
            "type p2c_ewma, least_request, round_robin or random beside it: a hash knows no half endpoints",
        ),
        ("hash", hashes, "type ring_hash or maglev beside it"),
        ("ring", word == "ring_hash", "type ring_hash beside it"),
        ("maglev", word == "maglev", "type maglev beside it"),
    ];
    for (key, fits, expected) in places {
        if let Some(misplaced) = at.get(key).filter(|_| known && !fits) {
            misplaced.complain_of(notes, format!("{key} with type {word}"), expected);
        }
    }
}

fn needed_hash(at: &At<'_>, word: &str, notes: &mut Notes<'_>) -> Option<HashOn> {
    let Some(hash) = at.get("hash") else {
        at.complain_of(notes, format!("type {word} without hash"), format!("hash, with one of {HASHES}"));
        return None;
    };
    let text = |key: &str| hash.text_of(key).map(str::to_owned);
    let flag = |key: &str| hash.flag(key).is_some();
    for at in ["sourceAddress", "identity"].into_iter().filter(|key| hash.flag(key) == Some(false)) {
        if let Some(at) = hash.get(at) {
            at.complain(notes, "true; leave the key out to hash something else");
        }
    }
    let found: Vec<HashOn> = [
        text("header").map(HashOn::Header),
        text("cookie").map(HashOn::Cookie),
        text("query").map(HashOn::Query),
        flag("sourceAddress").then_some(HashOn::SourceAddress),
        flag("identity").then_some(HashOn::Identity),
    ]
    .into_iter()
    .flatten()
    .collect();
    if found.len() != 1 {
        hash.complain_of(notes, format!("{} things to hash", found.len()), format!("exactly one of {HASHES}"));
    }
    found.into_iter().next()
}

/// The ring, on whatever.
fn ring_hash(at: &At<'_>, notes: &mut Notes<'_>) -> RingHash {
    let default = RingHash::on(HashOn::Identity);
    let Some(ring) = at.get("ring") else { return default };
    let minimum_size = ring.whole("minimumSize");
    let maximum_size = ring.whole("maximumSize").unwrap_or(default.maximum_size);
    if let Some(at) = ring.get("maximumSize").filter(|_| minimum_size.is_some_and(|minimum| maximum_size < minimum)) {
        at.complain(notes, "a number not smaller than minimumSize");
    }
    RingHash { minimum_size, maximum_size, bounded_load: ring.whole("boundedLoad"), ..default }
}

fn table_size(at: &At<'_>, notes: &mut Notes<'_>) -> u32 {
    let maglev = at.get("maglev");
    let written: Option<u32> = maglev.as_ref().and_then(|m| m.whole("tableSize"));
    let Some(size) = written.filter(|size| (2..=Maglev::MAX_TABLE_SIZE).contains(size)) else {
        return Maglev::TABLE_SIZE;
    };
    if !is_prime(size)
        && let Some(at) = maglev.and_then(|m| m.get("tableSize"))
    {
        let below = (2..size).rev().find(|n| is_prime(*n));
        let above = (size..=Maglev::MAX_TABLE_SIZE).find(|n| is_prime(*n));
        let near: Vec<String> = [below, above].into_iter().flatten().map(|n| n.to_string()).collect();
        at.complain(notes, format!("a prime number, such as {}", near.join(" or ")));
    }
    size
}

fn is_prime(n: u32) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

fn slow_start(ramp: &At<'_>, notes: &mut Notes<'_>) -> Option<SlowStart> {
    let window = ramp.duration("window")?;
    if let Some(at) = ramp.get("window").filter(|_| window == Duration::ZERO) {
        at.complain(notes, "a duration longer than 0s");
    }
    Some(SlowStart { window, aggression: ramp.whole("aggression").unwrap_or(SlowStart::AGGRESSION) })
}

#[cfg(test)]
mod tests {
    use super::is_prime;

    #[test]
    fn primes_are_told_from_other_numbers() {
        let primes: Vec<u32> = (0..30).filter(|n| is_prime(*n)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(is_prime(65_537) && is_prime(5_000_011) && !is_prime(65_536) && !is_prime(65_535));
    }
}
