//! Slices: what one admits in every state, and that all together never admit more than the quota.

use proptest::prelude::*;

use super::*;

fn quota(requests: u64) -> Quota {
    Quota { id: "acme/0".to_owned(), services: vec![], requests, window: Duration::from_secs(5) }
}

fn slice(requests: u64, on_loss: OnControlPlaneLoss) -> Slice {
    Slice::new(TenantName::parse("acme").unwrap(), quota(requests), on_loss, true)
}

fn granted(window: u64, granted: u64) -> Grant {
    Grant { window, granted, ..Grant::default() }
}

/// How many of `tries` requests pass.
fn passes(slice: &Slice, tries: u64, now_ms: u64) -> u64 {
    (0..tries).filter(|_| slice.admit(now_ms).is_ok()).count() as u64
}

#[test]
fn without_a_slice_nothing_passes_and_it_asks_once() {
    let slice = slice(100, OnControlPlaneLoss::LastShare);
    let refused = slice.admit(10_000).unwrap_err();
    assert!(refused.ask && refused.quota == "acme/0");
    assert!(!slice.admit(10_001).unwrap_err().ask, "asked already");
    assert!(slice.report(10_001).wants_more);
}

#[test]
fn a_grant_is_spent_to_its_end_and_no_further() {
    let slice = slice(100, OnControlPlaneLoss::LastShare);
    slice.on_grant(&granted(2, 10), 10_000);
    assert_eq!(passes(&slice, 20, 10_000), 10);
    slice.on_grant(&granted(2, 10), 10_000);
    assert_eq!(passes(&slice, 20, 10_000), 0, "a repeated grant changes nothing");
    slice.on_grant(&granted(2, 15), 10_000);
    assert_eq!(passes(&slice, 20, 10_000), 5, "totals, not differences");
}

#[test]
fn it_asks_for_more_when_half_is_spent() {
    let slice = slice(100, OnControlPlaneLoss::LastShare);
    slice.on_grant(&granted(2, 10), 10_000);
    let asks: Vec<bool> = (0..10).map(|_| slice.admit(10_000).unwrap().ask).collect();
    assert_eq!(asks.iter().position(|ask| *ask), Some(4));
    assert_eq!(asks.iter().filter(|ask| **ask).count(), 1);
    slice.on_grant(&Grant { window: 2, granted: 10, exhausted: true, ..Grant::default() }, 10_000);
    assert!(!slice.admit(10_000).unwrap_err().ask, "there is nothing to ask for");
}

#[test]
fn each_window_has_its_own_grants_and_the_next_may_be_granted_ahead() {
    let slice = slice(100, OnControlPlaneLoss::LastShare);
    slice.on_grant(&granted(2, 10), 10_000);
    slice.on_grant(&granted(3, 7), 14_000);
    assert_eq!(passes(&slice, 20, 14_999), 10);
    assert_eq!(passes(&slice, 20, 15_000), 7);
    assert_eq!(passes(&slice, 20, 20_000), 0, "nothing is carried over");
    slice.on_grant(&granted(3, 50), 20_000);
    assert_eq!(passes(&slice, 20, 20_000), 0, "a grant of a window that is over is ignored");
}

#[test]
fn a_clock_set_back_does_not_open_a_window_twice() {
    let slice = slice(100, OnControlPlaneLoss::LastShare);
    slice.on_grant(&granted(2, 10), 10_000);
    assert_eq!(passes(&slice, 20, 10_000), 10);
    assert_eq!(passes(&slice, 20, 9_000), 0);
}

#[test]
fn a_clock_that_was_ahead_is_followed_back_over_unused_windows_but_never_into_a_used_one() {
    let slice = slice(100, OnControlPlaneLoss::LastShare);
    assert_eq!(passes(&slice, 1, 300_000), 0, "ahead by minutes, before anything was heard");
    slice.on_grant(&granted(2, 10), 10_000);
    assert_eq!(passes(&slice, 20, 10_000), 10);
    assert_eq!(passes(&slice, 1, 15_000), 0, "the next window, unused");
    slice.on_grant(&granted(2, 10), 10_000);
    assert_eq!(passes(&slice, 20, 10_000), 0, "back again: what was spent stays spent");
}

#[test]
fn only_what_is_unspent_is_given_back() {
    let slice = slice(100, OnControlPlaneLoss::LastShare);
    slice.on_grant(&granted(2, 10), 10_000);
    passes(&slice, 6, 10_000);
    slice.on_grant(&Grant { window: 2, granted: 10, give_back: 8, exhausted: false }, 10_000);
    let report = slice.report(10_000);
    assert_eq!((report.granted, report.spent, report.returned), (10, 6, 4));
    assert_eq!(passes(&slice, 5, 10_000), 0);
    slice.on_grant(&Grant { window: 2, granted: 13, give_back: 8, exhausted: false }, 10_000);
    assert_eq!(passes(&slice, 5, 10_000), 0, "what is still owed goes back first");
    assert_eq!(slice.report(10_000).returned, 7);
}

