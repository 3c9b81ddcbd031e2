//! Authorization: Istio's corners one by one, and the index against a model that asks every rule.

use std::net::Ipv4Addr;

use equerry_policies::compile;
use equerry_policies::policy::{
    self, AuthorizationPolicy, AuthorizationRule, Condition, Mesh, MtlsMode, StringMatch, Target,
};
use equerry_policies::view::{Scoped, WorkloadView};
use http::HeaderMap;
use proptest::prelude::*;

use super::*;
use crate::token;

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3));

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.to_owned())
}

fn named(name: &str, action: Action, rules: Vec<AuthorizationRule>) -> Scoped<AuthorizationPolicy> {
    let policy = AuthorizationPolicy {
        name: PolicyName::parse(name).unwrap(),
        target: Target::Namespace,
        action,
        rules,
        origin: Origin::default(),
    };
    Scoped { ports: None, policy }
}

fn rule(from: Vec<policy::Source>, to: Vec<policy::Operation>) -> AuthorizationRule {
    AuthorizationRule { from, to, when: vec![], origin: Origin::default() }
}

fn from(principal: &str) -> policy::Source {
    policy::Source { principals: vec![exact(principal)], ..policy::Source::default() }
}

fn workload_with(policies: Vec<Scoped<AuthorizationPolicy>>, default: Verdict) -> CompiledWorkload {
    compile::workload(&WorkloadView {
        mesh: Mesh { authorization_default: default, ..Mesh::default() },
        services: vec![],
        peer: MtlsMode::Strict,
        peer_ports: vec![],
        tokens: vec![],
        authorization: policies,
        tenants: vec![],
    })
    .unwrap()
}

fn workload(policies: Vec<Scoped<AuthorizationPolicy>>) -> CompiledWorkload {
    workload_with(policies, Verdict::Allow)
}

/// A caller as the token stage makes one, without a token.
fn caller(peer: Option<&str>) -> Caller {
    let peer = peer.map(|peer| SpiffeId::parse(&format!("spiffe://{peer}")).unwrap());
    token::verify(&workload(vec![]), 80, &mut HeaderMap::new(), peer.as_ref(), std::time::SystemTime::UNIX_EPOCH)
        .unwrap()
}

fn facts<'a>(method: &'a Method, path: &'a str) -> Facts<'a> {
    Facts { method, authority: "orders.shop:8080", path, port: 8080, peer_ip: PEER }
}

fn outcome(
    policies: Vec<Scoped<AuthorizationPolicy>>,
    peer: Option<&str>,
    method: &Method,
    path: &str,
) -> Result<String, String> {
    let workload = workload(policies);
    match authorize(&caller(peer), &facts(method, path), &workload) {
        Ok(permit) => Ok(permit.cause(&workload)),
        Err(refusal) => Err(refusal.cause().unwrap().to_owned()),
    }
}

const ORDERS: &str = "equerry.local/ns/shop/sa/orders";
const FRONTEND: &str = "equerry.local/ns/shop/sa/frontend";

#[test]
fn without_policies_the_meshs_default_decides() {
    let caller = caller(Some(ORDERS));
    let facts = facts(&Method::GET, "/");
    let allow = workload_with(vec![], Verdict::Allow);
    assert_eq!(authorize(&caller, &facts, &allow).unwrap().cause(&allow), "Mesh.authorization.default");
    let refusal = authorize(&caller, &facts, &workload_with(vec![], Verdict::Deny)).unwrap_err();
    assert_eq!((refusal.cause(), refusal.status().as_u16()), (Some("Mesh.authorization.default"), 403));
}

