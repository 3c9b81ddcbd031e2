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
pub fn snapshot(
    sources: &Sources<'_>,
    reader: &Reader<'_>,
    interests: &BTreeSet<ResourceKey>,
    cache: &mut Cache,
) -> Snapshot {
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
                let nearest =
                    key.service().and_then(|service| view::nearest_service(sources.meaning, service)).cloned();
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
    let made =
        if is_destination { destination(sources, service, reader.namespace) } else { endpoints(sources, service) };
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

fn destination(
    sources: &Sources<'_>,
    service: &ServiceName,
    caller: &Namespace,
) -> Option<(Resource, Vec<ServiceName>)> {
    let view = view::destination(sources.meaning, service, caller)?;
    let backends = view.backends.clone();
    Some((Resource::Destination(Box::new(view)), backends))
}

fn endpoints(sources: &Sources<'_>, service: &ServiceName) -> Option<(Resource, Vec<ServiceName>)> {
    let instances: Vec<InstanceFacts> =
        sources.registry.of_namespace(&service.namespace).map(|i| i.registration.facts()).collect();
    let view = view::endpoints(sources.meaning, service, instances.iter());
    Some((Resource::Endpoints(Box::new(view)), Vec::new()))
}

fn encode(resource: &Resource) -> Option<Arc<proto::Resource>> {
    resource
        .encode()
        .inspect_err(|error| tracing::error!(%error, "this part of the configuration cannot be sent"))
        .ok()
        .map(Arc::new)
}

/// What a proxy that holds these versions must be sent.
pub fn difference(held: &BTreeMap<ResourceKey, String>, snapshot: &Snapshot) -> Difference {
    let is_new = |(key, resource): &(&ResourceKey, &Arc<proto::Resource>)| held.get(*key) != Some(&resource.version);
    Difference {
        resources: snapshot.resources.iter().filter(is_new).map(|(_, resource)| Arc::clone(resource)).collect(),
        removed: held.keys().filter(|key| snapshot.unknown.contains_key(key)).cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use equerry_policies::document::read;
    use equerry_policies::interpret::interpret;
    use equerry_policies::names::{AccountName, InstanceId};

    use super::*;
    use crate::registry::Registration;

    const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders}}
spec: {selector: {app: orders}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: inventory, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {app: inventory}, ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders}]
  rules: [{backendRefs: [{name: inventory, port: 80}]}]
";

    fn registration(id: &str, app: &str) -> Registration {
        Registration {
            id: InstanceId::parse(id).unwrap(),
            account: AccountName::parse(&format!("shop/{app}")).unwrap(),
            generation: 1,
            labels: [("app".to_owned(), app.to_owned())].into_iter().collect(),
            inbound: "127.0.0.1:15006".parse().unwrap(),
            ports: vec![80],
            healthy: true,
            health_detail: String::new(),
            by_api: false,
            lease: Duration::from_secs(15),
        }
    }

    fn bytes(order: &[&str], cache: &mut Cache) -> Vec<Vec<u8>> {
        let meaning = interpret(&read("test.yaml", SHOP).unwrap()).unwrap();
        let registry =
            Registry::restore(order.iter().map(|id| registration(id, "inventory")).collect(), Instant::now());
        let namespace = Namespace::parse("shop").unwrap();
        let workload = registration("orders-1", "orders").workload();
        let interests =
            [ResourceKey::Workload, ResourceKey::Destination(ServiceName::parse("shop/orders").unwrap())].into();
        let sources = Sources { epoch: 1, meaning: &meaning, registry: &registry };
        let snapshot =
            snapshot(&sources, &Reader { namespace: &namespace, workload: Some(&workload) }, &interests, cache);
        snapshot.resources.values().map(|resource| resource.body.clone()).collect()
    }

    #[test]
    fn the_same_input_gives_the_same_bytes_in_whatever_order_it_came() {
        let mut cache = Cache::default();
        let first = bytes(&["a", "b", "c"], &mut cache);
        assert_eq!(first.len(), 5, "itself, and destination and endpoints of the Service and of its backend");
        assert_eq!(first, bytes(&["c", "a", "b"], &mut Cache::default()));
        assert_eq!(first, bytes(&["a", "b", "c"], &mut cache), "and from the cache");
    }

    #[test]
    fn the_cache_never_answers_for_another_state() {
        let mut cache = Cache::default();
        let some = bytes(&["a"], &mut cache);
        assert_ne!(some, bytes(&["a", "b"], &mut cache));
    }

    #[test]
    fn a_difference_names_what_is_new_and_what_is_gone() {
        let key = |name: &str| ResourceKey::Endpoints(ServiceName::parse(name).unwrap());
        let resource = |version: &str| Arc::new(proto::Resource { version: version.into(), ..Default::default() });
        let snapshot = Snapshot {
            resources: [(key("shop/a"), resource("1")), (key("shop/b"), resource("2"))].into(),
            unknown: [(key("shop/c"), None), (key("shop/d"), None)].into(),
            withheld: BTreeSet::new(),
        };
        let held =
            [(key("shop/a"), "1".to_owned()), (key("shop/b"), "1".to_owned()), (key("shop/c"), "1".to_owned())].into();
        let difference = difference(&held, &snapshot);
        assert_eq!(difference.resources.iter().map(|r| r.version.as_str()).collect::<Vec<_>>(), ["2"]);
        assert_eq!(difference.removed, [key("shop/c")]);
    }
}
