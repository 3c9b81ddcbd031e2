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
use http::{Method, Request, Response, StatusCode, Version};
use http_body::{Body as HttpBody, Frame};
use tokio::time::{Instant, Sleep};

use super::framing::{Decoded, Decoder};
use super::head::{self, RequestHead};
use super::send::{Progress, Sending, Unsent};
use super::{Bad, Framing, write};
use crate::codec::link::LinkCell;
use crate::codec::{BodyError, Incoming, Link, Seldom, spare};

/// How long whoever was answered before they had sent everything is listened to, so that they read the answer first.
const LINGER: Duration = Duration::from_millis(500);
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
    type Answer: HttpBody<Data = Bytes> + Unpin;

    /// Answers a request.
    fn respond(&self, request: Request<Incoming>) -> impl Future<Output = Response<Self::Answer>>;

    /// Answers what could not be read.
    fn refuse(&self, bad: Bad) -> Response<Self::Answer>;
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
    /// The caller waits for a word before it sends its body.
    expects_continue: bool,
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
}

impl Shared {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.expects_continue {
            if self.link.inbox.is_empty() && !self.decoder.is_end() {
                self.link.outbox().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            self.expects_continue = false;
        }
        if !self.link.is_flushed() {
            // Only the word above can wait here: an answer is not begun while its maker reads the request.
            let _ = self.link.poll_send(cx);
        }
        poll_body(&mut self.link, &mut self.decoder, cx)
    }

    /// Reads past what is left of a body, as far as it is here.
    fn skip(&mut self, cx: &mut Context<'_>) {
        let mut skipped = 0;
        while skipped < WORTH_SKIPPING && !self.expects_continue {
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

/// What comes instead of a next request, or it.
enum Next {
    Head(Box<RequestHead>),
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
    let shared = Rc::new(RefCell::new(Shared { link, decoder, expects_continue: false }));
    let mut wait = patience.head;
    loop {
        let next = next_head(&shared, wait, patience.head, &mut clock, &mut time_to_go).await;
        wait = patience.idle;
        let head = match next {
            Next::Head(head) => head,
            Next::Gone => return Ended::Well,
            Next::TimedOut { begun: false } => return Ended::Silent,
            Next::TimedOut { begun: true } => return Ended::Broken("head_timeout"),
            Next::Bad(bad) => return refused(&shared, responder, bad).await,
        };
        let RequestHead { parts, framing, keep_alive, expects_continue, .. } = *head;
        let (method, version) = (parts.method.clone(), parts.version);
        let body = {
            let mut open = shared.borrow_mut();
            open.decoder = Decoder::new(framing);
            open.expects_continue = expects_continue;
            if framing == Framing::Empty { Incoming::Empty } else { Incoming::Http1(Body(Rc::clone(&shared))) }
        };
        let request = Request::from_parts(parts, body);
        let Some(response) = unless_left(&shared, pin!(responder.respond(request))).await else {
            return Ended::Broken("client_gone");
        };
        let keep_alive = keep_alive && poll_fn(|cx| Poll::Ready(!time_to_go.is_over(cx))).await;
        match answer(&shared, response, &method, version, keep_alive).await {
            Ok(true) => {}
            Ok(false) => return close(&shared).await,
            Err(how) => return Ended::Broken(how),
        }
    }
}

/// Waits for the head of the next request.
async fn next_head(
    shared: &RefCell<Shared>,
    wait: Duration,
    once_begun: Duration,
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
                    Ok(Some(head)) => return Poll::Ready(Next::Head(Box::new(head))),
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

/// Waits for the answer; `None`: the caller left first.
async fn unless_left<T>(shared: &RefCell<Shared>, mut answer: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    poll_fn(|cx| {
        if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
            return Poll::Ready(Some(answer));
        }
        if has_left(&mut shared.borrow_mut(), cx) { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

/// Whether the caller has gone. What it asks next, before it was answered, is kept.
fn has_left(shared: &mut Shared, cx: &mut Context<'_>) -> bool {
    let listening = shared.decoder.is_end() && shared.link.inbox.is_empty();
    listening && matches!(shared.link.poll_glance(cx), Poll::Ready(Ok(0) | Err(_)))
}

/// Sends an answer; whether the connection can carry another exchange.
async fn answer<A>(
    shared: &Rc<RefCell<Shared>>,
    response: Response<A>,
    method: &Method,
    version: Version,
    keep_alive: bool,
) -> Result<bool, &'static str>
where
    A: HttpBody<Data = Bytes> + Unpin,
{
    let (head, body) = response.into_parts();
    let framing = framing_of(&body, head.status, method, version);
    let mut keep_alive = keep_alive && framing != Framing::UntilClose && !says_close(&head.headers);
    let to_head = *method == Method::HEAD;
    poll_fn(|cx| {
        let open = &mut *shared.borrow_mut();
        open.expects_continue = false;
        // Of a request that was answered without being read, what still comes would be taken for the next one.
        if Rc::strong_count(shared) == 1 {
            open.skip(cx);
            keep_alive &= open.decoder.is_end();
        }
        let out = open.link.outbox();
        write::response_head(out, version, head.status, &head.headers, framing, keep_alive, to_head);
        Poll::Ready(())
    })
    .await;
    spare::keep(head.headers);
    let mut sending = Sending::new(body, if to_head { Framing::Empty } else { framing });
    poll_fn(|cx| match sending.poll(&**shared, cx) {
        Poll::Ready(Ok(Progress::Done)) => Poll::Ready(Ok(())),
        Poll::Ready(Ok(Progress::Waiting)) if has_left(&mut shared.borrow_mut(), cx) => Poll::Ready(Err("client_gone")),
        Poll::Ready(Ok(Progress::Waiting)) | Poll::Pending => Poll::Pending,
        Poll::Ready(Err(Unsent::Wire)) => Poll::Ready(Err("client_gone")),
        Poll::Ready(Err(Unsent::Body(_) | Unsent::Length)) => Poll::Ready(Err("body_broken")),
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
    let _ = answer(shared, response, &Method::GET, Version::HTTP_11, false).await;
    let _ = close(shared).await;
    Ended::Broken(word)
}

/// Ends the connection after an answer that may have come before all of the request: what is still sent is read for a
/// moment, because a connection closed with unread bytes takes the answer with it.
async fn close(shared: &RefCell<Shared>) -> Ended {
    let closing = poll_fn(|cx| {
        let Shared { link, .. } = &mut *shared.borrow_mut();
        if ready!(link.poll_end(cx)).is_err() {
            return Poll::Ready(());
        }
        loop {
            link.inbox.clear();
            if matches!(ready!(link.poll_glance(cx)), Ok(0) | Err(_)) {
                return Poll::Ready(());
            }
        }
    });
    let _ = tokio::time::timeout(LINGER, closing).await;
    Ended::Well
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
