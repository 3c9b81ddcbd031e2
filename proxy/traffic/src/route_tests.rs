//! Routes against the Gateway API's words, as a table, and against a plain model.

use std::time::Duration;

use equerry_policies::compile;
use equerry_policies::names::{Namespace, PolicyName};
use equerry_policies::policy::{
    self, AppProtocol, GrpcMethod, HeaderMatch, HttpRoute, Origin, PathMatch, QueryMatch, RouteKind, RouteMatch,
    ServicePort, TcpRoute, TextMatch, TrafficPolicy,
};
use equerry_policies::view::DestinationView;
use http::Request;
use proptest::prelude::*;

use super::*;

fn service(text: &str) -> ServiceName {
    ServiceName::parse(text).unwrap()
}

fn port(port: u16) -> ServicePort {
    ServicePort { name: None, port, target_port: port, app_protocol: AppProtocol::Http, undeclared: false }
}

fn on(path: PathMatch) -> RouteMatch {
    RouteMatch { path, headers: vec![], query: vec![], method: None }
}

fn header(name: &str, value: &str) -> HeaderMatch {
    HeaderMatch { name: name.to_owned(), value: TextMatch::Exact(value.to_owned()) }
}

/// A rule that sends to a Service named after it, so that tests can tell which one was chosen.
fn rule(to: &str, matches: Vec<RouteMatch>) -> policy::RouteRule {
    policy::RouteRule {
        name: None,
        matches,
        filters: vec![],
        backends: vec![policy::Backend {
            service: service(&format!("shop/{to}")),
            port: Some(80),
            weight: 1,
            filters: vec![],
        }],
        nowhere: vec![],
        request_timeout: None,
        try_timeout: None,
        retry: None,
        origin: Origin::default(),
    }
}

fn http_route(name: &str, rules: Vec<policy::RouteRule>) -> HttpRoute {
    HttpRoute {
        name: PolicyName::parse(name).unwrap(),
        kind: RouteKind::Http,
        parents: vec![(service("shop/orders"), None)],
        rules,
        origin: Origin::default(),
    }
}

fn destination(routes: Vec<HttpRoute>, ports: Vec<ServicePort>) -> CompiledDestination {
    compiled(routes, vec![], ports)
}

fn compiled(routes: Vec<HttpRoute>, tcp_routes: Vec<TcpRoute>, ports: Vec<ServicePort>) -> CompiledDestination {
    let view = DestinationView {
        service: service("shop/orders"),
        ports,
        accounts: vec![],
        external: None,
        routes,
        tcp_routes,
        faults: vec![],
        traffic: TrafficPolicy::default(),
        backends: vec![],
        origin: Origin::default(),
    };
    compile::destination(&view).unwrap()
}

fn leave(destination: &CompiledDestination) -> MayLeave {
    let named = Authority::parse("orders:80", &Namespace::parse("shop").unwrap()).unwrap();
    may_leave(&named, Known::Service(destination)).unwrap()
}

fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

/// Where a request is sent by rules that answer nothing themselves.
fn route(
    leave: &MayLeave,
    destination: &CompiledDestination,
    parts: &Parts,
    rng: &mut fastrand::Rng,
) -> Result<Choice, Refusal> {
    decide(leave, destination, parts, rng).map(|decision| match decision {
        Decision::Forward(choice) => choice,
        Decision::Answer(by) => panic!("{by:?}"),
    })
}

fn chosen(destination: &CompiledDestination, parts: &Parts) -> Option<String> {
    let choice = route(&leave(destination), destination, parts, &mut fastrand::Rng::with_seed(1));
    choice.ok().map(|choice| choice.backend.name.to_string())
}

