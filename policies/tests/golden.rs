//! Files that must be refused, beside the exact words a person sees; files that must be accepted, beside what they mean;
//! examples, which must stay true. EQUERRY_BLESS=1 writes down what is seen now: read the difference before committing it.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests read the files they are about, and fail by panic"
)]

use std::path::{Path, PathBuf};

use equerry_policies::complaint::Complaint;
use equerry_policies::document::{self, Document, Kind, Reading};
use equerry_policies::interpret;
use equerry_policies::names::{AccountName, Namespace};
use equerry_policies::policy::Meaning;
use equerry_policies::{compile, schema, view};
use serde_json::{Value, json};

fn home() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(home().join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no .{extension} files in {folder}");
    files
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// Reads a file and what it means; several mistakes of different stages are gathered as `apply` does.
fn understand(path: &Path) -> Result<(Vec<Document>, Meaning), Vec<Complaint>> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut reading = Reading::default();
    reading.add(&name(path), &text, &document::default_namespace());
    match interpret::interpret(&reading.documents) {
        Ok(meaning) if reading.complaints.is_empty() => Ok((reading.documents, meaning)),
        Ok(_) => Err(reading.complaints),
        Err(mut complaints) => {
            complaints.append(&mut reading.complaints);
            complaints.sort();
            Err(complaints)
        }
    }
}

