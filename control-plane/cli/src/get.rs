//! `equerry get`: shows documents as they were applied, and what the control plane knows beside them.

use equerry_control_plane::serve::admin::shapes::{
    DocumentList, EpochReply, EpochState, ProxyList, ProxyReply, ServiceList, ServiceReply, VersionReply,
};
use equerry_policies::document::Kind;
use equerry_policies::names::nearest;
use serde::Serialize;
use serde_json::Value;

use crate::apply::name_of;
use crate::args::{GetArgs, Output};
use crate::client::Client;
use crate::delete::{escaped, path_of};
use crate::failure::Failure;
use crate::out;

/// Words that are not kinds of documents.
const VIEWS: [&str; 5] = ["proxies", "proxy", "epochs", "epoch", "all"];

pub(crate) async fn run(args: &GetArgs, client: &mut Client) -> Result<(), Failure> {
    let word = args.kind.to_ascii_lowercase();
    match word.as_str() {
        "proxies" | "proxy" => proxies(args, client).await,
        "epochs" | "epoch" => epoch(args, client).await,
        "all" => all(args, client).await,
        _ => match kind_of(&args.kind)? {
            Kind::Service if args.output.output == Output::Table => services(args, client).await,
            kind => documents(args, kind, client).await,
        },
    }
}

/// The kind that a person means.
pub(crate) fn kind_of(word: &str) -> Result<Kind, Failure> {
    Kind::from_word(word).ok_or_else(|| {
        let lower = word.to_lowercase();
        let known: Vec<String> = Kind::words().map(str::to_lowercase).collect();
        let near = nearest(&lower, known.iter().map(String::as_str).chain(VIEWS));
        let near = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
        let kinds: Vec<_> = Kind::ALL.iter().map(|kind| kind.plural()).collect();
        Failure::usage(format_args!("there is no kind {word:?}{near}"))
            .hint(format_args!("kinds: {}; and proxies, epochs, all", kinds.join(", ")))
    })
}

async fn documents(args: &GetArgs, kind: Kind, client: &mut Client) -> Result<(), Failure> {
    let namespace = (kind.namespaced() && !args.all_namespaces).then_some(args.namespace.as_str());
    if let Some(name) = &args.name {
        let document: Value = client.get(&path_of(kind, namespace, name)).await?;
        match args.output.output {
            Output::Json => out::data(out::json(&document)),
            Output::Yaml => out::data(out::yaml(&document)),
            Output::Table | Output::Name => show(kind, &[document], args.output.output),
        }
        return Ok(());
    }
    let list: DocumentList = client.get(&list_path(kind, namespace)).await?;
    if list.items.is_empty() && args.output.output == Output::Table {
        let place = namespace
            .map_or_else(String::new, |namespace| format!(" in namespace {namespace} (-A shows every namespace)"));
        out::say(format_args!("there are no {}{place}", kind.plural()));
        return Ok(());
    }
    show(kind, &list.items, args.output.output);
    Ok(())
}

fn list_path(kind: Kind, namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("/api/v1/namespaces/{}/{}", escaped(namespace), kind.plural()),
        None => format!("/api/v1/documents?kind={}", kind.plural()),
    }
}

async fn all(args: &GetArgs, client: &mut Client) -> Result<(), Failure> {
    let list: DocumentList = client.get("/api/v1/documents").await?;
    let wanted = |document: &&Value| {
        args.all_namespaces || text(document, "/metadata/namespace").is_none_or(|namespace| namespace == args.namespace)
    };
    let documents: Vec<Value> = list.items.iter().filter(wanted).cloned().collect();
    if args.output.output == Output::Table {
        let rows: Vec<_> = documents
            .iter()
            .map(|document| {
                let kind = text(document, "/kind").unwrap_or_default();
                let details = Kind::from_word(kind).map(|kind| details(kind, document)).unwrap_or_default();
                vec![
                    text(document, "/metadata/namespace").unwrap_or("-").to_owned(),
                    kind.to_owned(),
                    text(document, "/metadata/name").unwrap_or_default().to_owned(),
                    details,
                ]
            })
            .collect();
        out::data(out::table(&["NAMESPACE", "KIND", "NAME", "DETAILS"], &rows));
    } else {
        show(Kind::Mesh, &documents, args.output.output);
    }
    Ok(())
}

