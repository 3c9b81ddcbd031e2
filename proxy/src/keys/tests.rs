//! Issuers that lie, hang, redirect and vanish, over real sockets; and what is known of keys meanwhile.

use std::net::SocketAddr;
use std::path::Path;

use equerry_traffic::outside::OwnDoors;

use super::fetch::{Failed, Fetcher};
use super::issuer::{Issuer, Says, set};
use super::*;
use crate::live::state_dir::StateDir;
use crate::observe::{AccessLogTarget, ObserverOptions, SERIES_CAP};
use crate::upstream::resolve::server::{Says as Dns, Server};

fn fetcher(servers: Vec<SocketAddr>, allow: &[&str]) -> Fetcher {
    Fetcher::new(servers, allow.iter().map(|block| block.parse().unwrap()).collect(), OwnDoors::default())
}

fn local() -> Fetcher {
    fetcher(Vec::new(), &["127.0.0.0/8"])
}

fn observer() -> Observer {
    Observer::new(ObserverOptions { access_log: AccessLogTarget::Off, series_cap: SERIES_CAP }).unwrap()
}

fn keys(fetcher: Fetcher) -> Keys {
    Keys::new(fetcher, observer(), None)
}

/// The ids of keys.
fn ids(keys: &[Key]) -> Vec<&str> {
    keys.iter().filter_map(|key| key.id.as_deref()).collect()
}

/// Keys that are followed, and what is told of them.
struct Followed {
    keys: Keys,
    want: watch::Sender<BTreeSet<Arc<KeySource>>>,
    told: watch::Receiver<FetchedKeys>,
}

impl Followed {
    fn begin(keys: Keys, sources: &[&Arc<KeySource>]) -> Self {
        let (want, wanted) = watch::channel(sources.iter().map(|from| Arc::clone(from)).collect());
        let (tell, told) = watch::channel(FetchedKeys::new());
        tokio::spawn(keys.clone().follow(wanted, tell));
        Self { keys, want, told }
    }

    /// Follows one issuer, whose one key is `a`; and that key.
    async fn of(issuer: &Issuer) -> (Self, Arc<KeySource>, Arc<[Key]>) {
        let from = issuer.source();
        let mut followed = Self::begin(keys(local()), &[&from]);
        let known = followed.hears(&from, &["a"]).await;
        (followed, from, known)
    }

    /// Waits until what is told of an issuer has these ids.
    async fn hears(&mut self, from: &Arc<KeySource>, wanted: &[&str]) -> Arc<[Key]> {
        let is = |all: &FetchedKeys| all.get(from).is_some_and(|keys| ids(keys) == wanted);
        let waited = tokio::time::timeout(Duration::from_secs(20), self.told.wait_for(is)).await;
        let all = waited.unwrap_or_else(|_| panic!("never told: {wanted:?}")).unwrap();
        Arc::clone(&all[from])
    }

    /// Asks an issuer now, as a token with an unknown key would have it asked.
    async fn ask(&self, from: &Arc<KeySource>) -> Arc<Entry> {
        let entry = self.keys.0.entry(from);
        self.keys.0.fetch(&entry).await;
        entry
    }

    /// So many requests meet a key that is not `known`; what each learns.
    async fn flood(&self, from: &Arc<KeySource>, known: &Arc<[Key]>, count: usize, wanted: &[&str]) {
        let learn = |_| {
            let (keys, from, known) = (self.keys.clone(), Arc::clone(from), Arc::clone(known));
            tokio::spawn(async move { keys.learn(&from, Some(&known)).await })
        };
        for one in (0..count).map(learn).collect::<Vec<_>>() {
            assert_eq!(ids(&one.await.unwrap().unwrap()), wanted);
        }
    }
}

fn raw(head: &str, body: &str) -> Says {
    Says::Raw(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes())
}

