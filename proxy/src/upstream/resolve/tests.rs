//! Lookups made up, with a clock that stands still between steps, for who asks when; then a real name server over real
//! sockets, for what is read from the wire.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use hickory_resolver::proto::op::ResponseCode;
use tokio::sync::Semaphore as Gate;

use super::server::{Says, Server};
use super::*;

fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

fn ips(addresses: &[&str]) -> Vec<IpAddr> {
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

fn found(address: &str, ttl: u64) -> Outcome {
    Outcome::Found { addresses: ips(&[address]), ttl: Duration::from_secs(ttl) }
}

/// Lookups that are made up: the next outcome of each name, the last of which stays; and how often each was asked for.
#[derive(Clone, Default)]
struct MadeUp {
    outcomes: Arc<Mutex<HashMap<String, VecDeque<Outcome>>>>,
    asked: Arc<Mutex<Vec<String>>>,
    /// A lookup takes one of these, when there is a gate.
    gate: Option<Arc<Gate>>,
}

impl MadeUp {
    fn say(&self, name: &str, outcomes: impl IntoIterator<Item = Outcome>) {
        self.outcomes.lock().unwrap().insert(name.to_owned(), outcomes.into_iter().collect());
    }

    fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == name).count()
    }

    fn resolver(&self, bounds: Bounds) -> Resolver {
        let this = self.clone();
        Resolver::asking(bounds, move |name| {
            let this = this.clone();
            Box::pin(async move {
                this.asked.lock().unwrap().push(name.to_string());
                if let Some(gate) = &this.gate {
                    gate.acquire().await.unwrap().forget();
                }
                let mut outcomes = this.outcomes.lock().unwrap();
                let Some(outcomes) = outcomes.get_mut(name.as_str()) else { return Outcome::Nobody { ttl: None } };
                let next = outcomes.front().cloned().unwrap();
                if outcomes.len() > 1 {
                    outcomes.pop_front();
                }
                next
            })
        })
    }
}

async fn told(resolver: &Resolver, name: &str) -> String {
    match resolver.addresses(&host(name)).await {
        Ok(addresses) => addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        Err(unresolved) => format!("{unresolved:?}"),
    }
}

