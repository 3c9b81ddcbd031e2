//! The audit log: who changed what, and who was refused. A chain that cannot be edited unseen.
//!
//! Pure. Each entry is one line of JSON that holds the hash of the line before it; from time to time an entry signs
//! everything up to it. What is exported is what is kept, byte for byte, so a copy elsewhere proves as much as the original.

mod verify;

use std::time::SystemTime;

use equerry_certs::signing::{SigningKey, sha256};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use crate::access::{Actor, Role};

pub use verify::{Proved, Tampered, Verifier};

/// What stands in the first entry where others name the one before.
pub const BEGINNING: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Who did it, or wanted to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct By {
    /// Whom the token was made for, or the identity that asked.
    pub name: String,
    /// The token's public id; empty for those who have none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub token: String,
    /// The token's role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was done, and is on disk together with this entry.
    Done,
    /// It was not allowed.
    Refused,
}

/// What is to be written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Who.
    pub by: By,
    /// What, in one word or two: `apply`, `delete`, `token.create`, `identity.issue` ...
    pub action: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// What it was about, one text for each thing: `Service shop/orders created`.
    pub about: Vec<String>,
    /// The epoch that a change made.
    pub epoch: Option<u64>,
    /// Why it was refused: one word for programs, and what was said.
    pub reason: Option<(String, String)>,
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Counts from 1, without gaps.
    pub seq: u64,
    /// When, RFC 3339 in UTC.
    pub time: String,
    /// Who.
    pub by: By,
    /// What.
    pub action: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What it was about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub about: Vec<String>,
    /// The epoch that a change made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Why it was refused, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it was refused, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// SHA-256 of the line before, in hexadecimal; of zeros for the first.
    pub previous: String,
    /// In a checkpoint: the signature over everything before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// In a checkpoint: the public key that proves the signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Where old entries were removed: the last of them, and the hash of its line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<Head>,
}

/// An entry and the hash of its line: everything up to it is settled by this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Head {
    /// The entry; 0 before the first.
    pub seq: u64,
    /// SHA-256 of its line.
    pub hash: String,
}

impl Head {
    /// Before the first entry.
    pub fn beginning() -> Self {
        Self { seq: 0, hash: BEGINNING.to_owned() }
    }

    /// The head after `line`, which is entry `seq`.
    pub fn of(seq: u64, line: &str) -> Self {
        Self { seq, hash: sha256(line.as_bytes()) }
    }

    /// What a checkpoint after this head signs.
    pub fn to_sign(&self) -> Vec<u8> {
        format!("equerry audit checkpoint\n{}\n{}\n", self.seq, self.hash).into_bytes()
    }
}

impl By {
    /// The bearer of a token.
    pub fn token(actor: &Actor) -> Self {
        Self { name: actor.name.clone(), token: actor.id.clone(), role: Some(actor.role) }
    }

    /// Somebody known by name alone: a workload's identity, or the control plane itself.
    pub fn name(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }
}

impl Note {
    /// Something that was done.
    pub fn done(by: By, action: &'static str, about: Vec<String>) -> Self {
        Self { by, action, outcome: Outcome::Done, about, epoch: None, reason: None }
    }

    /// Something that was refused.
    pub fn refused(by: By, action: &'static str, about: Vec<String>, reason: &str, detail: &str) -> Self {
        let reason = Some((reason.to_owned(), detail.to_owned()));
        Self { by, action, outcome: Outcome::Refused, about, epoch: None, reason }
    }

    /// The entry after `head` that says this.
    pub fn after(&self, head: &Head, at: SystemTime) -> Entry {
        let (reason, detail) = self.reason.clone().unzip();
        Entry {
            seq: head.seq + 1,
            time: in_words(at),
            by: self.by.clone(),
            action: self.action.to_owned(),
            outcome: self.outcome,
            about: self.about.clone(),
            epoch: self.epoch,
            reason,
            detail,
            previous: head.hash.clone(),
            signature: None,
            key: None,
            removed: None,
        }
    }
}

impl Entry {
    /// The entry after `head` that signs it.
    pub fn checkpoint(head: &Head, key: &SigningKey, at: SystemTime) -> Self {
        let note = Note::done(By::name("control plane"), "checkpoint", Vec::new());
        let (signature, public) = (key.sign(&head.to_sign()), key.verifying_key().to_string());
        Self { signature: Some(signature), key: Some(public), ..note.after(head, at) }
    }

    /// The entry after `head` that says which were removed.
    pub fn retention(head: &Head, removed: Head, at: SystemTime) -> Self {
        let about = vec![format!("entries up to {} removed: they were kept long enough", removed.seq)];
        let note = Note::done(By::name("control plane"), "retention", about);
        Self { removed: Some(removed), ..note.after(head, at) }
    }

    /// As it is kept and exported: one line, without its end.
    pub fn line(&self) -> String {
        // Strings and numbers always have a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// RFC 3339 with milliseconds, UTC.
fn in_words(at: SystemTime) -> String {
    let exact = OffsetDateTime::from(at);
    let whole = exact.replace_millisecond(exact.millisecond()).unwrap_or(exact);
    whole.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests;