#[test]
fn the_share_is_told_as_it_stands() {
    let slice = slice(100, OnControlPlaneLoss::LastShare);
    slice.on_grant(&granted(2, 10), 10_000);
    let share = slice.admit(12_000).unwrap().share;
    let expected = Share { limit: 10, remaining: 9, reset: Duration::from_secs(3), window: Duration::from_secs(5) };
    assert_eq!(share, expected);
}

#[test]
fn while_disconnected_the_last_share_holds_in_every_window() {
    let slice = slice(100, OnControlPlaneLoss::LastShare);
    slice.on_grant(&granted(2, 30), 10_000);
    assert_eq!(passes(&slice, 20, 10_000), 20);
    slice.set_connected(false, 11_000);
    assert_eq!(passes(&slice, 100, 12_000), 10, "what was granted is good until its window ends");
    assert_eq!(passes(&slice, 100, 15_000), 30);
    assert_eq!(passes(&slice, 100, 20_000), 30);
    slice.set_connected(true, 21_000);
    let report = slice.report(21_000);
    assert_eq!((report.spent, report.spent_offline), (30, 30));
    assert_eq!(passes(&slice, 100, 21_000), 0, "connected again: only what is granted");
    slice.on_grant(&granted(4, 5), 21_000);
    assert_eq!(passes(&slice, 100, 21_000), 5);
}

#[test]
fn a_slice_restored_after_a_cold_start_holds_its_last_share() {
    let slice = Slice::new(TenantName::parse("acme").unwrap(), quota(100), OnControlPlaneLoss::LastShare, false);
    slice.restore_last_share(40);
    assert_eq!(passes(&slice, 100, 50_000), 40);
    slice.restore_last_share(4000);
    assert_eq!(passes(&slice, 1000, 60_000), 100, "never more than the quota");
}

#[test]
fn deny_and_allow_hold_only_while_disconnected() {
    for (on_loss, passed) in [(OnControlPlaneLoss::Deny, 0), (OnControlPlaneLoss::Allow, 500)] {
        let slice = slice(100, on_loss);
        slice.on_grant(&granted(2, 30), 10_000);
        slice.set_connected(false, 10_000);
        assert_eq!(passes(&slice, 500, 10_000), passed);
        slice.set_connected(true, 10_000);
        assert_eq!(passes(&slice, 500, 10_000), if passed == 0 { 30 } else { 0 });
    }
}

#[test]
fn the_control_planes_clock_is_followed() {
    let clock = ServerClock::default();
    assert_eq!(clock.at(5), 5);
    clock.observe(10_000, 9_000);
    assert_eq!(clock.at(9_500), 10_500);
    clock.observe(8_000, 9_000);
    assert_eq!(clock.at(9_500), 8_500);
}

/// A control plane in a few lines: grants what is left to whoever asks.
struct Model {
    quota: u64,
    /// Granted, not returned, by sidecar, in this window.
    given: Vec<Grant>,
}

impl Model {
    fn answer(&mut self, sidecar: usize, report: &Report, want: u64) -> Grant {
        let outstanding: u64 = self.given.iter().map(|grant| grant.granted - grant.give_back.min(grant.granted)).sum();
        let left = self.quota - outstanding.min(self.quota);
        let grant = &mut self.given[sidecar];
        grant.window = report.window;
        if report.wants_more {
            grant.granted += left.min(want);
        }
        grant.exhausted = left == 0;
        Grant { give_back: 0, ..*grant }
    }
}

proptest! {
    #[test]
    fn the_slices_together_never_admit_more_than_the_quota(
        requests in 1_u64..200, steps in prop::collection::vec((0_usize..3, 1_u64..40, any::<bool>(), any::<bool>()), 1..120),
    ) {
        let slices: Vec<Slice> = (0..3).map(|_| slice(requests, OnControlPlaneLoss::LastShare)).collect();
        let mut model = Model { quota: requests, given: vec![Grant { window: 2, ..Grant::default() }; 3] };
        let mut admitted = 0;
        for (who, tries, talk, lost) in steps {
            admitted += passes(&slices[who], tries, 11_000);
            if talk {
                let grant = model.answer(who, &slices[who].report(11_000), tries);
                if !lost {
                    slices[who].on_grant(&grant, 11_000);
                    slices[who].on_grant(&grant, 11_000);
                }
            }
            if lost {
                slices[who].set_connected(false, 11_000);
            } else {
                slices[who].set_connected(true, 11_000);
            }
        }
        prop_assert!(admitted <= requests, "{admitted} of {requests}");
    }

    #[test]
    fn disconnected_slices_admit_at_most_the_quota_in_each_window(
        requests in 1_u64..200, shares in prop::collection::vec(0_u64..100, 1..5), windows in 3_u64..10,
    ) {
        let mut left = requests;
        let slices: Vec<Slice> = shares.iter().map(|share| {
            let slice = slice(requests, OnControlPlaneLoss::LastShare);
            let part = (*share).min(left);
            left -= part;
            slice.on_grant(&granted(2, part), 10_000);
            slice.set_connected(false, 12_000);
            slice
        }).collect();
        for window in 3..windows {
            let admitted: u64 = slices.iter().map(|slice| passes(slice, 1000, window * 5_000)).sum();
            prop_assert!(admitted <= requests);
        }
    }
}
