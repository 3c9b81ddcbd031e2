//! Retries, timeouts, breakers, limits and lost connections, over real sockets to applications that misbehave.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::*;

pub(super) const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders}}
spec: {selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}
";

pub(super) fn route(rule: &str) -> String {
    format!(
        "{SERVICE}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: orders, namespace: shop}}
spec: {{parentRefs: [{{group: '', kind: Service, name: orders}}], rules: [{{backendRefs: [{{name: orders, port: 80}}], {rule}}}]}}
"
    )
}

pub(super) fn traffic(yaml: &str, spec: &str) -> String {
    format!(
        "{yaml}
---
apiVersion: equerry.dev/v1
kind: TrafficPolicy
metadata: {{name: orders, namespace: shop}}
spec: {{targetRefs: [{{kind: Service, name: orders}}], {spec}}}
"
    )
}

/// A caller's sidecar that reaches `orders` in plain text at these addresses.
pub(super) async fn caller(yaml: &str, at: &[SocketAddr]) -> Sidecar {
    let at = at.iter().map(|address| At::Plain(80, *address)).collect();
    World::new(yaml).sidecar("shop/frontend", &[("app", "frontend")], &[], &[("shop/orders", at)]).await
}

/// Fails the first so many requests with 503.
async fn failing(first: usize) -> Application {
    application(move |number, _| async move { if number < first { says(503, "not now") } else { says(200, "now") } })
        .await
}

pub(super) fn outcome(sidecar: &Sidecar, word: &str) -> Vec<String> {
    sidecar.metrics(&format!("equerry_retries_total{{outcome=\"{word}\"}}"))
}

#[test]
fn a_get_that_fails_is_retried_and_a_post_is_not() {
    on_one_thread(async {
        let application = failing(2).await;
        let sidecar = caller(&route("retry: {codes: [503], attempts: 3, backoff: 1ms}"), &[application.address]).await;
        assert_eq!(call(sidecar.outbound, request("GET", "orders", "/", "")).await.status(), 200);
        assert_eq!(application.seen.borrow().len(), 3);
        assert_eq!(
            application.connections.borrow().len(),
            1,
            "a short answer is read to its end, and its connection kept"
        );
        let line = sidecar.log(1).await.remove(0);
        assert!(line["upstream_request_attempt_count"] == 3 && line.to_string().contains("succeeded"), "{line}");
        assert!(outcome(&sidecar, "sent")[0].ends_with(" 2") && outcome(&sidecar, "succeeded")[0].ends_with(" 1"));

        let application = failing(1).await;
        let sidecar = caller(&route("retry: {codes: [503], attempts: 3, backoff: 1ms}"), &[application.address]).await;
        assert_eq!(call(sidecar.outbound, request("POST", "orders", "/", "x")).await.status(), 503);
        assert_eq!(application.seen.borrow().len(), 1);
        assert!(outcome(&sidecar, "skipped_method")[0].ends_with(" 1"));
    });
}

#[test]
fn a_rule_that_names_post_retries_it_with_its_body_up_to_the_held_size() {
    on_one_thread(async {
        let sizes: Rc<Cell<usize>> = Rc::default();
        let total = Rc::clone(&sizes);
        let application = application(move |number, request: Request<Incoming>| {
            let total = Rc::clone(&total);
            async move {
                let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
                total.set(total.get() + body.len());
                if number % 2 == 0 { says(503, "") } else { says(200, "") }
            }
        })
        .await;
        let yaml = route("matches: [{method: POST}], retry: {codes: [503], attempts: 1, backoff: 1ms}");
        let sidecar = caller(&yaml, &[application.address]).await;
        assert_eq!(call(sidecar.outbound, request("POST", "orders", "/", vec![1; 1000])).await.status(), 200);
        assert_eq!(sizes.get(), 2000, "the whole body, twice");
        assert_eq!(call(sidecar.outbound, request("POST", "orders", "/", vec![1; 70_000])).await.status(), 503);
        assert_eq!(sizes.get(), 72_000);
        assert!(outcome(&sidecar, "skipped_body")[0].ends_with(" 1"));
    });
}

