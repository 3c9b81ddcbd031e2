//! What is sent, and what must become of it. `ROW`, `SECOND` and `HIDDEN` stand for targets of that row alone.

/// What must become of a row.
#[derive(Debug, Clone, Copy)]
pub(super) enum Must {
    /// The mesh refuses it and closes; the application hears nothing.
    BeRefused,
    /// It begins well and breaks: the mesh ends it, the application may have heard its beginning.
    Break,
    /// These methods and targets are answered with 200, in this order; whether the connection stays.
    Pass(&'static [&'static str], bool),
    /// The first is answered with 200, what follows is refused, and the connection is closed.
    PassThenRefuse(&'static str),
}

use Must::{BeRefused, Break, Pass, PassThenRefuse};

/// A request that nobody may take for one.
pub(super) const HIDDEN: &str = "GET HIDDEN HTTP/1.1\r\nhost: inventory\r\n\r\n";

/// The head of a POST with these lines, then this.
fn post(lines: &str, body: &str) -> String {
    format!("POST ROW HTTP/1.1\r\nhost: inventory\r\n{lines}\r\n\r\n{body}")
}

fn chunked(body: &str) -> String {
    post("transfer-encoding: chunked", body)
}

/// Lengths and codings that readers differ on.
pub(super) fn heads() -> Vec<(&'static str, String, Must)> {
    let hidden = |lines: &str| post(lines, &format!("0\r\n\r\n{HIDDEN}"));
    vec![
        ("a length and chunks", hidden("content-length: 5\r\ntransfer-encoding: chunked"), BeRefused),
        ("chunks and a length", hidden("transfer-encoding: chunked\r\ncontent-length: 5"), BeRefused),
        ("two lengths", hidden("content-length: 0\r\ncontent-length: 5"), BeRefused),
        ("one length twice", post("content-length: 5\r\ncontent-length: 5", "hello"), BeRefused),
        ("a list of lengths", post("content-length: 5, 5", "hello"), BeRefused),
        ("a length with a sign", post("content-length: +5", "hello"), BeRefused),
        ("a negative length", hidden("content-length: -5"), BeRefused),
        ("a length in hexadecimal", post("content-length: 0x5", "hello"), BeRefused),
        ("a length of two numbers", post("content-length: 5 0", "hello"), BeRefused),
        ("a length with a NUL", post("content-length: 5\0", "hello"), BeRefused),
        ("no length", hidden("content-length:"), BeRefused),
        ("a length of 2^63", hidden("content-length: 9223372036854775808"), BeRefused),
        ("a length of 2^64", hidden("content-length: 18446744073709551616"), BeRefused),
        ("a length of 2^64 + 5", post("content-length: 18446744073709551621", "hello"), BeRefused),
        ("a length and its alias", hidden("content-length: 5\r\ncontent_length: 50"), BeRefused),
        ("a length behind a folded line", hidden("x-a: 1\r\n content-length: 5"), BeRefused),
        ("a folded coding", hidden("content-length: 5\r\ntransfer-encoding:\r\n chunked"), BeRefused),
        ("a space before the colon", hidden("content-length: 5\r\ntransfer-encoding : chunked"), BeRefused),
        ("a tab before the colon", hidden("transfer-encoding\t: chunked"), BeRefused),
        ("a space before the name", hidden("content-length: 5\r\n transfer-encoding: chunked"), BeRefused),
        ("a space before a length's colon", hidden("content-length : 5"), BeRefused),
        ("a control character before the coding", hidden("transfer-encoding:\x0bchunked"), BeRefused),
        ("a control character in a name", hidden("content-length: 5\r\ntransfer\x01-encoding: chunked"), BeRefused),
        ("another coding", hidden("content-length: 5\r\ntransfer-encoding: xchunked"), BeRefused),
        ("a coding before chunked", hidden("transfer-encoding: gzip, chunked"), BeRefused),
        ("chunked twice", hidden("transfer-encoding: chunked, chunked"), BeRefused),
        ("two codings", hidden("transfer-encoding: chunked\r\ntransfer-encoding: cow"), BeRefused),
        ("the identity", hidden("transfer-encoding: identity\r\ncontent-length: 5"), BeRefused),
        ("a coding in quotes", hidden("transfer-encoding: \"chunked\""), BeRefused),
        ("an empty coding", hidden("transfer-encoding:\r\ncontent-length: 5"), BeRefused),
        ("a coding with a parameter", hidden("transfer-encoding: chunked;q=1"), BeRefused),
        ("a header without a name", hidden(": x\r\ncontent-length: 5"), BeRefused),
        ("a header without a colon", hidden("transfer-encoding\r\ncontent-length: 5"), BeRefused),
        ("a NUL in a value", hidden("x-a: a\0b\r\ncontent-length: 5"), BeRefused),
        ("a CR in a value", hidden("x-a: a\rtransfer-encoding: chunked\r\ncontent-length: 5"), BeRefused),
        ("a LF in a value", hidden("x-a: a\ntransfer-encoding: chunked\r\ncontent-length: 5"), BeRefused),
        ("CR LF LF", format!("POST ROW HTTP/1.1\r\nhost: inventory\r\n\n{HIDDEN}"), BeRefused),
        ("LF alone", "POST ROW HTTP/1.1\nhost: inventory\ncontent-length: 5\n\nhello".to_owned(), BeRefused),
        ("CR alone", "POST ROW HTTP/1.1\rhost: inventory\rcontent-length: 5\r\rhello\r\n\r\n".to_owned(), BeRefused),
        ("Connection ends the length", post("connection: content-length\r\ncontent-length: 5", "hello"), BeRefused),
        ("Connection ends the host", post("connection: host\r\ncontent-length: 5", "hello"), BeRefused),
        (
            "chunks in HTTP/1.0",
            hidden("transfer-encoding: chunked").replace("HTTP/1.1\r\nhost", "HTTP/1.0\r\nhost"),
            BeRefused,
        ),
        ("another version", post("content-length: 5", "hello").replacen("HTTP/1.1", "HTTP/1.2", 1), BeRefused),
        ("two hosts", post("host: other\r\ncontent-length: 5", "hello"), BeRefused),
        (
            "a host that is not the authority",
            "GET http://other/ HTTP/1.1\r\nhost: inventory\r\n\r\n".to_owned(),
            BeRefused,
        ),
        (
            "a user in the authority",
            "GET http://inventory@other/ HTTP/1.1\r\nhost: inventory\r\n\r\n".to_owned(),
            BeRefused,
        ),
        ("an odd port", "GET / HTTP/1.1\r\nhost: inventory:080\r\n\r\n".to_owned(), BeRefused),
        ("a target with a space", "GET ROW x HTTP/1.1\r\nhost: inventory\r\n\r\n".to_owned(), BeRefused),
        (
            "CONNECT where HTTP is spoken",
            format!("CONNECT inventory:80 HTTP/1.1\r\nhost: inventory:80\r\n\r\n{HIDDEN}"),
            BeRefused,
        ),
        (
            "CONNECT with a body",
            format!("CONNECT inventory:80 HTTP/1.1\r\nhost: inventory:80\r\ncontent-length: 50\r\n\r\n{HIDDEN}"),
            BeRefused,
        ),
    ]
}

