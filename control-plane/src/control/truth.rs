//! What is true: every document, what they mean together, and the epoch that counts their changes.
//!
//! [`Truth::plan`] judges a change without making it: either every mistake in it, or the truth that would follow. It is pure;
//! `control` writes what it planned and publishes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use equerry_policies::compile;
use equerry_policies::complaint::Complaint;
use equerry_policies::document::{Document, DocumentKey};
use equerry_policies::interpret::interpret;
use equerry_policies::names::TrustDomain;
use equerry_policies::policy::{Meaning, Mesh};
use equerry_policies::view::{self, NamedJwtRule, Scoped, TenantView, WorkloadView};
use equerry_wire::version_of;

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
            let json = serde_json::from_str(&row.body).unwrap_or(serde_json::Value::Null);
            match Document::from_json(&json) {
                Ok(document) => {
                    let stored = StoredDocument { version: row.version, epoch: row.epoch, document };
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
        self.documents.insert(key.clone(), StoredDocument { document, version: version.clone(), epoch: self.epoch });
        Ok(Change { key, action, version })
    }
}

fn columns(key: &DocumentKey) -> (String, String, String) {
    let namespace = key.namespace.as_ref().map(ToString::to_string).unwrap_or_default();
    (key.kind.as_str().to_owned(), namespace, key.name.to_string())
}

/// What the documents mean together, when proxies of this version will accept it.
fn judge(documents: &[Document], trust_domain: &TrustDomain) -> Result<Meaning, Vec<Complaint>> {
    let meaning = interpret(documents)?;
    let mut complaints = Vec::new();
    complaints.extend(foreign_trust_domain(&meaning.mesh, trust_domain));
    complaints.extend(compile::workload(&everything_inbound(&meaning)).err().unwrap_or_default());
    for service in meaning.services.keys() {
        for caller in view::callers(&meaning, service) {
            let view = view::destination(&meaning, service, caller);
            complaints.extend(view.and_then(|view| compile::destination(&view).err()).unwrap_or_default());
        }
    }
    if complaints.is_empty() {
        return Ok(meaning);
    }
    complaints.sort();
    complaints.dedup();
    Err(complaints)
}

fn foreign_trust_domain(mesh: &Mesh, ours: &TrustDomain) -> Option<Complaint> {
    let named = mesh.trust_domain.as_ref().filter(|named| *named != ours)?;
    let expected =
        format!("{ours}: the control plane was first started with --trust-domain {ours}, which cannot be changed");
    Some(
        Complaint::at(&mesh.origin, "spec.trustDomain", format!("{:?}", named.as_str()), expected)
            .in_document("Mesh default"),
    )
}

