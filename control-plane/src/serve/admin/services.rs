//! Services: who stands behind each, how they are, and why somebody does not take traffic; one in detail, with all that is written
//! about it and who calls whom.

use std::collections::{BTreeMap, HashSet};

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use equerry_policies::document::{DocumentKey, Kind};
use equerry_policies::names::{Namespace, ServiceName};
use equerry_policies::policy::{AppProtocol, Meaning, ServicePort};
use equerry_policies::view::{Modes, modes, nearest_service};

use super::calls;
use super::page::page;
use super::params::{Listing, Params};
use super::pieces::in_pieces;
use super::problem::PROBLEM_JSON;
use super::related::related;
use super::shapes::{LeftOutReply, MemberReply, PortReply, Problem, ServiceDetail, ServiceList, ServiceReply};
use super::watch::{self, Item, Told};
use crate::access::{Actor, Permission, Place};
use crate::control::{ControlPlane, MemberStatus, ServiceStatus, Truth};
use crate::registry::{InstanceKey, Registration};

/// What is said of a member that is not healthy and does not say why.
const NO_REASON: &str = "its sidecar says so and gives no reason";

/// Every Service and who stands behind it.
#[utoipa::path(get, path = "/api/v1/services", tag = "mesh", params(Listing),
    responses((status = 200, content((ServiceList = "application/json"), (String = "text/event-stream")))))]
pub(super) async fn list(
    State(control): State<ControlPlane>,
    actor: Actor,
    mut params: Params,
) -> Result<Response, Problem> {
    let listing = Listing::read(&mut params);
    params.finish()?;
    if listing.watch {
        return watch::stream(&control, actor.clone(), Told::new(), watch::When::State, move |control| {
            let (truth, connected) = (control.truth(), control.connected());
            let found = found(control, &truth, &actor, &listing).into_iter();
            found.map(|(_, status)| item(&reply(&truth, &connected, &status))).collect()
        });
    }
    let (truth, connected) = (control.truth(), control.connected());
    let found = page(found(&control, &truth, &actor, &listing), &listing, "services")?;
    let list = ServiceList { items: Vec::new(), rest: found.rest };
    in_pieces(&list, "items", found.items.into_iter().map(move |status| reply(&truth, &connected, &status)))
}

/// The Services asked for, as far as the bearer may see them.
fn found(control: &ControlPlane, truth: &Truth, actor: &Actor, listing: &Listing) -> Vec<(ServiceName, ServiceStatus)> {
    let wanted = |service: &ServiceName| {
        listing.namespace.as_ref().is_none_or(|wanted| *wanted == service.namespace)
            && actor.limits.hold(Place::Namespace(&service.namespace))
            && (listing.labels.is_empty() || listing.labels.holds(&labels_of(truth, service)))
    };
    let services = control.services().into_iter().filter(|status| wanted(&status.service));
    services.map(|status| (status.service.clone(), status)).collect()
}

/// Leases run all the time; that is no change.
fn item(service: &ServiceReply) -> Item {
    let mut still = service.clone();
    still.members.iter_mut().for_each(|member| member.lease_ms = 0);
    let object = serde_json::to_value(service).unwrap_or_default();
    Item { key: service.service.clone(), version: watch::version_of(&still), object }
}

fn labels_of(truth: &Truth, service: &ServiceName) -> BTreeMap<String, String> {
    let name = service.name.as_str().parse().ok();
    let key = name.map(|name| DocumentKey { kind: Kind::Service, namespace: Some(service.namespace.clone()), name });
    key.and_then(|key| truth.documents.get(&key)).map(|stored| stored.document.labels()).unwrap_or_default()
}

fn reply(truth: &Truth, connected: &HashSet<InstanceKey>, status: &ServiceStatus) -> ServiceReply {
    let slices = truth.meaning.endpoints.values().filter(|slice| slice.service == status.service);
    let addresses: Vec<String> = slices.flat_map(|slice| &slice.addresses).map(ToString::to_string).collect();
    let external = truth.meaning.services.get(&status.service).and_then(|service| service.external.as_ref());
    let mut alike = Alike { meaning: &truth.meaning, last: None };
    let members: Vec<_> = status.members.iter().map(|one| member(alike.modes_of(one), one, connected)).collect();
    ServiceReply {
        healthy: members.iter().filter(|member| member.healthy).count() + status.static_endpoints,
        total: members.len() + status.static_endpoints,
        members,
        labels: labels_of(truth, &status.service),
        left_out: Vec::new(),
        addresses,
        external_name: external.map(ToString::to_string),
        service: status.service.to_string(),
    }
}

/// What the ports of members ask for: those of one Service are mostly labelled alike, and policies are many.
struct Alike<'m> {
    meaning: &'m Meaning,
    last: Option<(&'m Registration, Modes)>,
}

