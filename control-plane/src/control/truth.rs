//! What is true: every document, what they mean together, and the epoch that counts their changes.
//!
//! [`Truth::plan`] judges a change without making it: either every mistake in it, or the truth that would follow. It is pure;
//! `control` writes what it planned and publishes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use equerry_policies::complaint::Complaint;
use equerry_policies::document::{Document, DocumentKey};
use equerry_policies::names::TrustDomain;
use equerry_policies::policy::Meaning;
use equerry_wire::version_of;
use serde_json::Value;

use super::judge::judge;
use crate::store::StoreError;
use crate::store::documents::{DocumentRow, EpochRows};

/// A document as it is kept.
#[derive(Debug, Clone)]
pub struct StoredDocument {
    /// The document, in its canonical form.
    pub document: Document,
    /// Hash of its canonical JSON: its ETag.
    pub version: String,
    /// The epoch that last changed it.
    pub epoch: u64,
    /// Its canonical JSON, made when somebody asks for it.
    json: Arc<OnceLock<Value>>,
}

impl StoredDocument {
    fn new(document: Document, version: String, epoch: u64) -> Self {
        Self { document, version, epoch, json: Arc::default() }
    }

    /// Its canonical JSON.
    pub fn json(&self) -> &Value {
        self.json.get_or_init(|| self.document.to_json())
    }
}

/// Everything that is true at one epoch.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    /// Counts document changes; 0 before the first.
    pub epoch: u64,
    /// Every document.
    pub documents: BTreeMap<DocumentKey, StoredDocument>,
    /// What they mean together.
    pub meaning: Arc<Meaning>,
}

/// One wish.
#[derive(Debug, Clone)]
pub enum Edit {
    /// Create or replace this document.
    Put(Document),
    /// Delete the document of this key.
    Delete(DocumentKey),
}

/// What became of one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which document.
    pub key: DocumentKey,
    /// What was done.
    pub action: Action,
    /// Its version now, or, when deleted, its last.
    pub version: String,
}

/// What was done to a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It was not there before.
    Created,
    /// It says something else now.
    Configured,
    /// It says what it said.
    Unchanged,
    /// It is gone.
    Deleted,
}

impl Action {
    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
        }
    }
}

/// What the caller believes of a document it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// It has this version (`If-Match: "VERSION"`).
    Version(String),
    /// It exists (`If-Match: *`).
    Present,
    /// It does not exist (`If-None-Match: *`).
    Absent,
}

/// Why a change is refused. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The documents are wrong; every mistake is listed.
    #[error("{} found; nothing was changed", mistakes(.0))]
    Invalid(Vec<Complaint>),
    /// A document is not what the caller believed.
    #[error("{key} was changed meanwhile: found version {}, expected {expected}; read it again and repeat the change", found.as_deref().unwrap_or("none (it does not exist)"))]
    Conflict {
        /// Which document.
        key: DocumentKey,
        /// What the caller believed, in words or as a version.
        expected: String,
        /// The version that is kept.
        found: Option<String>,
    },
    /// Documents to delete are not there.
    #[error("not found: {}", names(.0))]
    NotFound(Vec<DocumentKey>),
    /// The store is full.
    #[error("{}", StoreError::Full)]
    Full,
    /// The store failed.
    #[error("{0}")]
    Store(StoreError),
}

impl From<StoreError> for ApplyError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::Full,
            other => Self::Store(other),
        }
    }
}

fn mistakes(complaints: &[Complaint]) -> String {
    let count = complaints.iter().filter(|complaint| !complaint.warning).count();
    if count == 1 { "1 mistake".to_owned() } else { format!("{count} mistakes") }
}

