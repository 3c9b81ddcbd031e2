//! Connections that change their protocol, over real sockets: a caller, two sidecars, and an application that speaks something
//! else after 101. And CONNECT.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::*;

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: chat, namespace: shop, annotations: {equerry.dev/accounts: chat}}
spec:
  selector: {app: chat}
  ports:
  - {name: http, port: 80, targetPort: 8080, appProtocol: http}
  - {name: grpc, port: 81, targetPort: 8081, appProtocol: grpc}
  - {name: db, port: 5432, targetPort: 5433, appProtocol: tcp}
";

const DENIED: &str = "
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: no-rooms, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: chat}]
  action: DENY
  rules: [{to: [{operation: {methods: [GET], paths: [/room]}}]}]
";

const LABELS: &[(&str, &str)] = &[("app", "chat")];
const ASKED: &str = "GET /room HTTP/1.1\r\nhost: chat:80\r\nconnection: Upgrade\r\nupgrade: Chatter\r\n\r\n";
const TAKEN: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chatter\r\n\r\n";

/// Heads that the application has seen, and how each conversation ended there.
#[derive(Clone, Default)]
struct Heard(Rc<RefCell<Vec<String>>>, Rc<RefCell<Vec<End>>>);

/// What was read after the head, and the error that ended it.
type End = (String, Option<ErrorKind>);

async fn head(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => read.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(read).unwrap()
}

/// An application that answers with these bytes, then hears its caller out, says how much it heard, and closes.
async fn application(answer: &'static [u8]) -> (SocketAddr, Heard) {
    let heard = Heard::default();
    let kept = heard.clone();
    let (address, _) = listen(move |mut stream, _| {
        let Heard(heads, ends) = kept.clone();
        async move {
            let head = head(&mut stream).await;
            if head.is_empty() {
                return;
            }
            heads.borrow_mut().push(head);
            stream.write_all(answer).await.unwrap();
            let mut said = Vec::new();
            let error = stream.read_to_end(&mut said).await.err().map(|error| error.kind());
            ends.borrow_mut().push((String::from_utf8_lossy(&said).into_owned(), error));
            let _ = stream.write_all(format!("heard {}", said.len()).as_bytes()).await;
        }
    })
    .await;
    (address, heard)
}

struct Pair {
    world: World,
    frontend: Sidecar,
    chat: Sidecar,
    ports: [(u16, SocketAddr); 3],
    heard: Heard,
}

/// frontend → chat, whose application answers so.
async fn pair(yaml: &str, answer: &'static [u8]) -> Pair {
    let world = World::new(&format!("{MESH}{yaml}"));
    let (application, heard) = application(answer).await;
    let ports = [8080, 8081, 5433].map(|port| (port, application));
    let chat = world.sidecar("shop/chat", LABELS, &ports, &[]).await;
    let at = vec![At::Mesh(chat.inbound)];
    let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/chat", at)]).await;
    Pair { world, frontend, chat, ports, heard }
}

/// Says this to a sidecar; the head of what it answers.
async fn says_to(sidecar: SocketAddr, said: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(sidecar).await.unwrap();
    stream.write_all(said.as_bytes()).await.unwrap();
    let head = head(&mut stream).await;
    (stream, head)
}

async fn cut_off(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest).await;
    assert!(ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset), "{ended:?} {rest:?}");
}

