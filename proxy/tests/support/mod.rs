//! What the budgets stand on: a caller, an application of bare sockets, and one side of a sidecar between them, on a thread of
//! its own as a worker has it. No control plane: its policies are compiled from text, and nothing is encrypted.

#![allow(clippy::unwrap_used, reason = "a failed one is a failed test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use equerry_policies::names::{AccountName, InstanceId, ServiceName, SpiffeId, TrustDomain};
use equerry_policies::policy::{Labels, Meaning};
use equerry_policies::view::{self, EndpointAddress, WorkloadFacts};
use equerry_policies::{compile, document, interpret};
use equerry_proxy::app::Shared;
use equerry_proxy::config::{AppPort, Settings};
use equerry_proxy::drain::Drain;
use equerry_proxy::inbound::Inbound;
use equerry_proxy::keys::{Fetcher, Keys};
use equerry_proxy::live::{Backend, Destination, Endpoint, IdentityHandle, Live, LiveHandle, Quotas};
use equerry_proxy::observe::{AccessLogTarget, Observer, ObserverOptions, SERIES_CAP};
use equerry_proxy::outbound::Outbound;
use equerry_proxy::upstream::Outsiders;
use equerry_traffic::balance::{Balancer, Member};
use equerry_traffic::outside::OwnDoors;
use tokio::runtime::{Builder, LocalOptions, Runtime};

/// Policies under which a caller of an inbound side needs no certificate, and nothing else.
pub(crate) const PERMISSIVE: &str = "
apiVersion: equerry.dev/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: PERMISSIVE}}
";

/// A Service to be called: its application stands at an address that is written down.
pub(crate) const CALLED: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
";

/// The same, whose application speaks HTTP/2.
pub(crate) const CALLED_OVER_HTTP2: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {ports: [{name: http, port: 80, appProtocol: kubernetes.io/h2c}]}
";

/// Which side of a sidecar is between caller and application, and who of them speaks HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    In,
    InOfHttp2,
    Out,
    OutToHttp2,
}

/// Whoever sends requests, over one connection.
pub(crate) enum Caller {
    Http1(BufReader<TcpStream>),
    Http2(Runtime, h2::client::SendRequest<Bytes>),
}

impl Caller {
    /// Connects to a sidecar, to go this way through it.
    pub(crate) fn connect(sidecar: SocketAddr, way: Way) -> Self {
        let stream = TcpStream::connect(sidecar).unwrap();
        stream.set_nodelay(true).unwrap();
        if way != Way::InOfHttp2 {
            return Self::Http1(BufReader::new(stream));
        }
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let requests = runtime.block_on(async {
            stream.set_nonblocking(true).unwrap();
            let stream = tokio::net::TcpStream::from_std(stream).unwrap();
            let (requests, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            requests
        });
        Self::Http2(runtime, requests)
    }

    /// Sends a small GET with these further header lines, and reads its answer.
    pub(crate) fn call(&mut self, headers: &str) {
        match self {
            Self::Http1(stream) => {
                let request = format!("GET /orders?page=2 HTTP/1.1\r\nhost: orders\r\naccept: */*\r\n{headers}\r\n");
                stream.get_mut().write_all(request.as_bytes()).unwrap();
                assert_eq!(head(stream).as_deref(), Some("HTTP/1.1 200 OK"));
                let mut body = [0; 5];
                stream.read_exact(&mut body).unwrap();
                assert_eq!(&body, b"hello");
            }
            Self::Http2(runtime, requests) => runtime.block_on(async {
                let request = http::Request::get("http://orders/orders?page=2").header("accept", "*/*");
                let request = headers.lines().fold(request, |request, line| {
                    let (name, value) = line.split_once(": ").unwrap();
                    request.header(name, value)
                });
                std::future::poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
                let (answer, _) = requests.send_request(request.body(()).unwrap(), true).unwrap();
                let answer = answer.await.unwrap();
                assert_eq!(answer.status(), 200);
                let mut body = answer.into_body();
                assert_eq!(body.data().await.unwrap().unwrap(), "hello");
                assert!(body.data().await.is_none());
            }),
        }
    }
}

/// Reads a head to its end; its first line, or nothing when the connection has ended.
fn head(from: &mut BufReader<TcpStream>) -> Option<String> {
    let mut lines = from.by_ref().lines().map(Result::unwrap);
    let first = lines.next()?;
    lines.find(String::is_empty).map(|_| first)
}

/// An application that says hello on one connection, to who comes this way.
pub(crate) fn application(way: Way) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        if way == Way::OutToHttp2 { hello_over_http2(stream) } else { hello(stream) }
    });
    address
}

fn hello(stream: TcpStream) {
    let mut caller = BufReader::new(stream);
    while head(&mut caller).is_some() {
        caller.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nserver: x\r\n\r\nhello").unwrap();
    }
}

