//! Tries: one request sent over one connection, and sent again where that is allowed.
//!
//! A kept connection may be closing just as it is used. When nothing of the request was sent, or nothing can have come
//! of it, it goes out once more over a fresh connection: that is no retry of policy, and costs no budget.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use equerry_traffic::Refusal;
use equerry_traffic::deadline::{self, Kind, TryDeadline};
use equerry_traffic::normalize::Normal;
use http::header::{COOKIE, EXPECT, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;

use super::body::ToSend;
use super::now;
use super::standing::UnderWay;
use crate::codec::http1::call;
use crate::codec::{Early, http2};
use crate::upstream::{
    ConnectFailure, Lease, Message, Pool, Protocol, RequestBody, ResponseBody, SendFailure, Target, Told,
};

#[cfg(test)]
pub(super) use crate::upstream::IMPATIENT;
pub(super) use crate::upstream::patience;

/// How long the rest of a response that nobody will see may take.
const DISCARD_PATIENCE: Duration = Duration::from_secs(1);
/// A response that nobody will see is read to its end up to this size: a new connection costs more.
const DISCARD_LARGEST: u64 = 64 * 1024;
/// So many connections in a row may take leave before one answers.
const MOST_LEAVES: usize = 3;

/// A request that is ready to be sent, perhaps more than once. Shown without its headers and its body.
pub(crate) struct Outgoing<'a> {
    head: &'a mut Parts,
    normal: Normal,
    body: ToSend,
    /// What the caller hears before its answer.
    early: &'a Early,
    /// What let it in, where that is judged again.
    under_way: Option<&'a UnderWay<'a>>,
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

impl fmt::Debug for Outgoing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing")
            .field("method", &self.head.method)
            .field("normal", &self.normal)
            .finish_non_exhaustive()
    }
}

impl<'a> Outgoing<'a> {
    /// The judged request: what is forwarded is what was judged.
    pub(crate) fn new(head: &'a mut Parts, normal: Normal, body: ToSend, early: &'a Early) -> Self {
        if normal.expects_continue() && matches!(body, ToSend::Held(_)) {
            // Nobody waits any more.
            head.headers.remove(EXPECT);
        }
        Self { head, normal, body, early, under_way: None }
    }

    /// Judges it again while it is under way.
    pub(super) fn judged_by(&mut self, under_way: &'a UnderWay<'a>) {
        self.under_way = Some(under_way);
    }

    /// Its normal form.
    pub(super) fn into_normal(self) -> Normal {
        self.normal
    }

    /// Whether it may go on.
    fn stands(&self, cx: &mut Context<'_>) -> Result<(), Refusal> {
        let Some(under_way) = self.under_way else { return Ok(()) };
        under_way.poll(&self.head.method, &self.normal, &self.head.headers, cx)
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

    /// How the caller's stream ends, where there is one.
    pub(crate) fn told(&self) -> Option<Rc<Told>> {
        self.body.told()
    }

    /// Its headers, to be changed from try to try.
    pub(crate) fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.head.headers
    }

    /// The body for the next try of it, whose head is put into the words of `target`; `None` when it is gone.
    fn next(&mut self, target: &Target<'_>) -> Option<RequestBody> {
        let body = self.body.next()?;
        if self.normal.expects_continue() {
            if target.protocol == Protocol::Http1 || target.whom.is_some() {
                body.leave_the_word();
            } else {
                // Few applications say it over HTTP/2: it is said here, when the body is first asked for.
                self.head.headers.remove(EXPECT);
            }
        }
        if target.protocol == Protocol::Http1
            && let Some(cookies) = join_cookies(&mut self.head.headers)
            && let Some(under_way) = self.under_way
        {
            under_way.came_with(cookies);
        }
        Some(body)
    }

    /// The next try of it, in the words of `target`.
    fn message(&self, target: &Target<'_>, body: RequestBody) -> Option<Message<'_>> {
        match target.protocol {
            Protocol::Http1 => {
                let target = self.normal.target().as_str();
                let Parts { method, headers, .. } = &*self.head;
                let head = call::Head { method, target, headers, early: self.early };
                Some(Message::Http1(head, body))
            }
            Protocol::Http2 => {
                let (authority, target) = (self.normal.authority(), self.normal.target().as_str());
                let Parts { method, headers, .. } = &*self.head;
                let head = http2::call::Head { method, authority, target, headers, early: self.early };
                Some(Message::Http2(head, body))
            }
            // No exchange gets a connection for that.
            Protocol::Tcp => None,
        }
    }
}

/// HTTP/2 may split the cookie header; HTTP/1.1 may not (RFC 9113 section 8.2.3). What was put together, if anything was.
fn join_cookies(headers: &mut HeaderMap) -> Option<Vec<HeaderValue>> {
    // As many values as names: none is there twice.
    if headers.len() == headers.keys_len() || headers.get_all(COOKIE).iter().nth(1).is_none() {
        return None;
    }
    let values: Vec<HeaderValue> = headers.get_all(COOKIE).iter().cloned().collect();
    let texts: Vec<&[u8]> = values.iter().map(HeaderValue::as_bytes).collect();
    let joined = HeaderValue::from_bytes(&texts.join(&b"; "[..])).ok()?;
    headers.insert(COOKIE, joined);
    Some(values)
}

/// How long a try may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Time {
    /// When the head of the response must be here.
    pub(crate) until: TryDeadline,
    /// What kind of exchange it begins.
    pub(crate) kind: Kind,
    /// For how long nothing of the request's body may pass; `None`: however long.
    pub(crate) idle: Option<Duration>,
}

