//! One window of one quota: who holds how much of it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use equerry_policies::names::{InstanceId, Namespace};

use super::{Report, ShareUsage, Told};
use crate::registry::InstanceKey;
use crate::store::grants::GrantRow;

/// How long to wait for an answer to a request to give back before asking again, in milliseconds.
const ASK_AGAIN_MS: u64 = 500;
/// What was asked for is not asked back before it had this long to be spent, in milliseconds: else two hungry sidecars would
/// pass the last token to and fro and nobody would spend it.
const HOLD_MS: u64 = 100;
/// How many are asked to give back at a time.
const DONORS: usize = 4;

/// What one sidecar holds. All numbers are running totals of the window.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    /// Promised.
    granted: u64,
    /// Promised and on disk: what may be told.
    stored: u64,
    /// What it knew of when it reported last.
    known: u64,
    /// All it admitted, `offline` included.
    spent: u64,
    returned: u64,
    /// What no grant covers: admitted while disconnected.
    offline: u64,
    /// Asked back.
    asked: u64,
    asked_at_ms: u64,
    /// When it was last granted what it asked for.
    granted_at_ms: u64,
    wants: bool,
    reported: bool,
    first_granted: bool,
}

impl Share {
    fn held(&self) -> u64 {
        self.granted.saturating_sub(self.returned)
    }

    /// What of the quota is gone with this share: all it was granted and keeps, and what it spent beside.
    fn committed(&self) -> u64 {
        self.held().saturating_add(self.offline)
    }

    fn unspent(&self) -> u64 {
        self.held().saturating_sub(self.spent.saturating_sub(self.offline))
    }

    /// It asked for more, and knew of all it has when it did.
    fn is_wanting(&self) -> bool {
        self.wants && self.known >= self.granted
    }

    /// It may be asked to give back.
    fn is_donor(&self, now_ms: u64) -> bool {
        !self.is_asked(now_ms) && now_ms >= self.granted_at_ms.saturating_add(HOLD_MS)
    }

    fn is_asked(&self, now_ms: u64) -> bool {
        self.asked > self.returned && now_ms < self.asked_at_ms.saturating_add(ASK_AGAIN_MS)
    }
}

/// One window of one quota.
#[derive(Debug, Default)]
pub(super) struct Window {
    shares: BTreeMap<InstanceKey, Share>,
}

impl Window {
    fn available(&self, quota: u64) -> u64 {
        let committed = self.shares.values().fold(0_u64, |sum, share| sum.saturating_add(share.committed()));
        quota.saturating_sub(committed)
    }

    pub(super) fn is_anybody_asked(&self) -> bool {
        self.shares.values().any(|share| share.asked > share.returned)
    }

    /// Takes back what an earlier process granted.
    pub(super) fn restore(&mut self, holder: InstanceKey, granted: u64) {
        self.shares.insert(holder, Share { granted, stored: granted, first_granted: true, ..Share::default() });
    }

    pub(super) fn has_report_of(&self, holder: &InstanceKey) -> bool {
        self.shares.get(holder).is_some_and(|share| share.reported)
    }

    pub(super) fn granted(&self, holder: &InstanceKey) -> Option<u64> {
        self.shares.get(holder).map(|share| share.granted)
    }

    /// Takes a report; totals never shrink, so an old one that arrives late changes nothing.
    pub(super) fn report(&mut self, holder: &InstanceKey, report: &Report, is_present: bool) {
        let share = self.shares.entry(holder.clone()).or_default();
        // A sidecar that knows of more than we do was told by an earlier process whose disk was lost: believe it.
        share.granted = share.granted.max(report.granted);
        share.stored = share.stored.max(report.granted);
        share.known = share.known.max(report.granted);
        share.spent = share.spent.max(report.spent);
        share.offline = share.offline.max(report.spent_offline);
        share.returned = share.returned.max(report.returned.min(share.granted));
        share.wants = is_present && report.wants_more;
        share.reported = true;
    }

    /// Grants every member that has none its first slice, and names those that got one.
    pub(super) fn grant_first(&mut self, members: &BTreeSet<InstanceKey>, first: u64, quota: u64) -> Vec<InstanceKey> {
        let mut available = self.available(quota);
        let mut granted = Vec::new();
        for member in members {
            let share = self.shares.entry(member.clone()).or_default();
            if share.first_granted {
                continue;
            }
            share.first_granted = true;
            let tokens = first.min(available);
            if tokens > 0 {
                share.granted += tokens;
                available -= tokens;
                granted.push(member.clone());
            }
        }
        granted
    }

