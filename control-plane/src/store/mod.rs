//! What outlives the process: one SQLite file, written by one thread.
//!
//! A transaction is acknowledged only after it is on disk (`synchronous=FULL`). Transactions that wait at the same time share
//! one fsync, each in a savepoint of its own, so one that fails takes no other with it. A full disk changes nothing.

pub mod audit;
pub mod documents;
pub mod grants;
pub mod instances;
pub mod tokens;
pub mod trust;

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, ErrorCode, Row};
use tokio::sync::{mpsc, oneshot};

/// How the database's tables came to be, oldest first. Never edited, only appended to: `user_version` counts them.
const MIGRATIONS: &[&[&str]] = &[
    &[documents::SCHEMA, instances::SCHEMA, grants::SCHEMA, tokens::TOKENS_SCHEMA],
    &[tokens::ROLES_SCHEMA, audit::SCHEMA],
    &[trust::SCHEMA],
    &[tokens::KEYS_SCHEMA, trust::PAST_SCHEMA],
];
/// Transactions that may wait for the writer before callers have to wait in line.
const QUEUE: usize = 4096;
/// Transactions that share one fsync at most.
const GROUP: usize = 512;
/// Pages (4 KiB each) of the log after which they go to the file itself: seldom enough that a page which many transactions touch is
/// copied once, not for each of them.
const CHECKPOINT: i64 = 4_000;
/// The most that is kept in memory of the file.
const CACHE_KIB: i64 = 8_000;
/// How long to wait for another program that has the file open, such as a backup.
const BUSY: Duration = Duration::from_secs(5);

/// Why the store did not do what was asked. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No space is left, on the disk or within the configured maximum.
    #[error("the store is full: nothing was changed; free disk space, or raise the limit, and try again")]
    Full,
    /// The file cannot be opened as a store.
    #[error("the store {path} cannot be opened: {detail}")]
    Unusable {
        /// The file.
        path: String,
        /// What the system or SQLite said.
        detail: String,
    },
    /// A newer version wrote this file.
    #[error(
        "the store {path} was written by a newer version (schema {found}, this program knows {known}): start that version, or restore a backup"
    )]
    TooNew {
        /// The file.
        path: String,
        /// Its schema.
        found: usize,
        /// The newest schema known here.
        known: usize,
    },
    /// SQLite refused; the text is for people.
    #[error("the store failed: {0}")]
    Sqlite(String),
    /// The writer has stopped, because the process is ending.
    #[error("the store is closed")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            _ => Self::Sqlite(error.to_string()),
        }
    }
}

/// How a store is opened.
#[derive(Debug, Clone, Default)]
pub struct StoreOptions {
    /// The most pages (4 KiB each) the file may have; `None`: as many as the disk holds.
    pub max_pages: Option<u32>,
}

/// The store: a handle to the one thread that writes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    writer: mpsc::Sender<Box<dyn Job>>,
}

impl Store {
    /// Opens or creates the file (0600), brings its tables up to date, and starts the writer. Blocks on the disk.
    ///
    /// # Errors
    /// When the file cannot be opened or written, or was written by a newer version.
    pub fn open(path: &Path, options: &StoreOptions) -> Result<Self, StoreError> {
        let connection = open_connection(path, options)?;
        let (writer, jobs) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || write_until_closed(&connection, jobs))
            .map_err(|error| unusable(path, &error))?;
        Ok(Self { writer })
    }

    /// Runs `work` as one transaction: all of it is on disk when this returns `Ok`, nothing of it when it returns `Err`.
    /// `work` may run more than once (only the last run counts), so it must change nothing but the database.
    ///
    /// # Errors
    /// What `work` returned, or [`StoreError`] in the form of `E`.
    pub async fn transact<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnMut(&Connection) -> Result<T, E> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = Task { work, outcome: None, reply };
        self.writer.send(Box::new(job)).await.map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }
}

/// One transaction on its way through the writer.
trait Job: Send {
    /// Does the work; whether it succeeded.
    fn run(&mut self, connection: &Connection) -> bool;
    /// Tells the caller, once it is known whether the group is on disk.
    fn settle(self: Box<Self>, committed: &Result<(), StoreError>);
}

