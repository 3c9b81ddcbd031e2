//! Ports that take nothing but plain text (DISABLE): both sides over real sockets, and what becomes of connections when that
//! changes.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::spawn_local;

use super::harness::*;
use crate::outbound::Outbound;
use crate::tunnel;

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders}}
spec:
  selector: {app: orders}
  ports: [{name: a, port: 80, targetPort: 8080, appProtocol: http}, {name: b, port: 90, targetPort: 9090, appProtocol: http}]
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop, annotations: {equerry.dev/accounts: db}}
spec: {selector: {app: db}, ports: [{name: sql, port: 5432, targetPort: 5433, appProtocol: tcp}, {name: http, port: 80, targetPort: 8080, appProtocol: http}]}
";
const FRONTEND_ALONE: &str = "
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: frontend, namespace: shop}
spec: {action: ALLOW, rules: [{from: [{source: {principals: [equerry.local/ns/shop/sa/frontend]}}]}]}
";

fn all(mode: &str) -> String {
    format!(
        "{MESH}\n---\napiVersion: equerry.dev/v1\nkind: PeerAuthentication\nmetadata: {{name: all, namespace: shop}}\nspec: {{mtls: {{mode: \
         {mode}}}}}\n"
    )
}

fn port(app: &str, port: u16, mode: &str) -> String {
    format!(
        "{MESH}\n---\napiVersion: equerry.dev/v1\nkind: PeerAuthentication\nmetadata: {{name: port, namespace: shop}}\nspec: {{selector: \
         {{matchLabels: {{app: {app}}}}}, portLevelMtls: {{\"{port}\": {{mode: {mode}}}}}}}\n"
    )
}

const ORDERS: &[(&str, &str)] = &[("app", "orders")];

async fn answering(text: &'static str) -> Application {
    application(move |_, _| async move { says(200, text) }).await
}

fn text(answer: &Response<Bytes>) -> (u16, &str) {
    (answer.status().as_u16(), std::str::from_utf8(answer.body()).unwrap())
}

#[test]
fn sidecars_speak_plain_text_where_they_are_told_to_and_name_the_port_that_is_meant() {
    on_one_thread(async {
        let world = World::new(&all("DISABLE"));
        let (one, other) = (answering("one").await, answering("other").await);
        let ports = [(8080, one.address), (9090, other.address)];
        let orders = world.sidecar("shop/orders", ORDERS, &ports, &[]).await;
        let at = vec![At::Open(vec![80, 90], orders.inbound)];
        let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/orders", at)]).await;
        for _ in 0..2 {
            let asked = |host| request("POST", host, "/", "a body");
            assert_eq!(text(&call(frontend.outbound, asked("orders:80")).await), (200, "one"));
            assert_eq!(text(&call(frontend.outbound, asked("orders:90")).await), (200, "other"));
            assert_eq!(text(&call_http2(frontend.outbound, asked("orders:90")).await), (200, "other"));
        }
        for head in one.seen.borrow().iter().chain(other.seen.borrow().iter()) {
            assert!(!head.headers.keys().any(|name| name.as_str().starts_with("x-equerry")), "{head:?}");
            assert!(!head.headers.contains_key("x-forwarded-client-cert"), "nobody was known: {head:?}");
        }
        for line in frontend.log(6).await.iter().chain(&orders.log(6).await) {
            assert_eq!((&line["reason"], &line["tls"]), (&"ok".into(), &"none".into()), "{line}");
        }
        for line in orders.log(6).await {
            assert!(line["source_principal"].is_null(), "{line}");
        }
        assert!(orders.metrics("equerry_handshake_failures_total{").is_empty());
    });
}

#[test]
fn nobody_is_known_where_plain_text_is_spoken_so_rules_about_principals_match_nobody() {
    on_one_thread(async {
        for (mode, told, status) in [("STRICT", false, 200), ("PERMISSIVE", false, 200), ("DISABLE", true, 403)] {
            let world = World::new(&format!("{}{FRONTEND_ALONE}", all(mode)));
            let one = answering("one").await;
            let orders = world.sidecar("shop/orders", ORDERS, &[(8080, one.address)], &[]).await;
            let at = if told { At::Open(vec![80], orders.inbound) } else { At::Mesh(orders.inbound) };
            let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/orders", vec![at])]).await;
            let answer = call(frontend.outbound, request("GET", "orders:80", "/", "")).await;
            assert_eq!(answer.status(), status, "{mode}: {answer:?}");
            let line = orders.log(1).await.remove(0);
            assert_eq!(line["source_principal"].is_null(), told, "{mode}: {line}");
        }
    });
}

