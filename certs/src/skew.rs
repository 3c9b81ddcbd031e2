//! Two machines' clocks: how far they may disagree, and how a disagreement is told.
//!
//! Certificates and tokens are judged by time, so a machine whose clock is wrong is told both times and what to do,
//! instead of meeting an unexplained handshake failure later.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How far a proxy's clock may be from the control plane's: what certificates are backdated by.
pub const MAX_SKEW: Duration = Duration::from_secs(5 * 60);

/// Two clocks that disagree by more than [`MAX_SKEW`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the clocks disagree: the proxy's says {}, the control plane's {}, which is more than {} minutes apart; set the one that is wrong (for example with NTP) and try again",
    rfc3339(*.proxy), rfc3339(*.control_plane), MAX_SKEW.as_secs() / 60
)]
pub struct Skew {
    /// The time the proxy told.
    pub proxy: SystemTime,
    /// The control plane's time.
    pub control_plane: SystemTime,
}

/// Compares the time a proxy told with the control plane's.
///
/// # Errors
/// When they are more than [`MAX_SKEW`] apart.
pub fn check(proxy: SystemTime, control_plane: SystemTime) -> Result<(), Skew> {
    let apart = proxy.duration_since(control_plane).unwrap_or_else(|earlier| earlier.duration());
    if apart > MAX_SKEW { Err(Skew { proxy, control_plane }) } else { Ok(()) }
}

/// A time as people and logs write it, in UTC with seconds: `2026-11-21T01:40:00Z`.
pub fn rfc3339(time: SystemTime) -> String {
    in_seconds(time).format(&Rfc3339).unwrap_or_else(|_| format!("{time:?}"))
}

/// The time as certificates carry it: whole seconds, UTC.
pub(crate) fn in_seconds(time: SystemTime) -> OffsetDateTime {
    let exact = OffsetDateTime::from(time);
    exact.replace_nanosecond(0).unwrap_or(exact)
}

/// The time a number of seconds after (or before) 1970, or `None` when it does not fit.
pub(crate) fn from_unix(seconds: i64) -> Option<SystemTime> {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_apart_is_refused_in_both_directions_naming_both_times() {
        let ours = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        for theirs in [ours + Duration::from_secs(3600), ours - Duration::from_secs(3600)] {
            let told = check(theirs, ours).unwrap_err().to_string();
            assert!(told.contains(&rfc3339(ours)) && told.contains(&rfc3339(theirs)), "{told}");
        }
        assert_eq!(rfc3339(ours), "2027-01-15T08:00:00Z");
    }

    #[test]
    fn five_minutes_are_allowed() {
        let ours = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        assert_eq!(check(ours + MAX_SKEW, ours), Ok(()));
        assert_eq!(check(ours - MAX_SKEW, ours), Ok(()));
    }
}
