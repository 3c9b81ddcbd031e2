//! One normal form of a request's authority, path and headers, made before any decision; what is forwarded is what was
//! judged.
//!
//! A form that two readers could read differently is refused, not repaired: an encoded slash, a backslash, a NUL, two
//! Hosts, an underscore in a header's name. [`Normal`] is the proof; only [`normalize`] makes one.

mod headers;
mod path;

use std::borrow::Cow;
use std::fmt;

use http::header::{HOST, HeaderValue};
use http::request::Parts;
use http::uri::{PathAndQuery, Uri};
use http::{Method, Version};

use crate::refusal::Refusal;
use headers::Wants;

/// Longest authority read, in bytes: a DNS name and a port.
const MAX_AUTHORITY: usize = 255 + 6;

/// Which way a request goes, and how far its sender is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the application beside us.
    Outbound,
    /// To the application beside us.
    Inbound {
        /// The direct peer is a sidecar of this mesh, proved by its certificate.
        mesh_peer: bool,
        /// How many proxies in front of the workload write down whom they speak for (`Mesh.trustedHops`).
        trusted_hops: u8,
    },
}

/// Proof that a request is in its normal form, and that form. Shown without its query, which may carry secrets.
#[derive(Clone)]
pub struct Normal {
    authority: HeaderValue,
    target: PathAndQuery,
    upgrade: Option<HeaderValue>,
    expects: bool,
}

impl fmt::Debug for Normal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Normal").field("authority", &self.authority).field("path", &self.path()).finish_non_exhaustive()
    }
}

impl Normal {
    /// The authority: lower case, with its port if one was named, without a trailing dot.
    pub fn authority(&self) -> &str {
        // It was made from text.
        self.authority.to_str().unwrap_or_default()
    }

    /// The authority as the value of `Host`.
    pub fn host_header(&self) -> &HeaderValue {
        &self.authority
    }

    /// The authority's port, if one was named.
    pub fn port(&self) -> Option<u16> {
        split_port(self.authority()).1.and_then(|port| port.parse().ok())
    }

    /// The authority without its port.
    pub fn host(&self) -> &str {
        split_port(self.authority()).0
    }

    /// The path, without the query; begins with `/`, or is `*`.
    pub fn path(&self) -> &str {
        self.target.path()
    }

    /// Path and query, as they are forwarded.
    pub fn target(&self) -> &PathAndQuery {
        &self.target
    }

    /// The protocols that the connection should change to, as they are forwarded in `Upgrade`.
    pub fn upgrade(&self) -> Option<&HeaderValue> {
        self.upgrade.as_ref()
    }

    /// Whether `chosen`, the `Upgrade` of an answer with 101, is one of them.
    pub fn asks_for(&self, chosen: &HeaderValue) -> bool {
        let chosen = chosen.as_bytes().trim_ascii();
        let asked = self.upgrade.as_ref().map(HeaderValue::as_bytes).unwrap_or_default();
        !chosen.is_empty() && asked.split(|byte| *byte == b',').any(|one| one.trim_ascii().eq_ignore_ascii_case(chosen))
    }

    /// Leaves out of the query what is not to be kept, one `name=value` at a time; the rest stays as it came.
    pub(crate) fn keep_parameters(&mut self, keep: impl Fn(&str) -> bool) {
        let Some(query) = self.target.query() else { return };
        let kept: Vec<&str> = query.split('&').filter(|pair| keep(pair)).collect();
        let query = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
        // A part of a target is a target.
        if let Ok(target) = PathAndQuery::try_from(format!("{}{query}", self.target.path())) {
            self.target = target;
        }
    }

    /// Whether the caller waits for `100 Continue` before it sends its body (`Expect`).
    pub fn expects_continue(&self) -> bool {
        self.expects
    }
}

