//! The reading end (RFC 7541 sections 3 to 6). A block is read to its end whatever it holds, because the next one builds on
//! it; beyond what is taken from anybody nothing is made of its fields.

use std::borrow::Cow;
use std::cell::RefCell;

use bytes::Bytes;

use super::field::{Field, Name};
use super::huffman;
use super::table::{Entry, OVERHEAD, Table};
use crate::codec::{MAX_HEADER_BYTES, MAX_HEADERS};

thread_local! {
    /// Where strings are decoded before they are copied out at their size.
    static DECODED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What [`DECODED`] keeps of its memory.
const KEPT: usize = 4 * 1024;

/// Decompresses the header blocks of one connection.
#[derive(Debug)]
pub(crate) struct Decoder {
    table: Table,
    /// What we let the writing end use, and it has not to use.
    allowed: u32,
}

/// Whether all fields of a block were handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// They were.
    Whole,
    /// There were more than are taken from anybody, in bytes (RFC 9113 section 10.5.1) or in number.
    TooLarge,
}

impl Decoder {
    /// A decoder whose table has at most `size` bytes: what our SETTINGS say.
    pub(crate) fn new(size: u32) -> Self {
        Self { table: Table::new(size), allowed: size }
    }

    /// Decompresses a whole block and hands each field to `take`, as long as they are not too many: borrowed from the table, or
    /// made for this block.
    ///
    /// # Errors
    /// When it cannot be: then no later block can be either (COMPRESSION_ERROR).
    pub(crate) fn decode(
        &mut self,
        block: &Bytes,
        mut take: impl FnMut(Cow<'_, Field>),
    ) -> Result<Extent, &'static str> {
        let mut reader = Reader { block, at: 0 };
        let mut left = Left { bytes: MAX_HEADER_BYTES, fields: MAX_HEADERS, extent: Extent::Whole };
        self.resizes(&mut reader)?;
        while let Some(first) = reader.next() {
            if first & 0x80 != 0 {
                let entry = self.table.get(reader.integer(first, 0x7f)?).ok_or(NO_ENTRY)?;
                if left.takes(entry.size) {
                    take(Cow::Borrowed(&entry.field));
                }
                continue;
            }
            let (mask, indexed, never) = match first {
                0x40.. => (0x3f, true, false),
                0x20.. => return Err("a change of the table's size behind a field"),
                0x10.. => (0x0f, false, true),
                _ => (0x0f, false, false),
            };
            let (name, length) = match reader.integer(first, mask)? {
                0 => reader.name()?,
                index => self.table.get(index).map(Entry::name).ok_or(NO_ENTRY)?,
            };
            let value = reader.value(indexed)?;
            let size = size(length, value.len());
            let field = name.field(value, never);
            if !indexed {
                if left.takes(size) {
                    take(Cow::Owned(field));
                }
                continue;
            }
            // What was cloned is cloned again at less cost than what was not.
            self.table.add(Entry { field: field.clone(), size, name: length });
            if left.takes(size) {
                take(Cow::Owned(field));
            }
        }
        Ok(left.extent)
    }

    /// Changes of the table's size, which stand before all fields and are at most two (RFC 7541 section 4.2).
    fn resizes(&mut self, reader: &mut Reader<'_>) -> Result<(), &'static str> {
        for _ in 0..2 {
            match reader.peek() {
                Some(first @ 0x20..0x40) => {
                    reader.at += 1;
                    let size = reader.integer(first, 0x1f)?;
                    let size = u32::try_from(size).ok().filter(|size| *size <= self.allowed);
                    self.table.resize(size.ok_or("a table larger than was allowed")?);
                }
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// The table that fields are looked up in.
    #[cfg(test)]
    pub(super) fn table(&self) -> &Table {
        &self.table
    }
}

const NO_ENTRY: &str = "a field that the table does not have";
const CUT: &str = "a header block that ends inside a field";

/// What a field counts for.
fn size(name: u32, value: usize) -> u32 {
    // A block is far below 2^32 bytes.
    u32::try_from(value + OVERHEAD).unwrap_or(u32::MAX).saturating_add(name)
}

/// What may still come of the fields of one block.
struct Left {
    bytes: u32,
    fields: usize,
    extent: Extent,
}

impl Left {
    /// Whether a field of `size` may come too; after one that may not none may.
    fn takes(&mut self, size: u32) -> bool {
        match (self.bytes.checked_sub(size), self.fields.checked_sub(1)) {
            (Some(bytes), Some(fields)) if self.extent == Extent::Whole => {
                (self.bytes, self.fields) = (bytes, fields);
                true
            }
            _ => {
                self.extent = Extent::TooLarge;
                false
            }
        }
    }
}

/// A block, read up to `at`.
struct Reader<'a> {
    block: &'a Bytes,
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.block.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    /// An integer (RFC 7541 section 5.1) that begins in `first`, in the bits of `mask`.
    #[inline]
    fn integer(&mut self, first: u8, mask: u8) -> Result<usize, &'static str> {
        match first & mask {
            small if small < mask => Ok(usize::from(small)),
            _ => self.large_integer(mask),
        }
    }

    fn large_integer(&mut self, mask: u8) -> Result<usize, &'static str> {
        let mut value = usize::from(mask);
        // Four bytes hold 28 bits, more than any index, size or length we take.
        for shift in [0, 7, 14, 21] {
            let byte = self.next().ok_or(CUT)?;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("an integer that is too large")
    }

    /// A string as it stands, and whether it is Huffman-coded.
    fn text(&mut self) -> Result<(&'a [u8], bool), &'static str> {
        let first = self.next().ok_or(CUT)?;
        let length = self.integer(first, 0x7f)?;
        let text = self.block.get(self.at..).and_then(|rest| rest.get(..length)).ok_or(CUT)?;
        self.at += length;
        Ok((text, first & 0x80 != 0))
    }

    /// A name, and how long it is.
    fn name(&mut self) -> Result<(Name, u32), &'static str> {
        let read = |text: &[u8]| (Name::read(text), u32::try_from(text.len()).unwrap_or(u32::MAX));
        match self.text()? {
            (text, false) => Ok(read(text)),
            (text, true) => decoded(text, read),
        }
    }

    /// A value. One that will stay is copied, so that it keeps nothing else of what was read.
    fn value(&mut self, stays: bool) -> Result<Bytes, &'static str> {
        match self.text()? {
            (text, false) if stays => Ok(Bytes::copy_from_slice(text)),
            (text, false) => Ok(self.block.slice(self.at - text.len()..self.at)),
            (text, true) => decoded(text, Bytes::copy_from_slice),
        }
    }
}

/// Reads a Huffman-coded string.
fn decoded<T>(text: &[u8], read: impl FnOnce(&[u8]) -> T) -> Result<T, &'static str> {
    DECODED.with_borrow_mut(|decoded| {
        decoded.clear();
        huffman::decode(text, decoded)?;
        let read = read(decoded);
        if decoded.capacity() > KEPT {
            *decoded = Vec::new();
        }
        Ok(read)
    })
}
