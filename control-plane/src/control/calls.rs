//! Calls, between sidecars that report them and people who look.

use std::collections::BTreeSet;
use std::sync::MutexGuard;
use std::time::{Instant, SystemTime};

use equerry_policies::names::{AccountName, PolicyName};
use equerry_wire::proto;
use tokio::sync::watch;

use super::leases::memberships_in;
use super::{ControlPlane, locked};
use crate::calls::lookers::Lookers;
use crate::calls::shadows::Seen;
use crate::calls::{Edge, Pair, Speaker};
use crate::registry::InstanceKey;

impl ControlPlane {
    /// Every pair that is `wanted` between whom something passed lately, and what each side saw of it.
    pub fn calls(&self, wanted: impl Fn(&Pair) -> bool) -> Vec<Edge> {
        locked(&self.0.calls).edges(wanted, Instant::now())
    }

    /// The instances whose sidecars report calls, by name.
    pub fn reporters(&self) -> Vec<InstanceKey> {
        locked(&self.0.calls).reporters(Instant::now())
    }

    /// How many sidecars report calls.
    pub fn reporting(&self) -> usize {
        locked(&self.0.calls).reporting(Instant::now())
    }

    /// How many sidecars have reported calls lately, those that ended since included: it costs nothing to know.
    pub(crate) fn reporters_known(&self) -> usize {
        locked(&self.0.calls).known()
    }

    /// Takes a sidecar's counts.
    pub(crate) fn take_calls(&self, key: &InstanceKey, account: &AccountName, report: &proto::CallReport) {
        let services = {
            let truth = self.0.truth.load();
            memberships_in(&mut locked(&self.0.registry), &truth, key)
        };
        let speaker = Speaker { key, account, services: &services };
        let left_out = locked(&self.0.calls).take(speaker, report, Instant::now(), SystemTime::now());
        if left_out > 0 {
            tracing::debug!(instance = %key, left_out, "counts of calls are left out: they are of others, or too many");
        }
    }

    /// What a policy that is not enforced would have changed lately.
    pub fn shadow(&self, policy: &PolicyName) -> Seen {
        locked(&self.0.calls).shadow(policy, Instant::now())
    }

    /// Forgets who calls nobody any more. Called now and then.
    pub(crate) fn forget_calls(&self) {
        locked(&self.0.calls).forget(Instant::now());
    }

    /// Those who look on at single calls; tell [`ControlPlane::wishes_changed`] when what they wish changes.
    pub(crate) fn lookers(&self) -> MutexGuard<'_, Lookers> {
        locked(&self.0.lookers)
    }

    /// Wakes whoever tells sidecars what is wished.
    pub(crate) fn wishes_changed(&self) {
        self.0.wished.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Changes whenever a sidecar may have to be told another wish.
    pub(crate) fn wishes(&self) -> watch::Receiver<u64> {
        self.0.wished.subscribe()
    }

    /// What a sidecar is to tell now; `answered` are questions that it has answered.
    pub(crate) fn wish_of(&self, key: &InstanceKey, answered: &BTreeSet<u64>) -> proto::CallWish {
        // Every stream asks at every change of a wish: what is asked here must not grow with the mesh.
        let known = self.reporters_known();
        locked(&self.0.lookers).wish(key, answered, known)
    }

    /// A look that ends when this is dropped.
    pub(crate) fn looking(&self, id: u64) -> Looking {
        self.wishes_changed();
        Looking { control: self.clone(), id }
    }
}

/// Somebody looks on for as long as this lives.
pub(crate) struct Looking {
    control: ControlPlane,
    /// Which look.
    pub(crate) id: u64,
}

impl Drop for Looking {
    fn drop(&mut self) {
        locked(&self.control.0.lookers).end(self.id);
        self.control.wishes_changed();
    }
}
