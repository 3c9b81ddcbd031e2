//! What is remembered of retries, for how long, and what a chain of hops makes of it.
#![expect(clippy::disallowed_methods, reason = "a test needs some moment to count from")]

use super::*;
use crate::deadline::Deadline;
use crate::retry::{Attempt, Failure, Pushback, RetryBudget, Verdict, judge};
use crate::trace_state::{Carried, Other, read, write};
use equerry_policies::policy::{Retry, RetryBudget as Allowance};
use http::Method;
use proptest::prelude::*;
use std::time::SystemTime;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_retry_is_remembered_for_calls_that_began_before_it_and_not_for_ever() {
    let (hops, began, trace) = (Hops::default(), Instant::now(), TraceId(7));
    assert!(!hops.any());
    hops.retried(trace, began + SECOND);
    assert!(hops.any() && hops.since(trace, began, began + 2 * SECOND));
    assert!(!hops.since(trace, began + 2 * SECOND, began + 3 * SECOND), "it was part of another call");
    assert!(!hops.since(TraceId(8), began, began + 2 * SECOND));
    assert!(hops.since(trace, began, began + 30 * SECOND));
    assert!(!hops.since(trace, began, began + 100 * SECOND) && !hops.any(), "then nothing is asked any more");
}

#[test]
fn however_many_traces_there_are_the_memory_is_bounded() {
    let (hops, now) = (Hops::default(), Instant::now());
    for id in 0..100_000 {
        hops.retried(TraceId(id), now);
    }
    let lately = hops.lately.lock().unwrap();
    assert!(lately.younger.len() <= MOST && lately.older.len() <= MOST);
    drop(lately);
    assert!(hops.since(TraceId(99_999), now, now));
}

#[test]
fn a_trace_is_read_from_traceparent_alone_and_from_nothing_that_is_none() {
    let of = |value: &str| TraceId::of(&[(TRACEPARENT, value.parse().unwrap())].into_iter().collect());
    let id = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
    assert_eq!(of("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), Some(TraceId(id)));
    for nonsense in ["", "00", "00-", "00-4bf9-00f067aa0ba902b7-01", "00-zzf92f3577b34da6a3ce929d0e0e4736-0-01"] {
        assert_eq!(of(nonsense), None, "{nonsense}");
    }
    assert_eq!(TraceId::of(&HeaderMap::new()), None);
}

/// A chain of sidecars that all retry, the outermost last, before an application whose answers are drawn.
struct Chain<'a> {
    hops: &'a [Hops],
    clock: Instant,
    /// Whether applications pass on what they were called with.
    forward: bool,
    leaf: &'a mut dyn FnMut() -> bool,
    calls: usize,
    /// How often each hop tried again.
    retries: Vec<usize>,
}

impl Chain<'_> {
    /// Calls through the hops of this depth and below; says whether it failed, and whether retries were made behind.
    fn call(&mut self, depth: usize, headers: &HeaderMap) -> (bool, bool) {
        if depth == 0 {
            self.calls += 1;
            return ((self.leaf)(), false);
        }
        let (hops, trace) = (&self.hops[depth - 1], TraceId::of(headers));
        let marked =
            read(headers, Other::Application, || SystemTime::UNIX_EPOCH).is_some_and(|carried| carried.retried);
        let rule = Retry { codes: vec![503], attempts: 3, backoff: Duration::from_millis(25) };
        let plenty = Allowance { percent: 0, min_per_second: 1000 };
        for retries in 0.. {
            let mut request = headers.clone();
            let carried = Carried { remaining: None, retried: marked || retries > 0 };
            write(&mut request, carried, Other::Peer, || SystemTime::UNIX_EPOCH);
            let (failed, behind) = self.called(depth, &request);
            if let (true, Some(trace)) = (behind, trace) {
                hops.retried(trace, self.clock);
            }
            if !failed {
                return (false, behind);
            }
            let (now, method, budget) = (self.clock, &Method::GET, RetryBudget::default());
            let (retry, deadline) = (Some(&rule), Deadline::after(now, None));
            let attempt = Attempt {
                method,
                retry,
                method_named: false,
                replayable: true,
                marked,
                behind,
                pushback: Pushback::None,
                place: true,
                retries,
                deadline,
            };
            let rng = &mut fastrand::Rng::with_seed(1);
            let Verdict::Again { .. } = judge(Failure::Status(503), &attempt, &budget, &plenty, now, rng) else {
                return (true, behind);
            };
            self.retries[depth - 1] += 1;
            if let Some(trace) = trace {
                hops.retried(trace, now);
            }
        }
        (true, false)
    }

    /// The callee of one hop: its application calls on, and fails if that did; its sidecar adds what it knows.
    fn called(&mut self, depth: usize, request: &HeaderMap) -> (bool, bool) {
        if depth == 1 {
            return self.call(0, request);
        }
        let began = self.clock;
        self.clock += Duration::from_millis(1);
        let onward = if self.forward { request.clone() } else { HeaderMap::new() };
        let (failed, _) = self.call(depth - 1, &onward);
        let beside = &self.hops[depth - 2];
        let known = TraceId::of(request).filter(|_| beside.any());
        (failed, failed && known.is_some_and(|trace| beside.since(trace, began, self.clock)))
    }
}

fn through_three(forward: bool, leaf: &mut dyn FnMut() -> bool) -> (bool, usize, Vec<usize>) {
    let hops: [Hops; 3] = Default::default();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [(TRACEPARENT, trace.parse().unwrap())].into_iter().collect();
    let mut chain = Chain { hops: &hops, clock: Instant::now(), forward, leaf, calls: 0, retries: vec![0; 3] };
    let (failed, _) = chain.call(3, &headers);
    (failed, chain.calls, chain.retries)
}

#[test]
fn of_three_hops_that_may_retry_only_the_one_before_the_failure_does() {
    assert_eq!(through_three(true, &mut || true), (true, 1 + 3, vec![3, 0, 0]));
    // Where nothing is passed on nobody can know: this is what the promise rests on.
    assert_eq!(through_three(false, &mut || true), (true, 64, vec![3 * 16, 3 * 4, 3]));
}

proptest! {
    #[test]
    fn whatever_the_application_answers_one_hop_of_a_chain_retries_at_most(answers in prop::collection::vec(any::<bool>(), 64)) {
        let mut answers = answers.into_iter();
        let (failed, calls, retries) = through_three(true, &mut || answers.next().unwrap_or(true));
        prop_assert!(calls <= 4 && retries.iter().filter(|made| **made > 0).count() <= 1, "{calls} {retries:?}");
        prop_assert_eq!(failed, calls == 4 && retries[0] == 3 && failed);
    }
}
