//! Whom the mesh believes, as people change it: rotations of the root, one step at a time, and revoked identities.
//!
//! A step is taken only when nobody would be stranded by it; who would be is named. Each is on disk, with its entry in the
//! audit log, before it is true, and reaches every proxy over its stream.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use equerry_certs::{Issued, rfc3339};
use equerry_policies::names::SpiffeId;

use super::ledger::Claim;
use super::{ControlPlane, ProxyStatus, Standing, locked};
use crate::audit::{By, Note};
use crate::authority::AuthorityError;
use crate::authority::trust::{Phase, Trust};
use crate::registry::InstanceKey;
use crate::store::trust::{self, KeptPhase, LeafRow, Revocation};
use crate::store::{StoreError, instances};

/// Time for each proxy to renew when all are asked to, so that the authority is not asked by all at once.
const RENEW_EACH_MS: u64 = 20;
/// Nobody waits longer than this for its turn to renew, however many there are.
const RENEW_ALL_MS: u64 = 10 * 60 * 1000;

/// Somebody who would be stranded by the next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// An instance, or an identity.
    pub who: String,
    /// What it still lacks, and what to do.
    pub why: String,
}

/// How far a rotation is.
#[derive(Debug, Clone)]
pub struct RotationStatus {
    /// What is believed now.
    pub trust: Arc<Trust>,
    /// Who holds up the next step; empty: it can be taken.
    pub waiting: Vec<Waiting>,
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The authority cannot.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The rotation is not where this step begins.
    #[error("{0}")]
    OutOfStep(&'static str),
    /// Somebody would be stranded.
    #[error("{} would be stranded: {}", .0.len(), .0.iter().take(5).map(|one| format!("{}: {}", one.who, one.why)).collect::<Vec<_>>().join("; "))]
    Stranded(Vec<Waiting>),
}

/// A change that has begun is made wholly, whether whoever asked for it still waits or not.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, TrustError>> + Send + 'static,
) -> Result<T, TrustError> {
    tokio::spawn(change).await.map_err(|_| StoreError::Closed)?
}

impl ControlPlane {
    /// How far a rotation is, and who holds up its next step.
    pub fn rotation(&self) -> RotationStatus {
        let trust = self.0.authority.trust();
        let waiting = self.waiting(&trust, SystemTime::now());
        RotationStatus { trust, waiting }
    }

    /// Brings a new root in, made here or brought: both are believed from now on, the old one still signs.
    ///
    /// # Errors
    /// When a rotation is under way, or the store refuses.
    pub async fn start_rotation(
        &self,
        brought: Option<equerry_certs::Authority>,
        by: By,
    ) -> Result<RotationStatus, TrustError> {
        let this = self.clone();
        to_the_end(async move { this.start(brought, by).await }).await
    }

    async fn start(&self, brought: Option<equerry_certs::Authority>, by: By) -> Result<RotationStatus, TrustError> {
        let _one_at_a_time = self.0.trusting.lock().await;
        let now = SystemTime::now();
        if self.0.authority.trust().phase != Phase::Steady {
            return Err(TrustError::OutOfStep(
                "a rotation is under way: `equerry certs rotate status` says how far it is",
            ));
        }
        // What is kept then is all there is of the root that is in force.
        if trust::read(&self.0.store).await?.rotation.is_some() {
            return Err(TrustError::OutOfStep(
                "the last rotation's new root could not be written to the state directory: make room there and restart the control plane",
            ));
        }
        let rotation = self.0.authority.prepare(brought, now)?;
        let kept = rotation.kept(KeptPhase::Trusting);
        let about = vec![format!("root {} comes in and is believed", pin(&rotation.next)?)];
        let note = Note::done(by, "trust.rotate", about);
        let generation = trust::put_rotation(&self.0.store, Some(kept), Some(note), now).await?;
        let done = self.0.authority.rotate(Some(rotation), generation);
        self.tell();
        done?;
        Ok(self.rotation())
    }

    /// Takes the next step: the new root signs, or the old one is believed no more.
    ///
    /// # Errors
    /// When nothing is under way, somebody would be stranded and it is not forced, or the store refuses.
    pub async fn advance_rotation(&self, force: bool, by: By) -> Result<RotationStatus, TrustError> {
        let this = self.clone();
        to_the_end(async move { this.advance(force, by).await }).await
    }

