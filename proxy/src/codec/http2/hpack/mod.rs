//! HPACK (RFC 7541), made for the same few heads coming again and again: a field that is in the table costs a lookup and a
//! counter, on both ends.
//!
//! The reading end keeps names and values as the types that a head is made of, checked when they came first. The writing
//! end puts into the table what it meets a second time, so that what never repeats pushes nothing out.

mod decode;
mod encode;
mod field;
mod huffman;
mod table;

#[cfg(test)]
mod tests;

pub(crate) use decode::{Decoder, Extent};
pub(crate) use encode::Encoder;
pub(crate) use field::Field;

/// Bytes of the table on each end of a connection on which nobody said otherwise (RFC 9113 section 6.5.2). We say nothing,
/// and never use more.
pub(crate) const TABLE_SIZE: u32 = 4096;
