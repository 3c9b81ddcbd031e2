//! Tokens that let a workload or a person in: only the hash of each secret is kept.
//!
//! A join token is spent in the same transaction that finds it unspent, so of two callers that show it at once one is
//! refused. Whoever spent it may show it again with the same key while it lasts: an answer can be lost on its way. Unknown, used
//! and expired are told apart, but only to a caller who knows the secret.

use std::time::{Duration, SystemTime};

use equerry_certs::join::{AdminToken, BadToken, JoinToken, SecretHash};
use equerry_certs::{KeyFault, Pin, rfc3339};
use equerry_policies::names::{AccountName, SYSTEM_NAMESPACE};
use rusqlite::{Connection, OptionalExtension as _};
use serde::Serialize;

use super::{Store, StoreError, audit, unix_ms};
use crate::access::{Actor, Limits, Role};
use crate::audit::{By, Note};

/// Tables of this file. Times are milliseconds since 1970.
pub const TOKENS_SCHEMA: &str = "
CREATE TABLE join_tokens (
    id TEXT PRIMARY KEY,
    secret_sha256 BLOB NOT NULL,
    account TEXT NOT NULL,        -- namespace/account
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    used INTEGER                  -- when; NULL: not yet
) STRICT, WITHOUT ROWID;
CREATE TABLE admin_tokens (
    id TEXT PRIMARY KEY,
    token_sha256 BLOB NOT NULL,
    name TEXT NOT NULL,
    created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// What was added when admin tokens got roles, and tokens could be revoked. A token from before may do everything, as it
/// could then.
pub const ROLES_SCHEMA: &str = "
ALTER TABLE admin_tokens ADD COLUMN role TEXT NOT NULL DEFAULT 'admin';
ALTER TABLE admin_tokens ADD COLUMN limits TEXT NOT NULL DEFAULT '{}';   -- JSON of access::Limits
ALTER TABLE join_tokens ADD COLUMN revoked INTEGER;                      -- when; NULL: never
";

/// What was added when a token that was used could be shown again by whoever used it.
pub const KEYS_SCHEMA: &str = "
ALTER TABLE join_tokens ADD COLUMN used_for TEXT;    -- pin of the key that was certified; NULL: not used, or by an older version
";

/// The longest a join token may wait to be used.
pub const MAX_JOIN_TTL: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The control plane's account in its namespace, as `control_plane_id` names it.
const CONTROL_PLANE: &str = "control-plane";
/// A join token that can no longer be used is forgotten after this, so that until then its refusal can say why.
const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Why a token could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There were no random bytes.
    #[error(transparent)]
    Key(#[from] KeyFault),
    /// Nobody may join as the control plane.
    #[error("{account} is the control plane itself, no workload may join as it: choose another account")]
    Reserved {
        /// Who was asked for.
        account: AccountName,
    },
    /// The life asked for is zero or too long.
    #[error("found a life of {} s, expected 1 s to {} s (7 days)", .asked.as_secs(), MAX_JOIN_TTL.as_secs())]
    BadTtl {
        /// What was asked for.
        asked: Duration,
    },
}

impl From<rusqlite::Error> for TokenError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

/// A join token as lists show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinTokenStatus {
    /// Its public id.
    pub id: String,
    /// Who joins with it.
    pub account: AccountName,
    /// When it was made.
    #[serde(serialize_with = "as_rfc3339")]
    pub created: SystemTime,
    /// Until when it may be used.
    #[serde(serialize_with = "as_rfc3339")]
    pub expires: SystemTime,
    /// Whether it still lets somebody in.
    pub state: JoinTokenState,
}

/// Whether a join token still lets somebody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JoinTokenState {
    /// It does.
    Unused,
    /// It has let somebody in.
    Used,
    /// Nobody came in time.
    Expired,
    /// Somebody took it back first.
    Revoked,
}

