//! From resources as they arrive to the next [`Live`]: decode, compile, keep the last good of each, put together.
//!
//! A resource that does not compile keeps its last good version and is complained about; the others of its update are
//! taken. A destination whose routes name a backend that is not here yet stays as it was until that backend came.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use equerry_policies::compile::{self, CompiledDestination, CompiledWorkload, FetchedKeys, KeySource};
use equerry_policies::complaint::Complaint;
use equerry_policies::names::{HostName, InstanceId, ServiceName, SpiffeId};
use equerry_policies::view::{self, DestinationView, EndpointAddress, EndpointView, EndpointsView};
use equerry_traffic::balance::Member;
use equerry_traffic::outside::OwnDoors;
use equerry_wire::proto;
use equerry_wire::{Resource, ResourceKey};

use super::keep::Keep;
use super::last_good::{SavedConfig, SavedResource};
use super::{Backend, Destination, Endpoint, Found, Live, Received};

/// Everything held, and what it means.
#[derive(Debug)]
pub(crate) struct Swap {
    own: SpiffeId,
    epoch: u64,
    held: BTreeMap<ResourceKey, Held>,
    unknown: HashMap<ServiceName, Option<String>>,
    /// The version of each destination that is in force; behind `held` while a new backend is awaited.
    active: HashMap<ServiceName, Arc<Meant>>,
    /// Destinations that were complete once, and so may be called whatever comes or goes behind them.
    callable: BTreeSet<ServiceName>,
    used: HashMap<ServiceName, Arc<AtomicBool>>,
    /// What the DNS says of the names that Services stand for.
    found: Found,
    /// The keys that issuers publish.
    keys: FetchedKeys,
    /// The workload as it came, and as it is with those keys: the same value for as long as neither changes.
    keyed: Option<(Arc<CompiledWorkload>, Arc<CompiledWorkload>)>,
    /// This process's own listeners: no Service leads there in plain text.
    doors: OwnDoors,
    keep: Keep,
}

/// A resource as it was received, and what it means.
#[derive(Debug)]
struct Held {
    version: String,
    body: Arc<[u8]>,
    understood: Understood,
}

#[derive(Debug)]
enum Understood {
    Workload(Arc<CompiledWorkload>),
    Destination(Arc<Meant>),
    Endpoints(Box<EndpointsView>),
}

/// A destination: what was said, and what the data path sees of it.
#[derive(Debug)]
struct Meant {
    view: DestinationView,
    compiled: Arc<CompiledDestination>,
}

impl Swap {
    /// Nothing is held yet. `doors` are this process's own listeners.
    pub(crate) fn new(own: SpiffeId, doors: OwnDoors) -> Self {
        Self {
            own,
            epoch: 0,
            held: BTreeMap::new(),
            unknown: HashMap::new(),
            active: HashMap::new(),
            callable: BTreeSet::new(),
            used: HashMap::new(),
            found: Found::new(),
            keys: FetchedKeys::new(),
            keyed: None,
            doors,
            keep: Keep::default(),
        }
    }

    /// Takes up what was saved; what this version does not understand any more is left out and complained about.
    pub(crate) fn restore(&mut self, saved: SavedConfig) -> Vec<proto::Complaint> {
        let resources = saved.resources.into_iter().map(|resource| proto::Resource {
            r#type: resource.kind,
            name: resource.name,
            version: resource.version,
            body: resource.body.into_bytes(),
        });
        let complaints =
            self.take(proto::ToProxy { to_epoch: saved.epoch, resources: resources.collect(), ..Default::default() });
        // Of those outside nothing is known until the DNS was asked: who names one waits for that, as for anything new.
        let inside = |service: &&ServiceName| self.latest(service).is_none_or(|meant| meant.view.external.is_none());
        self.callable = self.services().filter(inside).cloned().collect();
        complaints
    }

    /// What should be saved.
    pub(crate) fn saved(&self, shares: Vec<(String, u64)>) -> SavedConfig {
        let resources = self.held.iter().map(|(key, held)| SavedResource {
            kind: key.kind().as_str().to_owned(),
            name: key.name(),
            version: held.version.clone(),
            body: String::from_utf8_lossy(&held.body).into_owned(),
        });
        SavedConfig { epoch: self.epoch, own: self.own.clone(), resources: resources.collect(), shares }
    }

