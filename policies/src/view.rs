//! What one proxy must know, cut out of everything that is meant.
//!
//! The control plane sends these values; `explain` makes the same ones from a directory of files. All functions are
//! pure and their results deterministic: same meaning, same bytes.

mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::names::{AccountName, HostName, InstanceId, Namespace, ServiceName, nearest};
use crate::policy::{
    AuthorizationPolicy, CsrfPolicy, FaultInjection, HttpRoute, JwtRule, Labels, Meaning, Mesh, MtlsMode, Origin,
    PeerAuthentication, Quota, Service, ServicePort, StaticEndpoints, Target, TcpRoute, Tenant, TrafficPolicy, weight,
};

pub use routes::callers;
use routes::{Held, receivers};

/// A part of a workload's policy, with the application ports it holds on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scoped<T> {
    /// The application ports; `None`: all.
    pub ports: Option<Vec<u16>>,
    /// What holds there.
    pub policy: T,
}

/// What is known of the workload a view is cut for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadFacts {
    /// Its namespace and account.
    pub account: AccountName,
    /// Its instance's labels.
    pub labels: Labels,
    /// The application ports it registered.
    pub ports: Vec<u16>,
}

/// Everything a proxy enforces at its inbound: the resource `workload`, named `self`. Security: without it, deny.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadView {
    /// Mesh-wide settings.
    pub mesh: Mesh,
    /// The Services this workload is a member of, each with its ports.
    pub services: Vec<(ServiceName, Vec<ServicePort>)>,
    /// What inbound accepts where `peer_ports` says nothing.
    pub peer: MtlsMode,
    /// Modes of single application ports.
    pub peer_ports: Vec<(u16, MtlsMode)>,
    /// The mode that `peer` says as PERMISSIVE, for sidecars that know no other word, is DISABLE.
    #[serde(default, skip_serializing_if = "is_false")]
    pub plain_only: bool,
    /// Ports whose mode in `peer_ports` is said as PERMISSIVE for the same reason, and is DISABLE.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plain_only_ports: Vec<u16>,
    /// Token rules, by issuer; each keeps the name of its document for logs.
    pub tokens: Vec<Scoped<NamedJwtRule>>,
    /// Authorization policies that select this workload, by name.
    pub authorization: Vec<Scoped<AuthorizationPolicy>>,
    /// Which pages may change something here, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub csrf: Vec<Scoped<CsrfPolicy>>,
    /// How many proxies in front of single application ports are believed; elsewhere as the mesh says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted_hops: Vec<Scoped<u8>>,
    /// All tenants that have a quota counted here, with only those quotas, and the ports each is counted on.
    pub tenants: Vec<TenantView>,
}

/// A token rule and the document that set it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedJwtRule {
    /// The document, `namespace/name`.
    pub policy: String,
    /// The rule.
    pub rule: JwtRule,
}

/// A tenant as one workload must know it: every tenant is listed (so that it can be named in logs), with the quotas that
/// are counted here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantView {
    /// The tenant; its `quotas` are left empty.
    pub tenant: Tenant,
    /// The quotas counted here.
    pub quotas: Vec<Scoped<Quota>>,
}

/// A Service as its callers must know it: the resource `destination`, named `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationView {
    /// Its name.
    pub service: ServiceName,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Accounts its members may run as: the identities a caller accepts.
    pub accounts: Vec<AccountName>,
    /// The name outside the mesh that it stands for: its endpoints are what [`resolved`] makes of the DNS's answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<HostName>,
    /// The HTTP routes attached to it that hold for this caller, by name, then the gRPC routes. A consumer route replaces
    /// producer routes.
    pub routes: Vec<HttpRoute>,
    /// The TCP routes attached to it that hold for this caller, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tcp_routes: Vec<TcpRoute>,
    /// Faults made on purpose for its callers, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FaultInjection>,
    /// How traffic to it is handled.
    pub traffic: TrafficPolicy,
    /// Every Service its routes can send to, itself included, sorted: what a proxy subscribes to next.
    pub backends: Vec<ServiceName>,
    /// Where it was written.
    pub origin: Origin,
}

