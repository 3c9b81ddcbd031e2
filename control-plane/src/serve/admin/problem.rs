//! Every refusal of the admin API, as problem+json (RFC 9457): a word for programs, a sentence for people, and a JSON pointer
//! to each place that is wrong.

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use equerry_policies::complaint::Complaint;
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Limited};

use super::shapes::{FieldError, Problem};

/// The media type of every error.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// Longest text of a framework's own error that is quoted.
const MAX_QUOTED: usize = 4096;

impl Problem {
    /// A refusal with `status`; `reason` is for programs, `detail` says what happened and what to do.
    pub fn new(status: StatusCode, reason: &str, detail: impl std::fmt::Display) -> Self {
        Self {
            kind: "about:blank".into(),
            title: status.canonical_reason().unwrap_or("Error").into(),
            status: status.as_u16(),
            reason: reason.into(),
            detail: detail.to_string().into(),
            complaints: Box::default(),
            errors: Box::default(),
            current: None,
        }
    }

    /// Documents with mistakes; what is only hardly meant in them is told among the complaints.
    pub fn invalid(complaints: Vec<Complaint>) -> Self {
        let mistakes = || complaints.iter().filter(|complaint| !complaint.warning);
        let count = mistakes().count();
        let plural = if count == 1 { "" } else { "s" };
        let first = mistakes().next().map(Complaint::line).unwrap_or_default();
        let mut problem = Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid",
            format_args!("{count} mistake{plural}, nothing was changed; the first: {first}"),
        );
        problem.errors = mistakes().map(FieldError::of).collect();
        problem.complaints = complaints.into();
        problem
    }

    /// A request with one wrong place.
    pub(super) fn bad_field(error: FieldError) -> Self {
        Self::bad_fields(vec![error])
    }

    /// A request with wrong places.
    pub(super) fn bad_fields(errors: Vec<FieldError>) -> Self {
        let said: Vec<String> = errors.iter().map(FieldError::line).collect();
        Self { errors: errors.into(), ..Self::bad_request(said.join("; ")) }
    }

    /// Something is not as the caller believed; `current` is the version that is kept.
    pub(super) fn conflict(current: Option<String>, detail: impl std::fmt::Display) -> Self {
        Self { current: current.map(String::into_boxed_str), ..Self::new(StatusCode::CONFLICT, "conflict", detail) }
    }

    /// Something that is not there.
    pub fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format_args!("there is no {what}"))
    }

    /// A request that cannot be understood.
    pub fn bad_request(detail: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", detail)
    }
}

impl FieldError {
    /// A parameter of the query that is wrong.
    pub(super) fn in_parameter(name: &str, detail: impl std::fmt::Display) -> Self {
        Self { pointer: None, parameter: Some(name.to_owned()), detail: detail.to_string() }
    }

    /// A place in the body that is wrong.
    pub(super) fn in_body(pointer: String, detail: impl std::fmt::Display) -> Self {
        Self { pointer: Some(pointer), parameter: None, detail: detail.to_string() }
    }

    /// A mistake of a body or a document.
    pub(super) fn of(complaint: &Complaint) -> Self {
        let place = match (complaint.file.as_str(), complaint.line) {
            (_, 0) => String::new(),
            ("" | "body", line) => format!("line {line}: "),
            (file, line) => format!("{file}, line {line}: "),
        };
        let nearest = complaint.nearest.as_ref().map_or_else(String::new, |near| format!("; did you mean {near}?"));
        let is = if complaint.is_unsupported() { ", which is" } else { ", expected" };
        let detail = format_args!("{place}found {}{is} {}{nearest}", complaint.found, complaint.expected).to_string();
        Self::in_body(pointer_of(&complaint.key), detail)
    }

    /// Place and mistake in one line.
    pub(super) fn line(&self) -> String {
        match self.parameter.as_deref().or(self.pointer.as_deref()) {
            Some(place) if !place.is_empty() => format!("{place}: {}", self.detail),
            _ => self.detail.clone(),
        }
    }
}

