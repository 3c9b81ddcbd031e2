//! The admin API on port 15014: documents, and what the control plane knows, for people and programs with an admin token.
//!
//! A request passes from the outside in: counted, every error a problem, body limit, token, overload, time limit, handler. Only
//! `/healthz`, `/metrics` and `/openapi.json` need no token.

#[cfg(test)]
mod access_tests;
mod audit;
mod calls;
mod certs;
mod description;
mod documents;
mod door;
#[cfg(test)]
mod harness;
mod instances;
#[cfg(test)]
mod instances_tests;
mod listing;
#[cfg(test)]
mod lists_tests;
mod log;
mod page;
mod params;
mod pieces;
mod problem;
mod proxies;
mod related;
mod selector;
mod services;
mod shadows;
pub mod shapes;
#[cfg(test)]
mod tests;
mod tokens;
mod usage;
mod versions;
mod views;
mod watch;

use std::sync::Arc;

use axum::Router;
use axum::error_handling::HandleErrorLayer;
use axum::extract::{DefaultBodyLimit, State};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::get;
use http::{HeaderValue, header};
use tower::ServiceBuilder;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use problem::PROBLEM_JSON;

use crate::control::ControlPlane;
use crate::metrics::Reading;
use shapes::Problem;

/// Largest body: every file of a large mesh in one apply.
pub(crate) const MAX_BODY: usize = 64 << 20;

/// The whole admin API over `control`.
pub fn router(control: ControlPlane) -> Router {
    let (api, description) = api().split_for_parts();
    let description: Arc<str> = description::finished(&description).into();
    let shared = control.clone();
    let within_limits = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(move |error| door::beyond_limits(State(shared.clone()), error)))
        .load_shed()
        .layer(GlobalConcurrencyLimitLayer::new(door::MAX_AT_ONCE))
        .timeout(door::ANSWER_WITHIN);
    let api = api.layer(within_limits).layer(from_fn_with_state(control.clone(), door::only_with_a_token));
    let open = Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(move || openapi(Arc::clone(&description))));
    api.merge(open)
        .layer(CatchPanicLayer::new())
        .layer(DefaultBodyLimit::disable())
        .layer(RequestBodyLimitLayer::new(MAX_BODY))
        .layer(from_fn(problem::every_error_is_a_problem))
        .layer(from_fn_with_state(control.clone(), door::counted))
        .with_state(control)
}

/// Every route that needs a token, with its description.
fn api() -> OpenApiRouter<ControlPlane> {
    OpenApiRouter::with_openapi(description::introduction())
        .routes(routes!(documents::apply))
        .routes(routes!(documents::delete_many))
        .routes(routes!(listing::list))
        .routes(routes!(listing::list_namespaced))
        .routes(routes!(listing::list_global))
        .routes(routes!(documents::get_namespaced, documents::put_namespaced, documents::delete_namespaced))
        .routes(routes!(documents::get_global, documents::put_global, documents::delete_global))
        .routes(routes!(instances::list))
        .routes(routes!(instances::get, instances::put, instances::delete))
        .routes(routes!(instances::bulk))
        .routes(routes!(views::version))
        .routes(routes!(views::config))
        .routes(routes!(proxies::list))
        .routes(routes!(proxies::epoch))
        .routes(routes!(services::list))
        .routes(routes!(services::get))
        .routes(routes!(calls::list))
        .routes(routes!(calls::recent))
        .routes(routes!(calls::tap))
        .routes(routes!(shadows::list))
        .routes(routes!(usage::list))
        .routes(routes!(usage::get))
        .routes(routes!(certs::report))
        .routes(routes!(certs::rotation, certs::start, certs::cancel))
        .routes(routes!(certs::advance))
        .routes(routes!(certs::revocations, certs::revoke))
        .routes(routes!(certs::restore))
        .routes(routes!(log::show, log::set, log::back))
        .routes(routes!(audit::lines))
        .routes(routes!(audit::head))
        .routes(routes!(tokens::create, tokens::list))
        .routes(routes!(tokens::revoke))
        .routes(routes!(tokens::list_admins))
        .routes(routes!(tokens::revoke_admin))
}

async fn openapi(description: Arc<str>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], description.to_string())
}

/// Alive: it answers, and what it serves was read from its store.
async fn healthz() -> &'static str {
    "ok\n"
}

async fn metrics(State(control): State<ControlPlane>) -> Result<impl IntoResponse, Problem> {
    let text = control.metrics().text(reading(&control));
    let text = text.map_err(|error| Problem::new(http::StatusCode::INTERNAL_SERVER_ERROR, "internal", error))?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"))], text))
}

fn reading(control: &ControlPlane) -> Reading {
    let (proxies, instances) = (control.proxies(), control.instances());
    let connected = proxies.iter().filter(|proxy| proxy.connected).count();
    let healthy = instances.iter().filter(|instance| instance.registration.healthy).count();
    Reading {
        epoch: control.epoch(),
        documents: control.truth().documents.len(),
        connected,
        away: proxies.len() - connected,
        behind: proxies.iter().filter(|proxy| proxy.connected && proxy.acked_epoch < proxy.wanted_epoch).count(),
        healthy,
        unhealthy: instances.len() - healthy,
        ends: certs::ends(control, &proxies),
        audit: control.audit_proof(),
    }
}
