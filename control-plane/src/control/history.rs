//! Which documents the last epochs changed, so that whoever watched up to one of them is told the rest and nothing twice.

use std::collections::{HashMap, VecDeque};

use equerry_policies::document::DocumentKey;

use super::{Action, Change, ControlPlane, locked};

/// Changes of documents that are remembered.
const REMEMBERED: usize = 16_384;

/// The changes of the last epochs.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Every change after this epoch is here.
    since: u64,
    /// Oldest first.
    changes: VecDeque<(u64, DocumentKey, Action)>,
}

impl History {
    /// A history that begins at an epoch.
    pub(super) fn new(since: u64) -> Self {
        Self { since, changes: VecDeque::new() }
    }

    /// An epoch was made.
    pub(super) fn note(&mut self, epoch: u64, changes: &[Change]) {
        let changed = changes.iter().filter(|change| change.action != Action::Unchanged);
        self.changes.extend(changed.map(|change| (epoch, change.key.clone(), change.action)));
        while self.changes.len() > REMEMBERED {
            // An epoch is forgotten whole.
            let Some((oldest, ..)) = self.changes.pop_front() else { break };
            self.since = oldest;
        }
        while self.changes.front().is_some_and(|(epoch, ..)| *epoch <= self.since) {
            self.changes.pop_front();
        }
    }

    /// The documents changed after one epoch up to another, and whether each was there before; `None` when that is not known.
    fn between(&self, after: u64, up_to: u64) -> Option<HashMap<DocumentKey, bool>> {
        if after < self.since || after > up_to {
            return None;
        }
        let mut changed = HashMap::new();
        for (epoch, key, action) in &self.changes {
            if (after + 1..=up_to).contains(epoch) {
                changed.entry(key.clone()).or_insert(*action != Action::Created);
            }
        }
        Some(changed)
    }
}

impl ControlPlane {
    /// The documents changed after one epoch up to another, and whether each was there before; `None` when that is not known.
    pub fn changed_since(&self, after: u64, up_to: u64) -> Option<HashMap<DocumentKey, bool>> {
        locked(&self.0.history).between(after, up_to)
    }
}

#[cfg(test)]
mod tests {
    use equerry_policies::document::Kind;

    use super::*;

    fn change(name: &str, action: Action) -> Change {
        let key = DocumentKey { kind: Kind::Service, namespace: None, name: name.parse().unwrap() };
        Change { key, action, version: String::new() }
    }

    fn since(history: &History, after: u64, up_to: u64) -> Option<Vec<(String, bool)>> {
        let mut all: Vec<_> =
            history.between(after, up_to)?.into_iter().map(|(key, there)| (key.name.to_string(), there)).collect();
        all.sort();
        Some(all)
    }

    #[test]
    fn what_changed_since_an_epoch_is_told_with_what_was_there_before() {
        let mut history = History::new(7);
        history
            .note(8, &[change("a", Action::Created), change("b", Action::Configured), change("c", Action::Unchanged)]);
        history.note(9, &[change("a", Action::Deleted), change("d", Action::Deleted)]);
        assert_eq!(since(&history, 7, 9).unwrap(), [("a".into(), false), ("b".into(), true), ("d".into(), true)]);
        assert_eq!(since(&history, 8, 9).unwrap(), [("a".into(), true), ("d".into(), true)]);
        assert_eq!(since(&history, 7, 8).unwrap().len(), 2, "what is not published yet is not told");
        assert_eq!(since(&history, 9, 9).unwrap(), []);
        assert_eq!(since(&history, 6, 9), None, "before it began");
        assert_eq!(since(&history, 10, 9), None, "an epoch that is not made yet");
    }

    #[test]
    fn an_epoch_that_is_forgotten_is_forgotten_whole() {
        let mut history = History::new(0);
        history.note(1, &[change("a", Action::Created), change("b", Action::Created)]);
        let many: Vec<Change> = (0..REMEMBERED - 1).map(|n| change(&format!("x{n}"), Action::Created)).collect();
        history.note(2, &many);
        assert_eq!(since(&history, 0, 2), None);
        assert_eq!(since(&history, 1, 2).unwrap().len(), REMEMBERED - 1);
    }
}
