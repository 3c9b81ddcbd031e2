//! A JSON object written on one line, key by key, into text that is used again: no field costs an allocation. What there is not is
//! left out.
//!
//! Every text is escaped, so that nobody writes a line that is not ours.

use std::fmt::Display;
use std::io::Write;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Of a header that is always logged at most so many bytes are.
pub(super) const LONGEST_HEADER: usize = 1024;

/// What stands before a member's value, put together by the compiler.
macro_rules! key {
    ($name:literal) => {
        $crate::observe::line::Key { bare: concat!(",\"", $name, "\":"), text: concat!(",\"", $name, "\":\"") }
    };
}
pub(super) use key;

/// A name of our own choice, made by [`key!`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    /// Before a number.
    pub(super) bare: &'static str,
    /// Before a text.
    pub(super) text: &'static str,
}

/// The object being written.
pub(super) struct Line<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Line<'a> {
    /// Begins one at the end of `out`.
    pub(super) fn open(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    /// Ends the object, and its line.
    pub(super) fn close(self) {
        self.out.extend_from_slice(b"}\n");
    }

    /// What stands before a value.
    #[inline]
    fn key(&mut self, key: &str) {
        let comma = usize::from(std::mem::take(&mut self.first));
        self.out.extend_from_slice(&key.as_bytes()[comma..]);
    }

    /// Members that are mostly what they were on the line before, put into words once for all lines of which `holds` says so.
    pub(super) fn together<T>(
        &mut self,
        last: &mut Last<T>,
        holds: impl FnOnce(&T) -> bool,
        of: impl FnOnce() -> T,
        tell: impl FnOnce(&mut Line<'_>),
    ) {
        let Last(what, words) = last;
        if !what.as_ref().is_some_and(holds) {
            words.clear();
            tell(&mut Line { out: words, first: false });
            *what = Some(of());
        }
        let comma = usize::from(!words.is_empty() && std::mem::take(&mut self.first));
        self.out.extend_from_slice(&words[comma..]);
    }

    /// A word of ours, in which nothing needs to be escaped.
    pub(super) fn word(&mut self, key: Key, value: Option<&'static str>) {
        let Some(value) = value else { return };
        self.key(key.text);
        self.out.extend_from_slice(value.as_bytes());
        self.out.push(b'"');
    }

    /// A text.
    pub(super) fn text(&mut self, key: Key, value: Option<&str>) {
        let Some(value) = value else { return };
        self.key(key.text);
        escape(value, self.out);
        self.out.push(b'"');
    }

    /// What something shows as. It is put together first: for members that are told together, and so not anew for each line.
    pub(super) fn shown(&mut self, key: Key, value: Option<&impl Display>) {
        self.text(key, value.map(ToString::to_string).as_deref());
    }

    /// An address and its port.
    pub(super) fn address(&mut self, key: Key, address: SocketAddr) {
        self.key(key.text);
        match address {
            SocketAddr::V4(address) => {
                for (octet, after) in address.ip().octets().into_iter().zip(*b"...:") {
                    self.out.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
                    self.out.push(after);
                }
                self.out.extend_from_slice(itoa::Buffer::new().format(address.port()).as_bytes());
            }
            // Writing into a Vec does not fail, and nothing in an address needs to be escaped.
            SocketAddr::V6(address) => drop(write!(self.out, "{address}")),
        }
        self.out.push(b'"');
    }

    /// What a caller wrote.
    pub(super) fn bytes(&mut self, key: Key, value: Option<&[u8]>) {
        let Some(value) = value else { return };
        self.key(key.text);
        escape_bytes(value, self.out);
        self.out.push(b'"');
    }

    /// The value of a header, at most [`LONGEST_HEADER`] bytes of it.
    pub(super) fn value(&mut self, key: Key, value: Option<&[u8]>) {
        let Some(value) = value else { return };
        let shown = &value[..value.len().min(LONGEST_HEADER)];
        self.key(key.text);
        escape_bytes(shown, self.out);
        if shown.len() < value.len() {
            escape("…", self.out);
        }
        self.out.push(b'"');
    }

    /// A number.
    pub(super) fn number(&mut self, key: Key, value: Option<u64>) {
        let Some(value) = value else { return };
        self.key(key.bare);
        match u8::try_from(value) {
            // As most are.
            Ok(digit @ 0..=9) => self.out.push(b'0' + digit),
            _ => self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes()),
        }
    }

    /// A moment (RFC 3339).
    pub(super) fn moment(&mut self, key: Key, at: SystemTime, clock: &mut Clock) {
        self.key(key.text);
        clock.tell(at, self.out);
        self.out.push(b'"');
    }

    /// An object of texts.
    pub(super) fn object(&mut self, name: &str, members: &[(&str, String)]) {
        self.member(name);
        self.out.push(b'{');
        self.first = true;
        for (name, value) in members {
            self.member(name);
            quote(value, self.out);
        }
        self.out.push(b'}');
        self.first = false;
    }

    /// A name that is not put together beforehand.
    fn member(&mut self, name: &str) {
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
        quote(name, self.out);
        self.out.push(b':');
    }
}

