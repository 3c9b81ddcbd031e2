//! How long an exchange and each of its tries may take.
//!
//! The exchange's time covers every try and every wait between them; a try that would outlive it ends with it, and the
//! reason says which of the two it was.

use std::time::{Duration, Instant};

use crate::refusal::Refusal;

/// When an exchange must have its response head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    at: Option<Instant>,
    allowed: Duration,
}

/// When a try must have its response head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TryDeadline {
    /// The moment; `None`: no limit.
    pub at: Option<Instant>,
    /// How long the limit that decides was.
    allowed: Duration,
    whole: bool,
}

impl Deadline {
    /// A deadline `allowed` after `now`; `None`: no limit.
    pub fn after(now: Instant, allowed: Option<Duration>) -> Self {
        // A limit so large that no clock can hold it is none.
        Self { at: allowed.and_then(|allowed| now.checked_add(allowed)), allowed: allowed.unwrap_or_default() }
    }

    /// The moment; `None`: no limit.
    pub fn at(&self) -> Option<Instant> {
        self.at
    }

    /// How much is left; `None`: no limit.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        self.at.map(|at| at.saturating_duration_since(now))
    }

    /// Whether a try could still begin after waiting for `wait`.
    pub fn allows(&self, now: Instant, wait: Duration) -> bool {
        self.remaining(now).is_none_or(|left| left > wait)
    }

    /// The deadline of a try that begins now and may take `try_timeout`.
    pub fn for_try(&self, now: Instant, try_timeout: Option<Duration>) -> TryDeadline {
        let own = try_timeout.and_then(|allowed| Some((now.checked_add(allowed)?, allowed)));
        match (self.at, own) {
            (Some(whole), Some((own, allowed))) if own < whole => TryDeadline { at: Some(own), allowed, whole: false },
            (None, Some((own, allowed))) => TryDeadline { at: Some(own), allowed, whole: false },
            (whole, _) => TryDeadline { at: whole, allowed: self.allowed, whole: true },
        }
    }
}

impl TryDeadline {
    /// What a try that reached it is refused with.
    pub fn passed(&self) -> Refusal {
        if self.whole {
            Refusal::RequestTimeout { after: self.allowed }
        } else {
            Refusal::TryTimeout { after: self.allowed }
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to count from")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_earlier_of_the_two_limits_ends_a_try_and_names_itself() {
        let now = Instant::now();
        let whole = Deadline::after(now, Some(100 * MS));
        assert_eq!(whole.for_try(now, Some(30 * MS)).passed(), Refusal::TryTimeout { after: 30 * MS });
        let late = now + 80 * MS;
        assert_eq!(whole.for_try(late, Some(30 * MS)).passed(), Refusal::RequestTimeout { after: 100 * MS });
        assert_eq!(whole.for_try(late, None).at, Some(now + 100 * MS));
        assert_eq!(Deadline::after(now, None).for_try(now, None).at, None);
    }

    #[test]
    fn no_try_begins_after_the_deadline() {
        let now = Instant::now();
        let whole = Deadline::after(now, Some(100 * MS));
        assert!(
            whole.allows(now, 99 * MS) && !whole.allows(now, 100 * MS) && !whole.allows(now + 200 * MS, Duration::ZERO)
        );
        assert!(Deadline::after(now, None).allows(now, Duration::MAX));
    }
}
