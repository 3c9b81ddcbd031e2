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

/// Follows these issuers; what is told of them.
fn follow(
    keys: &Keys,
    sources: &[&Arc<KeySource>],
) -> (watch::Sender<BTreeSet<Arc<KeySource>>>, watch::Receiver<FetchedKeys>) {
    let (want, wanted) = watch::channel(sources.iter().map(|from| Arc::clone(from)).collect());
    let (tell, told) = watch::channel(FetchedKeys::new());
    tokio::spawn(keys.clone().follow(wanted, tell));
    (want, told)
}

/// Waits until what is told of an issuer has these ids.
async fn told(told: &mut watch::Receiver<FetchedKeys>, from: &Arc<KeySource>, wanted: &[&str]) {
    let is = |all: &FetchedKeys| all.get(from).is_some_and(|keys| ids(keys) == wanted);
    let waited = tokio::time::timeout(Duration::from_secs(10), told.wait_for(is)).await;
    assert!(matches!(waited, Ok(Ok(_))), "never told: {wanted:?}");
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
    let (from, keys) = (issuer.source(), keys(local()));
    let (_want, mut all) = follow(&keys, &[&from]);
    told(&mut all, &from, &["a"]).await;
    let known = all.borrow()[&from].clone();
    for (what, says, word) in lies() {
        issuer.say(says);
        // One question after the other, as tokens with unknown keys would ask them.
        let entry = keys.0.entry(&from);
        keys.0.fetch(&entry).await;
        assert_eq!(entry.memory().problem().map(|why| &**why), Some(word), "{what}");
        assert!(entry.keys().is_some_and(|keys| Arc::ptr_eq(&keys, &known)), "{what}: other keys are believed");
        assert!(Arc::ptr_eq(&all.borrow()[&from], &known), "{what}");
    }
    assert_eq!(keys.shown()[0]["state"], "stale");
    issuer.say(Says::Body(set(&["b"])));
    keys.0.fetch(&keys.0.entry(&from)).await;
    told(&mut all, &from, &["b"]).await;
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
async fn all_who_meet_an_unknown_key_share_one_question() {
    let issuer = Issuer::start(Says::Body(set(&["a"]))).await;
    let (from, keys) = (issuer.source(), keys(local()));
    let (_want, mut all) = follow(&keys, &[&from]);
    told(&mut all, &from, &["a"]).await;
    let known = all.borrow()[&from].clone();
    let before = issuer.asked();
    issuer.say(Says::Body(set(&["a", "b"])));
    let waiting: Vec<_> = (0..100)
        .map(|_| {
            let (keys, from, known) = (keys.clone(), Arc::clone(&from), Arc::clone(&known));
            tokio::spawn(async move { keys.learn(&from, Some(&known)).await })
        })
        .collect();
    for one in waiting {
        assert_eq!(ids(&one.await.unwrap().unwrap()), ["a", "b"]);
    }
    assert_eq!(issuer.asked() - before, 1);
    let newer = keys.learn(&from, Some(&known)).await.unwrap();
    assert_eq!((ids(&newer), issuer.asked() - before), (vec!["a", "b"], 1), "what is new already is told at once");
}

#[tokio::test]
async fn a_flood_of_unknown_keys_asks_a_few_times_and_still_finds_the_key_that_was_added() {
    let issuer = Issuer::start(Says::Body(set(&["a"]))).await;
    let (from, keys) = (issuer.source(), keys(local()));
    let (_want, mut all) = follow(&keys, &[&from]);
    told(&mut all, &from, &["a"]).await;
    let known = all.borrow()[&from].clone();
    let before = issuer.asked();
    for _ in 0..5 {
        assert_eq!(ids(&keys.learn(&from, Some(&known)).await.unwrap()), ["a"], "nothing new");
    }
    // The questions are used up; a key that appears now is found with the next one, within two seconds.
    issuer.say(Says::Body(set(&["b"])));
    let flood: Vec<_> = (0..50)
        .map(|_| {
            let (keys, from, known) = (keys.clone(), Arc::clone(&from), Arc::clone(&known));
            tokio::spawn(async move { keys.learn(&from, Some(&known)).await })
        })
        .collect();
    for one in flood {
        assert_eq!(ids(&one.await.unwrap().unwrap()), ["b"]);
    }
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
    let again = tokio::time::timeout(Duration::from_millis(100), keys.learn(&from, None)).await;
    assert!(again.is_ok_and(|refused| refused.is_err()), "nobody waits for the next");
    issuer.say(Says::Body(set(&["a"])));
    let (_want, mut all) = follow(&keys, &[&from]);
    told(&mut all, &from, &["a"]).await;
    assert!(keys.learn(&from, None).await.is_ok());
}

#[tokio::test]
async fn one_bad_issuer_never_delays_another() {
    let (bad, good) = (Issuer::start(Says::NoHandshake).await, Issuer::start(Says::Body(set(&["a"]))).await);
    let slow = Arc::new(KeySource { timeout: Duration::from_secs(30), ..(*bad.source()).clone() });
    let (from, keys) = (good.source(), keys(local()));
    let (_want, mut all) = follow(&keys, &[&slow, &from]);
    let waits = tokio::spawn({
        let (keys, slow) = (keys.clone(), Arc::clone(&slow));
        async move { keys.learn(&slow, None).await }
    });
    told(&mut all, &from, &["a"]).await;
    good.say(Says::Body(set(&["b"])));
    let known = all.borrow()[&from].clone();
    let learned = tokio::time::timeout(Duration::from_secs(2), keys.learn(&from, Some(&known))).await;
    assert_eq!(ids(&learned.unwrap().unwrap()), ["b"]);
    assert!(!waits.is_finished(), "the bad one is still waited for");
    waits.abort();
}

#[tokio::test]
async fn the_last_good_keys_are_known_again_after_a_restart_while_their_issuer_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let open = |dir: &Path| {
        let last_good = LastGood::open(&StateDir::open(dir).unwrap()).unwrap();
        Keys::new(local(), observer(), Some(Arc::new(Mutex::new(last_good))))
    };
    let issuer = Issuer::start(Says::Body(set(&["a"]))).await;
    let from = issuer.source();
    {
        let keys = open(dir.path());
        let (_want, mut all) = follow(&keys, &[&from]);
        told(&mut all, &from, &["a"]).await;
        let saved = || keys.0.last_good.as_ref().unwrap().lock().unwrap().keys().unwrap().is_some();
        crate::exchange::harness::until("the keys are saved", saved).await;
    }
    issuer.say(Says::Closed);
    let keys = open(dir.path());
    let (_want, mut all) = follow(&keys, &[&from]);
    told(&mut all, &from, &["a"]).await;
    let other = KeySource { ca: None, ..(*from).clone() };
    assert!(keys.0.entry(&Arc::new(other)).keys().is_none(), "by another authority's word");
}

