//! Large bodies in plain text, over real sockets: they go from socket to socket without being copied, whole and in order, and
//! whatever ends or bounds a body that is looked at ends and bounds these too.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::*;
use super::tries_tests::{SERVICE, caller, traffic};
use crate::codec::Pipe;

/// More than any buffer on the way holds, and no multiple of one.
const LARGE: usize = 9 * 1024 * 1024 + 4_321;

/// Bytes of which none can be missing, doubled or moved unnoticed.
fn pattern(length: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(7);
    (0..length).map(|_| rng.u8(..)).collect()
}

/// An application that answers a large body with it, and anything else with a large body.
async fn echo() -> Application {
    application(|_, request: Request<Incoming>| async move {
        let asked = request.method() == Method::GET;
        let body = request.into_body().collect().await.unwrap().to_bytes();
        http::Response::new(http_body_util::Full::new(if asked { Bytes::from(pattern(LARGE)) } else { body }))
    })
    .await
}

#[test]
fn large_bodies_pass_whole_both_ways_without_being_copied_and_are_counted() {
    on_one_thread(async {
        let application = echo().await;
        let sidecar = caller(SERVICE, &[application.address]).await;
        let before = Pipe::moved();
        let answered = call(sidecar.outbound, request("POST", "orders", "/", pattern(LARGE))).await;
        assert!(answered.body() == &pattern(LARGE), "{} bytes came back", answered.body().len());
        let moved = Pipe::moved() - before;
        assert!(moved > LARGE as u64 * 3 / 2, "{moved} bytes of {LARGE} each way were moved");
        let line = sidecar.log(1).await.remove(0);
        assert_eq!((&line["bytes_received"], &line["bytes_sent"]), (&LARGE.into(), &LARGE.into()), "{line}");
        assert_eq!(line["reason"], "ok");
    });
}

#[test]
fn large_bodies_are_copied_where_the_system_refuses_to_move_them() {
    on_one_thread(async {
        let application = echo().await;
        let sidecar = caller(SERVICE, &[application.address]).await;
        Pipe::refuse();
        let before = Pipe::moved();
        let answered = call(sidecar.outbound, request("POST", "orders", "/", pattern(LARGE))).await;
        assert!(answered.body() == &pattern(LARGE), "{} bytes came back", answered.body().len());
        assert_eq!(Pipe::moved(), before);
    });
}

#[test]
fn a_connection_that_carried_a_large_body_carries_the_next_exchange() {
    on_one_thread(async {
        let application = echo().await;
        let sidecar = caller(SERVICE, &[application.address]).await;
        let mut stream = TcpStream::connect(sidecar.outbound).await.unwrap();
        let whole = pattern(LARGE);
        for _ in 0..3 {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await.unwrap();
            let mut said = Vec::new();
            while !said.ends_with(b"\r\n\r\n") {
                said.push(stream.read_u8().await.unwrap());
            }
            let mut body = vec![0; LARGE];
            stream.read_exact(&mut body).await.unwrap();
            assert!(body == whole);
        }
        assert_eq!(application.connections.borrow().len(), 1, "one connection to the application carried them all");
    });
}

#[test]
fn a_large_body_that_is_cut_is_not_taken_for_whole_and_the_log_says_who_cut_it() {
    on_one_thread(async {
        let (address, _connections) = listen(|mut stream, _| async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n").await;
            let _ = stream.write_all(&pattern(3_000_000)).await;
        })
        .await;
        let sidecar = caller(SERVICE, &[address]).await;
        let mut stream = TcpStream::connect(sidecar.outbound).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await.unwrap();
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said).await;
        let body = said.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        assert!(said[body..] == pattern(3_000_000), "{} bytes came", said.len() - body);
        let line = sidecar.log(1).await.remove(0);
        assert_eq!((&line["reason"], &line["bytes_sent"]), (&"upstream_reset".into(), &3_000_000.into()), "{line}");
    });
}

#[test]
fn a_caller_that_leaves_in_the_middle_of_a_large_body_ends_the_request() {
    on_one_thread(async {
        let application = application(|_, request: Request<Incoming>| async move {
            assert!(request.into_body().collect().await.is_err(), "it is not taken for whole");
            says(200, "")
        })
        .await;
        let sidecar = caller(SERVICE, &[application.address]).await;
        let before = Pipe::moved();
        let mut stream = TcpStream::connect(sidecar.outbound).await.unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 9000000\r\n\r\n").await.unwrap();
        stream.write_all(&pattern(3_000_000)).await.unwrap();
        until("most of it to have passed", || Pipe::moved() - before > 1_000_000).await;
        drop(stream);
        let line = sidecar.log(1).await.remove(0);
        assert_eq!(line["reason"], "client_gone", "{line}");
    });
}

#[test]
fn the_timers_of_a_body_hold_where_it_is_not_looked_at() {
    on_one_thread(async {
        let (address, _connections) = listen(|mut stream, _| async move {
            let mut head = [0; 4096];
            let read = stream.read(&mut head).await.unwrap_or_default();
            if head[..read].starts_with(b"POST") {
                return std::future::pending().await;
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 90000000\r\n\r\n").await;
            let long = if head[..read].starts_with(b"GET /stalls") { 3_000_000 } else { 90_000_000 };
            let _ = stream.write_all(&vec![b'x'; long]).await;
            std::future::pending::<()>().await;
        })
        .await;
        let sidecar = caller(&traffic(SERVICE, "timeouts: {streamIdle: 200ms}"), &[address]).await;
        let (before, mut streams) = (Pipe::moved(), Vec::new());
        let cases = [
            ("GET /stalls", 0, "nothing passed for 200ms: timeouts.streamIdle of shop/orders"),
            ("GET /unread", 0, "the caller took nothing for 200ms: timeouts.streamIdle of shop/orders"),
            ("POST /", 90_000_000, "nothing passed for 200ms: timeouts.streamIdle of shop/orders"),
        ];
        for (number, (line, length, why)) in cases.into_iter().enumerate() {
            let stream = TcpStream::connect(sidecar.outbound).await.unwrap();
            let (mut reads, mut writes) = stream.into_split();
            let head = format!("{line} HTTP/1.1\r\nhost: orders\r\ncontent-length: {length}\r\n\r\n");
            writes.write_all(head.as_bytes()).await.unwrap();
            let talking = tokio::task::spawn_local(async move {
                if length > 0 {
                    let _ = writes.write_all(&vec![b'x'; length]).await;
                } else if line.ends_with("stalls") {
                    let _ = reads.read_to_end(&mut Vec::new()).await;
                }
                (reads, writes)
            });
            let logged = sidecar.log(number + 1).await.remove(number);
            assert_eq!(logged["reason"], "stream_idle", "{line}: {logged}");
            assert!(logged.to_string().contains(why), "{line}: {logged}");
            streams.push(talking);
        }
        assert!(Pipe::moved() - before > 1_000_000, "they were moved");
    });
}

#[test]
fn a_grpc_call_that_ends_without_a_status_is_no_success_however_large_it_is() {
    on_one_thread(async {
        let (address, _connections) = listen(|mut stream, _| async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ncontent-length: 3000000\r\n\r\n";
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(&pattern(3_000_000)).await;
            let _ = stream.read(&mut [0; 4096]).await;
        })
        .await;
        let sidecar = caller(SERVICE, &[address]).await;
        let mut asked = request("POST", "orders", "/shop.Orders/List", "x");
        asked.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let answered = call(sidecar.outbound, asked).await;
        assert_eq!(answered.body().len(), 3_000_000);
        assert_eq!(sidecar.log(1).await[0]["reason"], "upstream_reset");
    });
}