fn hello_over_http2(stream: TcpStream) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        stream.set_nonblocking(true).unwrap();
        let mut caller = h2::server::handshake(tokio::net::TcpStream::from_std(stream).unwrap()).await.unwrap();
        while let Some(Ok((_, mut respond))) = caller.accept().await {
            let answer =
                http::Response::builder().header("content-length", "5").header("server", "x").body(()).unwrap();
            respond.send_response(answer, false).unwrap().send_data(Bytes::from_static(b"hello"), true).unwrap();
        }
    });
}

/// Serves the next connection of `listener` to its end, as the sidecar on this way to `application`, under these policies.
/// `begin` is called when it is there.
pub(crate) fn serve_one(
    listener: &TcpListener,
    (way, application): (Way, SocketAddr),
    policies: &str,
    begin: impl FnOnce(),
) {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
    runtime.block_on(async {
        let shared = shared(application, policies);
        let (stream, peer) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let accepted = || tokio::net::TcpStream::from_std(stream).unwrap();
        if matches!(way, Way::In | Way::InOfHttp2) {
            let inbound = Rc::new(Inbound::new(shared));
            begin();
            inbound.serve(accepted(), peer).await;
        } else {
            let outbound = Rc::new(Outbound::new(shared));
            begin();
            outbound.serve(accepted(), peer).await;
        }
    });
}

/// The Services that the policies declare, all of them at the address of `application`.
fn destinations(
    meaning: &Meaning,
    caller: &AccountName,
    application: SocketAddr,
) -> Vec<(ServiceName, Arc<Destination>)> {
    let destination = |name: &ServiceName| {
        let view = view::destination(meaning, name, &caller.namespace).unwrap();
        let compiled = compile::destination(&view).unwrap();
        let at = view.ports.iter().map(|port| (port.port, application)).collect();
        let instance = InstanceId::parse("one").unwrap();
        let endpoint =
            Endpoint { instance, address: EndpointAddress::Plain(at), open: Vec::new(), state: Arc::default() };
        let (members, mut rng) = (vec![Member::new("one", 1)], fastrand::Rng::new());
        let backend = Backend {
            name: name.clone(),
            accounts: Arc::from([]),
            ports: view.ports,
            endpoints: vec![endpoint],
            unwell: Vec::new(),
            balancer: Balancer::new(&view.traffic.load_balancer, members, None, Instant::now(), &mut rng),
            traffic: view.traffic,
            limits: Arc::default(),
            answers: Arc::default(),
        };
        (name.clone(), Arc::new(Destination::new(Arc::new(compiled), Arc::new(backend))))
    };
    meaning.services.keys().map(destination).collect()
}

fn shared(application: SocketAddr, policies: &str) -> Shared {
    let account = AccountName::parse("shop/orders").unwrap();
    let meaning = interpret::interpret(&document::read("test.yaml", policies).unwrap()).unwrap();
    let facts = WorkloadFacts { account: account.clone(), labels: Labels::new(), ports: vec![8080] };
    let workload = compile::workload(&view::workload(&meaning, &facts)).unwrap();
    let own =
        SpiffeId::new(TrustDomain::parse("equerry.local").unwrap(), account.namespace.clone(), account.name.clone());
    let destinations = destinations(&meaning, &account, application).into_iter().collect();
    let (live, _) = LiveHandle::new(Live { workload: Some(Arc::new(workload)), destinations, ..Live::nothing(own) });
    let instance = InstanceId::parse("test").unwrap();
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    let settings = Settings {
        control_plane: String::new(),
        join_token: None,
        instance: instance.clone(),
        labels: Labels::new(),
        app_ports: vec![AppPort { port: 8080, local: application.port() }],
        tcp: Vec::new(),
        state_dir: std::path::PathBuf::new(),
        outbound: any,
        inbound: any,
        advertise: None,
        admin: any,
        telemetry: any,
        jwks_allow: Vec::new(),
        workers: 1,
        max_connections: None,
        access_log: AccessLogTarget::Off,
        health: equerry_policies::policy::Ask::Tcp {},
        health_port: None,
        drain_timeout: Duration::ZERO,
        mesh_protocol: equerry_proxy::config::MeshProtocol::Auto,
        log: String::new(),
        dns: Vec::new(),
        exit_with_stdin: false,
        sources: Default::default(),
        line: Default::default(),
        traces: None,
    };
    let observe = ObserverOptions { access_log: AccessLogTarget::Off, series_cap: SERIES_CAP };
    let observe = Observer::new(observe).unwrap();
    let fetcher = Fetcher::new(Vec::new(), Vec::new(), OwnDoors::default());
    Shared {
        live,
        identity: IdentityHandle::default(),
        keys: Keys::new(fetcher, observe.clone(), None),
        observe,
        quotas: Arc::new(Quotas::new(instance)),
        outsiders: Arc::new(Outsiders::new(Vec::new(), OwnDoors::default())),
        drain: Drain::new(),
        hops: Arc::default(),
        settings: Arc::new(settings),
    }
}
