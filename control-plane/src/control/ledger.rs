//! Certificates that are about: issued and, as far as anybody knows, still shown by somebody.
//!
//! A certificate leaves the ledger when it runs out, or when its holder was seen with the one that took its place. What is
//! left of the old root says who would be stranded if nobody believed it any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::store::trust::LeafRow;

/// The certificates that are about, by serial number.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    leaves: BTreeMap<String, LeafRow>,
    /// For a certificate, the one that was shown when it was asked for.
    replaces: BTreeMap<String, String>,
}

impl Ledger {
    /// What was kept.
    pub(super) fn restore(rows: Vec<LeafRow>) -> Self {
        let leaves = rows.into_iter().map(|row| (row.serial.clone(), row)).collect();
        Self { leaves, replaces: BTreeMap::new() }
    }

    /// A certificate was issued, to whoever showed `before`.
    pub(super) fn issued(&mut self, row: LeafRow, before: Option<String>) {
        if let Some(before) = before {
            self.replaces.insert(row.serial.clone(), before);
        }
        self.leaves.insert(row.serial.clone(), row);
    }

    /// Somebody reports this certificate. Returns the serial numbers of those that it took the place of.
    pub(super) fn shown(&mut self, row: LeafRow) -> Vec<String> {
        let mut gone = Vec::new();
        let mut serial = row.serial.clone();
        self.leaves.entry(row.serial.clone()).or_insert(row);
        while let Some(before) = self.replaces.remove(&serial) {
            self.leaves.remove(&before);
            gone.push(before.clone());
            serial = before;
        }
        gone
    }

    /// Forgets what ran out.
    pub(super) fn forget_old(&mut self, now: SystemTime) {
        self.leaves.retain(|_, row| row.until > now);
        let leaves = &self.leaves;
        self.replaces.retain(|serial, before| leaves.contains_key(serial) || leaves.contains_key(before));
    }

    /// The root that a certificate leads to, if it is known.
    pub(super) fn root_of(&self, serial: &str) -> Option<&str> {
        self.leaves.get(serial).map(|row| row.root.as_str())
    }

    /// Those that still hold and that none of `shown` is, nor has taken the place of.
    pub(super) fn at_large<'a>(
        &'a self,
        shown: &'a BTreeSet<String>,
        now: SystemTime,
    ) -> impl Iterator<Item = &'a LeafRow> + 'a {
        self.leaves.values().filter(move |row| row.until > now && !shown.contains(&row.serial))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use equerry_policies::names::SpiffeId;

    use super::*;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn row(serial: &str) -> LeafRow {
        let id = SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/orders").unwrap();
        LeafRow { serial: serial.into(), id, root: "old".into(), until: now() + Duration::from_secs(10) }
    }

    fn at_large(ledger: &Ledger, shown: &[&str], at: SystemTime) -> Vec<String> {
        let shown = shown.iter().map(|serial| (*serial).to_owned()).collect();
        ledger.at_large(&shown, at).map(|row| row.serial.clone()).collect()
    }

    #[test]
    fn a_certificate_is_at_large_until_its_holder_was_seen_with_its_successor() {
        let mut ledger = Ledger::restore(vec![row("1")]);
        assert_eq!(at_large(&ledger, &[], now()), ["1"]);
        ledger.issued(row("2"), Some("1".into()));
        assert_eq!(at_large(&ledger, &["1"], now()), ["2"], "its holder may never have got the answer");
        ledger.issued(row("3"), Some("1".into()));
        assert_eq!(ledger.shown(row("3")), ["1"]);
        assert_eq!(at_large(&ledger, &["3"], now()), ["2"], "the answer that was lost still counts until it runs out");
        assert_eq!(at_large(&ledger, &["3"], now() + Duration::from_secs(11)), [""; 0]);
    }

    #[test]
    fn successors_of_successors_that_were_never_seen_go_together() {
        let mut ledger = Ledger::default();
        ledger.issued(row("1"), None);
        ledger.issued(row("2"), Some("1".into()));
        ledger.issued(row("3"), Some("2".into()));
        assert_eq!(ledger.shown(row("3")), ["2", "1"]);
        assert_eq!(at_large(&ledger, &["3"], now()), [""; 0]);
    }

    #[test]
    fn what_a_proxy_shows_is_known_even_if_the_ledger_had_lost_it() {
        let mut ledger = Ledger::default();
        assert!(ledger.shown(row("7")).is_empty());
        assert_eq!(ledger.root_of("7"), Some("old"));
        ledger.forget_old(now() + Duration::from_secs(11));
        assert_eq!(ledger.root_of("7"), None);
    }
}
