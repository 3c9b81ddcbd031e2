//! Tenant quotas, shared out among sidecars as slices of windows: a state machine that is told the time.
//!
//! What every sidecar may still spend or has spent never adds up to more than the quota, however messages cross, are lost or
//! repeated: totals only grow, a grant counts from the moment it is promised, and is told only once it is on disk.

mod window;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use equerry_policies::names::{ServiceName, TenantName};
use equerry_policies::policy::{Quota, Tenant};

use crate::registry::InstanceKey;
use crate::store::grants::GrantRow;
use crate::store::unix_ms;
use window::Window;

/// Before a window begins its first slices are granted this much earlier, as a part of the window ...
const LEAD_PART: u64 = 4;
/// ... but not earlier or later than this, in milliseconds.
const LEAD_MS: (u64, u64) = (200, 2_000);

/// What a sidecar reports of one quota in one window. All numbers are running totals of that window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of the window.
    pub window: u64,
    /// What it was granted, as it knows it.
    pub granted: u64,
    /// All it admitted.
    pub spent: u64,
    /// What it gave back.
    pub returned: u64,
    /// The part of `spent` that no grant covers: admitted while disconnected.
    pub spent_offline: u64,
    /// It asks for more.
    pub wants_more: bool,
}

/// What a sidecar is to be told of one quota in one window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telling {
    /// The quota's id.
    pub quota: String,
    /// Number of the window.
    pub window: u64,
    /// What may change.
    pub told: Told,
}

/// The part of a [`Telling`] that may change within a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// Running total granted, on disk.
    pub granted: u64,
    /// Running total asked back.
    pub give_back: u64,
    /// Nothing is left to grant in this window.
    pub exhausted: bool,
}

/// What one sidecar was told last, by quota and window.
pub type Heard = HashMap<(String, u64), Told>;

/// What a tenant spends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantUsage {
    /// The tenant.
    pub tenant: TenantName,
    /// Each of its quotas, in the order written.
    pub quotas: Vec<QuotaUsage>,
}

/// How much of a quota is spent in the present window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaUsage {
    /// The quota's id.
    pub id: String,
    /// The Services it is counted at.
    pub services: Vec<ServiceName>,
    /// Requests allowed in each window.
    pub requests: u64,
    /// How long a window is.
    pub window: Duration,
    /// Unix time at which the present window began, in seconds.
    pub began: u64,
    /// What sidecars hold or have spent.
    pub granted: u64,
    /// What they have reported as spent.
    pub spent: u64,
    /// Each sidecar's part, by name.
    pub shares: Vec<ShareUsage>,
}

/// One sidecar's part of a quota in the present window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareUsage {
    /// The instance.
    pub instance: InstanceKey,
    /// What it holds or has spent.
    pub granted: u64,
    /// What it has reported as spent.
    pub spent: u64,
}

/// Why a report is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotCounted {
    /// There is no such quota (any more).
    #[error("there is no quota {0}")]
    NoQuota(String),
    /// The quota is counted at other Services.
    #[error("quota {quota} is not counted at instance {holder}")]
    NotHere {
        /// The quota.
        quota: String,
        /// Who reported.
        holder: InstanceKey,
    },
}

/// The book of one quota.
#[derive(Debug)]
struct Book {
    tenant: TenantName,
    quota: Quota,
    /// Live instances of the counted Services.
    members: BTreeSet<InstanceKey>,
    windows: BTreeMap<u64, Window>,
    /// The window in which this process took the book over. What was spent in it while nobody kept the book is known
    /// only when every member has reported, so nothing new is granted before.
    taken_over: Option<u64>,
}

/// The books of every quota.
#[derive(Debug, Default)]
pub struct Books {
    books: BTreeMap<String, Book>,
    /// Shares whose promise is not on disk yet.
    promised: BTreeSet<(String, u64, InstanceKey)>,
}

impl Book {
    fn new(tenant: &TenantName, quota: &Quota) -> Self {
        let (members, windows) = (BTreeSet::new(), BTreeMap::new());
        Self { tenant: tenant.clone(), quota: quota.clone(), members, windows, taken_over: None }
    }

    fn window_ms(&self) -> u64 {
        u64::try_from(self.quota.window.as_millis()).unwrap_or(u64::MAX).max(1_000)
    }

    fn number_at(&self, now_ms: u64) -> u64 {
        now_ms / self.window_ms()
    }

