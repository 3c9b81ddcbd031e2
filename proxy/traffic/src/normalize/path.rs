//! The one normal form of a path (RFC 3986 section 6.2.2, and stricter where readers are known to differ).

use crate::refusal::Refusal;

/// The normal form; `None` when the path is in it already, as nearly all are.
///
/// Unreserved characters are decoded, other escapes written in upper case, what must be escaped is; dot segments are
/// removed and repeated slashes merged. Encoded slashes, backslashes and control characters are refused, as are segments
/// that some servers read as dot segments (`..;x`).
pub(super) fn normal(path: &str) -> Result<Option<String>, Refusal> {
    if !path.starts_with('/') {
        return Err(bad("does not begin with a slash"));
    }
    if is_plain(path) {
        return Ok(None);
    }
    let escaped = escapes(path)?;
    let normal = segments(&escaped)?;
    Ok(if normal == path { None } else { Some(normal) })
}

fn bad(why: &str) -> Refusal {
    Refusal::bad_request(format!("the path {why}"))
}

/// Whether nothing in the path could need work: no escape, no unusual character, no segment that begins with a dot, no
/// repeated slash.
fn is_plain(path: &str) -> bool {
    let mut after_slash = false;
    for byte in path.bytes() {
        let usual = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~' | b'/' | b'.');
        if !usual || after_slash && matches!(byte, b'/' | b'.') {
            return false;
        }
        after_slash = byte == b'/';
    }
    true
}

fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Characters of a path beside the unreserved ones (`pchar`, and `/`).
fn allowed(byte: u8) -> bool {
    unreserved(byte)
        || matches!(
            byte,
            b'/' | b':' | b'@' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'='
        )
}

fn escapes(path: &str) -> Result<String, Refusal> {
    let mut out = String::with_capacity(path.len() + 8);
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digits = (bytes.next().and_then(hex), bytes.next().and_then(hex));
                let (Some(high), Some(low)) = digits else {
                    return Err(bad("has a percent sign without two hexadecimal digits"));
                };
                match high << 4 | low {
                    byte if unreserved(byte) => out.push(char::from(byte)),
                    b'/' | b'\\' => return Err(bad("has an encoded slash or backslash")),
                    byte if byte.is_ascii_control() => return Err(bad("has an encoded control character")),
                    byte => escape(byte, &mut out),
                }
            }
            b'\\' => return Err(bad("has a backslash")),
            b'#' => return Err(bad("has a fragment")),
            byte if byte.is_ascii_control() => return Err(bad("has a control character")),
            byte if allowed(byte) => out.push(char::from(byte)),
            byte => escape(byte, &mut out),
        }
    }
    Ok(out)
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn escape(byte: u8, out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(DIGITS[usize::from(byte >> 4)]));
    out.push(char::from(DIGITS[usize::from(byte & 15)]));
}

/// A segment up to its first semicolon, which some servers decode before they cut.
fn without_parameters(segment: &str) -> &str {
    let end = segment.find(';').into_iter().chain(segment.find("%3B")).min();
    &segment[..end.unwrap_or(segment.len())]
}

/// Merges slashes and removes dot segments (RFC 3986 section 5.2.4): above the root there is nothing.
fn segments(path: &str) -> Result<String, Refusal> {
    let mut kept: Vec<&str> = Vec::new();
    let mut directory = true;
    for segment in path.split('/').skip(1) {
        directory = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            // Servers that cut parameters off a segment before they look at its dots would climb here.
            segment if matches!(without_parameters(segment), "." | "..") => {
                return Err(bad("has a dot segment with parameters"));
            }
            segment => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &kept {
        out.push('/');
        out.push_str(segment);
    }
    if directory || out.is_empty() {
        out.push('/');
    }
    Ok(out)
}
