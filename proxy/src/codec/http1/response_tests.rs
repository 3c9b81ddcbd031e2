//! What is taken as the head of a response, from an application that may be hostile.

use bytes::BytesMut;
use http::header::HeaderMap;
use http::{Method, Version};

use super::head::{ResponseHead, take_response};
use super::{Bad, Framing};

fn read(text: &[u8], method: &Method) -> Result<Option<ResponseHead>, Bad> {
    take_response(&mut BytesMut::from(text), method, HeaderMap::new())
}

#[track_caller]
fn whole(text: &str, method: &Method) -> ResponseHead {
    read(text.as_bytes(), method).unwrap().expect("a whole head")
}

#[track_caller]
fn refused(text: &[u8]) -> &'static str {
    match read(text, &Method::GET) {
        Err(Bad::Malformed(why)) => why,
        other => panic!("{}: {other:?}", String::from_utf8_lossy(text)),
    }
}

#[test]
fn a_response_is_read_as_it_was_written() {
    let text = "HTTP/1.1 404 Not Found\r\nServer: x\r\nContent-Length: 3\r\n\r\nabc";
    let head = whole(text, &Method::GET);
    assert_eq!((head.parts.status.as_u16(), head.parts.version), (404, Version::HTTP_11));
    assert_eq!(head.parts.headers["server"], "x");
    assert_eq!((head.framing, head.keep_alive), (Framing::Length(3), true));

    let mut inbox = BytesMut::from(text);
    assert!(take_response(&mut inbox, &Method::GET, HeaderMap::new()).unwrap().is_some());
    assert_eq!(inbox, "abc");
}

#[test]
fn the_reason_is_nobodys_business_but_has_to_be_one() {
    for line in
        ["HTTP/1.1 200", "HTTP/1.1 200 ", "HTTP/1.1 200 All\tis  well", "HTTP/1.1 200 \u{e9}", "HTTP/1.0 200 OK"]
    {
        assert_eq!(whole(&format!("{line}\r\n\r\n"), &Method::GET).parts.status.as_u16(), 200, "{line}");
    }
    for line in ["HTTP/1.1 200 a\0b", "HTTP/1.1 200 a\rb", "HTTP/1.1 200 a\x1bb", "HTTP/1.1 200 \x7f"] {
        refused(format!("{line}\r\n\r\n").as_bytes());
    }
}

#[test]
fn a_status_line_that_readers_could_differ_on_is_refused() {
    for line in [
        "HTTP/1.1 20",
        "HTTP/1.1 2000",
        "HTTP/1.1 20x OK",
        "HTTP/1.1 099 OK",
        "HTTP/1.1 +20 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1\t200 OK",
        "HTTP/1.1 200\tOK",
        "HTTP/1.1",
        "HTTP/1.1 ",
        "HTTP/x 200 OK",
        "http/1.1 200 OK",
        " HTTP/1.1 200 OK",
        "ICY 200 OK",
        "200 OK",
    ] {
        refused(format!("{line}\r\nx: y\r\n\r\n").as_bytes());
    }
    for version in ["0.9", "1.2", "2", "2.0", "1.1200"] {
        let text = format!("HTTP/{version} 200 OK\r\n\r\n");
        assert_eq!(read(text.as_bytes(), &Method::GET).unwrap_err(), Bad::Version, "{version}");
    }
}

#[test]
fn what_is_no_response_is_refused_at_its_first_bytes() {
    for text in ["\r\nHTTP/1.1 200 OK\r\n\r\n", "SSH-2.0-x", "h", "HTTQ", "<html>", "\x15\x03\x01"] {
        refused(text.as_bytes());
    }
    for text in ["", "H", "HTTP", "HTTP/1.1 200 OK\r\n"] {
        assert!(read(text.as_bytes(), &Method::GET).unwrap().is_none(), "{text:?}");
    }
}

