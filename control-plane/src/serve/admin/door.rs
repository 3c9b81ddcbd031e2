//! Who may come in, how many at once, and what is counted: everything around the handlers.

use std::time::{Duration, Instant};

use axum::BoxError;
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, header};

use super::problem::Said;
use super::shapes::Problem;
use crate::access::{Actor, Denied};
use crate::audit::{By, Note};
use crate::control::ControlPlane;

/// Longest bearer token that is looked at.
const MAX_TOKEN: usize = 256;

/// Requests answered at once; more are told to come back.
pub(super) const MAX_AT_ONCE: usize = 64;
/// Longest time for one answer.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Lets in whoever has an admin token; handlers find out who it is, and ask what they may do.
pub(super) async fn only_with_a_token(
    State(control): State<ControlPlane>,
    mut request: Request,
    next: Next,
) -> Response {
    let about = format!("{} {}", request.method(), request.uri().path());
    let reads = request.method().is_safe();
    let refused = match bearer(request.headers()).map(|token| control.bearer(token)) {
        Some(Some(actor)) => {
            let by = By::token(&actor);
            request.extensions_mut().insert(actor);
            let response = next.run(request).await;
            let status = response.status();
            let refused = status == StatusCode::FORBIDDEN || !reads && status.is_client_error();
            match response.extensions().get::<Said>() {
                Some(said) if refused => {
                    control.refused(Note::refused(by, "admin", vec![about], &said.reason, &said.detail)).await;
                }
                Some(said) if status.is_server_error() => {
                    let (status, reason, why) = (status.as_u16(), &*said.reason, &*said.detail);
                    tracing::error!(by = by.name, token = by.token, about, status, reason, why, "not answered");
                }
                _ if !reads => tracing::info!(by = by.name, token = by.token, about, status = status.as_u16(), "done"),
                _ => {}
            }
            return response;
        }
        Some(None) => Problem::new(
            StatusCode::UNAUTHORIZED,
            "token_invalid",
            "this admin token is not known here: it was revoked, or another control plane made it; the first token of this one is in admin.token in its state directory",
        ),
        None => Problem::new(
            StatusCode::UNAUTHORIZED,
            "token_missing",
            "an admin token is needed: Authorization: Bearer TOKEN",
        ),
    };
    control.metrics().admin_refused("token");
    let by = By::name("somebody without a token that is known here");
    control.refused(Note::refused(by, "admin", vec![about], &refused.reason, &refused.detail)).await;
    refused.into_response()
}

/// Whoever asks, as the door found out; behind the door there is nobody without.
impl<S: Send + Sync> FromRequestParts<S> for Actor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let nobody = || Problem::new(StatusCode::UNAUTHORIZED, "token_missing", "nobody is known to ask");
        parts.extensions.get::<Self>().cloned().ok_or_else(nobody)
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_missing", denied)
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= MAX_TOKEN).then_some(token)
}

/// Counts every answer by route template.
pub(super) async fn counted(State(control): State<ControlPlane>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let method = known(request.method());
    let response = next.run(request).await;
    control.metrics().admin_answered(route, method, response.status().as_u16(), started.elapsed());
    response
}

/// A method a client made up does not become a label.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET | Method::HEAD => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

/// What tower's limits refuse, as a problem.
pub(super) async fn beyond_limits(State(control): State<ControlPlane>, error: BoxError) -> Problem {
    if error.is::<tower::timeout::error::Elapsed>() {
        control.metrics().admin_refused("timeout");
        return Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "timeout",
            format_args!("no answer within {} s; what was asked for may still happen", ANSWER_WITHIN.as_secs()),
        );
    }
    control.metrics().admin_refused("overload");
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "overload",
        format_args!("{MAX_AT_ONCE} requests are being answered already; try again in a moment"),
    )
}