/// Everything a server can do that is no answer, and the word for it.
fn lies() -> Vec<(&'static str, Says, &'static str)> {
    let good = set(&["a"]);
    let secret = good.replace("\"kty\"", "\"d\":\"AAAA\",\"kty\"");
    let deep = format!(r#"{{"x":{}{},"keys":[]}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let many = set(&(0..101).map(|_| "k").collect::<Vec<_>>());
    let weak = r#"{"keys":[{"kty":"RSA","kid":"a","n":"AQAB","e":"AQAB"}]}"#;
    vec![
        ("a web page", Says::Body("<html>Log in</html>".to_owned()), "content"),
        ("another JSON", Says::Body(r#"{"error":"no"}"#.to_owned()), "content"),
        ("nothing at all", Says::Body(String::new()), "content"),
        ("no text", Says::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xfe".to_vec()), "content"),
        ("an empty set", Says::Body(r#"{"keys":[]}"#.to_owned()), "content"),
        ("a private key", Says::Body(secret), "content"),
        ("a symmetric key", Says::Body(r#"{"keys":[{"kty":"oct","kid":"a","k":"AAAA"}]}"#.to_owned()), "content"),
        ("one id for two keys", Says::Body(set(&["a", "a"])), "content"),
        ("a hundred and one keys", Says::Body(many), "content"),
        ("weak keys alone", Says::Body(weak.to_owned()), "content"),
        ("JSON without end", Says::Body(deep), "content"),
        ("a set cut short", Says::Body(good[..good.len() - 3].to_owned()), "content"),
        (
            "less than promised",
            Says::Raw(format!("HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n{good}").into_bytes()),
            "http",
        ),
        ("more than a megabyte", Says::Body(format!("{good}{}", " ".repeat(1 << 20))), "too_large"),
        ("no end", Says::Endless, "too_large"),
        (
            "a head without end",
            Says::Raw(format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(1 << 18)).into_bytes()),
            "http",
        ),
        ("no HTTP", Says::Raw(b"SSH-2.0-OpenSSH_9.9\r\n\r\n".to_vec()), "http"),
        ("a redirection elsewhere", raw("HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/", &good), "redirect"),
        ("a redirection to itself", raw("HTTP/1.1 307 Temporary Redirect\r\nlocation: /keys2", &good), "redirect"),
        ("an error with a good set", raw("HTTP/1.1 500 Internal Server Error", &good), "status"),
        ("not found", raw("HTTP/1.1 404 Not Found", "no"), "status"),
        ("no content", Says::Raw(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()), "status"),
        ("silence", Says::Nothing, "timeout"),
        ("no handshake", Says::NoHandshake, "timeout"),
        ("the end at once", Says::Closed, "tls"),
    ]
}

#[tokio::test]
async fn no_answer_that_is_no_key_set_is_taken_for_one_or_repeated() {
    let issuer = Issuer::start(Says::Nothing).await;
    let fetcher = local();
    for (what, says, word) in lies() {
        issuer.say(says);
        let failed = fetcher.fetch(&issuer.source()).await.expect_err(what);
        assert_eq!(failed.word, word, "{what}: {failed:?}");
        for repeated in ["Log in", "169.254", "AAAA", "error\""] {
            assert!(!failed.detail.contains(repeated), "{what}: {failed:?}");
        }
    }
    issuer.say(Says::Body(set(&["a", "b"])));
    assert_eq!(ids(&fetcher.fetch(&issuer.source()).await.unwrap().keys), ["a", "b"], "and then it answers");
}

#[tokio::test]
async fn an_issuer_that_lies_hangs_redirects_or_vanishes_changes_no_key() {
    let issuer = Issuer::start(Says::Body(set(&["a"]))).await;
    let (mut followed, from, known) = Followed::of(&issuer).await;
    for (what, says, word) in lies() {
        issuer.say(says);
        let entry = followed.ask(&from).await;
        assert_eq!(entry.memory().problem().map(|why| &**why), Some(word), "{what}");
        assert!(entry.keys().is_some_and(|keys| Arc::ptr_eq(&keys, &known)), "{what}: other keys are believed");
        assert!(Arc::ptr_eq(&followed.told.borrow()[&from], &known), "{what}");
    }
    assert_eq!(followed.keys.shown()[0]["state"], "stale");
    issuer.say(Says::Body(set(&["b"])));
    followed.ask(&from).await;
    followed.hears(&from, &["b"]).await;
}

#[tokio::test]
async fn nobody_is_asked_where_credentials_are_kept_unless_the_operator_allows_it() {
    let all = fetcher(Vec::new(), &[]);
    for blocked in [
        "127.0.0.1",
        "::1",
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "fe80::1",
        "0.0.0.0",
        "fd00:ec2::254",
        "224.0.0.1",
    ] {
        assert!(all.blocks(blocked.parse().unwrap()), "{blocked}");
        assert!(!fetcher(Vec::new(), &[blocked]).blocks(blocked.parse().unwrap()), "{blocked} is allowed");
    }
    for open in ["10.0.0.1", "192.168.1.1", "203.0.113.9", "2001:db8::1", "fd00::1"] {
        assert!(!all.blocks(open.parse().unwrap()), "{open}");
    }
    let issuer = Issuer::start(Says::Body(set(&["a"]))).await;
    let own = Fetcher::new(Vec::new(), vec!["127.0.0.0/8".parse().unwrap()], OwnDoors::new([issuer.address]));
    for fetcher in [all, own] {
        let failed = fetcher.fetch(&issuer.source()).await.unwrap_err();
        assert_eq!(failed.word, "blocked", "{failed:?}");
    }
    assert_eq!(issuer.asked(), 0);
}

#[tokio::test]
async fn an_address_is_judged_after_the_dns_was_asked_and_is_the_one_that_is_called() {
    let (dns, issuer) = (Server::start().await, Issuer::start(Says::Body(set(&["a"]))).await);
    let from = issuer.source_at("login.test");
    dns.say("login.test", Dns::Addresses(vec!["127.0.0.1".parse().unwrap()], 60));
    let blocked: Failed = fetcher(vec![dns.address], &[]).fetch(&from).await.unwrap_err();
    assert!(blocked.word == "blocked" && issuer.asked() == 0, "{blocked:?}");
    // Rebinding: what it says at the next question is judged anew, and a blocked address beside a good one is left out.
    dns.say("login.test", Dns::Addresses(vec!["169.254.169.254".parse().unwrap(), "127.0.0.1".parse().unwrap()], 0));
    let allowed = fetcher(vec![dns.address], &["127.0.0.1"]);
    assert_eq!(ids(&allowed.fetch(&from).await.unwrap().keys), ["a"]);
    let gone = issuer.source_at("gone.test");
    assert_eq!(allowed.fetch(&gone).await.unwrap_err().word, "dns");
}

#[tokio::test]
async fn an_issuer_must_prove_its_name_by_its_own_authority() {
    let (issuer, other) = (Issuer::start(Says::Body(set(&["a"]))).await, Issuer::start(Says::Nothing).await);
    let (good, stranger) = (issuer.source(), other.source());
    let fetcher = local();
    assert!(fetcher.fetch(&good).await.is_ok());
    let wrong_ca = KeySource { ca: stranger.ca.clone(), ..(*good).clone() };
    let no_ca = KeySource { ca: Some(vec![vec![0x30, 0x82, 0, 0]]), ..(*good).clone() };
    assert_eq!(fetcher.fetch(&wrong_ca).await.unwrap_err().word, "tls");
    assert_eq!(fetcher.fetch(&no_ca).await.unwrap_err().word, "ca");
    let dns = Server::start().await;
    dns.say("elsewhere.test", Dns::Addresses(vec!["127.0.0.1".parse().unwrap()], 60));
    let wrong_name =
        super::fetch::Fetcher::new(vec![dns.address], vec!["127.0.0.1".parse().unwrap()], OwnDoors::default());
    let failed = wrong_name.fetch(&issuer.source_at("elsewhere.test")).await.unwrap_err();
    assert_eq!(failed.word, "tls", "{failed:?}");
}

#[tokio::test]
async fn an_address_that_keeps_silent_does_not_use_up_the_time_of_the_others() {
    let (dns, issuer) = (Server::start().await, Issuer::start(Says::Body(set(&["a"]))).await);
    let from = Arc::new(KeySource { timeout: Duration::from_secs(20), ..(*issuer.source_at("login.test")).clone() });
    // Somebody is at the first address, and says nothing.
    let silent: Vec<_> =
        ["127.0.0.2", "127.0.0.3"].map(|ip| std::net::TcpListener::bind((ip, issuer.address.port())).unwrap()).into();
    let all = ["127.0.0.2", "127.0.0.3", "127.0.0.1"].map(|ip| ip.parse().unwrap());
    dns.say("login.test", Dns::Addresses(all.into(), 60));
    let fetcher = fetcher(vec![dns.address], &["127.0.0.0/8"]);
    let began = std::time::Instant::now();
    assert_eq!(ids(&fetcher.fetch(&from).await.unwrap().keys), ["a"]);
    assert!(began.elapsed() < from.timeout / 2, "{:?}", began.elapsed());
    // Where nobody is at all, the next is tried at once; and what went wrong last is told.
    drop(silent);
    assert_eq!(ids(&fetcher.fetch(&from).await.unwrap().keys), ["a"]);
    let elsewhere = issuer.source_at("nobody.test");
    dns.say("nobody.test", Dns::Addresses(vec!["127.0.0.2".parse().unwrap(), "127.0.0.3".parse().unwrap()], 60));
    assert_eq!(fetcher.fetch(&elsewhere).await.unwrap_err().word, "connect");
}

#[tokio::test]
async fn all_who_meet_an_unknown_key_share_one_question() {
    let issuer = Issuer::start(Says::Body(set(&["a"]))).await;
    let (followed, from, known) = Followed::of(&issuer).await;
    let before = issuer.asked();
    issuer.say(Says::Body(set(&["a", "b"])));
    followed.flood(&from, &known, 100, &["a", "b"]).await;
    assert_eq!(issuer.asked() - before, 1);
    followed.flood(&from, &known, 1, &["a", "b"]).await;
    assert_eq!(issuer.asked() - before, 1, "what is new already is told at once");
}

#[tokio::test]
async fn a_flood_of_unknown_keys_asks_a_few_times_and_still_finds_the_key_that_was_added() {
    let issuer = Issuer::start(Says::Body(set(&["a"]))).await;
    let (followed, from, known) = Followed::of(&issuer).await;
    let before = issuer.asked();
    for _ in 0..5 {
        followed.flood(&from, &known, 1, &["a"]).await;
    }
    // The questions are used up; a key that appears now is found with the next one, within two seconds.
    issuer.say(Says::Body(set(&["b"])));
    followed.flood(&from, &known, 50, &["b"]).await;
    assert_eq!(issuer.asked() - before, 6);
}

#[tokio::test]
async fn what_was_never_fetched_is_unavailable_with_the_reason_and_only_the_first_answer_is_waited_for() {
    let issuer = Issuer::start(Says::Nothing).await;
    let (from, keys) = (issuer.source(), keys(local()));
    let began = std::time::Instant::now();
    let refusal = keys.learn(&from, None).await.unwrap_err();
    assert_eq!((refusal.status().as_u16(), refusal.reason().as_str()), (503, "keys_unavailable"));
    assert!(refusal.to_string().ends_with("are not known: timeout"), "{refusal}");
    assert!(began.elapsed() >= from.timeout, "the first answer is waited for");
    // Nobody waits for the next: it is told before anything else can happen.
    let again = futures_util::FutureExt::now_or_never(keys.learn(&from, None));
    assert!(again.is_some_and(|refused| refused.is_err()));
    issuer.say(Says::Body(set(&["a"])));
    let mut followed = Followed::begin(keys.clone(), &[&from]);
    followed.hears(&from, &["a"]).await;
    assert!(keys.learn(&from, None).await.is_ok());
}

#[tokio::test]
async fn one_bad_issuer_never_delays_another() {
    let (bad, good) = (Issuer::start(Says::NoHandshake).await, Issuer::start(Says::Body(set(&["a"]))).await);
    let slow = Arc::new(KeySource { timeout: Duration::from_secs(600), ..(*bad.source()).clone() });
    let (from, keys) = (good.source(), keys(local()));
    let mut followed = Followed::begin(keys.clone(), &[&slow, &from]);
    let waits = tokio::spawn({
        let (keys, slow) = (keys.clone(), Arc::clone(&slow));
        async move { keys.0.fetch(&keys.0.entry(&slow)).await }
    });
    let known = followed.hears(&from, &["a"]).await;
    good.say(Says::Body(set(&["b"])));
    followed.flood(&from, &known, 1, &["b"]).await;
    assert!(!waits.is_finished(), "the bad one is still waited for");
    waits.abort();
}

/// Keys whose last good ones are kept in a directory.
fn kept(dir: &Path) -> Keys {
    let last_good = LastGood::open(&StateDir::open(dir).unwrap()).unwrap();
    Keys::new(local(), observer(), Some(Arc::new(Mutex::new(last_good))))
}

/// What a restart would read.
fn on_disk(keys: &Keys) -> Vec<SavedKeys> {
    keys.0.last_good.as_ref().unwrap().lock().unwrap().keys().unwrap().unwrap_or_default()
}

#[tokio::test]
async fn the_last_good_keys_are_known_again_after_a_restart_while_their_issuer_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::start(Says::Body(set(&["a"]))).await;
    let from = issuer.source();
    {
        let mut followed = Followed::begin(kept(dir.path()), &[&from]);
        followed.hears(&from, &["a"]).await;
        crate::exchange::harness::until("the keys are saved", || !on_disk(&followed.keys).is_empty()).await;
    }
    issuer.say(Says::Closed);
    let mut followed = Followed::begin(kept(dir.path()), &[&from]);
    followed.hears(&from, &["a"]).await;
    let other = KeySource { ca: None, ..(*from).clone() };
    assert!(followed.keys.0.entry(&Arc::new(other)).keys().is_none(), "by another authority's word");
}

#[tokio::test]
async fn a_rule_that_is_edited_or_brought_back_begins_with_the_keys_of_now_and_not_of_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::start(Says::Body(set(&["a"]))).await;
    let from = issuer.source();
    {
        let mut followed = Followed::begin(kept(dir.path()), &[&from]);
        followed.hears(&from, &["a"]).await;
        crate::exchange::harness::until("the keys are saved", || !on_disk(&followed.keys).is_empty()).await;
    }
    issuer.say(Says::Body(set(&["b"])));
    let mut followed = Followed::begin(kept(dir.path()), &[&from]);
    followed.hears(&from, &["b"]).await;
    issuer.say(Says::Closed);
    let edited = Arc::new(KeySource { timeout: Duration::from_millis(700), ..(*from).clone() });
    followed.want.send_replace(BTreeSet::from([Arc::clone(&edited)]));
    followed.hears(&edited, &["b"]).await;
    followed.want.send_replace(BTreeSet::new());
    followed.told.wait_for(FetchedKeys::is_empty).await.unwrap();
    followed.want.send_replace(BTreeSet::from([Arc::clone(&from)]));
    followed.hears(&from, &["b"]).await;
}

#[tokio::test]
async fn of_two_who_save_at_once_nobody_writes_what_is_older_last() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::start(Says::Closed).await;
    let (from, keys, now) = (issuer.source(), kept(dir.path()), SystemTime::now());
    let held = |id: &str| {
        let text = set(&[id]);
        Held { keys: read_published(&text).unwrap().0.into(), text: text.into(), fetched_at: now }
    };
    // The first is on its way to the disk, on which somebody else writes; meanwhile newer keys come.
    let writing = keys.0.last_good.as_ref().unwrap().lock().unwrap();
    keys.0.remember(&from, &held("a"), now);
    let first = std::thread::spawn({
        let keys = keys.clone();
        move || keys.0.save_now()
    });
    keys.0.remember(&from, &held("b"), now);
    drop(writing);
    first.join().unwrap().unwrap();
    assert_eq!(on_disk(&keys)[0].text, set(&["b"]), "whoever has the turn writes what is known then");
}

#[tokio::test]
async fn an_issuer_that_no_policy_names_any_more_is_not_asked_again() {
    let issuer = Issuer::start(Says::Body(set(&["a"]))).await;
    let (mut followed, _, _) = Followed::of(&issuer).await;
    followed.want.send_replace(BTreeSet::new());
    followed.told.wait_for(FetchedKeys::is_empty).await.unwrap();
    assert!(followed.keys.0.entries.read().unwrap().is_empty() && followed.keys.shown().as_array().unwrap().is_empty());
}

#[tokio::test]
async fn a_request_of_before_that_asks_for_an_issuer_let_go_does_not_bring_it_back_for_good() {
    let issuer = Issuer::start(Says::Body(set(&["a"]))).await;
    let (mut followed, from, _) = Followed::of(&issuer).await;
    followed.want.send_replace(BTreeSet::new());
    followed.told.wait_for(FetchedKeys::is_empty).await.unwrap();
    assert_eq!(ids(&followed.keys.learn(&from, None).await.unwrap()), ["a"], "it is answered all the same");
    let left = || !followed.keys.0.entries.read().unwrap().is_empty();
    assert!(left());
    tokio::time::pause();
    // Time passes whenever nobody has anything to do.
    let gone = async {
        while left() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(600), gone).await.expect("it is let go");
}

#[tokio::test]
async fn metrics_and_config_show_how_the_keys_stand() {
    let issuer = Issuer::start(Says::Body(set(&["a"]))).await;
    let (from, observe) = (issuer.source(), observer());
    let mut followed = Followed::begin(Keys::new(local(), observe.clone(), None), &[&from]);
    followed.hears(&from, &["a"]).await;
    issuer.say(Says::Closed);
    followed.ask(&from).await;
    observe.keys_age(&followed.keys.ages());
    let text = observe.render();
    for line in [
        format!("equerry_jwks_age_seconds{{issuer=\"{}\"}} 0", from.issuer),
        format!("equerry_jwks_fetches_total{{issuer=\"{}\",outcome=\"ok\"}} 1", from.issuer),
        format!("equerry_jwks_fetches_total{{issuer=\"{}\",outcome=\"tls\"}} 1", from.issuer),
    ] {
        assert!(text.contains(&line), "{line}\n{text}");
    }
    let shown = &followed.keys.shown()[0];
    assert_eq!((&shown["state"], &shown["problem"], &shown["keys"][0]), (&"stale".into(), &"tls".into(), &"a".into()));
}
