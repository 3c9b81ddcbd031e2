//! Heads and chunks onto the wire. Framing headers are written from what the body is, never copied from what came.
//!
//! Names, values, methods and statuses are written as they stand: their types have checked them.

use http::header::{self, HeaderMap, HeaderName};
use http::{Method, StatusCode, Version};

use super::Framing;

/// Writes the head of a request. `target` is a request target that was parsed. A request cannot last until its connection
/// closes: such a framing is written as chunked.
pub(crate) fn request_head(out: &mut Vec<u8>, method: &Method, target: &str, headers: &HeaderMap, framing: Framing) {
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    fields(out, headers, is_framing);
    match framing {
        // Where a body is usual, some servers wait for one that is not denied.
        Framing::Empty if matches!(*method, Method::POST | Method::PUT | Method::PATCH) => content_length(out, 0),
        Framing::Empty => {}
        Framing::Length(length) => content_length(out, length),
        Framing::Chunked | Framing::UntilClose => chunked(out),
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes the head of a response to a request of `version` (1.0 or 1.1), which was HEAD if `to_head`.
///
/// Interim responses and 204 get no framing header; a response to HEAD, and 304, keep the content-length that `headers`
/// has. [`Framing::UntilClose`] writes none either, which is right for a 2xx to CONNECT too; [`Framing::Chunked`] is nothing
/// that a caller of version 1.0 can read. `Connection` is written where it has to be said, and copied otherwise.
pub(crate) fn response_head(
    out: &mut Vec<u8>,
    version: Version,
    status: StatusCode,
    headers: &HeaderMap,
    framing: Framing,
    keep_alive: bool,
    to_head: bool,
) {
    status_line(out, status);
    // The `Connection` of 101 names the protocol that follows.
    let connection: &[u8] = match (keep_alive, version) {
        _ if status == StatusCode::SWITCHING_PROTOCOLS => b"",
        // What 426 asks to upgrade to stands in a field of this connection (RFC 9110 section 15.5.22).
        (false, _) if status == StatusCode::UPGRADE_REQUIRED => b"connection: close, upgrade\r\n",
        (false, _) => b"connection: close\r\n",
        (true, Version::HTTP_10) => b"connection: keep-alive\r\n",
        (true, _) => b"",
    };
    let without_body = to_head || status == StatusCode::NOT_MODIFIED;
    let keeps_length = without_body && headers.contains_key(header::CONTENT_LENGTH);
    fields(out, headers, |name| {
        *name == header::TRANSFER_ENCODING
            || *name == header::CONTENT_LENGTH && !keeps_length
            || *name == header::CONNECTION && !connection.is_empty()
    });
    out.extend_from_slice(connection);
    if !keeps_length && !status.is_informational() && status != StatusCode::NO_CONTENT {
        match framing {
            Framing::Length(length) => content_length(out, length),
            Framing::Empty if !without_body => content_length(out, 0),
            Framing::Chunked if !without_body => chunked(out),
            Framing::Empty | Framing::Chunked | Framing::UntilClose => {}
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes a head that comes before the response; never to a caller of version 1.0.
pub(crate) fn interim_head(out: &mut Vec<u8>, status: StatusCode, headers: &HeaderMap) {
    status_line(out, status);
    fields(out, headers, is_framing);
    out.extend_from_slice(b"\r\n");
}

/// Writes what stands before a chunk of `length` bytes, which is not 0: that would be the last. CRLF comes
/// behind its data.
pub(crate) fn chunk_start(out: &mut Vec<u8>, length: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 18];
    text[16..].copy_from_slice(b"\r\n");
    let (mut at, mut left) = (16, length);
    while left > 0 {
        at -= 1;
        text[at] = DIGITS[left & 15];
        left >>= 4;
    }
    out.extend_from_slice(&text[at..]);
}

/// Writes the end of a chunked body.
pub(crate) fn last_chunk(out: &mut Vec<u8>, trailers: Option<&HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        fields(out, trailers, is_framing);
    }
    out.extend_from_slice(b"\r\n");
}

fn is_framing(name: &HeaderName) -> bool {
    *name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING
}

fn status_line(out: &mut Vec<u8>, status: StatusCode) {
    if status == StatusCode::OK {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn fields(out: &mut Vec<u8>, headers: &HeaderMap, skip: impl Fn(&HeaderName) -> bool) {
    for (name, value) in headers {
        if skip(name) {
            continue;
        }
        let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
        out.reserve(name.len() + value.len() + 4);
        out.extend_from_slice(name);
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
}

fn chunked(out: &mut Vec<u8>) {
    out.extend_from_slice(b"transfer-encoding: chunked\r\n");
}

fn content_length(out: &mut Vec<u8>, length: u64) {
    let mut text = [b'0'; 20];
    let (mut at, mut left) = (text.len(), length);
    while left > 0 || at == text.len() {
        at -= 1;
        // A digit.
        text[at] = b'0' + (left % 10) as u8;
        left /= 10;
    }
    out.extend_from_slice(b"content-length: ");
    out.extend_from_slice(&text[at..]);
    out.extend_from_slice(b"\r\n");
}
