//! Who is let in at the inbound door, in which protocol, and what leaving looks like from outside.

use std::sync::Arc;
use std::time::Duration;

use equerry_certs::tls;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::harness::*;

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders}}
spec: {selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}
";

const PERMISSIVE: &str = "
---
apiVersion: equerry.dev/v1
kind: PeerAuthentication
metadata: {name: orders, namespace: shop}
spec: {selector: {matchLabels: {app: orders}}, mtls: {mode: PERMISSIVE}}
";

async fn orders(world: &World) -> (Sidecar, Application) {
    let application = application(|_, _| async { says(200, "hello") }).await;
    (world.sidecar("shop/orders", &[("app", "orders")], &[(8080, application.address)], &[]).await, application)
}

/// What a client that shows `from`'s certificate (or none) gets to read after one request.
async fn speak(
    to: &Sidecar,
    believed: &World,
    from: Option<&World>,
    server_name: &str,
    alpn: &'static [u8],
) -> Result<String, String> {
    let shown = from.map(|world| world.identity("shop/frontend").0);
    let (_, bundle) = believed.identity("shop/orders");
    let config = tls::client_config(shown.as_ref(), &bundle, vec![believed.id("shop/orders")], &[alpn]).unwrap();
    let stream = TcpStream::connect(to.inbound).await.unwrap();
    let name = ServerName::try_from(server_name.to_owned()).unwrap();
    let mut stream =
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| error.to_string())?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n")
        .await
        .map_err(|error| error.to_string())?;
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_stranger_is_refused_in_the_handshake_and_counted() {
    on_one_thread(async {
        let (world, other) = (World::new(MESH), World::new(MESH));
        let (orders, application) = orders(&world).await;
        const NAME: &str = "p8080.orders.shop.mesh";
        let friend = speak(&orders, &world, Some(&world), NAME, tls::ALPN_H1).await.unwrap();
        assert!(friend.starts_with("HTTP/1.1 200") && friend.ends_with("hello"), "{friend}");
        for (from, alpn) in [(Some(&other), tls::ALPN_H1), (None, tls::ALPN_H1), (Some(&world), tls::ALPN_GRPC)] {
            let refused = speak(&orders, &world, from, NAME, alpn).await.unwrap_err();
            assert!(refused.contains("alert"), "{refused}");
        }
        let counted =
            || orders.metrics("equerry_handshake_failures_total{").iter().filter(|line| line.ends_with(" 1")).count();
        until("three kinds of refusal counted", || counted() == 3).await;
        assert_eq!(application.seen.borrow().len(), 1);
    });
}

#[test]
fn only_registered_ports_are_forwarded_to() {
    on_one_thread(async {
        let world = World::new(MESH);
        let (orders, application) = orders(&world).await;
        for name in ["p15000.orders.shop.mesh", "p80.orders.shop.mesh", "orders.shop.mesh"] {
            let refused = speak(&orders, &world, Some(&world), name, tls::ALPN_H1).await.unwrap();
            assert!(refused.starts_with("HTTP/1.1 404") && refused.contains("no_such_port"), "{refused}");
        }
        assert!(application.seen.borrow().is_empty());
    });
}

#[test]
fn plain_text_is_not_told_the_ports_of_an_instance_that_is_strict_on_all() {
    on_one_thread(async {
        let application = application(|_, _| async { says(200, "hello") }).await;
        let ports = [(8080, application.address), (9090, application.address)];
        let strict = World::new(MESH).sidecar("shop/orders", &[("app", "orders")], &ports, &[]).await;
        for host in ["orders", "orders:7777", "orders:9090"] {
            let answered = call(strict.inbound, request("GET", host, "/", "")).await;
            let problem: Value = serde_json::from_slice(answered.body()).unwrap();
            assert_eq!((answered.status().as_u16(), problem["reason"].as_str()), (403, Some("tls_required")), "{host}");
            assert!(!problem.to_string().contains("8080, 9090"), "{problem}");
        }
    });
}

