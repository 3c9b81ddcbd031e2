//! What is known of one issuer's keys, and when it is asked for again: functions of outcomes and times.
//!
//! Keys are asked for before they are old, with some chance in it so that a thousand sidecars do not ask at once; after a
//! failure again soon, then less often. While nobody answers the keys of before hold, up to a bound. A token that names
//! an unknown key may have them asked for at once, a few times in a row and then every two seconds.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use equerry_policies::compile::keys::Key;

/// How long keys are new when their issuer does not say (Envoy's default).
const USUAL: Duration = Duration::from_secs(600);
/// Whatever the issuer says: a key that was withdrawn is noticed within the hour.
const BOUNDS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));
/// Keys that are older are not believed any more: a day without an answer is no short outage.
pub(super) const OLDEST: Duration = Duration::from_secs(24 * 3600);
/// The first wait after a failure, and the longest.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Between two looks at the clock, so that one set anew is noticed.
const LOOK: Duration = Duration::from_secs(60);
/// Unknown keys may be asked for so many times in a row ...
const BURST: f64 = 5.0;
/// ... and then once in this time.
const REFILL: Duration = Duration::from_secs(2);

/// The keys of one issuer as they were fetched last.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) keys: Arc<[Key]>,
    /// The set as it came.
    pub(super) text: Arc<str>,
    pub(super) fetched_at: SystemTime,
}

/// What is known.
#[derive(Debug)]
pub(super) struct Memory {
    held: Option<Held>,
    failures: u32,
    /// What went wrong last, since the last success.
    problem: Option<Arc<str>>,
    next: SystemTime,
    /// When the clock was looked at last.
    looked_at: SystemTime,
    /// Questions about unknown keys that may be asked now.
    questions: f64,
    counted_at: SystemTime,
}

impl Memory {
    /// Nothing is known but what was saved: whatever it is, the issuer is asked at once.
    pub(super) fn new(saved: Option<Held>, now: SystemTime) -> Self {
        // A clock that was set back makes no key younger than it is now.
        let held = saved.filter(|held| held.fetched_at <= now);
        Self { held, failures: 0, problem: None, next: now, looked_at: now, questions: BURST, counted_at: now }
    }

    /// The keys, while they may be believed.
    pub(super) fn held(&self, now: SystemTime) -> Option<&Held> {
        self.held.as_ref().filter(|held| age(held, now) < OLDEST)
    }

