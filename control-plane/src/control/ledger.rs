//! Certificates that are about: issued and, as far as anybody knows, still shown by somebody.
//!
//! A certificate leaves the ledger when it runs out, or when its holder was seen with the one that took its place. What is
//! left of the old root says who would be stranded if nobody believed it any more. Nobody is believed about the certificates of
//! others: each belongs to the line of renewals that began with one join token.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use equerry_certs::rfc3339;
use equerry_policies::names::SpiffeId;

use crate::store::trust::LeafRow;

/// Certificates that one line may ask for in a row ...
const IN_A_ROW: f64 = 20.0;
/// ... and then so many in the life of one.
const A_LIFE: f64 = 200.0;
/// Between two looks for what ran out.
const LOOK: Duration = Duration::from_secs(60);

/// The certificates that are about, by serial number.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    leaves: BTreeMap<String, LeafRow>,
    /// For a certificate, the one that was shown when it was asked for.
    replaces: BTreeMap<String, String>,
    /// For a certificate, the line of renewals that it is of.
    lines: BTreeMap<String, Arc<str>>,
    /// What each line may still ask for, and as of when; whoever is not here may ask for all of it.
    turns: HashMap<Arc<str>, (f64, SystemTime)>,
    /// When what ran out was looked for last.
    looked: Option<SystemTime>,
}

/// What a proxy says of its certificate, beside what its connection proves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim<'a> {
    /// What it says.
    pub(super) said: &'a LeafRow,
    /// The serial number of the certificate that it showed when it connected.
    pub(super) proved: &'a str,
}

impl Ledger {
    /// What was kept.
    pub(super) fn restore(rows: Vec<LeafRow>) -> Self {
        let leaves = rows.into_iter().map(|row| (row.serial.clone(), row)).collect();
        Self { leaves, ..Self::default() }
    }

    /// The line of renewals that a certificate is of. One of before this process begins a line of its own.
    pub(super) fn line_of(&self, serial: &str) -> Arc<str> {
        self.lines.get(serial).map_or_else(|| serial.into(), Arc::clone)
    }

    /// Takes one of the certificates that a line may ask for, of which each lives for `life`.
    ///
    /// # Errors
    /// When there is the next one, if there is none now.
    pub(super) fn take_turn(&mut self, line: &Arc<str>, life: Duration, now: SystemTime) -> Result<(), Duration> {
        self.look(now, life);
        let each = life.div_f64(A_LIFE).max(Duration::from_millis(1));
        let (left, at) = self.turns.get(line).copied().unwrap_or((IN_A_ROW, now));
        let since = now.duration_since(at).unwrap_or_default();
        let left = (left + since.div_duration_f64(each)).min(IN_A_ROW);
        // A moment's rounding keeps nobody waiting.
        let taken = left > 0.999;
        self.turns.insert(Arc::clone(line), (if taken { (left - 1.0).max(0.0) } else { left }, now));
        if taken { Ok(()) } else { Err(each.mul_f64(1.0 - left)) }
    }

    /// Forgets now and then what ran out, and lines that may ask for everything again.
    fn look(&mut self, now: SystemTime, life: Duration) {
        let since = self.looked.map(|looked| now.duration_since(looked).unwrap_or(LOOK));
        if since.is_some_and(|since| since < LOOK) {
            return;
        }
        self.looked = Some(now);
        self.forget_old(now);
        let whole = life.mul_f64(IN_A_ROW / A_LIFE);
        self.turns.retain(|_, (_, at)| now.duration_since(*at).is_ok_and(|since| since < whole));
    }

    /// What is wrong with what a proxy says of its certificate; `None`: it agrees with what was issued.
    pub(super) fn doubt(&self, claim: Claim<'_>) -> Option<String> {
        let said = claim.said;
        let short = super::trust::short;
        if said.serial != claim.proved && self.line_of(&said.serial) != self.line_of(claim.proved) {
            return Some(format!(
                "it says that its certificate is {}, which was not issued to whoever showed {}",
                short(&said.serial),
                short(claim.proved)
            ));
        }
        // What is not known was issued before a restore, or is lost: of that a proxy speaks for itself alone.
        let row = self.leaves.get(&said.serial)?;
        if row.id != said.id {
            return Some(format!(
                "it says that its certificate is {}, which is that of {}",
                short(&row.serial),
                row.id
            ));
        }
        if row.root != said.root {
            return Some(format!(
                "it says that its certificate {} leads to root {}, and it was issued under {}",
                short(&row.serial),
                short(&said.root),
                short(&row.root)
            ));
        }
        let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        (seconds(row.until) != seconds(said.until)).then(|| {
            format!(
                "it says that its certificate {} holds until {}, and it holds until {}",
                short(&row.serial),
                rfc3339(said.until),
                rfc3339(row.until)
            )
        })
    }

    /// A certificate was issued to a line, to whoever showed `before`.
    pub(super) fn issued(&mut self, row: LeafRow, line: Arc<str>, before: Option<String>) {
        if let Some(before) = &before {
            self.lines.entry(before.clone()).or_insert_with(|| Arc::clone(&line));
        }
        self.lines.insert(row.serial.clone(), line);
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
        // A connection may still stand on one that was replaced: its line is known for as long as its certificate could hold.
        let live: BTreeSet<Arc<str>> = leaves.keys().filter_map(|serial| self.lines.get(serial)).cloned().collect();
        self.lines.retain(|_, line| live.contains(line));
    }

