//! What is known of one endpoint: estimates, being left alone, and all that keeps it from being tried.
#![expect(clippy::disallowed_methods, reason = "a test needs some moment to count from")]

use equerry_policies::policy::Ask;

use super::*;
use crate::health::Standing;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn cost(state: &EndpointState, now: Instant) -> f32 {
    state.cost(1.0, Moment::of(now))
}

#[test]
fn a_slower_answer_counts_at_once_and_a_faster_one_by_age() {
    let state = EndpointState::default();
    let start = Instant::now();
    state.observe(10 * MS, Verdict::Success, false, start);
    assert!((cost(&state, start) - 0.010).abs() < 1e-6);
    state.observe(100 * MS, Verdict::Success, false, start);
    assert!((cost(&state, start) - 0.100).abs() < 1e-6);
    state.observe(10 * MS, Verdict::Success, false, start + 100 * MS);
    let after = cost(&state, start + 100 * MS);
    assert!((0.098..0.100).contains(&after), "{after}");
}

#[test]
fn an_endpoint_nothing_is_known_of_gets_the_one_try_by_which_it_becomes_known() {
    let (known, unknown) = (EndpointState::default(), EndpointState::default());
    let now = Instant::now();
    known.observe(MS, Verdict::Success, false, now);
    assert!(cost(&unknown, now) < cost(&known, now));
    unknown.begin();
    assert!(cost(&unknown, now) > cost(&known, now), "and no more than one");
}

#[test]
fn an_endpoint_that_fails_fast_costs_more_than_a_slow_one_that_answers() {
    let (failing, slow) = (EndpointState::default(), EndpointState::default());
    let now = Instant::now();
    failing.observe(MS / 10, Verdict::Failure, false, now);
    slow.observe(200 * MS, Verdict::Success, false, now);
    assert!(cost(&failing, now) > cost(&slow, now));
    let later = now + 10 * SECOND;
    assert!(cost(&failing, later) < cost(&slow, later), "a single failure is forgotten");
}

#[test]
fn an_endpoint_that_is_busy_costs_more_than_a_slow_one_also_where_a_breaker_judges() {
    let now = Instant::now();
    for judges in [false, true] {
        let (busy, slow) = (EndpointState::default(), EndpointState::default());
        busy.observe(MS / 10, Verdict::Busy, judges, now);
        slow.observe(200 * MS, Verdict::Success, judges, now);
        assert!(cost(&busy, now) > cost(&slow, now), "{judges}");
    }
}

#[test]
fn an_answer_that_ends_badly_costs_its_endpoint_as_much_as_one_that_began_so() {
    let (state, now) = (EndpointState::default(), Instant::now());
    let breaker = BreakerSettings::DEFAULT;
    let end = |verdict, breaker| state.ended(verdict, breaker, &[&state], now, 0.5);
    state.observe(10 * MS, Verdict::Success, false, now);
    assert!(end(Verdict::Success, None).is_none() && end(Verdict::Failure, Some(&breaker)).is_none());
    assert!((cost(&state, now) - 0.010).abs() < 1e-6, "a failure is the breaker's, where there is one");
    end(Verdict::Failure, None);
    assert!((cost(&state, now) - 0.635).abs() < 1e-3, "{}", cost(&state, now));
    end(Verdict::Busy, Some(&breaker));
    assert!(cost(&state, now) > 1.0 && matches!(state.breaker(), State::Closed { .. }));
}

#[test]
fn an_endpoint_of_twice_the_weight_bears_twice_as_much_in_flight() {
    let (light, heavy) = (EndpointState::default(), EndpointState::default());
    let now = Instant::now();
    light.observe(10 * MS, Verdict::Success, false, now);
    heavy.observe(10 * MS, Verdict::Success, false, now);
    (0..3).for_each(|_| light.begin());
    (0..6).for_each(|_| heavy.begin());
    assert!((light.cost(1.0, Moment::of(now)) - heavy.cost(2.0, Moment::of(now))).abs() < 1e-6);
}

#[test]
fn an_endpoint_is_avoided_for_as_long_as_it_asks_but_a_minute_at_most() {
    let (state, now) = (EndpointState::default(), Instant::now());
    assert!(!state.is_avoided(Moment::of(now)));
    state.avoid_until(now + 5 * SECOND, now);
    state.avoid_until(now + SECOND, now);
    assert!(state.is_avoided(Moment::of(now + 4 * SECOND)), "the longer one holds");
    assert!(!state.is_avoided(Moment::of(now + 5 * SECOND)));
    let later = now + 10 * SECOND;
    state.avoid_until(later + 3600 * SECOND, later);
    assert!(state.is_avoided(Moment::of(later + 59 * SECOND)) && !state.is_avoided(Moment::of(later + 60 * SECOND)));
    state.avoid_until(later, later + 100 * SECOND);
    assert!(!state.is_avoided(Moment::of(later + 100 * SECOND)), "what is over is over");
}

