//! Whom the mesh believes, as it changes: a root that comes in, identities that were revoked, and the certificates that are
//! about.
//!
//! Each change of trust makes a new generation, in the transaction that writes it down in the audit log. A second root's keys
//! are here for as long as a rotation takes: phase and keys are then never of two minds.

use std::time::{Duration, SystemTime};

use equerry_policies::names::SpiffeId;
use rusqlite::{Connection, OptionalExtension as _, Row};

use super::{Store, StoreError, all, audit, unix_ms};
use crate::audit::Note;

/// Tables of this file. Times are milliseconds since 1970.
pub(super) const SCHEMA: &str = "
CREATE TABLE trust (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    generation INTEGER NOT NULL
) STRICT;
CREATE TABLE rotation (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    phase TEXT NOT NULL,          -- trusting | issuing | dropping
    began INTEGER NOT NULL,
    root TEXT NOT NULL,
    root_key TEXT,                -- NULL: the root is somebody else's
    issuing TEXT NOT NULL,
    cross_certificate TEXT,       -- the issuing key as the old root certified it
    issuing_key TEXT NOT NULL
) STRICT;
CREATE TABLE revocations (
    spiffe_id TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    by_name TEXT NOT NULL,
    at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE leaves (
    serial TEXT PRIMARY KEY,      -- hexadecimal
    spiffe_id TEXT NOT NULL,
    root TEXT NOT NULL,           -- pin of the root it leads to
    until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// What was added when roots that were moved on from were remembered.
pub(super) const PAST_SCHEMA: &str = "
CREATE TABLE past_roots (
    pin TEXT PRIMARY KEY,
    at INTEGER NOT NULL           -- when it was believed no more
) STRICT, WITHOUT ROWID;
";

/// How far a rotation is, as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptPhase {
    /// Both roots are believed, the old one signs.
    Trusting,
    /// Both roots are believed, the new one signs.
    Issuing,
    /// Only the new one is believed; the files of the old one are being replaced.
    Dropping,
}

/// A rotation as it is kept.
#[derive(Clone)]
pub struct KeptRotation {
    /// How far it is.
    pub phase: KeptPhase,
    /// When it began.
    pub began: SystemTime,
    /// The root that comes in.
    pub next: equerry_certs::AuthorityPem,
}

/// An identity that is believed no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// Which.
    pub id: SpiffeId,
    /// Why, as it was said.
    pub reason: String,
    /// Who did it.
    pub by: String,
    /// When.
    pub at: SystemTime,
}

/// A certificate that is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafRow {
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// Whose it is.
    pub id: SpiffeId,
    /// Pin of the root it leads to.
    pub root: String,
    /// Until when it holds.
    pub until: SystemTime,
}

/// Everything that is kept about trust.
#[derive(Default)]
pub struct Kept {
    /// Grows with every change.
    pub generation: u64,
    /// The rotation under way.
    pub rotation: Option<KeptRotation>,
    /// Identities believed no more.
    pub revocations: Vec<Revocation>,
    /// Certificates that may still be shown by somebody.
    pub leaves: Vec<LeafRow>,
    /// Pins of the roots that this mesh has moved on from.
    pub past_roots: Vec<String>,
}

impl KeptPhase {
    fn as_str(self) -> &'static str {
        match self {
            Self::Trusting => "trusting",
            Self::Issuing => "issuing",
            Self::Dropping => "dropping",
        }
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        [Self::Trusting, Self::Issuing, Self::Dropping].into_iter().find(|phase| phase.as_str() == text).ok_or_else(
            || StoreError::Sqlite(format!("a rotation in phase {text:?}, which this version does not know")),
        )
    }
}

/// Reads all of it.
///
/// # Errors
/// When the store failed, or holds what this version cannot read.
pub async fn read(store: &Store) -> Result<Kept, StoreError> {
    store
        .transact(|db| {
            Ok(Kept {
                generation: generation_in(db)?,
                rotation: rotation_in(db)?,
                revocations: all(db, "SELECT spiffe_id, reason, by_name, at FROM revocations", |row| {
                    let (id, reason, by) = (identity(row, 0)?, row.get(1)?, row.get(2)?);
                    Ok(Revocation { id, reason, by, at: from_ms(row.get(3)?) })
                })?,
                leaves: all(db, "SELECT serial, spiffe_id, root, until FROM leaves", |row| {
                    let (serial, id, root) = (row.get(0)?, identity(row, 1)?, row.get(2)?);
                    Ok(LeafRow { serial, id, root, until: from_ms(row.get(3)?) })
                })?,
                past_roots: all(db, "SELECT pin FROM past_roots", |row| row.get(0))?,
            })
        })
        .await
}

