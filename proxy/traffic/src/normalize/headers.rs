//! Which headers a request may have, which end here, and which its sender may not set.
//!
//! `Connection` can only end headers that end here anyway: one that names any other header of the request is refused,
//! because taking that header away could take away what a policy decides by.

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, COOKIE, EXPECT, FORWARDED, FROM, HOST,
    HeaderMap, HeaderName, IF_MODIFIED_SINCE, IF_RANGE, IF_UNMODIFIED_SINCE, MAX_FORWARDS, ORIGIN, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, RANGE, REFERER, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use http::request::Parts;
use http::{HeaderValue, Version};

use super::Direction;
use crate::refusal::Refusal;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// What only this mesh may say.
const RESERVED: &str = "x-equerry-";
/// Says who called; set anew by each sidecar, never passed on.
const CLIENT_CERT: &str = "x-forwarded-client-cert";
/// Whom a proxy speaks for.
const FOR_WHOM: &str = "x-forwarded-";
static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The same, in one address.
const REAL_IP: &str = "x-real-ip";
/// Orders and reports of another proxy family, believed from nobody outside the mesh.
const ENVOY: &str = "x-envoy-";

/// Refuses headers that two readers could read differently.
pub(super) fn check(parts: &Parts) -> Result<(), Refusal> {
    let headers = &parts.headers;
    if let Some(name) = headers.keys().find(|name| name.as_str().as_bytes().contains(&b'_')) {
        return Err(Refusal::bad_request(format!(
            "the header {name} has an underscore in its name, which some read as a dash"
        )));
    }
    // As many values as names: none is there twice.
    if headers.len() > headers.keys_len() {
        check_single(headers)?;
    }
    if parts.version >= Version::HTTP_2 {
        return check_http2(headers);
    }
    // To look for it costs a hash.
    if !headers.keys().any(|name| *name == TRANSFER_ENCODING) {
        return Ok(());
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(Refusal::bad_request("Transfer-Encoding is not chunked"));
        }
        if headers.contains_key(CONTENT_LENGTH) {
            return Err(Refusal::bad_request("Transfer-Encoding and Content-Length are both there"));
        }
    }
    Ok(())
}

/// Headers of which there is one or none (RFC 9110, Fetch, gRPC): of two, one reader takes the first and another the last.
static SINGLE: [HeaderName; 18] = [
    HOST,
    AUTHORIZATION,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    CONTENT_RANGE,
    EXPECT,
    FROM,
    IF_MODIFIED_SINCE,
    IF_RANGE,
    IF_UNMODIFIED_SINCE,
    MAX_FORWARDS,
    ORIGIN,
    PROXY_AUTHORIZATION,
    RANGE,
    REFERER,
    USER_AGENT,
    HeaderName::from_static("sec-fetch-site"),
    HeaderName::from_static("grpc-timeout"),
];

fn check_single(headers: &HeaderMap) -> Result<(), Refusal> {
    let twice = |name: &&HeaderName| headers.get_all(*name).iter().nth(1).is_some();
    match SINGLE.iter().find(twice) {
        Some(name) => Err(Refusal::bad_request(format!("the header {name} is there more than once"))),
        None => Ok(()),
    }
}

/// HTTP/2 has no connection headers (RFC 9113 section 8.2.2).
fn check_http2(headers: &HeaderMap) -> Result<(), Refusal> {
    static FORBIDDEN: [HeaderName; 5] = [CONNECTION, TRANSFER_ENCODING, UPGRADE, KEEP_ALIVE, PROXY_CONNECTION];
    if let Some(name) = headers.keys().find(|name| FORBIDDEN.contains(name)) {
        return Err(Refusal::bad_request(format!("the header {name} is not allowed in HTTP/2")));
    }
    if headers.get_all(TE).iter().any(|value| !is_trailers(value)) {
        return Err(Refusal::bad_request("TE other than trailers is not allowed in HTTP/2"));
    }
    Ok(())
}

fn is_trailers(value: &HeaderValue) -> bool {
    value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"trailers")
}

/// Headers that end at each hop (RFC 9110 section 7.6.1), whether `Connection` names them or not. An upgrade and `Expect` are
/// said anew to the next.
static ENDS_HERE: [HeaderName; 11] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    EXPECT,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("proxy-authentication-info"),
];

/// Whether a header is one of those. Lengths tell nearly all others apart.
fn ends_here(name: &HeaderName) -> bool {
    matches!(name.as_str().len(), 2 | 6 | 7 | 10 | 14 | 16..=19 | 25) && ENDS_HERE.contains(name)
}

/// What a request wants of the connection that carries it.
#[derive(Debug, Default)]
pub(super) struct Wants {
    /// Another protocol.
    pub(super) upgrade: Option<HeaderValue>,
    /// A word before its body is sent.
    pub(super) expects: bool,
}

/// Takes away what ends here; `te: trailers` is kept, because gRPC asks for it end to end, and what the request `Wants` is
/// asked of the next.
pub(super) fn strip_hop_by_hop(parts: &mut Parts) -> Result<Wants, Refusal> {
    let (headers, version) = (&mut parts.headers, parts.version);
    if !headers.keys().any(ends_here) {
        return Ok(Wants::default());
    }
    let upgrade = if headers.contains_key(UPGRADE) { upgrade(headers, version)? } else { None };
    if headers.contains_key(CONNECTION) {
        check_connection(headers)?;
    }
    let mut expects = false;
    if let Some(expected) = headers.get(EXPECT) {
        if !expected.as_bytes().eq_ignore_ascii_case(b"100-continue") {
            return Err(Refusal::bad_request("Expect is not 100-continue"));
        }
        expects = version != Version::HTTP_10;
    }
    let trailers = headers.get_all(TE).iter().any(te_has_trailers);
    take_away(headers, ends_here);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocols) = &upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocols.clone());
    }
    if expects {
        headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
    }
    Ok(Wants { upgrade, expects })
}

