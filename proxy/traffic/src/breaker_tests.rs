//! The breaker by example, as a history to read, and under any interleaving of requests.
#![expect(clippy::disallowed_methods, reason = "a test needs some moment to count from")]

use equerry_policies::policy::FailurePercent;
use proptest::prelude::*;

use super::*;
use Admission::{Closed, Probe};

const SECOND: Duration = Duration::from_secs(1);
const SETTINGS: Settings =
    Settings { consecutive_failures: 3, penalty_min: SECOND, penalty_max: Duration::from_secs(5), ..Settings::DEFAULT };
const HALF: Settings = Settings {
    consecutive_failures: 1000,
    failure_percent: Some(FailurePercent { threshold: 50, interval: Duration::from_secs(10), minimum_requests: 10 }),
    ..SETTINGS
};

fn fail(breaker: &mut Breaker, admitted: Admission, now: Instant) -> Option<Transition> {
    breaker.failed(admitted, &SETTINGS, || true, now, 0.0)
}

fn opened(now: Instant) -> Breaker {
    let mut breaker = Breaker::default();
    for _ in 0..3 {
        fail(&mut breaker, Closed, now);
    }
    breaker
}

fn in_a_row(failures: u32) -> Option<Transition> {
    Some(Transition::Opened { cause: Cause::Consecutive(failures), penalty: SECOND })
}

#[test]
fn it_opens_after_failures_in_a_row_and_a_success_between_them_starts_the_count_again() {
    let now = Instant::now();
    let mut breaker = Breaker::default();
    assert_eq!(fail(&mut breaker, Closed, now), None);
    assert_eq!(fail(&mut breaker, Closed, now), None);
    assert_eq!(breaker.succeeded(Closed, &SETTINGS, now), None);
    assert_eq!(fail(&mut breaker, Closed, now), None);
    assert_eq!(fail(&mut breaker, Closed, now), None);
    assert_eq!(fail(&mut breaker, Closed, now), in_a_row(3));
    assert_eq!(breaker.admit(&SETTINGS, now + SECOND / 2), None);
}

#[test]
fn after_the_penalty_exactly_one_request_is_the_probe() {
    let now = Instant::now();
    let mut breaker = opened(now);
    assert_eq!(breaker.admit(&SETTINGS, now + SECOND), Some((Probe, Some(Transition::Probing))));
    assert_eq!(breaker.admit(&SETTINGS, now + SECOND), None);
    assert_eq!(breaker.succeeded(Probe, &SETTINGS, now + SECOND), Some(Transition::Closed));
    assert_eq!(breaker.admit(&SETTINGS, now + SECOND), Some((Closed, None)));
}

#[test]
fn the_penalty_doubles_with_each_failed_probe_up_to_its_maximum_and_is_forgotten_on_success() {
    let mut now = Instant::now();
    let mut breaker = opened(now);
    for expected in [2, 4, 5, 5] {
        now += Duration::from_secs(5);
        assert!(breaker.admit(&SETTINGS, now).is_some());
        let penalty = expected * SECOND;
        assert_eq!(fail(&mut breaker, Probe, now), Some(Transition::Reopened { penalty }));
        assert_eq!(breaker.would_admit(&SETTINGS, now + penalty - Duration::from_nanos(1)), None);
    }
    now += Duration::from_secs(5);
    breaker.admit(&SETTINGS, now);
    breaker.succeeded(Probe, &SETTINGS, now);
    for _ in 0..2 {
        fail(&mut breaker, Closed, now);
    }
    assert_eq!(fail(&mut breaker, Closed, now), in_a_row(3));
}

#[test]
fn an_abandoned_probe_leaves_the_probe_to_the_next_request() {
    let now = Instant::now();
    let mut breaker = opened(now);
    breaker.admit(&SETTINGS, now + SECOND);
    breaker.abandon(Probe);
    assert_eq!(breaker.would_admit(&SETTINGS, now + SECOND), Some(Probe));
}

