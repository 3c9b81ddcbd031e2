//! What the budgets stand on: a caller, an application of bare sockets, and the inbound side of a sidecar between them, on a
//! thread of its own as a worker has it. No control plane: its policies are compiled from text.

#![allow(clippy::unwrap_used, reason = "a failed one is a failed test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use equerry_policies::names::{AccountName, InstanceId, SpiffeId, TrustDomain};
use equerry_policies::policy::Labels;
use equerry_policies::view::{self, WorkloadFacts};
use equerry_policies::{compile, document, interpret};
use equerry_proxy::app::Shared;
use equerry_proxy::config::{AppPort, Settings};
use equerry_proxy::drain::Drain;
use equerry_proxy::inbound::Inbound;
use equerry_proxy::live::{IdentityHandle, Live, LiveHandle, Quotas};
use equerry_proxy::observe::{AccessLogTarget, Observer, ObserverOptions, SERIES_CAP};
use equerry_proxy::upstream::Outsiders;
use equerry_traffic::outside::OwnDoors;

/// No policy but that the caller needs no certificate.
pub(crate) const PERMISSIVE: &str = "
apiVersion: equerry.dev/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: PERMISSIVE}}
";

/// Sends a small GET with these further header lines, and reads its answer.
pub(crate) fn call(caller: &mut BufReader<TcpStream>, headers: &str) {
    let request = format!("GET /orders?page=2 HTTP/1.1\r\nhost: orders\r\naccept: */*\r\n{headers}\r\n");
    caller.get_mut().write_all(request.as_bytes()).unwrap();
    assert_eq!(head(caller).as_deref(), Some("HTTP/1.1 200 OK"));
    let mut body = [0; 5];
    caller.read_exact(&mut body).unwrap();
    assert_eq!(&body, b"hello");
}

/// Reads a head to its end; its first line, or nothing when the connection has ended.
fn head(from: &mut BufReader<TcpStream>) -> Option<String> {
    let mut lines = from.by_ref().lines().map(Result::unwrap);
    let first = lines.next()?;
    lines.find(String::is_empty).map(|_| first)
}

/// An application that says hello on one connection.
pub(crate) fn application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut caller = BufReader::new(listener.accept().unwrap().0);
        while head(&mut caller).is_some() {
            caller.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nserver: x\r\n\r\nhello").unwrap();
        }
    });
    address
}

/// Serves the next connection of `listener` to its end, as the sidecar of `application` under these policies. `begin` is
/// called when it is there.
pub(crate) fn serve_one(listener: &TcpListener, application: SocketAddr, policies: &str, begin: impl FnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let inbound = Rc::new(Inbound::new(shared(application, policies)));
        let (stream, peer) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        begin();
        inbound.serve(tokio::net::TcpStream::from_std(stream).unwrap(), peer).await;
    });
}

fn shared(application: SocketAddr, policies: &str) -> Shared {
    let account = AccountName::parse("shop/orders").unwrap();
    let meaning = interpret::interpret(&document::read("test.yaml", policies).unwrap()).unwrap();
    let facts = WorkloadFacts { account: account.clone(), labels: Labels::new(), ports: vec![8080] };
    let workload = compile::workload(&view::workload(&meaning, &facts)).unwrap();
    let own = SpiffeId::new(TrustDomain::parse("equerry.local").unwrap(), account.namespace, account.name);
    let (live, _) = LiveHandle::new(Live { workload: Some(Arc::new(workload)), ..Live::nothing(own) });
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
    };
    let observe = ObserverOptions { access_log: AccessLogTarget::Off, series_cap: SERIES_CAP };
    Shared {
        live,
        identity: IdentityHandle::default(),
        observe: Observer::new(observe).unwrap(),
        quotas: Arc::new(Quotas::new(instance)),
        outsiders: Arc::new(Outsiders::new(Vec::new(), OwnDoors::default())),
        drain: Drain::new(),
        settings: Arc::new(settings),
    }
}