#[test]
fn precedence_is_exact_path_then_regex_then_longest_prefix_then_method_then_headers() {
    let exact = |path: &str| PathMatch::Exact(path.to_owned());
    let prefix = |path: &str| PathMatch::Prefix(path.to_owned());
    let get = |wanted: RouteMatch| RouteMatch { method: Some("GET".to_owned()), ..wanted };
    let with = |wanted: RouteMatch, headers: Vec<HeaderMatch>| RouteMatch { headers, ..wanted };
    let routes = vec![http_route(
        "shop/a",
        vec![
            rule("default", vec![on(prefix("/"))]),
            rule("short", vec![on(prefix("/a"))]),
            rule("long", vec![on(prefix("/a/b/"))]),
            rule("exact", vec![on(exact("/a/b"))]),
            rule("get", vec![get(on(prefix("/m")))]),
            rule("two", vec![with(on(prefix("/m")), vec![header("x", "1"), header("y", "2")])]),
            rule("one", vec![with(on(prefix("/m")), vec![header("x", "1")])]),
            rule("plain", vec![on(prefix("/m"))]),
            rule("regex", vec![on(PathMatch::Regex("/r/[0-9]+".to_owned()))]),
        ],
    )];
    let to = destination(routes, vec![port(80)]);
    for (method, path, headers, wanted) in [
        ("GET", "/", &[][..], "default"),
        ("GET", "/ab", &[], "default"),
        ("GET", "/a", &[], "short"),
        ("GET", "/a/", &[], "short"),
        ("GET", "/a/b", &[], "exact"),
        ("GET", "/a/b/", &[], "long"),
        ("GET", "/a/b/c", &[], "long"),
        ("GET", "/a/bc", &[], "short"),
        ("GET", "/m", &[("x", "1"), ("y", "2")], "get"),
        ("POST", "/m", &[("x", "1"), ("y", "2")], "two"),
        ("POST", "/m", &[("x", "1")], "one"),
        ("POST", "/m", &[("x", "0"), ("x", "1")], "one"),
        ("POST", "/m/n", &[("y", "2")], "plain"),
        ("GET", "/r/17", &[], "regex"),
        ("GET", "/r/17x", &[], "default"),
    ] {
        assert_eq!(
            chosen(&to, &request(method, path, headers)).as_deref(),
            Some(wanted),
            "{method} {path} {headers:?}"
        );
    }
}

#[test]
fn grpc_precedence_is_service_then_method_then_headers() {
    let text = |text: &str| Some(TextMatch::Exact(text.to_owned()));
    let regex = |text: &str| Some(TextMatch::Regex(text.to_owned()));
    let call = |service, method| on(PathMatch::Grpc(GrpcMethod { service, method }));
    let with = |wanted: RouteMatch| RouteMatch { headers: vec![header("x", "1")], ..wanted };
    let rules = vec![
        rule("any", vec![call(None, None)]),
        rule("method", vec![call(None, text("Get"))]),
        rule("regex", vec![call(regex("shop\\..*"), None)]),
        rule("longer", vec![call(regex("shop\\..*"), regex("Li.*"))]),
        rule("service", vec![call(text("shop.Orders"), None)]),
        rule("headers", vec![with(call(text("shop.Orders"), None))]),
        rule("both", vec![call(text("shop.Orders"), text("Get"))]),
    ];
    let to = destination(vec![HttpRoute { kind: RouteKind::Grpc, ..http_route("shop/a", rules) }], vec![port(80)]);
    let kind = ("content-type", "application/grpc");
    for (path, headers, wanted) in [
        ("/shop.Orders/Get", &[kind, ("x", "1")][..], Some("both")),
        ("/shop.Orders/List", &[kind, ("x", "1")], Some("headers")),
        ("/shop.Orders/List", &[kind], Some("service")),
        ("/shop.Carts/List", &[kind], Some("longer")),
        ("/shop.Carts/Get", &[kind], Some("regex")),
        ("/bank.Accounts/Get", &[kind], Some("method")),
        ("/bank.Accounts/List", &[kind], Some("any")),
        ("/bank.Accounts/List", &[], None),
    ] {
        assert_eq!(chosen(&to, &request("POST", path, headers)).as_deref(), wanted, "{path} {headers:?}");
    }
    let rng = &mut fastrand::Rng::with_seed(1);
    let named = |path: &str| route(&leave(&to), &to, &request("POST", path, &[kind]), rng).unwrap().method_named;
    assert_eq!(["/shop.Orders/Get", "/shop.Orders/List"].map(named), [true, false], "a method named exactly is meant");
}