    /// Whether what was spent in this window is not wholly known.
    fn is_uncertain(&self, number: u64) -> bool {
        let reported = |key: &InstanceKey| self.windows.get(&number).is_some_and(|window| window.has_report_of(key));
        self.taken_over == Some(number) && !self.members.iter().all(reported)
    }

    fn is_anybody_asked(&self) -> bool {
        self.windows.values().any(Window::is_anybody_asked)
    }

    /// The windows that are open now: the present one, and shortly before its end the next.
    fn open_windows(&self, now_ms: u64) -> std::ops::RangeInclusive<u64> {
        let present = self.number_at(now_ms);
        let lead = (self.window_ms() / LEAD_PART).clamp(LEAD_MS.0, LEAD_MS.1);
        present..=self.number_at(now_ms + lead)
    }

    /// Does what is due in the open windows, and names the shares that were promised more.
    fn settle(&mut self, now_ms: u64) -> Vec<(u64, InstanceKey)> {
        let present = self.number_at(now_ms);
        self.windows.retain(|number, _| *number + 1 >= present);
        let mut promised = Vec::new();
        for number in self.open_windows(now_ms) {
            self.windows.entry(number).or_default();
            if self.is_uncertain(number) {
                continue;
            }
            let Some(window) = self.windows.get_mut(&number) else { continue };
            let first = self.quota.requests / (2 * self.members.len().max(1) as u64);
            window.ask_back_excess(self.quota.requests);
            let mut granted = window.grant_first(&self.members, first, self.quota.requests);
            if number == present {
                granted.extend(window.serve_wanting(self.quota.requests, now_ms));
            }
            promised.extend(granted.into_iter().map(|holder| (number, holder)));
        }
        promised
    }
}

