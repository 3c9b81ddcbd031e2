//! What comes on a connection, frame by frame: to the streams it is for, or refused.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, request};

use super::bad::{Bad, Code};
use super::conn::{Role, State};
use super::frame::{self, Frame, Rest, Settings};
use super::message::{self, Unread};
use super::streams::{Ended, Key, Over};
use super::window::ReceiveWindow;
use super::{MAX_FRAME, STREAMS, window};
use crate::codec::{MAX_HEADER_BYTES, spare};

/// Interim heads that wait until somebody takes them.
const INTERIM: usize = 16;

/// A header block that is not whole yet.
#[derive(Debug)]
pub(super) struct Begun {
    stream: u32,
    end: bool,
    block: BytesMut,
    /// When its first frame came.
    pub(super) since: Instant,
}

/// A request that has come.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) key: Key,
    /// Whether more of it is to come: then somebody holds what comes.
    pub(super) has_body: bool,
    pub(super) head: Result<request::Parts, Unread>,
}

/// What can be taken of what was read.
enum Next {
    Frame(Frame),
    /// More of DATA whose beginning was taken.
    More(Frame),
    Nothing,
}

/// What a frame did beside what the connection now knows.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Requests, in the order in which they came.
    pub(super) arrived: Vec<Arrived>,
    /// The header block that is not whole.
    pub(super) begun: Option<Begun>,
    /// DATA of which the beginning was taken.
    pub(super) rest: Option<Rest>,
    /// SETTINGS came: what must be first has been.
    pub(super) introduced: bool,
    /// An answer to our PING of this content.
    pub(super) pong: Option<[u8; 8]>,
}

impl State {
    /// Takes what was read apart.
    ///
    /// # Errors
    /// What the peer did that ends the connection.
    pub(super) fn take_frames(&mut self, news: &mut News, now: Instant) -> Result<(), Bad> {
        loop {
            let heeded = match self.next_frame(news) {
                Ok(Next::Nothing) => return Ok(()),
                Ok(Next::More(data)) => self.heed(data, news, now),
                Ok(Next::Frame(frame)) => self.flood.frame(&frame, now).and_then(|()| self.heed(frame, news, now)),
                // Where only one frame can be the next, any other ends the connection.
                Err(Bad::Stream { why, .. }) if news.begun.is_some() || !news.introduced => Err(Bad::protocol(why)),
                Err(bad) => Err(bad),
            };
            match heeded {
                Ok(()) => {}
                Err(Bad::Stream { stream, code, why }) => {
                    self.flood.provoked(now)?;
                    self.refuse(stream, code, why)?;
                }
                Err(bad) => return Err(bad),
            }
        }
    }

    fn next_frame(&mut self, news: &mut News) -> Result<Next, Bad> {
        let inbox = &mut self.link.inbox;
        if let Some(rest) = &mut news.rest {
            let Some(more) = rest.take(inbox) else { return Ok(Next::Nothing) };
            if rest.is_over() {
                news.rest = None;
            }
            return Ok(Next::More(more));
        }
        if let Some(frame) = frame::take(inbox, MAX_FRAME)? {
            return Ok(Next::Frame(frame));
        }
        let Some((frame, rest)) = frame::take_begun(inbox) else { return Ok(Next::Nothing) };
        news.rest = Some(rest);
        Ok(Next::Frame(frame))
    }

    /// Resets a stream on which the peer did something wrong.
    fn refuse(&mut self, stream: u32, code: Code, why: &'static str) -> Result<(), Bad> {
        if let Some(key) = self.streams.find(stream) {
            self.reset(key, code, Over::Broken(why));
            return Ok(());
        }
        if self.is_idle(stream) {
            return Err(Bad::connection(code, why));
        }
        self.streams.remember(stream, true);
        self.say(|out, _| frame::put_reset(out, stream, code));
        Ok(())
    }

