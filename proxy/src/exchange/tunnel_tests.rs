//! Plain TCP over real sockets: an application, two sidecars, and a server that speaks first.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use equerry_certs::tls;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::harness::*;
use crate::outbound::Outbound;
use crate::tunnel;

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop, annotations: {equerry.dev/accounts: db}}
spec: {selector: {app: db}, ports: [{name: sql, port: 5432, targetPort: 5433, appProtocol: tcp}, {name: http, port: 80, targetPort: 8080, appProtocol: http}]}
";

const DENIED: &str = "
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: no-frontend, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: db}]
  action: DENY
  rules: [{from: [{source: {principals: [equerry.local/ns/shop/sa/frontend]}}], to: [{operation: {methods: [GET]}}]}]
";

const LABELS: &[(&str, &str)] = &[("app", "db")];

/// How a conversation ended at the server: what was read, and the error that ended it.
type Heard = Rc<RefCell<Vec<(String, Option<ErrorKind>)>>>;

/// A server that greets, hears its caller out, says how much it heard, and closes.
async fn server() -> (SocketAddr, Heard) {
    let heard = Heard::default();
    let kept = Rc::clone(&heard);
    let (address, _) = listen(move |mut stream, _| {
        let heard = Rc::clone(&kept);
        async move {
            stream.write_all(b"hello\n").await.unwrap();
            let mut said = Vec::new();
            let error = stream.read_to_end(&mut said).await.err().map(|error| error.kind());
            heard.borrow_mut().push((String::from_utf8_lossy(&said).into_owned(), error));
            let _ = stream.write_all(format!("heard {}\n", said.len()).as_bytes()).await;
        }
    })
    .await;
    (address, heard)
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

/// frontend → db, whose server greets.
async fn pair(yaml: &str) -> (World, Sidecar, Sidecar, Heard, SocketAddr) {
    let world = World::new(&format!("{MESH}{yaml}"));
    let (server, heard) = server().await;
    let db = world.sidecar("shop/db", LABELS, &[(5433, server), (8080, server)], &[]).await;
    let at = vec![At::Mesh(db.inbound)];
    let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/db", at)]).await;
    (world, frontend, db, heard, server)
}

async fn greeted(at: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let mut greeting = [0; 6];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hello\n");
    stream
}

/// All that can be read, which must end in a reset or, when nothing was said, in nothing.
async fn cut_off(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest).await;
    assert!(ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset), "{ended:?} {rest:?}");
}

#[test]
fn a_server_may_speak_first_and_a_closed_half_stays_closed_while_the_other_goes_on() {
    on_one_thread(async {
        let (_world, frontend, db, heard, _) = pair("").await;
        let mut stream = greeted(door(&frontend, "db:5432").await).await;
        let much = vec![b'x'; 1 << 20];
        stream.write_all(&much).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "heard 1048576\n");
        assert_eq!(heard.borrow()[0].1, None);
        for (sidecar, peer) in [(&frontend, "destination_principal"), (&db, "source_principal")] {
            let line = &sidecar.log(1).await[0];
            assert_eq!(
                (&line["reason"], &line["protocol"], &line["method"]),
                (&"ok".into(), &"TCP".into(), &().into())
            );
            assert_eq!((&line["bytes_received"], &line["bytes_sent"]), (&1_048_576.into(), &20.into()), "{line}");
            assert_eq!((&line["upstream_cluster"], &line["tls"]), (&"shop/db".into(), &"mutual".into()));
            assert!(line[peer].as_str().unwrap().starts_with("spiffe://equerry.local/ns/shop/sa/"), "{line}");
            let counted = sidecar.metrics("equerry_tcp_connections_total{");
            assert!(counted[0].contains("reason=\"ok\"") && counted[0].ends_with(" 1"), "{counted:?}");
            assert!(sidecar.metrics("equerry_requests_total{").is_empty());
        }
    });
}