/// Brings a request into its normal form. Afterwards `parts.uri` is the path and query alone, `Host` is the authority, the
/// hop-by-hop headers are gone (`te: trailers` stays; an upgrade to anything but h2c is asked for in one form), and headers
/// that the sender may not set are gone.
///
/// # Errors
/// [`Refusal::BadRequest`], saying what is wrong.
pub fn normalize(parts: &mut Parts, direction: Direction) -> Result<Normal, Refusal> {
    if parts.method == Method::CONNECT {
        return Err(Refusal::bad_request("CONNECT asks for a connection, and this is a place for requests"));
    }
    headers::check(parts)?;
    let (authority, as_it_came) = authority(parts)?;
    let (target, is_as_given) = target(parts)?;
    let Wants { upgrade, expects } = headers::strip_hop_by_hop(parts)?;
    headers::strip_reserved(&mut parts.headers, direction);
    if !as_it_came {
        parts.headers.insert(HOST, authority.clone());
    }
    if !is_as_given {
        parts.uri = Uri::from(target.clone());
    }
    Ok(Normal { authority, target, upgrade, expects })
}

/// The same for CONNECT, which asks for a connection and says nothing else: the host and port that it names.
///
/// # Errors
/// [`Refusal::BadRequest`], saying what is wrong.
pub fn normalize_connect(parts: &Parts) -> Result<Normal, Refusal> {
    if parts.version >= Version::HTTP_2 {
        return Err(Refusal::bad_request("CONNECT is served over HTTP/1.1 only by this version"));
    }
    headers::check(parts)?;
    if parts.uri.scheme().is_some() || parts.uri.path_and_query().is_some() {
        return Err(Refusal::bad_request("CONNECT names a host and a port, and nothing else"));
    }
    let named = parts.uri.authority().ok_or_else(|| Refusal::bad_request("CONNECT names no host and port"))?;
    let named = normal_authority(named.as_str())?;
    if split_port(&named).1.is_none() {
        return Err(Refusal::bad_request("CONNECT names no port"));
    }
    // Clients say in Host what they like: with its port, without, or nothing at all.
    if let Some(host) = parts.headers.get(HOST) {
        let host = normal_authority(host.to_str().map_err(|_| Refusal::bad_request("Host is not text"))?)?;
        if split_port(&host).0 != split_port(&named).0 || split_port(&host).1.is_some() && host != named {
            return Err(Refusal::bad_request("Host and the target name different authorities"));
        }
    }
    let authority = HeaderValue::from_str(&named).map_err(|_| Refusal::bad_request("the authority is not text"))?;
    Ok(Normal { authority, target: PathAndQuery::from_static("/"), upgrade: None, expects: false })
}

/// The authority without its port.
pub(crate) fn without_port(authority: &str) -> &str {
    split_port(authority).0
}

/// A request whose authority, target or both were changed, in its normal form again.
pub(crate) fn changed(
    normal: Normal,
    authority: Option<&HeaderValue>,
    target: Option<PathAndQuery>,
) -> Result<Normal, Refusal> {
    let authority = match authority {
        Some(value) => {
            let text = value.to_str().map_err(|_| Refusal::bad_request("the rewritten authority is not text"))?;
            match normal_authority(text)? {
                Cow::Borrowed(_) => value.clone(),
                Cow::Owned(text) => HeaderValue::try_from(text)
                    .map_err(|_| Refusal::bad_request("the rewritten authority is not text"))?,
            }
        }
        None => normal.authority,
    };
    let target = match target {
        Some(target) => match path::normal(target.path())? {
            Some(path) => with_query(path, target.query())?,
            None => target,
        },
        None => normal.target,
    };
    Ok(Normal { authority, target, ..normal })
}

/// Takes away the trailers of a request that could pass for headers that were judged or set before its body came, and
/// those named in `more`: the headers that carry verified claims.
pub fn trailers(trailers: &mut http::HeaderMap, more: &[http::header::HeaderName]) {
    headers::strip_trailers(trailers, more);
}