/// What was told last, and the members for it as they stand behind others.
#[derive(Debug)]
pub(super) struct Last<T>(Option<T>, Vec<u8>);

impl<T> Default for Last<T> {
    fn default() -> Self {
        Self(None, Vec::new())
    }
}

/// Tells times; what they share down to the second is put into words once for each.
#[derive(Debug, Default)]
pub(super) struct Clock {
    second: Option<u64>,
    /// Up to the fraction, such as `2026-11-21T18:10:59`.
    words: String,
}

impl Clock {
    fn tell(&mut self, at: SystemTime, out: &mut Vec<u8>) {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.second != Some(since.as_secs()) {
            self.second = Some(since.as_secs());
            let whole = i64::try_from(since.as_secs()).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
            self.words = whole.and_then(|whole| whole.format(&Rfc3339).ok()).unwrap_or_default();
            self.words.truncate(self.words.trim_end_matches('Z').len());
        }
        out.extend_from_slice(self.words.as_bytes());
        let mut digits = itoa::Buffer::new();
        let fraction = digits.format(since.subsec_nanos()).as_bytes();
        let mut shown = *b".000000000Z";
        shown[10 - fraction.len()..10].copy_from_slice(fraction);
        out.extend_from_slice(&shown);
    }
}

/// A JSON string in which nothing is left that a terminal or a line reader would act on: control characters of both
/// sets (C0 and C1, so also the one-byte CSI), DEL, and the two Unicode line separators.
fn quote(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    escape(text, out);
    out.push(b'"');
}

fn escape(text: &str, out: &mut Vec<u8>) {
    // Nearly every text is harmless as a whole.
    if is_harmless(text.as_bytes()) {
        return out.extend_from_slice(text.as_bytes());
    }
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                // Writing into a Vec does not fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// The same of what may be no text.
fn escape_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    if is_harmless(bytes) {
        return out.extend_from_slice(bytes);
    }
    escape(&String::from_utf8_lossy(bytes), out);
}

/// Whether all bytes are printable ASCII, and none of them `"` or `\`. Eight are looked at together.
fn is_harmless(bytes: &[u8]) -> bool {
    let (eights, rest) = bytes.as_chunks();
    let rest = rest.iter().fold(u64::from_ne_bytes([b' '; 8]), |word, byte| (word << 8) | u64::from(*byte));
    eights.iter().fold(harm(rest), |harm_before, eight| harm_before | harm(u64::from_ne_bytes(*eight))) == 0
}

