//! What is under way is judged again, over real sockets: streams that policy, trust or a token's keys allow no more are closed, and
//! whoever waits is told why where the protocol can say it. What is still allowed is not touched.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use equerry_certs::TrustBundle;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

use super::harness::*;
use crate::config::MeshProtocol;
use crate::live::TlsIdentity;
use crate::upstream::OnThisThread;

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders}}
spec:
  selector: {app: orders}
  ports:
  - {name: http, port: 80, targetPort: 8080, appProtocol: http}
  - {name: grpc, port: 81, targetPort: 8081, appProtocol: grpc}
";
const LABELS: &[(&str, &str)] = &[("app", "orders")];

/// A policy with this action and these rules.
fn rules(action: &str, rules: &str) -> String {
    format!(
        "{MESH}---\napiVersion: equerry.dev/v1\nkind: AuthorizationPolicy\nmetadata: {{name: rules, namespace: shop}}\n\
         spec: {{targetRefs: [{{kind: Service, name: orders}}], {action}, rules: [{rules}]}}\n"
    )
}

/// A body without end: a piece now and then, or as fast as it is taken.
struct Endless {
    piece: Bytes,
    every: Option<Pin<Box<tokio::time::Sleep>>>,
    length: Option<u64>,
}

const OFTEN: Duration = Duration::from_millis(10);

impl Endless {
    fn drip(piece: &'static [u8]) -> Self {
        let piece = Bytes::from_static(piece);
        Self { piece, every: Some(Box::pin(tokio::time::sleep(Duration::ZERO))), length: None }
    }

    /// After its first piece nothing comes.
    fn silence() -> Self {
        Self { length: Some(u64::MAX), ..Self::drip(b"x") }
    }

    fn flood() -> Self {
        Self { piece: Bytes::from(vec![b'x'; 1 << 16]), every: None, length: Some(1 << 30) }
    }
}

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if let Some(every) = &mut this.every {
            std::task::ready!(every.as_mut().poll(cx));
            let silent = this.length.is_some();
            let next = if silent { Duration::from_secs(3600) } else { OFTEN };
            every.as_mut().reset(tokio::time::Instant::now() + next);
        }
        Poll::Ready(Some(Ok(Frame::data(this.piece.clone()))))
    }

    fn size_hint(&self) -> SizeHint {
        match (self.length, &self.every) {
            (Some(length), None) => SizeHint::with_exact(length),
            _ => SizeHint::default(),
        }
    }
}

/// Answers by the last part of the path; `up` takes a request and never answers.
async fn answer(request: Request<Incoming>) -> Response<Endless> {
    let path = request.uri().path().to_owned();
    match path.rsplit('/').next().unwrap() {
        "drip" => Response::new(Endless::drip(b"x")),
        "silent" => Response::new(Endless::silence()),
        "flood" => Response::new(Endless::flood()),
        "call" => {
            let answer = Response::builder().header("content-type", "application/grpc");
            answer.body(Endless::drip(b"\0\0\0\0\x01x")).unwrap()
        }
        _ => {
            let _ = request.into_body().collect().await;
            std::future::pending().await
        }
    }
}

struct Pair {
    world: World,
    frontend: Sidecar,
    orders: Sidecar,
    ports: [(u16, SocketAddr); 2],
    application: Application,
}

/// frontend → orders, whose sidecars speak so with each other.
async fn pair(yaml: &str, between: MeshProtocol) -> Pair {
    pair_with(yaml, between, Duration::from_secs(60)).await
}

/// The same, where what is under way may go on for so long when its root is gone.
async fn pair_with(yaml: &str, between: MeshProtocol, grace: Duration) -> Pair {
    let mut world = World::new(yaml);
    (world.mesh_protocol, world.grace) = (between, grace);
    let application = application(|_, request| answer(request)).await;
    let ports = [(8080, application.address), (8081, application.address)];
    let orders = world.sidecar("shop/orders", LABELS, &ports, &[]).await;
    let at = vec![At::Mesh(orders.inbound)];
    let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/orders", at)]).await;
    Pair { world, frontend, orders, ports, application }
}

