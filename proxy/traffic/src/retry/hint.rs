//! What an answer says about trying again: `Retry-After` (RFC 9110 section 10.2.3) and `grpc-retry-pushback-ms` (gRPC A6).
//!
//! Both can only make a retry later, or none.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;

/// Nobody waits longer for a retry: a caller who is told to come back later than this is told so.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// What an answer asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pushback {
    /// Nothing.
    #[default]
    None,
    /// No retry before this wait.
    After(Duration),
    /// No retry.
    Never,
}

impl Pushback {
    /// The shortest wait before a retry; `None`: there is to be none.
    pub fn wait(self) -> Option<Duration> {
        match self {
            Self::None => Some(Duration::ZERO),
            Self::After(wait) => Some(wait).filter(|wait| *wait <= LONGEST_WAIT),
            Self::Never => None,
        }
    }
}

/// Reads what an answer asks for, from its head or its trailers. gRPC's own word counts before HTTP's; one that cannot be
/// read, or is negative, asks for no retry, as gRPC says.
pub fn pushback(headers: &HeaderMap, now: SystemTime) -> Pushback {
    if let Some(asked) = headers.get("grpc-retry-pushback-ms") {
        let wait = asked.to_str().ok().and_then(|text| text.parse().ok()).map(Duration::from_millis);
        return wait.map_or(Pushback::Never, Pushback::After);
    }
    retry_after(headers, now).map_or(Pushback::None, Pushback::After)
}

/// Reads `Retry-After`: seconds, or a date. What cannot be read says nothing; a date that has passed says "at once".
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(u64::from(seconds)));
    }
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(date(text)?))?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that may still be sent (RFC 9110 section 5.6.7).
fn date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_weekday, rest) = text.split_once(", ")?;
    let words: Vec<&str> = rest.split(' ').collect();
    let &[day, month, year, time, "GMT"] = words.as_slice() else { return None };
    let clock: Vec<u64> = time.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let &[hour, minute, second] = clock.as_slice() else { return None };
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let possible = (1..=31).contains(&day) && (1970..=9999).contains(&year) && hour < 24 && minute < 60 && second <= 60;
    possible.then(|| days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Days from 1970-01-01 to a day of the Gregorian calendar, years counted from March so that the leap day is the last.
fn days(year: u64, month: u64, day: u64) -> u64 {
    const BEFORE_1970: u64 = 719_468;
    let year = year - u64::from(month <= 2);
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - BEFORE_1970
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let after = |text, now| retry_after(&with("retry-after", text), at(now));
        assert_eq!(after("120", 0), Some(Duration::from_secs(120)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_767), Some(Duration::from_secs(10)));
        assert_eq!(after("Thu, 29 Feb 2024 23:59:59 GMT", 1_709_251_199 - 5), Some(Duration::from_secs(5)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT", 2_000_000_000), Some(Duration::ZERO), "it has passed");
        for nonsense in [
            "",
            "soon",
            "-1",
            "1.5",
            "06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 25:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 CET",
        ] {
            assert_eq!(after(nonsense, 0), None, "{nonsense}");
        }
    }

    #[test]
    fn grpcs_own_word_counts_first_and_nonsense_in_it_means_no_retry() {
        let asked = |value| pushback(&with("grpc-retry-pushback-ms", value), at(0));
        assert_eq!(asked("250"), Pushback::After(Duration::from_millis(250)));
        assert_eq!(asked("-1"), Pushback::Never);
        assert_eq!(asked("later"), Pushback::Never);
        let mut both = with("grpc-retry-pushback-ms", "5");
        both.insert("retry-after", "60".parse().unwrap());
        assert_eq!(pushback(&both, at(0)), Pushback::After(Duration::from_millis(5)));
    }

    #[test]
    fn a_wait_that_nobody_has_means_no_retry() {
        assert_eq!(Pushback::After(LONGEST_WAIT).wait(), Some(LONGEST_WAIT));
        assert_eq!(Pushback::After(LONGEST_WAIT + Duration::from_millis(1)).wait(), None);
    }
}