#[test]
fn retries_stop_when_the_budget_is_spent() {
    on_one_thread(async {
        let application = failing(1000).await;
        let yaml = route("retry: {codes: [503], attempts: 1, backoff: 1ms}");
        let sidecar =
            caller(&traffic(&yaml, "retryBudget: {percent: 20, minPerSecond: 0}"), &[application.address]).await;
        for _ in 0..10 {
            assert_eq!(call(sidecar.outbound, request("GET", "orders", "/", "")).await.status(), 503);
        }
        assert_eq!(application.seen.borrow().len(), 12, "20% of ten");
        assert!(outcome(&sidecar, "skipped_budget")[0].ends_with(" 8"), "{:?}", outcome(&sidecar, "skipped_budget"));
    });
}

#[test]
fn another_endpoint_is_tried_when_one_refuses_connections() {
    on_one_thread(async {
        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let application = failing(0).await;
        let sidecar = caller(&route("retry: {attempts: 1, backoff: 1ms}"), &[nobody, application.address]).await;
        for _ in 0..10 {
            assert_eq!(call(sidecar.outbound, request("POST", "orders", "/", "unsent, so safe")).await.status(), 200);
        }
        let sidecar = caller(SERVICE, &[nobody]).await;
        let answered = call(sidecar.outbound, request("GET", "orders", "/", "")).await;
        assert_eq!(answered.headers()["proxy-status"], "equerry; error=connection_refused; details=\"connect_failed\"");
        assert_eq!(answered.status(), 503);
    });
}

#[test]
fn a_try_and_the_whole_exchange_end_in_time_and_say_which() {
    on_one_thread(async {
        let slow = || application(|_, _| std::future::pending::<Response<Full<Bytes>>>());
        for (rule, reason, tries) in [
            ("timeouts: {request: 50ms}", "request_timeout", 1),
            ("timeouts: {request: 2s, backendRequest: 20ms}", "try_timeout", 1),
            (
                "timeouts: {request: 2s, backendRequest: 20ms}, retry: {codes: [504], attempts: 2, backoff: 1ms}",
                "try_timeout",
                3,
            ),
        ] {
            let application = slow().await;
            let sidecar = caller(&route(rule), &[application.address]).await;
            let answered = call(sidecar.outbound, request("GET", "orders", "/", "")).await;
            assert_eq!(answered.status(), 504, "{rule}");
            let line = sidecar.log(1).await.remove(0);
            assert_eq!(
                (line["reason"].as_str(), line["upstream_request_attempt_count"].as_u64()),
                (Some(reason), Some(tries)),
                "{rule}: {line}"
            );
        }
    });
}