#[test]
fn an_allow_policy_lets_pass_what_a_rule_matches_and_names_itself_otherwise() {
    let policies = || vec![named("shop/inventory-callers", Action::Allow, vec![rule(vec![from(ORDERS)], vec![])])];
    assert_eq!(outcome(policies(), Some(ORDERS), &Method::GET, "/"), Ok("shop/inventory-callers rules[0]".to_owned()));
    assert_eq!(
        outcome(policies(), Some(FRONTEND), &Method::GET, "/"),
        Err("no rule of shop/inventory-callers matched".to_owned())
    );
    assert_eq!(
        outcome(policies(), None, &Method::GET, "/"),
        Err("no rule of shop/inventory-callers matched".to_owned())
    );
    let two = vec![
        named("shop/a", Action::Allow, vec![]),
        named("shop/b", Action::Allow, vec![rule(vec![from(ORDERS)], vec![])]),
    ];
    assert_eq!(outcome(two, Some(FRONTEND), &Method::GET, "/"), Err("no rule of shop/a, shop/b matched".to_owned()));
}

#[test]
fn deny_is_asked_first_and_names_its_first_rule_that_matches() {
    let get = policy::Operation { methods: vec![exact("GET")], ..policy::Operation::default() };
    let policies = || {
        vec![
            named("shop/all", Action::Allow, vec![rule(vec![], vec![])]),
            named(
                "shop/no",
                Action::Deny,
                vec![
                    rule(vec![from(FRONTEND)], vec![]),
                    rule(vec![], vec![get.clone()]),
                    rule(vec![from(ORDERS)], vec![]),
                ],
            ),
        ]
    };
    assert_eq!(outcome(policies(), Some(ORDERS), &Method::GET, "/"), Err("shop/no rules[1]".to_owned()));
    assert_eq!(outcome(policies(), Some(ORDERS), &Method::POST, "/"), Err("shop/no rules[2]".to_owned()));
    assert_eq!(
        outcome(policies(), Some("equerry.local/ns/x/sa/y"), &Method::POST, "/"),
        Ok("shop/all rules[0]".to_owned())
    );
}

#[test]
fn empty_policies_and_empty_rules_mean_what_they_mean_in_istio() {
    let outcome = |action, rules| outcome(vec![named("shop/p", action, rules)], None, &Method::GET, "/").is_ok();
    assert!(!outcome(Action::Allow, vec![]), "spec: {{}} denies everything");
    assert!(outcome(Action::Allow, vec![rule(vec![], vec![])]), "rules: [{{}}] allows everything");
    assert!(outcome(Action::Deny, vec![]), "DENY without rules denies nothing");
    assert!(!outcome(Action::Deny, vec![rule(vec![], vec![])]), "DENY with an empty rule denies everything");
}

#[test]
fn plain_text_has_no_principal_not_even_any() {
    let any = policy::Source { principals: vec![StringMatch::Present], ..policy::Source::default() };
    let policies = || vec![named("shop/p", Action::Allow, vec![rule(vec![any.clone()], vec![])])];
    assert!(outcome(policies(), Some(ORDERS), &Method::GET, "/").is_ok());
    assert!(outcome(policies(), None, &Method::GET, "/").is_err());
}

#[test]
fn hosts_match_with_and_without_their_port_and_in_any_case() {
    for (host, passes) in
        [("orders.shop", true), ("Orders.Shop:8080", true), ("orders.shop:80", false), ("orders", false)]
    {
        let to = policy::Operation { hosts: vec![exact(host)], ..policy::Operation::default() };
        let policies = vec![named("shop/p", Action::Allow, vec![rule(vec![], vec![to])])];
        assert_eq!(outcome(policies, None, &Method::GET, "/").is_ok(), passes, "{host}");
    }
    assert_eq!((host_of("[::1]:80"), host_of("[::1]"), host_of("a:1"), host_of("a")), ("[::1]", "[::1]", "a", "a"));
}

#[test]
fn networks_contain_their_addresses_however_they_are_written() {
    let block = |text: &str, length| (text.parse().unwrap(), length);
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert!(contains(block("10.1.0.0", 16), PEER) && !contains(block("10.2.0.0", 16), PEER));
    assert!(
        contains(block("0.0.0.0", 0), PEER)
            && contains(block("10.1.2.3", 32), PEER)
            && !contains(block("10.1.2.2", 32), PEER)
    );
    assert!(contains(block("10.1.0.0", 16), ip("::ffff:10.1.2.3")));
    assert!(
        contains(block("fd00::", 8), ip("fd12::1"))
            && !contains(block("fd00::", 8), ip("fe80::1"))
            && contains(block("::", 0), ip("::1"))
    );
    assert!(!contains(block("::", 0), PEER));
}

