//! What is said around a request and its answer, over real sockets through two sidecars: interim responses, expectations,
//! trailers, old versions, and callers that have nothing more to say.

use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::harness::*;

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders}}
spec: {selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}
";

const OLD: &str = "
---
apiVersion: equerry.dev/v1
kind: Mesh
metadata: {name: default}
spec: {http10: SERVE}
";

/// Reads until `end` has come.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        let byte = tokio::time::timeout(std::time::Duration::from_secs(10), stream.read_u8()).await;
        let byte = byte.unwrap_or_else(|_| panic!("nothing after {:?}", String::from_utf8_lossy(&read)));
        read.push(byte.unwrap_or_else(|error| panic!("{error} after {:?}", String::from_utf8_lossy(&read))));
    }
    String::from_utf8(read).unwrap()
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    rest
}

/// frontend → orders, whose application talks over its connections as `talk` does.
async fn pair<F: Future<Output = ()> + 'static>(
    yaml: &str,
    talk: impl Fn(TcpStream) -> F + 'static,
) -> (Sidecar, Sidecar, World) {
    let world = World::new(&format!("{MESH}{yaml}"));
    let (application, _): (SocketAddr, _) = listen(move |stream, _| talk(stream)).await;
    let orders = world.sidecar("shop/orders", &[("app", "orders")], &[(8080, application)], &[]).await;
    let at = vec![At::Mesh(orders.inbound)];
    let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/orders", at)]).await;
    (frontend, orders, world)
}

#[test]
fn early_hints_arrive_before_the_answer_does() {
    on_one_thread(async {
        let (frontend, ..) = pair("", |mut stream| async move {
            read_until(&mut stream, "\r\n\r\n").await;
            let hint = b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nx-equerry-x: 1\r\nconnection: keep-alive\r\n\r\n";
            stream.write_all(hint).await.unwrap();
            // The answer comes when the caller has the hint: it says so on its own connection.
            let more = read_until(&mut stream, "done").await;
            stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{more}", more.len()).as_bytes()).await.unwrap();
        })
        .await;
        let mut stream = TcpStream::connect(frontend.outbound).await.unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 4\r\n\r\n").await.unwrap();
        let hint = read_until(&mut stream, "\r\n\r\n").await;
        assert_eq!(hint, "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n");
        stream.write_all(b"done").await.unwrap();
        let answered = read_until(&mut stream, "\r\n\r\ndone").await;
        assert!(answered.starts_with("HTTP/1.1 200 OK\r\n"), "{answered}");
        assert_eq!(frontend.log(1).await[0]["response_code"], 200);
    });
}

#[test]
fn an_endless_row_of_interim_responses_is_no_answer() {
    on_one_thread(async {
        let (frontend, ..) = pair("", |mut stream| async move {
            read_until(&mut stream, "\r\n\r\n").await;
            while stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").await.is_ok() {}
        })
        .await;
        let mut stream = TcpStream::connect(frontend.outbound).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await.unwrap();
        let said = rest(&mut stream).await;
        let (interim, answer) = said.split_at(said.find("HTTP/1.1 502").unwrap());
        assert!(interim.matches("102 Processing").count() <= 32, "{interim}");
        assert!(answer.contains("upstream_reset"), "{answer}");
    });
}

