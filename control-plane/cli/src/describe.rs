//! `equerry describe`: one thing with everything that has to do with it, and why it gets no traffic when it gets none.

use std::fmt::Write as _;

use equerry_control_plane::serve::admin::shapes::{
    EdgeReply, InstanceDetail, ProxyList, ProxyReply, RelatedReply, ServiceDetail, SideReply,
};
use equerry_policies::document::Kind;
use http::Method;
use serde_json::{Value, json};

use crate::args::{DescribeArgs, Output};
use crate::client::Client;
use crate::delete::{escaped, path_of};
use crate::failure::Failure;
use crate::get::{kind_of, plain};
use crate::out;
use crate::rows::{health, labels_of, lease, moment, proxy_row};

pub(crate) async fn run(args: &DescribeArgs, client: &mut Client) -> Result<(), Failure> {
    let output = args.output.output;
    let text = match args.kind.to_ascii_lowercase().as_str() {
        "proxy" | "proxies" => {
            let proxy = proxy(client, &args.namespace, &args.name).await?;
            if plain(output, &proxy) {
                return Ok(());
            }
            of_proxy(&proxy)
        }
        "instance" | "instances" => {
            let path = format!("/api/v1/instances/{}?namespace={}", escaped(&args.name), escaped(&args.namespace));
            let instance: InstanceDetail = client.get(&path).await?;
            let proxy = proxy_of(client, &args.namespace, &args.name).await?;
            if plain(output, &json!({"instance": instance, "proxy": proxy})) {
                return Ok(());
            }
            of_instance(&instance, proxy.as_ref())
        }
        _ => match kind_of(&args.kind)? {
            Kind::Service => {
                let path = format!("/api/v1/services/{}/{}", escaped(&args.namespace), escaped(&args.name));
                let service: ServiceDetail = client.get(&path).await?;
                if plain(output, &service) {
                    return Ok(());
                }
                of_service(&service)
            }
            kind => return document(args, kind, client).await,
        },
    };
    out::data(text.trim_end());
    Ok(())
}

async fn document(args: &DescribeArgs, kind: Kind, client: &mut Client) -> Result<(), Failure> {
    let namespace = kind.namespaced().then_some(args.namespace.as_str());
    let path = path_of(kind, namespace, &args.name);
    let answer = client.ask(Method::GET, &path, None::<&()>).await?;
    if !answer.status.is_success() {
        return Err(answer.failure());
    }
    let document: Value = answer.read()?;
    let (version, epoch) = (answer.header("etag"), answer.header("equerry-epoch"));
    let (version, epoch) = (version.unwrap_or("-").trim_matches('"'), epoch.unwrap_or("-"));
    let warnings = answer.warnings();
    match args.output.output {
        Output::Table | Output::Wide => {
            let mut text = String::new();
            line(&mut text, "Kind", kind.as_str());
            line(&mut text, "Name", &args.name);
            line(&mut text, "Namespace", namespace.unwrap_or("-"));
            line(&mut text, "Version", version);
            line(&mut text, "Since epoch", epoch);
            for warning in &warnings {
                line(&mut text, "Warning", out::styled(out::BAD, warning));
            }
            out::data(format_args!("{text}\n{}", out::yaml(&document)));
        }
        Output::Name => out::data(crate::apply::name_of(kind.as_str(), namespace, &args.name)),
        output => {
            plain(
                output,
                &json!({"version": version, "epoch": epoch.parse::<u64>().ok(), "warnings": warnings, "document": document}),
            );
        }
    }
    Ok(())
}

async fn proxy(client: &mut Client, namespace: &str, name: &str) -> Result<ProxyReply, Failure> {
    proxy_of(client, namespace, name).await?.ok_or_else(|| {
        Failure::refused(format_args!("there is no proxy of an instance {namespace}/{name}"))
            .hint("`equerry get proxies` shows all")
    })
}

/// The proxy of an instance, when the control plane knows one.
async fn proxy_of(client: &mut Client, namespace: &str, name: &str) -> Result<Option<ProxyReply>, Failure> {
    let wanted = format!("{namespace}/{name}");
    let list: ProxyList = client.get(&format!("/api/v1/proxies?namespace={}", escaped(namespace))).await?;
    Ok(list.items.into_iter().find(|proxy| proxy.instance == wanted))
}

