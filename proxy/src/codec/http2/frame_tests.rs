//! What is taken as a frame, and everything that is not; what is written is read the same.

use bytes::{Bytes, BytesMut};

use super::bad::{Bad, Code};
use super::frame::*;

const MAX: u32 = SMALLEST_MAX_FRAME;

/// A frame of any kind.
fn raw(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn read(bytes: &[u8]) -> Result<Option<Frame>, Bad> {
    take(&mut BytesMut::from(bytes), MAX)
}

#[track_caller]
fn whole(bytes: &[u8]) -> Frame {
    read(bytes).unwrap().expect("a whole frame")
}

#[track_caller]
fn ends_connection(bytes: &[u8], code: Code, why: &'static str) {
    assert_eq!(read(bytes), Err(Bad::Connection { code, why }));
}

#[test]
fn data_and_headers_are_cut_out_of_their_padding_and_priority() {
    let data = whole(&raw(0, 0x09, 3, b"\x02hello\0\0"));
    assert_eq!(data, Frame::Data { stream: 3, data: "hello".into(), padded: 3, end: true });
    let data = whole(&raw(0, 0x08, 3, b"\0hello"));
    assert_eq!(data, Frame::Data { stream: 3, data: "hello".into(), padded: 1, end: false });
    let data = whole(&raw(0, 0x08, 3, b"\x05\0\0\0\0\0"));
    assert_eq!(data, Frame::Data { stream: 3, data: Bytes::new(), padded: 6, end: false });
    let headers = whole(&raw(1, 0x2d, 5, b"\x01\x80\0\0\x03\x10block\0"));
    assert_eq!(headers, Frame::Headers { stream: 5, block: "block".into(), end_headers: true, end: true });
    let headers = whole(&raw(1, 0, 5, b"block"));
    assert_eq!(headers, Frame::Headers { stream: 5, block: "block".into(), end_headers: false, end: false });
    let more = whole(&raw(9, 0x04, 5, b"more"));
    assert_eq!(more, Frame::Continuation { stream: 5, block: "more".into(), end_headers: true });
}

#[test]
fn the_reserved_bit_and_unknown_flags_and_types_are_ignored() {
    let frame = whole(&raw(0, 0xf6, 0x8000_0001, b"x"));
    assert_eq!(frame, Frame::Data { stream: 1, data: "x".into(), padded: 0, end: false });
    assert_eq!(whole(&raw(0x42, 0xff, 0x8000_0007, b"anything")), Frame::Unknown);
    let update = whole(&raw(8, 0xff, 0, &[0x80, 0, 0, 9]));
    assert_eq!(update, Frame::WindowUpdate { stream: 0, increment: 9 });
    let reset = whole(&raw(3, 0, 9, &[0, 0, 1, 0]));
    assert_eq!(reset, Frame::Reset { stream: 9, code: Code(256) }, "a code nobody knows is carried");
}

#[test]
fn nothing_moves_until_a_frame_is_whole() {
    let ping = raw(6, 0, 0, b"12345678");
    let two = [&ping[..], &ping[..5]].concat();
    for length in 0..ping.len() {
        let mut inbox = BytesMut::from(&ping[..length]);
        assert_eq!(take(&mut inbox, MAX), Ok(None));
        assert_eq!(inbox, ping[..length]);
    }
    let mut inbox = BytesMut::from(&two[..]);
    assert_eq!(take(&mut inbox, MAX), Ok(Some(Frame::Ping { ack: false, data: *b"12345678" })));
    assert_eq!(inbox, ping[..5]);
}

#[test]
fn what_is_too_large_is_refused_by_its_head() {
    let head = &raw(0, 0, 1, &[0; 16_385])[..HEAD];
    ends_connection(head, Code::FRAME_SIZE_ERROR, "a frame larger than was allowed");
    assert_eq!(take(&mut BytesMut::from(head), 16_385), Ok(None));
    assert!(matches!(whole(&raw(0, 0, 1, &[0; 16_384])), Frame::Data { data, .. } if data.len() == 16_384));
}

#[test]
fn frames_on_the_wrong_stream_end_the_connection() {
    for (kind, stream, payload, why) in [
        (0, 0, &b"x"[..], "DATA on stream 0"),
        (1, 0, b"x", "HEADERS on stream 0"),
        (2, 0, b"12345", "PRIORITY on stream 0"),
        (3, 0, b"1234", "RST_STREAM on stream 0"),
        (4, 1, b"", "SETTINGS on a stream"),
        (5, 1, b"1234", "a pushed stream, which nobody allowed"),
        (6, 1, b"12345678", "PING on a stream"),
        (7, 1, b"12345678", "GOAWAY on a stream"),
        (9, 0, b"x", "CONTINUATION on stream 0"),
    ] {
        ends_connection(&raw(kind, 0, stream, payload), Code::PROTOCOL_ERROR, why);
    }
}

#[test]
fn frames_of_a_wrong_size_end_what_they_belong_to() {
    let why = "PRIORITY of other than 5 bytes";
    let of_stream = Err(Bad::Stream { stream: 1, code: Code::FRAME_SIZE_ERROR, why });
    assert_eq!(read(&raw(2, 0, 1, b"1234")), of_stream);
    assert_eq!(read(&raw(2, 0, 1, b"123456")), of_stream);
    for (kind, flags, stream, payload, why) in [
        (0, 0x08, 1, &b""[..], "a padded frame that does not say how much"),
        (1, 0x08, 1, b"", "a padded frame that does not say how much"),
        (1, 0x20, 1, b"1234", "HEADERS too short for the priority they announce"),
        (1, 0x28, 1, b"\x01\0\0\0\x02\x10", "HEADERS too short for the priority they announce"),
        (3, 0, 1, b"123", "RST_STREAM of other than 4 bytes"),
        (3, 0, 1, b"12345", "RST_STREAM of other than 4 bytes"),
        (4, 0, 0, b"12345", "SETTINGS that are not 6 bytes each"),
        (4, 0, 0, b"1234567", "SETTINGS that are not 6 bytes each"),
        (4, 1, 0, b"123456", "an acknowledgement of SETTINGS with a payload"),
        (6, 0, 0, b"1234567", "PING of other than 8 bytes"),
        (6, 1, 0, b"123456789", "PING of other than 8 bytes"),
        (7, 0, 0, b"1234567", "GOAWAY of fewer than 8 bytes"),
        (8, 0, 1, b"123", "WINDOW_UPDATE of other than 4 bytes"),
        (8, 0, 1, b"12345", "WINDOW_UPDATE of other than 4 bytes"),
    ] {
        ends_connection(&raw(kind, flags, stream, payload), Code::FRAME_SIZE_ERROR, why);
    }
    ends_connection(&raw(0, 0x08, 1, b"\x02x"), Code::PROTOCOL_ERROR, "more padding than there is payload");
    ends_connection(&raw(1, 0x08, 1, b"\x01"), Code::PROTOCOL_ERROR, "more padding than there is payload");
}

#[test]
fn a_stream_cannot_depend_on_itself() {
    let why = "a stream that depends on itself";
    let of_stream = Err(Bad::Stream { stream: 7, code: Code::PROTOCOL_ERROR, why });
    assert_eq!(read(&raw(2, 0, 7, b"\x80\0\0\x07\x10")), of_stream);
    ends_connection(&raw(1, 0x24, 7, b"\0\0\0\x07\x10x"), Code::PROTOCOL_ERROR, why);
    assert_eq!(whole(&raw(2, 0, 7, b"\0\0\0\x05\x10")), Frame::Priority { stream: 7 });
}

#[test]
fn a_window_cannot_grow_by_nothing() {
    let why = "WINDOW_UPDATE by nothing";
    let of_stream = Err(Bad::Stream { stream: 7, code: Code::PROTOCOL_ERROR, why });
    assert_eq!(read(&raw(8, 0, 7, &[0x80, 0, 0, 0])), of_stream);
    ends_connection(&raw(8, 0, 0, &[0; 4]), Code::PROTOCOL_ERROR, why);
}

#[test]
fn settings_are_kept_within_their_ranges() {
    let one =
        |identifier: u16, value: u32| raw(4, 0, 0, &[&identifier.to_be_bytes()[..], &value.to_be_bytes()].concat());
    for (frame, code, why) in [
        (one(2, 2), Code::PROTOCOL_ERROR, "an ENABLE_PUSH other than 0 and 1"),
        (one(4, 1 << 31), Code::FLOW_CONTROL_ERROR, "an INITIAL_WINDOW_SIZE beyond 2^31-1"),
        (one(5, 16_383), Code::PROTOCOL_ERROR, "a MAX_FRAME_SIZE outside 2^14 to 2^24-1"),
        (one(5, 1 << 24), Code::PROTOCOL_ERROR, "a MAX_FRAME_SIZE outside 2^14 to 2^24-1"),
        (one(8, 2), Code::PROTOCOL_ERROR, "an ENABLE_CONNECT_PROTOCOL other than 0 and 1"),
    ] {
        ends_connection(&frame, code, why);
    }
    assert_eq!(whole(&one(0x4242, 7)), Frame::Settings(Settings::default()), "an unknown one is ignored");
    let twice = raw(4, 0, 0, &[0, 3, 0, 0, 0, 1, 0, 3, 0, 0, 0, 2]);
    let last = Settings { max_concurrent_streams: Some(2), ..Settings::default() };
    assert_eq!(whole(&twice), Frame::Settings(last), "the last counts");
}

#[test]
fn what_is_wrong_with_one_stream_leaves_the_next_frame_in_its_place() {
    let ping = raw(6, 0, 0, b"12345678");
    for frame in [raw(2, 0, 1, b"1234"), raw(2, 0, 7, b"\0\0\0\x07\x10"), raw(8, 0, 7, &[0; 4])] {
        let mut inbox = BytesMut::from(&[&frame[..], &ping].concat()[..]);
        assert!(matches!(take(&mut inbox, MAX), Err(Bad::Stream { .. })));
        assert!(matches!(take(&mut inbox, MAX), Ok(Some(Frame::Ping { .. }))));
    }
}

#[test]
fn what_is_written_is_read_the_same() {
    let settings = Settings {
        header_table_size: Some(0),
        enable_push: Some(false),
        max_concurrent_streams: Some(1024),
        initial_window_size: Some((1 << 31) - 1),
        max_frame_size: Some((1 << 24) - 1),
        max_header_list_size: Some(61_440),
        enable_connect_protocol: Some(true),
    };
    let some = Settings { max_concurrent_streams: Some(0), ..Settings::default() };
    let mut out = Vec::new();
    put_settings(&mut out, &settings);
    put_settings(&mut out, &some);
    put_settings_ack(&mut out);
    put_ping(&mut out, false, *b"abcdefgh");
    put_ping(&mut out, true, *b"abcdefgh");
    put_window_update(&mut out, 0, (1 << 31) - 1);
    put_window_update(&mut out, LARGEST_STREAM, 1);
    put_reset(&mut out, 3, Code::CANCEL);
    put_go_away(&mut out, 7, Code::ENHANCE_YOUR_CALM, "calm");
    put_data_head(&mut out, 5, 3, true);
    out.extend_from_slice(b"end");
    let expected = [
        Frame::Settings(settings),
        Frame::Settings(some),
        Frame::SettingsAck,
        Frame::Ping { ack: false, data: *b"abcdefgh" },
        Frame::Ping { ack: true, data: *b"abcdefgh" },
        Frame::WindowUpdate { stream: 0, increment: (1 << 31) - 1 },
        Frame::WindowUpdate { stream: LARGEST_STREAM, increment: 1 },
        Frame::Reset { stream: 3, code: Code::CANCEL },
        Frame::GoAway { last: 7, code: Code::ENHANCE_YOUR_CALM, debug: "calm".into() },
        Frame::Data { stream: 5, data: "end".into(), padded: 0, end: true },
    ];
    let mut inbox = BytesMut::from(&out[..]);
    for frame in expected {
        assert_eq!(take(&mut inbox, MAX), Ok(Some(frame)));
    }
    assert!(inbox.is_empty());
}

#[test]
fn a_block_longer_than_a_frame_goes_on_in_others() {
    for length in [0, 1, 16_383, 16_384, 16_385, 32_768, 32_769, 50_000] {
        let block: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let mut out = b"before".to_vec();
        let start = start_headers(&mut out);
        out.extend_from_slice(&block);
        finish_headers(&mut out, start, 9, true, MAX);
        let mut inbox = BytesMut::from(&out[6..]);
        let Ok(Some(Frame::Headers { stream: 9, block: first, mut end_headers, end: true })) = take(&mut inbox, MAX)
        else {
            panic!("HEADERS of {length} bytes");
        };
        let mut read = first.to_vec();
        while !end_headers {
            let Ok(Some(Frame::Continuation { stream: 9, block, end_headers: end })) = take(&mut inbox, MAX) else {
                panic!("CONTINUATION of {length} bytes");
            };
            assert!(!block.is_empty());
            read.extend_from_slice(&block);
            end_headers = end;
        }
        assert!(read == block && inbox.is_empty(), "{length}");
    }
}

#[test]
fn whatever_comes_is_read_or_refused() {
    for seed in 0..50_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bytes = vec![0; random.usize(..64)];
        random.fill(&mut bytes);
        // Lengths, types and streams that are likely to mean something.
        for head in bytes.chunks_exact_mut(random.usize(9..24)) {
            (head[0], head[1], head[2], head[3]) = (0, 0, head[2] % 16, head[3] % 11);
            head[5..8].fill(0);
        }
        let mut inbox = BytesMut::from(&bytes[..]);
        loop {
            let before = inbox.len();
            match take(&mut inbox, MAX) {
                Ok(Some(_)) | Err(Bad::Stream { .. }) => assert!(inbox.len() < before),
                Ok(None) | Err(Bad::Connection { .. }) => break,
            }
        }
    }
}