#[test]
fn the_network_talks_nobody_out_of_mutual_tls_nor_into_it() {
    on_one_thread(async {
        // Whoever was not told that plain text is spoken there does not fall back to it.
        let world = World::new(&all("DISABLE"));
        let one = answering("one").await;
        let orders = world.sidecar("shop/orders", ORDERS, &[(8080, one.address)], &[]).await;
        let at = |at| [("shop/orders", vec![at])];
        let late = world.sidecar("shop/frontend", &[], &[], &at(At::Mesh(orders.inbound))).await;
        for method in ["GET", "POST"] {
            let answer = call(late.outbound, request(method, "orders:80", "/", "body")).await;
            assert!(answer.status() == 503 && text(&answer).1.contains("connect_failed"), "{answer:?}");
        }
        let counted = "equerry_handshake_failures_total{direction=\"inbound\",reason=\"plain_text_only\"} ";
        until("the handshakes counted", || {
            orders.metrics("plain_text_only").iter().any(|line| line.starts_with(counted) && !line.ends_with(" 0"))
        })
        .await;
        assert!(one.seen.borrow().is_empty());

        // A sidecar of the version before is told of an address in plain text, like one without a sidecar.
        let before = world.sidecar("shop/frontend", &[], &[], &at(At::Plain(80, orders.inbound))).await;
        assert_eq!(text(&call(before.outbound, request("GET", "orders:80", "/", "")).await), (200, "one"));

        // And plain text is not taken because somebody was told so.
        let world = World::new(&all("STRICT"));
        let orders = world.sidecar("shop/orders", ORDERS, &[(8080, one.address)], &[]).await;
        let early = world.sidecar("shop/frontend", &[], &[], &at(At::Open(vec![80], orders.inbound))).await;
        let answer = call(early.outbound, request("GET", "orders:80", "/", "")).await;
        assert!(answer.status() == 403 && text(&answer).1.contains("tls_required"), "{answer:?}");
        assert_eq!(one.seen.borrow().len(), 1);
    });
}

#[test]
fn one_port_takes_plain_text_while_the_others_stay_as_they_are() {
    on_one_thread(async {
        let world = World::new(&port("orders", 9090, "DISABLE"));
        let (one, other) = (answering("one").await, answering("other").await);
        let ports = [(8080, one.address), (9090, other.address)];
        let orders = world.sidecar("shop/orders", ORDERS, &ports, &[]).await;
        let at = vec![At::Open(vec![90], orders.inbound)];
        let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/orders", at)]).await;
        for (host, expected) in [("orders:80", "one"), ("orders:90", "other")] {
            assert_eq!(text(&call(frontend.outbound, request("GET", host, "/", "")).await), (200, expected));
        }
        let tls: Vec<_> = frontend.log(2).await.iter().map(|line| line["tls"].clone()).collect();
        assert_eq!(tls, ["mutual", "none"]);
        // A stranger who names none means the only one that takes plain text, and cannot have the other.
        assert_eq!(text(&call(orders.inbound, request("GET", "somewhere", "/", "")).await), (200, "other"));
        let mut asked = request("GET", "orders", "/", "");
        asked.headers_mut().insert("x-equerry-port", "8080".parse().unwrap());
        let refused = call(orders.inbound, asked).await;
        assert!(refused.status() == 403 && text(&refused).1.contains("tls_required"), "{refused:?}");
    });
}

/// Where frontend's application reaches what it calls `named`, over TCP.
async fn door(frontend: &Sidecar, named: &'static str) -> TcpStream {
    let at = Rc::new(Outbound::new(frontend.shared.clone()));
    let serve = move |stream, peer| {
        let at = Rc::clone(&at);
        async move { tunnel::outbound(&at, named, stream, peer).await }
    };
    TcpStream::connect(listen(serve).await.0).await.unwrap()
}

#[test]
fn bytes_go_in_plain_text_to_the_port_that_takes_nothing_else_whoever_begins_and_even_if_they_are_tls() {
    on_one_thread(async {
        for (yaml, greets) in [(port("db", 5433, "DISABLE"), true), (all("DISABLE"), false)] {
            let heard: Rc<RefCell<Vec<u8>>> = Rc::default();
            let kept = Rc::clone(&heard);
            let (server, _) = listen(move |mut stream, _| {
                let heard = Rc::clone(&kept);
                async move {
                    if greets {
                        stream.write_all(b"hello").await.unwrap();
                    }
                    let mut said = Vec::new();
                    let _ = stream.read_to_end(&mut said).await;
                    heard.borrow_mut().extend(said);
                    let _ = stream.write_all(b"done").await;
                }
            })
            .await;
            let world = World::new(&yaml);
            // Where more than one port takes plain text nothing names the one that is meant.
            let ports = [(5433, server), (8080, server)];
            let ports = if greets { &ports[..] } else { &ports[..1] };
            let db = world.sidecar("shop/db", &[("app", "db")], ports, &[]).await;
            let at = vec![At::Open(vec![5432], db.inbound)];
            let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/db", at)]).await;
            let mut stream = door(&frontend, "db:5432").await;
            // The first bytes of a ClientHello, where no port takes TLS; else of anything.
            let said: &[u8] = if greets { b"select" } else { b"\x16\x03\x01\x02\x00\x01" };
            stream.write_all(said).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, if greets { "hellodone" } else { "done" });
            assert_eq!(*heard.borrow(), said);
            let line = db.log(1).await.remove(0);
            assert_eq!((&line["reason"], &line["tls"]), (&"ok".into(), &"none".into()), "{line}");
        }
    });
}

