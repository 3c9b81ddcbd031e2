//! Lines and header fields, of heads and of trailers alike: cut at CRLF and at nothing else, names and values checked once.
//!
//! Where the lines end is found first and in one pass, so that a head that comes in small pieces costs no more than that
//! pass each time; nothing is made of it before it is whole.

use bytes::Bytes;
use http::HeaderName;
use http::header::{self, HeaderMap, HeaderValue};

use super::Bad;
use crate::codec::{MAX_HEADER_BYTES, MAX_HEADERS};

/// Most bytes of a head, or of trailers.
const MAX_BYTES: usize = MAX_HEADER_BYTES as usize;
/// A head's first line, and its fields.
const MAX_LINES: usize = MAX_HEADERS + 1;

/// Where the lines of a whole section are.
pub(super) struct Lines {
    /// Where each line's CRLF begins: none lies beyond [`MAX_BYTES`], which 16 bits can tell.
    ends: [u16; MAX_LINES],
    count: usize,
    /// Bytes of the section, with the empty line that ends it.
    pub(super) length: usize,
}

impl Lines {
    /// Finds the lines from `start` on up to the first empty one; `None`: it has not come yet.
    pub(super) fn find(bytes: &[u8], start: usize) -> Result<Option<Self>, Bad> {
        let window = bytes.get(start..bytes.len().min(MAX_BYTES)).unwrap_or_default();
        let mut lines = Self { ends: [0; MAX_LINES], count: 0, length: 0 };
        let mut from = start;
        for at in memchr::memchr_iter(b'\n', window) {
            let at = start + at;
            if at == from || bytes[at - 1] != b'\r' {
                return Err(Bad::Malformed("a line does not end with CRLF"));
            }
            let end = at - 1;
            if end == from {
                lines.length = at + 1;
                return Ok(Some(lines));
            }
            let Some(place) = lines.ends.get_mut(lines.count) else { return Err(Bad::TooLarge) };
            *place = u16::try_from(end).map_err(|_| Bad::TooLarge)?;
            lines.count += 1;
            from = at + 1;
        }
        if bytes.len() >= MAX_BYTES { Err(Bad::TooLarge) } else { Ok(None) }
    }

    /// Where the first line ends; `None`: there is not one.
    pub(super) fn first(&self) -> Option<usize> {
        self.ends().first().map(|end| usize::from(*end))
    }

    /// Where each line ends.
    pub(super) fn ends(&self) -> &[u16] {
        &self.ends[..self.count]
    }
}

/// What the fields say about the message that carries them.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) length: Option<u64>,
    pub(super) chunked: bool,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) expects_continue: bool,
    pub(super) upgrades: bool,
}

/// Reads the fields on the lines that end at `ends`, the first of which begins at `from`. Values are slices of `bytes`.
pub(super) fn read(bytes: &Bytes, mut from: usize, ends: &[u16], map: &mut HeaderMap) -> Result<Said, Bad> {
    if ends.len() > MAX_HEADERS || map.try_reserve(ends.len()).is_err() {
        return Err(Bad::TooLarge);
    }
    let mut said = Said::default();
    for &end in ends {
        let end = usize::from(end);
        let line = &bytes[from..end];
        let colon = first_colon(line).ok_or_else(|| without_colon(line))?;
        let name = name(&line[..colon])?;
        let (skipped, kept) = trimmed(&line[colon + 1..]);
        let value = from + colon + 1 + skipped;
        let value = HeaderValue::from_maybe_shared(bytes.slice(value..value + kept))
            .map_err(|_| Bad::Malformed("a control character in the value of a header"))?;
        // Five names matter here; their lengths tell nearly all others apart.
        if !matches!(colon, 6 | 7 | 10 | 14 | 17) || said.hear(&name, value.as_bytes())? == Heard::Kept {
            map.try_append(name, value).map_err(|_| Bad::TooLarge)?;
        }
        from = end + 2;
    }
    Ok(said)
}

/// What becomes of a field that was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// It stands in the map like any other.
    Kept,
    /// It said something about this connection alone: whoever reads the map would only take it away.
    Done,
}

impl Said {
    fn hear(&mut self, name: &HeaderName, value: &[u8]) -> Result<Heard, Bad> {
        if *name == header::CONTENT_LENGTH {
            if self.length.is_some() {
                return Err(Bad::Malformed("more than one content-length"));
            }
            self.length = Some(length(value).ok_or(Bad::Malformed("a content-length that is no length"))?);
        } else if *name == header::TRANSFER_ENCODING {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Bad::Malformed("a transfer-encoding other than chunked, once"));
            }
            self.chunked = true;
        } else if *name == header::CONNECTION {
            let mut heard = Heard::Done;
            for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if token.eq_ignore_ascii_case(b"close") {
                    self.close = true;
                } else if token.eq_ignore_ascii_case(b"keep-alive") {
                    self.keep_alive = true;
                } else {
                    heard = Heard::Kept;
                }
            }
            return Ok(heard);
        } else if *name == header::EXPECT {
            self.expects_continue |= value.eq_ignore_ascii_case(b"100-continue");
        } else if *name == header::UPGRADE {
            self.upgrades = true;
        }
        Ok(Heard::Kept)
    }
}

