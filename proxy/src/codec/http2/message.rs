//! Header blocks as the heads of requests and responses and as trailers, and back (RFC 9113 section 8), read strictly: what two
//! readers could read differently is refused, never repaired.
//!
//! What one field can get wrong is known from where it was made; here is what they can get wrong together.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue, IntoHeaderName};
use http::uri::{self, Authority, PathAndQuery, Scheme};
use http::{Method, Request as Whole, Response, StatusCode, Uri, Version, request, response};

use super::bad::{Bad, Code};
use super::frame;
use super::hpack::{Decoder, Encoder, Extent, Field};

/// Why a header block is no head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unread {
    /// The compression has lost its state: nothing more can be read on the connection.
    #[error("the header block cannot be decompressed: {0}")]
    Compression(&'static str),
    /// More bytes or fields than are taken from anybody (431). The compression is fine.
    #[error("more than {} bytes or {} fields of headers", crate::codec::MAX_HEADER_BYTES, crate::codec::MAX_HEADERS)]
    TooLarge,
    /// Malformed (400, or RST_STREAM with PROTOCOL_ERROR). The compression is fine.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// An extended CONNECT (RFC 8441), which we do not offer. The compression is fine.
    #[error("an extended CONNECT, which was not offered")]
    Extended,
}

impl Unread {
    /// The error this is on `stream`.
    pub(crate) fn at(self, stream: u32) -> Bad {
        match self {
            Self::Compression(why) => Bad::connection(Code::COMPRESSION_ERROR, why),
            Self::TooLarge => Bad::at(stream, Code::ENHANCE_YOUR_CALM, "more headers than are taken from anybody"),
            Self::Malformed(why) => Bad::at(stream, Code::PROTOCOL_ERROR, why),
            Self::Extended => Bad::at(stream, Code::PROTOCOL_ERROR, "an extended CONNECT, which was not offered"),
        }
    }
}

/// A request's head, to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    /// The method.
    pub(crate) method: &'a Method,
    /// `http` or `https`; not written for CONNECT.
    pub(crate) scheme: &'a str,
    /// The authority; empty: none is written.
    pub(crate) authority: &'a str,
    /// Path and query; not written for CONNECT.
    pub(crate) path: &'a str,
    /// The headers. Host, what only concerns an HTTP/1.1 connection and `te` other than trailers are left out.
    pub(crate) headers: &'a HeaderMap,
}

/// The fields of a block, put in their places.
struct Fields {
    method: Option<Method>,
    scheme: Option<Scheme>,
    authority: Option<Authority>,
    path: Option<PathAndQuery>,
    status: Option<StatusCode>,
    /// `:protocol` was there.
    extended: bool,
    host: Option<HeaderValue>,
    length: Option<u64>,
    /// A header came: no pseudo-header may follow it.
    past_pseudo: bool,
    headers: HeaderMap,
    /// The first mistake.
    bad: Option<&'static str>,
}

/// Reads the head of a request. `headers` is empty: a map to reuse. `end`: no body follows. Beside the head comes what its
/// content-length says.
///
/// A request that names its authority in `host` alone gets no scheme in its target; one that repeats it there loses `host`.
///
/// # Errors
/// [`Unread`].
pub(crate) fn request(
    decoder: &mut Decoder,
    block: &Bytes,
    headers: HeaderMap,
    end: bool,
) -> Result<(request::Parts, Option<u64>), Unread> {
    let fields = Fields::read(decoder, block, headers)?;
    if fields.status.is_some() {
        return Err(Unread::Malformed("a request with a status"));
    }
    fields.ends_well(end)?;
    let Fields { method, scheme, authority, path, extended, host, length, mut headers, .. } = fields;
    let method = method.ok_or(Unread::Malformed("a request without a method"))?;
    if extended {
        return Err(if method == Method::CONNECT {
            Unread::Extended
        } else {
            Unread::Malformed("a protocol without CONNECT")
        });
    }
    let mut target = uri::Parts::default();
    if method == Method::CONNECT {
        if scheme.is_some() || path.is_some() {
            return Err(Unread::Malformed("CONNECT with a scheme or a path"));
        }
        target.authority = Some(authority.ok_or(Unread::Malformed("CONNECT without an authority"))?);
    } else {
        let scheme = scheme.ok_or(Unread::Malformed("a request without a scheme"))?;
        let path = path.ok_or(Unread::Malformed("a request without a path"))?;
        if path == "*" && method != Method::OPTIONS {
            return Err(Unread::Malformed("a path of a star, without OPTIONS"));
        }
        target.path_and_query = Some(path);
        target.scheme = authority.is_some().then_some(scheme);
        target.authority = authority;
    }
    match (&target.authority, host) {
        (None, None) => return Err(Unread::Malformed("a request without an authority")),
        (None, Some(host)) => _ = headers.insert(header::HOST, host),
        (Some(_), None) => {}
        (Some(authority), Some(host)) if host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) => {}
        (Some(_), Some(_)) => return Err(Unread::Malformed("a host other than the authority")),
    }
    let (mut parts, ()) = Whole::new(()).into_parts();
    parts.method = method;
    parts.uri = Uri::from_parts(target).map_err(|_| Unread::Malformed("the target is none"))?;
    parts.version = Version::HTTP_2;
    parts.headers = headers;
    Ok((parts, length))
}

