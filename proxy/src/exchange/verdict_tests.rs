//! What answers say about their endpoints: those that are busy, those that fail in trailers, and who gets the traffic then,
//! over real sockets.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;

use super::harness::*;
use super::limits_tests::{data, frames, grpc, trailers};
use super::tries_tests::{SERVICE, caller, traffic};

const GRPC: [(&str, &str); 1] = [("content-type", "application/grpc")];

/// Answers this at once, with these headers.
async fn at_once(status: u16, headers: &'static [(&str, &str)]) -> Application {
    application(move |_, _| async move {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        response.body(Full::<Bytes>::default()).unwrap()
    })
    .await
}

/// Answers well, after five milliseconds.
async fn slow() -> Application {
    application(|_, _| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        says(200, "")
    })
    .await
}

/// Answers gRPC calls with a message, where there is one, and these trailers.
async fn ending(message: Option<&'static str>, last: &'static [(&str, &str)]) -> Application {
    application(move |_, _| async move {
        let message = message.map(|text| (0, data(text)));
        frames(&GRPC, message.into_iter().chain([(5, trailers(last))]).collect())
    })
    .await
}

async fn grpc_caller(spec: &str, at: &[SocketAddr]) -> Sidecar {
    let yaml = SERVICE.replace("targetPort: 8080}", "targetPort: 8080, appProtocol: grpc}");
    caller(&if spec.is_empty() { yaml } else { traffic(&yaml, spec) }, at).await
}

fn seen(application: &Application) -> usize {
    application.seen.borrow().len()
}

async fn get(sidecar: &Sidecar, count: usize) {
    for _ in 0..count {
        call(sidecar.outbound, request("GET", "orders", "/", "")).await;
    }
}

async fn call_grpc(sidecar: &Sidecar, count: usize) {
    for _ in 0..count {
        call_http2(sidecar.outbound, grpc(&[])).await;
    }
}

fn ejected(sidecar: &Sidecar) -> bool {
    sidecar.metrics("equerry_endpoint_ejections_total{").iter().any(|line| !line.ends_with(" 0"))
}

#[test]
fn an_endpoint_that_answers_429_quickly_loses_to_a_slower_one_and_opens_no_breaker() {
    on_one_thread(async {
        for spec in ["loadBalancer: {type: p2c_ewma}", "breaker: {consecutiveFailures: 1}"] {
            let (busy, other) = (at_once(429, &[]).await, slow().await);
            let sidecar = caller(&traffic(SERVICE, spec), &[busy.address, other.address]).await;
            get(&sidecar, 40).await;
            assert!((1..=3).contains(&seen(&busy)), "{spec}: {} of 40 went to the busy one", seen(&busy));
            assert!(!ejected(&sidecar), "{spec}");
        }
    });
}

#[test]
fn an_endpoint_that_answers_429_or_503_is_left_alone_for_as_long_as_it_asks() {
    on_one_thread(async {
        for (status, headers, expected) in [
            (429, [("retry-after", "50")].as_slice(), 1),
            (503, &[("retry-after", "50")], 1),
            (429, &[], 20),
            (503, &[("retry-after", "0")], 20),
            (200, &[("retry-after", "50")], 20),
        ] {
            let (away, other) = (at_once(status, headers).await, at_once(200, &[]).await);
            let yaml = traffic(SERVICE, "loadBalancer: {type: round_robin}");
            let sidecar = caller(&yaml, &[away.address, other.address]).await;
            get(&sidecar, 40).await;
            assert_eq!((seen(&away), seen(&other)), (expected, 40 - expected), "{status} {headers:?}");
        }
    });
}