impl Pair {
    /// Has orders enforce something else.
    fn enforce(&mut self, yaml: &str) {
        self.world.mean(yaml);
        self.orders.shared.live.publish(self.world.live("shop/orders", LABELS, &self.ports, &[]));
    }

    /// Has a sidecar believe others from now on.
    fn believe(&self, sidecar: &Sidecar, account: &str, change: impl FnOnce(TrustBundle) -> TrustBundle) {
        let (identity, bundle) = self.world.identity(account);
        sidecar.shared.identity.put(TlsIdentity::new(identity, change(bundle), String::new(), 2).unwrap());
    }

    fn revoke(&self, by: &Sidecar, as_account: &str, whom: &str) {
        let whom = self.world.id(whom);
        self.believe(by, as_account, |bundle| bundle.of_generation(2, BTreeSet::from([whom])));
    }

    /// The line of the sidecar's log about this path, when it is there.
    async fn line(sidecar: &Sidecar, path: &str) -> serde_json::Value {
        for count in 1.. {
            let lines = sidecar.log(count).await;
            if let Some(line) = lines.into_iter().find(|line| line["path"] == path) {
                return line;
            }
        }
        unreachable!()
    }
}

/// What a caller has seen of an answer.
#[derive(Clone, Default)]
struct Seen {
    head: Rc<RefCell<String>>,
    bytes: Rc<Cell<usize>>,
    /// In words, when it has ended.
    end: Rc<RefCell<Option<String>>>,
    trailers: Rc<RefCell<HeaderMap>>,
}

impl Seen {
    fn has_begun(&self) -> bool {
        self.bytes.get() > 0
    }

    fn has_ended(&self) -> bool {
        self.end.borrow().is_some()
    }

    /// It goes on: more comes.
    async fn goes_on(&self, what: &str) {
        let before = self.bytes.get();
        until(what, || self.bytes.get() > before + 2 || self.has_ended()).await;
        assert!(!self.has_ended(), "{what}: {:?}", self.end.borrow());
    }
}

/// Asks over HTTP/1.1; reads the answer to its end, unless it is not to be `read`.
async fn over_http1(to: SocketAddr, said: &str, read: bool) -> Seen {
    let seen = Seen::default();
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(said.as_bytes()).await.unwrap();
    let theirs = seen.clone();
    spawn_local(async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { break };
            head.push(byte);
        }
        *theirs.head.borrow_mut() = String::from_utf8_lossy(&head).into_owned();
        let (mut piece, mut last) = ([0; 4096], Vec::new());
        loop {
            if !read && theirs.has_begun() {
                std::future::pending::<()>().await;
            }
            match stream.read(&mut piece).await {
                Ok(0) => break,
                Ok(count) => {
                    theirs.bytes.set(theirs.bytes.get() + count);
                    last = piece[..count].to_vec();
                }
                Err(_) => break,
            }
        }
        let whole = last.ends_with(b"0\r\n\r\n");
        *theirs.end.borrow_mut() = Some(if whole { "whole" } else { "cut" }.to_owned());
    });
    seen
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: orders:80\r\nx-tenant: acme\r\n\r\n")
}

