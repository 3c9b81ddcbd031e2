//! Which endpoint gets the next try.
//!
//! [`EndpointState`] is what is known of one endpoint, shared by all threads and kept across changes of configuration;
//! [`Pick`] is the choice among several; [`choose`] puts breaker and choice together and returns a [`Try`], which counts
//! as in flight until it is finished or dropped.

mod p2c_ewma;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use equerry_policies::policy::Breaker as BreakerSettings;

pub use p2c_ewma::P2cEwma;

use crate::breaker::{Admission, Breaker, State, Transition};

/// The latency assumed of an endpoint nothing is known of (Linkerd's default).
const DEFAULT_LATENCY: f32 = 0.030;
/// How fast old latencies are forgotten (Linkerd's default).
const LATENCY_DECAY: f32 = 10.0;
/// How much one failure or success moves the estimated share of failures.
const FAILURE_WEIGHT: f32 = 0.125;
/// How fast old failures are forgotten; short, so that a single one costs an endpoint seconds of traffic, not minutes.
const FAILURE_DECAY: f32 = 1.0;
/// What a certain failure costs, in seconds of latency (Linkerd's default penalty).
const FAILURE_COST: f32 = 5.0;

/// What is known of one endpoint.
#[derive(Debug, Default)]
pub struct EndpointState {
    in_flight: AtomicU32,
    /// Two `f32` in one word: latency in seconds, and share of failures. 0 is "nothing known".
    estimate: AtomicU64,
    /// When the estimate was made, in microseconds since `born`.
    estimated_at: AtomicU64,
    born: OnceLock<Instant>,
    /// The breaker has something to say; without it no thread takes the lock.
    tripping: AtomicBool,
    breaker: Mutex<Breaker>,
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

    /// What one more try is expected to cost, in seconds: (latency + share of failures × penalty) × (in flight + 1), both
    /// estimates decayed toward 0 since they were made. An endpoint nothing is known of costs nothing while nobody waits
    /// for it, so that it gets the one try by which it becomes known; while somebody does, it is taken for a usual one.
    pub fn cost(&self, now: Instant) -> f32 {
        if self.estimate.load(Relaxed) == 0 && self.in_flight() == 0 {
            return 0.0;
        }
        let (latency, failing) = self.estimate(self.micros(now));
        (latency + failing * FAILURE_COST) * (self.in_flight() as f32 + 1.0)
    }

    /// The estimates as they stand at `at`.
    fn estimate(&self, at: u64) -> (f32, f32) {
        let bits = self.estimate.load(Relaxed);
        if bits == 0 {
            return (DEFAULT_LATENCY, 0.0);
        }
        let since = at.saturating_sub(self.estimated_at.load(Relaxed)) as f32 / 1e6;
        let (latency, failing) = (f32::from_bits((bits >> 32) as u32), f32::from_bits(bits as u32));
        let failing = if failing > 0.0 { failing * (-since / FAILURE_DECAY).exp() } else { 0.0 };
        (latency * (-since / LATENCY_DECAY).exp(), failing)
    }

    /// Takes one result into the estimates: a slower answer than estimated counts at once (peak), a faster one by age.
    ///
    /// Where a breaker `judges`, a failure weighs nothing and wins nothing here: it must see failures in a row to judge them,
    /// and an endpoint that it let back in must not be shunned.
    ///
    /// Two threads may write at once and one result be lost, or a time be taken for the other's: an estimate bears that,
    /// and a lock on this path would cost more than it gives.
    fn observe(&self, latency: Duration, verdict: Verdict, judges: bool, now: Instant) {
        let at = self.micros(now);
        let bits = self.estimate.load(Relaxed);
        let since = at.saturating_sub(self.estimated_at.load(Relaxed)) as f32 / 1e6;
        let (expected, failing) = self.estimate(at);
        let left_to_breaker = judges && verdict == Verdict::Failure && bits != 0;
        let sample = if left_to_breaker { latency.as_secs_f32().max(expected) } else { latency.as_secs_f32() };
        let estimated = f32::from_bits((bits >> 32) as u32);
        let estimated = if bits == 0 || sample > estimated {
            sample
        } else {
            let keep = (-since / LATENCY_DECAY).exp();
            estimated * keep + sample * (1.0 - keep)
        };
        let outcome = if verdict == Verdict::Failure && !judges { 1.0 } else { 0.0 };
        let failing = failing + (outcome - failing) * FAILURE_WEIGHT;
        // Never the word for "nothing known".
        let word = (u64::from(estimated.max(1e-9).to_bits()) << 32) | u64::from(failing.to_bits());
        self.estimate.store(word, Relaxed);
        self.estimated_at.store(at, Relaxed);
    }