fn line(text: &mut String, name: &str, value: impl std::fmt::Display) {
    // Writing to a String does not fail.
    let _ = writeln!(text, "{:<16} {value}", format!("{name}:"));
}

fn part(text: &mut String, name: &str, table: Option<String>) {
    let _ = match table {
        Some(table) => writeln!(text, "\n{}\n{table}", out::styled(out::HEAD, name)),
        None => writeln!(text, "\n{}  none", out::styled(out::HEAD, name)),
    };
}

fn rows(headings: &[&str], rows: &[Vec<String>]) -> Option<String> {
    (!rows.is_empty()).then(|| out::table(headings, rows))
}

fn of_service(detail: &ServiceDetail) -> String {
    let service = &detail.service;
    let mut text = String::new();
    line(&mut text, "Service", &service.service);
    if let Some(name) = &service.external_name {
        line(&mut text, "Stands for", format_args!("{name}, outside the mesh"));
    }
    let pairs = |labels: &std::collections::BTreeMap<String, String>| {
        labels_of(labels.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    };
    line(&mut text, "Labels", pairs(&service.labels));
    line(&mut text, "Selects", pairs(&detail.selector));
    line(&mut text, "Accounts", if detail.accounts.is_empty() { "-".to_owned() } else { detail.accounts.join(", ") });
    line(&mut text, "Healthy", format_args!("{} of {}", service.healthy, service.total));
    if let Some(why) = why_no_traffic(detail) {
        line(&mut text, "Why no traffic", out::styled(out::BAD, why));
    }
    for member in service.members.iter().filter(|member| !member.plain_text.is_empty()) {
        let ports: Vec<String> = member.plain_text.iter().map(ToString::to_string).collect();
        let what = format!("{} of {}: nobody is known by identity there", ports.join(", "), member.instance);
        line(&mut text, "In plain text", out::styled(out::BAD, what));
    }
    let ports = detail.ports.iter().map(|port| {
        let name = port.name.clone().unwrap_or_else(|| "-".to_owned());
        let protocol = port.protocol.clone().unwrap_or_else(|| "told from its first bytes".to_owned());
        vec![port.port.to_string(), port.target_port.to_string(), protocol, name]
    });
    part(&mut text, "Ports", rows(&["PORT", "TARGET", "PROTOCOL", "NAME"], &ports.collect::<Vec<_>>()));
    let members = service.members.iter().map(|member| {
        let proxy = if member.connected { "connected" } else { "away" };
        let address = member.address.clone();
        vec![
            member.instance.clone(),
            member.account.clone(),
            address,
            proxy.to_owned(),
            lease(member.lease_ms),
            health(member.healthy, &member.detail),
        ]
    });
    let addresses = service.addresses.iter().map(|address| {
        vec!["-".to_owned(), "-".to_owned(), address.clone(), "-".to_owned(), "-".to_owned(), "written down".to_owned()]
    });
    part(
        &mut text,
        "Members",
        rows(
            &["INSTANCE", "ACCOUNT", "ADDRESS", "PROXY", "LEASE", "HEALTH"],
            &members.chain(addresses).collect::<Vec<_>>(),
        ),
    );
    let out = service.left_out.iter().map(|out| vec![out.instance.clone(), out.account.clone(), out.reason.clone()]);
    if let Some(table) = rows(&["INSTANCE", "ACCOUNT", "WHY"], &out.collect::<Vec<_>>()) {
        part(&mut text, "Left out", Some(table));
    }
    part(
        &mut text,
        "Routes and policies",
        rows(&["KIND", "NAMESPACE", "NAME", "HOW"], &detail.policies.iter().map(related).collect::<Vec<_>>()),
    );
    part(&mut text, "Called by", edges(&detail.callers, |edge| &edge.source));
    part(&mut text, "Its accounts call", edges(&detail.callees, |edge| &edge.destination));
    text
}

/// Why nobody is reached there, in one sentence.
fn why_no_traffic(detail: &ServiceDetail) -> Option<String> {
    let service = &detail.service;
    if service.healthy > 0 || service.external_name.is_some() {
        return None;
    }
    Some(match (service.total, service.left_out.len()) {
        (0, 0) if detail.accounts.is_empty() => {
            "no account may stand behind it: annotation equerry.dev/accounts names them".to_owned()
        }
        (0, 0) => "no instance that it selects has registered: does a sidecar run with these labels?".to_owned(),
        (0, left_out) => format!("it selects {left_out} that may not stand behind it; see Left out"),
        (total, _) => format!("none of its {total} members is healthy; see Members"),
    })
}

fn related(related: &RelatedReply) -> Vec<String> {
    let how = match related.how.as_str() {
        "names" => "names it",
        "sends" => "sends traffic to it",
        "selects" => "selects its members",
        "namespace" => "holds for its namespace",
        "mesh" => "holds for the mesh",
        other => other,
    };
    let namespace = related.namespace.clone().unwrap_or_else(|| "-".to_owned());
    vec![related.kind.clone(), namespace, related.name.clone(), how.to_owned()]
}

fn edges(edges: &[EdgeReply], who: impl Fn(&EdgeReply) -> &String) -> Option<String> {
    let of = edges.iter().filter_map(|edge| Some((edge, edge.callee.as_ref().or(edge.caller.as_ref())?)));
    let cells = of.map(|(edge, side)| std::iter::once(who(edge).clone()).chain(numbers(side)).collect());
    rows(&["WHO", "REQUESTS/S", "FAILED/S", "REFUSED/S", "P50", "P99"], &cells.collect::<Vec<_>>())
}

/// A latency as a cell.
pub(crate) fn milliseconds(ms: Option<f64>) -> String {
    ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"))
}

/// Rates and latencies as cells.
pub(crate) fn numbers(side: &SideReply) -> [String; 5] {
    // A failure a minute is 0.02 a second, and shows.
    let rate = |rate: f64| if rate >= 10.0 { format!("{rate:.1}") } else { format!("{rate:.2}") };
    let bad = |number: f64, style| if number > 0.0 { out::styled(style, rate(number)) } else { rate(number) };
    [
        rate(side.requests_per_second),
        bad(side.failed_per_second, out::BAD),
        bad(side.refused_per_second, out::NOTE),
        milliseconds(side.p50_ms),
        milliseconds(side.p99_ms),
    ]
}

fn of_instance(instance: &InstanceDetail, proxy: Option<&ProxyReply>) -> String {
    let mut text = String::new();
    line(&mut text, "Instance", &instance.instance);
    line(&mut text, "Account", &instance.account);
    line(&mut text, "Inbound", &instance.inbound);
    let ports: Vec<_> = instance.ports.iter().map(ToString::to_string).collect();
    line(&mut text, "Ports", ports.join(", "));
    line(&mut text, "Labels", labels_of(instance.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()))));
    line(&mut text, "Health", health(instance.healthy, &instance.detail));
    line(&mut text, "Lease", format_args!("{}, of {} s", lease(instance.lease_ms), instance.lease_seconds));
    // A sidecar counts its starts by the clock; somebody else's instance has none of its own.
    let started = if instance.sidecar { moment(instance.generation / 1000) } else { "not known".to_owned() };
    line(&mut text, "Started", started);
    let services = instance.services.join(", ");
    let nowhere = "none: no Service selects its labels and lists its account";
    line(&mut text, "Stands behind", if services.is_empty() { nowhere } else { &services });
    match proxy {
        Some(proxy) => text.push_str(&format!("\n{}", of_proxy(proxy))),
        None if instance.sidecar => line(&mut text, "Proxy", "never connected since the control plane started"),
        None => line(&mut text, "Proxy", "none expected: it was registered over the admin API"),
    }
    text
}

