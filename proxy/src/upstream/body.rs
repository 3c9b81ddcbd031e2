//! Bodies: of a request on its way out (nothing, bytes held for a retry, or the caller's own stream), and of its response,
//! with the connection it comes over.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use equerry_traffic::balance::InFlight;
use equerry_traffic::deadline::{self, Crawled, Pace};
use equerry_traffic::normalize;
use http::header::HeaderName;
use http_body::{Body, Frame, SizeHint};

use super::connect::{Connected, Counted, Tunnel};
use super::lease::{Exchanging, Home};
use crate::codec::http1::call::Call;
use crate::codec::{BodyError, Incoming, Link, Outgoing, Pipe, http2};
use crate::live::trust::{Distrusted, Vouched};

#[cfg(test)]
thread_local! {
    /// Tests of this thread wait no longer than that.
    pub(crate) static IMPATIENT: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// How long somebody may be waited for before the rate is judged at which they send or take.
pub(crate) fn patience() -> Duration {
    #[cfg(test)]
    if let Some(impatient) = IMPATIENT.get() {
        return impatient;
    }
    deadline::CRAWL
}

/// A body that comes in one piece is kept up to this size until there is an answer.
const SMALL: usize = 16 * 1024;

/// How the caller's stream ended early: no fault of whoever it was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BrokeOff {
    /// The caller went away.
    Gone,
    /// What the caller sent is no body.
    Unreadable,
    /// It is larger than it may be.
    TooLarge,
}

/// What is known of the caller's stream, for whoever waits for the answer.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Set when it ends early.
    pub(crate) broke_off: Cell<Option<BrokeOff>>,
    /// When all of it had come.
    pub(crate) ended: Cell<Option<Instant>>,
    /// When the last piece of it came.
    pub(crate) moved: Cell<Option<Instant>>,
    /// The next piece is waited for: it is the caller who is slow, not whoever it is sent to.
    pub(crate) waits: Cell<bool>,
    /// Bytes of it that have come.
    pub(crate) bytes: Cell<u64>,
    /// How fast it is taken by whoever it is sent to.
    taker: Cell<Pace>,
    /// Whoever it is sent to takes hardly any of it.
    pub(crate) crawled: Cell<Option<Crawled>>,
    /// All of it, where it came in one small piece: then it can be sent again, should nobody have taken it.
    pub(crate) whole: RefCell<Option<Bytes>>,
}

impl Told {
    /// A piece has come, or the end.
    fn came(&self, ended: bool) {
        let now = Some(tokio::time::Instant::now().into_std());
        self.moved.set(now);
        if ended {
            self.ended.set(now);
        }
    }

    /// So much of it went out, while there was more to send.
    fn taken(&self, moved: u64) {
        let mut taker = self.taker.get();
        if let Err(crawled) = taker.waits(moved, patience(), tokio::time::Instant::now().into_std()) {
            self.crawled.set(Some(crawled));
        }
        self.taker.set(taker);
    }

    /// Whether whoever it is sent to is waited for, to take what there is.
    pub(crate) fn is_being_taken(&self) -> bool {
        self.taker.get().is_waiting()
    }

    /// The next piece is asked for: whoever it is sent to is not waited for now.
    fn asked(&self) {
        let mut taker = self.taker.get();
        if taker.is_waiting() {
            taker.rests(patience(), tokio::time::Instant::now().into_std());
            self.taker.set(taker);
        }
    }
}

/// Tells how much has passed; whether that is no more than may.
fn within(passed: &Cell<u64>, most: u64, told: &Told) -> Result<(), BodyError> {
    told.bytes.set(passed.get());
    if passed.get() <= most {
        return Ok(());
    }
    told.broke_off.set(Some(BrokeOff::TooLarge));
    Err(BodyError::Cut)
}

impl BrokeOff {
    /// What an error of the caller's stream means.
    pub(crate) fn of(error: &BodyError) -> Self {
        if matches!(error, BodyError::Malformed(_)) { Self::Unreadable } else { Self::Gone }
    }
}

/// What is sent to an upstream. Bytes are counted as they pass.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// There is none.
    Empty,
    /// All of it, held here; `None` once it was sent.
    Whole(Option<Bytes>),
    /// As the caller sends it.
    Streaming {
        /// The caller's stream.
        from: Incoming,
        /// Bytes passed so far, shared with whoever reports the exchange.
        passed: Rc<Cell<u64>>,
        /// So many bytes may pass in all.
        most: u64,
        /// How it ends.
        told: Rc<Told>,
        /// Trailers that are not passed on, beside those that never are.
        withheld: Box<[HeaderName]>,
    },
}

