//! What is retried and what is not, by example; the budget against a plain model, and under many threads.
#![expect(clippy::disallowed_methods, reason = "a test needs some moment to count from")]

use super::*;
use proptest::prelude::*;

use super::budget::WINDOW;

const SECOND: Duration = Duration::from_secs(1);
const NOTHING_FREE: Allowance = Allowance { percent: 20, min_per_second: 0 };

fn retry() -> Retry {
    Retry { codes: vec![503], attempts: 3, backoff: Duration::from_millis(25) }
}

fn attempt<'a>(method: &'a Method, retry: Option<&'a Retry>, now: Instant) -> Attempt<'a> {
    Attempt {
        method,
        retry,
        method_named: false,
        replayable: true,
        marked: false,
        behind: false,
        pushback: Pushback::None,
        place: true,
        retries: 0,
        deadline: Deadline::after(now, Some(SECOND)),
    }
}

fn verdict(failure: Failure, attempt: &Attempt<'_>, now: Instant) -> Verdict {
    judge(failure, attempt, &RetryBudget::default(), &Allowance::default(), now, &mut fastrand::Rng::with_seed(1))
}

fn again(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Again { .. })
}

#[test]
fn a_get_is_tried_again_for_the_codes_of_its_rule_and_for_connection_errors() {
    let (now, retry) = (Instant::now(), retry());
    let get = attempt(&Method::GET, Some(&retry), now);
    assert!(again(verdict(Failure::Status(503), &get, now)));
    assert!(again(verdict(Failure::mesh(Reason::UpstreamReset), &get, now)));
    assert!(again(verdict(Failure::mesh(Reason::TryTimeout), &get, now)));
    assert_eq!(verdict(Failure::Status(500), &get, now), Verdict::Stop(Stop::NotRetriable));
    assert_eq!(verdict(Failure::mesh(Reason::RequestTimeout), &get, now), Verdict::Stop(Stop::NotRetriable));
    assert_eq!(verdict(Failure::mesh(Reason::AuthzDenied), &get, now), Verdict::Stop(Stop::NotRetriable));
}

#[test]
fn a_post_is_tried_again_only_by_a_rule_about_it_or_when_it_was_certainly_not_processed() {
    let (now, retry) = (Instant::now(), retry());
    let mut post = attempt(&Method::POST, Some(&retry), now);
    assert_eq!(verdict(Failure::Status(503), &post, now), Verdict::Stop(Stop::Method));
    assert!(again(verdict(Failure::mesh(Reason::Draining), &post, now)));
    post.method_named = true;
    assert!(again(verdict(Failure::Status(503), &post, now)));
    let unruled = attempt(&Method::POST, None, now);
    assert!(again(verdict(Failure::mesh(Reason::ConnectFailed), &unruled, now)));
}

#[test]
fn body_attempts_and_deadline_each_stop_it_and_say_so() {
    let (now, retry) = (Instant::now(), retry());
    let stop = |change: &dyn Fn(&mut Attempt<'_>)| {
        let mut get = attempt(&Method::GET, Some(&retry), now);
        change(&mut get);
        verdict(Failure::Status(503), &get, now)
    };
    assert_eq!(stop(&|a| a.replayable = false), Verdict::Stop(Stop::Body));
    assert_eq!(stop(&|a| a.retries = 3), Verdict::Stop(Stop::Attempts));
    assert_eq!(stop(&|a| a.place = false), Verdict::Stop(Stop::Limit));
    assert_eq!(stop(&|a| a.marked = true), Verdict::Stop(Stop::Hop));
    assert_eq!(stop(&|a| a.behind = true), Verdict::Stop(Stop::Hop));
    assert_eq!(stop(&|a| a.pushback = Pushback::Never), Verdict::Stop(Stop::Pushback));
    assert_eq!(
        stop(&|a| a.deadline = Deadline::after(now, Some(Duration::from_millis(20)))),
        Verdict::Stop(Stop::Deadline)
    );
}

#[test]
fn a_grpc_status_is_tried_again_by_the_http_code_that_stands_for_it() {
    let (now, retry) = (Instant::now(), Retry { codes: vec![503, 429], ..retry() });
    let mut call = attempt(&Method::POST, Some(&retry), now);
    call.method_named = true;
    let (unavailable, exhausted, internal, ok) = (14, 8, 13, 0);
    assert!(again(verdict(Failure::Grpc(unavailable), &call, now)));
    assert!(again(verdict(Failure::Grpc(exhausted), &call, now)));
    assert_eq!(verdict(Failure::Grpc(internal), &call, now), Verdict::Stop(Stop::NotRetriable));
    assert_eq!(verdict(Failure::Grpc(ok), &call, now), Verdict::Stop(Stop::NotRetriable));
}

