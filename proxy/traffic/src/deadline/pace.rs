//! Whether somebody who is waited for goes fast enough to be worth it: a caller that takes its response, an application that takes
//! a request, or one that sends what it declared.
//!
//! Only the time counts in which others wait for them and for nothing else. Whoever is silent for long is another timer's
//! (`timeouts.streamIdle`); here those are found who do a little again and again so that it never ends.

use std::time::{Duration, Instant};

use super::SLOWEST;

/// How fast somebody has gone who was waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// Since when they are waited for, or moved something last.
    since: Option<Instant>,
    /// For how long they were, since they were judged last.
    waited: Duration,
    /// Bytes that moved meanwhile.
    moved: u64,
    /// They paused: what follows has still so long to come before they are judged.
    grace: Option<Duration>,
}

/// Somebody went slower than [`SLOWEST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crawled {
    /// Bytes that moved.
    pub bytes: u64,
    /// In how long a time.
    pub after: Duration,
}

impl Pace {
    /// They are waited for; so many bytes have moved since this was said last. Each time they were waited for for `patience`
    /// in all, they are judged; after a pause only when what follows it has come too.
    ///
    /// # Errors
    /// When they crawl.
    pub fn waits(&mut self, moved: u64, patience: Duration, now: Instant) -> Result<(), Crawled> {
        self.begins(now);
        if moved == 0 {
            return Ok(());
        }
        self.rests(patience, now);
        self.begins(now);
        self.moves(moved);
        self.judge(patience)
    }

    /// They are waited for, since `since` if they were not before.
    pub fn begins(&mut self, since: Instant) {
        self.since.get_or_insert(since);
    }

    /// So many bytes have moved, whether anybody waited for them or not.
    pub fn moves(&mut self, bytes: u64) {
        self.moved = self.moved.saturating_add(bytes);
    }

    /// Judges them if they were waited for for `patience`, and begins anew.
    ///
    /// # Errors
    /// When they crawl.
    pub fn judge(&mut self, patience: Duration) -> Result<(), Crawled> {
        if self.waited < patience || self.grace.is_some_and(|grace| !grace.is_zero()) {
            return Ok(());
        }
        let crawled = Crawled { bytes: self.moved, after: self.waited };
        (self.waited, self.moved, self.grace) = (Duration::ZERO, 0, None);
        if is_crawl(crawled.bytes, crawled.after) { Err(crawled) } else { Ok(()) }
    }

    /// Whether they are waited for.
    pub fn is_waiting(&self) -> bool {
        self.since.is_some()
    }

    /// They are waited for no more: something else is.
    pub fn rests(&mut self, patience: Duration, now: Instant) {
        let Some(since) = self.since.take() else { return };
        let silence = now.saturating_duration_since(since);
        self.waited += silence;
        self.grace = match self.grace {
            // One pause is forgiven. The next ends what was forgiven for the last.
            None => (silence > patience / 2).then_some(patience / 2),
            Some(grace) => Some(grace.saturating_sub(silence)),
        };
    }
}

/// Whether so many bytes in such a time are fewer than are worth waiting for.
pub(super) fn is_crawl(bytes: u64, after: Duration) -> bool {
    u128::from(bytes) * 1000 < u128::from(SLOWEST) * after.as_millis()
}

#[cfg(test)]
#[path = "pace_tests.rs"]
mod tests;
