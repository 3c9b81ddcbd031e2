//! What is known of one endpoint, shared by all threads and kept across changes of configuration: tries in flight, how long
//! answers take, how often they fail, how long it asked to be left alone, its breaker, what it answered when it was asked, and
//! whether somebody else was met there.

use std::f32::consts::LOG2_E;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use equerry_policies::policy::{Breaker as BreakerSettings, BreakerMode, HealthCheck};

use super::Verdict;
use crate::breaker::{Admission, Breaker, State, Transition};
use crate::health::{self, Asked, Health, Opened, Signs, Stranger, Turn};
use crate::outlier::may_eject;

/// The latency assumed of an endpoint nothing is known of (Linkerd's default).
const DEFAULT_LATENCY: f32 = 0.030;
/// How fast old latencies are forgotten, in seconds (Linkerd's default).
const LATENCY_DECAY: f32 = 10.0;
/// How much one failure or success moves the estimated share of failures.
const FAILURE_WEIGHT: f32 = 0.125;
/// How fast old failures are forgotten, in seconds; short, so that a single one costs an endpoint seconds of traffic, not
/// minutes.
const FAILURE_DECAY: f32 = 1.0;
/// What a certain failure costs, in seconds of latency (Linkerd's default penalty).
const FAILURE_COST: f32 = 5.0;
/// An endpoint is never avoided for longer, whatever it asks for.
const LONGEST_AVOIDED: Duration = Duration::from_secs(60);
/// While one try finds out who is met there now, others keep away for so long.
const MEETING: Duration = Duration::from_secs(1);

/// Its breaker has something to say.
const TRIPPING: u8 = 1;
/// Its answers keep it away.
const UNWELL: u8 = 2;
/// Somebody else was met there.
const STRANGER: u8 = 4;

/// What is known of one endpoint. All that a pick reads is in the first cache line.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct EndpointState {
    in_flight: AtomicU32,
    /// What may keep it from being tried; while there is nothing, no thread takes the lock.
    signs: AtomicU8,
    /// The breaker is open or waits for its probe: told beside it, for those who count the ejected.
    ejected: AtomicBool,
    /// Two `f32` in one word: latency in seconds, and share of failures. 0 is "nothing known".
    estimate: AtomicU64,
    /// When the estimate was made.
    estimated_at: AtomicU64,
    /// It asked to be left alone until then; 0: it did not.
    avoided_until: AtomicU64,
    known: Mutex<Known>,
}

/// What is known beside estimates.
#[derive(Debug, Default)]
struct Known {
    breaker: Breaker,
    /// Since when the breaker has not been closed, and what opened it.
    opened: Option<(Instant, &'static str)>,
    asked: Asked,
    stranger: Option<Stranger>,
}

impl AsRef<Self> for EndpointState {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl EndpointState {
    /// Tries under way, and answers where [`InFlight`](super::InFlight) counts them.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Where its breaker stands.
    pub fn breaker(&self) -> State {
        self.lock().breaker.state()
    }

    /// Whether requests are kept away from it by anything but its breaker, now.
    pub fn is_out(&self, now: Instant) -> bool {
        let signs = self.signs.load(Relaxed);
        signs & UNWELL != 0 || (signs & STRANGER != 0 && self.lock().meets_a_stranger(now))
    }

    /// The verdict on it, by all that is known. `breaker`: the settings in force.
    pub fn health(&self, breaker: Option<&BreakerSettings>, now: Instant) -> Health {
        let known = self.lock();
        let enforced = breaker.is_some_and(|settings| settings.mode == BreakerMode::Enforce);
        let signs = Signs {
            stranger: known.stranger.as_ref(),
            breaker: enforced.then(|| Opened { state: known.breaker.state(), since: known.opened }),
            asked: Some(&known.asked),
            leased: None,
        };
        health::judge(&signs, now)
    }

    /// Takes in what it answered when it was asked. Where it turns out to be well again and its breaker is open, the next
    /// request is the probe: the penalty was for what it was before.
    pub fn answered(&self, answer: Result<(), String>, settings: &HealthCheck, now: Instant) -> Option<Turn> {
        let mut known = self.lock();
        let turn = known.asked.answered(answer, settings, now);
        if turn == Some(Turn::Well) {
            known.breaker.end_penalty(now);
        }
        self.mark(&known);
        turn
    }

