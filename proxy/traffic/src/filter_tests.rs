//! Filters on heads: what the table of the specification's expectations does not show.

use equerry_policies::{compile, document, interpret, names, view};
use http::{HeaderName, Request};
use proptest::prelude::*;

use super::*;
use crate::normalize::{Direction, normalize};
use crate::route::{Decision, Known, decide, may_leave};

/// The first rule of a route to `shop/orders` whose rules are `rules`.
fn rule(rules: &str) -> Arc<RouteRule> {
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: orders, namespace: shop}}\nspec: {{ports: [{{port: 8080}}]}}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\n\
         spec: {{parentRefs: [{{group: \"\", kind: Service, name: orders}}], rules: [{rules}]}}\n"
    );
    let read = document::read("f.yaml", &text).and_then(|documents| interpret::interpret(&documents));
    let meaning = read.unwrap_or_else(|wrong| panic!("{wrong:?}"));
    let orders = names::ServiceName::parse("shop/orders").unwrap();
    let view = view::destination(&meaning, &orders, &orders.namespace).unwrap();
    Arc::clone(&compile::destination(&view).unwrap().routes(8080).unwrap().rules[0])
}

fn request(url: &str, headers: &[(&str, &str)]) -> (Parts, Normal) {
    let mut request = Request::builder().uri(format!("http://orders:8080{url}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut parts = request.body(()).unwrap().into_parts().0;
    let normal = normalize(&mut parts, Direction::Outbound).unwrap();
    (parts, normal)
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    let all: Vec<&str> = headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
    (!all.is_empty()).then(|| all.join("|"))
}

const EDITS: &str = "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x, value: rule}]}}, \
    {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: y, value: rule}]}}], \
    backendRefs: [{name: orders, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x, value: backend}]}}, \
    {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: y, value: backend}]}}]}]}";

#[test]
fn the_rule_is_the_outer_of_rule_and_backend() {
    let rule = rule(EDITS);
    let filters = Filters::of(&rule, Some(0));
    let (mut parts, normal) = request("/", &[]);
    let _ = apply_request(filters, &mut parts, normal).unwrap();
    assert_eq!(header(&parts.headers, "x").as_deref(), Some("backend"), "requests meet the backend's last");
    let mut response = HeaderMap::new();
    apply_response(filters, None, &mut response);
    assert_eq!(header(&response, "y").as_deref(), Some("rule"), "responses meet the rule's last");
    apply_response(Filters::of(&rule, None), None, &mut response);
    assert!(Filters::NONE.is_empty() && !filters.is_empty() && filters.iter().count() == 4);
}

#[test]
fn a_redirect_without_port_or_scheme_names_the_port_that_was_called() {
    let to = |redirect: &str| {
        let rule = rule(&format!("{{filters: [{{type: RequestRedirect, requestRedirect: {redirect}}}]}}"));
        let (parts, _) = request("/a?b=c", &[]);
        let answer = answer(Filters::of(&rule, None), &rule, &parts, 8080).unwrap();
        assert_eq!((answer.kind, header(&answer.headers, "content-length").as_deref()), ("redirect", Some("0")));
        header(&answer.headers, "location").unwrap()
    };
    assert_eq!(to("{hostname: new.example}"), "http://new.example:8080/a?b=c");
    assert_eq!(to("{scheme: http}"), "http://orders/a?b=c");
    assert_eq!(to("{scheme: https, port: 443}"), "https://orders/a?b=c");
    assert_eq!(to("{scheme: https, port: 80}"), "https://orders:80/a?b=c");
    assert_eq!(to("{port: 80}"), "http://orders/a?b=c");
}

#[test]
fn a_backend_may_redirect_too_and_nothing_is_forwarded_then() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: shop}\nspec: {ports: [{port: 8080}]}\n---\n\
        apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec:\n  \
        parentRefs: [{group: \"\", kind: Service, name: orders}]\n  rules:\n  - backendRefs: [{name: orders, filters: \
        [{type: RequestRedirect, requestRedirect: {hostname: new.example, statusCode: 307}}]}]\n";
    let meaning = interpret::interpret(&document::read("f.yaml", text).unwrap()).unwrap();
    let orders = names::ServiceName::parse("shop/orders").unwrap();
    let to = compile::destination(&view::destination(&meaning, &orders, &orders.namespace).unwrap()).unwrap();
    let (parts, normal) = request("/", &[]);
    let named = names::Authority::parse(normal.authority(), &orders.namespace).unwrap();
    let leave = may_leave(&named, Known::Service(&to)).unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let Decision::Answer(answer) = decide(&leave, &to, &parts, &mut rng).unwrap() else { panic!("it is forwarded") };
    assert_eq!((answer.status.as_u16(), answer.rule.number), (307, 0));
}

const CORS: &str = "{filters: [{type: CORS, cors: {allowOrigins: [\"https://a.example\"], exposeHeaders: [\"*\"], allowCredentials: CRED}}], \
    backendRefs: [{name: orders}]}";

#[test]
fn the_filter_alone_says_who_may_read_and_caches_are_told() {
    let shared = |origin: Option<&str>, credentials: &str| {
        let rule = rule(&CORS.replace("CRED", credentials));
        let mut response = HeaderMap::new();
        response.insert("access-control-allow-origin", HeaderValue::from_static("*"));
        response.insert("x-total", HeaderValue::from_static("5"));
        response.insert("vary", HeaderValue::from_static("accept"));
        let headers: Vec<(&str, &str)> = origin.map(|origin| ("origin", origin)).into_iter().collect();
        let (parts, _) = request("/", &headers);
        let filters = Filters::of(&rule, Some(0));
        apply_response(filters, super::origin(filters, &parts.headers).as_ref(), &mut response);
        assert_eq!(header(&response, "vary").as_deref(), Some("accept|origin"));
        let exposed = header(&response, "access-control-expose-headers").map(|list| {
            let mut names: Vec<String> = list.split(", ").map(str::to_owned).collect();
            names.sort();
            names.join(" ")
        });
        (header(&response, "access-control-allow-origin"), exposed)
    };
    assert_eq!(shared(None, "false"), (None, None));
    assert_eq!(shared(Some("https://evil.example"), "false"), (None, None));
    let allowed = Some("https://a.example".to_owned());
    assert_eq!(shared(Some("https://a.example"), "false"), (allowed.clone(), Some("*".to_owned())));
    assert_eq!(shared(Some("https://a.example"), "true"), (allowed, Some("vary x-total".to_owned())));
}

#[test]
fn a_filter_that_asks_for_no_origin_keeps_none() {
    let rule = rule(EDITS);
    let (parts, _) = request("/", &[("origin", "https://a.example")]);
    assert_eq!(origin(Filters::of(&rule, Some(0)), &parts.headers), None);
}

proptest! {
    #[test]
    fn a_rewritten_request_is_in_the_normal_form(path in "(/[a-z.%2-]{0,4}){1,4}", to in "(/[a-z]{1,3}){0,3}/?", query in prop::option::of("[a-z=&]{0,6}")) {
        let rule = rule(&format!(
            "{{matches: [{{path: {{value: /}}}}], filters: [{{type: URLRewrite, urlRewrite: {{hostname: new.example, path: {{type: ReplacePrefixMatch, replacePrefixMatch: \"{to}\"}}}}}}], backendRefs: [{{name: orders}}]}}"
        ));
        let url = format!("http://orders:8080{path}{}", query.map(|query| format!("?{query}")).unwrap_or_default());
        let Ok(built) = Request::builder().uri(url).body(()) else { return Ok(()) };
        let mut parts = built.into_parts().0;
        let Ok(normal) = normalize(&mut parts, Direction::Outbound) else { return Ok(()) };
        let asked = parts.uri.query().map(str::to_owned);
        let sent = apply_request(Filters::of(&rule, Some(0)), &mut parts, normal).unwrap();
        prop_assert_eq!(parts.uri.query().map(str::to_owned), asked);
        prop_assert_eq!(parts.headers.get(HOST), Some(sent.host_header()));
        let mut again = parts.clone();
        let judged = normalize(&mut again, Direction::Inbound { mesh_peer: true, trusted_hops: 0 }).unwrap();
        prop_assert_eq!(judged.target(), sent.target());
        prop_assert_eq!(judged.authority(), sent.authority());
        prop_assert!(sent.path().starts_with(to.trim_end_matches('/')), "{} {}", sent.path(), to);
    }
}

#[test]
fn header_names_of_edits_are_found_in_any_case() {
    let rule = rule(EDITS);
    let (mut parts, normal) = request("/", &[]);
    parts.headers.insert(HeaderName::from_static("x"), HeaderValue::from_static("old"));
    let _ = apply_request(Filters::of(&rule, None), &mut parts, normal).unwrap();
    assert_eq!(header(&parts.headers, "x").as_deref(), Some("rule"));
}
