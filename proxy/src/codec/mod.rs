//! HTTP on the wire: bytes to heads and bodies, and back.
//!
//! Nothing here knows why a message is sent. What is read of [`http1`] is pure; a [`link::Link`] is a connection with what
//! was read and not yet understood; [`http1`] and [`http2`] each have a serving and a calling end.

mod ahead;
mod early;
pub(crate) mod http1;
pub(crate) mod http2;
mod incoming;
mod link;
mod outgoing;
mod pipe;
mod seldom;
pub(crate) mod spare;

pub(crate) use ahead::Ahead;
pub(crate) use early::Early;
pub(crate) use incoming::{BodyError, Incoming, in_words};
pub(crate) use link::{Link, Wire};
pub(crate) use outgoing::Outgoing;
pub(crate) use pipe::Pipe;
pub(crate) use seldom::Seldom;

/// Largest header section taken from anybody, HTTP/2 (RFC 9113 section 10.5.1 counts 32 bytes for each field beside its
/// text) and HTTP/1.1: Envoy's 60 KiB, which large cookies and tokens are known to fit.
pub(crate) const MAX_HEADER_BYTES: u32 = 60 * 1024;
/// Most header fields taken from anybody: Envoy's 100.
pub(crate) const MAX_HEADERS: usize = 100;
