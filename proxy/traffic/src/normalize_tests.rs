//! The normal form as tables: what is kept, what is rewritten, what is refused.

use http::Request;
use proptest::prelude::*;

use super::*;

fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn outbound(uri: &str, headers: &[(&str, &str)]) -> Result<(Normal, Parts), Refusal> {
    let mut parts = parts("GET", uri, headers);
    normalize(&mut parts, Direction::Outbound).map(|normal| (normal, parts))
}

fn path(of: &str) -> Result<String, Refusal> {
    outbound(of, &[("host", "a")]).map(|(normal, parts)| {
        assert_eq!(parts.uri.path(), normal.path(), "what is forwarded is what was judged");
        normal.path().to_owned()
    })
}

#[test]
fn a_path_has_one_normal_form() {
    for (given, normal) in [
        ("/", "/"),
        ("/a/b.c/~d-e_f", "/a/b.c/~d-e_f"),
        ("/a/", "/a/"),
        ("/%61%2D%2e%5f%7E", "/a-._~"),
        ("/a%3ab%c3%a9", "/a%3Ab%C3%A9"),
        ("/a:b@c!$&'()*+,;=", "/a:b@c!$&'()*+,;="),
        ("/a\"{}|^", "/a%22%7B%7D%7C%5E"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/b/..", "/a/"),
        ("/a/b/.", "/a/b/"),
        ("/../../a", "/a"),
        ("/..", "/"),
        ("//a///b//", "/a/b/"),
        ("/a//../b", "/b"),
        ("/a%252fb", "/a%252fb"),
        ("/...", "/..."),
        ("/.a/..b", "/.a/..b"),
        ("/a;v=1/b", "/a;v=1/b"),
    ] {
        assert_eq!(path(given).as_deref(), Ok(normal), "{given}");
    }
}

#[test]
fn a_path_that_two_readers_could_read_differently_is_refused() {
    for given in [
        "/a%2fb",
        "/a%2Fb",
        "/a%5cb",
        "/a\\b",
        "/a%00",
        "/a%0d%0a",
        "/a%7f",
        "/a%",
        "/a%4",
        "/a%zz",
        "/a/..;/b",
        "/a/..%3b/b",
        "/a/%2e%2E%3Bx/b",
        "/a/.;x/b",
        "/%2e%2e;x",
    ] {
        assert!(matches!(path(given), Err(Refusal::BadRequest { .. })), "{given}");
    }
}

#[test]
fn the_query_is_kept_as_it_is() {
    let (normal, parts) = outbound("/a/../b?x=%2f/../&y#fragment", &[("host", "a")]).unwrap();
    assert_eq!(normal.target().as_str(), "/b?x=%2f/../&y");
    assert_eq!(parts.uri, "/b?x=%2f/../&y");
    let (normal, parts) = outbound("http://a?x=1", &[]).unwrap();
    assert_eq!((normal.target().as_str(), parts.uri.to_string().as_str()), ("/?x=1", "/?x=1"));
}

#[test]
fn only_options_may_ask_about_the_whole_server() {
    let mut star = parts("OPTIONS", "*", &[("host", "a")]);
    assert_eq!(normalize(&mut star, Direction::Outbound).unwrap().path(), "*");
    assert!(outbound("*", &[("host", "a")]).is_err());
}

#[test]
fn an_authority_has_one_normal_form() {
    for (uri, host, normal) in [
        ("/", Some("Orders.Shop"), "orders.shop"),
        ("/", Some("orders.shop.:8080"), "orders.shop:8080"),
        ("http://Orders:80/x", None, "orders:80"),
        ("http://orders/x", Some("ORDERS"), "orders"),
        ("http://orders", None, "orders"),
        ("/", Some("[::1]:80"), "[::1]:80"),
        ("/", Some("10.0.0.1"), "10.0.0.1"),
    ] {
        let headers: Vec<(&str, &str)> = host.into_iter().map(|host| ("host", host)).collect();
        let (normalised, parts) = outbound(uri, &headers).unwrap();
        assert_eq!(normalised.authority(), normal);
        assert_eq!(parts.headers[HOST], normal, "what is forwarded is what was judged");
        assert!(parts.uri.authority().is_none() && parts.uri.path().starts_with('/'));
    }
    let (normal, _) = outbound("/", &[("host", "[::1]:8080")]).unwrap();
    assert_eq!((normal.host(), normal.port()), ("[::1]", Some(8080)));
    let (normal, _) = outbound("/", &[("host", "[::1]")]).unwrap();
    assert_eq!((normal.host(), normal.port()), ("[::1]", None));
}

#[test]
fn an_authority_that_is_missing_ambiguous_or_no_name_is_refused() {
    assert!(outbound("/", &[]).is_err());
    assert!(outbound("http://a/", &[("host", "b")]).is_err());
    assert!(outbound("/", &[("host", "a"), ("host", "a")]).is_err());
    assert!(outbound("https://a/", &[]).is_err());
    for host in [
        "", "a b", "a/b", "user@a", "a:", "a:0", "a:99999", "a:+80", "a:080", "[::1", "[x]", "a..", ".", "a,b", "a\tb",
        "é",
    ] {
        let value = HeaderValue::from_bytes(host.as_bytes()).unwrap();
        let mut parts = parts("GET", "/", &[]);
        parts.headers.insert(HOST, value);
        assert!(normalize(&mut parts, Direction::Outbound).is_err(), "{host:?}");
    }
}

#[test]
fn framing_that_two_readers_could_read_differently_is_refused() {
    for headers in [
        &[("transfer-encoding", "chunked"), ("content-length", "3")][..],
        &[("transfer-encoding", "gzip, chunked")],
        &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        &[("content-length", "3"), ("content-length", "4")],
        &[("authorization", "a"), ("authorization", "b")],
        &[("x_tenant", "acme")],
        &[("upgrade", "web socket"), ("connection", "upgrade")],
        &[("upgrade", "a/b/c"), ("connection", "upgrade")],
        &[("expect", "the-unexpected")],
    ] {
        let mut all = vec![("host", "a")];
        all.extend_from_slice(headers);
        assert!(matches!(outbound("/", &all), Err(Refusal::BadRequest { .. })), "{headers:?}");
    }
}

#[test]
fn connection_headers_of_http2_are_refused() {
    for header in [
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("keep-alive", "1"),
        ("proxy-connection", "x"),
    ] {
        let mut parts = parts("GET", "http://a/", &[header]);
        parts.version = Version::HTTP_2;
        assert!(normalize(&mut parts, Direction::Outbound).is_err(), "{header:?}");
    }
    let mut grpc = parts("POST", "http://a/", &[("te", "trailers")]);
    grpc.version = Version::HTTP_2;
    normalize(&mut grpc, Direction::Outbound).unwrap();
    assert_eq!(grpc.headers[http::header::TE], "trailers");
}

#[test]
fn what_ends_at_this_hop_is_stripped() {
    let ends = [
        ("host", "a"),
        ("connection", "keep-alive, TE, upgrade, no-such-header"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("proxy-authorization", "Basic x"),
        ("te", "gzip, trailers"),
        ("upgrade", "h2c"),
        ("http2-settings", "x"),
        ("expect", "100-continue"),
        ("x-kept", "1"),
    ];
    let (_, parts) = outbound("/", &ends).unwrap();
    let mut left: Vec<&str> = parts.headers.keys().map(http::HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["expect", "host", "te", "x-kept"]);
    assert_eq!(parts.headers["te"], "trailers");
}

#[test]
fn an_upgrade_is_asked_for_in_one_form_where_it_is_meant() {
    for (given, connection, version, asked) in [
        (&["websocket"][..], "keep-alive, Upgrade", Version::HTTP_11, Some("websocket")),
        (&["WebSocket", "h2c , irc/6.9"], "upgrade, http2-settings", Version::HTTP_11, Some("WebSocket, irc/6.9")),
        (&["h2c"], "upgrade, http2-settings", Version::HTTP_11, None),
        (&["websocket"], "keep-alive", Version::HTTP_11, None),
        (&["websocket"], "upgrade", Version::HTTP_10, None),
    ] {
        let mut parts = parts("GET", "/", &[("host", "a"), ("connection", connection)]);
        parts.version = version;
        for protocol in given {
            parts.headers.append("upgrade", HeaderValue::from_static(protocol));
        }
        let normal = normalize(&mut parts, Direction::Inbound { mesh_peer: true, trusted_hops: 0 }).unwrap();
        assert_eq!(normal.upgrade().map(|asked| asked.to_str().unwrap()), asked, "{given:?}");
        let said = |name| parts.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(said("upgrade"), Vec::from_iter(asked), "{given:?}");
        assert_eq!(said("connection"), Vec::from_iter(asked.map(|_| "upgrade")), "{given:?}");
        for (chosen, meant) in [("websocket", asked.is_some()), ("h2c", false), ("web", false), ("", false)] {
            assert_eq!(normal.asks_for(&HeaderValue::from_static(chosen)), meant, "{given:?}: {chosen}");
        }
    }
}

#[test]
fn a_caller_of_http_1_0_does_not_wait_for_a_word_before_its_body() {
    for (version, expects) in [(Version::HTTP_11, true), (Version::HTTP_10, false), (Version::HTTP_2, true)] {
        let mut parts = parts("POST", "/", &[("host", "a"), ("expect", "100-Continue")]);
        parts.version = version;
        assert_eq!(normalize(&mut parts, Direction::Outbound).unwrap().expects_continue(), expects);
        assert_eq!(parts.headers.get("expect").map(|value| value == "100-continue"), expects.then_some(true));
    }
}

#[test]
fn connection_cannot_take_away_a_header_that_policy_may_decide_by() {
    for name in ["authorization", "x-tenant", "cookie", "host", "tenant"] {
        let value = format!("close, {name}");
        let mut headers = vec![("connection", value.as_str())];
        if name != "host" {
            headers.push((name, "x"));
        }
        headers.push(("host", "a"));
        assert!(outbound("/", &headers).is_err(), "{name}");
    }
}

#[test]
fn reserved_headers_are_stripped_from_whoever_may_not_set_them() {
    let headers = [
        ("host", "a"),
        ("x-equerry-x", "1"),
        ("x-forwarded-client-cert", "By=me"),
        ("x-envoy-max-retries", "9"),
        ("x-other", "1"),
    ];
    let left = |direction| {
        let mut parts = parts("GET", "/", &headers);
        normalize(&mut parts, direction).unwrap();
        let mut left: Vec<String> = parts.headers.keys().map(ToString::to_string).collect();
        left.sort_unstable();
        left
    };
    assert_eq!(left(Direction::Outbound), ["host", "x-envoy-max-retries", "x-other"]);
    assert_eq!(left(Direction::Inbound { mesh_peer: false, trusted_hops: 0 }), ["host", "x-other"]);
    assert_eq!(
        left(Direction::Inbound { mesh_peer: true, trusted_hops: 0 }),
        ["host", "x-envoy-max-retries", "x-other"]
    );
}

#[test]
fn whom_a_stranger_speaks_for_is_believed_as_far_as_trusted_proxies_wrote_it() {
    let headers = [
        ("host", "a"),
        ("x-forwarded-for", "192.0.2.1, 192.0.2.2"),
        ("x-forwarded-for", "192.0.2.3"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "b"),
        ("x-real-ip", "192.0.2.1"),
        ("forwarded", "for=192.0.2.1"),
    ];
    let left = |direction| {
        let mut parts = parts("GET", "/", &headers);
        normalize(&mut parts, direction).unwrap();
        let whom = parts.headers.get_all("x-forwarded-for").iter().map(|value| value.to_str().unwrap().to_owned());
        (whom.collect::<Vec<_>>(), parts.headers.len())
    };
    let stranger = |trusted_hops| left(Direction::Inbound { mesh_peer: false, trusted_hops });
    assert_eq!(stranger(0), (vec![], 1), "nobody is believed");
    assert_eq!(stranger(1), (vec!["192.0.2.3".to_owned()], 5));
    assert_eq!(stranger(2), (vec!["192.0.2.2, 192.0.2.3".to_owned()], 5));
    assert_eq!(stranger(3).0, ["192.0.2.1, 192.0.2.2", "192.0.2.3"], "they came through three");
    let friend = left(Direction::Inbound { mesh_peer: true, trusted_hops: 0 });
    assert_eq!((friend.0.len(), friend.1), (2, 7), "a peer of the mesh has a name of its own");
}

#[test]
fn a_header_of_which_there_is_one_is_not_there_twice() {
    for name in ["content-type", "origin", "user-agent", "referer", "sec-fetch-site", "grpc-timeout", "range", "from"] {
        assert!(outbound("/", &[("host", "a"), (name, "1"), (name, "2")]).is_err(), "{name}");
    }
    outbound("/", &[("host", "a"), ("accept", "1"), ("accept", "2"), ("cookie", "a=1"), ("cookie", "b=2")]).unwrap();
}

#[test]
fn connect_names_a_host_and_a_port_and_is_no_request() {
    let mut request = parts("CONNECT", "a:80", &[("host", "a:80")]);
    assert!(matches!(normalize(&mut request, Direction::Outbound), Err(Refusal::BadRequest { .. })));
    for (target, host, meant) in [
        ("A.Shop:5432", None, Some("a.shop:5432")),
        ("a:5432", Some("a:5432"), Some("a:5432")),
        ("a:5432", Some("A"), Some("a:5432")),
        ("[::1]:80", Some("[::1]"), Some("[::1]:80")),
        ("a:5432", Some("b"), None),
        ("a:5432", Some("a:80"), None),
        ("a", None, None),
        ("a:0", None, None),
        ("http://a:80/", None, None),
        ("/a", Some("a:80"), None),
    ] {
        let headers: Vec<(&str, &str)> = host.into_iter().map(|host| ("host", host)).collect();
        let normal = normalize_connect(&parts("CONNECT", target, &headers));
        assert_eq!(normal.as_ref().ok().map(Normal::authority), meant, "{target} {host:?}: {normal:?}");
    }
    let mut request = parts("CONNECT", "a:80", &[]);
    request.version = Version::HTTP_2;
    assert!(
        matches!(normalize_connect(&request), Err(Refusal::BadRequest { detail }) if detail.contains("HTTP/1.1 only"))
    );
}

proptest! {
    #[test]
    fn the_normal_form_is_its_own_normal_form(given in "/(%[0-9a-fA-F]{2}|[a-zA-Z0-9./;:~%{}|_-]){0,24}") {
        if let Ok(once) = path(&given) {
            prop_assert_eq!(path(&once), Ok(once.clone()));
            prop_assert!(once.starts_with('/') && !once.contains("//"));
            prop_assert!(once.split('/').all(|segment| segment != "." && segment != ".."));
        }
    }

    #[test]
    fn nothing_a_stranger_sends_makes_it_panic_or_forward_what_it_did_not_judge(
        target in "[ -~]{0,40}", host in prop::collection::vec(any::<u8>(), 0..30), other in prop::collection::vec(any::<u8>(), 0..20),
        name in prop::sample::select(&["connection", "te", "upgrade", "expect", "transfer-encoding", "x-forwarded-client-cert"][..]),
    ) {
        let (Ok(uri), Ok(host), Ok(other)) = (target.parse::<Uri>(), HeaderValue::from_bytes(&host), HeaderValue::from_bytes(&other)) else {
            return Ok(());
        };
        let mut parts = parts("GET", "/", &[]);
        parts.uri = uri;
        parts.headers.insert(HOST, host);
        parts.headers.insert(name, other);
        if let Ok(normal) = normalize(&mut parts, Direction::Inbound { mesh_peer: false, trusted_hops: 0 }) {
            prop_assert_eq!(parts.uri.path_and_query(), Some(normal.target()));
            prop_assert_eq!(&parts.headers[HOST], normal.authority());
            prop_assert!(!normal.authority().is_empty() && normal.path().starts_with('/'));
        }
    }
}

#[test]
fn a_trailer_cannot_pass_for_a_header_that_was_judged() {
    let withheld = [http::header::HeaderName::from_static("x-user")];
    let mut trailers = http::HeaderMap::new();
    let forged = [
        "x-user",
        "authorization",
        "host",
        "x-forwarded-client-cert",
        "x-equerry-a",
        "content-length",
        "x_user",
        "traceparent",
    ];
    for name in forged.into_iter().chain(["grpc-status", "x-checksum"]) {
        trailers.insert(http::header::HeaderName::from_static(name), HeaderValue::from_static("1"));
    }
    super::trailers(&mut trailers, &withheld);
    let mut left: Vec<&str> = trailers.keys().map(http::header::HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["grpc-status", "x-checksum"]);
}

#[test]
fn what_is_known_of_a_request_is_shown_without_what_may_let_somebody_in() {
    let mut parts = parts("GET", "/a?access_token=sesame", &[("host", "orders"), ("authorization", "Bearer sesame")]);
    let mut normal = normalize(&mut parts, Direction::Outbound).unwrap();
    let connection =
        crate::authorize::Connection { port: 8080, peer_ip: [10, 0, 0, 1].into(), local_ip: None, sni: None };
    let facts = crate::authorize::Facts {
        method: &parts.method,
        authority: normal.authority(),
        path: normal.path(),
        headers: &parts.headers,
        connection,
    };
    let mut shown = format!("{facts:?} {normal:?}");
    let where_tokens_are = crate::token::Shown { headers: &mut parts.headers.clone(), normal: Some(&mut normal) };
    shown.push_str(&format!("{where_tokens_are:?}"));
    assert!(shown.contains("/a") && shown.contains("orders") && !shown.contains("sesame"), "{shown}");
}