    /// The root that a certificate leads to, if it is known.
    pub(super) fn root_of(&self, serial: &str) -> Option<&str> {
        self.leaves.get(serial).map(|row| row.root.as_str())
    }

    /// Until when the latest certificate of each identity holds.
    pub(super) fn latest(&self) -> BTreeMap<SpiffeId, SystemTime> {
        let mut latest = BTreeMap::new();
        for row in self.leaves.values() {
            let until = latest.entry(row.id.clone()).or_insert(row.until);
            *until = row.until.max(*until);
        }
        latest
    }

    /// Those that still hold and that none of `shown` is, nor has taken the place of.
    pub(super) fn at_large<'a>(
        &'a self,
        shown: &'a HashSet<&str>,
        now: SystemTime,
    ) -> impl Iterator<Item = &'a LeafRow> + 'a {
        self.leaves.values().filter(move |row| row.until > now && !shown.contains(row.serial.as_str()))
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

    fn issue(ledger: &mut Ledger, serial: &str, before: Option<&str>) {
        let line = ledger.line_of(before.unwrap_or("the token"));
        ledger.issued(row(serial), line, before.map(str::to_owned));
    }

    fn at_large(ledger: &Ledger, shown: &[&str], at: SystemTime) -> Vec<String> {
        let shown = shown.iter().copied().collect();
        ledger.at_large(&shown, at).map(|row| row.serial.clone()).collect()
    }

    #[test]
    fn a_certificate_is_at_large_until_its_holder_was_seen_with_its_successor() {
        let mut ledger = Ledger::restore(vec![row("1")]);
        assert_eq!(at_large(&ledger, &[], now()), ["1"]);
        issue(&mut ledger, "2", Some("1"));
        assert_eq!(at_large(&ledger, &["1"], now()), ["2"], "its holder may never have got the answer");
        issue(&mut ledger, "3", Some("1"));
        assert_eq!(ledger.shown(row("3")), ["1"]);
        assert_eq!(at_large(&ledger, &["3"], now()), ["2"], "the answer that was lost still counts until it runs out");
        assert_eq!(at_large(&ledger, &["3"], now() + Duration::from_secs(11)), [""; 0]);
    }

    #[test]
    fn successors_of_successors_that_were_never_seen_go_together() {
        let mut ledger = Ledger::default();
        issue(&mut ledger, "1", None);
        issue(&mut ledger, "2", Some("1"));
        issue(&mut ledger, "3", Some("2"));
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

    #[test]
    fn one_that_asks_without_end_gets_no_more_than_its_share_and_nobody_else_gets_less() {
        let (mut ledger, life) = (Ledger::default(), Duration::from_secs(24 * 3600));
        let mut issued = 0;
        let mut newest: Vec<String> = vec!["first".to_owned()];
        // Each of its certificates is shown again to ask for more, for a whole life.
        for minute in 0..24 * 60 {
            let at = now() + Duration::from_secs(60 * minute);
            for serial in newest.clone() {
                let line = ledger.line_of(&serial);
                if ledger.take_turn(&line, life, at).is_ok() {
                    issued += 1;
                    let next = format!("{issued}");
                    ledger.issued(LeafRow { until: at + life, ..row(&next) }, line, Some(serial));
                    newest.push(next);
                }
            }
        }
        assert!((200..=221).contains(&issued), "{issued}");
        let at = now() + life;
        let line = ledger.line_of("1");
        assert!((0..30).any(|_| ledger.take_turn(&line, life, at).is_err()));
        assert!(ledger.take_turn(&ledger.line_of("another"), life, at).is_ok(), "a sibling with the same name");
        let wait = ledger.take_turn(&line, life, at).unwrap_err();
        assert!(wait <= life / 200 && ledger.take_turn(&line, life, at + wait).is_ok(), "{wait:?}");
        let (known, lines) = (ledger.leaves.len(), ledger.lines.len());
        assert!(known <= 222 && lines <= 223, "{known}, {lines}");
        ledger.take_turn(&line, life, at + 2 * life).unwrap();
        assert_eq!(
            (ledger.leaves.len(), ledger.lines.len(), ledger.turns.len()),
            (0, 0, 1),
            "what ran out is forgotten"
        );
    }

    #[test]
    fn nobody_is_believed_about_a_certificate_that_was_not_issued_to_them() {
        let mut ledger = Ledger::default();
        for (serial, line) in [("ours", "token a"), ("sibling", "token b"), ("theirs", "token c")] {
            ledger.issued(row(serial), line.into(), None);
        }
        issue(&mut ledger, "next", Some("ours"));
        let doubt = |said: &LeafRow| ledger.doubt(Claim { said, proved: "ours" });
        assert_eq!(doubt(&row("ours")), None);
        assert_eq!(doubt(&row("next")), None, "renewed, and not yet connected with it");
        assert_eq!(ledger.doubt(Claim { said: &row("lost"), proved: "lost" }), None, "of before a restore");
        let other = SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/web").unwrap();
        for (said, why) in [
            (row("sibling"), "not issued to whoever showed ours"),
            (row("nobody's"), "not issued to whoever showed ours"),
            (LeafRow { root: "new".into(), ..row("ours") }, "leads to root new, and it was issued under old"),
            (LeafRow { until: now() + Duration::from_secs(9), ..row("ours") }, "holds until"),
            (LeafRow { id: other, ..row("ours") }, "which is that of spiffe://equerry.local/ns/shop/sa/orders"),
        ] {
            let doubted = doubt(&said).unwrap_or_default();
            assert!(doubted.contains(why), "{said:?}: {doubted}");
        }
    }
}
