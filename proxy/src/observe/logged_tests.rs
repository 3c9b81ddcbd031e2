//! What a policy asks the access log to say, and what it never says.

use std::sync::Arc;

use equerry_policies::names::AccountName;
use equerry_policies::policy::{Labels, Meaning, Mesh};
use equerry_policies::view::{self, WorkloadFacts};
use equerry_policies::{compile, document, interpret, policy};
use http::HeaderMap;
use serde_json::{Value, json};

use super::*;

/// The access log of a mesh with this in its `Mesh` document.
fn asked(access_log: &str) -> Arc<AccessLog> {
    let yaml = format!(
        "{{apiVersion: equerry.dev/v1, kind: Mesh, metadata: {{name: default}}, spec: {{accessLog: {access_log}}}}}"
    );
    let documents = document::read("mesh.yaml", &yaml).unwrap();
    compiled(&interpret::interpret(&documents).unwrap())
}

fn compiled(meaning: &Meaning) -> Arc<AccessLog> {
    let facts =
        WorkloadFacts { account: AccountName::parse("shop/orders").unwrap(), labels: Labels::new(), ports: vec![8080] };
    compile::workload(&view::workload(meaning, &facts)).unwrap().access_log.unwrap()
}

fn told_of(logged: &Logged, query: Option<&str>, masks: &Masks) -> Value {
    let mut all = serde_json::Map::new();
    logged.tell(query, masks, |title, list| {
        all.insert(title.to_owned(), list.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect());
    });
    Value::Object(all)
}

fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, value.parse().unwrap());
    }
    headers
}

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2ln";

#[test]
fn what_is_asked_for_is_told_by_name_and_nothing_else() {
    let asked = asked(
        "{requestHeaders: [{name: X-Tenant}, {name: accept}], responseHeaders: [{name: x-cache}],
          queryParameters: [{name: page}], claims: [{name: sub}, {name: '[realm][roles]'}, {name: email}]}",
    );
    let request = headers(&[("x-tenant", "acme"), ("x-tenant", "other"), ("x-user", "ann"), ("authorization", TOKEN)]);
    let mut logged = Logged::of(&asked, &request);
    let claims = json!({"sub": "ann", "realm": {"roles": ["a", "b"]}, "name": "Ann"});
    logged.claims(|path| path.iter().try_fold(&claims, |value, part| value.get(&**part)));
    logged.answered(&headers(&[("x-cache", "hit"), ("set-cookie", "a=b")]));
    let seen = told_of(&logged, Some("page=2&size=10&page=%33"), &Masks::new());
    assert_eq!(
        seen,
        json!({
            "request_headers": {"x-tenant": "acme, other"},
            "response_headers": {"x-cache": "hit"},
            "query_parameters": {"page": "2, 3"},
            "claims": {"sub": "ann", "realm.roles": "[\"a\",\"b\"]"},
        })
    );
}

#[test]
fn what_lets_somebody_in_is_masked_by_its_name_and_by_its_shape() {
    let asked = asked(
        "{requestHeaders: [{name: authorization}, {name: cookie}, {name: x-api-key}, {name: x-note}, {name: referer}],
          responseHeaders: [{name: set-cookie}, {name: location}],
          queryParameters: [{name: access_token}, {name: q}], claims: [{name: refresh_token}]}",
    );
    let mut logged = Logged::of(
        &asked,
        &headers(&[
            ("authorization", "Bearer sesame"),
            ("cookie", "sid=sesame"),
            ("x-api-key", "sesame"),
            ("x-note", TOKEN),
            ("referer", "https://shop/cart?access=sesame#sesame"),
        ]),
    );
    logged.answered(&headers(&[("set-cookie", "sid=sesame"), ("location", "/next?code=sesame")]));
    let claims = json!({"refresh_token": "sesame"});
    logged.claims(|path| claims.get(&*path[0]));
    let query = format!("access%5Ftoken=sesame&q={TOKEN}");
    let seen = told_of(&logged, Some(&query), &Masks::new());
    let text = seen.to_string();
    assert!(!text.contains("sesame") && !text.contains("eyJ"), "{text}");
    assert_eq!(seen["request_headers"]["authorization"], "***", "that it was there is told");
    assert_eq!(seen["request_headers"]["referer"], "https://shop/cart?***");
    assert_eq!(seen["response_headers"]["location"], "/next?***");
    assert_eq!(seen["query_parameters"]["access_token"], "***");
    assert!(!format!("{logged:?}").contains("sesame"), "{logged:?}");
}

