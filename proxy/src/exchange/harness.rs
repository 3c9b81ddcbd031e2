//! A small real mesh on loopback for tests: sidecars, applications and callers in one thread, policy written as YAML.

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use equerry_certs::{Authority, Identity, Request as CertificateRequest, TrustBundle};
use equerry_policies::names::{AccountName, InstanceId, ServiceName, SpiffeId, TrustDomain};
use equerry_policies::policy::{Labels, Meaning};
use equerry_policies::view::{self, EndpointAddress, WorkloadFacts};
use equerry_policies::{compile, document, interpret};
use equerry_traffic::balance::{Balancer, Member};
use equerry_traffic::outside::OwnDoors;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use crate::app::Shared;
use crate::config::{AppPort, Settings};
use crate::drain::Drain;
use crate::inbound::Inbound;
use crate::keys::{Fetcher, Keys};
use crate::live::{Backend, Destination, Endpoint, IdentityHandle, Live, LiveHandle, Quotas, TlsIdentity};
use crate::observe::{AccessLogTarget, Observer, ObserverOptions, SERIES_CAP};
use crate::outbound::Outbound;
use crate::upstream::{OnThisThread, Outsiders};

/// Runs a test as a worker runs: one thread, a `LocalSet`, real time; fails rather than hangs.
pub(crate) fn on_one_thread(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(30), test).await.expect("the test hangs");
    });
}

/// Waits until `holds`, twenty seconds at most: machines are slow at times.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("not seen in time: {what}"));
}

/// What is meant, and who vouches.
pub(crate) struct World {
    meaning: Meaning,
    authority: Authority,
    /// Name servers of its sidecars.
    pub(crate) dns: Vec<SocketAddr>,
    /// What its sidecars speak with each other.
    pub(crate) mesh_protocol: crate::config::MeshProtocol,
    /// How long what is under way may go on with whom a root vouched for that is gone.
    pub(crate) grace: Duration,
}

/// One sidecar.
pub(crate) struct Sidecar {
    /// Where its application calls out.
    pub(crate) outbound: SocketAddr,
    /// Where others call in.
    pub(crate) inbound: SocketAddr,
    /// What its worker has.
    pub(crate) shared: Shared,
    log: PathBuf,
    _directory: tempfile::TempDir,
    _wants: tokio::sync::mpsc::UnboundedReceiver<ServiceName>,
}

/// One application: what it answers with, and what it has seen.
pub(crate) struct Application {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Heads of the requests it has seen, in order.
    pub(crate) seen: Rc<RefCell<Vec<http::request::Parts>>>,
    /// Connections accepted.
    pub(crate) connections: Rc<RefCell<Vec<JoinHandle<()>>>>,
}

/// Where a Service can be reached: a sidecar, or plain text.
#[derive(Debug, Clone)]
pub(crate) enum At {
    Mesh(SocketAddr),
    Plain(u16, SocketAddr),
    /// A sidecar that takes nothing but plain text on these Service ports.
    Open(Vec<u16>, SocketAddr),
}

impl World {
    pub(crate) fn new(yaml: &str) -> Self {
        let documents = document::read("test.yaml", yaml).unwrap();
        let meaning = interpret::interpret(&documents).unwrap();
        let trust_domain = TrustDomain::parse("equerry.local").unwrap();
        let authority = Authority::create(trust_domain, SystemTime::now()).unwrap();
        let (mesh_protocol, grace) = (crate::config::MeshProtocol::Auto, Duration::from_secs(60));
        Self { meaning, authority, dns: Vec::new(), mesh_protocol, grace }
    }

    /// Means something else from now on; nobody is told yet.
    pub(crate) fn mean(&mut self, yaml: &str) {
        self.meaning = interpret::interpret(&document::read("test.yaml", yaml).unwrap()).unwrap();
    }

    /// An identity of this world.
    pub(crate) fn identity(&self, account: &str) -> (Identity, TrustBundle) {
        let id = self.id(account);
        let request = CertificateRequest::new().unwrap();
        let issued = self.authority.sign(&request.csr_der, &id, Duration::from_secs(3600), SystemTime::now()).unwrap();
        (Identity::new(request.key, issued.chain).unwrap(), self.authority.roots().unwrap())
    }

    pub(crate) fn id(&self, account: &str) -> SpiffeId {
        let account = AccountName::parse(account).unwrap();
        SpiffeId::new(self.authority.trust_domain().clone(), account.namespace.clone(), account.name.clone())
    }

