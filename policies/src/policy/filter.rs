//! What a route does to requests and responses beside sending them somewhere: the Gateway API's filters, in the order
//! in which they are written.

use serde::{Deserialize, Serialize};

use crate::names::ServiceName;

/// One filter of a rule or backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RouteFilter {
    /// Changes headers of the request before it is sent.
    RequestHeaders(HeaderEdits),
    /// Changes headers of the response before it is passed on.
    ResponseHeaders(HeaderEdits),
    /// Answers with another address instead of sending the request anywhere.
    Redirect(RequestRedirect),
    /// Changes host and path of the request before it is sent.
    Rewrite(UrlRewrite),
    /// Sends a copy of some requests to another Service, whose answers nobody sees.
    Mirror(RequestMirror),
    /// Lets scripts of other origins read the answers (GEP-1767).
    Cors(CorsRules),
}

/// Changes to headers; each header is named once. Names are lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderEdits {
    /// The header is this, whatever it was.
    pub set: Vec<(String, String)>,
    /// The header has this value beside those it has.
    pub add: Vec<(String, String)>,
    /// The header is gone.
    pub remove: Vec<String>,
}

/// Where a caller is sent instead; what is `None` stays as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestRedirect {
    /// `true`: https, `false`: http.
    pub secure: Option<bool>,
    /// The host.
    pub hostname: Option<String>,
    /// The port; `None`: the scheme's own where a scheme is written, else the Service port that was called.
    pub port: Option<u16>,
    /// The path; the query stays.
    pub path: Option<PathEdit>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// What host and path are changed to; what is `None` stays as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UrlRewrite {
    /// The whole authority.
    pub hostname: Option<String>,
    /// The path; the query stays.
    pub path: Option<PathEdit>,
}

/// How a path is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathEdit {
    /// It becomes this.
    Full(String),
    /// The prefix that matched becomes this.
    Prefix(String),
}

/// Where copies of requests go, and of how many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestMirror {
    /// The Service.
    pub service: ServiceName,
    /// The Service port; `None` when the document names none and the Service has only one.
    pub port: Option<u16>,
    /// Of `out_of` requests so many are copied.
    pub share: u32,
    /// See `share`; never 0.
    pub out_of: u32,
}

/// Which scripts of other origins may read the answers, and what they may send.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CorsRules {
    /// Origins that may; none: nobody.
    pub origins: Vec<OriginPattern>,
    /// With cookies and the like.
    pub credentials: bool,
    /// Methods beside GET, HEAD and POST, which are always allowed; `*` alone is all.
    pub methods: Vec<String>,
    /// Headers a script may send, in lower case; `*` alone is all.
    pub headers: Vec<String>,
    /// Headers of the response that a script may read, in lower case; `*` alone is all.
    pub expose: Vec<String>,
    /// For how many seconds a browser remembers this.
    pub max_age: u32,
}

/// An origin, or many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum OriginPattern {
    /// Every origin.
    Any,
    /// One scheme and port, and a host or everything that ends like it.
    One {
        /// `true`: https, `false`: http.
        secure: bool,
        /// The host's end, in lower case.
        host: String,
        /// The host only has to end so: `*.example.com` stands for everything that ends in `.example.com`.
        any_before: bool,
        /// The port; 80 or 443 where none is written.
        port: u16,
    },
}

impl OriginPattern {
    /// Reads `*` or `SCHEME://HOST[:PORT]`, HOST beginning with `*` or not.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Any);
        }
        let (secure, host, port) = split_origin(text)?;
        let (any_before, rest) = match host.strip_prefix('*') {
            Some(rest) => (true, rest),
            None => (false, host),
        };
        let of_host = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_' | b'[' | b']' | b':');
        let fits = rest.bytes().all(of_host) && (any_before || !rest.is_empty());
        fits.then(|| Self::One { secure, host: rest.to_ascii_lowercase(), any_before, port })
    }

    /// Whether `origin`, the value of an `Origin` header, is one of these.
    pub fn matches(&self, origin: &str) -> bool {
        let Self::One { secure, host, any_before, port } = self else { return true };
        let Some((its_scheme, its_host, its_port)) = split_origin(origin) else { return false };
        let end = its_host.len().checked_sub(host.len()).and_then(|at| its_host.get(at..));
        let fits = end.is_some_and(|end| end.eq_ignore_ascii_case(host));
        its_scheme == *secure && its_port == *port && fits && (*any_before || its_host.len() == host.len())
    }
}

/// Scheme (`true`: https), host and port of an origin.
fn split_origin(text: &str) -> Option<(bool, &str, u16)> {
    let (scheme, rest) = text.split_once("://")?;
    let secure = match scheme {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            let digits = !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit());
            (host, port.parse().ok().filter(|port| digits && *port != 0)?)
        }
        _ => (rest, if secure { 443 } else { 80 }),
    };
    (!host.is_empty()).then_some((secure, host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_a_host_and_a_port_and_a_star_stands_for_what_comes_before() {
        let fits = |pattern: &str, origin: &str| OriginPattern::parse(pattern).unwrap().matches(origin);
        assert!(fits("*", "https://a.example:8443") && fits("*", "null"));
        assert!(fits("https://a.example", "https://A.example:443"));
        assert!(!fits("https://a.example", "http://a.example") && !fits("https://a.example", "https://a.example:8443"));
        assert!(fits("https://*.a.example", "https://x.y.a.example") && fits("http://*", "http://x"));
        assert!(
            !fits("https://*.a.example", "https://a.example") && !fits("https://*.a.example", "https://evila.example")
        );
        assert!(!fits("https://a.example", "https://b.a.example") && !fits("https://a.example", "null"));
        for bad in
            ["", "a.example", "ftp://a", "https://", "https://a:0", "https://a:99999", "https://a*b", "https://a/b"]
        {
            assert_eq!(OriginPattern::parse(bad), None, "{bad}");
        }
    }
}
