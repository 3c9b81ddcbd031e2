//! Join tokens, over a real store.

use equerry_policies::names::{TrustDomain, control_plane_id};

use super::*;
use crate::store::StoreOptions;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;
const TTL: Duration = Duration::from_secs(600);

fn now() -> SystemTime {
    NOW + Duration::from_secs(1_800_000_000)
}

fn by() -> By {
    By::name("test")
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("equerry.db"), &StoreOptions::default()).unwrap();
    (dir, store)
}

/// A key whose pin is this byte over and over.
fn key(byte: &str) -> Pin {
    Pin::parse(&byte.repeat(32)).unwrap()
}

async fn token(store: &Store) -> JoinToken {
    let pin = Pin::parse(&"0f".repeat(32)).unwrap();
    let account = AccountName::parse("shop/orders").unwrap();
    JoinToken::parse(&create_join(store, &pin, &account, TTL, by(), now()).await.unwrap()).unwrap()
}

#[tokio::test]
async fn a_join_token_lets_its_account_in_once() {
    let (_dir, store) = store();
    let token = token(&store).await;
    assert_eq!(look_at_join(&store, &token.credential(), now()).await.unwrap().to_string(), "shop/orders");
    let key = key("aa");
    assert_eq!(spend_join(&store, &token.credential(), &key, now()).await.unwrap().to_string(), "shop/orders");
    let again = spend_join(&store, &token.credential(), &key, now() + TTL * 2).await.unwrap_err();
    assert!(matches!(&again, JoinRefusal::Used { at, .. } if *at == now()), "{again}");
    assert!(again.to_string().contains("equerry token create join --namespace shop --account orders"), "{again}");
}

#[tokio::test]
async fn whoever_used_a_token_may_show_it_again_with_the_same_key_while_it_lasts_and_nobody_else_may() {
    let (_dir, store) = store();
    let credential = token(&store).await.credential();
    let (ours, theirs) = (key("aa"), key("bb"));
    spend_join(&store, &credential, &ours, now()).await.unwrap();
    let entries = audit::head(&store).await.unwrap().seq;
    let soon = now() + Duration::from_secs(9);
    assert_eq!(look_at_join(&store, &credential, soon).await.unwrap().to_string(), "shop/orders");
    assert_eq!(spend_join(&store, &credential, &ours, soon).await.unwrap().to_string(), "shop/orders");
    assert_eq!(audit::head(&store).await.unwrap().seq, entries, "it is the same joining");
    let refused = spend_join(&store, &credential, &theirs, soon).await.unwrap_err();
    assert!(matches!(refused, JoinRefusal::Used { at, .. } if at == now()), "{refused}");
    assert!(look_at_join(&store, &credential, now() + TTL * 2).await.is_err(), "not when it would have expired");
    let state = list_join(&store, soon).await.unwrap()[0].state;
    assert_eq!(state, JoinTokenState::Used);
}

#[tokio::test]
async fn of_many_callers_with_one_token_exactly_one_gets_in() {
    let (_dir, store) = store();
    let credential = token(&store).await.credential();
    let results = futures_util::future::join_all((0..50).map(|caller| {
        let (store, credential, key) = (store.clone(), credential.clone(), key(&format!("{caller:02x}")));
        async move { spend_join(&store, &credential, &key, now()).await }
    }))
    .await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    assert_eq!(results.iter().filter(|r| matches!(r, Err(JoinRefusal::Used { .. }))).count(), 49);
}

#[tokio::test]
async fn expired_unknown_and_malformed_tokens_are_told_apart() {
    let (_dir, store) = store();
    let (one, other) = (token(&store).await, token(&store).await);
    assert!(
        spend_join(&store, &one.credential(), &key("aa"), now() + TTL).await.is_ok(),
        "the last moment still counts"
    );
    let late = spend_join(&store, &other.credential(), &key("aa"), now() + TTL + Duration::from_millis(1)).await;
    assert!(matches!(late, Err(JoinRefusal::Expired { .. })), "{late:?}");
    let (id, secret) = (one.id(), other.credential().split_once('.').unwrap().1.to_owned());
    let mixed = spend_join(&store, &format!("{id}.{secret}"), &key("aa"), now()).await;
    assert!(matches!(mixed, Err(JoinRefusal::Unknown { .. })), "a wrong secret learns nothing of the token: {mixed:?}");
    assert!(matches!(spend_join(&store, "", &key("aa"), now()).await, Err(JoinRefusal::Malformed(_))));
}

#[tokio::test]
async fn the_list_says_what_became_of_each_token_and_never_its_secret() {
    let (_dir, store) = store();
    let (used, waiting) = (token(&store).await, token(&store).await);
    spend_join(&store, &used.credential(), &key("aa"), now()).await.unwrap();
    let list = list_join(&store, now()).await.unwrap();
    let state = |id: &str| list.iter().find(|t| t.id == id).unwrap().state;
    assert_eq!((state(used.id()), state(waiting.id())), (JoinTokenState::Used, JoinTokenState::Unused));
    let shown = serde_json::to_string(&list).unwrap();
    assert!(!shown.contains(waiting.credential().split_once('.').unwrap().1), "{shown}");
    assert!(shown.contains("2027-01-15T08:10:00Z"), "{shown}");
    let later = list_join(&store, now() + TTL * 2).await.unwrap();
    assert!(later.iter().any(|t| t.state == JoinTokenState::Expired));
}

#[tokio::test]
async fn a_life_out_of_bounds_is_refused() {
    let (_dir, store) = store();
    let pin = Pin::parse(&"0f".repeat(32)).unwrap();
    let account = AccountName::parse("shop/orders").unwrap();
    for ttl in [Duration::ZERO, MAX_JOIN_TTL + Duration::from_secs(1)] {
        assert_eq!(create_join(&store, &pin, &account, ttl, by(), now()).await, Err(TokenError::BadTtl { asked: ttl }));
    }
}

#[tokio::test]
async fn nobody_gets_a_token_to_join_as_the_control_plane() {
    let (_dir, store) = store();
    let account = control_plane_id(TrustDomain::parse("equerry.local").unwrap()).account_name();
    let refused = create_join(&store, &Pin::parse(&"0f".repeat(32)).unwrap(), &account, TTL, by(), now()).await;
    assert_eq!(refused, Err(TokenError::Reserved { account }));
}

#[tokio::test]
async fn a_revoked_join_token_lets_nobody_in_and_says_so() {
    let (_dir, store) = store();
    let token = token(&store).await;
    assert_eq!(revoke_join(&store, token.id(), by(), now()).await.unwrap(), Some(true));
    assert_eq!(revoke_join(&store, token.id(), by(), now()).await.unwrap(), Some(false), "again: nothing to do");
    assert_eq!(revoke_join(&store, "00000000", by(), now()).await.unwrap(), None);
    let refused = spend_join(&store, &token.credential(), &key("aa"), now()).await.unwrap_err();
    assert!(matches!(&refused, JoinRefusal::Revoked { .. }), "{refused}");
    assert_eq!(list_join(&store, now()).await.unwrap()[0].state, JoinTokenState::Revoked);
}