#[test]
fn a_parameter_is_read_as_the_application_reads_it_and_the_first_counts() {
    let wanted = |name: &str, value: &str| {
        let to = destination(
            vec![http_route(
                "shop/a",
                vec![rule(
                    "a",
                    vec![RouteMatch { query: vec![parameter(name, value)], ..on(PathMatch::Prefix("/".to_owned())) }],
                )],
            )],
            vec![port(80)],
        );
        move |query: &str| chosen(&to, &request("GET", &format!("/{query}"), &[])).is_some()
    };
    let fits = wanted("a", "b c");
    assert!(fits("?a=b+c") && fits("?a=b%20c") && fits("?%61=b%20c&a=x") && fits("?x&a=b+c&"));
    assert!(!fits("?a=x&a=b+c") && !fits("?a") && !fits("?a=b%2") && !fits("") && !fits("?A=b+c"));
    assert!(wanted("a", "%")("?a=%") && wanted("a", "é")("?a=%C3%A9"));
}

fn tcp_route(name: &str, weights: &[u32]) -> TcpRoute {
    let backend = |(index, weight): (usize, &u32)| policy::Backend {
        service: service(&format!("shop/b{index}")),
        port: Some(81),
        weight: *weight,
        filters: vec![],
    };
    TcpRoute {
        name: PolicyName::parse(name).unwrap(),
        parents: vec![(service("shop/orders"), Some(80))],
        rule: None,
        backends: weights.iter().enumerate().map(backend).collect(),
        nowhere: vec![],
        origin: Origin::default(),
    }
}

#[test]
fn a_connection_goes_by_its_route_else_to_the_service_itself_and_never_where_http_is_spoken() {
    let mut rng = fastrand::Rng::with_seed(1);
    let raw = || ServicePort { app_protocol: AppProtocol::Tcp, ..port(80) };
    let with = |tcp_routes: Vec<TcpRoute>| compiled(vec![], tcp_routes, vec![raw()]);
    let bare = with(vec![]);
    let itself = connect(&leave(&bare), &bare, &mut rng).unwrap();
    assert_eq!((itself.backend.to_string().as_str(), itself.port), ("shop/orders", Some(80)));
    let routed = with(vec![tcp_route("shop/a", &[0, 1]), tcp_route("shop/b", &[1, 0])]);
    let by = connect(&leave(&routed), &routed, &mut rng).unwrap();
    assert_eq!((by.backend.to_string().as_str(), by.port, &**by.route().unwrap()), ("shop/b1", Some(81), "shop/a"));
    let nowhere = with(vec![tcp_route("shop/a", &[0])]);
    assert_eq!(connect(&leave(&nowhere), &nowhere, &mut rng).unwrap_err().status(), 500);
    let http = compiled(vec![], vec![tcp_route("shop/a", &[0, 1])], vec![port(80)]);
    let refused = connect(&leave(&http), &http, &mut rng).unwrap_err();
    assert_eq!(
        (refused.status().as_u16(), refused.to_string().as_str()),
        (400, "port 80 of shop/orders speaks HTTP, and this is TCP")
    );
    assert_eq!(chosen(&http, &request("GET", "/", &[])).as_deref(), Some("b1"), "HTTP is a connection too");
}

#[test]
fn a_request_is_never_sent_where_nobody_looks_for_requests() {
    let raw = ServicePort { app_protocol: AppProtocol::Tcp, ..port(80) };
    let all = vec![on(PathMatch::Prefix("/".to_owned()))];
    let to = compiled(vec![http_route("shop/a", vec![rule("a", all)])], vec![], vec![raw, port(81)]);
    let refused = route(&leave(&to), &to, &request("GET", "/", &[]), &mut fastrand::Rng::with_seed(1)).unwrap_err();
    assert_eq!(
        (refused.status().as_u16(), refused.to_string().as_str()),
        (400, "port 80 of shop/orders speaks TCP, and this is HTTP")
    );
}