#[tokio::test]
async fn an_issuer_that_no_policy_names_any_more_is_not_asked_again() {
    let issuer = Issuer::start(Says::Body(set(&["a"]))).await;
    let (from, keys) = (issuer.source(), keys(local()));
    let (want, mut all) = follow(&keys, &[&from]);
    told(&mut all, &from, &["a"]).await;
    want.send_replace(BTreeSet::new());
    all.wait_for(FetchedKeys::is_empty).await.unwrap();
    assert!(keys.0.entries.read().unwrap().is_empty() && keys.shown().as_array().unwrap().is_empty());
}

#[tokio::test]
async fn metrics_and_config_show_how_the_keys_stand() {
    let issuer = Issuer::start(Says::Body(set(&["a"]))).await;
    let (from, observe) = (issuer.source(), observer());
    let keys = Keys::new(local(), observe.clone(), None);
    let (_want, mut all) = follow(&keys, &[&from]);
    told(&mut all, &from, &["a"]).await;
    issuer.say(Says::Closed);
    keys.0.fetch(&keys.0.entry(&from)).await;
    observe.keys_age(&keys.ages());
    let text = observe.render();
    for line in [
        format!("equerry_jwks_age_seconds{{issuer=\"{}\"}} 0", from.issuer),
        format!("equerry_jwks_fetches_total{{issuer=\"{}\",outcome=\"ok\"}} 1", from.issuer),
        format!("equerry_jwks_fetches_total{{issuer=\"{}\",outcome=\"tls\"}} 1", from.issuer),
    ] {
        assert!(text.contains(&line), "{line}\n{text}");
    }
    let shown = &keys.shown()[0];
    assert_eq!((&shown["state"], &shown["problem"], &shown["keys"][0]), (&"stale".into(), &"tls".into(), &"a".into()));
}
