//! What both ends of an HTTP/2 connection, and everybody who holds one of its streams, share: header tables, windows, the
//! bytes on their way.
//!
//! Whoever has something to say adds it to the outbox and wakes the one task that drives the connection. Everybody who is
//! ready at that moment does so before that task comes to its turn: many streams leave in one write and one TLS record.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Waker};

use bytes::Bytes;
use http::HeaderMap;

use super::bad::Code;
use super::flood::Flood;
use super::frame::{self, Settings};
use super::hpack::{Decoder, Encoder};
use super::message;
use super::streams::{Key, Over, Streams};
use super::window::{self, ReceiveWindow, SendWindow};
use super::{CONNECTION_WINDOW, MAX_FRAME, STREAMS};
use crate::codec::{Link, MAX_HEADER_BYTES};

/// An outbox that holds as much, though no DATA was added, belongs to a peer who asks and does not listen.
const TOO_MUCH: usize = 1024 * 1024;
/// A calling end begins nothing more on a connection on which it gave up so many streams beyond those that came to their end: with
/// all that may be open then it stays below what the peer bears ([`super::flood`]). Callers that reset what they ask for do not end
/// a connection that others share.
const MOST_GIVEN_UP: u32 = 64;
/// The table with which we decompress, and the largest with which we compress.
const HEADER_TABLE: u32 = 4096;

/// A connection, for its driver and the holders of its streams. None of them keeps it borrowed while another is asked.
pub(super) type Shared = Rc<RefCell<State>>;

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// We ask.
    Calling,
    /// We answer.
    Serving,
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    /// For metrics; `None`: nothing is wrong.
    pub(super) word: Option<&'static str>,
    /// For people.
    pub(super) detail: Rc<str>,
}

/// A connection.
#[derive(Debug)]
pub(super) struct State {
    pub(super) role: Role,
    pub(super) link: Link,
    pub(super) encoder: Encoder,
    pub(super) decoder: Decoder,
    pub(super) flood: Flood,
    pub(super) streams: Streams,
    /// The next stream we open.
    pub(super) next_id: u32,
    /// The last that the peer has opened, and the last of those that was taken.
    pub(super) seen_id: u32,
    pub(super) last_id: u32,
    /// What the peer's SETTINGS say.
    pub(super) max_frame: u32,
    pub(super) initial_window: u32,
    pub(super) max_streams: u32,
    /// They came.
    pub(super) is_settled: bool,
    /// Streams that we reset, less those that came to their end.
    given_up: u32,
    /// What we may send in all.
    pub(super) send_window: SendWindow,
    /// What the peer may send in all.
    pub(super) recv_window: ReceiveWindow,
    /// Bytes that wait to be read, over all streams, and those of them that the peer was not given room for again.
    pub(super) unread: usize,
    pub(super) withheld: usize,
    /// Streams that have something to send and no room for it.
    pub(super) queue: VecDeque<Key>,
    /// Requests that wait until there may be another stream, by the order in which they came.
    pub(super) starting: VecDeque<(u64, Waker)>,
    pub(super) tickets: u64,
    /// Bytes ever added to the outbox, and ever taken by the system.
    pub(super) added: u64,
    pub(super) written: u64,
    /// We said GOAWAY: nothing beyond `last_id` is taken, or, calling, nothing more begins.
    pub(super) leaving: bool,
    /// The peer said so.
    pub(super) peer_leaving: bool,
    /// Nobody can begin another stream: its owner let the connection go.
    pub(super) disowned: bool,
    pub(super) end: Option<End>,
    driver: Waker,
    woken: bool,
}

