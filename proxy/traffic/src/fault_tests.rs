//! Faults hit the share they should, only those they should, and what a request asks for only where it may.

use equerry_policies::{compile, document, interpret, names, view};
use http::HeaderValue;

use super::*;

fn destination(faults: &str) -> CompiledDestination {
    let mut text =
        "apiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: shop}\nspec: {ports: [{port: 80}]}\n"
            .to_owned();
    for (number, spec) in faults.lines().enumerate() {
        text.push_str(&format!(
            "---\napiVersion: equerry.dev/v1\nkind: FaultInjection\nmetadata: {{name: f{number}, namespace: shop}}\nspec: {{targetRefs: [{{kind: Service, name: orders}}], {spec}}}\n"
        ));
    }
    let meaning = interpret::interpret(&document::read("f.yaml", &text).unwrap()).unwrap();
    let orders = names::ServiceName::parse("shop/orders").unwrap();
    let caller = names::Namespace::parse("bank").unwrap();
    compile::destination(&view::destination(&meaning, &orders, &caller).unwrap()).unwrap()
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

fn once(
    destination: &CompiledDestination,
    pairs: &[(&'static str, &'static str)],
) -> (Option<u128>, Option<(u16, u8)>) {
    let met = inject(destination, &headers(pairs), &mut fastrand::Rng::with_seed(7));
    let abort = met.as_ref().and_then(|met| met.abort).map(|abort| (abort.status.as_u16(), abort.grpc));
    (met.and_then(|met| met.delay).map(|delay| delay.as_millis()), abort)
}

#[test]
fn the_written_shares_wait_and_fail() {
    let to = destination("delay: {percent: 10, fixed: 250ms}, abort: {percent: 5, httpStatus: 503}");
    let mut rng = fastrand::Rng::with_seed(1);
    let met: Vec<_> = (0..10_000).filter_map(|_| inject(&to, &HeaderMap::new(), &mut rng)).collect();
    let waited = met.iter().filter(|met| met.delay == Some(Duration::from_millis(250))).count();
    let failed = met.iter().filter(|met| met.abort.is_some()).count();
    assert!((900..1100).contains(&waited) && (430..570).contains(&failed), "{waited} {failed}");
    assert!(met.iter().all(|met| met.policy == "shop/f0"));
}

#[test]
fn without_faults_or_where_none_matches_nothing_happens() {
    assert_eq!(once(&destination(""), &[]), (None, None));
    let some = destination("match: {headers: [{name: x-chaos, value: \"on\"}]}, abort: {httpStatus: 418}");
    assert_eq!(once(&some, &[]), (None, None));
    assert_eq!(once(&some, &[("x-chaos", "on")]), (None, Some((418, 2))));
    assert_eq!(once(&destination("abort: {percent: 0, httpStatus: 500}"), &[]), (None, None));
}

#[test]
fn the_first_document_that_matches_is_the_one_that_is_asked() {
    let to = destination(
        "match: {headers: [{name: x-chaos, value: slow}]}, delay: {fixed: 1s}\nabort: {grpcStatus: UNAVAILABLE}",
    );
    assert_eq!(once(&to, &[("x-chaos", "slow")]), (Some(1000), None));
    assert_eq!(once(&to, &[]), (None, Some((503, 14))));
}

#[test]
fn a_request_gets_the_faults_it_asks_for_only_where_it_may_ask() {
    let asking = [("x-envoy-fault-delay-request", "100"), ("x-envoy-fault-abort-request", "429")];
    assert_eq!(once(&destination("headers: true"), &asking), (Some(100), Some((429, 14))));
    assert_eq!(once(&destination("delay: {percent: 0, fixed: 1s}"), &asking), (None, None));
    let also = destination("headers: true, abort: {httpStatus: 500}");
    assert_eq!(
        once(&also, &asking),
        (Some(100), Some((429, 14))),
        "what it asks for takes the place of what is written"
    );
    assert_eq!(once(&also, &[]), (None, Some((500, 2))));
    let open = destination("headers: true");
    assert_eq!(once(&open, &[("x-envoy-fault-abort-grpc-request", "5")]), (None, Some((404, 5))));
    let never = [("x-envoy-fault-delay-request", "100"), ("x-envoy-fault-delay-request-percentage", "0")];
    assert_eq!(once(&open, &never), (None, None));
    assert_eq!(once(&open, &[("x-envoy-fault-delay-request", "99999999999")]), (Some(600_000), None));
    for (name, value) in [
        ("x-envoy-fault-delay-request", "soon"),
        ("x-envoy-fault-delay-request", "-5"),
        ("x-envoy-fault-abort-request", "204"),
        ("x-envoy-fault-abort-request", "600"),
        ("x-envoy-fault-abort-grpc-request", "0"),
        ("x-envoy-fault-abort-grpc-request", "17"),
    ] {
        assert_eq!(once(&open, &[(name, value)]), (None, None), "{name} {value}");
    }
}

#[test]
fn a_status_of_one_protocol_is_told_in_the_other() {
    for code in 1..=16 {
        assert!(Abort::grpc(code).status.as_u16() >= 400, "{code}");
    }
    assert_eq!(Abort::http(StatusCode::NOT_FOUND).grpc, 12);
    let waits = Injected { policy: "shop/f0", delay: Some(Duration::from_secs(1)), abort: None };
    assert_eq!(waits.refusal(), None);
    let told = Injected { abort: Some(Abort::grpc(4)), ..waits }.refusal().unwrap();
    assert_eq!((told.status().as_u16(), told.reason().as_str(), told.reason().flag()), (504, "fault", "FI"));
    assert_eq!(Abort::grpc(4).status, StatusCode::GATEWAY_TIMEOUT);
}
