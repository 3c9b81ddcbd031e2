//! Which limit ends what, and whose it was.
#![expect(clippy::disallowed_methods, reason = "a test needs some moment to count from")]

use equerry_policies::names::PolicyName;

use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn expired(timer: Timer, after: Duration) -> Expired {
    Expired { timer, after, document: None }
}

fn policy(stream: Option<Duration>, idle: Option<Duration>) -> TrafficPolicy {
    TrafficPolicy { stream_timeout: stream, stream_idle_timeout: idle, ..TrafficPolicy::default() }
}

#[test]
fn the_earlier_of_the_two_limits_ends_a_try_and_names_itself() {
    let now = Instant::now();
    let whole = Deadline::after(now, Some(100 * MS));
    let of_a_try = Refusal::TryTimeout(expired(Timer::BackendRequest, 30 * MS));
    assert_eq!(whole.for_try(now, Some(30 * MS)).passed(), of_a_try);
    let late = now + 80 * MS;
    let of_all = Refusal::RequestTimeout(expired(Timer::Request, 100 * MS));
    assert_eq!(whole.for_try(late, Some(30 * MS)).passed(), of_all);
    assert_eq!(whole.for_try(late, None).at, Some(now + 100 * MS));
    assert_eq!(Deadline::after(now, None).for_try(now, None).at, None);
    assert_eq!(Deadline::after(now, None).for_try(now, Some(30 * MS)).passed(), of_a_try);
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

#[test]
fn what_a_caller_asks_and_what_it_inherits_only_shortens() {
    let now = Instant::now();
    let rule = Deadline::after(now, Some(SECOND));
    let at = |deadline: Deadline| (deadline.remaining(now), deadline.for_try(now, None).passed());
    let request = Refusal::RequestTimeout(expired(Timer::Request, SECOND));
    assert_eq!(at(rule.asked(now, Some(HOUR)).inherited(now, Some(HOUR))), (Some(SECOND), request));
    let asked = Refusal::RequestTimeout(expired(Timer::GrpcTimeout, 300 * MS));
    assert_eq!(at(rule.asked(now, Some(300 * MS)).inherited(now, Some(HOUR))), (Some(300 * MS), asked));
    let inherited = Refusal::RequestTimeout(expired(Timer::Inherited, 200 * MS));
    assert_eq!(at(rule.asked(now, Some(300 * MS)).inherited(now, Some(200 * MS))), (Some(200 * MS), inherited));
    assert_eq!(Deadline::after(now, None).inherited(now, Some(MS)).remaining(now), Some(MS));
}

#[test]
fn work_that_nobody_waits_for_is_not_sent_and_says_whose_time_was_over() {
    let now = Instant::now();
    let over = Deadline::after(now, Some(SECOND)).inherited(now, Some(Duration::ZERO));
    let refusal = over.still_wanted(now).unwrap_err();
    assert_eq!(refusal, Refusal::TooLate(expired(Timer::Inherited, Duration::ZERO)));
    assert_eq!((refusal.status().as_u16(), refusal.grpc_status()), (504, 4));
    assert!(Deadline::after(now, Some(SECOND)).still_wanted(now).is_ok());
}

#[test]
fn a_unary_exchange_keeps_its_deadline_to_the_last_byte_and_a_stream_only_to_its_head() {
    let now = Instant::now();
    let rule = Deadline::after(now, Some(2 * SECOND));
    let rest = |kind| rule.after_head(kind, now, &TrafficPolicy::default());
    assert_eq!(rest(Kind::Unary).end.at, Some(now + 2 * SECOND));
    assert_eq!(rest(Kind::Unary).idle, Some(USUAL_STREAM_IDLE));
    for kind in [Kind::Grpc, Kind::EventStream, Kind::Upgrade] {
        assert_eq!((rest(kind).end.at, rest(kind).idle), (None, None), "{kind:?}");
    }
}

#[test]
fn a_stream_ends_when_its_policy_or_its_caller_says_so() {
    let now = Instant::now();
    let rule = Deadline::after(now, Some(2 * SECOND));
    let rest = rule.after_head(Kind::EventStream, now, &policy(Some(HOUR), Some(60 * SECOND)));
    assert_eq!(rest.end.passed(), Refusal::RequestTimeout(expired(Timer::Stream, HOUR)));
    assert_eq!((rest.end.at, rest.idle), (Some(now + HOUR), Some(60 * SECOND)));
    assert_eq!(rest.stood_still().reason().as_str(), "stream_idle");
    let asked = rule.asked(now, Some(20 * SECOND)).after_head(Kind::Grpc, now, &policy(Some(HOUR), None));
    assert_eq!(asked.end.at, Some(now + 20 * SECOND));
    assert_eq!(asked.end.passed(), Refusal::RequestTimeout(expired(Timer::GrpcTimeout, 20 * SECOND)));
    let unlimited = rule.after_head(Kind::Unary, now, &policy(None, Some(Duration::ZERO)));
    assert_eq!(unlimited.idle, None, "0s is no limit");
}

#[test]
fn a_rules_time_for_a_grpc_call_begins_when_its_request_has_ended() {
    let start = Instant::now();
    let of_a_try = Deadline::after(start, Some(2 * SECOND)).for_try(start, None);
    let now = start + 2 * SECOND;
    assert_eq!(of_a_try.or_more_time(Kind::Unary, None, now), Err(of_a_try.passed()));
    assert_eq!(of_a_try.or_more_time(Kind::Grpc, None, now), Ok(now + 2 * SECOND), "the caller still streams");
    assert_eq!(of_a_try.or_more_time(Kind::Grpc, Some(start + SECOND), now), Ok(start + 3 * SECOND));
    assert_eq!(of_a_try.or_more_time(Kind::Grpc, Some(start), now), Err(of_a_try.passed()));
    let asked = Deadline::after(start, None).asked(start, Some(2 * SECOND)).for_try(start, None);
    assert_eq!(asked.or_more_time(Kind::Grpc, None, now), Err(asked.passed()), "the caller asked for it");
}

#[test]
fn an_expiry_names_the_document_that_set_it() {
    let name = PolicyName::parse("shop/inventory").unwrap();
    let policy = TrafficPolicy { name: Some(name), ..policy(Some(HOUR), None) };
    let now = Instant::now();
    let rest = Deadline::after(now, None).after_head(Kind::Upgrade, now, &policy);
    let refusal = rest.end.passed().signed(&Authors { rule: None, policy: Some(&policy) });
    assert_eq!(refusal.cause(), Some("shop/inventory"));
    assert_eq!(refusal.to_string(), "the exchange took longer than 3600s: timeouts.stream of shop/inventory");
    let by_caller = Deadline::after(now, None).asked(now, Some(SECOND)).for_try(now, None).passed();
    assert_eq!(by_caller.signed(&Authors::default()).to_string(), "the exchange took longer than 1s: grpc-timeout");
}

#[test]
fn connections_made_together_do_not_end_together() {
    let mut rng = fastrand::Rng::with_seed(1);
    let ages: Vec<Duration> = (0..100).filter_map(|_| connection_age(&TrafficPolicy::default(), &mut rng)).collect();
    assert!(ages.len() == 100 && ages.iter().all(|age| (HOUR * 9 / 10..=HOUR).contains(age)), "{ages:?}");
    assert!(ages.iter().max().unwrap().abs_diff(*ages.iter().min().unwrap()) > HOUR / 20, "{ages:?}");
    let forever = TrafficPolicy { max_connection_age: None, ..TrafficPolicy::default() };
    assert_eq!(connection_age(&forever, &mut rng), None);
}

#[test]
fn a_callee_holds_the_time_that_came_and_leaves_silence_to_the_callers_policy() {
    let now = Instant::now();
    let came = Deadline::after(now, None).inherited(now, Some(2 * SECOND));
    let rest = came.after_head_at_callee(Kind::Unary, now);
    assert_eq!((rest.end.at, rest.idle, rest.unread), (Some(now + 2 * SECOND), None, Some(USUAL_STREAM_IDLE)));
    assert_eq!(rest.end.passed(), Refusal::RequestTimeout(expired(Timer::Inherited, 2 * SECOND)));
    assert_eq!(came.after_head_at_callee(Kind::EventStream, now).end.at, None, "a stream has no end that a rule knows");
    let asked = Deadline::after(now, None).asked(now, Some(SECOND)).after_head_at_callee(Kind::Grpc, now);
    assert_eq!(asked.end.at, Some(now + SECOND));
}

#[test]
fn a_caller_that_sends_nothing_or_takes_nothing_is_told_which_timer_it_met() {
    assert_eq!(idle(Kind::Unary, &TrafficPolicy::default()), Some(USUAL_STREAM_IDLE));
    assert_eq!(idle(Kind::Grpc, &TrafficPolicy::default()), None, "a stream may be silent");
    assert_eq!(unread(&TrafficPolicy::default()), Some(USUAL_STREAM_IDLE), "and yet its data must be taken");
    assert_eq!(
        (idle(Kind::Unary, &policy(None, Some(Duration::ZERO))), unread(&policy(None, Some(Duration::ZERO)))),
        (None, None)
    );
    let (slow, deaf) = (nothing_came(SECOND), nobody_reads(SECOND));
    assert_eq!((slow.status().as_u16(), slow.reason().as_str()), (408, "client_slow"));
    assert_eq!(
        (slow.fault(), slow.to_string().as_str()),
        (crate::refusal::Fault::Client, "the caller sent nothing for 1s: timeouts.streamIdle")
    );
    assert_eq!(
        (deaf.reason().as_str(), deaf.to_string().as_str()),
        ("stream_idle", "the caller took nothing for 1s: timeouts.streamIdle")
    );
}

#[test]
fn whoever_sends_less_than_the_slowest_rate_crawls() {
    for (bytes, seconds, crawls) in
        [(0, 30, true), (1919, 30, true), (1920, 30, false), (1 << 20, 30, false), (6400, 100, false)]
    {
        let judged = not_crawling(bytes, Duration::from_secs(seconds));
        assert_eq!(judged.is_err(), crawls, "{bytes} in {seconds}");
    }
    let refusal = not_crawling(7, CRAWL).unwrap_err();
    assert_eq!((refusal.status().as_u16(), refusal.reason().as_str()), (408, "client_slow"));
    assert_eq!(
        refusal.to_string(),
        "the caller sent 7 bytes of its request's body in 30s, which is too little to wait for"
    );
}
