//! Join tokens. One is spent in the same transaction that finds it unspent, so of two callers that show it at once one is
//! refused. Whoever spent it may show it again with the same key while it lasts: an answer can be lost on its way. Unknown, used
//! and expired are told apart, but only to a caller who knows the secret.

use std::time::{Duration, SystemTime};

use equerry_certs::join::{BadToken, JoinToken, SecretHash};
use equerry_certs::{Pin, rfc3339};
use equerry_policies::names::AccountName;
use rusqlite::{Connection, OptionalExtension as _};
use serde::Serialize;

use super::super::{Store, StoreError, all, audit, unix_ms};
use super::{TokenError, from_ms, is_control_plane};
use crate::audit::{By, Note};

/// The longest a join token may wait to be used.
pub const MAX_JOIN_TTL: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// A join token that can no longer be used is forgotten after this, so that until then its refusal can say why.
const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

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
        .transact(|db| {
            let query =
                "SELECT id, account, created, expires, used, revoked FROM join_tokens ORDER BY created DESC, id";
            all(db, query, |row| row.try_into())
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

fn as_rfc3339<S: serde::Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&rfc3339(*time))
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