#[test]
fn a_request_that_was_certainly_not_processed_is_tried_again_though_another_hop_retries() {
    let now = Instant::now();
    let mut post = attempt(&Method::POST, None, now);
    post.marked = true;
    assert!(again(verdict(Failure::mesh(Reason::Draining), &post, now)));
    post.retries = 1;
    assert_eq!(verdict(Failure::mesh(Reason::Draining), &post, now), Verdict::Stop(Stop::Attempts));
}

#[test]
fn a_wait_that_the_answer_asks_for_is_kept_where_the_deadline_allows_it() {
    let (now, retry) = (Instant::now(), retry());
    let mut get = attempt(&Method::GET, Some(&retry), now);
    get.pushback = Pushback::After(Duration::from_millis(800));
    assert_eq!(verdict(Failure::Status(503), &get, now), Verdict::Again { after: Duration::from_millis(800) });
    get.pushback = Pushback::After(2 * SECOND);
    assert_eq!(verdict(Failure::Status(503), &get, now), Verdict::Stop(Stop::Deadline));
}

#[test]
fn the_budget_allows_its_share_and_forgets_what_is_older_than_its_window() {
    let budget = RetryBudget::default();
    let start = Instant::now();
    for _ in 0..100 {
        budget.original(start);
    }
    let granted = (0..100).filter(|_| budget.take(&NOTHING_FREE, start)).count();
    assert_eq!(granted, 20);
    assert!(!budget.take(&NOTHING_FREE, start + 9 * SECOND));
    for _ in 0..5 {
        budget.original(start + 10 * SECOND);
    }
    assert!(budget.take(&NOTHING_FREE, start + 10 * SECOND));
    assert!(!budget.take(&NOTHING_FREE, start + 10 * SECOND));
    assert!(!budget.take(&NOTHING_FREE, start + 1000 * SECOND));
}

#[test]
fn the_wait_is_never_shorter_than_asked_and_never_grows_without_bound() {
    let mut rng = fastrand::Rng::with_seed(7);
    let base = Duration::from_millis(25);
    for retries in 0..40 {
        let wait = backoff(base, retries, &mut rng);
        assert!(wait >= base && wait <= base * MAX_BACKOFF_FACTOR, "{retries}: {wait:?}");
    }
    let mut longest = |retries| (0..1000).map(|_| backoff(base, retries, &mut rng)).max().unwrap();
    for (retries, tenths) in [(0, 20), (1, 40), (2, 80), (3, 100)] {
        let (longest, bound) = (longest(retries), base * tenths / 10);
        assert!(longest <= bound && longest > bound * 9 / 10, "{retries}: {longest:?} of {bound:?}");
    }
}

proptest! {
    /// Against a plain model: a list of every event with its second.
    #[test]
    fn the_budget_agrees_with_a_list_of_events(events in prop::collection::vec((0u64..3, any::<bool>()), 1..300), percent in 0u32..200, least in 0u32..3) {
        let budget = RetryBudget::default();
        let allowance = Allowance { percent, min_per_second: least };
        let start = Instant::now();
        let (mut second, mut originals, mut retries) = (0u64, Vec::new(), Vec::new());
        budget.original(start);
        originals.push(0);
        for (wait, is_original) in events {
            second += wait;
            let now = start + Duration::from_secs(second);
            if is_original {
                budget.original(now);
                originals.push(second);
            } else {
                let within = |list: &[u64]| list.iter().filter(|at| **at + WINDOW > second).count() as u64;
                let expected = within(&retries) < within(&originals) * u64::from(percent) / 100 + WINDOW * u64::from(least);
                prop_assert_eq!(budget.take(&allowance, now), expected);
                if expected {
                    retries.push(second);
                }
            }
        }
    }
}

#[test]
fn many_threads_together_get_no_more_than_the_budget_holds() {
    let (budget, start) = (RetryBudget::default(), Instant::now());
    for _ in 0..1000 {
        budget.original(start);
    }
    let granted: usize = std::thread::scope(|scope| {
        let all = || (0..500).filter(|_| budget.take(&NOTHING_FREE, start)).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(all)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    // One that counts itself and takes itself back can make another miss the last place, never take one too many.
    assert!((190..=200).contains(&granted), "{granted}");
}
