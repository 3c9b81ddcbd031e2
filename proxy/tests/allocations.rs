//! What one request costs in allocations: a budget, so that a copy made for each request does not come in unseen.
//!
//! A caller and an application of bare sockets talk through one side of a sidecar, in plain text over kept connections. Only
//! what the sidecar's thread allocates is counted.

#![allow(clippy::unwrap_used, reason = "a failed one is a failed test")]

#[path = "support/mod.rs"]
mod support;

use std::fmt::Write as _;
use std::net::TcpListener;
use std::thread;

use support::{CALLED, CALLED_OVER_HTTP2, Caller, PERMISSIVE, Way, application};

/// Allocations and reallocations for a small GET, without a log: measured. What is left over HTTP/1.1 is what is kept of the
/// call; of HTTP/2 a stream, its place among the others and the exchange on it. Each costs about 300 instructions with its
/// release (callgrind), of some 26,000 that a request takes.
const BUDGETS: [(Way, &str, f64); 4] = [
    (Way::In, PERMISSIVE, 1.2),
    (Way::Out, CALLED, 1.2),
    (Way::InOfHttp2, PERMISSIVE, 5.2),
    (Way::OutToHttp2, CALLED_OVER_HTTP2, 2.2),
];
/// The number does not depend on the machine; less than one more.
const TOLERANCE: f64 = 0.8;

#[test]
fn a_small_request_stays_within_its_budget_of_allocations() {
    let mut wrong = String::new();
    for (way, policies, budget) in BUDGETS {
        let each = each(way, policies);
        eprintln!("{way:?}: {each} allocations a request");
        if each < 0.5 || each > budget + TOLERANCE {
            let _ = writeln!(wrong, "{way:?}: {each} allocations a request, of a budget of {budget}");
        }
    }
    assert!(wrong.is_empty(), "find what has changed, or set the budget anew, in this file:\n{wrong}");
}

/// Allocations for one request more.
fn each(way: Way, policies: &'static str) -> f64 {
    let application = application(way);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let sidecar = listener.local_addr().unwrap();
    let serving = thread::spawn(move || support::serve_one(&listener, (way, application), policies, counting::begin));
    let mut caller = Caller::connect(sidecar, way);
    // What is made once, such as connections and series of metrics, has been made after these.
    (0..100).for_each(|_| caller.call(""));
    let (rounds, before) = (1_000, counting::so_far());
    (0..rounds).for_each(|_| caller.call(""));
    let each = (counting::so_far() - before) as f64 / f64::from(rounds);
    drop(caller);
    serving.join().unwrap();
    each
}

/// An allocator that counts what one thread asks of it.
#[allow(unsafe_code, reason = "an allocator cannot be written without; every call goes to the system's as it came")]
mod counting {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, Ordering};

    static COUNTED: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static COUNTS: Cell<bool> = const { Cell::new(false) };
    }

    /// From here on the current thread counts.
    pub(super) fn begin() {
        COUNTS.set(true);
    }

    /// Allocations and reallocations so far.
    pub(super) fn so_far() -> u64 {
        COUNTED.load(Ordering::Relaxed)
    }

    struct Counting;

    #[global_allocator]
    static COUNTING: Counting = Counting;

    fn count() {
        // A thread that is ending has no such cell any more.
        if COUNTS.try_with(Cell::get).unwrap_or(false) {
            COUNTED.fetch_add(1, Ordering::Relaxed);
        }
    }

    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            count();
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
            unsafe { System.dealloc(at, layout) }
        }

        unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            count();
            unsafe { System.realloc(at, layout, size) }
        }
    }
}
