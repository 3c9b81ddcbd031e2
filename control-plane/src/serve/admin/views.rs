//! The control plane itself, and what its store refuses.

use axum::Json;
use axum::extract::State;
use http::StatusCode;

use super::shapes::{Problem, VersionReply};
use crate::control::ControlPlane;
use crate::store::StoreError;

/// A store's refusal.
pub(super) fn store_refused(error: &StoreError) -> Problem {
    match error {
        StoreError::Full => Problem::new(StatusCode::INSUFFICIENT_STORAGE, "store_full", error),
        _ => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "store_failed", error),
    }
}

/// Version and epoch.
#[utoipa::path(get, path = "/api/v1/version", tag = "mesh", responses((status = 200, body = VersionReply)))]
pub(super) async fn version(State(control): State<ControlPlane>) -> Json<VersionReply> {
    Json(VersionReply { version: env!("CARGO_PKG_VERSION").to_owned(), epoch: control.epoch() })
}