impl RequestBody {
    /// Leaves it to whoever it is sent to to say that it should come.
    pub(crate) fn leave_the_word(&self) {
        if let Self::Streaming { from, .. } = self {
            from.leave_the_word();
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => {
                Poll::Ready(bytes.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes))))
            }
            Self::Streaming { from, passed, most, told, withheld } => {
                told.asked();
                let polled = Pin::new(&mut *from).poll_frame(cx);
                told.waits.set(polled.is_pending());
                let mut frame = ready!(polled);
                told.came(frame.is_none() || from.is_end_stream());
                match &mut frame {
                    Some(Ok(frame)) => {
                        if let Some(data) = frame.data_ref() {
                            let whole = passed.get() == 0 && data.len() <= SMALL && from.is_end_stream();
                            if whole {
                                told.whole.replace(Some(data.clone()));
                            }
                            passed.set(passed.get() + data.len() as u64);
                        }
                        if let Err(cut) = within(passed, *most, told) {
                            return Poll::Ready(Some(Err(cut)));
                        }
                        if let Some(trailers) = frame.trailers_mut() {
                            normalize::trailers(trailers, withheld);
                        }
                    }
                    Some(Err(error)) => told.broke_off.set(Some(BrokeOff::of(error))),
                    None => {}
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Streaming { from, .. } => from.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Streaming { from, .. } => from.size_hint(),
        }
    }
}

impl Outgoing for RequestBody {
    /// Who waits for the answer watches over that, by what is [`Told`] of it.
    fn blocked(&mut self, moved: u64, _: &mut Context<'_>) -> Result<(), BodyError> {
        if let Self::Streaming { told, .. } = self {
            told.taken(moved);
        }
        Ok(())
    }

    fn poll_fill(&mut self, pipe: &mut Pipe, cx: &mut Context<'_>) -> Option<Poll<Result<u64, BodyError>>> {
        let Self::Streaming { from, passed, most, told, .. } = self else { return None };
        told.asked();
        let polled = from.poll_fill(pipe, cx)?;
        told.waits.set(polled.is_pending());
        let Poll::Ready(moved) = polled else { return Some(Poll::Pending) };
        told.came(from.is_end_stream());
        let counted = moved.inspect_err(|error| told.broke_off.set(Some(BrokeOff::of(error)))).and_then(|moved| {
            passed.set(passed.get() + moved);
            within(passed, *most, told).map(|()| moved)
        });
        Some(Poll::Ready(counted))
    }
}

/// A connection that carries messages no more, or never did: bytes that nobody looks at.
pub(crate) struct Switched {
    /// The bytes, those that came already first.
    pub(crate) link: Link,
    /// Who vouched for the other side, for as long as it is believed.
    pub(crate) vouched: Option<Vouched>,
    /// Given back with the connection.
    _place: Place,
    /// Over with the connection.
    _in_flight: Option<InFlight>,
}

#[expect(dead_code, reason = "kept for as long as the connection lives")]
enum Place {
    Shelf(Home),
    Tunnel(Counted),
}

impl Switched {
    /// A connection that was opened for bytes, of which `early` came already.
    pub(crate) fn of_tunnel(tunnel: Tunnel, early: &[u8]) -> Self {
        let vouched = tunnel.facts.vouched.clone();
        let (wire, place, in_flight) = tunnel.into_parts();
        Self { link: Link::resumed(wire, early), vouched, _place: Place::Tunnel(place), _in_flight: in_flight }
    }
}

/// The body of a response. When it has passed, its connection is given back; when it is dropped before, an HTTP/1.1
/// connection is closed, and so the work at its other end is over.
pub(crate) struct ResponseBody {
    facts: Rc<Connected>,
    /// A frame that was looked at and not passed on yet; boxed, because there seldom is one.
    ahead: Option<Box<Result<Frame<Bytes>, BodyError>>>,
    from: From,
    /// Counts at its endpoint until all has passed.
    in_flight: Option<InFlight>,
}

enum From {
    Http1 {
        call: Box<Call<RequestBody>>,
        home: Home,
    },
    Http2 {
        call: http2::call::Call<RequestBody>,
        _exchanging: Exchanging,
    },
    /// All of it has passed.
    Passed,
}

impl ResponseBody {
    pub(super) fn http1(facts: Rc<Connected>, call: Call<RequestBody>, home: Home) -> Self {
        Self { facts, ahead: None, from: From::Http1 { call: Box::new(call), home }, in_flight: None }.unless_passed()
    }

    pub(super) fn http2(facts: Rc<Connected>, call: http2::call::Call<RequestBody>, exchanging: Exchanging) -> Self {
        let from = From::Http2 { call, _exchanging: exchanging };
        Self { facts, ahead: None, from, in_flight: None }.unless_passed()
    }

    /// Who answers there, if a certificate says so.
    pub(crate) fn peer(&self) -> Option<&equerry_policies::names::SpiffeId> {
        self.facts.peer.as_ref()
    }