impl Books {
    /// Takes the books over from an earlier process: the quotas there are, and what was granted.
    pub fn restore<'t>(tenants: impl Iterator<Item = &'t Tenant>, rows: Vec<GrantRow>, now: SystemTime) -> Self {
        let mut books = Self::default();
        books.set_tenants(tenants, now);
        for book in books.books.values_mut() {
            book.taken_over = Some(book.number_at(unix_ms(now)));
        }
        for row in rows {
            let Some(holder) = window::holder_of(&row) else { continue };
            if let Some(book) = books.books.get_mut(&row.quota) {
                book.windows.entry(row.window).or_default().restore(holder, row.granted);
            }
        }
        books
    }

    /// Follows the documents. A quota whose window length changed starts a new book; one whose amount changed keeps it.
    pub fn set_tenants<'t>(&mut self, tenants: impl Iterator<Item = &'t Tenant>, now: SystemTime) {
        let mut kept = BTreeMap::new();
        for tenant in tenants {
            for quota in &tenant.quotas {
                let known = self.books.remove(&quota.id).filter(|book| book.quota.window == quota.window);
                let mut book = known.unwrap_or_else(|| Book::new(&tenant.name, quota));
                if book.quota.services != quota.services {
                    book.members.clear();
                }
                book.quota = quota.clone();
                kept.insert(quota.id.clone(), book);
            }
        }
        self.books = kept;
        self.promised.retain(|(quota, _, _)| self.books.contains_key(quota));
        self.settle(now);
    }

    /// Follows the registry: the live instances and the Services each stands behind.
    pub fn set_members(&mut self, instances: &[(InstanceKey, Arc<[ServiceName]>)]) {
        for book in self.books.values_mut() {
            let counted =
                |services: &Arc<[ServiceName]>| services.iter().any(|service| book.quota.services.contains(service));
            book.members =
                instances.iter().filter(|(_, services)| counted(services)).map(|(key, _)| key.clone()).collect();
        }
    }

    /// Whether there is any quota at all.
    pub fn is_empty(&self) -> bool {
        self.books.is_empty()
    }

    /// Opens and closes windows, grants first slices, and serves whoever waits. Returns whether somebody may have to be
    /// told something.
    pub fn settle(&mut self, now: SystemTime) -> bool {
        let now_ms = unix_ms(now);
        let mut due = false;
        for (id, book) in &mut self.books {
            let open = book.windows.keys().next_back().copied();
            let promised = book.settle(now_ms);
            due |= !promised.is_empty() || book.windows.keys().next_back().copied() != open || book.is_anybody_asked();
            self.promised.extend(promised.into_iter().map(|(window, holder)| (id.clone(), window, holder)));
        }
        due
    }

    /// Whether a promise waits to be written.
    pub fn has_promised(&self) -> bool {
        !self.promised.is_empty()
    }

    /// Takes a sidecar's report, and serves whoever waits.
    ///
    /// # Errors
    /// When the quota is unknown or not counted there.
    pub fn report(
        &mut self,
        holder: &InstanceKey,
        quota: &str,
        report: &Report,
        now: SystemTime,
    ) -> Result<(), NotCounted> {
        let now_ms = unix_ms(now);
        let book = self.books.get_mut(quota).ok_or_else(|| NotCounted::NoQuota(quota.to_owned()))?;
        if !book.members.contains(holder) {
            return Err(NotCounted::NotHere { quota: quota.to_owned(), holder: holder.clone() });
        }
        let present = book.number_at(now_ms);
        let open = present.saturating_sub(1)..=*book.open_windows(now_ms).end();
        if open.contains(&report.window) {
            book.windows.entry(report.window).or_default().report(holder, report, report.window == present);
        }
        let promised = book.settle(now_ms);
        self.promised.extend(promised.into_iter().map(|(window, holder)| (quota.to_owned(), window, holder)));
        Ok(())
    }

    /// What was promised and must be on disk before it may be told.
    pub fn promised(&self) -> Vec<GrantRow> {
        let row = |(quota, number, holder): &(String, u64, InstanceKey)| {
            let granted = self.books.get(quota)?.windows.get(number)?.granted(holder)?;
            let (namespace, instance) = (holder.namespace.to_string(), holder.id.to_string());
            Some(GrantRow { quota: quota.clone(), window: *number, namespace, instance, granted })
        };
        self.promised.iter().filter_map(row).collect()
    }

    /// These promises are on disk. Returns how many tokens may be told now that could not before.
    pub fn confirm(&mut self, rows: &[GrantRow]) -> u64 {
        let mut tokens = 0;
        for row in rows {
            let Some(holder) = window::holder_of(row) else { continue };
            let window = self.books.get_mut(&row.quota).and_then(|book| book.windows.get_mut(&row.window));
            let (told, whole) = window.map_or((0, true), |window| window.confirm(&holder, row.granted));
            tokens += told;
            if whole {
                self.promised.remove(&(row.quota.clone(), row.window, holder));
            }
        }
        tokens
    }

    /// What a sidecar has to be told, given what it heard; remembers that it is told.
    pub fn tell(&self, holder: &InstanceKey, heard: &mut Heard, now: SystemTime) -> Vec<Telling> {
        let now_ms = unix_ms(now);
        let mut tellings = Vec::new();
        for (id, book) in self.books.iter().filter(|(_, book)| book.members.contains(holder)) {
            for number in book.open_windows(now_ms) {
                let Some(window) = book.windows.get(&number) else { continue };
                let told = window.told(holder, book.quota.requests, !book.is_uncertain(number));
                let place = (id.clone(), number);
                if heard.get(&place) != Some(&told) {
                    heard.insert(place, told);
                    tellings.push(Telling { quota: id.clone(), window: number, told });
                }
            }
        }
        heard.retain(|(quota, number), _| {
            self.books.get(quota).is_some_and(|book| *number + 1 >= book.number_at(now_ms))
        });
        tellings
    }

    /// What a tenant spends; nothing when it has no quota.
    pub fn usage(&self, tenant: &TenantName, now: SystemTime) -> TenantUsage {
        let now_ms = unix_ms(now);
        let quotas = self.books.values().filter(|book| book.tenant == *tenant).map(|book| book.usage(now_ms)).collect();
        TenantUsage { tenant: tenant.clone(), quotas }
    }

    /// For each quota the oldest window that is still kept: older grants may be forgotten on disk.
    pub fn oldest_kept(&self, now: SystemTime) -> Vec<(String, u64)> {
        let now_ms = unix_ms(now);
        self.books.iter().map(|(id, book)| (id.clone(), book.number_at(now_ms).saturating_sub(1))).collect()
    }
}

impl Book {
    fn usage(&self, now_ms: u64) -> QuotaUsage {
        let number = self.number_at(now_ms);
        let shares = self.windows.get(&number).map(Window::usage).unwrap_or_default();
        QuotaUsage {
            id: self.quota.id.clone(),
            services: self.quota.services.clone(),
            requests: self.quota.requests,
            window: self.quota.window,
            began: number * self.window_ms() / 1_000,
            granted: shares.iter().map(|share| share.granted).sum(),
            spent: shares.iter().map(|share| share.spent).sum(),
            shares,
        }
    }
}

#[cfg(test)]
mod tests;