/// Sends the request to `target` and waits for the head of its response.
///
/// # Errors
/// When there is none in `time`, saying what became of the request.
pub(crate) async fn send(
    pool: &Rc<Pool>,
    target: &Target<'_>,
    outgoing: &mut Outgoing<'_>,
    time: Time,
) -> Result<Response<ResponseBody>, Failed> {
    let told = outgoing.body.told().filter(|told| told.ended.get().is_none());
    let watched = time.idle.zip(told.clone());
    let mut end = time.until.at;
    if end.is_none() && watched.is_none() {
        return over_some_connection(pool, target, outgoing).await;
    }
    let began = now();
    let mut pace = Pace { since: began, had: 0 };
    let mut sending = pin!(over_some_connection(pool, target, outgoing));
    loop {
        let still = watched.as_ref().and_then(|(idle, told)| stands_still(*idle, told, began));
        // A request that has come whole may still wait for whoever takes it.
        let under_way = watched.as_ref().filter(|(_, told)| still.is_some() || told.is_being_taken());
        let paced = under_way.and_then(|_| pace.since.checked_add(patience()));
        let Some(at) = end.into_iter().chain(still).chain(paced).min() else { return sending.await };
        if let Some(sent) = pool.timers.within(at.into(), sending.as_mut()).await {
            return sent;
        }
        let now = now();
        if end.is_some_and(|end| end <= now) {
            let ended = told.as_ref().map_or(Some(began), |told| told.ended.get());
            let more = time.until.or_more_time(time.kind, ended, now);
            end = Some(more.map_err(|refusal| Failed { refusal, unprocessed: false })?);
        } else if let Some((idle, told)) = &watched
            && stands_still(*idle, told, began).is_some_and(|still| still <= now)
        {
            let waited_for = if told.waits.get() { deadline::nothing_came } else { deadline::stood_still };
            return Err(Failed { refusal: waited_for(*idle), unprocessed: false });
        } else if let Some((_, told)) = watched.as_ref().filter(|_| paced.is_some_and(|paced| paced <= now)) {
            pace.judge(told, now).map_err(|refusal| Failed { refusal, unprocessed: false })?;
        }
    }
}

/// How fast a caller sends: since when it is looked at, and how much had come by then.
struct Pace {
    since: Instant,
    had: u64,
}

impl Pace {
    /// Judges what came since, where it is the caller who is waited for, and how it was taken; begins anew.
    fn judge(&mut self, told: &Told, now: Instant) -> Result<(), Refusal> {
        if let Some(crawled) = told.crawled.get() {
            return Err(Refusal::TakesTooSlowly(crawled));
        }
        let (came, after) = (told.bytes.get() - self.had, now.saturating_duration_since(self.since));
        *self = Self { since: now, had: told.bytes.get() };
        if told.waits.get() { deadline::not_crawling(came, after) } else { Ok(()) }
    }
}

/// When a body that is still on its way will have stood still for too long.
fn stands_still(idle: Duration, told: &Told, began: Instant) -> Option<Instant> {
    let last = told.moved.get().map_or(began, |moved| moved.max(began));
    last.checked_add(idle).filter(|_| told.ended.get().is_none())
}

async fn over_some_connection(
    pool: &Rc<Pool>,
    target: &Target<'_>,
    outgoing: &mut Outgoing<'_>,
) -> Result<Response<ResponseBody>, Failed> {
    let mut again = 0;
    loop {
        let lease = pool.checkout(target, again > 0).await.map_err(|failure| no_connection(failure, target))?;
        let reused = lease.reused();
        let (failed, took_leave) = match over(lease, target, outgoing).await {
            Ok(answered) => return Ok(answered),
            Err(failed) => failed,
        };
        // A peer that takes leave answers what it has begun. Many were waiting for its connection, and for the next one too.
        let most = if took_leave { MOST_LEAVES } else { usize::from(reused) };
        if again >= most || !failed.worth_a_fresh_connection(target.protocol, outgoing) {
            return Err(failed);
        }
        again += 1;
    }
}

