//! Limits and time, over real sockets: what waits, what is refused and in which words, what is cut, what travels on.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::*;
use super::tries_tests::{SERVICE, caller, outcome, route, traffic};

const GRPC: &str = "matches: [{method: POST}], retry: {codes: [503], attempts: 2, backoff: 1ms}";

pub(super) fn grpc(headers: &[(&'static str, &'static str)]) -> Request<Full<Bytes>> {
    let mut asked = request("POST", "orders", "/shop.Orders/Get", "");
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")].iter().chain(headers) {
        asked.headers_mut().insert(*name, value.parse().unwrap());
    }
    asked
}

/// A caller's sidecar that reaches `orders` in plain text as HTTP/2.
async fn grpc_caller(yaml: &str, at: SocketAddr) -> Sidecar {
    caller(&yaml.replace("targetPort: 8080}", "targetPort: 8080, appProtocol: grpc}"), &[at]).await
}

pub(super) type Frames = Vec<(u64, Frame<Bytes>)>;

/// A response of these frames, each after so many milliseconds.
pub(super) fn frames(
    headers: &[(&str, &str)],
    frames: Frames,
) -> Response<http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>> {
    let stream = futures_util::stream::unfold(frames.into_iter(), |mut left| async move {
        let (after, frame) = left.next()?;
        tokio::time::sleep(Duration::from_millis(after)).await;
        Some((Ok(frame), left))
    });
    let mut response = Response::builder();
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(StreamBody::new(stream).boxed_unsync()).unwrap()
}

pub(super) fn data(text: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(text.as_bytes()))
}

pub(super) fn trailers(fields: &[(&'static str, &'static str)]) -> Frame<Bytes> {
    let fields = fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    Frame::trailers(HeaderMap::from_iter(fields))
}

/// Everything that comes back for a GET of `orders`, whether it is whole or not.
async fn raw(to: SocketAddr) -> String {
    let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said).await;
    String::from_utf8(said).unwrap()
}

#[test]
fn a_request_waits_for_a_connection_and_gets_it_when_another_is_answered() {
    on_one_thread(async {
        for app_protocol in ["http", "http2"] {
            let release = Rc::new(tokio::sync::Notify::new());
            let waiting = Rc::clone(&release);
            let application = application(move |number, _| {
                let waiting = Rc::clone(&waiting);
                async move {
                    if number == 0 {
                        waiting.notified().await;
                    }
                    says(200, "")
                }
            })
            .await;
            let yaml = traffic(SERVICE, "limits: {connections: 1, pendingTimeout: 5s}");
            let yaml = yaml.replace("8080}", &format!("8080, appProtocol: {app_protocol}}}"));
            let sidecar = caller(&yaml, &[application.address]).await;
            let ask = || tokio::task::spawn_local(call(sidecar.outbound, request("GET", "orders", "/", "")));
            let first = ask();
            until("the first request", || application.seen.borrow().len() == 1).await;
            let second = ask();
            let limits = Rc::new(sidecar.shared.live.load());
            let orders = "shop/orders".parse().unwrap();
            if app_protocol == "http" {
                until("the second to wait", || limits.destinations[&orders].backend.limits.is_waited_for()).await;
                assert_eq!(application.seen.borrow().len(), 1);
                release.notify_one();
            } else {
                assert_eq!(second.await.unwrap().status(), 200, "it shares the connection");
                release.notify_one();
                assert_eq!(first.await.unwrap().status(), 200);
                continue;
            }
            assert_eq!(
                (first.await.unwrap().status(), second.await.unwrap().status()),
                (200.try_into().unwrap(), 200.try_into().unwrap())
            );
            assert_eq!(application.connections.borrow().len(), 1);
        }
    });
}

#[test]
fn a_request_that_waited_too_long_is_refused_with_limit_value_count_and_policy() {
    on_one_thread(async {
        let never = application(|_, _| std::future::pending::<Response<Full<Bytes>>>()).await;
        let yaml = traffic(SERVICE, "limits: {connections: 1, pendingTimeout: 30ms}");
        let sidecar = caller(&yaml, &[never.address]).await;
        let _first = tokio::task::spawn_local(call(sidecar.outbound, request("GET", "orders", "/", "")));
        until("the first request", || !never.seen.borrow().is_empty()).await;
        let answered = call(sidecar.outbound, request("GET", "orders", "/", "")).await;
        assert!(answered.headers()["proxy-status"].to_str().unwrap().contains("limit_pending"), "{answered:?}");
        let said = std::str::from_utf8(answered.body()).unwrap();
        let expected = "no connection to shop/orders became free in 30ms (limits.pendingTimeout): 1 are open, and limits.connections is 1: shop/orders";
        assert!(said.contains(expected), "{said}");
    });
}

