//! Callers that leave at any moment, over real sockets: whatever an exchange holds is given back wherever it was when nobody waited
//! for it any more. Rust frees the memory; that the counts are right is for this to show.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use equerry_policies::names::ServiceName;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use super::harness::*;
use crate::config::MeshProtocol;

/// One of each: what is not given back is missed by the next.
const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders}}
spec: {selector: {app: orders}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: equerry.dev/v1
kind: TrafficPolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: orders}]
  limits: {connections: 1, pending: 1, requests: 1}
";
/// More turns than a whole exchange takes.
const TURNS: usize = 60;

/// Polls so often, with turns of everybody else between; whether it was over before.
async fn is_over_within(turns: usize, asking: &mut (impl Future + Unpin)) -> bool {
    for _ in 0..turns {
        let polled = poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut *asking).poll(cx).is_ready())).await;
        if polled {
            return true;
        }
        // What was written has to arrive: the reactor is asked too.
        tokio::time::sleep(Duration::ZERO).await;
        tokio::task::yield_now().await;
    }
    false
}

#[test]
fn whoever_gives_up_at_whatever_moment_leaves_everything_for_the_next() {
    for between in [MeshProtocol::Auto, MeshProtocol::Http1] {
        on_one_thread(async move {
            let application = application(|_, request| async {
                let _ = request.into_body().collect().await;
                let pieces = futures_util::stream::unfold(0, |piece| async move {
                    tokio::task::yield_now().await;
                    let frame = Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"piece")));
                    (piece < 3).then_some((frame, piece + 1))
                });
                Response::new(StreamBody::new(Box::pin(pieces)))
            })
            .await;
            let mut world = World::new(MESH);
            world.mesh_protocol = between;
            let orders = world.sidecar("shop/orders", &[("app", "orders")], &[(8080, application.address)], &[]).await;
            let at = vec![At::Mesh(orders.inbound)];
            let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/orders", at)]).await;
            let live = frontend.shared.live.load();
            let limits = &live.destination(&ServiceName::parse("shop/orders").unwrap()).unwrap().backend.limits;
            let (mut given_up, mut finished) = (0, 0);
            for turns in 0..TURNS {
                let mut asking = Box::pin(call(frontend.outbound, request("POST", "orders", "/", "a body")));
                if is_over_within(turns, &mut asking).await {
                    finished += 1;
                } else {
                    given_up += 1;
                }
                drop(asking);
                until("all places to be given back", || {
                    let present = limits.present();
                    (present.requests, present.pending) == (0, 0)
                })
                .await;
                let next = call(frontend.outbound, request("POST", "orders", "/", "a body")).await;
                assert_eq!(next.status(), 200, "after {turns} turns: {next:?}");
                assert_eq!(next.body(), "piecepiecepiece");
            }
            assert!(given_up > 5 && finished > 5, "{given_up} given up, {finished} finished: look at TURNS");
            let outbound = "equerry_connections{direction=\"outbound\",tls=\"none\"} 0";
            until("the callers' connections to end", || {
                frontend.metrics("equerry_connections{").iter().any(|line| line == outbound)
            })
            .await;
        });
    }
}