    async fn advance(&self, force: bool, by: By) -> Result<RotationStatus, TrustError> {
        let _one_at_a_time = self.0.trusting.lock().await;
        let now = SystemTime::now();
        let trust = self.0.authority.trust();
        let waiting = self.waiting(&trust, now);
        if !waiting.is_empty() && !force {
            return Err(TrustError::Stranded(waiting));
        }
        let coming = trust.anchors.iter().find(|anchor| anchor.coming).map(|anchor| anchor.pin.to_string());
        let coming = coming.unwrap_or_default();
        let left = waiting.iter().map(|one| format!("left behind: {}: {}", one.who, one.why));
        match trust.phase {
            Phase::Steady => {
                return Err(TrustError::OutOfStep("no rotation is under way: `equerry certs rotate start` begins one"));
            }
            Phase::Trusting => {
                let about = std::iter::once(format!("root {coming} signs")).chain(left).collect();
                let kept = self.0.authority.rotation_in(KeptPhase::Issuing);
                let note = Note::done(by, "trust.rotate", about);
                let generation = trust::put_rotation(&self.0.store, kept, Some(note), now).await?;
                let done = self.0.authority.issue_from_new(generation);
                self.tell();
                done?;
            }
            Phase::Issuing => {
                let about = std::iter::once(format!("only root {coming} is believed")).chain(left).collect();
                let kept = self.0.authority.rotation_in(KeptPhase::Dropping);
                let note = Note::done(by, "trust.rotate", about);
                let old = trust.anchors.iter().find(|anchor| !anchor.coming).map(|anchor| anchor.pin.to_string());
                let generation = trust::move_on(&self.0.store, kept, old.unwrap_or_default(), note, now).await?;
                let authority = Arc::clone(&self.0.authority);
                let forgetting = tokio::task::spawn_blocking(move || authority.forget_old(generation));
                forgetting.await.map_err(|_| StoreError::Closed)??;
                self.tell();
                let generation = trust::put_rotation(&self.0.store, None, None, now).await?;
                self.0.authority.rotate(None, generation)?;
                self.tell();
            }
        }
        Ok(self.rotation())
    }

    /// Gives a rotation up whose new root has signed nothing yet.
    ///
    /// # Errors
    /// When there is none, or the new root signs already, or the store refuses.
    pub async fn cancel_rotation(&self, by: By) -> Result<RotationStatus, TrustError> {
        let _one_at_a_time = self.0.trusting.lock().await;
        match self.0.authority.trust().phase {
            Phase::Trusting => {}
            Phase::Steady => return Err(TrustError::OutOfStep("no rotation is under way")),
            Phase::Issuing => {
                return Err(TrustError::OutOfStep(
                    "the new root signs already, and workloads hold its certificates: go on with it, and rotate again if it is the wrong one",
                ));
            }
        }
        let note = Note::done(by, "trust.rotate", vec!["the rotation is given up".to_owned()]);
        let generation = trust::put_rotation(&self.0.store, None, Some(note), SystemTime::now()).await?;
        let done = self.0.authority.rotate(None, generation);
        self.tell();
        done?;
        Ok(self.rotation())
    }

    /// Who would be stranded by the next step of a rotation.
    fn waiting(&self, trust: &Trust, now: SystemTime) -> Vec<Waiting> {
        if trust.phase == Phase::Steady {
            return Vec::new();
        }
        let proxies = self.proxies();
        let mut shown = HashSet::new();
        let mut waiting = Vec::new();
        for proxy in proxies.iter().filter(|proxy| proxy.connected) {
            shown.extend(proxy.standing.as_deref().and_then(Standing::shown));
            if let Some(why) = lacks(proxy, trust) {
                waiting.push(Waiting { who: proxy.instance.to_string(), why });
            }
        }
        // Whoever is away still gets in while the new root is certified by the old one.
        let may_be_away = trust.phase == Phase::Trusting
            && trust.anchors.iter().any(|anchor| anchor.coming && anchor.certified_twice);
        if !may_be_away {
            let old = trust.anchors.iter().find(|anchor| !anchor.coming).map(|anchor| anchor.pin.to_string());
            let ledger = locked(&self.0.ledger);
            let at_large = ledger.at_large(&shown, now);
            let of_old = at_large.filter(|row| Some(&row.root) == old.as_ref() && !trust.revokes(&row.id));
            waiting.extend(of_old.map(|row| Waiting {
                who: row.id.to_string(),
                why: format!(
                    "a certificate of the old root (serial {}) holds until {}, and no proxy that is connected shows it or its successor: start that workload, wait, or go on without it (--force)",
                    short(&row.serial),
                    rfc3339(row.until)
                ),
            }));
        }
        waiting
    }