/// A length below 2^63, in decimal digits and nothing else.
fn length(digits: &[u8]) -> Option<u64> {
    // Nineteen digits stay below 2^64, and 2^63 has nineteen.
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    let mut length = 0u64;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        length = length * 10 + u64::from(digit);
    }
    (length < 1 << 63).then_some(length)
}

/// Where the first colon is. Names are short: eight bytes at a time find it before a search for long texts has begun.
fn first_colon(line: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGHS: u64 = ONES << 7;
    const COLONS: u64 = ONES * b':' as u64;
    let (words, rest) = line.as_chunks::<8>();
    for (number, word) in words.iter().enumerate() {
        // Of the bytes that are 0 now, the lowest is told exactly (and only that one).
        let word = u64::from_le_bytes(*word) ^ COLONS;
        let zeros = word.wrapping_sub(ONES) & !word & HIGHS;
        if zeros != 0 {
            return Some(number * 8 + zeros.trailing_zeros() as usize / 8);
        }
    }
    rest.iter().position(|byte| *byte == b':').map(|at| words.len() * 8 + at)
}

// Names that nearly every request in a mesh has and `http` does not know: made once, not once for each request.
static X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// A header's name. The usual ones are known by their usual spellings, which costs a quarter of reading them letter by
/// letter; nothing but that depends on this list.
fn name(name: &[u8]) -> Result<HeaderName, Bad> {
    Ok(match name {
        b"host" | b"Host" => header::HOST,
        b"date" | b"Date" => header::DATE,
        b"vary" | b"Vary" => header::VARY,
        b"accept" | b"Accept" => header::ACCEPT,
        b"cookie" | b"Cookie" => header::COOKIE,
        b"server" | b"Server" => header::SERVER,
        b"x-real-ip" | b"X-Real-Ip" | b"X-Real-IP" => X_REAL_IP.clone(),
        b"connection" | b"Connection" => header::CONNECTION,
        b"user-agent" | b"User-Agent" => header::USER_AGENT,
        b"tracestate" | b"Tracestate" => TRACESTATE.clone(),
        b"traceparent" | b"Traceparent" => TRACEPARENT.clone(),
        b"content-type" | b"Content-Type" => header::CONTENT_TYPE,
        b"x-request-id" | b"X-Request-Id" | b"X-Request-ID" => X_REQUEST_ID.clone(),
        b"authorization" | b"Authorization" => header::AUTHORIZATION,
        b"cache-control" | b"Cache-Control" => header::CACHE_CONTROL,
        b"content-length" | b"Content-Length" => header::CONTENT_LENGTH,
        b"x-forwarded-for" | b"X-Forwarded-For" => X_FORWARDED_FOR.clone(),
        b"accept-encoding" | b"Accept-Encoding" => header::ACCEPT_ENCODING,
        b"accept-language" | b"Accept-Language" => header::ACCEPT_LANGUAGE,
        b"x-forwarded-proto" | b"X-Forwarded-Proto" => X_FORWARDED_PROTO.clone(),
        b"transfer-encoding" | b"Transfer-Encoding" => header::TRANSFER_ENCODING,
        _ => return HeaderName::from_bytes(name).map_err(|_| bad_name(name)),
    })
}

/// How much white space stands before a value, and how long the value is.
fn trimmed(value: &[u8]) -> (usize, usize) {
    // One space before, none behind, as nearly all are written.
    if let [b' ', first, .., last] = value
        && *first > b' '
        && *last > b' '
    {
        return (1, value.len() - 1);
    }
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let skipped = value.iter().take_while(|byte| is_space(byte)).count();
    let kept = &value[skipped..];
    (skipped, kept.len() - kept.iter().rev().take_while(|byte| is_space(byte)).count())
}

fn begins_with_space(line: &[u8]) -> bool {
    line.first().is_some_and(|byte| matches!(byte, b' ' | b'\t'))
}

#[cold]
fn without_colon(line: &[u8]) -> Bad {
    Bad::Malformed(if begins_with_space(line) { "a folded line" } else { "a header without a colon" })
}

#[cold]
fn bad_name(name: &[u8]) -> Bad {
    Bad::Malformed(match name {
        [] => "a header without a name",
        name if begins_with_space(name) => "a folded line, or white space before the name of a header",
        [.., b' ' | b'\t'] => "white space between the name of a header and its colon",
        _ => "the name of a header is no token",
    })
}
