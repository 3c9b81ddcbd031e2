//! The streams of a connection, in slots that are used again: a stream costs no allocation once there were as many before.
//!
//! A stream is known by its number while the protocol knows it, and by its slot while anybody here holds it: a stream that the
//! peer has reset still takes a place until the work for it has ended.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::task::{Context, Waker};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, response};

use super::bad::Code;
use super::window::{ReceiveWindow, SendWindow};

/// Pieces up to this size are put together with the one before, so that a slow reader's queue holds neither many of them
/// nor the large buffers that they were read into.
const SMALL: usize = 1024;
/// A queue that grew beyond this is not kept for the next stream.
const KEPT: usize = 16;
/// Ended streams remembered, to tell a late frame from a wrong one.
const REMEMBERED: usize = 256;

/// The slot of a stream.
pub(super) type Key = u32;

/// Why a stream ended before both sides had said all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// The peer reset it.
    Reset(Code),
    /// The peer says that it has done nothing about it.
    Refused,
    /// We reset it.
    Dropped,
    /// We reset it, because of what the peer said on it.
    Broken(&'static str),
    /// Its connection ended.
    Gone,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    /// Its number; odd, 0 in a free slot.
    pub(super) id: u32,
    /// Those who hold it.
    pub(super) holders: u8,
    /// Why it is over early.
    pub(super) over: Option<Over>,

    /// The head of the response was read, or it is a request.
    pub(super) has_head: bool,
    /// The head of the response, until somebody takes it.
    pub(super) head: Option<response::Parts>,
    /// Interim heads, until somebody takes them.
    pub(super) early: Vec<(StatusCode, HeaderMap)>,
    /// Its response has no body whatever its head says: the request is HEAD.
    pub(super) to_head: bool,
    /// Pieces of the body that wait to be read.
    pub(super) came: VecDeque<Bytes>,
    /// Bytes in them.
    pub(super) unread: usize,
    /// Bytes that must still come, where the head says how many.
    pub(super) owed: Option<u64>,
    /// Trailers, until somebody takes them.
    pub(super) trailers: Option<HeaderMap>,
    /// The peer has said all.
    pub(super) recv_ended: bool,
    /// Nobody will read what comes.
    pub(super) unwanted: bool,
    /// What the peer may send.
    pub(super) recv_window: ReceiveWindow,
    reader: Option<Waker>,

    /// The head of our answer was sent.
    pub(super) has_answered: bool,
    /// We have said all.
    pub(super) send_ended: bool,
    /// What we may send.
    pub(super) send_window: SendWindow,
    /// It stands in the queue of those who wait to send.
    pub(super) queued: bool,
    /// How much was to be sent on the connection before its first byte.
    pub(super) begins_at: u64,
    writer: Option<Waker>,
}

impl Stream {
    fn empty() -> Self {
        Self {
            id: 0,
            holders: 0,
            over: None,
            has_head: false,
            head: None,
            early: Vec::new(),
            to_head: false,
            came: VecDeque::new(),
            unread: 0,
            owed: None,
            trailers: None,
            recv_ended: false,
            unwanted: false,
            recv_window: ReceiveWindow::new(0),
            reader: None,
            has_answered: false,
            send_ended: false,
            send_window: SendWindow::new(0),
            queued: false,
            begins_at: 0,
            writer: None,
        }
    }

    /// Ready for another stream; what is large is let go.
    fn clear(&mut self) {
        let mut came = std::mem::take(&mut self.came);
        came.clear();
        *self = Self { came: if came.capacity() > KEPT { VecDeque::new() } else { came }, ..Self::empty() };
    }

    /// Whoever reads it is told when something came.
    pub(super) fn wake_reader_of(&mut self, cx: &Context<'_>) {
        register(&mut self.reader, cx);
    }

    /// Whoever writes it is told when that is possible, or over.
    pub(super) fn wake_writer_of(&mut self, cx: &Context<'_>) {
        register(&mut self.writer, cx);
    }

