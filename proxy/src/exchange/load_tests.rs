//! What counts as load over real sockets: answers that go on, connections that changed their protocol, and plain TCP; and who waits
//! for a TCP connection's place.

use std::cell::Cell;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::harness::*;
use super::tries_tests::{SERVICE, caller, traffic};
use crate::outbound::Outbound;
use crate::tunnel;

const BY_LOAD: &str = "loadBalancer: {type: least_request}";
const BY_HASH: &str = "loadBalancer: {type: ring_hash, hash: {header: x-user}, ring: {boundedLoad: 100}}";
const BY_ADDRESS: &str = "loadBalancer: {type: ring_hash, hash: {sourceAddress: true}, ring: {boundedLoad: 100}}";

/// Answers `/long` with a piece now and the last when it is released, and everything else at once.
async fn streaming(release: &Arc<Notify>) -> Application {
    let release = Arc::clone(release);
    application(move |_, request: Request<Incoming>| {
        let (long, release) = (request.uri().path() == "/long", Arc::clone(&release));
        let pieces = futures_util::stream::unfold(if long { 0 } else { 2 }, move |piece| {
            let release = Arc::clone(&release);
            async move {
                match piece {
                    0 => Some((Ok(Frame::data(Bytes::from_static(b"begun "))), 1)),
                    1 => {
                        release.notified().await;
                        Some((Ok(Frame::data(Bytes::from_static(b"over"))), 3))
                    }
                    2 => Some((Ok(Frame::data(Bytes::from_static(b"short"))), 3)),
                    _ => None,
                }
            }
        });
        let body: UnsyncBoxBody<Bytes, std::io::Error> = StreamBody::new(pieces).boxed_unsync();
        async move { Response::new(body) }
    })
    .await
}

/// What `sidecar` counts at each endpoint of a Service.
fn in_flight(sidecar: &Sidecar, service: &str) -> Vec<u32> {
    let live = sidecar.shared.live.load();
    let backend = &live.destinations[&service.parse().unwrap()].backend;
    backend.endpoints.iter().map(|endpoint| endpoint.state.in_flight()).collect()
}

/// Says this to `at`; a connection from which `awaited` was read.
async fn opened(at: SocketAddr, said: &str, awaited: &str) -> TcpStream {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(said.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    while !read.ends_with(awaited.as_bytes()) {
        read.push(stream.read_u8().await.unwrap());
    }
    stream
}

/// With one stream open, everything else goes to the other endpoint; when it is over nothing counts.
async fn goes_to_the_other(app_protocol: &str, spec: &str) {
    let release = Arc::new(Notify::new());
    let both = [streaming(&release).await, streaming(&release).await];
    let yaml = traffic(SERVICE, spec).replace("8080}", &format!("8080, appProtocol: {app_protocol}}}"));
    let sidecar = caller(&yaml, &[both[0].address, both[1].address]).await;
    let long = "GET /long HTTP/1.1\r\nhost: orders\r\nx-user: ada\r\n\r\n";
    let mut stream = opened(sidecar.outbound, long, "begun ").await;
    let busy = both.iter().position(|one| !one.seen.borrow().is_empty()).unwrap();
    assert_eq!(in_flight(&sidecar, "shop/orders").iter().sum::<u32>(), 1, "{spec}");
    for _ in 0..20 {
        let mut short = request("GET", "orders", "/short", "");
        short.headers_mut().insert("x-user", "ada".parse().unwrap());
        assert_eq!(call(sidecar.outbound, short).await.body(), "short");
    }
    assert_eq!((both[busy].seen.borrow().len(), both[1 - busy].seen.borrow().len()), (1, 20), "{app_protocol} {spec}");
    release.notify_one();
    let mut rest = [0; 64];
    assert!(stream.read(&mut rest).await.unwrap() > 0);
    until("nothing to be in flight", || in_flight(&sidecar, "shop/orders") == [0, 0]).await;
}

#[test]
fn a_stream_that_is_open_counts_where_choices_go_by_load() {
    on_one_thread(async {
        for app_protocol in ["http", "http2"] {
            goes_to_the_other(app_protocol, BY_LOAD).await;
            goes_to_the_other(app_protocol, BY_HASH).await;
        }
    });
}

#[test]
fn a_stream_whose_caller_leaves_counts_no_more() {
    on_one_thread(async {
        let release = Arc::new(Notify::new());
        let alone = streaming(&release).await;
        let sidecar = caller(&traffic(SERVICE, BY_LOAD), &[alone.address]).await;
        let stream = opened(sidecar.outbound, "GET /long HTTP/1.1\r\nhost: orders\r\n\r\n", "begun ").await;
        assert_eq!(in_flight(&sidecar, "shop/orders"), [1]);
        drop(stream);
        until("nothing to be in flight", || in_flight(&sidecar, "shop/orders") == [0]).await;
    });
}

/// Changes its protocol where it is asked to, and answers everything else; tells how many it answered so, and otherwise.
async fn switching() -> (SocketAddr, Rc<Cell<(usize, usize)>>) {
    let counts = Rc::new(Cell::new((0, 0)));
    let kept = Rc::clone(&counts);
    let (address, _) = listen(move |mut stream, _| {
        let counts = Rc::clone(&kept);
        async move {
            let mut head = Vec::new();
            while let Ok(byte) = stream.read_u8().await {
                head.push(byte);
                if !head.ends_with(b"\r\n\r\n") {
                    continue;
                }
                let (changed, others) = counts.get();
                let text = String::from_utf8_lossy(&std::mem::take(&mut head)).to_lowercase();
                if text.contains("upgrade: chatter") {
                    counts.set((changed + 1, others));
                    let taken = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chatter\r\n\r\n";
                    stream.write_all(taken.as_bytes()).await.unwrap();
                } else {
                    counts.set((changed, others + 1));
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                }
            }
        }
    })
    .await;
    (address, counts)
}

#[test]
fn a_connection_that_changed_its_protocol_counts_where_choices_go_by_load() {
    on_one_thread(async {
        let both = [switching().await, switching().await];
        let sidecar = caller(&traffic(SERVICE, BY_LOAD), &[both[0].0, both[1].0]).await;
        let asked = "GET / HTTP/1.1\r\nhost: orders\r\nconnection: upgrade\r\nupgrade: chatter\r\n\r\n";
        let stream = opened(sidecar.outbound, asked, "\r\n\r\n").await;
        let busy = both.iter().position(|one| one.1.get().0 == 1).unwrap();
        for _ in 0..20 {
            assert_eq!(call(sidecar.outbound, request("GET", "orders", "/", "")).await.status(), 200);
        }
        assert_eq!((both[busy].1.get(), both[1 - busy].1.get()), ((1, 0), (0, 20)));
        drop(stream);
        until("nothing to be in flight", || in_flight(&sidecar, "shop/orders") == [0, 0]).await;
    });
}

const DB: &str = "
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop, annotations: {equerry.dev/accounts: db}}
spec: {selector: {app: db}, ports: [{port: 5432, targetPort: 5433, appProtocol: tcp}]}
---
apiVersion: equerry.dev/v1
kind: TrafficPolicy
metadata: {name: db, namespace: shop}
spec: {targetRefs: [{kind: Service, name: db}], SPEC}
";

