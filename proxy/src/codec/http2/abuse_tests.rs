//! What a hostile peer sends, and what chance does: bounded, and never the end of more than its own connection.

use std::rc::Rc;
use std::time::Duration;

use http::{HeaderMap, Method};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::bad::Code;
use super::by_hand::*;
use super::call::{self, Head};
use super::frame::{Frame, PREFACE};
use super::harness::*;
use crate::codec::{Early, Link};

/// Sends `frame` again and again until the connection ends for it.
async fn floods(frames: impl Fn(u32) -> Vec<u8>) {
    let mut client = Raw::new().await;
    let mut bytes = headers(END_HEADERS, 1, &get("/wait"));
    for number in 1..3_000 {
        bytes.extend(frames(number));
    }
    // What it answers is not read meanwhile: it must end nevertheless.
    client.send(&bytes).await;
    let mut end = None;
    while let Some(frame) = client.next().await {
        end = Some(frame);
    }
    assert!(matches!(end, Some(Frame::GoAway { code: Code::ENHANCE_YOUR_CALM, .. })), "{end:?}");
    tokio::task::yield_now().await;
    assert_eq!(client.responder.waiting.get(), 0, "nothing is left to do");
}

#[tokio::test]
async fn whoever_floods_is_let_go() {
    local(async {
        floods(|_| raw(6, 0, 0, &[0; 8])).await;
        floods(|_| raw(4, 0, 0, b"")).await;
        floods(|_| raw(4, 1, 0, b"")).await;
        floods(|_| data(0, 1, b"")).await;
        floods(|_| data(0x8, 1, b"\0")).await;
        floods(|number| raw(2, 0, 2 * number + 1, &[0, 0, 0, 0, 16])).await;
        floods(|_| raw(8, 0, 0, &[0, 0, 0, 1])).await;
        floods(|_| raw(0xee, 0, 0, b"")).await;
        floods(|_| raw(7, 0, 0, &[0; 8])).await;
    })
    .await;
}

#[tokio::test]
async fn rapid_reset_is_bounded_whoever_resets() {
    local(async {
        let begin = |number: u32| headers(END_HEADERS, 2 * number + 1, &get("/wait"));
        let rapid = |number: u32| [begin(number), raw(3, 0, 2 * number + 1, &[0, 0, 0, 8])].concat();
        floods(rapid).await;
        // Made to reset ourselves (CVE-2025-8671).
        floods(|number| [begin(number), raw(8, 0, 2 * number + 1, &[0; 4])].concat()).await;
        floods(|number| [begin(number), raw(2, 0, 2 * number + 1, b"")].concat()).await;
    })
    .await;
}