/// Why a join token does not let its bearer in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefusal {
    /// Not of the form of a token.
    #[error(transparent)]
    Malformed(#[from] BadToken),
    /// Never made here, or its secret is another.
    #[error("join token {id} is not known here: make a new one with `equerry token create join`")]
    Unknown {
        /// Its id.
        id: String,
    },
    /// Somebody has joined with it.
    #[error(
        "join token {id} was used at {}; a token lets one workload in, once: make a new one with `equerry token create join --namespace {} --account {}`, \
         and if nobody of yours used it, look for a stranger with `equerry status`",
        rfc3339(*.at), .account.namespace, .account.name
    )]
    Used {
        /// Its id.
        id: String,
        /// Who joins with it.
        account: AccountName,
        /// When.
        at: SystemTime,
    },
    /// Somebody took it back.
    #[error("join token {id} was revoked: make a new one with `equerry token create join --namespace {} --account {}`",
        .account.namespace, .account.name)]
    Revoked {
        /// Its id.
        id: String,
        /// Who was to join with it.
        account: AccountName,
    },
    /// Nobody came in time.
    #[error("join token {id} expired at {}: make a new one with `equerry token create join --namespace {} --account {}`",
        rfc3339(*.at), .account.namespace, .account.name)]
    Expired {
        /// Its id.
        id: String,
        /// Who joins with it.
        account: AccountName,
        /// When.
        at: SystemTime,
    },
    /// The store could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for JoinRefusal {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Makes a join token for an account: the whole text, to be shown once.