#[test]
fn a_429_of_the_mesh_itself_says_nothing_about_the_endpoint() {
    let quota = "
---
apiVersion: equerry.dev/v1
kind: Tenant
metadata: {name: acme}
spec:
  match: [{header: {name: x-tenant, value: acme, trustedFrom: [shop/frontend]}}]
  quotas: [{services: [shop/orders], requests: 10, window: 5s}]
";
    on_one_thread(async {
        let yaml = traffic(SERVICE, "loadBalancer: {type: round_robin}");
        let mut world = World::new(&format!("{yaml}{quota}"));
        let (used, free) = (at_once(200, &[]).await, at_once(200, &[]).await);
        let strict = world.sidecar("shop/orders", &[("app", "orders")], &[(8080, used.address)], &[]).await;
        strict.shared.quotas.configure(strict.shared.live.load().workload.as_ref().unwrap());
        world.mean(&yaml);
        let at = vec![At::Mesh(strict.inbound), At::Plain(80, free.address)];
        let sidecar = world.sidecar("shop/frontend", &[], &[], &[("shop/orders", at)]).await;
        for _ in 0..40 {
            let mut asked = request("GET", "orders", "/", "");
            asked.headers_mut().insert("x-tenant", "acme".parse().unwrap());
            call(sidecar.outbound, asked).await;
        }
        assert_eq!((seen(&used), seen(&free)), (0, 20));
        assert_eq!(sidecar.log(40).await.iter().filter(|line| line["response_code"] == 429).count(), 20);
    });
}

#[test]
fn a_grpc_server_that_always_fails_in_trailers_opens_its_breaker_without_a_retry_rule() {
    on_one_thread(async {
        for (message, last) in [
            (None, [("grpc-status", "14")].as_slice()),
            (Some("half"), &[("grpc-status", "13")]),
            (None, &[("grpc-status", "15")]),
            (Some("half"), &[("grpc-status", "4")]),
        ] {
            let (broken, other) = (ending(message, last).await, ending(Some("whole"), &[("grpc-status", "0")]).await);
            let spec = "loadBalancer: {type: round_robin}, \
                        breaker: {consecutiveFailures: 3, penalty: {min: 60s, max: 60s}}";
            let sidecar = grpc_caller(spec, &[broken.address, other.address]).await;
            call_grpc(&sidecar, 20).await;
            assert_eq!((seen(&broken), seen(&other)), (3, 17), "{message:?} {last:?}");
            assert!(ejected(&sidecar));
        }
    });
}

#[test]
fn a_grpc_status_that_is_about_the_request_opens_no_breaker_and_keeps_nothing_away() {
    on_one_thread(async {
        for status in ["0", "1", "3", "5", "7", "8", "12", "16"] {
            let last: &'static [(&str, &str)] = Vec::from([("grpc-status", status)]).leak();
            let (one, other) = (ending(None, last).await, ending(Some("half"), last).await);
            let spec = "loadBalancer: {type: round_robin}, breaker: {consecutiveFailures: 1}";
            let sidecar = grpc_caller(spec, &[one.address, other.address]).await;
            call_grpc(&sidecar, 6).await;
            assert_eq!((seen(&one), seen(&other)), (3, 3), "{status}");
            assert!(!ejected(&sidecar), "{status}");
        }
    });
}

#[test]
fn a_probe_that_fails_in_trailers_keeps_the_breaker_open() {
    on_one_thread(async {
        let broken = ending(None, &[("grpc-status", "14")]).await;
        let spec = "breaker: {consecutiveFailures: 2, penalty: {min: 50ms, max: 50ms}}";
        let sidecar = grpc_caller(spec, &[broken.address]).await;
        call_grpc(&sidecar, 2).await;
        // Two more failures would be needed, had a probe closed it.
        let probed = async {
            while seen(&broken) < 3 {
                call_grpc(&sidecar, 1).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), probed).await.expect("it is probed");
        assert!(sidecar.metrics("equerry_breaker_state{")[0].ends_with(" 2"), "open");
    });
}

