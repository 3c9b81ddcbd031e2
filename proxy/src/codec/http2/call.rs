//! The calling end of an HTTP/2 connection: requests, and the responses to them.
//!
//! Whoever asks for a response sends its request along too. Once the head of the response is here, what is left of the
//! request is sent by a task of its own: a caller that does not read must not keep the other side from being heard.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderMap;
use http::{Method, response};
use http_body::Frame;
use tokio::time::Instant;

use super::body::Body;
use super::conn::{Half, Hold, Role, Shared, State};
use super::drive::{Driver, Patience};
use super::message;
use super::send::{Sending, Unsent};
use super::streams::{Key, Over};
use crate::codec::{BodyError, Early, Link, Outgoing};

/// How long a peer may take to finish what it has begun to say.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request's head, borrowed: it may have to be sent again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head<'a> {
    /// The method.
    pub(crate) method: &'a Method,
    /// Whom it is for.
    pub(crate) authority: &'a str,
    /// Path and query.
    pub(crate) target: &'a str,
    /// The headers. Host, and what only concerns one connection, are left out.
    pub(crate) headers: &'a HeaderMap,
    /// Whoever is told of what comes before the answer.
    pub(crate) early: &'a Early,
}

/// A connection on which requests can be sent, many at a time. Dropped, it ends once they are answered.
#[derive(Debug)]
pub(crate) struct Caller(Shared);

/// A request that got no response head.
#[derive(Debug)]
pub(crate) struct NoAnswer<B> {
    /// The peer has certainly not processed it: nothing was sent, or the peer says so.
    pub(crate) refused: bool,
    /// Its body, when nothing of that was taken.
    pub(crate) body: Option<B>,
    /// What happened, in words.
    pub(crate) detail: String,
}

/// Begins a connection, on which nothing was said yet. What is returned beside it must be run for as long as it takes; then it
/// says in words why the connection has ended.
pub(crate) fn begin(link: Link) -> (Caller, impl Future<Output = String>) {
    let shared: Shared = Rc::new(RefCell::new(State::new(Role::Calling, link, Instant::now().into_std())));
    let (driven, mut driver) =
        (Rc::clone(&shared), Driver::new(Role::Calling, Patience { head: PATIENCE, idle: None }));
    let driving = async move {
        poll_fn(|cx| driver.poll(&mut driven.borrow_mut(), cx)).await;
        driven.borrow().end_in_words()
    };
    (Caller(shared), driving)
}

impl Drop for Caller {
    fn drop(&mut self) {
        let mut conn = self.0.borrow_mut();
        conn.disowned = true;
        conn.wake_driver();
    }
}

impl Caller {
    /// Whether it takes another request.
    pub(crate) fn is_open(&self) -> bool {
        self.0.borrow().is_open()
    }

    /// Streams that the peer allows at a time; `None`: it has not said.
    pub(crate) fn most_streams(&self) -> Option<usize> {
        let conn = self.0.borrow();
        conn.is_settled.then_some(conn.max_streams as usize)
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) async fn send<B>(&self, head: Head<'_>, body: B) -> Result<(response::Parts, Call<B>), NoAnswer<B>>
    where
        B: Outgoing + 'static,
        B::Error: std::fmt::Display,
    {
        let mut ticket = None;
        if !poll_fn(|cx| self.0.borrow_mut().poll_start(&mut ticket, cx)).await {
            let detail = self.0.borrow().end_in_words();
            return Err(NoAnswer { refused: true, body: Some(body), detail });
        }
        let mut asking = Asking::begin(&self.0, head, body);
        match poll_fn(|cx| asking.poll_head(head.early, cx)).await {
            Ok(parts) => {
                let Asking { body, sending } = asking;
                Ok((parts, Call { body, _elsewhere: sending.on_its_own() }))
            }
            Err(Failed { refused, detail }) => {
                let body = asking.sending.into_body();
                Err(NoAnswer { refused, body, detail })
            }
        }
    }
}

/// Why there is no head.
struct Failed {
    refused: bool,
    detail: String,
}

/// An exchange whose response is being read.
#[derive(Debug)]
pub(crate) struct Call<B> {
    body: Body,
    /// The rest of the request.
    _elsewhere: Option<Elsewhere<B>>,
}

/// An exchange whose response is waited for.
#[derive(Debug)]
struct Asking<B> {
    body: Body,
    sending: Rest<B>,
}

/// What is still to be sent of a request.
#[derive(Debug)]
enum Rest<B> {
    Nothing,
    /// There was nothing of it from the beginning.
    Bodiless(Option<B>),
    Here(Sending<B>),
}

impl<B: Outgoing + 'static> Rest<B> {
    /// Has the rest sent by a task of its own, if there is a rest.
    fn on_its_own(self) -> Option<Elsewhere<B>> {
        let Self::Here(sending) = self else { return None };
        let rest = Rc::new(RefCell::new(Some(sending)));
        let theirs = Rc::clone(&rest);
        drop(tokio::task::spawn_local(poll_fn(move |cx| {
            let mut rest = theirs.borrow_mut();
            let over = rest.as_mut().is_none_or(|sending| sending.poll(cx).is_ready());
            if over {
                // A body that failed resets the stream; its owner has noted why.
                *rest = None;
                return Poll::Ready(());
            }
            Poll::Pending
        })));
        Some(Elsewhere(rest))
    }