#[test]
fn a_breaker_keeps_traffic_away_and_one_probe_brings_it_back() {
    on_one_thread(async {
        let broken: Rc<Cell<bool>> = Rc::new(Cell::new(true));
        let is_broken = Rc::clone(&broken);
        let bad = application(move |_, _| {
            let is_broken = Rc::clone(&is_broken);
            async move { if is_broken.get() { says(500, "") } else { says(200, "") } }
        })
        .await;
        let good = failing(0).await;
        let spec = "breaker: {consecutiveFailures: 1, penalty: {min: 300ms, max: 300ms}}";
        let sidecar = caller(&traffic(SERVICE, spec), &[bad.address, good.address]).await;
        let mut answers = Vec::new();
        while answers.last() != Some(&500) {
            answers.push(call(sidecar.outbound, request("GET", "orders", "/", "")).await.status().as_u16());
        }
        assert!(sidecar.metrics("equerry_breaker_state{")[0].ends_with(" 2"), "open");
        assert!(
            sidecar.metrics("equerry_endpoint_ejections_total{reason=\"consecutive_failures\"}")[0].ends_with(" 1")
        );
        let opened = tokio::time::Instant::now();
        for _ in 0..40 {
            call(sidecar.outbound, request("GET", "orders", "/", "")).await;
        }
        let probes = bad.seen.borrow().len() - 1;
        let penalties = opened.elapsed().as_millis() / 300;
        assert!(probes as u128 <= penalties, "one probe for each penalty: {probes} in {:?}", opened.elapsed());
        broken.set(false);
        let back = async {
            while !sidecar.metrics("equerry_breaker_state{")[0].ends_with(" 0") {
                assert_eq!(call(sidecar.outbound, request("GET", "orders", "/", "")).await.status(), 200);
            }
        };
        tokio::time::timeout(Duration::from_secs(5), back).await.expect("the breaker closes");

        let alone = failing(9).await;
        let spec = "breaker: {consecutiveFailures: 3, penalty: {min: 9s, max: 9s}}";
        let sidecar = caller(&traffic(SERVICE, spec), &[alone.address]).await;
        for _ in 0..3 {
            assert_eq!(call(sidecar.outbound, request("GET", "orders", "/", "")).await.status(), 503);
        }
        let answered = call(sidecar.outbound, request("GET", "orders", "/", "")).await;
        assert!(answered.headers()["proxy-status"].to_str().unwrap().contains("breaker_open"));
        assert_eq!(alone.seen.borrow().len(), 3);
    });
}

#[test]
fn no_more_requests_are_in_flight_than_the_limit_allows() {
    on_one_thread(async {
        let release = Rc::new(tokio::sync::Notify::new());
        let waiting = Rc::clone(&release);
        let application = application(move |_, _| {
            let waiting = Rc::clone(&waiting);
            async move {
                waiting.notified().await;
                says(200, "")
            }
        })
        .await;
        let sidecar = caller(&traffic(SERVICE, "limits: {requests: 1}"), &[application.address]).await;
        let first = tokio::task::spawn_local(call(sidecar.outbound, request("GET", "orders", "/", "")));
        until("the first request", || !application.seen.borrow().is_empty()).await;
        let answered = call(sidecar.outbound, request("GET", "orders", "/", "")).await;
        assert_eq!(
            answered.headers()["proxy-status"],
            "equerry; error=connection_limit_reached; details=\"limit_requests\""
        );
        release.notify_one();
        assert_eq!(first.await.unwrap().status(), 200);
        release.notify_one();
        assert_eq!(
            call(sidecar.outbound, request("GET", "orders", "/", "")).await.status(),
            200,
            "the place was given back"
        );
    });
}

#[test]
fn connections_are_limited_and_an_idle_one_makes_place_for_another_endpoint() {
    on_one_thread(async {
        let (one, two) = (failing(0).await, failing(0).await);
        let sidecar = caller(&traffic(SERVICE, "limits: {connections: 1}"), &[one.address, two.address]).await;
        for _ in 0..20 {
            assert_eq!(call(sidecar.outbound, request("GET", "orders", "/", "")).await.status(), 200);
        }
        assert!(!one.seen.borrow().is_empty() && !two.seen.borrow().is_empty());
        let never = application(|_, _| std::future::pending::<Response<Full<Bytes>>>()).await;
        let spec = "limits: {connections: 1, pendingTimeout: 20ms}";
        let sidecar = caller(&traffic(SERVICE, spec), &[never.address]).await;
        let outbound = sidecar.outbound;
        let _first = tokio::task::spawn_local(async move { call(outbound, request("GET", "orders", "/", "")).await });
        until("the first request", || !never.seen.borrow().is_empty()).await;
        let answered = call(sidecar.outbound, request("GET", "orders", "/", "")).await;
        assert!(answered.headers()["proxy-status"].to_str().unwrap().contains("limit_pending"), "{answered:?}");
    });
}

