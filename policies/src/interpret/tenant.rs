//! `Tenant`.

use std::time::Duration;

use super::at::At;
use super::{Claim, World};
use crate::document::Document;
use crate::document::node::quoted;
use crate::document::shape::Notes;
use crate::names::{AccountName, ServiceName, TenantName};
use crate::policy::{OnControlPlaneLoss, Quota, Tenant, TenantMatch, claim_path, duration};

/// Headers of this prefix are the mesh's own: stripped from what callers send, so nothing may be read from them.
pub(super) const RESERVED: &str = "x-equerry-";

/// The longest window of a quota.
const MAX_WINDOW: Duration = Duration::from_secs(24 * 3600);

pub(super) fn tenant(document: &Document, root: &At<'_>, world: &mut World, notes: &mut Notes<'_>) -> Option<Tenant> {
    let at = root.get("metadata").and_then(|m| m.get("name"))?;
    let name = match TenantName::parse(document.key().name.as_str()) {
        Ok(name) => Some(name),
        Err(bad) => {
            at.complain(notes, bad.expected);
            None
        }
    };
    let spec = root.get("spec")?;
    let mut matches = Vec::new();
    for at in spec.list("match") {
        if let Some(read) = tenant_match(&at, notes) {
            let found = in_words(&read);
            world.claim(&at, Claim::Matcher(found.clone()), &found, "a matcher that no other tenant has", notes);
            matches.push(read);
        }
    }
    let mut quotas = Vec::new();
    for (index, at) in spec.list("quotas").iter().enumerate() {
        quotas.extend(quota(at, &format!("{}/{index}", document.key().name), world, notes));
    }
    let on_control_plane_loss = match spec.text_of("onControlPlaneLoss") {
        Some("deny") => OnControlPlaneLoss::Deny,
        Some("allow") => OnControlPlaneLoss::Allow,
        _ => OnControlPlaneLoss::LastShare,
    };
    Some(Tenant { name: name?, matches, quotas, on_control_plane_loss, origin: root.origin(notes) })
}

fn tenant_match(at: &At<'_>, notes: &mut Notes<'_>) -> Option<TenantMatch> {
    match (at.get("claim"), at.get("header")) {
        (Some(claim), None) => Some(TenantMatch::Claim {
            name: claim_path(claim.text_of("name")?)?,
            value: claim.text_of("value")?.to_owned(),
        }),
        (None, Some(header)) => {
            let name = header.text_of("name")?.to_ascii_lowercase();
            if name.starts_with(RESERVED) {
                header
                    .get("name")?
                    .complain(notes, format!("a header that callers can send: {RESERVED}* is reserved and stripped"));
            }
            let trusted_from: Vec<AccountName> =
                header.texts("trustedFrom").iter().filter_map(|text| AccountName::parse(text).ok()).collect();
            let value = header.text_of("value")?.to_owned();
            (!trusted_from.is_empty()).then_some(TenantMatch::Header { name, value, trusted_from })
        }
        (Some(_), Some(_)) => {
            at.complain_of(
                notes,
                "claim and header in one matcher",
                "one of the two; each matcher names the tenant on its own",
            );
            None
        }
        (None, None) => {
            if at.node.get("subdomain").is_none() && at.node.get("identity").is_none() {
                at.complain(notes, "claim or header");
            }
            None
        }
    }
}

/// What two tenants must not share; which accounts a header is believed from does not matter.
fn in_words(read: &TenantMatch) -> String {
    match read {
        TenantMatch::Claim { name, value } => {
            format!("the claim {} with the value {}", quoted(&name.join("][")), quoted(value))
        }
        TenantMatch::Header { name, value, .. } => format!("the header {name} with the value {}", quoted(value)),
    }
}

fn quota(at: &At<'_>, id: &str, world: &World, notes: &mut Notes<'_>) -> Option<Quota> {
    let mut services: Vec<ServiceName> = Vec::new();
    for item in at.list("services") {
        let Some(service) = item.text().and_then(|text| ServiceName::parse(text).ok()) else { continue };
        if services.contains(&service) {
            item.complain(notes, "each Service once");
        } else if world.enforcing(&item, &service, notes).is_some() {
            services.push(service);
        }
    }
    let window = at.get("window")?;
    let length = window.text().and_then(duration)?;
    if length.subsec_nanos() != 0 || length.is_zero() || length > MAX_WINDOW {
        window.complain(notes, "whole seconds, from 1s to 24h");
    }
    (!services.is_empty()).then_some(Quota {
        id: id.to_owned(),
        services,
        requests: at.whole("requests")?,
        window: length,
    })
}