/// The protocols that a request asks to change to, without `h2c`: answering that with HTTP/1.1 is allowed, and callers of
/// HTTP/2 need not ask. Of HTTP/1.0, and where `Connection` does not name it, it asks for nothing (RFC 9110 section 7.8).
fn upgrade(headers: &HeaderMap, version: Version) -> Result<Option<HeaderValue>, Refusal> {
    let is_meant = |value: &HeaderValue| members(value).any(|option| option.eq_ignore_ascii_case(b"upgrade"));
    if version != Version::HTTP_11 || !headers.get_all(CONNECTION).iter().any(is_meant) {
        return Ok(None);
    }
    let mut asked = Vec::new();
    for protocol in headers.get_all(UPGRADE).iter().flat_map(members).filter(|protocol| !protocol.is_empty()) {
        // A token, and perhaps the token of a version.
        let mut parts = protocol.split(|byte| *byte == b'/');
        let tokens = parts.by_ref().take(2).all(|part| HeaderName::from_bytes(part).is_ok());
        if !tokens || parts.next().is_some() {
            return Err(Refusal::bad_request("Upgrade names something that is no protocol"));
        }
        if !protocol.eq_ignore_ascii_case(b"h2c") {
            asked.push(protocol);
        }
    }
    if asked.is_empty() {
        return Ok(None);
    }
    HeaderValue::from_bytes(&asked.join(&b", "[..]))
        .map(Some)
        .map_err(|_| Refusal::bad_request("Upgrade names something that is no protocol"))
}

/// The members of a list.
fn members(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// In HTTP/1.1 `TE` may list codings beside `trailers`.
fn te_has_trailers(value: &HeaderValue) -> bool {
    value.as_bytes().split(|byte| *byte == b',').any(|member| member.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

fn check_connection(headers: &HeaderMap) -> Result<(), Refusal> {
    for value in headers.get_all(CONNECTION) {
        for option in value.as_bytes().split(|byte| *byte == b',') {
            // What is no header's name cannot take a header away.
            let Ok(name) = HeaderName::from_bytes(option.trim_ascii()) else { continue };
            if headers.contains_key(&name) && !ENDS_HERE.contains(&name) {
                return Err(Refusal::bad_request(format!("Connection names {name}, which does not end here")));
            }
        }
    }
    Ok(())
}

/// Takes away what the sender may not set. What a stranger says of whom it speaks for is passed on as far as trusted proxies
/// wrote it, and no further: applications believe it.
pub(super) fn strip_reserved(headers: &mut HeaderMap, direction: Direction) {
    let stranger = match direction {
        Direction::Inbound { mesh_peer: false, trusted_hops } => Some(trusted_hops),
        Direction::Inbound { .. } | Direction::Outbound => None,
    };
    take_away(headers, |name| {
        let text = name.as_str();
        text.starts_with(RESERVED)
            || text == CLIENT_CERT
            || stranger.is_some() && text.starts_with(ENVOY)
            || stranger == Some(0) && (text.starts_with(FOR_WHOM) || text == REAL_IP)
            // Nobody counts hops in it.
            || stranger.is_some() && *name == FORWARDED
    });
    if let Some(hops @ 1..) = stranger {
        shorten(headers, hops.into());
    }
}

/// Leaves so many addresses at the end of `X-Forwarded-For`: each trusted proxy wrote one, and what stands before them
/// anybody may have written.
fn shorten(headers: &mut HeaderMap, hops: usize) {
    let lines = headers.get_all(&FORWARDED_FOR);
    let addresses: Vec<&[u8]> = lines.iter().flat_map(members).collect();
    if addresses.len() <= hops {
        return;
    }
    let believed = addresses[addresses.len() - hops..].join(&b", "[..]);
    match HeaderValue::from_bytes(&believed) {
        Ok(believed) => headers.insert(&FORWARDED_FOR, believed),
        Err(_) => headers.remove(&FORWARDED_FOR),
    };
}

/// Takes away the trailers that some servers would read as headers which were judged, or set, before the body came:
/// framing, routing, credentials (RFC 9110 section 6.5.1), who called, and `more`.
pub(super) fn strip_trailers(trailers: &mut HeaderMap, more: &[HeaderName]) {
    static EXACT: [HeaderName; 10] =
        [AUTHORIZATION, COOKIE, HOST, FORWARDED, TE, TRAILER, TRANSFER_ENCODING, CONNECTION, UPGRADE, EXPECT];
    const FAMILIES: [&str; 6] = [RESERVED, ENVOY, FOR_WHOM, "content-", "proxy-", "if-"];
    const TRACE: [&str; 3] = ["x-request-id", "traceparent", "tracestate"];
    take_away(trailers, |name| {
        let text = name.as_str();
        text.contains('_')
            || EXACT.contains(name)
            || TRACE.contains(&text)
            || FAMILIES.iter().any(|family| text.starts_with(family))
            || more.contains(name)
    });
}

/// Takes away the headers that `goes` says. One walk finds them: to look for each that might be there costs a hash, and
/// nearly none ever is.
fn take_away(headers: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) {
    let taken: Vec<HeaderName> = headers.keys().filter(|name| goes(name)).cloned().collect();
    for name in taken {
        headers.remove(name);
    }
}
