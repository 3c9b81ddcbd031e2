//! Ports of which nobody wrote down what is spoken there, over real sockets: requests, bytes, and callers that say nothing.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use equerry_certs::tls;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::harness::*;
use crate::outbound::Outbound;
use crate::tunnel;

const LABELS: &[(&str, &str)] = &[("app", "box")];

/// Nobody waits so long in these tests.
const PATIENCE: Duration = Duration::from_secs(4);

fn mesh(timeout: &str, more: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: box, namespace: shop, annotations: {{equerry.dev/accounts: box}}}}
spec: {{selector: {{app: box}}, ports: [{{name: any, port: 80, targetPort: 8080}}, {{name: raw, port: 81, targetPort: 8081, appProtocol: tcp}}]}}
---
apiVersion: equerry.dev/v1
kind: Mesh
metadata: {{name: default}}
spec: {{protocolDetectionTimeout: {timeout}}}
{more}"
    )
}

const ROUTE: &str = "
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: box, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: box, port: 80}]
  rules:
  - matches: [{headers: [{name: x-kind, value: right}]}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-routed, value: 'yes'}]}}]
    backendRefs: [{name: box, port: 80}]
";

/// A rule at the workload that its callers know nothing of.
const METHODS: &str = "
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: only-get, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: box}]
  action: DENY
  rules: [{to: [{operation: {methods: [DELETE]}}]}]
";

/// A server that greets and then says back what it hears.
async fn greeter() -> SocketAddr {
    listen(|mut stream, _| async move {
        let _ = stream.write_all(b"hello\n").await;
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    })
    .await
    .0
}

/// A server that says back what it hears, and nothing of its own; and how many came to it.
async fn echo() -> (SocketAddr, Rc<Cell<u32>>) {
    let callers = Rc::new(Cell::new(0));
    let kept = Rc::clone(&callers);
    let serve = move |mut stream: TcpStream, _| {
        kept.set(kept.get() + 1);
        async move {
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
        }
    };
    (listen(serve).await.0, callers)
}

/// frontend → box, behind which `server` listens.
async fn pair(yaml: &str, server: SocketAddr) -> (World, Sidecar, Sidecar) {
    let world = World::new(yaml);
    let callee = world.sidecar("shop/box", LABELS, &[(8080, server), (8081, server)], &[]).await;
    let at = vec![At::Mesh(callee.inbound)];
    let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/box", at)]).await;
    (world, frontend, callee)
}

/// Where frontend's application reaches what it calls `named`.
async fn door(frontend: &Sidecar, named: &'static str) -> SocketAddr {
    let at = Rc::new(Outbound::new(frontend.shared.clone()));
    let serve = move |stream, peer| {
        let at = Rc::clone(&at);
        async move { tunnel::outbound(&at, named, stream, peer).await }
    };
    listen(serve).await.0
}

/// How long the greeting took of a server that speaks first.
async fn greeted(at: SocketAddr) -> Duration {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(at).await.unwrap();
    let mut greeting = [0; 6];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hello\n");
    begun.elapsed()
}

/// What comes back of `said`, until the other side ends.
async fn said_back(at: SocketAddr, said: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(said).await.unwrap();
    let _ = stream.shutdown().await;
    let mut back = Vec::new();
    let _ = stream.read_to_end(&mut back).await;
    back
}

#[test]
fn http_at_an_undeclared_port_is_routed_to_that_port_whatever_its_host_says() {
    on_one_thread(async {
        let application = application(|_, _| async { says(200, "here") }).await;
        let (_world, frontend, callee) = pair(&mesh("5s", ROUTE), application.address).await;
        let door = door(&frontend, "box:80").await;
        for http2 in [false, true] {
            let mut asked = request("GET", "somebody.else", "/", "");
            asked.headers_mut().insert("x-kind", "right".parse().unwrap());
            let answered = if http2 { call_http2(door, asked).await } else { call(door, asked).await };
            assert_eq!((answered.status().as_u16(), &answered.body()[..]), (200, &b"here"[..]));
        }
        assert!(application.seen.borrow().iter().all(|head| head.headers["x-routed"] == "yes"));
        assert_eq!(call(door, request("GET", "box", "/", "")).await.status(), 404, "no route fits");
        for line in callee.log(2).await {
            assert_eq!((&line["protocol"] == "TCP", &line["upstream_cluster"]), (false, &"shop/box".into()));
        }
    });
}

