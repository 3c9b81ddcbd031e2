//! From documents to what they mean together.
//!
//! Nothing is half-loaded: either everything is understood, or every mistake in all documents is named at once, those
//! within a document and those between documents. A document with mistakes still counts as existing, so that one slip
//! does not make everything that names it look wrong.

mod access_log;
mod at;
mod authorize;
mod balance;
mod csrf;
mod fault;
mod filter;
mod grpc;
mod health;
mod keys;
mod mesh;
mod policy_test;
mod route;
mod service;
mod target;
mod tenant;
mod token;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};

use at::At;

use crate::complaint::Complaint;
use crate::document::shape::{self, Notes};
use crate::document::{Document, DocumentKey, Kind, shapes};
use crate::names::{Namespace, PolicyName, ServiceName, nearest};
use crate::policy::{AppProtocol, Meaning, Service, ServicePort};

/// Reads what all documents mean together.
///
/// # Errors
/// With every mistake in any document, and between documents, in the order of files and lines; and with the warnings beside
/// them.
pub fn interpret(documents: &[Document]) -> Result<Meaning, Vec<Complaint>> {
    let mut work = Work { world: World { services: Some(BTreeMap::new()), ..World::default() }, ..Work::default() };
    work.refuse_duplicates(documents);
    work.read(documents);
    work.meaning.warnings.sort();
    if work.complaints.is_empty() {
        return Ok(work.meaning);
    }
    // Whoever has to look at it again hears of everything at once.
    work.complaints.append(&mut work.meaning.warnings);
    work.complaints.sort();
    work.complaints.dedup();
    Err(work.complaints)
}

/// Every mistake within each document alone, without asking whether what they name exists.
pub fn complaints_within(documents: &[Document]) -> Vec<Complaint> {
    let mut work = Work::default();
    work.read(documents);
    work.complaints
}

/// What is known of all documents while one of them is read.
#[derive(Default)]
struct World {
    /// Services that exist, `None` where one has mistakes of its own. Without the map nothing is asked.
    services: Option<BTreeMap<ServiceName, Option<Service>>>,
    /// Services for which an `EndpointSlice` writes endpoints down.
    written: BTreeSet<ServiceName>,
    /// Things only one document may claim, and which document claimed each.
    claimed: BTreeMap<Claim, String>,
    /// Which kind of route each namespace has on each Service port, and which document was first.
    routed: BTreeMap<(Namespace, ServiceName, u16), (Kind, String)>,
}

/// A thing that only one document may have.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// The traffic policy of a Service.
    Traffic(ServiceName),
    /// The peer mode of a namespace; of the mesh in the system namespace.
    Peer(String),
    /// A tenant matcher, in words.
    Matcher(String),
}

impl World {
    /// Looks a Service up and complains where there is none. `Some(None)`: it exists, but its ports are not known.
    fn service(&self, at: &At<'_>, name: &ServiceName, notes: &mut Notes<'_>) -> Option<Option<&Service>> {
        let Some(services) = &self.services else { return Some(None) };
        let found = services.get(name);
        if found.is_none() {
            at.complain_near(notes, existing(name), self.nearest_service(name).as_deref());
        }
        found.map(Option::as_ref)
    }

    /// The Service that may be meant by a name that none has.
    fn nearest_service(&self, name: &ServiceName) -> Option<String> {
        let services = self.services.as_ref()?;
        let same = services.keys().filter(|s| s.namespace == name.namespace).map(|s| s.name.as_str());
        let elsewhere = || services.keys().find(|s| s.name == name.name).map(ToString::to_string);
        nearest(name.name.as_str(), same).map(str::to_owned).or_else(elsewhere)
    }

