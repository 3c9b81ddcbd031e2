//! Every way an exchange can end, as a closed set, and what each way means to a caller, a log and a balancer.
//!
//! [`Reason`] is one label; [`Refusal`] is a reason with what a person needs to understand it. A refusal becomes a
//! response in one file of the proxy, which asks only the functions here.

mod limit;
mod reason;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use equerry_policies::compile::KeySource;
use equerry_policies::names::{ServiceName, SpiffeId};
use http::StatusCode;

pub use limit::{Expired, Limited, OverLimit};
pub use reason::{Reason, UnknownReason};

use crate::authorize::Denied;
use crate::deadline::{Authors, Crawled};
use crate::quota::OverQuota;

/// Whose fault a refusal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The caller asked for something that cannot be answered.
    Client,
    /// Somebody decided that it must not pass.
    Policy,
    /// The destination did not do its part.
    Upstream,
    /// This proxy did not do its part.
    Us,
}

/// Why a request goes no further: a reason, and what a person needs to understand it (`Display`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No policy allows it, or one denies it.
    #[error("{}", .0.cause)]
    Authz(Box<Denied>),
    /// Plain text where only mutual TLS is spoken.
    #[error("port {port} speaks mutual TLS only")]
    TlsRequired {
        /// The application's port.
        port: u16,
    },
    /// The token is missing or cannot be believed.
    #[error("{}", .0.detail)]
    Token(Box<TokenFault>),
    /// Nobody can say whether a token is good, because the keys of its issuer are not known.
    #[error("the keys of issuer {} are not known: {why}", from.issuer)]
    KeysUnavailable {
        /// Where they are published.
        from: Arc<KeySource>,
        /// Why they are not known, in a word or two.
        why: String,
        /// When to come back.
        retry_after: Option<Duration>,
    },
    /// What this workload enforces is not known.
    #[error("the policy of this workload is not known, so nothing is allowed")]
    PolicyUnavailable,
    /// This proxy's own certificate has expired.
    #[error("the certificate of this workload has expired")]
    IdentityExpired,
    /// The control plane did not say in time what the destination is.
    #[error("the control plane did not say in time what {service} is")]
    ConfigUnavailable {
        /// The destination asked for.
        service: ServiceName,
    },
    /// The tenant has spent its quota.
    #[error("tenant {} has spent its quota {}", .0.tenant, .0.quota)]
    Quota(Box<OverQuota>),
    /// A rate limit was reached.
    #[error("the rate limit {limit} was reached")]
    RateLimited {
        /// The limit's name.
        limit: String,
        /// When to come back.
        retry_after: Duration,
    },
    /// There is no such Service.
    #[error("there is no service {name:?}{}", did_you_mean(nearest.as_deref()))]
    NoService {
        /// The name asked for.
        name: String,
        /// The nearest that exists.
        nearest: Option<String>,
    },
    /// No rule of the destination's routes matches.
    #[error("no rule of the routes of {service} matches")]
    NoRoute {
        /// The destination.
        service: ServiceName,
    },
    /// The rule that matches sends its requests nowhere (Gateway API: answered with 500).
    #[error("{route} rules[{rule}] has no backend with a weight above 0")]
    NoBackend {
        /// The route.
        route: String,
        /// Its rule.
        rule: usize,
    },
    /// The share of a backend that leads to nothing was drawn (Gateway API: answered with 500).
    #[error("{place} leads to nothing: {why}")]
    InvalidBackend {
        /// The route, its rule, and the place of the backend there.
        place: Box<str>,
        /// What is wrong with it.
        why: Box<str>,
    },
    /// The Service or the instance has no such port.
    #[error("{of} has no port {port}; it has {}", list(ports))]
    NoSuchPort {
        /// What was asked.
        of: String,
        /// The port asked for.
        port: u16,
        /// The ports there are.
        ports: Vec<u16>,
    },
    /// The destination has no healthy endpoint.
    #[error("{service} has no healthy endpoint: {why}")]
    NoHealthyEndpoint {
        /// The backend.
        service: ServiceName,
        /// What keeps each away, the first few.
        why: Box<str>,
    },
    /// A name outside the mesh could not be looked up.
    #[error("{host} could not be looked up: {detail}")]
    NotResolved {
        /// The name.
        host: String,
        /// What happened.
        detail: String,
    },
    /// Nobody may be sent there, whatever `outboundTraffic` says.
    #[error("{host} leads to {why}, where nothing is sent")]
    Forbidden {
        /// The name or address that was called.
        host: String,
        /// What is there.
        why: &'static str,
    },
    /// No connection could be made.
    #[error("connecting failed: {detail}")]
    ConnectFailed {
        /// What happened.
        detail: String,
    },
    /// No connection could be made in time.
    #[error("connecting failed: no connection within {0}")]
    ConnectTimeout(Expired),
    /// Whoever answered is not who should have.
    #[error("expected {}, found {}", list(expected), found.as_ref().map_or("nobody".to_owned(), ToString::to_string))]
    IdentityMismatch {
        /// Identities that would have been accepted.
        expected: Vec<SpiffeId>,
        /// The identity met.
        found: Option<Box<SpiffeId>>,
    },
    /// One try took too long.
    #[error("a try took longer than {0}")]
    TryTimeout(Expired),
    /// The whole exchange took too long.
    #[error("the exchange took longer than {0}")]
    RequestTimeout(Expired),
    /// The time was over before there was anything to send it to.
    #[error("nobody waits for it any more after {0}")]
    TooLate(Expired),
    /// Nothing passed for too long.
    #[error("nothing passed for {0}")]
    StreamIdle(Expired),
    /// Nobody takes the response.
    #[error("the caller took nothing for {0}")]
    Unread(Expired),
    /// The head of a request that had begun did not come.
    #[error("the head of the request did not come within {after:?}")]
    HeadTimeout {
        /// The time allowed.
        after: Duration,
    },
    /// The body of a request did not come.
    #[error("the caller sent nothing for {0}")]
    BodyTimeout(Expired),
    /// The caller sent hardly any of its request's body.
    #[error("the caller sent {bytes} bytes of its request's body in {after:?}, which is too little to wait for")]
    BodyCrawls {
        /// How much came.
        bytes: u64,
        /// In how long a time.
        after: Duration,
    },
    /// The caller takes hardly any of its response.
    #[error("the caller took {} bytes of the response in {:?} that it was waited for, which is too little to wait for", .0.bytes, .0.after)]
    ReadsTooSlowly(Crawled),
    /// Whoever was called takes hardly any of the request.
    #[error("{} bytes of the request were taken in {:?} that waited for nothing else, which is too little to wait for", .0.bytes, .0.after)]
    TakesTooSlowly(Crawled),
    /// Whoever was called sends hardly any of the response whose length it declared.
    #[error("{} bytes of the response came in {:?}, which is too little to wait for", .0.bytes, .0.after)]
    AnswersTooSlowly(Crawled),
    /// A limit of the backend's TrafficPolicy is reached.
    #[error("{0}")]
    Limit(Box<OverLimit>),
    /// Every endpoint's breaker is open.
    #[error("the breaker of every endpoint of {service} is open")]
    BreakerOpen {
        /// The backend.
        service: ServiceName,
    },
    /// The connection ended before the response did.
    #[error("the connection ended before the response: {detail}")]
    UpstreamReset {
        /// What happened.
        detail: String,
    },
    /// The caller went away before it had sent all of its request.
    #[error("the caller left before the end of its request")]
    ClientGone,
    /// The request's framing, headers or path are not acceptable.
    #[error("{detail}")]
    BadRequest {
        /// What is wrong with it.
        detail: String,
    },
    /// The request is of HTTP/1.0, which is not served here (426).
    #[error("HTTP/1.0 is not served here: Mesh.http10 is REFUSE")]
    OldVersion,
    /// The request's body is too large (413).
    #[error("the body is larger than {limit} bytes: limits.requestBytes of {policy}")]
    BodyTooLarge {
        /// The limit in bytes.
        limit: u64,
        /// The TrafficPolicy, `namespace/name`.
        policy: Box<str>,
    },
    /// The request's head is too large (431).
    #[error("the head is larger than {limit} bytes")]
    HeadTooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The response's body is too large (502).
    #[error("the response is larger than {limit} bytes: limits.responseBytes of {policy}")]
    ResponseTooLarge {
        /// The limit in bytes.
        limit: u64,
        /// The TrafficPolicy, `namespace/name`.
        policy: Box<str>,
    },
    /// A fault that is made on purpose.
    #[error("{policy} makes this fault on purpose")]
    Fault {
        /// The `FaultInjection`, `namespace/name`.
        policy: Box<str>,
        /// What it is answered with.
        abort: crate::fault::Abort,
    },
    /// The sidecar at the other end of a connection says why it goes no further.
    #[error("{detail}")]
    Told {
        /// Its word.
        reason: Reason,
        /// Who said it.
        detail: String,
    },
    /// Whoever was to answer is believed no more.
    #[error("{why}")]
    Distrusted {
        /// Why.
        why: String,
    },
    /// This proxy is shutting down.
    #[error("this proxy is shutting down")]
    Draining,
    /// This proxy has more work than it can do.
    #[error("this proxy has more work than it can do")]
    Overload,
}

