//! Who is running where, as leases: a state machine that is told the time.
//!
//! An instance stays until its lease runs out, a newer generation replaces it, or it takes itself out; its account is the one of its
//! certificate. A beat that changes nothing costs one look-up. What changes is written to the store by the caller first.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use equerry_policies::names::{AccountName, InstanceId, Namespace, ServiceName};
use equerry_policies::policy::Labels;
use equerry_policies::view::{InstanceFacts, WorkloadFacts};
use serde::{Deserialize, Serialize};

/// How long an instance stays known without a beat.
pub const LEASE: Duration = Duration::from_secs(15);
/// How often a sidecar beats: two beats may be lost.
pub const BEAT: Duration = Duration::from_secs(5);

/// Everything an instance says of itself, and its account, which its certificate says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registration {
    /// Unique in its namespace.
    pub id: InstanceId,
    /// Namespace and account.
    pub account: AccountName,
    /// Grows with every start of the instance.
    pub generation: u64,
    /// What selectors look at.
    pub labels: Labels,
    /// The sidecar's inbound address.
    pub inbound: SocketAddr,
    /// The application's ports.
    pub ports: Vec<u16>,
    /// The verdict of the sidecar's probe.
    pub healthy: bool,
    /// Why not, for people.
    #[serde(default)]
    pub health_detail: String,
    /// How long it stays without a beat.
    pub lease: Duration,
    /// Somebody else registered it: no sidecar of it is expected to connect.
    #[serde(default)]
    pub by_api: bool,
}

impl Registration {
    /// Where it is kept.
    pub fn key(&self) -> InstanceKey {
        InstanceKey { namespace: self.account.namespace.clone(), id: self.id.clone() }
    }

    /// What policies may look at.
    pub fn workload(&self) -> WorkloadFacts {
        WorkloadFacts { account: self.account.clone(), labels: self.labels.clone(), ports: self.ports.clone() }
    }

    /// What callers may be told.
    pub fn facts(&self) -> InstanceFacts {
        InstanceFacts {
            id: self.id.clone(),
            account: self.account.clone(),
            labels: self.labels.clone(),
            inbound: self.inbound,
            ports: self.ports.clone(),
            healthy: self.healthy,
            health_detail: self.health_detail.clone(),
        }
    }
}

/// An instance's namespace and id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InstanceKey {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its id there.
    pub id: InstanceId,
}

impl std::fmt::Display for InstanceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.id)
    }
}

/// What a registration would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing changed; the lease is to be extended: [`Registry::renew`].
    Renewed,
    /// A known start of the instance says something new of itself (its health, say): write it, then [`Registry::commit`].
    Changed,
    /// An instance, or a start of it, that was not known: check it against the Services, write it, then [`Registry::commit`].
    New,
}

/// Why a registration or release is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A later start of the same instance has registered.
    #[error(
        "instance {key} has registered with generation {known}, found {found}: this process was replaced; give each instance an id of its own"
    )]
    Superseded {
        /// The instance.
        key: InstanceKey,
        /// The generation that holds the lease.
        known: u64,
        /// The generation that asked.
        found: u64,
    },
    /// Another account holds this id in the same namespace.
    #[error(
        "instance {key} is held by account {known}, found {found}: choose another instance id, or wait until that lease has run out"
    )]
    HeldByAnother {
        /// The instance.
        key: InstanceKey,
        /// The account that holds the lease.
        known: AccountName,
        /// The account that asked.
        found: AccountName,
    },
}

/// A registered instance.
#[derive(Debug, Clone)]
pub struct Instance {
    /// What it said last.
    pub registration: Arc<Registration>,
    /// When its lease runs out.
    pub expires: Instant,
    /// The Services it stands behind, and the epoch at which that was found out.
    memberships: Option<(u64, Arc<[ServiceName]>)>,
}

impl Instance {
    /// The Services it stands behind, if that was found out at this epoch.
    pub fn memberships_at(&self, epoch: u64) -> Option<&Arc<[ServiceName]>> {
        self.memberships.as_ref().filter(|(at, _)| *at == epoch).map(|(_, services)| services)
    }
}

