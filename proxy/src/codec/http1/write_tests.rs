//! What is written, to the byte, and that it is read back as what was meant.

use bytes::BytesMut;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};

use super::Framing::{self, Chunked, Empty, Length, UntilClose};
use super::{head, write};

fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair = |&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    let mut map = HeaderMap::new();
    for (name, value) in fields.iter().map(pair) {
        map.append(name, value);
    }
    map
}

fn request(method: &Method, fields: &[(&'static str, &'static str)], framing: Framing) -> String {
    let mut out = Vec::new();
    write::request_head(&mut out, method, "/a?b", &headers(fields), framing);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_request_is_written_with_the_framing_it_has() {
    let fields = [("host", "a"), ("content-length", "9"), ("transfer-encoding", "gzip"), ("x", "1"), ("x", "2")];
    let head = "/a?b HTTP/1.1\r\nhost: a\r\nx: 1\r\nx: 2\r\n";
    for (method, framing, end) in [
        (Method::GET, Empty, "\r\n"),
        (Method::DELETE, Empty, "\r\n"),
        (Method::POST, Empty, "content-length: 0\r\n\r\n"),
        (Method::PUT, Empty, "content-length: 0\r\n\r\n"),
        (Method::PATCH, Empty, "content-length: 0\r\n\r\n"),
        (Method::POST, Length(5), "content-length: 5\r\n\r\n"),
        (Method::GET, Length(1_234_567_890), "content-length: 1234567890\r\n\r\n"),
        (Method::POST, Length(u64::MAX), "content-length: 18446744073709551615\r\n\r\n"),
        (Method::POST, Chunked, "transfer-encoding: chunked\r\n\r\n"),
    ] {
        assert_eq!(request(&method, &fields, framing), format!("{method} {head}{end}"));
    }
}

/// A response with two fields of its own, without its status line.
fn response(status: u16, framing: Framing, version: Version, keep_alive: bool, to_head: bool, length: bool) -> String {
    let mut fields = vec![("x", "1"), ("transfer-encoding", "gzip")];
    fields.extend(length.then_some(("content-length", "9")));
    let mut out = Vec::new();
    let status = StatusCode::from_u16(status).unwrap();
    write::response_head(&mut out, version, status, &headers(&fields), framing, keep_alive, to_head);
    let text = String::from_utf8(out).unwrap();
    text.split_once("\r\nx: 1\r\n").unwrap().1.to_owned()
}

#[test]
fn a_response_is_written_with_the_framing_it_has() {
    for (status, framing, to_head, length, end) in [
        (200, Length(5), false, true, "content-length: 5\r\n\r\n"),
        (200, Empty, false, true, "content-length: 0\r\n\r\n"),
        (200, Chunked, false, true, "transfer-encoding: chunked\r\n\r\n"),
        (200, UntilClose, false, true, "\r\n"),
        // To HEAD, and without change, the length is that of what is not sent.
        (200, Empty, true, true, "content-length: 9\r\n\r\n"),
        (200, Empty, true, false, "\r\n"),
        (200, Length(5), true, false, "content-length: 5\r\n\r\n"),
        (200, Length(5), true, true, "content-length: 9\r\n\r\n"),
        (200, Chunked, true, false, "\r\n"),
        (304, Empty, false, true, "content-length: 9\r\n\r\n"),
        (304, Empty, false, false, "\r\n"),
        (204, Empty, false, true, "\r\n"),
        (204, Length(5), false, false, "\r\n"),
        (100, Empty, false, true, "\r\n"),
        (101, Empty, false, true, "\r\n"),
        (103, Chunked, false, false, "\r\n"),
    ] {
        let text = response(status, framing, Version::HTTP_11, true, to_head, length);
        assert_eq!(text, end, "{status} {framing:?} to head {to_head}, length {length}");
    }
}

#[test]
fn the_connection_is_mentioned_where_it_has_to_be() {
    for (version, keep_alive, line) in [
        (Version::HTTP_11, true, ""),
        (Version::HTTP_11, false, "connection: close\r\n"),
        (Version::HTTP_10, true, "connection: keep-alive\r\n"),
        (Version::HTTP_10, false, "connection: close\r\n"),
    ] {
        let text = response(200, Length(5), version, keep_alive, false, false);
        assert_eq!(text, format!("{line}content-length: 5\r\n\r\n"));
    }
}

#[test]
fn one_word_about_the_connection_is_enough() {
    let map = headers(&[("connection", "keep-alive"), ("upgrade", "x")]);
    let written = |status, keep_alive| {
        let mut out = Vec::new();
        write::response_head(&mut out, Version::HTTP_11, status, &map, UntilClose, keep_alive, false);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(written(StatusCode::OK, false), "HTTP/1.1 200 OK\r\nupgrade: x\r\nconnection: close\r\n\r\n");
    // What becomes of this one is said by its own.
    let switched = "HTTP/1.1 101 Switching Protocols\r\nconnection: keep-alive\r\nupgrade: x\r\n\r\n";
    assert_eq!(written(StatusCode::SWITCHING_PROTOCOLS, false), switched);
}

#[test]
fn status_lines_have_their_space_with_and_without_a_reason() {
    let line = |status: u16| {
        let mut out = Vec::new();
        let status = StatusCode::from_u16(status).unwrap();
        write::response_head(&mut out, Version::HTTP_11, status, &HeaderMap::new(), UntilClose, true, false);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(line(200), "HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(line(404), "HTTP/1.1 404 Not Found\r\n\r\n");
    assert_eq!(line(599), "HTTP/1.1 599 \r\n\r\n");
}

#[test]
fn chunks_are_framed_in_hexadecimal() {
    for (length, line) in
        [(1, "1\r\n"), (15, "f\r\n"), (16, "10\r\n"), (65_535, "ffff\r\n"), (usize::MAX, "ffffffffffffffff\r\n")]
    {
        let mut out = Vec::new();
        write::chunk_start(&mut out, length);
        assert_eq!(out, line.as_bytes());
    }
    let mut out = Vec::new();
    write::last_chunk(&mut out, None);
    assert_eq!(out, b"0\r\n\r\n");
    out.clear();
    // Framing is no business of trailers.
    let trailers = headers(&[("grpc-status", "0"), ("content-length", "5"), ("transfer-encoding", "chunked")]);
    write::last_chunk(&mut out, Some(&trailers));
    assert_eq!(out, b"0\r\ngrpc-status: 0\r\n\r\n");
}

#[test]
fn what_is_written_is_read_back_as_it_was_meant() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..1_000 {
        let mut map = HeaderMap::new();
        for _ in 0..rng.usize(..12) {
            let name: String =
                (0..rng.usize(1..80)).map(|_| rng.choice(['a', 'z', '0', '-', '_', '!']).unwrap()).collect();
            let value: String =
                (0..rng.usize(..60)).map(|_| rng.choice(['a', 'Z', ' ', '\t', ',', '\u{e9}']).unwrap()).collect();
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.trim_matches([' ', '\t']).parse().unwrap(),
            );
        }
        let framing = [Empty, Length(rng.u64(1..1 << 63)), Chunked][rng.usize(..3)];
        let mut out = Vec::new();
        write::request_head(&mut out, &Method::POST, "/a?b", &map, framing);
        let read = head::take_request(&mut BytesMut::from(&out[..]), HeaderMap::new()).unwrap().unwrap();
        assert_eq!(read.framing, framing);
        assert_eq!(same_without_framing(read.parts.headers), map);

        let mut out = Vec::new();
        let keep_alive = rng.bool();
        write::response_head(&mut out, Version::HTTP_11, StatusCode::OK, &map, framing, keep_alive, false);
        let read = head::take_response(&mut BytesMut::from(&out[..]), &Method::GET, HeaderMap::new()).unwrap().unwrap();
        assert_eq!((read.framing, read.keep_alive), (framing, keep_alive));
        assert_eq!(same_without_framing(read.parts.headers), map);
    }
}

fn same_without_framing(mut map: HeaderMap) -> HeaderMap {
    for name in ["content-length", "transfer-encoding", "connection"] {
        map.remove(name);
    }
    map
}
