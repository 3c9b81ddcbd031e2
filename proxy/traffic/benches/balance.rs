//! What a pick costs under each balancer as the list grows, and what it costs to make a list ready.
//!
//! The bar is the project's: a pick under 100 ns among 1,000 endpoints. Run by `cargo bench -p equerry-traffic --bench balance`.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a bench reads the clock, and ends at the first surprise"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use divan::{Bencher, black_box};
use equerry_policies::policy::{Algorithm, Breaker, HashOn, LoadBalancer, Maglev, RingHash};
use equerry_traffic::balance::{Balancer, EndpointState, Member, Verdict, Wanted, choose};

const BREAKER: Option<&Breaker> = Some(&Breaker::DEFAULT);

fn main() {
    divan::main();
}

fn members(number: usize, weight: impl Fn(usize) -> u32) -> Vec<Member> {
    (0..number).map(|n| Member::new(&format!("orders-{n}"), weight(n))).collect()
}

/// Endpoints that have all answered before, in some milliseconds.
fn endpoints(number: usize, begin: Instant, rng: &mut fastrand::Rng) -> Vec<Arc<EndpointState>> {
    let alone = Balancer::new(&LoadBalancer::default(), members(1, |_| 1), None, begin, rng);
    let endpoints: Vec<Arc<EndpointState>> = (0..number).map(|_| Arc::default()).collect();
    for endpoint in &endpoints {
        let endpoint = std::slice::from_ref(endpoint);
        let wanted = Wanted { key: None, tried: &[], breaker: BREAKER, now: begin };
        let mut one = choose(&alone, endpoint, |_| true, &wanted, rng).unwrap();
        one.finish(Verdict::Success, BREAKER, endpoint, begin + Duration::from_millis(rng.u64(1..20)), rng);
    }
    endpoints
}

fn hash() -> HashOn {
    HashOn::Header("x-user".to_owned())
}

fn ready(algorithm: Algorithm, members: Vec<Member>, begin: Instant, rng: &mut fastrand::Rng) -> Arc<Balancer> {
    Balancer::new(&LoadBalancer { algorithm, slow_start: None }, members, None, begin, rng)
}

fn pick(bencher: Bencher<'_, '_>, algorithm: Algorithm, number: usize, weight: impl Fn(usize) -> u32) {
    let (begin, mut rng) = (Instant::now(), fastrand::Rng::with_seed(1));
    let endpoints = endpoints(number, begin, &mut rng);
    let balancer = ready(algorithm, members(number, weight), begin, &mut rng);
    let now = begin + Duration::from_secs(1);
    bencher.bench_local(|| {
        let wanted = Wanted { key: Some(rng.u64(..)), tried: &[], breaker: BREAKER, now };
        drop(black_box(choose(&balancer, black_box(&endpoints), |_| true, &wanted, &mut rng)));
    });
}

const SIZES: [usize; 3] = [10, 1_000, 10_000];

#[divan::bench(args = SIZES)]
fn p2c_ewma(bencher: Bencher<'_, '_>, number: usize) {
    pick(bencher, Algorithm::P2cEwma, number, |_| 1);
}

#[divan::bench(args = SIZES)]
fn p2c_ewma_weighted(bencher: Bencher<'_, '_>, number: usize) {
    pick(bencher, Algorithm::P2cEwma, number, |n| n as u32 % 7 + 1);
}

#[divan::bench(args = SIZES)]
fn least_request(bencher: Bencher<'_, '_>, number: usize) {
    pick(bencher, Algorithm::LeastRequest, number, |_| 1);
}

#[divan::bench(args = SIZES)]
fn round_robin(bencher: Bencher<'_, '_>, number: usize) {
    pick(bencher, Algorithm::RoundRobin, number, |_| 1);
}

#[divan::bench(args = SIZES)]
fn round_robin_weighted(bencher: Bencher<'_, '_>, number: usize) {
    pick(bencher, Algorithm::RoundRobin, number, |n| n as u32 % 7 + 1);
}

#[divan::bench(args = SIZES)]
fn random(bencher: Bencher<'_, '_>, number: usize) {
    pick(bencher, Algorithm::Random, number, |_| 1);
}

#[divan::bench(args = SIZES)]
fn ring_hash(bencher: Bencher<'_, '_>, number: usize) {
    pick(bencher, Algorithm::RingHash(RingHash::on(hash())), number, |_| 1);
}

#[divan::bench(args = SIZES)]
fn ring_hash_bounded(bencher: Bencher<'_, '_>, number: usize) {
    let ring = RingHash { bounded_load: Some(150), ..RingHash::on(hash()) };
    pick(bencher, Algorithm::RingHash(ring), number, |_| 1);
}

#[divan::bench(args = SIZES)]
fn maglev(bencher: Bencher<'_, '_>, number: usize) {
    pick(bencher, Algorithm::Maglev(Maglev::on(hash())), number, |_| 1);
}

/// Making a list ready, which happens off the way of requests, when it changes.
mod making {
    use super::*;

    fn make(bencher: Bencher<'_, '_>, algorithm: &Algorithm, number: usize) {
        let (begin, mut rng) = (Instant::now(), fastrand::Rng::with_seed(1));
        let members = members(number, |n| n as u32 % 7 + 1);
        bencher.bench_local(|| black_box(ready(algorithm.clone(), members.clone(), begin, &mut rng)));
    }

    #[divan::bench(args = SIZES)]
    fn p2c_ewma(bencher: Bencher<'_, '_>, number: usize) {
        make(bencher, &Algorithm::P2cEwma, number);
    }

    #[divan::bench(args = SIZES)]
    fn round_robin(bencher: Bencher<'_, '_>, number: usize) {
        make(bencher, &Algorithm::RoundRobin, number);
    }

    #[divan::bench(args = SIZES)]
    fn ring_hash(bencher: Bencher<'_, '_>, number: usize) {
        make(bencher, &Algorithm::RingHash(RingHash::on(hash())), number);
    }

    #[divan::bench(args = SIZES)]
    fn maglev(bencher: Bencher<'_, '_>, number: usize) {
        make(bencher, &Algorithm::Maglev(Maglev::on(hash())), number);
    }
}
