//! Breakers that open by the share of failures, under their cap, and only watching: each run told in words.

use equerry_policies::policy::{BreakerMode, FailurePercent};

use super::*;
use crate::balance::NoEndpoint;

/// Never five in a row, but every second one.
const HALF_BROKEN: Behaviour = Behaviour { fails: 0.5, ..HEALTHY };
const BROKEN: Behaviour = Behaviour { fails: 1.0, serves_in: MS, ..HEALTHY };

fn by_share() -> Settings {
    Settings {
        consecutive_failures: 1000,
        failure_percent: Some(FailurePercent { threshold: 30, interval: 10 * SECOND, minimum_requests: 20 }),
        penalty_max: 4 * SECOND,
        ..Settings::DEFAULT
    }
}

fn plan(endpoints: Vec<Vec<Behaviour>>, breaker: Settings) -> Plan {
    Plan { breaker: Some(breaker), retries: 2, ..Plan::new(endpoints, 100, 30 * SECOND) }
}

#[test]
fn an_endpoint_that_fails_every_second_call_is_found_by_its_share() {
    let plan = plan(vec![vec![HEALTHY], vec![HALF_BROKEN], vec![HEALTHY]], by_share());
    for seed in [1, 22, 333] {
        let seen = run(&plan, seed);
        let story = seen.story();
        assert!(story.contains("endpoint 1: failure_percent"), "seed {seed}\n{story}");
        assert!(!story.contains("endpoint 0: failure_percent"), "seed {seed}\n{story}");
        let share = seen.share(1, 5 * SECOND, 30 * SECOND);
        assert!(share < 0.25, "seed {seed}: it keeps {share:.2} of the calls\n{story}");
        assert_eq!(seen.failed, 0, "seed {seed}\n{story}");
    }
}

#[test]
fn in_a_pool_of_two_where_both_break_one_stays_and_the_other_is_kept_away() {
    let breaker = Settings { penalty_max: 4 * SECOND, max_ejected_percent: 10, ..Settings::DEFAULT };
    let broken_for_a_while = || {
        let again_well = Behaviour { from: 10 * SECOND, ..HEALTHY };
        vec![HEALTHY, Behaviour { from: 5 * SECOND, ..BROKEN }, again_well]
    };
    let plan = Plan { retries: 0, ..plan(vec![broken_for_a_while(), broken_for_a_while()], breaker) };
    for seed in [1, 22, 333] {
        let seen = run(&plan, seed);
        let story = seen.story();
        assert!(
            story.contains("consecutive_failures") && story.contains("max_ejected_percent"),
            "seed {seed}\n{story}"
        );
        let mut open = [false; 2];
        for line in &seen.history {
            let (_, told) = line.split_once("endpoint ").unwrap();
            let (endpoint, what) = told.split_once(": ").unwrap();
            let endpoint: usize = endpoint.parse().unwrap();
            match what {
                "consecutive_failures" => open[endpoint] = true,
                "probe_succeeded" => open[endpoint] = false,
                _ => {}
            }
            assert!(open != [true, true], "seed {seed}: both were kept away\n{story}");
        }
        // Everybody is answered by somebody at any time; and when all is well again, all calls succeed.
        let all: usize = (0..2).map(|endpoint| seen.tries_between(endpoint, 5 * SECOND, 10 * SECOND)).sum();
        assert!(all > 350, "seed {seed}: only {all} calls were made while both were broken\n{story}");
        let late: usize = (0..2).map(|endpoint| seen.tries_between(endpoint, 20 * SECOND, 30 * SECOND)).sum();
        assert!(late > 800 && open == [false; 2], "seed {seed}\n{story}");
    }
}

#[test]
fn one_that_only_watches_reports_the_outage_and_changes_nothing() {
    let watching = Settings { mode: BreakerMode::Observe, penalty_max: 4 * SECOND, ..Settings::DEFAULT };
    let mut plan = plan(vec![vec![HEALTHY], vec![BROKEN]], watching).under(Algorithm::RoundRobin);
    for seed in [1, 22, 333] {
        plan.breaker = Some(watching);
        let watched = run(&plan, seed);
        plan.breaker = None;
        let without = run(&plan, seed);
        assert!(watched.story().contains("endpoint 1: consecutive_failures"), "seed {seed}\n{}", watched.story());
        assert!(watched.story().contains("endpoint 1: probe_failed"), "seed {seed}\n{}", watched.story());
        assert_eq!(watched.tries, without.tries, "seed {seed}: every call went where it would have gone");
    }
}

/// Real threads, all at the moment when the penalty is over.
#[test]
fn of_many_threads_that_ask_at_once_one_is_the_probe_and_all_others_are_refused() {
    let (begin, mut rng) = (Instant::now(), fastrand::Rng::with_seed(1));
    let breaker = Settings { consecutive_failures: 1, ..Settings::DEFAULT };
    let balancer = Balancer::new(&LoadBalancer::default(), vec![Member::new("i0", 1)], None, begin, &mut rng);
    for round in 0..200 {
        let endpoint = [Arc::new(EndpointState::default())];
        let wanted = |now| Wanted { key: None, tried: &[], breaker: Some(&breaker), now };
        let mut first = choose(&balancer, &endpoint, |_| true, &wanted(begin), &mut rng).unwrap();
        first.finish(Verdict::Failure, Some(&breaker), &endpoint, begin, &mut rng);
        drop(first);
        let (later, start) = (begin + 2 * SECOND, std::sync::Barrier::new(4));
        let ask = |seed| {
            let mut rng = fastrand::Rng::with_seed(seed);
            start.wait();
            choose(&balancer, &endpoint, |_| true, &wanted(later), &mut rng)
        };
        let answers: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|seed| {
                    let ask = &ask;
                    scope.spawn(move || ask(seed))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let refused = answers.iter().filter(|answer| matches!(answer, Err(NoEndpoint::AllOpen))).count();
        let probes = answers.iter().flatten().filter(|this| this.is_probe()).count();
        assert_eq!((probes, refused), (1, 3), "round {round}");
    }
}
