//! What counts as in flight at an endpoint: a try until its answer begins, and where choices go by load alone, the answer until all
//! of it has passed. A long body, a stream or a connection is load for as long as it lasts, though its latency was known early.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::EndpointState;

/// How one try counts.
#[derive(Debug)]
pub(super) struct Count {
    /// Where all in flight are counted together, if somewhere.
    together: Option<Arc<AtomicU32>>,
    /// Not only the try counts, but its whole answer.
    whole: bool,
    /// Somebody else ends it.
    handed_over: bool,
}

impl Count {
    pub(super) fn begin(state: &EndpointState, together: Option<Arc<AtomicU32>>, whole: bool) -> Self {
        state.begin();
        if let Some(together) = &together {
            together.fetch_add(1, Relaxed);
        }
        Self { together, whole, handed_over: false }
    }

    pub(super) fn hand_over(&mut self, state: &Arc<EndpointState>) -> Option<InFlight> {
        if !self.whole || std::mem::replace(&mut self.handed_over, true) {
            return None;
        }
        Some(InFlight { state: Arc::clone(state), together: self.together.take() })
    }

    pub(super) fn end(&self, state: &EndpointState) {
        if !self.handed_over {
            end(state, self.together.as_deref());
        }
    }
}

/// An answer that has begun, or a connection that stands: in flight until it is dropped. Owned, so that it lasts as long as what it
/// counts, whatever becomes of the list the endpoint was chosen from.
#[derive(Debug)]
pub struct InFlight {
    state: Arc<EndpointState>,
    together: Option<Arc<AtomicU32>>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        end(&self.state, self.together.as_deref());
    }
}

fn end(state: &EndpointState, together: Option<&AtomicU32>) {
    state.end();
    if let Some(together) = together {
        together.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use equerry_policies::policy::{Algorithm, HashOn, LoadBalancer, RingHash};

    use super::*;
    use crate::balance::{Balancer, Member, Try, Wanted, choose};

    #[expect(clippy::disallowed_methods, reason = "a test needs some moment to count from")]
    fn with_one_try(algorithm: Algorithm, test: impl FnOnce(&Arc<EndpointState>, Try<'_>, &Balancer)) {
        let settings = LoadBalancer { algorithm, slow_start: None };
        let (now, mut rng) = (std::time::Instant::now(), fastrand::Rng::with_seed(1));
        let balancer = Balancer::new(&settings, vec![Member::new("one", 1)], None, now, &mut rng);
        let endpoints = [Arc::new(EndpointState::default())];
        let list: Vec<&EndpointState> = endpoints.iter().map(AsRef::as_ref).collect();
        let wanted = Wanted { key: None, tried: &[], breaker: None, now };
        let one = choose(&balancer, &list, |_| true, &wanted, &mut rng).unwrap();
        assert_eq!(endpoints[0].in_flight(), 1);
        test(&endpoints[0], one, &balancer);
        assert_eq!(endpoints[0].in_flight(), 0, "{:?}", settings.algorithm);
    }

    #[test]
    fn an_answer_counts_until_it_has_passed_where_choices_go_by_load() {
        let bounded = RingHash { bounded_load: Some(100), ..RingHash::on(HashOn::SourceAddress) };
        for algorithm in [Algorithm::LeastRequest, Algorithm::RingHash(bounded)] {
            with_one_try(algorithm, |state, mut this_try, balancer| {
                let together = || balancer.load().map_or(state.in_flight(), |load| load.load(Relaxed));
                let goes_on = this_try.goes_on(state).unwrap();
                assert!(this_try.goes_on(state).is_none(), "it is counted once");
                drop(this_try);
                assert_eq!((state.in_flight(), together()), (1, 1));
                drop(goes_on);
                assert_eq!((state.in_flight(), together()), (0, 0));
            });
        }
    }

    #[test]
    fn an_answer_counts_until_it_begins_where_choices_go_by_latency_or_by_turns() {
        for algorithm in [Algorithm::P2cEwma, Algorithm::RoundRobin, Algorithm::Random] {
            with_one_try(algorithm, |state, mut this_try, _| {
                assert!(this_try.goes_on(state).is_none());
                drop(this_try);
                assert_eq!(state.in_flight(), 0);
            });
        }
    }

    #[test]
    fn nothing_is_handed_over_to_another_endpoint() {
        with_one_try(Algorithm::LeastRequest, |state, mut this_try, _| {
            let other = Arc::new(EndpointState::default());
            assert!(this_try.goes_on(&other).is_none());
            drop(this_try);
            assert_eq!((state.in_flight(), other.in_flight()), (0, 0));
        });
    }
}