/// Compares with the file of what was seen before, or writes it.
fn golden(path: &Path, seen: &str, wrong: &mut Vec<String>) {
    if std::env::var_os("EQUERRY_BLESS").is_some() {
        std::fs::write(path, seen).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    if expected != seen {
        wrong.push(format!("{}:\n--- expected\n{expected}\n--- seen\n{seen}", path.display()));
    }
}

fn finish(wrong: &[String]) {
    assert!(wrong.is_empty(), "{}\n(EQUERRY_BLESS=1 accepts what is seen)", wrong.join("\n\n"));
}

#[test]
fn what_is_refused_is_refused_in_exactly_these_words() {
    let mut wrong = Vec::new();
    for path in files("tests/refused", "yaml") {
        match understand(&path) {
            Ok(_) => wrong.push(format!("{} was accepted", path.display())),
            Err(complaints) => {
                let seen: Vec<String> = complaints.iter().map(|c| format!("{c}\n")).collect();
                golden(&path.with_extension("txt"), &seen.join("\n"), &mut wrong);
            }
        }
    }
    finish(&wrong);
}

#[test]
fn what_is_accepted_means_exactly_this() {
    let mut wrong = Vec::new();
    for path in files("tests/accepted", "yaml") {
        match understand(&path) {
            Ok((_, meaning)) => {
                let seen = format!("{}\n", serde_json::to_string_pretty(&as_json(&meaning)).unwrap());
                golden(&path.with_extension("json"), &seen, &mut wrong);
                let warned =
                    meaning.warnings.iter().map(|warning| format!("{warning}\n")).collect::<Vec<_>>().join("\n");
                let told = path.with_extension("warnings.txt");
                if !warned.is_empty() || told.exists() {
                    golden(&told, &warned, &mut wrong);
                }
            }
            Err(complaints) => wrong.push(in_words(&complaints)),
        }
    }
    finish(&wrong);
}

#[test]
fn the_specifications_own_mesh_routes_are_accepted_as_they_are() {
    let services = std::fs::read_to_string(home().join("tests/gamma/services.yaml")).unwrap();
    let mut wrong = Vec::new();
    for path in files("tests/gamma", "yaml") {
        let text = format!("{services}{}", std::fs::read_to_string(&path).unwrap());
        let text = if path.ends_with("services.yaml") { services.clone() } else { text };
        match document::read(&name(&path), &text).and_then(|documents| interpret::interpret(&documents)) {
            Ok(meaning) => everybodys_view(&meaning),
            Err(complaints) => wrong.push(in_words(&complaints)),
        }
    }
    finish(&wrong);
}

fn in_words(complaints: &[Complaint]) -> String {
    complaints.iter().map(|c| format!("{c}\n")).collect()
}

fn as_json(meaning: &Meaning) -> Value {
    fn values<K, V: serde::Serialize>(map: &std::collections::BTreeMap<K, V>) -> Vec<Value> {
        map.values().map(|v| serde_json::to_value(v).unwrap()).collect()
    }
    let mut json = json!({
        "mesh": meaning.mesh,
        "services": values(&meaning.services),
        "endpoints": values(&meaning.endpoints),
        "routes": values(&meaning.routes),
        "grpcRoutes": values(&meaning.grpc_routes),
        "tcpRoutes": values(&meaning.tcp_routes),
        "faults": values(&meaning.faults),
        "peers": values(&meaning.peers),
        "tokens": values(&meaning.tokens),
        "authorization": values(&meaning.authorization),
        "csrf": values(&meaning.csrf),
        "tests": values(&meaning.tests),
        "traffic": values(&meaning.traffic),
        "tenants": values(&meaning.tenants),
    });
    json.as_object_mut().unwrap().retain(|_, part| part.as_array().is_none_or(|list| !list.is_empty()));
    json
}

#[test]
fn every_accepted_file_and_example_survives_the_store_and_is_cut_and_compiled() {
    let mut wrong = Vec::new();
    for path in files("tests/accepted", "yaml").into_iter().chain(files("examples", "yaml")) {
        match understand(&path) {
            Ok((documents, meaning)) => {
                let stored: Vec<Document> =
                    documents.iter().map(|d| Document::from_json(&d.to_json()).unwrap()).collect();
                assert_eq!(stored, documents, "{}", path.display());
                let again = interpret::interpret(&stored).unwrap_or_else(|c| panic!("{}", in_words(&c)));
                assert_eq!(again.services.len(), meaning.services.len());
                everybodys_view(&meaning);
            }
            Err(complaints) => wrong.push(in_words(&complaints)),
        }
    }
    finish(&wrong);
}

/// Cuts and compiles the view of one workload for every account that a Service lists, and of every destination.
fn everybodys_view(meaning: &Meaning) {
    let mut accounts: Vec<&AccountName> = meaning.services.values().flat_map(|s| &s.accounts).collect();
    accounts.sort();
    accounts.dedup();
    for account in &accounts {
        for service in meaning.services.values().filter(|s| s.accounts.contains(account)) {
            let ports = service.ports.iter().map(|p| p.target_port).collect();
            let facts = view::WorkloadFacts { account: (*account).clone(), labels: service.selector.clone(), ports };
            let cut = view::workload(meaning, &facts);
            assert!(cut.services.iter().any(|(name, _)| *name == service.name));
            compile::workload(&cut).unwrap_or_else(|c| panic!("{}", in_words(&c)));
        }
    }
    let namespaces: Vec<&Namespace> = meaning.services.keys().map(|s| &s.namespace).collect();
    for service in meaning.services.keys() {
        for namespace in &namespaces {
            let cut = view::destination(meaning, service, namespace).unwrap();
            assert!(cut.backends.iter().all(|b| meaning.services.contains_key(b)));
            compile::destination(&cut).unwrap_or_else(|c| panic!("{}", in_words(&c)));
        }
    }
}

#[test]
fn the_documents_of_the_demo_are_one_set() {
    let mut reading = Reading::default();
    for path in files("examples/demo", "yaml") {
        reading.add(&name(&path), &std::fs::read_to_string(&path).unwrap(), &document::default_namespace());
    }
    assert!(reading.complaints.is_empty(), "{}", in_words(&reading.complaints));
    everybodys_view(&interpret::interpret(&reading.documents).unwrap_or_else(|c| panic!("{}", in_words(&c))));
}

#[test]
fn every_example_opens_with_its_story() {
    let examples = files("examples", "yaml");
    assert!(examples.len() >= 8, "only {} examples", examples.len());
    for path in examples {
        let text = std::fs::read_to_string(&path).unwrap();
        let story = text.lines().take_while(|line| line.starts_with('#')).count();
        assert!(story >= 3, "{} opens with {story} lines of story", path.display());
    }
}

#[test]
fn the_schemas_in_the_tree_are_those_the_reader_checks() {
    let mut wrong = Vec::new();
    let folder = home().join("schema");
    std::fs::create_dir_all(&folder).unwrap();
    let schemas = schema::all();
    assert_eq!(schemas.len(), Kind::ALL.len());
    for (kind, schema) in &schemas {
        let text = format!("{}\n", serde_json::to_string_pretty(schema).unwrap());
        golden(&folder.join(format!("{}.json", kind.as_str().to_lowercase())), &text, &mut wrong);
    }
    finish(&wrong);
}

#[test]
fn every_key_of_every_accepted_document_is_in_its_schema() {
    let schemas = schema::all();
    for path in files("tests/accepted", "yaml").into_iter().chain(files("examples", "yaml")) {
        let Ok((documents, _)) = understand(&path) else { panic!("{} is refused", path.display()) };
        for document in documents {
            let schema = &schemas.iter().find(|(kind, _)| *kind == document.kind()).unwrap().1;
            let mut unknown = Vec::new();
            keys_without_schema(&document.to_json(), schema, "", &mut unknown);
            assert!(unknown.is_empty(), "{}: {}: {unknown:?}", path.display(), document.key());
        }
    }
}

/// Walks a document beside its schema by hand, as an editor would: properties, items, additionalProperties, enums, types.
fn keys_without_schema(value: &Value, schema: &Value, path: &str, unknown: &mut Vec<String>) {
    if let Some(alternatives) = schema.get("oneOf").and_then(Value::as_array) {
        let fits = alternatives.iter().any(|one| {
            let mut inner = Vec::new();
            keys_without_schema(value, one, path, &mut inner);
            inner.is_empty()
        });
        if !fits {
            unknown.push(format!("{path}: no alternative fits"));
        }
        return;
    }
    let is = match value {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::Null => "null",
    };
    if schema.get("type").is_some_and(|expected| expected != is) {
        unknown.push(format!("{path}: {is}"));
    }
    if schema.get("enum").and_then(Value::as_array).is_some_and(|words| !words.contains(value)) {
        unknown.push(format!("{path}: {value}"));
    }
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let path = format!("{path}.{key}");
                match (schema.pointer(&format!("/properties/{key}")), schema.get("additionalProperties")) {
                    (Some(known), _) => keys_without_schema(inner, known, &path, unknown),
                    (None, Some(Value::Bool(true)) | None) => {}
                    (None, Some(Value::Bool(false))) => unknown.push(path),
                    (None, Some(any)) => keys_without_schema(inner, any, &path, unknown),
                }
            }
            for required in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
                if !map.contains_key(required.as_str().unwrap()) {
                    unknown.push(format!("{path}: {required} is missing"));
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                keys_without_schema(item, &schema["items"], &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}