/// Servers that greet and then hear their caller out, a sidecar that knows them, where `db:5432` is reached through it, and how many
/// connections each server has met.
async fn databases(count: usize, spec: &str) -> (Sidecar, SocketAddr, Vec<Rc<Cell<usize>>>) {
    let (mut at, mut met) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let seen = Rc::new(Cell::new(0));
        met.push(Rc::clone(&seen));
        let server = move |mut stream: TcpStream, _| {
            seen.set(seen.get() + 1);
            async move {
                stream.write_all(b"hello\n").await.unwrap();
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        };
        at.push(At::Plain(5432, listen(server).await.0));
    }
    let sidecar = World::new(&DB.replace("SPEC", spec)).sidecar("shop/frontend", &[], &[], &[("shop/db", at)]).await;
    let outbound = Rc::new(Outbound::new(sidecar.shared.clone()));
    let serve = move |stream, peer| {
        let at = Rc::clone(&outbound);
        async move { tunnel::outbound(&at, "db:5432", stream, peer).await }
    };
    let door = listen(serve).await.0;
    (sidecar, door, met)
}

#[test]
fn a_tcp_connection_that_is_open_counts_where_choices_go_by_load() {
    on_one_thread(async {
        for (by_connect, spec) in [(false, BY_LOAD), (true, BY_LOAD), (false, BY_ADDRESS)] {
            let (sidecar, door, met) = databases(2, spec).await;
            let connect = "CONNECT db:5432 HTTP/1.1\r\nhost: db:5432\r\n\r\n";
            let open = || async {
                if by_connect {
                    opened(sidecar.outbound, connect, "hello\n").await
                } else {
                    opened(door, "", "hello\n").await
                }
            };
            let first = open().await;
            let busy = met.iter().position(|met| met.get() == 1).unwrap();
            let mut all = vec![first];
            for pair in 1..10 {
                all.push(open().await);
                assert_eq!((met[0].get(), met[1].get()), (pair, pair), "the other one has less");
                all.push(open().await);
            }
            assert_eq!(in_flight(&sidecar, "shop/db").iter().sum::<u32>(), 19);
            all.truncate(1);
            until("the others to be over", || in_flight(&sidecar, "shop/db")[1 - busy] == 0).await;
            until("the first alone to stay", || in_flight(&sidecar, "shop/db")[busy] == 1).await;
            drop(all);
            until("nothing to be in flight", || in_flight(&sidecar, "shop/db") == [0, 0]).await;
        }
    });
}

