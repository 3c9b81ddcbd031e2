//! What is known of one endpoint, shared by all threads and kept across changes of configuration: tries in flight, how long
//! answers take, how often they fail, how long it asked to be left alone, and its breaker.

use std::f32::consts::LOG2_E;
use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use equerry_policies::policy::Breaker as BreakerSettings;

use crate::breaker::{Admission, Breaker, State, Transition};
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

/// What is known of one endpoint. All that a pick reads is in the first cache line.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct EndpointState {
    in_flight: AtomicU32,
    /// The breaker has something to say; without it no thread takes the lock.
    tripping: AtomicBool,
    /// The breaker is open or waits for its probe: told beside it, for those who count the ejected.
    ejected: AtomicBool,
    /// Two `f32` in one word: latency in seconds, and share of failures. 0 is "nothing known".
    estimate: AtomicU64,
    /// When the estimate was made.
    estimated_at: AtomicU64,
    /// It asked to be left alone until then; 0: it did not.
    avoided_until: AtomicU64,
    breaker: Mutex<Breaker>,
}

impl AsRef<Self> for EndpointState {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// How a try ended, as far as its endpoint is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It answered.
    Success,
    /// It counts against the endpoint.
    Failure,
}

impl EndpointState {
    /// Tries under way.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Where its breaker stands.
    pub fn breaker(&self) -> State {
        self.lock().state()
    }

    /// Whether its breaker is open or waits for its probe, asked without a lock.
    pub fn is_ejected(&self) -> bool {
        self.ejected.load(Relaxed)
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

    /// Leaves it alone until `until`, but not for longer than a minute: it answered 429 or 503 with `Retry-After`. Where
    /// there is nobody else it is tried all the same.
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
    /// Where a breaker `judges`, a failure weighs nothing and wins nothing here: it must see failures in a row to judge them,
    /// and an endpoint that it let back in must not be shunned.
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
        let outcome = if verdict == Verdict::Failure && !judges { 1.0 } else { 0.0 };
        let failing = failing + (outcome - failing) * FAILURE_WEIGHT;
        // Never the word for "nothing known".
        let word = (u64::from(estimated.max(1e-9).to_bits()) << 32) | u64::from(failing.to_bits());
        self.estimate.store(word, Relaxed);
        self.estimated_at.store(now.0, Relaxed);
    }

    /// Whether a try could be made now.
    pub(super) fn would_admit(&self, settings: Option<&BreakerSettings>, now: Instant) -> Option<Admission> {
        match settings {
            Some(settings) if self.tripping.load(Relaxed) => self.lock().would_admit(settings, now),
            _ => Some(Admission::Closed),
        }
    }

    pub(super) fn admit(
        &self,
        settings: Option<&BreakerSettings>,
        now: Instant,
    ) -> Option<(Admission, Option<Transition>)> {
        match settings {
            Some(settings) if self.tripping.load(Relaxed) => self.lock().admit(settings, now),
            _ => Some((Admission::Closed, None)),
        }
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
        if verdict == Verdict::Success && !self.tripping.load(Relaxed) {
            return None;
        }
        let Some(settings) = settings else {
            // Switched off: what it remembers must not hold when it is switched on again.
            if self.tripping.load(Relaxed) {
                *self.lock() = Breaker::default();
                self.tripping.store(false, Relaxed);
                self.ejected.store(false, Relaxed);
            }
            return None;
        };
        let mut breaker = self.lock();
        let transition = match verdict {
            Verdict::Success => breaker.succeeded(admitted, settings, now),
            Verdict::Failure => breaker.failed(admitted, settings, || self.may_be_ejected(settings, all), now, random),
        };
        self.tripping.store(*breaker != Breaker::default(), Relaxed);
        self.ejected.store(breaker.is_open(), Relaxed);
        transition
    }

    /// Whether one more of `all` may be kept away. It is marked before the others are counted: of two threads that would
    /// eject the last two, at least one sees the other.
    fn may_be_ejected<E: AsRef<Self>>(&self, settings: &BreakerSettings, all: &[E]) -> bool {
        self.ejected.store(true, SeqCst);
        let other = |other: &&E| !std::ptr::eq((*other).as_ref(), self);
        let ejected = all.iter().filter(other).filter(|other| (*other).as_ref().ejected.load(SeqCst)).count();
        may_eject(ejected, all.len(), settings)
    }

