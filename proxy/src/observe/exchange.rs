//! One exchange, as metrics, access log, traces and lookouts are told of it at its end.

use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use equerry_policies::names::{ServiceName, SpiffeId, TenantName};
use equerry_traffic::Reason;
use equerry_traffic::authorize::Noted;
use equerry_traffic::texts::Texts;
use http::HeaderValue;
use http::uri::PathAndQuery;

use super::{Logged, Trace};

/// Which listener an exchange came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From a caller, toward this sidecar's application.
    Inbound,
    /// From this sidecar's application, toward the mesh.
    Outbound,
}

impl Direction {
    /// The metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// One finished exchange, as the access log and the metrics need it. Shown without its query and its headers.
#[derive(Clone)]
pub struct Exchange {
    /// Which listener it came through.
    pub direction: Direction,
    /// When its head had been read.
    pub started: Instant,
    /// From `started` until the last byte of the response.
    pub duration: Duration,
    /// From sending to the upstream until its response head; of the last try.
    pub upstream_time: Option<Duration>,
    /// Epoch of the configuration it was decided by.
    pub epoch: u64,
    /// The method as received.
    pub method: http::Method,
    /// The normalised target; only its path is told, because a query may carry secrets.
    pub target: PathAndQuery,
    /// The normalised authority.
    pub authority: HeaderValue,
    /// The version spoken by the caller.
    pub protocol: http::Version,
    /// It is a TCP connection in whose bytes nobody looked for requests: no method, target, version or status.
    pub tunnel: bool,
    /// The protocol that its connection changed to.
    pub upgrade: Option<HeaderValue>,
    /// The status sent; 499 when the caller left before there was one, 0 for TCP.
    pub status: u16,
    /// How it ended.
    pub reason: Reason,
    /// Body bytes from the caller.
    pub bytes_in: u64,
    /// Body bytes to the caller.
    pub bytes_out: u64,
    /// Who called, if a certificate said so; outbound: this workload.
    pub source: Option<SpiffeId>,
    /// The Service called, if it is known.
    pub destination: Option<ServiceName>,
    /// The identity that answered; inbound: this workload.
    pub destination_principal: Option<SpiffeId>,
    /// `namespace/route` and rule that decided, outbound.
    pub route: Option<Arc<str>>,
    /// Policy and rule of a refusal, in the words that response, log and `explain` share.
    pub policy_rule: Option<String>,
    /// What policies that enforce nothing saw in it.
    pub noted: Option<Box<Noted>>,
    /// The tenant it was counted for.
    pub tenant: Option<TenantName>,
    /// Tries made; 0 when none was.
    pub attempts: u32,
    /// What became of retrying: `succeeded`, `skipped_budget`, ...
    pub retry_outcome: Option<&'static str>,
    /// The endpoint of the last try, or the application.
    pub upstream_address: Option<SocketAddr>,
    /// The HTTP that was spoken there.
    pub upstream_protocol: Option<http::Version>,
    /// The caller's address.
    pub peer_address: SocketAddr,
    /// `x-request-id`.
    pub request_id: HeaderValue,
    /// The trace it belongs to, as it is forwarded.
    pub traceparent: Option<HeaderValue>,
    /// Its part in that trace, when spans are kept of it.
    pub trace: Option<Box<Trace>>,
    /// Mutual TLS on the mesh's side of it.
    pub tls: bool,
    /// The caller's `user-agent`.
    pub user_agent: Option<HeaderValue>,
    /// The caller's `x-forwarded-for`.
    pub x_forwarded_for: Option<HeaderValue>,
    /// The server name of the TLS connection, inbound.
    pub sni: Option<Arc<str>>,
    /// Why it failed, for people: an I/O or TLS error in words.
    pub detail: Option<String>,
    /// What is logged of it because a policy asks for it by name.
    pub logged: Option<Box<Logged>>,
    /// Its texts, where it stands alone.
    pub(crate) copies: Option<Copies>,
}

/// Copies of those texts of an exchange that belong to the messages it tells of, one behind the other.
#[derive(Clone)]
pub(crate) struct Copies {
    text: BytesMut,
    /// Where each ends; `None`: there is none.
    ends: [Option<u32>; 8],
}

/// The same texts: authority, request id, traceparent, user agent, x-forwarded-for, upgrade, path and query.
pub(super) type Told<'a> = [Option<&'a [u8]>; 8];

/// Bytes of descriptions that share an allocation, which goes to whoever writes the log.
const SHEET: usize = 8 * 1024;

thread_local! {
    static TEXTS: RefCell<Texts> = RefCell::new(Texts::of(SHEET));
}

impl Exchange {
    /// Copies what it shares with the messages it tells of and lets go of that, but for headers that a policy names: their memory
    /// does not wait for the log, and is used again meanwhile.
    pub(super) fn stand_alone(&mut self) {
        let copies = Copies::of(&self.told());
        (self.authority, self.request_id) = (HeaderValue::from_static(""), HeaderValue::from_static(""));
        (self.traceparent, self.user_agent, self.x_forwarded_for, self.upgrade) = (None, None, None, None);
        self.target = PathAndQuery::from_static("/");
        self.copies = Some(copies);
    }

    /// The texts that it shares with those messages, or has of its own when it stands alone.
    pub(super) fn told(&self) -> Told<'_> {
        if let Some(copies) = &self.copies {
            return copies.told();
        }
        [
            Some(self.authority.as_bytes()),
            Some(self.request_id.as_bytes()),
            self.traceparent.as_ref().map(HeaderValue::as_bytes),
            self.user_agent.as_ref().map(HeaderValue::as_bytes),
            self.x_forwarded_for.as_ref().map(HeaderValue::as_bytes),
            self.upgrade.as_ref().map(HeaderValue::as_bytes),
            Some(self.target.path().as_bytes()),
            self.target.query().map(str::as_bytes),
        ]
    }
}

impl Copies {
    fn of(texts: &Told<'_>) -> Self {
        let mut end = 0;
        let ends = texts.map(|text| {
            end += text?.len();
            u32::try_from(end).ok()
        });
        let parts = texts.map(Option::unwrap_or_default);
        Self { text: TEXTS.with_borrow_mut(|copies| copies.join(&parts)), ends }
    }

    fn told(&self) -> Told<'_> {
        let mut begin = 0;
        self.ends.map(|end| {
            let end = end? as usize;
            self.text.get(std::mem::replace(&mut begin, end)..end)
        })
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Exchange");
        shown.field("direction", &self.direction).field("method", &self.method).field("path", &self.target.path());
        shown.field("authority", &self.authority).field("request_id", &self.request_id);
        shown.field("status", &self.status).field("reason", &self.reason).finish_non_exhaustive()
    }
}

/// Memory for the description of an exchange, which is used again.
pub(crate) type Sheet = Box<Option<Exchange>>;
