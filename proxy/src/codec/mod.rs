//! HTTP on the wire: bytes to heads and bodies, and back. HTTP/1.1 is ours, HTTP/2 is hyper's.
//!
//! Nothing here knows why a message is sent. What is read of [`http1`] is pure; a [`link::Link`] is a connection with what
//! was read and not yet understood, [`http1::serve`] and [`http1::call`] are its two ends.

pub(crate) mod http1;
mod incoming;
mod link;
mod seldom;
pub(crate) mod spare;

pub(crate) use incoming::{BodyError, Incoming, in_words};
pub(crate) use link::{Link, Wire};
pub(crate) use seldom::Seldom;

/// Largest header section taken from anybody, HTTP/2 (RFC 9113 section 10.5.1 counts 32 bytes for each field beside its
/// text) and HTTP/1.1: Envoy's 60 KiB, which large cookies and tokens are known to fit.
pub(crate) const MAX_HEADER_BYTES: u32 = 60 * 1024;
/// Most header fields taken from anybody: Envoy's 100.
pub(crate) const MAX_HEADERS: usize = 100;