    /// How long a proxy may take to ask for a new certificate when all do.
    pub(crate) fn renew_within_ms(&self) -> u64 {
        let proxies = self.listeners().all_connected().count();
        u64::try_from(proxies).unwrap_or(u64::MAX).saturating_mul(RENEW_EACH_MS).clamp(1000, RENEW_ALL_MS)
    }

    // Certificates that are about.

    /// The line of renewals that a certificate is of.
    pub(crate) fn line_of(&self, serial: &str) -> Arc<str> {
        locked(&self.0.ledger).line_of(serial)
    }

    /// Takes one of the certificates that a line of renewals may ask for.
    ///
    /// # Errors
    /// When there is the next one.
    pub(crate) fn take_turn(&self, line: &Arc<str>, now: SystemTime) -> Result<(), Duration> {
        locked(&self.0.ledger).take_turn(line, self.0.authority.lifetime(), now)
    }

    /// A certificate was signed for a line of renewals, for whoever showed `before`.
    pub(crate) fn note_issued(&self, issued: &Issued, root: &str, line: Arc<str>, before: Option<String>) {
        let (serial, id) = (issued.serial.clone(), issued.id.clone());
        self.leaf_issued(LeafRow { serial, id, root: root.to_owned(), until: issued.not_after }, line, before);
    }

    pub(crate) fn leaf_issued(&self, row: LeafRow, line: Arc<str>, before: Option<String>) {
        locked(&self.0.ledger).issued(row.clone(), line, before);
        self.keep_leaves(vec![row], Vec::new());
    }

    /// A proxy says that it shows this certificate; `proved` is the one that it showed when it connected. Returns what is wrong with
    /// that, in which case nothing is noted.
    pub(crate) fn note_shown(&self, row: LeafRow, proved: &str) -> Option<String> {
        let mut ledger = locked(&self.0.ledger);
        if let Some(doubt) = ledger.doubt(Claim { said: &row, proved }) {
            return Some(doubt);
        }
        let was_known = ledger.root_of(&row.serial).is_some();
        let gone = ledger.shown(row.clone());
        drop(ledger);
        if !was_known || !gone.is_empty() {
            self.keep_leaves(vec![row], gone);
        }
        None
    }

    /// The root that a certificate leads to, as far as it is known here.
    pub(crate) fn root_of(&self, serial: &str) -> Option<String> {
        locked(&self.0.ledger).root_of(serial).map(str::to_owned)
    }

    /// Certificates that still hold and that no proxy that is connected shows.
    pub fn leaves_at_large(&self, now: SystemTime) -> Vec<LeafRow> {
        let standings = locked(&self.0.proxies).standings();
        let shown = standings.iter().filter_map(|standing| standing.shown()).collect();
        locked(&self.0.ledger).at_large(&shown, now).cloned().collect()
    }

    /// Nobody waits for this: what is lost by it is only what a restart would know.
    fn keep_leaves(&self, issued: Vec<LeafRow>, gone: Vec<String>) {
        let store = self.0.store.clone();
        tokio::spawn(async move {
            if let Err(error) = trust::put_leaves(&store, issued, gone, SystemTime::now()).await {
                tracing::warn!(%error, "which certificates are about is not written down");
            }
        });
    }

    // Identities believed no more.

    /// Every identity that is revoked.
    pub fn revocations(&self) -> Vec<Revocation> {
        self.0.authority.trust().revoked.values().cloned().collect()
    }

