//! A mesh in a test: virtual clock, seeded randomness, endpoints that slow, fail and recover under an open loop of calls.
//!
//! Time is an event queue, so minutes pass in milliseconds and every run of a seed is the same run. A failed assertion
//! prints the seed, and the breakers' history in words.
#![expect(clippy::disallowed_methods, reason = "a simulation needs some moment to count from")]

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use equerry_policies::policy::Breaker as Settings;

use crate::balance::{EndpointState, P2cEwma, Pick, Try, Verdict, choose};
use crate::breaker::{Admission, Transition};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// How an endpoint behaves from one moment on.
#[derive(Debug, Clone, Copy)]
struct Behaviour {
    from: Duration,
    /// Time to serve one call; each takes between half and one and a half of it.
    serves_in: Duration,
    /// How many calls it serves at once; others queue.
    at_once: usize,
    /// Ratio of calls that fail.
    fails: f64,
}

const HEALTHY: Behaviour =
    Behaviour { from: Duration::ZERO, serves_in: Duration::from_millis(5), at_once: 8, fails: 0.0 };

/// An endpoint: what is known of it, and what it really does.
struct Endpoint {
    state: Arc<EndpointState>,
    behaviours: Vec<Behaviour>,
    /// When each of its servers is free again.
    free: Vec<Duration>,
}

impl AsRef<EndpointState> for Endpoint {
    fn as_ref(&self) -> &EndpointState {
        &self.state
    }
}

impl AsRef<Arc<EndpointState>> for Endpoint {
    fn as_ref(&self) -> &Arc<EndpointState> {
        &self.state
    }
}

impl Endpoint {
    fn new(behaviours: Vec<Behaviour>) -> Self {
        Self { state: Arc::default(), behaviours, free: vec![Duration::ZERO; 64] }
    }

    /// When a call that arrives now is answered, and how.
    fn serve(&mut self, now: Duration, rng: &mut fastrand::Rng) -> (Duration, Verdict) {
        let behaviour = *self.behaviours.iter().rev().find(|behaviour| behaviour.from <= now).unwrap_or(&HEALTHY);
        let first_free = self.free.iter_mut().take(behaviour.at_once).min().unwrap();
        *first_free = (*first_free).max(now) + behaviour.serves_in.mul_f64(0.5 + rng.f64());
        (*first_free, if rng.f64() < behaviour.fails { Verdict::Failure } else { Verdict::Success })
    }
}

/// The yardstick: one endpoint after the other.
#[derive(Default)]
struct RoundRobin(Cell<usize>);

impl Pick for RoundRobin {
    fn pick<E: AsRef<EndpointState>>(
        &self,
        endpoints: &[E],
        may: impl Fn(usize) -> Option<Admission>,
        _: Instant,
        _: &mut fastrand::Rng,
    ) -> Option<usize> {
        let start = self.0.replace(self.0.get() + 1);
        (0..endpoints.len()).map(|step| (start + step) % endpoints.len()).find(|index| may(*index).is_some())
    }
}

/// One call on its way.
struct Call {
    began: Duration,
    tried: Vec<usize>,
    /// The try under way.
    at: Option<(Try, Verdict)>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives,
    Answered(usize),
}

/// What a run is made of.
struct Plan {
    endpoints: Vec<Vec<Behaviour>>,
    /// Calls a second, at random intervals.
    rate: u32,
    lasts: Duration,
    breaker: Option<Settings>,
    retries: usize,
}

/// What a run showed.
struct Seen {
    /// Of calls that succeeded, in order.
    latencies: Vec<Duration>,
    failed: usize,
    /// Tries at each endpoint: when.
    tries: Vec<Vec<Duration>>,
    history: Vec<String>,
}

impl Seen {
    fn percentile(&self, ratio: f64) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        sorted[((sorted.len() - 1) as f64 * ratio) as usize]
    }

    fn tries_between(&self, endpoint: usize, from: Duration, to: Duration) -> usize {
        self.tries[endpoint].iter().filter(|at| (from..to).contains(at)).count()
    }

    fn share(&self, endpoint: usize, from: Duration, to: Duration) -> f64 {
        let all: usize = (0..self.tries.len()).map(|endpoint| self.tries_between(endpoint, from, to)).sum();
        self.tries_between(endpoint, from, to) as f64 / all as f64
    }

    fn story(&self) -> String {
        self.history.join("\n")
    }
}

