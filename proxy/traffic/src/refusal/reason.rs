//! The one table of all reasons: a row for each, from which everything that is told of it is made.

use std::fmt;
use std::str::FromStr;

#[cfg(doc)]
use super::Refusal;

/// Declares the closed set: the reason, its word, its HTTP status, gRPC code, response flag, Proxy-Status error type
/// (RFC 9209 section 2.3), and whether it counts against the endpoint.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident: $word:literal, $http:literal, $grpc:literal, $flag:literal, $error:literal, $counts:literal;)*) => {
        /// How an exchange ended, where the mesh decided it; with [`Reason::Ok`] and [`Reason::ClientGone`] beside.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[doc = $doc])* $name,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its word in metrics, logs, responses and `Proxy-Status` details.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// What it means, in one sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),*).trim(),)* }
            }

            /// The HTTP status it is usually answered with; [`Refusal::status`] knows the exceptions.
            pub fn http_status(self) -> u16 {
                match self { $(Self::$name => $http,)* }
            }

            /// The gRPC status code it is answered with.
            pub fn grpc_code(self) -> u8 {
                match self { $(Self::$name => $grpc,)* }
            }

            /// The response flag of access logs, in Envoy's words; `-` for none.
            pub fn flag(self) -> &'static str {
                match self { $(Self::$name => $flag,)* }
            }

            /// The error type of `Proxy-Status`; `None` when the mesh made no response.
            pub fn proxy_status_error(self) -> Option<&'static str> {
                let error = match self { $(Self::$name => $error,)* };
                if error.is_empty() { None } else { Some(error) }
            }

            /// Whether it counts against the endpoint that was tried: for its breaker and its place in balancing.
            pub fn counts_against_endpoint(self) -> bool {
                match self { $(Self::$name => $counts,)* }
            }
        }
    };
}