    /// Why whoever answers is believed no more, as far as anybody has noticed.
    pub(crate) fn distrusted(&self) -> Option<&Distrusted> {
        self.facts.distrusted()
    }

    /// The same, for whoever takes nothing of it now: they are woken then.
    pub(crate) fn is_distrusted(&self, cx: &mut Context<'_>) -> Option<&Distrusted> {
        match &self.from {
            From::Http1 { .. } => self.facts.is_distrusted(cx),
            // Whoever reads for all its streams asks.
            From::Http2 { call, .. } => {
                call.wakes(cx);
                self.facts.distrusted()
            }
            From::Passed => None,
        }
    }

    /// The code with which whoever answers has reset it, where they are known by a certificate.
    pub(crate) fn reset_code(&self, error: &BodyError) -> Option<u32> {
        match error {
            BodyError::Reset(code) if self.facts.peer.is_some() => Some(code.0),
            _ => None,
        }
    }

    /// Keeps what counts it at its endpoint, for as long as there is more to come.
    pub(crate) fn counts(&mut self, in_flight: Option<InFlight>) {
        if !matches!(self.from, From::Passed) {
            self.in_flight = in_flight;
        }
    }

    /// Looks at the first frame, which is passed on all the same.
    pub(crate) async fn look_ahead(&mut self) {
        if self.ahead.is_none() {
            self.ahead = std::future::poll_fn(|cx| Pin::new(&mut *self).poll_frame(cx)).await.map(Box::new);
        }
    }

    /// The trailers, where they were seen ahead, with no data before them.
    pub(crate) fn trailers_ahead(&self) -> Option<&http::HeaderMap> {
        self.ahead.as_deref()?.as_ref().ok()?.trailers_ref()
    }

    /// Whether [`Self::switch`] has something to give.
    pub(crate) fn is_switched(&self) -> bool {
        matches!(&self.from, From::Http1 { call, .. } if call.is_switched())
    }

    /// The connection itself, after a response that changed its protocol; `None` after any other, and when the request was
    /// not sent whole before.
    pub(crate) fn switch(self) -> Option<Switched> {
        let in_flight = self.in_flight;
        match self.from {
            From::Http1 { call, home } => {
                let vouched = home.facts().vouched.clone();
                let place = Place::Shelf(home);
                call.into_switched().map(|link| Switched { link, vouched, _place: place, _in_flight: in_flight })
            }
            From::Http2 { .. } | From::Passed => None,
        }
    }

    /// Moves the next piece into a pipe, as [`Outgoing::poll_fill`].
    pub(crate) fn poll_fill(&mut self, pipe: &mut Pipe, cx: &mut Context<'_>) -> Option<Poll<Result<u64, BodyError>>> {
        let From::Http1 { call, .. } = &mut self.from else { return None };
        if self.ahead.is_some() {
            return None;
        }
        let polled = call.poll_fill(pipe, cx)?;
        match &polled {
            Poll::Ready(Err(_)) => (self.from, self.in_flight) = (From::Passed, None),
            Poll::Ready(Ok(_)) if call.is_end() => self.passed(),
            _ => {}
        }
        Some(polled)
    }

    fn unless_passed(mut self) -> Self {
        let ended = match &self.from {
            From::Http1 { call, .. } => call.is_end(),
            From::Http2 { call, .. } => call.is_end(),
            From::Passed => false,
        };
        if ended {
            self.passed();
        }
        self
    }

    fn passed(&mut self) {
        self.in_flight = None;
        if let From::Http1 { call, home } = std::mem::replace(&mut self.from, From::Passed)
            && let Some(link) = call.into_link()
        {
            home.give_back(link);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(ahead) = this.ahead.take() {
            return Poll::Ready(Some(*ahead));
        }
        let (frame, ended) = match &mut this.from {
            From::Http1 { call, .. } => (ready!(call.poll_frame(cx)), call.is_end()),
            From::Http2 { call, .. } => (ready!(call.poll_frame(cx)), call.is_end()),
            From::Passed => return Poll::Ready(None),
        };
        match &frame {
            Some(Err(_)) => (this.from, this.in_flight) = (From::Passed, None),
            None => this.passed(),
            Some(Ok(_)) if ended => this.passed(),
            Some(Ok(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.from, From::Passed) && self.ahead.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.from {
            From::Http1 { call, .. } => call.left(),
            From::Http2 { call, .. } => call.left(),
            From::Passed => Some(0),
        };
        let ahead = match self.ahead.as_deref().map(|ahead| ahead.as_ref().map(Frame::data_ref)) {
            None => 0,
            Some(Ok(Some(data))) => data.len(),
            // Trailers, or the word that it broke: no length may let anybody stop before them.
            Some(Ok(None) | Err(_)) => return SizeHint::default(),
        };
        rest.map(|rest| SizeHint::with_exact(rest + ahead as u64)).unwrap_or_default()
    }
}
