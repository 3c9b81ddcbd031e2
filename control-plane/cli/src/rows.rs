//! How what the control plane knows looks in a list: headings and rows, for `get`, `get -w` and `status`.

use equerry_control_plane::serve::admin::shapes::{InstanceDetail, ProxyReply, ProxyState, ServiceReply};
use equerry_policies::document::Kind;
use serde_json::Value;

use crate::out;

/// Headings of a list of documents, with their kinds where they are of several.
pub(crate) fn documents_headings(kinds: bool, wide: bool) -> Vec<&'static str> {
    let mut headings = vec!["NAMESPACE", "NAME", "DETAILS"];
    if kinds {
        headings.insert(1, "KIND");
    }
    if wide {
        headings.push("LABELS");
    }
    headings
}

/// One document in a list.
pub(crate) fn document_row(document: &Value, kinds: bool, wide: bool) -> Vec<String> {
    let kind = text(document, "/kind").unwrap_or_default();
    let mut row = vec![
        text(document, "/metadata/namespace").unwrap_or("-").to_owned(),
        text(document, "/metadata/name").unwrap_or_default().to_owned(),
        Kind::from_word(kind).map(|kind| details(kind, document)).unwrap_or_default(),
    ];
    if kinds {
        row.insert(1, kind.to_owned());
    }
    if wide {
        let labels = document.pointer("/metadata/labels").and_then(Value::as_object);
        let labels =
            labels.into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()));
        row.push(labels_of(labels));
    }
    row
}

/// `a=b,c=d`, or `-`.
pub(crate) fn labels_of<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let text = labels.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    if text.is_empty() { "-".to_owned() } else { text }
}

/// A text inside a document.
pub(crate) fn text<'a>(document: &'a Value, pointer: &str) -> Option<&'a str> {
    document.pointer(pointer).and_then(Value::as_str)
}

/// The one thing about a document that a person looks for in a list.
fn details(kind: Kind, document: &Value) -> String {
    let list =
        |pointer: &str| document.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let names =
        |pointer: &str| list(pointer).iter().filter_map(|item| text(item, "/name")).collect::<Vec<_>>().join(", ");
    let count = |pointer: &str, one: &str| match list(pointer).len() {
        1 => format!("1 {one}"),
        count => format!("{count} {one}s"),
    };
    match kind {
        Kind::Service => list("/spec/ports")
            .iter()
            .filter_map(|port| port.get("port"))
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute => {
            let backends: Vec<_> = list("/spec/rules")
                .iter()
                .flat_map(|rule| rule.get("backendRefs").and_then(Value::as_array).into_iter().flatten())
                .collect();
            let backends: Vec<_> = backends
                .iter()
                .map(|backend| {
                    format!(
                        "{}:{}",
                        text(backend, "/name").unwrap_or("?"),
                        backend.get("weight").and_then(Value::as_u64).unwrap_or(1)
                    )
                })
                .collect();
            format!("{} -> {}", names("/spec/parentRefs"), backends.join(", "))
        }
        Kind::AuthorizationPolicy => {
            let shadow = if text(document, "/spec/mode") == Some("shadow") { "shadow " } else { "" };
            let action = text(document, "/spec/action").unwrap_or("ALLOW");
            format!("{shadow}{action}, {}", count("/spec/rules", "rule"))
        }
        Kind::CsrfPolicy => names("/spec/targetRefs"),
        Kind::PolicyTest => count("/spec/cases", "case"),
        Kind::RequestAuthentication => {
            list("/spec/jwtRules").iter().filter_map(|rule| text(rule, "/issuer")).collect::<Vec<_>>().join(", ")
        }
        Kind::PeerAuthentication => text(document, "/spec/mtls/mode").unwrap_or("-").to_owned(),
        Kind::Mesh => text(document, "/spec/mtls/mode").unwrap_or("STRICT").to_owned(),
        Kind::TrafficPolicy | Kind::FaultInjection => names("/spec/targetRefs"),
        Kind::Tenant => count("/spec/quotas", "quota"),
        Kind::EndpointSlice => count("/endpoints", "endpoint"),
    }
}

/// Services with how many of their members take traffic.
pub(crate) fn services_table(services: &[ServiceReply], wide: bool) -> String {
    let rows: Vec<_> = services.iter().map(|service| service_row(service, wide)).collect();
    out::table(&services_headings(wide), &rows)
}

/// Headings of a list of Services.
pub(crate) fn services_headings(wide: bool) -> Vec<&'static str> {
    let mut headings = vec!["NAMESPACE", "SERVICE", "HEALTHY"];
    if wide {
        headings.extend(["MEMBERS", "LEFT OUT", "LABELS"]);
    }
    headings
}

/// One Service in a list.
pub(crate) fn service_row(service: &ServiceReply, wide: bool) -> Vec<String> {
    let (namespace, name) = service.service.split_once('/').unwrap_or(("-", &service.service));
    let style = if service.healthy == service.total && service.total > 0 { out::GOOD } else { out::BAD };
    let mut row = vec![
        namespace.to_owned(),
        name.to_owned(),
        out::styled(style, format_args!("{}/{}", service.healthy, service.total)),
    ];
    if wide {
        let members = service.members.iter().map(|member| format!("{}@{}", member.instance, member.address));
        let members: Vec<_> = members.chain(service.addresses.iter().cloned()).collect();
        row.push(if members.is_empty() { "-".to_owned() } else { members.join(",") });
        row.push(service.left_out.len().to_string());
        row.push(labels_of(service.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()))));
    }
    row
}