/// A workload that every policy selects: what compiles for it compiles for each.
fn everything_inbound(meaning: &Meaning) -> WorkloadView {
    WorkloadView {
        mesh: meaning.mesh.clone(),
        services: meaning.services.values().map(|service| (service.name.clone(), service.ports.clone())).collect(),
        peer: meaning.mesh.mtls,
        peer_ports: Vec::new(),
        plain_only: false,
        plain_only_ports: Vec::new(),
        tokens: meaning
            .tokens
            .iter()
            .flat_map(|(name, document)| document.rules.iter().map(move |rule| (name, rule)))
            .map(|(name, rule)| Scoped {
                ports: None,
                policy: NamedJwtRule { policy: name.to_string(), rule: rule.clone() },
            })
            .collect(),
        authorization: meaning
            .authorization
            .values()
            .map(|policy| Scoped { ports: None, policy: policy.clone() })
            .collect(),
        csrf: meaning.csrf.values().map(|policy| Scoped { ports: None, policy: policy.clone() }).collect(),
        trusted_hops: vec![],
        tenants: meaning
            .tenants
            .values()
            .map(|tenant| TenantView {
                tenant: tenant.clone(),
                quotas: tenant.quotas.iter().map(|quota| Scoped { ports: None, policy: quota.clone() }).collect(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use equerry_policies::document::{Kind, read};

    use super::*;

    const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders}]
  rules: [{backendRefs: [{name: orders, port: 80}]}]
";

    fn domain() -> TrustDomain {
        TrustDomain::parse("equerry.local").unwrap()
    }

    fn put(text: &str) -> Vec<Edit> {
        read("test.yaml", text).unwrap().into_iter().map(Edit::Put).collect()
    }

    fn key(kind: Kind, name: &str) -> DocumentKey {
        DocumentKey { kind, namespace: Some("shop".parse().unwrap()), name: name.parse().unwrap() }
    }

    fn shop() -> (EpochRows, Truth) {
        Truth::default().plan(put(SHOP), None, &domain()).unwrap().next.unwrap()
    }

    #[test]
    fn one_change_is_one_epoch_and_no_change_is_none() {
        let (rows, truth) = shop();
        assert_eq!((rows.epoch, rows.written.len(), truth.epoch), (1, 2, 1));
        let again = truth.plan(put(SHOP), None, &domain()).unwrap();
        assert!(again.next.is_none());
        assert!(again.changes.iter().all(|change| change.action == Action::Unchanged));
        let changed = truth
            .plan(
                put(&SHOP
                    .replace("spec: {ports: [{port: 80}]}", "spec: {ports: [{port: 80}, {port: 81, name: b}]}")
                    .replace("{port: 80},", "{port: 80, name: a},")),
                None,
                &domain(),
            )
            .unwrap();
        let actions: Vec<Action> = changed.changes.iter().map(|change| change.action).collect();
        assert_eq!(actions, [Action::Configured, Action::Unchanged]);
        assert_eq!(changed.next.unwrap().0.written.len(), 1);
    }

    #[test]
    fn what_is_restored_means_and_hashes_the_same() {
        let (rows, truth) = shop();
        let restored = Truth::restore(rows.epoch, rows.written, &domain()).unwrap();
        assert_eq!(restored.meaning, truth.meaning);
        let versions =
            |truth: &Truth| truth.documents.values().map(|stored| stored.version.clone()).collect::<Vec<_>>();
        assert_eq!(versions(&restored), versions(&truth));
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_nothing_is_planned() {
        let (_, truth) = shop();
        let error = truth
            .plan(put(&SHOP.replace("kind: Service, name: orders}]", "kind: Service, name: ordrs}]")), None, &domain())
            .unwrap_err();
        let ApplyError::Invalid(complaints) = error else { panic!("{error}") };
        assert_eq!(
            (complaints[0].file.as_str(), complaints[0].line, complaints[0].nearest.as_deref()),
            ("test.yaml", 11, Some("orders"))
        );
    }

    #[test]
    fn whoever_makes_a_change_hears_what_is_hardly_meant_in_it_or_since_it_and_nothing_else() {
        const STOCK: &str = "
apiVersion: v1
kind: Service
metadata: {name: stock, namespace: shop}
spec: {ports: [{port: 80}]}
";
        let (_, truth) = shop();
        let routed = SHOP.replace(
            "rules: [{backendRefs: [{name: orders, port: 80}]}]",
            "rules: [{backendRefs: [{name: stock, port: 80}]}]",
        );
        let told = |truth: &Truth, edits: Vec<Edit>| {
            let plan = truth.plan(edits, None, &domain()).unwrap();
            let places = plan.warnings.iter().map(|one| (one.line, one.document.clone().unwrap())).collect::<Vec<_>>();
            assert!(plan.warnings.iter().all(|one| one.warning && one.found == "\"stock\""), "{:?}", plan.warnings);
            (places, plan.next.map_or_else(|| truth.clone(), |(_, next)| next))
        };
        let route = "HTTPRoute shop/orders".to_owned();
        let (warned, truth) = told(&truth, put(&routed));
        assert_eq!(warned, [(12, route.clone())], "what is written now, with its line");
        let (warned, truth) = told(&truth, put(&STOCK.replace("name: stock", "name: other")));
        assert_eq!(warned, [], "what was so before, and is not touched");
        assert_eq!(told(&truth, put(&routed)).0, [(12, route.clone())], "written again, it is said again");
        let (warned, truth) = told(&truth, put(STOCK));
        assert_eq!((warned, truth.meaning.warnings.len()), (vec![], 0), "it came");
        let (warned, truth) = told(&truth, vec![Edit::Delete(key(Kind::Service, "stock"))]);
        assert_eq!(warned, [(0, route)], "and is gone: of a document that is kept, no line is known");
        assert_eq!(truth.meaning.warnings.len(), 1);
    }

    #[test]
    fn what_something_else_still_names_cannot_be_deleted() {
        let (_, truth) = shop();
        let delete = |keys: Vec<DocumentKey>| truth.plan(keys.into_iter().map(Edit::Delete).collect(), None, &domain());
        assert!(matches!(delete(vec![key(Kind::Service, "orders")]), Err(ApplyError::Invalid(_))));
        let both = delete(vec![key(Kind::Service, "orders"), key(Kind::HttpRoute, "orders")]).unwrap();
        assert!(both.next.unwrap().1.documents.is_empty());
        let missing = delete(vec![key(Kind::Service, "nobody")]).unwrap_err();
        assert_eq!(missing.to_string(), "not found: Service shop/nobody");
    }

    #[test]
    fn a_belief_that_does_not_hold_is_a_conflict() {
        let (_, truth) = shop();
        let service = key(Kind::Service, "orders");
        let version = truth.documents[&service].version.clone();
        let plan = |precondition| truth.plan(put(SHOP), Some(&(service.clone(), precondition)), &domain());
        assert!(plan(Precondition::Version(version)).is_ok());
        assert!(plan(Precondition::Present).is_ok());
        for wrong in [Precondition::Version("old".into()), Precondition::Absent] {
            assert!(matches!(plan(wrong), Err(ApplyError::Conflict { found: Some(_), .. })));
        }
        assert!(Truth::default().plan(put(SHOP), Some(&(service.clone(), Precondition::Present)), &domain()).is_err());
    }

    #[test]
    fn a_mesh_that_names_another_trust_domain_is_refused_naming_both() {
        let mesh =
            "{apiVersion: equerry.dev/v1, kind: Mesh, metadata: {name: default}, spec: {trustDomain: other.example}}";
        let Err(ApplyError::Invalid(complaints)) = Truth::default().plan(put(mesh), None, &domain()) else {
            panic!("accepted")
        };
        let text = complaints[0].to_string();
        assert!(text.contains("other.example") && text.contains("equerry.local"), "{text}");
    }
}