#[test]
fn no_more_retries_are_in_flight_than_the_limit_allows() {
    on_one_thread(async {
        let application = application(|_, request: Request<Incoming>| async move {
            if request.headers().contains_key("tracestate") {
                std::future::pending::<()>().await;
            }
            says(503, "")
        })
        .await;
        let yaml = traffic(&route("retry: {codes: [503], attempts: 1, backoff: 1ms}"), "limits: {retries: 1}");
        let sidecar = caller(&yaml, &[application.address]).await;
        let _retrying = tokio::task::spawn_local(call(sidecar.outbound, request("GET", "orders", "/", "")));
        until("the first retry", || application.seen.borrow().len() == 2).await;
        assert_eq!(call(sidecar.outbound, request("GET", "orders", "/", "")).await.status(), 503);
        assert!(outcome(&sidecar, "skipped_limit")[0].ends_with(" 1"));
        assert_eq!(application.seen.borrow().len(), 3);
    });
}

#[test]
fn bodies_larger_than_the_policy_allows_are_refused_or_cut_whoever_sends_them() {
    on_one_thread(async {
        let reading = |_, request: Request<Incoming>| async move {
            let _ = request.into_body().collect().await;
            says(200, "fine")
        };
        let application_in = application(reading).await;
        let yaml = traffic(SERVICE, "limits: {requestBytes: 10}");
        let sidecar = caller(&yaml, &[application_in.address]).await;
        assert_eq!(call(sidecar.outbound, request("POST", "orders", "/", "ten bytes.")).await.status(), 200);
        let answered = call(sidecar.outbound, request("POST", "orders", "/", "eleven bytes")).await;
        assert_eq!((answered.status().as_u16(), application_in.seen.borrow().len()), (413, 1), "its length says so");
        assert!(std::str::from_utf8(answered.body()).unwrap().contains("limits.requestBytes of shop/orders"));
        let mut stream = tokio::net::TcpStream::connect(sidecar.outbound).await.unwrap();
        let head = "POST / HTTP/1.1\r\nhost: orders\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(format!("{head}6\r\n123456\r\n6\r\n123456\r\n0\r\n\r\n").as_bytes()).await.unwrap();
        let mut said = [0; 12];
        stream.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"HTTP/1.1 413");
        assert_eq!(call_http2(sidecar.outbound, request("POST", "orders", "/", "ten bytes.")).await.status(), 200);
        assert_eq!(call_http2(sidecar.outbound, request("POST", "orders", "/", "eleven bytes")).await.status(), 413);

        let yaml = traffic(SERVICE, "limits: {responseBytes: 10}");
        let sidecar = caller(&yaml, &[application(|_, _| async { says(200, "eleven bytes") }).await.address]).await;
        let answered = call(sidecar.outbound, request("GET", "orders", "/", "")).await;
        assert_eq!(answered.status(), 502);
        assert_eq!(call_http2(sidecar.outbound, request("GET", "orders", "/", "")).await.status(), 502);
        let growing = application(|_, _| async { frames(&[], vec![(0, data("123456")), (5, data("123456"))]) }).await;
        let sidecar = caller(&yaml, &[growing.address]).await;
        let said = raw(sidecar.outbound).await;
        assert!(said.starts_with("HTTP/1.1 200") && !said.ends_with("0\r\n\r\n"), "{said}");
        let line = sidecar.log(1).await.remove(0);
        assert_eq!((line["reason"].as_str(), line["response_code"].as_u64()), (Some("response_too_large"), Some(200)));
        assert!(line.to_string().contains("limits.responseBytes of shop/orders"), "{line}");
    });
}

#[test]
fn a_grpc_call_that_failed_is_retried_whether_its_status_is_in_the_head_or_in_trailers() {
    on_one_thread(async {
        for in_trailers in [false, true] {
            let application = application(move |number, _| async move {
                let status: &'static str = if number < 2 { "14" } else { "0" };
                if in_trailers {
                    let head = [("content-type", "application/grpc")];
                    frames(&head, vec![(1, trailers(&[("grpc-status", status)]))])
                } else {
                    frames(&[("content-type", "application/grpc"), ("grpc-status", status)], Vec::new())
                }
            })
            .await;
            let sidecar = grpc_caller(&route(GRPC), application.address).await;
            let answered = call_http2(sidecar.outbound, grpc(&[])).await;
            assert_eq!((answered.status().as_u16(), application.seen.borrow().len()), (200, 3), "{in_trailers}");
            assert!(outcome(&sidecar, "sent")[0].ends_with(" 2") && outcome(&sidecar, "succeeded")[0].ends_with(" 1"));
        }
    });
}

