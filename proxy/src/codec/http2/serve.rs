//! The serving end of an HTTP/2 connection: its requests are answered side by side, by its own task.
//!
//! Once it is time to go the caller is told, what it has asked until it knows is answered, and the connection ends: nothing
//! is lost on the way.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use http::header::{CONTENT_LENGTH, EXPECT, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode, request};
use tokio::time::Instant;

use super::arrive::Arrived;
use super::body::Body;
use super::conn::{Half, Hold, Role, Shared, State};
use super::crew::Crew;
use super::drive::{self, Driver};
use super::message::{self, Unread};
use super::send::{Sending, Unsent};
use super::streams::{Key, Over};
use crate::codec::http1::Bad;
use crate::codec::http1::serve::{Ended, Patience, Respond};
use crate::codec::{Early, Incoming, Link, Outgoing, Seldom, spare};

/// Serves the exchanges of one connection. Once it is `time_to_go`, what is under way is finished and nothing more is taken.
pub(crate) async fn serve<R>(
    link: Link,
    patience: Patience,
    time_to_go: impl Future<Output = ()>,
    responder: Rc<R>,
) -> Ended
where
    R: Respond + 'static,
    R::Answer: 'static,
{
    let time_to_go = pin!(time_to_go);
    let mut time_to_go = Seldom::new(time_to_go);
    let state = State::new(Role::Serving, link, Instant::now().into_std());
    let serving = Serving(Rc::new(RefCell::new(state)));
    let patience = drive::Patience { head: patience.head, idle: Some(patience.idle) };
    let mut driver = Driver::new(Role::Serving, patience);
    let (mut crew, mut round) = (Crew::new(), responder.round());
    poll_fn(|cx| {
        if responder.round() != round {
            round = responder.round();
            crew.wake_all();
        }
        if time_to_go.is_over(cx) {
            driver.leave(&mut serving.0.borrow_mut());
        }
        // What those say who were woken goes out in this turn.
        serving.0.borrow_mut().is_about_to_be_driven();
        crew.poll(cx);
        let over = driver.poll(&mut serving.0.borrow_mut(), cx);
        for arrived in driver.arrived() {
            crew.add(|| exchange(Asked::of(&serving.0, arrived), Rc::clone(&responder)));
        }
        crew.poll(cx);
        over
    })
    .await;
    let conn = serving.0.borrow();
    match conn.end.as_ref().and_then(|end| end.word) {
        Some(word) => {
            tracing::debug!(reason = word, error = conn.end_in_words(), "an HTTP/2 connection ended badly");
            Ended::Broken(word)
        }
        None => Ended::Well,
    }
}

/// A connection that is served; when nobody does so any more, its exchanges end.
struct Serving(Shared);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.borrow_mut().ended(None, "nobody serves the connection any more");
    }
}

/// A request, with all that must end with it.
struct Asked {
    writing: Hold,
    head: Result<request::Parts, Unread>,
    body: Incoming,
}

impl Asked {
    fn of(conn: &Shared, arrived: Arrived) -> Self {
        let Arrived { key, has_body, head } = arrived;
        let writing = Hold::new(conn, key, Half::Writing);
        let body = if has_body {
            let expects = head.as_ref().is_ok_and(|head| expects_continue(&head.headers));
            Incoming::Http2(Body::new(Hold::new(conn, key, Half::Reading), expects))
        } else {
            Incoming::Empty
        };
        Self { writing, head, body }
    }
}

fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

async fn exchange<R: Respond>(asked: Asked, responder: Rc<R>) {
    let Asked { writing, head, body } = asked;
    let (method, response) = match head {
        Ok(mut head) => {
            let method = head.method.clone();
            let early = Early::new();
            // Where it is made it stays: to move it costs more than all that is done here.
            let answering = pin!(responder.respond(&mut head, body, &early));
            let Some(response) = unless_over(&writing, answering, &early).await else { return };
            (method, response)
        }
        Err(unread) => (Method::GET, responder.refuse(bad(unread))),
    };
    answer(writing, response, &method).await;
}

fn bad(unread: Unread) -> Bad {
    match unread {
        Unread::TooLarge => Bad::TooLarge,
        Unread::Malformed(why) | Unread::Compression(why) => Bad::Malformed(why),
        Unread::Extended => Bad::Malformed("an extended CONNECT, which was not offered"),
    }
}

/// Waits for the answer, passing on what comes `early`; `None`: the caller does not want it any more.
async fn unless_over<T>(writing: &Hold, mut answer: Pin<&mut impl Future<Output = T>>, early: &Early) -> Option<T> {
    poll_fn(|cx| {
        let polled = answer.as_mut().poll(cx);
        while let Some((status, headers)) = early.take() {
            writing.with(|conn, key| conn.put_early(key, status, &headers));
            spare::keep(headers);
        }
        match polled {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending => writing.with(|conn, key| conn.poll_over(key, cx)).map(|_| None),
        }
    })
    .await
}

async fn answer<A: Outgoing>(writing: Hold, response: Response<A>, method: &Method) {
    let (mut head, body) = response.into_parts();
    let never = *method == Method::HEAD || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let length = body.size_hint().exact();
    let end = never || length == Some(0) || body.is_end_stream();
    if let Some(length) = length.filter(|_| !end) {
        head.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    let said = poll_fn(|cx| writing.with(|conn, key| conn.poll_answer(key, head.status, &head.headers, end, cx))).await;
    spare::keep(head.headers);
    if said.is_err() || end {
        return;
    }
    let mut sending = Sending::new(writing, body);
    match poll_fn(|cx| sending.poll(cx)).await {
        // The stream is reset when what sends it is dropped.
        Ok(()) | Err(Unsent::Body(_) | Unsent::Over) => {}
    }
}

impl State {
    /// Sends the head of an answer once there is room for it.
    fn poll_answer(
        &mut self,
        key: Key,
        status: StatusCode,
        headers: &HeaderMap,
        end: bool,
        cx: &Context<'_>,
    ) -> Poll<Result<(), Over>> {
        std::task::ready!(self.poll_room(key, cx))?;
        let (id, max_frame) = (self.streams.at(key).id, self.max_frame);
        self.say(|out, encoder| message::put_response(out, encoder, id, status, headers, end, max_frame));
        self.streams.at(key).has_answered = true;
        if end {
            self.said_all(key);
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when a stream is over early.
    pub(super) fn poll_over(&mut self, key: Key, cx: &Context<'_>) -> Poll<Over> {
        let stream = self.streams.at(key);
        if let Some(over) = stream.over {
            return Poll::Ready(over);
        }
        stream.wake_writer_of(cx);
        Poll::Pending
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
