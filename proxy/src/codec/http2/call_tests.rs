//! The calling end against the `h2` crate's server, a server of ours, and peers made by hand.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::super::by_hand::raw;
use super::super::harness::*;
use super::*;

/// Our end of a connection; why it ended, in words.
fn our_client(stream: DuplexStream) -> (Caller, tokio::task::JoinHandle<String>) {
    let (caller, driving) = begin(Link::new(stream));
    (caller, tokio::task::spawn_local(driving))
}

fn head<'a>(method: &'a Method, target: &'a str, headers: &'a HeaderMap) -> Head<'a> {
    Head { method, authority: "orders.shop", target, headers, early: Box::leak(Box::new(Early::new())) }
}

async fn exchange(
    caller: &Caller,
    method: Method,
    path: &str,
    body: Content,
) -> Result<(response::Parts, Bytes, Option<HeaderMap>), String> {
    let headers = HeaderMap::new();
    let sent = caller.send(head(&method, path, &headers), body).await;
    let (parts, call) = sent.map_err(|failed| failed.detail)?;
    let (bytes, trailers) = read_call(call).await?;
    Ok((parts, bytes, trailers))
}

async fn read_call(mut call: Call<Content>) -> Result<(Bytes, Option<HeaderMap>), String> {
    let (mut all, mut trailers) = (Vec::new(), None);
    while let Some(frame) = poll_fn(|cx| call.poll_frame(cx)).await {
        match frame.map_err(|error| error.to_string())?.into_data() {
            Ok(data) => all.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    assert!(call.is_end());
    Ok((all.into(), trailers))
}

/// The `h2` crate as a server that sends back what it gets, with this window; gives what it saw of requests.
fn h2_echo(stream: DuplexStream, window: u32, streams: u32) -> Rc<RefCell<Vec<Request<()>>>> {
    let seen: Rc<RefCell<Vec<Request<()>>>> = Rc::default();
    let told = Rc::clone(&seen);
    tokio::task::spawn_local(async move {
        let mut builder = h2::server::Builder::new();
        builder.initial_window_size(window).initial_connection_window_size(window.max(65_535));
        builder.max_concurrent_streams(streams);
        let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let (head, mut body) = request.into_parts();
            told.borrow_mut().push(Request::from_parts(head, ()));
            tokio::task::spawn_local(async move {
                let mut response = Response::new(());
                response.headers_mut().insert("x-served", HeaderValue::from_static("there"));
                let mut sending = respond.send_response(response, false)?;
                while let Some(data) = body.data().await {
                    let data = data?;
                    body.flow_control().release_capacity(data.len())?;
                    send_all(&mut sending, data, false).await?;
                }
                match body.trailers().await? {
                    Some(trailers) => sending.send_trailers(trailers),
                    None => sending.send_data(Bytes::new(), true),
                }
            });
        }
    });
    seen
}

#[tokio::test]
async fn a_request_is_sent_as_it_is_and_its_response_read() {
    local(async {
        let (theirs, ours) = tokio::io::duplex(64 * 1024);
        let seen = h2_echo(theirs, 65_535, 100);
        let (caller, _driving) = our_client(ours);
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("orders.shop"));
        headers.insert("x-id", HeaderValue::from_static("7"));
        headers.append("cookie", HeaderValue::from_static("a=1"));
        headers.append("cookie", HeaderValue::from_static("b=2"));
        let (method, body) = (Method::POST, Content::of(pattern(1024)));
        let sent = caller.send(head(&method, "/things?a=b", &headers), body).await;
        let (parts, call) = sent.unwrap_or_else(|failed| panic!("{}", failed.detail));
        assert_eq!((parts.status, &parts.headers["x-served"]), (StatusCode::OK, &HeaderValue::from_static("there")));
        assert_eq!(read_call(call).await.unwrap().0, pattern(1024));
        let seen = seen.borrow();
        assert_eq!(seen[0].uri(), "http://orders.shop/things?a=b");
        assert_eq!(seen[0].method(), Method::POST);
        assert_eq!(seen[0].headers()["x-id"], "7");
        assert!(seen[0].headers().get("host").is_none());
    })
    .await;
}