#[test]
fn connecting_ends_in_time_tls_included_and_only_so_many_requests_wait_for_it() {
    on_one_thread(async {
        let (silent, _) = listen(|stream, _| async move {
            let _open = stream;
            std::future::pending::<()>().await;
        })
        .await;
        let yaml = traffic(SERVICE, "timeouts: {connect: 300ms}, limits: {pending: 1}");
        let world = World::new(&yaml);
        for http2 in [false, true] {
            let sidecar = world.sidecar("shop/frontend", &[], &[], &[("shop/orders", vec![At::Mesh(silent)])]).await;
            let outbound = sidecar.outbound;
            let ask = move || async move {
                let asked = request("GET", "orders", "/", "");
                let answered = if http2 { call_http2(outbound, asked).await } else { call(outbound, asked).await };
                answered.headers()["proxy-status"].to_str().unwrap().to_owned()
            };
            let (one, other) = tokio::join!(ask(), ask());
            let refused = |reason| one.contains(reason) || other.contains(reason);
            assert!(refused("limit_pending") && refused("connect_failed"), "{one} {other}");
            let details: Vec<String> = sidecar.log(2).await.iter().map(ToString::to_string).collect();
            let expected = "no connection within 300ms: timeouts.connect of shop/orders";
            assert!(details.iter().any(|line| line.contains(expected)), "{details:?}");
        }
    });
}

/// Answers one request on each connection, then closes it without having said so, as soon as `close` says.
async fn closing(close: Rc<tokio::sync::Notify>) -> (SocketAddr, Rc<Cell<usize>>) {
    let answered: Rc<Cell<usize>> = Rc::default();
    let count = Rc::clone(&answered);
    let (address, _) = listen(move |mut stream, _| {
        let (close, count) = (Rc::clone(&close), Rc::clone(&count));
        async move {
            let mut head = [0_u8; 4096];
            if stream.read(&mut head).await.unwrap_or(0) > 0 {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                count.set(count.get() + 1);
                close.notified().await;
            }
        }
    })
    .await;
    (address, answered)
}

#[test]
fn a_request_that_meets_a_closing_connection_goes_out_once_more_whatever_its_method() {
    on_one_thread(async {
        let close = Rc::new(tokio::sync::Notify::new());
        let (address, answered) = closing(Rc::clone(&close)).await;
        let sidecar = caller(SERVICE, &[address]).await;
        for number in 1..=5 {
            let method = if number % 2 == 0 { "GET" } else { "POST" };
            let said = call(sidecar.outbound, request(method, "orders", "/", "body")).await;
            assert_eq!((said.status().as_u16(), answered.get()), (200, number), "{method} {number}");
            close.notify_one();
        }
        assert!(
            sidecar.metrics("equerry_retries_total{outcome=\"sent\"}").iter().all(|line| line.ends_with(" 0")),
            "no retry of policy"
        );
    });
}

#[test]
fn an_endpoint_whose_answers_begin_well_and_break_off_is_left_alone() {
    on_one_thread(async {
        let broken: Rc<Cell<bool>> = Rc::default();
        let is_broken = Rc::clone(&broken);
        let (address, _) = listen(move |mut stream, _| {
            let broken = is_broken.get();
            async move {
                let mut head = [0_u8; 4096];
                let _ = stream.read(&mut head).await;
                let body: &[u8] = if broken { b"half" } else { b"whole" };
                let answer = [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", body].concat();
                stream.write_all(&answer).await.unwrap();
            }
        })
        .await;
        let spec = "breaker: {consecutiveFailures: 3, penalty: {min: 9s, max: 9s}}";
        let sidecar = caller(&traffic(SERVICE, spec), &[address]).await;
        let ask = async |is: bool| {
            broken.set(is);
            let mut stream = TcpStream::connect(sidecar.outbound).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            String::from_utf8_lossy(&answer).into_owned()
        };
        // A whole answer between them, and they are not in a row.
        for is in [true, true, false, true, true, false, true, true, true] {
            let answer = ask(is).await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("whole") != is, "{answer}");
        }
        until("the breaker to open", || {
            sidecar.metrics("equerry_breaker_state{").iter().any(|line| line.ends_with(" 2"))
        })
        .await;
        let answer = ask(false).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("breaker_open"), "{answer}");
    });
}