#[test]
fn plain_text_is_answered_with_the_reason_under_strict_and_passes_under_permissive() {
    on_one_thread(async {
        let (strict, application) = orders(&World::new(MESH)).await;
        let mut asked = request("GET", "orders", "/", "");
        let answered = call(strict.inbound, asked.clone()).await;
        let problem: Value = serde_json::from_slice(answered.body()).unwrap();
        assert_eq!((answered.status().as_u16(), problem["reason"].as_str()), (403, Some("tls_required")));
        assert!(application.seen.borrow().is_empty());

        let (permissive, application) = orders(&World::new(&format!("{MESH}{PERMISSIVE}"))).await;
        asked
            .headers_mut()
            .insert("x-forwarded-client-cert", "URI=spiffe://equerry.local/ns/shop/sa/admin".parse().unwrap());
        assert_eq!(call(permissive.inbound, asked.clone()).await.status(), 200);
        assert_eq!(call_http2(permissive.inbound, asked).await.status(), 200);
        assert!(
            application.seen.borrow().iter().all(|head| !head.headers.contains_key("x-forwarded-client-cert")),
            "a forged introduction"
        );
        let line = permissive.log(1).await.remove(0);
        assert!(line["reason"] == "ok" && !line.to_string().contains("sa/frontend"), "{line}");
    });
}

#[test]
fn without_policy_nothing_passes_and_without_identity_nobody_is_spoken_to() {
    on_one_thread(async {
        let world = World::new(&format!("{MESH}{PERMISSIVE}"));
        let (orders, application) = orders(&world).await;
        let frontend =
            world.sidecar("shop/frontend", &[], &[], &[("shop/orders", vec![At::Mesh(orders.inbound)])]).await;
        let own = world.id("shop/orders");
        orders.shared.live.publish(crate::live::Live::nothing(own));
        let answered = call(orders.inbound, request("GET", "orders", "/", "")).await;
        assert!(
            answered.status() == 503
                && answered.headers()["proxy-status"].to_str().unwrap().contains("policy_unavailable")
        );
        assert!(application.seen.borrow().is_empty());

        let (identity, bundle) = world.identity("shop/frontend");
        let mut over = crate::live::TlsIdentity::new(identity, bundle, String::new(), 2).unwrap();
        over.not_after = std::time::SystemTime::now() - Duration::from_secs(1);
        frontend.shared.identity.put(over);
        let answered = call(frontend.outbound, request("GET", "orders", "/", "")).await;
        assert!(answered.headers()["proxy-status"].to_str().unwrap().contains("identity_expired"), "{answered:?}");
    });
}

#[test]
fn whoever_answers_with_an_identity_not_listed_gets_no_request() {
    on_one_thread(async {
        let world = World::new(MESH);
        let application = application(|_, _| async { says(200, "") }).await;
        let impostor = world.sidecar("shop/impostor", &[("app", "orders")], &[(8080, application.address)], &[]).await;
        for http2 in [false, true] {
            let at = vec![At::Mesh(impostor.inbound)];
            let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/orders", at)]).await;
            let asked = request("POST", "orders", "/", "secret");
            let answered =
                if http2 { call_http2(frontend.outbound, asked).await } else { call(frontend.outbound, asked).await };
            assert_eq!(
                answered.headers()["proxy-status"],
                "equerry; error=tls_certificate_error; details=\"identity_mismatch\""
            );
        }
        assert!(application.seen.borrow().is_empty());
    });
}

#[test]
fn a_server_that_refuses_our_certificate_is_a_failed_connection_also_with_a_body() {
    on_one_thread(async {
        let (world, other) = (World::new(MESH), World::new(MESH));
        // It shows a certificate we believe, and believes only those of another authority.
        let (shown, _) = world.identity("shop/orders");
        let (_, believed) = other.identity("shop/orders");
        let alpn = [tls::ALPN_H2, tls::ALPN_H1];
        let config = Arc::new(tls::server_config(&shown, &believed, tls::ClientAuth::Required, &alpn).unwrap());
        let (address, _) = listen(move |stream, _| {
            let config = Arc::clone(&config);
            async move {
                let refused = tokio_rustls::TlsAcceptor::from(config).accept(stream).await;
                assert!(refused.is_err());
            }
        })
        .await;
        let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/orders", vec![At::Mesh(address)])]).await;
        for (method, body) in [("GET", ""), ("POST", "body")] {
            for http2 in [false, true] {
                let asked = request(method, "orders", "/", body);
                let answered = if http2 {
                    call_http2(frontend.outbound, asked).await
                } else {
                    call(frontend.outbound, asked).await
                };
                let status = answered.headers()["proxy-status"].to_str().unwrap();
                assert!(status.contains("connect_failed"), "{method} http2={http2}: {status}");
            }
        }
    });
}

