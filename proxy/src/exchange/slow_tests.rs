//! Those who are slow, over real sockets: callers that send nothing or take nothing, applications that take nothing, and
//! deadlines that a callee holds. Each end names the timer, and the document that set it.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use equerry_certs::tls::{self, ClientAuth};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::attempt;
use super::harness::*;
use super::overload;
use super::tries_tests::{SERVICE, caller, route, traffic};
use crate::accept::tls::Handshakes;
use crate::observe::Direction;
use crate::upstream::OnThisThread;

const PERMISSIVE: &str = "
---
apiVersion: equerry.dev/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: PERMISSIVE}}
";

/// Says this and reads what comes back until the other side ends.
async fn say(to: SocketAddr, said: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(said).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// A body that never ends, as fast as it is taken.
fn endless() -> Response<UnsyncBoxBody<Bytes, std::io::Error>> {
    let piece = Bytes::from(vec![b'x'; 64 * 1024]);
    let pieces = futures_util::stream::repeat_with(move || Ok(Frame::data(piece.clone())));
    Response::new(StreamBody::new(pieces).boxed_unsync())
}

#[test]
fn a_caller_that_takes_nothing_of_its_answer_is_cut_and_the_log_names_the_timer() {
    on_one_thread(async {
        let application = application(|_, _| async { endless() }).await;
        let sidecar = caller(&traffic(SERVICE, "timeouts: {streamIdle: 150ms}"), &[application.address]).await;
        let mut deaf = TcpStream::connect(sidecar.outbound).await.unwrap();
        deaf.write_all(b"GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await.unwrap();
        let line = sidecar.log(1).await.remove(0);
        assert_eq!(line["reason"], "stream_idle", "{line}");
        assert!(
            line.to_string().contains("the caller took nothing for 150ms: timeouts.streamIdle of shop/orders"),
            "{line}"
        );
        // The sidecar lives on, and the application is no longer asked for more.
        until("the application's connection to end", || application.connections.borrow()[0].is_finished()).await;
    });
}

#[test]
fn a_stream_of_which_the_caller_takes_nothing_is_reset_and_its_neighbours_go_on() {
    on_one_thread(async {
        let application = application(|_, request: Request<Incoming>| async move {
            if request.uri().path() == "/endless" {
                return endless();
            }
            says(200, "here").map(|body| body.map_err(|never| match never {}).boxed_unsync())
        })
        .await;
        let sidecar = caller(&traffic(SERVICE, "timeouts: {streamIdle: 150ms}"), &[application.address]).await;
        let io = TokioIo::new(TcpStream::connect(sidecar.outbound).await.unwrap());
        let mut builder = hyper::client::conn::http2::Builder::new(OnThisThread);
        builder.initial_stream_window_size(65_535).initial_connection_window_size(1 << 20);
        let (mut send, connection) = builder.handshake(io).await.unwrap();
        tokio::task::spawn_local(connection);
        let ask = |path: &str| {
            let mut asked = Request::new(Full::new(Bytes::new()));
            *asked.uri_mut() = format!("http://orders{path}").parse().unwrap();
            asked
        };
        let unread = send.send_request(ask("/endless")).await.unwrap();
        assert_eq!(send.send_request(ask("/")).await.unwrap().status(), 200, "beside it");
        let lines = sidecar.log(2).await;
        let cut = lines.iter().find(|line| line["reason"] == "stream_idle").unwrap_or_else(|| panic!("{lines:?}"));
        assert!(
            cut.to_string().contains("the caller took nothing for 150ms: timeouts.streamIdle of shop/orders"),
            "{cut}"
        );
        assert_eq!(send.send_request(ask("/")).await.unwrap().status(), 200, "after it");
        assert!(unread.into_body().collect().await.is_err(), "it is not taken for whole");
    });
}

#[test]
fn a_caller_that_takes_little_at_a_time_is_waited_for() {
    on_one_thread(async {
        let application = application(|_, _| async { says(200, &"x".repeat(4 << 20)) }).await;
        let sidecar = caller(&traffic(SERVICE, "timeouts: {streamIdle: 200ms}"), &[application.address]).await;
        let mut slow = TcpStream::connect(sidecar.outbound).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await.unwrap();
        let (mut taken, mut piece) = (0, vec![0; 256 * 1024]);
        loop {
            match slow.read(&mut piece).await.unwrap() {
                0 => break,
                read => taken += read,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(taken > 4 << 20, "{taken}");
        assert_eq!(sidecar.log(1).await[0]["reason"], "ok");
    });
}

#[test]
fn a_caller_that_begins_a_body_and_sends_no_more_is_told_408_by_the_named_timer() {
    on_one_thread(async {
        let application = application(|_, request: Request<Incoming>| async move {
            let _ = request.into_body().collect().await;
            says(200, "")
        })
        .await;
        let policy = "timeouts: {streamIdle: 150ms}";
        let held = route("matches: [{method: POST}], retry: {codes: [503], attempts: 1, backoff: 1ms}");
        for yaml in [traffic(SERVICE, policy), traffic(&held, policy)] {
            let sidecar = caller(&yaml, &[application.address]).await;
            let answer =
                say(sidecar.outbound, b"POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 10\r\n\r\nhalf").await;
            assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("client_slow"), "{answer}");
            assert!(
                answer.contains("the caller sent nothing for 150ms: timeouts.streamIdle of shop/orders"),
                "{answer}"
            );
        }
    });
}

#[test]
fn a_body_that_crawls_is_carried_to_its_end() {
    on_one_thread(async {
        let application = application(|_, request: Request<Incoming>| async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            says(200, &format!("{} bytes", body.len()))
        })
        .await;
        let sidecar = caller(&traffic(SERVICE, "timeouts: {streamIdle: 200ms}"), &[application.address]).await;
        let mut slow = TcpStream::connect(sidecar.outbound).await.unwrap();
        let head = b"POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 10\r\nconnection: close\r\n\r\n";
        slow.write_all(head).await.unwrap();
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(40)).await;
            slow.write_all(b"x").await.unwrap();
        }
        let mut answer = String::new();
        slow.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("10 bytes"), "{answer}");
    });
}

