//! Instances that somebody else registers: a machine's own agent, a test, another registry. They hold leases like all others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use equerry_policies::complaint::Complaint;
use equerry_policies::names::{AccountName, InstanceId, Namespace, ServiceName};
use equerry_policies::policy::{MAX_WEIGHT, WEIGHT_LABEL, weight};
use http::{HeaderMap, StatusCode, header};

use super::documents::{at_its_place, read_body, read_json};
use super::page::page;
use super::params::{Listing, Params};
use super::pieces::in_pieces;
use super::problem::PROBLEM_JSON;
use super::services::detail;
use super::shapes::{
    FieldError, InstanceDetail, InstanceList, InstanceReply, InstanceRequest, InstancesReply, InstancesRequest, Problem,
};
use super::views::store_refused;
use super::watch::{self, Item, Told};
use crate::access::{Actor, Permission, Place};
use crate::audit::By;
use crate::control::{ControlPlane, LeaseError, LeasesError, MemberStatus};
use crate::registry::{InstanceKey, Registration};

/// The media type of instances, one a line.
const NDJSON: &str = "application/x-ndjson";
/// What a line of them is.
const A_LINE: &str = "an instance as JSON in one line; /openapi.json shows the shape";
/// Most mistakes that are told at once.
const MAX_MISTAKES: usize = 100;
/// Most instances in one request.
const MAX_AT_ONCE: usize = 10_000;
/// Longest lease, in seconds.
const MAX_LEASE: u64 = 24 * 60 * 60;
/// Longest text that says why an instance takes no traffic.
const MAX_DETAIL: usize = 512;
/// What a label, or the list of ports, may have at most.
const MAX_LABELS: usize = 64;

/// Where an instance lives.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `key_of` reads")]
pub(super) struct Home {
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

/// Every registered instance, or those behind one Service.
#[utoipa::path(get, path = "/api/v1/instances", tag = "instances",
    params(Listing, ("service" = Option<String>, Query, description = "Only those behind this Service: namespace/name")),
    responses((status = 200, content((InstanceList = "application/json"), (String = "text/event-stream")))))]
pub(super) async fn list(
    State(control): State<ControlPlane>,
    actor: Actor,
    mut params: Params,
) -> Result<Response, Problem> {
    let listing = Listing::read(&mut params);
    let service = params.read("service", ServiceName::parse);
    params.finish()?;
    if listing.watch {
        return watch::stream(&control, actor.clone(), Told::new(), watch::When::State, move |control| {
            found(control, &actor, &listing, service.as_ref())
                .into_iter()
                .map(|(_, instance)| item(&detailed(instance)))
                .collect()
        });
    }
    let of = format!("instances {service:?}");
    let found = page(found(&control, &actor, &listing, service.as_ref()), &listing, &of)?;
    let list = InstanceList { items: Vec::new(), rest: found.rest };
    in_pieces(&list, "items", found.items.into_iter().map(detailed))
}

/// An instance, the Services that it stands behind, and whether its proxy is connected.
type Seen = (MemberStatus, Arc<[ServiceName]>, bool);

/// The instances asked for, as far as the bearer may see them.
fn found(
    control: &ControlPlane,
    actor: &Actor,
    listing: &Listing,
    service: Option<&ServiceName>,
) -> Vec<(InstanceKey, Seen)> {
    let connected = control.connected();
    let wanted = |one: &Registration| {
        let namespace = &one.account.namespace;
        listing.namespace.as_ref().is_none_or(|wanted| wanted == namespace)
            && actor.limits.hold(Place::Namespace(namespace))
            && listing.labels.holds(&one.labels)
    };
    let members = control.members(wanted).into_iter();
    let members = members.filter(|(_, services)| service.is_none_or(|service| services.contains(service)));
    members
        .map(|(status, services)| {
            let key = status.registration.key();
            let is_connected = connected.contains(&key);
            (key, (status, services, is_connected))
        })
        .collect()
}

fn detailed((status, services, connected): Seen) -> InstanceDetail {
    let MemberStatus { registration, lease_left } = status;
    InstanceDetail {
        instance: registration.key().to_string(),
        account: registration.account.to_string(),
        inbound: registration.inbound.to_string(),
        ports: registration.ports.clone(),
        labels: registration.labels.clone(),
        healthy: registration.healthy,
        detail: detail(registration.healthy, &registration.health_detail),
        generation: registration.generation,
        lease_ms: u64::try_from(lease_left.as_millis()).unwrap_or(u64::MAX),
        lease_seconds: registration.lease.as_secs(),
        services: services.iter().map(ToString::to_string).collect(),
        connected,
        sidecar: !registration.by_api,
    }
}