async fn pass(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn many_who_want_a_name_at_once_make_one_lookup() {
    let made_up = MadeUp { gate: Some(Arc::new(Gate::new(0))), ..MadeUp::default() };
    made_up.say("a", [found("192.0.2.1", 60)]);
    let resolver = made_up.resolver(Bounds::default());
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let resolver = resolver.clone();
            tokio::spawn(async move { told(&resolver, "a").await })
        })
        .collect();
    tokio::task::yield_now().await;
    made_up.gate.as_ref().unwrap().add_permits(1);
    for one in waiting {
        assert_eq!(one.await.unwrap(), "192.0.2.1");
    }
    assert_eq!(made_up.asked("a"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_name_in_use_is_looked_up_before_its_answer_is_over_so_that_nobody_waits() {
    let made_up = MadeUp::default();
    made_up.say("a", [found("192.0.2.1", 10), found("192.0.2.2", 10)]);
    let resolver = made_up.resolver(Bounds::default());
    assert_eq!(told(&resolver, "a").await, "192.0.2.1");
    pass(5.0).await;
    assert_eq!(told(&resolver, "a").await, "192.0.2.1");
    pass(4.9).await;
    assert_eq!((made_up.asked("a"), told(&resolver, "a").await.as_str()), (2, "192.0.2.2"));
}

#[tokio::test(start_paused = true)]
async fn a_name_not_used_since_its_last_lookup_is_asked_for_only_when_it_is_used_again() {
    let made_up = MadeUp::default();
    made_up.say("a", [found("192.0.2.1", 10), found("192.0.2.2", 10)]);
    let resolver = made_up.resolver(Bounds::default());
    told(&resolver, "a").await;
    pass(200.0).await;
    assert_eq!(made_up.asked("a"), 1);
    assert_eq!(told(&resolver, "a").await, "192.0.2.2", "an answer whose time is over is not used");
    assert_eq!(made_up.asked("a"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_name_unused_for_long_is_let_go() {
    let made_up = MadeUp::default();
    made_up.say("a", [found("192.0.2.1", 10)]);
    let resolver = made_up.resolver(Bounds::default());
    told(&resolver, "a").await;
    pass(299.0).await;
    assert_eq!(resolver.census().names, 1);
    pass(2.0).await;
    assert_eq!(resolver.census().names, 0);
    assert_eq!(told(&resolver, "a").await, "192.0.2.1", "and can come back");
    assert_eq!(resolver.census(), Census { names: 1, found: 2, ..Census::default() });
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_the_dns_only_so_long() {
    let made_up = MadeUp { gate: Some(Arc::new(Gate::new(0))), ..MadeUp::default() };
    made_up.say("a", [found("192.0.2.1", 60)]);
    let resolver = made_up.resolver(Bounds::default());
    let begun = tokio::time::Instant::now();
    assert_eq!(told(&resolver, "a").await, "Failed(\"no answer within 1s\")");
    assert_eq!(begun.elapsed(), Duration::from_secs(1));
    made_up.gate.as_ref().unwrap().add_permits(1);
    assert_eq!(told(&resolver, "a").await, "192.0.2.1", "the lookup went on without it");
    assert_eq!(made_up.asked("a"), 1);
}

#[tokio::test(start_paused = true)]
async fn while_the_dns_is_down_nobody_waits_and_what_it_said_last_stays_in_use() {
    let made_up = MadeUp::default();
    let failed = Outcome::Failed("SERVFAIL".to_owned());
    made_up.say("a", [found("192.0.2.1", 10), failed.clone(), failed.clone(), failed, found("192.0.2.2", 10)]);
    let resolver = made_up.resolver(Bounds::default());
    told(&resolver, "a").await;
    pass(5.0).await;
    told(&resolver, "a").await;
    pass(6.0).await;
    let begun = tokio::time::Instant::now();
    assert_eq!(told(&resolver, "a").await, "192.0.2.1");
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(resolver.census(), Census { names: 1, stale: 1, found: 1, nobody: 0, failed: 1 });
    for _ in 0..20 {
        pass(1.0).await;
        told(&resolver, "a").await;
    }
    assert_eq!(told(&resolver, "a").await, "192.0.2.2");
    assert_eq!(resolver.census().stale, 0);
}

#[tokio::test(start_paused = true)]
async fn a_name_without_addresses_is_not_asked_for_again_at_each_request() {
    let made_up = MadeUp::default();
    let resolver = made_up.resolver(Bounds::default());
    for _ in 0..100 {
        assert_eq!(told(&resolver, "nobody").await, "Nobody");
    }
    assert_eq!(made_up.asked("nobody"), 1);
}

#[tokio::test(start_paused = true)]
async fn callers_cannot_make_it_remember_more_than_so_many_names() {
    let made_up = MadeUp::default();
    made_up.say("good", [found("192.0.2.1", 300)]);
    let resolver = made_up.resolver(Bounds { names: 10, ..Bounds::default() });
    told(&resolver, "good").await;
    for number in 0..1_000 {
        assert_eq!(told(&resolver, &format!("n{number}.example")).await, "Nobody");
        tokio::task::yield_now().await; // a lookup that ended is at rest a moment later
    }
    assert_eq!(resolver.census().names, 10);
    assert_eq!(told(&resolver, "good").await, "192.0.2.1");
    assert_eq!(made_up.asked("good"), 1, "one with addresses is not pushed out by those that have none");
}

#[tokio::test(start_paused = true)]
async fn lookups_that_hang_do_not_pile_up() {
    let made_up = MadeUp { gate: Some(Arc::new(Gate::new(0))), ..MadeUp::default() };
    let resolver = made_up.resolver(Bounds { names: 10, at_once: 4, ..Bounds::default() });
    let flood: Vec<_> = (0..100)
        .map(|number| {
            let resolver = resolver.clone();
            tokio::spawn(async move { told(&resolver, &format!("n{number}.example")).await })
        })
        .collect();
    let mut refused = 0;
    for one in flood {
        refused += usize::from(one.await.unwrap() == "TooMany");
    }
    assert_eq!((refused, resolver.census().names, made_up.asked.lock().unwrap().len()), (90, 10, 4));
}

#[tokio::test(start_paused = true)]
async fn a_followed_name_is_told_of_at_each_change_and_kept_true_though_nobody_asks() {
    let made_up = MadeUp::default();
    made_up.say("pay", [found("192.0.2.1", 10), found("192.0.2.1", 10), found("192.0.2.2", 10)]);
    let resolver = made_up.resolver(Bounds { names: 0, ..Bounds::default() });
    let (want, wanted) = watch::channel(BTreeSet::from([host("pay"), host("gone")]));
    let (tell, mut told) = watch::channel(Followed::new());
    let following = tokio::spawn(resolver.clone().follow(wanted, tell));

    let first = told.wait_for(|found| found.len() == 2).await.unwrap().clone();
    assert_eq!((&*first[&host("pay")], &*first[&host("gone")]), (&*ips(&["192.0.2.1"]), &[][..]));
    let begun = tokio::time::Instant::now();
    told.changed().await.unwrap();
    assert_eq!(*told.borrow_and_update()[&host("pay")], ips(&["192.0.2.2"]));
    let after = begun.elapsed().as_secs_f64();
    assert!((16.0..20.0).contains(&after), "an answer that says the same is no news: {after}");

    want.send_replace(BTreeSet::from([host("pay")]));
    told.changed().await.unwrap();
    assert!(!told.borrow_and_update().contains_key(&host("gone")));
    pass(400.0).await;
    assert_eq!(resolver.census().names, 1, "what nobody follows or uses is let go");
    drop(told);
    following.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_followed_name_never_leads_to_where_nothing_is_sent() {
    let made_up = MadeUp::default();
    let addresses = ips(&["169.254.169.254", "192.0.2.1", "::ffff:169.254.169.254", "127.0.0.1"]);
    made_up.say("pay", [Outcome::Found { addresses, ttl: Duration::from_secs(10) }]);
    made_up.say("evil", [found("169.254.169.254", 10)]);
    let (_want, wanted) = watch::channel(BTreeSet::from([host("pay"), host("evil")]));
    let (tell, mut told) = watch::channel(Followed::new());
    tokio::spawn(made_up.resolver(Bounds::default()).follow(wanted, tell));
    let found = told.wait_for(|found| found.len() == 2).await.unwrap();
    assert_eq!(*found[&host("pay")], ips(&["127.0.0.1", "192.0.2.1"]));
    assert!(found[&host("evil")].is_empty());
}

/// Asks `server` alone, over real sockets in real time; a question that gets no answer is given up after a second.
fn asker(server: &Server) -> (Asker, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let resolv_conf = dir.path().join("resolv.conf");
    std::fs::write(&resolv_conf, "nameserver 192.0.2.1\noptions timeout:1 attempts:1\n").unwrap();
    let servers = vec![server.address];
    (Asker::with_files(servers, "/nowhere/hosts", &resolv_conf, |_| true), dir)
}

fn asking(server: &Server, bounds: Bounds) -> Resolver {
    let asker = Arc::new(asker(server));
    Resolver::asking(bounds, move |name| {
        let asker = Arc::clone(&asker);
        Box::pin(async move { asker.0.ask(&name).await })
    })
}

/// Real lookups need real time: answers are over soon, so that tests need not wait long.
fn quick() -> Bounds {
    let moment = Duration::from_millis(50);
    Bounds {
        shortest: moment,
        longest: moment,
        longest_negative: moment,
        longest_rest: moment,
        patience: Duration::from_secs(20),
        ..Bounds::default()
    }
}

/// Asks until the answer is `expected`, but not for ever.
async fn becomes(resolver: &Resolver, name: &str, expected: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let now = told(resolver, name).await;
        if now.contains(expected) {
            return;
        }
        assert!(Instant::now() < deadline, "{name} is still {now}, not {expected}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_real_answer_of_both_families_is_read_and_followed_when_it_changes() {
    let server = Server::start().await;
    server.say("api.example.com", Says::Addresses(ips(&["192.0.2.2", "192.0.2.1", "2001:db8::1"]), 1));
    let resolver = asking(&server, quick());
    assert_eq!(told(&resolver, "api.example.com").await, "192.0.2.1 192.0.2.2 2001:db8::1");
    server.say("api.example.com", Says::Addresses(ips(&["192.0.2.3"]), 1));
    becomes(&resolver, "api.example.com", "192.0.2.3").await;
    assert!(server.asked("api.example.com") >= 4, "hickory's cache would have kept the first answer for a second");
}

#[tokio::test]
async fn the_time_to_live_is_that_of_the_wire_and_an_alias_counts() {
    let server = Server::start().await;
    let address = ips(&["192.0.2.1"]);
    server.say("a.example.com", Says::Addresses(address.clone(), 77));
    server.say("b.example.com", Says::Alias("c.example.net", 33, address.clone(), 77));
    let (asker, _files) = asker(&server);
    let found = |seconds| Outcome::Found { addresses: address.clone(), ttl: Duration::from_secs(seconds) };
    assert_eq!(asker.ask(&host("a.example.com")).await, found(77));
    assert_eq!(asker.ask(&host("b.example.com")).await, found(33));
    assert_eq!(asker.ask(&host("a.example.com")).await, found(77), "each lookup goes out");
    assert_eq!(server.asked("a.example.com"), 4);
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_told_from_one_that_could_not_be_asked_for() {
    let server = Server::start().await;
    server.say("empty.example.com", Says::Addresses(vec![], 60));
    server.say("broken.example.com", Says::Code(ResponseCode::ServFail, 60));
    server.say("refused.example.com", Says::Code(ResponseCode::Refused, 60));
    let (asker, _files) = asker(&server);
    let nobody = Outcome::Nobody { ttl: Some(Duration::from_secs(60)) };
    assert_eq!(asker.ask(&host("gone.example.com")).await, nobody);
    assert_eq!(asker.ask(&host("empty.example.com")).await, nobody);
    for name in ["broken.example.com", "refused.example.com"] {
        let outcome = asker.ask(&host(name)).await;
        assert!(matches!(outcome, Outcome::Failed(_)), "{name}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_name_server_that_falls_silent_or_fails_leaves_in_use_what_it_said_last() {
    let server = Server::start().await;
    server.say("api.example.com", Says::Addresses(ips(&["192.0.2.1"]), 1));
    let resolver = asking(&server, Bounds { last_good: Duration::from_secs(3600), ..quick() });
    becomes(&resolver, "api.example.com", "192.0.2.1").await;
    for trouble in [Says::Code(ResponseCode::ServFail, 1), Says::Silence] {
        let failed = resolver.census().failed;
        server.say("api.example.com", trouble);
        let deadline = Instant::now() + Duration::from_secs(30);
        while resolver.census().failed == failed || resolver.census().stale == 0 {
            assert!(Instant::now() < deadline, "{:?}", resolver.census());
            assert_eq!(told(&resolver, "api.example.com").await, "192.0.2.1");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(told(&resolver, "api.example.com").await, "192.0.2.1");
    }
    server.say("api.example.com", Says::Code(ResponseCode::NXDomain, 1));
    becomes(&resolver, "api.example.com", "Nobody").await;
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_asked_for_again_by_tcp() {
    let server = Server::start().await;
    let many: Vec<IpAddr> = (1..=40).map(|last| Ipv4Addr::new(192, 0, 2, last).into()).collect();
    server.say("many.example.com", Says::Truncated(many.clone(), 60));
    let resolver = asking(&server, quick());
    assert_eq!(resolver.addresses(&host("many.example.com")).await.unwrap().to_vec(), many);
}

#[tokio::test]
async fn search_domains_are_not_asked() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    let resolv_conf = dir.path().join("resolv.conf");
    std::fs::write(&resolv_conf, "search example.com\noptions ndots:5\nnameserver 192.0.2.1\n").unwrap();
    server.say("api.example.com", Says::Addresses(ips(&["192.0.2.1"]), 60));
    let asker = Asker::with_files(vec![server.address], "/nowhere", &resolv_conf, |_| true);
    assert!(matches!(asker.ask(&host("api")).await, Outcome::Nobody { .. }));
    assert_eq!((server.asked("api"), server.asked("api.example.com")), (2, 0));
}
