//! `Service` and `EndpointSlice`.

use std::collections::BTreeSet;

use super::World;
use super::at::At;
use crate::document::Document;
use crate::document::shape::Notes;
use crate::names::{Account, AccountName, HostName, PolicyName, ResourceName, ServiceName, nearest};
use crate::policy::{AppProtocol, Labels, Service, ServicePort, StaticEndpoints};
use crate::view::service_port;

/// The annotation that lists the accounts a Service's instances may run as.
const ACCOUNTS: &str = "equerry.dev/accounts";
/// The annotation that says how many proxies in front of a Service are believed.
const TRUSTED_HOPS: &str = "equerry.dev/trusted-hops";
/// The label by which an `EndpointSlice` names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

pub(super) fn service(name: &PolicyName, root: &At<'_>, notes: &mut Notes<'_>) -> Option<Service> {
    if crate::names::Namespace::parse(name.name.as_str()).is_err()
        && let Some(at) = root.get("metadata").and_then(|m| m.get("name"))
    {
        at.complain(notes, "the name of a Service: up to 63 lower-case letters, digits and '-', because it becomes part of a host name");
    }
    let accounts = accounts(name, root, notes);
    let spec = root.get("spec")?;
    if let Some(at) =
        spec.get("publishNotReadyAddresses").filter(|_| spec.flag("publishNotReadyAddresses") == Some(true))
    {
        at.unsupported(notes, "an instance that is not healthy gets no traffic");
    }
    let selector: Labels = spec
        .map("selector")
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value.text()?.to_owned())))
        .collect();
    let external = external(&spec, notes);
    if let Some(at) = spec.get("type").filter(|_| external.is_some() && !accounts.is_empty()) {
        let found = format!("ExternalName beside the annotation {ACCOUNTS}");
        at.complain_of(notes, found, "one of the two: it is called in plain text, and nobody there has an account");
    }
    if !selector.is_empty() && accounts.is_empty() && external.is_none() {
        let at = spec.get("selector")?;
        let expected = format!("the annotation {ACCOUNTS} beside it, listing the accounts its instances run as");
        at.complain_of(notes, format!("a selector, and no annotation {ACCOUNTS}"), expected);
    }
    let ports = ports(&spec, notes);
    let name = ServiceName::new(name.namespace.clone(), name.name.clone());
    let trusted_hops = trusted_hops(root, notes);
    let origin = root.origin(notes);
    (!ports.is_empty()).then_some(Service { name, ports, selector, accounts, trusted_hops, external, origin })
}

/// The name that a Service of type `ExternalName` stands for. Nobody registers behind it, so nothing may say who.
fn external(spec: &At<'_>, notes: &mut Notes<'_>) -> Option<HostName> {
    let named = spec.get("externalName");
    if spec.text_of("type") != Some("ExternalName") {
        if let Some(named) = named {
            named.complain_of(notes, "externalName", "type: ExternalName beside it");
        }
        return None;
    }
    if let Some(selector) = spec.get("selector") {
        selector.complain_of(notes, "a selector", "none: what is behind an ExternalName, the DNS says");
    }
    let Some(named) = named else {
        spec.complain_of(notes, "type ExternalName without externalName", "externalName: the name to look up");
        return None;
    };
    let text = named.text()?;
    HostName::parse(text.strip_suffix('.').unwrap_or(text)).ok()
}

/// Reads the accounts, sorted; complains about annotations of ours that mean nothing.
fn accounts(name: &PolicyName, root: &At<'_>, notes: &mut Notes<'_>) -> Vec<AccountName> {
    let mut accounts = BTreeSet::new();
    for (key, value) in root.get("metadata").map(|m| m.map("annotations")).unwrap_or_default() {
        if key != ACCOUNTS {
            if key.starts_with("equerry.dev/") && key != TRUSTED_HOPS {
                let near = nearest(key, [ACCOUNTS, TRUSTED_HOPS]);
                let expected = format!("no annotation of equerry.dev/ but {ACCOUNTS} and {TRUSTED_HOPS}");
                value.complain_near(notes, expected, near);
            }
            continue;
        }
        for word in value.text().unwrap_or_default().split(',').map(str::trim) {
            match Account::parse(word) {
                Ok(account) => {
                    accounts.insert(AccountName::new(name.namespace.clone(), account));
                }
                Err(bad) => value.complain_of(
                    notes,
                    format!("the account {word:?}"),
                    format!("accounts of namespace {}, separated by commas; each {}", name.namespace, bad.expected),
                ),
            }
        }
    }
    accounts.into_iter().collect()
}

/// How many proxies in front of the Service are believed, where it says so.
fn trusted_hops(root: &At<'_>, notes: &mut Notes<'_>) -> Option<u8> {
    let annotations = root.get("metadata").map(|m| m.map("annotations")).unwrap_or_default();
    let (_, value) = annotations.into_iter().find(|(key, _)| *key == TRUSTED_HOPS)?;
    let hops = value.text().and_then(|text| text.parse().ok()).filter(|hops| *hops <= 16);
    if hops.is_none() {
        value.complain(notes, "a whole number from 0 to 16, in quotes");
    }
    hops
}

