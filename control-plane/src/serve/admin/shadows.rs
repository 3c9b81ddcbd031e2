//! Policies that are not enforced: what enforcing them would have changed lately.

use axum::Json;
use axum::extract::State;
use equerry_policies::names::{Namespace, PolicyName};

use super::page::page;
use super::params::{Listing, Params};
use super::shapes::{Problem, ShadowChange, ShadowList, ShadowReply};
use crate::access::{Actor, Place};
use crate::calls::shadows::{Change, Seen, WINDOW};
use crate::control::ControlPlane;

/// Every policy in shadow mode, and what enforcing it would have changed in the last minutes, as sidecars told.
#[utoipa::path(get, path = "/api/v1/shadows", tag = "mesh",
    params(("namespace" = Option<String>, Query, description = "Only this namespace"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000), ("continue" = Option<String>, Query,)),
    responses((status = 200, body = ShadowList)))]
pub(super) async fn list(
    State(control): State<ControlPlane>,
    actor: Actor,
    mut params: Params,
) -> Result<Json<ShadowList>, Problem> {
    let listing = Listing::paged(&mut params);
    let listing = Listing { namespace: params.read("namespace", Namespace::parse), ..listing };
    params.finish()?;
    let found = page(found(&control, &actor, &listing), &listing, "shadows")?;
    Ok(Json(ShadowList { items: found.items, rest: found.rest }))
}

fn found(control: &ControlPlane, actor: &Actor, listing: &Listing) -> Vec<(PolicyName, ShadowReply)> {
    let truth = control.truth();
    let wanted = |name: &PolicyName| {
        listing.namespace.as_ref().is_none_or(|wanted| *wanted == name.namespace)
            && actor.limits.hold(Place::Namespace(&name.namespace))
    };
    let shadows = truth.meaning.authorization.values().filter(|policy| policy.shadow && wanted(&policy.name));
    shadows.map(|policy| (policy.name.clone(), reply(&policy.name, control.shadow(&policy.name)))).collect()
}

fn reply(name: &PolicyName, seen: Seen) -> ShadowReply {
    let Seen { counts, last } = seen;
    ShadowReply {
        policy: name.to_string(),
        seconds: WINDOW.as_secs(),
        unchanged: counts.unchanged,
        would_deny: counts.would_deny,
        would_allow: counts.would_allow,
        last: last.map(change),
    }
}

fn change(last: Change) -> ShadowChange {
    let known = |text: String| Some(text).filter(|text| !text.is_empty());
    ShadowChange {
        at: equerry_certs::rfc3339(last.at),
        source: known(last.source),
        destination: known(last.destination),
        rule: last.rule,
        would: if last.allow { "allow" } else { "deny" }.to_owned(),
    }
}
