//! RFC 9113, MUST by MUST, against the serving end, frame by frame as h2spec goes through it.
//!
//! Where the specification leaves a choice (a stream's error or the connection's, a reset or an answer) the test says ours.

use bytes::Bytes;
use tokio::io::AsyncReadExt;

use super::bad::Code;
use super::by_hand::*;
use super::frame::{Frame, PREFACE, Settings};
use super::harness::*;

#[tokio::test]
async fn section_3_4_the_preface_and_settings_come_first() {
    local(async {
        Raw::silent().ends(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", Code::PROTOCOL_ERROR).await;
        Raw::silent().ends(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", Code::PROTOCOL_ERROR).await;
        for first in [raw(6, 0, 0, &[0; 8]), raw(4, 1, 0, b""), headers(BOTH, 1, &get("/")), raw(0x42, 0, 0, b"")] {
            Raw::silent().ends(&[&PREFACE[..], &first].concat(), Code::PROTOCOL_ERROR).await;
        }
        let mut client = Raw::silent();
        for byte in [&PREFACE[..], &raw(4, 0, 0, b"")].concat() {
            client.send(&[byte]).await;
        }
        client.alive().await;
    })
    .await;
}

#[tokio::test]
async fn section_4_1_what_is_unknown_is_ignored() {
    local(async {
        let mut client = Raw::new().await;
        client.send(&raw(0xee, 0xff, 0, b"what")).await;
        client.send(&raw(0xee, 0xff, 1, b"what")).await;
        client.send(&raw(6, 0xfe, 0x8000_0000, b"undefine")).await;
        assert!(client.alive().await.contains(&Frame::Ping { ack: true, data: *b"undefine" }));
        client.send(&headers(BOTH | 0xd2, 0x8000_0001, &get("/size?3"))).await;
        assert_eq!(client.answer(1).await, (200, pattern(3)));
    })
    .await;
}

#[tokio::test]
async fn section_4_2_frames_have_a_largest_size() {
    local(async {
        let mut client = Raw::new().await;
        client.send(&headers(END_HEADERS, 1, &post_with(&[]))).await;
        client.send(&data(END_STREAM, 1, &pattern(16_384))).await;
        assert_eq!(client.answer(1).await, (200, pattern(16_384)));
        client.send(&headers(END_HEADERS, 3, &post_with(&[]))).await;
        client.send(&data(END_STREAM, 3, &pattern(40_000))).await;
        assert_eq!(client.answer(3).await, (200, pattern(40_000)));
        client.ends(&data(END_STREAM, 5, &[0; 65_537]), Code::FRAME_SIZE_ERROR).await;
        Raw::new().await.ends(&headers(BOTH, 1, &[0; 65_537]), Code::FRAME_SIZE_ERROR).await;
    })
    .await;
}

#[tokio::test]
async fn section_4_3_header_blocks_are_whole_and_alone() {
    local(async {
        for broken in [&b"\x80"[..], b"\xff\xff\xff\xff\xff\xff", b"\x40\x01", b"\x3f\xff\x7f"] {
            Raw::new().await.ends(&headers(BOTH, 1, broken), Code::COMPRESSION_ERROR).await;
            // Of a stream that has ended too.
            let mut client = Raw::new().await;
            client.send(&headers(BOTH, 1, &get("/wait"))).await;
            client.send(&raw(3, 0, 1, &[0, 0, 0, 8])).await;
            client.ends(&headers(BOTH, 1, broken), Code::COMPRESSION_ERROR).await;
        }
        let begun = headers(END_STREAM, 1, &get("/"));
        for between in [
            raw(2, 0, 3, &[0, 0, 0, 0, 16]),
            raw(2, 0, 3, &[0]),
            raw(8, 0, 1, &[0; 4]),
            raw(0xee, 0, 1, b""),
            raw(6, 0, 0, &[0; 8]),
            data(0, 1, b""),
            headers(BOTH, 3, &get("/")),
            headers(BOTH, 1, &get("/")),
            raw(9, END_HEADERS, 3, b""),
        ] {
            Raw::new().await.ends(&[&begun[..], &between].concat(), Code::PROTOCOL_ERROR).await;
        }
        let mut client = Raw::new().await;
        let head = get("/size?7");
        client.send(&headers(END_STREAM, 1, &head[..1])).await;
        for byte in &head[1..9] {
            client.send(&raw(9, 0, 1, &[*byte])).await;
        }
        client.send(&raw(9, END_HEADERS, 1, &head[9..])).await;
        assert_eq!(client.answer(1).await, (200, pattern(7)));
    })
    .await;
}

#[tokio::test]
async fn section_5_1_nothing_is_said_on_a_stream_that_was_not_begun() {
    local(async {
        for frame in [
            data(END_STREAM, 1, b"x"),
            data(END_STREAM, 2, b"x"),
            raw(3, 0, 1, &[0; 4]),
            raw(3, 0, 2, &[0; 4]),
            raw(8, 0, 1, &[0, 0, 0, 1]),
            raw(9, END_HEADERS, 1, &get("/")),
        ] {
            Raw::new().await.ends(&frame, Code::PROTOCOL_ERROR).await;
        }
        let mut client = Raw::new().await;
        client.send(&raw(2, 0, 9, &[0, 0, 0, 0, 16])).await;
        client.alive().await;
    })
    .await;
}

#[tokio::test]
async fn section_5_1_nothing_follows_the_end_of_a_stream() {
    local(async {
        for late in [data(END_STREAM, 1, b"x"), data(0, 1, b""), headers(BOTH, 1, &get("/"))] {
            // Half-closed: it is being worked on.
            let mut client = Raw::new().await;
            client.send(&headers(BOTH, 1, &get("/wait"))).await;
            client.resets(&late, 1, Code::STREAM_CLOSED).await;
        }
        for late in [data(END_STREAM, 1, b"x"), data(0, 1, b"")] {
            // Reset by us for it, once.
            let mut client = Raw::new().await;
            client.send(&headers(BOTH, 1, &get("/204"))).await;
            client.answer(1).await;
            client.resets(&late, 1, Code::STREAM_CLOSED).await;
            // Reset by itself.
            let mut client = Raw::new().await;
            client.send(&headers(END_HEADERS, 1, &get("/wait"))).await;
            client.send(&raw(3, 0, 1, &[0, 0, 0, 8])).await;
            client.resets(&late, 1, Code::STREAM_CLOSED).await;
        }
        let mut client = Raw::new().await;
        client.send(&headers(BOTH, 1, &get("/204"))).await;
        client.answer(1).await;
        client.ends(&headers(BOTH, 1, &get("/")), Code::STREAM_CLOSED).await;
        // What may cross the end on its way is ignored.
        let mut client = Raw::new().await;
        client.send(&headers(BOTH, 1, &get("/204"))).await;
        client.answer(1).await;
        for late in [raw(8, 0, 1, &[0, 0, 0, 1]), raw(3, 0, 1, &[0, 0, 0, 8]), raw(2, 0, 1, &[0, 0, 0, 0, 16])] {
            client.send(&late).await;
        }
        client.alive().await;
        client.ends(&raw(9, END_HEADERS, 1, b""), Code::PROTOCOL_ERROR).await;
    })
    .await;
}

#[tokio::test]
async fn section_5_1_1_numbers_are_odd_and_grow() {
    local(async {
        Raw::new().await.ends(&headers(BOTH, 2, &get("/")), Code::PROTOCOL_ERROR).await;
        let mut client = Raw::new().await;
        client.send(&headers(BOTH, 5, &get("/204"))).await;
        assert_eq!(client.answer(5).await.0, 204);
        client.ends(&headers(BOTH, 3, &get("/")), Code::PROTOCOL_ERROR).await;
        let mut client = Raw::new().await;
        client.send(&headers(BOTH, 0x7fff_ffff, &get("/size?1"))).await;
        assert_eq!(client.answer(0x7fff_ffff).await.0, 200);
    })
    .await;
}

#[tokio::test]
async fn section_5_1_2_streams_beyond_what_is_allowed_are_refused() {
    local(async {
        let mut client = Raw::new().await;
        let mut all = Vec::new();
        for number in 0..super::STREAMS {
            all.extend(headers(BOTH, 2 * number + 1, &get("/wait")));
        }
        client.send(&all).await;
        let said = client.alive().await;
        assert!(!said.iter().any(|frame| matches!(frame, Frame::Reset { .. })));
        let next = 2 * super::STREAMS + 1;
        client.resets(&headers(BOTH, next, &get("/wait")), next, Code::REFUSED_STREAM).await;
        assert_eq!(client.responder.waiting.get(), super::STREAMS as usize);
        client.send(&raw(3, 0, 1, &[0, 0, 0, 8])).await;
        client.alive().await;
        client.send(&headers(BOTH, next + 2, &get("/size?2"))).await;
        assert_eq!(client.answer(next + 2).await, (200, pattern(2)));
    })
    .await;
}

#[tokio::test]
async fn section_6_1_and_6_2_padding_and_priority_fit() {
    local(async {
        let open = headers(END_HEADERS, 1, &post_with(&[]));
        for (frame, code) in [
            (data(END_STREAM, 0, b"x"), Code::PROTOCOL_ERROR),
            (data(0x8, 1, b"\x06hello"), Code::PROTOCOL_ERROR),
            (data(0x8, 1, b""), Code::FRAME_SIZE_ERROR),
            (headers(BOTH, 0, &get("/")), Code::PROTOCOL_ERROR),
            (headers(BOTH | 0x8, 3, b"\xff\x82"), Code::PROTOCOL_ERROR),
            (headers(BOTH | 0x20, 3, b"\0\0\0\x03\x10\x82"), Code::PROTOCOL_ERROR),
        ] {
            Raw::new().await.ends(&[&open[..], &frame].concat(), code).await;
        }
        let mut client = Raw::new().await;
        client
            .send(&headers(END_HEADERS | 0x28, 1, &[b"\x03\0\0\0\x00\x10", &post_with(&[])[..], b"pad"].concat()))
            .await;
        client.send(&data(END_STREAM | 0x8, 1, b"\x04hello\0\0\0\0")).await;
        assert_eq!(client.answer(1).await, (200, Bytes::from_static(b"hello")));
    })
    .await;
}

#[tokio::test]
async fn section_6_3_to_6_8_small_frames_have_their_sizes_and_places() {
    local(async {
        for (frame, code) in [
            (raw(2, 0, 0, &[0; 5]), Code::PROTOCOL_ERROR),
            (raw(3, 0, 0, &[0; 4]), Code::PROTOCOL_ERROR),
            (raw(3, 0, 1, &[0; 3]), Code::FRAME_SIZE_ERROR),
            (raw(4, 1, 0, &[0; 6]), Code::FRAME_SIZE_ERROR),
            (raw(4, 0, 1, &[0; 6]), Code::PROTOCOL_ERROR),
            (raw(4, 0, 0, &[0; 3]), Code::FRAME_SIZE_ERROR),
            (setting(2, 2), Code::PROTOCOL_ERROR),
            (setting(4, 1 << 31), Code::FLOW_CONTROL_ERROR),
            (setting(5, 16_383), Code::PROTOCOL_ERROR),
            (setting(5, 1 << 24), Code::PROTOCOL_ERROR),
            (raw(5, END_HEADERS, 1, b"\0\0\0\x02\x82"), Code::PROTOCOL_ERROR),
            (raw(6, 0, 1, &[0; 8]), Code::PROTOCOL_ERROR),
            (raw(6, 0, 0, &[0; 6]), Code::FRAME_SIZE_ERROR),
            (raw(7, 0, 1, &[0; 8]), Code::PROTOCOL_ERROR),
            (raw(7, 0, 0, &[0; 7]), Code::FRAME_SIZE_ERROR),
            (raw(8, 0, 0, &[0; 4]), Code::PROTOCOL_ERROR),
            (raw(8, 0, 0, &[0; 3]), Code::FRAME_SIZE_ERROR),
        ] {
            let begin = headers(BOTH, 1, &get("/wait"));
            Raw::new().await.ends(&[&begin[..], &frame].concat(), code).await;
        }
        let mut client = Raw::new().await;
        client.send(&headers(BOTH, 1, &get("/wait"))).await;
        client.resets(&raw(2, 0, 1, &[0; 4]), 1, Code::FRAME_SIZE_ERROR).await;
    })
    .await;
}

#[tokio::test]
async fn section_6_5_settings_are_taken_and_acknowledged_in_order() {
    local(async {
        let mut client = Raw::new().await;
        client.send(&setting(0x9999, 7)).await;
        client.send(&setting(1, 0)).await;
        client.send(&[&setting(2, 0)[..], &setting(2, 1)].concat()).await;
        let said = client.alive().await;
        assert_eq!(said, [Frame::SettingsAck, Frame::SettingsAck, Frame::SettingsAck, Frame::SettingsAck]);
        client.send(&headers(BOTH, 1, &get("/size?9"))).await;
        assert_eq!(client.answer(1).await, (200, pattern(9)));
        // Larger frames are allowed, not asked for.
        client.send(&setting(5, 1 << 20)).await;
        client.send(&setting(4, 1 << 20)).await;
        client.send(&headers(BOTH, 3, &get("/size?60000"))).await;
        let mut inbox = Vec::new();
        while inbox.len() < 60_000 {
            assert!(client.stream.read_buf(&mut inbox).await.unwrap() > 0);
        }
    })
    .await;
}

#[tokio::test]
async fn section_6_7_a_ping_is_answered_and_an_answer_is_not() {
    local(async {
        let mut client = Raw::new().await;
        client.send(&raw(6, 1, 0, b"answered")).await;
        client.send(&raw(6, 0, 0, b"question")).await;
        assert_eq!(client.alive().await, [Frame::Ping { ack: true, data: *b"question" }]);
    })
    .await;
}

#[tokio::test]
async fn section_6_9_windows_are_kept() {
    local(async {
        let one = Settings { initial_window_size: Some(1), ..Settings::default() };
        let mut client = Raw::with(&one).await;
        client.send(&headers(BOTH, 1, &get("/size?4"))).await;
        let pieces = |said: &[Frame]| {
            let pieces = said.iter().filter_map(|frame| match frame {
                Frame::Data { data, .. } => Some(data.clone()),
                _ => None,
            });
            pieces.collect::<Vec<_>>()
        };
        let mut said = client.alive().await;
        while pieces(&said).is_empty() {
            said.extend(client.next().await);
        }
        assert_eq!(pieces(&said), [pattern(1)]);
        assert!(pieces(&client.alive().await).is_empty());
        client.send(&setting(4, 2)).await;
        let mut said = client.alive().await;
        while pieces(&said).is_empty() {
            said.extend(client.next().await);
        }
        assert_eq!(pieces(&said), [pattern(2).slice(1..)]);
        // Below zero, and up again.
        client.send(&setting(4, 0)).await;
        client.send(&raw(8, 0, 1, &[0, 0, 0, 2])).await;
        assert!(pieces(&client.alive().await).is_empty());
        client.send(&raw(8, 0, 1, &[0, 0, 0, 2])).await;
        assert_eq!(client.answer(1).await.1, pattern(4).slice(2..));
    })
    .await;
}

#[tokio::test]
async fn section_6_9_windows_do_not_grow_beyond_their_largest() {
    local(async {
        let most = (1u32 << 31) - 1;
        let wider = |stream| raw(8, 0, stream, &most.to_be_bytes());
        Raw::new().await.ends(&wider(0), Code::FLOW_CONTROL_ERROR).await;
        let mut client = Raw::new().await;
        client.send(&headers(BOTH, 1, &get("/wait"))).await;
        client.resets(&wider(1), 1, Code::FLOW_CONTROL_ERROR).await;
        client.send(&headers(BOTH, 3, &get("/wait"))).await;
        client.resets(&raw(8, 0, 3, &[0; 4]), 3, Code::PROTOCOL_ERROR).await;
        let mut client = Raw::new().await;
        client.send(&headers(BOTH, 1, &get("/wait"))).await;
        client.send(&raw(8, 0, 1, &(most - 65_535).to_be_bytes())).await;
        client.alive().await;
        client.ends(&setting(4, 65_536), Code::FLOW_CONTROL_ERROR).await;
    })
    .await;
}

#[tokio::test]
async fn section_6_9_no_more_comes_than_we_allowed() {
    local(async {
        let mut client = Raw::new().await;
        client.send(&headers(END_HEADERS, 1, &get("/wait"))).await;
        for _ in 0..3 {
            client.send(&data(0, 1, &[7; 16_384])).await;
        }
        // 65,535 in all, padding counts: 49,152, 16,382 and a byte.
        client.send(&data(0x8, 1, &[&[255][..], &[7; 16_382]].concat())).await;
        client.alive().await;
        client.resets(&data(0, 1, &[7; 2]), 1, Code::FLOW_CONTROL_ERROR).await;
    })
    .await;
}

#[tokio::test]
async fn section_7_codes_that_nobody_knows_mean_no_harm() {
    local(async {
        let mut client = Raw::new().await;
        client.send(&headers(BOTH, 1, &get("/wait"))).await;
        client.send(&raw(3, 0, 1, &[0xff; 4])).await;
        client.send(&raw(7, 0, 0, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])).await;
        client.alive().await;
        assert!(client.responder.dropped.get());
    })
    .await;
}

#[tokio::test]
async fn section_8_1_a_request_is_one_head_a_body_and_trailers() {
    local(async {
        let open = headers(END_HEADERS, 1, &post_with(&[]));
        for (more, code) in [
            (headers(END_HEADERS, 1, &block(&["x: 1"])), Code::PROTOCOL_ERROR),
            (headers(BOTH, 1, &block(&[":path: /"])), Code::PROTOCOL_ERROR),
            (headers(BOTH, 1, &block(&["X: 1"])), Code::PROTOCOL_ERROR),
            (headers(BOTH, 1, &block(&["connection: x"])), Code::PROTOCOL_ERROR),
        ] {
            let mut client = Raw::new().await;
            client.send(&open).await;
            client.resets(&more, 1, code).await;
        }
        let mut client = Raw::new().await;
        client.send(&[&open[..], &data(0, 1, b"body"), &headers(BOTH, 1, &block(&["x: 1"]))].concat()).await;
        assert_eq!(client.answer(1).await, (200, Bytes::from_static(b"body")));
    })
    .await;
}

#[tokio::test]
async fn section_8_1_1_a_body_is_as_long_as_content_length_says() {
    local(async {
        for (length, pieces) in [("3", vec![b"four"]), ("5", vec![b"four"]), ("7", vec![b"four", b"four"])] {
            let mut client = Raw::new().await;
            let last = pieces.len() - 1;
            let mut bytes = headers(END_HEADERS, 1, &post_with(&[&format!("content-length: {length}")]));
            for (at, piece) in pieces.iter().enumerate() {
                bytes.extend(data(if at == last { END_STREAM } else { 0 }, 1, *piece));
            }
            client.resets(&bytes, 1, Code::PROTOCOL_ERROR).await;
        }
        let mut client = Raw::new().await;
        let short = [
            headers(END_HEADERS, 1, &post_with(&["content-length: 5"])),
            data(0, 1, b"four"),
            headers(BOTH, 1, &block(&["x: 1"])),
        ];
        client.resets(&short.concat(), 1, Code::PROTOCOL_ERROR).await;
        client.send(&headers(BOTH, 3, &post_with(&["content-length: 1"]))).await;
        assert_eq!(client.answer(3).await.0, 400);
    })
    .await;
}

#[tokio::test]
async fn sections_8_2_and_8_3_a_malformed_head_is_answered_400_and_goes_nowhere() {
    local(async {
        let mut client = Raw::new().await;
        let fields = [":method: GET", ":scheme: http", ":authority: a", ":path: /"];
        let mut heads: Vec<Vec<u8>> = [
            "X: 1",
            ":unknown: 1",
            ":status: 200",
            "connection: keep-alive",
            "keep-alive: 1",
            "proxy-connection: x",
            "transfer-encoding: chunked",
            "upgrade: h2c",
            "te: trailers, deflate",
            "host: other",
            "x:  1",
            "x: a\rb",
            "content-length: x",
        ]
        .iter()
        .map(|line| block(&[&fields[..], &[line]].concat()))
        .collect();
        for at in 0..4 {
            heads.push(block(&[&fields[..], &fields[at..=at]].concat()));
            let mut without = fields.to_vec();
            let removed = without.remove(at);
            heads.push(block(&without));
            without.extend(["x: 1", removed]);
            heads.push(block(&without));
            let mut empty = fields.to_vec();
            let (name, _) = fields[at].rsplit_once(": ").unwrap();
            let line = format!("{name}: ");
            empty[at] = &line;
            heads.push(block(&empty));
        }
        for (head, number) in heads.iter().zip(0..) {
            let stream = 2 * number + 1;
            client.send(&headers(BOTH, stream, head)).await;
            assert_eq!(client.answer(stream).await.0, 400, "{}", String::from_utf8_lossy(head));
        }
        assert!(client.responder.seen.borrow().is_empty(), "nobody saw them");
    })
    .await;
}
