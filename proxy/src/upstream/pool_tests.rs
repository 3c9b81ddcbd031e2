//! What a pool closes when there is little to do: surplus, by and by, and never what is in use or a few.

use std::net::SocketAddr;

use http::{HeaderMap, Method, Response};
use http_body_util::Empty;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use super::super::{Message, OnThisThread, RequestBody};
use super::*;
use crate::codec::Early;

fn target(address: SocketAddr, protocol: Protocol) -> Target<'static> {
    let (connect_timeout, idle_timeout) = (Duration::from_secs(20), Duration::from_secs(60));
    Target { address, protocol, whom: None, connect_timeout, idle_timeout, places: None }
}

/// Answers every request on every connection with nothing.
async fn http1_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                let mut request = [0; 1024];
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                }
            });
        }
    });
    address
}

/// As many exchanges as that, all at once.
async fn exchanges(pool: &Rc<Pool>, target: &Target<'_>, many: usize) {
    let leases = futures_util::future::join_all((0..many).map(|_| pool.checkout(target, false))).await;
    for lease in leases {
        let (headers, early) = (HeaderMap::new(), Early::deaf());
        let head = call::Head { method: &Method::GET, target: "/", headers: &headers, early: &early };
        let answer = lease.unwrap().send(Message::Http1(head, RequestBody::Empty)).await.unwrap();
        assert_eq!(answer.status(), 200);
    }
}

fn idle(pool: &Pool) -> usize {
    pool.http1.borrow().values().map(|shelf| shelf.idle.borrow().len()).sum()
}

#[tokio::test]
async fn idle_connections_that_nobody_needed_lately_are_closed_by_and_by_but_for_a_few() {
    let work = async {
        let (one, other) = (http1_server().await, http1_server().await);
        let (one, other) = (target(one, Protocol::Http1), target(other, Protocol::Http1));
        let pool = Pool::new();
        exchanges(&pool, &one, 60).await;
        exchanges(&pool, &other, FEW).await;
        assert_eq!(idle(&pool), 60 + FEW);
        assert!(!pool.put_down(), "they were needed just now");
        exchanges(&pool, &one, 20).await;
        let in_use = pool.checkout(&one, false).await.unwrap();
        assert!(pool.put_down());
        assert_eq!(idle(&pool), 32 + FEW, "of 40 that were not needed a few stay, and a quarter of the others");
        assert_eq!((0..9).filter(|_| pool.put_down()).count(), 2);
        assert_eq!(idle(&pool), 2 * FEW);
        assert!(in_use.reused());
        exchanges(&pool, &one, FEW + 1).await;
        assert_eq!(idle(&pool), 2 * FEW + 1, "what was left works, and another was made");
    };
    LocalSet::new().run_until(work).await;
}

/// Takes one exchange at a time on each connection.
async fn http2_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut server = hyper::server::conn::http2::Builder::new(OnThisThread);
            server.max_concurrent_streams(1);
            let answer = service_fn(async |_| Ok::<_, Infallible>(Response::new(Empty::<bytes::Bytes>::new())));
            tokio::task::spawn_local(server.serve_connection(TokioIo::new(stream), answer));
        }
    });
    address
}

#[tokio::test]
async fn an_http_2_connection_beside_another_is_closed_when_nobody_needed_it_lately() {
    let work = async {
        let pool = Pool::new();
        let target = target(http2_server().await, Protocol::Http2);
        let here = || pool.http2.borrow().values().map(|slot| slot.here.len()).sum::<usize>();
        let first = pool.checkout(&target, false).await.unwrap();
        let is_full = || pool.http2.borrow().values().all(|slot| slot.here[0].is_full());
        let told = async {
            while !is_full() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), told).await.expect("the server says what it takes");
        let second = pool.checkout(&target, false).await.unwrap();
        assert_eq!(here(), 2);
        tokio::time::pause();
        tokio::time::advance(BESIDE * 2).await;
        assert!(!pool.put_down(), "both are in use");
        drop((first, second));
        assert!(!pool.put_down(), "it was needed just now");
        tokio::time::advance(BESIDE).await;
        assert!(pool.put_down());
        assert_eq!(here(), 1);
        assert!(!pool.put_down());
    };
    LocalSet::new().run_until(work).await;
}