/// How many connections stand at a sidecar's inbound side.
fn standing(sidecar: &Sidecar, tls: &str) -> bool {
    let line = format!("equerry_connections{{direction=\"inbound\",tls=\"{tls}\"}} ");
    sidecar.metrics("equerry_connections{").iter().any(|found| found.starts_with(&line) && !found.ends_with(" 0"))
}

#[test]
fn connections_in_mutual_tls_are_drained_when_their_port_takes_plain_text_alone() {
    on_one_thread(async {
        let mut world = World::new(&all("STRICT"));
        let (began, finish) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let (begins, finishes) = (Rc::clone(&began), Rc::clone(&finish));
        let one = application(move |number, _| {
            let (begins, finishes) = (Rc::clone(&begins), Rc::clone(&finishes));
            async move {
                if number == 1 {
                    begins.notify_one();
                    finishes.notified().await;
                }
                says(200, "one")
            }
        })
        .await;
        let ports = [(8080, one.address)];
        let orders = world.sidecar("shop/orders", ORDERS, &ports, &[]).await;
        let at = |at| [("shop/orders", vec![at])];
        let frontend = world.sidecar("shop/frontend", &[], &[], &at(At::Mesh(orders.inbound))).await;
        let to = frontend.outbound;
        assert_eq!(call(to, request("GET", "orders:80", "/", "")).await.status(), 200);
        let slow = spawn_local(call(to, request("GET", "orders:80", "/", "")));
        began.notified().await;
        assert!(standing(&orders, "mutual"), "{:?}", orders.metrics("equerry_connections"));

        world.mean(&all("DISABLE"));
        orders.shared.live.publish(world.live("shop/orders", ORDERS, &ports, &[]));
        frontend.shared.live.publish(world.live("shop/frontend", &[], &[], &at(At::Open(vec![80], orders.inbound))));
        assert_eq!(call(to, request("GET", "orders:80", "/", "")).await.status(), 200, "in plain text now");
        finish.notify_one();
        assert_eq!(slow.await.unwrap().status(), 200, "what was under way is finished");
        until("the connection to end", || !standing(&orders, "mutual")).await;
        assert!(standing(&orders, "none"), "{:?}", orders.metrics("equerry_connections"));
    });
}

#[test]
fn connections_in_plain_text_are_closed_when_that_is_taken_no_more_and_what_streams_is_cut_with_the_reason() {
    on_one_thread(async {
        let mut world = World::new(&all("DISABLE"));
        let one = application(|number, _| async move {
            let frame = Ok::<_, Infallible>(hyper::body::Frame::data(Bytes::from_static(b"first")));
            let more = futures_util::stream::once(async { frame });
            let more: std::pin::Pin<Box<dyn futures_util::Stream<Item = _>>> = if number == 0 {
                Box::pin(more)
            } else {
                use futures_util::StreamExt as _;
                Box::pin(more.chain(futures_util::stream::pending()))
            };
            Response::new(StreamBody::new(more))
        })
        .await;
        let ports = [(8080, one.address)];
        let orders = world.sidecar("shop/orders", ORDERS, &ports, &[]).await;
        let connect = async || {
            let stream = TcpStream::connect(orders.inbound).await.unwrap();
            let (send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            (send, spawn_local(connection))
        };
        let ask = || Request::get("/").header("host", "orders").body(Full::new(Bytes::new())).unwrap();
        let (mut idle, idles) = connect().await;
        idle.send_request(ask()).await.unwrap().collect().await.unwrap();
        let (mut busy, _busy) = connect().await;
        let mut stream = busy.send_request(ask()).await.unwrap();
        stream.frame().await.unwrap().unwrap();

        world.mean(&all("STRICT"));
        orders.shared.live.publish(world.live("shop/orders", ORDERS, &ports, &[]));
        idles.await.unwrap().unwrap();
        let cut = stream.frame().await;
        assert!(cut.as_ref().is_none_or(Result::is_err), "it goes on: {cut:?}");
        let lines = orders.log(2).await;
        assert!(lines[1]["reason"] == "tls_required", "{lines:?}");
        until("all connections to end", || !standing(&orders, "none")).await;
    });
}