/// Reads the head of a response, interim ones like any other, as [`request()`] does.
///
/// # Errors
/// [`Unread`].
pub(crate) fn response(
    decoder: &mut Decoder,
    block: &Bytes,
    headers: HeaderMap,
    end: bool,
) -> Result<(response::Parts, Option<u64>), Unread> {
    let mut fields = Fields::read(decoder, block, headers)?;
    if fields.is_request() {
        return Err(Unread::Malformed("a response with what only requests have"));
    }
    let status = fields.status.ok_or(Unread::Malformed("a response without a status"))?;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Unread::Malformed("a switch of protocols, which HTTP/2 does not have"));
    }
    if status.is_informational() && end {
        return Err(Unread::Malformed("an interim response that ends the stream"));
    }
    if let Some(host) = fields.host.take() {
        fields.headers.insert(header::HOST, host);
    }
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = status;
    parts.version = Version::HTTP_2;
    parts.headers = fields.headers;
    Ok((parts, fields.length))
}

/// Reads trailers, as [`request()`] does.
///
/// # Errors
/// [`Unread`].
pub(crate) fn trailers(decoder: &mut Decoder, block: &Bytes, headers: HeaderMap) -> Result<HeaderMap, Unread> {
    let fields = Fields::read(decoder, block, headers)?;
    if fields.is_request() || fields.status.is_some() {
        return Err(Unread::Malformed("a pseudo-header among trailers"));
    }
    if fields.length.is_some() || fields.host.is_some() {
        return Err(Unread::Malformed("a trailer that belongs into a head"));
    }
    Ok(fields.headers)
}

/// Decompresses a block that nobody wants, for those that follow it.
///
/// # Errors
/// [`Unread::Compression`].
pub(crate) fn skip(decoder: &mut Decoder, block: &Bytes) -> Result<(), Unread> {
    decoder.decode(block, |_| ()).map(drop).map_err(Unread::Compression)
}

impl Fields {
    fn read(decoder: &mut Decoder, block: &Bytes, headers: HeaderMap) -> Result<Self, Unread> {
        let mut fields = Self {
            method: None,
            scheme: None,
            authority: None,
            path: None,
            status: None,
            extended: false,
            host: None,
            length: None,
            past_pseudo: false,
            headers,
            bad: None,
        };
        let taken = decoder.decode(block, |field| match field {
            Cow::Borrowed(field) => fields.take_known(field),
            Cow::Owned(field) => fields.take(field),
        });
        let extent = taken.map_err(Unread::Compression)?;
        match (fields.bad, extent) {
            (Some(why), _) => Err(Unread::Malformed(why)),
            (None, Extent::TooLarge) => Err(Unread::TooLarge),
            (None, Extent::Whole) => Ok(fields),
        }
    }

    /// Most fields of most heads: nothing of them is moved more often than it must be.
    fn take_known(&mut self, field: &Field) {
        let Field::Header(name, value) = field else { return self.take(field.clone()) };
        self.header(name, value.clone());
    }

    fn header(&mut self, name: impl IntoHeaderName, value: HeaderValue) {
        self.past_pseudo = true;
        // Never: there are at most a hundred.
        if self.headers.try_append(name, value).is_err() {
            self.refuse("more headers than a map can hold");
        }
    }