#[test]
fn an_application_is_held_to_the_same_rules_as_a_caller() {
    for fields in [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: 5\r\ncontent-length: 5\r\n",
        "content-length: 5, 5\r\n",
        "content-length: -1\r\n",
        "content-length: 9223372036854775808\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: identity\r\n",
        "x: a\r\n folded\r\n",
        "x : a\r\n",
        "x: a\nb: c\r\n",
        "x: a\rb\r\n",
        "x: a\0\r\n",
        ": a\r\n",
        "x\r\n",
    ] {
        for status in ["200 OK", "304 Not Modified", "204 No Content"] {
            refused(format!("HTTP/1.1 {status}\r\n{fields}\r\n").as_bytes());
        }
        let to_head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        assert!(read(to_head.as_bytes(), &Method::HEAD).is_err(), "{fields}");
    }
    refused(b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
}

#[test]
fn framing_follows_from_status_method_and_fields() {
    use Framing::{Chunked, Empty, Length, UntilClose};
    let (length, chunked) = ("content-length: 5\r\n", "transfer-encoding: chunked\r\n");
    for (method, status, fields, framing, kept) in [
        (Method::GET, 200, length, Length(5), true),
        (Method::GET, 200, chunked, Chunked, true),
        (Method::GET, 200, "content-length: 0\r\n", Empty, true),
        (Method::GET, 200, "", UntilClose, false),
        (Method::GET, 200, "connection: keep-alive\r\n", UntilClose, false),
        (Method::GET, 205, length, Length(5), true),
        (Method::GET, 204, "", Empty, true),
        (Method::GET, 204, "content-length: 0\r\n", Empty, true),
        (Method::GET, 204, length, Empty, false),
        (Method::GET, 204, chunked, Empty, false),
        (Method::GET, 304, "", Empty, true),
        (Method::GET, 304, length, Empty, true),
        (Method::GET, 304, chunked, Empty, true),
        (Method::GET, 100, "", Empty, true),
        (Method::GET, 103, "link: x\r\n", Empty, true),
        (Method::GET, 101, "connection: upgrade\r\nupgrade: x\r\n", Empty, true),
        (Method::GET, 101, "content-length: 0\r\n", Empty, true),
        (Method::HEAD, 200, "", Empty, true),
        (Method::HEAD, 200, length, Empty, true),
        (Method::HEAD, 200, chunked, Empty, true),
        (Method::HEAD, 200, "connection: close\r\n", Empty, false),
        (Method::CONNECT, 200, "", Empty, true),
        (Method::CONNECT, 200, length, Empty, true),
        (Method::CONNECT, 403, length, Length(5), true),
        (Method::CONNECT, 403, "", UntilClose, false),
    ] {
        let head = whole(&format!("HTTP/1.1 {status} x\r\n{fields}\r\n"), &method);
        assert_eq!((head.framing, head.keep_alive), (framing, kept), "{method} {status} {fields}");
    }
    for status in [100, 101, 103] {
        for fields in [length, chunked] {
            refused(format!("HTTP/1.1 {status} x\r\n{fields}\r\n").as_bytes());
        }
    }
}

#[test]
fn an_older_application_closes_unless_it_says_otherwise() {
    let kept =
        |fields: &str| whole(&format!("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n{fields}\r\n"), &Method::GET).keep_alive;
    assert!(!kept(""));
    assert!(kept("connection: keep-alive\r\n"));
    assert!(!kept("connection: keep-alive, close\r\n"));
}

#[test]
fn a_response_in_pieces_is_read_as_when_it_comes_whole() {
    for text in [
        "HTTP/1.1 200 OK\r\na: b\r\ncontent-length: 1\r\n\r\nx",
        "HTTP/1.1 200 OK\r\na: b\nc: d\r\n\r\n",
        "HTTP/2 200\r\n\r\n",
        "HTTQ/1.1 200 OK\r\n\r\n",
    ] {
        let shown =
            |end: usize| read(&text.as_bytes()[..end], &Method::GET).map(|head| head.map(|head| format!("{head:?}")));
        let whole = shown(text.len());
        for end in 0..text.len() {
            match shown(end) {
                Ok(None) => {}
                early => assert_eq!(early, whole, "{text:?} at {end}"),
            }
        }
    }
}

#[test]
fn heads_of_responses_are_bounded_too() {
    let fields = |count: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(count));
    assert_eq!(whole(&fields(100), &Method::GET).parts.headers.len(), 100);
    assert_eq!(read(fields(101).as_bytes(), &Method::GET).unwrap_err(), Bad::TooLarge);
    let long = format!("HTTP/1.1 200 {}", "a".repeat(60 * 1024));
    assert_eq!(read(long.as_bytes(), &Method::GET).unwrap_err(), Bad::TooLarge);
}
