//! The serving end of an HTTP/1.1 connection: one exchange after the other, each answered before the next is read.
//!
//! Everything happens in the task of the connection. The body of a request is read when somebody asks for it, and answers
//! are sent as they come; meanwhile a caller that leaves is noticed, because nobody will want what is being made for it.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderMap;
use http::request::Parts;
use http::{Method, Response, StatusCode, Version};
use http_body::{Body as HttpBody, Frame};
use tokio::time::{Instant, Sleep};

use super::framing::{Decoded, Decoder};
use super::head::{self, RequestHead};
use super::send::{Progress, Sending, Unsent};
use super::{Bad, Framing, write};
use crate::codec::link::LinkCell;
use crate::codec::{BodyError, Early, Incoming, Link, Outgoing, Pipe, Seldom, spare};

/// Whoever was answered before they had sent everything is listened to until they say nothing for so long, so that they read the
/// answer first.
const LINGER: Duration = Duration::from_millis(500);
/// And no longer than this, however much they say (nginx allows 30 s).
const LONGEST_LINGER: Duration = Duration::from_secs(5);
/// What is read past of a body that nobody wanted, to keep the connection.
const WORTH_SKIPPING: usize = 64 * 1024;

/// How long callers may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For the first head of a connection, and for any head once it has begun.
    pub(crate) head: Duration,
    /// For the next request.
    pub(crate) idle: Duration,
}

/// Who answers requests.
pub(crate) trait Respond {
    /// The body of an answer.
    type Answer: Outgoing;

    /// Answers a request, whose head is lent: it is large, and would be moved from hand to hand. What its caller is told before
    /// the answer goes through `early`.
    fn respond(&self, head: &mut Parts, body: Incoming, early: &Early) -> impl Future<Output = Response<Self::Answer>>;

    /// Answers what could not be read.
    fn refuse(&self, bad: Bad) -> Response<Self::Answer>;

    /// When this has grown, and the connection is polled, so is every exchange on it.
    fn round(&self) -> u64 {
        0
    }

    /// Goes on with a connection after an `answer` (101, or 2xx to CONNECT) whose head was written and after which it speaks
    /// something else than HTTP.
    fn switch(&self, near: Link, answer: Self::Answer) -> impl Future<Output = ()> {
        async move { drop((near, answer)) }
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Between two exchanges.
    Well,
    /// Nobody asked anything in time.
    Silent,
    /// In the middle of an exchange.
    Broken(&'static str),
}

/// What the loop and the body in its hands share.
#[derive(Debug)]
struct Shared {
    link: Link,
    decoder: Decoder,
    /// Whether the caller waits for a word before it sends its body, and whose.
    waits: Waits,
}

/// Whose `100 Continue` a caller waits for before it sends its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// Nobody's, or it has come.
    No,
    /// Ours: given when the body is first asked for.
    ForUs,
    /// That of whoever the request is passed on to.
    ForThem,
}

impl LinkCell for RefCell<Shared> {
    fn link<T>(&self, work: impl FnOnce(&mut Link) -> T) -> T {
        work(&mut self.borrow_mut().link)
    }
}

/// The body of the request being served.
#[derive(Debug)]
pub(crate) struct Body(Rc<RefCell<Shared>>);

impl Body {
    pub(crate) fn is_end(&self) -> bool {
        self.0.borrow().decoder.is_end()
    }

    /// Data bytes still to come, when that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        self.0.borrow().decoder.left()
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.borrow_mut().poll_frame(cx)
    }

    /// As [`Outgoing::poll_fill`].
    pub(crate) fn poll_fill(&mut self, pipe: &mut Pipe, cx: &mut Context<'_>) -> Option<Poll<Result<u64, BodyError>>> {
        let Shared { link, decoder, waits } = &mut *self.0.borrow_mut();
        if *waits != Waits::No || !link.is_flushed() {
            return None;
        }
        poll_fill(link, decoder, pipe, cx)
    }

    /// Leaves it to whoever the request is passed on to to say that the body should come.
    pub(crate) fn leave_the_word(&self) {
        let waits = &mut self.0.borrow_mut().waits;
        if *waits == Waits::ForUs {
            *waits = Waits::ForThem;
        }
    }
}