reasons! {
    /// The application answered.
    Ok: "ok", 200, 0, "-", "", false;
    /// The client left before the response head.
    ClientGone: "client_gone", 499, 1, "DC", "", false;
    /// No policy allows it, or one denies it.
    AuthzDenied: "authz_denied", 403, 7, "UAEX", "http_request_denied", false;
    /// Plain text where only mutual TLS is spoken.
    TlsRequired: "tls_required", 403, 7, "UAEX", "http_request_denied", false;
    /// A token is required, and there is none.
    TokenMissing: "token_missing", 401, 16, "UAEX", "http_request_denied", false;
    /// The token cannot be believed.
    TokenInvalid: "token_invalid", 401, 16, "UAEX", "http_request_denied", false;
    /// The token is too old.
    TokenExpired: "token_expired", 401, 16, "UAEX", "http_request_denied", false;
    /// The token is meant for somebody else.
    TokenAudience: "token_audience", 401, 16, "UAEX", "http_request_denied", false;
    /// Signed with a key that the issuer's key set does not hold.
    TokenUnknownKey: "token_unknown_key", 401, 16, "UAEX", "http_request_denied", false;
    /// Signed with an algorithm that is never accepted, or not for that key.
    TokenAlgorithm: "token_algorithm", 401, 16, "UAEX", "http_request_denied", false;
    /// The issuer's keys were never fetched.
    KeysUnavailable: "keys_unavailable", 503, 14, "UAEX", "proxy_configuration_error", false;
    /// What this workload enforces is not known.
    PolicyUnavailable: "policy_unavailable", 503, 14, "UAEX", "proxy_configuration_error", false;
    /// This proxy's own certificate has expired.
    IdentityExpired: "identity_expired", 503, 14, "UAEX", "proxy_configuration_error", false;
    /// Whoever is at the other end is believed no more: their identity was revoked, or the root that vouched for it is gone.
    IdentityRevoked: "identity_revoked", 403, 7, "UAEX", "http_request_denied", false;
    /// The control plane did not say in time what the destination is.
    ConfigUnavailable: "config_unavailable", 503, 14, "UAEX", "proxy_configuration_error", false;
    /// The tenant has spent its quota.
    Quota: "quota", 429, 8, "RL", "http_request_denied", false;
    /// A rate limit was reached.
    RateLimited: "rate_limited", 429, 8, "RL", "http_request_denied", false;
    /// There is no such Service.
    NoService: "no_service", 502, 12, "NR", "destination_not_found", false;
    /// No rule of the destination's routes matches.
    NoRoute: "no_route", 404, 12, "NR", "destination_not_found", false;
    /// The backend of a route does not exist, or is nothing that requests can be sent to.
    InvalidBackend: "invalid_backend", 500, 14, "NR", "destination_not_found", false;
    /// The Service or the instance has no such port.
    NoSuchPort: "no_such_port", 404, 12, "NR", "destination_not_found", false;
    /// The destination has no healthy endpoint.
    NoHealthyEndpoint: "no_healthy_endpoint", 503, 14, "UH", "destination_unavailable", false;
    /// No connection could be made.
    ConnectFailed: "connect_failed", 503, 14, "UF", "connection_refused", true;
    /// Whoever answered is not who should have.
    IdentityMismatch: "identity_mismatch", 503, 14, "UF", "tls_certificate_error", true;
    /// One try took too long.
    TryTimeout: "try_timeout", 504, 4, "UT", "http_response_timeout", true;
    /// The whole exchange took too long.
    RequestTimeout: "request_timeout", 504, 4, "UT", "http_response_timeout", true;
    /// A response stood still for too long, or whoever was called crawls.
    StreamIdle: "stream_idle", 504, 4, "SI", "connection_read_timeout", false;
    /// Too many connections.
    LimitConnections: "limit_connections", 503, 14, "UO", "connection_limit_reached", false;
    /// Too many requests wait for a connection, or one waited too long.
    LimitPending: "limit_pending", 503, 14, "UO", "connection_limit_reached", false;
    /// Too many requests in flight.
    LimitRequests: "limit_requests", 503, 14, "UO", "connection_limit_reached", false;
    /// Every endpoint's breaker is open.
    BreakerOpen: "breaker_open", 503, 14, "UO", "connection_limit_reached", false;
    /// The connection ended before the response did.
    UpstreamReset: "upstream_reset", 502, 14, "UC", "connection_terminated", true;
    /// The request's framing, headers or path are not acceptable.
    BadRequest: "bad_request", 400, 3, "DPE", "http_request_error", false;
    /// The request's head or body is too large.
    TooLarge: "too_large", 413, 3, "DPE", "http_request_error", false;
    /// The caller took too long to send its request, or to take its response.
    ClientSlow: "client_slow", 408, 4, "SI", "http_request_error", false;
    /// The response's body is larger than its policy allows.
    ResponseTooLarge: "response_too_large", 502, 8, "UPE", "http_response_body_size", false;
    /// A `FaultInjection` says so; [`Refusal::status`] knows with which status.
    Fault: "fault", 503, 14, "FI", "proxy_internal_response", false;
    /// This proxy is shutting down.
    Draining: "draining", 503, 14, "OM", "destination_unavailable", false;
    /// This proxy has more work than it can do.
    Overload: "overload", 503, 14, "OM", "destination_unavailable", false;
}

impl Reason {
    /// Whether a believed peer that gives this reason has certainly not let the application see the request, so that it
    /// may be tried again elsewhere, whatever its method.
    pub fn provably_unprocessed(self) -> bool {
        matches!(self, Self::Draining | Self::Overload | Self::ConnectFailed | Self::IdentityMismatch)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no reason of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a reason of this version")]
pub struct UnknownReason;

impl FromStr for Reason {
    type Err = UnknownReason;
    fn from_str(word: &str) -> Result<Self, UnknownReason> {
        Self::ALL.iter().find(|reason| reason.as_str() == word).copied().ok_or(UnknownReason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_read_back_from_its_word() {
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(*reason));
        }
        assert_eq!("nonsense".parse::<Reason>(), Err(UnknownReason));
    }
}
