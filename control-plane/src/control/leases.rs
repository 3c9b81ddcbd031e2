//! Instances come, change and go: judged by the registry, on disk before they are true, true before callers are told.
//!
//! However many register in one request, they are one transaction and one word to the streams.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use equerry_policies::names::{AccountName, ServiceName};
use equerry_policies::policy::{Labels, Meaning};
use equerry_policies::view::{self, NotListed};

use super::{ControlPlane, LeaseError, Truth, locked};
use crate::audit::{By, Note};
use crate::registry::{InstanceKey, Registration, Registry, Step};
use crate::store::instances::InstanceRow;
use crate::store::{StoreError, instances};

/// Instances that an entry of the audit log names one by one.
const NAMED: usize = 20;
/// Bytes that are enough for most registrations as they are written.
const BODY: usize = 320;

/// Why several instances were not registered: none of them was.
#[derive(Debug, thiserror::Error)]
pub enum LeasesError {
    /// Some may not: which, in the order in which they were given, and why.
    #[error("{} of them are refused", .0.len())]
    Refused(Vec<(usize, LeaseError)>),
    /// The store is full or failed.
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl ControlPlane {
    /// Registers an instance or extends its lease, asked `by` somebody or (`None`) by its own sidecar; what changed is on disk when this
    /// returns. Returns the Services it now stands behind.
    ///
    /// # Errors
    /// When another start or account holds it, a Service that selects it does not list its account, or the store refuses.
    pub async fn put_instance(
        &self,
        registration: Registration,
        by: Option<By>,
    ) -> Result<Arc<[ServiceName]>, LeaseError> {
        let asked_by = by.as_ref().map_or_else(|| format!("sidecar {}", registration.account), |by| by.name.clone());
        match self.put_instances(vec![registration], by).await {
            Ok(mut services) => services.pop().ok_or(LeaseError::Store(StoreError::Closed)),
            Err(LeasesError::Store(error)) => Err(error.into()),
            Err(LeasesError::Refused(mut refused)) => {
                let error = refused.pop().map_or(LeaseError::Store(StoreError::Closed), |(_, error)| error);
                tracing::warn!(by = asked_by, %error, "an instance is refused");
                Err(error)
            }
        }
    }

    /// Registers many, all or none; they are on disk together when this returns. Returns the Services that each stands behind.
    ///
    /// # Errors
    /// When one of them may not, or the store refuses; then none was registered, and no lease was extended.
    pub async fn put_instances(
        &self,
        registrations: Vec<Registration>,
        by: Option<By>,
    ) -> Result<Vec<Arc<[ServiceName]>>, LeasesError> {
        let truth = self.truth();
        let judged = self.judged(&truth, &registrations)?;
        let changed = registrations.iter().zip(&judged).filter(|(_, (step, _))| *step != Step::Renewed);
        let rows: Vec<InstanceRow> = changed.map(|(one, _)| row_of(one)).collect();
        if !rows.is_empty() {
            let note = by.map(|by| Note::done(by, "instance.register", about(&rows)));
            instances::write(&self.0.store, rows, note).await?;
        }
        let news = judged.iter().filter(|(step, _)| *step == Step::New).count();
        self.0.metrics.leases("registered", news);
        self.0.metrics.leases("renewed", judged.len() - news);
        // What is made and what is thrown away is so outside the lock.
        let registrations: Vec<Arc<Registration>> = registrations.into_iter().map(Arc::new).collect();
        let mut stand = Vec::with_capacity(judged.len());
        let mut registry = locked(&self.0.registry);
        let (before, now) = (registry.changes(), Instant::now());
        for (registration, (step, services)) in registrations.iter().zip(judged) {
            let mut services = services;
            if step == Step::Renewed {
                registry.renew(registration, now);
            } else {
                let memberships = services.clone().map(|services| (truth.epoch, services));
                if !registry.commit(Arc::clone(registration), memberships, now) {
                    services = None;
                }
            }
            stand.push(services.unwrap_or_else(|| memberships_in(&mut registry, &truth, &registration.key())));
        }
        let worth_telling = news > 0 || registry.changes() != before;
        drop(registry);
        if worth_telling {
            self.tell();
        }
        Ok(stand)
    }

    /// What each would do, if all may.
    fn judged(&self, truth: &Truth, registrations: &[Registration]) -> Result<Vec<Judged>, LeasesError> {
        let (mut judged, mut refused) = (Vec::with_capacity(registrations.len()), Vec::new());
        let mut alike = Alike::new(&truth.meaning);
        let registry = locked(&self.0.registry);
        for (index, registration) in registrations.iter().enumerate() {
            match judge(&registry, &mut alike, registration) {
                Ok(one) => judged.push(one),
                Err(error) => {
                    self.0.metrics.lease("refused");
                    refused.push((index, error));
                }
            }
        }
        if refused.is_empty() { Ok(judged) } else { Err(LeasesError::Refused(refused)) }
    }

    /// The Services an instance stands behind; none when it is not registered.
    pub fn memberships(&self, key: &InstanceKey) -> Arc<[ServiceName]> {
        let truth = self.0.truth.load();
        memberships_in(&mut locked(&self.0.registry), &truth, key)
    }

    /// Takes an instance out; `generation` `None`: whatever its generation. Returns whether it was there.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn delete_instance(
        &self,
        key: &InstanceKey,
        generation: Option<u64>,
        by: Option<By>,
    ) -> Result<bool, StoreError> {
        let removed = locked(&self.0.registry).remove(key, generation);
        if removed {
            self.0.metrics.lease("released");
            self.tell();
            let note = by.map(|by| Note::done(by, "instance.remove", vec![format!("instance {key}")]));
            self.forget(std::slice::from_ref(key), note).await?;
        }
        Ok(removed)
    }

