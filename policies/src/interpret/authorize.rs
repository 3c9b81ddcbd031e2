//! `AuthorizationPolicy`.

use std::net::IpAddr;

use http::HeaderName;

use super::at::At;
use super::{World, route, target};
use crate::document::shape::Notes;
use crate::names::{AccountName, Namespace, PolicyName, SpiffeId, TrustDomain, nearest};
use crate::policy::{
    Action, Attribute, AuthorizationPolicy, AuthorizationRule, Condition, IpBlock, Operation, PathTemplate, Source,
    StringMatch, claim_path,
};

/// Istio's keys of conditions that are a whole key.
const KEYS: &[&str] = &[
    "source.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "remote.ip",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "destination.ip",
    "destination.port",
    "connection.sni",
];
/// What a condition's key starts with to name a claim, or a header.
const CLAIMS: &str = "request.auth.claims";
const HEADERS: &str = "request.headers";
/// Istio's annotation for `mode: shadow`.
const DRY_RUN: &str = "istio.io/dry-run";
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
        Some("AUDIT") => Action::Audit,
        _ => Action::Allow,
    };
    let shadow = shadow(root, spec.as_ref(), action, notes);
    let rules = spec.map(|s| s.list("rules")).unwrap_or_default();
    let rules = rules.iter().map(|at| rule(at, &name.namespace, notes)).collect();
    Some(AuthorizationPolicy { name: name.clone(), target: target?, action, shadow, rules, origin: root.origin(notes) })
}

/// Whether nothing of the policy is enforced: `mode: shadow`, or Istio's annotation.
fn shadow(root: &At<'_>, spec: Option<&At<'_>>, action: Action, notes: &mut Notes<'_>) -> bool {
    let mode = spec.and_then(|spec| spec.get("mode"));
    let annotations = root.get("metadata").map(|m| m.map("annotations")).unwrap_or_default();
    let dry_run = annotations.into_iter().find(|(key, _)| *key == DRY_RUN).map(|(_, value)| value);
    let by_mode = mode.as_ref().and_then(At::text).map(|mode| mode == "shadow");
    let by_annotation = dry_run.as_ref().and_then(|value| match value.text() {
        Some("true") => Some(true),
        Some("false") => Some(false),
        _ => {
            value.complain(notes, "\"true\" or \"false\"");
            None
        }
    });
    if let (Some(one), Some(other), Some(mode)) = (by_mode, by_annotation, &mode)
        && one != other
    {
        mode.complain(notes, format!("what the annotation {DRY_RUN} says, or one of the two alone"));
    }
    let shadow = by_mode.or(by_annotation).unwrap_or(false);
    if let Some(at) = mode.or(dry_run).filter(|_| shadow && action == Action::Audit) {
        at.complain_of(notes, "shadow beside action AUDIT", "one of the two: neither enforces anything");
    }
    shadow
}

fn rule(at: &At<'_>, own: &Namespace, notes: &mut Notes<'_>) -> AuthorizationRule {
    AuthorizationRule {
        from: at.list("from").iter().filter_map(|f| source(&f.get("source")?, own, notes)).collect(),
        to: at.list("to").iter().filter_map(|t| operation(&t.get("operation")?, notes)).collect(),
        when: at.list("when").iter().filter_map(|w| condition(w, own, notes)).collect(),
        origin: at.origin(notes),
    }
}

