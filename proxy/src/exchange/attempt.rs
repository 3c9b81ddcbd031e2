//! Tries: one request sent over one connection, and sent again where that is allowed.
//!
//! A kept connection may be closing just as it is used. When nothing of the request was sent, or nothing can have come
//! of it, it goes out once more over a fresh connection: that is no retry of policy, and costs no budget.

use std::pin::pin;
use std::time::Duration;

use equerry_traffic::Refusal;
use equerry_traffic::deadline::{Kind, TryDeadline};
use equerry_traffic::normalize::Normal;
use http::header::{COOKIE, HOST, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, Method, Request, Response, Uri, Version};
use http_body::Body;
use http_body_util::BodyExt;

use super::body::ToSend;
use super::now;
use crate::codec::http1::call;
use crate::upstream::{
    ConnectFailure, Lease, Message, Pool, Protocol, RequestBody, ResponseBody, SendFailure, Target, Untouched,
};

/// How long the rest of a response that nobody will see may take.
const DISCARD_PATIENCE: Duration = Duration::from_secs(1);
/// A response that nobody will see is read to its end up to this size: a new connection costs more.
const DISCARD_LARGEST: u64 = 64 * 1024;

/// A request that is ready to be sent, perhaps more than once.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    /// Without its headers once the body is gone: then nothing could be sent with them.
    head: &'a mut Parts,
    normal: Normal,
    body: ToSend,
}

/// A try that got no response head.
#[derive(Debug)]
pub(crate) struct Failed {
    /// What the caller is told, should it be the last.
    pub(crate) refusal: Refusal,
    /// The application has certainly not seen the request.
    pub(crate) unprocessed: bool,
}

impl Failed {
    fn unprocessed(refusal: Refusal) -> Self {
        Self { refusal, unprocessed: true }
    }

    fn reset(detail: String) -> Self {
        Self { refusal: Refusal::UpstreamReset { detail }, unprocessed: false }
    }
}

/// Lets go of a response that nobody will see. A short one is read to its end, so that its connection can be used again.
pub(crate) fn discard(response: Response<ResponseBody>) {
    let short = response.body().size_hint().exact().is_some_and(|length| length <= DISCARD_LARGEST);
    if short && !response.body().is_end_stream() {
        tokio::task::spawn_local(async move {
            let _ = tokio::time::timeout(DISCARD_PATIENCE, response.into_body().collect()).await;
        });
    }
}

impl<'a> Outgoing<'a> {
    /// The judged request: what is forwarded is what was judged.
    pub(crate) fn new(head: &'a mut Parts, normal: Normal, body: ToSend) -> Self {
        Self { head, normal, body }
    }

    /// Its method.
    pub(crate) fn method(&self) -> &Method {
        &self.head.method
    }

    /// Whether it can be sent again as it was.
    pub(crate) fn can_be_sent(&self) -> bool {
        self.body.is_left()
    }

    /// Whether the caller has sent all of it.
    pub(crate) fn has_come(&self) -> bool {
        self.body.has_come()
    }

    /// Its headers, to be changed from try to try; empty when they were sent for the last time.
    pub(crate) fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.head.headers
    }

    /// The next try of it, in the words of `protocol`; `None` when its body is gone.
    fn next(&mut self, protocol: Protocol) -> Option<Message<'_>> {
        let body = self.body.next()?;
        match protocol {
            Protocol::Http1 => {
                join_cookies(&mut self.head.headers);
                let target = self.normal.target().as_str();
                let head = call::Head { method: &self.head.method, target, headers: &self.head.headers };
                Some(Message::Http1(head, body))
            }
            Protocol::Http2 => self.http2(body).map(Message::Http2),
            // No exchange gets a connection for that.
            Protocol::Tcp => None,
        }
    }

    fn http2(&mut self, body: RequestBody) -> Option<Request<RequestBody>> {
        let mut request = Request::new(body);
        *request.method_mut() = self.head.method.clone();
        let headers = &mut self.head.headers;
        *request.headers_mut() = if self.body.is_left() { headers.clone() } else { std::mem::take(headers) };
        request.headers_mut().remove(HOST);
        *request.version_mut() = Version::HTTP_2;
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Authority::try_from(self.normal.authority()).ok();
        uri.path_and_query = Some(self.normal.target().clone());
        *request.uri_mut() = Uri::from_parts(uri).ok()?;
        Some(request)
    }

    fn take_back(&mut self, untouched: Untouched) {
        if let Some(headers) = untouched.headers {
            self.head.headers = headers;
            self.head.headers.insert(HOST, self.normal.host_header().clone());
        }
        if let Some(body) = untouched.body {
            self.body.unsent(body);
        }
    }
}

