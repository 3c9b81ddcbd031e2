//! Documents and the epoch that counts their changes.
//!
//! One call writes one epoch whole or not at all. The text stored is the canonical JSON that versions are hashes of.

use std::time::SystemTime;

use rusqlite::Connection;

use super::{Store, StoreError, all, audit};
use crate::audit::Note;

/// Tables of this file.
pub(super) const SCHEMA: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE documents (
    kind TEXT NOT NULL,
    namespace TEXT NOT NULL,      -- '' for kinds without a namespace
    name TEXT NOT NULL,
    body TEXT NOT NULL,           -- canonical JSON
    version TEXT NOT NULL,        -- hash of body
    epoch INTEGER NOT NULL,       -- the epoch that last changed it
    PRIMARY KEY (kind, namespace, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, at_unix_ms INTEGER NOT NULL) STRICT;
";

/// A row of `documents`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentRow {
    /// `HTTPRoute`.
    pub kind: String,
    /// Empty for kinds without a namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Canonical JSON.
    pub body: String,
    /// Hash of `body`.
    pub version: String,
    /// The epoch that last changed it.
    pub epoch: u64,
}

/// One epoch's changes.
#[derive(Debug, Clone, Default)]
pub struct EpochRows {
    /// The new epoch.
    pub epoch: u64,
    /// Documents created or changed.
    pub written: Vec<DocumentRow>,
    /// `(kind, namespace, name)` of documents deleted.
    pub deleted: Vec<(String, String, String)>,
}

/// Writes one epoch, and the entry of the audit log that tells of it.
///
/// # Errors
/// When the store is full or failed; then nothing of it was written.
pub async fn write_epoch(store: &Store, rows: EpochRows, note: Note, at: SystemTime) -> Result<(), StoreError> {
    let at_unix_ms = super::unix_ms(at);
    store
        .transact(move |db| {
            let mut write = db.prepare_cached(
                "INSERT INTO documents (kind, namespace, name, body, version, epoch) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT DO UPDATE SET body = excluded.body, version = excluded.version, epoch = excluded.epoch",
            )?;
            for row in &rows.written {
                write.execute((&row.kind, &row.namespace, &row.name, &row.body, &row.version, row.epoch))?;
            }
            let mut delete =
                db.prepare_cached("DELETE FROM documents WHERE kind = ?1 AND namespace = ?2 AND name = ?3")?;
            for (kind, namespace, name) in &rows.deleted {
                delete.execute((kind, namespace, name))?;
            }
            db.execute("INSERT INTO epochs (epoch, at_unix_ms) VALUES (?1, ?2)", (rows.epoch, at_unix_ms))?;
            audit::append(db, &note, at)
        })
        .await
}

/// The present epoch (0 before the first document) and every document.
///
/// # Errors
/// When the store failed.
pub async fn read_all(store: &Store) -> Result<(u64, Vec<DocumentRow>), StoreError> {
    store
        .transact(|db| {
            let epoch = db.query_row("SELECT coalesce(max(epoch), 0) FROM epochs", (), |row| row.get(0))?;
            let rows = all(db, "SELECT kind, namespace, name, body, version, epoch FROM documents", |row| {
                Ok(DocumentRow {
                    kind: row.get(0)?,
                    namespace: row.get(1)?,
                    name: row.get(2)?,
                    body: row.get(3)?,
                    version: row.get(4)?,
                    epoch: row.get(5)?,
                })
            })?;
            Ok((epoch, rows))
        })
        .await
}

/// Keeps `value` under `key` unless something is kept there already; returns what is kept now.
///
/// # Errors
/// When the store is full or failed.
pub async fn keep_once(store: &Store, key: &'static str, value: String) -> Result<String, StoreError> {
    store.transact(move |db| keep_once_in(db, key, &value)).await
}

fn keep_once_in(db: &Connection, key: &str, value: &str) -> Result<String, StoreError> {
    db.execute("INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT DO NOTHING", (key, value))?;
    Ok(db.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))?)
}