#[test]
fn a_tcp_connection_waits_for_a_place_and_gets_it_when_another_is_closed() {
    on_one_thread(async {
        let (sidecar, door, met) = databases(1, "limits: {connections: 1, pendingTimeout: 5s}").await;
        let first = opened(door, "", "hello\n").await;
        let second = tokio::task::spawn_local(opened(door, "", "hello\n"));
        let live = sidecar.shared.live.load();
        let limits = &live.destinations[&"shop/db".parse().unwrap()].backend.limits;
        until("the second to wait", || limits.is_waited_for()).await;
        assert_eq!((met[0].get(), limits.present().pending), (1, 1));
        drop(first);
        let second = second.await.unwrap();
        assert_eq!((met[0].get(), limits.present().connections, limits.present().pending), (2, 1, 0));
        drop(second);
        until("the place to be given back", || limits.present().connections == 0).await;
    });
}

#[test]
fn a_caller_that_leaves_while_it_waits_for_a_place_is_noticed_at_once() {
    on_one_thread(async {
        let (sidecar, door, met) = databases(1, "limits: {connections: 1, pendingTimeout: 1h}").await;
        let first = opened(door, "", "hello\n").await;
        let live = sidecar.shared.live.load();
        let limits = &live.destinations[&"shop/db".parse().unwrap()].backend.limits;
        for (lines, said, reset) in [(1, "", false), (2, "", true), (3, "begin", true)] {
            let mut leaves = TcpStream::connect(door).await.unwrap();
            leaves.write_all(said.as_bytes()).await.unwrap();
            until("it to wait", || limits.present().pending == 1).await;
            if reset {
                socket2::SockRef::from(&leaves).set_linger(Some(std::time::Duration::ZERO)).unwrap();
            }
            drop(leaves);
            until("its place in the queue to be free", || limits.present().pending == 0).await;
            let line = sidecar.log(lines).await.remove(lines - 1);
            assert_eq!(line["reason"], "client_gone", "{said:?}, reset {reset}: {line}");
        }
        // Who has said something and closes its half may be waiting for the answer, and gets its place.
        let mut half = TcpStream::connect(door).await.unwrap();
        half.write_all(b"all of it").await.unwrap();
        half.shutdown().await.unwrap();
        until("it to wait", || limits.present().pending == 1).await;
        drop(first);
        let mut answer = String::new();
        half.read_to_string(&mut answer).await.unwrap();
        assert_eq!((answer.as_str(), met[0].get()), ("hello\n", 2));
    });
}

/// What the last line of the log says of a connection that was reset before it stood.
async fn refused(sidecar: &Sidecar, door: SocketAddr, lines: usize) -> (String, String) {
    let mut stream = TcpStream::connect(door).await.unwrap();
    let ended = stream.read_to_end(&mut Vec::new()).await;
    assert!(ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset), "{ended:?}");
    let line = sidecar.log(lines).await.remove(lines - 1);
    let said = |key: &str| line[key].as_str().unwrap().to_owned();
    (said("reason"), said("upstream_transport_failure_reason"))
}

#[test]
fn a_tcp_connection_too_many_is_refused_with_limit_value_and_count() {
    on_one_thread(async {
        let (sidecar, door, met) = databases(1, "limits: {connections: 1, pendingTimeout: 30ms}").await;
        let _first = opened(door, "", "hello\n").await;
        let (reason, said) = refused(&sidecar, door, 1).await;
        assert_eq!(reason, "limit_pending");
        assert_eq!(
            said,
            "no connection to shop/db became free in 30ms (limits.pendingTimeout): 1 are open, and limits.connections is 1: shop/db"
        );
        assert_eq!(met[0].get(), 1);

        let (sidecar, door, met) = databases(1, "limits: {connections: 1, pending: 1, pendingTimeout: 60s}").await;
        let _first = opened(door, "", "hello\n").await;
        let _second = TcpStream::connect(door).await.unwrap();
        let live = sidecar.shared.live.load();
        let limits = &live.destinations[&"shop/db".parse().unwrap()].backend.limits;
        until("the second to wait", || limits.is_waited_for()).await;
        let (reason, said) = refused(&sidecar, door, 1).await;
        assert_eq!(reason, "limit_pending");
        assert_eq!(said, "1 wait for a connection to shop/db, and limits.pending is 1: shop/db");
        assert_eq!(met[0].get(), 1);
    });
}
