//! What the YAML may say: documents, read from files or JSON, each key and value with its line and column.
//!
//! Reading settles which documents there are and what they are called; what they say is read by [`crate::interpret`],
//! which can then complain about all of them together.

mod kind;
pub(crate) mod node;
pub(crate) mod shape;
pub(crate) mod shapes;
pub(crate) mod source;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use kind::Kind;
use node::{Node, Value, quoted};
use source::Source;

use crate::complaint::{Complaint, NOT_SUPPORTED};
use crate::names::{Namespace, ResourceName, nearest};
use crate::policy::{Labels, Origin};

/// Largest file, in bytes: what Kubernetes' API accepts as one object is about as large.
pub const MAX_FILE: usize = 1 << 20;

/// After so many mistakes in one file, or one document, the rest of it is not looked at.
const MAX_COMPLAINTS: usize = 200;

/// What names a document among all documents.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DocumentKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; `None` for kinds that have none.
    pub namespace: Option<Namespace>,
    /// Its name.
    pub name: ResourceName,
}

impl fmt::Display for DocumentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// One document, as it was written.
#[derive(Debug, Clone)]
pub struct Document {
    key: DocumentKey,
    root: Arc<Node>,
    source: Option<Arc<Source>>,
}

/// The same document: the same key and the same canonical JSON, wherever it was written.
impl PartialEq for Document {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key && self.to_json() == other.to_json()
    }
}

/// What was read of some files: every document that has a name, and every mistake on the way.
#[derive(Debug, Default)]
pub struct Reading {
    /// Documents whose kind and name could be read.
    pub documents: Vec<Document>,
    /// Mistakes of syntax, kind and name.
    pub complaints: Vec<Complaint>,
}

impl Reading {
    /// Reads one more file; a document that names no namespace lives in `namespace`.
    pub fn add(&mut self, file: &str, text: &str, namespace: &Namespace) {
        if text.len() > MAX_FILE {
            self.complaints.push(Complaint {
                file: file.to_owned(),
                found: format!("a file of {} bytes", text.len()),
                expected: format!("at most {MAX_FILE} bytes (1 MiB) in one file"),
                ..Complaint::default()
            });
            return;
        }
        let source = Arc::new(Source::new(file, text));
        let before = self.complaints.len();
        for root in node::read(&source, &mut self.complaints) {
            if self.complaints.len() - before > MAX_COMPLAINTS {
                let found = format!("more than {MAX_COMPLAINTS} mistakes in this file");
                self.complaints.push(source.complaint(
                    root.mark,
                    String::new(),
                    found,
                    "fewer: the rest was not read".into(),
                ));
                break;
            }
            match Document::from_node(root, Some(Arc::clone(&source)), namespace) {
                Ok(document) => self.documents.push(document),
                Err(mut complaints) => self.complaints.append(&mut complaints),
            }
        }
    }
}

/// The namespace of documents that name none, as in Kubernetes.
///
/// # Panics
/// Never: the constant is a valid label.
pub fn default_namespace() -> Namespace {
    Namespace::parse("default").expect("`default` is a label")
}

/// Reads all documents of one file of YAML (JSON is YAML), separated by `---`.
///
/// # Errors
/// With every mistake of syntax, kind and name; and, so that they need not be found one by one, the mistakes inside the
/// documents that could be read. Documents without such mistakes may still say wrong things:
/// [`crate::interpret::interpret`] finds those.
pub fn read(file: &str, text: &str) -> Result<Vec<Document>, Vec<Complaint>> {
    let mut reading = Reading::default();
    reading.add(file, text, &default_namespace());
    if reading.complaints.is_empty() {
        return Ok(reading.documents);
    }
    reading.complaints.extend(crate::interpret::complaints_within(&reading.documents));
    reading.complaints.sort();
    Err(reading.complaints)
}

impl Document {
    /// Reads a document from JSON, as the store keeps it and the admin API receives it.
    ///
    /// # Errors
    /// When kind or name cannot be read.
    pub fn from_json(json: &serde_json::Value) -> Result<Self, Vec<Complaint>> {
        Self::from_node(Node::from_json(json), None, &default_namespace())
    }

