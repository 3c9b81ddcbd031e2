//! Documents over HTTP: read, write and delete one with ETags, apply files all or none; `listing` lists them.

use std::collections::HashSet;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Json, extract::rejection::BytesRejection};
use bytes::Bytes;
use equerry_policies::complaint::Complaint;
use equerry_policies::document::{Document, DocumentKey, Kind, Reading, default_namespace};
use equerry_policies::names::{Namespace, ResourceName, TenantName, nearest};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use super::problem::{PROBLEM_JSON, push_token};
use super::shapes::{ApplyReply, ApplyRequest, ChangeReply, DeleteRequest, DocumentName, FieldError, Problem};
use super::versions::{etag, precondition, tags};
use crate::access::{Actor, Denied, Permission, Place};
use crate::audit::By;
use crate::control::{Action, Applied, ApplyError, ApplyOptions, ControlPlane, StoredDocument};

/// The epoch that last changed a document.
const EPOCH: header::HeaderName = header::HeaderName::from_static("equerry-epoch");
/// Most files in one apply.
const MAX_FILES: usize = 10_000;

/// Whether an apply is made.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ApplyQuery {
    /// Judge, and change nothing.
    #[serde(default)]
    dry_run: bool,
}

impl From<ApplyError> for Problem {
    fn from(error: ApplyError) -> Self {
        let said = error.to_string();
        match error {
            ApplyError::Invalid(complaints) => Self::invalid(complaints),
            ApplyError::Conflict { found, .. } => Self::conflict(found, said),
            ApplyError::NotFound(_) => Self::new(StatusCode::NOT_FOUND, "not_found", said),
            ApplyError::Full => Self::new(StatusCode::INSUFFICIENT_STORAGE, "store_full", said),
            ApplyError::Store(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "store_failed", said),
        }
    }
}

/// Apply files: every document of all of them, or none.
#[utoipa::path(post, path = "/api/v1/apply", tag = "documents", params(ApplyQuery), request_body = ApplyRequest,
    responses((status = 200, body = ApplyReply), (status = 422, body = Problem, content_type = PROBLEM_JSON, description = "Every mistake, with file, line and column")))]
