//! `grpc-timeout`: how long the caller of a gRPC call waits, and what is left of it for the next hop.
//!
//! Up to eight digits and a unit (gRPC over HTTP/2). It only ever becomes shorter on its way.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The largest number of eight digits.
const LARGEST: u128 = 99_999_999;

/// Reads it; what is not of its form says nothing.
pub fn read(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

/// Writes what is left, in the finest unit that holds it, never rounded up. Where the caller asked for nothing, nothing is
/// added: nobody knows whether the call is a stream.
pub fn shorten(headers: &mut HeaderMap, left: Option<Duration>) {
    let Some(left) = left.filter(|_| headers.contains_key(GRPC_TIMEOUT)) else { return };
    let units = [(1, 'n'), (1_000, 'u'), (1_000_000, 'm'), (1_000_000_000, 'S'), (60_000_000_000, 'M')];
    let fitting = units.iter().find(|(size, _)| left.as_nanos() / size <= LARGEST);
    let (size, unit) = fitting.copied().unwrap_or((3_600_000_000_000, 'H'));
    let amount = (left.as_nanos() / size).min(LARGEST);
    if let Ok(value) = HeaderValue::from_str(&format!("{amount}{unit}")) {
        headers.insert(GRPC_TIMEOUT, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(GRPC_TIMEOUT, value.parse().unwrap())])
    }

    #[test]
    fn it_is_read_as_grpc_writes_it() {
        for (text, read_as) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("90M", Some(Duration::from_secs(5400))),
            ("5S", Some(Duration::from_secs(5))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("1u", Some(Duration::from_micros(1))),
            ("0n", Some(Duration::ZERO)),
            ("100000000m", None),
            ("S", None),
            ("", None),
            ("+5S", None),
            ("5s", None),
            ("5 S", None),
        ] {
            assert_eq!(read(&with(text)), read_as, "{text:?}");
        }
        assert_eq!(read(&HeaderMap::new()), None);
    }

    #[test]
    fn a_call_that_asked_for_nothing_is_given_nothing() {
        let mut headers = HeaderMap::new();
        shorten(&mut headers, Some(Duration::from_secs(1)));
        assert!(headers.is_empty());
    }

    proptest! {
        #[test]
        fn what_is_written_is_never_longer_than_what_is_left_and_hardly_shorter(nanos in any::<u64>()) {
            let left = Duration::from_nanos(nanos);
            let mut headers = with("5S");
            shorten(&mut headers, Some(left));
            let read = read(&headers).unwrap();
            prop_assert!(read <= left && read.as_nanos() >= left.as_nanos() / 1_000_001 * 1_000_000, "{read:?} of {left:?}");
        }
    }
}