struct Task<T, E, F> {
    work: F,
    outcome: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<T, E, F> Job for Task<T, E, F>
where
    T: Send,
    E: From<StoreError> + Send,
    F: FnMut(&Connection) -> Result<T, E> + Send,
{
    fn run(&mut self, connection: &Connection) -> bool {
        let outcome = (self.work)(connection);
        let succeeded = outcome.is_ok();
        self.outcome = Some(outcome);
        succeeded
    }

    fn settle(self: Box<Self>, committed: &Result<(), StoreError>) {
        let answer = match (self.outcome, committed) {
            (Some(Err(refused)), _) => Err(refused),
            (Some(Ok(value)), Ok(())) => Ok(value),
            (_, Err(error)) => Err(error.clone().into()),
            (None, Ok(())) => Err(StoreError::Closed.into()),
        };
        // The caller may have gone away; the transaction stands all the same.
        let _ = self.reply.send(answer);
    }
}

fn write_until_closed(connection: &Connection, mut jobs: mpsc::Receiver<Box<dyn Job>>) {
    while let Some(first) = jobs.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP {
            let Ok(next) = jobs.try_recv() else { break };
            group.push(next);
        }
        let committed = commit_together(connection, &mut group);
        if committed.is_ok() || group.len() == 1 {
            group.into_iter().for_each(|job| job.settle(&committed));
        } else {
            for job in group {
                let mut alone = vec![job];
                let committed = commit_together(connection, &mut alone);
                alone.into_iter().for_each(|job| job.settle(&committed));
            }
        }
    }
}

/// Runs a group in one transaction. `Err` says that nothing of it is on disk.
fn commit_together(connection: &Connection, group: &mut [Box<dyn Job>]) -> Result<(), StoreError> {
    let done = run_group(connection, group);
    if done.is_err()
        && !connection.is_autocommit()
        && let Err(error) = connection.execute_batch("ROLLBACK")
    {
        tracing::error!(%error, "the store could not roll back: restart the control plane, which takes up what was acknowledged");
    }
    done
}

fn run_group(connection: &Connection, group: &mut [Box<dyn Job>]) -> Result<(), StoreError> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    for job in group {
        connection.execute_batch("SAVEPOINT job")?;
        if !job.run(connection) {
            // A failure such as a full disk may already have ended the whole transaction.
            if connection.is_autocommit() {
                return Err(StoreError::Full);
            }
            connection.execute_batch("ROLLBACK TO job")?;
        }
        connection.execute_batch("RELEASE job")?;
    }
    Ok(connection.execute_batch("COMMIT")?)
}

fn unusable(path: &Path, detail: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unusable { path: path.display().to_string(), detail: detail.to_string() }
}

fn open_connection(path: &Path, options: &StoreOptions) -> Result<Connection, StoreError> {
    create_private(path).map_err(|error| unusable(path, &error))?;
    let mut connection = Connection::open(path).map_err(|error| unusable(path, &error))?;
    configure(&connection, options).map_err(|error| unusable(path, &error))?;
    migrate(&mut connection, path)?;
    Ok(connection)
}

/// The file holds who may join, and a root's keys while they are rotated: it is the owner's alone from its first byte on, and
/// becomes so where somebody opened it up.
fn create_private(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map(drop)?;
    for beside in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(beside);
        close_to_others(Path::new(&name))?;
    }
    Ok(())
}

