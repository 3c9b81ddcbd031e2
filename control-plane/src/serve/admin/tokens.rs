//! Tokens over HTTP: those with which workloads join, and those of this API. A secret is shown once, when it is made.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use bytes::Bytes;
use equerry_policies::names::{Account, AccountName, Namespace};
use http::StatusCode;

use super::documents::read_json;
use super::problem::PROBLEM_JSON;
use super::proxies::unix;
use super::shapes::{AdminTokenList, AdminTokenReply, JoinTokenReply, Problem, TokenList, TokenReply, TokenRequest};
use super::views::store_refused;
use crate::access::{Actor, Permission, Place};
use crate::audit::By;
use crate::control::ControlPlane;
use crate::store::tokens::{JoinTokenState, MAX_JOIN_TTL, TokenError};

/// Longest name of an admin token.
const MAX_TOKEN_NAME: usize = 100;

/// Make a token.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "tokens", request_body = TokenRequest,
    responses((status = 201, body = TokenReply), (status = 400, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn create(
    State(control): State<ControlPlane>,
    actor: Actor,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<TokenReply>), Problem> {
    actor.has(Permission::AdmitWorkloads)?;
    let token = match read_json(body)? {
        TokenRequest::Join { namespace, account, ttl_seconds } => {
            let namespace =
                Namespace::parse(&namespace).map_err(|bad| Problem::bad_request(format_args!("namespace: {bad}")))?;
            let account =
                Account::parse(&account).map_err(|bad| Problem::bad_request(format_args!("account: {bad}")))?;
            if ttl_seconds == 0 || ttl_seconds > MAX_JOIN_TTL.as_secs() {
                let longest = MAX_JOIN_TTL.as_secs();
                return Err(Problem::bad_request(format_args!(
                    "ttlSeconds: found {ttl_seconds}, expected 1 to {longest} (7 days)"
                )));
            }
            actor.may(Permission::AdmitWorkloads, Place::Namespace(&namespace))?;
            control
                .create_join_token(
                    AccountName::new(namespace, account),
                    Duration::from_secs(ttl_seconds),
                    By::token(&actor),
                )
                .await
        }
        TokenRequest::Admin { name, role, limits } => {
            actor.may(Permission::AdmitPeople, Place::Mesh)?;
            if name.is_empty() || name.len() > MAX_TOKEN_NAME || name.chars().any(char::is_control) {
                return Err(Problem::bad_request(format_args!(
                    "name: expected 1 to {MAX_TOKEN_NAME} printable characters"
                )));
            }
            control.create_admin_token(&name, role, limits, By::token(&actor)).await
        }
    };
    let token = token.map_err(|error| match error {
        TokenError::Store(error) => store_refused(&error),
        TokenError::Reserved { .. } => Problem::bad_request(format_args!("account: {error}")),
        other => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", other),
    })?;
    Ok((StatusCode::CREATED, Json(TokenReply { token })))
}

/// Join tokens, without their secrets.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "tokens", responses((status = 200, body = TokenList)))]
pub(super) async fn list(State(control): State<ControlPlane>, actor: Actor) -> Result<Json<TokenList>, Problem> {
    let tokens = control.join_tokens().await.map_err(|error| store_refused(&error))?;
    let seen = tokens
        .into_iter()
        .filter(|token| actor.may(Permission::AdmitWorkloads, Place::Namespace(&token.account.namespace)).is_ok());
    let items = seen.map(|token| JoinTokenReply {
        id: token.id,
        account: token.account.to_string(),
        state: match token.state {
            JoinTokenState::Unused => "unused",
            JoinTokenState::Used => "used",
            JoinTokenState::Expired => "expired",
            JoinTokenState::Revoked => "revoked",
        }
        .to_owned(),
        expires_unix: unix(token.expires),
    });
    Ok(Json(TokenList { items: items.collect() }))
}

/// Take a join token back.
#[utoipa::path(delete, path = "/api/v1/tokens/{id}", tag = "tokens", params(("id" = String, Path, description = "Its public part")),
    responses((status = 204), (status = 404, body = Problem, content_type = PROBLEM_JSON), (status = 409, body = Problem, content_type = PROBLEM_JSON, description = "It was used or revoked before")))]
pub(super) async fn revoke(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let tokens = control.join_tokens().await.map_err(|error| store_refused(&error))?;
    let token = tokens.into_iter().find(|token| token.id == id);
    let token = token.ok_or_else(|| Problem::not_found(format_args!("join token {id:?}")))?;
    actor.may(Permission::AdmitWorkloads, Place::Namespace(&token.account.namespace))?;
    match control.revoke_join_token(&id, By::token(&actor)).await.map_err(|error| store_refused(&error))? {
        Some(true) => Ok(StatusCode::NO_CONTENT),
        Some(false) => Err(Problem::new(
            StatusCode::CONFLICT,
            "over",
            format_args!(
                "join token {id} lets nobody in any more: it was used or revoked before; `equerry token list` says which"
            ),
        )),
        None => Err(Problem::not_found(format_args!("join token {id:?}"))),
    }
}

/// Tokens of this API, without their secrets.
#[utoipa::path(get, path = "/api/v1/admin-tokens", tag = "tokens", responses((status = 200, body = AdminTokenList)))]
pub(super) async fn list_admins(
    State(control): State<ControlPlane>,
    actor: Actor,
) -> Result<Json<AdminTokenList>, Problem> {
    actor.may(Permission::AdmitPeople, Place::Mesh)?;
    let items = control.admin_tokens().into_iter().map(|row| AdminTokenReply {
        id: row.actor.id,
        name: row.actor.name,
        role: row.actor.role,
        limits: row.actor.limits,
        created_unix: unix(row.created),
    });
    Ok(Json(AdminTokenList { items: items.collect() }))
}

/// Take a token of this API back, at once. Not the last that may do everything: nobody could make another.
#[utoipa::path(delete, path = "/api/v1/admin-tokens/{id}", tag = "tokens", params(("id" = String, Path, description = "Its public part")),
    responses((status = 204), (status = 404, body = Problem, content_type = PROBLEM_JSON), (status = 409, body = Problem, content_type = PROBLEM_JSON, description = "The last that may do everything")))]
pub(super) async fn revoke_admin(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    actor.may(Permission::AdmitPeople, Place::Mesh)?;
    let others = control.admin_tokens().into_iter().filter(|row| row.actor.id != id);
    let mut mighty = others.filter(|row| row.actor.may(Permission::AdmitPeople, Place::Mesh).is_ok());
    if mighty.next().is_none() {
        let detail = format_args!(
            "{id} is the last token that may make others: make another first, `equerry token create admin`"
        );
        return Err(Problem::new(StatusCode::CONFLICT, "last", detail));
    }
    match control.revoke_admin_token(&id, By::token(&actor)).await {
        Ok(true) => Ok(StatusCode::NO_CONTENT),
        Ok(false) => Err(Problem::not_found(format_args!("admin token {id:?}"))),
        Err(error) => Err(store_refused(&error)),
    }
}
