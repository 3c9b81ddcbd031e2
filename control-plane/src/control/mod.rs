//! The control plane as one value: what `serve` and the admin API call, and the only place where store, registry, proxies and
//! quotas meet.
//!
//! Every change is on disk before it is true, and true before anybody is told. Nothing here blocks a thread: what waits for the
//! disk is `async`.

mod audit;
mod calls;
mod history;
mod leases;
mod ledger;
mod proxies;
mod quotas;
mod tokens;
mod trust;
mod truth;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use equerry_policies::complaint::Complaint;
use equerry_policies::document::{Document, DocumentKey, Kind};
use equerry_policies::names::{Namespace, ResourceName, ServiceName, SpiffeId};
use equerry_policies::policy::Meaning;
use equerry_policies::view::{self, NotListed};
use tokio::sync::watch;

use crate::audit::{By, Note};
use crate::authority::Authority;
use crate::calls::Calls;
use crate::calls::lookers::Lookers;
use crate::calls::shadows::Shadows;
use crate::config::Setting;
use crate::metrics::Metrics;
use crate::quota::Books;
use crate::registry::{Instance, InstanceKey, Refused, Registration, Registry};
use crate::snapshot::Cache;
use crate::store::instances::InstanceRow;
use crate::store::tokens::AdminRow;
use crate::store::{Store, StoreError, documents, grants, instances, trust as kept_trust};

pub use audit::{AuditProof, Scope};
pub(crate) use calls::Looking;
pub use leases::LeasesError;
pub use proxies::{
    ConnectionId, EpochState, EpochStatus, NackStatus, Proxies, ProxyEpoch, ProxyStatus, Standing, UNANSWERED,
    UnknownNonce,
};
pub use trust::{RotationStatus, TrustError, Waiting};
pub use truth::{Action, ApplyError, Change, Edit, Precondition, StoredDocument, Truth};

/// Streams of events for people at once.
pub(crate) const STREAMS: usize = 64;

/// The control plane; cheap to clone.
#[derive(Clone)]
pub struct ControlPlane(Arc<Inner>);

struct Inner {
    store: Store,
    authority: Arc<Authority>,
    metrics: Arc<Metrics>,
    truth: ArcSwap<Truth>,
    applying: tokio::sync::Mutex<()>,
    /// Held while what is believed changes.
    trusting: tokio::sync::Mutex<()>,
    ledger: Mutex<ledger::Ledger>,
    registry: Mutex<Registry>,
    proxies: Mutex<Proxies>,
    cache: Mutex<Cache>,
    refusals: Mutex<audit::Refusals>,
    /// What is known of the audit log itself; held while it is read.
    proving: tokio::sync::Mutex<audit::Proving>,
    proof: Mutex<AuditProof>,
    /// What the operator set, as it is in force.
    settings: ArcSwap<Vec<Setting>>,
    books: Mutex<Books>,
    admins: RwLock<Vec<AdminRow>>,
    history: Mutex<history::History>,
    calls: Mutex<Calls>,
    shadows: Mutex<Shadows>,
    lookers: Mutex<Lookers>,
    /// Woken when what people wish to be told of calls changes.
    wished: watch::Sender<u64>,
    /// Room for clients that hear of changes as they happen.
    streams: Arc<tokio::sync::Semaphore>,
    /// Counts changes of truth and registry, so that whoever waits for one is woken.
    changed: watch::Sender<u64>,
    /// Woken when a sidecar may be told something new about a quota.
    granted: watch::Sender<u64>,
    stopping: watch::Sender<bool>,
}

/// How documents are applied.
#[derive(Debug, Clone, Default)]
pub struct ApplyOptions {
    /// Judge, but change nothing.
    pub dry_run: bool,
    /// What the caller believes of one of the documents.
    pub if_match: Option<(DocumentKey, Precondition)>,
    /// Who asks.
    pub by: By,
}

/// What became of a change.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The epoch that carries it: a new one, or the present one when nothing changed or it was a dry run.
    pub epoch: u64,
    /// Each document named.
    pub changes: Vec<Change>,
    /// What is hardly meant in these documents, and in others since this change.
    pub warnings: Vec<Complaint>,
}

/// Which documents are asked for; `None`: all.
#[derive(Debug, Clone, Default)]
pub struct DocumentFilter {
    /// Only of this kind.
    pub kind: Option<Kind>,
    /// Only of this namespace.
    pub namespace: Option<Namespace>,
    /// Only of this name.
    pub name: Option<ResourceName>,
}