    /// The keys, too old or not.
    pub(super) fn latest(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// What went wrong, when the last try did.
    pub(super) fn problem(&self) -> Option<&Arc<str>> {
        self.problem.as_ref()
    }

    /// When the issuer is asked next.
    pub(super) fn next(&self) -> SystemTime {
        self.next
    }

    /// How long until something happens by itself: a question, keys that become too old, or a look at the clock.
    pub(super) fn rest(&self, now: SystemTime) -> Duration {
        let too_old = self.held(now).map(|held| OLDEST.saturating_sub(age(held, now)));
        let next = self.next.duration_since(now).unwrap_or_default();
        too_old.map_or(next, |too_old| next.min(too_old)).min(LOOK)
    }

    /// Whether the issuer is to be asked. Where the clock was set back, what was planned by the old one is planned anew, as
    /// far ahead as it was, and no key is younger than now.
    pub(super) fn is_due(&mut self, now: SystemTime) -> bool {
        if now < self.looked_at {
            self.next = now + self.next.duration_since(self.looked_at).unwrap_or_default();
            if let Some(held) = &mut self.held {
                held.fetched_at = held.fetched_at.min(now);
            }
        }
        self.looked_at = now;
        self.next <= now
    }

    /// The issuer answered. `chance` (0..1) spreads the next question over the last fifth of the time for which the
    /// answer is new.
    pub(super) fn fetched(&mut self, held: Held, new_for: Option<Duration>, chance: f64) {
        let new_for = new_for.unwrap_or(USUAL).clamp(BOUNDS.0, BOUNDS.1);
        self.next = held.fetched_at + new_for.mul_f64(0.75 + 0.2 * chance);
        // The same keys stay the same value, so that nothing is judged anew.
        let same = self.held.take().map(|before| before.keys).filter(|before| **before == *held.keys);
        self.held = Some(Held { keys: same.unwrap_or(held.keys), ..held });
        (self.failures, self.problem) = (0, None);
    }

    /// The issuer did not answer, or not with keys.
    pub(super) fn failed(&mut self, why: Arc<str>, now: SystemTime, chance: f64) {
        let wait = AGAIN.0.saturating_mul(1 << self.failures.min(10)).min(AGAIN.1);
        self.next = now + wait.mul_f64(0.75 + 0.5 * chance);
        (self.failures, self.problem) = (self.failures.saturating_add(1), Some(why));
    }

    /// Takes one of the questions about unknown keys.
    ///
    /// # Errors
    /// When there is the next one, if there is none now.
    pub(super) fn ask(&mut self, now: SystemTime) -> Result<(), Duration> {
        let since = now.duration_since(self.counted_at).unwrap_or_default();
        self.questions = (self.questions + since.as_secs_f64() / REFILL.as_secs_f64()).min(BURST);
        self.counted_at = now;
        if self.questions >= 1.0 {
            self.questions -= 1.0;
            return Ok(());
        }
        Err(REFILL.mul_f64(1.0 - self.questions).max(Duration::from_millis(1)))
    }
}

/// How old keys are.
pub(super) fn age(held: &Held, now: SystemTime) -> Duration {
    now.duration_since(held.fetched_at).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use equerry_policies::compile::keys::{Algorithm, Material};

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + seconds)
    }

    fn held(id: &str, seconds: u64) -> Held {
        let key = Key {
            id: Some(id.into()),
            algorithms: vec![Algorithm::EdDSA],
            material: Material::Ed25519(Box::new([1; 32])),
        };
        Held { keys: vec![key].into(), text: id.into(), fetched_at: at(seconds) }
    }

    #[test]
    fn keys_are_asked_for_before_they_are_old() {
        for (says, chance, next) in [
            (None, 0.0, 450),
            (None, 1.0, 570),
            (Some(1), 0.0, 45),
            (Some(300), 0.0, 225),
            (Some(1_000_000), 1.0, 3420),
        ] {
            let mut memory = Memory::new(None, at(0));
            assert!(memory.is_due(at(0)), "at once the first time");
            memory.fetched(held("a", 0), says.map(Duration::from_secs), chance);
            assert!(!memory.is_due(at(next - 1)) && memory.is_due(at(next + 1)), "{says:?}: {:?}", memory.next());
        }
    }

    #[test]
    fn keys_hold_for_a_day_while_nobody_answers_and_no_longer() {
        let mut memory = Memory::new(None, at(0));
        memory.fetched(held("a", 0), None, 0.0);
        let day = OLDEST.as_secs();
        for failure in 0..40 {
            memory.failed("it is away".into(), at(600 + failure), 0.5);
        }
        assert!(memory.held(at(day - 1)).is_some() && memory.held(at(day)).is_none());
        assert_eq!(memory.problem().map(|why| &**why), Some("it is away"));
        assert_eq!(memory.rest(at(day - 3)), Duration::ZERO, "asking goes on");
        memory.fetched(held("b", day + 5), None, 0.0);
        assert!(memory.held(at(day + 6)).is_some() && memory.problem().is_none());
    }

    #[test]
    fn after_a_failure_it_is_asked_again_soon_and_then_less_often() {
        let mut memory = Memory::new(None, at(0));
        let mut waits = Vec::new();
        for _ in 0..9 {
            memory.failed("no".into(), at(0), 0.5);
            waits.push(memory.rest(at(0)).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn a_clock_that_is_set_back_neither_stops_the_asking_nor_makes_keys_younger() {
        let mut memory = Memory::new(None, at(1_000_000));
        memory.fetched(held("a", 1_000_000), Some(Duration::from_secs(300)), 0.0);
        assert!(
            !memory.is_due(at(1_000_010)) && memory.rest(at(1_000_010)) == LOOK,
            "the clock is looked at meanwhile"
        );
        assert!(!memory.is_due(at(0)), "the question comes when it would have come: after 215 seconds");
        assert!(!memory.is_due(at(214)) && memory.is_due(at(216)), "{:?}", memory.next());
        let day = OLDEST.as_secs();
        assert!(
            memory.held(at(day - 1)).is_some() && memory.held(at(day)).is_none(),
            "keys from the future are of now"
        );
    }

    #[test]
    fn what_was_saved_counts_as_old_as_it_is() {
        let mut memory = Memory::new(Some(held("a", 0)), at(100));
        assert!(memory.held(at(100)).is_some() && memory.is_due(at(100)), "and is asked for at once");
        assert!(Memory::new(Some(held("a", 0)), at(OLDEST.as_secs())).held(at(OLDEST.as_secs())).is_none());
        assert!(Memory::new(Some(held("a", 5000)), at(0)).latest().is_none(), "from the future");
    }

    #[test]
    fn the_same_keys_stay_the_same_value() {
        let mut memory = Memory::new(Some(held("a", 0)), at(10));
        let before = Arc::clone(&memory.latest().unwrap().keys);
        memory.fetched(held("a", 10), None, 0.0);
        assert!(Arc::ptr_eq(&before, &memory.latest().unwrap().keys));
        memory.fetched(held("b", 20), None, 0.0);
        assert!(!Arc::ptr_eq(&before, &memory.latest().unwrap().keys));
    }

    #[test]
    fn unknown_keys_are_asked_for_a_few_times_in_a_row_and_then_every_two_seconds() {
        let mut memory = Memory::new(None, at(0));
        assert!((0..5).all(|_| memory.ask(at(0)).is_ok()));
        assert_eq!(memory.ask(at(0)), Err(Duration::from_secs(2)));
        assert_eq!(memory.ask(at(1)), Err(Duration::from_secs(1)));
        assert!(memory.ask(at(2)).is_ok() && memory.ask(at(2)).is_err());
        assert!((0..5).all(|_| memory.ask(at(1000)).is_ok()) && memory.ask(at(1000)).is_err());
    }
}
