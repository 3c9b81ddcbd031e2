//! Bodies on their way: what of a request is held for a retry, and a response with everything that must last as long.
//!
//! When the last byte of a response has passed, its record is closed; when the body is dropped before, its connection is
//! closed, which also ends the work upstream.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use equerry_policies::policy::TrafficPolicy;
use equerry_traffic::balance::Verdict;
use equerry_traffic::deadline::{self, Kind};
use equerry_traffic::retry::Stop;
use equerry_traffic::{Reason, Refusal};
use http::Response;
use http::header::HeaderName;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::attempt::patience;
use super::cut_code;
use super::facts::Record;
use super::now;
use super::reply;
use super::watch::Watch;
use crate::codec::{BodyError, Incoming, Outgoing, Pipe};
use crate::live::trust::Distrusted;
use crate::upstream::{BrokeOff, RequestBody, ResponseBody, Switched, Told};

/// The body of a request, and whether it can be sent more than once.
#[derive(Debug)]
pub(crate) enum ToSend {
    /// As often as needed.
    Held(Bytes),
    /// Once; `None` when it is gone.
    Once {
        /// The body.
        body: Option<RequestBody>,
        /// How it ended.
        told: Rc<Told>,
        /// How large it may be.
        most: Option<Most>,
    },
}

/// How large a body may be, and which policy says so.
#[derive(Debug)]
pub(crate) struct Most {
    bytes: u64,
    policy: Box<str>,
}

impl Most {
    /// What a policy says about requests.
    pub(crate) fn of(traffic: &TrafficPolicy) -> Option<Self> {
        let bytes = traffic.limits.request_bytes?;
        let policy = traffic.name.as_ref().map(ToString::to_string).unwrap_or_default();
        Some(Self { bytes, policy: policy.into() })
    }

    fn exceeded(&self) -> Refusal {
        Refusal::BodyTooLarge { limit: self.bytes, policy: self.policy.clone() }
    }
}

impl ToSend {
    /// Takes the caller's body to be sent as it comes; trailers that are `withheld` stay here.
    pub(crate) fn streaming(from: Incoming, withheld: Box<[HeaderName]>, record: &Record) -> Self {
        Self::at_most(from, withheld, None, record)
    }

    fn at_most(from: Incoming, withheld: Box<[HeaderName]>, most: Option<Most>, record: &Record) -> Self {
        if from.is_end_stream() {
            return Self::Held(Bytes::new());
        }
        let told: Rc<Told> = Rc::default();
        let (passed, ours) = (record.received(), Rc::clone(&told));
        let bytes = most.as_ref().map_or(u64::MAX, |most| most.bytes);
        let body = RequestBody::Streaming { from, passed, most: bytes, told: ours, withheld };
        Self::Once { body: Some(body), told, most }
    }

    /// Takes the caller's body: held in memory when it may be needed again and is known to be small enough for `traffic`.
    ///
    /// # Errors
    /// When it says that it is larger than it may be, or the caller breaks off or falls silent while it is being read.
    pub(crate) async fn take(
        from: Incoming,
        may_repeat: bool,
        traffic: &TrafficPolicy,
        kind: Kind,
        record: &Record,
    ) -> Result<Self, Refusal> {
        let (length, most) = (from.size_hint().exact(), Most::of(traffic));
        if let (Some(length), Some(most)) = (length, &most)
            && length > most.bytes
        {
            return Err(most.exceeded());
        }
        let small = length.is_some_and(|length| length <= traffic.retry_buffer);
        if !(may_repeat && small) || from.is_end_stream() {
            return Ok(Self::at_most(from, Box::default(), most, record));
        }
        let held = Box::pin(collected(from, deadline::idle(kind, traffic))).await?;
        record.received().set(held.len() as u64);
        Ok(Self::Held(held))
    }

    /// How the caller's stream ends, where there is one.
    pub(crate) fn told(&self) -> Option<Rc<Told>> {
        match self {
            Self::Once { told, .. } => Some(Rc::clone(told)),
            Self::Held(_) => None,
        }
    }