impl Shared {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.waits == Waits::ForUs {
            if self.link.inbox.is_empty() && !self.decoder.is_end() {
                write::interim_head(self.link.outbox(), StatusCode::CONTINUE, &HeaderMap::new());
            }
            self.waits = Waits::No;
        }
        if !self.link.is_flushed() {
            // Only the word above can wait here: an answer is not begun while its maker reads the request.
            let _ = self.link.poll_send(cx);
        }
        let polled = poll_body(&mut self.link, &mut self.decoder, cx);
        if polled.is_ready() {
            self.waits = Waits::No;
        }
        polled
    }

    /// Writes what the caller is told before its answer. Hints that find no room are dropped: they only spare time.
    fn pass_on(&mut self, early: &Early) {
        while let Some((status, headers)) = early.take() {
            let awaited = status == StatusCode::CONTINUE;
            if awaited {
                self.waits = Waits::No;
            }
            if awaited || !self.link.is_full() {
                write::interim_head(self.link.outbox(), status, &headers);
            }
            spare::keep(headers);
        }
    }

    /// Reads past what is left of a body, as far as it is here.
    fn skip(&mut self, cx: &mut Context<'_>) {
        let mut skipped = 0;
        while skipped < WORTH_SKIPPING && self.waits == Waits::No {
            match poll_body(&mut self.link, &mut self.decoder, cx) {
                Poll::Ready(Some(Ok(frame))) => skipped += frame.data_ref().map_or(1, |data| data.len().max(1)),
                Poll::Ready(_) | Poll::Pending => return,
            }
        }
    }
}

/// Reads the next piece of a body.
pub(super) fn poll_body(
    link: &mut Link,
    decoder: &mut Decoder,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    loop {
        match decoder.decode(&mut link.inbox) {
            Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
            Ok(Decoded::Trailers(trailers)) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Ok(Decoded::End) => {
                link.rest();
                return Poll::Ready(None);
            }
            Ok(Decoded::More) => {}
            Err(bad) => return Poll::Ready(Some(Err(BodyError::Malformed(bad)))),
        }
        match ready!(link.poll_flow(decoder.left(), cx)) {
            Ok(0) if decoder.eof().is_ok() => return Poll::Ready(None),
            Ok(0) => return Poll::Ready(Some(Err(BodyError::Gone(None)))),
            Ok(_) => {}
            Err(error) => return Poll::Ready(Some(Err(BodyError::Gone(Some(error))))),
        }
    }
}

/// Moves the next piece of a body whose length is known into a pipe, where nobody need look at it.
pub(super) fn poll_fill(
    link: &mut Link,
    decoder: &mut Decoder,
    pipe: &mut Pipe,
    cx: &mut Context<'_>,
) -> Option<Poll<Result<u64, BodyError>>> {
    let left = decoder.left().filter(|left| *left > 0)?;
    let Poll::Ready(moved) = link.poll_fill(pipe, left, cx)? else { return Some(Poll::Pending) };
    let moved = match moved {
        Ok(0) => Err(BodyError::Gone(None)),
        Ok(moved) => Ok(moved as u64),
        Err(error) => Err(BodyError::Gone(Some(error))),
    };
    if let Ok(moved) = moved {
        decoder.passed(moved);
        if decoder.is_end() {
            link.rest();
        }
    }
    Some(Poll::Ready(moved))
}

/// What of a request its answer depends on.
struct Asked {
    method: Method,
    version: Version,
    /// More requests may follow; otherwise a caller that sends no more may still wait for its answer.
    keep_alive: bool,
    /// It asked for another protocol, in which it may have begun to speak.
    upgrades: bool,
}

/// What comes instead of a next request, or it.
#[allow(
    clippy::large_enum_variant,
    reason = "the large one is what comes nearly always, and a box costs an allocation"
)]
enum Next {
    Head(RequestHead),
    Gone,
    TimedOut { begun: bool },
    Bad(Bad),
}

