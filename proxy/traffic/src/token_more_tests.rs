//! Tokens in other places, claims that are asked for, keys that are fetched, and what a token let in.

use equerry_policies::compile::keys::read_published;
use equerry_policies::compile::{FetchedKeys, KeySource};
use equerry_policies::policy::{self, FETCH_TIMEOUT, RequiredClaim, TokenPlace};
use http::Request;

use super::*;
use crate::normalize::{Direction, normalize};

/// What became of a request, and what is forwarded of it.
struct Forwarded {
    outcome: Result<Caller, Refusal>,
    headers: HeaderMap,
    target: String,
}

fn send(workload: &CompiledWorkload, target: &str, headers: &[(&str, &str)]) -> Forwarded {
    let mut request = Request::get(target).header("host", "orders");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut parts = request.body(()).unwrap().into_parts().0;
    let mut normal = normalize(&mut parts, Direction::Inbound { mesh_peer: true, trusted_hops: 0 }).unwrap();
    let shown = Shown { headers: &mut parts.headers, normal: Some(&mut normal) };
    let outcome = verify(workload, 8080, shown, None, now());
    Forwarded { outcome, headers: parts.headers, target: normal.target().to_string() }
}

fn reason(outcome: &Result<Caller, Refusal>) -> Reason {
    outcome.as_ref().map_or_else(Refusal::reason, |caller| {
        if caller.issuer().is_some() { Reason::Ok } else { Reason::TokenMissing }
    })
}

fn placed(places: &[TokenPlace], forward: bool) -> CompiledWorkload {
    workload(vec![(None, JwtRule { places: places.to_vec(), forward, ..rule(true) })])
}

fn in_header(name: &str, prefix: &str) -> TokenPlace {
    TokenPlace::Header { name: name.to_owned(), prefix: prefix.to_owned() }
}

#[test]
fn a_token_is_taken_from_where_the_rule_says_and_from_nowhere_else() {
    let token = es256(&claims());
    let bearer = format!("Bearer {token}");
    let cookie = format!("theme=dark; session={token}; lang=de");
    let (in_query, hidden) = (format!("/a?x=1&access_token={token}&y=2"), format!("/a?access%5Ftoken={token}"));
    let header = [in_header("x-jwt", "")];
    let prefixed = [in_header("x-jwt", "JWT ")];
    let (cookies, query) = ([TokenPlace::Cookie("session".into())], [TokenPlace::Query("access_token".into())]);
    let nothing: &[(&str, &str)] = &[];
    for (what, places, target, headers, expected) in [
        ("Authorization", &[][..], "/a", &[("authorization", bearer.as_str())][..], Reason::Ok),
        ("a header", &header, "/a", &[("x-jwt", &token)], Reason::Ok),
        ("a header with its prefix", &prefixed, "/a", &[("x-jwt", &format!("JWT {token}"))], Reason::Ok),
        ("a header without its prefix", &prefixed, "/a", &[("x-jwt", &token)], Reason::TokenMissing),
        ("several words", &[in_header("authorization", "")], "/a", &[("authorization", &bearer)], Reason::TokenMissing),
        ("Authorization, when a header is meant", &header, "/a", &[("authorization", &bearer)], Reason::TokenMissing),
        ("a header twice", &header, "/a", &[("x-jwt", &token), ("x-jwt", &token)], Reason::TokenInvalid),
        ("a cookie", &cookies, "/a", &[("cookie", &cookie)], Reason::Ok),
        ("a cookie in a second line", &cookies, "/a", &[("cookie", "a=b"), ("cookie", &cookie)], Reason::Ok),
        ("a cookie twice", &cookies, "/a", &[("cookie", &cookie), ("cookie", "session=x")], Reason::TokenInvalid),
        ("an empty cookie", &cookies, "/a", &[("cookie", "session=")], Reason::TokenMissing),
        (
            "a cookie of a longer name",
            &cookies,
            "/a",
            &[("cookie", &format!("xsession={token}"))],
            Reason::TokenMissing,
        ),
        ("the query", &query, &in_query, nothing, Reason::Ok),
        ("the query under an encoded name", &query, &hidden, nothing, Reason::Ok),
        ("the query twice", &query, &format!("{in_query}&access_token=x"), nothing, Reason::TokenInvalid),
        ("no query", &query, "/a", nothing, Reason::TokenMissing),
    ] {
        let sent = send(&placed(places, false), target, headers);
        assert_eq!(reason(&sent.outcome), expected, "{what}: {:?}", sent.outcome);
    }
}

