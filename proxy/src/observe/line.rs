//! A JSON object written on one line, key by key, into text that is used again: no field costs an allocation. What there is not is
//! left out.
//!
//! Every text is escaped, so that nobody writes a line that is not ours.

use std::fmt::{self, Display, Write as _};
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderValue;
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
    out: &'a mut String,
    first: bool,
}

impl<'a> Line<'a> {
    /// Begins one at the end of `out`.
    pub(super) fn open(out: &'a mut String) -> Self {
        out.push('{');
        Self { out, first: true }
    }

    /// Ends the object, and its line.
    pub(super) fn close(self) {
        self.out.push_str("}\n");
    }

    /// What stands before a value.
    #[inline]
    fn key(&mut self, key: &str) {
        let comma = usize::from(std::mem::take(&mut self.first));
        self.out.push_str(&key[comma..]);
    }

    /// A word of ours, in which nothing needs to be escaped.
    pub(super) fn word(&mut self, key: Key, value: Option<&'static str>) {
        let Some(value) = value else { return };
        self.key(key.text);
        self.out.push_str(value);
        self.out.push('"');
    }

    /// A text.
    pub(super) fn text(&mut self, key: Key, value: Option<&str>) {
        let Some(value) = value else { return };
        self.key(key.text);
        escape(value, self.out);
        self.out.push('"');
    }

    /// What something shows as.
    pub(super) fn shown(&mut self, key: Key, value: Option<&impl Display>) {
        let Some(value) = value else { return };
        self.key(key.text);
        // Writing into a String does not fail.
        let _ = write!(Escaped(self.out), "{value}");
        self.out.push('"');
    }

    /// The same, of what is mostly what it was on the line before.
    pub(super) fn again<T: Clone + Display + PartialEq>(&mut self, key: Key, value: Option<&T>, last: &mut Last<T>) {
        let Some(value) = value else { return };
        self.key(key.text);
        self.out.push_str(last.words_of(value));
        self.out.push('"');
    }

    /// An address and its port.
    pub(super) fn address(&mut self, key: Key, address: SocketAddr) {
        let SocketAddr::V4(address) = address else { return self.shown(key, Some(&address)) };
        self.key(key.text);
        let mut after = ['.', '.', '.', ':'].into_iter();
        for octet in address.ip().octets() {
            self.out.push_str(itoa::Buffer::new().format(octet));
            self.out.extend(after.next());
        }
        self.out.push_str(itoa::Buffer::new().format(address.port()));
        self.out.push('"');
    }

    /// What a caller wrote, at most [`LONGEST_HEADER`] bytes of it.
    pub(super) fn value(&mut self, key: Key, value: Option<&HeaderValue>) {
        let Some(bytes) = value.map(HeaderValue::as_bytes) else { return };
        self.key(key.text);
        let shown = &bytes[..bytes.len().min(LONGEST_HEADER)];
        match std::str::from_utf8(shown) {
            Ok(text) => escape(text, self.out),
            Err(_) => escape(&String::from_utf8_lossy(shown), self.out),
        }
        if bytes.len() > LONGEST_HEADER {
            self.out.push('…');
        }
        self.out.push('"');
    }

    /// A number.
    pub(super) fn number(&mut self, key: Key, value: Option<u64>) {
        let Some(value) = value else { return };
        self.key(key.bare);
        match u8::try_from(value) {
            // As most are.
            Ok(digit @ 0..=9) => self.out.push(char::from(b'0' + digit)),
            _ => self.out.push_str(itoa::Buffer::new().format(value)),
        }
    }

    /// A moment (RFC 3339).
    pub(super) fn moment(&mut self, key: Key, at: SystemTime, clock: &mut Clock) {
        self.key(key.text);
        clock.tell(at, self.out);
        self.out.push('"');
    }

    /// An object of texts.
    pub(super) fn object(&mut self, name: &str, members: &[(&str, String)]) {
        self.member(name);
        self.out.push('{');
        self.first = true;
        for (name, value) in members {
            self.member(name);
            quote(value, self.out);
        }
        self.out.push('}');
        self.first = false;
    }