/// Documents in the form that was asked for; YAML is what `apply` reads.
fn show(kind: Kind, documents: &[Value], output: Output) {
    match output {
        Output::Json => out::data(out::json(&serde_json::json!({"items": documents}))),
        Output::Yaml => out::data(documents.iter().map(out::yaml).collect::<Vec<_>>().join("\n---\n")),
        Output::Name => {
            for document in documents {
                let part = |pointer| text(document, pointer).unwrap_or_default();
                out::data(name_of(part("/kind"), text(document, "/metadata/namespace"), part("/metadata/name")));
            }
        }
        Output::Table => {
            let rows: Vec<_> = documents
                .iter()
                .map(|document| {
                    let namespace = text(document, "/metadata/namespace").unwrap_or("-");
                    vec![
                        namespace.to_owned(),
                        text(document, "/metadata/name").unwrap_or_default().to_owned(),
                        details(kind, document),
                    ]
                })
                .collect();
            out::data(out::table(&["NAMESPACE", "NAME", "DETAILS"], &rows));
        }
    }
}

fn text<'a>(document: &'a Value, pointer: &str) -> Option<&'a str> {
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

async fn services(args: &GetArgs, client: &mut Client) -> Result<(), Failure> {
    if let Some(name) = &args.name {
        let service: ServiceReply =
            client.get(&format!("/api/v1/services/{}/{}", escaped(&args.namespace), escaped(name))).await?;
        out::data(services_table(std::slice::from_ref(&service)));
        let rows: Vec<_> = service
            .members
            .iter()
            .map(|member| {
                let health = if member.healthy {
                    out::styled(out::GOOD, "healthy")
                } else {
                    out::styled(out::BAD, format_args!("unhealthy {}", member.detail))
                };
                let lease = format!("{}.{} s left", member.lease_ms / 1000, member.lease_ms % 1000 / 100);
                vec![member.instance.clone(), member.account.clone(), member.address.clone(), lease, health]
            })
            .collect();
        if rows.is_empty() {
            out::say("no instance has registered for it");
        } else {
            out::data(format_args!("\n{}", out::table(&["INSTANCE", "ACCOUNT", "ADDRESS", "LEASE", "HEALTH"], &rows)));
        }
        return Ok(());
    }
    let mut list: ServiceList = client.get("/api/v1/services").await?;
    if !args.all_namespaces {
        list.items.retain(|service| service.service.split('/').next() == Some(args.namespace.as_str()));
    }
    if list.items.is_empty() {
        out::say(if args.all_namespaces {
            "there are no services".to_owned()
        } else {
            format!("there are no services in namespace {} (-A shows every namespace)", args.namespace)
        });
        return Ok(());
    }
    out::data(services_table(&list.items));
    Ok(())
}

/// Services with how many of their members take traffic.
pub(crate) fn services_table(services: &[ServiceReply]) -> String {
    let rows: Vec<_> = services
        .iter()
        .map(|service| {
            let (namespace, name) = service.service.split_once('/').unwrap_or(("-", &service.service));
            let style = if service.healthy == service.total && service.total > 0 { out::GOOD } else { out::BAD };
            vec![
                namespace.to_owned(),
                name.to_owned(),
                out::styled(style, format_args!("{}/{}", service.healthy, service.total)),
            ]
        })
        .collect();
    out::table(&["NAMESPACE", "SERVICE", "HEALTHY"], &rows)
}

async fn proxies(args: &GetArgs, client: &mut Client) -> Result<(), Failure> {
    let mut list: ProxyList = client.get("/api/v1/proxies").await?;
    if let Some(name) = &args.name {
        list.items.retain(|proxy| proxy.instance == *name || proxy.instance == format!("{}/{name}", args.namespace));
        if list.items.is_empty() {
            return Err(Failure::refused(format_args!("there is no proxy of an instance {name}"))
                .hint("`equerry get proxies` shows all"));
        }
    }
    if list.items.is_empty() && args.output.output == Output::Table {
        out::say("no proxy has joined yet: `equerry token create join` lets one in");
    } else if !plain(args.output.output, &list) {
        out::data(match args.output.output {
            Output::Name => list.items.iter().map(|proxy| proxy.instance.as_str()).collect::<Vec<_>>().join("\n"),
            _ => proxies_table(&list.items),
        });
    }
    Ok(())
}