/// A lease runs all the time; that is no change.
fn item(instance: &InstanceDetail) -> Item {
    let object = serde_json::to_value(instance).unwrap_or_default();
    let still = InstanceDetail { lease_ms: 0, ..instance.clone() };
    Item { key: instance.instance.clone(), version: watch::version_of(&still), object }
}

/// One registered instance.
#[utoipa::path(get, path = "/api/v1/instances/{id}", tag = "instances", params(("id" = String, Path,), Home),
    responses((status = 200, body = InstanceDetail), (status = 404, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn get(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<InstanceDetail>, Problem> {
    let key = key_of(&id, params)?;
    actor.may(Permission::Read, Place::Namespace(&key.namespace))?;
    let found = control.member(&key);
    let (status, services) = found.ok_or_else(|| Problem::not_found(format_args!("instance {key}")))?;
    let connected = control.listeners().is_connected(&key);
    Ok(Json(detailed((status, services, connected))))
}

/// The instance that path and query name.
fn key_of(id: &str, mut params: Params) -> Result<InstanceKey, Problem> {
    let namespace = params.needed("namespace", Namespace::parse);
    params.finish()?;
    let id = InstanceId::parse(id).map_err(|bad| Problem::bad_request(format_args!("id: {bad}")))?;
    let namespace = namespace.ok_or_else(|| Problem::bad_request("namespace: found nothing, expected a namespace"))?;
    Ok(InstanceKey { namespace, id })
}

/// Register an instance, or extend its lease.
#[utoipa::path(put, path = "/api/v1/instances/{id}", tag = "instances", params(("id" = String, Path,)), request_body = InstanceRequest,
    responses((status = 200, body = InstanceReply), (status = 403, body = Problem, content_type = PROBLEM_JSON, description = "A Service that selects it does not list its account"),
        (status = 409, body = Problem, content_type = PROBLEM_JSON, description = "Another account or a later start holds it")))]
pub(super) async fn put(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<InstanceReply>, Problem> {
    actor.has(Permission::RegisterInstances)?;
    let request: InstanceRequest = read_json(body)?;
    if request.id.as_ref().is_some_and(|other| *other != id) {
        return Err(Problem::bad_request(format_args!(
            "id: found {:?}, expected {id:?} as in the path",
            request.id.unwrap_or_default()
        )));
    }
    let mut registration = registration(&id, request)
        .map_err(|mistakes| Problem::bad_fields(mistakes.iter().map(FieldError::of).collect()))?;
    control.take_for_the_same(std::slice::from_mut(&mut registration));
    let (key, lease) = (registration.key(), registration.lease);
    actor.may(Permission::RegisterInstances, Place::Namespace(&key.namespace))?;
    let services = control.put_instance(registration, Some(By::token(&actor))).await?;
    let lease_ms = u64::try_from(lease.as_millis()).ok();
    Ok(Json(InstanceReply { lease_ms, ..reply(&key, &services) }))
}

/// Register many instances, all or none: a JSON object, or one instance a line as `application/x-ndjson` (answered likewise). A pointer
/// into lines takes them for the items of an array: `/3/account` is the account in line 4.
#[utoipa::path(post, path = "/api/v1/instances:bulk", tag = "instances",
    request_body(content((InstancesRequest = "application/json"), (InstanceRequest = "application/x-ndjson"))),
    responses((status = 200, content((InstancesReply = "application/json"), (InstanceReply = "application/x-ndjson"))),
        (status = 400, body = Problem, content_type = PROBLEM_JSON),
        (status = 409, body = Problem, content_type = PROBLEM_JSON, description = "Each instance that is held by another, or that a Service does not list, with its line; nothing was registered"),
        (status = 422, body = Problem, content_type = PROBLEM_JSON, description = "Every mistake, with its line; nothing was registered")))]
