//! The serving end against the `h2` crate's client.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::harness::*;
use crate::codec::http1::serve::Ended;

async fn exchange(
    client: &h2::client::SendRequest<Bytes>,
    method: &str,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes, Option<http::HeaderMap>), h2::Error> {
    let mut client = client.clone().ready().await?;
    let (response, mut sending) = client.send_request(ask(method, path), body.is_empty())?;
    let sent = async { if body.is_empty() { Ok(()) } else { send_all(&mut sending, body, true).await } };
    let received = async {
        let (head, mut body) = response.await?.into_parts();
        let bytes = read_all(&mut body).await?;
        Ok((head.status, bytes, body.trailers().await?))
    };
    let (_, received) = tokio::join!(sent, received);
    received
}

#[tokio::test]
async fn a_request_is_seen_as_it_was_sent_and_answered() {
    local(async {
        let responder = Rc::default();
        let (stream, _serving) = our_server(&responder);
        let mut client = h2_client(stream, 65_535).await;
        let mut request = ask("GET", "/size?1024");
        request.headers_mut().insert("x-id", HeaderValue::from_static("7"));
        request.headers_mut().append("cookie", HeaderValue::from_static("a=1"));
        request.headers_mut().append("cookie", HeaderValue::from_static("b=2"));
        let (response, _) = client.send_request(request, true).unwrap();
        let (head, mut body) = response.await.unwrap().into_parts();
        assert_eq!((head.status, head.version), (StatusCode::OK, Version::HTTP_2));
        assert_eq!(head.headers["x-served"], "here");
        assert_eq!(head.headers["content-length"], "1024");
        assert_eq!(read_all(&mut body).await.unwrap(), pattern(1024));
        let seen = responder.seen.borrow();
        assert_eq!(seen[0].uri(), "http://orders.shop/size?1024");
        assert_eq!(seen[0].version(), Version::HTTP_2);
        assert_eq!(seen[0].headers()["x-id"], "7");
        assert_eq!(seen[0].headers().get_all("cookie").iter().count(), 2);
        assert!(seen[0].headers().get("host").is_none());
    })
    .await;
}

