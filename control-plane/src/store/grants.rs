//! What was granted of each tenant quota in each window, written before it is sent.
//!
//! After a crash no token can be granted twice: what stands here counts as held by its sidecar until that sidecar reports.

use super::{Store, StoreError};

/// Tables of this file.
pub(super) const SCHEMA: &str = "
CREATE TABLE grants (
    quota TEXT NOT NULL,
    window INTEGER NOT NULL,      -- unix seconds / window seconds
    namespace TEXT NOT NULL,
    instance TEXT NOT NULL,
    granted INTEGER NOT NULL,     -- running total of this window
    PRIMARY KEY (quota, window, namespace, instance)
) STRICT, WITHOUT ROWID;
";

/// A row of `grants`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantRow {
    /// The quota's id.
    pub quota: String,
    /// Number of the window.
    pub window: u64,
    /// The holder's namespace.
    pub namespace: String,
    /// The holder's instance id.
    pub instance: String,
    /// Running total of this window.
    pub granted: u64,
}

/// Writes grants.
///
/// # Errors
/// When the store is full or failed; then nothing was written, and nothing may be sent.
pub async fn write(store: &Store, rows: Vec<GrantRow>) -> Result<(), StoreError> {
    store
        .transact(move |db| {
            let mut write = db.prepare_cached(
                "INSERT INTO grants (quota, window, namespace, instance, granted) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET granted = max(granted, excluded.granted)",
            )?;
            for row in &rows {
                write.execute((&row.quota, row.window, &row.namespace, &row.instance, row.granted))?;
            }
            Ok(())
        })
        .await
}

/// Forgets the windows of one quota before `window`.
///
/// # Errors
/// When the store failed.
pub async fn forget_before(store: &Store, oldest: Vec<(String, u64)>) -> Result<(), StoreError> {
    store
        .transact(move |db| {
            let mut delete = db.prepare_cached("DELETE FROM grants WHERE quota = ?1 AND window < ?2")?;
            for (quota, window) in &oldest {
                delete.execute((quota, window))?;
            }
            Ok(())
        })
        .await
}

/// Every grant that is still kept.
///
/// # Errors
/// When the store failed.
pub async fn read_all(store: &Store) -> Result<Vec<GrantRow>, StoreError> {
    store
        .transact(|db| {
            let mut read = db.prepare("SELECT quota, window, namespace, instance, granted FROM grants")?;
            let rows = read.query_map((), |row| {
                Ok(GrantRow { quota: row.get(0)?, window: row.get(1)?, namespace: row.get(2)?, instance: row.get(3)?, granted: row.get(4)? })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
}
