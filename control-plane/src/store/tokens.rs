//! Tokens that let a workload (`join`) or a person (`admin`) in: only the hash of each secret is kept.

mod admin;
mod join;

use std::time::{Duration, SystemTime};

use equerry_certs::KeyFault;
use equerry_policies::names::{AccountName, SYSTEM_NAMESPACE};

use super::StoreError;

pub use admin::{AdminRow, admins, create_admin, revoke_admin};
pub use join::{
    JoinRefusal, JoinTokenState, JoinTokenStatus, MAX_JOIN_TTL, create_join, list_join, look_at_join, revoke_join,
    spend_join,
};

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

/// The control plane's account in its namespace, as `control_plane_id` names it.
const CONTROL_PLANE: &str = "control-plane";

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

/// Whether this account is the one that proxies believe to be the control plane.
pub(crate) fn is_control_plane(account: &AccountName) -> bool {
    account.namespace.as_str() == SYSTEM_NAMESPACE && account.name.as_str() == CONTROL_PLANE
}

fn from_ms(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}