    /// Looks up a Service at whose instances something is enforced, and complains where it has no instance with a
    /// sidecar: nobody would enforce it.
    fn enforcing(&self, at: &At<'_>, name: &ServiceName, notes: &mut Notes<'_>) -> Option<()> {
        let found = self.service(at, name, notes)?;
        if found.is_some_and(|service| service.selector.is_empty()) {
            let found = format!("Service {name}, which has no selector and so no sidecar that could enforce this");
            at.complain_of(notes, found, "a Service with a selector");
        }
        Some(())
    }

    /// Whether a Service is known to have no port that speaks HTTP.
    fn speaks_only_tcp(&self, name: &ServiceName) -> bool {
        let known = self.services.as_ref().and_then(|services| services.get(name)?.as_ref());
        known.is_some_and(|service| service.ports.iter().all(|port| port.app_protocol == AppProtocol::Tcp))
    }

    /// Claims a thing for the document being read, and complains where another has it.
    fn claim(&mut self, at: &At<'_>, claim: Claim, found: &str, what: &str, notes: &mut Notes<'_>) {
        let own = described(notes.document);
        match self.claimed.get(&claim) {
            Some(other) if self.services.is_some() || *other == own => {
                at.complain_of(notes, found, format!("{what}; {other} came first"));
            }
            Some(_) => {}
            None => {
                self.claimed.insert(claim, own);
            }
        }
    }

    /// Claims the Service ports that a parent means for the kind of route being read, and complains where the namespace
    /// has another kind there.
    fn claim_ports(
        &mut self,
        at: &At<'_>,
        namespace: &Namespace,
        (service, only): &(ServiceName, Option<u16>),
        notes: &mut Notes<'_>,
    ) {
        let Some(known) = self.services.as_ref().and_then(|services| services.get(service)?.as_ref()) else { return };
        let (own, kind) = (described(notes.document), notes.document.kind());
        // What speaks no HTTP has no requests to route: a route for every port means every other port.
        let routable = |port: &ServicePort| kind == Kind::TcpRoute || port.app_protocol != AppProtocol::Tcp;
        let meant: Vec<&ServicePort> =
            known.ports.iter().filter(|port| only.is_none_or(|only| only == port.port)).collect();
        if !meant.is_empty() && !meant.iter().any(|port| routable(port)) {
            let found = format!("a {kind} where Service {service} speaks TCP");
            at.complain_of(notes, found, "a TCPRoute: nobody looks for requests in the bytes of such a port");
            return;
        }
        for port in meant.into_iter().filter(|port| routable(port)).map(|p| p.port) {
            let key = (namespace.clone(), service.clone(), port);
            let (first, other) = self.routed.entry(key).or_insert_with(|| (kind, own.clone()));
            if *first != kind || kind == Kind::TcpRoute && *other != own {
                let found = format!("a {kind} on port {port} of Service {service}");
                at.complain_of(
                    notes,
                    found,
                    format!("routes of one kind on a port, and one TCPRoute; {other} came first"),
                );
                return;
            }
        }
    }
}

/// What is expected where a Service is named.
fn existing(name: &ServiceName) -> String {
    format!("the name of a Service that exists in namespace {}", name.namespace)
}

/// A document, and where it was written.
fn described(document: &Document) -> String {
    let origin = document.origin();
    match origin.file {
        Some(file) => format!("{} ({file}:{})", document.key(), origin.line),
        None => document.key().to_string(),
    }
}

#[derive(Default)]
struct Work {
    world: World,
    meaning: Meaning,
    complaints: Vec<Complaint>,
}

impl Work {
    fn refuse_duplicates(&mut self, documents: &[Document]) {
        let mut seen: BTreeMap<&DocumentKey, &Document> = BTreeMap::new();
        for document in documents {
            if let Some(first) = seen.insert(document.key(), document) {
                let found = format!("{} a second time", document.key());
                let expected = format!("each document once; the first is {}", described(first));
                self.complaints.push(document.complaint(document.root().mark, "metadata.name".into(), found, expected));
            }
        }
    }