#[test]
fn requests_that_left_before_it_opened_change_nothing() {
    let now = Instant::now();
    let mut breaker = opened(now);
    let before = breaker.clone();
    assert_eq!(breaker.succeeded(Closed, &SETTINGS, now), None);
    assert_eq!(fail(&mut breaker, Closed, now), None);
    assert_eq!(breaker, before);
}

#[test]
fn a_share_of_failures_opens_it_though_no_two_of_them_follow_each_other() {
    let now = Instant::now();
    let mut breaker = Breaker::default();
    let mut changes = Vec::new();
    for step in 0..20 {
        let at = now + SECOND / 10 * step;
        if step % 2 == 0 {
            changes.extend(breaker.failed(Closed, &HALF, || true, at, 0.0));
        } else {
            breaker.succeeded(Closed, &HALF, at);
        }
        if breaker.is_open() {
            break;
        }
    }
    let share = Share { requests: 11, failures: 6 };
    assert_eq!(changes, [Transition::Opened { cause: Cause::TooHigh(share), penalty: SECOND }]);
}

#[test]
fn a_breaker_that_has_forgotten_its_failures_has_nothing_to_say() {
    let now = Instant::now();
    let mut breaker = Breaker::default();
    breaker.failed(Closed, &HALF, || true, now, 0.0);
    breaker.succeeded(Closed, &HALF, now + SECOND);
    assert_ne!(breaker, Breaker::default(), "the failure is remembered");
    breaker.succeeded(Closed, &HALF, now + 10 * SECOND);
    assert_eq!(breaker, Breaker::default());
}

#[test]
fn a_window_does_not_outlive_the_setting_it_was_for() {
    let now = Instant::now();
    let mut breaker = Breaker::default();
    breaker.failed(Closed, &HALF, || true, now, 0.0);
    breaker.succeeded(Closed, &SETTINGS, now);
    assert_eq!(breaker, Breaker::default());
}

#[test]
fn one_that_may_not_open_says_so_and_counts_again() {
    let now = Instant::now();
    let mut breaker = Breaker::default();
    let mut told = Vec::new();
    for _ in 0..6 {
        told.extend(breaker.failed(Closed, &SETTINGS, || false, now, 0.0));
    }
    let kept = Transition::Kept { cause: Cause::Consecutive(3) };
    assert_eq!(told, [kept, kept]);
    assert!(!breaker.is_open());
}

/// One line for each event that changes something.
fn story(settings: &Settings, events: &[(u64, &str)]) -> String {
    let start = Instant::now();
    let (mut breaker, mut held, mut lines) = (Breaker::default(), None, Vec::new());
    for (millis, event) in events {
        let now = start + Duration::from_millis(*millis);
        let change = match *event {
            "request" => match breaker.admit(settings, now) {
                Some((admission, change)) => {
                    held = Some(admission);
                    change
                }
                None => {
                    lines.push(format!("{millis:>6} ms  refused"));
                    None
                }
            },
            "fails" => breaker.failed(held.unwrap_or(Closed), settings, || true, now, 0.0),
            "succeeds" => breaker.succeeded(held.unwrap_or(Closed), settings, now),
            other => panic!("{other}"),
        };
        if let Some(change) = change {
            lines.push(format!("{millis:>6} ms  {event}: {}", change.as_str()));
        }
    }
    lines.join("\n")
}

const OUTAGE: [(u64, &str); 15] = [
    (0, "request"),
    (10, "fails"),
    (20, "request"),
    (30, "fails"),
    (40, "request"),
    (50, "fails"),
    (500, "request"),
    (1050, "request"),
    (1060, "request"),
    (1100, "fails"),
    (2900, "request"),
    (3100, "request"),
    (3150, "succeeds"),
    (3200, "request"),
    (3250, "succeeds"),
];

