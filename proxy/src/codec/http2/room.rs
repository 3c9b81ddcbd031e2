//! Who may send how much, on a stream and in all, and who waits for it.
//!
//! Those who wait stand in a queue and send one frame each in turn, so that a large body does not keep small ones waiting. What
//! the peer may send is bounded for each stream by what its reader takes, and for all together.

use std::task::{Context, Poll};

use bytes::Bytes;

use super::bad::Bad;
use super::conn::State;
use super::frame;
use super::streams::{Key, Over};
use super::{LARGEST_STREAM_WINDOW, UNREAD};

/// DATA is not added to an outbox that holds as much: four TLS records.
const ENOUGH: usize = 64 * 1024;
/// DATA from this size on is not copied to the outbox.
const LARGE: usize = 8 * 1024;
/// So many of those that wait to send are woken at a time.
const WOKEN: usize = 16;

/// What became of a piece of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// All of it is on its way.
    All,
    /// No room for (all of) it: its writer is woken when there is.
    Blocked,
    /// The stream is over.
    Over,
}

impl State {
    /// Whether DATA, or a head, may be added.
    pub(super) fn has_room(&self) -> bool {
        self.waiting() < ENOUGH
    }

    /// Waits until there is room for a head on a stream.
    pub(super) fn poll_room(&mut self, key: Key, cx: &Context<'_>) -> Poll<Result<(), Over>> {
        if let Some(over) = self.streams.at(key).over {
            return Poll::Ready(Err(over));
        }
        if self.has_room() {
            return Poll::Ready(Ok(()));
        }
        self.queue_up(key, cx);
        Poll::Pending
    }

    fn queue_up(&mut self, key: Key, cx: &Context<'_>) {
        let stream = self.streams.at(key);
        stream.wake_writer_of(cx);
        if !stream.queued {
            stream.queued = true;
            self.queue.push_back(key);
        }
    }

    /// Sends as much of `piece` as there is room for, and behind it, if it is the last, the end of the stream.
    pub(super) fn put_data(&mut self, key: Key, piece: &mut Bytes, last: bool, cx: &Context<'_>) -> Put {
        loop {
            let stream = self.streams.at(key);
            if stream.over.is_some() {
                return Put::Over;
            }
            let (id, allowed) = (stream.id, stream.send_window.available());
            if !piece.is_empty() && allowed == 0 {
                stream.wake_writer_of(cx);
                return Put::Blocked;
            }
            let allowed = allowed.min(self.send_window.available()).min(self.max_frame as usize);
            let room = self.has_room() && (piece.len() < LARGE || self.link.takes_large());
            if !room || !piece.is_empty() && allowed == 0 {
                self.queue_up(key, cx);
                return Put::Blocked;
            }
            let length = piece.len().min(allowed);
            let ends = last && length == piece.len();
            let data = piece.split_to(length);
            self.say(|out, _| {
                frame::put_data_head(out, id, length, ends);
                if length < LARGE {
                    out.extend_from_slice(&data);
                }
            });
            if length >= LARGE {
                self.say_large(data);
            }
            self.flood.sent_data(1);
            self.send_window.sent(length);
            self.streams.at(key).send_window.sent(length);
            if ends {
                self.said_all(key);
            }
            if piece.is_empty() {
                return Put::All;
            }
            if !self.queue.is_empty() {
                // One frame each, as long as others wait too.
                self.queue_up(key, cx);
                return Put::Blocked;
            }
        }
    }

    /// Tells those who wait to send that they can. What each of them adds wakes the driver, who comes here again.
    pub(super) fn offer_room(&mut self) {
        let mut woken = 0;
        while woken < WOKEN && self.has_room() && self.link.takes_large() && self.send_window.available() > 0 {
            let Some(key) = self.queue.pop_front() else { break };
            let stream = self.streams.at(key);
            // Not so: it was let go meanwhile, and its slot may have another stream.
            if std::mem::take(&mut stream.queued) {
                stream.wake_writer();
                woken += 1;
            }
        }
        while woken < WOKEN && self.may_start() {
            let Some((_, waker)) = self.starting.pop_front() else { break };
            waker.wake();
            woken += 1;
        }
        if woken == WOKEN {
            // Those may all have gone away, and then nobody would wake us for the rest.
            self.wake_driver();
        }
    }

    fn may_start(&self) -> bool {
        self.streams.active() < self.max_streams as usize && self.has_room()
    }

    /// Waits until there may be another stream. `ticket` is the place in the queue.
    pub(super) fn poll_start(&mut self, ticket: &mut Option<u64>, cx: &Context<'_>) -> Poll<bool> {
        if !self.is_open() {
            return Poll::Ready(false);
        }
        let place = ticket.map(|ticket| self.starting.binary_search_by_key(&ticket, |(ticket, _)| *ticket));
        if let Some(Ok(place)) = place {
            let waker = &mut self.starting[place].1;
            waker.clone_from(cx.waker());
            return Poll::Pending;
        }
        // Who comes first waits behind those who wait; who was called does not.
        if self.may_start() && (self.starting.is_empty() || ticket.is_some()) {
            return Poll::Ready(true);
        }
        self.tickets += 1;
        *ticket = Some(self.tickets);
        self.starting.push_back((self.tickets, cx.waker().clone()));
        Poll::Pending
    }

    /// `length` bytes came, of any stream, known or not.
    ///
    /// # Errors
    /// When the peer had no room for them.
    pub(super) fn came(&mut self, length: usize) -> Result<(), Bad> {
        self.recv_window.came(0, length)
    }

    /// They wait to be read: the peer gets room again at once, unless very much waits already. So a slow reader does not
    /// stop the others, and the memory for all of them is bounded.
    pub(super) fn hold(&mut self, length: usize) {
        self.unread += length;
        if self.unread > UNREAD {
            self.withheld += length;
        } else {
            self.used(length);
        }
    }

    /// They were read, or thrown away, after they had been held.
    fn release(&mut self, length: usize) {
        self.unread -= length;
        let due = self.withheld.min(length);
        self.withheld -= due;
        self.used(due);
    }

    /// Gives the peer room again, on the connection.
    pub(super) fn used(&mut self, length: usize) {
        let increment = self.recv_window.used(length);
        if increment > 0 {
            self.say(|out, _| frame::put_window_update(out, 0, increment));
        }
    }

    /// `length` bytes of a stream were read: the peer gets room on it again. Who reads as fast as the peer sends gets
    /// a wider window.
    pub(super) fn read(&mut self, key: Key, length: usize) {
        self.release(length);
        let stream = self.streams.at(key);
        stream.unread -= length;
        if stream.is_closed() || stream.recv_ended {
            return;
        }
        let mut increment = stream.recv_window.used(length);
        if increment > 0 {
            let id = stream.id;
            if stream.came.is_empty() {
                let wider = stream.recv_window.size().saturating_mul(2).min(LARGEST_STREAM_WINDOW);
                increment += stream.recv_window.grow(wider);
            }
            self.say(|out, _| frame::put_window_update(out, id, increment));
        }
    }

    /// Nobody wants what came and will come on a stream.
    pub(super) fn discard(&mut self, key: Key) {
        let stream = self.streams.at(key);
        stream.unwanted = true;
        stream.came.clear();
        (stream.head, stream.trailers) = (None, None);
        stream.early.clear();
        // Room on the connection only: on this stream no more is asked for.
        let unread = std::mem::take(&mut stream.unread);
        self.release(unread);
    }
}