    /// A probe ended without a verdict.
    pub(super) fn abandon_probe(&self) {
        self.lock().abandon(Admission::Probe);
    }

    /// A breaker has no invariant that a panic between two of its steps could break.
    fn lock(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to count from")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn cost(state: &EndpointState, now: Instant) -> f32 {
        state.cost(1.0, Moment::of(now))
    }

    #[test]
    fn a_slower_answer_counts_at_once_and_a_faster_one_by_age() {
        let state = EndpointState::default();
        let start = Instant::now();
        state.observe(10 * MS, Verdict::Success, false, start);
        assert!((cost(&state, start) - 0.010).abs() < 1e-6);
        state.observe(100 * MS, Verdict::Success, false, start);
        assert!((cost(&state, start) - 0.100).abs() < 1e-6);
        state.observe(10 * MS, Verdict::Success, false, start + 100 * MS);
        let after = cost(&state, start + 100 * MS);
        assert!((0.098..0.100).contains(&after), "{after}");
    }

    #[test]
    fn an_endpoint_nothing_is_known_of_gets_the_one_try_by_which_it_becomes_known() {
        let (known, unknown) = (EndpointState::default(), EndpointState::default());
        let now = Instant::now();
        known.observe(MS, Verdict::Success, false, now);
        assert!(cost(&unknown, now) < cost(&known, now));
        unknown.begin();
        assert!(cost(&unknown, now) > cost(&known, now), "and no more than one");
    }

    #[test]
    fn an_endpoint_that_fails_fast_costs_more_than_a_slow_one_that_answers() {
        let (failing, slow) = (EndpointState::default(), EndpointState::default());
        let now = Instant::now();
        failing.observe(MS / 10, Verdict::Failure, false, now);
        slow.observe(200 * MS, Verdict::Success, false, now);
        assert!(cost(&failing, now) > cost(&slow, now));
        let later = now + 10 * SECOND;
        assert!(cost(&failing, later) < cost(&slow, later), "a single failure is forgotten");
    }

    #[test]
    fn an_endpoint_of_twice_the_weight_bears_twice_as_much_in_flight() {
        let (light, heavy) = (EndpointState::default(), EndpointState::default());
        let now = Instant::now();
        light.observe(10 * MS, Verdict::Success, false, now);
        heavy.observe(10 * MS, Verdict::Success, false, now);
        (0..3).for_each(|_| light.begin());
        (0..6).for_each(|_| heavy.begin());
        assert!((light.cost(1.0, Moment::of(now)) - heavy.cost(2.0, Moment::of(now))).abs() < 1e-6);
    }

    #[test]
    fn an_endpoint_is_avoided_for_as_long_as_it_asks_but_a_minute_at_most() {
        let (state, now) = (EndpointState::default(), Instant::now());
        assert!(!state.is_avoided(Moment::of(now)));
        state.avoid_until(now + 5 * SECOND, now);
        state.avoid_until(now + SECOND, now);
        assert!(state.is_avoided(Moment::of(now + 4 * SECOND)), "the longer one holds");
        assert!(!state.is_avoided(Moment::of(now + 5 * SECOND)));
        let later = now + 10 * SECOND;
        state.avoid_until(later + 3600 * SECOND, later);
        assert!(
            state.is_avoided(Moment::of(later + 59 * SECOND)) && !state.is_avoided(Moment::of(later + 60 * SECOND))
        );
        state.avoid_until(later, later + 100 * SECOND);
        assert!(!state.is_avoided(Moment::of(later + 100 * SECOND)), "what is over is over");
    }

    #[test]
    fn what_fades_is_within_less_than_half_a_percent_of_the_exponential_and_never_grows() {
        let mut before = 1.0;
        for step in 0..2_000_000_u32 {
            let nanos = step as f32 * 500_000.0;
            let (ours, exact) = (fading(nanos, LATENCY_DECAY), (-nanos / 1e9 / LATENCY_DECAY).exp());
            assert!((ours - exact).abs() <= exact * 0.004 + 1e-37, "{nanos}: {ours} against {exact}");
            assert!(ours <= before * 1.000_001, "{nanos}");
            before = ours;
        }
        assert_eq!(fading(1e18, FAILURE_DECAY), 0.0);
    }

    #[test]
    fn what_a_pick_reads_is_in_one_cache_line() {
        assert!(std::mem::offset_of!(EndpointState, breaker) <= 64);
        assert_eq!(align_of::<EndpointState>(), 64);
    }
}