#[test]
fn two_tokens_in_one_request_are_refused_whosesoever_they_are() {
    let token = es256(&claims());
    let places = [in_header("authorization", "Bearer "), TokenPlace::Cookie("session".into())];
    let (bearer, cookie) = (format!("Bearer {token}"), format!("session={token}"));
    let both = send(&placed(&places, false), "/", &[("authorization", &bearer), ("cookie", &cookie)]);
    assert_eq!(reason(&both.outcome), Reason::TokenInvalid);
    assert!(both.outcome.unwrap_err().to_string().contains("more than one token"));
    assert!(send(&placed(&places, false), "/", &[("cookie", &cookie)]).outcome.is_ok());
    // Of another rule too: the first one does not look into cookies.
    let rules = workload(vec![
        (None, rule(true)),
        (
            None,
            JwtRule {
                issuer: "https://other".into(),
                places: vec![TokenPlace::Cookie("session".into())],
                ..rule(false)
            },
        ),
    ]);
    let both = send(&rules, "/", &[("authorization", &bearer), ("cookie", &cookie)]);
    assert_eq!(reason(&both.outcome), Reason::TokenInvalid);
    let misplaced = send(&rules, "/", &[("cookie", &cookie)]);
    assert_eq!(reason(&misplaced.outcome), Reason::TokenInvalid, "a token of one issuer in the other's place");
}

#[test]
fn the_application_sees_the_token_only_when_the_rule_forwards_it() {
    let token = es256(&claims());
    let bearer = format!("Bearer {token}");
    let cookies = [("cookie", "a=b".to_owned()), ("cookie", format!("theme=dark;session={token} ; lang=de"))];
    let cookies: Vec<(&str, &str)> = cookies.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let target = format!("/a?x=1&access_token={token}&y=%20");
    for forward in [false, true] {
        let sent = send(&placed(&[], forward), "/", &[("authorization", &bearer)]);
        assert!(sent.outcome.is_ok() && sent.headers.contains_key("authorization") == forward);
        let sent = send(&placed(&[TokenPlace::Cookie("session".into())], forward), "/", &cookies);
        let left: Vec<_> = sent.headers.get_all("cookie").iter().map(|value| value.to_str().unwrap()).collect();
        if forward {
            assert_eq!(left, [cookies[0].1, cookies[1].1]);
        } else {
            assert_eq!(left, ["a=b", "theme=dark; lang=de"]);
        }
        let sent = send(&placed(&[TokenPlace::Query("access_token".into())], forward), &target, &[]);
        assert_eq!(sent.target, if forward { target.clone() } else { "/a?x=1&y=%20".to_owned() });
        let alone = format!("/a?access_token={token}");
        let sent = send(&placed(&[TokenPlace::Query("access_token".into())], forward), &alone, &[]);
        assert_eq!(sent.target, if forward { alone } else { "/a".to_owned() });
    }
}

#[test]
fn a_token_that_was_believed_in_one_place_is_judged_anew_in_another() {
    let cookie =
        JwtRule { places: vec![TokenPlace::Cookie("session".into())], audiences: vec!["x".into()], ..rule(false) };
    let header = JwtRule { audiences: vec!["orders".into()], ..rule(false) };
    let only_x = es256(&with(json!({"aud": "x"})));
    let workload = Arc::new(workload(vec![(None, cookie), (None, header)]));
    let mut believed = Believed::default();
    let mut ask = |name: &'static str, value: String| {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        let outcome = verify_remembering(&mut believed, &workload, 8080, Shown::headers(&mut headers), None, now);
        reason(&outcome)
    };
    assert_eq!(ask("cookie", format!("session={only_x}")), Reason::Ok);
    assert_eq!(ask("authorization", format!("Bearer {only_x}")), Reason::TokenAudience);
    assert_eq!(ask("cookie", format!("session={only_x}")), Reason::Ok);
}

#[test]
fn claims_that_are_asked_for_must_be_there_with_one_of_their_values() {
    let required = |claim: &[&str], values: &[&str]| RequiredClaim {
        claim: claim.iter().map(|part| (*part).to_owned()).collect(),
        values: values.iter().map(|value| (*value).to_owned()).collect(),
    };
    for (what, claims_wanted, expected) in [
        ("any value", vec![required(&["tenant"], &[])], Reason::Ok),
        ("one of several", vec![required(&["tenant"], &["globex", "acme"])], Reason::Ok),
        ("a number", vec![required(&["level"], &["3"])], Reason::Ok),
        ("a member of a list", vec![required(&["realm", "roles"], &["b"])], Reason::Ok),
        ("another value", vec![required(&["tenant"], &["globex"])], Reason::TokenInvalid),
        ("no member of a list", vec![required(&["realm", "roles"], &["c"])], Reason::TokenInvalid),
        ("not there", vec![required(&["email_verified"], &[])], Reason::TokenInvalid),
        ("one of two", vec![required(&["tenant"], &["acme"]), required(&["nothing"], &[])], Reason::TokenInvalid),
    ] {
        let rules = workload(vec![(None, JwtRule { required_claims: claims_wanted, ..rule(true) })]);
        let bearer = format!("Bearer {}", es256(&claims()));
        let sent = send(&rules, "/", &[("authorization", &bearer)]);
        assert_eq!(reason(&sent.outcome), expected, "{what}: {:?}", sent.outcome);
    }
}

