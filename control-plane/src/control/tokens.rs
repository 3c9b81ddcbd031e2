//! Tokens that let workloads, people and programs in.

use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use equerry_certs::AdminToken;
use equerry_policies::names::AccountName;

use super::ControlPlane;
use crate::access::{Actor, Limits, Role};
use crate::audit::By;
use crate::store::StoreError;
use crate::store::tokens::{self, AdminRow, JoinTokenStatus, TokenError};

impl ControlPlane {
    /// Makes a token with which one workload may join once, as this account. The text is shown once and not kept.
    ///
    /// # Errors
    /// When randomness or the store fails.
    pub async fn create_join_token(&self, account: AccountName, ttl: Duration, by: By) -> Result<String, TokenError> {
        tokens::create_join(&self.0.store, &self.0.authority.pin(), &account, ttl, by, SystemTime::now()).await
    }

    /// Every join token that is kept, without its secret.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn join_tokens(&self) -> Result<Vec<JoinTokenStatus>, StoreError> {
        tokens::list_join(&self.0.store, SystemTime::now()).await
    }

    /// Takes a join token back. `None`: there is none; `false`: it lets nobody in any more anyway.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn revoke_join_token(&self, id: &str, by: By) -> Result<Option<bool>, StoreError> {
        tokens::revoke_join(&self.0.store, id, by, SystemTime::now()).await
    }

    /// Makes a token for a person or program that operates the mesh. The text is shown once and not kept.
    ///
    /// # Errors
    /// When randomness or the store fails.
    pub async fn create_admin_token(
        &self,
        name: &str,
        role: Role,
        limits: Limits,
        by: By,
    ) -> Result<String, TokenError> {
        let (row, text) = tokens::create_admin(&self.0.store, name, role, limits, by, SystemTime::now()).await?;
        self.0.admins.write().unwrap_or_else(PoisonError::into_inner).push(row);
        Ok(text)
    }

    /// Whether a token is still good for what it was good for when its bearer was let in.
    pub(crate) fn knows(&self, actor: &Actor) -> bool {
        self.0.admins.read().unwrap_or_else(PoisonError::into_inner).iter().any(|row| row.actor == *actor)
    }

    /// Every admin token, the oldest first.
    pub fn admin_tokens(&self) -> Vec<AdminRow> {
        self.0.admins.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes an admin token back, at once. Returns whether there was one.
    ///
    /// # Errors
    /// When the store fails; the token is good for nothing until the next start all the same.
    pub async fn revoke_admin_token(&self, id: &str, by: By) -> Result<bool, StoreError> {
        self.0.admins.write().unwrap_or_else(PoisonError::into_inner).retain(|row| row.actor.id != id);
        tokens::revoke_admin(&self.0.store, id, by, SystemTime::now()).await
    }

    /// Who bears an admin token. Touches no disk, and takes as long for a wrong token as for a right one.
    pub fn bearer(&self, text: &str) -> Option<Actor> {
        let hash = AdminToken::parse(text).ok()?.secret_hash();
        let known = self.0.admins.read().unwrap_or_else(PoisonError::into_inner);
        known.iter().fold(None, |found, row| if row.hash.matches(&hash) { Some(row.actor.clone()) } else { found })
    }
}
