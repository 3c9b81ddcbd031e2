//! What one proxy is to know: a function of what is meant, who is registered, and what the proxy asked for.
//!
//! Same input, same bytes, same versions. [`Cache`] only spares making them again for the next proxy; [`difference`] says what
//! of it the proxy does not hold yet.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use equerry_policies::names::{Namespace, ServiceName};
use equerry_policies::policy::Meaning;
use equerry_policies::view::{self, InstanceFacts, WorkloadFacts};
use equerry_wire::{Resource, ResourceKey, proto};

use crate::registry::Registry;

/// What a snapshot is cut out of.
pub struct Sources<'a> {
    /// The epoch `meaning` belongs to.
    pub epoch: u64,
    /// What all documents mean.
    pub meaning: &'a Meaning,
    /// Who is registered.
    pub registry: &'a Registry,
}

/// Whom a snapshot is for.
pub struct Reader<'a> {
    /// The namespace it calls from.
    pub namespace: &'a Namespace,
    /// What is known of its workload; `None` until it has registered, and then nothing is said of its own policy: a view
    /// made without its labels would leave out policies that select it.
    pub workload: Option<&'a WorkloadFacts>,
}

/// Everything a proxy asked for, as it is now.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// What exists.
    pub resources: BTreeMap<ResourceKey, Arc<proto::Resource>>,
    /// What does not, with the nearest name that does.
    pub unknown: BTreeMap<ResourceKey, Option<ServiceName>>,
    /// What exists but cannot be said now; what the proxy holds of it stays.
    pub withheld: BTreeSet<ResourceKey>,
}

/// What a proxy must be sent so that it holds a snapshot.
#[derive(Debug, Clone, Default)]
pub struct Difference {
    /// New or changed.
    pub resources: Vec<Arc<proto::Resource>>,
    /// Gone.
    pub removed: Vec<ResourceKey>,
}

impl Difference {
    /// Whether the proxy holds everything already.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.removed.is_empty()
    }
}

/// One resource that was cut, and what a proxy that uses it will use next.
#[derive(Debug, Clone)]
struct Cut {
    /// Of which epoch and namespace version it is.
    of: (u64, u64),
    resource: Arc<proto::Resource>,
    backends: Vec<ServiceName>,
}

/// Resources that were cut for an earlier proxy and still hold.
#[derive(Debug, Default)]
pub struct Cache {
    epoch: u64,
    /// By resource, and for destinations by the caller's namespace.
    cuts: HashMap<(ResourceKey, Option<Namespace>), Cut>,
}

/// Cuts a snapshot of what `interests` names, and of every backend that those destinations send to.
pub fn snapshot(sources: &Sources<'_>, reader: &Reader<'_>, interests: &BTreeSet<ResourceKey>, cache: &mut Cache) -> Snapshot {
    if cache.epoch != sources.epoch {
        *cache = Cache { epoch: sources.epoch, ..Cache::default() };
    }
    let mut snapshot = Snapshot::default();
    let mut wanted: Vec<ResourceKey> = interests.iter().cloned().collect();
    let mut seen: BTreeSet<ResourceKey> = interests.clone();
    while let Some(key) = wanted.pop() {
        match cut(sources, reader, &key, cache) {
            Found::Is(cut) => {
                for backend in &cut.backends {
                    let next = [ResourceKey::Destination(backend.clone()), ResourceKey::Endpoints(backend.clone())];
                    wanted.extend(next.into_iter().filter(|key| seen.insert(key.clone())));
                }
                snapshot.resources.insert(key, cut.resource);
            }
            Found::IsNot => {
                let nearest = key.service().and_then(|service| view::nearest_service(sources.meaning, service)).cloned();
                snapshot.unknown.insert(key, nearest);
            }
            Found::Withheld => {
                snapshot.withheld.insert(key);
            }
        }
    }
    snapshot
}

enum Found {
    Is(Cut),
    IsNot,
    Withheld,
}

fn cut(sources: &Sources<'_>, reader: &Reader<'_>, key: &ResourceKey, cache: &mut Cache) -> Found {
    let Some(service) = key.service() else { return cut_workload(sources, reader) };
    if !sources.meaning.services.contains_key(service) {
        return Found::IsNot;
    }
    let is_destination = matches!(key, ResourceKey::Destination(_));
    let of = (sources.epoch, if is_destination { 0 } else { sources.registry.version_of(&service.namespace) });
    let place = (key.clone(), is_destination.then(|| reader.namespace.clone()));
    if let Some(cut) = cache.cuts.get(&place).filter(|cut| cut.of == of) {
        return Found::Is(cut.clone());
    }
    let made = if is_destination { destination(sources, service, reader.namespace) } else { endpoints(sources, service) };
    let Some((resource, backends)) = made else { return Found::IsNot };
    match encode(&resource) {
        Some(resource) => {
            let cut = Cut { of, resource, backends };
            cache.cuts.insert(place, cut.clone());
            Found::Is(cut)
        }
        None => Found::Withheld,
    }
}

fn cut_workload(sources: &Sources<'_>, reader: &Reader<'_>) -> Found {
    let resource = reader.workload.map(|facts| Resource::Workload(Box::new(view::workload(sources.meaning, facts))));
    match resource.as_ref().and_then(encode) {
        Some(resource) => Found::Is(Cut { of: (sources.epoch, 0), resource, backends: Vec::new() }),
        None => Found::Withheld,
    }
}

fn destination(sources: &Sources<'_>, service: &ServiceName, caller: &Namespace) -> Option<(Resource, Vec<ServiceName>)> {
    let view = view::destination(sources.meaning, service, caller)?;
    let backends = view.backends.clone();
    Some((Resource::Destination(Box::new(view)), backends))
}

fn endpoints(sources: &Sources<'_>, service: &ServiceName) -> Option<(Resource, Vec<ServiceName>)> {
    let instances: Vec<InstanceFacts> = sources.registry.of_namespace(&service.namespace).map(|i| i.registration.facts()).collect();
    let view = view::endpoints(sources.meaning, service, instances.iter());
    Some((Resource::Endpoints(Box::new(view)), Vec::new()))
}

fn encode(resource: &Resource) -> Option<Arc<proto::Resource>> {
    resource.encode().inspect_err(|error| tracing::error!(%error, "this part of the configuration cannot be sent")).ok().map(Arc::new)
}

/// What a proxy that holds these versions must be sent.
pub fn difference(held: &BTreeMap<ResourceKey, String>, snapshot: &Snapshot) -> Difference {
    let is_new = |(key, resource): &(&ResourceKey, &Arc<proto::Resource>)| held.get(*key) != Some(&resource.version);
    Difference {
        resources: snapshot.resources.iter().filter(is_new).map(|(_, resource)| Arc::clone(resource)).collect(),
        removed: held.keys().filter(|key| snapshot.unknown.contains_key(key)).cloned().collect(),
    }
}