#[test]
fn the_clocks_may_be_apart_as_far_as_the_rule_says() {
    for (skew, ended, expected) in
        [(0, 0, Reason::TokenExpired), (0, -1, Reason::Ok), (300, 299, Reason::Ok), (300, 300, Reason::TokenExpired)]
    {
        let rules = workload(vec![(None, JwtRule { clock_skew: Duration::from_secs(skew), ..rule(true) })]);
        let exp = i64::try_from(NOW).unwrap() - ended;
        let bearer = format!("Bearer {}", es256(&with(json!({"exp": exp, "iat": NOW - 900}))));
        assert_eq!(reason(&send(&rules, "/", &[("authorization", &bearer)]).outcome), expected, "{skew} {ended}");
    }
}

fn fetching(change: impl FnOnce(&mut JwtRule)) -> CompiledWorkload {
    let uri = "https://issuer/keys".to_owned();
    let mut rule = JwtRule {
        jwks: String::new(),
        fetched: Some(policy::FetchedKeys { uri, ca: None, timeout: FETCH_TIMEOUT }),
        ..rule(true)
    };
    change(&mut rule);
    workload(vec![(None, rule)])
}

fn fetched(workload: &CompiledWorkload, set: &Value) -> CompiledWorkload {
    let source: &Arc<KeySource> = workload.tokens.sources().next().unwrap();
    let keys = read_published(&set.to_string()).unwrap().0;
    workload.with_fetched(&FetchedKeys::from([(Arc::clone(source), keys.into())]))
}

#[test]
fn keys_that_were_never_fetched_make_no_token_bad() {
    let rules = fetching(|_| {});
    let bearer = format!("Bearer {}", es256(&claims()));
    let refusal = send(&rules, "/", &[("authorization", &bearer)]).outcome.unwrap_err();
    assert_eq!((refusal.reason(), refusal.status().as_u16()), (Reason::KeysUnavailable, 503));
    assert!(refusal.wants_keys().is_some_and(|from| from.url.as_str() == "https://issuer/keys"));
    // A token that no key could save is bad.
    let expired = format!("Bearer {}", es256(&with(json!({"exp": 1}))));
    let refusal = send(&rules, "/", &[("authorization", &expired)]).outcome.unwrap_err();
    assert_eq!((refusal.reason(), refusal.wants_keys().is_some()), (Reason::TokenExpired, false));
    assert_eq!(reason(&send(&rules, "/", &[]).outcome), Reason::TokenMissing);
}

#[test]
fn a_key_that_is_not_known_is_asked_for_and_believed_once_it_is_published() {
    let rules = fetching(|_| {});
    let before = fetched(&rules, &json!({"keys": [ec_jwk("old", "P-256", &KEYS.other_ec)]}));
    let bearer = format!("Bearer {}", es256(&claims()));
    let refusal = send(&before, "/", &[("authorization", &bearer)]).outcome.unwrap_err();
    assert_eq!((refusal.reason(), refusal.wants_keys().is_some()), (Reason::TokenUnknownKey, true));
    let after = fetched(&before, &json!({"keys": [ec_jwk("ec", "P-256", &KEYS.ec)]}));
    assert!(send(&after, "/", &[("authorization", &bearer)]).outcome.is_ok());
    let forged = format!("{}x", &bearer[..bearer.len() - 1]);
    let refusal = send(&after, "/", &[("authorization", &forged)]).outcome.unwrap_err();
    assert_eq!((refusal.reason(), refusal.wants_keys().is_some()), (Reason::TokenInvalid, false), "a known key");
}

#[test]
fn what_a_token_let_in_ends_with_it_only_where_the_rule_says_so() {
    for ends in [false, true] {
        let rules =
            fetched(&fetching(|rule| rule.end_streams_with_token = ends), &serde_json::from_str(&jwks()).unwrap());
        let bearer = format!("Bearer {}", es256(&claims()));
        let caller = send(&rules, "/", &[("authorization", &bearer)]).outcome.unwrap();
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW + 300 + 60);
        assert_eq!((caller.ends_with_token(), caller.ends_at(&rules, 8080)), (ends, ends.then_some(end)));
        let said = |rules: &CompiledWorkload, at| caller.still_believed(rules, 8080, at).map_err(|why| why.reason());
        assert_eq!(said(&rules, now()), Ok(()));
        assert_eq!(said(&rules, end), if ends { Err(Reason::TokenExpired) } else { Ok(()) });
        let withdrawn = fetched(&rules, &json!({"keys": [ec_jwk("new", "P-256", &KEYS.other_ec)]}));
        assert_eq!(said(&withdrawn, now()), if ends { Err(Reason::TokenUnknownKey) } else { Ok(()) });
        assert_eq!(said(&rules.with_fetched(&FetchedKeys::new()), now()), Ok(()), "nobody knows");
        let other = workload(vec![(None, JwtRule { audiences: vec!["elsewhere".into()], ..rule(true) })]);
        assert_eq!(said(&other, now()), Err(Reason::TokenAudience), "policy says otherwise now");
        let none = workload(vec![(None, JwtRule { issuer: "https://elsewhere".into(), ..rule(true) })]);
        assert_eq!(said(&none, now()), Err(Reason::TokenInvalid));
    }
}