    fn micros(&self, now: Instant) -> u64 {
        let born = *self.born.get_or_init(|| now);
        u64::try_from(now.saturating_duration_since(born).as_micros()).unwrap_or(u64::MAX)
    }

    /// Whether a try could be made now.
    fn would_admit(&self, settings: Option<&BreakerSettings>, now: Instant) -> Option<Admission> {
        if settings.is_none() || !self.tripping.load(Relaxed) {
            return Some(Admission::Closed);
        }
        self.lock().would_admit(now)
    }

    fn admit(&self, settings: Option<&BreakerSettings>, now: Instant) -> Option<(Admission, Option<Transition>)> {
        if settings.is_none() || !self.tripping.load(Relaxed) {
            return Some((Admission::Closed, None));
        }
        self.lock().admit(now)
    }

    fn judge(
        &self,
        admitted: Admission,
        verdict: Verdict,
        settings: Option<&BreakerSettings>,
        now: Instant,
        random: f64,
    ) -> Option<Transition> {
        let Some(settings) = settings else {
            // Switched off: what it remembers must not hold when it is switched on again.
            if self.tripping.load(Relaxed) {
                *self.lock() = Breaker::default();
                self.tripping.store(false, Relaxed);
            }
            return None;
        };
        match verdict {
            Verdict::Success if !self.tripping.load(Relaxed) => None,
            Verdict::Success => {
                let mut breaker = self.lock();
                let transition = breaker.succeeded(admitted);
                let clean = *breaker == Breaker::default();
                self.tripping.store(!clean, Relaxed);
                transition
            }
            Verdict::Failure => {
                let mut breaker = self.lock();
                self.tripping.store(true, Relaxed);
                breaker.failed(admitted, settings, now, random)
            }
        }
    }

    /// A breaker has no invariant that a panic between two of its steps could break.
    fn lock(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A choice among endpoints.
pub trait Pick {
    /// The index of the endpoint to try: one that `may` be tried, or `None` when there is none.
    fn pick<E: AsRef<EndpointState>>(
        &self,
        endpoints: &[E],
        may: impl Fn(usize) -> Option<Admission>,
        now: Instant,
        rng: &mut fastrand::Rng,
    ) -> Option<usize>;
}

/// Why there is no endpoint to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoEndpoint {
    /// There is none at all.
    None,
    /// The breaker of each is open.
    AllOpen,
}

/// One try at one endpoint, in flight from its making until it is finished or dropped.
#[derive(Debug)]
pub struct Try {
    /// The endpoint, as an index into what was given to [`choose`].
    pub index: usize,
    /// What the breaker did to let it pass.
    pub transition: Option<Transition>,
    state: Arc<EndpointState>,
    admitted: Admission,
    started: Instant,
    finished: bool,
}

impl Try {
    /// Whether it is the one probe of a half-open breaker.
    pub fn is_probe(&self) -> bool {
        self.admitted == Admission::Probe
    }

