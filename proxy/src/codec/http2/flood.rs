//! What costs us more than it costs the peer, and how much of it is borne: frames that are cheap to send and move nothing. Over
//! the bounds the connection ends (ENHANCE_YOUR_CALM).
//!
//! Each kind has an allowance that comes back with time, and with what the peer does that is of use: who moves much may also
//! ping much. Reckoning is put off until an allowance is spent, so that a good peer costs a subtraction for such a frame.

use std::time::Instant;

use super::bad::{Bad, Code};
use super::frame::Frame;

/// Frames of one header block; our peers need five for the largest.
const BLOCK_FRAMES: u32 = 16;
/// Compressed bytes of one header block. What is beyond 60 KiB when decompressed is answered (431), not punished.
const BLOCK_BYTES: usize = 128 * 1024;
/// DATA of fewer bytes is a tiny one, unless it is the last.
const TINY: usize = 16;

/// An allowance: at most `burst` at once, and `per_second` more with time.
struct Bound {
    burst: u32,
    per_second: u32,
    why: &'static str,
}

/// Streams that were begun for nothing (CVE-2023-44487, CVE-2025-8671). All of a connection's 1,024 streams may be given up
/// at once, and half of all that are begun.
const RESETS: Bound = Bound { burst: 1_100, per_second: 500, why: "too many streams were reset" };
/// Answers that are wanted (CVE-2019-9512). gRPC measures its bandwidth with a PING for each round trip that moves data.
const PINGS: Bound = Bound { burst: 1_000, per_second: 100, why: "too many PING" };
/// Answers that are wanted (CVE-2019-9515), and whatever else is said once in a while.
const SETTINGS: Bound = Bound { burst: 100, per_second: 10, why: "too many SETTINGS or GOAWAY" };
/// DATA without data (CVE-2019-9518).
const EMPTY: Bound = Bound { burst: 100, per_second: 10, why: "too many empty DATA" };
/// DATA with hardly any: streams of tiny messages are honest work, up to some point.
const TINIES: Bound = Bound { burst: 100_000, per_second: 100_000, why: "too many tiny DATA" };
/// What nobody heeds (CVE-2019-9513).
const PRIORITIES: Bound = Bound { burst: 1_000, per_second: 100, why: "too many PRIORITY" };
/// More room than we could ever use; Envoy allows ten for each DATA we send.
const WINDOW_UPDATES: Bound = Bound { burst: 1_000, per_second: 1_000, why: "too many WINDOW_UPDATE" };
/// What nobody knows.
const UNKNOWN: Bound = Bound { burst: 1_000, per_second: 100, why: "too many frames of an unknown type" };

/// What is left of an allowance.
#[derive(Debug)]
struct Left {
    left: u32,
    /// When it was last reckoned.
    since: Instant,
    /// What the peer had earned then.
    earned: u64,
}

impl Left {
    fn new(bound: &Bound, now: Instant) -> Self {
        Self { left: bound.burst, since: now, earned: 0 }
    }

    /// Takes one. `earned` is all that the peer has ever earned.
    fn take(&mut self, bound: &Bound, earned: u64, now: Instant) -> Result<(), Bad> {
        if self.left == 0 {
            self.reckon(bound, earned, now);
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(Bad::connection(Code::ENHANCE_YOUR_CALM, bound.why)),
        }
    }

    #[cold]
    fn reckon(&mut self, bound: &Bound, earned: u64, now: Instant) {
        let passed = now.saturating_duration_since(self.since).as_micros();
        let back = passed * u128::from(bound.per_second) / 1_000_000 + u128::from(earned - self.earned);
        // What passed without giving anything back goes on passing.
        if back > 0 {
            self.left = u32::try_from(back).map_or(bound.burst, |back| back.min(bound.burst));
            (self.since, self.earned) = (now, earned);
        }
    }
}

/// Counts for one connection.
#[derive(Debug)]
pub(crate) struct Flood {
    /// HEADERS and DATA with data that came.
    useful: u64,
    /// Exchanges that came to their end.
    ended: u64,
    /// DATA that we sent.
    sent: u64,
    /// Frames of the present header block.
    block_frames: u32,
    /// Bytes of the present header block.
    block_bytes: usize,
    resets: Left,
    pings: Left,
    settings: Left,
    empty: Left,
    tinies: Left,
    priorities: Left,
    window_updates: Left,
    unknown: Left,
}

impl Flood {
    /// A connection that begins `now`.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            useful: 0,
            ended: 0,
            sent: 0,
            block_frames: 0,
            block_bytes: 0,
            resets: Left::new(&RESETS, now),
            pings: Left::new(&PINGS, now),
            settings: Left::new(&SETTINGS, now),
            empty: Left::new(&EMPTY, now),
            tinies: Left::new(&TINIES, now),
            priorities: Left::new(&PRIORITIES, now),
            window_updates: Left::new(&WINDOW_UPDATES, now),
            unknown: Left::new(&UNKNOWN, now),
        }
    }

    /// `frame` came. `now` may be as old as the read that brought it.
    ///
    /// # Errors
    /// When it is one too many.
    pub(crate) fn frame(&mut self, frame: &Frame, now: Instant) -> Result<(), Bad> {
        match frame {
            Frame::Data { data, end: false, .. } if data.is_empty() => self.empty.take(&EMPTY, 0, now),
            Frame::Data { data, end: false, .. } if data.len() < TINY => {
                self.useful += 1;
                self.tinies.take(&TINIES, 0, now)
            }
            Frame::Data { .. } => {
                self.useful += 1;
                Ok(())
            }
            Frame::Headers { block, .. } => {
                self.useful += 1;
                (self.block_frames, self.block_bytes) = (1, block.len());
                Ok(())
            }
            Frame::Continuation { block, .. } => self.continuation(block.len()),
            Frame::Reset { .. } => self.provoked(now),
            Frame::Ping { .. } => self.pings.take(&PINGS, self.useful, now),
            Frame::Settings(_) | Frame::SettingsAck | Frame::GoAway { .. } => self.settings.take(&SETTINGS, 0, now),
            Frame::Priority { .. } => self.priorities.take(&PRIORITIES, self.useful, now),
            Frame::WindowUpdate { .. } => {
                self.window_updates.take(&WINDOW_UPDATES, 2 * self.useful + 10 * self.sent, now)
            }
            Frame::Unknown => self.unknown.take(&UNKNOWN, 0, now),
        }
    }

    /// More of a header block came (CVE-2024-27919).
    fn continuation(&mut self, length: usize) -> Result<(), Bad> {
        self.block_frames += 1;
        self.block_bytes += length;
        if self.block_frames > BLOCK_FRAMES || self.block_bytes > BLOCK_BYTES {
            return Err(Bad::connection(Code::ENHANCE_YOUR_CALM, "a header block without end"));
        }
        Ok(())
    }

    /// A stream was reset by the peer, or by us for what the peer did.
    ///
    /// # Errors
    /// When it is one too many.
    pub(crate) fn provoked(&mut self, now: Instant) -> Result<(), Bad> {
        self.resets.take(&RESETS, self.ended, now)
    }

    /// An exchange came to its end without a reset.
    pub(crate) fn ended(&mut self) {
        self.ended += 1;
    }

    /// We sent `frames` DATA.
    pub(crate) fn sent_data(&mut self, frames: u32) {
        self.sent += u64::from(frames);
    }
}

#[cfg(test)]
#[path = "flood_tests.rs"]
mod tests;
