//! Whether what is under way may go on. What was let in is judged again, by what it was judged by when it came, whenever what
//! this workload enforces has changed (`rounds`), and when its token ends where its rule says that it must not outlast it
//! (`endStreamsWithToken`).
//!
//! Until there is an answer the request itself is at hand. Of an answer that may take a while, and of a connection that changed its
//! protocol, it is kept in little room; a short answer ends by itself.

use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use equerry_policies::compile::CompiledWorkload;
use equerry_traffic::normalize::Normal;
use equerry_traffic::token::Caller;
use equerry_traffic::{Reason, Refusal, authorize};
use http::header::{COOKIE, EXPECT, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use http_body::Body;
use tokio::time::Sleep;

use super::door;
use super::serve::CLIENT_CERT;
use super::tries::Answered;
use crate::inbound::{Inbound, Via};

/// An hour at most until the clock is looked at again: it may be set, and timers have an end.
const LONGEST: Duration = Duration::from_secs(3600);
/// Clocks that differ by a rounding do not make it spin.
const SHORTEST: Duration = Duration::from_millis(10);
/// An answer of this known length, or less, is over soon, or cut by its caller's limits.
const SHORT: u64 = 64 * 1024;

/// Whether an answer, or what comes after it, may outlast a change of policy.
pub(super) fn may_last(answered: &Answered) -> bool {
    let body = answered.body();
    let long = !body.is_end_stream() && body.size_hint().exact().is_none_or(|length| length > SHORT);
    long || answered.status() == StatusCode::SWITCHING_PROTOCOLS
}

/// When something is judged again: in a round that it was not judged in, and when its token ends.
#[derive(Debug)]
pub(super) struct Again {
    round: u64,
    ends: Option<Pin<Box<Sleep>>>,
}

impl Again {
    /// Of a request that was let in by what held in `round`, or later.
    pub(super) fn after(round: u64, ends: Option<SystemTime>) -> Self {
        Self { round, ends: ends.map(alarm) }
    }

    /// Whether it is time now; whoever asks is woken when its token ends, and by its connection with the next round.
    fn is_due(&mut self, now: u64, cx: &mut Context<'_>) -> bool {
        let ended = self.ends.as_mut().is_some_and(|ends| ends.as_mut().poll(cx).is_ready());
        let due = ended || self.round != now;
        self.round = now;
        due
    }

    /// At the latest when its token `ends`.
    fn by(&mut self, ends: Option<SystemTime>, cx: &mut Context<'_>) {
        self.ends = ends.map(alarm);
        if let Some(ends) = &mut self.ends {
            // It rings for who has asked it, and never at once.
            let _ = ends.as_mut().poll(cx);
        }
    }
}

fn alarm(at: SystemTime) -> Pin<Box<Sleep>> {
    let left = at.duration_since(SystemTime::now()).unwrap_or_default().clamp(SHORTEST, LONGEST);
    Box::pin(tokio::time::sleep(left))
}

/// A request that was let in, for as long as there is no answer.
pub(super) struct UnderWay<'a> {
    at: &'a Inbound,
    via: &'a Via,
    caller: &'a Caller,
    /// The port that it named beside its normal form.
    named: Option<u16>,
    /// Its cookies as they came, where they were put together.
    cookies: RefCell<Vec<HeaderValue>>,
    again: RefCell<Again>,
}

impl fmt::Debug for UnderWay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnderWay").field("again", &self.again).finish_non_exhaustive()
    }
}

impl<'a> UnderWay<'a> {
    pub(super) fn new((at, via): (&'a Inbound, &'a Via), caller: &'a Caller, named: Option<u16>, again: Again) -> Self {
        Self { at, via, caller, named, cookies: RefCell::default(), again: RefCell::new(again) }
    }

    /// It came with these cookies, of which one was made.
    pub(super) fn came_with(&self, cookies: Vec<HeaderValue>) {
        self.cookies.replace(cookies);
    }

    /// When it is judged again, and its cookies as they came, where they were put together.
    pub(super) fn into_judged(self) -> (Again, Vec<HeaderValue>) {
        (self.again.into_inner(), self.cookies.into_inner())
    }

    /// Why it may not go on, if so. `forwarded`: its headers as they are sent.
    pub(super) fn poll(
        &self,
        method: &Method,
        normal: &Normal,
        forwarded: &HeaderMap,
        cx: &mut Context<'_>,
    ) -> Result<(), Refusal> {
        let mut again = self.again.borrow_mut();
        if !again.is_due(self.at.rounds.now(), cx) {
            return Ok(());
        }
        let headers = as_judged(forwarded.clone(), normal, &self.cookies.borrow(), self.via);
        let asked = Asked { method, normal, named: self.named, headers, caller: self.caller };
        again.by(asked.judged_again(self.at, self.via)?, cx);
        Ok(())
    }
}

