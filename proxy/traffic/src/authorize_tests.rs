//! Authorization: Istio's corners one by one, in the words of its documentation where it has some.

use std::net::Ipv4Addr;

use equerry_policies::compile;
use equerry_policies::document;
use equerry_policies::interpret::interpret;
use equerry_policies::names::AccountName;
use equerry_policies::policy::Mesh;
use equerry_policies::view::{self, Scoped, WorkloadFacts};
use http::HeaderValue;
use serde_json::json;

use super::*;

#[path = "authorize/istio_tests.rs"]
mod istio;
#[path = "authorize/model_tests.rs"]
mod model;

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3));
const ORDERS: &str = "equerry.local/ns/shop/sa/orders";
const FRONTEND: &str = "equerry.local/ns/shop/sa/frontend";
const DEFAULT: &str = "Mesh.authorization.default";

/// A workload of namespace shop with these policies: NAME, and its `spec`.
fn workload(policies: &[(&str, &str)]) -> CompiledWorkload {
    workload_in("{}", policies)
}

fn workload_in(mesh: &str, policies: &[(&str, &str)]) -> CompiledWorkload {
    let mut text = format!("apiVersion: equerry.dev/v1\nkind: Mesh\nmetadata: {{name: default}}\nspec: {mesh}\n");
    for (name, spec) in policies {
        text.push_str(&format!(
            "---\napiVersion: equerry.dev/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
        ));
    }
    let documents = document::read("policies.yaml", &text).unwrap_or_else(|bad| panic!("{bad:#?}"));
    let meaning = interpret(&documents).unwrap_or_else(|bad| panic!("{bad:#?}"));
    let account = AccountName::parse("shop/inventory").unwrap();
    compile::workload(&view::workload(&meaning, &WorkloadFacts { account, labels: [].into(), ports: vec![8080] }))
        .unwrap()
}

/// A request as the tests ask about it.
#[derive(Debug, Clone)]
struct Request {
    peer: Option<&'static str>,
    claims: Option<serde_json::Value>,
    method: Method,
    authority: &'static str,
    path: &'static str,
    headers: HeaderMap,
    local_ip: Option<IpAddr>,
    sni: Option<&'static str>,
    port: u16,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            peer: Some(ORDERS),
            claims: None,
            method: Method::GET,
            authority: "inventory.shop:8080",
            path: "/",
            headers: HeaderMap::new(),
            local_ip: Some([10, 9, 9, 9].into()),
            sni: Some("p8080.inventory.shop.mesh"),
            port: 8080,
        }
    }
}

impl Request {
    fn headers(mut self, lines: &[(&'static str, &'static str)]) -> Self {
        for (name, value) in lines {
            self.headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        self
    }

    fn connection(&self) -> Connection<'_> {
        Connection { port: self.port, peer_ip: PEER, local_ip: self.local_ip, sni: self.sni }
    }