pub(super) async fn bulk(
    State(control): State<ControlPlane>,
    actor: Actor,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    actor.has(Permission::RegisterInstances)?;
    let lines = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(NDJSON.as_bytes()));
    let (mut registrations, places) = if lines { read_lines(&read_body(body)?) } else { read_object(body) }?;
    control.take_for_the_same(&mut registrations);
    let keys: Vec<_> = registrations.iter().map(Registration::key).collect();
    for key in &keys {
        actor.may(Permission::RegisterInstances, Place::Namespace(&key.namespace))?;
    }
    let stand = control.put_instances(registrations, Some(By::token(&actor))).await;
    let stand = stand.map_err(|error| match error {
        LeasesError::Store(error) => store_refused(&error),
        LeasesError::Refused(refused) => none_of(keys.len(), &refused, &places),
    })?;
    let items = keys.iter().zip(&stand).map(|(key, services)| reply(key, services));
    if !lines {
        return Ok(Json(InstancesReply { items: items.collect() }).into_response());
    }
    let mut text = Vec::with_capacity(keys.len() * 64);
    for item in items {
        serde_json::to_writer(&mut text, &item).map_err(|error| Problem::bad_request(error.to_string()))?;
        text.push(b'\n');
    }
    Ok(([(header::CONTENT_TYPE, NDJSON)], text).into_response())
}

fn reply(key: &InstanceKey, services: &[ServiceName]) -> InstanceReply {
    let services = services.iter().map(ToString::to_string).collect();
    InstanceReply { instance: key.to_string(), services, lease_ms: None }
}

/// Where an instance stands in a body.
#[derive(Debug, Clone, Copy)]
enum Stands {
    /// In a line, counted from 1.
    Line(u32),
    /// In the array `instances`, counted from 0.
    Item(usize),
}

impl Stands {
    /// A mistake there.
    fn mistake(self, mistake: Complaint) -> Complaint {
        let key = if mistake.key.is_empty() { String::new() } else { format!(".{}", mistake.key) };
        let (line, key) = match self {
            Self::Line(line) => (line, format!("[{}]{key}", line.saturating_sub(1))),
            Self::Item(index) => (mistake.line, format!("instances[{index}]{key}")),
        };
        Complaint { file: "body".to_owned(), line, key, ..mistake }
    }

    /// Somebody who may not, there: their account decides it.
    fn refusal(self, error: &LeaseError) -> FieldError {
        match self {
            Self::Line(line) => {
                let pointer = format!("/{}/account", line.saturating_sub(1));
                FieldError::in_body(pointer, format_args!("line {line}: {error}"))
            }
            Self::Item(index) => FieldError::in_body(format!("/instances/{index}/account"), error),
        }
    }
}

impl std::fmt::Display for Stands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Item(index) => write!(f, "instances[{index}]"),
        }
    }
}

/// Some may not, so none was registered.
fn none_of(all: usize, refused: &[(usize, LeaseError)], places: &[Stands]) -> Problem {
    let told = refused.iter().take(MAX_MISTAKES);
    let errors: Vec<_> =
        told.filter_map(|(index, error)| places.get(*index).map(|place| place.refusal(error))).collect();
    let first = errors.first().map(FieldError::line).unwrap_or_default();
    let count = refused.len();
    let detail = format!("{count} of {all} instances are refused, nothing was registered; the first: {first}");
    Problem { errors: errors.into(), ..Problem::new(StatusCode::CONFLICT, "refused", detail) }
}

/// Instances as they are to be registered, and where each stands in the body.
type Read = (Vec<Registration>, Vec<Stands>);

fn read_object(body: Result<Bytes, BytesRejection>) -> Result<Read, Problem> {
    let request: InstancesRequest = read_json(body)?;
    let items = request.instances.into_iter().enumerate();
    all_or_none(items.map(|(index, instance)| (Stands::Item(index), named(instance))))
}

fn read_lines(body: &[u8]) -> Result<Read, Problem> {
    let lines = body.split(|byte| *byte == b'\n').zip(1..).filter(|(line, _)| !line.trim_ascii().is_empty());
    all_or_none(lines.map(|(line, number)| {
        let read = serde_json::from_slice(line).map_err(|_| vec![unreadable(line)]);
        (Stands::Line(number), read.and_then(named))
    }))
}

/// A line that is read again, slowly, to find out where it is wrong.
fn unreadable(line: &[u8]) -> Complaint {
    let read: Result<InstanceRequest, _> =
        serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(line));
    let Err(error) = read else { return mistake("", "more than an instance", A_LINE) };
    let (key, column, said) = at_its_place(error);
    Complaint { column, ..mistake(&key, format!("something else ({said})"), A_LINE) }
}