/// An answer that may take a while, or a connection that changed its protocol, and what let it in.
pub(crate) struct Standing {
    at: Rc<Inbound>,
    via: Rc<Via>,
    method: Method,
    normal: Normal,
    named: Option<u16>,
    /// As they were forwarded. A map would take several times the room.
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Of which one was made.
    cookies: Vec<HeaderValue>,
    caller: Caller,
    again: Again,
}

impl Standing {
    /// Of what was judged before; its headers are given later ([`Self::keep`]).
    pub(super) fn new(
        (at, via): (&Rc<Inbound>, &Rc<Via>),
        (method, normal, named): (Method, Normal, Option<u16>),
        caller: Caller,
        (again, cookies): (Again, Vec<HeaderValue>),
    ) -> Box<Self> {
        let (at, via, headers) = (Rc::clone(at), Rc::clone(via), Vec::new());
        Box::new(Self { at, via, method, normal, named, headers, cookies, caller, again })
    }

    /// Keeps what was forwarded, out of a map that can be used again.
    pub(super) fn keep(&mut self, headers: &mut HeaderMap) {
        self.headers.reserve_exact(headers.len());
        for (name, value) in headers.drain() {
            // One that is there again is named once.
            let name = name.or_else(|| self.headers.last().map(|(name, _)| name.clone()));
            self.headers.extend(name.map(|name| (name, value)));
        }
    }

    /// Whether it may go on.
    ///
    /// # Errors
    /// Why not. It is over then, and is not asked again.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Result<(), Refusal> {
        if !self.again.is_due(self.at.rounds.now(), cx) {
            return Ok(());
        }
        let mut forwarded = HeaderMap::with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            forwarded.append(name, value.clone());
        }
        let headers = as_judged(forwarded, &self.normal, &self.cookies, &self.via);
        let Self { method, normal, named, caller, .. } = &*self;
        let asked = Asked { method, normal, named: *named, headers, caller };
        let ends = asked.judged_again(&self.at, &self.via)?;
        self.again.by(ends, cx);
        Ok(())
    }

    /// Waits until it may not go on.
    pub(crate) async fn refused(&mut self) -> Refusal {
        std::future::poll_fn(|cx| match self.poll(cx) {
            Ok(()) => Poll::Pending,
            Err(refusal) => Poll::Ready(refusal),
        })
        .await
    }
}

/// The headers that a request was judged by: without what this proxy wrote since, but for our own member of `tracestate`, which is
/// said anew at each hop.
fn as_judged(mut headers: HeaderMap, normal: &Normal, cookies: &[HeaderValue], via: &Via) -> HeaderMap {
    if via.peer.is_some() {
        headers.remove(CLIENT_CERT);
    }
    if normal.expects_continue() {
        headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
    }
    if !cookies.is_empty() {
        headers.remove(COOKIE);
        for cookie in cookies {
            headers.append(COOKIE, cookie.clone());
        }
    }
    headers
}

/// What a request was judged by.
struct Asked<'a> {
    method: &'a Method,
    normal: &'a Normal,
    named: Option<u16>,
    headers: HeaderMap,
    caller: &'a Caller,
}

impl Asked<'_> {
    /// Judges it as if it had come under the policy of now; when the token ends that let it in, where that counts. A token that has
    /// ended since, or whose key was withdrawn, is a reason to refuse only where its rule says so: it was good when it was shown.
    ///
    /// # Errors
    /// When it would not be let in.
    fn judged_again(&self, at: &Inbound, via: &Via) -> Result<Option<SystemTime>, Refusal> {
        if let Some(why) = via.distrusted.get() {
            return Err(Refusal::Distrusted { why: why.clone() });
        }
        let live = at.shared.live.load();
        let workload = live.workload.as_ref().ok_or(Refusal::PolicyUnavailable)?;
        let door = door::door(&at.shared, workload, via, self.normal, self.named)?;
        self.believed(at, workload, door.port)?;
        let facts = authorize::Facts {
            method: self.method,
            authority: self.normal.authority(),
            path: self.normal.path(),
            headers: &self.headers,
            connection: via.connection(door.port),
        };
        authorize::authorize(self.caller, &facts, workload)?;
        Ok(self.caller.ends_at(workload, door.port))
    }

    /// Whether its token is still believed. A key that its issuer has just published may not be in force yet, and is not withdrawn.
    fn believed(&self, at: &Inbound, workload: &CompiledWorkload, port: u16) -> Result<(), Refusal> {
        let now = SystemTime::now();
        let Err(refusal) = self.caller.still_believed(workload, port, now) else { return Ok(()) };
        if refusal.reason() != Reason::TokenUnknownKey {
            return Err(refusal);
        }
        let mut newest: Option<CompiledWorkload> = None;
        for from in workload.tokens.sources() {
            if let Some(keys) = at.shared.keys.newest(from) {
                newest = Some(newest.as_ref().unwrap_or(workload).with_keys_of(from, &keys));
            }
        }
        newest.map_or(Err(refusal), |newest| self.caller.still_believed(&newest, port, now))
    }
}
