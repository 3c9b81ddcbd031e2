//! Texts with a grammar of their own: durations, regular expressions, paths of claims.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use regex::{Regex, RegexBuilder};

/// Longest regular expression, in bytes.
const MAX_PATTERN: usize = 1024;
/// Largest compiled program of one regular expression, in bytes.
const MAX_PROGRAM: usize = 256 << 10;

/// Reads a duration as the Gateway API writes it (GEP-2257): `^([0-9]{1,5}(h|m|s|ms)){1,4}$`.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    for _ in 0..4 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > 5 {
            return None;
        }
        let amount: u64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let (taken, milliseconds) = match unit.as_bytes() {
            [b'm', b's', ..] => (2, 1),
            [b'h', ..] => (1, 3_600_000),
            [b'm', ..] => (1, 60_000),
            [b's', ..] => (1, 1_000),
            _ => return None,
        };
        total += Duration::from_millis(amount * milliseconds);
        rest = &unit[taken..];
        if rest.is_empty() {
            return Some(total);
        }
    }
    None
}

/// Reads a number of bytes as Kubernetes writes a quantity: a whole number, alone or with `k`, `M`, `G` (powers of 1000)
/// or `Ki`, `Mi`, `Gi` (powers of 1024).
pub fn bytes(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let amount: u64 = text[..digits].parse().ok()?;
    let unit = match &text[digits..] {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    amount.checked_mul(unit)
}

/// The certificates of a PEM text, as DER; `None` when it is no such text, or holds anything else.
pub fn certificates(text: &str) -> Option<Vec<Vec<u8>>> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let (mut found, mut rest) = (Vec::new(), text.trim());
    while !rest.is_empty() {
        let (body, after) = rest.strip_prefix(BEGIN)?.split_once(END)?;
        let body: String = body.split_ascii_whitespace().collect();
        let der = STANDARD.decode(body).ok()?;
        // A certificate is one SEQUENCE, and nothing after it (RFC 5280 section 4.1).
        let (length, head) = match der.get(..4)? {
            [0x30, 0x82, high, low] => (usize::from(u16::from_be_bytes([*high, *low])), 4),
            [0x30, 0x81, length, _] => (usize::from(*length), 3),
            _ => return None,
        };
        if der.len() != length + head {
            return None;
        }
        found.push(der);
        rest = after.trim_start();
    }
    Some(found)
}

/// Compiles a regular expression that must match a whole text. Matching takes linear time; pattern and program are
/// limited in size.
///
/// # Errors
/// In words, when the pattern is no regular expression of this syntax, or too large.
pub fn whole_match(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > MAX_PATTERN {
        return Err(format!("a regular expression of {} bytes; at most {MAX_PATTERN} are allowed", pattern.len()));
    }
    let build =
        |text: &str| RegexBuilder::new(text).size_limit(MAX_PROGRAM).dfa_size_limit(MAX_PROGRAM).nest_limit(50).build();
    let in_words = |error: regex::Error| match error {
        regex::Error::CompiledTooBig(limit) => {
            format!("a regular expression that compiles to more than {} KiB", limit >> 10)
        }
        error => error
            .to_string()
            .lines()
            .last()
            .unwrap_or("not a regular expression")
            .trim_start_matches("error: ")
            .to_owned(),
    };
    // The pattern must stand on its own, or `a)|(b` would escape the anchors.
    build(pattern).map_err(in_words)?;
    build(&format!("\\A(?:{pattern})\\z")).map_err(in_words)
}

/// Reads the path of a claim: `tenant` is the claim of that name, dots included; `[realm][roles]` and `realm[roles]` are
/// `roles` within `realm`.
pub fn claim_path(text: &str) -> Option<Vec<String>> {
    let (first, mut rest) = text.split_at(text.find('[').unwrap_or(text.len()));
    let mut path: Vec<String> = if first.is_empty() { Vec::new() } else { vec![first.to_owned()] };
    while !rest.is_empty() {
        let (name, after) = rest.strip_prefix('[')?.split_once(']')?;
        if name.is_empty() || name.contains('[') {
            return None;
        }
        path.push(name.to_owned());
        rest = after;
    }
    let well_formed =
        !path.is_empty() && path.len() <= 8 && path.iter().all(|part| part.trim() == part && !part.contains(']'));
    well_formed.then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_read_as_gep_2257_says() {
        for (text, milliseconds) in
            [("1s", 1_000), ("100ms", 100), ("1h30m", 5_400_000), ("0s", 0), ("1m1s1ms", 61_001)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for bad in ["", "5", "1.5s", "-1s", "100000s", "1d", "s", "1s ", "1s1s1s1s1s", "1S"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_number_of_bytes_is_read_as_a_kubernetes_quantity() {
        for (text, read) in [("0", 0), ("65536", 65536), ("64Ki", 65536), ("2M", 2_000_000), ("1Gi", 1 << 30)] {
            assert_eq!(bytes(text), Some(read), "{text}");
        }
        for bad in ["", "Ki", "-1", "1.5Mi", "1 Mi", "1KB", "1ki", "99999999999999999999", "18446744073709551615Gi"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_regular_expression_matches_a_whole_text_and_cannot_escape_its_anchors() {
        let regex = whole_match("a|b").unwrap();
        assert!(regex.is_match("a") && regex.is_match("b") && !regex.is_match("ab") && !regex.is_match("xa"));
        assert!(whole_match("a)|(?:b").is_err());
        assert!(whole_match("(?x)a #").is_err());
        assert!(whole_match("(").is_err());
        assert!(whole_match("(?:a{1000}){1000}").is_err());
        assert!(whole_match(&"a".repeat(2000)).is_err());
    }

    #[test]
    fn a_claim_path_is_a_name_or_names_in_brackets() {
        let path = |text: &str| claim_path(text).map(|p| p.join("/"));
        assert_eq!(path("tenant").as_deref(), Some("tenant"));
        assert_eq!(path("https://example.com/role").as_deref(), Some("https://example.com/role"));
        assert_eq!(path("[realm][roles]").as_deref(), Some("realm/roles"));
        assert_eq!(path("realm[roles]").as_deref(), Some("realm/roles"));
        for bad in ["", "[", "a[b", "a[]", "a[b]c", "[a]]", " a"] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }
}