#[test]
fn trailers_that_were_looked_at_reach_the_caller_all_the_same() {
    on_one_thread(async {
        let application = application(|_, _| async {
            frames(&[("content-type", "application/grpc")], vec![(1, trailers(&[("grpc-status", "14")]))])
        })
        .await;
        let sidecar = grpc_caller(&route(GRPC), application.address).await;
        // The last try's: that no data comes lets it not end before them.
        assert_eq!(last_words(sidecar.outbound).await.expect("no trailers came")["grpc-status"], "14");
    });
}

#[test]
fn a_grpc_status_that_comes_after_data_is_passed_on_and_counted() {
    on_one_thread(async {
        let application = application(|_, _| async {
            let failed = vec![(0, data("half")), (5, trailers(&[("grpc-status", "14")]))];
            frames(&[("content-type", "application/grpc")], failed)
        })
        .await;
        let sidecar = grpc_caller(&route(GRPC), application.address).await;
        assert_eq!(call_http2(sidecar.outbound, grpc(&[])).await.body(), "half");
        assert_eq!(application.seen.borrow().len(), 1);
        assert!(outcome(&sidecar, "skipped_trailers")[0].ends_with(" 1"));
    });
}

#[test]
fn a_connection_whose_exchange_is_over_makes_place_for_one_to_another_endpoint() {
    on_one_thread(async {
        for app_protocol in ["http", "http2"] {
            let slow = || application(|_, _| async { frames(&[], vec![(20, data("slow"))]) });
            let (one, two) = (slow().await, slow().await);
            let yaml = traffic(SERVICE, "limits: {connections: 1, pendingTimeout: 5s}");
            let yaml = yaml.replace("8080}", &format!("8080, appProtocol: {app_protocol}}}"));
            let sidecar = caller(&yaml, &[one.address, two.address]).await;
            for _ in 0..6 {
                let ask = || call(sidecar.outbound, request("GET", "orders", "/", ""));
                let (first, second) = tokio::join!(ask(), ask());
                assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200), "{first:?} {second:?}");
            }
            assert!(!one.seen.borrow().is_empty() && !two.seen.borrow().is_empty());
        }
    });
}

#[test]
fn an_answer_may_ask_for_no_retry_and_a_request_that_is_a_retry_is_not_retried_again() {
    on_one_thread(async {
        let application = application(|_, request: Request<Incoming>| async move {
            let mut answer = says(503, "");
            if request.headers().contains_key("x-never") {
                answer.headers_mut().insert("retry-after", "3600".parse().unwrap());
            }
            answer
        })
        .await;
        let sidecar = caller(&route("retry: {codes: [503], attempts: 2, backoff: 1ms}"), &[application.address]).await;
        for (name, value, outcome_of) in [("x-never", "1", "skipped_pushback"), ("tracestate", "eq=r:1", "skipped_hop")]
        {
            let mut asked = request("GET", "orders", "/", "");
            asked.headers_mut().insert(name, value.parse().unwrap());
            assert_eq!(call(sidecar.outbound, asked).await.status(), 503);
            assert!(outcome(&sidecar, outcome_of)[0].ends_with(" 1"), "{outcome_of}");
        }
        assert_eq!(application.seen.borrow().len(), 2);
        assert_eq!(call(sidecar.outbound, request("GET", "orders", "/", "")).await.status(), 503);
        let seen = application.seen.borrow();
        let marks: Vec<bool> = seen[2..].iter().map(|head| head.headers.contains_key("tracestate")).collect();
        assert_eq!(marks, [false, true, true]);
        assert_eq!(seen[3].headers["tracestate"], "eq=r:1");
    });
}

#[test]
fn a_breaker_that_observes_lets_everything_pass_and_says_what_it_would_have_done() {
    on_one_thread(async {
        let application = application(|_, _| async { says(500, "") }).await;
        let spec = "breaker: {consecutiveFailures: 2, mode: observe, penalty: {min: 60s, max: 60s}}";
        let sidecar = caller(&traffic(SERVICE, spec), &[application.address]).await;
        for _ in 0..5 {
            assert_eq!(call(sidecar.outbound, request("GET", "orders", "/", "")).await.status(), 500);
        }
        assert_eq!(application.seen.borrow().len(), 5);
        assert!(sidecar.metrics("equerry_breaker_state{").is_empty());
        let withheld = sidecar.metrics("equerry_endpoint_ejections_withheld_total{reason=\"observed\"}");
        assert!(withheld[0].ends_with(" 1"), "{withheld:?}");
    });
}