/// The instances of one namespace.
#[derive(Debug, Default)]
struct Neighbours {
    /// Counts the changes that callers can see.
    version: u64,
    instances: BTreeMap<InstanceId, Instance>,
}

/// Every registered instance.
#[derive(Debug, Default)]
pub struct Registry {
    /// By name, as instances are by id: whoever lists them need not sort.
    namespaces: BTreeMap<Namespace, Neighbours>,
    /// Never reused, so that a namespace that was emptied and filled again has a version of its own.
    changes: u64,
}

impl Registry {
    /// Takes back what was stored; every lease gets one full period of grace.
    pub fn restore(stored: Vec<Registration>, now: Instant) -> Self {
        let mut registry = Self::default();
        for registration in stored {
            registry.commit(Arc::new(registration), None, now);
        }
        registry
    }

    /// Judges a registration, and changes nothing.
    ///
    /// # Errors
    /// When another start or account holds the instance.
    pub fn step(&self, asked: &Registration) -> Result<Step, Refused> {
        let Some(known) = self.namespaces.get(&asked.account.namespace).and_then(|n| n.instances.get(&asked.id)) else {
            return Ok(Step::New);
        };
        may_replace(&known.registration, asked)?;
        if known.registration.generation < asked.generation {
            return Ok(Step::New);
        }
        Ok(if *known.registration == *asked { Step::Renewed } else { Step::Changed })
    }

    /// Extends the lease of an instance that says what it said before. One that was taken out or replaced meanwhile stays so.
    pub fn renew(&mut self, asked: &Registration, now: Instant) {
        let known = self.namespaces.get_mut(&asked.account.namespace).and_then(|n| n.instances.get_mut(&asked.id));
        if let Some(known) = known.filter(|known| *known.registration == *asked) {
            known.expires = now + asked.lease;
        }
    }

    /// Takes a registration that is on disk, and which Services it stands behind, as far as that was found out and at which epoch.
    /// Returns whether it did: one that was overtaken meanwhile changes nothing.
    pub fn commit(
        &mut self,
        registration: Arc<Registration>,
        memberships: Option<(u64, Arc<[ServiceName]>)>,
        now: Instant,
    ) -> bool {
        let neighbours = self.namespaces.entry(registration.account.namespace.clone()).or_default();
        let expires = now + registration.lease;
        let seen = match neighbours.instances.entry(registration.id.clone()) {
            Entry::Vacant(free) => {
                free.insert(Instance { registration, expires, memberships });
                true
            }
            Entry::Occupied(mut taken) => {
                let known = &taken.get().registration;
                if may_replace(known, &registration).is_err() {
                    return false;
                }
                let seen = seen_by_callers(known, &registration);
                taken.insert(Instance { registration, expires, memberships });
                seen
            }
        };
        if seen {
            self.changes += 1;
            neighbours.version = self.changes;
        }
        true
    }

    /// Takes an instance out; `generation` `None` whatever its generation. Returns whether it was there.
    pub fn remove(&mut self, key: &InstanceKey, generation: Option<u64>) -> bool {
        let Some(neighbours) = self.namespaces.get_mut(&key.namespace) else { return false };
        let matches = neighbours
            .instances
            .get(&key.id)
            .is_some_and(|known| generation.is_none_or(|generation| known.registration.generation == generation));
        if matches {
            neighbours.instances.remove(&key.id);
            self.changes += 1;
            neighbours.version = self.changes;
        }
        matches
    }

    /// Takes out every instance whose lease has run out, and names them.
    pub fn expire(&mut self, now: Instant) -> Vec<InstanceKey> {
        let mut gone = Vec::new();
        for (namespace, neighbours) in &mut self.namespaces {
            let before = gone.len();
            neighbours.instances.retain(|id, known| {
                let stays = known.expires > now;
                if !stays {
                    gone.push(InstanceKey { namespace: namespace.clone(), id: id.clone() });
                }
                stays
            });
            if gone.len() > before {
                self.changes += 1;
                neighbours.version = self.changes;
            }
        }
        gone
    }

