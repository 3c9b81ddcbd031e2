//! The writing end. A field that the table has is written as its index; one that was met before is put there; anything else is
//! written out, because what comes once would push out what comes always.
//!
//! Looking up costs one hash of a few words. Its quality matters little: the table is small, candidates are compared byte by
//! byte, and there are at most as many as the table has entries.

use std::collections::VecDeque;
use std::sync::LazyLock;

use http::header::{self, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::TABLE_SIZE;
use super::field::Field;
use super::table::{OVERHEAD, STATIC, STATIC_ENTRIES};

/// Chains of entries. A table of 4096 bytes has at most 128 entries.
const CHAINS: usize = 64;
/// Fields that were met once and are remembered: more than a head has.
const MET: usize = 64;
/// A field larger than this is never put into the table: it would push out too many.
const LARGEST: usize = 1024;
/// A cookie shorter than this could be guessed letter by letter from what the table says about it (RFC 7541 section 7.1.3).
const SHORT_COOKIE: usize = 20;

/// Compresses the header blocks of one connection.
#[derive(Debug)]
pub(crate) struct Encoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    /// What they count for.
    size: usize,
    max: usize,
    /// Sizes of the table that the peer has still to be told: the smallest since the last block, then the present one.
    resized: Option<usize>,
    /// The number of the newest entry: they are counted, and begin anew after 2^32.
    newest: u32,
    /// None until there is an entry: most connections never have any.
    index: Option<Box<Index>>,
}

/// Where to look.
#[derive(Debug)]
struct Index {
    /// By hash of name and value, the number of the newest entry.
    fields: [u32; CHAINS],
    /// By hash of the name.
    names: [u32; CHAINS],
    /// Hashes of fields that were met once, the oldest at `oldest`.
    met: [u32; MET],
    oldest: usize,
}

/// A field in the table. Of each chain the next older entry's number.
#[derive(Debug)]
struct Entry {
    hash: u64,
    next: u32,
    name_hash: u64,
    next_name: u32,
    name: usize,
    /// Name and value.
    text: Box<[u8]>,
}

/// How a field that the table does not have is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// It enters the table.
    Indexed = 0x40,
    /// It does not.
    Literal = 0x00,
    /// It does not here, and must not anywhere behind us.
    Never = 0x10,
}

impl Encoder {
    /// An encoder for a connection on which nobody said anything about tables.
    pub(crate) fn new() -> Self {
        let max = TABLE_SIZE as usize;
        Self { entries: VecDeque::new(), size: 0, max, resized: None, newest: 0, index: None }
    }

    /// The peer's SETTINGS allow a table of `size` bytes. We use no more than anybody does who was told nothing.
    pub(crate) fn resize(&mut self, size: u32) {
        let max = size.min(TABLE_SIZE) as usize;
        if max != self.max {
            self.resized = Some(self.resized.map_or(max, |smallest| smallest.min(max)));
            self.max = max;
            self.evict(0);
        }
    }

