//! A mesh in a test: virtual clock, seeded randomness, endpoints that slow, fail and recover under an open loop of calls.
//!
//! Time is an event queue, so minutes pass in milliseconds and every run of a seed is the same run. A failed assertion
//! prints the seed, the breakers' history in words, and a picture of who got how much when.
#![expect(clippy::disallowed_methods, reason = "a simulation needs some moment to count from")]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use equerry_policies::policy::{Algorithm, Breaker as Settings, LoadBalancer};

use crate::balance::hash::hash_of;
use crate::balance::{Balancer, EndpointState, Member, Try, Verdict, Wanted, choose};
use crate::breaker::{Cause, Transition};

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
    /// `Retry-After` of calls that fail.
    asks: Option<Duration>,
}

const HEALTHY: Behaviour =
    Behaviour { from: Duration::ZERO, serves_in: Duration::from_millis(5), at_once: 8, fails: 0.0, asks: None };

/// What an endpoint really does.
struct Endpoint {
    behaviours: Vec<Behaviour>,
    /// When each of its servers is free again.
    free: Vec<Duration>,
}

impl Endpoint {
    fn new(behaviours: Vec<Behaviour>) -> Self {
        Self { behaviours, free: vec![Duration::ZERO; 64] }
    }

    /// When a call that arrives now is answered, and how.
    fn serve(&mut self, now: Duration, rng: &mut fastrand::Rng) -> (Duration, Answer) {
        let behaviour = *self.behaviours.iter().rev().find(|behaviour| behaviour.from <= now).unwrap_or(&HEALTHY);
        let first_free = self.free.iter_mut().take(behaviour.at_once).min().unwrap();
        *first_free = (*first_free).max(now) + behaviour.serves_in.mul_f64(0.5 + rng.f64());
        let failed = rng.f64() < behaviour.fails;
        let verdict = if failed { Verdict::Failure } else { Verdict::Success };
        (*first_free, Answer { verdict, asks: behaviour.asks.filter(|_| failed) })
    }
}

/// What comes back.
#[derive(Debug, Clone, Copy)]
struct Answer {
    verdict: Verdict,
    asks: Option<Duration>,
}

/// One call on its way.
struct Call {
    began: Duration,
    tried: Vec<usize>,
    key: Option<u64>,
    /// The try under way.
    at: Option<(Try<'static>, Answer)>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives,
    /// The next endpoint joins the list.
    Joins,
    Answered(usize),
}

/// What a run is made of.
#[derive(Clone)]
struct Plan {
    endpoints: Vec<Vec<Behaviour>>,
    /// What each endpoint weighs; 1 where nothing is said.
    weights: Vec<u32>,
    /// When the last of the endpoints join the list, in order; those before them are there from the beginning.
    joins: Vec<Duration>,
    balancer: LoadBalancer,
    /// Calls carry the hash of one of so many users; 0: none.
    users: u32,
    /// Calls a second, at random intervals.
    rate: u32,
    lasts: Duration,
    breaker: Option<Settings>,
    retries: usize,
}

impl Plan {
    /// Healthy endpoints under p2c_ewma, and nothing that protects them.
    fn new(endpoints: Vec<Vec<Behaviour>>, rate: u32, lasts: Duration) -> Self {
        let balancer = LoadBalancer::default();
        let (weights, joins) = (Vec::new(), Vec::new());
        Self { endpoints, weights, joins, balancer, users: 0, rate, lasts, breaker: None, retries: 0 }
    }

    fn under(self, algorithm: Algorithm) -> Self {
        Self { balancer: LoadBalancer { algorithm, ..self.balancer }, ..self }
    }

    fn members(&self, count: usize) -> Vec<Member> {
        let weight = |n: usize| self.weights.get(n).copied().unwrap_or(1);
        (0..count).map(|n| Member::new(&format!("i{n}"), weight(n))).collect()
    }
}

/// What a run showed.
struct Seen {
    /// Of calls that succeeded, in order.
    latencies: Vec<Duration>,
    failed: usize,
    lasts: Duration,
    /// Tries at each endpoint: when.
    tries: Vec<Vec<Duration>>,
    /// The most that was in flight at each endpoint, of its fair share of all that was.
    most: Vec<f64>,
    /// What breakers did: when, which, and the transition's word.
    history: Vec<String>,
    /// The same with what it means.
    told: Vec<String>,
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

    /// The breakers' history in words, and below it a line for each endpoint: its share of the calls over time, in tenths
    /// (`.` none, `#` all).
    fn story(&self) -> String {
        const COLUMNS: u32 = 60;
        let column = self.lasts / COLUMNS;
        let sign = |share: f64| match (share * 10.0).round() as u32 {
            0 if share > 0.0 => '0',
            tenths @ 1..=9 => char::from_digit(tenths, 10).unwrap_or('?'),
            0 => '.',
            _ => '#',
        };
        let line = |endpoint: usize| -> String {
            let signs = (0..COLUMNS).map(|n| sign(self.share(endpoint, column * n, column * (n + 1))));
            format!("endpoint {endpoint:2} |{}|", signs.collect::<String>())
        };
        let picture: Vec<String> = (0..self.tries.len()).map(line).collect();
        format!("{}\n{}", self.told.join("\n"), picture.join("\n"))
    }
}

struct Run<'p> {
    plan: &'p Plan,
    balancer: Arc<Balancer>,
    /// How many endpoints are in the list.
    present: usize,
    begin: Instant,
    rng: fastrand::Rng,
    /// What is known of each endpoint; lives as long as any try.
    states: &'static [EndpointState],
    endpoints: Vec<Endpoint>,
    calls: Vec<Call>,
    queue: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    /// Events at one moment keep their order.
    number: u64,
    seen: Seen,
}