/// All are read before the first is registered, so that a body with a mistake changes nothing.
fn all_or_none(read: impl Iterator<Item = (Stands, Result<Registration, Vec<Complaint>>)>) -> Result<Read, Problem> {
    let (mut registrations, mut places, mut mistakes) = (Vec::new(), Vec::new(), Vec::new());
    let mut known: HashMap<InstanceKey, Stands> = HashMap::new();
    for (place, one) in read {
        match one {
            Ok(registration) => {
                if let Some(first) = known.insert(registration.key(), place) {
                    let found = format!("{:?} again, as in {first}", registration.id.as_str());
                    mistakes.push(place.mistake(mistake("id", found, "each instance once")));
                }
                registrations.push(registration);
                places.push(place);
            }
            Err(wrong) => mistakes.extend(wrong.into_iter().map(|one| place.mistake(one))),
        }
        if registrations.len() > MAX_AT_ONCE || mistakes.len() > MAX_MISTAKES {
            break;
        }
    }
    if registrations.len() > MAX_AT_ONCE {
        return Err(Problem::bad_request(format_args!(
            "found more than {MAX_AT_ONCE} instances, expected at most these"
        )));
    }
    if mistakes.is_empty() { Ok((registrations, places)) } else { Err(Problem::invalid(mistakes)) }
}

fn named(mut instance: InstanceRequest) -> Result<Registration, Vec<Complaint>> {
    let id = instance.id.take().ok_or_else(|| vec![mistake("id", "nothing", "the instance's id")])?;
    registration(&id, instance)
}

/// Take an instance out.
#[utoipa::path(delete, path = "/api/v1/instances/{id}", tag = "instances", params(("id" = String, Path,), Home),
    responses((status = 204), (status = 404, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn delete(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path(id): Path<String>,
    params: Params,
) -> Result<StatusCode, Problem> {
    let key = key_of(&id, params)?;
    actor.may(Permission::RegisterInstances, Place::Namespace(&key.namespace))?;
    match control.delete_instance(&key, None, Some(By::token(&actor))).await {
        Ok(true) => Ok(StatusCode::NO_CONTENT),
        Ok(false) => Err(Problem::not_found(format_args!("instance {key}"))),
        Err(error) => Err(store_refused(&error)),
    }
}

fn registration(id: &str, request: InstanceRequest) -> Result<Registration, Vec<Complaint>> {
    let mut mistakes = Vec::new();
    let mut wrong = |key: &str, found: String, expected: &dyn std::fmt::Display| {
        mistakes.push(mistake(key, found, expected.to_string()));
    };
    let id = InstanceId::parse(id).map_err(|bad| wrong("id", format!("{:?}", bad.found), &bad.expected));
    let account =
        AccountName::parse(&request.account).map_err(|bad| wrong("account", format!("{:?}", bad.found), &bad.expected));
    if request.labels.len() > MAX_LABELS {
        wrong("labels", format!("{} labels", request.labels.len()), &format_args!("at most {MAX_LABELS}"));
    }
    if request.ports.len() > MAX_LABELS || request.ports.contains(&0) {
        let found = format!("{:?}", &request.ports[..request.ports.len().min(8)]);
        wrong("ports", found, &format_args!("at most {MAX_LABELS} ports from 1 to 65535"));
    }
    if !(1..=MAX_LEASE).contains(&request.lease_seconds) {
        wrong("leaseSeconds", request.lease_seconds.to_string(), &format_args!("1 to {MAX_LEASE}"));
    }
    if weight(&request.labels).is_err() {
        let found = format!("{WEIGHT_LABEL}: {:?}", request.labels.get(WEIGHT_LABEL));
        wrong("labels", found, &format_args!("a whole number from 1 to {MAX_WEIGHT}"));
    }
    let (Ok(id), Ok(account), true) = (id, account, mistakes.is_empty()) else { return Err(mistakes) };
    Ok(Registration {
        id,
        account,
        generation: 1,
        labels: request.labels,
        inbound: request.inbound,
        ports: request.ports,
        healthy: request.healthy,
        health_detail: request.detail.chars().take(MAX_DETAIL).collect(),
        lease: Duration::from_secs(request.lease_seconds),
        by_api: true,
    })
}

fn mistake(key: &str, found: impl Into<String>, expected: impl Into<String>) -> Complaint {
    let (found, expected) = (found.into(), expected.into());
    Complaint { key: key.to_owned(), found, expected, ..Complaint::default() }
}