/// Serves the exchanges of one connection. Once it is `time_to_go`, what is under way is finished and nothing more is
/// taken.
pub(crate) async fn serve<R: Respond>(
    link: Link,
    patience: Patience,
    time_to_go: impl Future<Output = ()>,
    responder: &R,
) -> Ended {
    let time_to_go = pin!(time_to_go);
    let mut time_to_go = Seldom::new(time_to_go);
    let mut clock = Seldom::new(Box::pin(tokio::time::sleep(patience.head)));
    let decoder = Decoder::new(Framing::Empty);
    let shared = Rc::new(RefCell::new(Shared { link, decoder, waits: Waits::No }));
    let mut wait = patience.head;
    loop {
        let next = next_head(&shared, (wait, patience.head), &mut clock, &mut time_to_go).await;
        wait = patience.idle;
        let head = match next {
            Next::Head(head) => head,
            Next::Gone => return Ended::Well,
            Next::TimedOut { begun: false } => return Ended::Silent,
            Next::TimedOut { begun: true } => return refused(&shared, responder, Bad::Slow(patience.head)).await,
            Next::Bad(bad) => return refused(&shared, responder, bad).await,
        };
        let RequestHead { mut parts, framing, keep_alive, expects_continue, upgrades } = head;
        let (method, version) = (parts.method.clone(), parts.version);
        let body = {
            let mut open = shared.borrow_mut();
            open.decoder = Decoder::new(framing);
            open.waits = if expects_continue { Waits::ForUs } else { Waits::No };
            if framing == Framing::Empty { Incoming::Empty } else { Incoming::Http1(Body(Rc::clone(&shared))) }
        };
        let early = if version < Version::HTTP_11 { Early::deaf() } else { Early::new() };
        let answered = {
            let answering = pin!(responder.respond(&mut parts, body, &early));
            unless_left(&shared, answering, &early, keep_alive).await
        };
        let Some(response) = answered else { return Ended::Broken("client_gone") };
        // An answer may last, and of the request's head nothing is needed any more.
        drop(parts);
        if is_switch(&method, response.status()) {
            return switch(shared, responder, response, version).await;
        }
        let about = Asked { method, version, keep_alive, upgrades };
        let keep_alive = keep_alive && poll_fn(|cx| Poll::Ready(!time_to_go.is_over(cx))).await;
        match answer(&shared, response, &about, keep_alive).await {
            Ok(true) => {}
            Ok(false) => return close(&shared).await,
            Err(Lost::Caller) => return Ended::Broken("client_gone"),
            Err(Lost::Rest(framing)) => return break_off(&shared, framing).await,
        }
    }
}

/// Waits for the head of the next request: for so long until it begins, and then until it is whole.
async fn next_head(
    shared: &RefCell<Shared>,
    (wait, once_begun): (Duration, Duration),
    clock: &mut Seldom<Pin<Box<Sleep>>>,
    time_to_go: &mut Seldom<impl Future<Output = ()> + Unpin>,
) -> Next {
    // The clock is read only when there is something to wait for.
    let (mut until, mut begun) = (None, false);
    poll_fn(|cx| {
        let link = &mut shared.borrow_mut().link;
        loop {
            if !link.inbox.is_empty() {
                match head::take_request(&mut link.inbox, spare::headers()) {
                    Ok(Some(head)) => return Poll::Ready(Next::Head(head)),
                    Ok(None) => {}
                    Err(bad) => return Poll::Ready(Next::Bad(bad)),
                }
            }
            match link.poll_glance(cx) {
                Poll::Ready(Ok(0)) if link.inbox.is_empty() => return Poll::Ready(Next::Gone),
                Poll::Ready(Ok(0)) => return Poll::Ready(Next::Bad(Bad::Malformed("it ends in the middle"))),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Next::Gone),
                Poll::Pending => break,
            }
        }
        if link.inbox.is_empty() && time_to_go.is_over(cx) {
            return Poll::Ready(Next::Gone);
        }
        if until.is_none() || begun == link.inbox.is_empty() {
            begun = !link.inbox.is_empty();
            until = Some(Instant::now() + if begun { wait.min(once_begun) } else { wait });
        }
        let until = until.unwrap_or_else(Instant::now);
        // One registration for each connection, not one for each request: it is moved on only when it has passed.
        if clock.future().deadline() > until {
            clock.change().as_mut().reset(until);
        }
        while clock.is_over(cx) {
            if Instant::now() >= until {
                return Poll::Ready(Next::TimedOut { begun });
            }
            clock.change().as_mut().reset(until);
        }
        Poll::Pending
    })
    .await
}