    fn heed(&mut self, frame: Frame, news: &mut News, now: Instant) -> Result<(), Bad> {
        if !news.introduced {
            if !matches!(frame, Frame::Settings(_)) {
                return Err(Bad::protocol("the first frame is not SETTINGS"));
            }
            news.introduced = true;
        }
        if let Some(begun) = &news.begun
            && !matches!(&frame, Frame::Continuation { stream, .. } if *stream == begun.stream)
        {
            return Err(Bad::protocol("a header block is not followed by the rest of it"));
        }
        match frame {
            Frame::Data { stream, data, padded, end } => self.data(stream, data, padded, end),
            Frame::Headers { stream, block, end_headers: true, end } => self.block(stream, &block, end, news),
            Frame::Headers { stream, block, end_headers: false, end } => {
                news.begun = Some(Begun { stream, end, block: BytesMut::from(block), since: now });
                Ok(())
            }
            Frame::Continuation { block, end_headers, .. } => self.more_of_block(&block, end_headers, news),
            Frame::Reset { stream, code } => self.was_reset(stream, code),
            Frame::Settings(settings) => self.settings(&settings),
            Frame::Ping { ack: true, data } => {
                news.pong = Some(data);
                Ok(())
            }
            Frame::Ping { ack: false, data } => {
                self.say(|out, _| frame::put_ping(out, true, data));
                Ok(())
            }
            Frame::GoAway { last, .. } => {
                self.peer_leaves(last);
                Ok(())
            }
            Frame::WindowUpdate { stream, increment } => self.wider(stream, increment),
            Frame::SettingsAck | Frame::Priority { .. } | Frame::Unknown => Ok(()),
        }
    }

    /// Whether nobody has begun a stream yet.
    fn is_idle(&self, stream: u32) -> bool {
        match self.role {
            Role::Calling => stream.is_multiple_of(2) || stream >= self.next_id,
            Role::Serving => stream.is_multiple_of(2) || stream > self.seen_id,
        }
    }

    /// How a stream that is not known any more ended. Where it is too long ago to say, a calling end has reset very many, and what
    /// was said on them before the peer knew still comes.
    fn how_ended(&self, stream: u32) -> Ended {
        match self.streams.how_ended(stream) {
            Ended::Unknown if self.role == Role::Calling => Ended::Dropped,
            known => known,
        }
    }

    /// A frame on a stream that the protocol no longer knows, or never knew.
    fn unexpected(&self, stream: u32, what: &'static str) -> Result<(), Bad> {
        if self.is_idle(stream) {
            return Err(Bad::protocol(what));
        }
        match self.how_ended(stream) {
            Ended::Dropped => Ok(()),
            Ended::Well | Ended::Unknown => {
                Err(Bad::at(stream, Code::STREAM_CLOSED, "a frame on a stream that has ended"))
            }
        }
    }

    fn data(&mut self, id: u32, data: Bytes, padded: u32, end: bool) -> Result<(), Bad> {
        let length = data.len() + padded as usize;
        self.came(length)?;
        let Some(key) = self.streams.find(id) else {
            self.used(length);
            return self.unexpected(id, "DATA on a stream that was not begun");
        };
        if let Err(bad) = self.judge_data(key, length, data.len() as u64, end) {
            self.used(length);
            return Err(bad);
        }
        let stream = self.streams.at(key);
        if stream.unwanted {
            self.used(length);
        } else {
            let kept = data.len();
            if kept > 0 {
                stream.push(data);
            }
            let increment = if padded > 0 && !end { stream.recv_window.used(padded as usize) } else { 0 };
            if increment > 0 {
                self.say(|out, _| frame::put_window_update(out, id, increment));
            }
            self.used(padded as usize);
            self.hold(kept);
        }
        if end {
            self.heard_all(key);
        }
        self.streams.at(key).wake_reader();
        Ok(())
    }

    fn judge_data(&mut self, key: Key, length: usize, data: u64, end: bool) -> Result<(), Bad> {
        let stream = self.streams.at(key);
        let id = stream.id;
        if stream.recv_ended {
            return Err(Bad::at(id, Code::STREAM_CLOSED, "DATA behind the end of a stream"));
        }
        if !stream.has_head {
            return Err(Bad::at(id, Code::PROTOCOL_ERROR, "DATA before the head of a response"));
        }
        stream.recv_window.came(id, length)?;
        if let Some(owed) = stream.owed {
            let left = owed.checked_sub(data);
            match left {
                Some(left) if left == 0 || !end => stream.owed = Some(left),
                _ => return Err(Bad::at(id, Code::PROTOCOL_ERROR, "the body is not as long as content-length says")),
            }
        }
        Ok(())
    }

