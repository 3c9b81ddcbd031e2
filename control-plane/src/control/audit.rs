//! The audit log as it is kept up: refusals within bounds, checkpoints, old entries removed.
//!
//! What was done is written with the change itself (`store`); here is the rest.

use std::time::{Duration, Instant, SystemTime};

use super::{ControlPlane, locked};
use crate::audit::{By, Head, Note};
use crate::store::{StoreError, audit};

/// Refusals written one by one in a second: anybody can be refused, and nobody may fill the disk with it.
const REFUSALS_A_SECOND: u32 = 50;

/// Refusals of the present second.
#[derive(Debug)]
pub(super) struct Refusals {
    since: Instant,
    written: u32,
    /// Those that were only counted, since the last entry that told how many.
    untold: u64,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { since: Instant::now(), written: 0, untold: 0 }
    }
}

impl Refusals {
    /// Whether one more may be written now. If so, also how many were not.
    fn one_more(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            (self.since, self.written) = (now, 0);
        }
        if self.written >= REFUSALS_A_SECOND {
            self.untold += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

impl ControlPlane {
    /// Writes down that somebody was refused. A log that cannot be written never lets anybody in, nor keeps anybody out:
    /// the refusal stands, and the program's own log says what is missing.
    pub(crate) async fn refused(&self, note: Note) {
        let Some(untold) = locked(&self.0.refusals).one_more(Instant::now()) else { return };
        let mut notes = vec![note];
        if untold > 0 {
            let about = vec![format!("{untold} more refusals, too many to be written one by one")];
            notes.push(Note::refused(By::name("control plane"), "refusals", about, "many", ""));
        }
        if let Err(error) = audit::write(&self.0.store, notes, SystemTime::now()).await {
            tracing::error!(%error, "a refusal is missing in the audit log");
        }
    }

    /// Writes down that something was done of which the store knows nothing else.
    ///
    /// # Errors
    /// When the store is full or failed.
    pub(crate) async fn note(&self, note: Note) -> Result<(), StoreError> {
        audit::write(&self.0.store, vec![note], SystemTime::now()).await
    }

    /// The last entry of the audit log.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn audit_head(&self) -> Result<Head, StoreError> {
        audit::head(&self.0.store).await
    }

    /// Lines of the audit log after entry `after`, at most `most`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn audit_lines(&self, after: u64, most: usize) -> Result<Vec<String>, StoreError> {
        audit::lines(&self.0.store, after, most).await
    }

    /// Signs what was written since the last time.
    pub async fn sign_audit(&self) {
        if let Err(error) = audit::checkpoint(&self.0.store, self.0.authority.audit_key(), SystemTime::now()).await {
            tracing::error!(%error, "the audit log is not signed");
        }
    }

    /// Removes entries older than `kept`.
    pub(crate) async fn retain_audit(&self, kept: Duration) {
        match audit::retain(&self.0.store, self.0.authority.audit_key(), kept, SystemTime::now()).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "old entries of the audit log were removed"),
            Err(error) => tracing::warn!(%error, "old entries of the audit log stay"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_counted_and_not_written_one_by_one() {
        let mut refusals = Refusals::default();
        let now = refusals.since;
        let written = (0..200).filter(|_| refusals.one_more(now).is_some()).count();
        assert_eq!(written, REFUSALS_A_SECOND as usize);
        assert_eq!(refusals.one_more(now + Duration::from_secs(1)), Some(150), "the next one says how many");
        assert_eq!(refusals.one_more(now + Duration::from_secs(1)), Some(0));
    }
}
