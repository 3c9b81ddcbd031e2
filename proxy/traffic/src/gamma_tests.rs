//! The expectations that the Gateway API publishes for meshes (its conformance tests), as one table over documents of the
//! same form: a request, and the backend, status or address it must end at. Names carry their port, since a name of ours
//! without one means the only port.

use equerry_policies::names::{Authority, Namespace};
use equerry_policies::{compile, document, interpret, view};
use http::header::{LOCATION, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, Request};

use crate::filter;
use crate::normalize::{Direction, normalize};
use crate::route::{Decision, Known, decide, may_leave};

macro_rules! routes {
    ($($name:literal),* $(,)?) => {
        /// The text of each file.
        const ROUTES: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../../policies/tests/gamma/", $name, ".yaml")))),*];
    };
}
routes!(
    "all-backends-weight-zero",
    "consumer-route",
    "cors",
    "frontend",
    "grpc-method-matching",
    "grpc-request-header-modifier",
    "grpc-request-mirror",
    "grpc-weight",
    "invalid-backends",
    "matching",
    "named-rule",
    "ports",
    "query-param-matching",
    "redirect-host-and-status",
    "redirect-path",
    "redirect-port",
    "redirect-scheme",
    "request-header-modifier",
    "request-header-modifier-backend",
    "request-mirror",
    "rewrite-host",
    "rewrite-path",
    "split",
    "tcp-weight",
    "timeouts",
    "weight",
);
const SERVICES: &str = include_str!("../../../policies/tests/gamma/services.yaml");

/// How a request ended.
#[derive(Debug)]
struct Played {
    /// `echo-v1:80`; empty when it was sent nowhere.
    backend: String,
    /// 200 for what was sent somewhere.
    status: u16,
    /// The request as it is sent.
    sent: Option<Parts>,
    /// What the filters make of the backend's response, or answer themselves.
    response: HeaderMap,
    /// Where copies go.
    mirrors: Vec<String>,
    choice: Option<crate::route::Choice>,
}

/// Plays a request `GET NAME/PATH` with headers from a namespace, under one route; `seed` is chance.
fn play(route: &str, from: &str, asked: &str, headers: &[(&str, &str)], seed: u64) -> Played {
    let text = ROUTES.iter().find(|(name, _)| *name == route).unwrap().1;
    let documents = document::read(route, &format!("{SERVICES}{text}")).unwrap();
    let meaning = interpret::interpret(&documents).unwrap_or_else(|wrong| panic!("{route}: {wrong:?}"));
    let (method, url) = asked.split_once(' ').unwrap();
    let mut request = Request::builder().method(method).uri(format!("http://{url}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut parts = request.body(()).unwrap().into_parts().0;
    let normal = normalize(&mut parts, Direction::Outbound).unwrap();
    let own = Namespace::parse(from).unwrap();
    let named = Authority::parse(normal.authority(), &own).unwrap();
    let view = view::destination(&meaning, &named.service, &own).unwrap();
    let destination = compile::destination(&view).unwrap();
    let leave = may_leave(&named, Known::Service(&destination)).unwrap();
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut played = Played {
        backend: String::new(),
        status: 200,
        sent: None,
        response: HeaderMap::new(),
        mirrors: Vec::new(),
        choice: None,
    };
    match decide(&leave, &destination, &parts, &mut rng) {
        Err(refusal) => played.status = refusal.status().as_u16(),
        Ok(Decision::Answer(answer)) => {
            (played.status, played.response) = (answer.status.as_u16(), answer.headers);
        }
        Ok(Decision::Forward(choice)) => {
            played.backend = format!("{}:{}", choice.backend.name, choice.port.unwrap());
            let filters = choice.filters();
            let origin = filter::origin(filters, &parts.headers);
            let mirrors = filter::mirrors(filters, &mut rng);
            played.mirrors = mirrors.iter().map(|to| format!("{}:{}", to.service.name, to.port.unwrap())).collect();
            let sent = filter::apply_request(filters, &mut parts, normal).unwrap();
            assert_eq!(parts.headers.get("host"), Some(sent.host_header()));
            assert_eq!(parts.uri.path_and_query(), Some(sent.target()));
            filter::apply_response(filters, origin.as_ref(), &mut played.response);
            played.sent = Some(parts);
            played.choice = Some(choice);
        }
    }
    played
}

fn get(route: &str, from: &str, url: &str, headers: &[(&str, &str)]) -> Played {
    play(route, from, &format!("GET {url}"), headers, 1)
}

/// Headers and their values.
type Pairs<V> = &'static [(&'static str, V)];