    /// Takes out every instance whose lease has run out. Called every second.
    pub async fn expire_leases(&self, now: Instant) {
        let gone = locked(&self.0.registry).expire(now);
        if !gone.is_empty() {
            for key in &gone {
                tracing::warn!(instance = %key, "lease ran out");
                self.0.metrics.lease("expired");
            }
            self.tell();
            if let Err(error) = self.forget(&gone, None).await {
                tracing::error!(%error, "expired instances stay in the store until the next start");
            }
        }
        // Of one that was revoked, lists say why it is away.
        let trust = self.0.authority.trust();
        let registry = locked(&self.0.registry);
        let is_registered = |key: &InstanceKey| registry.get(key).is_some();
        locked(&self.0.proxies).forget_gone(is_registered, |id| trust.revokes(id), SystemTime::now());
    }

    /// Deletes instances from the store, and writes again those that registered anew meanwhile.
    async fn forget(&self, keys: &[InstanceKey], note: Option<Note>) -> Result<(), StoreError> {
        instances::delete(&self.0.store, keys.to_vec(), note).await?;
        let back: Vec<InstanceRow> =
            keys.iter().filter_map(|key| self.instance(key)).map(|again| row_of(&again)).collect();
        if back.is_empty() { Ok(()) } else { instances::write(&self.0.store, back, None).await }
    }

    /// Whoever puts an instance again means the same start of it, and one that its own sidecar registered stays the sidecar's.
    pub fn take_for_the_same(&self, registrations: &mut [Registration]) {
        let registry = locked(&self.0.registry);
        for one in registrations {
            if let Some(known) = registry.get(&one.key()) {
                (one.generation, one.by_api) = (known.registration.generation, known.registration.by_api);
            }
        }
    }

    /// One registered instance.
    pub fn instance(&self, key: &InstanceKey) -> Option<Arc<Registration>> {
        locked(&self.0.registry).get(key).map(|instance| Arc::clone(&instance.registration))
    }
}

/// What a registration would do, and the Services it would stand behind if that was found out.
type Judged = (Step, Option<Arc<[ServiceName]>>);

/// Services that came after an instance leave it out; one that comes as somebody else is told.
fn judge<'r>(
    registry: &Registry,
    alike: &mut Alike<'_, 'r>,
    registration: &'r Registration,
) -> Result<Judged, LeaseError> {
    let step = registry.step(registration)?;
    let relabelled = || {
        let known = registry.get(&registration.key());
        known.is_some_and(|known| known.registration.labels != registration.labels)
    };
    let asked = step == Step::New || (step == Step::Changed && relabelled());
    let services = asked.then(|| alike.services_of(registration)).transpose()?;
    Ok((step, services))
}

/// The Services that select an instance, if they all list its account.
type Services = Result<Arc<[ServiceName]>, NotListed>;

/// The Services of each kind of instance: those that come together are mostly alike, and Services are many.
struct Alike<'m, 'r> {
    meaning: &'m Meaning,
    known: HashMap<(&'r AccountName, &'r Labels), Services>,
}

impl<'m, 'r> Alike<'m, 'r> {
    fn new(meaning: &'m Meaning) -> Self {
        Self { meaning, known: HashMap::new() }
    }

    fn services_of(&mut self, registration: &'r Registration) -> Services {
        let found = || view::services_of(self.meaning, &registration.workload()).map(Arc::from);
        self.known.entry((&registration.account, &registration.labels)).or_insert_with(found).clone()
    }
}

/// The Services an instance stands behind at an epoch, found out once for each.
pub(super) fn memberships_in(registry: &mut Registry, truth: &Truth, key: &InstanceKey) -> Arc<[ServiceName]> {
    let Some(instance) = registry.get(key) else { return Arc::default() };
    if let Some(services) = instance.memberships_at(truth.epoch) {
        return Arc::clone(services);
    }
    let services = found_out(truth, &instance.registration);
    registry.remember_memberships(key, truth.epoch, Arc::clone(&services));
    services
}

/// The Services that an instance stands behind.
pub(super) fn found_out(truth: &Truth, known: &Registration) -> Arc<[ServiceName]> {
    view::services_with(&truth.meaning, &known.account, &known.labels).cloned().collect()
}

/// Each of a few, or how many they are and the first.
fn about(rows: &[InstanceRow]) -> Vec<String> {
    let name = |row: &InstanceRow| format!("instance {}/{}", row.namespace, row.id);
    match rows {
        [first, .., last] if rows.len() > NAMED => {
            vec![format!("{} instances, from {} to {}", rows.len(), name(first), name(last))]
        }
        few => few.iter().map(name).collect(),
    }
}

fn row_of(registration: &Registration) -> InstanceRow {
    let InstanceKey { namespace, id } = registration.key();
    let mut body = Vec::with_capacity(BODY);
    // JSON is text, and a vector takes all of it.
    let written = serde_json::to_writer(&mut body, registration).is_ok();
    InstanceRow { namespace, id, body: String::from_utf8(body).ok().filter(|_| written).unwrap_or_default() }
}