/// A GET over HTTP/2.
async fn over_http2(to: SocketAddr, path: &str, headers: &[(&'static str, &str)]) -> Seen {
    let seen = Seen::default();
    let stream = TcpStream::connect(to).await.unwrap();
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(OnThisThread, TokioIo::new(stream)).await.unwrap();
    spawn_local(connection);
    let request = Request::builder().uri(format!("http://orders:80{path}"));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let request = request.body(Full::new(Bytes::new())).unwrap();
    let theirs = seen.clone();
    spawn_local(async move {
        let end = match send.send_request(request).await {
            Err(_) => "no answer",
            Ok(answered) => {
                let mut body = answered.into_body();
                loop {
                    match body.frame().await {
                        None => break "whole",
                        Some(Err(_)) => break "cut",
                        Some(Ok(frame)) => {
                            let bytes = frame.data_ref().map_or(0, Bytes::len);
                            theirs.bytes.set(theirs.bytes.get() + bytes);
                        }
                    }
                }
            }
        };
        *theirs.end.borrow_mut() = Some(end.to_owned());
        drop(send);
    });
    seen
}

/// A gRPC call over HTTP/2; `path` says how it goes on.
async fn grpc(to: SocketAddr, path: &str, more: &[(&'static str, &str)]) -> Seen {
    let seen = Seen::default();
    let stream = TcpStream::connect(to).await.unwrap();
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(OnThisThread, TokioIo::new(stream)).await.unwrap();
    spawn_local(connection);
    let mut request = Request::builder().method("POST").uri(format!("http://orders:81{path}"));
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")].iter().chain(more) {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from_static(b"\0\0\0\0\x01x"))).unwrap();
    let theirs = seen.clone();
    spawn_local(async move {
        let answered = send.send_request(request).await;
        let Ok(answered) = answered else {
            *theirs.end.borrow_mut() = Some("no answer".to_owned());
            return;
        };
        *theirs.trailers.borrow_mut() = answered.headers().clone();
        let mut body = answered.into_body();
        let end = loop {
            match body.frame().await {
                None => break "whole",
                Some(Err(_)) => break "cut",
                Some(Ok(frame)) => {
                    theirs.bytes.set(theirs.bytes.get() + frame.data_ref().map_or(0, Bytes::len));
                    if let Ok(trailers) = frame.into_trailers() {
                        *theirs.trailers.borrow_mut() = trailers;
                    }
                }
            }
        };
        *theirs.end.borrow_mut() = Some(end.to_owned());
        drop(send);
    });
    seen
}

fn grpc_end(seen: &Seen) -> (String, String) {
    let trailers = seen.trailers.borrow();
    let text = |name| trailers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    (text("grpc-status"), text("grpc-message"))
}

/// What holds, what holds then, and which words the log has for it. `/a` is allowed no more then, and `/b` is.
fn changes() -> [(String, String, &'static str); 5] {
    const B: &str = "{to: [{operation: {paths: ['/b/*']}}]}";
    let allow = |more: &str| rules("action: ALLOW", &format!("{B}, {more}"));
    let none = "no rule of shop/rules matched";
    [
        (MESH.to_owned(), rules("action: DENY", "{to: [{operation: {paths: ['/a/*']}}]}"), "shop/rules rules[0]"),
        (allow("{to: [{operation: {paths: ['/a/*']}}]}"), allow("{to: [{operation: {paths: ['/c/*']}}]}"), none),
        (
            allow("{from: [{source: {ipBlocks: [127.0.0.0/8]}}]}"),
            allow("{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}"),
            none,
        ),
        (
            allow("{when: [{key: 'request.headers[x-tenant]', values: [acme]}]}"),
            allow("{when: [{key: 'request.headers[x-tenant]', values: [others]}]}"),
            none,
        ),
        (
            allow("{from: [{source: {principals: [equerry.local/ns/shop/sa/frontend]}}]}"),
            allow("{from: [{source: {principals: [equerry.local/ns/shop/sa/others]}}]}"),
            none,
        ),
    ]
}

#[test]
fn what_a_change_of_policy_allows_no_more_is_closed_wherever_it_stands_and_the_rest_goes_on() {
    for between in [MeshProtocol::Auto, MeshProtocol::Http1] {
        for (before, after, cause) in changes() {
            on_one_thread(async move {
                let mut mesh = pair(&before, between).await;
                let to = mesh.frontend.outbound;
                let (dripping, silent) =
                    (over_http1(to, &get("/a/drip"), true).await, over_http1(to, &get("/a/silent"), true).await);
                let flood = over_http1(to, &get("/a/flood"), false).await;
                let up = "POST /a/up HTTP/1.1\r\nhost: orders:80\r\nx-tenant: acme\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n";
                let up = over_http1(to, up, true).await;
                let allowed = over_http1(to, &get("/b/drip"), true).await;
                let all = [&dripping, &silent, &flood, &allowed];
                until("all to have begun", || all.iter().all(|seen| seen.has_begun())).await;
                until("the upload to have come", || mesh.application.seen.borrow().len() == 5).await;
                mesh.enforce(&after);
                for (what, seen) in [("dripping", &dripping), ("silent", &silent)] {
                    until(what, || seen.has_ended()).await;
                    assert_eq!(seen.end.borrow().as_deref(), Some("cut"), "{what}: {cause}");
                }
                until("the upload to be refused", || !up.head.borrow().is_empty()).await;
                let refused = up.head.borrow().clone();
                assert!(refused.starts_with("HTTP/1.1 403") && refused.contains("authz_denied"), "{cause}: {refused}");
                for path in ["/a/drip", "/a/silent", "/a/flood", "/a/up"] {
                    let line = Pair::line(&mesh.orders, path).await;
                    assert_eq!((&line["reason"], &line["policy"]), (&"authz_denied".into(), &cause.into()), "{line}");
                }
                assert_eq!(mesh.orders.metrics("authz_denied").len(), 2, "{:?}", mesh.orders.metrics("authz_denied"));
                // Their caller's sidecar hears it too, where there is a place for it.
                let after_the_head = if between == MeshProtocol::Auto { "authz_denied" } else { "upstream_reset" };
                for (path, reason) in
                    [("/a/drip", after_the_head), ("/a/silent", after_the_head), ("/a/up", "authz_denied")]
                {
                    let line = Pair::line(&mesh.frontend, path).await;
                    assert_eq!(line["reason"], reason, "{line}");
                }
                allowed.goes_on("what is allowed").await;
            });
        }
    }
}

#[test]
fn what_stays_allowed_is_not_touched_and_neither_are_streams_that_onlookers_see() {
    for between in [MeshProtocol::Auto, MeshProtocol::Http1] {
        on_one_thread(async move {
            // What this proxy wrote into the request since, or put together, is no reason to judge otherwise.
            let cookie = if between == MeshProtocol::Auto { "a=1" } else { "a=1; b=2" };
            let as_it_came = format!(
                "{{when: [{{key: 'request.headers[cookie]', values: ['{cookie}']}}, \
                 {{key: 'request.headers[x-forwarded-client-cert]', notValues: ['*']}}]}}"
            );
            let mut mesh = pair(&rules("action: ALLOW", &as_it_came), between).await;
            let to = mesh.frontend.outbound;
            let cookies = [("cookie", "a=1"), ("cookie", "b=2")];
            let stream = over_http2(to, "/a/drip", &cookies).await;
            let waits = over_http2(to, "/a/up", &cookies).await;
            until("it to have begun", || stream.has_begun()).await;
            until("both to have come", || mesh.application.seen.borrow().len() == 2).await;
            for policy in [
                rules("action: ALLOW", &format!("{as_it_came}, {{to: [{{operation: {{paths: ['/c']}}}}]}}")),
                rules("action: AUDIT", "{}"),
                rules("action: DENY, mode: shadow", "{}"),
                MESH.to_owned(),
            ] {
                mesh.enforce(&policy);
                stream.goes_on("the stream").await;
                assert!(!waits.has_ended(), "{policy}: {:?}", waits.end.borrow());
            }
            mesh.enforce(&rules("action: DENY", "{}"));
            until("both to end", || stream.has_ended() && waits.has_ended()).await;
        });
    }
}

#[test]
fn grpc_calls_are_told_in_their_status_whether_they_have_begun_to_be_answered_or_not() {
    for between in [MeshProtocol::Auto, MeshProtocol::Http1] {
        on_one_thread(async move {
            let mut mesh = pair(MESH, between).await;
            let to = mesh.frontend.outbound;
            let (stream, waits, allowed) =
                (grpc(to, "/a/call", &[]).await, grpc(to, "/a/up", &[]).await, grpc(to, "/b/call", &[]).await);
            until("both to have begun", || stream.has_begun() && allowed.has_begun()).await;
            until("all to have come", || mesh.application.seen.borrow().len() == 3).await;
            mesh.enforce(&rules("action: DENY", "{to: [{operation: {paths: ['/a/*']}}]}"));
            for (what, seen) in [("the stream", &stream), ("the call", &waits)] {
                until(what, || seen.has_ended()).await;
                let (status, message) = grpc_end(seen);
                assert_eq!((status.as_str(), seen.end.borrow().as_deref()), ("7", Some("whole")), "{what}: {message}");
                assert!(message.contains("authz_denied"), "{what}: {message}");
            }
            for path in ["/a/call", "/a/up"] {
                assert_eq!(Pair::line(&mesh.orders, path).await["reason"], "authz_denied");
            }
            allowed.goes_on("what is allowed").await;
        });
    }
}

#[test]
fn whoever_is_believed_no_more_is_heard_no_further() {
    for between in [MeshProtocol::Auto, MeshProtocol::Http1] {
        for root_gone in [false, true] {
            on_one_thread(async move {
                // A root that is gone says nothing against who is there: they have time, and here it is short.
                let mesh = pair_with(MESH, between, Duration::from_millis(200)).await;
                let to = mesh.frontend.outbound;
                let (dripping, silent) =
                    (over_http1(to, &get("/a/drip"), true).await, over_http1(to, &get("/a/silent"), true).await);
                let call = grpc(to, "/a/call", &[]).await;
                until("all to have begun", || dripping.has_begun() && silent.has_begun() && call.has_begun()).await;
                if root_gone {
                    let other = World::new(MESH).identity("shop/orders").1;
                    mesh.believe(&mesh.orders, "shop/orders", |_| other.of_generation(2, BTreeSet::new()));
                } else {
                    mesh.revoke(&mesh.orders, "shop/orders", "shop/frontend");
                }
                until("all to end", || dripping.has_ended() && silent.has_ended() && call.has_ended()).await;
                for path in ["/a/drip", "/a/silent", "/a/call"] {
                    assert_eq!(Pair::line(&mesh.orders, path).await["reason"], "identity_revoked");
                }
                if between == MeshProtocol::Auto {
                    for path in ["/a/drip", "/a/silent"] {
                        let line = Pair::line(&mesh.frontend, path).await;
                        assert_eq!(line["reason"], "identity_revoked", "{line}");
                    }
                }
            });
        }
    }
}

#[test]
fn what_is_under_way_when_a_root_is_gone_is_finished_and_nothing_new_is_begun_over_its_connection() {
    for between in [MeshProtocol::Auto, MeshProtocol::Http1] {
        on_one_thread(async move {
            let mut world = World::new(MESH);
            world.mesh_protocol = between;
            let finish = Rc::new(tokio::sync::Semaphore::new(0));
            let finishes = Rc::clone(&finish);
            let application = application(move |_, request| {
                let finishes = Rc::clone(&finishes);
                async move {
                    let slow = request.uri().path() == "/slow";
                    let said = request.into_body().collect().await.unwrap().to_bytes();
                    if slow {
                        finishes.acquire().await.unwrap().forget();
                    }
                    says(200, std::str::from_utf8(&said).unwrap())
                }
            })
            .await;
            let ports = [(8080, application.address), (8081, application.address)];
            let orders = world.sidecar("shop/orders", LABELS, &ports, &[]).await;
            let at = vec![At::Mesh(orders.inbound)];
            let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/orders", at)]).await;
            let to = frontend.outbound;
            let ask = |path| call(to, request("POST", "orders:80", path, "a body"));
            let slow: Vec<_> = (0..3).map(|_| spawn_local(ask("/slow"))).collect();
            until("the slow ones to have come", || application.seen.borrow().len() == 3).await;

            // Both have new certificates already: only what was made before leads to the old root.
            let new = World::new(MESH);
            for (sidecar, account) in [(&orders, "shop/orders"), (&frontend, "shop/frontend")] {
                let (identity, bundle) = new.identity(account);
                let bundle = bundle.of_generation(2, BTreeSet::new());
                sidecar.shared.identity.put(TlsIdentity::new(identity, bundle, String::new(), 2).unwrap());
            }
            let handshakes = || orders.metrics("equerry_connections{").join("\n");
            let before = handshakes();
            assert_eq!(ask("/quick").await.status(), 200, "over a connection of the new root");
            assert_ne!(before, handshakes(), "it had to be made");
            finish.add_permits(3);
            for slow in slow {
                let answer = slow.await.unwrap();
                assert_eq!((answer.status().as_u16(), answer.body().as_ref()), (200, &b"a body"[..]), "{answer:?}");
            }
            assert_eq!(application.seen.borrow().len(), 4, "nothing was asked twice");
            let mutual = "equerry_connections{direction=\"inbound\",tls=\"mutual\"} 1";
            until("the connections of the old root to end", || handshakes().contains(mutual)).await;
            for line in frontend.log(4).await.iter().chain(&orders.log(4).await) {
                assert_eq!(line["reason"], "ok", "{line}");
            }
        });
    }
}

#[test]
fn an_answer_of_whoever_is_believed_no_more_is_cut_and_its_caller_is_told() {
    for between in [MeshProtocol::Auto, MeshProtocol::Http1] {
        on_one_thread(async move {
            let mesh = pair(MESH, between).await;
            let to = mesh.frontend.outbound;
            let (dripping, silent) =
                (over_http1(to, &get("/a/drip"), true).await, over_http1(to, &get("/a/silent"), true).await);
            let flood = over_http1(to, &get("/a/flood"), false).await;
            // What may be repeated is, over a connection that nobody gets.
            let post = get("/a/up").replace("GET", "POST");
            let (call, waits) = (grpc(to, "/a/call", &[]).await, over_http1(to, &post, true).await);
            let all = [&dripping, &silent, &flood, &call];
            until("all to have begun", || all.iter().all(|seen| seen.has_begun())).await;
            until("the last to have come", || mesh.application.seen.borrow().len() == 5).await;
            mesh.revoke(&mesh.frontend, "shop/frontend", "shop/orders");
            until("the streams to end", || dripping.has_ended() && silent.has_ended() && call.has_ended()).await;
            assert_eq!(dripping.end.borrow().as_deref(), Some("cut"));
            let (status, message) = grpc_end(&call);
            assert!(status == "14" && message.contains("identity_revoked"), "{status} {message}");
            until("an answer", || !waits.head.borrow().is_empty()).await;
            let told = waits.head.borrow().clone();
            assert!(told.starts_with("HTTP/1.1 503") && told.contains("identity_revoked"), "{told}");
            for path in ["/a/drip", "/a/silent", "/a/flood", "/a/call", "/a/up"] {
                let line = Pair::line(&mesh.frontend, path).await;
                assert_eq!(line["reason"], "identity_revoked", "{line}");
            }
        });
    }
}

#[test]
fn what_policy_cut_short_is_not_held_against_the_endpoint_where_its_sidecar_can_say_so() {
    const BREAKER: &str = "---\napiVersion: equerry.dev/v1\nkind: TrafficPolicy\nmetadata: {name: orders, namespace: shop}\n\
        spec: {targetRefs: [{kind: Service, name: orders}], breaker: {consecutiveFailures: 1, penalty: {min: 60s, max: 60s}}}\n";
    for between in [MeshProtocol::Auto, MeshProtocol::Http1] {
        on_one_thread(async move {
            let mut mesh = pair(&format!("{MESH}{BREAKER}"), between).await;
            let to = mesh.frontend.outbound;
            let cut = over_http1(to, &get("/a/drip"), true).await;
            until("it to have begun", || cut.has_begun()).await;
            mesh.enforce(&rules("action: DENY", "{to: [{operation: {paths: ['/a/*']}}]}"));
            until("it to end", || cut.has_ended()).await;
            Pair::line(&mesh.frontend, "/a/drip").await;
            let next = over_http1(to, &get("/b/drip"), true).await;
            until("an answer", || !next.head.borrow().is_empty()).await;
            // Over HTTP/1.1 all that is seen is a connection that broke.
            let expected = if between == MeshProtocol::Auto { "HTTP/1.1 200" } else { "HTTP/1.1 503" };
            let head = next.head.borrow().clone();
            assert!(head.starts_with(expected), "{head}");
            assert_eq!(head.contains("breaker_open"), between == MeshProtocol::Http1, "{head}");
        });
    }
}

#[test]
fn what_is_kept_of_a_long_answer_takes_little_room() {
    // A stream that waits costs this, and 72 bytes for each header, beside what it costs anyway.
    let size = size_of::<super::standing::Standing>();
    assert!(size <= 384, "{size}");
}