fn run(plan: &Plan, seed: u64) -> Seen {
    let endpoints: Vec<Endpoint> = plan.endpoints.iter().cloned().map(Endpoint::new).collect();
    let (tries, most) = (vec![Vec::new(); endpoints.len()], vec![0.0; endpoints.len()]);
    let seen = Seen {
        latencies: Vec::new(),
        failed: 0,
        lasts: plan.lasts,
        tries,
        most,
        history: Vec::new(),
        told: Vec::new(),
    };
    let (mut rng, begin) = (fastrand::Rng::with_seed(seed), Instant::now());
    let present = endpoints.len() - plan.joins.len();
    let balancer = Balancer::new(&plan.balancer, plan.members(present), None, begin, &mut rng);
    let (calls, queue) = (Vec::new(), BinaryHeap::new());
    let states: &[EndpointState] = Box::leak(endpoints.iter().map(|_| EndpointState::default()).collect());
    let mut run = Run { plan, balancer, present, begin, rng, states, endpoints, calls, queue, number: 0, seen };
    plan.joins.iter().for_each(|when| run.at(*when, Event::Joins));
    run.at(Duration::ZERO, Event::Arrives);
    while let Some(Reverse((now, _, event))) = run.queue.pop() {
        match event {
            Event::Arrives if now < plan.lasts => {
                let wait = -(1.0 - run.rng.f64()).ln() / f64::from(plan.rate);
                run.at(now + Duration::from_secs_f64(wait), Event::Arrives);
                let key = (plan.users > 0).then(|| hash_of(&run.rng.u32(..plan.users).to_le_bytes()));
                run.calls.push(Call { began: now, tried: Vec::new(), key, at: None });
                run.attempt(run.calls.len() - 1, now);
            }
            Event::Arrives => {}
            Event::Joins => run.joins(now),
            Event::Answered(call) => run.answered(call, now),
        }
    }
    run.seen
}

impl Run<'_> {
    fn at(&mut self, when: Duration, event: Event) {
        self.number += 1;
        self.queue.push(Reverse((when, self.number, event)));
    }

    fn joins(&mut self, now: Duration) {
        self.present += 1;
        let members = self.plan.members(self.present);
        self.balancer =
            Balancer::new(&self.plan.balancer, members, Some(&self.balancer), self.begin + now, &mut self.rng);
    }

    fn attempt(&mut self, call: usize, now: Duration) {
        let Call { tried, key, .. } = &self.calls[call];
        let wanted = Wanted { key: *key, tried, breaker: self.plan.breaker.as_ref(), now: self.begin + now };
        let chosen = choose(&self.balancer, &self.states[..self.present], |_| true, &wanted, &mut self.rng);
        let Ok(this) = chosen else {
            self.seen.failed += 1;
            return;
        };
        let index = this.index;
        self.seen.tries[index].push(now);
        self.tell(now, index, this.transition);
        self.weigh(index);
        let (answered, answer) = self.endpoints[index].serve(now, &mut self.rng);
        self.calls[call].tried.push(index);
        self.calls[call].at = Some((this, answer));
        self.at(answered, Event::Answered(call));
    }

    fn answered(&mut self, call: usize, now: Duration) {
        let Some((mut this, Answer { verdict, asks })) = self.calls[call].at.take() else { return };
        let present = &self.states[..self.present];
        let transition = this.finish(verdict, self.plan.breaker.as_ref(), present, self.begin + now, &mut self.rng);
        self.tell(now, this.index, transition);
        if let Some(asks) = asks {
            this.avoid_until(self.begin + now + asks, self.begin + now);
        }
        drop(this);
        if verdict == Verdict::Success {
            self.seen.latencies.push(now - self.calls[call].began);
        } else if self.calls[call].tried.len() <= self.plan.retries {
            self.attempt(call, now);
        } else {
            self.seen.failed += 1;
        }
    }

    /// Notes how far an endpoint that was just given a try is above its fair share, what a whole try is allowed for.
    fn weigh(&mut self, index: usize) {
        let all: u32 = self.states.iter().map(EndpointState::in_flight).sum();
        let share = f64::from(all) / self.present as f64;
        let above = (f64::from(self.states[index].in_flight()) - 1.0) / share;
        self.seen.most[index] = self.seen.most[index].max(above);
    }

    fn tell(&mut self, now: Duration, endpoint: usize, transition: Option<Transition>) {
        if let Some(transition) = transition {
            let line = format!("{:7.3}s endpoint {endpoint}: {}", now.as_secs_f64(), transition.as_str());
            self.seen.told.push(format!("{line}{}", meaning(transition)));
            self.seen.history.push(line);
        }
    }
}

/// What a transition means, behind its word.
fn meaning(transition: Transition) -> String {
    match transition {
        Transition::Opened { cause: Cause::Consecutive(failures), penalty } => {
            format!(" ({failures}), kept away for {penalty:?}")
        }
        Transition::Opened { cause: Cause::TooHigh(share), penalty } => {
            format!(" ({} of {} calls failed), kept away for {penalty:?}", share.failures, share.requests)
        }
        Transition::Kept { .. } => ", so it stays in use".to_owned(),
        Transition::Probing => ", one call goes there".to_owned(),
        Transition::Reopened { penalty } => format!(", kept away for {penalty:?}"),
        Transition::Closed => ", used again".to_owned(),
    }
}

#[path = "sim_tests.rs"]
mod tests;

#[path = "sim_outlier_tests.rs"]
mod outlier_tests;

#[path = "sim_stories_tests.rs"]
mod stories_tests;