/// Has a bit where one of eight bytes is a control character, `"`, `\`, DEL or no ASCII; none when all are harmless.
fn harm(eight: u64) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    // Of a byte below `than` the subtraction borrows from the highest bit; a byte that is not ASCII has it set from the beginning.
    let below = |word: u64, than: u8| word.wrapping_sub(ONES * u64::from(than)) & !word & HIGH;
    let is = |byte: u8| below(eight ^ (ONES * u64::from(byte)), 1);
    below(eight, b' ') | is(b'"') | is(b'\\') | is(0x7f) | (eight & HIGH)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments_are_told_as_the_library_tells_them() {
        let mut clock = Clock::default();
        let first = UNIX_EPOCH + Duration::new(1_795_280_000, 36_761_074);
        for after in [0, 1, 999, 1_000_000_000, 86_400_000_000_000, 1] {
            let at = first + Duration::from_nanos(after);
            let mut told = Vec::new();
            clock.tell(at, &mut told);
            let told = String::from_utf8(told).unwrap();
            let read = OffsetDateTime::parse(&told, &Rfc3339).unwrap();
            assert_eq!(SystemTime::from(read), at, "{told}");
        }
    }

    #[test]
    fn every_byte_is_harmful_or_not_wherever_it_stands() {
        for byte in 0..=u8::MAX {
            let harmless = (b' '..=b'~').contains(&byte) && !matches!(byte, b'"' | b'\\');
            for length in 1..=20 {
                for (at, around) in (0..length).flat_map(|at| [(at, b' '), (at, b'~'), (at, b'!'), (at, b']')]) {
                    let mut text = vec![around; length];
                    text[at] = byte;
                    assert_eq!(is_harmless(&text), harmless, "{byte:#x} at {at} of {length}");
                }
            }
        }
        assert!(is_harmless(b""));
    }

    #[test]
    fn what_is_told_again_is_told_in_the_same_words_and_made_once() {
        let (mut text, mut last, mut made) = (Vec::new(), Last::default(), 0);
        for (value, first) in [("a\"b", true), ("a\"b", false), ("", true), ("c", false), ("a\"b", false)] {
            text.clear();
            let mut line = Line::open(&mut text);
            if !first {
                line.number(key!("before"), Some(12));
            }
            let tell = |line: &mut Line<'_>| {
                made += 1;
                line.text(key!("value"), Some(value));
                line.number(key!("length"), Some(value.len() as u64));
            };
            line.together(&mut last, |last| *last == value, || value, tell);
            line.number(key!("after"), Some(3));
            line.close();
            let read: serde_json::Value = serde_json::from_slice(&text).unwrap();
            let mut expected = serde_json::json!({"value": value, "length": value.len(), "after": 3});
            if !first {
                expected["before"] = 12.into();
            }
            assert_eq!(read, expected);
        }
        assert_eq!(made, 4);
    }

    #[test]
    fn an_address_is_told_as_the_library_tells_it() {
        for address in ["0.0.0.0:0", "127.0.0.1:15006", "255.255.255.255:65535", "[::1]:80", "[fe80::1%3]:443"] {
            let address: SocketAddr = address.parse().unwrap();
            let mut text = Vec::new();
            let mut line = Line::open(&mut text);
            line.address(key!("at"), address);
            line.close();
            assert_eq!(text, format!("{{\"at\":\"{address}\"}}\n").as_bytes());
        }
    }

    #[test]
    fn a_long_header_is_cut_and_says_so_and_what_is_no_text_is_still_a_string() {
        let long = [b'x'; LONGEST_HEADER + 1];
        let mut text = Vec::new();
        let mut line = Line::open(&mut text);
        line.value(key!("long"), Some(&long));
        line.value(key!("whole"), Some(&long[1..]));
        line.value(key!("odd"), Some(b"a\xffb\tc"));
        line.shown(key!("shown"), Some(&"a\"b"));
        line.number(key!("number"), Some(u64::MAX));
        line.close();
        let read: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let whole = "x".repeat(LONGEST_HEADER);
        assert_eq!((&read["long"], &read["whole"]), (&format!("{whole}…").into(), &whole.into()));
        assert_eq!((&read["odd"], &read["shown"]), (&"a\u{fffd}b\tc".into(), &"a\"b".into()));
        assert_eq!(read["number"], u64::MAX);
    }
}
