//! `RequestAuthentication`.

use std::collections::BTreeSet;

use super::at::At;
use super::{World, keys, target};
use crate::document::shape::Notes;
use crate::names::{PolicyName, nearest};
use crate::policy::{
    CLOCK_SKEW, ClaimHeader, FETCH_TIMEOUT, FetchedKeys, JwtRule, RequestAuthentication, RequiredClaim, TokenPlace,
    claim_path,
};

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
    let places = places(at, &claims_to_headers, notes);
    let (jwks, fetched) = key_source(at, notes)?;
    Some(JwtRule {
        issuer: at.text_of("issuer")?.to_owned(),
        audiences: at.texts("audiences"),
        jwks,
        fetched,
        places,
        forward: at.flag("forwardOriginalToken").unwrap_or(false),
        required_claims: required_claims(at),
        clock_skew: at.duration("clockSkew").unwrap_or(CLOCK_SKEW),
        end_streams_with_token: at.flag("endStreamsWithToken").unwrap_or(false),
        required: at.flag("required").unwrap_or(false),
        claims_to_headers,
        origin: at.origin(notes),
    })
}

/// The key set that is written down, or where it is fetched: one of the two.
fn key_source(at: &At<'_>, notes: &mut Notes<'_>) -> Option<(String, Option<FetchedKeys>)> {
    for key in ["jwksCa", "timeout"] {
        if let (Some(set), None) = (at.get(key), at.get("jwksUri")) {
            set.complain_of(notes, format!("{key} without jwksUri"), "jwksUri, which it is about");
        }
    }
    match (at.get("jwks"), at.get("jwksUri")) {
        (Some(jwks), None) => Some((keys::key_set(&jwks, notes)?, None)),
        (None, Some(uri)) => {
            let ca = match at.get("jwksCa") {
                Some(ca) => Some(keys::certificates(&ca, notes)?.to_owned()),
                None => None,
            };
            let timeout = at.duration("timeout").unwrap_or(FETCH_TIMEOUT);
            Some((String::new(), Some(FetchedKeys { uri: uri.text()?.to_owned(), ca, timeout })))
        }
        (Some(_), Some(uri)) => {
            uri.complain_of(notes, "jwks and jwksUri", "one of the two");
            None
        }
        (None, None) => {
            at.complain_of(notes, "a rule without keys", "jwks, or jwksUri");
            None
        }
    }
}

/// Where tokens are, when it is written.
fn places(at: &At<'_>, told: &[ClaimHeader], notes: &mut Notes<'_>) -> Vec<TokenPlace> {
    let mut places = Vec::new();
    for item in at.list("fromHeaders") {
        let Some(name) = item.get("name") else { continue };
        let Some(header) = name.text().map(str::to_ascii_lowercase) else { continue };
        let carries = header == "authorization" || header == "proxy-authorization";
        if header.starts_with(super::tenant::RESERVED) || OWNED.contains(&header.as_str()) && !carries {
            name.complain(
                notes,
                "authorization, or a header of the callers' own: this one belongs to the mesh or to HTTP",
            );
        } else if told.iter().any(|told| told.header == header) {
            name.complain(
                notes,
                "another header than those that claims are told in: callers' copies of those are thrown away",
            );
        }
        let prefix = item.text_of("prefix").unwrap_or_default().to_owned();
        places.push(TokenPlace::Header { name: header, prefix });
    }
    places.extend(at.texts("fromCookies").into_iter().map(TokenPlace::Cookie));
    places.extend(at.texts("fromParams").into_iter().map(TokenPlace::Query));
    places
}

fn required_claims(at: &At<'_>) -> Vec<RequiredClaim> {
    let read = |item: &At<'_>| {
        Some(RequiredClaim { claim: item.text_of("claim").and_then(claim_path)?, values: item.texts("values") })
    };
    at.list("requiredClaims").iter().filter_map(read).collect()
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