#[test]
fn after_101_bytes_go_both_ways_and_a_closed_half_stays_closed_while_the_other_goes_on() {
    on_one_thread(async {
        let Pair { frontend, chat, heard, .. } = pair("", &[TAKEN, b"welcome "].concat().leak()[..]).await;
        let (mut stream, answered) = says_to(frontend.outbound, ASKED).await;
        assert!(answered.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answered}");
        assert!(
            answered.contains("connection: upgrade\r\n") && answered.contains("upgrade: chatter\r\n"),
            "{answered}"
        );
        assert!(!answered.contains("content-length") && !answered.contains("transfer-encoding"), "{answered}");
        stream.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "welcome heard 1048576");
        let seen = heard.0.borrow()[0].to_lowercase();
        assert!(seen.contains("\r\nconnection: upgrade\r\n") && seen.contains("\r\nupgrade: chatter\r\n"), "{seen}");
        assert_eq!(heard.1.borrow()[0].1, None);
        for sidecar in [&frontend, &chat] {
            let lines = sidecar.log(1).await;
            let line = &lines[0];
            assert_eq!(
                (lines.len(), &line["reason"], &line["response_code"]),
                (1, &"ok".into(), &101.into()),
                "{line}"
            );
            assert_eq!((&line["protocol"], &line["upgrade"]), (&"HTTP/1.1".into(), &"chatter".into()), "{line}");
            assert_eq!((&line["bytes_received"], &line["bytes_sent"]), (&1_048_576.into(), &21.into()), "{line}");
            assert_eq!((&line["tls"], &line["path"]), (&"mutual".into(), &"/room".into()), "{line}");
        }
    });
}

#[test]
fn an_upgrade_that_is_not_taken_is_an_answer_like_any_other() {
    on_one_thread(async {
        const NO: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno";
        let Pair { frontend, heard, .. } = pair("", NO).await;
        let (mut stream, answered) = says_to(frontend.outbound, ASKED).await;
        assert!(
            answered.starts_with("HTTP/1.1 200 OK\r\n") && answered.contains("content-length: 2\r\n"),
            "{answered}"
        );
        let mut body = [0; 2];
        stream.read_exact(&mut body).await.unwrap();
        stream.write_all(ASKED.as_bytes()).await.unwrap();
        assert!(head(&mut stream).await.starts_with("HTTP/1.1 200 OK\r\n"), "the connection goes on as it was");
        assert_eq!(frontend.log(1).await[0]["upgrade"], serde_json::Value::Null);
        assert_eq!(heard.0.borrow().len(), 2);
    });
}