    /// Whether all of it has come from the caller.
    pub(crate) fn has_come(&self) -> bool {
        match self {
            Self::Once { told, .. } => told.ended.get().is_some(),
            Self::Held(_) => true,
        }
    }

    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Held(bytes) if bytes.is_empty())
    }

    /// Whether it can be sent now, or again.
    pub(crate) fn is_left(&self) -> bool {
        match self {
            Self::Once { body: None, told, .. } => told.whole.borrow().is_some(),
            _ => true,
        }
    }

    /// The body for the next try; `None` when it is gone.
    pub(crate) fn next(&mut self) -> Option<RequestBody> {
        match self {
            Self::Held(bytes) if bytes.is_empty() => Some(RequestBody::Empty),
            Self::Held(bytes) => Some(RequestBody::Whole(Some(bytes.clone()))),
            Self::Once { body, told, .. } => {
                body.take().or_else(|| told.whole.borrow().clone().map(|whole| RequestBody::Whole(Some(whole))))
            }
        }
    }

    /// Takes back a body of which nothing was sent.
    pub(crate) fn unsent(&mut self, body: RequestBody) {
        if let Self::Once { body: gone, .. } = self {
            *gone = Some(body);
        }
    }

    /// Why the caller did not send all of it, if so: then it is not the upstream that failed.
    pub(crate) fn broke_off(&self) -> Option<Refusal> {
        match self {
            Self::Once { told, most, .. } => told.broke_off.get().map(|how| broken_off(how, most.as_ref())),
            Self::Held(_) => None,
        }
    }
}

/// A body that is read to its end, nothing of which may take longer than `idle` to come.
async fn collected(mut from: Incoming, idle: Option<Duration>) -> Result<Bytes, Refusal> {
    let mut held = BytesMut::new();
    let began = now();
    loop {
        let frame = match idle {
            Some(idle) => timeout(idle, from.frame()).await.map_err(|_| deadline::nothing_came(idle))?,
            None => from.frame().await,
        };
        let frame = frame.transpose().map_err(|error| broken_off(BrokeOff::of(&error), None))?;
        let Some(data) = frame.map(Frame::into_data) else { return Ok(held.freeze()) };
        if !held.is_empty() && idle.is_some() {
            let after = now().saturating_duration_since(began);
            if after >= patience() {
                deadline::not_crawling(held.len() as u64, after)?;
            }
        }
        match data {
            Ok(data) if held.is_empty() && from.is_end_stream() => return Ok(data),
            Ok(data) => held.extend_from_slice(&data),
            // Trailers of a request that may be repeated are not kept.
            Err(_) => {}
        }
    }
}

fn broken_off(how: BrokeOff, most: Option<&Most>) -> Refusal {
    match (how, most) {
        (BrokeOff::TooLarge, Some(most)) => most.exceeded(),
        (BrokeOff::Gone | BrokeOff::TooLarge, _) => Refusal::ClientGone,
        (BrokeOff::Unreadable, _) => {
            Refusal::bad_request("the body of the request cannot be read: its framing is broken")
        }
    }
}

/// The body of a response to the caller.
pub(crate) struct Answer {
    content: Content,
    /// Data bytes still to come, when that is known.
    left: Option<u64>,
    /// Places in flight, given back when the exchange ends.
    held: Held,
    /// What may still happen; `None`: anything.
    watch: Option<Watch>,
    /// Why it was cut, where the sidecar that asked is told.
    cut_for: Option<Reason>,
    record: Record,
}

/// A connection to the other side that goes on without HTTP.
pub(crate) struct Opened {
    /// It.
    pub(crate) far: Switched,
    /// Given back at its end.
    pub(crate) held: Held,
    /// The limits on it.
    pub(crate) watch: Option<Watch>,
    /// Told at its end.
    pub(crate) record: Record,
}

/// What must last as long as an exchange: its place among the requests in flight.
pub(crate) type Held = Option<crate::live::Held>;

enum Content {
    Ours(Option<Bytes>),
    Theirs(ResponseBody),
    /// All of it has passed but the status of a gRPC call, which its application owes.
    Unended,
    /// There is none: a connection stands.
    Connected(Box<Switched>),
    /// All of it has passed.
    Passed,
}

impl Answer {
    /// A body that the mesh made.
    pub(crate) fn ours(content: Bytes, record: Record) -> Self {
        let content = if content.is_empty() { Content::Passed } else { Content::Ours(Some(content)) };
        Self { content, left: None, held: None, watch: None, cut_for: None, record }
    }

    /// The upstream's body.
    pub(crate) fn theirs(from: ResponseBody, held: Held, watch: Option<Watch>, record: Record) -> Self {
        let left = from.size_hint().exact();
        let content = if from.is_end_stream() { end(watch.as_ref()) } else { Content::Theirs(from) };
        Self { content, left, held, watch, cut_for: None, record }
    }