#[test]
fn a_body_that_crawls_without_end_is_not_waited_for_whoever_holds_it() {
    on_one_thread(async {
        let application = application(|_, request: Request<Incoming>| async move {
            let _ = request.into_body().collect().await;
            says(200, "")
        })
        .await;
        attempt::IMPATIENT.set(Some(Duration::from_millis(500)));
        let policy = "timeouts: {streamIdle: 5s}";
        let held = route("matches: [{method: POST}], retry: {codes: [503], attempts: 1, backoff: 1ms}");
        for yaml in [traffic(SERVICE, policy), traffic(&held, policy)] {
            let sidecar = caller(&yaml, &[application.address]).await;
            let (mut reads, mut writes) = TcpStream::connect(sidecar.outbound).await.unwrap().into_split();
            writes.write_all(b"POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 1000\r\n\r\n").await.unwrap();
            let crawling = async {
                while writes.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(40)).await;
                }
            };
            let mut answer = Vec::new();
            tokio::select! {
                read = reads.read_to_end(&mut answer) => drop(read),
                () = crawling => {}
            }
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("client_slow"), "{answer}");
            assert!(answer.contains("which is too little to wait for"), "{answer}");
        }
        // At the rate that is asked for it goes on, for longer than that.
        let sidecar = caller(&traffic(SERVICE, policy), &[application.address]).await;
        let mut steady = TcpStream::connect(sidecar.outbound).await.unwrap();
        steady
            .write_all(b"POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 2500\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        for _ in 0..25 {
            tokio::time::sleep(Duration::from_millis(40)).await;
            steady.write_all(&[b'x'; 100]).await.unwrap();
        }
        let mut answer = String::new();
        steady.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        attempt::IMPATIENT.set(None);
    });
}

/// Takes what comes on a stream of HTTP/2 with a window of so many bytes, piece by piece; how it ended.
async fn take_in_pieces(from: SocketAddr, window: u32) -> Result<usize, h2::Error> {
    let socket = TcpStream::connect(from).await.unwrap();
    let (client, connection) =
        h2::client::Builder::new().initial_window_size(window).handshake::<_, Bytes>(socket).await.unwrap();
    tokio::task::spawn_local(connection);
    let mut client = client.ready().await.unwrap();
    let asked = Request::get("http://orders/").body(()).unwrap();
    let (answered, _) = client.send_request(asked, true).unwrap();
    let mut body = answered.await?.into_body();
    let mut taken = 0;
    while let Some(piece) = body.data().await {
        let piece = piece?.len();
        taken += piece;
        tokio::time::sleep(Duration::from_millis(40)).await;
        body.flow_control().release_capacity(piece)?;
    }
    Ok(taken)
}

