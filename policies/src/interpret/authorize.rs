//! `AuthorizationPolicy`.

use std::net::IpAddr;

use super::at::At;
use super::{World, route, target};
use crate::document::shape::Notes;
use crate::names::{Namespace, PolicyName, SpiffeId, nearest};
use crate::policy::{Action, AuthorizationPolicy, AuthorizationRule, Condition, Operation, Source, claim_path};

/// What a condition's key starts with to name a claim.
const CLAIMS: &str = "request.auth.claims";
/// Istio's other keys of conditions.
const UNBUILT_KEYS: &[&str] = &[
    "request.headers",
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "destination.ip",
    "destination.port",
    "connection.sni",
    "experimental.envoy.filters",
];
const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

pub(super) fn authorization_policy(
    name: &PolicyName,
    root: &At<'_>,
    world: &World,
    notes: &mut Notes<'_>,
) -> Option<AuthorizationPolicy> {
    let spec = root.get("spec");
    let target = target::target(spec.as_ref(), &name.namespace, world, notes);
    let action = match spec.as_ref().and_then(|s| s.text_of("action")) {
        Some("DENY") => Action::Deny,
        _ => Action::Allow,
    };
    let rules = spec.map(|s| s.list("rules")).unwrap_or_default().iter().map(|at| rule(at, notes)).collect();
    Some(AuthorizationPolicy { name: name.clone(), target: target?, action, rules, origin: root.origin(notes) })
}

fn rule(at: &At<'_>, notes: &mut Notes<'_>) -> AuthorizationRule {
    AuthorizationRule {
        from: at.list("from").iter().filter_map(|f| source(&f.get("source")?, notes)).collect(),
        to: at.list("to").iter().filter_map(|t| operation(&t.get("operation")?, notes)).collect(),
        when: at.list("when").iter().filter_map(|w| condition(w, notes)).collect(),
        origin: at.origin(notes),
    }
}

fn source(at: &At<'_>, notes: &mut Notes<'_>) -> Option<Source> {
    refuse_empty(at, notes)?;
    Some(Source {
        principals: at.matches("principals", notes, principal),
        namespaces: at.matches("namespaces", notes, |at, text, notes| {
            let possible = text.contains('*') || Namespace::parse(text).is_ok();
            if !possible {
                at.complain(notes, "a namespace: lower-case letters, digits and '-'");
            }
            possible
        }),
        request_principals: at.matches("requestPrincipals", notes, |at, text, notes| {
            let possible = text.contains('*') || text.contains('/');
            if !possible {
                at.complain(notes, "ISSUER/SUBJECT of a token, or one of them with a star");
            }
            possible
        }),
        ip_blocks: at.list("ipBlocks").iter().filter_map(|block| ip_block(block, notes)).collect(),
    })
}

/// A part without anything in it would hold for everybody, which is never what its writer meant.
fn refuse_empty(at: &At<'_>, notes: &mut Notes<'_>) -> Option<()> {
    if matches!(&at.node.value, crate::document::node::Value::Map(entries) if entries.is_empty()) {
        at.complain(notes, "at least one list; leave the whole part out to hold for everything");
        return None;
    }
    Some(())
}

fn principal(at: &At<'_>, text: &str, notes: &mut Notes<'_>) -> bool {
    let expected = "TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT, without spiffe://, or a part of it with a star";
    if let Some(bare) = text.strip_prefix("spiffe://") {
        at.complain_near(notes, expected, Some(bare));
        return false;
    }
    let possible = text.contains('*') || SpiffeId::parse(&format!("spiffe://{text}")).is_ok();
    if !possible {
        at.complain(notes, expected);
    }
    possible
}

fn ip_block(at: &At<'_>, notes: &mut Notes<'_>) -> Option<(IpAddr, u8)> {
    let text = at.text()?;
    let read = match text.split_once('/') {
        Some((address, length)) => address.parse::<IpAddr>().ok().zip(length.parse::<u8>().ok()),
        None => text.parse::<IpAddr>().ok().map(|address| (address, if address.is_ipv4() { 32 } else { 128 })),
    };
    let read = read.filter(|(address, length)| *length <= if address.is_ipv4() { 32 } else { 128 });
    if read.is_none() {
        at.complain(notes, "an IP address, or a network such as 10.0.0.0/8");
    }
    read
}

fn operation(at: &At<'_>, notes: &mut Notes<'_>) -> Option<Operation> {
    refuse_empty(at, notes)?;
    let mut hosts = at.matches("hosts", notes, |_, _, _| true);
    for host in &mut hosts {
        lower(host);
    }
    Some(Operation {
        hosts,
        methods: at.matches("methods", notes, |at, text, notes| {
            let possible = text.contains('*') || METHODS.contains(&text) || is_own_method(text);
            if !possible {
                at.complain_near(notes, "a method in upper case, such as GET", nearest(text, METHODS.iter().copied()));
            }
            possible
        }),
        paths: at.matches("paths", notes, |at, text, notes| {
            if text.contains(['{', '}']) {
                at.unsupported(notes, "write an exact path, PREFIX*, *SUFFIX or *");
                return false;
            }
            let wrong = if text.starts_with('*') { None } else { route::not_normal(text.trim_end_matches('*')) };
            if let Some(wrong) = wrong {
                at.complain(notes, format!("a normalised path, PREFIX*, *SUFFIX or *; it starts with '/': {wrong}"));
            }
            wrong.is_none()
        }),
        ports: at.list("ports").iter().filter_map(At::number).collect(),
    })
}

/// A method of no standard: upper-case letters, '-' and '_'. One in lower case would never match anything.
fn is_own_method(text: &str) -> bool {
    text.bytes().all(|c| c.is_ascii_uppercase() || matches!(c, b'-' | b'_'))
        && nearest(text, METHODS.iter().copied()).is_none()
}

fn lower(text: &mut crate::policy::StringMatch) {
    use crate::policy::StringMatch::{Exact, Prefix, Present, Suffix};
    match text {
        Exact(text) | Prefix(text) | Suffix(text) => text.make_ascii_lowercase(),
        Present => {}
    }
}

fn condition(at: &At<'_>, notes: &mut Notes<'_>) -> Option<Condition> {
    let key = at.get("key")?;
    let text = key.text()?;
    let values = at.matches("values", notes, |_, _, _| true);
    let name = text.split('[').next().unwrap_or_default();
    if name != CLAIMS {
        if UNBUILT_KEYS.contains(&name) {
            key.unsupported(notes, &format!("it supports {CLAIMS}[NAME]"));
        } else {
            let near = nearest(name, [CLAIMS].into_iter().chain(UNBUILT_KEYS.iter().copied()));
            key.complain_near(notes, format!("{CLAIMS}[NAME]"), near);
        }
        return None;
    }
    let claim = text.strip_prefix(CLAIMS).filter(|rest| rest.starts_with('[')).and_then(claim_path);
    if claim.is_none() {
        key.complain(notes, format!("{CLAIMS}[NAME], or {CLAIMS}[OUTER][INNER]"));
    }
    Some(Condition { claim: claim?, values })
}