/// Puts a rotation in the place of what was kept, or takes it away. Returns the new generation of trust.
///
/// # Errors
/// When the store is full or failed.
pub async fn put_rotation(
    store: &Store,
    rotation: Option<KeptRotation>,
    note: Option<Note>,
    at: SystemTime,
) -> Result<u64, StoreError> {
    store
        .transact(move |db| {
            put(db, rotation.as_ref())?;
            changed(db, note.as_ref(), at)
        })
        .await
}

/// Puts the last phase of a rotation in the place of what was kept: the mesh moves on from the root of that pin. Returns the new
/// generation of trust.
///
/// # Errors
/// When the store is full or failed.
pub async fn move_on(
    store: &Store,
    rotation: Option<KeptRotation>,
    from: String,
    note: Note,
    at: SystemTime,
) -> Result<u64, StoreError> {
    store
        .transact(move |db| {
            put(db, rotation.as_ref())?;
            db.execute(
                "INSERT INTO past_roots (pin, at) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                (&from, unix_ms(at)),
            )?;
            changed(db, Some(&note), at)
        })
        .await
}

fn put(db: &Connection, rotation: Option<&KeptRotation>) -> Result<(), StoreError> {
    db.execute("DELETE FROM rotation", ())?;
    let Some(KeptRotation { phase, began, next }) = rotation else { return Ok(()) };
    db.execute(
        "INSERT INTO rotation (one, phase, began, root, root_key, issuing, cross_certificate, issuing_key)
         VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        (
            phase.as_str(),
            unix_ms(*began),
            &next.root,
            next.root_key.as_ref().map(|key| key.as_str()),
            &next.issuing,
            &next.cross,
            next.issuing_key.as_str(),
        ),
    )?;
    Ok(())
}

/// Revokes an identity. Returns the new generation of trust; `None`: it was revoked already.
///
/// # Errors
/// When the store is full or failed.
pub async fn revoke(store: &Store, revocation: Revocation, note: Note) -> Result<Option<u64>, StoreError> {
    store
        .transact(move |db| {
            let Revocation { id, reason, by, at } = &revocation;
            let added = db.execute(
                "INSERT INTO revocations (spiffe_id, reason, by_name, at) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
                (id.to_string(), reason, by, unix_ms(*at)),
            )?;
            if added == 0 { Ok(None) } else { changed(db, Some(&note), *at).map(Some) }
        })
        .await
}

/// Takes a revocation back. Returns the new generation of trust; `None`: there was none.
///
/// # Errors
/// When the store is full or failed.
pub async fn restore(store: &Store, id: &SpiffeId, note: Note, at: SystemTime) -> Result<Option<u64>, StoreError> {
    let id = id.to_string();
    store
        .transact(move |db| {
            let removed = db.execute("DELETE FROM revocations WHERE spiffe_id = ?1", (&id,))?;
            if removed == 0 { Ok(None) } else { changed(db, Some(&note), at).map(Some) }
        })
        .await
}

/// Writes down certificates that were issued, takes away those that nobody shows any more, and those that ran out.
///
/// # Errors
/// When the store is full or failed.
pub async fn put_leaves(
    store: &Store,
    issued: Vec<LeafRow>,
    gone: Vec<String>,
    now: SystemTime,
) -> Result<(), StoreError> {
    store
        .transact(move |db| {
            let mut put = db.prepare_cached(
                "INSERT INTO leaves (serial, spiffe_id, root, until) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
            )?;
            for LeafRow { serial, id, root, until } in &issued {
                put.execute((serial, id.to_string(), root, unix_ms(*until)))?;
            }
            let mut take = db.prepare_cached("DELETE FROM leaves WHERE serial = ?1")?;
            for serial in &gone {
                take.execute((serial,))?;
            }
            db.execute("DELETE FROM leaves WHERE until < ?1", (unix_ms(now),))?;
            Ok(())
        })
        .await
}

fn changed(db: &Connection, note: Option<&Note>, at: SystemTime) -> Result<u64, StoreError> {
    let generation = generation_in(db)? + 1;
    db.execute(
        "INSERT INTO trust (one, generation) VALUES (1, ?1) ON CONFLICT DO UPDATE SET generation = excluded.generation",
        (generation,),
    )?;
    if let Some(note) = note {
        audit::append(db, note, at)?;
    }
    Ok(generation)
}

/// 1 before the first change: proxies report 0 when nobody told them.
fn generation_in(db: &Connection) -> Result<u64, StoreError> {
    let kept: Option<u64> = db.query_row("SELECT generation FROM trust", (), |row| row.get(0)).optional()?;
    Ok(kept.unwrap_or(1))
}