/// Waits for the answer, passing on what comes `early`; `None`: the caller left first.
///
/// A caller that sends no more cannot be told from one that left. Whoever said that this is its last request (`Connection:
/// close`, HTTP/1.0) has no more to send and gets its answer; anybody else is taken to have left, as nginx and Envoy do.
async fn unless_left<T>(
    shared: &RefCell<Shared>,
    mut answer: Pin<&mut impl Future<Output = T>>,
    early: &Early,
    keep_alive: bool,
) -> Option<T> {
    poll_fn(|cx| {
        let answer = answer.as_mut().poll(cx);
        let shared = &mut *shared.borrow_mut();
        shared.pass_on(early);
        if let Poll::Ready(answer) = answer {
            return Poll::Ready(Some(answer));
        }
        let lost = !shared.link.is_flushed() && matches!(shared.link.poll_send(cx), Poll::Ready(Err(_)));
        if lost || keep_alive && has_left(shared, cx) { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

/// After such an answer the connection speaks something else (RFC 9110 sections 7.8 and 9.3.6).
fn is_switch(method: &Method, status: StatusCode) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS || *method == Method::CONNECT && status.is_success()
}

/// Hands the connection over, with everything that came over it after the request.
async fn switch<R: Respond>(
    shared: Rc<RefCell<Shared>>,
    responder: &R,
    response: Response<R::Answer>,
    version: Version,
) -> Ended {
    let (head, body) = response.into_parts();
    // Whoever still held the body of the request would read the other protocol for it.
    let Some(Shared { mut link, decoder, .. }) = Rc::into_inner(shared).map(RefCell::into_inner) else {
        return Ended::Broken("body_unread");
    };
    if !decoder.is_end() {
        return Ended::Broken("body_unread");
    }
    write::response_head(link.outbox(), version, head.status, &head.headers, Framing::UntilClose, true, false);
    Box::pin(responder.switch(link, body)).await;
    Ended::Well
}

/// Whether the caller has gone. What it asks next, before it was answered, is kept.
fn has_left(shared: &mut Shared, cx: &mut Context<'_>) -> bool {
    let listening = shared.decoder.is_end() && shared.link.inbox.is_empty();
    listening && matches!(shared.link.poll_glance(cx), Poll::Ready(Ok(0) | Err(_)))
}

/// Why an answer did not pass whole.
enum Lost {
    /// Nobody takes it.
    Caller,
    /// There is no more of what was to be framed so.
    Rest(Framing),
}

/// Sends an answer; whether the connection can carry another exchange. What is sent is put in its place before there is a future,
/// which would hold room for it in each of its forms.
fn answer<'a, A>(
    shared: &'a Rc<RefCell<Shared>>,
    response: Response<A>,
    asked: &'a Asked,
    keep_alive: bool,
) -> impl Future<Output = Result<bool, Lost>> + use<'a, A>
where
    A: Outgoing,
{
    let (head, body) = response.into_parts();
    let framing = framing_of(&body, head.status, &asked.method, asked.version);
    let mut keep_alive = keep_alive && framing != Framing::UntilClose && !says_close(&head.headers);
    let to_head = asked.method == Method::HEAD;
    let mut sending = Sending::new(body, if to_head { Framing::Empty } else { framing });
    async move {
        poll_fn(|cx| {
            let open = &mut *shared.borrow_mut();
            open.waits = Waits::No;
            // What was said in a protocol that was not agreed on is never taken for a request.
            keep_alive &= !asked.upgrades || open.link.inbox.is_empty();
            // Of a request that is answered before all of it was read, what still comes would be taken for the next one: whether
            // the rest is ever read is not known yet, and the caller must be told now.
            if Rc::strong_count(shared) == 1 {
                open.skip(cx);
            }
            keep_alive &= open.decoder.is_end();
            let out = open.link.outbox();
            write::response_head(out, asked.version, head.status, &head.headers, framing, keep_alive, to_head);
            Poll::Ready(())
        })
        .await;
        spare::keep(head.headers);
        poll_fn(|cx| match sending.poll(&**shared, cx) {
            Poll::Ready(Ok(Progress::Done)) => Poll::Ready(Ok(())),
            Poll::Ready(Ok(Progress::Waiting)) if asked.keep_alive && has_left(&mut shared.borrow_mut(), cx) => {
                Poll::Ready(Err(Lost::Caller))
            }
            Poll::Ready(Ok(Progress::Waiting)) | Poll::Pending => Poll::Pending,
            Poll::Ready(Err(Unsent::Wire)) => Poll::Ready(Err(Lost::Caller)),
            Poll::Ready(Err(Unsent::Body(_) | Unsent::Length)) => Poll::Ready(Err(Lost::Rest(framing))),
        })
        .await?;
        drop(sending);
        let all_read = poll_fn(|cx| {
            let open = &mut *shared.borrow_mut();
            if !open.decoder.is_end() {
                open.skip(cx);
            }
            Poll::Ready(open.decoder.is_end())
        });
        Ok(keep_alive && all_read.await)
    }
}

/// How the end of an answer is told.
fn framing_of(body: &impl HttpBody, status: StatusCode, method: &Method, version: Version) -> Framing {
    let none = status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    match body.size_hint().exact() {
        _ if none => Framing::Empty,
        Some(0) => Framing::Empty,
        Some(length) => Framing::Length(length),
        None if *method == Method::HEAD => Framing::Empty,
        None if version < Version::HTTP_11 => Framing::UntilClose,
        None => Framing::Chunked,
    }
}

fn says_close(headers: &HeaderMap) -> bool {
    headers.get(http::header::CONNECTION).is_some_and(|value| value == "close")
}

/// Answers a head that cannot be read, and ends the connection: where the next one would begin is not known.
async fn refused<R: Respond>(shared: &Rc<RefCell<Shared>>, responder: &R, bad: Bad) -> Ended {
    shared.borrow_mut().link.inbox.clear();
    let word = bad.word();
    let response = responder.refuse(bad);
    let about = Asked { method: Method::GET, version: Version::HTTP_11, keep_alive: false, upgrades: false };
    let _ = answer(shared, response, &about, false).await;
    let _ = close(shared).await;
    Ended::Broken(word)
}

/// Ends the connection in the middle of an answer: its caller reads what there is, and sees that it is not whole.
async fn break_off(shared: &RefCell<Shared>, framing: Framing) -> Ended {
    if framing == Framing::UntilClose {
        // An orderly end would be taken for the end of the answer.
        if let Some(socket) = shared.borrow().link.socket() {
            let _ = socket.set_zero_linger();
        }
    } else {
        close(shared).await;
    }
    Ended::Broken("body_broken")
}

/// Ends the connection after an answer that may have come before all of the request: what is still sent is read for a
/// moment, because a connection closed with unread bytes takes the answer with it.
async fn close(shared: &RefCell<Shared>) -> Ended {
    let until = Instant::now() + LONGEST_LINGER;
    loop {
        let more = poll_fn(|cx| {
            let Shared { link, .. } = &mut *shared.borrow_mut();
            let unsent = if link.is_flushed() { Ok(()) } else { ready!(link.poll_send(cx)) };
            if unsent.is_err() || ready!(link.poll_end(cx)).is_err() {
                return Poll::Ready(false);
            }
            link.inbox.clear();
            link.poll_glance(cx).map(|read| matches!(read, Ok(1..)))
        });
        let more = tokio::time::timeout(LINGER, more).await;
        if !matches!(more, Ok(true)) || Instant::now() >= until {
            return Ended::Well;
        }
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
