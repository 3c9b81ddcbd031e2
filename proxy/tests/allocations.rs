//! What one request costs in allocations: a budget, so that a copy made for each request does not come in unseen.
//!
//! A caller and an application of bare sockets talk through the inbound side of a sidecar, in plain text over kept
//! connections. Only what the sidecar's thread allocates is counted.

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

/// Allocations and reallocations for a small GET, without a log: measured. Each costs about 300 instructions with its
/// release (callgrind), of some 45,000 that a request takes.
const BUDGET: f64 = 19.0;
/// The number does not depend on the machine; a version of hyper or tokio may move it by one.
const TOLERANCE: f64 = 1.0;

const PERMISSIVE: &str = "
apiVersion: equerry.dev/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: PERMISSIVE}}
";

#[test]
fn a_small_request_stays_within_its_budget_of_allocations() {
    let application = application();
    let sidecar = sidecar(application);
    let mut caller = BufReader::new(TcpStream::connect(sidecar).unwrap());
    // What is made once, such as connections and series of metrics, has been made after these.
    (0..100).for_each(|_| call(&mut caller));
    let (rounds, before) = (1_000, counting::so_far());
    (0..rounds).for_each(|_| call(&mut caller));
    let each = (counting::so_far() - before) as f64 / f64::from(rounds);
    assert!(each > 1.0, "nothing is counted: {each}");
    assert!(each <= BUDGET + TOLERANCE, "{each} allocations a request, of {BUDGET}");
}

fn call(caller: &mut BufReader<TcpStream>) {
    caller.get_mut().write_all(b"GET /orders?page=2 HTTP/1.1\r\nhost: orders\r\naccept: */*\r\n\r\n").unwrap();
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

/// An application that says hello.
fn application() -> SocketAddr {
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

/// The inbound side of a sidecar for `application`, on a thread of its own, as a worker has it.
fn sidecar(application: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let inbound = Rc::new(Inbound::new(shared(application)));
            let (stream, peer) = listener.accept().unwrap();
            stream.set_nonblocking(true).unwrap();
            counting::begin();
            inbound.serve(tokio::net::TcpStream::from_std(stream).unwrap(), peer).await;
        });
    });
    address
}

fn shared(application: SocketAddr) -> Shared {
    let account = AccountName::parse("shop/orders").unwrap();
    let meaning = interpret::interpret(&document::read("test.yaml", PERMISSIVE).unwrap()).unwrap();
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
        state_dir: std::path::PathBuf::new(),
        outbound: any,
        inbound: any,
        advertise: None,
        admin: any,
        telemetry: any,
        workers: 1,
        access_log: AccessLogTarget::Off,
        health_path: None,
        drain_timeout: Duration::ZERO,
        log: String::new(),
        exit_with_stdin: false,
    };
    let observe = ObserverOptions { access_log: AccessLogTarget::Off, series_cap: SERIES_CAP };
    Shared {
        live,
        identity: IdentityHandle::default(),
        observe: Observer::new(observe).unwrap(),
        quotas: Arc::new(Quotas::new(instance)),
        drain: Drain::new(),
        settings: Arc::new(settings),
    }
}

/// An allocator that counts what one thread asks of it.
#[allow(unsafe_code, reason = "an allocator cannot be written without; every call goes to the system's as it came")]
mod counting {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, Ordering};

    static COUNTED: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static COUNTS: Cell<bool> = const { Cell::new(false) };
    }

    /// From here on the current thread counts.
    pub(super) fn begin() {
        COUNTS.set(true);
    }

    /// Allocations and reallocations so far.
    pub(super) fn so_far() -> u64 {
        COUNTED.load(Ordering::Relaxed)
    }

    struct Counting;

    #[global_allocator]
    static COUNTING: Counting = Counting;

    fn count() {
        // A thread that is ending has no such cell any more.
        if COUNTS.try_with(Cell::get).unwrap_or(false) {
            COUNTED.fetch_add(1, Ordering::Relaxed);
        }
    }

    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            count();
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
            unsafe { System.dealloc(at, layout) }
        }

        unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            count();
            unsafe { System.realloc(at, layout, size) }
        }
    }
}
