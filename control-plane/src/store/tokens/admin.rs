//! Admin tokens: who bears each, and what it is good for. They are held in memory, because each request asks.

use std::time::SystemTime;

use equerry_certs::join::{AdminToken, SecretHash};

use super::super::{Store, StoreError, all, audit, unix_ms};
use super::{TokenError, from_ms};
use crate::access::{Actor, Limits, Role};
use crate::audit::{By, Note};

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
        .transact(|db| {
            let query = "SELECT id, token_sha256, name, created, role, limits FROM admin_tokens ORDER BY created, id";
            all(db, query, |row| row.try_into())
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use equerry_policies::names::Namespace;

    use super::*;
    use crate::store::StoreOptions;

    #[tokio::test]
    async fn an_admin_token_is_known_by_its_hash() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("equerry.db"), &StoreOptions::default()).unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let by = || By::name("test");
        let limits = Limits { namespaces: vec![Namespace::parse("shop").unwrap()], tenants: Vec::new() };
        let (made, token) = create_admin(&store, "first start", Role::Operator, limits, by(), now).await.unwrap();
        let kept = admins(&store).await.unwrap();
        assert_eq!(kept[0].actor, made.actor);
        assert!(kept[0].hash.matches(&SecretHash::of(&token)));
        assert!(!kept[0].hash.matches(&SecretHash::of(&token[1..])));
        assert!(revoke_admin(&store, &made.actor.id, by(), now).await.unwrap());
        assert!(!revoke_admin(&store, &made.actor.id, by(), now).await.unwrap());
        assert!(admins(&store).await.unwrap().is_empty());
    }
}
