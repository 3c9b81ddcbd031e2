//! HTTP/2 (RFC 9113), both ends of it.
//!
//! [`frame`], [`hpack`], [`message`], [`window`] and [`flood`] are pure. `conn` is what all who use a connection share, `arrive`
//! what comes on it; `drive` moves its bytes. [`serve`] and [`call`] are its two ends.

mod arrive;
pub(crate) mod bad;
mod body;
pub(crate) mod call;
mod conn;
mod crew;
mod drive;
pub(crate) mod flood;
pub(crate) mod frame;
#[cfg(test)]
mod harness;
pub(crate) mod hpack;
pub(crate) mod message;
mod room;
mod send;
pub(crate) mod serve;
mod streams;
pub(crate) mod window;

pub(crate) use body::Body;

/// Exchanges at once on one connection (Envoy's 1,024).
const STREAMS: u32 = 1024;
/// The largest payload of a frame we take: a large body costs less in large frames, and no other stream waits for long.
const MAX_FRAME: u32 = 64 * 1024;
/// What a peer may send in all before it hears from us: much more than is ever on the way.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// The window of a stream whose reader keeps up grows to this.
const LARGEST_STREAM_WINDOW: u32 = 1024 * 1024;
/// While no more than this waits to be read on a connection, its peer gets room again at once: some hundred readers that
/// stand still do not stop the others. Beyond it the peer waits for them.
const UNREAD: usize = 8 * 1024 * 1024;

#[cfg(test)]
mod abuse_tests;
#[cfg(test)]
mod by_hand;
#[cfg(test)]
mod conformance_tests;
#[cfg(test)]
mod frame_tests;
#[cfg(test)]
mod interop_tests;
#[cfg(test)]
mod message_tests;
