//! Quotas between registry, books and disk: who shares, what is due, and what may be told.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::SystemTime;

use equerry_policies::names::{ServiceName, TenantName};

use super::leases::memberships_in;
use super::{ControlPlane, locked};
use crate::quota::{Books, TenantUsage};
use crate::registry::InstanceKey;
use crate::store::grants;

impl ControlPlane {
    /// What a tenant has spent and who holds the rest; `None` when there is no such tenant.
    pub fn tenant_usage(&self, tenant: &TenantName) -> Option<TenantUsage> {
        self.meaning().tenants.contains_key(tenant).then(|| locked(&self.0.books).usage(tenant, SystemTime::now()))
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        locked(&self.0.books)
    }

    /// Writes what was promised, then lets it be told: a grant that is not on disk is never sent.
    pub(crate) async fn keep_grants(&self) {
        let promised = locked(&self.0.books).promised();
        if !promised.is_empty() {
            match grants::write(&self.0.store, promised.clone()).await {
                Ok(()) => {
                    let tokens = locked(&self.0.books).confirm(&promised);
                    self.0.metrics.quota_granted(tokens);
                    if self.0.withheld.swap(false, Ordering::Relaxed) {
                        tracing::info!("quota grants are given again");
                    }
                }
                // It is tried again many times a second.
                Err(error) if !self.0.withheld.swap(true, Ordering::Relaxed) => {
                    tracing::error!(%error, "quota grants are withheld: sidecars admit no more than they were granted before");
                }
                Err(_) => {}
            }
        }
        self.0.granted.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Follows who is registered (`followed` remembers what was followed last), does what is due now, and lets it be told.
    pub(crate) async fn settle_quotas(&self, followed: &mut Option<(u64, u64)>) {
        let present = (self.epoch(), locked(&self.0.registry).changes());
        if *followed != Some(present) {
            let members = self.all_memberships();
            locked(&self.0.books).set_members(&members);
            *followed = Some(present);
        }
        let due = {
            let mut books = locked(&self.0.books);
            books.settle(SystemTime::now()) || books.has_promised()
        };
        if due {
            self.keep_grants().await;
        }
    }

    /// Removes the grants of windows that are over, and of quotas there are no more, from the store.
    pub(crate) async fn forget_old_grants(&self) {
        let oldest = self.books().oldest_kept(SystemTime::now());
        if let Err(error) = grants::keep_from(&self.0.store, oldest).await {
            tracing::warn!(%error, "old quota grants stay in the store");
        }
    }

    fn all_memberships(&self) -> Vec<(InstanceKey, Arc<[ServiceName]>)> {
        let truth = self.0.truth.load();
        let mut registry = locked(&self.0.registry);
        // An instance without a sidecar would hold its share and never spend it.
        let counted = registry.all().map(|one| &one.registration).filter(|one| !one.by_api);
        let keys: Vec<InstanceKey> = counted.map(|one| one.key()).collect();
        keys.into_iter().map(|key| (key.clone(), memberships_in(&mut registry, &truth, &key))).collect()
    }
}