#[test]
fn what_leads_to_one_port_connects_nobody_to_another() {
    on_one_thread(async {
        let application = application(|_, _| async { says(200, "here") }).await;
        let (_world, frontend, _callee) = pair(&mesh("5s", ""), application.address).await;
        let door = door(&frontend, "box:80").await;
        let said = b"GET / HTTP/1.1\r\nhost: box\r\n\r\nCONNECT box:81 HTTP/1.1\r\nhost: box:81\r\n\r\n";
        let answers = String::from_utf8(said_back(door, said).await).unwrap();
        assert!(answers.starts_with("HTTP/1.1 200") && answers.contains("HTTP/1.1 400"), "{answers}");
    });
}

#[test]
fn a_server_that_speaks_first_is_waited_for_once_and_then_no_more() {
    on_one_thread(async {
        let (mut world, frontend, callee) = pair(&mesh("150ms", ""), greeter().await).await;
        let at = door(&frontend, "box:80").await;
        assert!((Duration::from_millis(150)..PATIENCE).contains(&greeted(at).await));
        // The wait, were it long, would be seen.
        let later = mesh("1h", "");
        world.mean(&later);
        let known = frontend.shared.live.load().destination(&service()).cloned().unwrap();
        let callee_at = vec![At::Mesh(callee.inbound)];
        let mut next = world.live("shop/frontend", &[], &[], &[("shop/box", callee_at)]);
        next.destinations.insert(service(), known);
        frontend.shared.live.publish(next);
        assert!(greeted(at).await < PATIENCE, "it is remembered");
        assert!(greeted(door(&frontend, "box:81").await).await < PATIENCE, "a port that says tcp never waits");
        let lines = frontend.log(3).await;
        assert!(lines.iter().all(|line| line["protocol"] == "TCP" && line["reason"] != "bad_request"), "{lines:?}");
    });
}

fn service() -> equerry_policies::names::ServiceName {
    equerry_policies::names::ServiceName::parse("shop/box").unwrap()
}

#[test]
fn nobody_waits_where_the_time_to_wait_is_none() {
    on_one_thread(async {
        let (_world, frontend, _callee) = pair(&mesh("0s", ""), greeter().await).await;
        assert!(greeted(door(&frontend, "box:80").await).await < PATIENCE);
    });
}

#[test]
fn bytes_that_are_not_http_pass_at_once_and_an_idle_caller_teaches_nobody() {
    on_one_thread(async {
        let (_world, frontend, _callee) = pair(&mesh("1h", ""), echo().await.0).await;
        let at = door(&frontend, "box:80").await;
        for said in [&b"*1\r\n$4\r\nPING\r\n"[..], b"\x16\x03\x01\x00", b""] {
            let back = tokio::time::timeout(PATIENCE, said_back(at, said)).await;
            assert_eq!(back.unwrap(), said);
        }
        let known = frontend.shared.live.load().destination(&service()).cloned().unwrap();
        let port = &known.compiled.ports[0];
        assert_eq!(known.habits.of(port), None);
    });
}

#[test]
fn a_caller_that_is_late_is_carried_and_does_not_make_its_port_one_whose_server_speaks_first() {
    on_one_thread(async {
        let (server, callers) = echo().await;
        let (_world, frontend, _callee) = pair(&mesh("50ms", ""), server).await;
        let at = door(&frontend, "box:80").await;
        let mut stream = TcpStream::connect(at).await.unwrap();
        until("the connection to be led on", || callers.get() == 1).await;
        stream.write_all(b"late").await.unwrap();
        let mut back = [0; 4];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"late");
        let known = frontend.shared.live.load().destination(&service()).cloned().unwrap();
        assert_eq!(known.habits.of(&known.compiled.ports[0]), None);
    });
}

#[test]
fn where_a_rule_about_http_holds_at_the_caller_other_bytes_and_silence_are_refused() {
    on_one_thread(async {
        let (_world, frontend, callee) = pair(&mesh("50ms", ROUTE), greeter().await).await;
        let at = door(&frontend, "box:80").await;
        assert_eq!(said_back(at, b"\x00\x01\x02").await, b"");
        let mut silent = TcpStream::connect(at).await.unwrap();
        let mut said = Vec::new();
        let _ = silent.read_to_end(&mut said).await;
        assert!(said.is_empty());
        for line in frontend.log(2).await {
            let why = "port 80 of shop/box has rules about HTTP, and this is not HTTP";
            assert_eq!(
                (&line["reason"], &line["upstream_transport_failure_reason"]),
                (&"bad_request".into(), &why.into())
            );
        }
        let counted = frontend.metrics("equerry_tcp_connections_total{");
        assert!(
            counted.iter().any(|line| line.contains("reason=\"bad_request\"") && line.ends_with(" 2")),
            "{counted:?}"
        );
        assert!(callee.metrics("equerry_tcp_connections_total{").is_empty(), "it never left");
    });
}

