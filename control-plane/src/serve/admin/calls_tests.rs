//! The map of calls, and single calls, over the admin API; sidecars are played by calling what their stream calls.

use http::Method;
use serde_json::Value;

use super::super::harness::{Events, Place, SERVICE};
use super::*;
use crate::access::{Limits, Role};

fn key(id: &str) -> InstanceKey {
    InstanceKey { namespace: "shop".parse().unwrap(), id: id.parse().unwrap() }
}

fn account(name: &str) -> AccountName {
    AccountName::parse(name).unwrap()
}

fn count(outbound: bool, source: &str, ends: &[(u32, &str, bool, bool, u64)]) -> proto::CallCount {
    let end = |(status, reason, failed, refused, count): &(u32, &str, bool, bool, u64)| proto::CallEnd {
        status: *status,
        reason: (*reason).into(),
        tcp: false,
        failed: *failed,
        refused: *refused,
        count: *count,
    };
    let mut took = vec![0; 15];
    took[3] = ends.iter().map(|end| end.4).sum();
    let (source, destination) = (source.into(), "shop/orders".into());
    proto::CallCount {
        outbound,
        source,
        destination,
        ends: ends.iter().map(end).collect(),
        took,
        bytes_in: 0,
        bytes_out: 0,
    }
}

/// A sidecar reports, just after its start.
fn report(place: &Place, id: &str, who: &str, counts: Vec<proto::CallCount>) {
    place.control.take_calls(&key(id), &account(who), &proto::CallReport { counts, ..Default::default() });
}

/// The sidecar of `orders-1` answers the first question that it is asked, and this is which.
fn answering(place: &Place, samples: Vec<proto::CallSample>) -> tokio::task::JoinHandle<proto::CallQuestion> {
    let (control, mut wishes) = (place.control.clone(), place.control.wishes());
    tokio::spawn(async move {
        loop {
            let asked = control.wish_of(&key("orders-1"), &BTreeSet::new()).questions;
            if let Some(question) = asked.into_iter().next() {
                let answer = proto::CallAnswer { question: question.id, samples };
                control.lookers().answered(&key("orders-1"), &account("shop/orders"), answer);
                return question;
            }
            wishes.changed().await.unwrap();
        }
    })
}

async fn shop() -> Place {
    let place = Place::new().await;
    place.apply(&[SERVICE], "").await;
    let body =
        json!({"account": "shop/orders", "labels": {"app": "orders"}, "inbound": "10.0.0.7:15006", "ports": [8080]});
    place.ask(Method::PUT, "/api/v1/instances/orders-1", &[], body.to_string()).await;
    place
}

#[tokio::test]
async fn the_map_tells_who_calls_whom_as_both_sides_saw_it() {
    let place = shop().await;
    let ends =
        [(200, "ok", false, false, 90), (503, "breaker_open", true, false, 6), (403, "authz_denied", false, true, 4)];
    report(&place, "frontend-1", "shop/frontend", vec![count(true, "shop/frontend", &ends)]);
    report(
        &place,
        "orders-1",
        "shop/orders",
        vec![count(false, "shop/frontend", &ends[..1]), count(false, "bank/teller", &ends[..1])],
    );
    let map = place.get("/api/v1/calls").await.json();
    assert_eq!((&map["windowSeconds"], &map["reporting"]), (&json!(60), &json!(2)), "{map}");
    let edge = &map["items"][1];
    assert_eq!((&edge["source"], &edge["destination"]), (&json!("shop/frontend"), &json!("shop/orders")));
    let caller = &edge["caller"];
    assert_eq!(
        (&caller["requests"], &caller["failed"], &caller["refused"]),
        (&json!(100), &json!(6), &json!(4)),
        "{map}"
    );
    assert_eq!(caller["p50Ms"], 3.75, "{map}");
    // 100 within the first slot of five seconds, and however long this test took since.
    let rate = caller["requestsPerSecond"].as_f64().unwrap();
    assert!(rate > 1.0 && rate <= 20.0, "{map}");
    assert_eq!(caller["ends"][0], json!({"status": 200, "reason": "ok", "requests": 90}));
    assert_eq!(edge["callee"]["requests"], 90);

    let count = async |query: &str| {
        place.get(&format!("/api/v1/calls?{query}")).await.json()["items"].as_array().unwrap().len()
    };
    assert_eq!(count("namespace=bank").await, 1);
    assert_eq!(count("source=shop/frontend").await, 1);
    assert_eq!(count("destination=shop/payments").await, 0);
    assert_eq!(count("limit=1").await, 1);
    place.get("/api/v1/calls?source=frontend").await.is_a_problem(StatusCode::BAD_REQUEST, "bad_request");

    let described = place.get("/api/v1/services/shop/orders").await.json();
    assert_eq!(described["callers"].as_array().unwrap().len(), 2, "{described}");
    assert_eq!(described["callees"], json!([]));
}