    /// A connection that stands, in the place of a body.
    pub(crate) fn connected(far: Switched, held: Held, watch: Watch, record: Record) -> Self {
        let content = Content::Connected(Box::new(far));
        Self { content, left: Some(0), held, watch: Some(watch), cut_for: None, record }
    }

    /// Holds on to what the access log is to say of the response that this is the body of.
    pub(crate) fn log_answer(response: &mut Response<Self>) {
        if response.body_mut().record.logged().is_none() {
            return;
        }
        let headers = std::mem::take(response.headers_mut());
        if let Some(logged) = response.body_mut().record.logged() {
            logged.answered(&headers);
        }
        *response.headers_mut() = headers;
    }

    /// The connection to the other side, where it goes on without HTTP, and all that must last as long.
    pub(crate) fn into_opened(mut self) -> Option<Opened> {
        let far = match std::mem::replace(&mut self.content, Content::Passed) {
            Content::Theirs(from) => from.switch(),
            Content::Connected(far) => Some(*far),
            Content::Ours(_) | Content::Passed | Content::Unended => None,
        };
        let Some(far) = far else {
            self.record.broke(Reason::UpstreamReset);
            return None;
        };
        let untold = Record::untold(self.record.observe());
        let record = std::mem::replace(&mut self.record, untold);
        let held = std::mem::take(&mut self.held);
        Some(Opened { far, held, watch: self.watch.take(), record })
    }

    /// The rest of it will not come.
    fn upstream_broke(&mut self) {
        self.record.broke(Reason::UpstreamReset);
        if let Some(watch) = &mut self.watch {
            watch.ended(Verdict::Failure, &self.record);
        }
        self.content = Content::Passed;
    }

    /// The callee's sidecar has cut it, and says why: its endpoint may be well.
    fn callee_cut(&mut self, reason: Reason) {
        self.record.note(|exchange| exchange.detail = Some("cut by the sidecar of whoever answered".to_owned()));
        self.record.broke(reason);
        if let Some(mut watch) = self.watch.take().filter(|_| reason.counts_against_endpoint()) {
            watch.ended(Verdict::Failure, &self.record);
        }
        self.content = Content::Passed;
    }

    /// So many bytes go to the caller.
    fn count(&mut self, bytes: u64) {
        self.record.sent(usize::try_from(bytes).unwrap_or(usize::MAX));
        self.left = self.left.map(|left| left.saturating_sub(bytes));
    }

    /// It ends, well or without what must end it.
    fn end(&mut self) -> Option<Result<Frame<Bytes>, BodyError>> {
        self.content = Content::Passed;
        let ends = self.watch.as_mut().map_or(Ok(()), |watch| watch.ends(&self.record));
        ends.err().and_then(|refusal| self.cut(&refusal))
    }

    /// Ends it here: the caller sees that it is not whole, or, in a gRPC call, why.
    fn cut(&mut self, refusal: &Refusal) -> Option<Result<Frame<Bytes>, BodyError>> {
        let told = self.watch.take().filter(Watch::is_grpc).map(|_| Frame::trailers(reply::trailers(refusal)));
        self.content = Content::Passed;
        self.record.note(|exchange| {
            exchange.policy_rule = refusal.cause().map(str::to_owned);
            exchange.detail = Some(refusal.to_string());
        });
        self.record.broke(refusal.reason());
        self.cut_for = Some(refusal.reason()).filter(|_| self.record.is_between_sidecars());
        Some(told.ok_or(BodyError::Cut))
    }
}

/// What is told of a response whose sender is believed no more.
fn refused(why: &Distrusted) -> Refusal {
    Refusal::Distrusted { why: why.to_string() }
}