#[test]
fn what_is_said_before_the_answer_waits_for_101_and_is_never_taken_for_a_request() {
    on_one_thread(async {
        const SMUGGLED: &str = "GET /admin HTTP/1.1\r\nhost: chat:80\r\n\r\n";
        let Pair { frontend, heard, .. } = pair("", TAKEN).await;
        let (mut stream, answered) = says_to(frontend.outbound, &format!("{ASKED}{SMUGGLED}")).await;
        assert!(answered.starts_with("HTTP/1.1 101"), "{answered}");
        stream.shutdown().await.unwrap();
        until("the application to hear it", || !heard.1.borrow().is_empty()).await;
        assert_eq!(heard.1.borrow()[0].0, SMUGGLED);

        let Pair { frontend, heard, .. } = pair("", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let (mut stream, answered) = says_to(frontend.outbound, &format!("{ASKED}{SMUGGLED}")).await;
        assert!(answered.starts_with("HTTP/1.1 200") && answered.contains("connection: close"), "{answered}");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
        assert_eq!(heard.0.borrow().len(), 1, "nobody asked for /admin");
    });
}

#[test]
fn a_change_of_protocol_that_nobody_asked_for_is_no_answer() {
    on_one_thread(async {
        const PLAIN: &str = "GET /room HTTP/1.1\r\nhost: chat:80\r\n\r\n";
        const OTHER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n";
        for (said, answer) in [(PLAIN, TAKEN), (ASKED, OTHER)] {
            let Pair { frontend, chat, .. } = pair("", answer).await;
            let (_stream, answered) = says_to(frontend.outbound, said).await;
            assert!(answered.starts_with("HTTP/1.1 502") && answered.contains("upstream_reset"), "{answered}");
            assert_eq!(chat.log(1).await[0]["reason"], "upstream_reset");
        }
    });
}

#[test]
fn h2c_is_answered_in_http_1_1_and_an_application_of_http_2_cannot_change_its_protocol() {
    on_one_thread(async {
        let Pair { frontend, heard, .. } = pair("", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let h2c = "GET / HTTP/1.1\r\nhost: chat:80\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n";
        let (_stream, answered) = says_to(frontend.outbound, h2c).await;
        assert!(answered.starts_with("HTTP/1.1 200"), "{answered}");
        assert!(!heard.0.borrow()[0].to_lowercase().contains("upgrade"), "{:?}", heard.0.borrow());
        let (_stream, answered) = says_to(frontend.outbound, &ASKED.replace("host: chat:80", "host: chat:81")).await;
        assert!(answered.starts_with("HTTP/1.1 400"), "{answered}");
        let line = &frontend.log(2).await[1];
        assert_eq!(line["upstream_transport_failure_reason"], "port 81 speaks HTTP/2, which knows no upgrade");
    });
}

#[test]
fn an_upgraded_connection_is_judged_like_a_request_and_again_when_policy_changes() {
    on_one_thread(async {
        let Pair { mut world, frontend, chat, ports, heard } = pair("", TAKEN).await;
        let (mut stream, answered) = says_to(frontend.outbound, ASKED).await;
        assert!(answered.starts_with("HTTP/1.1 101"), "{answered}");
        chat.shared.live.publish(world.live("shop/chat", LABELS, &ports, &[]));
        stream.write_all(b"still here").await.unwrap();
        world.mean(&format!("{MESH}{DENIED}"));
        chat.shared.live.publish(world.live("shop/chat", LABELS, &ports, &[]));
        cut_off(stream).await;
        let line = &chat.log(1).await[0];
        assert_eq!((&line["reason"], &line["policy"]), (&"authz_denied".into(), &"shop/no-rooms rules[0]".into()));
        assert_eq!((&line["response_code"], &line["upgrade"]), (&101.into(), &"chatter".into()));
        until("the application to hear of it", || heard.1.borrow().len() == 1).await;
        assert_eq!(heard.1.borrow()[0].1, Some(ErrorKind::ConnectionReset), "half is not taken for all");

        let (_stream, answered) = says_to(frontend.outbound, ASKED).await;
        assert!(answered.starts_with("HTTP/1.1 403") && answered.contains("authz_denied"), "{answered}");
        assert_eq!(heard.0.borrow().len(), 1);
    });
}

#[test]
fn a_total_timeout_does_not_cut_it_and_standing_still_does_where_policy_says_so() {
    on_one_thread(async {
        const TIMERS: &str = "
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: chat, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: chat}]
  rules: [{timeouts: {request: 100ms}, backendRefs: [{name: chat, port: 80}]}]
---
apiVersion: equerry.dev/v1
kind: TrafficPolicy
metadata: {name: chat, namespace: shop}
spec: {targetRefs: [{kind: Service, name: chat}], timeouts: {streamIdle: 300ms}}
";
        let Pair { frontend, chat, .. } = pair(TIMERS, TAKEN).await;
        let begun = tokio::time::Instant::now();
        let (stream, answered) = says_to(frontend.outbound, ASKED).await;
        assert!(answered.starts_with("HTTP/1.1 101"), "{answered}");
        cut_off(stream).await;
        assert!(begun.elapsed() >= std::time::Duration::from_millis(300), "{:?}", begun.elapsed());
        let line = &frontend.log(1).await[0];
        assert_eq!((&line["reason"], &line["policy"]), (&"stream_idle".into(), &"shop/chat".into()));
        assert_eq!(chat.log(1).await[0]["reason"], "client_gone");
    });
}