impl DestinationView {
    /// A Service of which nothing is said but its ports.
    pub fn plain(service: ServiceName, ports: Vec<ServicePort>) -> Self {
        Self {
            backends: vec![service.clone()],
            service,
            ports,
            accounts: Vec::new(),
            external: None,
            routes: Vec::new(),
            tcp_routes: Vec::new(),
            faults: Vec::new(),
            traffic: TrafficPolicy::default(),
            origin: Origin::default(),
        }
    }
}

/// Where a Service can be reached now: the resource `endpoints`, named `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointsView {
    /// The Service.
    pub service: ServiceName,
    /// By instance id.
    pub endpoints: Vec<EndpointView>,
    /// Members that get no traffic because their own sidecar says that they are not well, by id; [`MOST_UNWELL`] at most. Only
    /// told, so that a caller who finds nobody learns why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unwell: Vec<UnwellView>,
}

/// So many members that are not well are named.
pub const MOST_UNWELL: usize = 16;

/// A member that is not well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnwellView {
    /// The instance.
    pub instance: InstanceId,
    /// What its sidecar says.
    pub detail: String,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointView {
    /// The instance, or `static-ADDRESS-PORT` for one from an `EndpointSlice`.
    pub instance: InstanceId,
    /// Where to connect: a sidecar's inbound port, or a plain application port.
    pub address: EndpointAddress,
    /// Its share of the traffic among the endpoints of the Service; 1 unless its labels say more.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u32,
    /// Service ports on which its sidecar takes nothing but plain text (DISABLE), sorted. Where those are all ports of the Service,
    /// `address` is plain too, and leads to the sidecar: so callers who know nothing of this do right.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub open: Vec<u16>,
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "shaped for serde")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "shaped for serde")]
fn is_one(weight: &u32) -> bool {
    *weight == 1
}

/// Where to connect, and what to speak there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EndpointAddress {
    /// Mutual TLS to a sidecar's inbound port.
    Mesh(SocketAddr),
    /// Plain text: `(Service port, address)` for each Service port it serves.
    Plain(Vec<(u16, SocketAddr)>),
}

/// A live instance, as the registry knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceFacts {
    /// Its id.
    pub id: InstanceId,
    /// Its account, from its certificate.
    pub account: AccountName,
    /// Its labels.
    pub labels: Labels,
    /// Its sidecar's inbound address.
    pub inbound: SocketAddr,
    /// The application ports it serves.
    pub ports: Vec<u16>,
    /// Its application is healthy.
    pub healthy: bool,
    /// If not, why.
    pub health_detail: String,
}

/// A Service selects an instance but does not list its account: the instance may not stand behind it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Service {service} selects this instance but does not list its account {account} in equerry.dev/accounts")]
pub struct NotListed {
    /// The Service.
    pub service: ServiceName,
    /// The instance's account.
    pub account: AccountName,
}

/// The Services a workload may stand behind, sorted.
///
/// # Errors
/// Naming the first Service that selects the workload's labels but does not list its account.
pub fn services_of(meaning: &Meaning, facts: &WorkloadFacts) -> Result<Vec<ServiceName>, NotListed> {
    let mut services = Vec::new();
    for service in meaning.services.values().filter(|s| selects(s, &facts.account.namespace, &facts.labels)) {
        if !service.accounts.contains(&facts.account) {
            return Err(NotListed { service: service.name.clone(), account: facts.account.clone() });
        }
        services.push(service.name.clone());
    }
    Ok(services)
}

/// The instances that stand behind a Service, healthy or not, in the order given: selected by labels and listed by account.
pub fn members<'i>(
    meaning: &Meaning,
    service: &ServiceName,
    instances: impl Iterator<Item = &'i InstanceFacts>,
) -> Vec<&'i InstanceFacts> {
    let Some(service) = meaning.services.get(service) else { return Vec::new() };
    instances.filter(|i| is_member(service, &i.account, &i.labels)).collect()
}

/// Whether an instance stands behind a Service: selected by its labels and listed by its account.
pub fn stands_behind(meaning: &Meaning, service: &ServiceName, account: &AccountName, labels: &Labels) -> bool {
    meaning.services.get(service).is_some_and(|service| is_member(service, account, labels))
}

/// The Services that an instance stands behind.
pub fn services_with<'m>(
    meaning: &'m Meaning,
    account: &'m AccountName,
    labels: &'m Labels,
) -> impl Iterator<Item = &'m ServiceName> {
    let services = meaning.services.values().filter(|service| is_member(service, account, labels));
    services.map(|service| &service.name)
}

