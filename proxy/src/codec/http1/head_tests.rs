//! What is taken as the head of a request, and everything that is not.

use bytes::BytesMut;
use http::header::HeaderMap;
use http::{Method, Version};

use super::head::{RequestHead, take_request};
use super::{Bad, Framing};

fn read(text: &[u8]) -> Result<Option<RequestHead>, Bad> {
    take_request(&mut BytesMut::from(text), HeaderMap::new())
}

fn whole(text: &str) -> RequestHead {
    read(text.as_bytes()).unwrap().expect("a whole head")
}

#[track_caller]
fn refused(text: &[u8]) -> &'static str {
    match read(text) {
        Err(Bad::Malformed(why)) => why,
        other => panic!("{}: {other:?}", String::from_utf8_lossy(text)),
    }
}

fn with(fields: &str) -> Vec<u8> {
    format!("POST /x HTTP/1.1\r\nhost: a\r\n{fields}\r\n").into_bytes()
}

#[test]
fn a_request_is_read_as_it_was_written() {
    let text = "POST /orders?x=1 HTTP/1.1\r\nHost: a.b:8080\r\nX-Empty:\r\nX-Tab:\t v\t \r\nAccept: a\r\nAccept: b\r\n\
                X-Latin: \u{e9}\r\nContent-Length: 5\r\n\r\nhello";
    let head = whole(text);
    assert_eq!(head.parts.method, Method::POST);
    assert_eq!(head.parts.uri, "/orders?x=1");
    assert_eq!(head.parts.version, Version::HTTP_11);
    assert_eq!(head.parts.headers["host"], "a.b:8080");
    assert_eq!(head.parts.headers["x-empty"], "");
    assert_eq!(head.parts.headers["x-tab"], "v");
    assert_eq!(head.parts.headers["x-latin"], "\u{e9}".as_bytes());
    assert_eq!(head.parts.headers.get_all("accept").iter().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(head.parts.headers.len(), 7);
    assert_eq!(head.framing, Framing::Length(5));
    assert!(head.keep_alive && !head.expects_continue);
}

#[test]
fn taking_a_head_leaves_what_follows_it() {
    let mut inbox = BytesMut::from("\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost:");
    let head = take_request(&mut inbox, HeaderMap::new()).unwrap().unwrap();
    assert_eq!(head.parts.uri, "/");
    assert_eq!(&inbox[..], b"GET /2 HTTP/1.1\r\nhost:");
    assert!(take_request(&mut inbox, HeaderMap::new()).unwrap().is_none());
    assert_eq!(&inbox[..], b"GET /2 HTTP/1.1\r\nhost:");
}

#[test]
fn a_map_is_reused_for_its_room() {
    let map = HeaderMap::with_capacity(60);
    let room = map.capacity();
    let head = take_request(&mut BytesMut::from("GET / HTTP/1.1\r\nhost: a\r\n\r\n"), map).unwrap().unwrap();
    assert_eq!(head.parts.headers.capacity(), room);
}

#[test]
fn a_usual_name_is_read_as_any_other() {
    for name in [
        "Host",
        "Date",
        "Vary",
        "Accept",
        "Cookie",
        "Server",
        "X-Real-IP",
        "Connection",
        "User-Agent",
        "Tracestate",
        "Traceparent",
        "Content-Type",
        "X-Request-ID",
        "Authorization",
        "Cache-Control",
        "Content-Length",
        "Accept-Encoding",
        "Accept-Language",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "Transfer-Encoding",
        "X-Request-Ie",
        "Xost",
        "Hos",
        "A",
        "X-12345",
        "X-123456",
        "X-1234567",
    ] {
        let value = if name == "Transfer-Encoding" { "chunked" } else { "1" };
        let spellings =
            [name.to_owned(), name.to_lowercase(), name.to_uppercase(), name.replace("ID", "Id").replace("IP", "Ip")];
        for spelling in spellings {
            let headers = whole(&format!("GET / HTTP/1.1\r\n{spelling}:{value}\r\n\r\n")).parts.headers;
            assert_eq!((headers.len(), &headers[name.to_lowercase()]), (1, &value.parse().unwrap()), "{spelling}");
            let broken = spelling.replace('-', "\r");
            if broken != spelling {
                refused(format!("GET / HTTP/1.1\r\n{broken}:{value}\r\n\r\n").as_bytes());
            }
        }
    }
}

#[test]
fn every_form_of_target_is_parsed() {
    for (line, authority, path) in [
        ("GET / HTTP/1.1", None, "/"),
        ("GET //a/b HTTP/1.1", None, "//a/b"),
        ("GET http://a.b:81/c?d HTTP/1.1", Some("a.b:81"), "/c"),
        ("GET HTTP://a HTTP/1.1", Some("a"), "/"),
        ("OPTIONS * HTTP/1.1", None, "*"),
        ("CONNECT a.b:443 HTTP/1.1", Some("a.b:443"), ""),
        ("CONNECT [::1]:443 HTTP/1.1", Some("[::1]:443"), ""),
    ] {
        let uri = whole(&format!("{line}\r\n\r\n")).parts.uri;
        assert_eq!(uri.authority().map(|authority| authority.as_str()), authority, "{line}");
        assert_eq!(uri.path(), path, "{line}");
    }
}

#[test]
fn a_request_line_that_readers_could_differ_on_is_refused() {
    for line in [
        "GET / HTTP/1.1 ",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / a HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET /\tHTTP/1.1",
        "GET /a\tb HTTP/1.1",
        "GET /a\x01b HTTP/1.1",
        "GET /a\0b HTTP/1.1",
        "GET /a\x7fb HTTP/1.1",
        "GET /a\rb HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET http://a/#b HTTP/1.1",
        "GET http:///a HTTP/1.1",
        "GET ? HTTP/1.1",
        "GET  HTTP/1.1",
        "GET HTTP/1.1",
        " GET / HTTP/1.1",
        "G(T / HTTP/1.1",
        "G\u{e9}T / HTTP/1.1",
        "GET: / HTTP/1.1",
        "GET /",
        "GET",
        "GET / http/1.1",
        "GET / HTTP/",
        "GET / HTTP/1.1a",
        "GET / HTTP /1.1",
        "GET / HTTPS/1.1",
        "GET / \u{ff28}TTP/1.1",
    ] {
        refused(format!("{line}\r\nhost: a\r\n\r\n").as_bytes());
    }
}

#[test]
fn other_versions_are_told_apart_from_garbage() {
    for version in ["0.9", "1.2", "2.0", "2", "3", "1.10", "11", "1.", "01.1"] {
        let text = format!("GET / HTTP/{version}\r\nhost: a\r\n\r\n");
        assert_eq!(read(text.as_bytes()).unwrap_err(), Bad::Version, "{version}");
    }
    assert_eq!(read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap_err(), Bad::Version);
}

#[test]
fn a_field_that_readers_could_differ_on_is_refused() {
    for field in [
        "x: a\r\n folded\r\n",
        "x: a\r\n\tfolded\r\n",
        "x: a\r\n \r\n",
        " x: a\r\n",
        "x : a\r\n",
        "x\t: a\r\n",
        ": a\r\n",
        "x\r\n",
        "x y: a\r\n",
        "x\0: a\r\n",
        "x\u{e9}: a\r\n",
        "x(: a\r\n",
        "x: a\0b\r\n",
        "x: a\x01b\r\n",
        "x: a\x0bb\r\n",
        "x: a\x7fb\r\n",
        "x: \x1b[2J\r\n",
        "x: a\rb\r\n",
        "x: a\r\r\n",
        "x\r: a\r\n",
        "\rx: a\r\n",
        "x: a\ny: b\r\n",
        "x: a\n",
        "\nx: a\r\n",
        "x\n: a\r\n",
    ] {
        refused(&with(field));
    }
}

#[test]
fn a_head_ends_with_crlf_twice_and_nothing_else() {
    for text in
        ["GET / HTTP/1.1\nhost: a\n\n", "GET / HTTP/1.1\r\nhost: a\r\n\n", "GET / HTTP/1.1\nhost: a\r\n\r\n", "\nGET"]
    {
        refused(text.as_bytes());
    }
    assert!(read(b"GET / HTTP/1.1\r\nhost: a\r\n\r").unwrap().is_none());
}

#[test]
fn one_empty_line_may_come_first() {
    assert_eq!(whole("\r\nGET / HTTP/1.1\r\n\r\n").parts.method, Method::GET);
    for text in ["\r\n\r\nGET / HTTP/1.1\r\n\r\n", "\r\n\r\n", "\r\r\nGET", "\rGET", "\n\r\nGET", "\r\n GET"] {
        refused(text.as_bytes());
    }
}

#[test]
fn what_is_no_http_is_refused_at_its_first_byte() {
    refused(b"\x16\x03\x01");
    refused(b"\0");
    refused("\u{e9}".as_bytes());
}

#[test]
fn a_length_is_one_plain_number() {
    for (value, framing) in [
        ("0", Framing::Empty),
        ("00", Framing::Empty),
        ("7", Framing::Length(7)),
        ("007", Framing::Length(7)),
        ("9223372036854775807", Framing::Length((1 << 63) - 1)),
    ] {
        let head = read(&with(&format!("content-length: {value}\r\n"))).unwrap().unwrap();
        assert_eq!(head.framing, framing, "{value}");
    }
    for value in [
        "",
        "+1",
        "-1",
        "-0",
        "0x1",
        "1.0",
        "1e1",
        "1 1",
        "1_0",
        "1,1",
        "1, 1",
        "5, 6",
        ",5",
        "5,",
        "abc",
        "\"5\"",
        "\u{661}",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "99999999999999999999",
        "00000000000000000005",
    ] {
        refused(&with(&format!("content-length: {value}\r\n")));
    }
}

#[test]
fn framing_that_contradicts_itself_is_refused() {
    for fields in [
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: 5\r\ncontent-length: 5\r\n",
        "content-length: 0\r\nContent-Length: 0\r\n",
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 0\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
    ] {
        refused(&with(fields));
    }
    let text = b"CONNECT a:1 HTTP/1.1\r\ncontent-length: 5\r\n\r\n";
    assert_eq!(refused(text), "CONNECT with a body");
}

#[test]
fn the_only_transfer_encoding_is_chunked() {
    for value in ["chunked", "Chunked", "CHUNKED", " chunked\t"] {
        let head = read(&with(&format!("transfer-encoding: {value}\r\n"))).unwrap().unwrap();
        assert_eq!(head.framing, Framing::Chunked, "{value}");
    }
    for value in [
        "",
        "identity",
        "gzip",
        "gzip, chunked",
        "chunked, gzip",
        "chunked, chunked",
        "chunked,",
        ",chunked",
        "chunked;q=1",
        "\"chunked\"",
        "x-chunked",
        "chun ked",
        "\x0bchunked",
        "chunked\u{a0}",
    ] {
        refused(&with(&format!("transfer-encoding: {value}\r\n")));
    }
    refused(b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n");
}

#[test]
fn a_connection_is_kept_as_version_and_tokens_say() {
    for (version, fields, kept) in [
        ("1.1", "", true),
        ("1.0", "", false),
        ("1.0", "connection: keep-alive\r\n", true),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.1", "connection: close\r\n", false),
        ("1.1", "connection: CLOSE\r\n", false),
        ("1.1", "connection: close, keep-alive\r\n", false),
        ("1.1", "connection: keep-alive ,\tclose\r\n", false),
        ("1.0", "connection: keep-alive\r\nconnection: close\r\n", false),
        ("1.1", "connection: upgrade\r\n", true),
        ("1.1", "connection: closed\r\n", true),
        ("1.1", "x-connectio: close\r\n", true),
    ] {
        let head = whole(&format!("GET / HTTP/{version}\r\n{fields}\r\n"));
        assert_eq!(head.keep_alive, kept, "{version} {fields}");
    }
}

#[test]
fn a_word_before_the_body_is_expected_only_with_a_body() {
    let expects = |text: &str| whole(text).expects_continue;
    assert!(expects("POST / HTTP/1.1\r\nexpect: 100-Continue\r\ncontent-length: 1\r\n\r\n"));
    assert!(expects("POST / HTTP/1.1\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n"));
    assert!(!expects("POST / HTTP/1.1\r\nexpect: 100-continue\r\n\r\n"));
    assert!(!expects("POST / HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\n"));
    assert!(!expects("POST / HTTP/1.1\r\nexpect: something\r\ncontent-length: 1\r\n\r\n"));
}

#[test]
fn heads_are_bounded_in_bytes_and_fields() {
    let fields = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(count));
    assert_eq!(whole(&fields(100)).parts.headers.len(), 100);
    assert_eq!(read(fields(101).as_bytes()).unwrap_err(), Bad::TooLarge);

    let frame = "GET / HTTP/1.1\r\na: \r\n\r\n".len();
    let sized = |length: usize| format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "v".repeat(length - frame));
    assert_eq!(whole(&sized(60 * 1024)).parts.headers["a"].len(), 60 * 1024 - frame);
    assert_eq!(read(sized(60 * 1024 + 1).as_bytes()).unwrap_err(), Bad::TooLarge);
    // Long before its end has come.
    assert!(read(&sized(100 * 1024).as_bytes()[..60 * 1024 - 1]).unwrap().is_none());
    assert_eq!(read(&sized(100 * 1024).as_bytes()[..60 * 1024]).unwrap_err(), Bad::TooLarge);
    assert_eq!(read(format!("GET /{}", "a".repeat(60 * 1024)).as_bytes()).unwrap_err(), Bad::TooLarge);
    let name = "n".repeat(40 * 1024);
    assert!(read(&with(&format!("{name}: a\r\n"))).is_ok());
}

