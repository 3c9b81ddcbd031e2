//! What is known of calls, told the time.

use equerry_policies::names::InstanceId;

use super::reporters::{MOST_ENDS_OF_ONE, MOST_WAYS};
use super::*;

fn key(id: &str) -> InstanceKey {
    InstanceKey { namespace: "shop".parse().unwrap(), id: InstanceId::parse(id).unwrap() }
}

fn count(outbound: bool, source: &str, destination: &str, ok: u64, failed: u64) -> proto::CallCount {
    let end = |status, reason: &str, failed, count| proto::CallEnd {
        status,
        reason: reason.into(),
        tcp: false,
        failed,
        refused: false,
        count,
    };
    let mut took = vec![0; CALL_BOUNDS_MS.len() + 1];
    took[3] = ok + failed;
    proto::CallCount {
        outbound,
        source: source.into(),
        destination: destination.into(),
        ends: vec![end(200, "ok", false, ok), end(503, "breaker_open", true, failed)],
        took,
        bytes_in: 0,
        bytes_out: 0,
    }
}

struct House {
    calls: Calls,
    account: AccountName,
    services: Vec<ServiceName>,
    now: Instant,
}

impl House {
    fn new() -> Self {
        let account = AccountName::parse("shop/frontend").unwrap();
        let services = vec![ServiceName::parse("shop/frontend").unwrap()];
        Self { calls: Calls::default(), account, services, now: Instant::now() }
    }

    /// The frontend's sidecar reports; it started so long ago.
    fn report(&mut self, id: &str, counts: Vec<proto::CallCount>, started_ago: u64) -> usize {
        let report =
            proto::CallReport { started_unix_ms: 1, age_ms: started_ago * 1_000, counts, ..Default::default() };
        let key = key(id);
        let speaker = Speaker { key: &key, account: &self.account, services: &self.services };
        self.calls.take(speaker, &report, self.now, SystemTime::UNIX_EPOCH)
    }