/// The name nearest to a Service that does not exist, if one is near.
pub fn nearest_service<'m>(meaning: &'m Meaning, service: &ServiceName) -> Option<&'m ServiceName> {
    let same: Vec<&ServiceName> = meaning.services.keys().filter(|s| s.namespace == service.namespace).collect();
    let near = nearest(service.name.as_str(), same.iter().map(|s| s.name.as_str()));
    if let Some(near) = near {
        return same.into_iter().find(|s| s.name.as_str() == near);
    }
    meaning.services.keys().find(|s| s.name == service.name).or_else(|| {
        let names: Vec<String> = meaning.services.keys().map(ToString::to_string).collect();
        let near = nearest(&service.to_string(), names.iter().map(String::as_str))?;
        meaning.services.keys().find(|s| s.to_string() == near)
    })
}

fn selects(service: &Service, namespace: &Namespace, labels: &Labels) -> bool {
    service.name.namespace == *namespace && !service.selector.is_empty() && carries(labels, &service.selector)
}

fn carries(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn is_member(service: &Service, account: &AccountName, labels: &Labels) -> bool {
    selects(service, &account.namespace, labels) && service.accounts.contains(account)
}

/// Everything one workload's proxy enforces at its inbound. A Service that selects the workload without listing its
/// account leaves it out.
pub fn workload(meaning: &Meaning, facts: &WorkloadFacts) -> WorkloadView {
    let services: Vec<&Service> =
        meaning.services.values().filter(|s| is_member(s, &facts.account, &facts.labels)).collect();
    let scope = Scope { facts, services: &services };
    let mut tokens = Vec::new();
    for document in meaning.tokens.values() {
        if let Some(ports) = scope.of(&document.target, &document.name.namespace) {
            tokens.extend(document.rules.iter().map(|rule| Scoped {
                ports: ports.clone(),
                policy: NamedJwtRule { policy: document.name.to_string(), rule: rule.clone() },
            }));
        }
    }
    tokens.sort_by(|a, b| (&a.policy.rule.issuer, &a.policy.policy).cmp(&(&b.policy.rule.issuer, &b.policy.policy)));
    let authorization = meaning
        .authorization
        .values()
        .filter_map(|p| Some(Scoped { ports: scope.of(&p.target, &p.name.namespace)?, policy: p.clone() }))
        .collect();
    let modes = modes(meaning, &facts.account.namespace, &facts.labels);
    let disabled = modes.ports.iter().filter(|(_, mode)| **mode == MtlsMode::Disable);
    WorkloadView {
        mesh: Mesh { mtls: meaning.mesh.mtls.as_once(), ..meaning.mesh.clone() },
        services: services.iter().map(|s| (s.name.clone(), s.ports.clone())).collect(),
        peer: modes.other.as_once(),
        peer_ports: modes.ports.iter().map(|(port, mode)| (*port, mode.as_once())).collect(),
        plain_only: modes.other == MtlsMode::Disable,
        plain_only_ports: disabled.map(|(port, _)| *port).collect(),
        tokens,
        authorization,
        csrf: meaning
            .csrf
            .values()
            .filter_map(|p| Some(Scoped { ports: scope.of(&p.target, &p.name.namespace)?, policy: p.clone() }))
            .collect(),
        trusted_hops: services.iter().filter_map(|service| scope.trusted_hops(service)).collect(),
        tenants: meaning.tenants.values().map(|tenant| tenant_view(tenant, &scope)).collect(),
    }
}

fn tenant_view(tenant: &Tenant, scope: &Scope<'_>) -> TenantView {
    let counted =
        |quota: &Quota| Some(Scoped { ports: Some(scope.member_ports(&quota.services)?), policy: quota.clone() });
    TenantView {
        quotas: tenant.quotas.iter().filter_map(counted).collect(),
        tenant: Tenant { quotas: Vec::new(), ..tenant.clone() },
    }
}

/// Answers where a target holds at one workload.
struct Scope<'a> {
    facts: &'a WorkloadFacts,
    services: &'a [&'a Service],
}

