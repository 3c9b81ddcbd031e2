//! The control plane itself, and what its store refuses.

use axum::Json;
use axum::extract::State;
use http::StatusCode;

use super::problem::PROBLEM_JSON;
use super::proxies::unix;
use super::shapes::{AuditProofReply, ConfigReply, Problem, SettingReply, VersionReply};
use crate::access::{Actor, Permission, Place};
use crate::control::ControlPlane;
use crate::store::StoreError;

/// A store's refusal.
pub(super) fn store_refused(error: &StoreError) -> Problem {
    match error {
        StoreError::Full => Problem::new(StatusCode::INSUFFICIENT_STORAGE, "store_full", error),
        _ => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "store_failed", error),
    }
}

/// Version and epoch, and whether the audit log proves itself.
#[utoipa::path(get, path = "/api/v1/version", tag = "mesh", responses((status = 200, body = VersionReply)))]
pub(super) async fn version(State(control): State<ControlPlane>) -> Json<VersionReply> {
    let proof = control.audit_proof();
    let audit = AuditProofReply {
        verified: proof.tampered.is_none(),
        up_to: proof.up_to,
        at_unix: proof.at.map(unix),
        found: proof.tampered.map(|tampered| tampered.to_string()),
    };
    Json(VersionReply { version: env!("CARGO_PKG_VERSION").to_owned(), epoch: control.epoch(), audit: Some(audit) })
}

/// What the operator set, as it is in force, and who said each.
#[utoipa::path(get, path = "/config", tag = "mesh",
    responses((status = 200, body = ConfigReply), (status = 403, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn config(State(control): State<ControlPlane>, actor: Actor) -> Result<Json<ConfigReply>, Problem> {
    actor.may(Permission::Read, Place::Mesh)?;
    let told = control.settings();
    let settings = told.iter().map(|setting| SettingReply {
        name: setting.name.to_owned(),
        value: setting.value.clone(),
        said: setting.said.clone(),
    });
    Ok(Json(ConfigReply { settings: settings.collect() }))
}