/// Why a token is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFault {
    /// One of the `token_*` reasons.
    pub reason: Reason,
    /// The same in a sentence; never contains the token.
    pub detail: String,
    /// The document whose rule refused it, `namespace/name`, where one is responsible.
    pub policy: Option<Box<str>>,
    /// Where keys are published that may have changed: with those of now the token might be believed.
    pub ask: Option<Arc<KeySource>>,
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|nearest| format!("; did you mean {nearest:?}?")).unwrap_or_default()
}

fn list(items: &[impl fmt::Display]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Refusal {
    /// A request whose form is not acceptable, and why.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::BadRequest { detail: detail.into() }
    }

    /// What is not HTTP, where rules hold that only HTTP can be measured by.
    pub fn not_measured(port: u16, of: &ServiceName) -> Self {
        Self::bad_request(format!("port {port} of {of} has rules about HTTP, and this is not HTTP"))
    }

    /// Where keys are published with which a token might be believed that is refused with those of now.
    pub fn wants_keys(&self) -> Option<&Arc<KeySource>> {
        match self {
            Self::Token(fault) => fault.ask.as_ref(),
            Self::KeysUnavailable { from, .. } => Some(from),
            _ => None,
        }
    }

    /// Its one metric label.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Authz(_) | Self::Forbidden { .. } => Reason::AuthzDenied,
            Self::TlsRequired { .. } => Reason::TlsRequired,
            Self::Token(fault) => fault.reason,
            Self::KeysUnavailable { .. } => Reason::KeysUnavailable,
            Self::PolicyUnavailable => Reason::PolicyUnavailable,
            Self::IdentityExpired => Reason::IdentityExpired,
            Self::ConfigUnavailable { .. } => Reason::ConfigUnavailable,
            Self::Quota(_) => Reason::Quota,
            Self::RateLimited { .. } => Reason::RateLimited,
            Self::NoService { .. } => Reason::NoService,
            Self::NoRoute { .. } | Self::NoBackend { .. } => Reason::NoRoute,
            Self::InvalidBackend { .. } => Reason::InvalidBackend,
            Self::NoSuchPort { .. } => Reason::NoSuchPort,
            Self::NoHealthyEndpoint { .. } | Self::NotResolved { .. } => Reason::NoHealthyEndpoint,
            Self::ConnectFailed { .. } | Self::ConnectTimeout(_) => Reason::ConnectFailed,
            Self::IdentityMismatch { .. } => Reason::IdentityMismatch,
            Self::TryTimeout(_) => Reason::TryTimeout,
            Self::RequestTimeout(_) | Self::TooLate(_) => Reason::RequestTimeout,
            Self::StreamIdle(_) | Self::Unread(_) | Self::TakesTooSlowly(_) | Self::AnswersTooSlowly(_) => {
                Reason::StreamIdle
            }
            Self::HeadTimeout { .. } | Self::BodyTimeout(_) | Self::BodyCrawls { .. } | Self::ReadsTooSlowly(_) => {
                Reason::ClientSlow
            }
            Self::Limit(over) => match over.limit {
                Limited::Pending | Limited::Waited(_) => Reason::LimitPending,
                Limited::Requests => Reason::LimitRequests,
            },
            Self::ResponseTooLarge { .. } => Reason::ResponseTooLarge,
            Self::BreakerOpen { .. } => Reason::BreakerOpen,
            Self::UpstreamReset { .. } => Reason::UpstreamReset,
            Self::ClientGone => Reason::ClientGone,
            Self::BadRequest { .. } | Self::OldVersion => Reason::BadRequest,
            Self::BodyTooLarge { .. } | Self::HeadTooLarge { .. } => Reason::TooLarge,
            Self::Fault { .. } => Reason::Fault,
            Self::Told { reason, .. } => *reason,
            Self::Distrusted { .. } => Reason::IdentityRevoked,
            Self::Draining => Reason::Draining,
            Self::Overload => Reason::Overload,
        }
    }

    /// The HTTP status it is answered with.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoBackend { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Fault { abort, .. } => abort.status,
            Self::HeadTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::OldVersion => StatusCode::UPGRADE_REQUIRED,
            // It is nothing that the caller did.
            Self::Distrusted { .. } => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::from_u16(self.reason().http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    /// The gRPC status code it is answered with.
    pub fn grpc_status(&self) -> u8 {
        match self {
            // The Gateway API: calls that have no valid backend are UNAVAILABLE.
            Self::NoBackend { .. } | Self::Distrusted { .. } => 14,
            Self::Fault { abort, .. } => abort.grpc,
            _ => self.reason().grpc_code(),
        }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self.reason() {
            Reason::AuthzDenied
            | Reason::TlsRequired
            | Reason::IdentityRevoked
            | Reason::Quota
            | Reason::RateLimited
            | Reason::InvalidBackend
            | Reason::Fault => Fault::Policy,
            Reason::KeysUnavailable
            | Reason::PolicyUnavailable
            | Reason::IdentityExpired
            | Reason::ConfigUnavailable
            | Reason::LimitConnections
            | Reason::LimitPending
            | Reason::LimitRequests
            | Reason::Draining
            | Reason::Overload => Fault::Us,
            Reason::NoHealthyEndpoint
            | Reason::ConnectFailed
            | Reason::IdentityMismatch
            | Reason::TryTimeout
            | Reason::RequestTimeout
            | Reason::StreamIdle
            | Reason::ResponseTooLarge
            | Reason::BreakerOpen
            | Reason::UpstreamReset => Fault::Upstream,
            _ => Fault::Client,
        }
    }

    /// The policy and rule that refused, in the words that log, body and `explain` share; `None` when no policy did.
    pub fn cause(&self) -> Option<&str> {
        match self {
            Self::Authz(denied) => Some(&denied.cause),
            Self::Token(fault) => fault.policy.as_deref(),
            Self::Quota(over) => Some(&over.quota),
            Self::Fault { policy, .. } => Some(policy),
            Self::InvalidBackend { place, .. } => Some(place),
            Self::TryTimeout(expired)
            | Self::RequestTimeout(expired)
            | Self::TooLate(expired)
            | Self::ConnectTimeout(expired)
            | Self::StreamIdle(expired)
            | Self::Unread(expired)
            | Self::BodyTimeout(expired) => expired.document.as_deref(),
            Self::Limit(over) => over.policy.as_deref(),
            Self::BodyTooLarge { policy, .. } | Self::ResponseTooLarge { policy, .. } => Some(policy),
            Self::Forbidden { .. } => Some("Mesh.outboundTraffic"),
            Self::OldVersion => Some("Mesh.http10"),
            _ => None,
        }
    }

    /// The same, naming the document behind a limit on time.
    #[must_use]
    pub fn signed(mut self, authors: &Authors<'_>) -> Self {
        if let Self::TryTimeout(expired)
        | Self::RequestTimeout(expired)
        | Self::TooLate(expired)
        | Self::ConnectTimeout(expired)
        | Self::StreamIdle(expired)
        | Self::Unread(expired)
        | Self::BodyTimeout(expired) = &mut self
        {
            expired.document = authors.of(expired.timer).map(Into::into);
        }
        self
    }

    /// When the caller may come back, for `Retry-After`.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Quota(over) => Some(over.share.reset),
            Self::RateLimited { retry_after, .. } => Some(*retry_after),
            Self::KeysUnavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_that_differs_from_its_reasons_usual_status_says_so() {
        assert_eq!(Refusal::HeadTooLarge { limit: 1 }.status(), 431);
        assert_eq!(Refusal::BodyTooLarge { limit: 1, policy: "a/b".into() }.status(), 413);
        let nowhere = Refusal::NoBackend { route: "a/b".to_owned(), rule: 0 };
        assert_eq!((nowhere.status().as_u16(), nowhere.grpc_status()), (500, 14));
        let made = Refusal::Fault { policy: "a/b".into(), abort: crate::fault::Abort::grpc(5) };
        assert_eq!((made.status().as_u16(), made.grpc_status(), made.cause()), (404, 5, Some("a/b")));
        assert_eq!(Refusal::Draining.status(), 503);
        let revoked = Refusal::Distrusted { why: "it was revoked".to_owned() };
        assert_eq!(
            (revoked.status().as_u16(), revoked.grpc_status(), revoked.reason()),
            (503, 14, Reason::IdentityRevoked)
        );
        assert_eq!((Refusal::OldVersion.status().as_u16(), Refusal::OldVersion.cause()), (426, Some("Mesh.http10")));
    }

    #[test]
    fn a_limit_says_which_it_is_its_value_and_how_many_there_are() {
        let over = |limit, value, present| {
            let service = "shop/inventory".parse().unwrap();
            Refusal::Limit(Box::new(OverLimit { limit, service, value, present, policy: Some("shop/limits".into()) }))
        };
        let requests = over(Limited::Requests, 200, 200);
        assert_eq!(requests.reason().as_str(), "limit_requests");
        assert_eq!(
            requests.to_string(),
            "200 requests to shop/inventory are in flight, and limits.requests is 200: shop/limits"
        );
        assert_eq!(requests.cause(), Some("shop/limits"));
        let waited = over(Limited::Waited(Duration::from_secs(1)), 10, 10);
        assert_eq!((waited.reason().as_str(), waited.status().as_u16()), ("limit_pending", 503));
        assert_eq!(
            waited.to_string(),
            "no connection to shop/inventory became free in 1s (limits.pendingTimeout): 10 are open, and limits.connections \
             is 10: shop/limits"
        );
    }

    #[test]
    fn a_missing_service_is_refused_with_the_nearest_name() {
        let refusal = Refusal::NoService { name: "inventry".to_owned(), nearest: Some("inventory".to_owned()) };
        assert_eq!(refusal.to_string(), "there is no service \"inventry\"; did you mean \"inventory\"?");
    }

    #[test]
    fn a_refusal_fits_a_result_without_being_copied_around() {
        // Every stage returns one: clippy's limit for a large error is 128 bytes.
        assert!(size_of::<Refusal>() <= 96, "{}", size_of::<Refusal>());
    }
}
