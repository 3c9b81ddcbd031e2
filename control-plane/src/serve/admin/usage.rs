//! What tenants have spent of their quotas in the present windows, and who holds the rest.

use std::time::SystemTime;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use equerry_policies::names::TenantName;

use super::page::page;
use super::params::{Listing, Params};
use super::problem::PROBLEM_JSON;
use super::shapes::{Problem, QuotaReply, ShareReply, UsageList, UsageReply};
use crate::access::{Actor, Permission, Place};
use crate::control::ControlPlane;
use crate::quota::{QuotaUsage, TenantUsage};
use crate::store::unix_ms;

/// What every tenant has spent in the present windows.
#[utoipa::path(get, path = "/api/v1/usage", tag = "mesh",
    params(("limit" = Option<u32>, Query, minimum = 1, maximum = 1000), ("continue" = Option<String>, Query,)),
    responses((status = 200, body = UsageList)))]
pub(super) async fn list(
    State(control): State<ControlPlane>,
    actor: Actor,
    mut params: Params,
) -> Result<Response, Problem> {
    let listing = Listing::paged(&mut params);
    params.finish()?;
    let meaning = control.meaning();
    let seen = meaning.tenants.keys().filter(|tenant| actor.limits.hold(Place::Tenant(tenant)));
    let all = seen.filter_map(|tenant| Some((tenant.clone(), reply(control.tenant_usage(tenant)?)))).collect();
    let found = page(all, &listing, "usage")?;
    Ok(Json(UsageList { items: found.items, rest: found.rest }).into_response())
}

/// What a tenant has spent in the present windows.
#[utoipa::path(get, path = "/api/v1/tenants/{name}/usage", tag = "mesh", params(("name" = String, Path,)),
    responses((status = 200, body = UsageReply), (status = 404, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn get(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path(name): Path<String>,
) -> Result<Json<UsageReply>, Problem> {
    let tenant = TenantName::parse(&name).map_err(Problem::bad_request)?;
    actor.may(Permission::Read, Place::Tenant(&tenant))?;
    let usage = control.tenant_usage(&tenant).ok_or_else(|| Problem::not_found(format_args!("Tenant {tenant}")))?;
    Ok(Json(reply(usage)))
}

fn reply(usage: TenantUsage) -> UsageReply {
    let now = unix_ms(SystemTime::now());
    UsageReply {
        tenant: usage.tenant.to_string(),
        quotas: usage.quotas.into_iter().map(|quota| quota_reply(quota, now)).collect(),
    }
}

fn quota_reply(quota: QuotaUsage, now_ms: u64) -> QuotaReply {
    let shares = quota.shares.into_iter().map(|share| ShareReply {
        instance: share.instance.to_string(),
        granted: share.granted,
        spent: share.spent,
    });
    QuotaReply {
        quota: quota.id,
        services: quota.services.iter().map(ToString::to_string).collect(),
        began_unix: quota.began,
        window_seconds: quota.window.as_secs(),
        limit: quota.requests,
        granted: quota.granted,
        spent: quota.spent,
        ends_in_ms: ((quota.began + quota.window.as_secs()) * 1_000).saturating_sub(now_ms),
        shares: shares.collect(),
    }
}
