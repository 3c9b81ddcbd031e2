//! What the tests share that make frames by hand: the frames, and a client that says what it likes.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::bad::Code;
use super::frame::{self, Frame, PREFACE, Settings};
use super::harness::*;
use super::hpack::{Decoder, TABLE_SIZE};
use super::message;

const ACK: [u8; 8] = *b"are we??";

/// A client that says what it likes.
pub(super) struct Raw {
    pub(super) stream: DuplexStream,
    inbox: BytesMut,
    decoder: Decoder,
    pub(super) responder: Rc<ByPath>,
}

/// A frame as it stands.
pub(super) fn raw(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

pub(super) const END_STREAM: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const BOTH: u8 = END_STREAM | END_HEADERS;

/// A block of `name: value` lines, as they stand.
pub(super) fn block(lines: &[&str]) -> Vec<u8> {
    let mut block = Vec::new();
    for line in lines {
        let (name, value) = line.rsplit_once(": ").unwrap();
        block.extend_from_slice(&[0x00, name.len() as u8]);
        block.extend_from_slice(name.as_bytes());
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
    }
    block
}

/// The head of a request for `path`.
pub(super) fn get(path: &str) -> Vec<u8> {
    block(&[":method: GET", ":scheme: http", ":authority: orders.shop", &format!(":path: {path}")])
}

pub(super) fn post_with(more: &[&str]) -> Vec<u8> {
    block(&[&[":method: POST", ":scheme: http", ":authority: orders.shop", ":path: /echo"], more].concat())
}

pub(super) fn headers(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    raw(1, flags, stream, block)
}

pub(super) fn data(flags: u8, stream: u32, data: &[u8]) -> Vec<u8> {
    raw(0, flags, stream, data)
}

pub(super) fn setting(identifier: u16, value: u32) -> Vec<u8> {
    raw(4, 0, 0, &[&identifier.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

impl Raw {
    /// A client that has said nothing.
    pub(super) fn silent() -> Self {
        let responder = Rc::default();
        let (stream, _serving) = our_server(&responder);
        Self::of(stream, responder)
    }

    /// The same on a connection that `responder` answers.
    pub(super) fn of(stream: DuplexStream, responder: Rc<ByPath>) -> Self {
        Self { stream, inbox: BytesMut::new(), decoder: Decoder::new(TABLE_SIZE), responder }
    }

    /// A client that has said what is said first, and was understood.
    pub(super) async fn new() -> Self {
        Self::with(&Settings::default()).await
    }

    pub(super) async fn with(settings: &Settings) -> Self {
        let mut client = Self::silent();
        let mut out = PREFACE.to_vec();
        frame::put_settings(&mut out, settings);
        client.send(&out).await;
        let said = client.alive().await;
        assert!(matches!(said[0], Frame::Settings(_)), "the server's SETTINGS come first: {said:?}");
        assert!(said.contains(&Frame::SettingsAck));
        client
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        // A connection that ends in the middle is seen by what it said.
        let _ = self.stream.write_all(bytes).await;
    }

    /// The next frame; `None`: the connection has ended.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = frame::take(&mut self.inbox, frame::SMALLEST_MAX_FRAME).expect("a frame") {
                return Some(frame);
            }
            if self.stream.read_buf(&mut self.inbox).await.ok()? == 0 {
                return None;
            }
        }
    }

    /// What was said up to the answer to a PING, which shows that the connection goes on and everything was heard.
    pub(super) async fn alive(&mut self) -> Vec<Frame> {
        let mut ping = Vec::new();
        frame::put_ping(&mut ping, false, ACK);
        self.send(&ping).await;
        let mut said = Vec::new();
        loop {
            match self.next().await {
                Some(Frame::Ping { ack: true, data: ACK }) => return said,
                Some(frame) => said.push(frame),
                None => panic!("the connection has ended: {said:?}"),
            }
        }
    }

    /// Sends `bytes`, which end the connection with `code`.
    #[track_caller]
    pub(super) fn ends(mut self, bytes: &[u8], code: Code) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        let bytes = bytes.to_vec();
        async move {
            self.send(&bytes).await;
            let mut said = Vec::new();
            while let Some(frame) = self.next().await {
                said.push(frame);
            }
            assert!(
                matches!(said.last(), Some(Frame::GoAway { code: last, .. }) if *last == code),
                "{caller}: {code} was expected: {said:?}"
            );
        }
    }

    /// Sends `bytes`, for which `stream` is reset with `code`; the connection goes on.
    pub(super) async fn resets(&mut self, bytes: &[u8], stream: u32, code: Code) {
        self.send(bytes).await;
        loop {
            match self.next().await {
                Some(Frame::Reset { stream: reset, code: why }) => {
                    assert_eq!((reset, why), (stream, code));
                    break;
                }
                Some(Frame::GoAway { code, debug, .. }) => panic!("the connection ends: {code} {debug:?}"),
                Some(_) => {}
                None => panic!("the connection has ended"),
            }
        }
        self.alive().await;
    }

    /// The answer on `stream`, and its body.
    pub(super) async fn answer(&mut self, stream: u32) -> (u16, Bytes) {
        let (mut status, mut body) = (0, Vec::new());
        loop {
            match self.next().await {
                Some(Frame::Headers { block, end: true, .. }) if status > 0 => {
                    message::trailers(&mut self.decoder, &block, http::HeaderMap::new()).unwrap();
                    return (status, body.into());
                }
                Some(Frame::Headers { stream: id, block, end, .. }) => {
                    let (head, _) = message::response(&mut self.decoder, &block, http::HeaderMap::new(), end).unwrap();
                    if id == stream {
                        status = head.status.as_u16();
                        if end {
                            return (status, body.into());
                        }
                    }
                }
                Some(Frame::Data { stream: id, data, end, .. }) if id == stream => {
                    body.extend_from_slice(&data);
                    if end {
                        return (status, body.into());
                    }
                }
                Some(Frame::Reset { stream: id, code }) if id == stream => panic!("it was reset: {code}"),
                Some(Frame::GoAway { code, debug, .. }) => panic!("the connection ends: {code} {debug:?}"),
                Some(_) => {}
                None => panic!("the connection has ended"),
            }
        }
    }
}