fn close_to_others(path: &Path) -> io::Result<()> {
    let mode = match fs::metadata(path) {
        Ok(metadata) => metadata.permissions().mode(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let mode = format!("{:04o}", mode & 0o7777);
    tracing::warn!(path = %path.display(), mode, "others could reach the store until now; it is the owner's alone again");
    fs::set_permissions(path, Permissions::from_mode(0o600))
}

fn configure(connection: &Connection, options: &StoreOptions) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    // What is deleted may be a root's key.
    connection.pragma_update(None, "secure_delete", true)?;
    if let Some(pages) = options.max_pages {
        connection.pragma_update(None, "max_page_count", pages)?;
    }
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let found: usize = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|error| unusable(path, &error))?;
    if found > MIGRATIONS.len() {
        return Err(StoreError::TooNew { path: path.display().to_string(), found, known: MIGRATIONS.len() });
    }
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(found) {
        let transaction = connection.transaction()?;
        for statements in *migration {
            transaction.execute_batch(statements)?;
        }
        transaction.pragma_update(None, "user_version", index + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

/// Every row that a query without parameters finds.
fn all<T>(db: &Connection, query: &str, read: impl Fn(&Row<'_>) -> rusqlite::Result<T>) -> Result<Vec<T>, StoreError> {
    let mut statement = db.prepare_cached(query)?;
    let rows = statement.query_map((), read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Milliseconds since 1970; 0 before.
pub(crate) fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Where the store is: `sqlite:PATH`, or `PATH` alone.
///
/// # Errors
/// When another kind of store is named.
pub fn parse_location(text: &str) -> Result<PathBuf, String> {
    match text.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => Ok(PathBuf::from(path)),
        Some(("postgres" | "postgresql", _)) => {
            Err(format!("found {text:?}: PostgreSQL is not supported by this version, expected sqlite:PATH"))
        }
        None if !text.is_empty() => Ok(PathBuf::from(text)),
        _ => Err(format!("found {text:?}, expected sqlite:PATH")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(options: &StoreOptions) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("equerry.db"), options).unwrap();
        (dir, store)
    }

    async fn put(store: &Store, key: &str, value: String) -> Result<(), StoreError> {
        let key = key.to_owned();
        store
            .transact(move |db| {
                db.execute("INSERT INTO meta (key, value) VALUES (?1, ?2)", (&key, &value))?;
                Ok(())
            })
            .await
    }

    async fn count(store: &Store) -> u64 {
        store
            .transact::<_, StoreError, _>(|db| {
                Ok(db.query_row("SELECT count(*) FROM meta WHERE key LIKE 'k%'", (), |r| r.get(0))?)
            })
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_there_after_reopening() {
        let (dir, store) = store(&StoreOptions::default());
        put(&store, "k1", "v".into()).await.unwrap();
        // A second handle on the same file sees it without the first ever being closed, as after kill -9.
        let again = Store::open(&dir.path().join("equerry.db"), &StoreOptions::default()).unwrap();
        assert_eq!(count(&again).await, 1);
    }

    #[tokio::test]
    async fn a_transaction_that_fails_takes_no_other_with_it() {
        let (_dir, store) = store(&StoreOptions::default());
        let puts: Vec<_> = (0..100)
            .map(|i| put(&store, if i % 10 == 0 { "k0" } else { ["k1", "k2", "k3"][i % 3] }, "v".into()))
            .collect();
        let results = futures_util::future::join_all(puts).await;
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 4);
        assert_eq!(count(&store).await, 4);
    }

    #[tokio::test]
    async fn a_full_store_refuses_and_keeps_what_it_had() {
        let (_dir, store) = store(&StoreOptions { max_pages: Some(64) });
        put(&store, "k1", "small".into()).await.unwrap();
        assert_eq!(put(&store, "k2", "x".repeat(1 << 20)).await, Err(StoreError::Full));
        assert_eq!(count(&store).await, 1);
        put(&store, "k3", "small".into()).await.unwrap();
        assert_eq!(count(&store).await, 2);
    }

    #[tokio::test]
    async fn a_full_transaction_in_a_group_does_not_spoil_the_group() {
        let (_dir, store) = store(&StoreOptions { max_pages: Some(64) });
        let puts: Vec<_> = (0..20)
            .map(|i| {
                let (store, value) = (store.clone(), if i % 5 == 0 { "x".repeat(1 << 20) } else { "small".into() });
                async move { put(&store, &format!("k{i}"), value).await }
            })
            .collect();
        let results = futures_util::future::join_all(puts).await;
        assert_eq!(results.iter().filter(|r| **r == Err(StoreError::Full)).count(), 4);
        assert_eq!(count(&store).await, 16);
    }

    #[tokio::test]
    async fn a_store_that_others_could_read_is_the_owners_alone_again_and_what_is_deleted_is_gone() {
        let (dir, store) = store(&StoreOptions::default());
        put(&store, "k1", "the key of a root".into()).await.unwrap();
        let names = ["equerry.db", "equerry.db-wal", "equerry.db-shm"].map(|name| dir.path().join(name));
        for name in &names {
            fs::set_permissions(name, Permissions::from_mode(0o644)).unwrap();
        }
        let again = Store::open(&names[0], &StoreOptions::default()).unwrap();
        for name in &names {
            assert_eq!(fs::metadata(name).unwrap().permissions().mode() & 0o777, 0o600, "{}", name.display());
        }
        let done = again.transact::<_, StoreError, _>(|db| {
            db.execute("DELETE FROM meta WHERE key = 'k1'", ())?;
            Ok(())
        });
        done.await.unwrap();
        drop((store, again));
        let connection = Connection::open(&names[0]).unwrap();
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(())).unwrap();
        let left = fs::read(&names[0]).unwrap();
        let needle = b"the key of a root";
        assert!(!left.windows(needle.len()).any(|window| window == needle), "it is still in the file");
    }

    #[test]
    fn a_file_of_a_newer_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("equerry.db");
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        let error = Store::open(&path, &StoreOptions::default()).unwrap_err();
        assert!(matches!(error, StoreError::TooNew { found: 99, .. }), "{error}");
    }

    #[test]
    fn a_file_that_is_no_database_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("equerry.db");
        fs::write(&path, "this is not a database, but long enough to be taken for one at first sight".repeat(20))
            .unwrap();
        let error = Store::open(&path, &StoreOptions::default()).unwrap_err();
        assert!(matches!(error, StoreError::Unusable { .. }), "{error}");
    }

    #[test]
    fn a_location_names_its_kind() {
        assert_eq!(parse_location("sqlite:/a/b.db"), Ok(PathBuf::from("/a/b.db")));
        assert_eq!(parse_location("b.db"), Ok(PathBuf::from("b.db")));
        assert!(parse_location("postgres://x").unwrap_err().contains("not supported by this version"));
        assert!(parse_location("mysql:x").is_err());
    }
}