    /// Keeps which Services an instance stands behind, so that its beats need not find out again.
    pub fn remember_memberships(&mut self, key: &InstanceKey, epoch: u64, services: Arc<[ServiceName]>) {
        let known = self.namespaces.get_mut(&key.namespace).and_then(|n| n.instances.get_mut(&key.id));
        if let Some(known) = known {
            known.memberships = Some((epoch, services));
        }
    }

    /// One instance.
    pub fn get(&self, key: &InstanceKey) -> Option<&Instance> {
        self.namespaces.get(&key.namespace)?.instances.get(&key.id)
    }

    /// The instances of a namespace, by id: the only ones a Service of that namespace can select.
    pub fn of_namespace(&self, namespace: &Namespace) -> impl Iterator<Item = &Instance> {
        self.namespaces.get(namespace).into_iter().flat_map(|n| n.instances.values())
    }

    /// Every instance that is `wanted`, by namespace and id, and the Services that it stands behind at an epoch: `found_out` where that
    /// is not known yet.
    pub fn standing<'r>(
        &'r mut self,
        epoch: u64,
        wanted: impl Fn(&Registration) -> bool + 'r,
        found_out: impl Fn(&Registration) -> Arc<[ServiceName]> + 'r,
    ) -> impl Iterator<Item = (&'r Instance, Arc<[ServiceName]>)> + 'r {
        let all = self.namespaces.values_mut().flat_map(|n| n.instances.values_mut());
        all.filter(move |one| wanted(&one.registration)).map(move |one| {
            let services = match one.memberships_at(epoch) {
                Some(services) => Arc::clone(services),
                None => found_out(&one.registration),
            };
            if one.memberships_at(epoch).is_none() {
                one.memberships = Some((epoch, Arc::clone(&services)));
            }
            (&*one, services)
        })
    }

    /// Every instance, by namespace and id.
    pub fn all(&self) -> impl Iterator<Item = &Instance> {
        self.namespaces.values().flat_map(|n| n.instances.values())
    }

    /// Changes whenever callers would see a difference in a namespace's instances.
    pub fn version_of(&self, namespace: &Namespace) -> u64 {
        self.namespaces.get(namespace).map_or(0, |n| n.version)
    }

    /// Changes whenever any namespace's version does.
    pub fn changes(&self) -> u64 {
        self.changes
    }
}

fn may_replace(known: &Registration, asked: &Registration) -> Result<(), Refused> {
    if known.account != asked.account {
        return Err(Refused::HeldByAnother {
            key: known.key(),
            known: known.account.clone(),
            found: asked.account.clone(),
        });
    }
    if known.generation > asked.generation {
        return Err(Refused::Superseded { key: known.key(), known: known.generation, found: asked.generation });
    }
    Ok(())
}