#[test]
fn ties_go_to_the_route_first_by_name_and_then_to_the_rule_first_written() {
    let all = || vec![on(PathMatch::Prefix("/".to_owned()))];
    let to = destination(
        vec![
            http_route("shop/b", vec![rule("b0", all())]),
            http_route("shop/a", vec![rule("a0", all()), rule("a1", all())]),
        ],
        vec![port(80)],
    );
    assert_eq!(chosen(&to, &request("GET", "/x", &[])).as_deref(), Some("a0"));
}

#[test]
fn a_service_without_routes_is_its_own_backend_and_one_whose_routes_do_not_match_refuses() {
    let bare = destination(vec![], vec![port(80)]);
    let choice = route(&leave(&bare), &bare, &request("GET", "/", &[]), &mut fastrand::Rng::with_seed(1)).unwrap();
    assert_eq!((choice.backend.to_string().as_str(), choice.port, choice.route()), ("shop/orders", Some(80), None));
    let narrow = destination(
        vec![http_route("shop/a", vec![rule("a", vec![on(PathMatch::Exact("/only".to_owned()))])])],
        vec![port(80)],
    );
    let refused =
        route(&leave(&narrow), &narrow, &request("GET", "/", &[]), &mut fastrand::Rng::with_seed(1)).unwrap_err();
    assert_eq!(refused.status(), 404);
}

#[test]
fn a_route_limited_to_one_port_leaves_the_others_alone() {
    let mut limited = http_route("shop/a", vec![rule("a", vec![on(PathMatch::Prefix("/".to_owned()))])]);
    limited.parents = vec![(service("shop/orders"), Some(80)), (service("shop/other"), None)];
    let to = destination(vec![limited], vec![port(80), port(81)]);
    assert!(to.routes(80).is_some() && to.routes(81).is_none());
}

#[test]
fn a_rule_that_sends_nowhere_is_answered_with_500() {
    for backends in
        [vec![], vec![policy::Backend { service: service("shop/a"), port: None, weight: 0, filters: vec![] }]]
    {
        let nowhere = policy::RouteRule { backends, ..rule("a", vec![on(PathMatch::Prefix("/".to_owned()))]) };
        let to = destination(vec![http_route("shop/a", vec![nowhere])], vec![port(80)]);
        let refused = route(&leave(&to), &to, &request("GET", "/", &[]), &mut fastrand::Rng::with_seed(1)).unwrap_err();
        assert_eq!(refused.status(), 500);
    }
}

#[test]
fn the_share_of_a_backend_that_leads_to_nothing_is_answered_with_500_which_says_so() {
    let gone = |weight| policy::Nowhere { index: 1, weight, why: "Service shop/b does not exist".to_owned() };
    let answers = |backends: Vec<policy::Backend>, weight, seeds: u64| {
        let all = vec![on(PathMatch::Prefix("/".to_owned()))];
        let rule = policy::RouteRule { backends, nowhere: vec![gone(weight)], ..rule("a", all) };
        let to = destination(vec![http_route("shop/a", vec![rule])], vec![port(80)]);
        let one = |seed| route(&leave(&to), &to, &request("GET", "/", &[]), &mut fastrand::Rng::with_seed(seed));
        (0..seeds).map(one).collect::<Vec<_>>()
    };
    let here = || rule("a", vec![]).backends;
    let drawn = answers(here(), 3, 4000);
    let refused: Vec<&Refusal> = drawn.iter().filter_map(|one| one.as_ref().err()).collect();
    assert!((2900..3100).contains(&refused.len()), "three of four: {}", refused.len());
    let told = "shop/a rules[0].backendRefs[1] leads to nothing: Service shop/b does not exist";
    for refusal in refused {
        assert_eq!((refusal.status().as_u16(), refusal.grpc_status(), refusal.to_string().as_str()), (500, 14, told));
        assert_eq!(refusal.reason().as_str(), "invalid_backend");
    }
    assert!(answers(here(), 0, 100).iter().all(Result::is_ok), "a weight of 0 is no share");
    assert!(answers(vec![], 1, 10).iter().all(|one| one.as_ref().is_err_and(|refusal| refusal.status() == 500)));
    let zero = answers(vec![], 0, 1).remove(0).unwrap_err();
    assert!(matches!(zero, Refusal::NoBackend { .. }) && zero.status() == 500, "{zero}");
}

