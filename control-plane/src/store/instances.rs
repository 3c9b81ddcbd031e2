//! Registered instances, so that nothing registered is lost when the control plane dies.
//!
//! Only what changes is written (a new instance, a newer generation, another verdict), never a beat.

use std::time::SystemTime;

use equerry_policies::names::{InstanceId, Namespace};

use super::{Store, StoreError, all, audit};
use crate::audit::Note;
use crate::registry::InstanceKey;

/// Tables of this file.
pub(super) const SCHEMA: &str = "
CREATE TABLE instances (
    namespace TEXT NOT NULL,
    id TEXT NOT NULL,
    body TEXT NOT NULL,           -- JSON of registry::Registration
    PRIMARY KEY (namespace, id)
) STRICT, WITHOUT ROWID;
";

/// A row of `instances`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRow {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its id.
    pub id: InstanceId,
    /// JSON of the registration.
    pub body: String,
}

/// Writes instances, replacing what was known of them, and the entry of the audit log that tells of it, if any.
///
/// # Errors
/// When the store is full or failed; then nothing was written.
pub async fn write(store: &Store, rows: Vec<InstanceRow>, note: Option<Note>) -> Result<(), StoreError> {
    store
        .transact(move |db| {
            let mut write = db.prepare_cached(
                "INSERT INTO instances (namespace, id, body) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET body = excluded.body",
            )?;
            for row in &rows {
                write.execute((row.namespace.as_str(), row.id.as_str(), &row.body))?;
            }
            note.iter().try_for_each(|note| audit::append(db, note, SystemTime::now()))
        })
        .await
}

/// Forgets instances, with the entry of the audit log that tells of it, if any.
///
/// # Errors
/// When the store failed.
pub async fn delete(store: &Store, keys: Vec<InstanceKey>, note: Option<Note>) -> Result<(), StoreError> {
    store
        .transact(move |db| {
            let mut delete = db.prepare_cached("DELETE FROM instances WHERE namespace = ?1 AND id = ?2")?;
            for key in &keys {
                delete.execute((key.namespace.as_str(), key.id.as_str()))?;
            }
            note.iter().try_for_each(|note| audit::append(db, note, SystemTime::now()))
        })
        .await
}

/// Every instance: `namespace/id`, and the JSON of its registration.
///
/// # Errors
/// When the store failed.
pub async fn read_all(store: &Store) -> Result<Vec<(String, String)>, StoreError> {
    store
        .transact(|db| {
            all(db, "SELECT namespace || '/' || id, body FROM instances", |row| Ok((row.get(0)?, row.get(1)?)))
        })
        .await
}