#[test]
fn a_cookie_is_told_by_itself_and_masked_unless_somebody_asked_for_a_harmless_one() {
    let asked = asked(
        "{cookies: [{name: theme, show: VALUE}, {name: basket}, {name: sid, show: HASH}, {name: Theme, show: VALUE}, {name: other, show: VALUE}]}",
    );
    let sent =
        headers(&[("cookie", "theme=dark; basket=sesame;sid=sesame"), ("cookie", "theme=\"light\"; unasked=sesame")]);
    let masks = Masks::new();
    let seen = told_of(&Logged::of(&asked, &sent), None, &masks);
    let hash = seen["cookies"]["sid"].as_str().unwrap().to_owned();
    assert_eq!(seen, json!({"cookies": {"theme": "dark, light", "basket": "***", "sid": hash}}));
    assert!(hash.starts_with('#') && !seen.to_string().contains("sesame"), "{seen}");
    let token = headers(&[("cookie", &format!("theme={TOKEN}"))]);
    assert_eq!(told_of(&Logged::of(&asked, &token), None, &masks), json!({"cookies": {"theme": "***"}}));
}

#[test]
fn a_proxy_masks_what_a_control_plane_would_have_it_show() {
    let lists = "\"requestHeaders\":[{\"name\":\"authorization\",\"show\":\"VALUE\"}],\
                 \"cookies\":[{\"name\":\"sid\",\"show\":\"VALUE\"}],\
                 \"queryParameters\":[{\"name\":\"access_token\",\"show\":\"VALUE\"}]";
    let careless: policy::AccessLog = serde_json::from_str(&format!("{{{lists}}}")).unwrap();
    let mesh = Mesh { access_log: Some(Box::new(careless)), ..Mesh::default() };
    let asked = compiled(&Meaning { mesh, ..Meaning::default() });
    let logged = Logged::of(&asked, &headers(&[("authorization", "sesame"), ("cookie", "sid=sesame")]));
    let seen = told_of(&logged, Some("access_token=sesame"), &Masks::new());
    let (header, parameter, cookie) =
        (json!({"authorization": "***"}), json!({"access_token": "***"}), json!({"sid": "***"}));
    assert_eq!(seen, json!({"request_headers": header, "query_parameters": parameter, "cookies": cookie}));
}

#[test]
fn a_hash_tells_equal_values_of_one_process_and_no_more() {
    let asked = asked(
        "{requestHeaders: [{name: x-user, show: HASH}, {name: authorization, show: HASH}, {name: x-tenant, show: MASK}],
          claims: [{name: sub, show: HASH}]}",
    );
    let of = |user: &str| {
        let sent = headers(&[("x-user", user), ("x-tenant", "acme"), ("authorization", "Bearer sesame")]);
        let mut logged = Logged::of(&asked, &sent);
        let claims = json!({"sub": user});
        logged.claims(|path| claims.get(&*path[0]));
        logged
    };
    let (masks, others) = (Masks::new(), Masks::new());
    let (ann, again, bob) =
        (told_of(&of("ann"), None, &masks), told_of(&of("ann"), None, &masks), told_of(&of("bob"), None, &masks));
    assert_eq!(ann, again);
    assert_eq!(ann["request_headers"]["x-user"], ann["claims"]["sub"], "whatever it is called");
    assert_ne!(ann["request_headers"]["x-user"], bob["request_headers"]["x-user"]);
    assert_ne!(ann, told_of(&of("ann"), None, &others), "another process has another key");
    let hash = ann["request_headers"]["x-user"].as_str().unwrap();
    assert!(hash.len() == 13 && hash.starts_with('#') && hash[1..].bytes().all(|c| c.is_ascii_hexdigit()), "{hash}");
    assert_eq!(ann["request_headers"]["x-tenant"], "***");
    assert!(!ann.to_string().contains("sesame"), "{ann}");
}

#[test]
fn long_values_and_many_are_cut() {
    let asked = asked("{requestHeaders: [{name: x-note}], queryParameters: [{name: q}]}");
    let logged = Logged::of(&asked, &headers(&[("x-note", &"x".repeat(10_000))]));
    let query = "q=é&".repeat(1_000);
    let seen = told_of(&logged, Some(&query), &Masks::new());
    assert_eq!(seen["request_headers"]["x-note"].as_str().unwrap().chars().count(), LONGEST + 1);
    assert_eq!(seen["query_parameters"]["q"].as_str().unwrap().matches('é').count(), MOST_VALUES);
}