#[test]
fn a_connection_that_policy_denies_is_reset_before_the_application_hears_of_it() {
    on_one_thread(async {
        let (_world, frontend, db, heard, _) = pair(DENIED).await;
        cut_off(TcpStream::connect(door(&frontend, "db:5432").await).await.unwrap()).await;
        let line = &db.log(1).await[0];
        assert_eq!((&line["reason"], &line["policy"]), (&"authz_denied".into(), &"shop/no-frontend rules[0]".into()));
        let line = &frontend.log(1).await[0];
        assert_eq!((&line["reason"], &line["upstream_request_attempt_count"]), (&"authz_denied".into(), &1.into()));
        assert!(frontend.metrics("equerry_endpoint_ejections_total").is_empty());
        assert!(heard.borrow().is_empty());
    });
}

#[test]
fn a_live_connection_is_judged_again_when_policy_changes_and_others_go_on() {
    on_one_thread(async {
        let (mut world, frontend, db, heard, server) = pair("").await;
        let at = door(&frontend, "db:5432").await;
        let mut stream = greeted(at).await;
        let ports = [(5433, server), (8080, server)];
        db.shared.live.publish(world.live("shop/db", LABELS, &ports, &[]));
        stream.write_all(b"still here").await.unwrap();
        world.mean(&format!("{MESH}{DENIED}"));
        db.shared.live.publish(world.live("shop/db", LABELS, &ports, &[]));
        cut_off(stream).await;
        let line = &db.log(1).await[0];
        assert_eq!((&line["reason"], &line["policy"]), (&"authz_denied".into(), &"shop/no-frontend rules[0]".into()));
        until("the server to hear of it", || heard.borrow().len() == 1).await;
        assert_eq!(heard.borrow()[0].1, Some(ErrorKind::ConnectionReset), "half is not taken for all");
    });
}

#[test]
fn what_is_not_http_never_reaches_a_port_that_speaks_http_and_http_never_one_that_does_not() {
    on_one_thread(async {
        let (world, frontend, db, heard, _) = pair("").await;
        cut_off(TcpStream::connect(door(&frontend, "db:80").await).await.unwrap()).await;
        let line = &frontend.log(1).await[0];
        assert_eq!(line["reason"], "bad_request");
        assert_eq!(line["upstream_transport_failure_reason"], "port 80 of shop/db speaks HTTP, and this is TCP");
        let answered = call(frontend.outbound, request("GET", "db:5432", "/", "")).await;
        assert!(
            answered.status() == 400 && answered.body().windows(10).any(|text| text == b"speaks TCP"),
            "{answered:?}"
        );

        // Whoever passes its own sidecar by meets the same at ours.
        for (name, alpn) in [("p8080.db.shop.mesh", tls::ALPN_TCP), ("p5433.db.shop.mesh", tls::ALPN_H1)] {
            let (identity, bundle) = world.identity("shop/frontend");
            let config = tls::client_config(Some(&identity), &bundle, vec![world.id("shop/db")], &[alpn]).unwrap();
            let stream = TcpStream::connect(db.inbound).await.unwrap();
            let name = ServerName::try_from(name).unwrap();
            let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: db\r\nconnection: close\r\n\r\n").await;
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said).await;
            assert!(
                said == b"bad_request\n" || said.starts_with(b"HTTP/1.1 400"),
                "{}",
                String::from_utf8_lossy(&said)
            );
        }
        let lines = db.log(2).await;
        assert!(lines.iter().all(|line| line["reason"] == "bad_request"), "{lines:?}");
        assert!(heard.borrow().is_empty());
    });
}

#[test]
fn a_connection_that_stands_still_is_cut_by_the_policy_that_says_so() {
    on_one_thread(async {
        const IDLE: &str = "
---
apiVersion: equerry.dev/v1
kind: TrafficPolicy
metadata: {name: db, namespace: shop}
spec: {targetRefs: [{kind: Service, name: db}], timeouts: {streamIdle: 100ms}}
";
        let (_world, frontend, db, ..) = pair(IDLE).await;
        cut_off(greeted(door(&frontend, "db:5432").await).await).await;
        let line = &frontend.log(1).await[0];
        assert_eq!((&line["reason"], &line["policy"]), (&"stream_idle".into(), &"shop/db".into()));
        assert_eq!(db.log(1).await[0]["reason"], "client_gone");
    });
}