    /// Whether its answers say that it is not well.
    pub fn is_unwell(&self) -> bool {
        self.lock().asked.is_unwell()
    }

    /// Whether it is used though it is not well, because too many others are not either.
    pub fn set_panic(&self, panic: bool) {
        let mut known = self.lock();
        known.asked.set_panic(panic);
        self.mark(&known);
    }

    /// Nobody asks it any more: what it answered says nothing.
    pub fn not_asked(&self) {
        let mut known = self.lock();
        known.asked = Asked::default();
        self.mark(&known);
    }

    /// Writes beside the lock what must be seen without it.
    fn mark(&self, known: &Known) {
        let sign = |is: bool, sign: u8| if is { sign } else { 0 };
        let signs = sign(known.breaker != Breaker::default(), TRIPPING)
            | sign(known.asked.keeps_away(), UNWELL)
            | sign(known.stranger.is_some(), STRANGER);
        self.signs.store(signs, Relaxed);
        self.ejected.store(known.breaker.is_open(), Relaxed);
    }

    /// What one more try is expected to cost, in seconds: (latency + share of failures × penalty) × (in flight + 1), both
    /// estimates decayed toward 0 since they were made. An endpoint nothing is known of costs nothing while nobody waits
    /// for it, so that it gets the one try by which it becomes known; while somebody does, it is taken for a usual one.
    ///
    /// `weight` is relative to what is usual (1.0): an endpoint of twice the weight bears twice as much in flight.
    pub fn cost(&self, weight: f32, now: Moment) -> f32 {
        let in_flight = self.in_flight();
        let bits = self.estimate.load(Relaxed);
        if in_flight == 0 && bits == 0 {
            return 0.0;
        }
        let (latency, failing) = self.estimate(bits, now);
        (latency + failing * FAILURE_COST) * (in_flight as f32 / weight + 1.0)
    }

    /// Leaves it alone until `until`, but not for longer than a minute: it answered 429 or 503 with `Retry-After`, or a gRPC
    /// status like those with `grpc-retry-pushback-ms`. Where there is nobody else it is tried all the same.
    pub fn avoid_until(&self, until: Instant, now: Instant) {
        let asked = until.saturating_duration_since(now).min(LONGEST_AVOIDED);
        if !asked.is_zero() {
            self.avoided_until.fetch_max(Moment::of(now + asked).0, Relaxed);
        }
    }

    /// Whether it asked to be left alone now.
    pub fn is_avoided(&self, now: Moment) -> bool {
        now.0 < self.avoided_until.load(Relaxed)
    }

