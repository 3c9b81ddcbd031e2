//! Tokens that let workloads, people and programs in.

use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use equerry_certs::AdminToken;
use equerry_policies::names::AccountName;

use super::ControlPlane;
use crate::store::StoreError;
use crate::store::tokens::{self, JoinTokenStatus, TokenError};

impl ControlPlane {
    /// Makes a token with which one workload may join once, as this account. The text is shown once and not kept.
    ///
    /// # Errors
    /// When randomness or the store fails.
    pub async fn create_join_token(&self, account: AccountName, ttl: Duration) -> Result<String, TokenError> {
        tokens::create_join(&self.0.store, self.0.authority.pin(), &account, ttl, SystemTime::now()).await
    }

    /// Every join token that is kept, without its secret.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn join_tokens(&self) -> Result<Vec<JoinTokenStatus>, StoreError> {
        tokens::list_join(&self.0.store, SystemTime::now()).await
    }

    /// Makes a token for a person or program that operates the mesh. The text is shown once and not kept.
    ///
    /// # Errors
    /// When randomness or the store fails.
    pub async fn create_admin_token(&self, name: &str) -> Result<String, TokenError> {
        let text = tokens::create_admin(&self.0.store, name, SystemTime::now()).await?;
        if let Ok(token) = AdminToken::parse(&text) {
            self.0.admins.write().unwrap_or_else(PoisonError::into_inner).push(token.secret_hash());
        }
        Ok(text)
    }

    /// Whether this is an admin token. Touches no disk, and takes as long for a wrong token as for a right one.
    pub fn check_admin_token(&self, text: &str) -> bool {
        let Ok(token) = AdminToken::parse(text) else { return false };
        let hash = token.secret_hash();
        let known = self.0.admins.read().unwrap_or_else(PoisonError::into_inner);
        known.iter().fold(false, |found, known| found | known.matches(&hash))
    }
}