fn of_proxy(proxy: &ProxyReply) -> String {
    let mut text = String::new();
    line(&mut text, "Proxy of", &proxy.instance);
    line(&mut text, "Identity", proxy.spiffe_id.as_deref().unwrap_or("-"));
    line(&mut text, "Version", &proxy.version);
    line(
        &mut text,
        "Connected",
        proxy.connected_since_unix.map_or_else(|| "no".to_owned(), |since| format!("since {}", moment(since))),
    );
    line(&mut text, "State", proxy_row(proxy, false).pop().unwrap_or_default());
    if let Some(why) = &proxy.why {
        line(&mut text, "Why", why);
    }
    line(&mut text, "Epoch", format_args!("{} acknowledged, {} wanted", proxy.acked_epoch, proxy.wanted_epoch));
    if let Some(epoch) = proxy.nack_epoch {
        line(&mut text, "Refused", format_args!("a part of epoch {epoch}"));
    }
    line(
        &mut text,
        "Certificate",
        proxy.certificate_not_after_unix.map_or_else(|| "-".to_owned(), |end| format!("until {}", moment(end))),
    );
    if !proxy.services.is_empty() {
        line(&mut text, "Stands behind", proxy.services.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(value: Value) -> ServiceDetail {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_service_that_gets_no_traffic_says_why() {
        let why = |value| why_no_traffic(&service(value));
        let nobody =
            json!({"service": "shop/orders", "healthy": 0, "total": 0, "members": [], "accounts": ["shop/orders"]});
        assert!(why(nobody).unwrap().contains("no instance that it selects has registered"));
        let nameless = json!({"service": "shop/orders", "healthy": 0, "total": 0, "members": []});
        assert!(why(nameless).unwrap().contains("equerry.dev/accounts"));
        let left_out = json!({"service": "shop/orders", "healthy": 0, "total": 0, "members": [], "accounts": ["shop/orders"],
            "leftOut": [{"instance": "x", "account": "shop/x", "reason": "its account is not listed"}]});
        assert!(why(left_out).unwrap().contains("see Left out"));
        let sick = json!({"service": "shop/orders", "healthy": 0, "total": 2, "members": []});
        assert!(why(sick).unwrap().contains("none of its 2 members is healthy"));
        assert_eq!(why(json!({"service": "shop/orders", "healthy": 1, "total": 2, "members": []})), None);
    }

    #[test]
    fn an_instance_says_when_it_started_as_people_tell_time() {
        let told = |sidecar: bool, generation: u64| {
            let instance = json!({"instance": "shop/a", "account": "shop/a", "inbound": "10.0.0.1:15006", "ports": [80], "labels": {},
                "healthy": true, "generation": generation, "leaseMs": 9000, "leaseSeconds": 15, "services": [], "connected": false, "sidecar": sidecar});
            let text = of_instance(&serde_json::from_value(instance).unwrap(), None);
            anstream::adapter::strip_str(&text).to_string()
        };
        let own = told(true, 1_790_000_000_123);
        assert!(own.contains("Started:         2026-09-21T14:13:20Z") && own.contains("never connected"), "{own}");
        let registered = told(false, 1);
        assert!(registered.contains("Started:         not known"), "{registered}");
        assert!(registered.contains("Proxy:           none expected"), "{registered}");
    }

    #[test]
    fn a_service_is_told_with_its_members_policies_and_callers() {
        let text = of_service(&service(
            json!({"service": "shop/orders", "healthy": 1, "total": 1, "accounts": ["shop/orders"],
            "members": [{"instance": "orders-1", "account": "shop/orders", "address": "10.0.0.5:15006", "healthy": true, "leaseMs": 9500, "connected": true}],
            "ports": [{"port": 80, "targetPort": 8080}],
            "policies": [{"kind": "HTTPRoute", "namespace": "shop", "name": "orders", "how": "names"}],
            "callers": [{"source": "shop/frontend", "destination": "shop/orders", "callee": {"requestsPerSecond": 12.5, "failedPerSecond": 0.5,
                "refusedPerSecond": 0.0, "p50Ms": 1.25, "requests": 750, "failed": 30, "refused": 0, "connections": 0, "bytesIn": 0, "bytesOut": 0, "ends": [], "lastReportUnixMs": 1}}]}),
        ));
        let text = anstream::adapter::strip_str(&text).to_string();
        for part in [
            "Service:         shop/orders",
            "told from its first bytes",
            "orders-1   shop/orders   10.0.0.5:15006   connected   9.5 s left   healthy",
            "HTTPRoute   shop        orders   names it",
            "shop/frontend   12.5         0.50       0.00        1.2 ms   -",
            "Its accounts call  none",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
