//! Services, instances and proxies, as they are seen now: `leases` and the streams change them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use equerry_policies::names::{ServiceName, SpiffeId};
use equerry_policies::policy::Meaning;
use equerry_policies::view;

use super::proxies::{EpochStatus, ProxyStatus};
use super::{ControlPlane, leases, locked};
use crate::registry::{Instance, InstanceKey, Registration};

/// A Service and who stands behind it.
#[derive(Debug, Clone)]
pub struct ServiceStatus {
    /// Which Service.
    pub service: ServiceName,
    /// Its registered members, by instance id.
    pub members: Vec<MemberStatus>,
    /// How many endpoints are written down for it in `EndpointSlice` documents.
    pub static_endpoints: usize,
}

/// What an instance said last, and the Services that it stands behind.
pub type Lease = (Arc<Registration>, Arc<[ServiceName]>);

/// An instance behind a Service.
#[derive(Debug, Clone)]
pub struct MemberStatus {
    /// What it said last.
    pub registration: Arc<Registration>,
    /// How long its lease still runs without a beat.
    pub lease_left: Duration,
}

impl ControlPlane {
    /// Every registered instance, by namespace and id.
    pub fn instances(&self) -> Vec<MemberStatus> {
        let now = Instant::now();
        locked(&self.0.registry).all().map(|instance| member(instance, now)).collect()
    }

    /// The registered instances that are `wanted`, by namespace and id, and the Services that each stands behind.
    pub fn members(&self, wanted: impl Fn(&Registration) -> bool) -> Vec<(MemberStatus, Arc<[ServiceName]>)> {
        let (truth, now) = (self.truth(), Instant::now());
        let mut registry = locked(&self.0.registry);
        let standing = registry.standing(truth.epoch, wanted, |one| leases::found_out(&truth, one));
        standing.map(|(instance, services)| (member(instance, now), services)).collect()
    }

    /// One registered instance, and the Services that it stands behind.
    pub fn member(&self, key: &InstanceKey) -> Option<(MemberStatus, Arc<[ServiceName]>)> {
        let (truth, now) = (self.truth(), Instant::now());
        let mut registry = locked(&self.0.registry);
        let services = leases::memberships_in(&mut registry, &truth, key);
        Some((member(registry.get(key)?, now), services))
    }

    /// What each of these instances, in the order of their keys, said last, and the Services that it stands behind; `None` for one that
    /// is not registered.
    pub fn registrations_of<'k>(&self, keys: impl Iterator<Item = &'k InstanceKey>) -> Vec<Option<Lease>> {
        let truth = self.truth();
        let mut registry = locked(&self.0.registry);
        let standing = registry.standing(truth.epoch, |_| true, |one| leases::found_out(&truth, one));
        // They are in the same order: both are gone through once.
        let mut standing = standing.peekable();
        keys.map(|key| {
            let from_it = |one: &Instance| {
                let Registration { account, id, .. } = &*one.registration;
                (&account.namespace, id).cmp(&(&key.namespace, &key.id))
            };
            while standing.next_if(|(one, _)| from_it(one).is_lt()).is_some() {}
            let (one, services) = standing.next_if(|(one, _)| from_it(one).is_eq())?;
            Some((Arc::clone(&one.registration), services))
        })
        .collect()
    }

    /// Every Service and who stands behind it, by name.
    pub fn services(&self) -> Vec<ServiceStatus> {
        let truth = self.truth();
        let mut members: HashMap<ServiceName, Vec<MemberStatus>> = HashMap::new();
        for (status, services) in self.members(|_| true) {
            for service in services.iter() {
                members.entry(service.clone()).or_default().push(status.clone());
            }
        }
        let services = truth.meaning.services.keys();
        services
            .map(|service| status_of(&truth.meaning, service, members.remove(service).unwrap_or_default()))
            .collect()
    }

    /// One Service and who stands behind it.
    pub fn service(&self, service: &ServiceName) -> Option<ServiceStatus> {
        let meaning = self.meaning();
        let now = Instant::now();
        let stands = |instance: &&Instance| {
            view::stands_behind(&meaning, service, &instance.registration.account, &instance.registration.labels)
        };
        meaning.services.contains_key(service).then(|| {
            let registry = locked(&self.0.registry);
            let members = registry.of_namespace(&service.namespace).filter(stands);
            status_of(&meaning, service, members.map(|instance| member(instance, now)).collect())
        })
    }

    /// The instances whose proxies have an open config stream.
    pub fn connected(&self) -> HashSet<InstanceKey> {
        locked(&self.0.proxies).all_connected().cloned().collect()
    }

    /// Those of these instances whose proxies have an open config stream.
    pub fn connected_of(&self, keys: impl Iterator<Item = InstanceKey>) -> HashSet<InstanceKey> {
        let proxies = locked(&self.0.proxies);
        keys.filter(|key| proxies.is_connected(key)).collect()
    }

    /// Every proxy that listens, and every registered instance whose proxy should; one that was registered over the API has none.
    pub fn proxies(&self) -> Vec<ProxyStatus> {
        let expected = self.expected();
        let mut all = locked(&self.0.proxies).status(self.epoch(), expected.into_iter());
        self.fill_in_certificates(&mut all);
        all
    }

    /// Those that have not connected since this control plane started: until when the last certificate holds that is known of their account.
    fn fill_in_certificates(&self, proxies: &mut [ProxyStatus]) {
        let mut unknown = proxies.iter_mut().filter(|proxy| !proxy.connected && proxy.spiffe_id.is_none()).peekable();
        if unknown.peek().is_none() {
            return;
        }
        let latest = locked(&self.0.ledger).latest();
        let registry = locked(&self.0.registry);
        for proxy in unknown {
            let Some(known) = registry.get(&proxy.instance) else { continue };
            let account = &known.registration.account;
            let domain = self.0.authority.trust_domain().clone();
            let id = SpiffeId::new(domain, account.namespace.clone(), account.name.clone());
            proxy.certificate_not_after = latest.get(&id).copied();
        }
    }

    /// How far an epoch has come; `None` for one that is not made yet.
    pub fn epoch_status(&self, epoch: u64) -> Option<EpochStatus> {
        if epoch > self.epoch() {
            return None;
        }
        let expected = self.expected();
        Some(locked(&self.0.proxies).epoch_status(epoch, expected.into_iter()))
    }

    /// The instances whose proxies ought to be connected, those that were registered by their own sidecar, in the order of their keys.
    pub(super) fn expected(&self) -> Vec<InstanceKey> {
        let registry = locked(&self.0.registry);
        registry.all().map(|one| &one.registration).filter(|one| !one.by_api).map(|one| one.key()).collect()
    }
}

fn status_of(meaning: &Meaning, service: &ServiceName, members: Vec<MemberStatus>) -> ServiceStatus {
    let slices = meaning.endpoints.values().filter(|slice| slice.service == *service);
    ServiceStatus {
        service: service.clone(),
        members,
        static_endpoints: slices.map(|slice| slice.addresses.len()).sum(),
    }
}

fn member(instance: &Instance, now: Instant) -> MemberStatus {
    MemberStatus {
        registration: Arc::clone(&instance.registration),
        lease_left: instance.expires.saturating_duration_since(now),
    }
}
