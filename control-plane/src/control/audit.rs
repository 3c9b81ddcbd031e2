//! The audit log as it is kept up: refusals within bounds, checkpoints, old entries removed; and proved, so that an edit is noticed
//! without anybody asking.
//!
//! What was done is written with the change itself (`store`); here is the rest.

use std::time::{Duration, Instant, SystemTime};

use super::{ControlPlane, locked};
use crate::audit::{By, Head, Note, Tampered, Verifier};
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

/// Lines of the audit log that are read at once to prove it.
const READ_AT_ONCE: usize = 1_000;

/// What of the audit log is to be proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All that is there.
    All,
    /// What was written since the last time, and that what was there last is there still.
    New,
}

/// What is known of the audit log as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditProof {
    /// When it was read last; `None`: it was not yet.
    pub at: Option<SystemTime>,
    /// The last entry that was found to follow from all before it.
    pub up_to: u64,
    /// What was found that cannot be what was written. It stays until the log is read whole again and proves itself.
    pub tampered: Option<Tampered>,
}

/// How far the log was proved.
#[derive(Debug, Default)]
pub(super) struct Proving {
    /// It goes on from the last line that it took; `None` before the first.
    verifier: Option<Verifier>,
    /// The last line that was there.
    last: Option<Head>,
}

impl Proving {
    /// Reads what `scope` says, up to the entry that was the last when this began.
    async fn read(&mut self, control: &ControlPlane, scope: Scope) -> Result<Result<u64, Tampered>, StoreError> {
        let store = &control.0.store;
        let end = audit::head(store).await?;
        if let Some(last) = &self.last {
            // What was there last time is there still, unless it was let go of with all before it.
            let known = audit::head_at(store, last.seq).await?;
            if known.as_ref().is_some_and(|known| known != last) {
                return Ok(Err(Tampered::OtherHead { seq: last.seq }));
            }
            if end.seq < last.seq {
                return Ok(Err(Tampered::Truncated { found: end.seq, expected: last.seq }));
            }
        }
        let key = control.0.authority.audit_key().verifying_key();
        let begun = self.verifier.take().filter(|_| scope == Scope::New);
        let mut verifier = begun.unwrap_or_else(|| Verifier::new(Some(&key), None));
        while verifier.head().seq < end.seq {
            let lines = audit::lines(store, verifier.head().seq, READ_AT_ONCE).await?;
            if lines.is_empty() {
                return Ok(Err(Tampered::Truncated { found: verifier.head().seq, expected: end.seq }));
            }
            if let Err(tampered) = lines.iter().try_for_each(|line| verifier.line(line)) {
                return Ok(Err(tampered));
            }
        }
        self.last = Some(verifier.head().clone());
        let proved = verifier.clone().finish();
        self.verifier = Some(verifier);
        Ok(proved.map(|proved| proved.head.seq))
    }
}

impl ControlPlane {
    /// What is known of the audit log as a whole.
    pub fn audit_proof(&self) -> AuditProof {
        locked(&self.0.proof).clone()
    }

    /// Reads the audit log and keeps what it proves. That it was tampered with is told in the log, in the metrics and, once for each finding,
    /// in the audit log itself, so that it is signed. What was found stays found until all was read again.
    pub(crate) async fn prove_audit(&self, scope: Scope) {
        if scope == Scope::New && self.audit_proof().tampered.is_some() {
            return;
        }
        let mut proving = self.0.proving.lock().await;
        let found = match proving.read(self, scope).await {
            Ok(found) => found,
            Err(error) => return tracing::error!(%error, "the audit log cannot be read, so it is not proved"),
        };
        let before = {
            let mut proof = locked(&self.0.proof);
            let before = proof.tampered.clone();
            proof.at = Some(SystemTime::now());
            match &found {
                Ok(up_to) => {
                    proof.up_to = *up_to;
                    proof.tampered = proof.tampered.take().filter(|_| scope == Scope::New);
                }
                Err(tampered) => proof.tampered = Some(tampered.clone()),
            }
            before
        };
        let Err(tampered) = found else { return };
        tracing::error!(%tampered, "the audit log is not what was written; compare it with an exported copy");
        if before.as_ref() != Some(&tampered) {
            let note =
                Note::refused(By::name("control plane"), "audit.verify", Vec::new(), "tampered", &tampered.to_string());
            if let Err(error) = audit::write(&self.0.store, vec![note], SystemTime::now()).await {
                tracing::error!(%error, "what was found is missing in the audit log");
            }
        }
    }

    /// Writes down that somebody was refused. A log that cannot be written never lets anybody in, nor keeps anybody out:
    /// the refusal stands, and the program's own log says what is missing.
    pub(crate) async fn refused(&self, note: Note) {
        let Some(untold) = locked(&self.0.refusals).one_more(Instant::now()) else { return };
        let (reason, why) = note.reason.as_ref().map_or(("", ""), |(reason, why)| (reason.as_str(), why.as_str()));
        let (by, token, about) = (note.by.name.as_str(), note.by.token.as_str(), note.about.join(", "));
        tracing::warn!(by, token, action = note.action, about, reason, why, "refused");
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
