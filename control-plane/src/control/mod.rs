//! The control plane as one value: what `serve` and the admin API call, and the only place where store, registry, proxies and
//! quotas meet.
//!
//! Every change is on disk before it is true, and true before anybody is told. Nothing here blocks a thread: what waits for the
//! disk is `async`.

mod audit;
mod calls;
mod history;
mod judge;
mod leases;
mod ledger;
mod proxies;
mod quotas;
mod seen;
mod tokens;
mod trust;
mod truth;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use equerry_policies::complaint::Complaint;
use equerry_policies::document::{Document, DocumentKey, Kind};
use equerry_policies::names::{Namespace, ResourceName};
use equerry_policies::policy::Meaning;
use equerry_policies::view::NotListed;
use tokio::sync::watch;

use crate::audit::{By, Note};
use crate::authority::Authority;
use crate::calls::Calls;
use crate::calls::lookers::Lookers;
use crate::config::Setting;
use crate::metrics::Metrics;
use crate::quota::Books;
use crate::registry::{Refused, Registration, Registry};
use crate::snapshot::Cache;
use crate::store::tokens::AdminRow;
use crate::store::{Store, StoreError, documents, grants, instances, trust as kept_trust};

pub use audit::{AuditProof, Scope};
pub(crate) use calls::Looking;
pub use leases::LeasesError;
pub use proxies::{
    ConnectionId, EpochState, EpochStatus, NackStatus, Proxies, ProxyEpoch, ProxyStatus, Standing, UNANSWERED,
    UnknownNonce,
};
pub use seen::{Lease, MemberStatus, ServiceStatus};
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
    /// Quota grants could not be written when that was tried last.
    withheld: AtomicBool,
    admins: RwLock<Vec<AdminRow>>,
    history: Mutex<history::History>,
    calls: Mutex<Calls>,
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
            withheld: AtomicBool::new(false),
            admins: RwLock::new(admins),
            history: Mutex::new(history::History::new(epoch)),
            calls: Mutex::default(),
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

fn read_registration((instance, body): &(String, String)) -> Option<Registration> {
    serde_json::from_str(body)
        .inspect_err(
            |error| tracing::error!(instance, %error, "a stored instance cannot be read; it will register again"),
        )
        .ok()
}
