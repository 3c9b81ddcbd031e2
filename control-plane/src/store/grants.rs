//! What was granted of each tenant quota in each window, written before it is sent.
//!
//! After a crash no token can be granted twice: what stands here counts as held by its sidecar until that sidecar reports.

use super::{Store, StoreError, all};

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

/// Keeps only what is named: for each quota its windows from a number on.
///
/// # Errors
/// When the store failed.
pub async fn keep_from(store: &Store, oldest: Vec<(String, u64)>) -> Result<(), StoreError> {
    store
        .transact(move |db| {
            let kept: Vec<&str> = oldest.iter().map(|(quota, _)| quota.as_str()).collect();
            let kept = serde_json::json!(kept).to_string();
            db.execute("DELETE FROM grants WHERE quota NOT IN (SELECT value FROM json_each(?1))", [kept])?;
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
            all(db, "SELECT quota, window, namespace, instance, granted FROM grants", |row| {
                Ok(GrantRow {
                    quota: row.get(0)?,
                    window: row.get(1)?,
                    namespace: row.get(2)?,
                    instance: row.get(3)?,
                    granted: row.get(4)?,
                })
            })
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreOptions;

    #[tokio::test]
    async fn a_grant_never_shrinks_and_goes_with_its_window_or_quota() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("equerry.db"), &StoreOptions::default()).unwrap();
        let row = |quota: &str, window, granted| GrantRow {
            quota: quota.into(),
            window,
            namespace: "shop".into(),
            instance: "a".into(),
            granted,
        };
        write(&store, vec![row("acme/0", 7, 5), row("acme/0", 8, 5), row("gone/0", 8, 5)]).await.unwrap();
        write(&store, vec![row("acme/0", 8, 9)]).await.unwrap();
        write(&store, vec![row("acme/0", 8, 3)]).await.unwrap();
        keep_from(&store, vec![("acme/0".into(), 8)]).await.unwrap();
        assert_eq!(read_all(&store).await.unwrap(), [row("acme/0", 8, 9)]);
        keep_from(&store, vec![]).await.unwrap();
        assert_eq!(read_all(&store).await.unwrap(), []);
    }
}