    /// The document as JSON in one canonical form: what the store keeps, and people are shown. Keys are sorted within
    /// `metadata` and below; what only a Kubernetes API server knows (`status`, `uid`, ...) is left out.
    pub fn to_json(&self) -> serde_json::Value {
        let mut json = serde_json::Map::new();
        json.insert("apiVersion".into(), self.key.kind.api_version().into());
        json.insert("kind".into(), self.key.kind.as_str().into());
        json.insert("metadata".into(), self.metadata_json());
        if let serde_json::Value::Object(rest) = self.root.to_json() {
            let shown = |key: &String| !matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "status");
            json.extend(rest.into_iter().filter(|(key, _)| shown(key)));
        }
        json.into()
    }

    fn metadata_json(&self) -> serde_json::Value {
        let mut metadata = serde_json::Map::new();
        for (key, labels) in [("annotations", self.annotations()), ("labels", self.labels())] {
            if !labels.is_empty() {
                metadata.insert(
                    key.into(),
                    labels.into_iter().map(|(k, v)| (k, v.into())).collect::<serde_json::Map<_, _>>().into(),
                );
            }
        }
        metadata.insert("name".into(), self.key.name.as_str().into());
        if let Some(namespace) = &self.key.namespace {
            metadata.insert("namespace".into(), namespace.as_str().into());
        }
        metadata.into()
    }

    /// What names it.
    pub fn key(&self) -> &DocumentKey {
        &self.key
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.key.kind
    }

    /// `metadata.labels`.
    pub fn labels(&self) -> Labels {
        self.metadata_map("labels")
    }

    /// `metadata.annotations`.
    pub fn annotations(&self) -> Labels {
        self.metadata_map("annotations")
    }

    fn metadata_map(&self, key: &str) -> Labels {
        let Some(Value::Map(entries)) = self.root.get("metadata").and_then(|m| m.get(key)).map(|n| &n.value) else {
            return Labels::new();
        };
        entries.iter().filter_map(|e| Some((e.key.as_ref().to_owned(), e.value.text()?.to_owned()))).collect()
    }

    /// Where it was written; empty when it came as JSON.
    pub fn origin(&self) -> Origin {
        self.origin_of(&self.root)
    }

    pub(crate) fn origin_of(&self, node: &Node) -> Origin {
        Origin { file: self.source.as_ref().map(|s| s.file().to_owned()), line: node.mark.line }
    }

    pub(crate) fn root(&self) -> &Node {
        &self.root
    }

    /// A complaint about a place of this document.
    pub(crate) fn complaint(&self, mark: node::Mark, key: String, found: String, expected: String) -> Complaint {
        let complaint = match &self.source {
            Some(source) => source.complaint(mark, key, found, expected),
            None => Complaint { key, found, expected, ..Complaint::default() },
        };
        complaint.in_document(&self.key)
    }

    /// Reads kind and name of a document; what else it says is read by [`crate::interpret`], or here when the document is
    /// refused already, so that its mistakes need not be found one by one.
    fn from_node(root: Node, source: Option<Arc<Source>>, namespace: &Namespace) -> Result<Self, Vec<Complaint>> {
        let mut envelope = Envelope { root: &root, source: source.as_deref(), complaints: Vec::new() };
        let (kind, key) = envelope.read(namespace);
        let mut complaints = envelope.complaints;
        match (kind, key) {
            (_, Some(key)) if complaints.is_empty() => Ok(Self { key, root: Arc::new(root), source }),
            (Some(kind), key) => {
                let key = key.unwrap_or_else(|| nameless(kind, namespace));
                let within = crate::interpret::complaints_within(&[Self { key, root: Arc::new(root), source }]);
                let said = |new: &Complaint, old: &[Complaint]| old.iter().any(|old| old.same_place(new));
                for mut complaint in within {
                    if !said(&complaint, &complaints) {
                        complaint.document = None;
                        complaints.push(complaint);
                    }
                }
                Err(complaints)
            }
            (None, _) => Err(complaints),
        }
    }
}

/// Stands in for the key of a document that has none, while the rest of it is read for mistakes.
fn nameless(kind: Kind, namespace: &Namespace) -> DocumentKey {
    let name = ResourceName::parse("nameless").expect("`nameless` is a label");
    DocumentKey { kind, namespace: kind.namespaced().then(|| namespace.clone()), name }
}

