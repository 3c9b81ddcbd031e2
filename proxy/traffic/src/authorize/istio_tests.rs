//! The examples of Istio's documentation, with what it says of each.

use super::*;

fn of(peer: &'static str, method: Method, path: &'static str) -> Request {
    Request { peer: Some(peer), method, path, ..Request::default() }
}

const CURL: &str = "cluster.local/ns/default/sa/curl";
const TESTER: &str = "cluster.local/ns/test/sa/anybody";
const DEV: &str = "cluster.local/ns/dev/sa/anybody";

/// Reference, Authorization Policy: "requests from service account curl or from namespace test, to GET at paths of prefix /info
/// or POST at /data, when the request has a valid token issued by https://accounts.google.com".
#[test]
fn the_policy_that_opens_the_reference() {
    let workload = workload(&[(
        "httpbin",
        "{action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/curl]}}, {source: {namespaces: [test]}}], \
         to: [{operation: {methods: [GET], paths: ['/info*']}}, {operation: {methods: [POST], paths: [/data]}}], \
         when: [{key: 'request.auth.claims[iss]', values: ['https://accounts.google.com']}]}]}",
    )]);
    let google = Some(json!({"iss": "https://accounts.google.com", "sub": "ada"}));
    let other = Some(json!({"iss": "https://login.example.com", "sub": "ada"}));
    for (passes, claims, request) in [
        (true, &google, of(CURL, Method::GET, "/info")),
        (true, &google, of(TESTER, Method::GET, "/info/more")),
        (true, &google, of(TESTER, Method::POST, "/data")),
        (false, &google, of(CURL, Method::POST, "/info")),
        (false, &google, of(CURL, Method::GET, "/data")),
        (false, &google, of(CURL, Method::POST, "/data/more")),
        (false, &google, of(DEV, Method::GET, "/info")),
        (false, &other, of(CURL, Method::GET, "/info")),
        (false, &None, of(CURL, Method::GET, "/info")),
    ] {
        let request = Request { claims: claims.clone(), ..request };
        assert_eq!(request.at(&workload).is_ok(), passes, "{request:?}");
    }
}

/// Reference: "denies requests from the dev namespace to the POST method"; "audits any GET requests to the path with the
/// prefix /user/profile".
#[test]
fn the_other_actions_of_the_reference() {
    let deny = workload(&[(
        "httpbin-deny",
        "{action: DENY, rules: [{from: [{source: {namespaces: [dev]}}], to: [{operation: {methods: [POST]}}]}]}",
    )]);
    assert_eq!(of(DEV, Method::POST, "/").at(&deny), refused("shop/httpbin-deny rules[0]"));
    assert!(of(DEV, Method::GET, "/").at(&deny).is_ok() && of(CURL, Method::POST, "/").at(&deny).is_ok());
    let audit = workload(&[(
        "audit",
        "{action: AUDIT, rules: [{to: [{operation: {methods: [GET], paths: ['/user/profile/*']}}]}]}",
    )]);
    let audited = |request: Request| request.noted(&audit).unwrap().audited.len();
    assert_eq!((audited(get("/user/profile/ada")), audited(get("/user"))), (1, 0));
}

/// Task, Explicit Deny: "denies requests if the header x-token value is not admin", then an ALLOW for /ip beside it.
#[test]
fn the_task_about_explicit_deny() {
    let no_token = "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}], when: [{key: 'request.headers[x-token]', notValues: \
                    [admin]}]}]}";
    let workload =
        workload(&[("deny-method-get", no_token), ("allow-path-ip", "{rules: [{to: [{operation: {paths: [/ip]}}]}]}")]);
    for (passes, path, token) in [
        (false, "/ip", None),
        (false, "/ip", Some("guest")),
        (true, "/ip", Some("admin")),
        (false, "/get", Some("admin")),
    ] {
        let lines: Vec<(&str, &str)> = token.map(|token| ("x-token", token)).into_iter().collect();
        assert_eq!(get(path).headers(&lines).at(&workload).is_ok(), passes, "{path} {token:?}");
    }
}

/// Task, JWT Token: a rule on `requestPrincipals` demands a token, one on a claim that is a list looks at each member; the same
/// demanded by a DENY with `notRequestPrincipals: ["*"]`, for one path alone.
#[test]
fn the_task_about_tokens() {
    let token = |claims| Request { claims: Some(claims), ..get("/headers") };
    let ada = || token(json!({"sub": "ada", "groups": ["group1", "group2"]}));
    let require =
        workload(&[("require-jwt", "{rules: [{from: [{source: {requestPrincipals: [https://issuer/ada]}}]}]}")]);
    assert!(ada().at(&require).is_ok() && get("/headers").at(&require).is_err());
    let groups = "{rules: [{from: [{source: {requestPrincipals: [https://issuer/ada]}}], when: [{key: 'request.auth.claims[groups]', values: \
                  [group1]}]}]}";
    let groups = workload(&[("require-jwt", groups)]);
    assert!(ada().at(&groups).is_ok() && token(json!({"sub": "ada", "groups": ["group3"]})).at(&groups).is_err());
    let deny = "{action: DENY, rules: [{from: [{source: {notRequestPrincipals: ['*']}}], to: [{operation: {paths: [/headers]}}]}]}";
    let deny = workload(&[("frontend-ingress", deny)]);
    assert!(ada().at(&deny).is_ok() && get("/headers").at(&deny).is_err() && get("/ip").at(&deny).is_ok());
}

/// Task, TCP Traffic: "allow requests to port 9000 and 9001"; an HTTP field beside them makes the ALLOW rule "invalid, Istio
/// ignores it", and of a DENY rule Istio keeps the ports.
#[test]
fn the_task_about_tcp_traffic() {
    let on = |policy: &str, port: u16| {
        Request { port, ..Request::default() }.connects(&workload(&[("tcp-policy", policy)])).is_ok()
    };
    let passing = |policy: &str| [9000, 9001, 9002].map(|port| on(policy, port));
    assert_eq!(passing("{rules: [{to: [{operation: {ports: ['9000', '9001']}}]}]}"), [true, true, false]);
    assert_eq!(passing("{rules: [{to: [{operation: {methods: [GET], ports: ['9000']}}]}]}"), [false, false, false]);
    let deny = "{action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['9000']}}]}]}";
    assert_eq!(passing(deny), [false, true, true]);
}

/// Reference, Source and Operation: the two lists that exclude.
#[test]
fn the_exclusions_of_the_reference() {
    let source = "{from: [{source: {principals: [cluster.local/ns/prod/sa/admin, cluster.local/ns/test/sa/dev], namespaces: [prod, test], \
                  notIpBlocks: [10.1.2.3]}}]}";
    assert!(!matches(source, &from(Some("cluster.local/ns/prod/sa/admin"))), "the address is excluded");
    let elsewhere = source.replace("10.1.2.3", "203.0.113.4");
    assert!(matches(&elsewhere, &from(Some("cluster.local/ns/prod/sa/admin"))));
    assert!(!matches(&elsewhere, &from(Some("cluster.local/ns/prod/sa/dev"))));
    let operation = "{to: [{operation: {hosts: ['*.example.com'], methods: [GET, HEAD], notPaths: ['/admin*']}}]}";
    let at = |authority, path| Request { authority, path, ..Request::default() };
    assert!(matches(operation, &at("shop.example.com", "/")) && !matches(operation, &at("example.com", "/")));
    assert!(!matches(operation, &at("shop.example.com", "/admin")));
}
