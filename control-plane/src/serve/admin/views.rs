//! What the control plane knows beside documents: proxies, epochs, services, tenants' usage, itself.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Path, State};
use equerry_policies::names::{ServiceName, TenantName};
use http::StatusCode;

use super::problem::PROBLEM_JSON;
use super::shapes::{
    EpochProxy, EpochReply, EpochState, MemberReply, Problem, ProxyList, ProxyReply, QuotaReply, ServiceList,
    ServiceReply, UsageReply, VersionReply,
};
use crate::access::{Actor, Permission, Place};
use crate::control::{self, ControlPlane, MemberStatus, ProxyStatus, ServiceStatus};
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

/// Every proxy: what it has and what it ought to have.
#[utoipa::path(get, path = "/api/v1/proxies", tag = "mesh", responses((status = 200, body = ProxyList)))]
pub(super) async fn proxies(State(control): State<ControlPlane>, actor: Actor) -> Json<ProxyList> {
    let seen = |proxy: &ProxyStatus| actor.limits.hold(Place::Namespace(&proxy.instance.namespace));
    let items = control.proxies().into_iter().filter(seen).map(proxy).collect();
    Json(ProxyList { epoch: control.epoch(), items })
}

fn proxy(status: ProxyStatus) -> ProxyReply {
    ProxyReply {
        instance: status.instance.to_string(),
        spiffe_id: status.spiffe_id.map(|id| id.to_string()),
        connected: status.connected,
        connected_since_unix: status.connected_since.map(unix),
        acked_epoch: status.acked_epoch,
        wanted_epoch: status.wanted_epoch,
        nack: status.nack.map(|nack| nack.complaints),
        version: status.version,
    }
}

/// Seconds since 1970.
pub(super) fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// How far one epoch has come.
#[utoipa::path(get, path = "/api/v1/epochs/{epoch}", tag = "mesh", params(("epoch" = u64, Path,)),
    responses((status = 200, body = EpochReply), (status = 404, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn epoch(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path(epoch): Path<String>,
) -> Result<Json<EpochReply>, Problem> {
    let number: u64 =
        epoch.parse().map_err(|_| Problem::bad_request("found something else, expected the number of an epoch"))?;
    let status = control.epoch_status(number);
    let status = status.ok_or_else(|| {
        Problem::not_found(format_args!("epoch {number} yet; the present one is {}", control.epoch()))
    })?;
    let seen =
        status.proxies.into_iter().filter(|proxy| actor.limits.hold(Place::Namespace(&proxy.instance.namespace)));
    let proxies = seen.map(|proxy| EpochProxy {
        instance: proxy.instance.to_string(),
        state: match proxy.state {
            control::EpochState::Acked => EpochState::Acked,
            control::EpochState::Pending => EpochState::Pending,
            control::EpochState::Nacked => EpochState::Nacked,
            control::EpochState::Away => EpochState::Away,
        },
        complaints: proxy.complaints,
    });
    Ok(Json(EpochReply { epoch: status.epoch, complete: status.complete, proxies: proxies.collect() }))
}

/// Every Service and who stands behind it.
#[utoipa::path(get, path = "/api/v1/services", tag = "mesh", responses((status = 200, body = ServiceList)))]
pub(super) async fn services(State(control): State<ControlPlane>, actor: Actor) -> Json<ServiceList> {
    let seen = |status: &ServiceStatus| actor.limits.hold(Place::Namespace(&status.service.namespace));
    Json(ServiceList { items: control.services().into_iter().filter(seen).map(service_reply).collect() })
}

/// One Service and who stands behind it.
#[utoipa::path(get, path = "/api/v1/services/{namespace}/{name}", tag = "mesh", params(("namespace" = String, Path,), ("name" = String, Path,)),
    responses((status = 200, body = ServiceReply), (status = 404, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn service(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<ServiceReply>, Problem> {
    let service = ServiceName::parse(&format!("{namespace}/{name}")).map_err(Problem::bad_request)?;
    actor.may(Permission::Read, Place::Namespace(&service.namespace))?;
    if let Some(status) = control.service(&service) {
        return Ok(Json(service_reply(status)));
    }
    let meaning = control.meaning();
    let near = equerry_policies::view::nearest_service(&meaning, &service)
        .map_or_else(String::new, |near| format!("; did you mean {near}?"));
    Err(Problem::not_found(format_args!("Service {service}{near}")))
}

fn service_reply(status: ServiceStatus) -> ServiceReply {
    let members: Vec<_> = status.members.into_iter().map(member).collect();
    ServiceReply {
        service: status.service.to_string(),
        healthy: members.iter().filter(|member| member.healthy).count() + status.static_endpoints,
        total: members.len() + status.static_endpoints,
        members,
    }
}

fn member(status: MemberStatus) -> MemberReply {
    let MemberStatus { registration, lease_left } = status;
    MemberReply {
        instance: registration.id.to_string(),
        account: registration.account.to_string(),
        address: registration.inbound.to_string(),
        healthy: registration.healthy,
        detail: registration.health_detail,
        lease_ms: u64::try_from(lease_left.as_millis()).unwrap_or(u64::MAX),
    }
}

/// What a tenant has spent in the present windows.
#[utoipa::path(get, path = "/api/v1/tenants/{name}/usage", tag = "mesh", params(("name" = String, Path,)),
    responses((status = 200, body = UsageReply), (status = 404, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn usage(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path(name): Path<String>,
) -> Result<Json<UsageReply>, Problem> {
    let tenant = TenantName::parse(&name).map_err(Problem::bad_request)?;
    actor.may(Permission::Read, Place::Tenant(&tenant))?;
    let usage = control.tenant_usage(&tenant).ok_or_else(|| Problem::not_found(format_args!("Tenant {tenant}")))?;
    let quotas = usage.quotas.into_iter().map(|quota| QuotaReply {
        quota: quota.id,
        began_unix: quota.began,
        window_seconds: quota.window.as_secs(),
        limit: quota.requests,
        granted: quota.granted,
        spent: quota.spent,
    });
    Ok(Json(UsageReply { tenant: tenant.to_string(), quotas: quotas.collect() }))
}
