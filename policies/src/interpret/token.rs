//! `RequestAuthentication`.

use std::collections::BTreeSet;

use super::at::At;
use super::{World, keys, target};
use crate::document::shape::Notes;
use crate::names::{PolicyName, nearest};
use crate::policy::{ClaimHeader, JwtRule, RequestAuthentication, claim_path};

/// Headers that a claim must not be told in, because they steer the request itself or are written by the mesh.
const OWNED: &[&str] = &[
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "grpc-status",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "proxy-status",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "traceparent",
    "tracestate",
    "upgrade",
    "via",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-request-id",
];

pub(super) fn request_authentication(
    name: &PolicyName,
    root: &At<'_>,
    world: &World,
    notes: &mut Notes<'_>,
) -> Option<RequestAuthentication> {
    let spec = root.get("spec")?;
    let target = target::target(Some(&spec), &name.namespace, world, notes);
    let mut issuers = BTreeSet::new();
    let mut rules = Vec::new();
    for at in spec.list("jwtRules") {
        if let Some(issuer) = at.get("issuer").filter(|i| i.text().is_some_and(|text| !issuers.insert(text))) {
            issuer.complain(notes, "each issuer once in a document");
        }
        rules.extend(rule(&at, notes));
    }
    Some(RequestAuthentication { name: name.clone(), target: target?, rules, origin: root.origin(notes) })
}

fn rule(at: &At<'_>, notes: &mut Notes<'_>) -> Option<JwtRule> {
    let claims_to_headers = claims_to_headers(at, notes);
    let jwks = keys::key_set(&at.get("jwks")?, notes);
    Some(JwtRule {
        issuer: at.text_of("issuer")?.to_owned(),
        audiences: at.texts("audiences"),
        jwks: jwks?,
        required: at.flag("required").unwrap_or(false),
        claims_to_headers,
        origin: at.origin(notes),
    })
}

fn claims_to_headers(at: &At<'_>, notes: &mut Notes<'_>) -> Vec<ClaimHeader> {
    let mut read: Vec<ClaimHeader> = Vec::new();
    for item in at.list("claimsToHeaders") {
        let (Some(name), Some(claim)) = (item.get("header"), item.text_of("claim").and_then(claim_path)) else {
            continue;
        };
        let Some(header) = name.text().map(str::to_ascii_lowercase) else { continue };
        if header.starts_with(super::tenant::RESERVED) || OWNED.contains(&header.as_str()) {
            name.complain(
                notes,
                "a header of the application's own, such as x-user: this one belongs to the mesh or to HTTP",
            );
        } else if read.iter().any(|other| other.header == header) {
            name.complain_near(notes, "each header once in a rule", nearest(&header, []));
        }
        read.push(ClaimHeader { claim, header });
    }
    read
}