    pub(super) fn begin(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(super) fn end(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// The estimates `bits` as they stand now.
    fn estimate(&self, bits: u64, now: Moment) -> (f32, f32) {
        if bits == 0 {
            return (DEFAULT_LATENCY, 0.0);
        }
        let since = self.since_estimate(now);
        let (latency, failing) = (f32::from_bits((bits >> 32) as u32), f32::from_bits(bits as u32));
        let failing = if failing > 0.0 { failing * fading(since, FAILURE_DECAY) } else { 0.0 };
        (latency * fading(since, LATENCY_DECAY), failing)
    }

    /// Nanoseconds since the estimate was made.
    fn since_estimate(&self, now: Moment) -> f32 {
        // Signed: there is an instruction for it.
        (now.0 as i64 - self.estimated_at.load(Relaxed) as i64).max(0) as f32
    }

    /// Takes one result into the estimates: a slower answer than estimated counts at once (peak), a faster one by age.
    ///
    /// Where a breaker `judges`, a failure weighs nothing and wins nothing here. An answer that it has had enough always
    /// weighs: no breaker opens for that.
    ///
    /// Two threads may write at once and one result be lost, or a time be taken for the other's: an estimate bears that,
    /// and a lock on this path would cost more than it gives.
    pub(super) fn observe(&self, latency: Duration, verdict: Verdict, judges: bool, now: Instant) {
        let now = Moment::of(now);
        let bits = self.estimate.load(Relaxed);
        let (expected, failing) = self.estimate(bits, now);
        let left_to_breaker = judges && verdict == Verdict::Failure && bits != 0;
        let sample = if left_to_breaker { latency.as_secs_f32().max(expected) } else { latency.as_secs_f32() };
        let estimated = f32::from_bits((bits >> 32) as u32);
        let estimated = if bits == 0 || sample > estimated {
            sample
        } else {
            let keep = fading(self.since_estimate(now), LATENCY_DECAY);
            estimated * keep + sample * (1.0 - keep)
        };
        let outcome = if verdict.is_shunned(judges) { 1.0 } else { 0.0 };
        self.put_estimate(estimated, failing + (outcome - failing) * FAILURE_WEIGHT, now);
    }

    /// Takes in that an answer ended badly whose latency is known already.
    fn observe_bad_end(&self, now: Instant) {
        let now = Moment::of(now);
        let (latency, failing) = self.estimate(self.estimate.load(Relaxed), now);
        self.put_estimate(latency, failing + (1.0 - failing) * FAILURE_WEIGHT, now);
    }

    fn put_estimate(&self, latency: f32, failing: f32, now: Moment) {
        // Never the word for "nothing known".
        let word = (u64::from(latency.max(1e-9).to_bits()) << 32) | u64::from(failing.to_bits());
        self.estimate.store(word, Relaxed);
        self.estimated_at.store(now.0, Relaxed);
    }

    /// Whether a try could be made now.
    pub(super) fn would_admit(&self, settings: Option<&BreakerSettings>, now: Instant) -> Option<Admission> {
        match self.signs.load(Relaxed) {
            0 => Some(Admission::Closed),
            _ => self.lock().would_admit(settings, now),
        }
    }

    pub(super) fn admit(
        &self,
        settings: Option<&BreakerSettings>,
        now: Instant,
    ) -> Option<(Admission, Option<Transition>)> {
        match self.signs.load(Relaxed) {
            0 => Some((Admission::Closed, None)),
            _ => self.lock().admit(settings, now),
        }
    }

    /// Somebody else was met there, `found` in words. Returns for how long it is kept away, for one of the tries that were
    /// under way together.
    pub(super) fn met_a_stranger(&self, found: &str, began: Instant, now: Instant) -> Option<Duration> {
        let mut known = self.lock();
        // A try that began before the last meeting belongs to it.
        if known.stranger.as_ref().is_some_and(|before| began < before.met) {
            return None;
        }
        let stranger = Stranger::again(known.stranger.as_ref(), found, now);
        let penalty = stranger.penalty;
        known.stranger = Some(stranger);
        self.mark(&known);
        Some(penalty)
    }

    /// Whoever should be there was met. Returns whether it was somebody else before.
    pub(super) fn met_the_right_one(&self) -> bool {
        if self.signs.load(Relaxed) & STRANGER == 0 {
            return false;
        }
        let mut known = self.lock();
        let before = known.stranger.take();
        self.mark(&known);
        before.is_some()
    }

    /// Takes in how an answer ended that had begun well; `all` are the endpoints of which only so many may be kept away at
    /// once. `random` is in 0..1.
    pub fn ended<E: AsRef<Self>>(
        &self,
        verdict: Verdict,
        settings: Option<&BreakerSettings>,
        all: &[E],
        now: Instant,
        random: f64,
    ) -> Option<Transition> {
        let judges = settings.is_some_and(|settings| settings.mode == BreakerMode::Enforce);
        if verdict.is_shunned(judges) {
            self.observe_bad_end(now);
        }
        self.judge((Admission::Closed, verdict), settings, all, now, random)
    }

    /// Tells the breaker how a try ended; `all` are the endpoints of which only so many may be kept away at once.
    pub(super) fn judge<E: AsRef<Self>>(
        &self,
        (admitted, verdict): (Admission, Verdict),
        settings: Option<&BreakerSettings>,
        all: &[E],
        now: Instant,
        random: f64,
    ) -> Option<Transition> {
        if verdict != Verdict::Failure && self.signs.load(Relaxed) & TRIPPING == 0 {
            return None;
        }
        let mut known = self.lock();
        let Some(settings) = settings else {
            // Switched off: what it remembers must not hold when it is switched on again.
            (known.breaker, known.opened) = (Breaker::default(), None);
            self.mark(&known);
            return None;
        };
        let transition = match verdict {
            Verdict::Success | Verdict::Busy => known.breaker.succeeded(admitted, settings, now),
            Verdict::Failure => {
                known.breaker.failed(admitted, settings, || self.may_be_ejected(settings, all), now, random)
            }
        };
        match transition {
            Some(Transition::Opened { cause, .. }) => known.opened = Some((now, cause.as_str())),
            Some(Transition::Closed | Transition::Kept { .. }) => known.opened = None,
            Some(Transition::Reopened { .. } | Transition::Probing) | None => {}
        }
        self.mark(&known);
        transition
    }

    /// Whether one more of `all` may be kept away. It is marked before the others are counted: of two threads that would
    /// eject the last two, at least one sees the other.
    fn may_be_ejected<E: AsRef<Self>>(&self, settings: &BreakerSettings, all: &[E]) -> bool {
        self.ejected.store(true, SeqCst);
        let other = |other: &&E| !std::ptr::eq((*other).as_ref(), self);
        let is_away = |other: &&E| {
            let other = (*other).as_ref();
            other.ejected.load(SeqCst) || other.signs.load(Relaxed) & (UNWELL | STRANGER) != 0
        };
        let ejected = all.iter().filter(other).filter(is_away).count();
        may_eject(ejected, all.len(), settings)
    }

    /// A probe ended without a verdict.
    pub(super) fn abandon_probe(&self) {
        self.lock().breaker.abandon(Admission::Probe);
    }

    /// Nothing behind it has an invariant that a panic between two steps could break.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A moment as a number: nanoseconds since a zero that is the same for the whole process and means nothing. Made once for each
/// choice, so that looking at an endpoint needs no arithmetic on clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// That of an instant.
    pub fn of(now: Instant) -> Self {
        static ZERO: OnceLock<Instant> = OnceLock::new();
        // A day before the first instant seen, so that none comes before it, and none is 0.
        let zero = *ZERO.get_or_init(|| now.checked_sub(Duration::from_secs(24 * 3600)).unwrap_or(now));
        let since = now.saturating_duration_since(zero);
        Self(since.as_secs() * 1_000_000_000 + u64::from(since.subsec_nanos()))
    }
}

/// What is left of an estimate after `nanos` nanoseconds: e^(-time / decay), within 0.4%, at a fraction of the cost. 2^-n
/// is written into the exponent, and between two powers runs a parabola through 1, 1/√2 and 1/2.
fn fading(nanos: f32, decay: f32) -> f32 {
    let halvings = nanos * (LOG2_E / 1e9 / decay);
    if halvings >= 126.0 {
        return 0.0;
    }
    let whole = halvings as u32;
    let part = halvings - whole as f32;
    f32::from_bits((127 - whole) << 23) * (1.0 - part * (0.671_573 - 0.171_573 * part))
}

impl Known {
    fn meets_a_stranger(&self, now: Instant) -> bool {
        self.stranger.as_ref().is_some_and(|stranger| now < stranger.until)
    }

    fn would_admit(&self, settings: Option<&BreakerSettings>, now: Instant) -> Option<Admission> {
        if self.asked.keeps_away() || self.meets_a_stranger(now) {
            return None;
        }
        settings.map_or(Some(Admission::Closed), |settings| self.breaker.would_admit(settings, now))
    }

    fn admit(&mut self, settings: Option<&BreakerSettings>, now: Instant) -> Option<(Admission, Option<Transition>)> {
        self.would_admit(settings, now)?;
        let admitted = match settings {
            Some(settings) => self.breaker.admit(settings, now)?,
            None => (Admission::Closed, None),
        };
        if let Some(stranger) = &mut self.stranger {
            stranger.until = now + MEETING;
        }
        Some(admitted)
    }
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
