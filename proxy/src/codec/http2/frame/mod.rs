//! Frames (RFC 9113 sections 4 and 6): bytes to frames, and back. What a single frame can get wrong is refused here.
//!
//! Payloads are cut off what was read, never copied. What depends on a stream's state, on windows or on the order of
//! frames is not known here.

mod read;
mod write;

use bytes::Bytes;

use super::bad::Code;

pub(crate) use read::{Rest, take, take_begun};
pub(crate) use write::{
    finish_headers, put_data_head, put_go_away, put_ping, put_reset, put_settings, put_settings_ack, put_window_update,
    start_headers,
};

/// What a client says first (RFC 9113 section 3.4).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame's head.
pub(crate) const HEAD: usize = 9;
/// The largest payload anybody must take, and what we allow peers.
pub(crate) const SMALLEST_MAX_FRAME: u32 = 16_384;
/// The largest payload there can be.
pub(crate) const LARGEST_MAX_FRAME: u32 = (1 << 24) - 1;
/// The largest stream identifier, and the mask that clears the reserved bit.
pub(crate) const LARGEST_STREAM: u32 = (1 << 31) - 1;

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// A frame that is well-formed by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A piece of a body.
    Data {
        /// Its stream.
        stream: u32,
        /// The piece, without padding.
        data: Bytes,
        /// What counts against the windows beside it: padding, and the byte that says how much.
        padded: u32,
        /// Nothing follows it.
        end: bool,
    },
    /// A header block or its beginning, without padding and priority.
    Headers {
        /// Its stream.
        stream: u32,
        /// The compressed fields.
        block: Bytes,
        /// The block is whole; else CONTINUATION follows.
        end_headers: bool,
        /// Nothing follows it on the stream.
        end: bool,
    },
    /// More of a header block.
    Continuation {
        /// Its stream.
        stream: u32,
        /// The compressed fields.
        block: Bytes,
        /// The block is whole.
        end_headers: bool,
    },
    /// Ignored.
    Priority {
        /// Its stream.
        stream: u32,
    },
    /// The end of one stream.
    Reset {
        /// Its stream.
        stream: u32,
        /// Why.
        code: Code,
    },
    /// The peer's settings.
    Settings(Settings),
    /// The peer has taken ours.
    SettingsAck,
    /// A sign of life.
    Ping {
        /// It answers ours.
        ack: bool,
        /// To be given back.
        data: [u8; 8],
    },
    /// The peer takes no more streams.
    GoAway {
        /// The last of our streams it may have done something about.
        last: u32,
        /// Why.
        code: Code,
        /// For people.
        debug: Bytes,
    },
    /// More room to send.
    WindowUpdate {
        /// Its stream; 0: the connection.
        stream: u32,
        /// Bytes; never 0.
        increment: u32,
    },
    /// Something newer than this.
    Unknown,
}

/// What SETTINGS say (RFC 9113 section 6.5.2); `None`: nothing about that. Of a setting that comes twice the last counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Bytes of the table that the sender decompresses with.
    pub(crate) header_table_size: Option<u32>,
    /// The sender takes pushed streams.
    pub(crate) enable_push: Option<bool>,
    /// Streams that the receiver may have open.
    pub(crate) max_concurrent_streams: Option<u32>,
    /// The window of each stream.
    pub(crate) initial_window_size: Option<u32>,
    /// Bytes of the largest payload the sender takes.
    pub(crate) max_frame_size: Option<u32>,
    /// Bytes of the largest header section the sender takes, as RFC 9113 section 10.5.1 counts.
    pub(crate) max_header_list_size: Option<u32>,
    /// RFC 8441: extended CONNECT is understood.
    pub(crate) enable_connect_protocol: Option<bool>,
}
