//! Which header blocks are heads and trailers, and which are not.

use bytes::{Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};

use super::bad::{Bad, Code};
use super::frame::{self, Frame};
use super::hpack::{Decoder, Encoder};
use super::message::{self, Request, Unread};

/// A block of `name: value` lines, as they stand.
fn block(lines: &[&str]) -> Bytes {
    let mut block = Vec::new();
    for line in lines {
        let (name, value) = line.rsplit_once(": ").unwrap();
        block.extend_from_slice(&[0x00, name.len() as u8]);
        block.extend_from_slice(name.as_bytes());
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
    }
    block.into()
}

const GET: [&str; 4] = [":method: GET", ":scheme: http", ":authority: orders.shop:80", ":path: /a?b"];

fn get(more: &[&str]) -> Vec<u8> {
    block(&[&GET, more].concat()).to_vec()
}

fn request(block: impl Into<Bytes>) -> Result<(http::request::Parts, Option<u64>), Unread> {
    message::request(&mut Decoder::new(4096), &block.into(), HeaderMap::new(), false)
}

fn response(lines: &[&str]) -> Result<(http::response::Parts, Option<u64>), Unread> {
    message::response(&mut Decoder::new(4096), &block(lines), HeaderMap::new(), false)
}

#[track_caller]
fn refused(lines: &[&str], why: &'static str) {
    assert_eq!(request(block(lines)).unwrap_err(), Unread::Malformed(why), "{lines:?}");
}