#[test]
fn a_grpc_server_that_fails_quickly_loses_to_a_slower_one_also_without_a_breaker() {
    on_one_thread(async {
        for last in [[("grpc-status", "14")].as_slice(), &[("grpc-status", "8")]] {
            let failing = application(move |_, _| async move { frames(&GRPC, vec![(0, trailers(last))]) }).await;
            let slow = application(|_, _| async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                frames(&GRPC, vec![(0, data("whole")), (0, trailers(&[("grpc-status", "0")]))])
            })
            .await;
            let sidecar = grpc_caller("", &[failing.address, slow.address]).await;
            call_grpc(&sidecar, 40).await;
            // By chance it would get half of them; how many it takes to learn depends on how fast both answer.
            assert!((1..=10).contains(&seen(&failing)), "{last:?}: {} of 40", seen(&failing));
        }
    });
}

#[test]
fn a_failed_grpc_call_is_believed_for_how_long_its_server_wants_no_calls() {
    on_one_thread(async {
        for (last, expected) in [
            ([("grpc-status", "14"), ("grpc-retry-pushback-ms", "50000")], 1),
            ([("grpc-status", "8"), ("grpc-retry-pushback-ms", "50000")], 1),
            ([("grpc-status", "14"), ("grpc-retry-pushback-ms", "-1")], 10),
            ([("grpc-status", "0"), ("grpc-retry-pushback-ms", "50000")], 10),
        ] {
            let last: &'static [(&str, &str)] = Vec::from(last).leak();
            let in_head: &'static [(&str, &str)] = [&GRPC, last].concat().leak();
            let well = || ending(None, &[("grpc-status", "0")]);
            for away in [ending(Some("half"), last).await, at_once(200, in_head).await] {
                let other = well().await;
                let sidecar = grpc_caller("loadBalancer: {type: round_robin}", &[away.address, other.address]).await;
                call_grpc(&sidecar, 20).await;
                assert_eq!((seen(&away), seen(&other)), (expected, 20 - expected), "{last:?}");
            }
        }
    });
}

/// The trailers of a gRPC call over HTTP/2.
async fn trailers_of(to: SocketAddr) -> Option<http::HeaderMap> {
    let stream = tokio::net::TcpStream::connect(to).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::task::spawn_local(connection);
    let mut asked = grpc(&[]).map(|_| ());
    asked.headers_mut().remove("host");
    *asked.uri_mut() = "http://orders/shop.Orders/Get".parse().unwrap();
    let (response, _) = send.ready().await.unwrap().send_request(asked, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    while let Some(data) = body.data().await {
        data.unwrap();
    }
    body.trailers().await.unwrap()
}

#[test]
fn a_grpc_call_that_ends_without_a_status_has_failed_for_everybody() {
    on_one_thread(async {
        let bare: &'static [(&str, &str)] = &[("x-other", "1")];
        for message in [vec![], vec![(0, "half")], vec![(0, "half"), (5, "whole")]] {
            for last in [None, Some(bare)] {
                let said = message.clone();
                let broken = application(move |_, _| {
                    let said = said.iter().map(|(after, text)| (*after, data(text)));
                    let all = said.chain(last.map(|last| (5, trailers(last)))).collect();
                    async move { frames(&GRPC, all) }
                })
                .await;
                let spec = "breaker: {consecutiveFailures: 1, penalty: {min: 60s, max: 60s}}";
                let sidecar = grpc_caller(spec, &[broken.address]).await;
                let heard = trailers_of(sidecar.outbound).await.unwrap_or_default();
                let status = heard.get("grpc-status").map(|status| status.as_bytes());
                assert_eq!(status, Some(&b"14"[..]), "{message:?} {last:?}");
                assert_eq!(sidecar.log(1).await[0]["reason"], "upstream_reset", "{message:?} {last:?}");
                let counted = sidecar.metrics("equerry_requests_total{");
                assert!(counted.iter().any(|line| line.contains("reason=\"upstream_reset\"")), "{counted:?}");
                assert!(ejected(&sidecar), "{message:?} {last:?}");
            }
        }
    });
}
