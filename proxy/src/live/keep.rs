//! What outlives a change of configuration, by id: endpoints' latency and breakers, balancers, retry budgets, counts in
//! flight.
//!
//! A thing that is no longer named is remembered for a while, so that a flapping registration does not close an open
//! breaker, and is then forgotten.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use equerry_policies::names::{InstanceId, ServiceName};
use equerry_policies::policy::LoadBalancer;
use equerry_traffic::balance::{Balancer, EndpointState, Member};
use equerry_traffic::retry::RetryBudget;

use super::answers::AnswerSizes;
use super::habits::Habits;
use super::limits::LimitState;

/// How long a thing is remembered after it was last named.
const MEMORY: Duration = Duration::from_secs(600);

/// Everything kept.
#[derive(Debug, Default)]
pub(crate) struct Keep {
    endpoints: Kept<(ServiceName, InstanceId), EndpointState>,
    balancers: HashMap<ServiceName, (Arc<Balancer>, Instant)>,
    budgets: Kept<ServiceName, RetryBudget>,
    limits: Kept<ServiceName, LimitState>,
    answers: Kept<ServiceName, AnswerSizes>,
    habits: Kept<ServiceName, Habits>,
}

impl Keep {
    /// The state of an endpoint of a backend.
    pub(crate) fn endpoint(
        &mut self,
        backend: &ServiceName,
        instance: &InstanceId,
        now: Instant,
    ) -> Arc<EndpointState> {
        let key = (backend.clone(), instance.clone());
        self.endpoints.named(key, now)
    }

    /// The balancer of a backend's list of endpoints: the same as before where nothing has changed.
    pub(crate) fn balancer(
        &mut self,
        backend: &ServiceName,
        settings: &LoadBalancer,
        members: Vec<Member>,
        now: Instant,
    ) -> Arc<Balancer> {
        let before = self.balancers.get(backend).map(|(before, _)| before);
        let balancer = Balancer::new(settings, members, before, now, &mut fastrand::Rng::new());
        self.balancers.insert(backend.clone(), (Arc::clone(&balancer), now));
        balancer
    }

    /// The retry budget of a Service that callers name.
    pub(crate) fn budget(&mut self, service: &ServiceName, now: Instant) -> Arc<RetryBudget> {
        self.budgets.named(service.clone(), now)
    }

    /// What is in flight to a backend.
    pub(crate) fn limits(&mut self, backend: &ServiceName, now: Instant) -> Arc<LimitState> {
        self.limits.named(backend.clone(), now)
    }

    /// How large the answers of a backend are.
    pub(crate) fn answers(&mut self, backend: &ServiceName, now: Instant) -> Arc<AnswerSizes> {
        self.answers.named(backend.clone(), now)
    }

    /// What the ports of a Service that callers name were seen to do.
    pub(crate) fn habits(&mut self, service: &ServiceName, now: Instant) -> Arc<Habits> {
        self.habits.named(service.clone(), now)
    }

    /// Forgets what has not been named for [`MEMORY`]; the endpoints forgotten.
    pub(crate) fn forget(&mut self, now: Instant) -> Vec<(ServiceName, InstanceId)> {
        self.balancers.retain(|_, (_, named)| now.duration_since(*named) <= MEMORY);
        self.budgets.forget(now);
        self.limits.forget(now);
        self.answers.forget(now);
        self.habits.forget(now);
        self.endpoints.forget(now)
    }
}

/// Values by id, each with the time it was last named.
#[derive(Debug)]
struct Kept<K, V> {
    by_id: HashMap<K, (Arc<V>, Instant)>,
}

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self { by_id: HashMap::new() }
    }
}

impl<K: Eq + Hash + Clone, V: Default> Kept<K, V> {
    fn named(&mut self, key: K, now: Instant) -> Arc<V> {
        let (value, named) = self.by_id.entry(key).or_insert_with(|| (Arc::default(), now));
        *named = now;
        Arc::clone(value)
    }

    /// A value somebody still holds is in use, whatever the configuration says.
    fn forget(&mut self, now: Instant) -> Vec<K> {
        let old: Vec<K> = self
            .by_id
            .iter()
            .filter(|(_, (value, named))| now.duration_since(*named) > MEMORY && Arc::strong_count(value) == 1)
            .map(|(key, _)| key.clone())
            .collect();
        for key in &old {
            self.by_id.remove(key);
        }
        old
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_named_again_is_the_same_and_one_long_unnamed_is_forgotten() {
        let start = Instant::now();
        let service = ServiceName::parse("shop/orders").unwrap();
        let (stays, goes) = (InstanceId::parse("stays").unwrap(), InstanceId::parse("goes").unwrap());
        let mut keep = Keep::default();
        let first = keep.endpoint(&service, &stays, start);
        drop(keep.endpoint(&service, &goes, start));
        let later = start + MEMORY;
        assert!(Arc::ptr_eq(&first, &keep.endpoint(&service, &stays, later)));
        assert_eq!(keep.forget(later), [], "not yet");
        let much_later = later + Duration::from_secs(1);
        assert_eq!(keep.forget(much_later), [(service.clone(), goes)]);
        assert_eq!(keep.forget(much_later + MEMORY), [], "somebody still holds it");
    }
}