    /// Begins a block.
    pub(crate) fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some(smallest) = self.resized.take() {
            if smallest < self.max {
                integer(out, 0x20, 0x1f, smallest);
            }
            integer(out, 0x20, 0x1f, self.max);
        }
    }

    /// Writes `:method`.
    pub(crate) fn method(&mut self, out: &mut Vec<u8>, method: &Method) {
        match *method {
            Method::GET => out.push(0x82),
            Method::POST => out.push(0x83),
            _ => self.field(out, ":method", 2, method.as_str().as_bytes()),
        }
    }

    /// Writes `:scheme`.
    pub(crate) fn scheme(&mut self, out: &mut Vec<u8>, scheme: &str) {
        match scheme {
            "http" => out.push(0x86),
            "https" => out.push(0x87),
            _ => self.field(out, ":scheme", 6, scheme.as_bytes()),
        }
    }

    /// Writes `:authority`.
    pub(crate) fn authority(&mut self, out: &mut Vec<u8>, authority: &str) {
        self.field(out, ":authority", 1, authority.as_bytes());
    }

    /// Writes `:path`.
    pub(crate) fn path(&mut self, out: &mut Vec<u8>, path: &str) {
        match path {
            "/" => out.push(0x84),
            _ => self.field(out, ":path", 4, path.as_bytes()),
        }
    }

    /// Writes `:status`.
    pub(crate) fn status(&mut self, out: &mut Vec<u8>, status: StatusCode) {
        match status.as_u16() {
            200 => out.push(0x88),
            204 => out.push(0x89),
            206 => out.push(0x8a),
            304 => out.push(0x8b),
            400 => out.push(0x8c),
            404 => out.push(0x8d),
            500 => out.push(0x8e),
            _ => self.field(out, ":status", 8, status.as_str().as_bytes()),
        }
    }

    /// Writes a header.
    pub(crate) fn header(&mut self, out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
        let (text, bytes) = (name.as_str(), value.as_bytes());
        match form(name, text.len(), value) {
            Form::Indexed => self.field(out, text, 0, bytes),
            form => literal(out, form, self.name(text, fold(text.as_bytes())), text, bytes),
        }
    }

    /// Writes a field whose name has `index` among the fields that everybody knows; 0: to be found out.
    fn field(&mut self, out: &mut Vec<u8>, name: &str, index: usize, value: &[u8]) {
        let name_hash = fold(name.as_bytes());
        if name.len() + value.len() > LARGEST {
            let index = if index == 0 { self.name(name, name_hash) } else { index };
            return literal(out, Form::Literal, index, name, value);
        }
        let hash = mixed(name_hash, fold(value));
        if let Some(index) = self.find(hash, name, value) {
            return integer(out, 0x80, 0x7f, index);
        }
        let index = if index == 0 { self.name(name, name_hash) } else { index };
        // A name that nobody knows enters with its first value: it can be pointed at then.
        if self.has_met(hash) || index == 0 {
            literal(out, Form::Indexed, index, name, value);
            self.add(hash, name_hash, name, value);
        } else {
            literal(out, Form::Literal, index, name, value);
        }
    }

    /// The index of an entry of this name and value.
    fn find(&self, hash: u64, name: &str, value: &[u8]) -> Option<usize> {
        let mut number = self.index.as_ref()?.fields[chain(hash)];
        let mut from = 0;
        while let Some((age, entry)) = self.entry(number, from) {
            if entry.hash == hash && entry.name().len() == name.len() && entry.is(name, value) {
                return Some(age + STATIC_ENTRIES + 1);
            }
            (number, from) = (entry.next, age + 1);
        }
        None
    }

    /// The index of an entry of this name; 0: there is none.
    fn name(&self, name: &str, hash: u64) -> usize {
        let known = KNOWN.find(name, hash);
        let Some(index) = self.index.as_ref().filter(|_| known == 0) else { return known };
        let mut number = index.names[chain(hash)];
        let mut from = 0;
        while let Some((age, entry)) = self.entry(number, from) {
            if entry.name_hash == hash && entry.name() == name.as_bytes() {
                return age + STATIC_ENTRIES + 1;
            }
            (number, from) = (entry.next_name, age + 1);
        }
        0
    }

    /// The entry with `number`, and how many are newer, which are at least `from`: chains lead from newer ones to older ones, and
    /// end where an entry is gone.
    fn entry(&self, number: u32, from: usize) -> Option<(usize, &Entry)> {
        let age = self.newest.wrapping_sub(number) as usize;
        self.entries.get(age).filter(|_| age >= from).map(|entry| (age, entry))
    }

    /// Whether such a field was met lately. From now on it was.
    fn has_met(&mut self, hash: u64) -> bool {
        let index = self.index.get_or_insert_with(Index::new);
        let hash = hash as u32;
        if index.met.contains(&hash) {
            return true;
        }
        index.met[index.oldest] = hash;
        index.oldest = (index.oldest + 1) % MET;
        false
    }

    fn add(&mut self, hash: u64, name_hash: u64, name: &str, value: &[u8]) {
        let size = name.len() + value.len() + OVERHEAD;
        self.evict(size);
        if size > self.max {
            return;
        }
        self.newest = self.newest.wrapping_add(1);
        let index = self.index.get_or_insert_with(Index::new);
        let next = std::mem::replace(&mut index.fields[chain(hash)], self.newest);
        let next_name = std::mem::replace(&mut index.names[chain(name_hash)], self.newest);
        let text = [name.as_bytes(), value].concat().into_boxed_slice();
        self.entries.push_front(Entry { hash, next, name_hash, next_name, name: name.len(), text });
        self.size += size;
    }

    /// Makes room for `size` bytes, as the reading end does.
    fn evict(&mut self, size: usize) {
        while self.size + size > self.max {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.size -= oldest.text.len() + OVERHEAD;
        }
    }

    /// Names and values in the table, the newest first.
    #[cfg(test)]
    pub(super) fn table(&self) -> Vec<(&[u8], &[u8])> {
        self.entries.iter().map(|entry| entry.text.split_at(entry.name)).collect()
    }
}