impl State {
    /// A connection on which we have said what stands at its beginning.
    pub(super) fn new(role: Role, mut link: Link, now: std::time::Instant) -> Self {
        let out = link.outbox();
        let mut settings = Settings {
            max_header_list_size: Some(MAX_HEADER_BYTES),
            max_frame_size: Some(MAX_FRAME),
            ..Settings::default()
        };
        match role {
            Role::Calling => {
                out.extend_from_slice(frame::PREFACE);
                settings.enable_push = Some(false);
            }
            Role::Serving => settings.max_concurrent_streams = Some(STREAMS),
        }
        frame::put_settings(out, &settings);
        let mut recv_window = ReceiveWindow::new(window::INITIAL);
        frame::put_window_update(out, 0, recv_window.grow(CONNECTION_WINDOW));
        let added = out.len() as u64;
        Self {
            role,
            link,
            encoder: Encoder::new(),
            decoder: Decoder::new(HEADER_TABLE),
            flood: Flood::new(now),
            streams: Streams::new(),
            next_id: 1,
            seen_id: 0,
            last_id: 0,
            max_frame: frame::SMALLEST_MAX_FRAME,
            initial_window: window::INITIAL,
            // Until the peer says how many; RFC 9113 section 6.5.2 recommends at least 100.
            max_streams: 100,
            is_settled: false,
            given_up: 0,
            send_window: SendWindow::new(window::INITIAL),
            recv_window,
            unread: 0,
            withheld: 0,
            queue: VecDeque::new(),
            starting: VecDeque::new(),
            tickets: 0,
            added,
            written: 0,
            leaving: false,
            peer_leaving: false,
            disowned: false,
            end: None,
            driver: Waker::noop().clone(),
            woken: true,
        }
    }

    /// Remembers who drives.
    pub(super) fn driven_by(&mut self, cx: &Context<'_>) {
        self.woken = false;
        if !self.driver.will_wake(cx.waker()) {
            self.driver = cx.waker().clone();
        }
    }

    /// The driver looks next: nobody need wake it.
    pub(super) fn is_about_to_be_driven(&mut self) {
        self.woken = true;
    }

    /// Makes the driver look again.
    pub(super) fn wake_driver(&mut self) {
        if !self.woken {
            self.woken = true;
            self.driver.wake_by_ref();
        }
    }

    /// Adds something to what is to be sent, which is sent soon.
    pub(super) fn say<T>(&mut self, work: impl FnOnce(&mut Vec<u8>, &mut Encoder) -> T) -> T {
        let out = self.link.outbox();
        let before = out.len();
        let done = work(out, &mut self.encoder);
        self.added += (out.len() - before) as u64;
        self.wake_driver();
        done
    }

    /// Adds a large piece, which is sent from where it is.
    pub(super) fn say_large(&mut self, data: Bytes) {
        self.added += data.len() as u64;
        self.link.add(data);
    }

    /// Bytes that wait to be sent.
    pub(super) fn waiting(&self) -> usize {
        (self.added - self.written) as usize
    }

    /// Whether the peer makes us say more than it hears.
    pub(super) fn is_overwhelmed(&self) -> bool {
        self.waiting() > TOO_MUCH
    }

    /// Sends trailers, and so the end of the stream.
    pub(super) fn put_trailers(&mut self, key: Key, trailers: &HeaderMap) -> Result<(), Over> {
        let stream = self.streams.at(key);
        if let Some(over) = stream.over {
            return Err(over);
        }
        let (id, max_frame) = (stream.id, self.max_frame);
        self.say(|out, encoder| message::put_trailers(out, encoder, id, trailers, max_frame));
        self.said_all(key);
        Ok(())
    }

    /// We have said all on a stream.
    pub(super) fn said_all(&mut self, key: Key) {
        let stream = self.streams.at(key);
        stream.send_ended = true;
        if stream.recv_ended {
            self.close(key);
        } else if self.role == Role::Serving && stream.unwanted {
            self.reset(key, Code::NO_ERROR, Over::Dropped);
        }
    }

    /// The peer has said all on a stream.
    pub(super) fn heard_all(&mut self, key: Key) {
        let stream = self.streams.at(key);
        stream.recv_ended = true;
        if stream.send_ended {
            self.close(key);
        }
    }

    /// Ends a stream early.
    pub(super) fn reset(&mut self, key: Key, code: Code, over: Over) {
        let stream = self.streams.at(key);
        if stream.is_closed() {
            return;
        }
        let id = stream.id;
        self.given_up = self.given_up.saturating_add(1);
        self.say(|out, _| frame::put_reset(out, id, code));
        self.over(key, over);
    }

    /// A stream is over.
    pub(super) fn over(&mut self, key: Key, over: Over) {
        let stream = self.streams.at(key);
        stream.over.get_or_insert(over);
        stream.wake_reader();
        stream.wake_writer();
        self.close(key);
    }