struct Run<'p, P> {
    plan: &'p Plan,
    pick: P,
    begin: Instant,
    rng: fastrand::Rng,
    endpoints: Vec<Endpoint>,
    calls: Vec<Call>,
    queue: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    /// Events at one moment keep their order.
    number: u64,
    seen: Seen,
}

fn run(plan: &Plan, pick: impl Pick, seed: u64) -> Seen {
    let endpoints: Vec<Endpoint> = plan.endpoints.iter().cloned().map(Endpoint::new).collect();
    let tries = vec![Vec::new(); endpoints.len()];
    let seen = Seen { latencies: Vec::new(), failed: 0, tries, history: Vec::new() };
    let (rng, queue) = (fastrand::Rng::with_seed(seed), BinaryHeap::new());
    let mut run = Run { plan, pick, begin: Instant::now(), rng, endpoints, calls: Vec::new(), queue, number: 0, seen };
    run.at(Duration::ZERO, Event::Arrives);
    while let Some(Reverse((now, _, event))) = run.queue.pop() {
        match event {
            Event::Arrives if now < plan.lasts => {
                let wait = -(1.0 - run.rng.f64()).ln() / f64::from(plan.rate);
                run.at(now + Duration::from_secs_f64(wait), Event::Arrives);
                run.calls.push(Call { began: now, tried: Vec::new(), at: None });
                run.attempt(run.calls.len() - 1, now);
            }
            Event::Arrives => {}
            Event::Answered(call) => run.answered(call, now),
        }
    }
    run.seen
}

impl<P: Pick> Run<'_, P> {
    fn at(&mut self, when: Duration, event: Event) {
        self.number += 1;
        self.queue.push(Reverse((when, self.number, event)));
    }

    fn attempt(&mut self, call: usize, now: Duration) {
        let tried = &self.calls[call].tried;
        let chosen =
            choose(&self.pick, &self.endpoints, tried, self.plan.breaker.as_ref(), self.begin + now, &mut self.rng);
        let Ok(this) = chosen else {
            self.seen.failed += 1;
            return;
        };
        let index = this.index;
        self.seen.tries[index].push(now);
        self.tell(now, index, this.transition);
        let (answered, verdict) = self.endpoints[index].serve(now, &mut self.rng);
        self.calls[call].tried.push(index);
        self.calls[call].at = Some((this, verdict));
        self.at(answered, Event::Answered(call));
    }

    fn answered(&mut self, call: usize, now: Duration) {
        let Some((mut this, verdict)) = self.calls[call].at.take() else { return };
        let transition = this.finish(verdict, self.plan.breaker.as_ref(), self.begin + now, &mut self.rng);
        self.tell(now, this.index, transition);
        drop(this);
        if verdict == Verdict::Success {
            self.seen.latencies.push(now - self.calls[call].began);
        } else if self.calls[call].tried.len() <= self.plan.retries {
            self.attempt(call, now);
        } else {
            self.seen.failed += 1;
        }
    }

    fn tell(&mut self, now: Duration, endpoint: usize, transition: Option<Transition>) {
        if let Some(transition) = transition {
            self.seen.history.push(format!("{:7.3}s endpoint {endpoint}: {}", now.as_secs_f64(), transition.as_str()));
        }
    }
}

const SEEDS: [u64; 5] = [1, 22, 333, 4444, 55555];

fn breaker() -> Settings {
    Settings { consecutive_failures: 5, penalty_min: SECOND, penalty_max: 4 * SECOND }
}