impl Index {
    fn new() -> Box<Self> {
        Box::new(Self { fields: [0; CHAINS], names: [0; CHAINS], met: [0; MET], oldest: 0 })
    }
}

impl Entry {
    fn name(&self) -> &[u8] {
        &self.text[..self.name]
    }

    fn is(&self, name: &str, value: &[u8]) -> bool {
        self.name() == name.as_bytes() && self.text[self.name..] == *value
    }
}

/// How a header is written that the table does not have. What is secret never enters a table: what others make us send could
/// be used to guess it by the size of what we send (RFC 7541 section 7.1).
fn form(name: &HeaderName, length: usize, value: &HeaderValue) -> Form {
    if value.is_sensitive() {
        return Form::Never;
    }
    // Five names matter here; their lengths tell most others apart.
    match length {
        13 if *name == header::AUTHORIZATION => Form::Never,
        19 if *name == header::PROXY_AUTHORIZATION => Form::Never,
        6 if *name == header::COOKIE && value.len() < SHORT_COOKIE => Form::Never,
        // Seldom the same twice, or shorter to write than to look up.
        10 if *name == header::SET_COOKIE => Form::Literal,
        14 if *name == header::CONTENT_LENGTH => Form::Literal,
        _ => Form::Indexed,
    }
}

/// Writes a field out. `index` is its name's; 0: the name is written out too.
fn literal(out: &mut Vec<u8>, form: Form, index: usize, name: &str, value: &[u8]) {
    out.reserve(name.len() + value.len() + 16);
    let mask = if form == Form::Indexed { 0x3f } else { 0x0f };
    integer(out, form as u8, mask, index);
    if index == 0 {
        integer(out, 0, 0x7f, name.len());
        out.extend_from_slice(name.as_bytes());
    }
    integer(out, 0, 0x7f, value.len());
    out.extend_from_slice(value);
}

/// Writes an integer (RFC 7541 section 5.1) behind `first`, into the bits of `mask`.
#[inline]
fn integer(out: &mut Vec<u8>, first: u8, mask: u8, value: usize) {
    if value < usize::from(mask) {
        out.push(first | value as u8);
    } else {
        large_integer(out, first | mask, value - usize::from(mask));
    }
}

fn large_integer(out: &mut Vec<u8>, first: u8, mut rest: usize) {
    out.push(first);
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Where the names are that everybody knows, by their hashes.
struct Known([u8; 256]);

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let mut places = [0; 256];
    for (entry, index) in STATIC.iter().zip(1..) {
        if let Field::Header(name, _) = &entry.field {
            let mut place = fold(name.as_str().as_bytes()) as u8;
            while places[usize::from(place)] != 0 {
                place = place.wrapping_add(1);
            }
            places[usize::from(place)] = index;
        }
    }
    Known(places)
});

impl Known {
    /// The index of `name`; 0: it is not among them.
    fn find(&self, name: &str, hash: u64) -> usize {
        let mut place = hash as u8;
        loop {
            match usize::from(self.0[usize::from(place)]) {
                0 => return 0,
                index if matches!(&STATIC[index - 1].field, Field::Header(known, _) if known.as_str() == name) => {
                    return index;
                }
                _ => place = place.wrapping_add(1),
            }
        }
    }
}

fn chain(hash: u64) -> usize {
    hash as usize % CHAINS
}

/// A hash of `bytes`: of all of them up to 32, of both ends beyond.
fn fold(bytes: &[u8]) -> u64 {
    const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
    let length = bytes.len() as u64;
    let word =
        |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word));
    let count = bytes.len();
    if count > 16 {
        let ends = mixed(word(0) ^ SEED, word(8) ^ length);
        mixed(ends, mixed(word(count - 16), word(count - 8) ^ SEED))
    } else if count >= 8 {
        mixed(word(0) ^ SEED, word(count - 8) ^ length)
    } else {
        let short = bytes.iter().fold(length, |short, byte| short << 8 | u64::from(*byte));
        mixed(short, SEED)
    }
}

fn mixed(one: u64, other: u64) -> u64 {
    let product = u128::from(one ^ 0xa076_1d64_78bd_642f) * u128::from(other ^ 0xe703_7ed1_a0b4_28db);
    product as u64 ^ (product >> 64) as u64
}
