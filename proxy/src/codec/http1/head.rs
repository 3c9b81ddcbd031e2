//! The heads of requests and responses (RFC 9112 sections 2 to 6): what they say, and how the body that follows is framed.
//!
//! A head is read once it is whole. What could make the next message begin elsewhere for another reader is refused; what
//! cannot become a head at all is refused at its first bytes.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::header::HeaderMap;
use http::{Method, Request, Response, StatusCode, Uri, Version, request, response};

use super::fields::{self, Lines, Said};
use super::{Bad, Framing};

/// A request's head.
#[derive(Debug)]
pub(crate) struct RequestHead {
    /// Method, target, version (1.0 or 1.1) and headers, framing ones among them.
    pub(crate) parts: request::Parts,
    /// How its body is framed; never [`Framing::UntilClose`].
    pub(crate) framing: Framing,
    /// The caller can use the connection again after the answer.
    pub(crate) keep_alive: bool,
    /// The caller waits for `100 Continue` before it sends the body, which is not empty.
    pub(crate) expects_continue: bool,
    /// The caller asks for another protocol, or for a tunnel: it may begin to speak it before it was answered.
    pub(crate) upgrades: bool,
}

/// A response's head.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    /// Status, version (1.0 or 1.1) and headers, framing ones among them.
    pub(crate) parts: response::Parts,
    /// How its body is framed.
    pub(crate) framing: Framing,
    /// The connection can be used again after the body.
    pub(crate) keep_alive: bool,
}

/// Takes the head of a request off `inbox`; `None`: it is not whole yet, and until then nothing is moved or shared.
/// `headers` is empty: a map to reuse.
///
/// # Errors
/// [`Bad`], when it is none.
pub(crate) fn take_request(inbox: &mut BytesMut, headers: HeaderMap) -> Result<Option<RequestHead>, Bad> {
    let start = request_start(inbox)?;
    let Some(lines) = Lines::find(inbox, start)? else { return Ok(None) };
    let bytes = inbox.split_to(lines.length).freeze();
    read_request(&bytes, start, &lines, headers).map(Some)
}

/// Takes the head of a response to a request with `method` off `inbox`, as [`take_request`] does. Interim ones are returned
/// like any other.
///
/// # Errors
/// [`Bad`], when it is none.
pub(crate) fn take_response(
    inbox: &mut BytesMut,
    method: &Method,
    headers: HeaderMap,
) -> Result<Option<ResponseHead>, Bad> {
    response_start(inbox)?;
    let Some(lines) = Lines::find(inbox, 0)? else { return Ok(None) };
    let bytes = inbox.split_to(lines.length).freeze();
    read_response(&bytes, &lines, method, headers).map(Some)
}

/// Where the request line begins: one empty line before it is tolerated (RFC 9112 section 2.2).
fn request_start(bytes: &[u8]) -> Result<usize, Bad> {
    let start = match bytes {
        [b'\r', b'\n', ..] => 2,
        [b'\r'] => 1,
        _ => 0,
    };
    match bytes.get(start) {
        // Whoever speaks TLS or another protocol hears so at once.
        Some(first) if !first.is_ascii_graphic() => Err(Bad::Malformed("it does not begin with a method")),
        _ => Ok(start),
    }
}

/// A response begins with its version.
fn response_start(bytes: &[u8]) -> Result<(), Bad> {
    const NAME: &[u8] = b"HTTP/";
    let came = bytes.len().min(NAME.len());
    if bytes[..came] == NAME[..came] { Ok(()) } else { Err(Bad::Malformed("it does not begin with HTTP/")) }
}

fn read_request(bytes: &Bytes, start: usize, lines: &Lines, mut headers: HeaderMap) -> Result<RequestHead, Bad> {
    let end = lines.first().ok_or(Bad::Malformed("no request line"))?;
    let (method, target, version) = request_line(&bytes[start..end])?;
    let target = bytes.slice(start + target.start..start + target.end);
    let uri = Uri::from_maybe_shared(target).map_err(|_| Bad::Malformed("the target is none"))?;
    let said = fields::read(bytes, end + 2, &lines.ends()[1..], &mut headers)?;
    let framing = declared(&said, version)?.unwrap_or(Framing::Empty);
    // After the answer to CONNECT its bytes would be the tunnel's to some, and a body to others.
    if framing != Framing::Empty && method == Method::CONNECT {
        return Err(Bad::Malformed("CONNECT with a body"));
    }
    let upgrades = said.upgrades || method == Method::CONNECT;
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = method;
    parts.uri = uri;
    parts.version = version;
    put(&mut parts.headers, headers);
    Ok(RequestHead {
        parts,
        framing,
        keep_alive: stays(&said, version),
        expects_continue: said.expects_continue && framing != Framing::Empty && version == Version::HTTP_11,
        upgrades,
    })
}