#[test]
fn a_method_is_named_only_when_every_match_names_it() {
    let named = |methods: &[Option<&str>]| {
        let matches = methods
            .iter()
            .map(|method| RouteMatch { method: method.map(str::to_owned), ..on(PathMatch::Prefix("/".to_owned())) });
        let to = destination(vec![http_route("shop/a", vec![rule("a", matches.collect())])], vec![port(80)]);
        route(&leave(&to), &to, &request("POST", "/", &[]), &mut fastrand::Rng::with_seed(1)).unwrap().method_named
    };
    assert!(named(&[Some("POST")]) && named(&[Some("POST"), Some("POST")]));
    assert!(!named(&[None]) && !named(&[Some("POST"), None]) && !named(&[Some("POST"), Some("PUT")]));
}

#[test]
fn a_zero_timeout_is_no_timeout() {
    let zero = policy::RouteRule {
        request_timeout: Some(Duration::ZERO),
        ..rule("a", vec![on(PathMatch::Prefix("/".to_owned()))])
    };
    let to = destination(vec![http_route("shop/a", vec![zero])], vec![port(80)]);
    let choice = route(&leave(&to), &to, &request("GET", "/", &[]), &mut fastrand::Rng::with_seed(1)).unwrap();
    assert_eq!(choice.request_timeout(), None);
}

#[test]
fn a_port_is_the_one_named_the_only_one_or_refused_naming_what_there_is() {
    let own = Namespace::parse("shop").unwrap();
    let named = |text| Authority::parse(text, &own).unwrap();
    let (one, two) = (destination(vec![], vec![port(80)]), destination(vec![], vec![port(80), port(81)]));
    assert_eq!(may_leave(&named("orders"), Known::Service(&one)).unwrap().port(), 80);
    assert_eq!(may_leave(&named("orders:81"), Known::Service(&two)).unwrap().port(), 81);
    let several = may_leave(&named("orders"), Known::Service(&two)).unwrap_err();
    assert!(several.status() == 400 && several.to_string().contains("80, 81"), "{several}");
    let wrong = may_leave(&named("orders:82"), Known::Service(&two)).unwrap_err();
    assert!(wrong.status() == 404 && wrong.to_string().contains("80, 81"), "{wrong}");
    let missing = may_leave(&named("ordrs"), Known::Nothing { nearest: Some("shop/orders") }).unwrap_err();
    assert!(missing.status() == 502 && missing.to_string().contains("shop/orders"));
    assert_eq!(may_leave(&named("orders"), Known::NotYet).unwrap_err().status(), 503);
}

#[test]
fn weights_are_met_within_four_standard_deviations() {
    let seed = 42;
    let mut rng = fastrand::Rng::with_seed(seed);
    let weights = [90_u32, 10, 0, 300];
    let mut split = rule("a", vec![on(PathMatch::Prefix("/".to_owned()))]);
    split.backends = (0_u8..)
        .zip(weights)
        .map(|(index, weight)| policy::Backend {
            service: service(&format!("shop/b{index}")),
            port: None,
            weight,
            filters: vec![],
        })
        .collect();
    let to = destination(vec![http_route("shop/a", vec![split])], vec![port(80)]);
    let (leave, parts) = (leave(&to), request("GET", "/", &[]));
    let mut counts = [0_u32; 4];
    for _ in 0..20_000 {
        let choice = route(&leave, &to, &parts, &mut rng).unwrap();
        let index: usize = choice.backend.name.as_str()[1..].parse().unwrap();
        counts[index] += 1;
    }
    for (weight, count) in weights.into_iter().zip(counts) {
        let p = f64::from(weight) / 400.0;
        let (mean, deviation) = (20_000.0 * p, (20_000.0 * p * (1.0 - p)).sqrt());
        assert!((f64::from(count) - mean).abs() <= 4.0 * deviation, "weight {weight}: {count} of 20000 (seed {seed})");
    }
}