    /// A sidecar of `account` whose application listens on `ports` (as the mesh knows them, and where), and which knows
    /// these endpoints of Services.
    pub(crate) async fn sidecar(
        &self,
        account: &str,
        labels: &[(&str, &str)],
        ports: &[(u16, SocketAddr)],
        endpoints: &[(&str, Vec<At>)],
    ) -> Sidecar {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("access.log");
        let observe =
            Observer::new(ObserverOptions { access_log: AccessLogTarget::File(log.clone()), series_cap: SERIES_CAP })
                .unwrap();
        let (live, wants) = LiveHandle::new(self.live(account, labels, ports, endpoints));
        let identity = IdentityHandle::with_grace(self.grace);
        let (key, bundle) = self.identity(account);
        identity.put(TlsIdentity::new(key, bundle, String::new(), 1).unwrap());
        let instance = InstanceId::parse("test").unwrap();
        let settings = Settings { mesh_protocol: self.mesh_protocol, ..settings(&instance, ports) };
        let quotas = Arc::new(Quotas::new(instance));
        let outsiders = Arc::new(Outsiders::new(self.dns.clone(), OwnDoors::default()));
        let settings = Arc::new(settings);
        let fetcher = Fetcher::new(self.dns.clone(), settings.jwks_allow.clone(), OwnDoors::default());
        let keys = Keys::new(fetcher, observe.clone(), None);
        let hops = Arc::default();
        let shared = Shared { live, identity, observe, quotas, outsiders, keys, hops, drain: Drain::new(), settings };
        let (outbound, inbound) = (Rc::new(Outbound::new(shared.clone())), Rc::new(Inbound::new(shared.clone())));
        let outbound_at = listen(move |stream, peer| {
            let outbound = Rc::clone(&outbound);
            async move { outbound.serve(stream, peer).await }
        })
        .await;
        let inbound_at = listen(move |stream, peer| {
            let inbound = Rc::clone(&inbound);
            async move { inbound.serve(stream, peer).await }
        })
        .await;
        Sidecar { outbound: outbound_at.0, inbound: inbound_at.0, shared, log, _directory: directory, _wants: wants }
    }

    /// What a sidecar is told.
    pub(crate) fn live(
        &self,
        account: &str,
        labels: &[(&str, &str)],
        ports: &[(u16, SocketAddr)],
        endpoints: &[(&str, Vec<At>)],
    ) -> Live {
        let account = AccountName::parse(account).unwrap();
        let labels: Labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let facts =
            WorkloadFacts { account: account.clone(), labels, ports: ports.iter().map(|(port, _)| *port).collect() };
        let own = self.id(&account.to_string());
        let workload = compile::workload(&view::workload(&self.meaning, &facts)).unwrap();
        let destinations = self.meaning.services.keys().map(|name| {
            let known = endpoints.iter().find(|(service, _)| ServiceName::parse(service).unwrap() == *name);
            let at = known.map(|(_, at)| at.as_slice()).unwrap_or_default();
            (name.clone(), Arc::new(self.destination(name, &account, at)))
        });
        let destinations = destinations.collect();
        let unknown = [(ServiceName::parse("shop/order").unwrap(), Some("orders".to_owned()))].into();
        Live { epoch: 7, workload: Some(Arc::new(workload)), destinations, unknown, ..Live::nothing(own) }
    }

    fn destination(&self, name: &ServiceName, caller: &AccountName, at: &[At]) -> Destination {
        let view = view::destination(&self.meaning, name, &caller.namespace).unwrap();
        let compiled = compile::destination(&view).unwrap();
        let accounts: Vec<SpiffeId> = view.accounts.iter().map(|account| self.id(&account.to_string())).collect();
        let endpoints = at.iter().enumerate().map(|(number, at)| Endpoint {
            instance: InstanceId::parse(&format!("i{number}")).unwrap(),
            address: match at {
                At::Mesh(address) | At::Open(_, address) => EndpointAddress::Mesh(*address),
                At::Plain(port, address) => EndpointAddress::Plain(vec![(*port, *address)]),
            },
            open: if let At::Open(ports, _) = at { ports.clone() } else { Vec::new() },
            state: Arc::default(),
        });
        let endpoints: Vec<Endpoint> = endpoints.collect();
        let members = endpoints.iter().map(|endpoint| Member::new(endpoint.instance.as_str(), 1)).collect();
        let mut rng = fastrand::Rng::new();
        let backend = Backend {
            name: name.clone(),
            traffic: view.traffic.clone(),
            accounts: accounts.into(),
            ports: view.ports,
            endpoints,
            unwell: Vec::new(),
            balancer: Balancer::new(&view.traffic.load_balancer, members, None, Instant::now(), &mut rng),
            limits: Arc::default(),
            answers: Arc::default(),
        };
        Destination::new(Arc::new(compiled), Arc::new(backend))
    }
}