#[test]
fn a_head_that_comes_in_pieces_is_read_as_when_it_comes_whole() {
    for text in [
        "\r\nPOST /a?b HTTP/1.1\r\nHost: a\r\nx:  y \r\ncontent-length: 3\r\n\r\nabc",
        "GET / HTTP/1.1\r\nhost: a\r\nx : y\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\nx: y\r\n\r\n",
        "GET / HTTP/3\r\nhost: a\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "GET /\r\n\r\n",
    ] {
        let whole = read(text.as_bytes()).map(|head| shown(&head.unwrap()));
        for end in 0..text.len() {
            match read(&text.as_bytes()[..end]) {
                Ok(None) => {}
                Ok(Some(head)) => assert_eq!(Ok(shown(&head)), whole, "{text:?} at {end}"),
                Err(bad) => assert_eq!(Err(bad), whole, "{text:?} at {end}"),
            }
        }
    }
}

fn shown(head: &RequestHead) -> String {
    format!("{head:?}")
}

/// Bytes that matter to a parser, in any order: nothing panics, and no prefix is read otherwise than the whole.
#[test]
fn garbage_never_panics_and_no_prefix_changes_its_meaning() {
    const PIECES: [&str; 26] = [
        "GET",
        "POST",
        " ",
        "/",
        "*",
        "HTTP/1.1",
        "HTTP/1.0",
        "\r\n",
        "\r\n",
        "\r",
        "\n",
        ":",
        ": ",
        "host",
        "a",
        ",",
        "5",
        "content-length",
        "transfer-encoding",
        "chunked",
        "\t",
        "\0",
        "\u{e9}",
        "connection",
        "close",
        "#",
    ];
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..4_000 {
        let mut text = if rng.bool() { "GET / HTTP/1.1\r\n".to_owned() } else { String::new() };
        for _ in 0..rng.usize(..24) {
            text.push_str(PIECES[rng.usize(..PIECES.len())]);
        }
        text.push_str("\r\n\r\n");
        let whole = read(text.as_bytes()).map(|head| head.map(|head| shown(&head)));
        for end in 0..text.len() {
            match read(&text.as_bytes()[..end]).map(|head| head.map(|head| shown(&head))) {
                Ok(None) => {}
                early => assert_eq!(early, whole, "{text:?} at {end}"),
            }
        }
    }
}