#[test]
fn a_policy_holds_on_its_ports_alone() {
    let mut elsewhere = named("shop/p", Action::Deny, vec![rule(vec![], vec![])]);
    elsewhere.ports = Some(vec![9090]);
    assert!(outcome(vec![elsewhere.clone()], None, &Method::GET, "/").is_ok());
    elsewhere.policy.action = Action::Allow;
    elsewhere.policy.rules.clear();
    assert!(outcome(vec![elsewhere], None, &Method::GET, "/").is_ok(), "no ALLOW policy selects this port");
}

#[test]
fn a_claim_condition_needs_a_verified_claim() {
    let when = AuthorizationRule {
        when: vec![Condition { claim: vec!["group".to_owned()], values: vec![exact("admin")] }],
        ..rule(vec![], vec![])
    };
    assert!(outcome(vec![named("shop/p", Action::Allow, vec![when])], Some(ORDERS), &Method::GET, "/").is_err());
}

fn any_pattern(values: &'static [&'static str]) -> impl Strategy<Value = StringMatch> {
    (prop::sample::select(values), 0_u8..6).prop_map(|(text, form)| match form {
        0 => StringMatch::Present,
        1 => StringMatch::Prefix(text[..text.len() / 2].to_owned()),
        2 => StringMatch::Suffix(text[text.len() / 2..].to_owned()),
        _ => exact(text),
    })
}

const PRINCIPALS: &[&str] =
    &[ORDERS, FRONTEND, "equerry.local/ns/bank/sa/orders", "other.local/ns/shop/sa/orders", "not a principal"];
const PATHS: &[&str] = &["/", "/a", "/a/", "/a/b", "/ab", "/b/a", "/b/a/c"];

prop_compose! {
    fn any_rule()(
        from in prop::collection::vec((prop::collection::vec(any_pattern(PRINCIPALS), 0..3), prop::collection::vec(any_pattern(&["shop", "bank"]), 0..2)), 0..3),
        to in prop::collection::vec((prop::collection::vec(any_pattern(PATHS), 0..3), prop::collection::vec(any_pattern(&["GET", "POST"]), 0..2)), 0..3),
    ) -> AuthorizationRule {
        rule(
            from.into_iter().map(|(principals, namespaces)| policy::Source { principals, namespaces, ..policy::Source::default() }).collect(),
            to.into_iter().map(|(paths, methods)| policy::Operation { paths, methods, ..policy::Operation::default() }).collect(),
        )
    }
}

/// The rule as Istio's documentation says it, over plain strings.
fn plainly(rule: &AuthorizationRule, peer: Option<&str>, method: &str, path: &str) -> bool {
    let is = |pattern: &StringMatch, text: &str| match pattern {
        StringMatch::Present => !text.is_empty(),
        StringMatch::Exact(wanted) => wanted == text,
        StringMatch::Prefix(wanted) => text.starts_with(wanted),
        StringMatch::Suffix(wanted) => text.ends_with(wanted),
    };
    let any = |patterns: &[StringMatch], text: Option<&str>| {
        patterns.is_empty() || text.is_some_and(|text| patterns.iter().any(|pattern| is(pattern, text)))
    };
    let namespace = peer.and_then(|peer| peer.split('/').nth(2));
    (rule.from.is_empty()
        || rule.from.iter().any(|source| any(&source.principals, peer) && any(&source.namespaces, namespace)))
        && (rule.to.is_empty() || rule.to.iter().any(|to| any(&to.paths, Some(path)) && any(&to.methods, Some(method))))
}