/// What is left when all of a response has come.
fn end(watch: Option<&Watch>) -> Content {
    if watch.is_some_and(Watch::owes_status) { Content::Unended } else { Content::Passed }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match &mut this.content {
            Content::Passed | Content::Connected(_) => Poll::Ready(None),
            Content::Ours(content) => {
                let all = content.take().unwrap_or_default();
                this.record.sent(all.len());
                this.content = Content::Passed;
                Poll::Ready(Some(Ok(Frame::data(all))))
            }
            Content::Unended => Poll::Ready(this.end()),
            Content::Theirs(from) => {
                if let Some(watch) = &mut this.watch {
                    watch.asks();
                }
                if let Some(Err(refusal)) = this.watch.as_mut().map(|watch| watch.stands(cx)) {
                    return Poll::Ready(this.cut(&refusal));
                }
                let polled = Pin::new(&mut *from).poll_frame(cx);
                match &polled {
                    Poll::Pending => {
                        if let Some(Err(refusal)) = this.watch.as_mut().map(|watch| watch.waits(cx)) {
                            return Poll::Ready(this.cut(&refusal));
                        }
                    }
                    Poll::Ready(None) => return Poll::Ready(this.end()),
                    Poll::Ready(Some(Err(error))) => {
                        if let Some(refusal) = from.distrusted().map(refused) {
                            return Poll::Ready(this.cut(&refusal));
                        }
                        match from.reset_code(error).and_then(cut_code::reason) {
                            Some(reason) => this.callee_cut(reason),
                            None => this.upstream_broke(),
                        }
                    }
                    Poll::Ready(Some(Ok(frame))) => {
                        let ended = from.is_end_stream();
                        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                        if let Some(Err(refusal)) = this.watch.as_mut().map(|watch| watch.passed(bytes)) {
                            return Poll::Ready(this.cut(&refusal));
                        }
                        if let (Some(trailers), Some(watch)) = (frame.trailers_ref(), &mut this.watch) {
                            watch.trailers(trailers, &this.record);
                            if let Some(word) = Stop::Trailers.outcome().filter(|_| watch.comes_too_late(trailers)) {
                                this.record.observe().retry(word);
                            }
                            if watch.owes_status() {
                                return Poll::Ready(this.end());
                            }
                        }
                        if frame.data_ref().is_some() {
                            this.count(bytes);
                        }
                        if ended {
                            this.content = end(this.watch.as_ref());
                        }
                    }
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Passed)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Passed | Content::Connected(_) => SizeHint::with_exact(0),
            Content::Ours(content) => SizeHint::with_exact(content.as_ref().map_or(0, |content| content.len() as u64)),
            Content::Theirs(from) => from.size_hint(),
            Content::Unended => SizeHint::default(),
        }
    }
}

impl Outgoing for Answer {
    fn blocked(&mut self, moved: u64, cx: &mut Context<'_>) -> Result<(), BodyError> {
        let distrusted = if let Content::Theirs(from) = &self.content { from.is_distrusted(cx) } else { None };
        let watch = self.watch.get_or_insert_with(Watch::over_sending);
        let stands = distrusted.map(refused).map_or(Ok(()), Err);
        let Err(refusal) = stands.and_then(|()| watch.blocked(moved, cx)) else { return Ok(()) };
        // Whoever takes nothing is told nothing either.
        let _ = self.cut(&refusal);
        Err(BodyError::Cut)
    }

    fn cut_code(&self) -> Option<u32> {
        self.cut_for.map(cut_code::of)
    }

    fn poll_fill(&mut self, pipe: &mut Pipe, cx: &mut Context<'_>) -> Option<Poll<Result<u64, BodyError>>> {
        // What a gRPC call owes is seen in frames alone.
        if self.watch.as_ref().is_some_and(Watch::owes_status) {
            return None;
        }
        let Content::Theirs(from) = &mut self.content else { return None };
        if let Some(watch) = &mut self.watch {
            watch.asks();
        }
        if let Some(Err(refusal)) = self.watch.as_mut().map(|watch| watch.stands(cx)) {
            let _ = self.cut(&refusal);
            return Some(Poll::Ready(Err(BodyError::Cut)));
        }
        let polled = from.poll_fill(pipe, cx)?;
        let ended = from.is_end_stream();
        let refused = match &polled {
            Poll::Pending => self.watch.as_mut().map(|watch| watch.waits(cx)),
            Poll::Ready(Ok(bytes)) => self.watch.as_mut().map(|watch| watch.passed(*bytes)),
            Poll::Ready(Err(_)) => {
                self.upstream_broke();
                return Some(polled);
            }
        };
        if let Some(Err(refusal)) = refused {
            let _ = self.cut(&refusal);
            return Some(Poll::Ready(Err(BodyError::Cut)));
        }
        if let Poll::Ready(Ok(bytes)) = &polled {
            self.count(*bytes);
            if ended {
                self.content = Content::Passed;
            }
        }
        Some(polled)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // hyper lets go of a body as soon as the length that the head promised has passed, without asking for its end.
        let whole = matches!(self.content, Content::Passed) || self.left == Some(0);
        if !whole {
            self.record.broke(Reason::ClientGone);
        } else if let Some(watch) = &mut self.watch {
            watch.ended(Verdict::Success, &self.record);
        }
    }
}