    /// The endpoint's verdict, at the first data of its answer or at its failure. The try stays in flight until dropped.
    /// Only the first verdict counts.
    pub fn finish(
        &mut self,
        verdict: Verdict,
        settings: Option<&BreakerSettings>,
        now: Instant,
        rng: &mut fastrand::Rng,
    ) -> Option<Transition> {
        if std::mem::replace(&mut self.finished, true) {
            return None;
        }
        self.state.observe(now.saturating_duration_since(self.started), verdict, settings.is_some(), now);
        self.state.judge(self.admitted, verdict, settings, now, rng.f64())
    }
}

impl Drop for Try {
    fn drop(&mut self) {
        self.state.in_flight.fetch_sub(1, Relaxed);
        if !self.finished && self.admitted == Admission::Probe {
            self.state.lock().abandon(Admission::Probe);
        }
    }
}

/// Chooses the endpoint of the next try: admitted by its breaker, and not among those `tried` already unless there is no
/// other.
///
/// # Errors
/// When there is no endpoint, or the breaker of each is open.
pub fn choose<E: AsRef<EndpointState> + AsRef<Arc<EndpointState>>>(
    pick: &impl Pick,
    endpoints: &[E],
    tried: &[usize],
    settings: Option<&BreakerSettings>,
    now: Instant,
    rng: &mut fastrand::Rng,
) -> Result<Try, NoEndpoint> {
    if endpoints.is_empty() {
        return Err(NoEndpoint::None);
    }
    let may = |index: usize| state_of(&endpoints[index]).would_admit(settings, now);
    loop {
        let untried = |index: usize| if tried.contains(&index) { None } else { may(index) };
        let index = match pick.pick(endpoints, untried, now, rng) {
            Some(index) => index,
            None => pick.pick(endpoints, may, now, rng).ok_or(NoEndpoint::AllOpen)?,
        };
        let state: &Arc<EndpointState> = endpoints[index].as_ref();
        // Between the look and the step another thread may have taken the probe: then look again.
        if let Some((admitted, transition)) = state.admit(settings, now) {
            state.in_flight.fetch_add(1, Relaxed);
            return Ok(Try { index, transition, state: Arc::clone(state), admitted, started: now, finished: false });
        }
    }
}

fn state_of<E: AsRef<EndpointState>>(endpoint: &E) -> &EndpointState {
    endpoint.as_ref()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to count from")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_slower_answer_counts_at_once_and_a_faster_one_by_age() {
        let state = EndpointState::default();
        let start = Instant::now();
        state.observe(10 * MS, Verdict::Success, false, start);
        assert!((state.cost(start) - 0.010).abs() < 1e-6);
        state.observe(100 * MS, Verdict::Success, false, start);
        assert!((state.cost(start) - 0.100).abs() < 1e-6);
        state.observe(10 * MS, Verdict::Success, false, start + 100 * MS);
        let after = state.cost(start + 100 * MS);
        assert!((0.098..0.100).contains(&after), "{after}");
    }

    #[test]
    fn an_endpoint_nothing_is_known_of_gets_the_one_try_by_which_it_becomes_known() {
        let (known, unknown) = (EndpointState::default(), Arc::new(EndpointState::default()));
        let now = Instant::now();
        known.observe(MS, Verdict::Success, false, now);
        assert!(unknown.cost(now) < known.cost(now));
        unknown.in_flight.fetch_add(1, Relaxed);
        assert!(unknown.cost(now) > known.cost(now), "and no more than one");
    }

    #[test]
    fn an_endpoint_that_fails_fast_costs_more_than_a_slow_one_that_answers() {
        let (failing, slow) = (EndpointState::default(), EndpointState::default());
        let now = Instant::now();
        failing.observe(MS / 10, Verdict::Failure, false, now);
        slow.observe(200 * MS, Verdict::Success, false, now);
        assert!(failing.cost(now) > slow.cost(now));
        let later = now + Duration::from_secs(10);
        assert!(failing.cost(later) < slow.cost(later), "a single failure is forgotten");
    }
}