/// A place as complaints write it, such as `spec.rules[0].labels["a.b"]`, as a JSON pointer.
fn pointer_of(key: &str) -> String {
    let mut pointer = String::new();
    let mut rest = key;
    while !rest.is_empty() {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if let Some(inside) = rest.strip_prefix("[\"") {
            let end = inside.find("\"]").unwrap_or(inside.len());
            push_token(&mut pointer, &inside[..end]);
            rest = inside.get(end + 2..).unwrap_or_default();
        } else if let Some(inside) = rest.strip_prefix('[') {
            let end = inside.find(']').unwrap_or(inside.len());
            push_token(&mut pointer, &inside[..end]);
            rest = inside.get(end + 1..).unwrap_or_default();
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            push_token(&mut pointer, &rest[..end]);
            rest = &rest[end..];
        }
    }
    pointer
}

/// Adds one reference token (RFC 6901).
pub(super) fn push_token(pointer: &mut String, token: &str) {
    pointer.push('/');
    pointer.push_str(&token.replace('~', "~0").replace('/', "~1"));
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let said = Said { reason: self.reason, detail: self.detail.into() };
        let mut response = (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"equerry\""));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(tag) = self.current.and_then(|version| HeaderValue::from_str(&format!("\"{version}\"")).ok()) {
            response.headers_mut().insert(header::ETAG, tag);
        }
        response.extensions_mut().insert(said);
        response
    }
}

/// What a refusal said, for the audit log.
#[derive(Debug, Clone)]
pub(super) struct Said {
    /// For programs.
    pub(super) reason: Box<str>,
    /// For people.
    pub(super) detail: String,
}

/// Turns the errors that axum and tower-http write themselves (no such route, wrong method, too large, panic) into
/// problems.
pub(super) async fn every_error_is_a_problem(request: Request, next: Next) -> Response {
    let place = format!("{} {}", request.method(), request.uri().path());
    let response = next.run(request).await;
    let status = response.status();
    let ours = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(PROBLEM_JSON.as_bytes()));
    if ours || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (head, body) = response.into_parts();
    let problem = match status {
        StatusCode::NOT_FOUND => Problem::not_found(format_args!("{place} here; /openapi.json lists what there is")),
        StatusCode::METHOD_NOT_ALLOWED => Problem::new(
            status,
            "method_not_allowed",
            format_args!("{place} is not possible; /openapi.json lists what is"),
        ),
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            status,
            "too_large",
            format_args!("the body is larger than {} MiB; apply fewer files at a time", super::MAX_BODY >> 20),
        ),
        StatusCode::INTERNAL_SERVER_ERROR => {
            Problem::new(status, "internal", "the control plane failed to answer; its log says why")
        }
        _ => Problem::new(status, "bad_request", quoted(body).await),
    };
    let mut answer = problem.into_response();
    for (name, value) in &head.headers {
        if *name == header::ALLOW {
            answer.headers_mut().insert(name, value.clone());
        }
    }
    answer
}

async fn quoted(body: Body) -> String {
    match Limited::new(body, MAX_QUOTED).collect().await {
        Ok(collected) => String::from_utf8_lossy(&collected.to_bytes()).into_owned(),
        Err(_) => "the request cannot be understood".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_a_document_is_a_json_pointer_that_leads_there() {
        for (key, pointer) in [
            ("", ""),
            ("spec", "/spec"),
            ("spec.rules[0].backendRefs[10].name", "/spec/rules/0/backendRefs/10/name"),
            ("metadata.labels[\"a.b/c\"]", "/metadata/labels/a.b~1c"),
            ("spec.portLevelMtls[\"9090\"].mode", "/spec/portLevelMtls/9090/mode"),
            ("instances[3].ports", "/instances/3/ports"),
            ("x~y", "/x~0y"),
            ("[", "/"),
            ("[\"open", "/open"),
        ] {
            assert_eq!(pointer_of(key), pointer, "{key}");
        }
    }
}
