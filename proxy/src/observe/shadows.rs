//! What policies that are not enforced would have changed: how often, read out of the metrics, and whom it would have met last.
//!
//! A request pays for this only where something would have changed.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use equerry_policies::names::{AccountName, ServiceName};
use equerry_traffic::authorize::{Noted, Would};

use super::Exchange;

/// So many policies are remembered.
const MOST: usize = 256;

/// How often a policy looked, by what enforcing it would have changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) unchanged: u64,
    pub(crate) would_deny: u64,
    pub(crate) would_allow: u64,
}

/// What a policy would have changed last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) source: Option<AccountName>,
    pub(crate) destination: Option<ServiceName>,
    /// What would have decided, in the words of a refusal.
    pub(crate) rule: String,
    /// It would have passed; else it would have been refused.
    pub(crate) allow: bool,
    at: Instant,
}

impl Change {
    /// How long ago that was.
    pub(crate) fn ago(&self) -> Duration {
        self.at.elapsed()
    }
}

/// The last change of each policy, by its name.
#[derive(Debug, Default)]
pub(super) struct Last(Mutex<BTreeMap<String, Change>>);

impl Last {
    /// Remembers what `noted` says that would have been changed.
    pub(super) fn note(&self, exchange: &Exchange, noted: &Noted) {
        let Some((would, rule)) = &noted.instead else { return };
        let change = Change {
            source: exchange.source.as_ref().map(equerry_policies::names::SpiffeId::account_name),
            destination: exchange.destination.clone(),
            rule: rule.clone(),
            allow: *would == Would::Allow,
            at: Instant::now(),
        };
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let blamed = noted.shadows.iter().filter(|(_, would)| *would != Would::ChangeNothing);
        for name in blamed.map(|(policy, _)| policy.to_string()) {
            if last.contains_key(&name) || last.len() < MOST {
                last.insert(name, change.clone());
            }
        }
    }

    /// What `policy` would have changed last.
    pub(super) fn of(&self, policy: &str) -> Option<Change> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(policy).cloned()
    }
}