#[tokio::test]
async fn a_limited_token_sees_the_calls_of_its_namespaces_and_who_is_at_the_other_end() {
    let mut place = shop().await;
    let ends = [(200, "ok", false, false, 1)];
    report(
        &place,
        "orders-1",
        "shop/orders",
        vec![count(false, "shop/frontend", &ends), count(false, "bank/teller", &ends)],
    );
    let limits = Limits { namespaces: vec!["bank".parse().unwrap()], tenants: Vec::new() };
    let made = place.control.create_admin_token("bank", Role::Operator, limits, By::name("test")).await;
    place.token = made.unwrap();
    let map = place.get("/api/v1/calls").await.json();
    let sources: Vec<&Value> = map["items"].as_array().unwrap().iter().map(|edge| &edge["source"]).collect();
    assert_eq!(sources, ["bank/teller"]);
    // Nobody of that namespace reports, so nobody is asked.
    assert_eq!(place.get("/api/v1/calls/recent").await.json()["asked"], 0);
}

#[tokio::test]
async fn single_calls_take_a_permission_and_every_look_is_written_down() {
    let mut place = shop().await;
    let made = place.control.create_admin_token("viewer", Role::Viewer, Limits::default(), By::name("test")).await;
    let admin = std::mem::replace(&mut place.token, made.unwrap());
    for path in ["/api/v1/calls/recent", "/api/v1/calls/tap"] {
        let refused = place.get(path).await.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
        assert!(refused["detail"].as_str().unwrap().contains("calls:read"), "{refused}");
    }
    assert_eq!(place.get("/api/v1/calls").await.status, StatusCode::OK, "counts are for everybody");
    place.token = admin;
    for (query, parameter) in [
        ("status=900", "status"),
        ("status=6xx", "status"),
        ("direction=up", "direction"),
        ("instance=orders-1", "instance"),
        ("perSecond=5", "perSecond"),
        ("limit=0", "limit"),
    ] {
        let problem = place.get(&format!("/api/v1/calls/recent?{query}")).await;
        let problem = problem.is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
        assert_eq!(problem["errors"][0]["parameter"], parameter, "{problem}");
    }
    assert_eq!(place.get("/api/v1/calls/recent?status=5xx&failed=1").await.status, StatusCode::OK);
    let log = place.get("/api/v1/audit").await;
    let looked = log.text().lines().find(|line| line.contains("calls.recent") && line.contains("\"done\"")).unwrap();
    assert!(looked.contains(r#""about":["calls","status 500 to 599","failed or refused"]"#), "for people: {looked}");
    let looks = log.text().lines().filter(|line| line.contains("calls.recent") && line.contains("\"done\"")).count();
    assert_eq!(looks, 1, "{}", log.text());
}

#[tokio::test]
async fn recent_calls_are_gathered_from_sidecars_that_answer_and_not_waited_for_from_others() {
    let place = shop().await;
    for id in ["orders-1", "frontend-1"] {
        report(&place, id, "shop/orders", Vec::new());
    }
    let sample = |at| proto::CallSample {
        started_unix_ms: at,
        status: 503,
        reason: "overload".into(),
        took_us: 1_500,
        ..Default::default()
    };
    let sidecar = answering(&place, vec![sample(1), sample(3), sample(2)]);
    let answer = place.get("/api/v1/calls/recent?status=5xx&limit=2").await.json();
    let question = sidecar.await.unwrap();
    assert_eq!((question.limit, question.filter.unwrap().status_from), (2, 500));
    assert_eq!((&answer["asked"], &answer["answered"]), (&json!(2), &json!(1)), "{answer}");
    let told: Vec<_> = answer["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            (
                one["instance"].as_str().unwrap(),
                one["startedUnixMs"].as_u64().unwrap(),
                one["durationMs"].as_f64().unwrap(),
            )
        })
        .collect();
    assert_eq!(told, [("shop/orders-1", 3, 1.5), ("shop/orders-1", 1, 1.5)]);
    assert!(place.control.wish_of(&key("frontend-1"), &BTreeSet::new()).questions.is_empty(), "the question is over");
}

