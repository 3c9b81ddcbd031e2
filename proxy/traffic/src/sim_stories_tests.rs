//! Histories to be read by eye, as they were read when they were written down. EQUERRY_BLESS=1 writes down what is seen now: read
//! the difference before committing it.

use super::*;

/// Compares a story with the one that was written down.
fn as_written(name: &str, written: &str, told: &str) {
    if std::env::var_os("EQUERRY_BLESS").is_some() {
        let file = format!("{}/src/sim_stories/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(file, told).unwrap();
        return;
    }
    assert!(written == told, "{name} is told otherwise now (EQUERRY_BLESS=1 accepts it):\n{told}");
}

/// One of two endpoints fails from 5 s to 20 s; three retries, a breaker of five failures in a row.
#[test]
fn the_story_of_a_breaker() {
    let failing = vec![
        HEALTHY,
        Behaviour { from: 5 * SECOND, fails: 1.0, serves_in: MS, ..HEALTHY },
        Behaviour { from: 20 * SECOND, ..HEALTHY },
    ];
    let breaker = Settings { penalty_max: 4 * SECOND, ..Settings::DEFAULT };
    let plan = Plan { breaker: Some(breaker), retries: 3, ..Plan::new(vec![vec![HEALTHY], failing], 100, 30 * SECOND) };
    let seen = run(&plan, 1);
    let told = format!("{}\n{} calls answered, {} failed\n", seen.story(), seen.latencies.len(), seen.failed);
    as_written("breaker.txt", include_str!("sim_stories/breaker.txt"), &told);
    assert!(include_str!("../README.md").contains(told.trim_end()), "the README shows this story:\n{told}");
}

/// One of five endpoints answers in 100 ms instead of 5, from 10 s to 20 s: who gets how many calls, and how long they take.
#[test]
fn the_story_of_a_slow_endpoint_under_two_balancers() {
    let slow = vec![
        HEALTHY,
        Behaviour { from: 10 * SECOND, serves_in: 100 * MS, ..HEALTHY },
        Behaviour { from: 20 * SECOND, ..HEALTHY },
    ];
    let plan = Plan::new(vec![vec![HEALTHY], slow, vec![HEALTHY], vec![HEALTHY], vec![HEALTHY]], 300, 30 * SECOND);
    let mut told = String::new();
    let mut slowest = Vec::new();
    for (name, algorithm) in [("p2c_ewma", Algorithm::P2cEwma), ("round_robin", Algorithm::RoundRobin)] {
        let seen = run(&plan.clone().under(algorithm), 1);
        let [half, most] = [0.5, 0.99].map(|ratio| seen.percentile(ratio).as_secs_f64() * 1e3);
        told += &format!("{name}: half of the calls within {half:.1} ms, 99% within {most:.1} ms{}\n\n", seen.story());
        slowest.push(most);
    }
    as_written("slow_endpoint.txt", include_str!("sim_stories/slow_endpoint.txt"), &told);
    assert!(slowest[0] * 5.0 < slowest[1], "{slowest:?}");
}