/// The specification, slowly: every match that fits, sorted by precedence.
fn model(routes: &[HttpRoute], parts: &Parts) -> Option<String> {
    let path = parts.uri.path();
    let below = |prefix: &str| {
        let prefix = prefix.trim_end_matches('/');
        path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
    };
    let mut fitting = Vec::new();
    for http_route in routes {
        for (number, rule) in http_route.rules.iter().enumerate() {
            for (place, wanted) in rule.matches.iter().enumerate() {
                let rank = match &wanted.path {
                    PathMatch::Exact(exact) if exact == path => Some((0, 0)),
                    PathMatch::Prefix(prefix) if below(prefix) => {
                        Some((1, usize::MAX - prefix.trim_end_matches('/').len()))
                    }
                    _ => None,
                };
                let method = wanted.method.as_deref().is_none_or(|method| method == parts.method.as_str());
                let headers = wanted.headers.iter().all(|header| {
                    let TextMatch::Exact(value) = &header.value else { return false };
                    parts.headers.get_all(&header.name).iter().any(|found| found == value)
                });
                let asked = parts.uri.query().unwrap_or_default();
                let query = wanted.query.iter().all(|parameter| {
                    let TextMatch::Exact(value) = &parameter.value else { return false };
                    let mut pairs = asked.split('&').filter_map(|pair| pair.split_once('='));
                    pairs.find(|(name, _)| *name == parameter.name).is_some_and(|(_, found)| found == value)
                });
                if let (Some(rank), true, true, true) = (rank, method, headers, query) {
                    let key = (
                        rank,
                        wanted.method.is_none(),
                        (usize::MAX - wanted.headers.len(), usize::MAX - wanted.query.len()),
                        http_route.name.clone(),
                        number,
                        place,
                    );
                    fitting.push((key, rule.backends[0].service.name.to_string()));
                }
            }
        }
    }
    fitting.sort();
    fitting.into_iter().next().map(|(_, backend)| backend)
}

fn parameter(name: &str, value: &str) -> QueryMatch {
    QueryMatch { name: name.to_owned(), value: TextMatch::Exact(value.to_owned()) }
}

prop_compose! {
    fn any_match()(
        exact: bool,
        path in "(/[ab]{0,2}){1,3}",
        method in prop::option::of("GET|POST"),
        headers in prop::collection::btree_map("[xy]", "[12]", 0..3),
        query in prop::collection::btree_map("[pq]", "[12]", 0..3),
    ) -> RouteMatch {
        let path = if exact { PathMatch::Exact(path) } else { PathMatch::Prefix(path.trim_end_matches('/').to_owned() + "/") };
        let headers = headers.iter().map(|(name, value)| header(name, value)).collect();
        RouteMatch { path, method, headers, query: query.iter().map(|(name, value)| parameter(name, value)).collect() }
    }
}

proptest! {
    #[test]
    fn the_choice_is_the_specifications(
        rules in prop::collection::vec((0_u8..3, prop::collection::vec(any_match(), 1..4)), 1..8),
        method in "GET|POST", path in "(/[ab]{1,2}){0,3}/?", headers in prop::collection::vec(("[xy]", "[12]"), 0..3),
        query in prop::option::of("[pq]=[12](&[pq]=[12]){0,2}"),
    ) {
        let mut routes: Vec<HttpRoute> = ["c", "a", "b"].into_iter().map(|name| http_route(&format!("shop/{name}"), vec![])).collect();
        for (number, (place, matches)) in rules.into_iter().enumerate() {
            routes[usize::from(place)].rules.push(rule(&format!("s{number}"), matches));
        }
        routes.retain(|route| !route.rules.is_empty());
        let path = if path.is_empty() { "/".to_owned() } else { path };
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let path = query.map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
        let parts = request(&method, &path, &headers);
        let to = destination(routes.clone(), vec![port(80)]);
        prop_assert_eq!(chosen(&to, &parts), model(&routes, &parts));
    }
}