    /// Revokes an identity: it gets no certificate, its instances are taken out, and every proxy ends its connections.
    /// Returns the generation of trust that says so, and whether it was new.
    ///
    /// # Errors
    /// When the store refuses; nothing was changed then.
    pub async fn revoke_identity(&self, id: SpiffeId, reason: String, by: By) -> Result<(u64, bool), TrustError> {
        let this = self.clone();
        to_the_end(async move { this.revoke(id, reason, by).await }).await
    }

    async fn revoke(&self, id: SpiffeId, reason: String, by: By) -> Result<(u64, bool), TrustError> {
        let _one_at_a_time = self.0.trusting.lock().await;
        let said = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        let note = Note::done(by.clone(), "identity.revoke", vec![format!("{id}{said}")]);
        let revocation = Revocation { id: id.clone(), reason, by: by.name, at: SystemTime::now() };
        let Some(generation) = trust::revoke(&self.0.store, revocation.clone(), note).await? else {
            return Ok((self.0.authority.trust().generation, false));
        };
        let mut revoked = self.0.authority.trust().revoked.as_ref().clone();
        revoked.insert(id.clone(), revocation);
        self.0.authority.revoke(revoked, generation)?;
        // Told first: that its instances cannot be taken out keeps nobody from believing it no more.
        self.tell();
        self.take_out(&id).await?;
        Ok((generation, true))
    }

    /// Takes a revocation back. Returns the generation of trust that says so; `None`: there was none.
    ///
    /// # Errors
    /// When the store refuses; nothing was changed then.
    pub async fn restore_identity(&self, id: &SpiffeId, by: By) -> Result<Option<u64>, TrustError> {
        let (this, id) = (self.clone(), id.clone());
        to_the_end(async move { this.believe_again(&id, by).await }).await
    }

    async fn believe_again(&self, id: &SpiffeId, by: By) -> Result<Option<u64>, TrustError> {
        let _one_at_a_time = self.0.trusting.lock().await;
        let note = Note::done(by, "identity.restore", vec![id.to_string()]);
        let Some(generation) = trust::restore(&self.0.store, id, note, SystemTime::now()).await? else {
            return Ok(None);
        };
        let mut revoked = self.0.authority.trust().revoked.as_ref().clone();
        revoked.remove(id);
        self.0.authority.revoke(revoked, generation)?;
        self.tell();
        Ok(Some(generation))
    }

    /// Takes every instance of an identity out, so that nobody is sent to it.
    async fn take_out(&self, id: &SpiffeId) -> Result<(), StoreError> {
        let account = id.account_name();
        let keys: Vec<InstanceKey> = {
            let registry = locked(&self.0.registry);
            let of_namespace = registry.of_namespace(&id.namespace).map(|instance| &instance.registration);
            of_namespace.filter(|one| one.account == account).map(|one| one.key()).collect()
        };
        for key in &keys {
            locked(&self.0.registry).remove(key, None);
        }
        if keys.is_empty() {
            return Ok(());
        }
        instances::delete(&self.0.store, keys, None).await
    }
}

/// What a connected proxy lacks for the next step of a rotation.
fn lacks(proxy: &ProxyStatus, trust: &Trust) -> Option<String> {
    let Some(standing) = &proxy.standing else {
        return Some(format!(
            "version {} does not say which roots it believes: upgrade it, or stop it",
            if proxy.version.is_empty() { "unknown" } else { &*proxy.version }
        ));
    };
    if let Some(doubt) = &standing.doubt {
        return Some(format!("{doubt}: restart it, and if that says the same, revoke its identity"));
    }
    if standing.generation < trust.generation {
        return Some(format!(
            "it has generation {} of the trust bundle, not yet {}",
            standing.generation, trust.generation
        ));
    }
    let old = trust.phase == Phase::Issuing && standing.root != trust.signing.as_str();
    old.then(|| {
        format!("its certificate leads to the old root until {}; it was asked to renew it", rfc3339(standing.until))
    })
}

fn pin(authority: &equerry_certs::Authority) -> Result<equerry_certs::Pin, TrustError> {
    Ok(equerry_certs::Pin::of(authority.root()).map_err(AuthorityError::from)?)
}

/// Enough of a serial number to tell it from others.
pub(super) fn short(serial: &str) -> &str {
    serial.get(..12).unwrap_or(serial)
}