#[test]
fn a_response_that_breaks_off_is_not_passed_on_as_whole() {
    on_one_thread(async {
        let (address, _) = listen(|mut stream, _| async move {
            let mut head = [0_u8; 4096];
            let _ = stream.read(&mut head).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await.unwrap();
        })
        .await;
        let sidecar = caller(SERVICE, &[address]).await;
        let stream = TcpStream::connect(sidecar.outbound).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        write.write_all(b"GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await.unwrap();
        let mut said = Vec::new();
        let _ = read.read_to_end(&mut said).await;
        assert!(said.ends_with(b"half"), "and then the connection ends");
        let line = sidecar.log(1).await.remove(0);
        assert_eq!(
            (line["reason"].as_str(), line["response_code"].as_u64()),
            (Some("upstream_reset"), Some(200)),
            "{line}"
        );

        let (address, _) = listen(|mut stream, _| async move {
            let _ = stream.read(&mut [0_u8; 4096]).await;
        })
        .await;
        let sidecar = caller(SERVICE, &[address]).await;
        let answered = call(sidecar.outbound, request("GET", "orders", "/", "")).await;
        assert_eq!(
            answered.headers()["proxy-status"],
            "equerry; error=connection_terminated; details=\"upstream_reset\""
        );
        assert_eq!(answered.status(), 502);
    });
}

#[test]
fn a_caller_that_breaks_off_its_body_does_not_make_the_endpoint_look_bad() {
    on_one_thread(async {
        let application = application(|_, request: Request<Incoming>| async move {
            let read = http_body_util::BodyExt::collect(request.into_body()).await;
            says(if read.is_ok() { 200 } else { 500 }, "")
        })
        .await;
        let yaml = traffic(SERVICE, "breaker: {consecutiveFailures: 1, penalty: {min: 60s, max: 60s}}");
        let sidecar = caller(&yaml, &[application.address]).await;
        let head = "POST / HTTP/1.1\r\nhost: orders\r\n";
        let rests = [
            ("content-length: 9\r\n\r\nhalf", "client_gone"),
            ("transfer-encoding: chunked\r\n\r\n2\r\nhi\r\nzz\r\n", "bad_request"),
        ];
        for (number, (rest, reason)) in rests.into_iter().enumerate() {
            let mut stream = TcpStream::connect(sidecar.outbound).await.unwrap();
            stream.write_all(format!("{head}{rest}").as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut said = String::new();
            let _ = stream.read_to_string(&mut said).await;
            assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
            let line = sidecar.log(number + 1).await.remove(number);
            assert_eq!(line["reason"], reason, "{line}");
        }
        assert_eq!(call(sidecar.outbound, request("POST", "orders", "/", "whole")).await.status(), 200);
        assert!(sidecar.metrics("equerry_endpoint_ejections_total{").is_empty());
    });
}

#[test]
fn requests_alike_go_to_the_same_endpoint_where_policy_hashes_them() {
    for balancer in ["ring_hash", "maglev"] {
        on_one_thread(async {
            let (one, other) = (failing(0).await, failing(0).await);
            let spec = format!("loadBalancer: {{type: {balancer}, hash: {{query: user}}}}");
            let sidecar = caller(&traffic(SERVICE, &spec), &[one.address, other.address]).await;
            let counts = || (one.seen.borrow().len(), other.seen.borrow().len());
            for user in 0..20 {
                let before = counts();
                for _ in 0..3 {
                    let path = format!("/cart?user=user-{user}");
                    assert_eq!(call(sidecar.outbound, request("GET", "orders", &path, "")).await.status(), 200);
                }
                let (at_one, at_other) = (counts().0 - before.0, counts().1 - before.1);
                assert!(at_one == 3 || at_other == 3, "{balancer}: user {user} went to both");
            }
            assert!(counts().0 > 0 && counts().1 > 0, "{balancer}: {:?}", counts());
        });
    }
}