    fn ask<T>(&self, ask: impl FnOnce(&Caller, &Facts<'_>) -> T) -> T {
        let caller = Caller::assumed(self.peer, self.claims.clone());
        let (authority, path) = (self.authority, self.path);
        let facts =
            Facts { method: &self.method, authority, path, headers: &self.headers, connection: self.connection() };
        ask(&caller, &facts)
    }

    /// What allowed it, or what refused it.
    fn at(&self, workload: &CompiledWorkload) -> Result<String, String> {
        self.ask(|caller, facts| cause(authorize(caller, facts, workload), workload))
    }

    /// The same, of the connection alone.
    fn connects(&self, workload: &CompiledWorkload) -> Result<String, String> {
        self.ask(|caller, facts| cause(authorize_connection(caller, &facts.connection, workload), workload))
    }

    fn noted(&self, workload: &CompiledWorkload) -> Option<Noted> {
        self.ask(|caller, facts| note(caller, facts, workload, &authorize(caller, facts, workload)).map(|noted| *noted))
    }
}

fn cause(outcome: Result<Permit, Refusal>, workload: &CompiledWorkload) -> Result<String, String> {
    match outcome {
        Ok(permit) => Ok(permit.cause(workload)),
        Err(refusal) => Err(refusal.cause().unwrap().to_owned()),
    }
}

/// Whether the one rule of an ALLOW policy matches.
fn matches(rule: &str, request: &Request) -> bool {
    let allowed = request.at(&workload(&[("p", &format!("{{rules: [{rule}]}}"))])).is_ok();
    let denied = request.at(&workload(&[("p", &format!("{{action: DENY, rules: [{rule}]}}"))])).is_err();
    assert_eq!(allowed, denied, "a rule matches or does not, whatever follows from it: {rule}");
    allowed
}

fn get(path: &'static str) -> Request {
    Request { path, ..Request::default() }
}

fn from(peer: Option<&'static str>) -> Request {
    Request { peer, ..Request::default() }
}

fn ok(cause: &str) -> Result<String, String> {
    Ok(cause.to_owned())
}

fn refused(cause: &str) -> Result<String, String> {
    Err(cause.to_owned())
}

#[test]
fn without_policies_the_meshs_default_decides() {
    assert_eq!(Request::default().at(&workload(&[])), ok(DEFAULT));
    let deny = workload_in("{authorization: {default: DENY}}", &[]);
    assert_eq!(Request::default().at(&deny), refused(DEFAULT));
    let status = Request::default().ask(|caller, facts| authorize(caller, facts, &deny).unwrap_err().status());
    assert_eq!(status.as_u16(), 403);
}

#[test]
fn an_allow_policy_lets_pass_what_a_rule_matches_and_names_itself_otherwise() {
    let callers = workload(&[("callers", &format!("{{rules: [{{from: [{{source: {{principals: [{ORDERS}]}}}}]}}]}}"))]);
    assert_eq!(from(Some(ORDERS)).at(&callers), ok("shop/callers rules[0]"));
    assert_eq!(from(Some(FRONTEND)).at(&callers), refused("no rule of shop/callers matched"));
    assert_eq!(from(None).at(&callers), refused("no rule of shop/callers matched"));
    let two = workload(&[("a", "{}"), ("b", "{rules: [{to: [{operation: {methods: [POST]}}]}]}")]);
    assert_eq!(Request::default().at(&two), refused("no rule of shop/a, shop/b matched"));
}

#[test]
fn deny_is_asked_first_and_names_its_first_rule_that_matches() {
    let by = |principal: &str| format!("{{from: [{{source: {{principals: [{principal}]}}}}]}}");
    let get = "{to: [{operation: {methods: [GET]}}]}";
    let no = format!("{{action: DENY, rules: [{}, {get}, {}]}}", by(FRONTEND), by(ORDERS));
    let workload = workload(&[("all", "{rules: [{}]}"), ("no", &no)]);
    let post = |peer| Request { method: Method::POST, ..from(Some(peer)) };
    assert_eq!(from(Some(ORDERS)).at(&workload), refused("shop/no rules[1]"));
    assert_eq!(post(ORDERS).at(&workload), refused("shop/no rules[2]"));
    assert_eq!(post("equerry.local/ns/x/sa/y").at(&workload), ok("shop/all rules[0]"));
}

#[test]
fn empty_policies_and_empty_rules_mean_what_they_mean_in_istio() {
    let passes = |spec: &str| Request::default().at(&workload(&[("p", spec)])).is_ok();
    assert!(!passes("{}"), "spec: {{}} denies everything");
    assert!(passes("{rules: [{}]}"), "rules: [{{}}] allows everything");
    assert!(passes("{action: DENY}"), "DENY without rules denies nothing");
    assert!(!passes("{action: DENY, rules: [{}]}"), "DENY with an empty rule denies everything");
    assert!(passes("{action: AUDIT, rules: [{}]}"), "AUDIT decides nothing, and selects nothing");
}

#[test]
fn plain_text_has_no_principal_not_even_any_and_is_none_of_those_excluded() {
    let any = "{from: [{source: {principals: ['*']}}]}";
    assert!(matches(any, &from(Some(ORDERS))) && !matches(any, &from(None)));
    let not = "{from: [{source: {notPrincipals: ['*']}}]}";
    assert!(!matches(not, &from(Some(ORDERS))) && matches(not, &from(None)));
    let elsewhere = "{from: [{source: {notNamespaces: [shop]}}]}";
    assert!(!matches(elsewhere, &from(Some(ORDERS))) && matches(elsewhere, &from(None)));
    assert!(matches(elsewhere, &from(Some("equerry.local/ns/bank/sa/orders"))));
}

#[test]
fn who_speaks_is_asked_by_principal_namespace_account_and_trust_domain() {
    for (source, yes, no) in [
        ("principals: ['equerry.local/ns/shop/*']", ORDERS, "equerry.local/ns/bank/sa/orders"),
        ("principals: ['*/sa/orders']", ORDERS, FRONTEND),
        ("namespaces: [shop], notPrincipals: ['*/frontend']", ORDERS, FRONTEND),
        ("namespaces: ['sh*']", ORDERS, "equerry.local/ns/bank/sa/orders"),
        ("serviceAccounts: [orders]", ORDERS, "equerry.local/ns/bank/sa/orders"),
        ("serviceAccounts: [bank/orders, shop/frontend]", FRONTEND, ORDERS),
        ("notServiceAccounts: [orders]", FRONTEND, ORDERS),
        ("trustDomains: [equerry.local]", ORDERS, "other.local/ns/shop/sa/orders"),
        ("notTrustDomains: ['*.local']", "equerry.test/ns/shop/sa/orders", ORDERS),
    ] {
        let rule = format!("{{from: [{{source: {{{source}}}}}]}}");
        assert!(matches(&rule, &from(Some(yes))), "{source} {yes}");
        assert!(!matches(&rule, &from(Some(no))), "{source} {no}");
    }
}

#[test]
fn hosts_match_with_and_without_their_port_and_in_any_case() {
    let at = |authority| Request { authority, ..Request::default() };
    for (host, yes) in [
        ("orders.shop", true),
        ("Orders.Shop:8080", true),
        ("orders.shop:80", false),
        ("orders", false),
        ("ORDERS.*", true),
        ("*.shop", true),
    ] {
        let rule = format!("{{to: [{{operation: {{hosts: ['{host}']}}}}]}}");
        assert_eq!(matches(&rule, &at("orders.shop:8080")), yes, "{host}");
        let not = format!("{{to: [{{operation: {{notHosts: ['{host}']}}}}]}}");
        assert_eq!(matches(&not, &at("orders.shop:8080")), !yes, "not {host}");
    }
    let host_of = asked::host_of;
    assert_eq!((host_of("[::1]:80"), host_of("[::1]"), host_of("a:1"), host_of("a")), ("[::1]", "[::1]", "a", "a"));
}

#[test]
fn what_is_done_is_asked_by_method_path_and_port_and_what_is_excluded_narrows_it() {
    let cases = [
        ("methods: [GET], notPaths: ['/admin*']", get("/a"), get("/admin")),
        ("paths: ['/admin*'], notPaths: [/admin/health]", get("/admin/x"), get("/admin/health")),
        ("paths: [/]", get("/"), get("/a")),
        ("paths: ['*.json']", get("/a.json"), get("/a.json/b")),
        ("paths: ['/a/{*}']", get("/a/b"), get("/a/b/c")),
        ("paths: ['/a/{**}'], notPaths: ['/a/{*}/secret']", get("/a/b/c"), get("/a/b/secret")),
        ("notMethods: [POST]", get("/"), Request { method: Method::POST, ..get("/") }),
        ("methods: ['P*']", Request { method: Method::PUT, ..get("/") }, get("/")),
        ("ports: ['8080']", get("/"), Request { port: 9090, ..get("/") }),
        ("notPorts: ['8080']", Request { port: 9090, ..get("/") }, get("/")),
    ];
    for (operation, yes, no) in cases {
        let rule = format!("{{to: [{{operation: {{{operation}}}}}]}}");
        assert!(matches(&rule, &yes), "{operation}");
        assert!(!matches(&rule, &no), "{operation}");
    }
}

#[test]
fn each_value_of_a_header_is_looked_at_for_itself() {
    let role = |values: &str| format!("{{when: [{{key: 'request.headers[X-Role]', {values}}}]}}");
    let asked = |lines: &[(&'static str, &'static str)]| get("/").headers(lines);
    let two = asked(&[("x-role", "user"), ("x-role", "admin")]);
    assert!(matches(&role("values: [admin]"), &two), "the second is as good as the first");
    assert!(!matches(&role("notValues: [admin]"), &two), "and cannot hide behind it");
    assert!(!matches(&role("values: ['user,admin']"), &two), "they are not put together");
    assert!(matches(&role("values: ['ad*']"), &two) && matches(&role("values: ['*min']"), &two));
    assert!(!matches(&role("values: [Admin]"), &two), "values keep their case, names do not");
    assert!(matches(&role("values: ['*']"), &asked(&[("x-role", "")])), "presence, even of nothing");
    assert!(!matches(&role("values: ['*']"), &get("/")) && matches(&role("notValues: ['*']"), &get("/")));
    assert!(matches(&role("values: [user], notValues: [root]"), &two));
    let mut odd = get("/");
    odd.headers.insert("x-role", HeaderValue::from_bytes(b"admin\xff").unwrap());
    assert!(matches(&role("values: ['admin*']"), &odd), "what is no text is no way around a prefix");
}

#[test]
fn tokens_are_asked_by_principal_audience_presenter_and_claim() {
    let token = |claims| Request { claims: Some(claims), ..get("/") };
    let ada = token(json!({
        "sub": "ada", "aud": ["orders", "cart"], "azp": "web", "scope": "read write", "groups": ["dev", "ops"],
        "realm": {"role": "admin"}, "age": 36, "staff": true,
    }));
    let when = |key: &str, values: &str| format!("{{when: [{{key: '{key}', {values}}}]}}");
    for (key, values, yes) in [
        ("request.auth.principal", "values: [https://issuer/ada]", true),
        ("request.auth.principal", "values: [https://issuer/*]", true),
        ("request.auth.principal", "values: ['*/bob']", false),
        ("request.auth.audiences", "values: [cart]", true),
        ("request.auth.audiences", "notValues: [cart]", false),
        ("request.auth.presenter", "values: [web]", true),
        ("request.auth.claims[groups]", "values: [ops]", true),
        ("request.auth.claims[groups]", "values: [ops], notValues: [dev]", false),
        ("request.auth.claims[realm][role]", "values: ['adm*']", true),
        ("request.auth.claims[realm][other]", "values: ['*']", false),
        ("request.auth.claims[scope]", "values: [write]", true),
        ("request.auth.claims[scope]", "values: [read write]", false),
        ("request.auth.claims[age]", "values: ['36']", true),
        ("request.auth.claims[staff]", "values: ['true']", true),
    ] {
        assert_eq!(matches(&when(key, values), &ada), yes, "{key} {values}");
    }
    let nobody = "{from: [{source: {notRequestPrincipals: ['*']}}]}";
    assert!(matches(nobody, &get("/")) && !matches(nobody, &ada), "Istio's way to demand a token");
    let two_in_one = token(json!({"sub": "b/c"}));
    assert!(!matches("{from: [{source: {requestPrincipals: [https://issuer/b/c]}}]}", &two_in_one));
}

#[test]
fn addresses_are_those_of_the_direct_peer_of_whoever_is_behind_it_and_of_this_end() {
    let block = |text: &str, length| (text.parse().unwrap(), length);
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let contains = asked::contains;
    assert!(contains(block("10.1.0.0", 16), PEER) && !contains(block("10.2.0.0", 16), PEER));
    assert!(contains(block("0.0.0.0", 0), PEER) && contains(block("10.1.2.3", 32), PEER));
    assert!(!contains(block("10.1.2.2", 32), PEER) && contains(block("10.1.0.0", 16), ip("::ffff:10.1.2.3")));
    assert!(contains(block("fd00::", 8), ip("fd12::1")) && !contains(block("fd00::", 8), ip("fe80::1")));
    assert!(contains(block("::", 0), ip("::1")) && !contains(block("::", 0), PEER));

    let forwarded = get("/").headers(&[("x-forwarded-for", "192.0.2.9, 192.0.2.1")]);
    for rule in [
        "{from: [{source: {ipBlocks: [10.1.0.0/16]}}]}",
        "{from: [{source: {notIpBlocks: [10.2.0.0/16]}}]}",
        "{when: [{key: source.ip, values: [10.1.2.3]}]}",
        "{when: [{key: destination.ip, values: [10.9.9.9]}]}",
        "{when: [{key: destination.port, values: ['8080']}]}",
        "{when: [{key: connection.sni, values: ['*.shop.mesh']}]}",
        "{when: [{key: remote.ip, values: [10.1.2.3]}]}",
        "{from: [{source: {notRemoteIpBlocks: [192.0.2.0/24]}}]}",
    ] {
        assert!(matches(rule, &forwarded), "nobody is believed without trusted hops: {rule}");
    }
    let behind =
        |rule: &str| forwarded.at(&workload_in("{trustedHops: 1}", &[("p", &format!("{{rules: [{rule}]}}"))])).is_ok();
    assert!(behind("{from: [{source: {remoteIpBlocks: [192.0.2.1]}}]}"));
    assert!(!behind("{from: [{source: {remoteIpBlocks: [192.0.2.9]}}]}"), "what the client wrote itself");
    assert!(!behind("{when: [{key: remote.ip, notValues: [192.0.2.0/24]}]}"));
}

#[test]
fn a_policy_holds_on_its_ports_alone() {
    let text = "apiVersion: equerry.dev/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: ";
    let at = |spec: &str, ports| {
        let meaning = interpret(&document::read("p", &format!("{text}{spec}")).unwrap()).unwrap();
        let policy = meaning.authorization.into_values().next().unwrap();
        let mut view = view::workload(
            &equerry_policies::policy::Meaning { mesh: Mesh::default(), ..Default::default() },
            &WorkloadFacts { account: AccountName::parse("shop/a").unwrap(), labels: [].into(), ports: vec![] },
        );
        view.authorization = vec![Scoped { ports, policy }];
        Request::default().at(&compile::workload(&view).unwrap())
    };
    assert!(at("{action: DENY, rules: [{}]}", Some(vec![8080])).is_err());
    assert!(at("{action: DENY, rules: [{}]}", Some(vec![9090])).is_ok());
    assert!(at("{}", Some(vec![9090])).is_ok(), "no ALLOW policy selects this port");
}

#[test]
fn on_a_connection_an_allow_rule_about_http_never_matches_and_of_a_deny_rule_the_rest_decides() {
    let passes = |action: &str, rule: &str, peer| {
        from(Some(peer)).connects(&workload(&[("p", &format!("{{action: {action}, rules: [{rule}]}}"))])).is_ok()
    };
    let frontend = format!("from: [{{source: {{principals: [{FRONTEND}]}}}}]");
    let bare = format!("{{{frontend}, to: [{{operation: {{ports: ['8080']}}}}]}}");
    assert!(passes("ALLOW", &bare, FRONTEND) && !passes("ALLOW", &bare, ORDERS));
    assert!(!passes("DENY", &bare, FRONTEND) && passes("DENY", &bare, ORDERS));
    let to = |operation: &str| format!("{{{frontend}, to: [{{operation: {{ports: ['8080'], {operation}}}}}]}}");
    let when = |key: &str| format!("{{{frontend}, when: [{{key: '{key}', values: ['x']}}]}}");
    let about_http = [
        to("methods: [GET]"),
        to("paths: ['*']"),
        to("hosts: [db.shop]"),
        to("notMethods: [GET]"),
        to("notPaths: ['/{**}']"),
        format!("{{from: [{{source: {{principals: [{FRONTEND}], requestPrincipals: ['*']}}}}]}}"),
        format!("{{from: [{{source: {{principals: [{FRONTEND}], notRequestPrincipals: ['*']}}}}]}}"),
        when("request.headers[x-a]"),
        when("request.auth.claims[role]"),
        when("request.auth.audiences"),
        when("request.auth.principal").replace("'x'", "'*'"),
        format!("{{{frontend}, to: [{{operation: {{ports: ['8080']}}}}, {{operation: {{methods: [GET]}}}}]}}"),
    ];
    for rule in about_http {
        assert!(!passes("ALLOW", &rule, FRONTEND), "what is asked about is not there: {rule}");
        assert!(!passes("DENY", &rule, FRONTEND), "the rest matches: {rule}");
        assert!(passes("DENY", &rule, ORDERS), "the rest does not: {rule}");
    }
    let everything = "{to: [{operation: {methods: [GET]}}]}";
    assert!(!passes("DENY", everything, ORDERS), "of a rule about HTTP alone nothing is left that could miss");
    let of_connections = "{when: [{key: connection.sni, values: ['*.mesh']}, {key: source.ip, values: [10.1.0.0/16]}, {key: \
                          destination.port, values: ['8080']}]}";
    assert!(passes("ALLOW", of_connections, ORDERS) && !passes("DENY", of_connections, ORDERS));
}

#[test]
fn audit_notes_the_first_rule_of_each_policy_that_matches_and_changes_nothing() {
    let seen = workload(&[
        ("a", "{action: AUDIT, rules: [{to: [{operation: {methods: [POST]}}]}, {}, {}]}"),
        ("b", "{action: AUDIT, rules: [{to: [{operation: {methods: [POST]}}]}]}"),
        ("c", "{action: AUDIT, rules: [{}]}"),
    ]);
    let noted = get("/").noted(&seen).unwrap();
    let rules: Vec<&str> = noted.audited.iter().map(|(_, rule)| rule.as_str()).collect();
    assert_eq!(rules, ["shop/a rules[1]", "shop/c rules[0]"]);
    assert_eq!((noted.instead, noted.shadows), (None, vec![]));
    assert_eq!(get("/").at(&seen), ok(DEFAULT));
    assert_eq!(get("/").noted(&workload(&[("p", "{}")])), None, "nobody looks on");
}

#[test]
fn a_shadow_tells_what_it_would_change_and_changes_nothing() {
    let deny_post = ("deny-post", "{mode: shadow, action: DENY, rules: [{to: [{operation: {methods: [POST]}}]}]}");
    let only_get = ("only-get", "{mode: shadow, rules: [{to: [{operation: {methods: [GET]}}]}]}");
    let put = ("put", "{rules: [{to: [{operation: {methods: [PUT]}}]}]}");
    let asked = |method: Method| Request { method, ..get("/") };
    let told = |policies: &[(&str, &str)], method: Method| {
        let all = workload(policies);
        let shadows: Vec<(&str, &str)> = policies.iter().filter(|(_, spec)| spec.contains("shadow")).copied().collect();
        let enforced: Vec<(&str, &str)> = policies.iter().filter(|one| !shadows.contains(one)).copied().collect();
        let without = asked(method.clone()).at(&workload(&enforced));
        assert_eq!(asked(method.clone()).at(&all), without, "nothing of a shadow is enforced");
        let noted = asked(method).noted(&all).unwrap();
        let counted: Vec<String> =
            noted.shadows.iter().map(|(name, would)| format!("{name} {}", would.as_str())).collect();
        (noted.instead.map(|(_, cause)| cause), counted.join(", "))
    };
    let some = |cause: &str| Some(cause.to_owned());
    let case = |told: (Option<String>, String), instead: Option<String>, counted: &str| {
        assert_eq!(told, (instead, counted.to_owned()));
    };
    case(told(&[deny_post], Method::POST), some("shop/deny-post rules[0]"), "shop/deny-post would_deny");
    case(told(&[deny_post], Method::GET), None, "shop/deny-post no_change");
    case(told(&[only_get], Method::POST), some("no rule of shop/only-get matched"), "shop/only-get would_deny");
    case(told(&[only_get], Method::GET), None, "shop/only-get no_change");
    case(told(&[put, only_get], Method::GET), some("shop/only-get rules[0]"), "shop/only-get would_allow");
    case(told(&[put, only_get], Method::POST), None, "shop/only-get no_change");
    case(told(&[put, only_get], Method::PUT), None, "shop/only-get no_change");
    case(
        told(&[deny_post, only_get], Method::POST),
        some("shop/deny-post rules[0]"),
        "shop/deny-post would_deny, shop/only-get no_change",
    );
    let no = ("no", "{action: DENY, rules: [{}]}");
    case(told(&[no, only_get], Method::GET), None, "shop/only-get no_change");
}

#[test]
fn every_rule_is_told_with_the_first_thing_that_it_lacks() {
    let lacks = |rule: &str, request: &Request| {
        let workload = workload(&[("p", &format!("{{rules: [{rule}]}}"))]);
        let (steps, _) = request.ask(|caller, facts| crate::explain::authorization(caller, facts, &workload));
        assert_eq!(steps[0].subject, "ALLOW shop/p rules[0]");
        steps[0].because.clone()
    };
    let ada = Request { claims: Some(json!({"sub": "ada", "role": "user"})), ..get("/a/b") };
    for (rule, because) in [
        (
            "{from: [{source: {notPrincipals: ['*/sa/orders']}}]}",
            format!("the principal is {ORDERS}, and must not be */sa/orders"),
        ),
        (
            "{from: [{source: {namespaces: [bank]}}, {source: {serviceAccounts: [web]}}]}",
            "the namespace is shop, not bank; and the account is shop/orders, not shop/web".to_owned(),
        ),
        (
            "{from: [{source: {remoteIpBlocks: [192.0.2.0/24]}}]}",
            "the remote address is 10.1.2.3, not 192.0.2.0/24".to_owned(),
        ),
        ("{to: [{operation: {paths: ['/a/{*}/c'], methods: [GET]}}]}", "the path is /a/b, not /a/{*}/c".to_owned()),
        (
            "{to: [{operation: {paths: ['/a/*'], notPaths: ['/a/{**}']}}]}",
            "the path is /a/b, and must be /a/* but not /a/{**}".to_owned(),
        ),
        (
            "{when: [{key: 'request.headers[x-a]', values: [b, 'c*']}]}",
            "there is no header x-a, and it must be b or c*".to_owned(),
        ),
        (
            "{when: [{key: 'request.auth.claims[role]', values: [admin]}]}",
            "the claim role is user, not admin".to_owned(),
        ),
        (
            "{when: [{key: request.auth.audiences, values: [orders]}]}",
            "there is no audience, and it must be orders".to_owned(),
        ),
        (
            "{when: [{key: connection.sni, notValues: ['*.mesh']}]}",
            "the server name is p8080.inventory.shop.mesh, and must not be *.mesh".to_owned(),
        ),
    ] {
        assert_eq!(lacks(rule, &ada), because, "{rule}");
    }
    let over_tcp = workload(&[("p", "{rules: [{to: [{operation: {methods: [GET]}}]}]}")]);
    let (steps, _) = ada.ask(|caller, facts| crate::explain::connection(caller, &facts.connection, &over_tcp));
    assert_eq!(steps[0].because, "it asks about HTTP, which nobody looks for on this port");
}

#[test]
fn onlookers_and_pages_of_other_sites_are_told() {
    let seen = workload(&[("a", "{action: AUDIT, rules: [{}]}"), ("b", "{mode: shadow, action: DENY, rules: [{}]}")]);
    let (steps, outcome) = get("/").ask(|caller, facts| crate::explain::authorization(caller, facts, &seen));
    let told: Vec<String> = steps.iter().map(|step| format!("{}: {}", step.subject, step.because)).collect();
    assert!(outcome.is_ok());
    assert_eq!(
        told,
        [
            "AUDIT shop/a rules[0]: every part of it holds; it is noted",
            "shadow DENY shop/b rules[0]: every part of it holds; nothing of it is enforced",
            "Mesh.authorization.default: no ALLOW policy selects the workload here; the default is ALLOW",
            "shadow shop/b rules[0]: the request would be refused if it were enforced",
        ]
    );
}