    /// Gives whoever wants more half of what remains, at least one; asks others to give back when nothing remains.
    /// Names those that were granted more.
    pub(super) fn serve_wanting(&mut self, quota: u64, now_ms: u64) -> Vec<InstanceKey> {
        let mut available = self.available(quota);
        let mut wanting: Vec<InstanceKey> =
            self.shares.iter().filter(|(_, share)| share.is_wanting()).map(|(key, _)| key.clone()).collect();
        // Who has least is served first.
        wanting.sort_by_key(|key| self.shares.get(key).map_or((0, 0), |share| (share.unspent(), share.held())));
        let mut granted = Vec::new();
        for key in wanting {
            if available == 0 {
                self.ask_back(&key, now_ms);
                continue;
            }
            if let Some(share) = self.shares.get_mut(&key) {
                let tokens = (available / 2).max(1);
                share.granted += tokens;
                share.wants = false;
                share.granted_at_ms = now_ms;
                // It could not give back what it was asked for; it must not give this instead.
                share.asked = share.asked.min(share.returned);
                available = available.saturating_sub(tokens);
                granted.push(key);
            }
        }
        granted
    }

    /// First slices are granted before it is heard what was spent offline in their window: what is too much then is asked
    /// back at once, from those who spent it.
    pub(super) fn ask_back_excess(&mut self, quota: u64) {
        let committed = self.shares.values().fold(0_u64, |sum, share| sum.saturating_add(share.committed()));
        let mut excess = committed.saturating_sub(quota);
        for share in self.shares.values_mut().filter(|share| share.offline > 0) {
            let back = share.unspent().min(excess);
            share.asked = share.asked.max(share.returned.saturating_add(back));
            excess -= back;
        }
    }

    /// Asks the sidecars with the most unspent tokens for half of them.
    fn ask_back(&mut self, wanting: &InstanceKey, now_ms: u64) {
        let mine = self.shares.get(wanting).map_or(0, Share::unspent);
        let asked = self.shares.values().filter(|share| share.is_asked(now_ms)).count();
        let mut donors: Vec<&mut Share> = self
            .shares
            .iter_mut()
            .filter(|(key, share)| *key != wanting && share.unspent() > mine && share.is_donor(now_ms))
            .map(|(_, share)| share)
            .collect();
        donors.sort_by_key(|share| Reverse(share.unspent()));
        for donor in donors.into_iter().take(DONORS.saturating_sub(asked)) {
            donor.asked = donor.returned + donor.unspent().div_ceil(2);
            donor.asked_at_ms = now_ms;
        }
    }

    /// A promise is on disk. Returns how many tokens may be told now that could not before, and whether all may.
    pub(super) fn confirm(&mut self, holder: &InstanceKey, granted: u64) -> (u64, bool) {
        let Some(share) = self.shares.get_mut(holder) else { return (0, true) };
        let told = granted.saturating_sub(share.stored);
        share.stored = share.stored.max(granted);
        (told, share.stored >= share.granted)
    }

    /// What a sidecar may be told.
    pub(super) fn told(&self, holder: &InstanceKey, quota: u64, is_certain: bool) -> Told {
        let share = self.shares.get(holder).copied().unwrap_or_default();
        let others_have_some = || self.shares.iter().any(|(key, share)| key != holder && share.unspent() > 0);
        let exhausted = is_certain && self.available(quota) == 0 && !others_have_some();
        Told { granted: share.stored, give_back: share.asked, exhausted }
    }

    pub(super) fn usage(&self) -> Vec<ShareUsage> {
        let usage = |(key, share): (&InstanceKey, &Share)| ShareUsage {
            instance: key.clone(),
            granted: share.committed(),
            spent: share.spent,
        };
        self.shares.iter().map(usage).collect()
    }
}

/// The holder that a stored grant names.
pub(super) fn holder_of(row: &GrantRow) -> Option<InstanceKey> {
    let (namespace, id) = (Namespace::parse(&row.namespace).ok()?, InstanceId::parse(&row.instance).ok()?);
    Some(InstanceKey { namespace, id })
}