    /// Something came.
    pub(super) fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// More can be sent.
    pub(super) fn wake_writer(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    /// Adds a piece of the body.
    pub(super) fn push(&mut self, data: Bytes) {
        self.unread += data.len();
        if data.len() >= SMALL {
            self.came.push_back(data);
            return;
        }
        if let Some(last) = self.came.back_mut()
            && last.len() + data.len() <= SMALL
        {
            match std::mem::take(last).try_into_mut() {
                Ok(mut longer) => {
                    longer.extend_from_slice(&data);
                    *last = longer.freeze();
                    return;
                }
                Err(shared) => *last = shared,
            }
        }
        self.came.push_back(Bytes::copy_from_slice(&data));
    }

    /// Data bytes still to be read, when that is known.
    pub(super) fn left(&self) -> Option<u64> {
        match self.owed {
            Some(owed) => Some(owed + self.unread as u64),
            None => (self.recv_ended && self.trailers.is_none()).then_some(self.unread as u64),
        }
    }

    /// Whether nothing more can pass on it.
    pub(super) fn is_closed(&self) -> bool {
        self.over.is_some() || self.recv_ended && self.send_ended
    }

    /// Whether all of it was read.
    pub(super) fn is_read(&self) -> bool {
        self.recv_ended && self.came.is_empty() && self.trailers.is_none()
    }
}

fn register(place: &mut Option<Waker>, cx: &Context<'_>) {
    if !place.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *place = Some(cx.waker().clone());
    }
}

/// The numbers of streams are nobody's choice: they need no better mixing than this.
#[derive(Debug, Default, Clone, Copy)]
struct ByNumber(u64);

impl Hasher for ByNumber {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        // Fibonacci hashing: the table looks at the upper bits too.
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

/// How a stream that nobody knows any more had ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Both sides had said all, or the peer reset it.
    Well,
    /// We reset it: what the peer sent before it knew may still come.
    Dropped,
    /// Too long ago to say, or it never was.
    Unknown,
}

/// All streams.
#[derive(Debug)]
pub(super) struct Streams {
    slots: Vec<Stream>,
    free: Vec<Key>,
    by_id: HashMap<u32, Key, BuildHasherDefault<ByNumber>>,
    /// Ended lately; true: by us.
    ended: VecDeque<(u32, bool)>,
}

impl Streams {
    pub(super) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), by_id: HashMap::default(), ended: VecDeque::new() }
    }

    /// Those the protocol knows.
    pub(super) fn active(&self) -> usize {
        self.by_id.len()
    }

    /// Those that somebody here holds.
    pub(super) fn held(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The stream with this number.
    pub(super) fn find(&self, id: u32) -> Option<Key> {
        self.by_id.get(&id).copied()
    }

    /// A stream that begins, held by `holders`.
    pub(super) fn open(&mut self, id: u32, holders: u8, recv: ReceiveWindow, send: SendWindow) -> Key {
        let key = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Stream::empty());
            // There are never more than peers are allowed, some thousands.
            (self.slots.len() - 1) as Key
        });
        let stream = &mut self.slots[key as usize];
        (stream.id, stream.holders, stream.recv_window, stream.send_window) = (id, holders, recv, send);
        self.by_id.insert(id, key);
        key
    }

    /// A stream that is held.
    pub(super) fn at(&mut self, key: Key) -> &mut Stream {
        &mut self.slots[key as usize]
    }

    /// The protocol knows it no longer.
    pub(super) fn close(&mut self, key: Key) {
        let (id, by_us) = {
            let stream = &self.slots[key as usize];
            (stream.id, matches!(stream.over, Some(Over::Dropped | Over::Broken(_))))
        };
        if self.by_id.remove(&id).is_some() {
            self.remember(id, by_us);
        }
    }

    /// A stream that was reset by us, perhaps before it began.
    pub(super) fn remember(&mut self, id: u32, by_us: bool) {
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back((id, by_us));
    }

    /// How a stream ended.
    pub(super) fn how_ended(&self, id: u32) -> Ended {
        match self.ended.iter().rev().find(|(ended, _)| *ended == id) {
            Some((_, true)) => Ended::Dropped,
            Some((_, false)) => Ended::Well,
            None => Ended::Unknown,
        }
    }

    /// Nobody holds it any more.
    pub(super) fn let_go(&mut self, key: Key) {
        self.slots[key as usize].clear();
        self.free.push(key);
        if self.free.len() == self.slots.len() && self.slots.len() > 64 {
            // A crowd has left.
            (self.slots, self.free) = (Vec::new(), Vec::new());
            self.by_id.shrink_to_fit();
        }
    }

    /// Every stream that is not over.
    pub(super) fn each(&mut self) -> impl Iterator<Item = (Key, &mut Stream)> {
        let open = |stream: &Stream| stream.id != 0 && !stream.is_closed();
        self.slots
            .iter_mut()
            .enumerate()
            .filter(move |(_, stream)| open(stream))
            .map(|(at, stream)| (at as Key, stream))
    }
}