#[test]
fn the_application_says_whether_a_body_should_come() {
    on_one_thread(async {
        let (frontend, ..) = pair("", |mut stream| async move {
            let asked = read_until(&mut stream, "\r\n\r\n").await;
            assert!(asked.contains("expect: 100-continue\r\n"), "{asked}");
            if asked.starts_with("PUT /no") {
                let _ = stream.write_all(b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n").await;
                let mut nothing = Vec::new();
                let _ = stream.read_to_end(&mut nothing).await;
                assert!(nothing.is_empty(), "a body that was not asked for: {nothing:?}");
                return;
            }
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            read_until(&mut stream, "body").await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        })
        .await;
        let asks = |path: &str| {
            format!("PUT {path} HTTP/1.1\r\nhost: orders\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
        };
        let mut stream = TcpStream::connect(frontend.outbound).await.unwrap();
        stream.write_all(asks("/yes").as_bytes()).await.unwrap();
        assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"body").await.unwrap();
        assert!(read_until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 200"));

        stream.write_all(asks("/no").as_bytes()).await.unwrap();
        let answered = read_until(&mut stream, "\r\n\r\n").await;
        assert!(answered.starts_with("HTTP/1.1 417"), "the final status comes before the body: {answered}");
        assert_eq!(rest(&mut stream).await, "", "a body may follow or not: the connection cannot go on");
    });
}

#[test]
fn a_refusal_comes_before_the_body_is_asked_for_and_a_body_that_is_held_is_asked_for_by_the_sidecar() {
    on_one_thread(async {
        const RETRIES: &str = "
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: orders}]
  rules: [{matches: [{path: {value: /held}}], retry: {attempts: 1, codes: [503]}, backendRefs: [{name: orders, port: 80}]}]
";
        let (frontend, ..) = pair(RETRIES, |mut stream| async move {
            let asked = read_until(&mut stream, "body").await;
            assert!(!asked.contains("expect"), "nobody waits any more: {asked}");
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        })
        .await;
        let asks = |path: &str| {
            format!("PUT {path} HTTP/1.1\r\nhost: orders\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
        };
        let mut stream = TcpStream::connect(frontend.outbound).await.unwrap();
        stream.write_all(asks("/held").as_bytes()).await.unwrap();
        assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"body").await.unwrap();
        assert!(read_until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        stream.write_all(asks("/elsewhere").as_bytes()).await.unwrap();
        let answered = read_until(&mut stream, "\r\n\r\n").await;
        assert!(answered.starts_with("HTTP/1.1 404") && answered.contains("no_route"), "{answered}");
    });
}

#[test]
fn http_1_0_is_asked_to_come_back_in_another_version() {
    on_one_thread(async {
        let (frontend, orders, _world) = pair("", |_| async { panic!("nobody is asked") }).await;
        for (sidecar, direction) in [(&frontend, "outbound"), (&orders, "inbound")] {
            let at = if direction == "outbound" { sidecar.outbound } else { sidecar.inbound };
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all(b"GET / HTTP/1.0\r\nhost: orders\r\n\r\n").await.unwrap();
            let answered = rest(&mut stream).await;
            assert!(answered.starts_with("HTTP/1.1 426 Upgrade Required\r\n"), "{answered}");
            assert!(
                answered.contains("connection: close, upgrade\r\n") && answered.contains("upgrade: HTTP/1.1\r\n"),
                "{answered}"
            );
            let line = &sidecar.log(1).await[0];
            assert_eq!((&line["reason"], &line["policy"]), (&"bad_request".into(), &"Mesh.http10".into()));
        }
    });
}

#[test]
fn http_1_0_is_served_in_its_own_words_where_policy_says_so() {
    on_one_thread(async {
        let heard = Rc::new(Notify::new());
        let until_heard = Rc::clone(&heard);
        let talk = move |mut stream: TcpStream, heard: Rc<Notify>| async move {
            loop {
                let mut first = [0; 1];
                if stream.read_exact(&mut first).await.is_err() {
                    return;
                }
                let asked = read_until(&mut stream, "\r\n\r\n").await;
                assert!(asked.contains(" HTTP/1.1\r\n"), "the mesh speaks HTTP/1.1: {asked}");
                let chunked = asked.contains("/chunked");
                stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await.unwrap();
                if chunked {
                    // How long it is nobody knows before its head was passed on.
                    let begun = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
                    stream.write_all(begun).await.unwrap();
                    heard.notified().await;
                    stream.write_all(b"0\r\n\r\n").await.unwrap();
                } else {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await.unwrap();
                }
            }
        };
        let (frontend, ..) = pair(OLD, move |stream| talk(stream, Rc::clone(&until_heard))).await;
        let mut stream = TcpStream::connect(frontend.outbound).await.unwrap();
        for _ in 0..2 {
            let asks = b"GET / HTTP/1.0\r\nhost: orders\r\nconnection: keep-alive\r\n\r\n";
            stream.write_all(asks).await.unwrap();
            let answered = read_until(&mut stream, "hello").await;
            assert!(
                answered.starts_with("HTTP/1.1 200") && answered.contains("connection: keep-alive\r\n"),
                "{answered}"
            );
            assert!(!answered.contains("103"), "{answered}");
        }
        stream.write_all(b"GET /chunked HTTP/1.0\r\nhost: orders\r\nconnection: keep-alive\r\n\r\n").await.unwrap();
        let mut answered = read_until(&mut stream, "hello").await;
        heard.notify_one();
        answered += &rest(&mut stream).await;
        assert!(answered.ends_with("\r\n\r\nhello") && answered.contains("connection: close\r\n"), "{answered}");
        assert!(!answered.contains("chunked") && !answered.contains("content-length"), "{answered}");
    });
}

#[test]
fn trailers_pass_both_ways() {
    on_one_thread(async {
        let (frontend, ..) = pair("", |mut stream| async move {
            let asked = read_until(&mut stream, "x-sum: 1\r\n\r\n").await;
            assert!(asked.contains("\r\n0\r\nx-sum: 1\r\n"), "{asked}");
            let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-total: 2\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        })
        .await;
        let mut stream = TcpStream::connect(frontend.outbound).await.unwrap();
        let asks = b"POST / HTTP/1.1\r\nhost: orders\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n";
        stream.write_all(asks).await.unwrap();
        let answered = read_until(&mut stream, "x-total: 2\r\n\r\n").await;
        assert!(answered.contains("2\r\nok\r\n0\r\nx-total: 2\r\n"), "{answered}");
    });
}

#[test]
fn whoever_said_that_this_is_all_may_close_its_half_and_gets_its_answer() {
    on_one_thread(async {
        let (frontend, orders, _world) = pair("", |mut stream| async move {
            read_until(&mut stream, "\r\n\r\n").await;
            tokio::task::yield_now().await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await.unwrap();
        })
        .await;
        let mut stream = TcpStream::connect(frontend.outbound).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(rest(&mut stream).await.ends_with("hello"));
        for sidecar in [&frontend, &orders] {
            assert_eq!(sidecar.log(1).await[0]["reason"], "ok");
        }
    });
}

#[test]
fn events_are_passed_on_as_they_come_and_cut_by_no_total_timeout() {
    on_one_thread(async {
        const HURRY: &str = "
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: orders}]
  rules: [{timeouts: {request: 100ms}, backendRefs: [{name: orders, port: 80}]}]
";
        let (frontend, orders, _world) = pair(HURRY, |mut stream| async move {
            read_until(&mut stream, "\r\n\r\n").await;
            let begins = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(begins).await.unwrap();
            stream.write_all(b"f\r\ndata: the first\r\n").await.unwrap();
            // Nothing may come, and nothing end, for far longer than the route allows an answer to take.
            let silence = tokio::time::timeout(std::time::Duration::from_millis(400), stream.read_u8()).await;
            assert!(silence.is_err(), "it was cut: {silence:?}");
            stream.write_all(b"e\r\ndata: the last\r\n0\r\n\r\n").await.unwrap();
        })
        .await;
        let mut stream = TcpStream::connect(frontend.outbound).await.unwrap();
        let begun = tokio::time::Instant::now();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await.unwrap();
        let first = read_until(&mut stream, "the first").await;
        assert!(first.contains("content-type: text/event-stream\r\n"), "{first}");
        assert!(begun.elapsed() < std::time::Duration::from_millis(400), "the first event waited for the last");
        assert!(rest(&mut stream).await.ends_with("data: the last\r\n0\r\n\r\n"));
        for sidecar in [&frontend, &orders] {
            assert_eq!(sidecar.log(1).await[0]["reason"], "ok");
        }
    });
}

#[test]
fn an_application_that_speaks_http_2_need_not_say_that_a_body_should_come() {
    on_one_thread(async {
        let world = World::new(&MESH.replace("targetPort: 8080", "targetPort: 8080, appProtocol: http2"));
        let application = application(|_, request| async move {
            assert!(!request.headers().contains_key("expect"));
            let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
            says(200, &format!("got {}", body.len()))
        })
        .await;
        let orders = world.sidecar("shop/orders", &[("app", "orders")], &[(8080, application.address)], &[]).await;
        let at = vec![At::Mesh(orders.inbound)];
        let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/orders", at)]).await;
        let mut stream = TcpStream::connect(frontend.outbound).await.unwrap();
        let asks = b"PUT / HTTP/1.1\r\nhost: orders\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n";
        stream.write_all(asks).await.unwrap();
        assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"body").await.unwrap();
        assert!(read_until(&mut stream, "got 4").await.starts_with("HTTP/1.1 200"));
    });
}