/// The part of a document that all kinds share.
struct Envelope<'d> {
    root: &'d Node,
    source: Option<&'d Source>,
    complaints: Vec<Complaint>,
}

impl Envelope<'_> {
    /// The kind, and the key, as far as each can be read.
    fn read(&mut self, default: &Namespace) -> (Option<Kind>, Option<DocumentKey>) {
        if !matches!(self.root.value, Value::Map(_)) {
            self.complain(
                self.root,
                "",
                self.root.in_words(),
                "a document: a map with apiVersion, kind, metadata and spec",
            );
            return (None, None);
        }
        let kind = self.kind();
        let (name, namespace) = (self.name(), self.namespace(kind, default));
        let key = kind.zip(namespace).zip(name).map(|((kind, namespace), name)| DocumentKey { kind, namespace, name });
        (kind, key)
    }

    fn kind(&mut self) -> Option<Kind> {
        let node = self.need(self.root, "kind", "kind", "a kind, such as Service")?;
        let word = node.text().unwrap_or_default();
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.as_str() == word) else {
            let known = Kind::ALL.map(Kind::as_str);
            if kind::UNBUILT.contains(&word) {
                self.complain(node, "kind", node.in_words(), format!("{NOT_SUPPORTED}; it reads {}", known.join(", ")));
            } else {
                self.complain(node, "kind", node.in_words(), format!("one of {}", known.join(", ")));
                self.near(nearest(word, known.into_iter().chain(kind::UNBUILT.iter().copied())));
            }
            return None;
        };
        let version = self.need(self.root, "apiVersion", "apiVersion", kind.api_version())?;
        if version.text() != Some(kind.api_version()) {
            self.complain(version, "apiVersion", version.in_words(), format!("{} for kind {kind}", kind.api_version()));
        }
        Some(kind)
    }

    fn name(&mut self) -> Option<ResourceName> {
        let metadata = self.need(self.root, "metadata", "metadata", "a map with the name of the document")?;
        if !matches!(metadata.value, Value::Map(_)) {
            self.complain(metadata, "metadata", metadata.in_words(), "a map with the name of the document");
            return None;
        }
        let node = self.need(metadata, "name", "metadata.name", "the name of the document")?;
        self.parse(node, "metadata.name", ResourceName::parse)
    }

    fn namespace(&mut self, kind: Option<Kind>, default: &Namespace) -> Option<Option<Namespace>> {
        let written = self.root.get("metadata").and_then(|metadata| metadata.get("namespace"));
        match (kind.is_none_or(Kind::namespaced), written) {
            (true, None) => Some(Some(default.clone())),
            (true, Some(node)) => self.parse(node, "metadata.namespace", Namespace::parse).map(Some),
            (false, None) => Some(None),
            (false, Some(node)) => {
                self.complain(
                    node,
                    "metadata.namespace",
                    node.in_words(),
                    "no namespace: this kind holds for the whole mesh",
                );
                Some(None)
            }
        }
    }

    fn parse<T>(
        &mut self,
        node: &Node,
        key: &str,
        parse: impl Fn(&str) -> Result<T, crate::names::BadName>,
    ) -> Option<T> {
        let Some(text) = node.text() else {
            self.complain(node, key, node.in_words(), "a text; a number must be in quotes");
            return None;
        };
        parse(text).map_err(|bad| self.complain(node, key, quoted(text), bad.expected)).ok()
    }

    fn need<'n>(&mut self, map: &'n Node, key: &str, path: &str, expected: &str) -> Option<&'n Node> {
        let found = map.get(key);
        if found.is_none() {
            self.complain(map, path, "nothing", expected);
        }
        found
    }

    fn complain(&mut self, node: &Node, key: &str, found: impl Into<String>, expected: impl Into<String>) {
        let (key, found, expected) = (key.to_owned(), found.into(), expected.into());
        self.complaints.push(match self.source {
            Some(source) => source.complaint(node.mark, key, found, expected),
            None => Complaint { key, found, expected, ..Complaint::default() },
        });
    }

    fn near(&mut self, nearest: Option<&str>) {
        if let Some(last) = self.complaints.last_mut() {
            last.nearest = nearest.map(str::to_owned);
        }
    }
}