fn ports(spec: &At<'_>, notes: &mut Notes<'_>) -> Vec<ServicePort> {
    let listed = spec.list("ports");
    let mut ports: Vec<ServicePort> = Vec::new();
    for at in &listed {
        let Some(port) = at.whole::<u16>("port") else { continue };
        let name = at.text_of("name").map(str::to_owned);
        if let Some(number) = at.get("port").filter(|_| ports.iter().any(|p| p.port == port)) {
            number.complain(notes, "each port of a Service once");
        }
        match at.get("name") {
            None if listed.len() > 1 => {
                at.complain_of(notes, "a port without a name", "a name for each port of a Service that has several");
            }
            Some(name) if ports.iter().any(|p| p.name.as_deref() == name.text()) => {
                name.complain(notes, "each name of a port once");
            }
            _ => {}
        }
        let (word, target_port) = (at.text_of("appProtocol"), at.whole("targetPort").unwrap_or(port));
        ports.push(ServicePort {
            name,
            port,
            target_port,
            app_protocol: app_protocol(word),
            undeclared: word.is_none(),
        });
    }
    ports
}

/// What is spoken, by its word; HTTP/1.1 where nothing is written.
fn app_protocol(word: Option<&str>) -> AppProtocol {
    match word {
        Some("http2" | "kubernetes.io/h2c") => AppProtocol::Http2,
        Some("grpc") => AppProtocol::Grpc,
        Some("tcp") => AppProtocol::Tcp,
        _ => AppProtocol::Http,
    }
}

pub(super) fn endpoint_slice(
    name: &PolicyName,
    document: &Document,
    root: &At<'_>,
    world: &World,
    notes: &mut Notes<'_>,
) -> Option<StaticEndpoints> {
    let metadata = root.get("metadata")?;
    let Some((_, label)) = metadata.map("labels").into_iter().find(|(key, _)| *key == SERVICE_NAME) else {
        let near = document.labels().keys().find_map(|key| nearest(key, [SERVICE_NAME]).map(|_| key.clone()));
        let found = near.map_or_else(|| format!("no label {SERVICE_NAME}"), |key| format!("the label {key}"));
        metadata.complain_of(notes, found, format!("the label {SERVICE_NAME}, naming the Service of these endpoints"));
        return None;
    };
    let Ok(service) = ResourceName::parse(label.text()?) else {
        label.complain(notes, "the name of a Service");
        return None;
    };
    let service = ServiceName::new(name.namespace.clone(), service);
    let known = world.service(&label, &service, notes)?;
    if let Some(external) = known.and_then(|service| service.external.as_ref()) {
        let found = format!("Service {service}, which is of type ExternalName");
        label.complain_of(notes, found, format!("another: its endpoints are what the DNS says of {external}"));
    }
    let ports: Vec<(Option<String>, u16)> =
        root.list("ports").iter().filter_map(|p| endpoint_port(p, known, notes)).collect();
    Some(StaticEndpoints {
        name: name.clone(),
        service,
        addresses: addresses(root, notes),
        ports,
        origin: root.origin(notes),
    })
}

fn endpoint_port(at: &At<'_>, service: Option<&Service>, notes: &mut Notes<'_>) -> Option<(Option<String>, u16)> {
    let name = at.text_of("name").filter(|name| !name.is_empty());
    if let Some(service) = service.filter(|s| service_port(s, name).is_none()) {
        let names: Vec<&str> = service.ports.iter().filter_map(|p| p.name.as_deref()).collect();
        let expected = if names.is_empty() {
            format!("no name: the port of Service {} has none", service.name)
        } else {
            format!("the name of a port of Service {}: {}", service.name, names.join(", "))
        };
        match at.get("name") {
            Some(at) => at.complain_near(notes, expected, nearest(name.unwrap_or_default(), names)),
            None => at.complain_of(notes, "a port without a name", expected),
        }
    }
    let spoken = service.and_then(|service| service_port(service, name)).map(|port| port.app_protocol);
    if let (Some(written), Some(spoken)) = (at.get("appProtocol"), spoken)
        && app_protocol(written.text()) != spoken
    {
        let expected =
            format!("what its Service says of the port, {}, or nothing: the Service's word counts", word_of(spoken));
        written.complain(notes, expected);
    }
    Some((name.map(str::to_owned), at.whole("port")?))
}

fn word_of(spoken: AppProtocol) -> &'static str {
    match spoken {
        AppProtocol::Http => "http",
        AppProtocol::Http2 => "http2",
        AppProtocol::Grpc => "grpc",
        AppProtocol::Tcp => "tcp",
    }
}

fn addresses(root: &At<'_>, notes: &mut Notes<'_>) -> Vec<std::net::IpAddr> {
    let v6 = root.text_of("addressType") == Some("IPv6");
    let mut addresses = Vec::new();
    for endpoint in root.list("endpoints") {
        let conditions = endpoint.get("conditions");
        let flag = |key: &str| conditions.as_ref().and_then(|c| c.flag(key));
        let ready = flag("ready").unwrap_or(true) && !flag("terminating").unwrap_or(false);
        for at in endpoint.list("addresses") {
            let Some(address) = at.text().and_then(|text| text.parse::<std::net::IpAddr>().ok()) else { continue };
            if address.is_ipv6() != v6 {
                at.complain(
                    notes,
                    if v6 { "an IPv6 address, as addressType says" } else { "an IPv4 address, as addressType says" },
                );
            } else if ready {
                addresses.push(address);
            }
        }
    }
    addresses
}