/// Chunks that are none.
pub(super) fn chunks() -> Vec<(&'static str, String, Must)> {
    let hidden = |line: &str| chunked(&format!("{line}\r\nhello\r\n0\r\n\r\n{HIDDEN}"));
    vec![
        ("a chunk's size in C", hidden("0x5"), Break),
        ("a chunk's size with a sign", hidden("+5"), Break),
        ("a negative chunk", hidden("-5"), Break),
        ("a chunk's size after a space", hidden(" 5"), Break),
        ("a chunk's size before a space", hidden("5 "), Break),
        ("a chunk's size that is a letter", hidden("g"), Break),
        ("no chunk's size", hidden(""), Break),
        ("a chunk of 2^64 + 5", hidden("10000000000000005"), Break),
        ("a chunk of 2^63", hidden("8000000000000000"), Break),
        ("a chunk's line that ends in LF", chunked(&format!("5\nhello\r\n0\r\n\r\n{HIDDEN}")), Break),
        ("a chunk's extension with LF", chunked(&format!("5;a\nb\r\nhello\r\n0\r\n\r\n{HIDDEN}")), Break),
        ("a chunk's extension with CR", chunked(&format!("5;a\rb\r\nhello\r\n0\r\n\r\n{HIDDEN}")), Break),
        ("a chunk's extension without end", hidden(&format!("5;{}", "a".repeat(5000))), Break),
        (
            "many extensions",
            chunked(&format!("{}0\r\n\r\n", format!("1;{}\r\nx\r\n", "a".repeat(250)).repeat(200))),
            Break,
        ),
        ("a chunk that is longer", chunked(&format!("5\r\nhello!\r\n0\r\n\r\n{HIDDEN}")), Break),
        ("a chunk that ends in LF", chunked(&format!("5\r\nhello\n0\r\n\r\n{HIDDEN}")), Break),
        ("a chunk that ends in CR", chunked(&format!("5\r\nhello\r0\r\n\r\n{HIDDEN}")), Break),
        ("a trailer that is none", chunked(&format!("0\r\n{HIDDEN}")), Break),
        ("a folded trailer", chunked(&format!("0\r\nx-a: 1\r\n b\r\n\r\n{HIDDEN}")), Break),
        ("a trailer that ends in LF", chunked(&format!("0\r\nx-a: 1\n\r\n{HIDDEN}")), Break),
    ]
}

