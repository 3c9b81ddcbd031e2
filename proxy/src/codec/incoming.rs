//! A body as it comes in, whichever version of HTTP carries it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{Pipe, http1, http2};

/// The body of a request, read as it is asked for.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// There is none.
    Empty,
    /// Over HTTP/1.1.
    Http1(http1::serve::Body),
    /// Over HTTP/2.
    Http2(http2::Body),
}

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The sender went away.
    #[error("the sender ended the connection in the middle of a body{}", .0.as_ref().map(|error| format!(": {error}")).unwrap_or_default())]
    Gone(Option<io::Error>),
    /// What was sent is no body.
    #[error("the framing of the body is broken: {0}")]
    Malformed(http1::Bad),
    /// We pass no more of it on.
    #[error("the body was cut off")]
    Cut,
    /// The sender reset its stream.
    #[error("the sender reset the stream: {0}")]
    Reset(http2::bad::Code),
}

/// An error with the causes it carries.
pub(crate) fn in_words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !words.ends_with(&said) {
            words.push_str(": ");
            words.push_str(&said);
        }
        cause = inner.source();
    }
    words
}

impl Incoming {
    /// As [`super::Outgoing::poll_fill`].
    pub(crate) fn poll_fill(&mut self, pipe: &mut Pipe, cx: &mut Context<'_>) -> Option<Poll<Result<u64, BodyError>>> {
        match self {
            Self::Empty | Self::Http2(_) => None,
            Self::Http1(body) => body.poll_fill(pipe, cx),
        }
    }

    /// Leaves it to whoever the request is passed on to to say that the body should come.
    pub(crate) fn leave_the_word(&self) {
        match self {
            Self::Empty => {}
            Self::Http1(body) => body.leave_the_word(),
            Self::Http2(body) => body.leave_the_word(),
        }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Http1(body) => body.poll_frame(cx),
            Self::Http2(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http1(body) => body.is_end(),
            Self::Http2(body) => body.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Http1(body) => body.left().map(SizeHint::with_exact).unwrap_or_default(),
            Self::Http2(body) => body.left().map(SizeHint::with_exact).unwrap_or_default(),
        }
    }
}