#[test]
fn what_the_caller_of_a_grpc_call_asks_for_holds_and_travels_on_shortened() {
    on_one_thread(async {
        let never = application(|_, _| std::future::pending::<Response<Full<Bytes>>>()).await;
        let sidecar = grpc_caller(SERVICE, never.address).await;
        let answered = call_http2(sidecar.outbound, grpc(&[("grpc-timeout", "900m")])).await;
        assert_eq!(answered.headers()["grpc-status"], "4");
        assert!(answered.headers()["grpc-message"].to_str().unwrap().contains("900ms: grpc-timeout"), "{answered:?}");
        let told = never.seen.borrow()[0].headers["grpc-timeout"].to_str().unwrap().to_owned();
        let (number, unit) = told.split_at(told.len() - 1);
        let nanos: u64 = number.parse::<u64>().unwrap() * if unit == "u" { 1_000 } else { 1 };
        assert!(["u", "n"].contains(&unit) && nanos < 900_000_000, "{told}");
    });
}

#[test]
fn a_deadline_travels_through_two_sidecars_to_what_the_application_calls_next() {
    on_one_thread(async {
        let application = application(|_, _| async { says(200, "") }).await;
        let world = World::new(&route("timeouts: {request: 2s}"));
        let ports = [(8080, application.address)];
        let orders = world.sidecar("shop/orders", &[("app", "orders")], &ports, &[]).await;
        let at = [("shop/orders", vec![At::Mesh(orders.inbound)])];
        let frontend = world.sidecar("shop/frontend", &[("app", "frontend")], &[], &at).await;
        let mut asked = request("GET", "orders", "/", "");
        asked.headers_mut().insert("tracestate", "other=1".parse().unwrap());
        assert_eq!(call(frontend.outbound, asked).await.status(), 200);
        let carried = application.seen.borrow()[0].headers["tracestate"].clone();
        assert!(carried.to_str().unwrap().starts_with("eq=u:") && carried.to_str().unwrap().ends_with(",other=1"));

        // The application calls somebody who does not answer, passing on its trace, in which little time is left.
        let never = super::harness::application(|_, _| std::future::pending::<Response<Full<Bytes>>>()).await;
        let sidecar = caller(SERVICE, &[never.address]).await;
        let soon = std::time::SystemTime::now() + Duration::from_secs(1);
        let soon = soon.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_millis();
        let mut asked = request("GET", "orders", "/", "");
        asked.headers_mut().insert("tracestate", format!("eq=u:{soon}").parse().unwrap());
        let answered = call(sidecar.outbound, asked).await;
        assert_eq!(answered.status(), 504);
        assert!(std::str::from_utf8(answered.body()).unwrap().contains("the deadline in tracestate"), "{answered:?}");
    });
}

#[test]
fn a_response_that_begins_and_never_ends_is_cut_in_time_and_a_stream_is_not() {
    on_one_thread(async {
        let dripping = |kind: &'static str| {
            application(move |_, _| async move {
                let drops = (0..12).map(|_| (150, data("drop "))).collect();
                frames(&[("content-type", kind)], drops)
            })
        };
        let ask = |yaml: String, kind| async move {
            let application = dripping(kind).await;
            let sidecar = caller(&yaml, &[application.address]).await;
            let said = raw_until_end(sidecar.outbound).await;
            let line = sidecar.log(1).await.remove(0);
            (said.matches("drop").count(), line["reason"].as_str().unwrap().to_owned(), line.to_string())
        };
        let (cut, stream, cut_stream, idle, patient) = tokio::join!(
            ask(route("timeouts: {request: 1s}"), "text/plain"),
            ask(route("timeouts: {request: 1s}"), "text/event-stream"),
            ask(traffic(SERVICE, "timeouts: {stream: 1s}"), "text/event-stream"),
            ask(traffic(SERVICE, "timeouts: {streamIdle: 10ms}"), "text/plain"),
            ask(traffic(SERVICE, "timeouts: {streamIdle: 10s}"), "text/plain"),
        );
        let (drops, reason, line) = cut;
        assert!(drops < 12 && reason == "request_timeout", "{drops} {line}");
        assert!(line.contains("timeouts.request of shop/orders rules[0]"), "{line}");
        assert_eq!((stream.0, stream.1.as_str()), (12, "ok"), "a rule's time is for its head");
        let (drops, reason, line) = cut_stream;
        assert!(drops < 12 && reason == "request_timeout" && line.contains("timeouts.stream of shop/orders"), "{line}");
        let (drops, reason, line) = idle;
        assert!(drops < 12 && reason == "stream_idle" && line.contains("timeouts.streamIdle"), "{drops} {line}");
        assert_eq!((patient.0, patient.1.as_str()), (12, "ok"));
    });
}

