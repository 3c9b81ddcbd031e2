//! Instances that somebody else registers: a machine's own agent, a test, another registry. They hold leases like all others.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, Query, State};
use bytes::Bytes;
use equerry_policies::names::{AccountName, InstanceId, Namespace};
use equerry_policies::policy::weight;
use futures_util::future::join_all;
use http::StatusCode;
use serde::Deserialize;

use super::documents::read_json;
use super::problem::PROBLEM_JSON;
use super::shapes::{InstanceReply, InstanceRequest, InstancesReply, InstancesRequest, Problem};
use super::views::store_refused;
use crate::control::{ControlPlane, LeaseError};
use crate::registry::{InstanceKey, Registration};

/// Most instances in one request.
const MAX_AT_ONCE: usize = 10_000;
/// Longest lease, in seconds.
const MAX_LEASE: u64 = 24 * 60 * 60;
/// What a label, or the list of ports, may have at most.
const MAX_LABELS: usize = 64;

/// Where an instance lives.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Place {
    /// Its namespace.
    namespace: String,
}

impl From<LeaseError> for Problem {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Store(error) => store_refused(&error),
            LeaseError::Refused(_) => Self::new(StatusCode::CONFLICT, "held", error),
            LeaseError::NotListed(_) => Self::new(StatusCode::FORBIDDEN, "not_listed", error),
        }
    }
}

/// Register an instance, or extend its lease.
#[utoipa::path(put, path = "/api/v1/instances/{id}", tag = "instances", params(("id" = String, Path,)), request_body = InstanceRequest,
    responses((status = 200, body = InstanceReply), (status = 403, body = Problem, content_type = PROBLEM_JSON, description = "A Service that selects it does not list its account"),
        (status = 409, body = Problem, content_type = PROBLEM_JSON, description = "Another account or a later start holds it")))]
pub(super) async fn put(
    State(control): State<ControlPlane>,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<InstanceReply>, Problem> {
    let request: InstanceRequest = read_json(body)?;
    if request.id.as_ref().is_some_and(|other| *other != id) {
        return Err(Problem::bad_request(format_args!(
            "id: found {:?}, expected {id:?} as in the path",
            request.id.unwrap_or_default()
        )));
    }
    let registration = registration(&control, &id, request)?;
    let instance = registration.key().to_string();
    let services = control.put_instance(registration).await?;
    Ok(Json(InstanceReply { instance, services: services.iter().map(ToString::to_string).collect(), refused: None }))
}

/// Register many instances; each is accepted or refused for itself.
#[utoipa::path(post, path = "/api/v1/instances:bulk", tag = "instances", request_body = InstancesRequest,
    responses((status = 200, body = InstancesReply), (status = 400, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn bulk(
    State(control): State<ControlPlane>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<InstancesReply>, Problem> {
    let request: InstancesRequest = read_json(body)?;
    if request.instances.len() > MAX_AT_ONCE {
        return Err(Problem::bad_request(format_args!(
            "found {} instances, expected at most {MAX_AT_ONCE}",
            request.instances.len()
        )));
    }
    // All are read before the first is registered, so that a body with a mistake changes nothing.
    let mut registrations = Vec::with_capacity(request.instances.len());
    for (index, mut instance) in request.instances.into_iter().enumerate() {
        let id = instance.id.take().ok_or_else(|| {
            Problem::bad_request(format_args!("instances[{index}].id: found nothing, expected the instance's id"))
        })?;
        let read = registration(&control, &id, instance);
        registrations
            .push(read.map_err(|problem| Problem::bad_request(format_args!("instances[{index}].{}", problem.detail)))?);
    }
    let keys: Vec<_> = registrations.iter().map(|registration| registration.key().to_string()).collect();
    // Asked together, so that the store writes them together.
    let outcomes = join_all(registrations.into_iter().map(|registration| control.put_instance(registration))).await;
    let mut items = Vec::with_capacity(keys.len());
    for (instance, outcome) in keys.into_iter().zip(outcomes) {
        items.push(match outcome {
            Ok(services) => {
                InstanceReply { instance, services: services.iter().map(ToString::to_string).collect(), refused: None }
            }
            Err(LeaseError::Store(error)) => return Err(store_refused(&error)),
            Err(error) => InstanceReply { instance, services: Vec::new(), refused: Some(error.to_string()) },
        });
    }
    Ok(Json(InstancesReply { items }))
}

/// Take an instance out.
#[utoipa::path(delete, path = "/api/v1/instances/{id}", tag = "instances", params(("id" = String, Path,), Place),
    responses((status = 204), (status = 404, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn delete(
    State(control): State<ControlPlane>,
    Path(id): Path<String>,
    Query(place): Query<Place>,
) -> Result<StatusCode, Problem> {
    let namespace =
        Namespace::parse(&place.namespace).map_err(|bad| Problem::bad_request(format_args!("namespace: {bad}")))?;
    let id = InstanceId::parse(&id).map_err(|bad| Problem::bad_request(format_args!("id: {bad}")))?;
    let key = InstanceKey { namespace, id };
    match control.delete_instance(&key, None).await {
        Ok(true) => Ok(StatusCode::NO_CONTENT),
        Ok(false) => Err(Problem::not_found(format_args!("instance {key}"))),
        Err(error) => Err(store_refused(&error)),
    }
}

fn registration(control: &ControlPlane, id: &str, request: InstanceRequest) -> Result<Registration, Problem> {
    let id = InstanceId::parse(id).map_err(|bad| Problem::bad_request(format_args!("id: {bad}")))?;
    let account =
        AccountName::parse(&request.account).map_err(|bad| Problem::bad_request(format_args!("account: {bad}")))?;
    if request.labels.len() > MAX_LABELS || request.ports.len() > MAX_LABELS || request.ports.contains(&0) {
        return Err(Problem::bad_request(format_args!(
            "labels, ports: expected at most {MAX_LABELS} of each, and ports from 1 to 65535"
        )));
    }
    if !(1..=MAX_LEASE).contains(&request.lease_seconds) {
        return Err(Problem::bad_request(format_args!(
            "leaseSeconds: found {}, expected 1 to {MAX_LEASE}",
            request.lease_seconds
        )));
    }
    weight(&request.labels).map_err(|bad| Problem::bad_request(format_args!("{bad}")))?;
    let key = InstanceKey { namespace: account.namespace.clone(), id };
    // Whoever puts it again means the same start of it.
    let generation = control.instance(&key).map_or(1, |known| known.generation);
    Ok(Registration {
        id: key.id,
        account,
        generation,
        labels: request.labels,
        inbound: request.inbound,
        ports: request.ports,
        healthy: request.healthy,
        health_detail: String::new(),
        lease: Duration::from_secs(request.lease_seconds),
    })
}