impl Sidecar {
    /// The access log's lines once there are `count` of them.
    pub(crate) async fn log(&self, count: usize) -> Vec<serde_json::Value> {
        let read = || {
            let read = std::fs::read(&self.log).unwrap_or_default();
            // What is being written just now is no line yet.
            let whole = read.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            String::from_utf8_lossy(&read[..whole]).into_owned()
        };
        until("access log lines", || read().lines().count() >= count).await;
        read().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The metrics in which `word` occurs.
    pub(crate) fn metrics(&self, word: &str) -> Vec<String> {
        self.shared
            .observe
            .render()
            .lines()
            .filter(|line| !line.starts_with('#') && line.contains(word))
            .map(str::to_owned)
            .collect()
    }
}

fn settings(instance: &InstanceId, ports: &[(u16, SocketAddr)]) -> Settings {
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    Settings {
        traces: None,
        control_plane: "127.0.0.1:1".to_owned(),
        join_token: None,
        instance: instance.clone(),
        labels: Labels::new(),
        app_ports: ports.iter().map(|(port, at)| AppPort { port: *port, local: at.port() }).collect(),
        tcp: Vec::new(),
        state_dir: PathBuf::new(),
        outbound: any,
        inbound: any,
        advertise: None,
        admin: any,
        telemetry: any,
        dns: Vec::new(),
        workers: 1,
        max_connections: None,
        access_log: AccessLogTarget::Off,
        health: equerry_policies::policy::Ask::Tcp {},
        health_port: None,
        drain_timeout: Duration::from_secs(1),
        // Issuers of tests are on this machine.
        jwks_allow: vec!["127.0.0.0/8".parse().unwrap()],
        mesh_protocol: crate::config::MeshProtocol::Auto,
        log: String::new(),
        exit_with_stdin: false,
        sources: Default::default(),
        line: Default::default(),
    }
}

type Connections = Rc<RefCell<Vec<JoinHandle<()>>>>;

/// Accepts on a port of its own; the connections' tasks can be ended from outside.
pub(crate) async fn listen<F: Future<Output = ()> + 'static>(
    serve: impl Fn(TcpStream, SocketAddr) -> F + 'static,
) -> (SocketAddr, Connections) {
    listen_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), serve)
}

fn listen_on<F: Future<Output = ()> + 'static>(
    listener: TcpListener,
    serve: impl Fn(TcpStream, SocketAddr) -> F + 'static,
) -> (SocketAddr, Connections) {
    let address = listener.local_addr().unwrap();
    let connections = Connections::default();
    let kept = Rc::clone(&connections);
    spawn_local(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            kept.borrow_mut().push(spawn_local(serve(stream, peer)));
        }
    });
    (address, connections)
}

/// An application that answers each request as `answer` says, over HTTP/1.1 or HTTP/2.
pub(crate) async fn application<F, B>(answer: impl Fn(usize, Request<Incoming>) -> F + 'static) -> Application
where
    F: Future<Output = Response<B>> + 'static,
    B: hyper::body::Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    application_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), answer)
}

/// The same where it is told to listen.
pub(crate) fn application_on<F, B>(
    listener: TcpListener,
    answer: impl Fn(usize, Request<Incoming>) -> F + 'static,
) -> Application
where
    F: Future<Output = Response<B>> + 'static,
    B: hyper::body::Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let seen: Rc<RefCell<Vec<http::request::Parts>>> = Rc::default();
    let (answer, heads) = (Rc::new(answer), Rc::clone(&seen));
    let (address, connections) = listen_on(listener, move |stream, _| {
        let (answer, heads) = (Rc::clone(&answer), Rc::clone(&heads));
        async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (answer, heads) = (Rc::clone(&answer), Rc::clone(&heads));
                async move {
                    let (head, body) = request.into_parts();
                    let number = heads.borrow().len();
                    heads.borrow_mut().push(head.clone());
                    Ok::<_, std::convert::Infallible>(answer(number, Request::from_parts(head, body)).await)
                }
            });
            let server = hyper_util::server::conn::auto::Builder::new(OnThisThread);
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        }
    });
    Application { address, seen, connections }
}

/// An answer with nothing but a status and a text.
pub(crate) fn says(status: u16, text: &str) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::new(Bytes::copy_from_slice(text.as_bytes()))).unwrap()
}

/// A request; `Host` names the destination.
pub(crate) fn request(method: &str, host: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri(path).header("host", host).body(Full::new(body.into())).unwrap()
}

/// Sends one request over a connection of its own, in HTTP/1.1.
pub(crate) async fn call(to: SocketAddr, request: Request<Full<Bytes>>) -> Response<Bytes> {
    let stream = TcpStream::connect(to).await.unwrap();
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    spawn_local(connection);
    whole(send.send_request(request).await.unwrap()).await
}

/// Sends one request over a connection of its own, in HTTP/2 with prior knowledge.
pub(crate) async fn call_http2(to: SocketAddr, mut request: Request<Full<Bytes>>) -> Response<Bytes> {
    let stream = TcpStream::connect(to).await.unwrap();
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(OnThisThread, TokioIo::new(stream)).await.unwrap();
    spawn_local(connection);
    let host = request.headers_mut().remove("host").unwrap();
    let target = format!("http://{}{}", host.to_str().unwrap(), request.uri());
    *request.uri_mut() = target.parse().unwrap();
    *request.version_mut() = http::Version::HTTP_2;
    whole(send.send_request(request).await.unwrap()).await
}

async fn whole(response: Response<Incoming>) -> Response<Bytes> {
    let (head, body) = response.into_parts();
    Response::from_parts(head, body.collect().await.unwrap().to_bytes())
}