proptest! {
    #[test]
    fn the_index_decides_as_asking_every_rule_does(
        policies in prop::collection::vec((any::<bool>(), prop::collection::vec(any_rule(), 0..4)), 0..5),
        peer in prop::option::of(prop::sample::select(&PRINCIPALS[..4])), method in prop::sample::select(&[Method::GET, Method::POST][..]), path in prop::sample::select(PATHS),
    ) {
        let policies: Vec<_> = policies.into_iter().enumerate()
            .map(|(number, (deny, rules))| named(&format!("shop/p{number}"), if deny { Action::Deny } else { Action::Allow }, rules))
            .collect();
        let first = |action| policies.iter().filter(|scoped| scoped.policy.action == action).find_map(|scoped| {
            let number = scoped.policy.rules.iter().position(|rule| plainly(rule, peer, method.as_str(), path))?;
            Some(format!("{} rules[{number}]", scoped.policy.name))
        });
        let allows: Vec<String> = policies.iter().filter(|scoped| scoped.policy.action == Action::Allow).map(|scoped| scoped.policy.name.to_string()).collect();
        let expected = match (first(Action::Deny), first(Action::Allow)) {
            (Some(denied), _) => Err(denied),
            (None, Some(allowed)) => Ok(allowed),
            (None, None) if allows.is_empty() => Ok("Mesh.authorization.default".to_owned()),
            (None, None) => Err(format!("no rule of {} matched", allows.join(", "))),
        };
        prop_assert_eq!(outcome(policies, peer, &method, path), expected);
    }
}

#[test]
fn on_a_connection_an_allow_rule_about_http_never_matches_and_of_a_deny_rule_the_rest_decides() {
    const FRONTEND: &str = "equerry.local/ns/shop/sa/frontend";
    const OTHER: &str = "equerry.local/ns/shop/sa/other";
    let passes = |action, rule: &AuthorizationRule, peer: &str| {
        let workload = workload(vec![named("shop/a", action, vec![rule.clone()])]);
        authorize_connection(&caller(Some(peer)), 5432, PEER, &workload).is_ok()
    };
    let about = |change: &dyn Fn(&mut policy::Operation)| {
        let mut operation = policy::Operation { ports: vec![5432], ..policy::Operation::default() };
        change(&mut operation);
        rule(vec![from(FRONTEND)], vec![operation])
    };
    let bare = about(&|_| ());
    assert!(passes(Action::Allow, &bare, FRONTEND) && !passes(Action::Allow, &bare, OTHER));
    assert!(!passes(Action::Deny, &bare, FRONTEND) && passes(Action::Deny, &bare, OTHER));
    let mut token = rule(vec![from(FRONTEND)], vec![]);
    token.from[0].request_principals = vec![exact("https://issuer/ada")];
    let mut claim = bare.clone();
    claim.when = vec![Condition { claim: vec!["role".to_owned()], values: vec![exact("admin")] }];
    let about_http = [
        about(&|operation| operation.methods = vec![exact("GET")]),
        about(&|operation| operation.paths = vec![StringMatch::Present]),
        about(&|operation| operation.hosts = vec![exact("db.shop")]),
        token,
        claim,
    ];
    for rule in about_http {
        assert!(!passes(Action::Allow, &rule, FRONTEND), "what is asked about is not there: {rule:?}");
        assert!(!passes(Action::Deny, &rule, FRONTEND), "the rest matches: {rule:?}");
        assert!(passes(Action::Deny, &rule, OTHER), "the rest does not: {rule:?}");
    }
    let elsewhere = about(&|operation| operation.ports = vec![80]);
    assert!(!passes(Action::Allow, &elsewhere, FRONTEND) && passes(Action::Deny, &elsewhere, FRONTEND));
    let mut narrowed = named("shop/a", Action::Deny, vec![bare]);
    narrowed.ports = Some(vec![80]);
    assert!(authorize_connection(&caller(Some(FRONTEND)), 5432, PEER, &workload(vec![narrowed])).is_ok());
}
