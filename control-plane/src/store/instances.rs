//! Registered instances, so that nothing registered is lost when the control plane dies.
//!
//! Only what changes is written (a new instance, a newer generation, another verdict), never a beat.

use std::time::SystemTime;

use super::{Store, StoreError, audit};
use crate::audit::Note;

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
    pub namespace: String,
    /// Its id.
    pub id: String,
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
                write.execute((&row.namespace, &row.id, &row.body))?;
            }
            note.iter().try_for_each(|note| audit::append(db, note, SystemTime::now()))
        })
        .await
}

/// Forgets instances, each a namespace and an id; with the entry of the audit log that tells of it, if any.
///
/// # Errors
/// When the store failed.
pub async fn delete(store: &Store, keys: Vec<(String, String)>, note: Option<Note>) -> Result<(), StoreError> {
    store
        .transact(move |db| {
            let mut delete = db.prepare_cached("DELETE FROM instances WHERE namespace = ?1 AND id = ?2")?;
            for (namespace, id) in &keys {
                delete.execute((namespace, id))?;
            }
            note.iter().try_for_each(|note| audit::append(db, note, SystemTime::now()))
        })
        .await
}

/// Every instance.
///
/// # Errors
/// When the store failed.
pub async fn read_all(store: &Store) -> Result<Vec<InstanceRow>, StoreError> {
    store
        .transact(|db| {
            let mut read = db.prepare("SELECT namespace, id, body FROM instances")?;
            let rows = read
                .query_map((), |row| Ok(InstanceRow { namespace: row.get(0)?, id: row.get(1)?, body: row.get(2)? }))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
}