#[tokio::test]
async fn bodies_of_every_size_pass_both_ways_through_windows_of_every_size() {
    local(async {
        for window in [1, 1_000, 65_535, 1 << 20] {
            let responder = Rc::default();
            let (stream, _serving) = our_server(&responder);
            let client = h2_client(stream, window).await;
            for size in [0, 1, 999, 1_024, 16_384, 16_385, 100_000, 1 << 20] {
                if window == 1 && size > 16_384 {
                    continue;
                }
                for path in ["/echo", "/collect"] {
                    let (status, back, _) = exchange(&client, "POST", path, pattern(size)).await.unwrap();
                    assert_eq!(status, StatusCode::OK);
                    assert!(back == pattern(size), "{path} {size} through {window}: {} bytes came back", back.len());
                }
                for path in ["/size", "/pieces", "/trailers"] {
                    let (_, back, trailing) =
                        exchange(&client, "GET", &format!("{path}?{size}"), Bytes::new()).await.unwrap();
                    assert!(back == pattern(size), "{path} {size} through {window}: {} bytes came", back.len());
                    assert_eq!(trailing, (path == "/trailers").then(trailers));
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn trailers_pass_both_ways_and_alone() {
    local(async {
        let responder = Rc::default();
        let (stream, _serving) = our_server(&responder);
        let mut client = h2_client(stream, 65_535).await;
        let (response, mut sending) = client.send_request(ask("POST", "/echo"), false).unwrap();
        send_all(&mut sending, pattern(70), false).await.unwrap();
        sending.send_trailers(trailers()).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(read_all(&mut body).await.unwrap(), pattern(70));
        assert_eq!(body.trailers().await.unwrap(), Some(trailers()));
        let (_, bytes, trailing) = exchange(&client, "GET", "/only-trailers", Bytes::new()).await.unwrap();
        assert_eq!((bytes.len(), trailing), (0, Some(trailers())));
    })
    .await;
}

#[tokio::test]
async fn a_thousand_streams_at_once_are_each_answered_right() {
    local(async {
        let responder = Rc::default();
        let (stream, _serving) = our_server(&responder);
        let client = h2_client(stream, 65_535).await;
        let asking = (0..1_000).map(|at| {
            let client = client.clone();
            async move {
                let size = at * 7 % 3_000;
                let (_, bytes, _) = exchange(&client, "POST", "/echo", pattern(size)).await.unwrap();
                assert!(bytes == pattern(size), "stream {at}");
            }
        });
        futures_util::future::join_all(asking).await;
    })
    .await;
}

#[tokio::test]
async fn no_body_follows_where_there_can_be_none() {
    local(async {
        let responder = Rc::default();
        let (stream, _serving) = our_server(&responder);
        let mut client = h2_client(stream, 65_535).await;
        let (response, _) = client.send_request(ask("HEAD", "/size?500"), true).unwrap();
        let response = response.await.unwrap();
        assert!(response.body().is_end_stream());
        let (status, bytes, _) = exchange(&client, "GET", "/204", Bytes::new()).await.unwrap();
        assert_eq!((status, bytes.len()), (StatusCode::NO_CONTENT, 0));
    })
    .await;
}

#[tokio::test]
async fn an_answer_without_reading_the_request_asks_the_caller_to_stop() {
    local(async {
        let responder = Rc::default();
        let (stream, _serving) = our_server(&responder);
        let client = h2_client(stream, 65_535).await;
        let (_, bytes, _) = exchange(&client, "POST", "/ignore", pattern(1 << 20)).await.unwrap();
        assert_eq!(bytes, "no thanks");
        // What came of the body took nothing of the others' room.
        for _ in 0..40 {
            let (_, bytes, _) = exchange(&client, "POST", "/ignore", pattern(200_000)).await.unwrap();
            assert_eq!(bytes, "no thanks");
        }
        let (_, bytes, _) = exchange(&client, "POST", "/echo", pattern(200_000)).await.unwrap();
        assert!(bytes == pattern(200_000));
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_resets_its_stream_ends_the_work_for_it() {
    local(async {
        for path in ["/wait", "/silent", "/endless"] {
            let responder: Rc<ByPath> = Rc::default();
            let (stream, _serving) = our_server(&responder);
            let mut client = h2_client(stream, 65_535).await;
            let (response, mut sending) = client.send_request(ask("GET", path), true).unwrap();
            if path != "/wait" {
                response.await.unwrap();
            } else {
                while responder.waiting.get() == 0 {
                    tokio::task::yield_now().await;
                }
            }
            sending.send_reset(h2::Reason::CANCEL);
            while path != "/endless" && !responder.dropped.get() {
                tokio::task::yield_now().await;
            }
            let (status, ..) = exchange(&client, "GET", "/size?3", Bytes::new()).await.unwrap();
            assert_eq!(status, StatusCode::OK, "the connection goes on");
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_breaks_resets_its_stream_alone() {
    local(async {
        let responder = Rc::default();
        let (stream, _serving) = our_server(&responder);
        let client = h2_client(stream, 65_535).await;
        let error = exchange(&client, "GET", "/broken", Bytes::new()).await.unwrap_err();
        assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR));
        exchange(&client, "GET", "/size?3", Bytes::new()).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn readers_that_stand_still_stop_nobody_else() {
    local(async {
        let responder = Rc::default();
        let (stream, _serving) = our_server(&responder);
        let mut client = h2_client(stream, 20_000).await;
        // Answers that are not read here, and requests that are not read there.
        let mut still = Vec::new();
        for _ in 0..2 {
            let (response, _) = client.send_request(ask("GET", "/endless"), true).unwrap();
            still.push((response.await.unwrap().into_body(), None));
        }
        for _ in 0..20 {
            let (response, mut sending) = client.send_request(ask("POST", "/silent"), false).unwrap();
            let body = response.await.unwrap().into_body();
            sending.reserve_capacity(60_000);
            sending.send_data(pattern(60_000), false).unwrap();
            still.push((body, Some(sending)));
        }
        for _ in 0..20 {
            let (_, bytes, _) = exchange(&client, "POST", "/echo", pattern(300_000)).await.unwrap();
            assert!(bytes == pattern(300_000));
        }
    })
    .await;
}

#[tokio::test]
async fn leaving_loses_nothing_that_was_asked() {
    local(async {
        let responder: Rc<ByPath> = Rc::default();
        let (go, going) = tokio::sync::oneshot::channel::<()>();
        let (stream, serving) = our_server_until(&responder, async {
            let _ = going.await;
        });
        let mut client = h2_client(stream, 65_535).await;
        let mut waiting = Vec::new();
        for _ in 0..10 {
            waiting.push(client.send_request(ask("GET", "/wait"), true).unwrap().0);
        }
        while responder.waiting.get() < 10 {
            tokio::task::yield_now().await;
        }
        go.send(()).unwrap();
        // Asked before the word can have come.
        waiting.push(client.send_request(ask("GET", "/size?7"), true).unwrap().0);
        let mut last = waiting.pop().unwrap().await.unwrap().into_body();
        assert_eq!(read_all(&mut last).await.unwrap(), pattern(7));
        let refused = loop {
            match client.clone().ready().await {
                Ok(mut client) => match client.send_request(ask("GET", "/size?1"), true) {
                    Ok((response, _)) => match response.await {
                        Ok(_) => {}
                        Err(error) => break error,
                    },
                    Err(error) => break error,
                },
                Err(error) => break error,
            }
        };
        assert!(refused.is_go_away() || refused.is_io() || refused.is_library(), "{refused}");
        responder.open_door.notify_waiters();
        for response in waiting {
            let mut body = response.await.unwrap().into_body();
            assert_eq!(read_all(&mut body).await.unwrap(), "at last");
        }
        assert_eq!(serving.await.unwrap(), Ended::Well);
    })
    .await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_answered_431() {
    local(async {
        let responder = Rc::default();
        let (stream, _serving) = our_server(&responder);
        let mut client = h2_client(stream, 65_535).await;
        let mut request = ask("GET", "/");
        for at in 0..8 {
            let name = http::HeaderName::try_from(format!("x-large-{at}")).unwrap();
            request.headers_mut().insert(name, HeaderValue::try_from("v".repeat(9_000)).unwrap());
        }
        match client.send_request(request, true) {
            // It reads in our SETTINGS that we would not take it.
            Err(error) => {
                assert!(error.is_library() || error.is_reset() || error.to_string().contains("big"), "{error}");
            }
            Ok((response, _)) => assert_eq!(response.await.unwrap().status(), 431),
        }
        let (status, ..) = exchange(&client, "GET", "/size?3", Bytes::new()).await.unwrap();
        assert_eq!(status, StatusCode::OK);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_gives_no_sign_of_life_is_let_go() {
    local(async {
        let responder: Rc<ByPath> = Rc::default();
        let (mut theirs, serving) = our_server(&responder);
        theirs.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let begun = tokio::time::Instant::now();
        let mut said = Vec::new();
        theirs.read_to_end(&mut said).await.unwrap();
        assert_eq!(serving.await.unwrap(), Ended::Broken("ping_timeout"));
        let after = begun.elapsed();
        assert!((Duration::from_secs(30)..Duration::from_secs(31)).contains(&after), "{after:?}");
        assert!(said.windows(8).any(|window| window == b"alive?.."));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_begun_and_not_finished_is_not_waited_for_long() {
    local(async {
        for begun in [
            &b"PRI * HTT"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            // HEADERS without END_HEADERS.
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\0\0\0\0\x01\x82",
        ] {
            let responder: Rc<ByPath> = Rc::default();
            let (mut theirs, serving) = our_server(&responder);
            theirs.write_all(begun).await.unwrap();
            let began = tokio::time::Instant::now();
            assert_eq!(serving.await.unwrap(), Ended::Broken("head_timeout"));
            assert!(began.elapsed() < PATIENCE.head + Duration::from_millis(10), "{:?}", began.elapsed());
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_nobody_uses_is_ended_politely() {
    local_within(2 * PATIENCE.idle, async {
        let responder: Rc<ByPath> = Rc::default();
        let (mut theirs, serving) = our_server(&responder);
        theirs.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let begun = tokio::time::Instant::now();
        // A peer that answers every PING, and nothing else.
        let mut head = [0; 9];
        let mut left = false;
        while theirs.read_exact(&mut head).await.is_ok() {
            let mut payload = vec![0; usize::from(head[1]) * 256 + usize::from(head[2])];
            theirs.read_exact(&mut payload).await.unwrap();
            if head[3] == 6 && head[4] == 0 {
                let answer = [&[0, 0, 8, 6, 1, 0, 0, 0, 0][..], &payload].concat();
                theirs.write_all(&answer).await.unwrap();
            }
            left |= head[3] == 7;
        }
        assert!(left, "it is told");
        assert_eq!(serving.await.unwrap(), Ended::Well);
        assert!(begun.elapsed() >= PATIENCE.idle && begun.elapsed() < PATIENCE.idle + Duration::from_secs(60));
    })
    .await;
}