#[tokio::test]
async fn a_header_block_without_an_end_is_not_waited_for() {
    local(async {
        for piece in [&b""[..], b"x", &[0; 16_384]] {
            let mut bytes = headers(END_STREAM, 1, b"");
            for _ in 0..20 {
                bytes.extend(raw(9, 0, 1, piece));
            }
            Raw::new().await.ends(&bytes, Code::ENHANCE_YOUR_CALM).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_header_bomb_is_answered_431_and_the_connection_goes_on() {
    local(async {
        let mut client = Raw::new().await;
        let bomb = [get("/"), vec![0x40, 1, b'a', 0x7f, 0xa1, 0x1e], vec![b'v'; 4_000], vec![0xbe; 12_000]].concat();
        client.send(&headers(BOTH, 1, &bomb)).await;
        assert_eq!(client.answer(1).await.0, 431);
        let many = [get("/"), block(&["x: 1"]).repeat(101)].concat();
        client.send(&headers(BOTH, 3, &many)).await;
        assert_eq!(client.answer(3).await.0, 431);
        client.send(&headers(BOTH, 5, &get("/size?5"))).await;
        assert_eq!(client.answer(5).await, (200, pattern(5)));
    })
    .await;
}

#[tokio::test]
async fn whatever_comes_nothing_breaks() {
    local(async {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut client = Raw::new().await;
            let mut bytes = Vec::new();
            for _ in 0..random.usize(1..60) {
                let stream = random.u32(0..8);
                let mut payload = vec![0; random.usize(..12)];
                random.fill(&mut payload);
                bytes.extend(match random.u8(..12) {
                    0 | 1 => headers(random.u8(..) & 0x2d, stream | 1, &get("/echo")),
                    2 => headers(BOTH, random.u32(..40) | 1, &get("/trailers?9000")),
                    3 => headers(END_HEADERS, random.u32(..40) | 1, &post_with(&[])),
                    4 => data(random.u8(..) & 1, stream, &payload),
                    5 => raw(8, 0, stream, &[0, 0, random.u8(..), 1]),
                    6 => raw(3, 0, stream | 1, &[0, 0, 0, 8]),
                    7 => setting(random.u16(..9), random.u32(..1 << 24)),
                    8 => raw(9, random.u8(..) & 4, stream | 1, &payload),
                    _ => raw(random.u8(..11), random.u8(..), stream, &payload),
                });
            }
            client.send(&bytes).await;
            client.stream.shutdown().await.unwrap();
            while let Some(frame) = client.next().await {
                if let Frame::GoAway { code, .. } = frame {
                    assert_ne!(code, Code::INTERNAL_ERROR, "seed {seed}");
                }
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_crosses_the_last_word_disturbs_nothing_that_is_finished() {
    local_within(Duration::from_secs(600), async {
        let (time_to_go, gone) = tokio::sync::oneshot::channel::<()>();
        let responder = Rc::default();
        let (stream, _serving) = our_server_until(&responder, async move { _ = gone.await });
        let mut client = Raw::of(stream, responder);
        client.send(&[&PREFACE[..], &raw(4, 0, 0, b""), &headers(BOTH, 1, &get("/wait"))].concat()).await;
        client.alive().await;
        time_to_go.send(()).unwrap();
        // Its question whether this was heard is not answered: it waits no longer than it must.
        let mut last = u32::MAX;
        while last != 1 {
            if let Frame::GoAway { last: said, code, .. } = client.next().await.expect("the connection goes on") {
                assert_eq!(code, Code::NO_ERROR);
                last = said;
            }
        }
        let late = [
            headers(END_HEADERS, 3, &post_with(&[])),
            data(0, 3, b"late"),
            raw(8, 0, 3, &[0, 0, 0, 1]),
            data(END_STREAM, 3, b"too"),
            headers(BOTH, 5, &get("/size?5")),
            raw(3, 0, 5, &[0, 0, 0, 8]),
        ];
        client.send(&late.concat()).await;
        client.alive().await;
        client.responder.open_door.notify_one();
        assert_eq!(client.answer(1).await.1, "at last");
        assert_eq!(client.responder.seen.borrow().len(), 1);
    })
    .await;
}

/// Asks our calling end for a response, and lets a server say `bytes` then and go; what came of it, in words.
async fn answered_with(bytes: &[u8]) -> String {
    let (mut theirs, ours) = tokio::io::duplex(1 << 20);
    let (caller, driving) = call::begin(Link::new(ours));
    let driving = tokio::task::spawn_local(driving);
    let (method, none, early) = (Method::GET, HeaderMap::new(), Early::new());
    let head = Head { method: &method, authority: "a", target: "/", headers: &none, early: &early };
    let asked = caller.send(head, Content::of(bytes::Bytes::new()));
    let server = async {
        theirs.write_all(&[&raw(4, 0, 0, b"")[..], bytes].concat()).await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut said = Vec::new();
        theirs.read_to_end(&mut said).await.unwrap();
        said
    };
    let read = async {
        match asked.await {
            Ok((parts, mut call)) => {
                let mut length = 0;
                while let Some(frame) = std::future::poll_fn(|cx| call.poll_frame(cx)).await {
                    match frame {
                        Ok(frame) => length += frame.into_data().map_or(0, |data| data.len()),
                        Err(error) => return format!("{} {length} {error}", parts.status.as_str()),
                    }
                }
                format!("{} {length}", parts.status.as_str())
            }
            Err(failed) => failed.detail,
        }
    };
    let (answer, _) = tokio::join!(read, server);
    drop(caller);
    driving.await.unwrap();
    answer
}

#[tokio::test]
async fn a_server_that_breaks_the_rules_is_not_believed() {
    local(async {
        let ok = headers(END_HEADERS, 1, &block(&[":status: 200"]));
        let all = [&ok[..], &data(END_STREAM, 1, b"four")].concat();
        assert_eq!(answered_with(&all).await, "200 4");
        for (bytes, why) in [
            (setting(2, 1), "pushed"),
            (raw(5, END_HEADERS, 1, b"\0\0\0\x02\x82"), "pushed"),
            (headers(END_HEADERS, 2, &block(&[":status: 200"])), "not begun"),
            (headers(END_HEADERS, 3, &block(&[":status: 200"])), "not begun"),
            (data(0, 3, b"x"), "not begun"),
            (headers(BOTH, 1, b"\x80"), "table"),
            (headers(BOTH, 1, &block(&[":status: 101"])), "switch of protocols"),
            (headers(BOTH, 1, &block(&[":status: 103"])), "interim"),
            (headers(BOTH, 1, &block(&["x: 1"])), "without a status"),
            (headers(BOTH, 1, &block(&[":status: 200", ":path: /"])), "only requests"),
            (headers(BOTH, 1, &block(&[":status: 200", "connection: close"])), "HTTP/1.1"),
            (headers(BOTH, 1, &block(&[":status: 200", "content-length: 3"])), "content-length"),
            (data(0, 1, b"x"), "before the head"),
            (headers(END_HEADERS, 1, &block(&[":status: 103"])).repeat(2_000), "interim"),
        ] {
            let answer = answered_with(&bytes).await;
            assert!(answer.contains(why), "{why} was expected: {answer}");
        }
        for (bytes, begins) in [
            ([&ok[..], &headers(END_HEADERS, 1, &block(&[":status: 200"]))].concat(), "200 0 "),
            ([&ok[..], &headers(BOTH, 1, &block(&[":status: 200"]))].concat(), "200 0 "),
            ([&ok[..], &data(0x8, 1, b"\x09x")].concat(), "200 0 "),
            ([&ok[..], &data(0, 1, b"four")].concat(), "200 4 "),
        ] {
            let answer = answered_with(&bytes).await;
            assert!(answer.starts_with(begins), "{begins} was expected: {answer}");
        }
    })
    .await;
}

#[tokio::test]
async fn whatever_a_server_says_a_call_comes_to_its_end() {
    local(async {
        for seed in 0..400 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut bytes = Vec::new();
            for _ in 0..random.usize(1..20) {
                let stream = random.u32(0..4);
                let mut payload = vec![0; random.usize(..12)];
                random.fill(&mut payload);
                bytes.extend(match random.u8(..9) {
                    0 => headers(random.u8(..) & 0x2d, 1, &block(&[":status: 200"])),
                    1 => headers(END_HEADERS, 1, &block(&[":status: 103"])),
                    2 => data(random.u8(..) & 9, 1, &payload),
                    3 => raw(8, 0, stream, &[0, 0, random.u8(..), 1]),
                    4 => setting(random.u16(..9), random.u32(..1 << 24)),
                    5 => raw(9, random.u8(..) & 4, 1, &payload),
                    6 => raw(7, 0, 0, &[0, 0, 0, random.u8(..3), 0, 0, 0, 0]),
                    _ => raw(random.u8(..11), random.u8(..), stream, &payload),
                });
            }
            answered_with(&bytes).await;
        }
    })
    .await;
}