#[test]
fn a_request_is_read_as_it_was_written() {
    let (parts, length) =
        request(get(&["accept: a", "accept: b", "cookie: x=1", "cookie: y=2", "content-length: 5"])).unwrap();
    assert_eq!(parts.method, Method::GET);
    assert_eq!(parts.uri, "http://orders.shop:80/a?b");
    assert_eq!(parts.version, Version::HTTP_2);
    assert_eq!(parts.headers.get_all("accept").iter().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(parts.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["x=1", "y=2"], "as they came");
    assert_eq!((length, &parts.headers["content-length"]), (Some(5), &HeaderValue::from_static("5")));
    let (parts, length) = request(block(&[":method: OPTIONS", ":scheme: https", ":authority: a", ":path: *"])).unwrap();
    assert_eq!((parts.uri.path(), length), ("*", None));
    let (parts, _) = request(block(&[":method: CONNECT", ":authority: a:443"])).unwrap();
    assert_eq!(parts.uri, "a:443");
}

#[test]
fn a_map_is_reused_for_its_room() {
    let map = HeaderMap::with_capacity(60);
    let room = map.capacity();
    let (parts, _) = message::request(&mut Decoder::new(0), &get(&["a: b"]).into(), map, true).unwrap();
    assert_eq!(parts.headers.capacity(), room);
}

#[test]
fn host_and_authority_are_one() {
    let lone = [":method: GET", ":scheme: http", ":path: /", "host: a"];
    let (parts, _) = request(block(&lone)).unwrap();
    assert_eq!((parts.uri.to_string().as_str(), &parts.headers["host"]), ("/", &HeaderValue::from_static("a")));
    let (parts, _) = request(get(&["host: Orders.shop:80"])).unwrap();
    assert!(parts.headers.is_empty(), "it says the same");
    refused(&[&GET[..], &["host: other"]].concat(), "a host other than the authority");
    refused(&[&GET[..], &["host: orders.shop"]].concat(), "a host other than the authority");
    refused(&[&lone[..], &["host: a"]].concat(), "more than one host");
    refused(&lone[..3], "a request without an authority");
}

#[test]
fn pseudo_headers_come_first_and_once() {
    let behind = [":method: GET", ":scheme: http", ":authority: a", "accept: b", ":path: /"];
    refused(&behind, "a pseudo-header behind a header");
    for special in ["content-length: 1", "host: a"] {
        refused(&[special, ":method: GET"], "a pseudo-header behind a header");
    }
    for line in GET {
        refused(&[&GET[..], &[line]].concat(), "a pseudo-header that comes twice");
    }
    refused(&[&GET[..], &[":status: 200"]].concat(), "a request with a status");
    refused(&[&GET[..], &[":other: 1"]].concat(), "a pseudo-header that nobody knows");
    refused(&GET[1..], "a request without a method");
    refused(&[GET[0], GET[2], GET[3]], "a request without a scheme");
    refused(&GET[..3], "a request without a path");
    refused(&[":method: GET", ":scheme: http", ":authority: a", ":path: *"], "a path of a star, without OPTIONS");
    refused(&[], "a request without a method");
}

#[test]
fn connect_has_a_shape_of_its_own() {
    let why = "CONNECT with a scheme or a path";
    refused(&[":method: CONNECT", ":authority: a:1", ":path: /"], why);
    refused(&[":method: CONNECT", ":authority: a:1", ":scheme: http"], why);
    refused(&[":method: CONNECT", "host: a"], "CONNECT without an authority");
    let extended = [":method: CONNECT", ":protocol: websocket", ":scheme: http", ":authority: a", ":path: /"];
    assert_eq!(request(block(&extended)).unwrap_err(), Unread::Extended);
    refused(&[&GET[..], &[":protocol: websocket"]].concat(), "a protocol without CONNECT");
    refused(&[&extended[..], &[":protocol: websocket"]].concat(), "a pseudo-header that comes twice");
}

#[test]
fn a_field_that_is_not_allowed_refuses_the_head() {
    for (line, why) in [
        ("Accept: a", "the name of a header is not in lower case"),
        ("connection: close", "a header that only concerns an HTTP/1.1 connection"),
        ("transfer-encoding: chunked", "a header that only concerns an HTTP/1.1 connection"),
        ("te: gzip", "a te other than trailers"),
        ("x:  a", "white space around the value of a header"),
        ("x: a\nb", "a control character in the value of a header"),
        ("content-length: -1", "a content-length that is no length"),
    ] {
        assert_eq!(request(get(&[line])).unwrap_err(), Unread::Malformed(why));
        let lines = [":status: 200", line];
        assert_eq!(response(&lines).unwrap_err(), Unread::Malformed(why));
        let trailers = message::trailers(&mut Decoder::new(0), &block(&[line]), HeaderMap::new());
        assert_eq!(trailers.unwrap_err(), Unread::Malformed(why));
    }
    assert!(request(get(&["te: trailers"])).is_ok());
}

#[test]
fn a_content_length_comes_once_and_means_it() {
    for second in ["content-length: 5", "content-length: 6"] {
        let why = "more than one content-length";
        assert_eq!(request(get(&["content-length: 5", second])).unwrap_err(), Unread::Malformed(why));
    }
    let ends = |line| message::request(&mut Decoder::new(0), &get(&[line]).into(), HeaderMap::new(), true);
    assert_eq!(ends("content-length: 1").unwrap_err(), Unread::Malformed("a content-length without a body"));
    assert_eq!(ends("content-length: 0").unwrap().1, Some(0));
}

#[test]
fn a_response_has_a_status_and_nothing_of_requests() {
    let (parts, length) = response(&[":status: 204", "server: x", "content-length: 7"]).unwrap();
    assert_eq!((parts.status, parts.version, length), (StatusCode::NO_CONTENT, Version::HTTP_2, Some(7)));
    assert_eq!(parts.headers["server"], "x");
    assert_eq!(response(&[":status: 103", "link: x"]).unwrap().0.status, 103);
    for (lines, why) in [
        (&["server: x"][..], "a response without a status"),
        (&[":status: 200", ":status: 200"], "a pseudo-header that comes twice"),
        (&["server: x", ":status: 200"], "a pseudo-header behind a header"),
        (&[":status: 200", ":path: /"], "a response with what only requests have"),
        (&[":status: 200", ":protocol: x"], "a response with what only requests have"),
        (&[":status: 101"], "a switch of protocols, which HTTP/2 does not have"),
        (&[":status: 20"], "the status is no number of three digits"),
    ] {
        assert_eq!(response(lines).unwrap_err(), Unread::Malformed(why));
    }
    let interim = message::response(&mut Decoder::new(0), &block(&[":status: 103"]), HeaderMap::new(), true);
    assert_eq!(interim.unwrap_err(), Unread::Malformed("an interim response that ends the stream"));
}

#[test]
fn trailers_are_headers_alone() {
    let trailers = |lines: &[&str]| message::trailers(&mut Decoder::new(0), &block(lines), HeaderMap::new());
    assert_eq!(trailers(&["grpc-status: 0", "x: y"]).unwrap().len(), 2);
    for line in [GET[0], GET[1], GET[2], GET[3], ":status: 200", ":protocol: x"] {
        assert_eq!(trailers(&[line]).unwrap_err(), Unread::Malformed("a pseudo-header among trailers"));
    }
    for line in ["content-length: 1", "host: a"] {
        assert_eq!(trailers(&[line]).unwrap_err(), Unread::Malformed("a trailer that belongs into a head"));
    }
}

#[test]
fn the_compression_outlives_a_head_that_is_refused() {
    let mut decoder = Decoder::new(4096);
    let named = [&[0x40, 1, b'a', 1, b'b'][..], &block(&["Bad: 1"])].concat();
    let head = message::request(&mut decoder, &named.into(), HeaderMap::new(), true);
    assert!(matches!(head, Err(Unread::Malformed(_))));
    let many = [vec![0xbe; 101], vec![0x40, 1, b'c', 1, b'd']].concat();
    assert_eq!(message::trailers(&mut decoder, &many.into(), HeaderMap::new()).unwrap_err(), Unread::TooLarge);
    message::skip(&mut decoder, &Bytes::from_static(&[0x40, 1, b'e', 1, b'f'])).unwrap();
    let both = message::trailers(&mut decoder, &Bytes::from_static(&[0xbe, 0xbf, 0xc0]), HeaderMap::new()).unwrap();
    assert_eq!(
        (&both["a"], &both["c"], &both["e"]),
        (&"b".parse().unwrap(), &"d".parse().unwrap(), &"f".parse().unwrap())
    );
    let lost = message::skip(&mut decoder, &Bytes::from_static(&[0xff])).unwrap_err();
    assert_eq!(lost.at(3).code(), Code::COMPRESSION_ERROR);
}

#[test]
fn an_unread_head_ends_its_stream_and_a_lost_compression_the_connection() {
    assert!(matches!(Unread::Compression("x").at(3), Bad::Connection { code: Code::COMPRESSION_ERROR, why: "x" }));
    let stream = |unread: Unread| match unread.at(3) {
        Bad::Stream { stream: 3, code, .. } => code,
        other => panic!("{other}"),
    };
    assert_eq!(stream(Unread::Malformed("x")), Code::PROTOCOL_ERROR);
    assert_eq!(stream(Unread::Extended), Code::PROTOCOL_ERROR);
    assert_eq!(stream(Unread::TooLarge), Code::ENHANCE_YOUR_CALM);
}

fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
    let each = |(name, value): &(&'static str, &str)| (HeaderName::from_static(name), value.parse().unwrap());
    lines.iter().map(each).collect()
}

/// The block of the frames in `out`, which are HEADERS of stream 1 and what follows them.
fn sent(out: &[u8]) -> (Bytes, bool) {
    let mut inbox = BytesMut::from(out);
    let Ok(Some(Frame::Headers { stream: 1, block, mut end_headers, end })) =
        frame::take(&mut inbox, frame::SMALLEST_MAX_FRAME)
    else {
        panic!("no HEADERS");
    };
    let mut block = block.to_vec();
    while !end_headers {
        let Ok(Some(Frame::Continuation { block: more, end_headers: end, .. })) =
            frame::take(&mut inbox, frame::SMALLEST_MAX_FRAME)
        else {
            panic!("no CONTINUATION");
        };
        block.extend_from_slice(&more);
        end_headers = end;
    }
    assert!(inbox.is_empty());
    (block.into(), end)
}

#[test]
fn what_is_written_is_read_the_same_without_what_is_of_http1() {
    let http1 = [
        ("host", "a"),
        ("connection", "x"),
        ("keep-alive", "1"),
        ("proxy-connection", "x"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "x"),
        ("te", "gzip"),
    ];
    let kept = [("te", "trailers"), ("content-length", "12"), ("x-a", "1"), ("x-a", "2"), ("authorization", "s")];
    let large = "v".repeat(40_000);
    let map = headers(&[&http1[..], &kept, &[("x-large", &large)]].concat());
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
    for end in [false, true, true] {
        let mut out = Vec::new();
        let method = Method::PUT;
        let head = Request { method: &method, scheme: "https", authority: "a:1", path: "/x?y", headers: &map };
        message::put_request(&mut out, &mut encoder, 1, head, end, frame::SMALLEST_MAX_FRAME);
        let (block, ended) = sent(&out);
        let (parts, length) = message::request(&mut decoder, &block, HeaderMap::new(), false).unwrap();
        assert_eq!((parts.method, parts.uri.to_string().as_str(), ended), (Method::PUT, "https://a:1/x?y", end));
        let mut expected = headers(&[&kept[..], &[("x-large", &large)]].concat());
        expected.get_mut("authorization").unwrap().set_sensitive(true);
        assert_eq!((parts.headers, length), (expected, Some(12)));
    }
    let mut out = Vec::new();
    let method = Method::CONNECT;
    let map = headers(&[("x-a", "1")]);
    let head = Request { method: &method, scheme: "https", authority: "a:1", path: "/", headers: &map };
    message::put_request(&mut out, &mut encoder, 1, head, false, frame::SMALLEST_MAX_FRAME);
    let (parts, _) = message::request(&mut decoder, &sent(&out).0, HeaderMap::new(), false).unwrap();
    assert_eq!(parts.uri, "a:1");
}

#[test]
fn responses_and_trailers_are_read_as_they_were_written() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
    for status in [StatusCode::OK, StatusCode::IM_A_TEAPOT, StatusCode::EARLY_HINTS] {
        let mut out = Vec::new();
        let map = headers(&[("server", "x"), ("connection", "close"), ("content-length", "3")]);
        message::put_response(&mut out, &mut encoder, 1, status, &map, false, frame::SMALLEST_MAX_FRAME);
        let (block, end) = sent(&out);
        let (parts, length) = message::response(&mut decoder, &block, HeaderMap::new(), false).unwrap();
        assert_eq!((parts.status, parts.headers.len(), length, end), (status, 2, Some(3), false));
        let mut out = Vec::new();
        let map = headers(&[("grpc-status", "0"), ("content-length", "3"), ("transfer-encoding", "chunked")]);
        message::put_trailers(&mut out, &mut encoder, 1, &map, frame::SMALLEST_MAX_FRAME);
        let (block, end) = sent(&out);
        let read = message::trailers(&mut decoder, &block, HeaderMap::new()).unwrap();
        assert_eq!((read, end), (headers(&[("grpc-status", "0")]), true));
    }
}