impl Failed {
    /// A kept connection that ended before it answered was most likely closed before the request arrived. That is certain
    /// when nothing was sent or the peer says so, else the method must bear repeating (RFC 9112 section 9.3.1).
    fn worth_a_fresh_connection(&self, protocol: Protocol, outgoing: &Outgoing<'_>) -> bool {
        let reset = matches!(self.refusal, Refusal::UpstreamReset { .. });
        // A connection that we ended because its root is gone has one that leads to the same peer by another.
        let by_us = matches!(self.refusal, Refusal::Distrusted { .. });
        let harmless = (by_us || protocol == Protocol::Http1 && reset) && outgoing.method().is_idempotent();
        outgoing.can_be_sent() && (self.unprocessed || harmless)
    }
}

/// Says beside a failure whether it is that the peer takes leave of the connection.
async fn over(
    mut lease: Lease,
    target: &Target<'_>,
    outgoing: &mut Outgoing<'_>,
) -> Result<Response<ResponseBody>, (Failed, bool)> {
    if !outgoing.body.is_empty() {
        confirmed(&mut lease, target).await.map_err(|failed| (failed, false))?;
    }
    let gone = || (Failed::reset("the body of the request is gone".to_owned()), false);
    let sent = {
        let mut sending = pin!({
            let body = outgoing.next(target).ok_or_else(gone)?;
            lease.send(outgoing.message(target, body).ok_or_else(gone)?)
        });
        let outgoing = &*outgoing;
        poll_fn(|cx| match outgoing.stands(cx) {
            Ok(()) => sending.as_mut().poll(cx).map(Ok),
            // What is under way ends with `sending`.
            Err(refusal) => Poll::Ready(Err((Failed { refusal, unprocessed: false }, false))),
        })
        .await?
    };
    let answered = sent.map_err(|failure| {
        let took_leave = failure.took_leave;
        (not_answered(failure, outgoing), took_leave)
    })?;
    if answered.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answered);
    }
    if !answered.headers().get(UPGRADE).is_some_and(|chosen| outgoing.normal.asks_for(chosen)) {
        return Err((Failed::reset("the answer changes to a protocol that nobody asked for".to_owned()), false));
    }
    if !answered.body().is_switched() {
        let early = "the answer changes the protocol before all of the request was sent";
        return Err((Failed::reset(early.to_owned()), false));
    }
    Ok(answered)
}

/// A request with a body waits until the peer has accepted our certificate: it must not be lost in a refused connection.
async fn confirmed(lease: &mut Lease, target: &Target<'_>) -> Result<(), Failed> {
    let waited = tokio::time::timeout(target.connect_timeout, lease.confirmed()).await;
    let failure = match waited {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(failure)) => failure,
        Err(_) => ConnectFailure::TooSlow(target.connect_timeout),
    };
    Err(no_connection(failure, target))
}

fn not_answered(failure: SendFailure, outgoing: &mut Outgoing<'_>) -> Failed {
    let SendFailure { refused, body, not_connected, distrusted, detail, .. } = failure;
    if let Some(body) = body {
        outgoing.body.unsent(body);
    }
    if let Some(refusal) = outgoing.body.broke_off() {
        return Failed { refusal, unprocessed: false };
    }
    // What was refused was not begun. A sidecar before us could not know that of a reset.
    if not_connected || refused {
        return Failed::unprocessed(Refusal::ConnectFailed { detail });
    }
    if distrusted {
        return Failed { refusal: Refusal::Distrusted { why: detail }, unprocessed: false };
    }
    Failed::reset(detail)
}

/// Why there is no connection, as callers are told.
pub(crate) fn no_connection(failure: ConnectFailure, target: &Target<'_>) -> Failed {
    match failure {
        ConnectFailure::Failed(detail) => Failed::unprocessed(Refusal::ConnectFailed { detail }),
        // How long the application beside us may take, no policy says.
        ConnectFailure::TooSlow(after) if target.places.is_none() => {
            Failed::unprocessed(Refusal::ConnectFailed { detail: format!("no connection within {after:?}") })
        }
        ConnectFailure::TooSlow(after) => Failed::unprocessed(deadline::no_connection(after)),
        ConnectFailure::IdentityMismatch { found } => Failed::unprocessed(Refusal::IdentityMismatch {
            expected: target.whom.map(|whom| whom.accounts.to_vec()).unwrap_or_default(),
            found: found.map(Box::new),
        }),
        ConnectFailure::NoPlace(over) => Failed { refusal: Refusal::Limit(over), unprocessed: false },
    }
}