fn rotation_in(db: &Connection) -> Result<Option<KeptRotation>, StoreError> {
    type Columns = (String, u64, String, Option<String>, String, Option<String>, String);
    let columns: Option<Columns> = db
        .query_row(
            "SELECT phase, began, root, root_key, issuing, cross_certificate, issuing_key FROM rotation",
            (),
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?)),
        )
        .optional()?;
    let Some((phase, began, root, root_key, issuing, cross, issuing_key)) = columns else { return Ok(None) };
    let root_key = root_key.map(equerry_certs::Zeroizing::new);
    let next = equerry_certs::AuthorityPem { root, root_key, issuing, cross, issuing_key: issuing_key.into() };
    Ok(Some(KeptRotation { phase: KeptPhase::parse(&phase)?, began: from_ms(began), next }))
}

fn identity(row: &Row<'_>, column: usize) -> rusqlite::Result<SpiffeId> {
    let text: String = row.get(column)?;
    SpiffeId::parse(&text).map_err(|bad| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, bad.to_string().into())
    })
}

fn from_ms(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}

#[cfg(test)]
mod tests {
    use equerry_certs::{Authority, Zeroizing};
    use equerry_policies::names::TrustDomain;

    use super::super::StoreOptions;
    use super::*;
    use crate::audit::By;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn id(account: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://equerry.local/ns/shop/sa/{account}")).unwrap()
    }

    fn note(action: &'static str) -> Note {
        Note::done(By::name("test"), action, Vec::new())
    }

    #[tokio::test]
    async fn every_change_of_trust_is_a_generation_and_an_entry_of_the_log_and_outlives_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("equerry.db");
        let store = Store::open(&path, &StoreOptions::default()).unwrap();
        assert_eq!(read(&store).await.unwrap().generation, 1);
        let next = Authority::create(TrustDomain::parse("equerry.local").unwrap(), now()).unwrap().to_pem();
        let rotation = KeptRotation { phase: KeptPhase::Trusting, began: now(), next };
        let started = put_rotation(&store, Some(rotation.clone()), Some(note("trust.rotate")), now()).await.unwrap();
        let revocation = Revocation { id: id("web"), reason: "stolen".into(), by: "ada".into(), at: now() };
        let revoked = revoke(&store, revocation.clone(), note("identity.revoke")).await.unwrap();
        assert_eq!((started, revoked), (2, Some(3)));
        let again = revoke(&store, Revocation { reason: "x".into(), ..revocation.clone() }, note("identity.revoke"));
        assert_eq!(again.await.unwrap(), None, "the first reason stays");
        let store = Store::open(&path, &StoreOptions::default()).unwrap();
        let kept = read(&store).await.unwrap();
        assert_eq!((kept.generation, kept.revocations), (3, vec![revocation]));
        let found = kept.rotation.unwrap();
        assert_eq!((found.phase, found.began, &found.next.root), (KeptPhase::Trusting, now(), &rotation.next.root));
        assert_eq!(
            found.next.root_key.as_ref().map(|key| key.as_str()),
            rotation.next.root_key.as_ref().map(|k| k.as_str())
        );
        assert_eq!(restore(&store, &id("web"), note("identity.restore"), now()).await.unwrap(), Some(4));
        assert_eq!(restore(&store, &id("web"), note("identity.restore"), now()).await.unwrap(), None);
        assert_eq!(put_rotation(&store, None, None, now()).await.unwrap(), 5);
        assert_eq!(audit::head(&store).await.unwrap().seq, 3, "one entry for each that changed something");
        assert!(read(&store).await.unwrap().rotation.is_none());
    }

    #[tokio::test]
    async fn a_rotation_to_a_root_that_was_brought_keeps_no_key_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("equerry.db"), &StoreOptions::default()).unwrap();
        let mut next = Authority::create(TrustDomain::parse("equerry.local").unwrap(), now()).unwrap().to_pem();
        next.root_key = None;
        next.issuing_key = Zeroizing::new("key".into());
        let rotation = KeptRotation { phase: KeptPhase::Issuing, began: now(), next };
        put_rotation(&store, Some(rotation), None, now()).await.unwrap();
        let found = read(&store).await.unwrap().rotation.unwrap();
        assert!(found.next.root_key.is_none() && found.phase == KeptPhase::Issuing);
    }

    #[tokio::test]
    async fn certificates_are_remembered_until_they_are_replaced_or_run_out() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("equerry.db"), &StoreOptions::default()).unwrap();
        let leaf = |serial: &str, seconds| LeafRow {
            serial: serial.into(),
            id: id("web"),
            root: "ab".into(),
            until: now() + Duration::from_secs(seconds),
        };
        put_leaves(&store, vec![leaf("1", 10), leaf("2", 100), leaf("3", 100)], Vec::new(), now()).await.unwrap();
        let later = now() + Duration::from_secs(11);
        put_leaves(&store, Vec::new(), vec!["2".into()], later).await.unwrap();
        assert_eq!(read(&store).await.unwrap().leaves, [leaf("3", 100)]);
    }
}