#[test]
fn an_upgrade_in_plain_text_reaches_an_application_without_a_sidecar_and_one_with() {
    on_one_thread(async {
        const OPEN: &str = "
---
apiVersion: equerry.dev/v1
kind: Mesh
metadata: {name: default}
spec: {mtls: {mode: PERMISSIVE}}
";
        let Pair { world, chat, ports, .. } = pair(OPEN, TAKEN).await;
        let at = vec![At::Plain(80, ports[0].1)];
        let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/chat", at)]).await;
        for (sidecar, said) in
            [(frontend.outbound, ASKED.to_owned()), (chat.inbound, ASKED.replace("host: chat:80", "host: chat:8080"))]
        {
            let (mut stream, answered) = says_to(sidecar, &said).await;
            assert!(answered.starts_with("HTTP/1.1 101"), "{answered}");
            stream.write_all(b"hello").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut rest = String::new();
            stream.read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, "heard 5");
        }
        assert_eq!(chat.log(1).await[0]["tls"], "none");
    });
}

#[test]
fn connect_is_answered_when_the_other_side_has_let_it_in() {
    on_one_thread(async {
        let Pair { frontend, chat, heard, .. } = pair("", b"hello ").await;
        let (mut stream, answered) =
            says_to(frontend.outbound, "CONNECT chat.shop:5432 HTTP/1.1\r\nhost: chat.shop:5432\r\n\r\n").await;
        assert_eq!(answered, "HTTP/1.1 200 OK\r\n\r\n");
        stream.write_all(b"SELECT 1\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "hello heard 0");
        assert_eq!(heard.0.borrow()[0], "SELECT 1\r\n\r\n");
        let line = &frontend.log(1).await[0];
        assert_eq!(
            (&line["method"], &line["response_code"], &line["reason"]),
            (&"CONNECT".into(), &200.into(), &"ok".into())
        );
        assert_eq!((&line["bytes_received"], &line["bytes_sent"]), (&12.into(), &13.into()), "{line}");
        assert_eq!((&line["authority"], &line["upstream_cluster"]), (&"chat.shop:5432".into(), &"shop/chat".into()));
        assert_eq!(chat.log(1).await[0]["protocol"], "TCP");
    });
}

#[test]
fn connect_says_why_not_and_the_connection_goes_on() {
    on_one_thread(async {
        const ONLY_OTHERS: &str = "
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: only-others, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: chat}]
  action: ALLOW
  rules: [{from: [{source: {principals: [equerry.local/ns/shop/sa/orders]}}]}]
";
        let Pair { frontend, chat, heard, .. } = pair(ONLY_OTHERS, b"").await;
        for (target, status, reason) in [
            ("chat:80", 400, "bad_request"),
            ("chat:9", 404, "no_such_port"),
            ("order.shop:80", 502, "no_service"),
            ("chat:5432", 403, "authz_denied"),
        ] {
            let (_stream, answered) = says_to(frontend.outbound, &format!("CONNECT {target} HTTP/1.1\r\n\r\n")).await;
            assert!(answered.starts_with(&format!("HTTP/1.1 {status}")), "{target}: {answered}");
            assert!(answered.contains(&format!("details=\"{reason}\"")), "{target}: {answered}");
            // What was asked for in a way that has more than one meaning ends it.
            assert_eq!(answered.contains("connection: close"), status == 400, "{target}: {answered}");
        }
        let (_stream, answered) =
            says_to(frontend.outbound, "CONNECT chat:80 HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nhost: chat\r\n\r\n").await;
        assert!(answered.contains("connection: close"), "what was said too early is no request: {answered}");
        let (_stream, answered) = says_to(chat.inbound, "CONNECT chat:5433 HTTP/1.1\r\nhost: chat:5433\r\n\r\n").await;
        assert!(answered.starts_with("HTTP/1.1 400"), "nobody is connected from outside: {answered}");
        let mut asked = request("CONNECT", "chat:5432", "/", "");
        *asked.uri_mut() = "http://chat:5432/".parse().unwrap();
        let answered = call(frontend.outbound, asked).await;
        assert_eq!(answered.status(), 400, "CONNECT names a host and a port, no target with a path");
        assert!(heard.0.borrow().is_empty(), "{:?}", heard.0.borrow());
    });
}