pub(super) async fn apply(
    State(control): State<ControlPlane>,
    actor: Actor,
    query: Query<ApplyQuery>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<ApplyReply>, Problem> {
    let permission = if query.dry_run { Permission::Read } else { Permission::WriteDocuments };
    actor.has(permission)?;
    let request: ApplyRequest = read_json(body)?;
    if request.files.is_empty() || request.files.len() > MAX_FILES {
        return Err(Problem::bad_request(format_args!(
            "found {} files, expected 1 to {MAX_FILES}",
            request.files.len()
        )));
    }
    let mut reading = Reading::default();
    for file in &request.files {
        reading.add(&file.name, &file.text, &default_namespace());
    }
    let Reading { documents, mut complaints } = reading;
    if !complaints.is_empty() {
        // What is wrong with the documents that could be read is told at once too, judged beside all others.
        let options = ApplyOptions { dry_run: true, ..ApplyOptions::default() };
        if let Err(ApplyError::Invalid(found)) = control.apply(documents, options).await {
            complaints.extend(found);
        }
        complaints.sort();
        complaints.dedup();
        return Err(Problem::invalid(complaints));
    }
    documents.iter().try_for_each(|document| may(&actor, permission, document.key()))?;
    let applied = control.apply(documents, ApplyOptions { dry_run: query.dry_run, ..asked_by(&actor) }).await?;
    Ok(Json(reply(applied, query.dry_run)))
}

fn reply(applied: Applied, dry_run: bool) -> ApplyReply {
    let changes = applied.changes.into_iter().map(|change| ChangeReply {
        kind: change.key.kind.to_string(),
        namespace: change.key.namespace.as_ref().map(ToString::to_string),
        name: change.key.name.to_string(),
        action: change.action.as_str().to_owned(),
        version: change.version,
    });
    ApplyReply { epoch: applied.epoch, dry_run, changes: changes.collect(), warnings: applied.warnings }
}

/// Read one document.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/{kind}/{name}", tag = "documents",
    params(("namespace" = String, Path,), ("kind" = String, Path,), ("name" = String, Path,), ("If-None-Match" = Option<String>, Header,)),
    responses((status = 200, body = Object, headers(("ETag" = String, description = "Its version"), ("Equerry-Epoch" = u64, description = "The epoch that last changed it"))), (status = 304), (status = 404, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn get_namespaced(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path((namespace, kind, name)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    get(&control, &actor, &key_of(&kind, Some(&namespace), &name)?, &headers)
}

/// Read one document of a kind without namespaces.
#[utoipa::path(get, path = "/api/v1/{kind}/{name}", tag = "documents",
    params(("kind" = String, Path,), ("name" = String, Path,), ("If-None-Match" = Option<String>, Header,)),
    responses((status = 200, body = Object, headers(("ETag" = String, description = "Its version"), ("Equerry-Epoch" = u64, description = "The epoch that last changed it"))), (status = 304), (status = 404, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn get_global(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path((kind, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    get(&control, &actor, &key_of(&kind, None, &name)?, &headers)
}

fn get(control: &ControlPlane, actor: &Actor, key: &DocumentKey, headers: &HeaderMap) -> Result<Response, Problem> {
    may(actor, Permission::Read, key)?;
    let stored = stored(control, key)?;
    let tag = etag(&stored.version)?;
    if tags(headers, &header::IF_NONE_MATCH)?.is_some_and(|known| known.holds(&stored.version)) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let told = [(header::ETAG, tag), (EPOCH, stored.epoch.into())];
    let mut response = (told, Json(stored.document.to_json())).into_response();
    warn(control, key, response.headers_mut());
    Ok(response)
}

/// Tells what is hardly meant in a document, as a Kubernetes API server does: a `Warning` each, of code 299.
fn warn(control: &ControlPlane, key: &DocumentKey, headers: &mut HeaderMap) {
    let document = key.to_string();
    let truth = control.truth();
    let about = truth.meaning.warnings.iter().filter(|warning| warning.document.as_ref() == Some(&document));
    for warning in about {
        let text = warning.sentence().replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::try_from(format!("299 equerry \"{text}\"")) {
            headers.append(header::WARNING, value);
        }
    }
}

fn stored(control: &ControlPlane, key: &DocumentKey) -> Result<StoredDocument, Problem> {
    control.truth().documents.get(key).cloned().ok_or_else(|| Problem::not_found(key))
}

/// Create or replace one document.
#[utoipa::path(put, path = "/api/v1/namespaces/{namespace}/{kind}/{name}", tag = "documents",
    params(("namespace" = String, Path,), ("kind" = String, Path,), ("name" = String, Path,), ("If-Match" = Option<String>, Header,), ("If-None-Match" = Option<String>, Header,)),
    request_body(content = Object, description = "The document, as JSON or YAML"),
    responses((status = 200, body = ApplyReply), (status = 201, body = ApplyReply), (status = 409, body = Problem, content_type = PROBLEM_JSON, description = "It is not what the caller believed; `current` is what it is"), (status = 422, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn put_namespaced(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path((namespace, kind, name)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    put(&control, &actor, key_of(&kind, Some(&namespace), &name)?, &headers, body).await
}

/// Create or replace one document of a kind without namespaces.
#[utoipa::path(put, path = "/api/v1/{kind}/{name}", tag = "documents",
    params(("kind" = String, Path,), ("name" = String, Path,), ("If-Match" = Option<String>, Header,), ("If-None-Match" = Option<String>, Header,)),
    request_body(content = Object, description = "The document, as JSON or YAML"),
    responses((status = 200, body = ApplyReply), (status = 201, body = ApplyReply), (status = 409, body = Problem, content_type = PROBLEM_JSON, description = "It is not what the caller believed; `current` is what it is"), (status = 422, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn put_global(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path((kind, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    put(&control, &actor, key_of(&kind, None, &name)?, &headers, body).await
}

async fn put(
    control: &ControlPlane,
    actor: &Actor,
    key: DocumentKey,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    may(actor, Permission::WriteDocuments, &key)?;
    let body = read_body(body)?;
    let text = std::str::from_utf8(&body)
        .map_err(|_| Problem::bad_request("found bytes that are not UTF-8, expected a document as JSON or YAML"))?;
    let mut reading = Reading::default();
    reading.add("body", text, key.namespace.as_ref().unwrap_or(&default_namespace()));
    let Reading { documents, mut complaints } = reading;
    if let [document] = documents.as_slice()
        && *document.key() != key
    {
        let found = format!("document {}", document.key());
        complaints.push(Complaint {
            file: "body".to_owned(),
            key: "metadata".to_owned(),
            found,
            expected: format!("{key}, as the path says"),
            ..Complaint::default()
        });
    }
    let count = documents.len();
    let document: Document = match (documents.into_iter().next(), count) {
        (Some(document), 1) if complaints.is_empty() => document,
        _ if !complaints.is_empty() => return Err(Problem::invalid(complaints)),
        (_, count) => {
            return Err(Problem::bad_request(format_args!(
                "found {count} documents, expected one; /api/v1/apply takes several"
            )));
        }
    };
    let options =
        ApplyOptions { if_match: precondition(headers)?.map(|precondition| (key, precondition)), ..asked_by(actor) };
    let applied = control.apply(vec![document], options).await?;
    let created = applied.changes.iter().any(|change| change.action == Action::Created);
    let tag = etag(applied.changes.first().map_or("", |change| &change.version))?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, [(header::ETAG, tag)], Json(reply(applied, false))).into_response())
}

/// Delete one document.
#[utoipa::path(delete, path = "/api/v1/namespaces/{namespace}/{kind}/{name}", tag = "documents",
    params(("namespace" = String, Path,), ("kind" = String, Path,), ("name" = String, Path,), ("If-Match" = Option<String>, Header,)),
    responses((status = 200, body = ApplyReply), (status = 404, body = Problem, content_type = PROBLEM_JSON),
        (status = 409, body = Problem, content_type = PROBLEM_JSON, description = "It is not what the caller believed; `current` is what it is"), (status = 422, body = Problem, content_type = PROBLEM_JSON, description = "Another document needs it")))]
pub(super) async fn delete_namespaced(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path((namespace, kind, name)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<Json<ApplyReply>, Problem> {
    delete(&control, &actor, key_of(&kind, Some(&namespace), &name)?, &headers).await
}

/// Delete one document of a kind without namespaces.
#[utoipa::path(delete, path = "/api/v1/{kind}/{name}", tag = "documents",
    params(("kind" = String, Path,), ("name" = String, Path,), ("If-Match" = Option<String>, Header,)),
    responses((status = 200, body = ApplyReply), (status = 404, body = Problem, content_type = PROBLEM_JSON),
        (status = 409, body = Problem, content_type = PROBLEM_JSON, description = "It is not what the caller believed; `current` is what it is"), (status = 422, body = Problem, content_type = PROBLEM_JSON, description = "Another document needs it")))]
pub(super) async fn delete_global(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path((kind, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<ApplyReply>, Problem> {
    delete(&control, &actor, key_of(&kind, None, &name)?, &headers).await
}

async fn delete(
    control: &ControlPlane,
    actor: &Actor,
    key: DocumentKey,
    headers: &HeaderMap,
) -> Result<Json<ApplyReply>, Problem> {
    may(actor, Permission::WriteDocuments, &key)?;
    stored(control, &key)?;
    let if_match = precondition(headers)?.map(|precondition| (key.clone(), precondition));
    let applied = control.delete(vec![key], ApplyOptions { if_match, ..asked_by(actor) }).await?;
    Ok(Json(reply(applied, false)))
}

/// Delete documents together, as one epoch: all of them, or none.
///
/// One by one, a policy would go before the Service it protects.
#[utoipa::path(post, path = "/api/v1/delete", tag = "documents", request_body = DeleteRequest,
    responses((status = 200, body = ApplyReply), (status = 404, body = Problem, content_type = PROBLEM_JSON),
        (status = 422, body = Problem, content_type = PROBLEM_JSON, description = "Documents that stay need one of them")))]
pub(super) async fn delete_many(
    State(control): State<ControlPlane>,
    actor: Actor,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<ApplyReply>, Problem> {
    actor.has(Permission::WriteDocuments)?;
    let request: DeleteRequest = read_json(body)?;
    let key = |named: &DocumentName| key_of(&named.kind, named.namespace.as_deref(), &named.name);
    let mut keys = request.documents.iter().map(key).collect::<Result<Vec<_>, _>>()?;
    keys.iter().try_for_each(|key| may(&actor, Permission::WriteDocuments, key))?;
    let mut seen = HashSet::new();
    keys.retain(|key| seen.insert(key.clone()));
    if request.ignore_not_found {
        let truth = control.truth();
        keys.retain(|key| truth.documents.contains_key(key));
    }
    let applied = control.delete(keys, asked_by(&actor)).await?;
    Ok(Json(reply(applied, false)))
}

fn asked_by(actor: &Actor) -> ApplyOptions {
    ApplyOptions { by: By::token(actor), ..ApplyOptions::default() }
}

/// Whether the bearer may do this to a document.
pub(super) fn may(actor: &Actor, permission: Permission, key: &DocumentKey) -> Result<(), Denied> {
    let tenant = (key.kind == Kind::Tenant).then(|| TenantName::parse(key.name.as_str()).ok()).flatten();
    actor.may(
        permission,
        match (&key.namespace, &tenant) {
            (Some(namespace), _) => Place::Namespace(namespace),
            (None, Some(tenant)) => Place::Tenant(tenant),
            (None, None) => Place::Mesh,
        },
    )
}

/// The key of a document named by a path.
fn key_of(kind: &str, namespace: Option<&str>, name: &str) -> Result<DocumentKey, Problem> {
    let kind = kind_of(kind)?;
    match (kind.namespaced(), namespace) {
        (true, None) => {
            return Err(Problem::bad_request(format_args!(
                "{kind} documents live in a namespace: /api/v1/namespaces/NAMESPACE/{}/{name}",
                kind.plural()
            )));
        }
        (false, Some(_)) => {
            return Err(Problem::bad_request(format_args!(
                "{kind} documents have no namespace: /api/v1/{}/{name}",
                kind.plural()
            )));
        }
        _ => {}
    }
    let namespace = namespace.map(namespace_of).transpose()?;
    let name = ResourceName::parse(name).map_err(|bad| Problem::bad_request(format_args!("name: {bad}")))?;
    Ok(DocumentKey { kind, namespace, name })
}

/// The kind that a word means, in any spelling.
pub(super) fn kind_of(word: &str) -> Result<Kind, Problem> {
    Kind::from_word(word).ok_or_else(|| {
        let lower = word.to_lowercase();
        let known: Vec<String> = Kind::words().map(str::to_lowercase).collect();
        let near = nearest(&lower, known.iter().map(String::as_str))
            .map_or_else(String::new, |near| format!("; did you mean {near}?"));
        let shown: String = word.chars().take(80).collect();
        Problem::not_found(format_args!("kind {shown:?}{near}"))
    })
}

/// The namespace that a path names.
pub(super) fn namespace_of(text: &str) -> Result<Namespace, Problem> {
    Namespace::parse(text).map_err(|bad| Problem::bad_request(format_args!("namespace: {bad}")))
}

/// The body, when it could be read whole.
pub(super) fn read_body(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Problem> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format_args!("the body is larger than {} MiB; apply fewer files at a time", super::MAX_BODY >> 20),
        ),
        _ => Problem::bad_request(rejection.body_text()),
    })
}

/// The body as JSON of a known shape.
pub(super) fn read_json<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Problem> {
    let body = read_body(body)?;
    let mut json = serde_json::Deserializer::from_slice(&body);
    let read = serde_path_to_error::deserialize(&mut json);
    let read = read.map_err(|error| FieldError::in_body(pointer_to(&error), error.into_inner()));
    // What follows the value is a mistake too.
    let read = read.and_then(|read| match json.end() {
        Ok(()) => Ok(read),
        Err(error) => Err(FieldError::in_body(String::new(), error)),
    });
    read.map_err(|error| {
        let said = format!("the body is not what is expected here: {}; /openapi.json shows the shape", error.line());
        Problem { errors: Box::new([error]), ..Problem::bad_request(said) }
    })
}

/// What cannot be read of one value in one line: its place as complaints write it, its column, and what is wrong.
pub(super) fn at_its_place(error: serde_path_to_error::Error<serde_json::Error>) -> (String, u32, String) {
    let place: Vec<String> = steps_to(&error)
        .into_iter()
        .map(|step| match step {
            Step::Item(index) => format!("[{index}]"),
            Step::Key(key) => format!("[\"{key}\"]"),
        })
        .collect();
    let error = error.into_inner();
    let (line, column) = (error.line(), error.column());
    let said = error.to_string();
    // It knows of no line but this one, which the reader calls by its number in the body.
    let said = said.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&said).to_owned();
    (place.concat(), u32::try_from(column).unwrap_or_default(), said)
}

/// A place in a body that cannot be read, as a JSON pointer.
fn pointer_to(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let mut pointer = String::new();
    for step in steps_to(error) {
        match step {
            Step::Item(index) => push_token(&mut pointer, &index.to_string()),
            Step::Key(key) => push_token(&mut pointer, &key),
        }
    }
    pointer
}

/// One step into a body.
enum Step {
    Item(usize),
    Key(String),
}

/// The way to what cannot be read. Something that is missing is told where it ought to be.
fn steps_to(error: &serde_path_to_error::Error<serde_json::Error>) -> Vec<Step> {
    let steps = error.path().iter().filter_map(|segment| match segment {
        Segment::Seq { index } => Some(Step::Item(*index)),
        Segment::Map { key } => Some(Step::Key(key.clone())),
        Segment::Enum { .. } | Segment::Unknown => None,
    });
    let said = error.inner().to_string();
    let missing = said.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    steps.chain(missing.map(|name| Step::Key(name.to_owned()))).collect()
}