    fn more_of_block(&mut self, more: &Bytes, end_headers: bool, news: &mut News) -> Result<(), Bad> {
        let Some(mut begun) = news.begun.take() else {
            return Err(Bad::protocol("CONTINUATION of nothing"));
        };
        // Decompressed it is larger, or not worth being so large.
        if begun.block.len() + more.len() > 2 * MAX_HEADER_BYTES as usize {
            return Err(Bad::connection(Code::ENHANCE_YOUR_CALM, "a header block without an end"));
        }
        begun.block.extend_from_slice(more);
        if end_headers {
            return self.block(begun.stream, &begun.block.freeze(), begun.end, news);
        }
        news.begun = Some(begun);
        Ok(())
    }

    /// A whole header block.
    fn block(&mut self, id: u32, block: &Bytes, end: bool, news: &mut News) -> Result<(), Bad> {
        match (self.streams.find(id), self.role) {
            (Some(key), Role::Calling) if !self.streams.at(key).has_head => self.response(key, block, end),
            (Some(key), _) => self.trailers(key, block, end),
            (None, Role::Serving) if self.is_idle(id) => self.request(id, block, end, news),
            (None, _) => {
                if self.is_idle(id) {
                    return Err(Bad::protocol("HEADERS on a stream that was not begun"));
                }
                message::skip(&mut self.decoder, block).map_err(|unread| unread.at(0))?;
                match self.how_ended(id) {
                    Ended::Dropped => Ok(()),
                    Ended::Well => Err(Bad::connection(Code::STREAM_CLOSED, "HEADERS on a stream that has ended")),
                    Ended::Unknown => Err(Bad::protocol("the number of a stream is not larger than the last")),
                }
            }
        }
    }

    fn request(&mut self, id: u32, block: &Bytes, end: bool, news: &mut News) -> Result<(), Bad> {
        if id.is_multiple_of(2) {
            return Err(Bad::protocol("a client began a stream with an even number"));
        }
        self.seen_id = id;
        if self.leaving {
            self.streams.remember(id, true);
            // It was told that we take no more: what it asks is for somebody else to answer.
            return message::skip(&mut self.decoder, block).map_err(|unread| unread.at(0));
        }
        self.last_id = id;
        let head = message::request(&mut self.decoder, block, spare::headers(), end);
        if let Err(lost @ Unread::Compression(_)) = head {
            return Err(lost.at(id));
        }
        // Those count too that the peer has reset and whose work has not ended: else it could ask for any amount of work.
        if self.streams.held() >= STREAMS as usize {
            return Err(Bad::at(id, Code::REFUSED_STREAM, "more streams than are allowed"));
        }
        let (head, owed) = match head {
            Ok((head, owed)) => (Ok(head), owed),
            Err(unread) => (Err(unread), None),
        };
        let has_body = !end && head.is_ok();
        let holders = 1 + u8::from(has_body);
        let (recv, send) = (ReceiveWindow::new(window::INITIAL), window::SendWindow::new(self.initial_window));
        let key = self.streams.open(id, holders, recv, send);
        let stream = self.streams.at(key);
        (stream.has_head, stream.recv_ended, stream.unwanted) = (true, end, !has_body);
        stream.owed = owed.filter(|_| !end);
        news.arrived.push(Arrived { key, has_body, head });
        Ok(())
    }

    fn response(&mut self, key: Key, block: &Bytes, end: bool) -> Result<(), Bad> {
        let (id, to_head) = (self.streams.at(key).id, self.streams.at(key).to_head);
        let read = message::response(&mut self.decoder, block, spare::headers(), end);
        let (head, length) = read.map_err(|unread| unread.at(id))?;
        let stream = self.streams.at(key);
        if head.status.is_informational() {
            if stream.early.len() >= INTERIM {
                return Err(Bad::at(id, Code::ENHANCE_YOUR_CALM, "interim responses without an end"));
            }
            stream.early.push((head.status, head.headers));
        } else {
            let bodiless = to_head || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
            stream.owed = length.filter(|_| !bodiless);
            if end && stream.owed.is_some_and(|owed| owed > 0) {
                return Err(Bad::at(id, Code::PROTOCOL_ERROR, "the body is not as long as content-length says"));
            }
            stream.has_head = true;
            stream.head = Some(head);
        }
        if end {
            self.heard_all(key);
        }
        self.streams.at(key).wake_reader();
        Ok(())
    }