    fn close(&mut self, key: Key) {
        if self.streams.at(key).over.is_none() {
            self.flood.ended();
            self.given_up = self.given_up.saturating_sub(1);
        }
        self.streams.close(key);
        if !self.starting.is_empty() || self.leaving || self.peer_leaving || self.disowned {
            self.wake_driver();
        }
    }

    /// Whether another stream may begin.
    pub(super) fn is_open(&self) -> bool {
        let goes_on = self.end.is_none() && !self.leaving && !self.peer_leaving;
        goes_on && self.next_id <= frame::LARGEST_STREAM && self.given_up < MOST_GIVEN_UP
    }

    /// Nothing waits any more for a stream to begin: none will.
    pub(super) fn start_nothing(&mut self) {
        for (_, waker) in self.starting.drain(..) {
            waker.wake();
        }
    }

    /// The connection has ended, and so have all its streams.
    pub(super) fn ended(&mut self, word: Option<&'static str>, detail: &str) {
        if self.end.is_some() {
            return;
        }
        self.end = Some(End { word, detail: detail.into() });
        if self.role == Role::Calling {
            self.take_back_requests();
        }
        let open: Vec<Key> = self.streams.each().map(|(key, _)| key).collect();
        for key in open {
            let untouched = self.role == Role::Calling && self.streams.at(key).begins_at >= self.written;
            self.over(key, if untouched { Over::Refused } else { Over::Gone });
        }
        self.start_nothing();
        self.wake_driver();
    }

    /// Whoever asked for what was not begun to be sent is told so, and may ask elsewhere: it must not be sent after that.
    fn take_back_requests(&mut self) {
        let written = self.written;
        let begins = self.streams.each().map(|(_, stream)| stream.begins_at).filter(|begins| *begins >= written);
        if let Some(first) = begins.min() {
            self.link.take_back((first - written) as usize);
            self.added = first;
        }
    }

    /// Why it ended, in words.
    pub(super) fn end_in_words(&self) -> String {
        self.end.as_ref().map_or_else(|| "the connection is closing".to_owned(), |end| end.detail.to_string())
    }

    /// Nobody holds a stream with this half any more.
    fn let_go(&mut self, key: Key, half: Half) {
        let (role, stream) = (self.role, self.streams.at(key));
        stream.holders -= 1;
        let last = stream.holders == 0;
        match half {
            Half::Writing if !stream.send_ended => {
                let code = if role == Role::Serving { Code::INTERNAL_ERROR } else { Code::CANCEL };
                self.reset(key, code, Over::Dropped);
            }
            Half::Writing => {}
            Half::Reading => {
                let (unread, answered) = (!stream.recv_ended, stream.send_ended);
                self.discard(key);
                if unread && role == Role::Calling {
                    self.reset(key, Code::CANCEL, Over::Dropped);
                } else if unread && answered {
                    self.reset(key, Code::NO_ERROR, Over::Dropped);
                }
            }
        }
        if last {
            let stream = self.streams.at(key);
            debug_assert!(stream.is_closed() || stream.send_ended || stream.recv_ended, "nobody is left to end it");
            if !stream.is_closed() {
                self.reset(key, Code::NO_ERROR, Over::Dropped);
            }
            let unread = self.streams.at(key).unread;
            if unread > 0 {
                self.discard(key);
            }
            self.streams.let_go(key);
        }
    }
}

/// Which half of a stream somebody holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    /// What we say on it.
    Writing,
    /// What the peer says on it.
    Reading,
}

/// Somebody's hold on half of a stream. What is not whole when it is dropped is broken off.
#[derive(Debug)]
pub(super) struct Hold {
    conn: Shared,
    key: Key,
    half: Half,
}

impl Hold {
    /// Takes hold of what was opened with a holder for it.
    pub(super) fn new(conn: &Shared, key: Key, half: Half) -> Self {
        Self { conn: Rc::clone(conn), key, half }
    }

    /// Does `work` with the connection and the key of the stream.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut State, Key) -> T) -> T {
        work(&mut self.conn.borrow_mut(), self.key)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.conn.borrow_mut().let_go(self.key, self.half);
    }
}