fn source(at: &At<'_>, own: &Namespace, notes: &mut Notes<'_>) -> Option<Source> {
    refuse_empty(at, notes)?;
    let accounts = ["serviceAccounts", "notServiceAccounts"];
    let beside = ["principals", "notPrincipals", "namespaces", "notNamespaces"];
    if let Some(written) = accounts.iter().find_map(|key| at.get(key))
        && beside.iter().any(|key| at.get(key).is_some())
    {
        written.complain_of(
            notes,
            "accounts beside principals or namespaces",
            "one of the two: an account names its namespace",
        );
    }
    Some(Source {
        principals: at.matches("principals", notes, principal),
        not_principals: at.matches("notPrincipals", notes, principal),
        namespaces: at.matches("namespaces", notes, namespace),
        not_namespaces: at.matches("notNamespaces", notes, namespace),
        request_principals: at.matches("requestPrincipals", notes, request_principal),
        not_request_principals: at.matches("notRequestPrincipals", notes, request_principal),
        ip_blocks: ip_blocks(at, "ipBlocks", notes),
        not_ip_blocks: ip_blocks(at, "notIpBlocks", notes),
        remote_ip_blocks: ip_blocks(at, "remoteIpBlocks", notes),
        not_remote_ip_blocks: ip_blocks(at, "notRemoteIpBlocks", notes),
        service_accounts: service_accounts(at, "serviceAccounts", own),
        not_service_accounts: service_accounts(at, "notServiceAccounts", own),
        trust_domains: at.matches("trustDomains", notes, trust_domain),
        not_trust_domains: at.matches("notTrustDomains", notes, trust_domain),
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

fn namespace(at: &At<'_>, text: &str, notes: &mut Notes<'_>) -> bool {
    let possible = text.contains('*') || Namespace::parse(text).is_ok();
    if !possible {
        at.complain(notes, "a namespace: lower-case letters, digits and '-'");
    }
    possible
}

fn trust_domain(at: &At<'_>, text: &str, notes: &mut Notes<'_>) -> bool {
    let possible = text.contains('*') || TrustDomain::parse(text).is_ok();
    if !possible {
        at.complain(notes, "a trust domain: lower-case letters, digits, '.', '_' and '-'");
    }
    possible
}

/// As Istio reads it: issuer and subject are compared each for itself, and the last '/' parts them.
fn request_principal(at: &At<'_>, text: &str, notes: &mut Notes<'_>) -> bool {
    let expected = "ISSUER/SUBJECT of a token, or one of them with a star";
    let parted = text.rsplit_once('/');
    let possible = match (text.contains('*'), parted) {
        (false, parted) => parted.is_some(),
        // The '/' of `https://` would part them.
        (true, Some((issuer, _))) => text.starts_with('*') || !issuer.ends_with('/'),
        (true, None) => true,
    };
    if !possible {
        at.complain(notes, expected);
    }
    possible
}

fn ip_blocks(at: &At<'_>, key: &str, notes: &mut Notes<'_>) -> Vec<IpBlock> {
    at.list(key).iter().filter_map(|block| ip_block(block, notes)).collect()
}

fn ip_block(at: &At<'_>, notes: &mut Notes<'_>) -> Option<IpBlock> {
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

/// Accounts; one without a namespace is of the policy's own.
fn service_accounts(at: &At<'_>, key: &str, own: &Namespace) -> Vec<AccountName> {
    let read = |text: &str| match text.contains('/') {
        true => AccountName::parse(text),
        false => AccountName::parse(&format!("{own}/{text}")),
    };
    at.list(key).iter().filter_map(|item| read(item.text()?).ok()).collect()
}

fn operation(at: &At<'_>, notes: &mut Notes<'_>) -> Option<Operation> {
    refuse_empty(at, notes)?;
    Some(Operation {
        hosts: hosts(at, "hosts", notes),
        not_hosts: hosts(at, "notHosts", notes),
        methods: at.matches("methods", notes, method),
        not_methods: at.matches("notMethods", notes, method),
        paths: paths(at, "paths", notes),
        not_paths: paths(at, "notPaths", notes),
        ports: at.list("ports").iter().filter_map(At::number).collect(),
        not_ports: at.list("notPorts").iter().filter_map(At::number).collect(),
    })
}

fn hosts(at: &At<'_>, key: &str, notes: &mut Notes<'_>) -> Vec<StringMatch> {
    let mut hosts = at.matches(key, notes, |_, _, _| true);
    hosts.iter_mut().for_each(lower);
    hosts
}

fn method(at: &At<'_>, text: &str, notes: &mut Notes<'_>) -> bool {
    let possible = text.contains('*') || METHODS.contains(&text) || is_own_method(text);
    if !possible {
        at.complain_near(notes, "a method in upper case, such as GET", nearest(text, METHODS.iter().copied()));
    }
    possible
}

/// Paths as they are normalised; what has a place left open is a template.
fn paths(at: &At<'_>, key: &str, notes: &mut Notes<'_>) -> Vec<StringMatch> {
    let mut templates = Vec::new();
    let mut paths = at.matches(key, notes, |at, text, notes| {
        if text.contains(['{', '}']) {
            templates.extend(template(at, text, notes));
            return false;
        }
        let wrong = if text.starts_with('*') { None } else { route::not_normal(text.trim_end_matches('*')) };
        if let Some(wrong) = wrong {
            at.complain(notes, format!("a normalised path, PREFIX*, *SUFFIX or *; it starts with '/': {wrong}"));
        }
        wrong.is_none()
    });
    paths.append(&mut templates);
    paths
}

fn template(at: &At<'_>, text: &str, notes: &mut Notes<'_>) -> Option<StringMatch> {
    let filled = text.replace("{**}", "x").replace("{*}", "x");
    let wrong = PathTemplate::parse(text).err().or_else(|| route::not_normal(&filled));
    if let Some(wrong) = wrong {
        at.complain(notes, format!("a template of a normalised path, such as /a/{{*}}/b/{{**}}: {wrong}"));
        return None;
    }
    PathTemplate::parse(text).ok().map(StringMatch::Template)
}

/// A method of no standard: upper-case letters, '-' and '_'. One in lower case would never match anything.
fn is_own_method(text: &str) -> bool {
    text.bytes().all(|c| c.is_ascii_uppercase() || matches!(c, b'-' | b'_'))
        && nearest(text, METHODS.iter().copied()).is_none()
}

fn lower(text: &mut StringMatch) {
    use StringMatch::{Exact, Prefix, Present, Suffix, Template};
    match text {
        Exact(text) | Prefix(text) | Suffix(text) => text.make_ascii_lowercase(),
        Present | Template(_) => {}
    }
}

fn condition(at: &At<'_>, own: &Namespace, notes: &mut Notes<'_>) -> Option<Condition> {
    let key = at.get("key")?;
    let text = key.text()?;
    if at.get("values").is_none() && at.get("notValues").is_none() {
        at.complain_of(notes, "neither values nor notValues", "values, notValues, or both");
    }
    let (values, not_values) = ("values", "notValues");
    let source = |source: Source| Some(Condition::Source(Box::new(source)));
    let any = |_: &At<'_>, _: &str, _: &mut Notes<'_>| true;
    match text {
        "source.ip" => source(Source {
            ip_blocks: ip_blocks(at, values, notes),
            not_ip_blocks: ip_blocks(at, not_values, notes),
            ..Source::default()
        }),
        "remote.ip" => source(Source {
            remote_ip_blocks: ip_blocks(at, values, notes),
            not_remote_ip_blocks: ip_blocks(at, not_values, notes),
            ..Source::default()
        }),
        "source.namespace" => source(Source {
            namespaces: at.matches(values, notes, namespace),
            not_namespaces: at.matches(not_values, notes, namespace),
            ..Source::default()
        }),
        "source.principal" => source(Source {
            principals: at.matches(values, notes, principal),
            not_principals: at.matches(not_values, notes, principal),
            ..Source::default()
        }),
        "source.trustDomain" => source(Source {
            trust_domains: at.matches(values, notes, trust_domain),
            not_trust_domains: at.matches(not_values, notes, trust_domain),
            ..Source::default()
        }),
        "source.serviceAccount" => source(Source {
            service_accounts: named_accounts(at, values, own, notes),
            not_service_accounts: named_accounts(at, not_values, own, notes),
            ..Source::default()
        }),
        "request.auth.principal" => source(Source {
            request_principals: at.matches(values, notes, request_principal),
            not_request_principals: at.matches(not_values, notes, request_principal),
            ..Source::default()
        }),
        "destination.port" => Some(Condition::Operation(Box::new(Operation {
            ports: ports(at, values, notes),
            not_ports: ports(at, not_values, notes),
            ..Operation::default()
        }))),
        "destination.ip" => Some(Condition::DestinationIp {
            values: ip_blocks(at, values, notes),
            not_values: ip_blocks(at, not_values, notes),
        }),
        _ => Some(Condition::Text {
            of: attribute(&key, text, notes)?,
            values: at.matches(values, notes, any),
            not_values: at.matches(not_values, notes, any),
        }),
    }
}

/// Whose text a condition asks about.
fn attribute(key: &At<'_>, text: &str, notes: &mut Notes<'_>) -> Option<Attribute> {
    let (name, rest) = text.split_at(text.find('[').unwrap_or(text.len()));
    match (name, rest) {
        ("request.auth.audiences", "") => Some(Attribute::Audiences),
        ("request.auth.presenter", "") => Some(Attribute::Presenter),
        ("connection.sni", "") => Some(Attribute::Sni),
        (CLAIMS, _) => {
            let claim = claim_path(rest).filter(|_| rest.starts_with('['));
            if claim.is_none() {
                key.complain(notes, format!("{CLAIMS}[NAME], or {CLAIMS}[OUTER][INNER]"));
            }
            claim.map(Attribute::Claim)
        }
        (HEADERS, _) => {
            let header = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            let header = header.filter(|name| !name.contains('_')).and_then(|name| HeaderName::try_from(name).ok());
            if header.is_none() {
                key.complain(notes, format!("{HEADERS}[NAME], the name of letters, digits and '-'"));
            }
            header.map(|name| Attribute::Header(name.as_str().to_owned()))
        }
        (name, _) if name.starts_with("experimental.envoy.filters") => {
            key.unsupported(notes, "there is no Envoy here whose filters could be asked");
            None
        }
        _ => {
            let near = nearest(name, KEYS.iter().copied().chain([CLAIMS, HEADERS]));
            key.complain_near(notes, format!("{HEADERS}[NAME], {CLAIMS}[NAME], {}", KEYS.join(", ")), near);
            None
        }
    }
}

fn named_accounts(at: &At<'_>, key: &str, own: &Namespace, notes: &mut Notes<'_>) -> Vec<AccountName> {
    for item in at.list(key) {
        let possible =
            |text: &str| AccountName::parse(text).is_ok() || AccountName::parse(&format!("a/{text}")).is_ok();
        if !item.text().is_none_or(possible) {
            item.complain(notes, "an account: ACCOUNT, or NAMESPACE/ACCOUNT");
        }
    }
    service_accounts(at, key, own)
}

fn ports(at: &At<'_>, key: &str, notes: &mut Notes<'_>) -> Vec<u16> {
    let mut ports = Vec::new();
    for item in at.list(key) {
        match item.number::<u16>().filter(|port| *port != 0) {
            Some(port) => ports.push(port),
            None => item.complain(notes, "a port number from 1 to 65535"),
        }
    }
    ports
}
