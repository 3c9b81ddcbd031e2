//! Memory that load has left behind is given back to the system, so that a sidecar at rest is small again.
//!
//! The C library's allocator gives back only what lies at the end of its heap, and a single connection that stays keeps all
//! that is below it. Asked to, it gives back every page that is free. That takes some milliseconds in which others who
//! allocate wait: so it is asked when there is little to do, and seldom while there is much. Pages of the program file go back
//! only when there is little to do.
//!
//! Then workers put down, by and by, what they kept for a load that is over: idle connections and emptied header maps lie on
//! pages with much that is free. Once nobody puts down any more, memory is given back again.
//!
//! While nobody asks anything, what the process does for itself every few seconds (it speaks to its control plane) brings pages of
//! the program file back: these are given back soon after, each time.

mod program;
mod surplus;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(crate) use surplus::Surplus;

use crate::codec::spare;
use crate::observe;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// So much processor time between two looks is little to do.
const QUIET: Duration = Duration::from_millis(50);
/// Less work than this leaves nothing behind that is worth the walk; a start does.
const WORTH: Duration = Duration::from_millis(300);
/// While there is much to do, so many looks are between two times.
const SELDOM: u32 = 60;
/// After so many looks without a request nobody asks anything.
const STILL: u32 = 5;
/// KiB of the program file that are not worth a call.
const WORTH_READING: u64 = 512;
/// Between two looks then: so long stays what the process reads of its program for itself.
const EVERY_STILL: Duration = Duration::from_millis(250);

/// There was little to do before the last look.
static CALM: AtomicBool = AtomicBool::new(false);
/// A request came since the last look, on any worker.
static ASKED: AtomicBool = AtomicBool::new(false);
/// Something was put down since the last look.
static PUT_DOWN: AtomicBool = AtomicBool::new(false);

/// Whether there is little to do: a moment to put down what was kept for more.
pub(crate) fn is_calm() -> bool {
    CALM.load(Ordering::Relaxed)
}

/// Somebody has put something down, and perhaps not yet all.
pub(crate) fn put_down() {
    PUT_DOWN.store(true, Ordering::Relaxed);
}

/// On each worker, for as long as it lives: puts down what its thread keeps, and tells whether requests came. While none come,
/// `others` put down more, and say whether they did.
pub(crate) async fn worker(others: impl Fn() -> bool) {
    loop {
        tokio::time::sleep(EVERY).await;
        let asked = spare::were_needed();
        if asked {
            ASKED.store(true, Ordering::Relaxed);
        }
        if is_calm() && (spare::put_down() | (!asked && others())) {
            put_down();
        }
    }
}

/// Looks for as long as the process lives.
pub(crate) async fn keep() {
    let (mut work, mut rest) = (Work::default(), Rest::default());
    loop {
        if rest.is_still() {
            rest.keep().await;
        } else {
            tokio::time::sleep(EVERY).await;
        }
        let over = work.is_over(observe::processor_time(), PUT_DOWN.swap(false, Ordering::Relaxed));
        CALM.store(work.is_quiet, Ordering::Relaxed);
        rest.look(ASKED.swap(false, Ordering::Relaxed) || !work.is_quiet);
        if over {
            give_back();
            if work.is_quiet {
                program::give_back();
            }
        }
    }
}

/// How long nobody has asked anything, and what the program file held when it was given back last.
#[derive(Debug, Default)]
struct Rest {
    /// Looks without a request.
    looks: u32,
    /// KiB.
    held: u64,
}

impl Rest {
    /// One more look, since the last of which somebody has asked something or not.
    fn look(&mut self, asked: bool) {
        self.looks = if asked { 0 } else { self.looks.saturating_add(1) };
    }

    /// Whether nobody asks anything.
    fn is_still(&self) -> bool {
        self.looks >= STILL
    }

    /// Keeps small what is read of the program, until the next look.
    async fn keep(&mut self) {
        for _ in 0..EVERY.as_millis() / EVERY_STILL.as_millis() {
            tokio::time::sleep(EVERY_STILL).await;
            if self.has_grown(program::resident()) {
                program::give_back();
                self.held = program::resident();
            }
        }
    }

    /// Whether it is worth to give back, of so many KiB, what was read since that was done.
    fn has_grown(&self, resident: u64) -> bool {
        resident > self.held.saturating_add(WORTH_READING)
    }
}