#[test]
fn a_caller_with_a_tiny_window_is_cut_and_the_log_says_how_little_it_took() {
    on_one_thread(async {
        let application = application(|_, _| async { says(200, &"x".repeat(50_000)) }).await;
        let sidecar = caller(&traffic(SERVICE, "timeouts: {streamIdle: 10s}"), &[application.address]).await;
        attempt::IMPATIENT.set(Some(Duration::from_millis(500)));
        let cut = take_in_pieces(sidecar.outbound, 2).await.unwrap_err();
        assert!(cut.is_reset(), "{cut}");
        let line = sidecar.log(1).await.remove(0);
        assert_eq!(line["reason"], "client_slow", "{line}");
        assert!(line.to_string().contains("bytes of the response in"), "{line}");
        assert!(line.to_string().contains("which is too little to wait for"), "{line}");
        // A narrow window that goes on opening is waited for, for longer than that.
        assert_eq!(take_in_pieces(sidecar.outbound, 1_000).await.unwrap(), 50_000);
        assert_eq!(sidecar.log(2).await[1]["reason"], "ok");
        attempt::IMPATIENT.set(None);
    });
}

#[test]
fn a_stream_that_its_application_feeds_slowly_is_never_cut_for_its_rate() {
    on_one_thread(async {
        let application = application(|_, _| async {
            let events = futures_util::stream::unfold(0, |sent| async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let event = Frame::data(Bytes::from_static(b"data: 1\n\n"));
                (sent < 20).then_some((Ok::<_, std::io::Error>(event), sent + 1))
            });
            let mut events = Response::new(StreamBody::new(events).boxed_unsync());
            events.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
            events
        })
        .await;
        let sidecar = caller(&traffic(SERVICE, "timeouts: {streamIdle: 10s}"), &[application.address]).await;
        attempt::IMPATIENT.set(Some(Duration::from_millis(300)));
        let heard = say(sidecar.outbound, b"GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await;
        assert_eq!(heard.matches("data: 1").count(), 20, "{heard}");
        assert_eq!(sidecar.log(1).await[0]["reason"], "ok");
        attempt::IMPATIENT.set(None);
    });
}

/// An application that speaks HTTP/1.1 by hand: says `head`, and then a byte each 40 ms.
async fn dribbles(head: &'static [u8]) -> (SocketAddr, Rc<RefCell<Vec<JoinHandle<()>>>>) {
    listen(move |mut stream, _| async move {
        let mut asked = [0; 1024];
        let _ = stream.read(&mut asked).await;
        let mut going = stream.write_all(head).await;
        while going.is_ok() {
            tokio::time::sleep(Duration::from_millis(40)).await;
            going = stream.write_all(b"x").await;
        }
    })
    .await
}

