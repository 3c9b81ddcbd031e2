//! HTTP/2 connections that are full: the exchanges beyond what one carries take another, and wait for nobody.

use std::cell::Cell;
use std::rc::Rc;

use http::Response;
use tokio::sync::Notify;

use super::harness::*;

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {ports: [{port: 80, targetPort: 8080, appProtocol: kubernetes.io/h2c}]}
";
/// Streams that the application takes on one connection.
const EACH: u32 = 2;

#[test]
fn exchanges_beyond_what_one_connection_carries_take_another() {
    on_one_thread(async {
        let (under_way, everybody) = (Rc::new(Cell::new(0)), Rc::new(Notify::new()));
        let (counted, all_here) = (Rc::clone(&under_way), Rc::clone(&everybody));
        let (application, connections) = listen(move |stream, _| {
            let (counted, all_here) = (Rc::clone(&counted), Rc::clone(&all_here));
            async move {
                let mut server = h2::server::Builder::new();
                let mut connection =
                    server.max_concurrent_streams(EACH).handshake::<_, bytes::Bytes>(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let (counted, all_here) = (Rc::clone(&counted), Rc::clone(&all_here));
                    tokio::task::spawn_local(async move {
                        if request.uri().path() == "/together" {
                            counted.set(counted.get() + 1);
                            all_here.notify_waiters();
                            while counted.get() < 5 {
                                all_here.notified().await;
                            }
                        }
                        respond.send_response(Response::new(()), true)
                    });
                }
            }
        })
        .await;
        let world = World::new(MESH);
        let at = vec![At::Plain(80, application)];
        let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/orders", at)]).await;
        assert_eq!(call(frontend.outbound, request("GET", "orders", "/first", "")).await.status(), 200);
        let together = (0..5).map(|_| call(frontend.outbound, request("GET", "orders", "/together", "")));
        for answered in futures_util::future::join_all(together).await {
            assert_eq!(answered.status(), 200);
        }
        assert_eq!(under_way.get(), 5, "all were under way at once");
        assert_eq!(connections.borrow().len(), 3, "as few as carry them");
    });
}