/// What was done since memory was given back.
#[derive(Debug, Default)]
struct Work {
    /// Processor time at the last look.
    last: Duration,
    /// Processor time when memory was given back; `None`: it never was.
    given_back: Option<Duration>,
    /// Looks since then.
    looks: u32,
    /// There was little to do before the last look.
    is_quiet: bool,
    /// Something was put down since memory was given back.
    put_down: bool,
}

impl Work {
    /// Whether this is a moment to give memory back; `used` is the processor time so far. While somebody puts down more, it is
    /// not worth the walk yet.
    fn is_over(&mut self, used: Duration, put_down: bool) -> bool {
        let now = used.saturating_sub(std::mem::replace(&mut self.last, used));
        self.looks = self.looks.saturating_add(1);
        self.put_down |= put_down;
        let worked = self.given_back.is_none_or(|then| used.saturating_sub(then) >= WORTH);
        let worth = worked || (self.put_down && !put_down);
        self.is_quiet = now <= QUIET;
        let over = worth && (self.is_quiet || self.looks >= SELDOM);
        if over {
            (self.given_back, self.looks, self.put_down) = (Some(used), 0, false);
        }
        over
    }
}

/// Has the allocator give back what is free.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "the C library has no other way to be asked")]
fn give_back() {
    unsafe extern "C" {
        /// malloc_trim(3): thread-safe, walks all arenas; `pad` bytes are left at the end of the heap.
        safe fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    malloc_trim(0);
}

/// Other C libraries give back by themselves.
#[cfg(not(target_env = "gnu"))]
fn give_back() {}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn memory_is_given_back_once_when_work_is_over_and_seldom_while_it_lasts() {
        let (mut work, mut used, quiet) = (Work::default(), Duration::ZERO, Cell::new(false));
        let mut look = |more: Duration| {
            used += more;
            let over = work.is_over(used, false);
            quiet.set(work.is_quiet);
            over
        };
        assert!(!look(80 * MS), "it starts");
        assert!(look(MS), "it has started");
        assert!(!look(MS));
        assert!((1..SELDOM - 1).all(|_| !look(900 * MS)));
        assert!(look(900 * MS), "a busy minute");
        assert!(!quiet.get(), "what is in use is not given back");
        assert!((1..20).all(|_| !look(900 * MS)));
        assert!(look(10 * MS) && quiet.get(), "quiet after work");
        assert!((1..25).all(|_| !look(10 * MS)), "nothing was done since");
        assert!((1..10).any(|_| look(40 * MS)), "little by little enough was done");
    }

    #[test]
    fn at_rest_the_program_is_given_back_whenever_it_has_grown_and_never_while_somebody_asks() {
        let mut rest = Rest::default();
        let mut look = |asked| {
            rest.look(asked);
            rest.is_still()
        };
        assert!((1..STILL).all(|_| !look(false)));
        assert!(look(false) && look(false));
        assert!(!look(true) && (1..STILL).all(|_| !look(false)), "somebody asked");
        assert!(look(false));
        assert!(rest.has_grown(8000), "it never was given back");
        rest.held = 2000;
        assert!(!rest.has_grown(2000 + WORTH_READING) && rest.has_grown(2001 + WORTH_READING));
    }

    #[test]
    fn memory_is_given_back_again_once_all_is_put_down() {
        let (mut work, mut used) = (Work::default(), Duration::ZERO);
        let mut look = |more: Duration, put_down| {
            used += more;
            work.is_over(used, put_down)
        };
        assert!(look(MS, false), "it has started");
        assert!((0..7).all(|_| !look(10 * MS, true)), "there may be more");
        assert!(look(MS, false), "that was all");
        assert!((0..7).all(|_| !look(MS, false)), "nothing was put down since");
        assert!(!look(MS, true) && !look(900 * MS, false), "much to do again");
        assert!(look(MS, false));
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn what_is_free_between_what_is_not_goes_back_to_the_system() {
        let resident = || {
            let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
            pages.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4 / 1024
        };
        let mut all: Vec<Vec<u8>> = (0..64 * 1024).map(|_| vec![1; 1024]).collect();
        let mut seen = 0;
        all.retain(|_| {
            seen += 1;
            seen % 64 == 0
        });
        let before = resident();
        give_back();
        let after = resident();
        assert!(after + 32 < before, "{before} MiB, then {after}");
        drop(all);
    }
}