#[tokio::test]
async fn calls_are_followed_as_they_end_until_whoever_follows_is_gone() {
    let place = shop().await;
    report(&place, "orders-1", "shop/orders", Vec::new());
    let mut tap = Events::open(&place, "/api/v1/calls/tap?failed=1&namespace=shop&perSecond=2", &[]).await;
    let (name, told, _) = tap.next().await.unwrap();
    assert_eq!((name.as_str(), told), ("told", json!({"proxies": 1, "dropped": 0})));
    let wish = place.control.wish_of(&key("orders-1"), &BTreeSet::new());
    assert!(wish.follows[0].filter.as_ref().unwrap().failed);
    for status in [500, 501, 502] {
        let sample = proto::CallSample { status, follows: vec![wish.follows[0].id], ..Default::default() };
        place.control.lookers().saw(&key("orders-1"), &account("shop/orders"), sample, 1, Instant::now());
    }
    let mut statuses = Vec::new();
    let dropped = loop {
        match tap.next().await.unwrap() {
            (name, call, _) if name == "call" => statuses.push(call["status"].as_u64().unwrap()),
            (_, told, _) if told["dropped"] != 0 => break told["dropped"].clone(),
            _ => {}
        }
    };
    assert_eq!((statuses, dropped), (vec![500, 501], json!(1)));
    let mut wishes = place.control.wishes();
    wishes.borrow_and_update();
    drop(tap);
    tokio::time::timeout(Duration::from_secs(10), wishes.changed()).await.unwrap().unwrap();
    assert_eq!(place.control.wish_of(&key("orders-1"), &BTreeSet::new()), proto::CallWish::default());
}

/// The place, asked with a token that is limited to tenants.
async fn of_tenants(place: &mut Place, tenants: &[&str]) {
    let tenants = tenants.iter().map(|name| TenantName::parse(name).unwrap()).collect();
    let limits = Limits { namespaces: Vec::new(), tenants };
    let made = place.control.create_admin_token("support", Role::Operator, limits, By::name("test")).await;
    place.token = made.unwrap();
}

#[tokio::test]
async fn a_token_of_a_tenant_looks_at_what_that_tenant_was_charged_for_and_at_nothing_else() {
    let mut place = shop().await;
    report(&place, "orders-1", "shop/orders", vec![count(false, "shop/frontend", &[(200, "ok", false, false, 1)])]);
    of_tenants(&mut place, &["acme"]).await;
    assert_eq!(place.get("/api/v1/calls").await.json()["items"], json!([]), "the map is of namespaces, not of tenants");
    for path in ["/api/v1/calls/recent?tenant=other", "/api/v1/calls/tap?tenant=other"] {
        let refused = place.get(path).await.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
        let said = "permission calls:read is missing for tenant other: token \"support\" is limited to tenant acme";
        assert_eq!(refused["detail"], said);
    }

    // Of one tenant there is no need to say which; what a sidecar tells of others is dropped.
    let mut tap = Events::open(&place, "/api/v1/calls/tap", &[]).await;
    let wish = place.control.wish_of(&key("orders-1"), &BTreeSet::new());
    assert_eq!(wish.follows[0].filter.as_ref().unwrap().tenant, "acme");
    for (status, tenant) in [(201, "other"), (202, ""), (200, "acme")] {
        let follows = vec![wish.follows[0].id];
        let sample = proto::CallSample { status, tenant: tenant.into(), follows, ..Default::default() };
        place.control.lookers().saw(&key("orders-1"), &account("shop/orders"), sample, 1, Instant::now());
    }
    let call = loop {
        match tap.next().await.unwrap() {
            (name, call, _) if name == "call" => break call,
            _ => {}
        }
    };
    assert_eq!((&call["status"], &call["tenant"]), (&json!(200), &json!("acme")));
    drop(tap);

    let sample = |tenant: &str| proto::CallSample { tenant: tenant.into(), ..Default::default() };
    let sidecar = answering(&place, vec![sample("other"), sample("acme")]);
    let recent = place.get("/api/v1/calls/recent").await.json();
    sidecar.await.unwrap();
    let tenants: Vec<&Value> = recent["items"].as_array().unwrap().iter().map(|call| &call["tenant"]).collect();
    assert_eq!(tenants, ["acme"], "{recent}");

    of_tenants(&mut place, &["acme", "other"]).await;
    let which = place.get("/api/v1/calls/recent").await.is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
    assert_eq!(which["errors"][0]["parameter"], "tenant", "{which}");
}
