//! The audit log's lines: an entry is written in the transaction of the change it tells of, or neither is.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use equerry_certs::SigningKey;
use rusqlite::{Connection, OptionalExtension as _};

use super::{Store, StoreError, unix_ms};
use crate::audit::{Entry, Head, Note};

/// Tables of this file.
pub(super) const SCHEMA: &str = "
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,
    at_unix_ms INTEGER NOT NULL,
    line TEXT NOT NULL            -- JSON of audit::Entry: hashed, chained and exported as it stands here
) STRICT;
";

/// Writes an entry as part of a transaction.
pub(super) fn append(db: &Connection, note: &Note, at: SystemTime) -> Result<(), StoreError> {
    let head = head_in(db)?;
    put(db, &note.after(&head, at), at)
}

/// Writes entries that tell of no change of the store.
///
/// # Errors
/// When the store is full or failed.
pub async fn write(store: &Store, notes: Vec<Note>, at: SystemTime) -> Result<(), StoreError> {
    store.transact(move |db| notes.iter().try_for_each(|note| append(db, note, at))).await
}

/// Signs what was written since the last checkpoint, if anything was. Returns whether it did.
///
/// # Errors
/// When the store is full or failed.
pub async fn checkpoint(store: &Store, key: &Arc<SigningKey>, at: SystemTime) -> Result<bool, StoreError> {
    let key = Arc::clone(key);
    store.transact(move |db| checkpoint_in(db, &key, at)).await
}

fn checkpoint_in(db: &Connection, key: &SigningKey, at: SystemTime) -> Result<bool, StoreError> {
    let last: Option<String> = db
        .prepare_cached("SELECT line FROM audit ORDER BY seq DESC LIMIT 1")?
        .query_row((), |row| row.get(0))
        .optional()?;
    let unsigned = last.is_some_and(|line| !is_checkpoint(&line));
    if unsigned {
        put(db, &Entry::checkpoint(&head_in(db)?, key, at), at)?;
    }
    Ok(unsigned)
}

/// Removes signed entries older than `kept`, and writes down that it did. Returns how many.
///
/// # Errors
/// When the store is full or failed; then none was removed.
pub async fn retain(store: &Store, key: &Arc<SigningKey>, kept: Duration, at: SystemTime) -> Result<u64, StoreError> {
    let key = Arc::clone(key);
    let oldest = unix_ms(at.checked_sub(kept).unwrap_or(SystemTime::UNIX_EPOCH));
    store
        .transact(move |db| {
            let (first, last): (Option<u64>, Option<u64>) =
                db.query_row("SELECT min(seq), max(seq) FROM audit WHERE at_unix_ms < ?1", (oldest,), |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?;
            let (Some(first), Some(last)) = (first, last) else { return Ok(0) };
            // What is removed is signed first, and the removal is signed with it.
            checkpoint_in(db, &key, at)?;
            let line: String = db.query_row("SELECT line FROM audit WHERE seq = ?1", (last,), |row| row.get(0))?;
            put(db, &Entry::retention(&head_in(db)?, Head::of(last, &line), at), at)?;
            db.execute("DELETE FROM audit WHERE seq <= ?1", (last,))?;
            checkpoint_in(db, &key, at)?;
            Ok(last - first + 1)
        })
        .await
}

/// The last entry.
///
/// # Errors
/// When the store failed.
pub async fn head(store: &Store) -> Result<Head, StoreError> {
    store.transact(head_in).await
}

/// One entry's head, if the entry is there.
///
/// # Errors
/// When the store failed.
pub async fn head_at(store: &Store, seq: u64) -> Result<Option<Head>, StoreError> {
    store
        .transact(move |db| {
            let line: Option<String> = db
                .prepare_cached("SELECT line FROM audit WHERE seq = ?1")?
                .query_row((seq,), |row| row.get(0))
                .optional()?;
            Ok(line.map(|line| Head::of(seq, &line)))
        })
        .await
}

/// Lines after entry `after`, the oldest first, at most `most`.
///
/// # Errors
/// When the store failed.
pub async fn lines(store: &Store, after: u64, most: usize) -> Result<Vec<String>, StoreError> {
    store
        .transact(move |db| {
            let mut read = db.prepare_cached("SELECT line FROM audit WHERE seq > ?1 ORDER BY seq LIMIT ?2")?;
            let lines = read.query_map((after, most), |row| row.get(0))?;
            Ok(lines.collect::<Result<_, _>>()?)
        })
        .await
}

fn head_in(db: &Connection) -> Result<Head, StoreError> {
    let last: Option<(u64, String)> = db
        .prepare_cached("SELECT seq, line FROM audit ORDER BY seq DESC LIMIT 1")?
        .query_row((), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(last.map_or_else(Head::beginning, |(seq, line)| Head::of(seq, &line)))
}

fn put(db: &Connection, entry: &Entry, at: SystemTime) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO audit (seq, at_unix_ms, line) VALUES (?1, ?2, ?3)")?.execute((
        entry.seq,
        unix_ms(at),
        entry.line(),
    ))?;
    Ok(())
}

fn is_checkpoint(line: &str) -> bool {
    serde_json::from_str::<Entry>(line).is_ok_and(|entry| entry.signature.is_some())
}

#[cfg(test)]
mod tests {
    use super::super::StoreOptions;
    use super::*;
    use crate::audit::{By, Verifier};

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + second)
    }

    async fn judged(store: &Store, key: &SigningKey) -> crate::audit::Proved {
        let head = head(store).await.unwrap();
        let mut verifier = Verifier::new(Some(&key.verifying_key()), Some(head));
        lines(store, 0, 1000).await.unwrap().iter().try_for_each(|line| verifier.line(line)).unwrap();
        verifier.finish().unwrap()
    }

    #[tokio::test]
    async fn what_is_kept_proves_itself_also_after_old_entries_were_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("equerry.db"), &StoreOptions::default()).unwrap();
        let key = Arc::new(SigningKey::create().unwrap().0);
        for second in 0..20 {
            let note = Note::done(By::name("ada"), "apply", vec![format!("Service shop/s{second} created")]);
            write(&store, vec![note.clone(), note], at(second)).await.unwrap();
        }
        assert!(checkpoint(&store, &key, at(20)).await.unwrap());
        assert!(!checkpoint(&store, &key, at(21)).await.unwrap(), "nothing new to sign");
        let proved = judged(&store, &key).await;
        assert_eq!((proved.first, proved.head.seq, proved.signed), (1, 41, 40));

        assert_eq!(retain(&store, &key, Duration::from_secs(10), at(20)).await.unwrap(), 20);
        let proved = judged(&store, &key).await;
        assert_eq!((proved.first, proved.head.seq, proved.signed), (21, 43, 42), "retention and a checkpoint follow");
        assert_eq!(retain(&store, &key, Duration::from_secs(10), at(20)).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_row_that_was_edited_in_the_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("equerry.db");
        let store = Store::open(&path, &StoreOptions::default()).unwrap();
        for name in ["ada", "bob", "eve"] {
            let note = Note::done(By::name(name), "delete", vec!["Service shop/orders deleted".to_owned()]);
            write(&store, vec![note], at(0)).await.unwrap();
        }
        let other = Connection::open(&path).unwrap();
        other.execute("UPDATE audit SET line = replace(line, 'bob', 'ada') WHERE seq = 2", ()).unwrap();
        let mut verifier = Verifier::new(None, None);
        let kept = lines(&store, 0, 10).await.unwrap();
        assert!(kept.iter().try_for_each(|line| verifier.line(line)).is_err());
    }
}