/// As [`raw`], but ends with the last chunk.
async fn raw_until_end(to: SocketAddr) -> String {
    let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await.unwrap();
    let (mut said, mut some) = (Vec::new(), [0; 4096]);
    while !said.ends_with(b"0\r\n\r\n") {
        match stream.read(&mut some).await {
            Ok(0) | Err(_) => break,
            Ok(length) => said.extend_from_slice(&some[..length]),
        }
    }
    String::from_utf8(said).unwrap()
}

/// The trailers of a gRPC call, which end in them and not in its head.
async fn last_words(to: SocketAddr) -> Option<HeaderMap> {
    let stream = tokio::net::TcpStream::connect(to).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(crate::upstream::OnThisThread, io).await.unwrap();
    tokio::task::spawn_local(connection);
    let mut asked = grpc(&[]);
    asked.headers_mut().remove("host");
    *asked.uri_mut() = "http://orders/shop.Orders/Watch".parse().unwrap();
    *asked.version_mut() = http::Version::HTTP_2;
    send.send_request(asked).await.unwrap().into_body().collect().await.unwrap().trailers().cloned()
}

#[test]
fn a_grpc_stream_that_is_cut_is_told_why_in_its_trailers() {
    on_one_thread(async {
        let application = application(|_, _| async {
            let drops = (0..100).map(|_| (20, data("drop "))).collect();
            frames(&[("content-type", "application/grpc")], drops)
        })
        .await;
        let sidecar = grpc_caller(&traffic(SERVICE, "timeouts: {stream: 100ms}"), application.address).await;
        let trailers = last_words(sidecar.outbound).await.unwrap();
        assert_eq!(trailers["grpc-status"], "4");
        assert!(trailers["grpc-message"].to_str().unwrap().contains("timeouts.stream"), "{trailers:?}");
    });
}

#[test]
fn a_grpc_call_that_still_sends_its_request_is_given_its_rules_time_after_that() {
    on_one_thread(async {
        let application = application(|_, request: Request<Incoming>| async move {
            let _ = request.into_body().collect().await;
            frames(&[("content-type", "application/grpc"), ("grpc-status", "0")], Vec::new())
        })
        .await;
        let sidecar = grpc_caller(&route("timeouts: {request: 1s}"), application.address).await;
        let stream = tokio::net::TcpStream::connect(sidecar.outbound).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut send, connection) =
            hyper::client::conn::http2::handshake(crate::upstream::OnThisThread, io).await.unwrap();
        tokio::task::spawn_local(connection);
        let drops = futures_util::stream::unfold(0, |sent| async move {
            tokio::time::sleep(Duration::from_millis(150)).await;
            (sent < 10).then(|| (Ok::<_, std::io::Error>(data("drop")), sent + 1))
        });
        let asked = Request::post("http://orders/shop.Orders/Put").header("content-type", "application/grpc");
        let answered = send.send_request(asked.body(StreamBody::new(drops).boxed_unsync()).unwrap()).await.unwrap();
        assert_eq!(answered.headers()["grpc-status"], "0", "{:?}", answered.headers());
    });
}

#[test]
fn a_connection_that_is_old_gets_no_further_exchange() {
    on_one_thread(async {
        for app_protocol in ["http", "http2"] {
            let application = application(|_, _| async { says(200, "") }).await;
            let yaml = traffic(SERVICE, "timeouts: {maxAge: 100ms}");
            let yaml = yaml.replace("8080}", &format!("8080, appProtocol: {app_protocol}}}"));
            let sidecar = caller(&yaml, &[application.address]).await;
            let asked = Rc::new(Cell::new(0));
            let count = Rc::clone(&asked);
            let asking = async {
                while application.connections.borrow().len() < 3 {
                    count.set(count.get() + 1);
                    assert_eq!(call(sidecar.outbound, request("GET", "orders", "/", "")).await.status(), 200);
                }
            };
            tokio::time::timeout(Duration::from_secs(5), asking).await.expect("old connections are used no more");
            assert!(asked.get() > 6, "and young ones are: {} exchanges", asked.get());
        }
    });
}
