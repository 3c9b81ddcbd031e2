//! Bodies as they come off the wire: where they end, and nothing of their framing but their data.
//!
//! Data is handed on as it lies in the buffer. A chunk line or an end of a chunk that two readers could read differently is
//! refused, as is one that is longer than any honest sender's.

use bytes::{Buf, Bytes, BytesMut};
use http::header::HeaderMap;

use super::fields::{self, Lines};
use super::{Bad, Framing};

/// Most bytes of a chunk's extensions on one line: nobody needs any.
const MAX_EXTENSION: usize = 256;
/// Most bytes of extensions in one body; hyper's bound. Without it a body could be nothing else.
const MAX_EXTENSIONS: u16 = 16 * 1024;
/// Hexadecimal digits of a chunk's size: 64 bits.
const MAX_DIGITS: usize = 16;

/// What came of a body.
#[derive(Debug)]
pub(crate) enum Decoded {
    /// A piece of its data, never empty.
    Data(Bytes),
    /// Trailers; the end follows.
    Trailers(HeaderMap),
    /// Nothing: more bytes are needed.
    More,
    /// There is no more. What is left in the buffer belongs to the next message.
    End,
}

/// How far a body was read.
#[derive(Debug)]
pub(crate) struct Decoder {
    state: State,
    /// Bytes of chunk extensions so far.
    extensions: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// This many bytes are left; never none.
    Length(u64),
    /// At the line that says how long the next chunk is.
    Size,
    /// This many bytes of a chunk are left; never none.
    Chunk(u64),
    /// At the CRLF behind a chunk's data.
    ChunkEnd,
    /// Behind the last chunk.
    Trailers,
    UntilClose,
    End,
    /// What came is no body: nobody knows what follows it.
    Broken,
}

impl Decoder {
    /// At the beginning of a body.
    pub(crate) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::End,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, extensions: 0 }
    }

    /// Takes what belongs to the body from the front of `bytes`, as much as one piece can be.
    ///
    /// # Errors
    /// [`Bad`]: where the next message begins is not known; the connection has to be closed.
    pub(crate) fn decode(&mut self, bytes: &mut BytesMut) -> Result<Decoded, Bad> {
        loop {
            match self.state {
                State::End => return Ok(Decoded::End),
                State::Broken => return Err(Bad::Malformed("a body that broke before")),
                _ if bytes.is_empty() => return Ok(Decoded::More),
                State::UntilClose => return Ok(Decoded::Data(bytes.split().freeze())),
                State::Length(left) => {
                    let (data, left) = take(bytes, left);
                    self.state = if left == 0 { State::End } else { State::Length(left) };
                    return Ok(Decoded::Data(data));
                }
                State::Chunk(left) => {
                    let (data, left) = take(bytes, left);
                    self.state = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
                    return Ok(Decoded::Data(data));
                }
                State::Size => match self.size(bytes)? {
                    None => return Ok(Decoded::More),
                    Some(0) => self.state = State::Trailers,
                    Some(size) => self.state = State::Chunk(size),
                },
                State::ChunkEnd => match bytes[..] {
                    [b'\r', b'\n', ..] => {
                        bytes.advance(2);
                        self.state = State::Size;
                    }
                    [b'\r'] => return Ok(Decoded::More),
                    _ => return Err(Bad::Malformed("a chunk that does not end with CRLF")),
                },
                State::Trailers => return self.trailers(bytes),
            }
        }
    }

    /// So many bytes of a body whose length is known were taken without being looked at.
    pub(super) fn passed(&mut self, bytes: u64) {
        if let State::Length(left) = self.state {
            let left = left.saturating_sub(bytes);
            self.state = if left == 0 { State::End } else { State::Length(left) };
        }
    }

    /// Whether all of the body was taken.
    pub(crate) fn is_end(&self) -> bool {
        self.state == State::End
    }

    /// Data bytes still to come, when that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        match self.state {
            State::End => Some(0),
            State::Length(left) => Some(left),
            _ => None,
        }
    }

    /// The stream ended, and everything of it was decoded.
    ///
    /// # Errors
    /// [`Bad::Cut`], unless this is how the body ends.
    pub(crate) fn eof(&mut self) -> Result<(), Bad> {
        match self.state {
            State::UntilClose | State::End => {
                self.state = State::End;
                Ok(())
            }
            _ => Err(Bad::Cut),
        }
    }

    /// Takes the line that says how long the next chunk is; `None`: it is not whole yet.
    fn size(&mut self, bytes: &mut BytesMut) -> Result<Option<u64>, Bad> {
        const LONGEST: usize = MAX_DIGITS + MAX_EXTENSION + 2;
        let came = &bytes[..bytes.len().min(LONGEST)];
        let Some(at) = came.iter().position(|byte| *byte == b'\n') else {
            return if came.len() == LONGEST { Err(Bad::Malformed("a chunk line that is too long")) } else { Ok(None) };
        };
        let [line @ .., b'\r'] = &came[..at] else {
            return Err(Bad::Malformed("a chunk line does not end with CRLF"));
        };
        let digits = line.iter().position(|byte| *byte == b';').unwrap_or(line.len());
        let size = chunk_size(&line[..digits]).ok_or(Bad::Malformed("the size of a chunk is none"))?;
        self.extension(&line[digits..])?;
        bytes.advance(at + 1);
        Ok(Some(size))
    }

    /// Extensions mean nothing to us and are not passed on.
    fn extension(&mut self, extension: &[u8]) -> Result<(), Bad> {
        if extension.is_empty() {
            return Ok(());
        }
        if extension.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
            return Err(Bad::Malformed("a control character in a chunk line"));
        }
        let bound = if extension.len() > MAX_EXTENSION { 0 } else { MAX_EXTENSIONS };
        let length = u16::try_from(extension.len()).unwrap_or(u16::MAX);
        self.extensions = self.extensions.saturating_add(length);
        if self.extensions > bound { Err(Bad::Malformed("chunk extensions that are too long")) } else { Ok(()) }
    }

    fn trailers(&mut self, bytes: &mut BytesMut) -> Result<Decoded, Bad> {
        let Some(lines) = Lines::find(bytes, 0)? else { return Ok(Decoded::More) };
        let section = bytes.split_to(lines.length);
        if lines.ends().is_empty() {
            self.state = State::End;
            return Ok(Decoded::End);
        }
        self.state = State::Broken;
        let mut trailers = HeaderMap::new();
        fields::read(&section.freeze(), 0, lines.ends(), &mut trailers)?;
        self.state = State::End;
        Ok(Decoded::Trailers(trailers))
    }
}

/// Takes up to `left` bytes; what is left then.
fn take(bytes: &mut BytesMut, left: u64) -> (Bytes, u64) {
    let length = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
    let data = if length == bytes.len() { bytes.split() } else { bytes.split_to(length) };
    (data.freeze(), left - length as u64)
}

/// A size below 2^63, in at most 16 hexadecimal digits and nothing else.
fn chunk_size(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > MAX_DIGITS {
        return None;
    }
    let mut size = 0u64;
    for byte in digits {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => return None,
        };
        size = size << 4 | u64::from(digit);
    }
    (size < 1 << 63).then_some(size)
}