///
/// # Errors
/// When its life is out of bounds, or the store is full or failed.
pub async fn create_join(
    store: &Store,
    pin: &Pin,
    account: &AccountName,
    ttl: Duration,
    by: By,
    now: SystemTime,
) -> Result<String, TokenError> {
    if ttl < Duration::from_secs(1) || ttl > MAX_JOIN_TTL {
        return Err(TokenError::BadTtl { asked: ttl });
    }
    if is_control_plane(account) {
        return Err(TokenError::Reserved { account: account.clone() });
    }
    let token = JoinToken::create(pin.clone())?;
    let (id, hash, account) = (token.id().to_owned(), token.secret_hash(), account.to_string());
    let (created, expires) = (unix_ms(now), unix_ms(now + ttl));
    let note = Note::done(by, "token.create", vec![format!("join token {id} for {account}")]);
    store
        .transact(move |db| -> Result<(), TokenError> {
            db.execute("DELETE FROM join_tokens WHERE expires < ?1", (unix_ms(now - REMEMBERED),))?;
            db.prepare_cached(
                "INSERT INTO join_tokens (id, secret_sha256, account, created, expires) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute((&id, hash.as_bytes(), &account, created, expires))?;
            Ok(audit::append(db, &note, now)?)
        })
        .await?;
    Ok(token.reveal().to_string())
}

/// Every join token that is remembered, the newest first.
///
/// # Errors
/// When the store failed.
pub async fn list_join(store: &Store, now: SystemTime) -> Result<Vec<JoinTokenStatus>, StoreError> {
    type Row = (String, String, u64, u64, Option<u64>, Option<u64>);
    let rows: Vec<Row> = store
        .transact(|db| -> Result<_, StoreError> {
            let mut read = db.prepare_cached(
                "SELECT id, account, created, expires, used, revoked FROM join_tokens ORDER BY created DESC, id",
            )?;
            let rows = read.query_map((), |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await?;
    rows.into_iter()
        .map(|(id, account, created, expires, used, revoked)| {
            let state = match (used, revoked) {
                (Some(_), _) => JoinTokenState::Used,
                (None, Some(_)) => JoinTokenState::Revoked,
                _ if from_ms(expires) < now => JoinTokenState::Expired,
                _ => JoinTokenState::Unused,
            };
            Ok(JoinTokenStatus {
                id,
                account: kept_account(&account)?,
                created: from_ms(created),
                expires: from_ms(expires),
                state,
            })
        })
        .collect()
}

/// Who may join with a credential (`ID.SECRET`), without using the token up. One that was used is good for whoever holds the
/// key that it was used with, which [`spend_join`] finds out.
///
/// # Errors
/// A [`JoinRefusal`].
pub async fn look_at_join(store: &Store, credential: &str, now: SystemTime) -> Result<AccountName, JoinRefusal> {
    let (id, hash) = JoinToken::read_credential(credential)?;
    store.transact(move |db| find(db, &id, &hash, None, now).map(|(account, _)| account)).await
}

/// Uses a token up: exactly one key gets in by it, as often as it asks while the token lasts.
///
/// # Errors
/// A [`JoinRefusal`].
pub async fn spend_join(
    store: &Store,
    credential: &str,
    key: &Pin,
    now: SystemTime,
) -> Result<AccountName, JoinRefusal> {
    let (id, hash) = JoinToken::read_credential(credential)?;
    let key = key.to_string();
    store
        .transact(move |db| {
            let (account, is_used) = find(db, &id, &hash, Some(&key), now)?;
            if is_used {
                return Ok(account);
            }
            db.prepare_cached("UPDATE join_tokens SET used = ?2, used_for = ?3 WHERE id = ?1")?.execute((
                &id,
                unix_ms(now),
                &key,
            ))?;
            let about = vec![format!("first certificate of {account}, by join token {id}")];
            audit::append(db, &Note::done(By::name(account.to_string()), "identity.join", about), now)?;
            Ok(account)
        })
        .await
}

/// Takes a join token back. `None`: there is none; `false`: it lets nobody in any more anyway.
///
/// # Errors
/// When the store is full or failed.
pub async fn revoke_join(store: &Store, id: &str, by: By, now: SystemTime) -> Result<Option<bool>, StoreError> {
    let id = id.to_owned();
    let note = Note::done(by, "token.revoke", vec![format!("join token {id}")]);
    store
        .transact(move |db| -> Result<_, StoreError> {
            let known: Option<bool> = db
                .prepare_cached("SELECT used IS NULL AND revoked IS NULL FROM join_tokens WHERE id = ?1")?
                .query_row((&id,), |row| row.get(0))
                .optional()?;
            if known == Some(true) {
                db.execute("UPDATE join_tokens SET revoked = ?2 WHERE id = ?1", (&id, unix_ms(now)))?;
                audit::append(db, &note, now)?;
            }
            Ok(known)
        })
        .await
}

/// An admin token as it is kept.
#[derive(Debug, Clone)]
pub struct AdminRow {
    /// Who bears it, and what it is good for.
    pub actor: Actor,
    /// The hash of the whole token.
    pub hash: SecretHash,
    /// When it was made.
    pub created: SystemTime,
}

/// Makes an admin token: what is kept, and the whole text, to be shown once.
///
/// # Errors
/// When the store is full or failed.
pub async fn create_admin(
    store: &Store,
    name: &str,
    role: Role,
    limits: Limits,
    by: By,
    now: SystemTime,
) -> Result<(AdminRow, String), TokenError> {
    let token = AdminToken::create()?;
    let actor = Actor { id: token.id().to_owned(), name: name.to_owned(), role, limits };
    let row = AdminRow { actor, hash: token.secret_hash(), created: now };
    let note = Note::done(by, "token.create", vec![format!("admin token {} of {name}, role {role}", row.actor.id)]);
    let (kept, limits) = (row.clone(), serde_json::to_string(&row.actor.limits).unwrap_or_default());
    store
        .transact(move |db| -> Result<(), TokenError> {
            let AdminRow { actor, hash, created } = &kept;
            db.prepare_cached(
                "INSERT INTO admin_tokens (id, token_sha256, name, created, role, limits) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute((&actor.id, hash.as_bytes(), &actor.name, unix_ms(*created), actor.role.to_string(), &limits))?;
            Ok(audit::append(db, &note, now)?)
        })
        .await?;
    Ok((row, token.reveal().to_string()))
}

/// Every admin token, to be held in memory. One whose role or limits this version cannot read lets nobody in.
///
/// # Errors
/// When the store failed.
pub async fn admins(store: &Store) -> Result<Vec<AdminRow>, StoreError> {
    type Row = (String, Vec<u8>, String, u64, String, String);
    let rows: Vec<Row> = store
        .transact(|db| -> Result<_, StoreError> {
            let mut read = db.prepare_cached(
                "SELECT id, token_sha256, name, created, role, limits FROM admin_tokens ORDER BY created, id",
            )?;
            let rows = read.query_map((), |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await?;
    let read = |(id, hash, name, created, role, limits): Row| {
        let (role, limits) = (role.parse().ok()?, serde_json::from_str(&limits).ok()?);
        let actor = Actor { id, name, role, limits };
        Some(AdminRow { actor, hash: SecretHash::from_kept(&hash)?, created: from_ms(created) })
    };
    Ok(rows.into_iter().filter_map(read).collect())
}

/// Forgets an admin token. Returns whether it was there.
///
/// # Errors
/// When the store failed.
pub async fn revoke_admin(store: &Store, id: &str, by: By, now: SystemTime) -> Result<bool, StoreError> {
    let id = id.to_owned();
    let note = Note::done(by, "token.revoke", vec![format!("admin token {id}")]);
    store
        .transact(move |db| -> Result<_, StoreError> {
            let there = db.execute("DELETE FROM admin_tokens WHERE id = ?1", (&id,))? > 0;
            if there {
                audit::append(db, &note, now)?;
            }
            Ok(there)
        })
        .await
}

/// Whether this account is the one that proxies believe to be the control plane.
pub(crate) fn is_control_plane(account: &AccountName) -> bool {
    account.namespace.as_str() == SYSTEM_NAMESPACE && account.name.as_str() == CONTROL_PLANE
}

/// Whom a token lets in that is unused, or was used with this `key` (`None`: with any that is known), and whether it was used.
fn find(
    db: &Connection,
    id: &str,
    hash: &SecretHash,
    key: Option<&str>,
    now: SystemTime,
) -> Result<(AccountName, bool), JoinRefusal> {
    type Row = (Vec<u8>, String, u64, Option<u64>, Option<u64>, Option<String>);
    let row: Option<Row> = db
        .prepare_cached(
            "SELECT secret_sha256, account, expires, used, revoked, used_for FROM join_tokens WHERE id = ?1",
        )?
        .query_row((id,), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?)))
        .optional()?;
    let unknown = || JoinRefusal::Unknown { id: id.to_owned() };
    let (kept, account, expires, used, revoked, used_for) = row.ok_or_else(unknown)?;
    if !SecretHash::from_kept(&kept).is_some_and(|kept| kept.matches(hash)) {
        return Err(unknown());
    }
    let account = kept_account(&account)?;
    if let Some(at) = used {
        let is_theirs = used_for.is_some_and(|used_for| key.is_none_or(|key| *key == used_for));
        if is_theirs && from_ms(expires) >= now {
            return Ok((account, true));
        }
        return Err(JoinRefusal::Used { id: id.to_owned(), account, at: from_ms(at) });
    }
    if revoked.is_some() {
        return Err(JoinRefusal::Revoked { id: id.to_owned(), account });
    }
    if from_ms(expires) < now {
        return Err(JoinRefusal::Expired { id: id.to_owned(), account, at: from_ms(expires) });
    }
    Ok((account, false))
}

fn kept_account(text: &str) -> Result<AccountName, StoreError> {
    AccountName::parse(text)
        .map_err(|error| StoreError::Sqlite(format!("a join token's account cannot be read: {error}")))
}

fn from_ms(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}

fn as_rfc3339<S: serde::Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&rfc3339(*time))
}

#[cfg(test)]
mod tests {
    use equerry_policies::names::{Namespace, TrustDomain, control_plane_id};

    use super::super::StoreOptions;
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;
    const TTL: Duration = Duration::from_secs(600);

    fn now() -> SystemTime {
        NOW + Duration::from_secs(1_800_000_000)
    }

    fn by() -> By {
        By::name("test")
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("equerry.db"), &StoreOptions::default()).unwrap();
        (dir, store)
    }

    /// A key whose pin is this byte over and over.
    fn key(byte: &str) -> Pin {
        Pin::parse(&byte.repeat(32)).unwrap()
    }

    async fn token(store: &Store) -> JoinToken {
        let pin = Pin::parse(&"0f".repeat(32)).unwrap();
        let account = AccountName::parse("shop/orders").unwrap();
        JoinToken::parse(&create_join(store, &pin, &account, TTL, by(), now()).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_join_token_lets_its_account_in_once() {
        let (_dir, store) = store();
        let token = token(&store).await;
        assert_eq!(look_at_join(&store, &token.credential(), now()).await.unwrap().to_string(), "shop/orders");
        let key = key("aa");
        assert_eq!(spend_join(&store, &token.credential(), &key, now()).await.unwrap().to_string(), "shop/orders");
        let again = spend_join(&store, &token.credential(), &key, now() + TTL * 2).await.unwrap_err();
        assert!(matches!(&again, JoinRefusal::Used { at, .. } if *at == now()), "{again}");
        assert!(again.to_string().contains("equerry token create join --namespace shop --account orders"), "{again}");
    }

    #[tokio::test]
    async fn whoever_used_a_token_may_show_it_again_with_the_same_key_while_it_lasts_and_nobody_else_may() {
        let (_dir, store) = store();
        let credential = token(&store).await.credential();
        let (ours, theirs) = (key("aa"), key("bb"));
        spend_join(&store, &credential, &ours, now()).await.unwrap();
        let entries = audit::head(&store).await.unwrap().seq;
        let soon = now() + Duration::from_secs(9);
        assert_eq!(look_at_join(&store, &credential, soon).await.unwrap().to_string(), "shop/orders");
        assert_eq!(spend_join(&store, &credential, &ours, soon).await.unwrap().to_string(), "shop/orders");
        assert_eq!(audit::head(&store).await.unwrap().seq, entries, "it is the same joining");
        let refused = spend_join(&store, &credential, &theirs, soon).await.unwrap_err();
        assert!(matches!(refused, JoinRefusal::Used { at, .. } if at == now()), "{refused}");
        assert!(look_at_join(&store, &credential, now() + TTL * 2).await.is_err(), "not when it would have expired");
        let state = list_join(&store, soon).await.unwrap()[0].state;
        assert_eq!(state, JoinTokenState::Used);
    }

    #[tokio::test]
    async fn of_many_callers_with_one_token_exactly_one_gets_in() {
        let (_dir, store) = store();
        let credential = token(&store).await.credential();
        let results = futures_util::future::join_all((0..50).map(|caller| {
            let (store, credential, key) = (store.clone(), credential.clone(), key(&format!("{caller:02x}")));
            async move { spend_join(&store, &credential, &key, now()).await }
        }))
        .await;
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
        assert_eq!(results.iter().filter(|r| matches!(r, Err(JoinRefusal::Used { .. }))).count(), 49);
    }

    #[tokio::test]
    async fn expired_unknown_and_malformed_tokens_are_told_apart() {
        let (_dir, store) = store();
        let (one, other) = (token(&store).await, token(&store).await);
        assert!(
            spend_join(&store, &one.credential(), &key("aa"), now() + TTL).await.is_ok(),
            "the last moment still counts"
        );
        let late = spend_join(&store, &other.credential(), &key("aa"), now() + TTL + Duration::from_millis(1)).await;
        assert!(matches!(late, Err(JoinRefusal::Expired { .. })), "{late:?}");
        let (id, secret) = (one.id(), other.credential().split_once('.').unwrap().1.to_owned());
        let mixed = spend_join(&store, &format!("{id}.{secret}"), &key("aa"), now()).await;
        assert!(
            matches!(mixed, Err(JoinRefusal::Unknown { .. })),
            "a wrong secret learns nothing of the token: {mixed:?}"
        );
        assert!(matches!(spend_join(&store, "", &key("aa"), now()).await, Err(JoinRefusal::Malformed(_))));
    }

    #[tokio::test]
    async fn the_list_says_what_became_of_each_token_and_never_its_secret() {
        let (_dir, store) = store();
        let (used, waiting) = (token(&store).await, token(&store).await);
        spend_join(&store, &used.credential(), &key("aa"), now()).await.unwrap();
        let list = list_join(&store, now()).await.unwrap();
        let state = |id: &str| list.iter().find(|t| t.id == id).unwrap().state;
        assert_eq!((state(used.id()), state(waiting.id())), (JoinTokenState::Used, JoinTokenState::Unused));
        let shown = serde_json::to_string(&list).unwrap();
        assert!(!shown.contains(waiting.credential().split_once('.').unwrap().1), "{shown}");
        assert!(shown.contains("2027-01-15T08:10:00Z"), "{shown}");
        let later = list_join(&store, now() + TTL * 2).await.unwrap();
        assert!(later.iter().any(|t| t.state == JoinTokenState::Expired));
    }

    #[tokio::test]
    async fn a_life_out_of_bounds_is_refused() {
        let (_dir, store) = store();
        let pin = Pin::parse(&"0f".repeat(32)).unwrap();
        let account = AccountName::parse("shop/orders").unwrap();
        for ttl in [Duration::ZERO, MAX_JOIN_TTL + Duration::from_secs(1)] {
            assert_eq!(
                create_join(&store, &pin, &account, ttl, by(), now()).await,
                Err(TokenError::BadTtl { asked: ttl })
            );
        }
    }

    #[tokio::test]
    async fn nobody_gets_a_token_to_join_as_the_control_plane() {
        let (_dir, store) = store();
        let account = control_plane_id(TrustDomain::parse("equerry.local").unwrap()).account_name();
        let refused = create_join(&store, &Pin::parse(&"0f".repeat(32)).unwrap(), &account, TTL, by(), now()).await;
        assert_eq!(refused, Err(TokenError::Reserved { account }));
    }

    #[tokio::test]
    async fn an_admin_token_is_known_by_its_hash() {
        let (_dir, store) = store();
        let limits = Limits { namespaces: vec![Namespace::parse("shop").unwrap()], tenants: Vec::new() };
        let (made, token) = create_admin(&store, "first start", Role::Operator, limits, by(), now()).await.unwrap();
        let kept = admins(&store).await.unwrap();
        assert_eq!(kept[0].actor, made.actor);
        assert!(kept[0].hash.matches(&SecretHash::of(&token)));
        assert!(!kept[0].hash.matches(&SecretHash::of(&token[1..])));
        assert!(revoke_admin(&store, &made.actor.id, by(), now()).await.unwrap());
        assert!(!revoke_admin(&store, &made.actor.id, by(), now()).await.unwrap());
        assert!(admins(&store).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_revoked_join_token_lets_nobody_in_and_says_so() {
        let (_dir, store) = store();
        let token = token(&store).await;
        assert_eq!(revoke_join(&store, token.id(), by(), now()).await.unwrap(), Some(true));
        assert_eq!(revoke_join(&store, token.id(), by(), now()).await.unwrap(), Some(false), "again: nothing to do");
        assert_eq!(revoke_join(&store, "00000000", by(), now()).await.unwrap(), None);
        let refused = spend_join(&store, &token.credential(), &key("aa"), now()).await.unwrap_err();
        assert!(matches!(&refused, JoinRefusal::Revoked { .. }), "{refused}");
        assert_eq!(list_join(&store, now()).await.unwrap()[0].state, JoinTokenState::Revoked);
    }
}
