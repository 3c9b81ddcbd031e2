//! The audit log over HTTP: its lines as they are kept, and where it ends.

use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use http::header;
use serde::Deserialize;

use super::problem::PROBLEM_JSON;
use super::shapes::{AuditHead, Problem};
use super::views::store_refused;
use crate::access::{Actor, Permission, Place};
use crate::control::ControlPlane;

/// Most lines in one answer.
const MOST: usize = 1_000;

/// Which lines are asked for.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Window {
    /// Only entries after this one.
    #[serde(default)]
    after: u64,
    /// At most so many, 1 to 1,000.
    #[serde(default = "most")]
    limit: usize,
}

fn most() -> usize {
    MOST
}

/// Entries of the audit log, one a line, the oldest first.
#[utoipa::path(get, path = "/api/v1/audit", tag = "audit", params(Window),
    responses((status = 200, content_type = "application/x-ndjson", body = crate::audit::Entry), (status = 403, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn lines(
    State(control): State<ControlPlane>,
    actor: Actor,
    Query(window): Query<Window>,
) -> Result<Response, Problem> {
    actor.may(Permission::ReadAudit, Place::Mesh)?;
    if !(1..=MOST).contains(&window.limit) {
        return Err(Problem::bad_request(format_args!("limit: found {}, expected 1 to {MOST}", window.limit)));
    }
    let lines = control.audit_lines(window.after, window.limit).await.map_err(|error| store_refused(&error))?;
    let text: String = lines.into_iter().flat_map(|line| [line, "\n".to_owned()]).collect();
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], text).into_response())
}

/// The last entry of the audit log, and the key that signs its checkpoints.
#[utoipa::path(get, path = "/api/v1/audit/head", tag = "audit", responses((status = 200, body = AuditHead), (status = 403, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn head(State(control): State<ControlPlane>, actor: Actor) -> Result<Json<AuditHead>, Problem> {
    actor.may(Permission::ReadAudit, Place::Mesh)?;
    let head = control.audit_head().await.map_err(|error| store_refused(&error))?;
    Ok(Json(AuditHead { head, key: control.authority().audit_key().verifying_key().to_string() }))
}
