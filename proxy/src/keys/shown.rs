//! How the keys of every issuer stand, for `/config` and metrics. Public keys are no secret; their ids are enough.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use equerry_certs::rfc3339;
use serde_json::{Value, json};

use super::Keys;
use super::memory::age;

impl Keys {
    /// Each issuer: where its keys come from, which they are, how old, what went wrong last, when it is asked next.
    pub(crate) fn shown(&self) -> Value {
        let now = SystemTime::now();
        let entries = self.0.entries.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = entries.values().collect();
        all.sort_by(|a, b| a.from.cmp(&b.from));
        let shown = all.into_iter().map(|entry| {
            let memory = entry.memory();
            let state = match (memory.held(now), memory.latest(), memory.problem()) {
                (Some(_), _, None) => "fresh",
                (Some(_), _, Some(_)) => "stale",
                (None, Some(_), _) => "too old",
                (None, None, _) => "never fetched",
            };
            let ids = memory.latest().map(|held| held.keys.iter().map(|key| key.id.clone()).collect::<Vec<_>>());
            json!({
                "issuer": entry.from.issuer,
                "url": entry.from.url.as_str(),
                "state": state,
                "keys": ids,
                "fetchedAt": memory.latest().map(|held| rfc3339(held.fetched_at)),
                "problem": memory.problem(),
                "next": rfc3339(memory.next()),
            })
        });
        Value::Array(shown.collect())
    }

    /// How old the keys of each issuer are; of several places the oldest. Issuers that never answered are left out.
    pub(crate) fn ages(&self) -> BTreeMap<String, Duration> {
        let (now, mut ages) = (SystemTime::now(), BTreeMap::<String, Duration>::new());
        let entries = self.0.entries.read().unwrap_or_else(PoisonError::into_inner);
        for entry in entries.values() {
            if let Some(held) = entry.memory().latest() {
                let oldest = ages.entry(entry.from.issuer.to_string()).or_default();
                *oldest = age(held, now).max(*oldest);
            }
        }
        ages
    }
}