/// A path, the headers sent there, and the headers that must arrive.
type Edited = (&'static str, Pairs<&'static str>, Pairs<Option<&'static str>>);

/// The values of a header, joined.
fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let values: Vec<&str> = headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

#[test]
fn a_request_ends_at_the_backend_or_status_that_the_specification_expects() {
    let version = |value: &'static str| [("version", value)];
    let (one, two, three) = (version("one"), version("two"), version("three"));
    let none: &[(&str, &str)] = &[];
    for (route, path, headers, wanted) in [
        ("split", "/v1", none, "echo-v1:80 200"),
        ("split", "/v2", none, "echo-v2:80 200"),
        ("split", "/v3", none, " 404"),
        ("matching", "/", none, "echo-v1:80 200"),
        ("matching", "/example", none, "echo-v1:80 200"),
        ("matching", "/", &one, "echo-v1:80 200"),
        ("matching", "/v2", none, "echo-v2:80 200"),
        ("matching", "/v2/example", none, "echo-v2:80 200"),
        ("matching", "/", &two, "echo-v2:80 200"),
        ("matching", "/v2/", none, "echo-v2:80 200"),
        ("matching", "/v2example", none, "echo-v1:80 200"),
        ("matching", "/foo/v2/example", none, "echo-v1:80 200"),
        ("query-param-matching", "/?animal=whale", none, "echo-v1:80 200"),
        ("query-param-matching", "/?animal=dolphin", none, "echo-v2:80 200"),
        ("query-param-matching", "/?animal=whale&otherparam=irrelevant", none, "echo-v1:80 200"),
        ("query-param-matching", "/?animal=dolphin&color=yellow", none, "echo-v2:80 200"),
        ("query-param-matching", "/?color=blue", none, " 404"),
        ("query-param-matching", "/?animal=dog", none, " 404"),
        ("query-param-matching", "/?animal=whaledolphin", none, " 404"),
        ("query-param-matching", "/", none, " 404"),
        ("query-param-matching", "/path1?animal=whale", none, "echo-v1:80 200"),
        ("query-param-matching", "/?animal=whale", &one, "echo-v2:80 200"),
        ("query-param-matching", "/path3?animal=shark", none, "echo-v1:80 200"),
        ("query-param-matching", "/path4?animal=kraken", &three, "echo-v1:80 200"),
        ("query-param-matching", "/?animal=shark", none, " 404"),
        ("query-param-matching", "/path4?animal=kraken", none, " 404"),
        ("query-param-matching", "/path5?animal=hydra", none, "echo-v1:80 200"),
        ("query-param-matching", "/?animal=wh%61le", none, "echo-v1:80 200"),
        ("query-param-matching", "/?animal=dog&animal=whale", none, " 404"),
        ("named-rule", "/named", none, "echo-v1:80 200"),
        ("named-rule", "/unnamed", none, "echo-v2:80 200"),
        ("all-backends-weight-zero", "/", none, " 500"),
        ("invalid-backends", "/nonexistent", none, " 500"),
        ("invalid-backends", "/unknown-kind", none, " 500"),
        ("invalid-backends", "/unknown-port", none, " 500"),
        ("invalid-backends", "/weightless", none, "echo-v2:80 200"),
    ] {
        let played = get(route, "mesh", &format!("echo:80{path}"), headers);
        assert_eq!(format!("{} {}", played.backend, played.status), wanted, "{route} {path} {headers:?}");
    }
}

#[test]
fn a_route_holds_for_its_frontend_its_port_and_its_callers_alone() {
    for (route, from, named, wanted) in [
        ("consumer-route", "mesh-consumer", "echo-v1.mesh:80", Some("set")),
        ("consumer-route", "mesh", "echo-v1.mesh:80", None),
        ("frontend", "mesh", "echo-v2:80", Some("set")),
        ("frontend", "mesh", "echo-v1:80", None),
        ("ports", "mesh", "echo-v1:80", Some("v1")),
        ("ports", "mesh", "echo-v1:8080", None),
        ("ports", "mesh", "echo-v2:80", Some("v2")),
        ("ports", "mesh", "echo-v2:8080", Some("v2")),
    ] {
        let played = get(route, from, &format!("{named}/"), &[]);
        assert_eq!(
            (played.status, joined(&played.response, "x-header-set").as_deref()),
            (200, wanted),
            "{route} {named}"
        );
        assert_eq!(played.backend[..7], named[..7]);
    }
}

#[test]
fn headers_of_the_request_are_set_added_and_removed() {
    let cases: &[Edited] = &[
        (
            "set",
            &[("Some-Other-Header", "val")],
            &[("some-other-header", Some("val")), ("x-header-set", Some("set-overwrites-values"))],
        ),
        ("set", &[("X-Header-Set", "some-other-value")], &[("x-header-set", Some("set-overwrites-values"))]),
        ("add", &[], &[("x-header-add", Some("add-appends-values"))]),
        (
            "add",
            &[("X-Header-Add", "some-other-value")],
            &[("x-header-add", Some("some-other-value,add-appends-values"))],
        ),
        ("remove", &[("X-Header-Remove", "val")], &[("x-header-remove", None)]),
        (
            "multiple",
            &[
                ("X-Header-Set-2", "set-val-2"),
                ("X-Header-Add-2", "add-val-2"),
                ("X-Header-Remove-2", "remove-val-2"),
                ("Another-Header", "another-header-val"),
            ],
            &[
                ("x-header-set-1", Some("header-set-1")),
                ("x-header-set-2", Some("header-set-2")),
                ("x-header-add-1", Some("header-add-1")),
                ("x-header-add-2", Some("add-val-2,header-add-2")),
                ("x-header-add-3", Some("header-add-3")),
                ("another-header", Some("another-header-val")),
                ("x-header-remove-1", None),
                ("x-header-remove-2", None),
            ],
        ),
        (
            "case-insensitivity",
            &[
                ("x-header-set", "original-val-set"),
                ("x-header-add", "original-val-add"),
                ("x-header-remove", "original-val-remove"),
            ],
            &[
                ("x-header-set", Some("header-set")),
                ("x-header-add", Some("original-val-add,header-add")),
                ("x-header-remove", None),
            ],
        ),
    ];
    for (path, headers, wanted) in cases {
        for route in ["request-header-modifier", "request-header-modifier-backend"] {
            let sent = get(route, "mesh", &format!("echo:80/{path}"), headers).sent.unwrap();
            for (name, value) in *wanted {
                assert_eq!(joined(&sent.headers, name).as_deref(), *value, "{route} {path} {name}");
            }
        }
        let mut headers = headers.to_vec();
        headers.extend([("kind", *path), ("content-type", "application/grpc")]);
        let played = play("grpc-request-header-modifier", "mesh", "POST echo:7070/x.Y/Z", &headers, 1);
        assert_eq!(played.backend, "echo-v1:7070");
        let sent = played.sent.unwrap();
        for (name, value) in *wanted {
            assert_eq!(joined(&sent.headers, name).as_deref(), *value, "grpc {path} {name}");
        }
    }
}

#[test]
fn a_redirect_names_the_address_that_the_specification_expects() {
    for (route, path, status, wanted) in [
        ("redirect-host-and-status", "/hostname-redirect", 302, "http://example.org/hostname-redirect"),
        ("redirect-host-and-status", "/host-and-status", 301, "http://example.org/host-and-status"),
        ("redirect-host-and-status", "/303", 303, "http://example.org/303"),
        ("redirect-host-and-status", "/307", 307, "http://example.org/307"),
        ("redirect-host-and-status", "/308/x?y=z", 308, "http://example.org/308/x?y=z"),
        ("redirect-path", "/original-prefix/lemon", 302, "http://echo/replacement-prefix/lemon"),
        ("redirect-path", "/full/path/original", 302, "http://echo/full-path-replacement"),
        ("redirect-path", "/path-and-host", 302, "http://example.org/replacement-prefix"),
        ("redirect-path", "/path-and-status?a=b", 301, "http://echo/replacement-prefix?a=b"),
        ("redirect-path", "/full-path-and-host", 302, "http://example.org/replacement-full"),
        ("redirect-path", "/full-path-and-status", 301, "http://echo/replacement-full"),
        ("redirect-port", "/port", 302, "http://echo:8083/port"),
        ("redirect-port", "/port-and-host", 302, "http://example.org:8083/port-and-host"),
        ("redirect-port", "/port-and-status", 301, "http://echo:8083/port-and-status"),
        ("redirect-port", "/port-and-host-and-status", 302, "http://example.org:8083/port-and-host-and-status"),
        ("redirect-scheme", "/scheme", 302, "https://echo/scheme"),
        ("redirect-scheme", "/scheme-and-host", 302, "https://example.org/scheme-and-host"),
        ("redirect-scheme", "/scheme-and-status", 301, "https://echo/scheme-and-status"),
        ("redirect-scheme", "/scheme-and-host-and-status", 302, "https://example.org/scheme-and-host-and-status"),
    ] {
        let played = get(route, "mesh", &format!("echo:80{path}"), &[]);
        assert_eq!((played.status, played.backend.as_str()), (status, ""), "{route} {path}");
        assert_eq!(played.response.get(LOCATION).unwrap(), wanted, "{route} {path}");
    }
}

#[test]
fn a_rewritten_request_is_sent_as_the_specification_expects() {
    let headers: &[(&str, &str)] =
        &[("X-Header-Remove", "remove-val"), ("X-Header-Add-Append", "append-val-1"), ("X-Header-Set", "set-val")];
    for (route, path, host, wanted) in [
        ("rewrite-path", "/prefix/one/two", "echo:80", "/one/two"),
        ("rewrite-path", "/strip-prefix/three", "echo:80", "/three"),
        ("rewrite-path", "/strip-prefix", "echo:80", "/"),
        ("rewrite-path", "/strip-prefix?q=1", "echo:80", "/?q=1"),
        ("rewrite-path", "/full/one/two", "echo:80", "/one"),
        ("rewrite-path", "/full/rewrite-path-and-modify-headers/test", "echo:80", "/test"),
        ("rewrite-path", "/prefix/rewrite-path-and-modify-headers/one", "echo:80", "/prefix/one"),
        ("rewrite-host", "/one", "one.example.org", "/one"),
        ("rewrite-host", "/both/three", "one.example.org", "/two/three"),
    ] {
        let sent = get(route, "mesh", &format!("echo:80{path}"), headers).sent.unwrap();
        assert_eq!(
            (sent.uri.to_string().as_str(), joined(&sent.headers, "host").as_deref()),
            (wanted, Some(host)),
            "{path}"
        );
        let modified = path.contains("modify-headers");
        for (name, with, without) in [
            ("x-header-add", Some("header-val-1"), None),
            ("x-header-add-append", Some("append-val-1,header-val-2"), Some("append-val-1")),
            ("x-header-set", Some("set-overwrites-values"), Some("set-val")),
            ("x-header-remove", None, Some("remove-val")),
        ] {
            assert_eq!(joined(&sent.headers, name).as_deref(), if modified { with } else { without }, "{path} {name}");
        }
    }
}

#[test]
fn copies_go_where_and_as_often_as_the_specification_expects() {
    let mirrors = |path: &str, seed| play("request-mirror", "mesh", &format!("GET echo:80{path}"), &[], seed).mirrors;
    assert_eq!(mirrors("/mirror", 1), ["echo-v2:80"]);
    assert_eq!(mirrors("/multi-mirror", 1), ["echo-v2:80", "echo-v2:8080"]);
    for (path, share) in [("/percent-mirror", 0.2), ("/fraction-mirror", 0.5), ("/never", 0.0)] {
        let copied = (0..500).filter(|seed| !mirrors(path, *seed).is_empty()).count();
        assert!((copied as f64 / 500.0 - share).abs() < 0.06, "{path} {copied}");
    }
    let grpc = &[("content-type", "application/grpc")];
    let echo = "POST echo:7070/gateway_api_conformance.echo_basic.grpcecho.GrpcEcho/Echo";
    assert_eq!(play("grpc-request-mirror", "mesh", echo, grpc, 1).mirrors, ["echo-v2:7070"]);
}

#[test]
fn weights_are_kept() {
    let grpc = &[("content-type", "application/grpc")];
    for (route, asked, headers) in [
        ("weight", "GET echo:80/", &[][..]),
        ("grpc-weight", "POST echo:7070/a.B/C", grpc),
        ("tcp-weight", "GET echo:8080/", &[]),
    ] {
        let mut counts = std::collections::BTreeMap::new();
        for seed in 0..500 {
            *counts.entry(play(route, "mesh", asked, headers, seed).backend[..7].to_owned()).or_insert(0) += 1;
        }
        let first = counts["echo-v1"];
        assert!(counts.len() == 2 && (300..400).contains(&first), "{route} {counts:?}");
    }
}

#[test]
fn the_share_of_an_invalid_backend_is_answered_with_500() {
    let answers = (0..500).map(|seed| play("invalid-backends", "mesh", "GET echo:80/shared", &[], seed).status);
    let refused = answers.filter(|status| *status == 500).count();
    assert!((300..400).contains(&refused), "70 of 100: {refused} of 500");
}

#[test]
fn timeouts_are_those_of_the_rule_and_zero_is_none() {
    use std::time::Duration;
    let half = Some(Duration::from_millis(500));
    for (path, request, each) in
        [("/request-timeout", half, None), ("/backend-timeout", None, half), ("/disable-timeout", None, None)]
    {
        let choice = get("timeouts", "mesh", &format!("echo:80{path}"), &[]).choice.unwrap();
        assert_eq!((choice.request_timeout(), choice.try_timeout()), (request, each), "{path}");
    }
}

#[test]
fn grpc_methods_are_matched_and_what_is_not_grpc_is_not() {
    let service = "gateway_api_conformance.echo_basic.grpcecho.GrpcEcho";
    for (method, kind, wanted) in [
        ("Echo", "application/grpc", "echo-v1:7070 200"),
        ("EchoTwo", "application/grpc+proto", "echo-v2:7070 200"),
        ("EchoThree", "application/grpc", " 404"),
        ("Echo", "application/json", " 404"),
        ("Echo", "application/grpc-web", " 404"),
    ] {
        let asked = format!("POST echo:7070/{service}/{method}");
        let played = play("grpc-method-matching", "mesh", &asked, &[("content-type", kind)], 1);
        assert_eq!(format!("{} {}", played.backend, played.status), wanted, "{method} {kind}");
    }
}

#[test]
fn browsers_are_answered_as_the_specification_expects() {
    let preflight = |path: &str, origin: &str, method: &str, asked: &[(&str, &str)]| {
        let mut headers = vec![("origin", origin), ("access-control-request-method", method)];
        headers.extend(asked);
        play("cors", "mesh", &format!("OPTIONS echo:80{path}"), &headers, 1)
    };
    let wants = [("access-control-request-headers", "x-header-1, x-header-2")];
    for origin in ["https://www.foo.com", "https://www.bar.com", "https://xpto.www.bar.com"] {
        let played = preflight("/cors-1", origin, "GET", &wants);
        assert_eq!((played.status, played.backend.as_str()), (200, ""));
        for (name, value) in [
            ("access-control-allow-origin", origin),
            ("access-control-allow-methods", "GET, OPTIONS"),
            ("access-control-allow-headers", "x-header-1, x-header-2"),
            ("access-control-expose-headers", "x-header-3, x-header-4"),
            ("access-control-max-age", "3600"),
            ("access-control-allow-credentials", "true"),
        ] {
            assert_eq!(joined(&played.response, name).as_deref(), Some(value), "{origin} {name}");
        }
    }
    let refused = preflight("/cors-1", "https://foobar.com", "GET", &[]);
    assert_eq!((refused.status, joined(&refused.response, "access-control-allow-origin")), (200, None));
    let any = preflight("/cors-2", "https://www.foo.com", "POST", &[]);
    assert_eq!(joined(&any.response, "access-control-allow-methods").as_deref(), Some("POST"));
    assert_eq!(joined(&any.response, "access-control-max-age").as_deref(), Some("5"));
    assert_eq!(joined(&any.response, "access-control-allow-credentials"), None);
    let wild = preflight("/cors-wildcard-origin", "https://foobar.com:12345", "PUT", &[]);
    assert_eq!(joined(&wild.response, "access-control-allow-origin").as_deref(), Some("https://foobar.com:12345"));
    assert_eq!(joined(&wild.response, "access-control-allow-methods").as_deref(), Some("PUT"));
    let all = preflight("/cors-wildcard-methods-headers", "https://other.foo.com", "PUT", &wants);
    for (name, value) in [
        ("access-control-allow-origin", "https://other.foo.com"),
        ("access-control-allow-methods", "PUT"),
        ("access-control-allow-headers", "x-header-1, x-header-2"),
        ("access-control-allow-credentials", "true"),
    ] {
        assert_eq!(joined(&all.response, name).as_deref(), Some(value), "{name}");
    }
    for (origin, wanted) in [("https://www.bar.com", Some("https://www.bar.com")), ("https://foobar.com", None)] {
        let simple = get("cors", "mesh", "echo:80/cors-1", &[(ORIGIN.as_str(), origin)]);
        assert_eq!(simple.backend, "echo-v1:80");
        assert_eq!(joined(&simple.response, "access-control-allow-origin").as_deref(), wanted, "{origin}");
    }
    let plain = play("cors", "mesh", "OPTIONS echo:80/cors-1", &[("origin", "https://www.foo.com")], 1);
    assert_eq!(plain.backend, "echo-v1:80", "an OPTIONS that is no preflight is the application's");
}