/// A frame of HTTP/2: its type, flags, stream and payload.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as HPACK writes those that it knows nothing of.
fn fields(lines: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    lines.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

#[test]
fn over_http2_no_connect_of_either_shape_is_taken_and_the_connection_goes_on() {
    const STATUS_400: u8 = 0x80 | 12;
    on_one_thread(async {
        let Pair { frontend, heard, .. } = pair("", TAKEN).await;
        let mut stream = TcpStream::connect(frontend.outbound).await.unwrap();
        let extended = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":authority", "chat:80"),
            (":path", "/room"),
        ];
        let plain = [(":method", "CONNECT"), (":authority", "chat:5432")];
        let begins = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[])].concat();
        stream.write_all(&begins).await.unwrap();
        for (number, asked, why) in [(1, extended.as_slice(), "extended CONNECT"), (3, &plain, "CONNECT")] {
            stream.write_all(&frame(1, 0x4, number, &fields(asked))).await.unwrap();
            let (mut head, mut said, mut over) = (Vec::new(), Vec::new(), false);
            while !over {
                let (kind, flags, of, payload) = next_frame(&mut stream).await;
                // SETTINGS_ENABLE_CONNECT_PROTOCOL, which nobody offers.
                assert!(kind != 4 || payload.chunks(6).all(|setting| setting[..2] != [0, 8]), "{payload:?}");
                match kind {
                    1 if of == number => head.extend(payload),
                    0 if of == number => said.extend(payload),
                    // A whole answer is followed by a reset without an error, for nothing more of the request is wanted.
                    3 if payload == [0; 4] => continue,
                    3 | 7 => panic!("{why}: reset, or gone: {payload:?}"),
                    _ => continue,
                }
                over = flags & 1 == 1;
            }
            let said = String::from_utf8_lossy(&said);
            assert_eq!(head[0], STATUS_400, "{why}: {said}");
            assert!(said.contains("bad_request") && said.contains(why), "{why}: {said}");
        }
        stream.write_all(&frame(6, 0, 0, b"are you?")).await.unwrap();
        while next_frame(&mut stream).await != (6, 1, 0, b"are you?".to_vec()) {}
        assert!(heard.0.borrow().is_empty(), "the application was asked: {:?}", heard.0.borrow());
    });
}

async fn next_frame(stream: &mut TcpStream) -> (u8, u8, u32, Vec<u8>) {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
    stream.read_exact(&mut payload).await.unwrap();
    (head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload)
}

#[test]
fn a_connection_to_whoever_is_believed_no_more_is_cut_and_the_log_says_why() {
    on_one_thread(async {
        const CONNECT: &str = "CONNECT chat.shop:5432 HTTP/1.1\r\nhost: chat.shop:5432\r\n\r\n";
        for (said, status) in [(ASKED, "101"), (CONNECT, "200")] {
            let Pair { world, frontend, .. } = pair("", TAKEN).await;
            let (mut stream, answered) = says_to(frontend.outbound, said).await;
            assert!(answered.starts_with(&format!("HTTP/1.1 {status}")), "{answered}");
            stream.write_all(b"are you there").await.unwrap();
            let (identity, bundle) = world.identity("shop/frontend");
            let revoked = std::collections::BTreeSet::from([world.id("shop/chat")]);
            let identity =
                crate::live::TlsIdentity::new(identity, bundle.of_generation(2, revoked), String::new(), 2).unwrap();
            frontend.shared.identity.put(identity);
            let mut rest = Vec::new();
            let ended = stream.read_to_end(&mut rest).await;
            assert!(ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset), "{said}");
            let line = &frontend.log(1).await[0];
            assert_eq!(line["reason"], "identity_revoked", "{line}");
        }
    });
}