/// What is read in one way only, however odd it looks.
pub(super) fn good() -> Vec<(&'static str, String, Must)> {
    let second = "GET SECOND HTTP/1.1\r\nhost: inventory\r\n\r\n";
    let length = |method: &str| {
        format!("{method} ROW HTTP/1.1\r\nhost: inventory\r\ncontent-length: {}\r\n\r\n{HIDDEN}", HIDDEN.len())
    };
    vec![
        ("a length", post("content-length: 5", "hello"), Pass(&["POST ROW"], true)),
        ("a length after a tab", post("content-length:\t5", "hello"), Pass(&["POST ROW"], true)),
        ("chunks", chunked("5\r\nhello\r\n0\r\n\r\n"), Pass(&["POST ROW"], true)),
        (
            "chunks in capitals",
            post("TRANSFER-ENCODING: Chunked", "5\r\nhello\r\n0\r\n\r\n"),
            Pass(&["POST ROW"], true),
        ),
        ("a chunk's size with zeros", chunked("0000000000000005\r\nhello\r\n0\r\n\r\n"), Pass(&["POST ROW"], true)),
        ("a chunk's extension", chunked("5;a=\"b\"\r\nhello\r\n0;c\r\n\r\n"), Pass(&["POST ROW"], true)),
        (
            "forbidden trailers",
            chunked("0\r\ncontent-length: 50\r\nhost: other\r\ntransfer-encoding: chunked\r\n\r\n"),
            Pass(&["POST ROW"], true),
        ),
        ("trailers", chunked("0\r\nauthorization: x\r\nx-sum: 1\r\n\r\n"), Pass(&["POST ROW"], true)),
        ("a request in a GET's body", length("GET"), Pass(&["GET ROW"], true)),
        ("a request in a DELETE's body", length("DELETE"), Pass(&["DELETE ROW"], true)),
        (
            "a request in a chunk",
            chunked(&format!("{:x}\r\n{HIDDEN}\r\n0\r\n\r\n", HIDDEN.len())),
            Pass(&["POST ROW"], true),
        ),
        (
            "a request in a body that is waited for",
            post(&format!("expect: 100-continue\r\ncontent-length: {}", HIDDEN.len()), HIDDEN),
            Pass(&["POST ROW"], true),
        ),
        (
            "two requests",
            format!("GET ROW HTTP/1.1\r\nhost: inventory\r\n\r\n{second}"),
            Pass(&["GET ROW", "GET SECOND"], true),
        ),
        (
            "a body and a request",
            post("content-length: 5", &format!("hello{second}")),
            Pass(&["POST ROW", "GET SECOND"], true),
        ),
        (
            "chunks and a request",
            chunked(&format!("5\r\nhello\r\n0\r\n\r\n{second}")),
            Pass(&["POST ROW", "GET SECOND"], true),
        ),
        (
            "an empty line between",
            format!("GET ROW HTTP/1.1\r\nhost: inventory\r\n\r\n\r\n{second}"),
            Pass(&["GET ROW", "GET SECOND"], true),
        ),
        (
            "a request and garbage",
            "GET ROW HTTP/1.1\r\nhost: inventory\r\n\r\n\x01\x02\x03\r\n\r\n".to_owned(),
            PassThenRefuse("GET ROW"),
        ),
        (
            "a request and HTTP/2",
            "GET ROW HTTP/1.1\r\nhost: inventory\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            PassThenRefuse("GET ROW"),
        ),
        (
            "a request behind the last",
            format!("GET ROW HTTP/1.1\r\nhost: inventory\r\nconnection: close\r\n\r\n{HIDDEN}"),
            Pass(&["GET ROW"], false),
        ),
        (
            "the absolute form",
            "GET http://inventoryROW HTTP/1.1\r\nhost: inventory\r\n\r\n".to_owned(),
            Pass(&["GET ROW"], true),
        ),
        (
            "Connection ends the coding",
            post("connection: transfer-encoding\r\ntransfer-encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
            Pass(&["POST ROW"], true),
        ),
    ]
}

/// Connections that should change their protocol, and are answered.
pub(super) fn upgrades() -> Vec<(&'static str, String, Must)> {
    let upgrade = |lines: &str, more: &str| format!("GET ROW HTTP/1.1\r\nhost: inventory\r\n{lines}\r\n\r\n{more}");
    vec![
        (
            "an upgrade that is answered, and more",
            upgrade("connection: upgrade\r\nupgrade: example", HIDDEN),
            Pass(&["GET ROW"], false),
        ),
        (
            "h2c, and HTTP/2 at once",
            upgrade(
                "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk",
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            ),
            Pass(&["GET ROW"], false),
        ),
        (
            "an upgrade with a body that hides one",
            format!(
                "POST ROW HTTP/1.1\r\nhost: inventory\r\nconnection: upgrade\r\nupgrade: example\r\ncontent-length: {}\r\n\r\n{HIDDEN}",
                HIDDEN.len()
            ),
            Pass(&["POST ROW"], true),
        ),
    ]
}

/// What over HTTP/2 would be another message over HTTP/1.1.
pub(super) const HTTP2: [(&str, &[(&str, &str)]); 12] = [
    ("a line break in the path", &[(":path", "/row HTTP/1.1\r\nhost: x\r\n\r\nGET /hidden")]),
    ("a space in the path", &[(":path", "/row HTTP/1.1")]),
    ("a line break in the method", &[(":method", "GET /hidden HTTP/1.1\r\nx: ")]),
    ("a line break in the authority", &[(":authority", "inventory\r\nx-a: b")]),
    ("a line break in a value", &[("x-a", "b\r\n\r\nGET /hidden HTTP/1.1\r\nhost: inventory")]),
    ("a line break in a name", &[("x-a: b\r\nx-c", "d")]),
    ("a colon in a name", &[("x-a: b", "c")]),
    ("a coding", &[("transfer-encoding", "chunked")]),
    ("a length and no body", &[("content-length", "5")]),
    ("two lengths", &[("content-length", "0"), ("content-length", "5")]),
    ("a connection's header", &[("connection", "close")]),
    ("an upgrade", &[("upgrade", "websocket")]),
];