fn read_response(bytes: &Bytes, lines: &Lines, method: &Method, mut headers: HeaderMap) -> Result<ResponseHead, Bad> {
    let end = lines.first().ok_or(Bad::Malformed("no status line"))?;
    let (version, status) = status_line(&bytes[..end])?;
    let said = fields::read(bytes, end + 2, &lines.ends()[1..], &mut headers)?;
    let declared = declared(&said, version)?;
    let announces = declared.is_some_and(|framing| framing != Framing::Empty);
    let mut keep_alive = stays(&said, version);
    let framing = if status.is_informational() {
        if announces {
            return Err(Bad::Malformed("an interim response with a body"));
        }
        Framing::Empty
    } else if status == StatusCode::NO_CONTENT {
        // It has no body (RFC 9112 section 6.3); whoever announces one may send it.
        keep_alive &= !announces;
        Framing::Empty
    } else if status == StatusCode::NOT_MODIFIED
        || *method == Method::HEAD
        || status.is_success() && *method == Method::CONNECT
    {
        Framing::Empty
    } else {
        declared.unwrap_or(Framing::UntilClose)
    };
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = status;
    parts.version = version;
    put(&mut parts.headers, headers);
    Ok(ResponseHead { parts, framing, keep_alive: keep_alive && framing != Framing::UntilClose })
}

/// Puts a map where a new one stands, which holds no memory yet: to let go of it costs more than to forget it.
fn put(new: &mut HeaderMap, headers: HeaderMap) {
    std::mem::forget(std::mem::replace(new, headers));
}

/// The framing that the headers declare; `None`: they are silent.
fn declared(said: &Said, version: Version) -> Result<Option<Framing>, Bad> {
    match (said.chunked, said.length) {
        (false, None) => Ok(None),
        (false, Some(0)) => Ok(Some(Framing::Empty)),
        (false, Some(length)) => Ok(Some(Framing::Length(length))),
        (true, Some(_)) => Err(Bad::Malformed("both content-length and transfer-encoding")),
        (true, None) if version == Version::HTTP_10 => Err(Bad::Malformed("a transfer-encoding in HTTP/1.0")),
        (true, None) => Ok(Some(Framing::Chunked)),
    }
}

fn stays(said: &Said, version: Version) -> bool {
    !said.close && (version == Version::HTTP_11 || said.keep_alive)
}

/// Method, where the target stands in `line`, and version.
fn request_line(line: &[u8]) -> Result<(Method, Range<usize>, Version), Bad> {
    let (rest, version) = match line {
        [rest @ .., b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1'] => (rest, Version::HTTP_11),
        [rest @ .., b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0'] => (rest, Version::HTTP_10),
        _ => return Err(without_version(line)),
    };
    let space = rest.iter().position(|byte| *byte == b' ').ok_or(Bad::Malformed("a request line of two words"))?;
    let method = Method::from_bytes(&rest[..space]).map_err(|_| Bad::Malformed("the method is no token"))?;
    // What follows a number sign would be cut off in silence; white space and control characters are no part of a target.
    if memchr::memchr(b'#', &rest[space + 1..]).is_some() {
        return Err(Bad::Malformed("a target with a fragment"));
    }
    Ok((method, space + 1..rest.len(), version))
}

#[cold]
fn without_version(line: &[u8]) -> Bad {
    let last = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    other_version(last).unwrap_or(Bad::Malformed("a request line without a version"))
}

/// HTTP of another version than ours.
fn other_version(word: &[u8]) -> Option<Bad> {
    let number = word.strip_prefix(b"HTTP/")?;
    let is_number = !number.is_empty() && number.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.');
    (is_number && !matches!(number, b"1.1" | b"1.0")).then_some(Bad::Version)
}

/// Version and status; what the reason says is nobody's business.
fn status_line(line: &[u8]) -> Result<(Version, StatusCode), Bad> {
    let (version, rest) = match line {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1', b' ', rest @ ..] => (Version::HTTP_11, rest),
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0', b' ', rest @ ..] => (Version::HTTP_10, rest),
        _ => {
            let first = line.split(|byte| *byte == b' ').next().unwrap_or_default();
            return Err(other_version(first).unwrap_or(Bad::Malformed("a status line without a version")));
        }
    };
    let (code, reason) = match rest.split_at_checked(3) {
        // Many leave out the space before a reason that is empty.
        Some((code, [])) => (code, &[][..]),
        Some((code, [b' ', reason @ ..])) => (code, reason),
        _ => return Err(Bad::Malformed("the status is no number of three digits")),
    };
    if reason.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(Bad::Malformed("a control character in the status line"));
    }
    let status = StatusCode::from_bytes(code).map_err(|_| Bad::Malformed("the status is no number of three digits"))?;
    Ok((version, status))
}
