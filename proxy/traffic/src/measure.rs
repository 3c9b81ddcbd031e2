//! What a decision may cost, as assertions: time in release builds (`--ignored`), and how much is looked at in any build.
//!
//! The limits leave room for a busy machine: measured are about half of them.
#![expect(clippy::disallowed_methods, reason = "measuring reads the clock")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use equerry_policies::compile::{self, CompiledWorkload, Turn};
use equerry_policies::names::{PolicyName, SpiffeId};
use equerry_policies::policy::{
    Action, Algorithm, AuthorizationPolicy, AuthorizationRule, Breaker, HashOn, LoadBalancer, Maglev, Mesh, MtlsMode,
    Operation, Origin, RingHash, Source, StringMatch, Target,
};
use equerry_policies::view::{Scoped, WorkloadView};
use http::{HeaderMap, Method};

use crate::authorize::{Connection, Facts, authorize};
use crate::balance::{Balancer, EndpointState, Member, Verdict, Wanted, choose};
use crate::token::Caller;

/// 1,000 rules in 100 policies; rule N allows account aN, or everybody of namespace nN, to GET below `/pN/`.
fn thousand_rules() -> CompiledWorkload {
    let rule = |number: u32| {
        let exact = |text: String| vec![StringMatch::Exact(text)];
        let principal =
            Source { principals: exact(format!("equerry.local/ns/shop/sa/a{number}")), ..Source::default() };
        let namespace = Source { namespaces: exact(format!("n{number}")), ..Source::default() };
        let to = Operation {
            methods: exact("GET".to_owned()),
            not_paths: vec![StringMatch::Suffix(".secret".to_owned())],
            paths: vec![StringMatch::Prefix(format!("/p{number}/"))],
            ..Operation::default()
        };
        AuthorizationRule { from: vec![principal, namespace], to: vec![to], when: vec![], origin: Origin::default() }
    };
    let policy = |number: u32| {
        let name = PolicyName::parse(&format!("shop/policy-{number:03}")).unwrap();
        let action = if number.is_multiple_of(2) { Action::Allow } else { Action::Deny };
        let rules = (number * 10..number * 10 + 10).map(rule).collect();
        Scoped {
            ports: None,
            policy: AuthorizationPolicy {
                name,
                target: Target::Namespace,
                action,
                shadow: false,
                rules,
                origin: Origin::default(),
            },
        }
    };
    compile::workload(&WorkloadView {
        mesh: Mesh::default(),
        services: vec![],
        peer: MtlsMode::Strict,
        peer_ports: vec![],
        plain_only: false,
        plain_only_ports: Vec::new(),
        tokens: vec![],
        authorization: (0..100).map(policy).collect(),
        csrf: vec![],
        trusted_hops: vec![],
        tenants: vec![],
    })
    .unwrap()
}

/// Nanoseconds of one call: the best of some rounds, so that neighbours on the machine do not count.
fn nanos(mut work: impl FnMut()) -> f64 {
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let began = Instant::now();
        (0..10_000).for_each(|_| work());
        best = best.min(began.elapsed());
    }
    best.as_secs_f64() * 1e9 / 10_000.0
}

#[test]
fn of_a_thousand_rules_a_request_meets_a_handful() {
    let workload = thousand_rules();
    for peer in [
        "spiffe://equerry.local/ns/shop/sa/a500",
        "spiffe://equerry.local/ns/n500/sa/x",
        "spiffe://equerry.local/ns/x/sa/y",
    ] {
        let peer = SpiffeId::parse(peer).unwrap();
        for turn in [Turn::Allow, Turn::Deny] {
            let lists = workload.authorization.candidates(turn, Some(&peer), None, "/p500/x");
            assert!(lists.iter().map(|list| list.len()).sum::<usize>() <= 2, "{lists:?}");
        }
    }
}

#[test]
#[ignore = "measures: run in a release build"]
fn authorizing_among_a_thousand_rules_takes_less_than_a_microsecond() {
    let workload = thousand_rules();
    for (peer, passes) in [("equerry.local/ns/shop/sa/a500", true), ("equerry.local/ns/n500/sa/x", true)] {
        let caller = Caller::assumed(Some(peer), None);
        let connection = Connection { port: 8080, peer_ip: [10, 0, 0, 1].into(), local_ip: None, sni: None };
        let (method, headers) = (&Method::GET, &HeaderMap::new());
        let facts = Facts { method, authority: "orders.shop:8080", path: "/p500/x", headers, connection };
        assert_eq!(authorize(&caller, &facts, &workload).is_ok(), passes);
        let took = nanos(|| {
            let _ = black_box(authorize(black_box(&caller), black_box(&facts), &workload));
        });
        println!("authorize {peer}: {took:.0} ns");
        assert!(took < 1000.0, "{took:.0} ns");
    }
}

/// The lists that picks are measured on: a thousand endpoints that have all answered before, under each balancer.
fn thousand_endpoints(
    algorithm: &Algorithm,
    begin: Instant,
    rng: &mut fastrand::Rng,
) -> (Arc<Balancer>, Vec<Arc<EndpointState>>) {
    let endpoints: Vec<Arc<EndpointState>> = (0..1000).map(|_| Arc::default()).collect();
    let members = (0..1000).map(|n| Member::new(&format!("i{n}"), 1)).collect();
    let settings = LoadBalancer { algorithm: algorithm.clone(), slow_start: None };
    let alone = Balancer::new(&LoadBalancer::default(), vec![Member::new("i", 1)], None, begin, rng);
    for endpoint in &endpoints {
        let endpoint = std::slice::from_ref(endpoint);
        let wanted = Wanted { key: None, tried: &[], breaker: Some(&Breaker::DEFAULT), now: begin };
        let mut one = choose(&alone, endpoint, |_| true, &wanted, rng).unwrap();
        let answered = begin + Duration::from_millis(rng.u64(1..20));
        one.finish(Verdict::Success, Some(&Breaker::DEFAULT), endpoint, answered, rng);
    }
    (Balancer::new(&settings, members, None, begin, rng), endpoints)
}

#[test]
#[ignore = "measures: run in a release build"]
fn picking_among_a_thousand_endpoints_takes_less_than_a_hundred_nanoseconds() {
    let (begin, mut rng) = (Instant::now(), fastrand::Rng::with_seed(1));
    let hash = || HashOn::Identity;
    for algorithm in [
        Algorithm::P2cEwma,
        Algorithm::LeastRequest,
        Algorithm::RoundRobin,
        Algorithm::Random,
        Algorithm::RingHash(RingHash::on(hash())),
        Algorithm::Maglev(Maglev::on(hash())),
    ] {
        let (balancer, endpoints) = thousand_endpoints(&algorithm, begin, &mut rng);
        let now = begin + Duration::from_secs(1);
        let took = nanos(|| {
            let wanted = Wanted { key: Some(rng.u64(..)), tried: &[], breaker: Some(&Breaker::DEFAULT), now };
            drop(black_box(choose(&balancer, black_box(&endpoints), |_| true, &wanted, &mut rng)));
        });
        println!("choose by {algorithm:?}: {took:.0} ns");
        assert!(took < 100.0, "{algorithm:?}: {took:.0} ns");
    }
}