impl Scope<'_> {
    /// `None`: not at all; `Some(None)`: on all ports.
    fn of(&self, target: &Target, namespace: &Namespace) -> Option<Option<Vec<u16>>> {
        match target {
            Target::Mesh => Some(None),
            Target::Namespace => (*namespace == self.facts.account.namespace).then_some(None),
            Target::Workloads(labels) => {
                (*namespace == self.facts.account.namespace && carries(&self.facts.labels, labels)).then_some(None)
            }
            Target::Services(services) => self.member_ports(services).map(Some),
        }
    }

    /// How many proxies in front of a Service are believed, where it says so itself.
    fn trusted_hops(&self, service: &Service) -> Option<Scoped<u8>> {
        let ports = self.member_ports(std::slice::from_ref(&service.name))?;
        Some(Scoped { ports: Some(ports), policy: service.trusted_hops? })
    }

    /// Target ports of those of `services` that this workload stands behind; `None` when it stands behind none.
    fn member_ports(&self, services: &[ServiceName]) -> Option<Vec<u16>> {
        let mine: Vec<_> = self.services.iter().filter(|s| services.contains(&s.name)).collect();
        let ports: BTreeSet<u16> = mine.iter().flat_map(|s| s.ports.iter().map(|p| p.target_port)).collect();
        (!mine.is_empty()).then(|| ports.into_iter().collect())
    }
}

/// What the ports of a workload ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modes {
    ports: BTreeMap<u16, MtlsMode>,
    other: MtlsMode,
}

impl Modes {
    /// What its application port `port` asks for.
    pub fn of(&self, port: u16) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.other)
    }
}

/// What the ports of a workload in `namespace` with these `labels` ask for: its own policies say, else its namespace's, else the
/// mesh's. Where several of one scope disagree, the stricter holds.
pub fn modes(meaning: &Meaning, namespace: &Namespace, labels: &Labels) -> Modes {
    let strictest = |modes: &mut dyn Iterator<Item = MtlsMode>| modes.reduce(MtlsMode::stricter);
    let own = |p: &&PeerAuthentication| p.name.namespace == *namespace;
    let selected: Vec<&PeerAuthentication> = meaning
        .peers
        .values()
        .filter(own)
        .filter(|p| matches!(&p.target, Target::Workloads(wanted) if carries(labels, wanted)))
        .collect();
    let by_target = |target: &Target| meaning.peers.values().filter(|p| p.target == *target).collect::<Vec<_>>();
    let wider = by_target(&Target::Namespace).into_iter().filter(own).collect::<Vec<_>>();
    let other = [selected.clone(), wider, by_target(&Target::Mesh)]
        .into_iter()
        .find_map(|scope| strictest(&mut scope.iter().filter_map(|p| p.mode)))
        .unwrap_or(meaning.mesh.mtls);
    let ports: BTreeSet<u16> = selected.iter().flat_map(|p| p.ports.keys().copied()).collect();
    let port_mode =
        |port: u16| Some((port, strictest(&mut selected.iter().filter_map(|p| p.ports.get(&port).copied()))?));
    Modes { ports: ports.into_iter().filter_map(port_mode).collect(), other }
}

/// A Service as callers of one namespace must know it; `None` when there is no such Service.
pub fn destination(meaning: &Meaning, name: &ServiceName, caller: &Namespace) -> Option<DestinationView> {
    let service = meaning.services.get(name)?;
    let held = Held::new(meaning, service, caller);
    let (routes, tcp_routes) = (held.http_routes(), held.tcp_routes());
    let traffic = meaning.traffic.values().find(|t| t.services.contains(name)).cloned().unwrap_or_default();
    let mut backends: BTreeSet<ServiceName> = routes.iter().flat_map(receivers).cloned().collect();
    backends.extend(tcp_routes.iter().flat_map(|route| route.backends.iter().map(|to| to.service.clone())));
    backends.insert(name.clone());
    Some(DestinationView {
        service: name.clone(),
        ports: service.ports.clone(),
        accounts: service.accounts.clone(),
        external: service.external.clone(),
        routes,
        tcp_routes,
        faults: meaning.faults.values().filter(|faults| faults.services.contains(name)).cloned().collect(),
        traffic,
        backends: backends.into_iter().collect(),
        origin: service.origin.clone(),
    })
}