fn names(keys: &[DocumentKey]) -> String {
    keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A change that was judged good.
#[derive(Debug)]
pub struct Plan {
    /// What becomes of each document named, in the order given.
    pub changes: Vec<Change>,
    /// What is hardly meant in these documents, and in others since this change.
    pub warnings: Vec<Complaint>,
    /// What to write, and the truth afterwards; `None` when nothing changes.
    pub next: Option<(EpochRows, Truth)>,
}

impl Truth {
    /// What was stored. Everything is read again, because an older version may have written it.
    ///
    /// # Errors
    /// With every document that this version cannot read.
    pub fn restore(epoch: u64, rows: Vec<DocumentRow>, trust_domain: &TrustDomain) -> Result<Self, Vec<Complaint>> {
        let mut documents = BTreeMap::new();
        let mut complaints = Vec::new();
        for row in rows {
            let json = serde_json::from_str(&row.body).unwrap_or(Value::Null);
            match Document::from_json(&json) {
                Ok(document) => {
                    let stored = StoredDocument::new(document, row.version, row.epoch);
                    documents.insert(stored.document.key().clone(), stored);
                }
                Err(mut found) => complaints.append(&mut found),
            }
        }
        let all: Vec<Document> = documents.values().map(|stored| stored.document.clone()).collect();
        match judge(&all, trust_domain) {
            Ok(meaning) if complaints.is_empty() => Ok(Self { epoch, documents, meaning: Arc::new(meaning) }),
            Ok(_) => Err(complaints),
            Err(mut found) => {
                complaints.append(&mut found);
                Err(complaints)
            }
        }
    }

    /// Judges `edits` together, without making them.
    ///
    /// # Errors
    /// When the documents would be wrong, a document to delete is not there, or `expected` does not hold.
    pub fn plan(
        &self,
        edits: Vec<Edit>,
        expected: Option<&(DocumentKey, Precondition)>,
        trust_domain: &TrustDomain,
    ) -> Result<Plan, ApplyError> {
        if let Some((key, precondition)) = expected {
            self.check(key, precondition)?;
        }
        let missing: Vec<DocumentKey> = edits.iter().filter_map(|edit| self.missing(edit)).collect();
        if !missing.is_empty() {
            return Err(ApplyError::NotFound(missing));
        }
        // First as they were written, so that mistakes are told with file and line.
        let meaning = judge(&self.with(&edits), trust_domain).map_err(ApplyError::Invalid)?;
        let warnings = self.concerning(&edits, meaning.warnings);

        let mut next = Self { epoch: self.epoch + 1, ..self.clone() };
        let mut rows = EpochRows { epoch: next.epoch, ..EpochRows::default() };
        let changes = edits.into_iter().map(|edit| next.make(edit, &mut rows)).collect::<Result<Vec<_>, _>>()?;
        if rows.written.is_empty() && rows.deleted.is_empty() {
            return Ok(Plan { changes, warnings, next: None });
        }
        // Then as they are kept, so that a restart finds the same meaning, and proxies the same bytes.
        let kept: Vec<Document> = next.documents.values().map(|stored| stored.document.clone()).collect();
        next.meaning = Arc::new(judge(&kept, trust_domain).map_err(ApplyError::Invalid)?);
        Ok(Plan { changes, warnings, next: Some((rows, next)) })
    }

    /// Those warnings that whoever makes `edits` should hear: about the documents themselves, and what was not so before.
    fn concerning(&self, edits: &[Edit], warnings: Vec<Complaint>) -> Vec<Complaint> {
        let written: BTreeSet<String> = edits
            .iter()
            .filter_map(|edit| match edit {
                Edit::Put(document) => Some(document.key().to_string()),
                Edit::Delete(_) => None,
            })
            .collect();
        let is_new = |warning: &Complaint| !self.meaning.warnings.iter().any(|known| known.says_what(warning));
        let concerns = |warning: &Complaint| warning.document.as_ref().is_some_and(|of| written.contains(of));
        warnings.into_iter().filter(|warning| concerns(warning) || is_new(warning)).collect()
    }

    fn check(&self, key: &DocumentKey, precondition: &Precondition) -> Result<(), ApplyError> {
        let found = self.documents.get(key).map(|stored| stored.version.clone());
        let expected = match (precondition, &found) {
            (Precondition::Version(version), found) if found.as_ref() != Some(version) => version.clone(),
            (Precondition::Present, None) => "that it exists".to_owned(),
            (Precondition::Absent, Some(_)) => "that it does not exist".to_owned(),
            _ => return Ok(()),
        };
        Err(ApplyError::Conflict { key: key.clone(), expected, found })
    }

    fn missing(&self, edit: &Edit) -> Option<DocumentKey> {
        match edit {
            Edit::Delete(key) if !self.documents.contains_key(key) => Some(key.clone()),
            _ => None,
        }
    }

    /// All documents as they would be, duplicates within the edits kept so that they can be complained about.
    fn with(&self, edits: &[Edit]) -> Vec<Document> {
        let touched: BTreeSet<&DocumentKey> = edits
            .iter()
            .map(|edit| match edit {
                Edit::Put(document) => document.key(),
                Edit::Delete(key) => key,
            })
            .collect();
        let kept =
            self.documents.iter().filter(|(key, _)| !touched.contains(key)).map(|(_, stored)| stored.document.clone());
        let put = edits.iter().filter_map(|edit| match edit {
            Edit::Put(document) => Some(document.clone()),
            Edit::Delete(_) => None,
        });
        kept.chain(put).collect()
    }

    fn make(&mut self, edit: Edit, rows: &mut EpochRows) -> Result<Change, ApplyError> {
        match edit {
            Edit::Put(document) => self.put(&document, rows),
            Edit::Delete(key) => {
                let version = self.documents.remove(&key).map(|stored| stored.version).unwrap_or_default();
                let (kind, namespace, name) = columns(&key);
                rows.deleted.push((kind, namespace, name));
                Ok(Change { key, action: Action::Deleted, version })
            }
        }
    }

    fn put(&mut self, document: &Document, rows: &mut EpochRows) -> Result<Change, ApplyError> {
        let key = document.key().clone();
        let json = document.to_json();
        let body = json.to_string();
        let version = version_of(body.as_bytes());
        let action = match self.documents.get(&key) {
            Some(known) if known.version == version => return Ok(Change { key, action: Action::Unchanged, version }),
            Some(_) => Action::Configured,
            None => Action::Created,
        };
        let document = Document::from_json(&json).map_err(ApplyError::Invalid)?;
        let (kind, namespace, name) = columns(&key);
        rows.written.push(DocumentRow { kind, namespace, name, body, version: version.clone(), epoch: self.epoch });
        self.documents.insert(key.clone(), StoredDocument::new(document, version.clone(), self.epoch));
        Ok(Change { key, action, version })
    }
}

fn columns(key: &DocumentKey) -> (String, String, String) {
    let namespace = key.namespace.as_ref().map(ToString::to_string).unwrap_or_default();
    (key.kind.as_str().to_owned(), namespace, key.name.to_string())
}

#[cfg(test)]
#[path = "truth_tests.rs"]
mod tests;
