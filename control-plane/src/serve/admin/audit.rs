//! The audit log over HTTP: its lines as they are kept, and where it ends.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;

use super::params::Params;
use super::problem::PROBLEM_JSON;
use super::shapes::{AuditHead, Problem};
use super::views::store_refused;
use crate::access::{Actor, Permission, Place};
use crate::control::ControlPlane;

/// Most lines in one answer.
const MOST: usize = 1_000;

/// Which lines are asked for.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `lines` reads")]
pub(super) struct Window {
    /// Only entries after this one.
    after: Option<u64>,
    /// At most so many, 1 to 1,000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// Entries of the audit log, one a line, the oldest first.
#[utoipa::path(get, path = "/api/v1/audit", tag = "audit", params(Window),
    responses((status = 200, content_type = "application/x-ndjson", body = crate::audit::Entry), (status = 403, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn lines(
    State(control): State<ControlPlane>,
    actor: Actor,
    mut params: Params,
) -> Result<Response, Problem> {
    actor.may(Permission::ReadAudit, Place::Mesh)?;
    // No entry has a larger number than a store can hold.
    let after = params.number("after", 0..=i64::MAX.unsigned_abs()).unwrap_or_default();
    let limit = params.number("limit", 1..=MOST as u64).and_then(|limit| usize::try_from(limit).ok()).unwrap_or(MOST);
    params.finish()?;
    let lines = control.audit_lines(after, limit).await.map_err(|error| store_refused(&error))?;
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