    /// A name that is not put together beforehand.
    fn member(&mut self, name: &str) {
        if !std::mem::take(&mut self.first) {
            self.out.push(',');
        }
        quote(name, self.out);
        self.out.push(':');
    }
}

/// What was told last, and the words for it as they stand in a JSON string.
#[derive(Debug)]
pub(super) struct Last<T>(Option<T>, String);

impl<T> Default for Last<T> {
    fn default() -> Self {
        Self(None, String::new())
    }
}

impl<T: Clone + Display + PartialEq> Last<T> {
    fn words_of(&mut self, value: &T) -> &str {
        let Self(last, words) = self;
        if last.as_ref() != Some(value) {
            words.clear();
            let _ = write!(Escaped(words), "{value}");
            *last = Some(value.clone());
        }
        words
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
    fn tell(&mut self, at: SystemTime, out: &mut String) {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.second != Some(since.as_secs()) {
            self.second = Some(since.as_secs());
            let whole = i64::try_from(since.as_secs()).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
            self.words = whole.and_then(|whole| whole.format(&Rfc3339).ok()).unwrap_or_default();
            self.words.truncate(self.words.trim_end_matches('Z').len());
        }
        out.push_str(&self.words);
        out.push('.');
        let mut digits = itoa::Buffer::new();
        let fraction = digits.format(since.subsec_nanos());
        out.push_str(&"000000000"[fraction.len()..]);
        out.push_str(fraction);
        out.push('Z');
    }
}

/// A JSON string in which nothing is left that a terminal or a line reader would act on: control characters of both
/// sets (C0 and C1, so also the one-byte CSI), DEL, and the two Unicode line separators.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    escape(text, out);
    out.push('"');
}

/// What is written through it goes into a JSON string.
struct Escaped<'a>(&'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        escape(text, self.0);
        Ok(())
    }
}

fn escape(text: &str, out: &mut String) {
    // Nearly every text is harmless as a whole.
    if is_harmless(text.as_bytes()) {
        return out.push_str(text);
    }
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
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
            let mut told = String::new();
            clock.tell(at, &mut told);
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
    fn what_is_told_again_is_told_in_the_same_words() {
        let (mut text, mut last) = (String::new(), Last::default());
        for value in ["a\"b", "a\"b", "", "c", "a\"b"] {
            text.clear();
            let mut line = Line::open(&mut text);
            line.again(key!("value"), Some(&value), &mut last);
            line.again(key!("none"), None, &mut last);
            line.close();
            let read: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(read, serde_json::json!({"value": value}));
        }
    }

    #[test]
    fn an_address_is_told_as_the_library_tells_it() {
        for address in ["0.0.0.0:0", "127.0.0.1:15006", "255.255.255.255:65535", "[::1]:80", "[fe80::1%3]:443"] {
            let address: SocketAddr = address.parse().unwrap();
            let mut text = String::new();
            let mut line = Line::open(&mut text);
            line.address(key!("at"), address);
            line.close();
            assert_eq!(text, format!("{{\"at\":\"{address}\"}}\n"));
        }
    }

    #[test]
    fn a_long_header_is_cut_and_says_so_and_what_is_no_text_is_still_a_string() {
        let long = HeaderValue::from_bytes(&[b'x'; LONGEST_HEADER + 1]).unwrap();
        let odd = HeaderValue::from_bytes(b"a\xffb\tc").unwrap();
        let mut text = String::new();
        let mut line = Line::open(&mut text);
        line.value(key!("long"), Some(&long));
        line.value(key!("odd"), Some(&odd));
        line.shown(key!("shown"), Some(&"a\"b"));
        line.number(key!("number"), Some(u64::MAX));
        line.close();
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["long"], format!("{}…", "x".repeat(LONGEST_HEADER)));
        assert_eq!((&read["odd"], &read["shown"]), (&"a\u{fffd}b\tc".into(), &"a\"b".into()));
        assert_eq!(read["number"], u64::MAX);
    }
}