#[test]
fn an_outage_reads_like_this() {
    let expected = "
    50 ms  fails: consecutive_failures
   500 ms  refused
  1050 ms  request: penalty_over
  1060 ms  refused
  1100 ms  fails: probe_failed
  2900 ms  refused
  3100 ms  request: penalty_over
  3150 ms  succeeds: probe_succeeded";
    assert_eq!(format!("\n{}", story(&SETTINGS, &OUTAGE)), expected);
}

#[test]
fn one_that_observes_tells_of_the_same_outage_and_refuses_nobody() {
    let observed = Settings { mode: BreakerMode::Observe, ..SETTINGS };
    let told = story(&observed, &OUTAGE);
    assert!(!told.contains("refused"), "{told}");
    assert!(
        told.contains("50 ms  fails: consecutive_failures") && told.contains("1050 ms  request: penalty_over"),
        "{told}"
    );
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Ask,
    Succeed(usize),
    Fail(usize),
    Leave(usize),
    Wait(u64),
    Forbid(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Ask),
        2 => any::<usize>().prop_map(Step::Succeed),
        4 => any::<usize>().prop_map(Step::Fail),
        1 => any::<usize>().prop_map(Step::Leave),
        2 => (1u64..3000).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Forbid),
    ]
}

proptest! {
    /// Many requests are on their way at once and end in any order, well, badly or without a verdict. Whatever happens, an
    /// open breaker lets nobody pass before its penalty is over, and then never more than one at a time.
    #[test]
    fn under_any_interleaving_there_is_never_more_than_one_probe(steps in prop::collection::vec(step(), 1..400), share in any::<bool>()) {
        let settings = if share { Settings { consecutive_failures: 5, ..HALF } } else { SETTINGS };
        let (mut breaker, mut now, mut may) = (Breaker::default(), Instant::now(), true);
        let mut under_way: Vec<Admission> = Vec::new();
        for step in steps {
            let before = breaker.state();
            match step {
                Step::Ask => {
                    let admitted = breaker.admit(&settings, now);
                    match (before, admitted) {
                        (State::Closed { .. }, Some((Closed, None))) => {}
                        (State::Open { until, .. }, Some((Probe, Some(Transition::Probing)))) => prop_assert!(until <= now),
                        (State::Open { until, .. }, None) => prop_assert!(until > now),
                        (State::HalfOpen { .. }, None) => {}
                        other => prop_assert!(false, "{other:?}"),
                    }
                    under_way.extend(admitted.map(|(admission, _)| admission));
                }
                Step::Succeed(which) if !under_way.is_empty() => {
                    let one = under_way.swap_remove(which % under_way.len());
                    let change = breaker.succeeded(one, &settings, now);
                    prop_assert_eq!(change == Some(Transition::Closed), one == Probe);
                }
                Step::Fail(which) if !under_way.is_empty() => {
                    let one = under_way.swap_remove(which % under_way.len());
                    let change = breaker.failed(one, &settings, || may, now, 0.5);
                    let (again, opened) = match change {
                        Some(Transition::Reopened { .. }) => (true, false),
                        Some(Transition::Opened { .. }) => (false, true),
                        _ => (false, false),
                    };
                    prop_assert_eq!(again, one == Probe);
                    prop_assert!(may || !opened);
                }
                Step::Leave(which) if !under_way.is_empty() => {
                    let one = under_way.swap_remove(which % under_way.len());
                    breaker.abandon(one);
                }
                Step::Wait(millis) => now += Duration::from_millis(millis),
                Step::Forbid(forbid) => may = !forbid,
                Step::Succeed(_) | Step::Fail(_) | Step::Leave(_) => {}
            }
            let probes = under_way.iter().filter(|one| **one == Probe).count();
            prop_assert!(probes <= 1);
            let half_open = matches!(breaker.state(), State::HalfOpen { .. });
            prop_assert_eq!(probes == 1, half_open, "half-open is having a probe under way");
        }
    }
}
