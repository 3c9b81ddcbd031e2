//! A field of a header block as HTTP/2 allows it (RFC 9113 sections 8.2 and 8.3), checked once: where it is made, not each
//! time the table repeats it.
//!
//! What is not allowed is a field too, because it has its place in the table like any other.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, StatusCode};

use super::table::HOP;

/// A field's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name {
    /// `:method`
    Method,
    /// `:scheme`
    Scheme,
    /// `:authority`
    Authority,
    /// `:path`
    Path,
    /// `:protocol` (RFC 8441)
    Protocol,
    /// `:status`
    Status,
    /// `host`
    Host,
    /// `content-length`
    ContentLength,
    /// `te`
    Te,
    /// Any other header.
    Header(HeaderName),
    /// None that is allowed; says why.
    Malformed(&'static str),
}

/// A field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Field {
    /// The method.
    Method(Method),
    /// `http` or `https`.
    Scheme(Scheme),
    /// The authority, without user information.
    Authority(Authority),
    /// Path and query; begins with a slash, or is `*`.
    Path(PathAndQuery),
    /// The protocol of an extended CONNECT.
    Protocol,
    /// The status.
    Status(StatusCode),
    /// The host.
    Host(HeaderValue),
    /// The content-length, and as it was written.
    Length(u64, HeaderValue),
    /// Any other header.
    Header(HeaderName, HeaderValue),
    /// None that is allowed; says why. The name may be good.
    Malformed(Name, &'static str),
}

impl Name {
    /// Reads a name.
    pub(super) fn read(name: &[u8]) -> Self {
        match name {
            b"te" => return Self::Te,
            b"host" => return Self::Host,
            b"content-length" => return Self::ContentLength,
            b"upgrade" | b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" => {
                return Self::Malformed(HOP);
            }
            [b':', pseudo @ ..] => {
                return match pseudo {
                    b"method" => Self::Method,
                    b"scheme" => Self::Scheme,
                    b"authority" => Self::Authority,
                    b"path" => Self::Path,
                    b"protocol" => Self::Protocol,
                    b"status" => Self::Status,
                    _ => Self::Malformed("a pseudo-header that nobody knows"),
                };
            }
            _ => {}
        }
        match usual(name).map_or_else(|| HeaderName::from_lowercase(name), Ok) {
            Ok(name) => Self::Header(name),
            Err(_) if name.is_empty() => Self::Malformed("a header without a name"),
            Err(_) if name.iter().any(u8::is_ascii_uppercase) => {
                Self::Malformed("the name of a header is not in lower case")
            }
            Err(_) => Self::Malformed("the name of a header is no token"),
        }
    }

    /// The field of this name and `value`; a sensitive one is not to enter any table on its way.
    pub(super) fn field(self, value: Bytes, sensitive: bool) -> Field {
        let read = match &self {
            Self::Method => Method::from_bytes(&value).map(Field::Method).map_err(|_| "the method is no token"),
            Self::Scheme => match &value[..] {
                b"http" => Ok(Field::Scheme(Scheme::HTTP)),
                b"https" => Ok(Field::Scheme(Scheme::HTTPS)),
                _ => Err("a scheme other than http and https"),
            },
            Self::Authority => authority(value).map(Field::Authority),
            Self::Path => path(value).map(Field::Path),
            Self::Protocol => Ok(Field::Protocol),
            Self::Status => {
                StatusCode::from_bytes(&value).map(Field::Status).map_err(|_| "the status is no number of three digits")
            }
            Self::Host => header_value(value, sensitive).map(Field::Host),
            Self::ContentLength => content_length(value),
            Self::Te if value == "trailers" => Ok(Field::Header(header::TE, HeaderValue::from_static("trailers"))),
            Self::Te => Err("a te other than trailers"),
            // The name is cloned, because a bad value leaves it good: it counts references.
            Self::Header(name) => header_value(value, sensitive).map(|value| Field::Header(name.clone(), value)),
            Self::Malformed(why) => Err(*why),
        };
        read.unwrap_or_else(|why| Field::Malformed(self, why))
    }
}

impl Field {
    /// Its name.
    pub(super) fn name(&self) -> Name {
        match self {
            Self::Method(_) => Name::Method,
            Self::Scheme(_) => Name::Scheme,
            Self::Authority(_) => Name::Authority,
            Self::Path(_) => Name::Path,
            Self::Protocol => Name::Protocol,
            Self::Status(_) => Name::Status,
            Self::Host(_) => Name::Host,
            Self::Length(..) => Name::ContentLength,
            Self::Header(name, _) if *name == header::TE => Name::Te,
            Self::Header(name, _) => Name::Header(name.clone()),
            Self::Malformed(name, _) => name.clone(),
        }
    }
}

/// Names that are usual in a mesh and that `http` does not know: static ones are not counted each time they are used.
fn usual(name: &[u8]) -> Option<HeaderName> {
    Some(match name {
        b"x-real-ip" => X_REAL_IP.clone(),
        b"tracestate" => TRACESTATE.clone(),
        b"traceparent" => TRACEPARENT.clone(),
        b"grpc-status" => GRPC_STATUS.clone(),
        b"grpc-timeout" => GRPC_TIMEOUT.clone(),
        b"x-request-id" => X_REQUEST_ID.clone(),
        b"x-forwarded-for" => X_FORWARDED_FOR.clone(),
        b"x-forwarded-proto" => X_FORWARDED_PROTO.clone(),
        _ => return None,
    })
}

static X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

fn authority(value: Bytes) -> Result<Authority, &'static str> {
    if memchr::memchr(b'@', &value).is_some() {
        return Err("an authority with user information");
    }
    Authority::from_maybe_shared(value).map_err(|_| "the authority is none")
}

fn path(value: Bytes) -> Result<PathAndQuery, &'static str> {
    if value.first() != Some(&b'/') && value != "*" {
        return Err("the path does not begin with a slash");
    }
    // What follows a number sign would be cut off in silence.
    if memchr::memchr(b'#', &value).is_some() {
        return Err("a path with a fragment");
    }
    PathAndQuery::from_maybe_shared(value).map_err(|_| "the path is none")
}

fn header_value(value: Bytes, sensitive: bool) -> Result<HeaderValue, &'static str> {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if is_blank(value.first()) || is_blank(value.last()) {
        return Err("white space around the value of a header");
    }
    let mut value =
        HeaderValue::from_maybe_shared(value).map_err(|_| "a control character in the value of a header")?;
    value.set_sensitive(sensitive);
    Ok(value)
}

/// A length below 2^63, in decimal digits and nothing else.
fn content_length(value: Bytes) -> Result<Field, &'static str> {
    const NONE: &str = "a content-length that is no length";
    // Nineteen digits stay below 2^64, and 2^63 has nineteen.
    if value.is_empty() || value.len() > 19 {
        return Err(NONE);
    }
    let mut length = 0u64;
    for byte in &value {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return Err(NONE);
        }
        length = length * 10 + u64::from(digit);
    }
    if length >= 1 << 63 {
        return Err(NONE);
    }
    Ok(Field::Length(length, header_value(value, false)?))
}
