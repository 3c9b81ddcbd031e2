//! Frames to bytes.

use super::{ACK, END_HEADERS, END_STREAM, HEAD, Settings};
use crate::codec::http2::bad::Code;

/// A frame's head. `length` is at most what the peer takes.
fn head(length: usize, kind: u8, flags: u8, stream: u32) -> [u8; HEAD] {
    let [a, b, c, d] = stream.to_be_bytes();
    // No payload has more than 24 bits.
    let [.., x, y, z] = length.to_be_bytes();
    [x, y, z, kind, flags, a, b, c, d]
}

fn put_head(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    out.extend_from_slice(&head(length, kind, flags, stream));
}

/// Writes the head of DATA; `length` bytes follow.
pub(crate) fn put_data_head(out: &mut Vec<u8>, stream: u32, length: usize, end: bool) {
    put_head(out, length, 0, if end { END_STREAM } else { 0 }, stream);
}

/// Leaves room for the head of HEADERS; where it begins. The block follows, and then [`finish_headers`].
pub(crate) fn start_headers(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD]);
    start
}

/// Writes the head of the HEADERS that began at `start`, now that its block is there; what of it goes beyond
/// `max_frame_size` becomes CONTINUATION.
pub(crate) fn finish_headers(out: &mut Vec<u8>, start: usize, stream: u32, end: bool, max_frame_size: u32) {
    let max = max_frame_size as usize;
    let length = out.len() - start - HEAD;
    let end = if end { END_STREAM } else { 0 };
    if length <= max {
        out[start..start + HEAD].copy_from_slice(&head(length, 1, end | END_HEADERS, stream));
        return;
    }
    let rest = out.split_off(start + HEAD + max);
    out[start..start + HEAD].copy_from_slice(&head(max, 1, end, stream));
    let mut pieces = rest.chunks(max).peekable();
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        put_head(out, piece.len(), 9, flags, stream);
        out.extend_from_slice(piece);
    }
}

/// Writes RST_STREAM.
pub(crate) fn put_reset(out: &mut Vec<u8>, stream: u32, code: Code) {
    put_head(out, 4, 3, 0, stream);
    out.extend_from_slice(&code.0.to_be_bytes());
}

/// Writes SETTINGS.
pub(crate) fn put_settings(out: &mut Vec<u8>, settings: &Settings) {
    put_head(out, settings.each().count() * 6, 4, 0, 0);
    for (identifier, value) in settings.each() {
        out.extend_from_slice(&identifier.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Writes that the peer's SETTINGS were taken.
pub(crate) fn put_settings_ack(out: &mut Vec<u8>) {
    put_head(out, 0, 4, ACK, 0);
}

/// Writes PING.
pub(crate) fn put_ping(out: &mut Vec<u8>, ack: bool, data: [u8; 8]) {
    put_head(out, 8, 6, if ack { ACK } else { 0 }, 0);
    out.extend_from_slice(&data);
}

/// Writes GOAWAY; `debug` is for people.
pub(crate) fn put_go_away(out: &mut Vec<u8>, last: u32, code: Code, debug: &str) {
    put_head(out, 8 + debug.len(), 7, 0, 0);
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&code.0.to_be_bytes());
    out.extend_from_slice(debug.as_bytes());
}

/// Writes WINDOW_UPDATE; stream 0 is the connection, `increment` is not 0.
pub(crate) fn put_window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    put_head(out, 4, 8, 0, stream);
    out.extend_from_slice(&increment.to_be_bytes());
}

impl Settings {
    /// Those that say anything, as identifier and value.
    fn each(&self) -> impl Iterator<Item = (u16, u32)> {
        [
            (1, self.header_table_size),
            (2, self.enable_push.map(u32::from)),
            (3, self.max_concurrent_streams),
            (4, self.initial_window_size),
            (5, self.max_frame_size),
            (6, self.max_header_list_size),
            (8, self.enable_connect_protocol.map(u32::from)),
        ]
        .into_iter()
        .filter_map(|(identifier, value)| Some((identifier, value?)))
    }
}