#[test]
fn where_a_rule_about_http_holds_at_the_workload_bytes_are_refused_there_even_when_they_are_carried_already() {
    on_one_thread(async {
        let server = echo().await.0;
        let (mut world, frontend, callee) = pair(&mesh("1h", ""), server).await;
        let at = door(&frontend, "box:80").await;
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(b"\x00\x01").await.unwrap();
        let mut back = [0; 2];
        stream.read_exact(&mut back).await.unwrap();
        // A rule comes: what is under way ends, and nothing new comes in.
        world.mean(&mesh("1h", METHODS));
        callee.shared.live.publish(world.live("shop/box", LABELS, &[(8080, server), (8081, server)], &[]));
        assert!(stream.read(&mut back).await.is_err(), "it is reset");
        assert_eq!(said_back(at, b"\x00\x01").await, b"");
        for line in callee.log(2).await {
            assert_eq!(line["reason"], "bad_request", "{line}");
        }
        // Neither does anybody who passes its own sidecar by.
        let (identity, bundle) = world.identity("shop/frontend");
        let id = world.id("shop/box");
        let config = tls::client_config(Some(&identity), &bundle, vec![id], &[tls::ALPN_TCP]).unwrap();
        let stream = TcpStream::connect(callee.inbound).await.unwrap();
        let name = ServerName::try_from("p8080.box.shop.mesh").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said).await;
        assert_eq!(said, b"bad_request\n");
    });
}

#[test]
fn only_rules_that_are_enforced_on_requests_keep_bytes_out() {
    const PRINCIPALS: &str = "
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: frontend, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: box}]
  action: ALLOW
  rules: [{from: [{source: {principals: [equerry.local/ns/shop/sa/frontend]}}]}]
";
    const TOKENS: &str = r#"
---
apiVersion: equerry.dev/v1
kind: RequestAuthentication
metadata: {name: box, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: box}]
  jwtRules:
  - issuer: https://issuer
    jwks: '{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"k","x":"WKn-ZIGevcwGIyyrzFoZNBdaq9_TsqzGl96oc0CWuis","y":"y77t-RvAHRKTsSGdIYUfweuOvwrvDD-Q3Hv5J0fSKbE"}]}'
"#;
    const QUOTA: &str = "
---
apiVersion: equerry.dev/v1
kind: Tenant
metadata: {name: acme}
spec:
  match: [{header: {name: x-tenant, value: acme, trustedFrom: [shop/frontend]}}]
  quotas: [{services: [shop/box], requests: 1000, window: 1m}]
";
    const PAGES: &str = "
---
apiVersion: equerry.dev/v1
kind: CsrfPolicy
metadata: {name: box, namespace: shop}
spec: {targetRefs: [{kind: Service, name: box}]}
";
    let audit = METHODS.replace("DENY", "AUDIT");
    for (rules, kept_out) in [
        ("", false),
        (PRINCIPALS, false),
        (&*audit, false),
        (METHODS, true),
        (TOKENS, true),
        (QUOTA, true),
        (PAGES, true),
    ] {
        let world = World::new(&mesh("5s", rules));
        let workload = world.live("shop/box", LABELS, &[(8080, ([127, 0, 0, 1], 1).into())], &[]).workload.unwrap();
        assert_eq!(workload.has_rules_about_http(8080), kept_out, "{rules}");
    }
}

#[test]
fn connect_to_an_undeclared_port_asks_for_bytes_and_is_refused_where_a_rule_about_http_holds() {
    on_one_thread(async {
        for (rules, answer, back) in [("", "HTTP/1.1 200", "hello\n"), (ROUTE, "HTTP/1.1 400", "bad_request")] {
            let (_world, frontend, _callee) = pair(&mesh("1h", rules), greeter().await).await;
            let mut stream = TcpStream::connect(frontend.outbound).await.unwrap();
            stream.write_all(b"CONNECT box:80 HTTP/1.1\r\nhost: box:80\r\n\r\n").await.unwrap();
            let mut answered = Vec::new();
            while !String::from_utf8_lossy(&answered).contains(back) {
                let read = stream.read_buf(&mut answered).await.unwrap();
                assert!(read > 0, "{}", answered.escape_ascii());
            }
            assert!(answered.starts_with(answer.as_bytes()), "{}", answered.escape_ascii());
        }
    });
}