    fn later(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn caller(&self, destination: &str) -> Option<Seen> {
        let edges = self.calls.edges(|(_, to)| to == destination, self.now);
        edges.into_iter().next().and_then(|(_, caller, _)| caller)
    }

    fn requests(&self, destination: &str) -> u64 {
        self.caller(destination).map_or(0, |seen| seen.numbers.count(|_| true))
    }
}

#[test]
fn what_totals_grew_by_is_counted_within_a_window_of_a_minute() {
    let mut house = House::new();
    house.report("a", vec![count(true, "shop/frontend", "shop/orders", 10, 1)], 1);
    assert_eq!(house.requests("shop/orders"), 11, "a sidecar that has just started is counted from its start");
    house.later(5);
    house.report("a", vec![count(true, "shop/frontend", "shop/orders", 30, 2)], 6);
    house.report("b", vec![count(true, "shop/frontend", "shop/orders", 5, 0)], 1);
    let seen = house.caller("shop/orders").unwrap();
    assert_eq!((seen.numbers.count(|_| true), seen.numbers.count(|end| end.failed)), (37, 2));
    assert_eq!(seen.over, Duration::from_secs(10));
    house.later(57);
    house.report("a", vec![], 60);
    assert_eq!(house.requests("shop/orders"), 26, "the first report was longer ago than a minute");
    house.later(10);
    assert_eq!(house.requests("shop/orders"), 0);
    house.later(600);
    house.calls.forget(house.now);
    assert!(house.caller("shop/orders").is_none());
    assert_eq!(house.calls.reporting(house.now), 0);
}

#[test]
fn a_repeated_report_changes_nothing_and_what_nobody_listened_to_is_not_of_this_minute() {
    let mut house = House::new();
    let report = || vec![count(true, "shop/frontend", "shop/orders", 1_000_000, 0)];
    house.report("a", report(), 86_400);
    assert_eq!(house.requests("shop/orders"), 0, "it counted for a day before this control plane listened");
    house.later(5);
    house.report("a", vec![count(true, "shop/frontend", "shop/orders", 1_000_003, 0)], 86_405);
    house.report("a", vec![count(true, "shop/frontend", "shop/orders", 1_000_003, 0)], 86_405);
    assert_eq!(house.requests("shop/orders"), 3);
    house.later(40);
    house.report("a", vec![count(true, "shop/frontend", "shop/orders", 1_500_000, 0)], 86_445);
    assert_eq!(house.requests("shop/orders"), 3, "it was silent for too long");
    house.later(5);
    house.report("a", vec![count(true, "shop/frontend", "shop/orders", 1_500_001, 0)], 86_450);
    assert_eq!(house.requests("shop/orders"), 4);
}

#[test]
fn nobody_is_believed_about_others() {
    let mut house = House::new();
    let lies = vec![
        count(true, "shop/admin", "shop/orders", 1, 0),
        count(false, "shop/admin", "shop/orders", 1, 0),
        count(true, "shop/frontend", "not a service", 1, 0),
        count(false, "<script>", "shop/frontend", 1, 0),
    ];
    assert_eq!(house.report("a", lies, 1), 4);
    assert!(house.calls.edges(|_| true, house.now).is_empty());
    let truths = vec![
        count(true, "shop/frontend", "unknown", 1, 0),
        count(false, "shop/admin", "shop/frontend", 1, 0),
        count(false, "unknown", "shop/frontend", 1, 0),
    ];
    assert_eq!(house.report("a", truths, 1), 0);
    assert_eq!(house.calls.edges(|_| true, house.now).len(), 3);
}

#[test]
fn one_sidecar_cannot_fill_the_memory() {
    let mut house = House::new();
    let many = (0..MOST_WAYS + 10).map(|n| count(false, &format!("shop/a{n}"), "shop/frontend", 1, 0)).collect();
    assert_eq!(house.report("a", many, 1), 10);
    let mut long = count(true, "shop/frontend", "shop/orders", 1, 0);
    long.ends =
        (0..=MOST_ENDS as u32).map(|status| proto::CallEnd { status, count: 1, ..Default::default() }).collect();
    assert_eq!(house.report("a", vec![long], 1), 1);
}

#[test]
fn quantiles_are_those_of_prometheus() {
    let mut numbers = Numbers { took: vec![0; CALL_BOUNDS_MS.len() + 1], ..Numbers::default() };
    assert_eq!(numbers.quantile(0.5), None);
    // 100 between 2.5 and 5 ms, 100 between 5 and 10 ms.
    numbers.took[3] = 100;
    numbers.took[4] = 100;
    assert_eq!(numbers.quantile(0.25), Some(3.75));
    assert_eq!(numbers.quantile(0.5), Some(5.0));
    assert_eq!(numbers.quantile(0.99), Some(9.9));
    numbers.took[14] = 800;
    assert_eq!(numbers.quantile(0.95), Some(10_000.0), "longer than the longest bound");
}

#[test]
fn one_sidecar_that_invents_ends_without_end_fills_no_memory_and_loses_no_count() {
    let mut house = House::new();
    house.report("frontend-1", Vec::new(), 0);
    let invented = |round: u64, ends: u64| {
        let mut count = count(true, "shop/frontend", "shop/orders", 0, 0);
        count.ends = (0..ends)
            .map(|end| proto::CallEnd {
                status: 500,
                reason: format!("r{round}e{end}"),
                count: 1,
                ..Default::default()
            })
            .collect();
        count
    };
    for round in 0..50 {
        assert_eq!(house.report("frontend-1", vec![invented(round, 100)], 0), 0);
    }
    let seen = house.caller("shop/orders").unwrap().numbers;
    assert!(seen.ends.len() <= MOST_ENDS + 8, "{}", seen.ends.len());
    assert_eq!(seen.count(|_| true), 5_000, "they are counted, whatever they are called");
    // Nor does it help to have many to call.
    let many: Vec<_> =
        (0..200).map(|n| proto::CallCount { destination: format!("shop/s{n}"), ..invented(99, 128) }).collect();
    let left_out = house.report("frontend-1", many, 0);
    assert_eq!(left_out, 200 - (MOST_ENDS_OF_ONE - 100) / 128, "{left_out}");
    assert!(house.calls.reporters.all().all(|one| one.ways.parts() <= MOST_ENDS_OF_ONE));
}
