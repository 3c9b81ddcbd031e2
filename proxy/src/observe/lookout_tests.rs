//! What is kept of calls, and what is told to those who look on.

use super::*;
use crate::observe::tests::an_exchange;

/// An exchange that ended so long after another began.
fn ended(start: Instant, after: Duration, reason: Reason, status: u16) -> Exchange {
    Exchange { started: start + after, duration: Duration::ZERO, reason, status, ..an_exchange() }
}

#[test]
fn ordinary_calls_are_sampled_and_what_goes_wrong_is_kept_beside_them() {
    let lookout = Lookout::new();
    let start = Instant::now();
    for n in 0..1_000 {
        let at = Duration::from_millis(n);
        lookout.saw(&ended(start, at, Reason::Ok, 200));
        if n % 100 == 0 {
            lookout.saw(&ended(start, at, Reason::BreakerOpen, 503));
        }
    }
    let all = lookout.recent(&Filter::default(), 1_000);
    let wrong = all.iter().filter(|sample| sample.reason == Reason::BreakerOpen).count();
    assert_eq!((all.len() - wrong, wrong), (2, 10));
    assert_eq!(lookout.recent(&Filter { failed: true, ..Filter::default() }, 3).len(), 3);
}

#[test]
fn what_is_kept_is_bounded() {
    let lookout = Lookout::new();
    let start = Instant::now();
    for n in 0..1_000 {
        lookout.saw(&ended(start, Duration::from_secs(n), Reason::Ok, 200));
        lookout.saw(&ended(start, Duration::from_secs(n), Reason::Overload, 503));
    }
    assert_eq!(lookout.recent(&Filter::default(), usize::MAX).len(), 2 * KEPT);
}

#[test]
fn who_follows_is_told_what_they_asked_for_and_no_more_than_they_asked_for() {
    let lookout = Lookout::new();
    let mut told = lookout.told().unwrap();
    let start = Instant::now();
    lookout.saw(&ended(start, Duration::ZERO, Reason::Ok, 500));
    assert!(told.try_recv().is_err(), "nobody follows");
    let failures = Filter { failed: true, ..Filter::default() };
    let elsewhere = Filter { destination: Some("shop/payments".into()), ..Filter::default() };
    let here = Filter {
        destination: Some("shop/orders".into()),
        source: Some("shop/frontend".into()),
        method: Some("GET".into()),
        path_prefix: Some("/".into()),
        direction: Some("outbound".into()),
        status: Some((500, 599)),
        reason: Some("ok".into()),
        ..Filter::default()
    };
    lookout.follow(vec![Follow::new(1, failures, 2), Follow::new(2, elsewhere, 9), Follow::new(3, here, 9)]);
    for _ in 0..3 {
        lookout.saw(&ended(start, Duration::from_millis(1), Reason::Ok, 500));
    }
    lookout.saw(&ended(start, Duration::from_millis(1), Reason::Ok, 200));
    let got: Vec<Vec<u64>> = std::iter::from_fn(|| told.try_recv().ok()).map(|sample| sample.follows).collect();
    assert_eq!(got, [vec![1, 3], vec![1, 3], vec![3]]);
    assert_eq!(lookout.dropped(), 1);
    lookout.follow(Vec::new());
    lookout.saw(&ended(start, Duration::from_millis(1), Reason::Ok, 500));
    assert!(told.try_recv().is_err());
}

#[test]
fn a_followed_crowd_is_dropped_and_counted_rather_than_waited_for() {
    let lookout = Lookout::new();
    let _told = lookout.told().unwrap();
    lookout.follow(vec![Follow::new(1, Filter::default(), u64::MAX)]);
    for _ in 0..WAITING + 5 {
        lookout.saw(&an_exchange());
    }
    assert_eq!(lookout.dropped(), 5);
}

#[test]
fn every_reason_is_somebodys_fault_or_nobodys() {
    for reason in Reason::ALL {
        let status = reason.http_status();
        assert!(!(failed(*reason, status) && refused(*reason)), "{reason}");
    }
    assert!(failed(Reason::BreakerOpen, 503) && failed(Reason::Ok, 500) && !failed(Reason::Ok, 404));
    assert!(refused(Reason::Quota) && refused(Reason::AuthzDenied) && !failed(Reason::AuthzDenied, 403));
    assert!(!failed(Reason::ClientGone, 499) && !refused(Reason::ClientGone));
}