/// Proxies with what they have and what they ought to have.
pub(crate) fn proxies_table(proxies: &[ProxyReply]) -> String {
    let rows: Vec<_> = proxies
        .iter()
        .map(|proxy| {
            let state = match (proxy.connected, &proxy.nack) {
                (false, _) => out::styled(out::NOTE, "away"),
                (true, Some(complaint)) => out::styled(out::BAD, format_args!("refused: {}", complaint.join("; "))),
                (true, None) if proxy.acked_epoch < proxy.wanted_epoch => out::styled(out::NOTE, "behind"),
                (true, None) => out::styled(out::GOOD, "in step"),
            };
            vec![
                proxy.instance.clone(),
                proxy.spiffe_id.clone().unwrap_or_else(|| "-".to_owned()),
                format!("{}/{}", proxy.acked_epoch, proxy.wanted_epoch),
                proxy.version.clone(),
                state,
            ]
        })
        .collect();
    out::table(&["INSTANCE", "IDENTITY", "EPOCH", "VERSION", "STATE"], &rows)
}

async fn epoch(args: &GetArgs, client: &mut Client) -> Result<(), Failure> {
    let number = match &args.name {
        Some(name) => {
            name.parse::<u64>().map_err(|_| Failure::usage(format_args!("{name:?} is not the number of an epoch")))?
        }
        None => client.get::<VersionReply>("/api/v1/version").await?.epoch,
    };
    let reply: EpochReply = client.get(&format!("/api/v1/epochs/{number}")).await?;
    if plain(args.output.output, &reply) {
        return Ok(());
    }
    let word = |state| match state {
        EpochState::Acked => out::styled(out::GOOD, "acknowledged"),
        EpochState::Pending => out::styled(out::NOTE, "pending"),
        EpochState::Nacked => out::styled(out::BAD, "refused"),
        EpochState::Away => out::styled(out::DIM, "away"),
    };
    let rows: Vec<_> = reply
        .proxies
        .iter()
        .map(|proxy| vec![proxy.instance.clone(), word(proxy.state), proxy.complaints.join("; ")])
        .collect();
    out::data(format_args!("epoch {}: {}", reply.epoch, if reply.complete { "complete" } else { "not complete" }));
    out::data(out::table(&["INSTANCE", "STATE", "COMPLAINTS"], &rows));
    Ok(())
}

/// Prints for programs, when that was asked for.
pub(crate) fn plain(output: Output, value: &impl Serialize) -> bool {
    match output {
        Output::Json => out::data(out::json(value)),
        Output::Yaml => out::data(out::yaml(value)),
        Output::Table | Output::Name => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_kind_is_known_in_every_spelling_and_a_slip_is_named() {
        for word in ["HTTPRoute", "httproutes", "HttpRoute"] {
            assert_eq!(kind_of(word), Ok(Kind::HttpRoute));
        }
        assert_eq!(kind_of("httprout").unwrap_err().message, "there is no kind \"httprout\"; did you mean httproute?");
        assert!(kind_of("proxie").unwrap_err().message.contains("did you mean"));
    }

    #[test]
    fn a_list_says_of_a_route_where_it_sends() {
        let route = json!({"spec": {"parentRefs": [{"name": "inventory"}], "rules": [{"backendRefs": [{"name": "inventory-v1", "weight": 90}, {"name": "inventory-v2", "weight": 10}]}]}});
        assert_eq!(details(Kind::HttpRoute, &route), "inventory -> inventory-v1:90, inventory-v2:10");
    }

    #[test]
    fn a_proxy_that_refused_is_told_from_one_that_is_behind_or_away() {
        let proxy = |connected, acked, nack: Option<&str>| ProxyReply {
            instance: "shop/a".to_owned(),
            spiffe_id: Some("spiffe://x/ns/shop/sa/a".to_owned()),
            connected,
            connected_since_unix: None,
            acked_epoch: acked,
            wanted_epoch: 7,
            nack: nack.map(|nack| vec![nack.to_owned()]),
            version: "0.1.0".to_owned(),
        };
        let table = proxies_table(&[
            proxy(true, 7, None),
            proxy(true, 6, None),
            proxy(true, 6, Some("bad")),
            proxy(false, 3, None),
        ]);
        let table = anstream::adapter::strip_str(&table).to_string();
        let states: Vec<_> = table.lines().skip(1).map(|line| line.rsplit("   ").next().unwrap()).collect();
        assert_eq!(states, ["in step", "behind", "refused: bad", "away"]);
    }
}