#[test]
fn an_answer_that_crawls_is_cut_where_its_length_was_declared() {
    on_one_thread(async {
        let (declared, _connections) = dribbles(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await;
        let sidecar = caller(&traffic(SERVICE, "timeouts: {streamIdle: 10s}"), &[declared]).await;
        attempt::IMPATIENT.set(Some(Duration::from_millis(500)));
        let heard = say(sidecar.outbound, b"GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        assert!(heard.starts_with("HTTP/1.1 200 ") && heard.ends_with('x'), "{heard}");
        let line = sidecar.log(1).await.remove(0);
        assert_eq!(line["reason"], "stream_idle", "{line}");
        assert!(line.to_string().contains("bytes of the response came in"), "{line}");
        attempt::IMPATIENT.set(None);
    });
}

#[test]
fn an_application_that_takes_a_request_at_a_crawl_is_given_up() {
    on_one_thread(async {
        // HTTP/2, because there the application says to the byte how much it takes.
        let (address, _connections) = listen(|stream, _| async move {
            let mut builder = h2::server::Builder::new();
            builder.initial_window_size(2);
            let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
            let (asked, _answer) = connection.accept().await.unwrap().unwrap();
            tokio::task::spawn_local(async move { while connection.accept().await.is_some() {} });
            let mut body = asked.into_body();
            while let Some(Ok(piece)) = body.data().await {
                tokio::time::sleep(Duration::from_millis(40)).await;
                if body.flow_control().release_capacity(piece.len()).is_err() {
                    return;
                }
            }
        })
        .await;
        let spoken = SERVICE.replacen("port: 80", "port: 80, appProtocol: kubernetes.io/h2c", 1);
        let world = World::new(&format!("{spoken}{PERMISSIVE}"));
        let sidecar = world.sidecar("shop/orders", &[("app", "orders")], &[(8080, address)], &[]).await;
        attempt::IMPATIENT.set(Some(Duration::from_millis(500)));
        // More than may be sent until the window is known.
        let body = "x".repeat(100_000);
        let head = "POST / HTTP/1.1\r\nhost: orders:8080\r\nconnection: close\r\n";
        let said = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        let answer = say(sidecar.inbound, said.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("stream_idle"), "{answer}");
        assert!(answer.contains("bytes of the request were taken in"), "{answer}");
        attempt::IMPATIENT.set(None);
    });
}

#[test]
fn an_application_that_takes_nothing_of_a_request_is_given_up() {
    on_one_thread(async {
        let (address, _connections) = listen(|stream, _| async move {
            std::future::pending::<()>().await;
            drop(stream);
        })
        .await;
        let sidecar = caller(&traffic(SERVICE, "timeouts: {streamIdle: 150ms}"), &[address]).await;
        let stream = TcpStream::connect(sidecar.outbound).await.unwrap();
        let (mut reads, mut writes) = stream.into_split();
        let sending = async {
            writes.write_all(b"POST / HTTP/1.1\r\nhost: orders\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
            let chunk = [b"10000\r\n".as_slice(), &[b'x'; 65_536], b"\r\n"].concat();
            while writes.write_all(&chunk).await.is_ok() {}
        };
        let mut answer = Vec::new();
        let reading = reads.read_to_end(&mut answer);
        let _ = tokio::join!(sending, reading);
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("stream_idle"), "{answer}");
        assert!(answer.contains("nothing passed for 150ms: timeouts.streamIdle of shop/orders"), "{answer}");
    });
}

/// A callee's sidecar that takes plain text, and its application that never answers.
async fn callee() -> (Sidecar, Application) {
    let never = application(|_, _| std::future::pending::<Response<Full<Bytes>>>()).await;
    let world = World::new(&format!("{SERVICE}{PERMISSIVE}"));
    let sidecar = world.sidecar("shop/orders", &[("app", "orders")], &[(8080, never.address)], &[]).await;
    (sidecar, never)
}

#[test]
fn a_callee_ends_what_its_caller_waits_for_no_longer() {
    on_one_thread(async {
        let (sidecar, never) = callee().await;
        let mut asked = request("GET", "orders:8080", "/", "");
        asked.headers_mut().insert("tracestate", "eq=d:100".parse().unwrap());
        let answered = call(sidecar.inbound, asked).await;
        assert_eq!(answered.status(), 504);
        let said = std::str::from_utf8(answered.body()).unwrap();
        assert!(said.contains("request_timeout") && said.contains("the deadline in tracestate"), "{said}");

        let mut asked = request("POST", "orders:8080", "/shop.Orders/Get", "");
        for (name, value) in [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "100m")] {
            asked.headers_mut().insert(name, value.parse().unwrap());
        }
        let answered = call_http2(sidecar.inbound, asked).await;
        assert_eq!(answered.headers()["grpc-status"], "4");
        assert!(answered.headers()["grpc-message"].to_str().unwrap().contains("grpc-timeout"), "{answered:?}");
        assert_eq!(never.seen.borrow().len(), 2);
        assert!(sidecar.log(2).await.iter().all(|line| line["reason"] == "request_timeout"));
    });
}

#[test]
fn a_callee_does_not_begin_what_nobody_waits_for() {
    on_one_thread(async {
        let (sidecar, never) = callee().await;
        let mut asked = request("GET", "orders:8080", "/", "");
        asked.headers_mut().insert("tracestate", "eq=d:0".parse().unwrap());
        let answered = call(sidecar.inbound, asked).await;
        assert_eq!(answered.status(), 504);
        assert!(std::str::from_utf8(answered.body()).unwrap().contains("nobody waits for it any more"), "{answered:?}");
        assert!(never.seen.borrow().is_empty());
    });
}

#[test]
fn a_response_that_goes_on_after_its_callers_deadline_is_cut_at_the_callee() {
    on_one_thread(async {
        let application = application(|_, _| async {
            let drops = futures_util::stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Some((Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"drop "))), ()))
            });
            Response::new(StreamBody::new(drops).boxed_unsync())
        })
        .await;
        let world = World::new(&format!("{SERVICE}{PERMISSIVE}"));
        let ports = [(8080, application.address)];
        let sidecar = world.sidecar("shop/orders", &[("app", "orders")], &ports, &[]).await;
        let said = say(sidecar.inbound, b"GET / HTTP/1.1\r\nhost: orders:8080\r\ntracestate: eq=d:100\r\n\r\n").await;
        assert!(said.contains("drop") && !said.ends_with("0\r\n\r\n"), "{said}");
        assert_eq!(sidecar.log(1).await[0]["reason"], "request_timeout");
    });
}