impl DocumentFilter {
    /// Whether a document is asked for.
    pub fn wants(&self, key: &DocumentKey) -> bool {
        self.kind.is_none_or(|kind| kind == key.kind)
            && (self.namespace.is_none() || self.namespace == key.namespace)
            && self.name.as_ref().is_none_or(|name| *name == key.name)
    }
}

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

/// An instance behind a Service.
#[derive(Debug, Clone)]
pub struct MemberStatus {
    /// What it said last.
    pub registration: Registration,
    /// How long its lease still runs without a beat.
    pub lease_left: Duration,
}

/// Why an instance may not register.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Another start or account holds it.
    #[error("{0}")]
    Refused(#[from] Refused),
    /// A Service that selects it does not list its account.
    #[error("{0}; add the account to the Service's annotation, or change the instance's labels or account")]
    NotListed(#[from] NotListed),
    /// The store is full or failed.
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// Why a control plane cannot start on a store.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The store failed.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// Stored documents that this version cannot read.
    #[error("the stored documents cannot be read by this version:\n{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Documents(Vec<Complaint>),
    /// What was kept about trust cannot be used.
    #[error("{0}")]
    Authority(#[from] crate::authority::AuthorityError),
    /// The process-wide metrics could not be made.
    #[error("metrics: {0}")]
    Metrics(String),
}

/// Changes that one line of the log names.
const NAMED: usize = 5;

/// The first few of them, and how many more there are.
fn in_short(changes: &[Change]) -> String {
    let mut changed = changes.iter().filter(|change| change.action != Action::Unchanged);
    let named: Vec<String> =
        changed.by_ref().take(NAMED).map(|change| format!("{} {}", change.key, change.action.as_str())).collect();
    match changed.count() {
        0 => named.join(", "),
        more => format!("{}, and {more} more", named.join(", ")),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while holding one of these locks leaves a state that was valid at every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ControlPlane {
    /// Takes up what the store holds. Every lease gets one full period of grace.
    ///
    /// # Errors
    /// When the store fails or holds what this version cannot read.
    pub async fn restore(store: Store, authority: Arc<Authority>) -> Result<Self, RestoreError> {
        let metrics = Metrics::new().map_err(|error| RestoreError::Metrics(error.to_string()))?;
        let (epoch, rows) = documents::read_all(&store).await?;
        let truth = Truth::restore(epoch, rows, authority.trust_domain()).map_err(RestoreError::Documents)?;
        let registrations = instances::read_all(&store).await?.iter().filter_map(read_registration).collect();
        let registry = Registry::restore(registrations, Instant::now());
        let books = Books::restore(truth.meaning.tenants.values(), grants::read_all(&store).await?, SystemTime::now());
        let admins = crate::store::tokens::admins(&store).await?;
        let trust = kept_trust::read(&store).await?;
        if authority.take_up(&trust)? {
            let generation = kept_trust::put_rotation(&store, None, None, SystemTime::now()).await?;
            authority.rotate(None, generation)?;
        }
        Ok(Self(Arc::new(Inner {
            store,
            authority,
            metrics,
            truth: ArcSwap::from_pointee(truth),
            applying: tokio::sync::Mutex::new(()),
            trusting: tokio::sync::Mutex::new(()),
            ledger: Mutex::new(ledger::Ledger::restore(trust.leaves)),
            registry: Mutex::new(registry),
            proxies: Mutex::default(),
            cache: Mutex::default(),
            refusals: Mutex::default(),
            proving: tokio::sync::Mutex::default(),
            proof: Mutex::default(),
            settings: ArcSwap::default(),
            books: Mutex::new(books),
            admins: RwLock::new(admins),
            history: Mutex::new(history::History::new(epoch)),
            calls: Mutex::default(),
            shadows: Mutex::default(),
            lookers: Mutex::default(),
            wished: watch::Sender::new(0),
            streams: Arc::new(tokio::sync::Semaphore::new(STREAMS)),
            changed: watch::Sender::new(0),
            granted: watch::Sender::new(0),
            stopping: watch::Sender::new(false),
        })))
    }

    /// Where everything is kept.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// The certificate authority.
    pub fn authority(&self) -> &Arc<Authority> {
        &self.0.authority
    }

    /// What it counts about itself.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// What the operator set, as it is in force, with who said it.
    pub fn settings(&self) -> Arc<Vec<Setting>> {
        self.0.settings.load_full()
    }

    /// These settings are in force now.
    pub(crate) fn tell_settings(&self, settings: Vec<Setting>) {
        self.0.settings.store(Arc::new(settings));
    }

    // Documents.

    /// Everything that is true now.
    pub fn truth(&self) -> Arc<Truth> {
        self.0.truth.load_full()
    }

    /// The present epoch; 0 before the first document.
    pub fn epoch(&self) -> u64 {
        self.0.truth.load().epoch
    }

    /// What all documents mean together.
    pub fn meaning(&self) -> Arc<Meaning> {
        Arc::clone(&self.0.truth.load().meaning)
    }

    /// The documents asked for, by kind, namespace and name.
    pub fn documents(&self, filter: &DocumentFilter) -> Vec<StoredDocument> {
        let truth = self.0.truth.load();
        truth.documents.iter().filter(|(key, _)| filter.wants(key)).map(|(_, stored)| stored.clone()).collect()
    }

    /// Creates or replaces documents, all or none, as one epoch.
    ///
    /// # Errors
    /// When they are wrong, a belief of the caller does not hold, or the store refuses. Nothing was changed then.
    pub async fn apply(&self, documents: Vec<Document>, options: ApplyOptions) -> Result<Applied, ApplyError> {
        self.edit(documents.into_iter().map(Edit::Put).collect(), options).await
    }

    /// Deletes documents, all or none, as one epoch.
    ///
    /// # Errors
    /// When one is not there, those that stay would be wrong without it, or the store refuses.
    pub async fn delete(&self, keys: Vec<DocumentKey>, options: ApplyOptions) -> Result<Applied, ApplyError> {
        self.edit(keys.into_iter().map(Edit::Delete).collect(), options).await
    }

    async fn edit(&self, edits: Vec<Edit>, options: ApplyOptions) -> Result<Applied, ApplyError> {
        // On a task of its own: a caller that goes away in the middle must not leave what is stored untold.
        let this = self.clone();
        let task = tokio::spawn(async move { this.edit_to_the_end(edits, &options).await });
        task.await.unwrap_or(Err(ApplyError::Store(StoreError::Closed)))
    }

    async fn edit_to_the_end(&self, edits: Vec<Edit>, options: &ApplyOptions) -> Result<Applied, ApplyError> {
        let _one_at_a_time = self.0.applying.lock().await;
        let truth = self.truth();
        let plan = truth.plan(edits, options.if_match.as_ref(), self.0.authority.trust_domain())?;
        let Some((rows, next)) = plan.next.filter(|_| !options.dry_run) else {
            if !options.dry_run {
                // Nothing to change is an apply too: whoever waits for it means the proxies that are connected now.
                self.count_audience(truth.epoch);
            }
            return Ok(Applied { epoch: truth.epoch, changes: plan.changes, warnings: plan.warnings });
        };
        let about = plan.changes.iter().filter(|change| change.action != Action::Unchanged);
        let about = about.map(|change| format!("{} {}", change.key, change.action.as_str())).collect();
        let note = Note { epoch: Some(next.epoch), ..Note::done(options.by.clone(), "apply", about) };
        documents::write_epoch(&self.0.store, rows, note, SystemTime::now()).await?;
        let epoch = next.epoch;
        locked(&self.0.history).note(epoch, &plan.changes);
        self.publish(next);
        let (by, token, changed) = (options.by.name.as_str(), options.by.token.as_str(), in_short(&plan.changes));
        tracing::info!(epoch, by, token, changed, "documents changed");
        Ok(Applied { epoch, changes: plan.changes, warnings: plan.warnings })
    }

    /// The proxies that an apply of this epoch counts: those connected now, and those registered but away.
    fn count_audience(&self, epoch: u64) {
        let expected = self.expected();
        locked(&self.0.proxies).epoch_applied(epoch, expected.into_iter());
    }

    fn publish(&self, next: Truth) {
        self.count_audience(next.epoch);
        locked(&self.0.books).set_tenants(next.meaning.tenants.values(), SystemTime::now());
        self.0.truth.store(Arc::new(next));
        self.tell();
    }

    // Whoever waits for changes.

    /// Changes whenever a proxy may have to be told something.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Changes whenever a sidecar may have to be told something about a quota.
    pub(crate) fn grants_told(&self) -> watch::Receiver<u64> {
        self.0.granted.subscribe()
    }

    /// Becomes true when the process is ending.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.0.stopping.subscribe()
    }

    /// Ends every stream, so that proxies look for another control plane.
    pub fn stop(&self) {
        self.0.stopping.send_replace(true);
    }

    fn tell(&self) {
        self.0.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    // Instances, as they are seen; `leases` changes them.

    /// Every registered instance, by namespace and id.
    pub fn instances(&self) -> Vec<MemberStatus> {
        let now = Instant::now();
        let mut all: Vec<MemberStatus> = locked(&self.0.registry).all().map(|instance| member(instance, now)).collect();
        all.sort_by_cached_key(|member| member.registration.key());
        all
    }

    /// The registered instances that are `wanted`, by namespace and id, and the Services that each stands behind.
    pub fn members(&self, wanted: impl Fn(&Registration) -> bool) -> Vec<(MemberStatus, Arc<[ServiceName]>)> {
        let (truth, now) = (self.truth(), Instant::now());
        let mut registry = locked(&self.0.registry);
        let mut keys: Vec<InstanceKey> =
            registry.all().map(|one| &one.registration).filter(|one| wanted(one)).map(Registration::key).collect();
        keys.sort_unstable();
        let stands = |key: InstanceKey| {
            let services = leases::memberships_in(&mut registry, &truth, &key);
            Some((member(registry.get(&key)?, now), services))
        };
        keys.into_iter().filter_map(stands).collect()
    }

    /// What each of these instances said last, and the Services that it stands behind; `None` for one that is not registered.
    pub fn registrations_of<'k>(
        &self,
        keys: impl Iterator<Item = &'k InstanceKey>,
    ) -> Vec<Option<(Registration, Arc<[ServiceName]>)>> {
        let truth = self.truth();
        let mut registry = locked(&self.0.registry);
        keys.map(|key| {
            let services = leases::memberships_in(&mut registry, &truth, key);
            registry.get(key).map(|instance| (instance.registration.clone(), services))
        })
        .collect()
    }

    /// Every Service and who stands behind it, by name.
    pub fn services(&self) -> Vec<ServiceStatus> {
        let truth = self.truth();
        let now = Instant::now();
        let mut members: HashMap<ServiceName, Vec<MemberStatus>> = HashMap::new();
        {
            let mut registry = locked(&self.0.registry);
            let keys: Vec<InstanceKey> = registry.all().map(|instance| instance.registration.key()).collect();
            for key in keys {
                let services = leases::memberships_in(&mut registry, &truth, &key);
                let Some(instance) = registry.get(&key) else { continue };
                for service in services.iter() {
                    members.entry(service.clone()).or_default().push(member(instance, now));
                }
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

    // Proxies.

    /// The instances whose proxies have an open config stream.
    pub fn connected(&self) -> HashSet<InstanceKey> {
        locked(&self.0.proxies).all_connected().cloned().collect()
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

    /// The instances whose proxies ought to be connected: those that were registered by their own sidecar.
    fn expected(&self) -> Vec<InstanceKey> {
        let registry = locked(&self.0.registry);
        registry.all().map(|one| &one.registration).filter(|one| !one.by_api).map(Registration::key).collect()
    }

    /// Room for clients that hear of changes as they happen.
    pub(crate) fn streams(&self) -> Arc<tokio::sync::Semaphore> {
        Arc::clone(&self.0.streams)
    }

    pub(crate) fn listeners(&self) -> MutexGuard<'_, Proxies> {
        locked(&self.0.proxies)
    }

    pub(crate) fn registry(&self) -> MutexGuard<'_, Registry> {
        locked(&self.0.registry)
    }

    pub(crate) fn cache(&self) -> MutexGuard<'_, Cache> {
        locked(&self.0.cache)
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
        registration: instance.registration.clone(),
        lease_left: instance.expires.saturating_duration_since(now),
    }
}

fn read_registration(row: &InstanceRow) -> Option<Registration> {
    serde_json::from_str(&row.body)
        .inspect_err(|error| tracing::error!(namespace = row.namespace, id = row.id, %error, "a stored instance cannot be read; it will register again"))
        .ok()
}