/// The authority in its normal form, from the request's target or its `Host`; where both are, they must agree. Says whether it
/// is what `Host` says, letter by letter.
fn authority(parts: &Parts) -> Result<(HeaderValue, bool), Refusal> {
    if parts.version < Version::HTTP_2 && parts.uri.scheme_str().is_some_and(|scheme| scheme != "http") {
        return Err(Refusal::bad_request("the target's scheme is not http"));
    }
    let given = parts.headers.get(HOST);
    let host = match given {
        Some(value) => Some(value.to_str().map_err(|_| Refusal::bad_request("Host is not text"))?),
        None => None,
    };
    let host = host.map(normal_authority).transpose()?;
    let named = parts.uri.authority().map(|authority| normal_authority(authority.as_str())).transpose()?;
    let authority = match (named, host) {
        (Some(named), Some(host)) if named != host => {
            return Err(Refusal::bad_request("Host and the target name different authorities"));
        }
        (_, Some(host)) => host,
        (Some(named), None) => named,
        (None, None) => return Err(Refusal::bad_request("there is no Host")),
    };
    match (&authority, given) {
        // Nearly always it came as it should be.
        (Cow::Borrowed(_), Some(given)) => Ok((given.clone(), true)),
        _ => HeaderValue::from_str(&authority)
            .map(|authority| (authority, false))
            .map_err(|_| Refusal::bad_request("the authority is not text")),
    }
}

/// The normal form; borrowed when the text is in it already.
fn normal_authority(text: &str) -> Result<Cow<'_, str>, Refusal> {
    let bad = |why: &str| Refusal::bad_request(format!("the authority {why}"));
    if text.is_empty() || text.len() > MAX_AUTHORITY {
        return Err(bad("is empty or too long"));
    }
    if text.contains('@') {
        return Err(bad("names a user"));
    }
    let (given, port) = split_port(text);
    let host = given.strip_suffix('.').unwrap_or(given);
    let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let of_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let valid = match literal {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        // Without its one dot at the end it must not have another, or it would be another name at the next hop.
        None => !host.is_empty() && !host.ends_with('.') && host.bytes().all(of_name),
    };
    if !valid {
        return Err(bad("is no host name or address"));
    }
    if port.is_some_and(|port| !is_port(port)) {
        return Err(bad("has a port that is not 1 to 65535"));
    }
    if host == given && !host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Ok(Cow::Borrowed(text));
    }
    let host = host.to_ascii_lowercase();
    Ok(Cow::Owned(match port {
        Some(port) => format!("{host}:{port}"),
        None => host,
    }))
}

/// Digits only, without a leading zero: `+80` and `080` would be read differently elsewhere.
fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0') && text.parse::<u16>().is_ok()
}

/// Host and port; the colons inside an IPv6 literal are not the port's.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    // A port is short: a search for long texts has not begun when it is found.
    let colon = authority.bytes().rposition(|byte| byte == b':');
    match colon.map(|colon| (&authority[..colon], &authority[colon + 1..])) {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

/// The path and query in their normal form. Says whether that is all that the request's target says, letter by letter.
fn target(parts: &Parts) -> Result<(PathAndQuery, bool), Refusal> {
    let given = parts.uri.path_and_query();
    let path = match parts.uri.path() {
        "*" if parts.method == Method::OPTIONS => return Ok((PathAndQuery::from_static("*"), false)),
        "" if parts.uri.authority().is_some() => "/",
        path => path,
    };
    let query = parts.uri.query();
    if query.is_some_and(|query| query.bytes().any(|byte| byte <= b' ' || byte == 0x7f || byte == b'#')) {
        return Err(Refusal::bad_request("the query has a character that must be encoded"));
    }
    let normal = path::normal(path)?;
    match (given, normal) {
        // Of `http://host?query` the path is said to be a slash that is not there.
        (Some(given), None) if given.as_str().starts_with('/') => Ok((given.clone(), parts.uri.authority().is_none())),
        (_, normal) => Ok((with_query(normal.unwrap_or_else(|| path.to_owned()), query)?, false)),
    }
}

fn with_query(mut path: String, query: Option<&str>) -> Result<PathAndQuery, Refusal> {
    if let Some(query) = query {
        path.push('?');
        path.push_str(query);
    }
    PathAndQuery::try_from(path).map_err(|_| Refusal::bad_request("the target cannot be brought into its normal form"))
}

#[cfg(test)]
#[path = "normalize_tests.rs"]
mod tests;