#[tokio::test]
async fn bodies_of_every_size_come_back_through_windows_of_every_size() {
    local(async {
        for window in [1, 1_000, 65_535, 1 << 20] {
            let (theirs, ours) = tokio::io::duplex(64 * 1024);
            h2_echo(theirs, window, 100);
            let (caller, _driving) = our_client(ours);
            for size in [0, 1, 999, 1_024, 16_384, 16_385, 100_000, 1 << 20] {
                if window == 1 && size > 1_024 {
                    continue;
                }
                for trailing in [None, Some(trailers())] {
                    let body = Content::pieces(&pattern(size), 7_000, trailing.clone());
                    let (_, bytes, came) = exchange(&caller, Method::POST, "/", body).await.unwrap();
                    assert!(bytes == pattern(size), "{size} through {window}: {} bytes", bytes.len());
                    assert_eq!(came, trailing);
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn our_two_ends_understand_each_other() {
    local(async {
        let responder: Rc<ByPath> = Rc::default();
        let (stream, _serving) = our_server(&responder);
        let (caller, _driving) = our_client(stream);
        let asking = (0..1_000).map(|at| {
            let caller = &caller;
            async move {
                let size = if at % 100 == 0 { 1 << 20 } else { at * 7 };
                let body = Content::pieces(&pattern(size), 40_000, None);
                let (parts, bytes, _) = exchange(caller, Method::POST, "/echo", body).await.unwrap();
                assert_eq!(parts.status, StatusCode::OK);
                assert!(bytes == pattern(size), "stream {at}");
            }
        });
        futures_util::future::join_all(asking).await;
        let (parts, bytes, _) = exchange(&caller, Method::HEAD, "/size?77", Content::of(Bytes::new())).await.unwrap();
        assert_eq!((parts.status, bytes.len()), (StatusCode::OK, 0));
        let (_, bytes, _) = exchange(&caller, Method::POST, "/ignore", Content::of(pattern(1 << 20))).await.unwrap();
        assert_eq!(bytes, "no thanks");
    })
    .await;
}

/// Asks a future once; whether it is not ready.
async fn waits<F: Future + Unpin>(future: &mut F) -> bool {
    poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending())).await
}

#[tokio::test]
async fn no_more_streams_are_begun_than_the_peer_allows() {
    local(async {
        let (theirs, ours) = tokio::io::duplex(64 * 1024);
        h2_echo(theirs, 65_535, 3);
        let (caller, _driving) = our_client(ours);
        exchange(&caller, Method::GET, "/", Content::of(Bytes::new())).await.unwrap();
        let most = Cell::new(0);
        let asking = (0..200).map(|at| {
            let (caller, most) = (&caller, &most);
            async move {
                let asked = exchange(caller, Method::POST, "/", Content::of(pattern(at))).await.unwrap();
                most.set(most.get().max(caller.0.borrow().streams.active()));
                assert!(asked.1 == pattern(at));
            }
        });
        futures_util::future::join_all(asking).await;
        assert!(most.get() <= 3, "{}", most.get());
    })
    .await;
}

#[tokio::test]
async fn who_gives_up_waiting_for_a_stream_keeps_nobody_waiting() {
    local(async {
        let responder: Rc<ByPath> = Rc::default();
        let (stream, _serving) = our_server(&responder);
        let (caller, _driving) = our_client(stream);
        exchange(&caller, Method::GET, "/", Content::of(Bytes::new())).await.unwrap();
        caller.0.borrow_mut().max_streams = 1;
        let held = exchange(&caller, Method::GET, "/wait", Content::of(Bytes::new()));
        let mut impatient: Vec<_> =
            (0..50).map(|_| Box::pin(exchange(&caller, Method::GET, "/", Content::of(Bytes::new())))).collect();
        let patient = exchange(&caller, Method::GET, "/size?9", Content::of(Bytes::new()));
        let giving_up = async {
            while responder.waiting.get() == 0 {
                tokio::task::yield_now().await;
            }
            for waiting in &mut impatient {
                assert!(waits(waiting).await);
            }
            impatient.clear();
            responder.open_door.notify_waiters();
        };
        let (held, (), patient) = tokio::join!(held, giving_up, patient);
        assert_eq!(held.unwrap().1, "at last");
        assert_eq!(patient.unwrap().1, pattern(9));
    })
    .await;
}

#[tokio::test]
async fn heads_before_the_answer_arrive_before_it_and_not_without_end() {
    local(async {
        let responder: Rc<ByPath> = Rc::default();
        let (stream, _serving) = our_server(&responder);
        let (caller, _driving) = our_client(stream);
        let (method, headers, early) = (Method::GET, HeaderMap::new(), Early::new());
        let head =
            |target| Head { method: &method, authority: "orders.shop", target, headers: &headers, early: &early };
        let (parts, _) = caller.send(head("/early?3"), Content::of(Bytes::new())).await.unwrap();
        assert_eq!(parts.status, StatusCode::OK);
        for at in 0..3 {
            let (status, hint) = early.take().unwrap();
            assert_eq!((status.as_u16(), &hint["link"]), (103, &HeaderValue::from(at)));
        }
        assert!(early.take().is_none());
        // With those before there are more than anybody reads.
        let failed = caller.send(head("/early?1000"), Content::of(Bytes::new())).await.unwrap_err();
        assert_eq!(failed.detail, "no answer came: more than 32 interim responses");
    })
    .await;
}

#[tokio::test]
async fn a_body_that_waits_for_a_word_gets_it_when_it_is_wanted() {
    local(async {
        for (path, words) in [("/collect", 1), ("/ignore", 0)] {
            let responder: Rc<ByPath> = Rc::default();
            let (stream, _serving) = our_server(&responder);
            let (caller, _driving) = our_client(stream);
            let (method, early) = (Method::POST, Early::new());
            let headers = HeaderMap::from_iter([(http::header::EXPECT, HeaderValue::from_static("100-continue"))]);
            let head =
                Head { method: &method, authority: "orders.shop", target: path, headers: &headers, early: &early };
            // It has nothing to send before it heard the word; here it never will.
            let silent = Content::Silent(Rc::default());
            let asking = Box::pin(caller.send(head, silent));
            let heard = async {
                while responder.seen.borrow().is_empty() {
                    tokio::task::yield_now().await;
                }
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                _ = asking => {}
                () = heard => {}
            }
            let heard =
                std::iter::from_fn(|| early.take()).filter(|(status, _)| *status == StatusCode::CONTINUE).count();
            assert_eq!(heard, words, "{path}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_call_that_is_dropped_ends_the_work_at_the_other_end() {
    local(async {
        let responder: Rc<ByPath> = Rc::default();
        let (stream, _serving) = our_server(&responder);
        let (caller, _driving) = our_client(stream);
        {
            let mut waiting = Box::pin(exchange(&caller, Method::GET, "/wait", Content::of(Bytes::new())));
            while responder.waiting.get() == 0 {
                assert!(waits(&mut waiting).await);
                tokio::task::yield_now().await;
            }
        }
        while responder.waiting.get() > 0 {
            tokio::task::yield_now().await;
        }
        let (method, headers) = (Method::GET, HeaderMap::new());
        let (_, call) = caller.send(head(&method, "/silent", &headers), Content::of(Bytes::new())).await.unwrap();
        responder.dropped.set(false);
        drop(call);
        while !responder.dropped.get() {
            tokio::task::yield_now().await;
        }
        assert_eq!(caller.0.borrow().streams.held(), 0);
        exchange(&caller, Method::GET, "/size?1", Content::of(Bytes::new())).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_gives_up_much_leaves_the_connection_to_others() {
    local(async {
        let responder: Rc<ByPath> = Rc::default();
        let (stream, _serving) = our_server(&responder);
        let (caller, driving) = our_client(stream);
        let nothing = || Content::of(Bytes::new());
        let give_up = async |times| {
            for _ in 0..times {
                let mut waiting = Box::pin(exchange(&caller, Method::GET, "/wait", nothing()));
                assert!(waits(&mut waiting).await);
            }
            tokio::task::yield_now().await;
        };
        give_up(60).await;
        for _ in 0..20 {
            exchange(&caller, Method::GET, "/size?1", nothing()).await.unwrap();
        }
        give_up(20).await;
        assert!(caller.is_open(), "what came to its end makes good for what did not");
        let mut neighbour = Box::pin(exchange(&caller, Method::GET, "/wait", nothing()));
        assert!(waits(&mut neighbour).await);
        give_up(4).await;
        assert!(!caller.is_open(), "others begin elsewhere");
        exchange(&caller, Method::GET, "/size?1", nothing()).await.unwrap_err();
        // Who was there before is answered: the peer was never given a reason to end the connection.
        while responder.waiting.get() != 1 {
            assert!(waits(&mut neighbour).await);
            tokio::task::yield_now().await;
        }
        responder.open_door.notify_waiters();
        assert_eq!(neighbour.await.unwrap().1, "at last");
        drop(caller);
        assert_eq!(driving.await.unwrap(), "the connection is not needed any more");
    })
    .await;
}

#[tokio::test]
async fn an_answer_to_what_was_given_up_long_ago_ends_nothing() {
    local(async {
        let (mut theirs, ours) = tokio::io::duplex(1 << 20);
        let (caller, _driving) = our_client(ours);
        let nothing = || Content::of(Bytes::new());
        let server = async {
            by_hand(&mut theirs, b"", 0).await;
            while let Some((kind, _, stream, _)) = frame(&mut theirs).await {
                if kind == 1 && stream / 2 % 2 == 1 {
                    // The first of all was given up, and nobody remembers it at last.
                    let late = if stream > 1_190 {
                        [&raw(1, 0x4, 1, b"\x88")[..], &raw(0, 0x1, 1, b"late")].concat()
                    } else {
                        Vec::new()
                    };
                    theirs.write_all(&[late, raw(1, 0x5, stream, b"\x88")].concat()).await.unwrap();
                }
            }
        };
        let calling = async {
            for _ in 0..300 {
                let mut given_up = Box::pin(exchange(&caller, Method::GET, "/", nothing()));
                assert!(waits(&mut given_up).await);
                drop(given_up);
                let (parts, _, _) = exchange(&caller, Method::GET, "/", nothing()).await.unwrap();
                assert_eq!(parts.status, StatusCode::OK);
            }
        };
        tokio::select! {
            () = server => unreachable!("the connection goes on"),
            () = calling => {}
        }
    })
    .await;
}

#[tokio::test]
async fn the_rest_of_a_request_is_sent_while_nobody_reads_the_response() {
    local(async {
        let responder: Rc<ByPath> = Rc::default();
        let (stream, _serving) = our_server(&responder);
        let (caller, _driving) = our_client(stream);
        let (method, headers, sent) = (Method::POST, HeaderMap::new(), pattern(5 << 20));
        let body = Content::pieces(&sent, 10_000, None);
        let (_, call) = caller.send(head(&method, "/echo", &headers), body).await.unwrap();
        // As far as the windows go, it comes without being asked for.
        while call.body.hold().with(|conn, key| conn.streams.at(key).unread) < 65_000 {
            tokio::task::yield_now().await;
        }
        assert!(read_call(call).await.unwrap().0 == sent);
    })
    .await;
}

#[tokio::test]
async fn a_body_that_breaks_resets_its_stream() {
    local(async {
        let responder: Rc<ByPath> = Rc::default();
        let (stream, _serving) = our_server(&responder);
        let (caller, _driving) = our_client(stream);
        let failed = exchange(&caller, Method::POST, "/wait", Content::Broken).await.unwrap_err();
        assert_eq!(failed, "the body was cut off");
        while responder.waiting.get() > 0 || caller.0.borrow().streams.held() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Reads a frame: its type, flags, stream and payload.
async fn frame(stream: &mut DuplexStream) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

/// A peer made by hand, once it has read so many HEADERS.
async fn by_hand(stream: &mut DuplexStream, settings: &[u8], requests: usize) {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await.unwrap();
    let length = u8::try_from(settings.len()).unwrap();
    stream.write_all(&[&[0, 0, length, 4, 0, 0, 0, 0, 0][..], settings].concat()).await.unwrap();
    let mut read = 0;
    while read < requests {
        read += usize::from(frame(stream).await.unwrap().0 == 1);
    }
}

const RESPONSE: &[u8] = &[0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88];

#[tokio::test]
async fn what_the_peer_did_nothing_about_is_known_to_be_so() {
    local(async {
        for said in [
            // RST_STREAM of the second, REFUSED_STREAM.
            &[0, 0, 4, 3, 0, 0, 0, 0, 3, 0, 0, 0, 7][..],
            // GOAWAY, the last is the first.
            &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0],
        ] {
            let (mut theirs, ours) = tokio::io::duplex(64 * 1024);
            let (caller, _driving) = our_client(ours);
            let (method, headers) = (Method::POST, HeaderMap::new());
            let first = caller.send(head(&method, "/first", &headers), Content::of(Bytes::new()));
            let second = caller.send(head(&method, "/second", &headers), Content::of(Bytes::new()));
            let peer = async {
                by_hand(&mut theirs, &[], 2).await;
                theirs.write_all(&[said, RESPONSE].concat()).await.unwrap();
            };
            let (first, second, ()) = tokio::join!(first, second, peer);
            assert!(first.is_ok());
            let failed = second.unwrap_err();
            assert!(failed.refused && failed.body.is_some(), "{}", failed.detail);
            assert_eq!(caller.is_open(), said[3] == 3);
        }
    })
    .await;
}

#[tokio::test]
async fn a_reset_or_an_end_in_the_middle_is_not_known_to_be_harmless() {
    local(async {
        for (said, detail) in [
            (&[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 2][..], "the peer reset the stream: INTERNAL_ERROR"),
            (&[], "the peer closed the connection"),
            (&[0, 0, 0, 0, 0, 0, 0, 0, 0], "DATA on stream 0 (PROTOCOL_ERROR)"),
        ] {
            let (mut theirs, ours) = tokio::io::duplex(64 * 1024);
            let (caller, driving) = our_client(ours);
            let (method, headers) = (Method::POST, HeaderMap::new());
            let asking = caller.send(head(&method, "/", &headers), Content::of(Bytes::new()));
            let peer = async {
                by_hand(&mut theirs, &[], 1).await;
                theirs.write_all(said).await.unwrap();
                if said.is_empty() {
                    drop(theirs);
                } else if said[3] == 0 {
                    while frame(&mut theirs).await.is_some_and(|frame| frame.0 != 7) {}
                } else {
                    tokio::task::spawn_local(async move { while frame(&mut theirs).await.is_some() {} });
                }
            };
            let (failed, ()) = tokio::join!(asking, peer);
            let failed = failed.unwrap_err();
            assert!(!failed.refused, "{detail}");
            assert_eq!(failed.detail, detail);
            assert_eq!(caller.is_open(), said.len() > 9);
            if said.len() <= 9 {
                assert_eq!(driving.await.unwrap(), detail);
                let after = caller.send(head(&method, "/", &headers), Content::of(Bytes::new())).await.unwrap_err();
                assert!(after.refused && after.body.is_some());
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_never_left_us_is_known_not_to_be_processed() {
    local(async {
        // Room for the preface and settings, and not for a request.
        let (theirs, ours) = tokio::io::duplex(32);
        let (caller, _driving) = our_client(ours);
        let (method, headers) = (Method::POST, HeaderMap::new());
        let asking = caller.send(head(&method, "/", &headers), Content::of(pattern(10)));
        let peer = async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            drop(theirs);
        };
        let (failed, ()) = tokio::join!(asking, peer);
        assert!(failed.unwrap_err().refused);
    })
    .await;
}

#[tokio::test]
async fn what_was_said_not_to_be_sent_is_not_sent_afterwards() {
    local(async {
        for said in [&b"HTTP/1.1 400 What do you mean?\r\n"[..], &[]] {
            // Room for the preface and settings, and not for a request.
            let (mut theirs, ours) = tokio::io::duplex(32);
            let (caller, driving) = our_client(ours);
            let (method, headers) = (Method::POST, HeaderMap::new());
            let asking = caller.send(head(&method, "/", &headers), Content::of(pattern(10)));
            let peer = async {
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                theirs.write_all(said).await.unwrap();
                theirs.shutdown().await.unwrap();
                let mut preface = [0; 24];
                theirs.read_exact(&mut preface).await.unwrap();
                while let Some((kind, ..)) = frame(&mut theirs).await {
                    assert_ne!(kind, 1, "a request came all the same");
                }
            };
            let (failed, ()) = tokio::join!(asking, peer);
            assert!(failed.unwrap_err().refused);
            driving.await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_nobody_needs_is_ended_once_its_responses_are_read() {
    local(async {
        let responder: Rc<ByPath> = Rc::default();
        let (stream, serving) = our_server(&responder);
        let (caller, driving) = our_client(stream);
        let (method, headers) = (Method::GET, HeaderMap::new());
        let (_, call) = caller.send(head(&method, "/size?200000", &headers), Content::of(Bytes::new())).await.unwrap();
        drop(caller);
        assert_eq!(read_call(call).await.unwrap().0, pattern(200_000));
        assert_eq!(driving.await.unwrap(), "the connection is not needed any more");
        assert_eq!(serving.await.unwrap(), crate::codec::http1::serve::Ended::Well);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_gives_no_sign_of_life_fails_what_waits_for_it() {
    local(async {
        let (mut theirs, ours) = tokio::io::duplex(64 * 1024);
        let (caller, _driving) = our_client(ours);
        let (method, headers) = (Method::GET, HeaderMap::new());
        let begun = Instant::now();
        let asking = caller.send(head(&method, "/", &headers), Content::of(Bytes::new()));
        let peer = async {
            by_hand(&mut theirs, &[], 1).await;
            while frame(&mut theirs).await.is_some() {}
        };
        let (failed, ()) = tokio::join!(asking, peer);
        assert_eq!(failed.unwrap_err().detail, "the peer gives no sign of life");
        assert!(begun.elapsed() < Duration::from_secs(31), "{:?}", begun.elapsed());
    })
    .await;
}

#[tokio::test]
async fn settings_that_shrink_a_window_are_kept_to() {
    local(async {
        let (mut theirs, ours) = tokio::io::duplex(1024 * 1024);
        let (caller, _driving) = our_client(ours);
        let (method, headers) = (Method::POST, HeaderMap::new());
        let asking = caller.send(head(&method, "/", &headers), Content::of(pattern(50_000)));
        let peer = async {
            // SETTINGS_INITIAL_WINDOW_SIZE = 10 before anything else.
            let mut preface = [0; 24];
            theirs.write_all(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 10]).await.unwrap();
            theirs.read_exact(&mut preface).await.unwrap();
            let (mut came, mut acked) = (0_usize, false);
            loop {
                match frame(&mut theirs).await.unwrap() {
                    (0, flags, _, data) => {
                        came += data.len();
                        if flags & 1 != 0 {
                            break;
                        }
                        // One byte more than before each time, once it has heard of the small window.
                        if acked {
                            theirs.write_all(&[0, 0, 4, 8, 0, 0, 0, 0, 1, 0, 0, 200, 0]).await.unwrap();
                        }
                    }
                    (4, 1, ..) => {
                        acked = true;
                        theirs.write_all(&[0, 0, 4, 8, 0, 0, 0, 0, 1, 0, 1, 0, 0]).await.unwrap();
                        theirs.write_all(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 1, 0, 0]).await.unwrap();
                    }
                    _ => {}
                }
            }
            assert_eq!(came, 50_000);
            theirs.write_all(RESPONSE).await.unwrap();
        };
        let (sent, ()) = tokio::join!(asking, peer);
        assert_eq!(sent.map_err(|failed| failed.detail).unwrap().0.status, StatusCode::OK);
    })
    .await;
}
