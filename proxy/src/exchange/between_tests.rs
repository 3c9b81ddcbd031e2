//! Which HTTP two sidecars speak, over real sockets: bulk over HTTP/1.1, all else over HTTP/2, and whole over both.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;

use super::harness::*;
use super::tries_tests::{SERVICE, traffic};

/// No multiple of any buffer on the way.
const LARGE: usize = 3 * 1024 * 1024 + 4_321;

/// Bytes of which none can be missing, doubled or moved unnoticed.
fn pattern(length: usize) -> Bytes {
    let mut rng = fastrand::Rng::with_seed(11);
    (0..length).map(|_| rng.u8(..)).collect()
}

fn in_pieces(whole: &[u8]) -> BoxBody<Bytes, Infallible> {
    let pieces: Vec<Bytes> = whole.chunks(100_000).map(Bytes::copy_from_slice).collect();
    StreamBody::new(stream::iter(pieces.into_iter().map(|piece| Ok(Frame::data(piece))))).boxed()
}

/// frontend → orders, whose application answers a GET as large as its path says, in pieces or with its length, and anything else
/// with what came.
async fn pair(yaml: &str) -> (Sidecar, Sidecar) {
    let world = World::new(yaml);
    let application = application(|_, request: Request<Incoming>| async move {
        let path = request.uri().path().to_owned();
        let came = request.into_body().collect().await.unwrap().to_bytes();
        let body = match path.as_str() {
            "/large" => Full::new(pattern(LARGE)).boxed(),
            "/large-in-pieces" => in_pieces(&pattern(LARGE)),
            "/small" => Full::new(pattern(100)).boxed(),
            "/small-in-pieces" => in_pieces(&pattern(100)),
            _ => Full::new(came).boxed(),
        };
        Response::new(body)
    })
    .await;
    let orders = world.sidecar("shop/orders", &[("app", "orders")], &[(8080, application.address)], &[]).await;
    let at = vec![At::Mesh(orders.inbound)];
    let frontend = world.sidecar("shop/frontend", &[("app", "frontend")], &[], &[("shop/orders", at)]).await;
    (frontend, orders)
}

/// What was spoken between the two for the last of so many exchanges, by both their logs.
async fn between(frontend: &Sidecar, orders: &Sidecar, exchanges: usize) -> String {
    let (caller, callee) = (frontend.log(exchanges).await, orders.log(exchanges).await);
    let (caller, callee) = (&caller[exchanges - 1], &callee[exchanges - 1]);
    assert_eq!(caller["request_id"], callee["request_id"], "{caller} {callee}");
    assert_eq!(caller["upstream_protocol"], callee["protocol"], "{caller} {callee}");
    assert_eq!(callee["upstream_protocol"], "HTTP/1.1", "what the application speaks: {callee}");
    callee["protocol"].as_str().unwrap().to_owned()
}

#[test]
fn a_large_upload_goes_over_http1_between_sidecars_and_a_small_one_over_http2() {
    on_one_thread(async {
        let (frontend, orders) = pair(SERVICE).await;
        let cases = [(100, "HTTP/2"), (LARGE, "HTTP/1.1"), (100_000, "HTTP/2"), (128 << 10, "HTTP/1.1")];
        for (number, (length, expected)) in cases.into_iter().enumerate() {
            let asked = request("POST", "orders", "/", pattern(length));
            // Whatever its caller speaks.
            let answered = match number % 2 {
                0 => call(frontend.outbound, asked).await,
                _ => call_http2(frontend.outbound, asked).await,
            };
            assert!(answered.body() == &pattern(length), "{} bytes came back", answered.body().len());
            assert_eq!(between(&frontend, &orders, number + 1).await, expected, "{length}");
        }
    });
}

#[test]
fn answers_that_grow_turn_a_destination_to_http1_and_small_ones_turn_it_back() {
    on_one_thread(async {
        for how in ["", "-in-pieces"] {
            let (frontend, orders) = pair(SERVICE).await;
            let mut exchanges = 0;
            for (size, length, last) in
                [("large", LARGE, "HTTP/1.1"), ("small", 100, "HTTP/2"), ("large", LARGE, "HTTP/1.1")]
            {
                let mut spoken = Vec::new();
                while spoken.last().is_none_or(|spoken| spoken != last) {
                    assert!(spoken.len() < 60, "{size}{how}: {spoken:?}");
                    let asked = request("GET", "orders", &format!("/{size}{how}"), "");
                    let answered = call(frontend.outbound, asked).await;
                    assert!(answered.body() == &pattern(length), "{} bytes came", answered.body().len());
                    exchanges += 1;
                    spoken.push(between(&frontend, &orders, exchanges).await);
                }
                assert!(spoken.len() > 2, "no single answer decides: {size}{how}: {spoken:?}");
            }
        }
    });
}

#[test]
fn grpc_stays_with_http2_however_much_it_carries() {
    on_one_thread(async {
        let (frontend, orders) = pair(SERVICE).await;
        for number in 1..8 {
            let mut asked = request("POST", "orders", "/", pattern(LARGE));
            asked.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            drop(call_http2(frontend.outbound, asked).await);
            assert_eq!(between(&frontend, &orders, number).await, "HTTP/2");
        }
    });
}

#[test]
fn where_connections_are_counted_bulk_takes_none_that_others_need() {
    on_one_thread(async {
        let (frontend, orders) = pair(&traffic(SERVICE, "limits: {connections: 1, pendingTimeout: 100ms}")).await;
        let uploads = (0..6).map(|_| call(frontend.outbound, request("POST", "orders", "/", pattern(LARGE))));
        for answered in futures_util::future::join_all(uploads).await {
            assert_eq!(answered.status(), 200, "none of them waits for a connection");
            assert!(answered.body() == &pattern(LARGE));
        }
        assert!(orders.log(6).await.iter().all(|line| line["protocol"] == "HTTP/2"));
    });
}
