//! Which endpoint gets the next try.
//!
//! [`EndpointState`] is what is known of one endpoint, shared by all threads and kept across changes of configuration; a
//! [`Balancer`] is a list of endpoints made ready, once for each change; [`choose`] puts breakers and choice together and
//! returns a [`Try`], which counts as in flight until it is dropped. Where choices go by how much is in flight, not by how soon an
//! answer begins, it goes on counting as [`InFlight`] until all of its answer has passed.

mod balancer;
mod draw;
mod endpoint;
pub mod hash;
mod in_flight;
mod maglev;
mod ramp;
mod ring;
mod turns;
mod two;
mod verdict;

use std::sync::Arc;
use std::time::{Duration, Instant};

use equerry_policies::policy::{Breaker as BreakerSettings, BreakerMode};

pub use balancer::{Balancer, Member};
pub use endpoint::{EndpointState, Moment};
pub use hash::Source;
pub use in_flight::InFlight;
pub use verdict::Verdict;

use crate::breaker::{Admission, Transition};

/// Why there is no endpoint to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoEndpoint {
    /// There is none at all.
    None,
    /// The breaker of each is open.
    AllOpen,
    /// None may be tried, and not for their breakers alone.
    NoneWell,
}

/// What is asked of [`choose`].
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// What [`Balancer::key`] makes of the request.
    pub key: Option<u64>,
    /// The places of endpoints that were tried before, and are tried again only when there is no other.
    pub tried: &'a [usize],
    /// `None`: off.
    pub breaker: Option<&'a BreakerSettings>,
    /// The present moment.
    pub now: Instant,
}

/// One try at one endpoint, in flight from its making until it is dropped.
#[derive(Debug)]
pub struct Try<'e> {
    /// The endpoint, as an index into what was given to [`choose`].
    pub index: usize,
    /// What the breaker did to let it pass.
    pub transition: Option<Transition>,
    state: &'e EndpointState,
    count: in_flight::Count,
    admitted: Admission,
    started: Instant,
    finished: bool,
}

impl Try<'_> {
    /// Whether it is the one probe of a half-open breaker.
    pub fn is_probe(&self) -> bool {
        self.admitted == Admission::Probe
    }

    /// The endpoint's verdict, at the first data of its answer or at its failure. The try stays in flight until dropped.
    /// Only the first verdict counts. `endpoints` is the list it was chosen from, of which breakers keep only so many away.
    pub fn finish<E: AsRef<EndpointState>>(
        &mut self,
        verdict: Verdict,
        settings: Option<&BreakerSettings>,
        endpoints: &[E],
        now: Instant,
        rng: &mut fastrand::Rng,
    ) -> Option<Transition> {
        if std::mem::replace(&mut self.finished, true) {
            return None;
        }
        let judges = settings.is_some_and(|settings| settings.mode == BreakerMode::Enforce);
        self.state.observe(now.saturating_duration_since(self.started), verdict, judges, now);
        self.state.judge((self.admitted, verdict), settings, endpoints, now, rng.f64())
    }

    /// What goes on counting until the whole answer has passed, though the try is over: `None` where only tries count. `state`
    /// is that of the endpoint that was chosen.
    pub fn goes_on(&mut self, state: &Arc<EndpointState>) -> Option<InFlight> {
        if std::ptr::eq(Arc::as_ptr(state), self.state) { self.count.hand_over(state) } else { None }
    }

    /// Its answer has begun and looks well. That counts for its latency; whether it is well says the end of the answer, to
    /// [`EndpointState::ended`].
    pub fn begins_well(&mut self, settings: Option<&BreakerSettings>, now: Instant) {
        let judges = settings.is_some_and(|settings| settings.mode == BreakerMode::Enforce);
        self.finished = true;
        self.state.observe(now.saturating_duration_since(self.started), Verdict::Success, judges, now);
    }

    /// Somebody else than should have answered, `found` in words: the endpoint is kept away. Returns for how long, if this try
    /// is the first to say so.
    pub fn met_a_stranger(&self, found: &str, now: Instant) -> Option<Duration> {
        self.state.met_a_stranger(found, self.started, now)
    }

    /// Whoever should have answered did. Returns whether it was somebody else before.
    pub fn met_the_right_one(&self) -> bool {
        self.state.met_the_right_one()
    }

    /// See [`EndpointState::avoid_until`].
    pub fn avoid_until(&self, until: Instant, now: Instant) {
        self.state.avoid_until(until, now);
    }
}

impl Drop for Try<'_> {
    fn drop(&mut self) {
        self.count.end(self.state);
        if !self.finished && self.admitted == Admission::Probe {
            self.state.abandon_probe();
        }
    }
}

/// Chooses the endpoint of the next try among those that `serve` what is asked: admitted by its breaker, not asking to be
/// left alone unless all others do, and not among those tried already unless there is no other.
///
/// `endpoints` is the list that `balancer` was made for.
///
/// # Errors
/// When no endpoint serves it, or each that does is kept away.
pub fn choose<'e, E: AsRef<EndpointState>>(
    balancer: &Balancer,
    endpoints: &'e [E],
    serves: impl Fn(usize) -> bool,
    wanted: &Wanted<'_>,
    rng: &mut fastrand::Rng,
) -> Result<Try<'e>, NoEndpoint> {
    let Wanted { key, tried, breaker, now } = *wanted;
    let moment = Moment::of(now);
    let state = |index: usize| -> &'e EndpointState { endpoints[index].as_ref() };
    loop {
        let index =
            [(false, false), (true, false), (false, true), (true, true)].into_iter().find_map(|(again, avoided)| {
                let may = |index: usize| {
                    let passed_over = index >= endpoints.len()
                        || !serves(index)
                        || (!again && tried.contains(&index))
                        || (!avoided && state(index).is_avoided(moment));
                    if passed_over { None } else { state(index).would_admit(breaker, now) }
                };
                balancer.pick(endpoints, key, may, (now, moment), rng)
            });
        let Some(index) = index else {
            let serves = |index: usize| index < endpoints.len() && serves(index);
            let (serving, out) = (0..endpoints.len())
                .filter(|index| serves(*index))
                .fold((0, 0), |(all, out), index| (all + 1, out + usize::from(state(index).is_out(now))));
            // Where not all may be kept away by breakers somebody stays, even if those who were left have gone from the list since.
            let some_stay = breaker.is_some_and(|breaker| breaker.max_ejected_percent < 100);
            let may = |index: usize| (serves(index) && !state(index).is_out(now)).then_some(Admission::Closed);
            let any = if some_stay { balancer.pick(endpoints, key, may, (now, moment), rng) } else { None };
            return match any {
                Some(any) => Ok(begin(balancer, (any, state(any)), (Admission::Closed, None), now)),
                None if serving == 0 => Err(NoEndpoint::None),
                None if out == 0 => Err(NoEndpoint::AllOpen),
                None => Err(NoEndpoint::NoneWell),
            };
        };
        // Between the look and the step another thread may have taken the probe: then look again.
        if let Some(admitted) = state(index).admit(breaker, now) {
            return Ok(begin(balancer, (index, state(index)), admitted, now));
        }
    }
}

fn begin<'e>(
    balancer: &Balancer,
    (index, state): (usize, &'e EndpointState),
    (admitted, transition): (Admission, Option<Transition>),
    now: Instant,
) -> Try<'e> {
    let count = in_flight::Count::begin(state, balancer.load().cloned(), balancer.counts_whole_answers());
    Try { index, transition, state, count, admitted, started: now, finished: false }
}