impl<'m> Alike<'m> {
    fn modes_of(&mut self, member: &'m MemberStatus) -> &Modes {
        let one = member.registration.as_ref();
        let same = |last: &Registration| last.labels == one.labels && last.account.namespace == one.account.namespace;
        let known = self.last.take().filter(|(last, _)| same(last)).map(|(_, modes)| modes);
        let modes = known.unwrap_or_else(|| modes(self.meaning, &one.account.namespace, &one.labels));
        &self.last.insert((one, modes)).1
    }
}

fn member(modes: &Modes, status: &MemberStatus, connected: &HashSet<InstanceKey>) -> MemberReply {
    let MemberStatus { registration, lease_left } = status;
    let plain_text = registration.ports.iter().copied().filter(|port| !modes.of(*port).takes_tls()).collect();
    MemberReply {
        plain_text,
        connected: connected.contains(&registration.key()),
        instance: registration.id.to_string(),
        account: registration.account.to_string(),
        address: registration.inbound.to_string(),
        healthy: registration.healthy,
        detail: detail(registration.healthy, &registration.health_detail),
        lease_ms: u64::try_from(lease_left.as_millis()).unwrap_or(u64::MAX),
        labels: registration.labels.clone(),
        ports: registration.ports.clone(),
    }
}

/// Why an instance takes no traffic; nothing when it does.
pub(super) fn detail(healthy: bool, said: &str) -> String {
    match (healthy, said.is_empty()) {
        (true, _) => String::new(),
        (false, true) => NO_REASON.to_owned(),
        (false, false) => said.to_owned(),
    }
}

/// One Service, who stands behind it, what is written about it, and who calls whom.
#[utoipa::path(get, path = "/api/v1/services/{namespace}/{name}", tag = "mesh", params(("namespace" = String, Path,), ("name" = String, Path,)),
    responses((status = 200, body = ServiceDetail), (status = 404, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn get(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<ServiceDetail>, Problem> {
    let service = ServiceName::parse(&format!("{namespace}/{name}")).map_err(Problem::bad_request)?;
    actor.may(Permission::Read, Place::Namespace(&service.namespace))?;
    let truth = control.truth();
    let Some(status) = control.service(&service) else {
        let near = nearest_service(&truth.meaning, &service);
        let near = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
        return Err(Problem::not_found(format_args!("Service {service}{near}")));
    };
    let seen = |namespace: &Namespace| actor.limits.hold(Place::Namespace(namespace));
    let mut policies = related(&truth, &service);
    policies.retain(|one| match one.namespace.as_deref().and_then(|namespace| namespace.parse().ok()) {
        Some(namespace) => seen(&namespace),
        None => actor.limits.is_empty(),
    });
    let connected = control.connected_of(status.members.iter().map(|member| member.registration.key()));
    let mut reply = reply(&truth, &connected, &status);
    reply.left_out = left_out(&control, &truth.meaning, &service);
    let known = truth.meaning.services.get(&service);
    let accounts = known.map_or_else(Vec::new, |service| service.accounts.clone());
    Ok(Json(ServiceDetail {
        ports: known.map_or_else(Vec::new, |service| service.ports.iter().map(port).collect()),
        selector: known.map(|service| service.selector.clone()).unwrap_or_default(),
        policies,
        callers: calls::callers_of(&control, &service),
        callees: calls::callees_of(&control, &accounts),
        accounts: accounts.iter().map(ToString::to_string).collect(),
        service: reply,
    }))
}

fn port(port: &ServicePort) -> PortReply {
    let protocol = match port.app_protocol {
        AppProtocol::Http => "http",
        AppProtocol::Http2 => "http2",
        AppProtocol::Grpc => "grpc",
        AppProtocol::Tcp => "tcp",
    };
    PortReply {
        name: port.name.clone(),
        port: port.port,
        target_port: port.target_port,
        protocol: (!port.undeclared).then(|| protocol.to_owned()),
    }
}

/// Instances that the selector selects and whose accounts are not listed: a Service that came after them leaves them out.
fn left_out(control: &ControlPlane, meaning: &Meaning, service: &ServiceName) -> Vec<LeftOutReply> {
    let Some(service) = meaning.services.get(service).filter(|service| !service.selector.is_empty()) else {
        return Vec::new();
    };
    let registry = control.registry();
    let selected = registry.of_namespace(&service.name.namespace).map(|instance| &instance.registration);
    let selected =
        selected.filter(|one| service.selector.iter().all(|(key, value)| one.labels.get(key) == Some(value)));
    let unlisted = selected.filter(|one| !service.accounts.contains(&one.account));
    unlisted
        .map(|one| LeftOutReply {
            instance: one.id.to_string(),
            account: one.account.to_string(),
            reason: format!(
                "Service {} selects it by its labels, and does not list account {}",
                service.name, one.account
            ),
        })
        .collect()
}