    /// What the workload and the destinations were made of.
    pub(crate) fn received(&self) -> Vec<Received> {
        let shown = self.held.iter().filter(|(key, _)| !matches!(key, ResourceKey::Endpoints(_)));
        let each = shown.map(|(key, held)| Received {
            kind: key.kind().as_str(),
            name: key.name(),
            version: held.version.clone(),
            body: Arc::clone(&held.body),
        });
        each.collect()
    }

    /// Takes an update as far as it can be understood; what cannot be is complained about, fit for a NACK.
    pub(crate) fn take(&mut self, update: proto::ToProxy) -> Vec<proto::Complaint> {
        let mut complaints = Vec::new();
        for name in &update.removed {
            match ResourceKey::try_from(name) {
                Ok(key) => self.remove(&key),
                Err(error) => complaints.push(complaint(&name.r#type, &name.name, &error)),
            }
        }
        for resource in update.resources {
            let (kind, name) = (resource.r#type.clone(), resource.name.clone());
            if let Err(message) = self.hold(resource) {
                complaints.push(complaint(&kind, &name, &message));
            }
        }
        for answer in update.unknown {
            if let Ok(ResourceKey::Destination(service)) = ResourceKey::parse(&answer.r#type, &answer.name) {
                self.remove(&ResourceKey::Destination(service.clone()));
                self.unknown.insert(service, (!answer.nearest.is_empty()).then_some(answer.nearest));
            }
        }
        if update.to_epoch != 0 {
            self.epoch = update.to_epoch;
        }
        complaints
    }

    fn hold(&mut self, message: proto::Resource) -> Result<(), String> {
        let resource = Resource::decode(&message).map_err(|error| error.to_string())?;
        let key = resource.key();
        let understood = match resource {
            Resource::Workload(view) => Understood::Workload(Arc::new(compile::workload(&view).map_err(said)?)),
            Resource::Destination(view) => {
                let compiled = Arc::new(compile::destination(&view).map_err(said)?);
                self.unknown.remove(&view.service);
                Understood::Destination(Arc::new(Meant { view: *view, compiled }))
            }
            Resource::Endpoints(view) => Understood::Endpoints(view),
        };
        self.held.insert(key, Held { version: message.version, body: message.body.into(), understood });
        Ok(())
    }

    fn remove(&mut self, key: &ResourceKey) {
        self.held.remove(key);
        if let ResourceKey::Destination(service) = key {
            self.active.remove(service);
            self.callable.remove(service);
            self.unknown.insert(service.clone(), None);
        }
    }

    /// The control plane is away: what it said does not exist may exist by now.
    pub(crate) fn forget_unknown(&mut self) {
        self.unknown.clear();
    }

    /// The names that the control plane said do not exist.
    pub(crate) fn unknown(&self) -> impl ExactSizeIterator<Item = &ServiceName> {
        self.unknown.keys()
    }

    /// Forgets that a name does not exist.
    pub(crate) fn forget_unknown_name(&mut self, service: &ServiceName) {
        self.unknown.remove(service);
    }

    /// How many resources are held.
    pub(crate) fn size(&self) -> usize {
        self.held.len()
    }

    /// What is held, so that only differences are sent.
    pub(crate) fn held(&self) -> Vec<proto::Held> {
        self.held
            .iter()
            .map(|(key, held)| proto::Held {
                r#type: key.kind().as_str().to_owned(),
                name: key.name(),
                version: held.version.clone(),
            })
            .collect()
    }

    /// Names of Services that are held as destinations.
    pub(crate) fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.held.keys().filter_map(|key| match key {
            ResourceKey::Destination(service) => Some(service),
            ResourceKey::Workload | ResourceKey::Endpoints(_) => None,
        })
    }

    /// Whether this workload's policy is held.
    pub(crate) fn has_workload(&self) -> bool {
        self.held.contains_key(&ResourceKey::Workload)
    }

    /// The epoch in force.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Everything needed so that `named` can be called: each name, and what its routes, the new and those still in
    /// force, can send to.
    pub(crate) fn interest(&self, named: impl Iterator<Item = ServiceName>) -> BTreeSet<ResourceKey> {
        let mut wanted = BTreeSet::from([ResourceKey::Workload]);
        let mut open: Vec<ServiceName> = named.collect();
        while let Some(service) = open.pop() {
            if !wanted.insert(ResourceKey::Destination(service.clone())) {
                continue;
            }
            wanted.insert(ResourceKey::Endpoints(service.clone()));
            for meant in self.latest(&service).into_iter().chain(self.active.get(&service)) {
                open.extend(meant.view.backends.iter().cloned());
            }
        }
        wanted
    }

    /// Names outside the mesh that the Services held stand for, those in force and the latest.
    pub(crate) fn names(&self) -> BTreeSet<HostName> {
        let meant =
            self.services().flat_map(|service| self.latest(service).into_iter().chain(self.active.get(service)));
        meant.filter_map(|meant| meant.view.external.clone()).collect()
    }

    /// What the DNS says of them now.
    pub(crate) fn set_found(&mut self, found: Found) {
        self.found = found;
    }

    /// Where keys are published that the workload's policy believes.
    pub(crate) fn key_sources(&self) -> BTreeSet<Arc<KeySource>> {
        self.workload().map(|workload| workload.tokens.sources().cloned().collect()).unwrap_or_default()
    }

    /// What is published there now.
    pub(crate) fn set_keys(&mut self, keys: FetchedKeys) {
        (self.keys, self.keyed) = (keys, None);
    }

    fn workload(&self) -> Option<&Arc<CompiledWorkload>> {
        match self.held.get(&ResourceKey::Workload).map(|held| &held.understood) {
            Some(Understood::Workload(workload)) => Some(workload),
            _ => None,
        }
    }

    /// The workload with the keys of now.
    fn keyed(&mut self) -> Option<Arc<CompiledWorkload>> {
        let workload = Arc::clone(self.workload()?);
        if workload.tokens.sources().next().is_none() {
            return Some(workload);
        }
        if self.keyed.as_ref().is_none_or(|(from, _)| !Arc::ptr_eq(from, &workload)) {
            let with = Arc::new(workload.with_fetched(&self.keys));
            self.keyed = Some((workload, with));
        }
        self.keyed.as_ref().map(|(_, with)| Arc::clone(with))
    }

    /// Lets go of what nobody is interested in.
    pub(crate) fn retain(&mut self, interest: &BTreeSet<ResourceKey>) {
        let wanted = |service: &ServiceName| interest.contains(&ResourceKey::Destination(service.clone()));
        self.held.retain(|key, _| interest.contains(key));
        self.active.retain(|service, _| wanted(service));
        self.callable.retain(&wanted);
        self.unknown.retain(|service, _| wanted(service));
        self.used.retain(|service, _| wanted(service));
    }

    /// Whether the name was used since the last call.
    pub(crate) fn was_used(&self, service: &ServiceName) -> bool {
        self.used.get(service).is_some_and(|used| used.swap(false, Ordering::Relaxed))
    }

    /// Whether every destination in force is the latest one held.
    pub(crate) fn settled(&self) -> bool {
        self.active
            .iter()
            .all(|(service, active)| self.latest(service).is_none_or(|latest| Arc::ptr_eq(latest, active)))
    }

    /// Puts even those destinations in force whose new backends have not come: they were waited for long enough.
    pub(crate) fn settle(&mut self) {
        let latest: Vec<Arc<Meant>> = self.active.keys().filter_map(|service| self.latest(service).cloned()).collect();
        self.active.extend(latest.into_iter().map(|meant| (meant.view.service.clone(), meant)));
    }

    /// The next generation.
    pub(crate) fn next(&mut self, now: Instant) -> Live {
        let services: Vec<ServiceName> = self.services().cloned().collect();
        for service in &services {
            let Some(latest) = self.latest(service).cloned() else { continue };
            let complete = self.is_complete(&latest);
            if complete || !self.active.contains_key(service) {
                self.active.insert(service.clone(), latest);
            }
            if complete {
                self.callable.insert(service.clone());
            }
        }
        let meant: Vec<Arc<Meant>> = services.iter().filter_map(|service| self.active.get(service).cloned()).collect();
        let destinations =
            meant.iter().map(|meant| (meant.view.service.clone(), Arc::new(self.build(meant, now)))).collect();
        let workload = self.keyed();
        Live { epoch: self.epoch, own: self.own.clone(), workload, destinations, unknown: self.unknown.clone() }
    }

    /// Forgets states of endpoints that have long been gone.
    pub(crate) fn forget(&mut self, now: Instant) -> Vec<(ServiceName, InstanceId)> {
        self.keep.forget(now)
    }

    fn build(&mut self, meant: &Meant, now: Instant) -> Destination {
        let view = &meant.view;
        let service = &view.service;
        let listed = self.listed(view);
        let members = listed.iter().map(|endpoint| Member::new(endpoint.instance.as_str(), endpoint.weight)).collect();
        let endpoints = listed
            .into_iter()
            .map(|endpoint| Endpoint {
                state: self.keep.endpoint(service, &endpoint.instance, now),
                instance: endpoint.instance,
                address: endpoint.address,
                open: endpoint.open,
            })
            .collect();
        let accounts = view.accounts.iter().map(|account| {
            SpiffeId::new(self.own.trust_domain.clone(), account.namespace.clone(), account.name.clone())
        });
        let backend = Backend {
            name: service.clone(),
            traffic: view.traffic.clone(),
            accounts: accounts.collect(),
            ports: view.ports.clone(),
            endpoints,
            unwell: self.told(service).map(|told| told.unwell.clone()).unwrap_or_default(),
            balancer: self.keep.balancer(service, &view.traffic.load_balancer, members, now),
            limits: self.keep.limits(service, now),
            answers: self.keep.answers(service, now),
        };
        Destination {
            compiled: Arc::clone(&meant.compiled),
            budget: self.keep.budget(service, now),
            backend: Arc::new(backend),
            habits: self.keep.habits(service, now),
            complete: self.callable.contains(service),
            used: Arc::clone(self.used.entry(service.clone()).or_default()),
        }
    }

    /// Where a Service can be reached: at its instances and the addresses written down for it, or at those of the name
    /// outside that it stands for.
    fn listed(&self, view: &DestinationView) -> Vec<EndpointView> {
        let listed = match &view.external {
            Some(name) => view::resolved(&view.ports, self.found.get(name).map_or(&[], |addresses| &**addresses)),
            None => self.told(&view.service).map(|told| told.endpoints.clone()).unwrap_or_default(),
        };
        listed.into_iter().filter_map(|endpoint| self.not_here(endpoint)).collect()
    }

    /// What the control plane said of a Service's endpoints.
    fn told(&self, service: &ServiceName) -> Option<&EndpointsView> {
        match self.held.get(&ResourceKey::Endpoints(service.clone())).map(|held| &held.understood) {
            Some(Understood::Endpoints(told)) => Some(told),
            _ => None,
        }
    }

    /// The endpoint without those of its addresses that are this process's own listeners; `None` when no other is left.
    fn not_here(&self, mut endpoint: EndpointView) -> Option<EndpointView> {
        if let EndpointAddress::Plain(ports) = &mut endpoint.address
            && endpoint.open.is_empty()
        {
            ports.retain(|(_, address)| !self.doors.is_own(*address));
            if ports.is_empty() {
                return None;
            }
        }
        Some(endpoint)
    }

    fn latest(&self, service: &ServiceName) -> Option<&Arc<Meant>> {
        match self.held.get(&ResourceKey::Destination(service.clone())).map(|held| &held.understood) {
            Some(Understood::Destination(meant)) => Some(meant),
            _ => None,
        }
    }

    /// Whether the Service and all it can send to are here, or are known not to exist. One that stands for a name outside
    /// is here when the DNS was asked.
    fn is_complete(&self, meant: &Meant) -> bool {
        let asked = |meant: &Arc<Meant>| meant.view.external.as_ref().is_none_or(|name| self.found.contains_key(name));
        let here = |service: &ServiceName| {
            self.unknown.contains_key(service)
                || (self.latest(service).is_some_and(asked)
                    && self.held.contains_key(&ResourceKey::Endpoints(service.clone())))
        };
        here(&meant.view.service) && meant.view.backends.iter().all(here)
    }
}

fn complaint(kind: &str, name: &str, message: &impl ToString) -> proto::Complaint {
    proto::Complaint { r#type: kind.to_owned(), name: name.to_owned(), message: message.to_string() }
}

#[expect(clippy::needless_pass_by_value, reason = "shaped for map_err")]
fn said(complaints: Vec<Complaint>) -> String {
    complaints.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
#[path = "swap_tests.rs"]
mod tests;