#[test]
fn one_connection_too_many_is_answered_503_whichever_version_it_speaks() {
    on_one_thread(async {
        let (sidecar, _never) = callee().await;
        let shared = sidecar.shared.clone();
        let (door, _connections) = listen(move |stream, peer| {
            let shared = shared.clone();
            async move { overload::turn_away(stream, &shared, Direction::Inbound, peer).await }
        })
        .await;
        let over_http1 = call(door, request("GET", "orders", "/", "")).await;
        assert_eq!(
            (over_http1.status().as_u16(), &over_http1.headers()["connection"]),
            (503, &"close".parse().unwrap())
        );
        for answered in [over_http1, call_http2(door, request("GET", "orders", "/", "")).await] {
            assert_eq!(answered.status(), 503);
            assert!(answered.headers()["proxy-status"].to_str().unwrap().contains("overload"), "{answered:?}");
        }
        assert_eq!(say(door, b"\x16\x03\x01\x02\x00\x01\x00").await, "", "a handshake is not begun");
        assert!(sidecar.log(2).await.iter().all(|line| line["reason"] == "overload" && line["response_code"] == 503));
    });
}

#[tokio::test(start_paused = true)]
async fn handshakes_take_turns_and_one_that_stalls_keeps_nobody_from_its_turn() {
    let world = World::new(SERVICE);
    let (key, bundle) = world.identity("shop/orders");
    let server = Arc::new(tls::server_config(&key, &bundle, ClientAuth::Required, &[tls::ALPN_H1]).unwrap());
    let begun = tokio::time::Instant::now();
    let stall = async |turns: &Handshakes| {
        let (_silent, ours) = tokio::io::duplex(64);
        let refused = turns.secure(ours, &server, |_| true).await.unwrap_err();
        (refused.word, begun.elapsed().as_millis())
    };
    assert_eq!(stall(&Handshakes::at_once(0)).await, ("overload", 1000));
    let one = Handshakes::at_once(1);
    let both = tokio::join!(stall(&one), stall(&one));
    assert_eq!(both, (("timeout", 11_000), ("timeout", 11_500)), "the second began half a second after the first");
}

#[test]
fn a_process_that_leaves_waits_for_the_last_connection_of_its_application() {
    on_one_thread(async {
        let application = application(|_, _| async { says(200, "here") }).await;
        let sidecar = caller(SERVICE, &[application.address]).await;
        let drain = &sidecar.shared.drain;
        let kept = TcpStream::connect(sidecar.outbound).await.unwrap();
        let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(kept)).await.unwrap();
        tokio::task::spawn_local(connection);
        let mut ask = async || send.send_request(request("GET", "orders", "/", "")).await.unwrap().status();
        assert_eq!(ask().await, 200);
        drain.begin();
        assert_eq!(ask().await, 200, "over the connection it has");
        assert_eq!(call(sidecar.outbound, request("GET", "orders", "/", "")).await.status(), 200, "over a new one");
        until("all but one to end", || drain.working() == 1).await;
        assert!(!drain.all_gone(Duration::from_millis(50)).await, "an idle connection may still be used");
        drop(send);
        assert!(drain.all_gone(Duration::from_secs(5)).await);
    });
}