/// HTTP/2 may split the cookie header; HTTP/1.1 may not (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut all = headers.get_all(COOKIE).iter();
    if all.next().is_none() || all.next().is_none() {
        return;
    }
    let values: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&values.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Sends the request, which begins an exchange of `kind`, to `target` and waits for the head of its response, until `until`
/// at most.
///
/// # Errors
/// When there is none, saying what became of the request.
pub(crate) async fn send(
    pool: &std::rc::Rc<Pool>,
    target: &Target<'_>,
    outgoing: &mut Outgoing<'_>,
    until: Option<(TryDeadline, Kind)>,
) -> Result<Response<ResponseBody>, Failed> {
    let Some((until, kind, mut at)) = until.and_then(|(until, kind)| Some((until, kind, until.at?))) else {
        return over_some_connection(pool, target, outgoing).await;
    };
    let (began, told) = (now(), outgoing.body.told());
    let mut sending = pin!(over_some_connection(pool, target, outgoing));
    loop {
        if let Ok(sent) = tokio::time::timeout_at(at.into(), sending.as_mut()).await {
            return sent;
        }
        let ended = told.as_ref().map_or(Some(began), |told| told.ended.get());
        at = until.or_more_time(kind, ended, now()).map_err(|refusal| Failed { refusal, unprocessed: false })?;
    }
}

async fn over_some_connection(
    pool: &std::rc::Rc<Pool>,
    target: &Target<'_>,
    outgoing: &mut Outgoing<'_>,
) -> Result<Response<ResponseBody>, Failed> {
    let kept = pool.checkout(target, false).await.map_err(|failure| no_connection(failure, target))?;
    let reused = kept.reused();
    match over(kept, target, outgoing).await {
        Err(failed) if reused && failed.worth_a_fresh_connection(target.protocol, outgoing) => {}
        answered => return answered,
    }
    let fresh = pool.checkout(target, true).await.map_err(|failure| no_connection(failure, target))?;
    over(fresh, target, outgoing).await
}

impl Failed {
    /// A kept connection that ended before it answered was most likely closed before the request arrived. That is certain
    /// when nothing was sent or the peer says so, else the method must bear repeating (RFC 9112 section 9.3.1).
    fn worth_a_fresh_connection(&self, protocol: Protocol, outgoing: &Outgoing<'_>) -> bool {
        let reset = matches!(self.refusal, Refusal::UpstreamReset { .. });
        let harmless = protocol == Protocol::Http1 && reset && outgoing.method().is_idempotent();
        outgoing.can_be_sent() && (self.unprocessed || harmless)
    }
}

async fn over(
    mut lease: Lease,
    target: &Target<'_>,
    outgoing: &mut Outgoing<'_>,
) -> Result<Response<ResponseBody>, Failed> {
    if !outgoing.body.is_empty() {
        confirmed(&mut lease, target).await?;
    }
    let Some(message) = outgoing.next(target.protocol) else {
        return Err(Failed::reset("the body of the request is gone".to_owned()));
    };
    lease.send(message).await.map_err(|failure| not_answered(failure, outgoing))
}

/// A request with a body waits until the peer has accepted our certificate: it must not be lost in a refused connection.
async fn confirmed(lease: &mut Lease, target: &Target<'_>) -> Result<(), Failed> {
    let waited = tokio::time::timeout(target.connect_timeout, lease.confirmed()).await;
    let failure = match waited {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(failure)) => failure,
        Err(_) => ConnectFailure::Failed(format!("not accepted within {:?}", target.connect_timeout)),
    };
    Err(no_connection(failure, target))
}

fn not_answered(failure: SendFailure, outgoing: &mut Outgoing<'_>) -> Failed {
    let SendFailure { refused, untouched, not_connected, detail } = failure;
    outgoing.take_back(untouched);
    if let Some(refusal) = outgoing.body.broke_off() {
        return Failed { refusal, unprocessed: false };
    }
    if not_connected {
        Failed::unprocessed(Refusal::ConnectFailed { detail })
    } else if refused {
        Failed::unprocessed(Refusal::UpstreamReset { detail })
    } else {
        Failed::reset(detail)
    }
}

/// Why there is no connection, as callers are told.
pub(crate) fn no_connection(failure: ConnectFailure, target: &Target<'_>) -> Failed {
    match failure {
        ConnectFailure::Failed(detail) => Failed::unprocessed(Refusal::ConnectFailed { detail }),
        ConnectFailure::IdentityMismatch { found } => Failed::unprocessed(Refusal::IdentityMismatch {
            expected: target.whom.map(|whom| whom.accounts.to_vec()).unwrap_or_default(),
            found: found.map(Box::new),
        }),
        ConnectFailure::NoPlace(over) => Failed { refusal: Refusal::Limit(over), unprocessed: false },
    }
}
