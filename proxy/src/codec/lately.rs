//! What the clock said lately: for waits that are counted in seconds, at every request. To read the exact clock costs as much
//! as to read two header fields, and nobody needs two minutes to the microsecond.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

thread_local! {
    /// One moment on both clocks.
    static BOTH: (Instant, Duration) = (Instant::now(), ticks());
}

/// Now, give or take a tick of the system (1 to 10 ms); to the point where tests pause the clock.
pub(crate) fn lately() -> Instant {
    if cfg!(test) { Instant::now() } else { by_ticks() }
}

fn by_ticks() -> Instant {
    BOTH.with(|(at, then)| *at + ticks().saturating_sub(*then))
}

/// Time since the system started, as of its last tick: read from memory, not from the processor.
fn ticks() -> Duration {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    // Neither is negative.
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_tell_the_time_to_within_one_of_them() {
        let until = Instant::now() + Duration::from_millis(50);
        while Instant::now() < until {
            let before = Instant::now();
            let lately = by_ticks();
            let after = Instant::now();
            assert!(before - Duration::from_millis(11) <= lately && lately <= after + Duration::from_millis(11));
        }
    }
}