/// Whether a change of an instance is one that a view shows.
fn seen_by_callers(known: &Registration, new: &Registration) -> bool {
    known.labels != new.labels
        || known.inbound != new.inbound
        || known.ports != new.ports
        || known.healthy != new.healthy
        || known.account != new.account
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(id: &str, generation: u64) -> Registration {
        Registration {
            id: InstanceId::parse(id).unwrap(),
            account: AccountName::parse("shop/orders").unwrap(),
            generation,
            labels: Labels::from([("app".into(), "orders".into())]),
            inbound: "127.0.0.1:15006".parse().unwrap(),
            ports: vec![8080],
            healthy: true,
            health_detail: String::new(),
            lease: LEASE,
            by_api: false,
        }
    }

    fn take(registry: &mut Registry, registration: Registration, now: Instant) {
        registry.commit(Arc::new(registration), None, now);
    }

    #[test]
    fn a_lease_without_beats_runs_out_and_a_beat_extends_it() {
        let start = Instant::now();
        let mut registry = Registry::restore(vec![registration("a", 1), registration("b", 1)], start);
        let later = start + Duration::from_secs(10);
        assert_eq!(registry.step(&registration("a", 1)), Ok(Step::Renewed));
        registry.renew(&registration("a", 1), later);
        registry.renew(&registration("b", 2), later);
        assert_eq!(registry.expire(start + LEASE - Duration::from_millis(1)), vec![]);
        assert_eq!(registry.expire(start + LEASE), vec![registration("b", 1).key()]);
        assert_eq!(registry.expire(later + LEASE), vec![registration("a", 1).key()]);
        assert_eq!(registry.all().count(), 0);
    }

    #[test]
    fn after_a_start_every_lease_has_one_full_period() {
        let start = Instant::now();
        let mut registry = Registry::restore(vec![registration("a", 1)], start);
        assert!(registry.expire(start + Duration::from_secs(14)).is_empty());
        assert_eq!(registry.expire(start + Duration::from_secs(15)).len(), 1);
    }

    #[test]
    fn an_older_start_of_an_instance_is_refused_and_a_newer_replaces_it() {
        let now = Instant::now();
        let mut registry = Registry::restore(vec![registration("a", 5)], now);
        let refused = registry.step(&registration("a", 4)).unwrap_err();
        assert!(refused.to_string().contains("generation 5, found 4"), "{refused}");
        assert_eq!(registry.step(&registration("a", 6)), Ok(Step::New));
        take(&mut registry, registration("a", 6), now);
        take(&mut registry, registration("a", 5), now);
        assert_eq!(registry.get(&registration("a", 6).key()).unwrap().registration.generation, 6);
        assert!(!registry.remove(&registration("a", 5).key(), Some(5)), "an old start cannot take the new one out");
        assert!(registry.remove(&registration("a", 6).key(), Some(6)));
    }

    #[test]
    fn another_account_cannot_take_an_instance_over() {
        let now = Instant::now();
        let mut registry = Registry::restore(vec![registration("a", 5)], now);
        let thief = Registration {
            account: AccountName::parse("shop/frontend").unwrap(),
            generation: 9,
            ..registration("a", 9)
        };
        assert!(matches!(registry.step(&thief), Err(Refused::HeldByAnother { .. })));
        take(&mut registry, thief, now);
        assert_eq!(registry.get(&registration("a", 5).key()).unwrap().registration.account.to_string(), "shop/orders");
    }

    #[test]
    fn instances_are_told_by_namespace_and_id_and_where_they_stand_is_found_out_once_for_each_epoch() {
        let now = Instant::now();
        let bank = Registration { account: AccountName::parse("bank/orders").unwrap(), ..registration("z", 1) };
        let mut registry = Registry::restore(vec![registration("b", 1), registration("a", 1), bank], now);
        let behind: Arc<[ServiceName]> = Arc::from([ServiceName::parse("shop/orders").unwrap()]);
        let asked = std::cell::Cell::new(0);
        for (epoch, questions) in [(1, 3), (1, 3), (2, 6)] {
            let found_out = |_: &Registration| {
                asked.set(asked.get() + 1);
                Arc::clone(&behind)
            };
            let told: Vec<String> = registry
                .standing(epoch, |_| true, found_out)
                .map(|(one, services)| format!("{} {}", one.registration.key(), services[0]))
                .collect();
            assert_eq!(told, ["bank/z shop/orders", "shop/a shop/orders", "shop/b shop/orders"]);
            assert_eq!(asked.get(), questions);
        }
        let one = registration("a", 2);
        assert!(registry.commit(Arc::new(one.clone()), Some((2, Arc::default())), now));
        assert_eq!(registry.get(&one.key()).unwrap().memberships_at(2).map(|known| known.len()), Some(0));
        let wanted = registry.standing(2, |one| one.id.as_str() == "a", |_| Arc::clone(&behind));
        assert_eq!(wanted.map(|(_, services)| services.len()).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn only_what_callers_can_see_changes_the_version() {
        let now = Instant::now();
        let mut registry = Registry::restore(vec![registration("a", 1)], now);
        let ns = Namespace::parse("shop").unwrap();
        let first = registry.version_of(&ns);
        take(&mut registry, Registration { health_detail: "slow".into(), ..registration("a", 1) }, now);
        take(&mut registry, registration("a", 2), now);
        assert_eq!(registry.version_of(&ns), first);
        take(&mut registry, Registration { healthy: false, ..registration("a", 2) }, now);
        assert!(registry.version_of(&ns) > first);
        assert_eq!(registry.version_of(&Namespace::parse("bank").unwrap()), 0);
    }
}