#[test]
fn one_slow_endpoint_hurts_the_slowest_calls_far_less_than_under_round_robin() {
    let slow = Behaviour { serves_in: 100 * MS, ..HEALTHY };
    let plan = Plan {
        endpoints: vec![vec![HEALTHY], vec![HEALTHY], vec![slow], vec![HEALTHY], vec![HEALTHY]],
        rate: 400,
        lasts: 30 * SECOND,
        breaker: None,
        retries: 0,
    };
    for seed in SEEDS {
        let (ours, yardstick) =
            (run(&plan, P2cEwma, seed).percentile(0.99), run(&plan, RoundRobin::default(), seed).percentile(0.99));
        assert!(ours * 5 < yardstick, "seed {seed}: p99 {ours:?} against {yardstick:?} of round robin");
    }
}

#[test]
fn an_endpoint_that_slows_for_a_while_is_left_and_used_again() {
    let slow = vec![
        HEALTHY,
        Behaviour { from: 10 * SECOND, serves_in: 200 * MS, ..HEALTHY },
        Behaviour { from: 20 * SECOND, ..HEALTHY },
    ];
    let plan = Plan {
        endpoints: vec![slow, vec![HEALTHY], vec![HEALTHY]],
        rate: 300,
        lasts: 80 * SECOND,
        breaker: None,
        retries: 0,
    };
    for seed in SEEDS {
        let seen = run(&plan, P2cEwma, seed);
        let (before, during, after) = (
            seen.share(0, SECOND, 10 * SECOND),
            seen.share(0, 11 * SECOND, 20 * SECOND),
            seen.share(0, 65 * SECOND, 80 * SECOND),
        );
        assert!(
            before > 0.1 && during < 0.05 && after > 0.1,
            "seed {seed}: {before:.2} before, {during:.2} during, {after:.2} after"
        );
    }
}

#[test]
fn failing_fast_without_a_breaker_does_not_attract_traffic() {
    let failing = Behaviour { serves_in: MS / 10, fails: 1.0, ..HEALTHY };
    let plan = Plan {
        endpoints: vec![vec![HEALTHY], vec![failing], vec![HEALTHY], vec![HEALTHY]],
        rate: 500,
        lasts: 30 * SECOND,
        breaker: None,
        retries: 0,
    };
    for seed in SEEDS {
        let share = run(&plan, P2cEwma, seed).share(1, Duration::ZERO, 30 * SECOND);
        assert!(share < 0.02, "seed {seed}: {share:.3} of the calls went to the endpoint that fails");
    }
}

/// One of two endpoints fails from 5 s to 20 s.
fn outage(rate: u32) -> Plan {
    let failing = vec![
        HEALTHY,
        Behaviour { from: 5 * SECOND, fails: 1.0, serves_in: MS, ..HEALTHY },
        Behaviour { from: 20 * SECOND, ..HEALTHY },
    ];
    Plan { endpoints: vec![vec![HEALTHY], failing], rate, lasts: 40 * SECOND, breaker: Some(breaker()), retries: 3 }
}

#[test]
fn a_broken_endpoint_is_cut_off_probed_once_per_penalty_and_comes_back_while_no_call_fails() {
    for rate in [10, 50, 300] {
        for seed in SEEDS {
            let seen = run(&outage(rate), P2cEwma, seed);
            let story = format!(
                "rate {rate}, seed {seed}, {} tries at the broken endpoint:\n{}",
                seen.tries_between(1, 5 * SECOND, 20 * SECOND),
                seen.story()
            );
            assert_eq!(seen.failed, 0, "{story}");
            assert!(seen.history.iter().any(|line| line.contains("consecutive_failures")), "it opens; {story}");
            assert!(seen.history.last().unwrap().contains("probe_succeeded"), "it closes; {story}");
            // Penalties of 1, 2 and 4 s: between 12 s and 20 s, long after it opened, there is room for at most five probes.
            let probes = seen.tries_between(1, 12 * SECOND, 20 * SECOND);
            assert!((1..=5).contains(&probes), "{probes} probes; {story}");
            let back = seen.share(1, 30 * SECOND, 40 * SECOND);
            assert!(back > 0.2, "{back:.2} of the calls after it came back; {story}");
        }
    }
}

#[test]
fn a_run_of_a_seed_is_always_the_same_run() {
    let (one, other) = (run(&outage(50), P2cEwma, 7), run(&outage(50), P2cEwma, 7));
    assert_eq!((one.history, one.latencies), (other.history, other.latencies));
}