#[test]
fn a_process_that_leaves_waits_for_a_connection_however_long_it_is_quiet() {
    on_one_thread(async {
        let (_world, frontend, db, heard, _) = pair("").await;
        let mut stream = greeted(door(&frontend, "db:5432").await).await;
        db.shared.drain.begin();
        assert!(!db.shared.drain.all_gone(std::time::Duration::from_millis(50)).await, "it is open");
        stream.write_all(b"late").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!((answer.as_str(), heard.borrow()[0].1), ("heard 4\n", None));
        assert!(db.shared.drain.all_gone(std::time::Duration::from_secs(5)).await);
    });
}

#[test]
fn a_token_that_is_required_is_missing_where_nobody_looks_for_one() {
    on_one_thread(async {
        const TOKENS: &str = r#"
---
apiVersion: equerry.dev/v1
kind: RequestAuthentication
metadata: {name: db, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: db}]
  jwtRules:
  - issuer: https://issuer
    required: true
    jwks: '{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"k","x":"WKn-ZIGevcwGIyyrzFoZNBdaq9_TsqzGl96oc0CWuis","y":"y77t-RvAHRKTsSGdIYUfweuOvwrvDD-Q3Hv5J0fSKbE"}]}'
"#;
        let (_world, frontend, db, heard, _) = pair(TOKENS).await;
        cut_off(TcpStream::connect(door(&frontend, "db:5432").await).await.unwrap()).await;
        assert_eq!(db.log(1).await[0]["reason"], "token_missing");
        assert!(heard.borrow().is_empty());
    });
}

#[test]
fn an_endpoint_that_does_not_answer_is_passed_over_and_one_without_a_sidecar_is_met_in_plain_text() {
    on_one_thread(async {
        let world = World::new(MESH);
        let (server, _) = server().await;
        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let at = vec![At::Plain(5432, nobody), At::Plain(5432, server)];
        let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/db", at)]).await;
        let door = door(&frontend, "db.shop:5432").await;
        for _ in 0..4 {
            drop(greeted(door).await);
        }
        let lines = frontend.log(4).await;
        assert!(lines.iter().all(|line| line["tls"] == "none" && line["upstream_cluster"] == "shop/db"), "{lines:?}");
        assert!(lines.iter().any(|line| line["upstream_request_attempt_count"] == 2), "{lines:?}");
    });
}

#[test]
fn an_application_that_breaks_off_is_not_taken_to_have_finished() {
    on_one_thread(async {
        let (_world, frontend, db, heard, _) = pair("").await;
        let mut stream = greeted(door(&frontend, "db:5432").await).await;
        stream.write_all(b"half").await.unwrap();
        socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(stream);
        until("the server to hear of it", || heard.borrow().len() == 1).await;
        assert_eq!(heard.borrow()[0].1, Some(ErrorKind::ConnectionReset));
        assert_eq!(frontend.log(1).await[0]["reason"], "client_gone");
        assert_eq!(db.log(1).await[0]["reason"], "client_gone");
    });
}

#[test]
fn a_connection_is_never_given_to_somebody_else_who_is_then_kept_away() {
    on_one_thread(async {
        let world = World::new(MESH);
        let ((wrong, never), (right, heard)) = (server().await, server().await);
        let stranger = world.sidecar("shop/cart", &[("app", "db")], &[(5433, wrong)], &[]).await;
        let db = world.sidecar("shop/db", LABELS, &[(5433, right)], &[]).await;
        let at = vec![At::Mesh(stranger.inbound), At::Mesh(db.inbound)];
        let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/db", at)]).await;
        let door = door(&frontend, "db:5432").await;
        for _ in 0..20 {
            drop(greeted(door).await);
        }
        until("all to be heard", || heard.borrow().len() == 20).await;
        assert!(never.borrow().is_empty());
        let ejected = frontend.metrics("equerry_endpoint_ejections_total{reason=\"identity_mismatch\"}");
        assert!(ejected.len() == 1 && !ejected[0].ends_with(" 0"), "{ejected:?}");
    });
}