    fn take(&mut self, field: Field) {
        match field {
            Field::Header(name, value) => self.header(name, value),
            Field::Length(length, value) => {
                self.past_pseudo = true;
                if self.length.replace(length).is_some() {
                    self.refuse("more than one content-length");
                }
                self.headers.insert(header::CONTENT_LENGTH, value);
            }
            Field::Host(host) => {
                self.past_pseudo = true;
                if self.host.replace(host).is_some() {
                    self.refuse("more than one host");
                }
            }
            Field::Malformed(_, why) => self.refuse(why),
            _ if self.past_pseudo => self.refuse("a pseudo-header behind a header"),
            Field::Method(method) => self.once(|fields| &mut fields.method, method),
            Field::Scheme(scheme) => self.once(|fields| &mut fields.scheme, scheme),
            Field::Authority(authority) => self.once(|fields| &mut fields.authority, authority),
            Field::Path(path) => self.once(|fields| &mut fields.path, path),
            Field::Status(status) => self.once(|fields| &mut fields.status, status),
            Field::Protocol if self.extended => self.refuse(TWICE),
            Field::Protocol => self.extended = true,
        }
    }

    fn once<T>(&mut self, place: impl FnOnce(&mut Self) -> &mut Option<T>, value: T) {
        if place(self).replace(value).is_some() {
            self.refuse(TWICE);
        }
    }

    fn refuse(&mut self, why: &'static str) {
        self.bad.get_or_insert(why);
    }

    /// Whether there is anything that only requests have.
    fn is_request(&self) -> bool {
        let Self { method, scheme, authority, path, extended, .. } = self;
        method.is_some() || scheme.is_some() || authority.is_some() || path.is_some() || *extended
    }

    /// A request without a body says so, or nothing.
    fn ends_well(&self, end: bool) -> Result<(), Unread> {
        match self.length {
            Some(1..) if end => Err(Unread::Malformed("a content-length without a body")),
            _ => Ok(()),
        }
    }
}

const TWICE: &str = "a pseudo-header that comes twice";

/// Writes the head of a request: HEADERS, and CONTINUATION where it is longer than a frame may be. `end`: no body follows.
pub(crate) fn put_request(
    out: &mut Vec<u8>,
    encoder: &mut Encoder,
    stream: u32,
    head: Request<'_>,
    end: bool,
    max_frame_size: u32,
) {
    let start = frame::start_headers(out);
    encoder.begin(out);
    encoder.method(out, head.method);
    if head.method != Method::CONNECT {
        encoder.scheme(out, head.scheme);
    }
    if !head.authority.is_empty() {
        encoder.authority(out, head.authority);
    }
    if head.method != Method::CONNECT {
        encoder.path(out, head.path);
    }
    put_fields(out, encoder, head.headers);
    frame::finish_headers(out, start, stream, end, max_frame_size);
}

/// Writes the head of a response, as [`put_request`] does.
pub(crate) fn put_response(
    out: &mut Vec<u8>,
    encoder: &mut Encoder,
    stream: u32,
    status: StatusCode,
    headers: &HeaderMap,
    end: bool,
    max_frame_size: u32,
) {
    let start = frame::start_headers(out);
    encoder.begin(out);
    encoder.status(out, status);
    put_fields(out, encoder, headers);
    frame::finish_headers(out, start, stream, end, max_frame_size);
}

/// Writes trailers, as [`put_request`] does. They end their stream.
pub(crate) fn put_trailers(
    out: &mut Vec<u8>,
    encoder: &mut Encoder,
    stream: u32,
    trailers: &HeaderMap,
    max_frame_size: u32,
) {
    let start = frame::start_headers(out);
    encoder.begin(out);
    for (name, value) in trailers {
        if !is_of_http1(name, value) && *name != header::CONTENT_LENGTH {
            encoder.header(out, name, value);
        }
    }
    frame::finish_headers(out, start, stream, true, max_frame_size);
}

fn put_fields(out: &mut Vec<u8>, encoder: &mut Encoder, headers: &HeaderMap) {
    for (name, value) in headers {
        if !is_of_http1(name, value) {
            encoder.header(out, name, value);
        }
    }
}

/// Whether a header only concerns an HTTP/1.1 connection (RFC 9113 section 8.2.2), or says what `:authority` does.
fn is_of_http1(name: &HeaderName, value: &HeaderValue) -> bool {
    match name.as_str() {
        "host" | "upgrade" | "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" => true,
        "te" => value != "trailers",
        _ => false,
    }
}