/// Where a Service can be reached now: its healthy members by id, then the addresses written down for it.
pub fn endpoints<'i>(
    meaning: &Meaning,
    service: &ServiceName,
    instances: impl Iterator<Item = &'i InstanceFacts>,
) -> EndpointsView {
    let (mut endpoints, mut unwell) = (BTreeMap::new(), BTreeMap::new());
    if let Some(service) = meaning.services.get(service) {
        for slice in meaning.endpoints.values().filter(|slice| slice.service == service.name) {
            endpoints.extend(static_endpoints(service, slice).map(|(id, address)| (id, (address, 1, Vec::new()))));
        }
        for instance in instances.filter(|i| is_member(service, &i.account, &i.labels)) {
            if !instance.healthy {
                unwell.insert(instance.id.clone(), instance.health_detail.clone());
                continue;
            }
            // What does not read as a weight is refused when the instance registers.
            let weight = weight(&instance.labels).unwrap_or(1);
            let (address, open) = reached(meaning, service, instance);
            endpoints.insert(instance.id.clone(), (address, weight, open));
        }
    }
    let endpoints = endpoints
        .into_iter()
        .map(|(instance, (address, weight, open))| EndpointView { instance, address, weight, open })
        .collect();
    let unwell = unwell.into_iter().take(MOST_UNWELL).map(|(instance, detail)| UnwellView { instance, detail });
    EndpointsView { service: service.clone(), endpoints, unwell: unwell.collect() }
}

/// How an instance with a sidecar is reached as a member of a Service, and the Service ports on which plain text is spoken with it.
fn reached(meaning: &Meaning, service: &Service, instance: &InstanceFacts) -> (EndpointAddress, Vec<u16>) {
    let modes = modes(meaning, &instance.account.namespace, &instance.labels);
    let open = service.ports.iter().filter(|port| !modes.of(port.target_port).takes_tls());
    let open: Vec<u16> = open.map(|port| port.port).collect::<BTreeSet<_>>().into_iter().collect();
    if open.is_empty() || open.len() < service.ports.len() {
        return (EndpointAddress::Mesh(instance.inbound), open);
    }
    (EndpointAddress::Plain(open.iter().map(|port| (*port, instance.inbound)).collect()), open)
}

/// The endpoints of one `EndpointSlice`: every address, on the ports whose names the Service knows.
fn static_endpoints<'a>(
    service: &'a Service,
    slice: &'a StaticEndpoints,
) -> impl Iterator<Item = (InstanceId, EndpointAddress)> + 'a {
    slice.addresses.iter().filter_map(|address| {
        let ports: Vec<(u16, SocketAddr)> = slice
            .ports
            .iter()
            .filter_map(|(name, port)| {
                Some((service_port(service, name.as_deref())?.port, SocketAddr::new(*address, *port)))
            })
            .collect();
        let (_, first) = ports.first()?;
        let id = InstanceId::parse(&format!("static-{}-{}", in_a_name(*address), first.port())).ok()?;
        Some((id, EndpointAddress::Plain(ports)))
    })
}

/// The endpoints of an `ExternalName` Service with these `ports`, given what the DNS says of its name: every address once,
/// in plain text, on each port's target port. The instance is `dns-ADDRESS`, so that what was seen of an address stays
/// with it whatever the DNS says next.
pub fn resolved(ports: &[ServicePort], addresses: &[IpAddr]) -> Vec<EndpointView> {
    let addresses: BTreeSet<IpAddr> = addresses.iter().map(IpAddr::to_canonical).collect();
    let endpoint = |address: IpAddr| {
        let instance = InstanceId::parse(&format!("dns-{}", in_a_name(address))).ok()?;
        let at = ports.iter().map(|port| (port.port, SocketAddr::new(address, port.target_port)));
        Some(EndpointView { instance, address: EndpointAddress::Plain(at.collect()), weight: 1, open: Vec::new() })
    };
    addresses.into_iter().filter_map(endpoint).collect()
}

/// An address as it can stand in the id of an instance.
fn in_a_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => v6.segments().map(|s| format!("{s:04x}")).join("-"),
    }
}

/// The Service port that an `EndpointSlice` port of this name stands for; a nameless one stands for the only port.
pub(crate) fn service_port<'s>(service: &'s Service, name: Option<&str>) -> Option<&'s ServicePort> {
    match name {
        Some(name) => service.ports.iter().find(|p| p.name.as_deref() == Some(name)),
        None => service.ports.first().filter(|_| service.ports.len() == 1),
    }
}