const PERMISSIVE: &str = "
---
apiVersion: equerry.dev/v1
kind: PeerAuthentication
metadata: {name: db, namespace: shop}
spec: {mtls: {mode: PERMISSIVE}}
";

/// db with one port, which declares this protocol, and its server that greets.
async fn in_plain_text(protocol: &str, yaml: &str) -> (World, Sidecar) {
    let mesh = format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: db, namespace: shop, annotations: {{equerry.dev/accounts: db}}}}
spec: {{selector: {{app: db}}, ports: [{{port: 5432, targetPort: 5433{protocol}}}]}}
"
    );
    let world = World::new(&format!("{mesh}{yaml}"));
    let (server, _) = server().await;
    let db = world.sidecar("shop/db", LABELS, &[(5433, server)], &[]).await;
    (world, db)
}

/// What is heard in plain text by whoever says this and then nothing more.
async fn told(db: &Sidecar, said: &[u8]) -> String {
    let mut stream = TcpStream::connect(db.inbound).await.unwrap();
    stream.write_all(said).await.unwrap();
    let _ = stream.shutdown().await;
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard).await;
    String::from_utf8(heard).unwrap()
}

#[test]
fn bytes_in_plain_text_pass_under_permissive_to_the_only_port_that_takes_bytes() {
    const TCP: &str = ", appProtocol: tcp";
    let denied = "
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: elsewhere, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {ipBlocks: [127.0.0.0/8]}}]}]}
";
    on_one_thread(async {
        for (protocol, yaml, said, passes) in [
            (TCP, PERMISSIVE.to_owned(), &b"\x00\x01binary"[..], true),
            (TCP, PERMISSIVE.to_owned(), b"GET / HTTP/1.1\r\n\r\n", true),
            ("", PERMISSIVE.to_owned(), b"\x00\x01binary", true),
            ("", PERMISSIVE.to_owned(), b"lower case", true),
            (TCP, String::new(), b"\x00\x01binary", false),
            ("", String::new(), b"\x00\x01binary", false),
            (", appProtocol: http", PERMISSIVE.to_owned(), b"\x00\x01binary", false),
            (TCP, format!("{PERMISSIVE}{denied}"), b"\x00\x01binary", false),
        ] {
            let (_world, db) = in_plain_text(protocol, &yaml).await;
            let heard = told(&db, said).await;
            let whole = format!("hello\nheard {}\n", said.len());
            assert_eq!(heard == whole, passes, "{protocol} {yaml} {said:?}: {heard}");
            assert_eq!(heard.contains("hello"), passes, "{heard}");
        }
    });
}

#[test]
fn a_server_in_plain_text_may_speak_first_after_the_time_that_tls_has_to_begin() {
    on_one_thread(async {
        let mesh = "
---
apiVersion: equerry.dev/v1
kind: Mesh
metadata: {name: default}
spec: {protocolDetectionTimeout: 100ms}
";
        let (_world, db) = in_plain_text(", appProtocol: tcp", &format!("{PERMISSIVE}{mesh}")).await;
        let mut stream = TcpStream::connect(db.inbound).await.unwrap();
        let mut greeting = [0; 6];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"hello\n");
    });
}

#[test]
fn bytes_in_plain_text_are_cut_when_their_port_becomes_strict() {
    on_one_thread(async {
        let (mut world, db) = in_plain_text(", appProtocol: tcp", PERMISSIVE).await;
        let mut stream = TcpStream::connect(db.inbound).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        let mut greeting = [0; 6];
        stream.read_exact(&mut greeting).await.unwrap();
        world.mean(
            "
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop, annotations: {equerry.dev/accounts: db}}
spec: {selector: {app: db}, ports: [{port: 5432, targetPort: 5433, appProtocol: tcp}]}
",
        );
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        db.shared.live.publish(world.live("shop/db", LABELS, &[(5433, nowhere)], &[]));
        assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(db.log(1).await[0]["reason"], "tls_required");
    });
}