#[test]
fn leaving_ends_connections_after_what_is_under_way_and_says_so() {
    on_one_thread(async {
        let world = World::new(&format!("{MESH}{PERMISSIVE}"));
        let release = std::rc::Rc::new(tokio::sync::Notify::new());
        let waiting = std::rc::Rc::clone(&release);
        let application = application(move |_, _| {
            let waiting = std::rc::Rc::clone(&waiting);
            async move {
                waiting.notified().await;
                says(200, "hello")
            }
        })
        .await;
        let orders = world.sidecar("shop/orders", &[("app", "orders")], &[(8080, application.address)], &[]).await;
        let stream = TcpStream::connect(orders.inbound).await.unwrap();
        let (mut send, connection) =
            hyper::client::conn::http1::handshake::<_, Full<bytes::Bytes>>(TokioIo::new(stream)).await.unwrap();
        let ended = tokio::task::spawn_local(connection);
        let second = tokio::task::spawn_local(call_http2(orders.inbound, request("GET", "orders", "/", "")));
        let first = send.send_request(request("GET", "orders", "/", ""));
        until("both at the application", || application.seen.borrow().len() == 2).await;
        orders.shared.drain.begin();
        release.notify_one();
        release.notify_waiters();
        release.notify_one();
        let first = first.await.unwrap();
        assert_eq!(first.status(), 200);
        assert_eq!(first.into_body().collect().await.unwrap().to_bytes(), "hello");
        release.notify_one();
        assert_eq!(second.await.unwrap().status(), 200);
        let answered = {
            release.notify_one();
            call(orders.inbound, request("GET", "orders", "/", "")).await
        };
        assert_eq!(answered.headers()["connection"], "close", "who comes later is served, and told");
        drop(send);
        let _ = ended.await;
        assert!(orders.shared.drain.all_gone(Duration::from_secs(5)).await, "nobody holds us up");
    });
}

#[test]
fn a_head_that_cannot_be_read_is_answered_and_counted() {
    on_one_thread(async {
        let (orders, application) = orders(&World::new(&format!("{MESH}{PERMISSIVE}"))).await;
        let large = format!("GET / HTTP/1.1\r\nhost: orders\r\nx: {}\r\n\r\n", "x".repeat(70_000));
        for (head, status) in [("GET / HTTP/9.9\r\n\r\n", "400"), (large.as_str(), "431")] {
            let mut stream = TcpStream::connect(orders.inbound).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut said = [0_u8; 12];
            stream.read_exact(&mut said).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&said), format!("HTTP/1.1 {status}"));
        }
        until("both counted", || orders.metrics("equerry_handshake_failures_total{").len() == 2).await;
        assert!(application.seen.borrow().is_empty());
    });
}

/// The size of the future that a function of three arguments makes.
fn size_made<A, B, C, F>(_: impl FnOnce(A, B, C) -> F) -> usize {
    size_of::<F>()
}

/// The same of five.
fn size_made_of_five<A, B, C, D, E, F>(_: impl FnOnce(A, B, C, D, E) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn an_exchange_and_a_connection_fit_their_budgets() {
    use crate::{inbound::Inbound, outbound::Outbound};
    // Every exchange in flight costs this once, and every HTTP/2 stream allocates it: a value that quietly grows
    // (a whole request moved into a state, a body buffered on the stack) shows here.
    let (outbound, inbound) = (size_made_of_five(super::serve::outbound), size_made_of_five(super::serve::inbound));
    assert!(outbound <= 6 * 1024, "an outbound exchange: {outbound} bytes");
    assert!(inbound <= 5 * 1024, "an inbound exchange: {inbound} bytes");
    // An idle plain connection may cost 24 KiB in all (buffers and kernel aside), a secured one 40 KiB.
    let outbound = size_made(|this: &'static std::rc::Rc<Outbound>, stream, peer| this.serve(stream, peer));
    let inbound = size_made(|this: &'static std::rc::Rc<Inbound>, stream, peer| this.serve(stream, peer));
    assert!(outbound <= 10 * 1024, "an outbound connection: {outbound} bytes");
    assert!(inbound <= 16 * 1024, "an inbound connection: {inbound} bytes");
}