    fn into_body(self) -> Option<B> {
        match self {
            Self::Here(sending) => sending.into_body(),
            Self::Bodiless(body) => body,
            Self::Nothing => None,
        }
    }
}

/// A body that a task sends. When this is dropped it does so no longer: at once, not when it has its turn, because where the
/// body comes from may then be used for something else.
#[derive(Debug)]
struct Elsewhere<B>(Rc<RefCell<Option<Sending<B>>>>);

impl<B> Drop for Elsewhere<B> {
    fn drop(&mut self) {
        let taken = self.0.try_borrow_mut().ok().and_then(|mut rest| rest.take());
        drop(taken);
    }
}

impl<B: Outgoing> Asking<B>
where
    B::Error: std::fmt::Display,
{
    fn begin(conn: &Shared, head: Head<'_>, body: B) -> Self {
        let end = body.is_end_stream();
        let written = message::Request {
            method: head.method,
            scheme: "http",
            authority: head.authority,
            path: head.target,
            headers: head.headers,
        };
        let key = conn.borrow_mut().begin(head.method, end, written);
        let read = Body::new(Hold::new(conn, key, Half::Reading), false);
        let sending = if end {
            Rest::Bodiless(Some(body))
        } else {
            Rest::Here(Sending::new(Hold::new(conn, key, Half::Writing), body))
        };
        Self { body: read, sending }
    }

    fn poll_head(&mut self, early: &Early, cx: &mut Context<'_>) -> Poll<Result<response::Parts, Failed>> {
        if let Rest::Here(sending) = &mut self.sending {
            match sending.poll(cx) {
                Poll::Ready(Ok(())) => self.sending = Rest::Nothing,
                Poll::Ready(Err(Unsent::Body(error))) => {
                    return Poll::Ready(Err(Failed { refused: false, detail: error.to_string() }));
                }
                // Why is told below, unless there is an answer all the same.
                Poll::Ready(Err(Unsent::Over)) | Poll::Pending => {}
            }
        }
        self.body.hold().with(|conn, key| conn.poll_head(key, early, cx))
    }
}

impl<B> Call<B> {
    /// The next piece of the response.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.body.poll_frame(cx)
    }

    /// Wakes whoever takes nothing now when there is news of it, its end among them.
    pub(crate) fn wakes(&self, cx: &Context<'_>) {
        self.body.hold().with(|conn, key| conn.streams.at(key).wake_reader_of(cx));
    }

    /// Whether all of the response has passed.
    pub(crate) fn is_end(&self) -> bool {
        self.body.is_end()
    }

    /// Data bytes of the response still to come, when that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        self.body.left()
    }
}

impl State {
    fn poll_head(&mut self, key: Key, early: &Early, cx: &Context<'_>) -> Poll<Result<response::Parts, Failed>> {
        let stream = self.streams.at(key);
        // What an application says while it works (RFC 9110 section 15.2) is not its answer.
        for (status, headers) in std::mem::take(&mut stream.early) {
            if let Err(too_many) = early.tell(status, headers) {
                return Poll::Ready(Err(Failed { refused: false, detail: format!("no answer came: {too_many}") }));
            }
        }
        if let Some(head) = stream.head.take() {
            return Poll::Ready(Ok(head));
        }
        let Some(over) = stream.over else {
            stream.wake_reader_of(cx);
            return Poll::Pending;
        };
        let detail = match over {
            Over::Reset(code) => format!("the peer reset the stream: {code}"),
            Over::Broken(why) => format!("the response cannot be read: {why}"),
            Over::Refused if self.end.is_none() => "the peer refused the stream".to_owned(),
            Over::Dropped => "the request was broken off".to_owned(),
            Over::Refused | Over::Gone => self.end_in_words(),
        };
        Poll::Ready(Err(Failed { refused: over == Over::Refused, detail }))
    }
}

#[cfg(test)]
#[path = "call_tests.rs"]
mod tests;