/// Headings of a list of instances.
pub(crate) fn instances_headings(wide: bool) -> Vec<&'static str> {
    let mut headings = vec!["INSTANCE", "ACCOUNT", "INBOUND", "HEALTH"];
    if wide {
        headings.extend(["PORTS", "LEASE", "PROXY", "SERVICES", "LABELS"]);
    }
    headings
}

/// One instance in a list. Without what changes with every beat of its lease unless it is asked for.
pub(crate) fn instance_row(instance: &InstanceDetail, wide: bool) -> Vec<String> {
    let mut row = vec![
        instance.instance.clone(),
        instance.account.clone(),
        instance.inbound.clone(),
        health(instance.healthy, &instance.detail),
    ];
    if wide {
        let ports: Vec<_> = instance.ports.iter().map(ToString::to_string).collect();
        row.extend([
            ports.join(","),
            lease(instance.lease_ms),
            if instance.connected { "connected" } else { "away" }.to_owned(),
            instance.services.join(","),
            labels_of(instance.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()))),
        ]);
    }
    row
}

/// `healthy`, or why not.
pub(crate) fn health(healthy: bool, detail: &str) -> String {
    if healthy {
        out::styled(out::GOOD, "healthy")
    } else {
        out::styled(out::BAD, format_args!("unhealthy {detail}").to_string().trim_end())
    }
}

/// What is left of a lease.
pub(crate) fn lease(milliseconds: u64) -> String {
    format!("{}.{} s left", milliseconds / 1000, milliseconds % 1000 / 100)
}

/// Proxies with what they have and what they ought to have.
pub(crate) fn proxies_table(proxies: &[ProxyReply], wide: bool) -> String {
    let rows: Vec<_> = proxies.iter().map(|proxy| proxy_row(proxy, wide)).collect();
    out::table(&proxies_headings(wide), &rows)
}

/// Headings of a list of proxies.
pub(crate) fn proxies_headings(wide: bool) -> Vec<&'static str> {
    let mut headings = vec!["INSTANCE", "IDENTITY", "EPOCH", "VERSION", "STATE"];
    if wide {
        headings.extend(["CERTIFICATE ENDS", "SERVICES", "LABELS"]);
    }
    headings
}

/// One proxy in a list.
pub(crate) fn proxy_row(proxy: &ProxyReply, wide: bool) -> Vec<String> {
    let state = match proxy.state {
        ProxyState::Away => out::styled(out::NOTE, "away"),
        ProxyState::Refused => {
            out::styled(out::BAD, format_args!("refused: {}", proxy.nack.as_deref().unwrap_or_default().join("; ")))
        }
        ProxyState::Behind => out::styled(out::NOTE, "behind"),
        ProxyState::InStep => out::styled(out::GOOD, "in step"),
    };
    let mut row = vec![
        proxy.instance.clone(),
        proxy.spiffe_id.clone().unwrap_or_else(|| "-".to_owned()),
        format!("{}/{}", proxy.acked_epoch, proxy.wanted_epoch),
        proxy.version.clone(),
        state,
    ];
    if wide {
        row.push(proxy.certificate_not_after_unix.map_or_else(|| "-".to_owned(), moment));
        row.push(if proxy.services.is_empty() { "-".to_owned() } else { proxy.services.join(",") });
        row.push(labels_of(proxy.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()))));
    }
    row
}

/// Seconds since 1970 as `2026-11-21T13:05:00Z`.
pub(crate) fn moment(unix: u64) -> String {
    let at = i64::try_from(unix).ok().and_then(|unix| time::OffsetDateTime::from_unix_timestamp(unix).ok());
    at.and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok()).unwrap_or_else(|| unix.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_says_of_a_route_where_it_sends() {
        let route = json!({"spec": {"parentRefs": [{"name": "inventory"}], "rules": [{"backendRefs": [{"name": "inventory-v1", "weight": 90}, {"name": "inventory-v2", "weight": 10}]}]}});
        assert_eq!(details(Kind::HttpRoute, &route), "inventory -> inventory-v1:90, inventory-v2:10");
    }

    #[test]
    fn a_proxy_that_refused_is_told_from_one_that_is_behind_or_away() {
        let proxy = |state: &str, nack: Option<&str>| {
            let mut proxy = json!({"instance": "shop/a", "spiffeId": "spiffe://x/ns/shop/sa/a", "connected": true, "ackedEpoch": 6, "wantedEpoch": 7, "version": "0.1.0", "state": state});
            if let Some(nack) = nack {
                proxy["nack"] = json!([nack]);
            }
            serde_json::from_value::<ProxyReply>(proxy).unwrap()
        };
        let proxies =
            [proxy("in_step", None), proxy("behind", None), proxy("refused", Some("bad")), proxy("away", None)];
        let table = proxies_table(&proxies, false);
        let table = anstream::adapter::strip_str(&table).to_string();
        let states: Vec<_> = table.lines().skip(1).map(|line| line.rsplit("   ").next().unwrap()).collect();
        assert_eq!(states, ["in step", "behind", "refused: bad", "away"]);
    }
}