    fn trailers(&mut self, key: Key, block: &Bytes, end: bool) -> Result<(), Bad> {
        let read = message::trailers(&mut self.decoder, block, spare::headers());
        let stream = self.streams.at(key);
        let id = stream.id;
        if stream.recv_ended && !matches!(read, Err(Unread::Compression(_))) {
            return Err(Bad::at(id, Code::STREAM_CLOSED, "HEADERS behind the end of a stream"));
        }
        let trailers = read.map_err(|unread| unread.at(id))?;
        if !end {
            return Err(Bad::at(id, Code::PROTOCOL_ERROR, "a second head on a stream"));
        }
        if stream.owed.is_some_and(|owed| owed > 0) {
            return Err(Bad::at(id, Code::PROTOCOL_ERROR, "the body is not as long as content-length says"));
        }
        if !stream.unwanted && !trailers.is_empty() {
            stream.trailers = Some(trailers);
        }
        self.heard_all(key);
        self.streams.at(key).wake_reader();
        Ok(())
    }

    fn was_reset(&mut self, id: u32, code: Code) -> Result<(), Bad> {
        match self.streams.find(id) {
            Some(key) => {
                let refused = self.role == Role::Calling && code == Code::REFUSED_STREAM;
                self.over(key, if refused { Over::Refused } else { Over::Reset(code) });
                Ok(())
            }
            None if self.is_idle(id) => Err(Bad::protocol("RST_STREAM on a stream that was not begun")),
            None => Ok(()),
        }
    }

    fn settings(&mut self, settings: &Settings) -> Result<(), Bad> {
        if self.role == Role::Calling && settings.enable_push == Some(true) {
            return Err(Bad::protocol("a server that wants to be pushed to"));
        }
        if let Some(size) = settings.header_table_size {
            self.encoder.resize(size);
        }
        let most = settings.max_concurrent_streams;
        // Who does not say so at first sets no bound.
        self.max_streams = most.unwrap_or(if self.is_settled { self.max_streams } else { u32::MAX });
        self.is_settled = true;
        if let Some(most) = settings.max_frame_size {
            self.max_frame = most;
        }
        if let Some(size) = settings.initial_window_size {
            let before = std::mem::replace(&mut self.initial_window, size);
            for (_, stream) in self.streams.each() {
                stream.send_window.resize(before, size)?;
                stream.wake_writer();
            }
        }
        self.say(|out, _| frame::put_settings_ack(out));
        Ok(())
    }

    /// The peer takes no more streams, and did nothing about those beyond `last`.
    fn peer_leaves(&mut self, last: u32) {
        if self.role == Role::Serving {
            // It means streams of ours, of which there are none; it still ends those it has begun.
            return;
        }
        self.peer_leaving = true;
        let beyond: Vec<Key> = self.streams.each().filter(|(_, stream)| stream.id > last).map(|(key, _)| key).collect();
        for key in beyond {
            self.over(key, Over::Refused);
        }
        self.start_nothing();
    }

    fn wider(&mut self, id: u32, increment: u32) -> Result<(), Bad> {
        if id == 0 {
            // Those who wait are told by the driver, at the end of its turn.
            return self.send_window.widen(0, increment);
        }
        match self.streams.find(id) {
            Some(key) => {
                let stream = self.streams.at(key);
                stream.send_window.widen(id, increment)?;
                stream.wake_writer();
                Ok(())
            }
            None if self.is_idle(id) => Err(Bad::protocol("WINDOW_UPDATE on a stream that was not begun")),
            None => Ok(()),
        }
    }

    /// Begins a stream for a request whose head `put` writes.
    pub(super) fn begin(&mut self, method: &Method, end: bool, head: message::Request<'_>) -> Key {
        let (id, begins_at) = (self.next_id, self.added);
        self.next_id += 2;
        let holders = 1 + u8::from(!end);
        let (recv, send) = (ReceiveWindow::new(window::INITIAL), window::SendWindow::new(self.initial_window));
        let key = self.streams.open(id, holders, recv, send);
        let stream = self.streams.at(key);
        (stream.begins_at, stream.send_ended, stream.to_head) = (begins_at, end, *method == Method::HEAD);
        let max_frame = self.max_frame;
        self.say(|out, encoder| message::put_request(out, encoder, id, head, end, max_frame));
        key
    }
}
