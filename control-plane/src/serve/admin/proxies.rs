//! Proxies: what each has, what it ought to have and why it does not; how far an epoch has come.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use equerry_certs::rfc3339;

use super::page::page;
use super::params::{Listing, Params};
use super::pieces::in_pieces;
use super::problem::PROBLEM_JSON;
use super::shapes::{EpochProxy, EpochReply, EpochState, Problem, ProxyList, ProxyReply, ProxyState};
use super::watch::{self, Item, Told};
use crate::access::{Actor, Place};
use crate::authority::trust::Trust;
use crate::control::{self, ControlPlane, Lease, ProxyStatus};
use crate::registry::InstanceKey;

/// Every proxy: what it has and what it ought to have, and why it has not.
#[utoipa::path(get, path = "/api/v1/proxies", tag = "mesh",
    params(Listing, ("state" = Option<ProxyState>, Query, description = "Only those that stand so")),
    responses((status = 200, content((ProxyList = "application/json"), (String = "text/event-stream")))))]
pub(super) async fn list(
    State(control): State<ControlPlane>,
    actor: Actor,
    mut params: Params,
) -> Result<Response, Problem> {
    let listing = Listing::read(&mut params);
    let state = params
        .read("state", |text| state_of(text).ok_or("found something else, expected in_step, behind, refused or away"));
    params.finish()?;
    if listing.watch {
        return watch::stream(&control, actor.clone(), Told::new(), watch::When::State, move |control| {
            found(control, &actor, &listing, state).into_iter().map(|(_, proxy)| item(&reply(proxy))).collect()
        });
    }
    let found = page(found(&control, &actor, &listing, state), &listing, &format!("proxies {state:?}"))?;
    let list = ProxyList { epoch: control.epoch(), items: Vec::new(), rest: found.rest };
    in_pieces(&list, "items", found.items.into_iter().map(reply))
}

fn state_of(text: &str) -> Option<ProxyState> {
    serde_json::from_value(text.into()).ok()
}

fn item(proxy: &ProxyReply) -> Item {
    let object = serde_json::to_value(proxy).unwrap_or_default();
    Item { key: proxy.instance.clone(), version: watch::version_of(proxy), object }
}

/// A proxy, its lease if it has one, how it stands, and why not otherwise.
type Seen = (ProxyStatus, Option<Lease>, ProxyState, Option<String>);

/// The proxies asked for, as far as the bearer may see them.
fn found(
    control: &ControlPlane,
    actor: &Actor,
    listing: &Listing,
    state: Option<ProxyState>,
) -> Vec<(InstanceKey, Seen)> {
    let wanted = |key: &InstanceKey| {
        listing.namespace.as_ref().is_none_or(|wanted| *wanted == key.namespace)
            && actor.limits.hold(Place::Namespace(&key.namespace))
    };
    let proxies: Vec<_> = control.proxies().into_iter().filter(|status| wanted(&status.instance)).collect();
    let leases = control.registrations_of(proxies.iter().map(|status| &status.instance));
    let all = proxies.into_iter().zip(leases);
    let labelled = all.filter(|(_, lease)| match lease {
        Some((registration, _)) => listing.labels.holds(&registration.labels),
        None => listing.labels.is_empty(),
    });
    let trust = control.authority().trust();
    let seen = labelled.map(|(status, lease)| {
        let (state, why) = standing(&status, lease.is_some(), &trust);
        (status.instance.clone(), (status, lease, state, why))
    });
    seen.filter(|(_, (_, _, found, _))| state.is_none_or(|state| state == *found)).collect()
}

fn reply((status, lease, state, why): Seen) -> ProxyReply {
    let (registration, services) = lease.unzip();
    ProxyReply {
        instance: status.instance.to_string(),
        spiffe_id: status.spiffe_id.map(|id| id.to_string()),
        connected: status.connected,
        connected_since_unix: status.connected_since.map(unix),
        acked_epoch: status.acked_epoch,
        wanted_epoch: status.wanted_epoch,
        nack_epoch: status.nack.as_ref().map(|nack| nack.epoch),
        nack: status.nack.map(|nack| nack.complaints),
        version: status.version.to_string(),
        state,
        why,
        certificate_not_after_unix: status.certificate_not_after.map(unix),
        account: registration.as_ref().map(|one| one.account.to_string()),
        healthy: registration.as_ref().map(|one| one.healthy),
        labels: registration.map(|one| one.labels.clone()).unwrap_or_default(),
        services: services.map(|services| services.iter().map(ToString::to_string).collect()).unwrap_or_default(),
    }
}

/// How a proxy stands, and why not otherwise.
fn standing(status: &ProxyStatus, leased: bool, trust: &Trust) -> (ProxyState, Option<String>) {
    let (acked, wanted) = (status.acked_epoch, status.wanted_epoch);
    let revoked = status.spiffe_id.as_ref().and_then(|id| trust.revoked.get(id));
    if let Some(revocation) = revoked.filter(|_| !status.connected) {
        let (at, id) = (rfc3339(revocation.at), &revocation.id);
        let why = format!("its identity was revoked at {at}: `equerry certs restore {id}` takes that back");
        return (ProxyState::Away, Some(why));
    }
    match (&status.nack, status.connected) {
        (_, false) if leased => {
            let why = "it holds a lease and has no config stream: it is starting, or cut off from port 15012";
            (ProxyState::Away, Some(why.to_owned()))
        }
        (_, false) => {
            (ProxyState::Away, Some("its config stream ended; its lease has run out or was given back".to_owned()))
        }
        (Some(nack), true) => {
            let first = nack.complaints.first().map_or("it did not say why", String::as_str);
            let why = format!("it refused a part of epoch {} and keeps what it had of it: {first}", nack.epoch);
            (ProxyState::Refused, Some(why))
        }
        (None, true) if acked < wanted => {
            let why = format!("it has acknowledged epoch {acked} and not yet {wanted}");
            (ProxyState::Behind, Some(why))
        }
        (None, true) => (ProxyState::InStep, None),
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
