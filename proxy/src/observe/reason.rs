//! The words in which metrics and logs say how an exchange ended. The closed set itself is `equerry_traffic::Reason`.

use equerry_traffic::Reason;

/// The label value for whether mutual TLS was spoken.
pub(super) fn tls(spoken: bool) -> &'static str {
    if spoken { "mutual" } else { "none" }
}

/// Istio's `response_code_details`: who decided the status.
pub(super) fn details(reason: Reason) -> &'static str {
    match reason {
        Reason::Ok => "via_upstream",
        other => other.as_str(),
    }
}

/// The protocol as access logs write it.
pub(super) fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_09 => "HTTP/0.9",
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2",
        http::Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}
