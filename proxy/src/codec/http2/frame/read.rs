//! Bytes to frames.

use bytes::{Buf, Bytes, BytesMut};

use super::{
    ACK, END_HEADERS, END_STREAM, Frame, HEAD, LARGEST_MAX_FRAME, LARGEST_STREAM, PADDED, PRIORITY, SMALLEST_MAX_FRAME,
    Settings,
};
use crate::codec::http2::bad::{Bad, Code};
use crate::codec::http2::window;

/// A part of DATA that is worth being looked at by itself.
const WORTH_TAKING: usize = 4 * 1024;

/// A frame's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Headers,
    Priority,
    Reset,
    Settings,
    /// Refused: we never allow it.
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    /// Something newer; ignored (RFC 9113 section 4.1).
    Unknown,
}

/// A frame's head, read.
struct Head {
    length: usize,
    kind: Kind,
    flags: u8,
    stream: u32,
}

impl Head {
    fn read(bytes: &[u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = *bytes;
        Self {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind: match kind {
                0 => Kind::Data,
                1 => Kind::Headers,
                2 => Kind::Priority,
                3 => Kind::Reset,
                4 => Kind::Settings,
                5 => Kind::PushPromise,
                6 => Kind::Ping,
                7 => Kind::GoAway,
                8 => Kind::WindowUpdate,
                9 => Kind::Continuation,
                _ => Kind::Unknown,
            },
            flags,
            stream: u32::from_be_bytes(stream) & LARGEST_STREAM,
        }
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Takes a frame off `inbox`; `None`: it is not whole yet, and until then nothing is moved. `max_frame_size` is what we
/// told the peer; a larger one is refused by its head, before any of it is waited for.
///
/// After an error of a stream the frame is gone and the next can be taken; after one of the connection nothing can.
///
/// # Errors
/// [`Bad`], when it is wrong by itself.
pub(crate) fn take(inbox: &mut BytesMut, max_frame_size: u32) -> Result<Option<Frame>, Bad> {
    let Some(bytes) = inbox.first_chunk::<HEAD>() else { return Ok(None) };
    let head = Head::read(bytes);
    if head.length > max_frame_size as usize {
        // Whatever changes the state of the connection cannot be left out (RFC 9113 section 4.2).
        return Err(Bad::connection(Code::FRAME_SIZE_ERROR, "a frame larger than was allowed"));
    }
    if inbox.len() < HEAD + head.length {
        return Ok(None);
    }
    inbox.advance(HEAD);
    // The small ones are read where they are: cutting them off would cost more than reading them.
    let read = match head.kind {
        Kind::Data => return data(&head, inbox.split_to(head.length).freeze()).map(Some),
        Kind::Headers => return headers(&head, inbox.split_to(head.length).freeze()).map(Some),
        Kind::Continuation => return continuation(&head, inbox.split_to(head.length).freeze()).map(Some),
        Kind::GoAway => return go_away(&head, inbox.split_to(head.length).freeze()).map(Some),
        Kind::Priority => priority(&head, &inbox[..head.length]),
        Kind::Reset => reset(&head, &inbox[..head.length]),
        Kind::Settings => settings(&head, &inbox[..head.length]),
        Kind::Ping => ping(&head, &inbox[..head.length]),
        Kind::WindowUpdate => window_update(&head, &inbox[..head.length]),
        Kind::PushPromise => Err(Bad::protocol("a pushed stream, which nobody allowed")),
        Kind::Unknown => Ok(Frame::Unknown),
    };
    inbox.advance(head.length);
    read.map(Some)
}

/// What is still to come of DATA whose beginning was taken.
#[derive(Debug)]
pub(crate) struct Rest {
    stream: u32,
    left: usize,
    end: bool,
}

/// Takes the beginning of a large DATA that is not whole yet, so that nobody waits for the rest of it, and nothing has to hold
/// it together. `None`: there is none, or not enough of it.
pub(crate) fn take_begun(inbox: &mut BytesMut) -> Option<(Frame, Rest)> {
    let head = Head::read(inbox.first_chunk::<HEAD>()?);
    let here = inbox.len() - HEAD;
    if head.kind != Kind::Data || head.stream == 0 || head.has(PADDED) || here < WORTH_TAKING || here >= head.length {
        return None;
    }
    inbox.advance(HEAD);
    let frame = Frame::Data { stream: head.stream, data: inbox.split().freeze(), padded: 0, end: false };
    Some((frame, Rest { stream: head.stream, left: head.length - here, end: head.has(END_STREAM) }))
}

impl Rest {
    /// Takes more of it; `None`: not enough has come.
    pub(crate) fn take(&mut self, inbox: &mut BytesMut) -> Option<Frame> {
        let here = inbox.len().min(self.left);
        if here < self.left.min(WORTH_TAKING) {
            return None;
        }
        self.left -= here;
        let data = inbox.split_to(here).freeze();
        Some(Frame::Data { stream: self.stream, data, padded: 0, end: self.end && self.left == 0 })
    }

    /// Whether all of it was taken.
    pub(crate) fn is_over(&self) -> bool {
        self.left == 0
    }
}

/// Cuts padding off both ends; how many bytes that were.
fn unpad(head: &Head, payload: &mut Bytes) -> Result<u32, Bad> {
    if !head.has(PADDED) {
        return Ok(0);
    }
    let Some(padding) = payload.first().copied() else {
        return Err(Bad::connection(Code::FRAME_SIZE_ERROR, "a padded frame that does not say how much"));
    };
    payload.advance(1);
    let Some(kept) = payload.len().checked_sub(usize::from(padding)) else {
        return Err(Bad::protocol("more padding than there is payload"));
    };
    payload.truncate(kept);
    Ok(u32::from(padding) + 1)
}

fn data(head: &Head, mut data: Bytes) -> Result<Frame, Bad> {
    if head.stream == 0 {
        return Err(Bad::protocol("DATA on stream 0"));
    }
    let padded = unpad(head, &mut data)?;
    Ok(Frame::Data { stream: head.stream, data, padded, end: head.has(END_STREAM) })
}

fn headers(head: &Head, mut block: Bytes) -> Result<Frame, Bad> {
    let stream = head.stream;
    if stream == 0 {
        return Err(Bad::protocol("HEADERS on stream 0"));
    }
    unpad(head, &mut block)?;
    if head.has(PRIORITY) {
        let Some(dependency) = block.first_chunk::<4>().filter(|_| block.len() >= 5) else {
            return Err(Bad::connection(Code::FRAME_SIZE_ERROR, "HEADERS too short for the priority they announce"));
        };
        if depends_on(*dependency) == stream {
            // Of the connection: the block is not decompressed, and it would have been for those that follow.
            return Err(Bad::protocol("a stream that depends on itself"));
        }
        block.advance(5);
    }
    Ok(Frame::Headers { stream, block, end_headers: head.has(END_HEADERS), end: head.has(END_STREAM) })
}

fn continuation(head: &Head, block: Bytes) -> Result<Frame, Bad> {
    if head.stream == 0 {
        return Err(Bad::protocol("CONTINUATION on stream 0"));
    }
    Ok(Frame::Continuation { stream: head.stream, block, end_headers: head.has(END_HEADERS) })
}

fn priority(head: &Head, payload: &[u8]) -> Result<Frame, Bad> {
    let stream = head.stream;
    if stream == 0 {
        return Err(Bad::protocol("PRIORITY on stream 0"));
    }
    let [dependency @ .., _weight] = *<&[u8; 5]>::try_from(payload)
        .map_err(|_| Bad::at(stream, Code::FRAME_SIZE_ERROR, "PRIORITY of other than 5 bytes"))?;
    if depends_on(dependency) == stream {
        return Err(Bad::at(stream, Code::PROTOCOL_ERROR, "a stream that depends on itself"));
    }
    Ok(Frame::Priority { stream })
}

fn depends_on(bytes: [u8; 4]) -> u32 {
    u32::from_be_bytes(bytes) & LARGEST_STREAM
}

fn reset(head: &Head, payload: &[u8]) -> Result<Frame, Bad> {
    if head.stream == 0 {
        return Err(Bad::protocol("RST_STREAM on stream 0"));
    }
    let code = <[u8; 4]>::try_from(payload)
        .map_err(|_| Bad::connection(Code::FRAME_SIZE_ERROR, "RST_STREAM of other than 4 bytes"))?;
    Ok(Frame::Reset { stream: head.stream, code: Code(u32::from_be_bytes(code)) })
}

fn settings(head: &Head, payload: &[u8]) -> Result<Frame, Bad> {
    if head.stream != 0 {
        return Err(Bad::protocol("SETTINGS on a stream"));
    }
    if head.has(ACK) {
        return match payload {
            [] => Ok(Frame::SettingsAck),
            _ => Err(Bad::connection(Code::FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS with a payload")),
        };
    }
    let (each, []) = payload.as_chunks::<6>() else {
        return Err(Bad::connection(Code::FRAME_SIZE_ERROR, "SETTINGS that are not 6 bytes each"));
    };
    let mut settings = Settings::default();
    for &[a, b, value @ ..] in each {
        settings.set(u16::from_be_bytes([a, b]), u32::from_be_bytes(value))?;
    }
    Ok(Frame::Settings(settings))
}

impl Settings {
    fn set(&mut self, identifier: u16, value: u32) -> Result<(), Bad> {
        let flag = |refused: &'static str| match value {
            0 | 1 => Ok(Some(value == 1)),
            _ => Err(Bad::protocol(refused)),
        };
        match identifier {
            1 => self.header_table_size = Some(value),
            2 => self.enable_push = flag("an ENABLE_PUSH other than 0 and 1")?,
            3 => self.max_concurrent_streams = Some(value),
            4 if value > window::LARGEST => {
                return Err(Bad::connection(Code::FLOW_CONTROL_ERROR, "an INITIAL_WINDOW_SIZE beyond 2^31-1"));
            }
            4 => self.initial_window_size = Some(value),
            5 if !(SMALLEST_MAX_FRAME..=LARGEST_MAX_FRAME).contains(&value) => {
                return Err(Bad::protocol("a MAX_FRAME_SIZE outside 2^14 to 2^24-1"));
            }
            5 => self.max_frame_size = Some(value),
            6 => self.max_header_list_size = Some(value),
            8 => self.enable_connect_protocol = flag("an ENABLE_CONNECT_PROTOCOL other than 0 and 1")?,
            _ => {}
        }
        Ok(())
    }
}

fn ping(head: &Head, payload: &[u8]) -> Result<Frame, Bad> {
    if head.stream != 0 {
        return Err(Bad::protocol("PING on a stream"));
    }
    let data = <[u8; 8]>::try_from(payload)
        .map_err(|_| Bad::connection(Code::FRAME_SIZE_ERROR, "PING of other than 8 bytes"))?;
    Ok(Frame::Ping { ack: head.has(ACK), data })
}

fn go_away(head: &Head, mut payload: Bytes) -> Result<Frame, Bad> {
    if head.stream != 0 {
        return Err(Bad::protocol("GOAWAY on a stream"));
    }
    let Some(&[a, b, c, d, code @ ..]) = payload.first_chunk::<8>() else {
        return Err(Bad::connection(Code::FRAME_SIZE_ERROR, "GOAWAY of fewer than 8 bytes"));
    };
    let (last, code) = (u32::from_be_bytes([a, b, c, d]) & LARGEST_STREAM, Code(u32::from_be_bytes(code)));
    payload.advance(8);
    Ok(Frame::GoAway { last, code, debug: payload })
}

fn window_update(head: &Head, payload: &[u8]) -> Result<Frame, Bad> {
    let increment = <[u8; 4]>::try_from(payload)
        .map_err(|_| Bad::connection(Code::FRAME_SIZE_ERROR, "WINDOW_UPDATE of other than 4 bytes"))?;
    match u32::from_be_bytes(increment) & window::LARGEST {
        0 => Err(Bad::at(head.stream, Code::PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")),
        increment => Ok(Frame::WindowUpdate { stream: head.stream, increment }),
    }
}