#[test]
fn what_fades_is_within_less_than_half_a_percent_of_the_exponential_and_never_grows() {
    let mut before = 1.0;
    for step in 0..2_000_000_u32 {
        let nanos = step as f32 * 500_000.0;
        let (ours, exact) = (fading(nanos, LATENCY_DECAY), (-nanos / 1e9 / LATENCY_DECAY).exp());
        assert!((ours - exact).abs() <= exact * 0.004 + 1e-37, "{nanos}: {ours} against {exact}");
        assert!(ours <= before * 1.000_001, "{nanos}");
        before = ours;
    }
    assert_eq!(fading(1e18, FAILURE_DECAY), 0.0);
}

#[test]
fn what_a_pick_reads_is_in_one_cache_line() {
    assert!(std::mem::offset_of!(EndpointState, known) <= 64);
    assert_eq!(align_of::<EndpointState>(), 64);
}

#[test]
fn an_endpoint_that_answers_badly_is_out_until_it_answers_well_or_nobody_asks_any_more() {
    let (state, now) = (EndpointState::default(), Instant::now());
    let settings = HealthCheck { unhealthy_threshold: 2, ..HealthCheck::asking(Ask::Tcp {}) };
    let bad = || Err("connection refused".to_owned());
    assert_eq!(state.answered(Ok(()), &settings, now), Some(Turn::Well));
    state.answered(bad(), &settings, now);
    assert!(state.would_admit(None, now).is_some(), "one failure is not two");
    assert_eq!(state.answered(bad(), &settings, now), Some(Turn::Unwell));
    assert!(state.would_admit(None, now).is_none() && state.is_out(now) && state.is_unwell());
    assert_eq!(state.health(None, now).because.to_string(), "asked, it fails: connection refused");
    state.set_panic(true);
    assert!(state.would_admit(None, now).is_some() && !state.is_out(now));
    state.set_panic(false);
    state.answered(Ok(()), &settings, now);
    assert!(state.would_admit(None, now).is_some());
    state.answered(bad(), &settings, now);
    state.answered(bad(), &settings, now);
    state.not_asked();
    assert!(state.would_admit(None, now).is_some());
}

#[test]
fn an_endpoint_that_answers_well_again_is_probed_at_once_whatever_its_penalty() {
    let (state, start) = (EndpointState::default(), Instant::now());
    let breaker = BreakerSettings { consecutive_failures: 1, penalty_min: 60 * SECOND, ..BreakerSettings::DEFAULT };
    let check = HealthCheck { unhealthy_threshold: 1, ..HealthCheck::asking(Ask::Tcp {}) };
    state.judge((Admission::Closed, Verdict::Failure), Some(&breaker), &[&state], start, 0.5);
    state.answered(Err(String::new()), &check, start);
    assert_eq!(state.health(Some(&breaker), start + SECOND).since, Some(start));
    let later = start + 2 * SECOND;
    assert!(state.would_admit(Some(&breaker), later).is_none());
    state.answered(Ok(()), &check, later);
    assert_eq!(state.would_admit(Some(&breaker), later), Some(Admission::Probe));
    assert_eq!(state.health(Some(&breaker), later).standing, Standing::Probing);
}

#[test]
fn a_stranger_is_kept_away_and_then_one_try_sees_who_is_there() {
    let (state, start) = (EndpointState::default(), Instant::now());
    assert_eq!(state.met_a_stranger("other", start, start + SECOND / 10), Some(SECOND));
    assert_eq!(state.met_a_stranger("other", start, start + SECOND / 10), None, "they were under way together");
    let now = start + SECOND;
    assert!(state.would_admit(None, now).is_none() && state.is_out(now));
    assert_eq!(state.health(None, now).because.as_str(), "identity_mismatch");
    let now = start + 2 * SECOND;
    assert_eq!(state.admit(None, now), Some((Admission::Closed, None)));
    assert!(state.admit(None, now).is_none(), "the others wait for what it finds");
    assert_eq!(state.met_a_stranger("other", now, now), Some(2 * SECOND));
    let now = start + 5 * SECOND;
    assert!(state.admit(None, now).is_some());
    assert!(state.met_the_right_one() && !state.met_the_right_one());
    assert!(state.would_admit(None, now).is_some());
    assert_eq!(state.health(None, now).standing, Standing::Usable);
}

#[test]
fn where_one_is_out_for_its_answers_the_breaker_of_the_other_keeps_it_in() {
    let states = [EndpointState::default(), EndpointState::default()];
    let (now, check) = (Instant::now(), HealthCheck::asking(Ask::Tcp {}));
    let breaker = BreakerSettings { consecutive_failures: 1, max_ejected_percent: 50, ..BreakerSettings::DEFAULT };
    states[0].answered(Err(String::new()), &check, now);
    let transition = states[1].judge((Admission::Closed, Verdict::Failure), Some(&breaker), &states, now, 0.5);
    assert!(matches!(transition, Some(Transition::Kept { .. })), "{transition:?}");
}
