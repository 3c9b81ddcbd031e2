//! Tenants' quotas as this process holds them: one slice for each quota counted here, shared by all workers.
//!
//! The request path only takes from slices. `slices` talks to the control plane about them; a change of configuration
//! keeps what was granted and spent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use equerry_policies::compile::CompiledWorkload;
use equerry_policies::names::InstanceId;
use equerry_policies::policy::Quota;
use equerry_traffic::quota::{Admitted, Grant, OverQuota, Report, ServerClock, Slice};
use equerry_wire::proto;
use tokio::sync::Notify;

/// Slices by quota id.
type Slices = BTreeMap<String, Arc<Slice>>;

/// Every slice of this process.
#[derive(Debug)]
pub struct Quotas {
    instance: InstanceId,
    slices: ArcSwap<Slices>,
    clock: ServerClock,
    /// Shares from before a restart, until their quotas are configured.
    restored: Mutex<BTreeMap<String, u64>>,
    connected: Mutex<bool>,
    /// A slice runs low, or there are others than before: report now.
    ask: Notify,
}

impl Quotas {
    /// No slice yet.
    pub fn new(instance: InstanceId) -> Self {
        Self {
            instance,
            slices: ArcSwap::default(),
            clock: ServerClock::default(),
            restored: Mutex::default(),
            connected: Mutex::new(false),
            ask: Notify::new(),
        }
    }

    /// Counts a request against each of `quotas`; of several, the one with the least left is what `RateLimit` tells.
    /// `None`: no quota is counted.
    ///
    /// # Errors
    /// The first quota that has nothing left; then none of them is counted.
    pub fn admit<'a>(
        &self,
        quotas: impl IntoIterator<Item = &'a Quota>,
        now: SystemTime,
    ) -> Result<Option<Admitted>, OverQuota> {
        let now = self.clock.at(super::unix_ms(now));
        let slices = self.slices.load();
        let mut counted = quotas.into_iter().filter_map(|quota| slices.get(&quota.id));
        let Some(first) = counted.next() else { return Ok(None) };
        let take = |slice: &Slice| {
            let admitted = slice.admit(now).inspect_err(|over| self.ask_if(over.ask))?;
            self.ask_if(admitted.ask);
            Ok(admitted)
        };
        let Some(second) = counted.next() else { return take(first).map(Some) };
        let mut all: Vec<_> = [first, second].into_iter().chain(counted).collect();
        // Several quotas count together or not at all: one that is spent is asked first, and refuses before any counts.
        if let Some(spent) = all.iter().position(|slice| slice.look(now).remaining == 0) {
            all.swap(0, spent);
        }
        let mut tightest: Option<Admitted> = None;
        for slice in all {
            let admitted = take(slice)?;
            if tightest.is_none_or(|other| admitted.share.remaining < other.share.remaining) {
                tightest = Some(admitted);
            }
        }
        Ok(tightest)
    }

    /// Takes up the quotas of a configuration: those that stay keep what was granted and spent.
    pub(crate) fn configure(&self, workload: &CompiledWorkload) {
        let before = self.slices.load();
        let connected = *self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        let mut restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Slices::new();
        for tenant in workload.tenants.all() {
            for quota in tenant.all_quotas() {
                let slice = match before.get(&quota.id) {
                    Some(same) if same.quota() == quota && same.on_loss() == tenant.on_control_plane_loss => {
                        Arc::clone(same)
                    }
                    Some(other) => Arc::new(other.changed(quota.clone(), tenant.on_control_plane_loss)),
                    None => {
                        let slice =
                            Slice::new(tenant.name.clone(), quota.clone(), tenant.on_control_plane_loss, connected);
                        if let Some(share) = restored.remove(&quota.id) {
                            slice.restore_last_share(share);
                        }
                        Arc::new(slice)
                    }
                };
                next.insert(quota.id.clone(), slice);
            }
        }
        let others = next.keys().ne(before.keys());
        self.slices.store(Arc::new(next));
        if others {
            self.ask.notify_one();
        }
    }

    /// Puts back what [`Quotas::shares`] gave before a restart.
    pub(crate) fn restore(&self, shares: &[(String, u64)]) {
        self.restored.lock().unwrap_or_else(PoisonError::into_inner).extend(shares.iter().cloned());
    }

    /// What was granted in the last connected window, by quota.
    pub(crate) fn shares(&self) -> Vec<(String, u64)> {
        self.slices.load().iter().map(|(id, slice)| (id.clone(), slice.last_share())).collect()
    }

    /// Whether there is anything to talk about.
    pub(crate) fn is_empty(&self) -> bool {
        self.slices.load().is_empty()
    }

    /// Waits until a slice runs low, or there are others than before.
    pub(crate) async fn asked(&self) {
        self.ask.notified().await;
    }

    /// The stream to the control plane stands, or does not.
    pub(crate) fn set_connected(&self, connected: bool, now: SystemTime) {
        let now = self.clock.at(super::unix_ms(now));
        *self.connected.lock().unwrap_or_else(PoisonError::into_inner) = connected;
        for slice in self.slices.load().values() {
            slice.set_connected(connected, now);
        }
    }

    /// What to report of each quota.
    pub(crate) fn reports(&self, now: SystemTime) -> Vec<(String, Report)> {
        let now = self.clock.at(super::unix_ms(now));
        self.slices.load().iter().map(|(id, slice)| (id.clone(), slice.report(now))).collect()
    }

    /// Takes a grant, and the control plane's clock with it.
    pub(crate) fn grant(&self, grant: &proto::SliceGrant, now: SystemTime) {
        let local = super::unix_ms(now);
        self.clock.observe(grant.server_unix_ms, local);
        if let Some(slice) = self.slices.load().get(&grant.quota) {
            let told = Grant {
                window: grant.window,
                granted: grant.granted,
                give_back: grant.give_back,
                exhausted: grant.exhausted,
            };
            slice.on_grant(&told, self.clock.at(local));
        }
    }

    /// A report as it is sent.
    pub(crate) fn message(&self, quota: String, report: Report) -> proto::SliceReport {
        proto::SliceReport {
            instance_id: self.instance.to_string(),
            quota,
            window: report.window,
            granted: report.granted,
            spent: report.spent,
            wants_more: report.wants_more,
            returned: report.returned,
            spent_offline: report.spent_offline,
        }
    }

    fn ask_if(&self, ask: bool) {
        if ask {
            self.ask.notify_one();
        }
    }
}
