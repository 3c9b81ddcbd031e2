//! What this control plane logs of itself, and how to change that for a while.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::documents::read_json;
use super::problem::PROBLEM_JSON;
use super::shapes::Problem;
use super::views::store_refused;
use crate::access::{Actor, Permission, Place};
use crate::audit::{By, Note};
use crate::control::ControlPlane;
use crate::log::{Levels, LogRefusal};

/// What is to be logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct LogRequest {
    /// error, warn, info, debug, trace, or MODULE=LEVEL,...
    #[schema(example = "info,equerry_control_plane::store=debug")]
    filter: String,
    /// For how long, 1 s to 24 h; 600 unless said.
    #[serde(default = "usual_seconds")]
    seconds: u64,
}

fn usual_seconds() -> u64 {
    crate::log::USUAL_STAY.as_secs()
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct LogReply {
    /// What holds now.
    filter: String,
    /// For so long yet; absent: until somebody changes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seconds_left: Option<u64>,
    /// What holds after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    afterwards: Option<String>,
}

/// What is logged now.
#[utoipa::path(get, path = "/api/v1/log", tag = "log",
    responses((status = 200, body = LogReply), (status = 403, body = Problem, content_type = PROBLEM_JSON), (status = 409, body = Problem, content_type = PROBLEM_JSON, description = "Another part of the process keeps the log")))]
pub(super) async fn show(actor: Actor) -> Result<Json<LogReply>, Problem> {
    actor.may(Permission::Read, Place::Mesh)?;
    Ok(Json(shown(levels()?)))
}

/// Log something else for a while; it goes back by itself.
#[utoipa::path(put, path = "/api/v1/log", tag = "log", request_body = LogRequest,
    responses((status = 200, body = LogReply), (status = 400, body = Problem, content_type = PROBLEM_JSON), (status = 403, body = Problem, content_type = PROBLEM_JSON), (status = 409, body = Problem, content_type = PROBLEM_JSON, description = "Another part of the process keeps the log")))]
pub(super) async fn set(
    State(control): State<ControlPlane>,
    actor: Actor,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<LogReply>, Problem> {
    actor.may(Permission::ChangeLog, Place::Mesh)?;
    let LogRequest { filter, seconds } = read_json(body)?;
    let levels = levels()?;
    levels.set(&filter, Some(Duration::from_secs(seconds))).map_err(|refusal| match refusal {
        LogRefusal::Filter(_) => Problem::bad_request(format_args!("filter: {refusal}")),
        LogRefusal::Stay(_) => Problem::bad_request(format_args!("seconds: found {seconds}, expected 1 to 86400")),
        LogRefusal::NotOurs => not_ours(),
    })?;
    let about = vec![format!("the log is {filter} for {seconds} s")];
    let noted = control.note(Note::done(By::token(&actor), "log.change", about)).await;
    noted.map_err(|error| {
        // What nobody may learn of does not happen.
        levels.back();
        store_refused(&error)
    })?;
    Ok(Json(shown(levels)))
}

/// Log what the operator set again, at once.
#[utoipa::path(delete, path = "/api/v1/log", tag = "log",
    responses((status = 200, body = LogReply), (status = 403, body = Problem, content_type = PROBLEM_JSON), (status = 409, body = Problem, content_type = PROBLEM_JSON, description = "Another part of the process keeps the log")))]
pub(super) async fn back(State(control): State<ControlPlane>, actor: Actor) -> Result<Json<LogReply>, Problem> {
    actor.may(Permission::ChangeLog, Place::Mesh)?;
    let levels = levels()?;
    let about = vec!["the log is as the operator set it".to_owned()];
    let noted = control.note(Note::done(By::token(&actor), "log.change", about)).await;
    noted.map_err(|error| store_refused(&error))?;
    levels.back();
    Ok(Json(shown(levels)))
}

fn levels() -> Result<&'static Levels, Problem> {
    Levels::own().ok_or_else(not_ours)
}

fn not_ours() -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "not_ours",
        "the program that this control plane runs in keeps the log: change it there",
    )
}

fn shown(levels: &Levels) -> LogReply {
    let (filter, instead) = levels.shown();
    let (seconds_left, afterwards) = instead.map(|(left, afterwards)| (left.as_secs(), afterwards)).unzip();
    LogReply { filter, seconds_left, afterwards }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::Method;
    use serde_json::json;

    use super::super::harness::Place as House;
    use super::*;
    use crate::access::{Limits, Role};
    use crate::log::tests::as_own;

    #[tokio::test]
    async fn an_admin_changes_the_log_for_a_while_and_that_is_written_down() {
        as_own();
        let mut house = House::new().await;
        let asked = json!({"filter": "info,equerry_control_plane::store=debug", "seconds": 60});
        let set = house.ask(Method::PUT, "/api/v1/log", &[], asked.to_string()).await;
        assert_eq!(set.status, StatusCode::OK, "{}", set.text());
        let now = house.get("/api/v1/log").await.json();
        assert_eq!((&now["filter"], &now["afterwards"]), (&asked["filter"], &json!("info")), "{now}");
        assert!(now["secondsLeft"].as_u64().is_some_and(|left| left <= 60));
        assert!(house.get("/api/v1/audit").await.text().contains("log.change"));
        for wrong in [json!({"filter": "louder"}), json!({"filter": "info", "seconds": 0}), json!({"filtre": "info"})] {
            let refused = house.ask(Method::PUT, "/api/v1/log", &[], wrong.to_string()).await;
            assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{wrong}: {}", refused.text());
        }
        let back = house.ask(Method::DELETE, "/api/v1/log", &[], Body::empty()).await.json();
        assert_eq!(back, json!({"filter": "info"}));

        let operator =
            house.control.create_admin_token("op", Role::Operator, Limits::default(), By::name("test")).await;
        house.token = operator.unwrap();
        let refused = house.ask(Method::PUT, "/api/v1/log", &[], asked.to_string()).await;
        refused.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
        assert_eq!(house.get("/api/v1/log").await.json(), json!({"filter": "info"}));
    }
}