    /// Services come first, because everything else may name them, and then their endpoints; the Mesh comes last, because what its
    /// access logs may show depends on where tokens are.
    fn read(&mut self, documents: &[Document]) {
        let turn = |document: &Document| match document.kind() {
            Kind::Service => 0,
            Kind::EndpointSlice => 1,
            Kind::Mesh => 3,
            _ => 2,
        };
        for now in 0..=3 {
            for document in documents.iter().filter(|d| turn(d) == now) {
                self.one(document);
            }
        }
    }

    fn one(&mut self, document: &Document) {
        let mut notes = Notes::new(document);
        let root = At::root(document.root());
        shape::check(root.node, shapes::of(document.kind()), "", &mut notes);
        let understood = self.understand(document, &root, &mut notes);
        if understood.is_none() && notes.list.is_empty() {
            root.complain_of(&mut notes, "a document that cannot be read", "one that its schema allows");
        }
        self.complaints.append(&mut notes.list);
        self.meaning.warnings.append(&mut notes.warnings);
    }

    /// Reads one document into the meaning of all; `None` where something it needs is missing or wrong.
    fn understand(&mut self, document: &Document, root: &At<'_>, notes: &mut Notes<'_>) -> Option<()> {
        let world = &mut self.world;
        let meaning = &mut self.meaning;
        if document.kind() == Kind::Mesh {
            let tokens = access_log::Tokens::of(&meaning.tokens);
            meaning.mesh = mesh::mesh(document, root, &tokens, notes)?;
            return Some(());
        }
        if document.kind() == Kind::Tenant {
            let tenant = tenant::tenant(document, root, world, notes)?;
            meaning.tenants.insert(tenant.name.clone(), tenant);
            return Some(());
        }
        let key = document.key();
        let name = PolicyName::new(key.namespace.clone()?, key.name.clone());
        match key.kind {
            Kind::Service => {
                let service = service::service(&name, root, notes);
                let known = ServiceName::new(name.namespace.clone(), name.name.clone());
                if let Some(services) = &mut world.services {
                    services.insert(known.clone(), service.clone().filter(|_| notes.list.is_empty()));
                }
                meaning.services.insert(known, service?);
            }
            Kind::EndpointSlice => {
                let slice = service::endpoint_slice(&name, document, root, world, notes)?;
                world.written.insert(slice.service.clone());
                meaning.endpoints.insert(name, slice);
            }
            Kind::HttpRoute => {
                let route = route::http_route(&name, root, world, notes)?;
                meaning.routes.insert(name, route);
            }
            Kind::GrpcRoute => {
                let route = grpc::grpc_route(&name, root, world, notes)?;
                meaning.grpc_routes.insert(name, route);
            }
            Kind::TcpRoute => {
                let route = route::tcp_route(&name, root, world, notes)?;
                meaning.tcp_routes.insert(name, route);
            }
            Kind::FaultInjection => {
                let faults = fault::fault_injection(&name, root, world, notes)?;
                meaning.faults.insert(name, faults);
            }
            Kind::TrafficPolicy => {
                let policy = traffic::traffic_policy(&name, root, world, notes)?;
                meaning.traffic.insert(name, policy);
            }
            Kind::PeerAuthentication => {
                let policy = mesh::peer_authentication(&name, root, world, notes)?;
                meaning.peers.insert(name, policy);
            }
            Kind::RequestAuthentication => {
                let policy = token::request_authentication(&name, root, world, notes)?;
                meaning.tokens.insert(name, policy);
            }
            Kind::AuthorizationPolicy => {
                let policy = authorize::authorization_policy(&name, root, world, notes)?;
                meaning.authorization.insert(name, policy);
            }
            Kind::CsrfPolicy => {
                let policy = csrf::csrf_policy(&name, root, world, notes)?;
                meaning.csrf.insert(name, policy);
            }
            Kind::PolicyTest => {
                let test = policy_test::policy_test(&name, root, notes)?;
                meaning.tests.insert(name, test);
            }
            Kind::Mesh | Kind::Tenant => return None,
        }
        Some(())
    }
}
