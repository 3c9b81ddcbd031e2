//! Lists: by page, by label, watched; and what is told of Services, instances and proxies.

use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use equerry_policies::names::SpiffeId;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::harness::{Answer, Events, PATIENCE, Place, ROUTE, SERVICE, TENANT};
use super::proxies::unix;
use crate::audit::By;
use crate::registry::InstanceKey;
use crate::store::trust::LeafRow;

fn service(name: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop, labels: {{{labels}}}, annotations: {{equerry.dev/accounts: orders}}}}\nspec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8080}}]}}\n"
    )
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|one| one["metadata"]["name"].as_str().or(one["service"].as_str()).unwrap()).collect()
}

async fn instance(place: &Place, id: &str, more: Value) -> Answer {
    let mut body =
        json!({"account": "shop/orders", "labels": {"app": "orders"}, "inbound": "10.0.0.7:15006", "ports": [8080]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    place.ask(Method::PUT, &format!("/api/v1/instances/{id}"), &[], body.to_string()).await
}

#[tokio::test]
async fn a_list_comes_in_pages_and_what_stays_is_told_once_while_others_come_and_go() {
    let place = Place::new().await;
    let all: Vec<String> = ["b", "d", "f", "h"].map(|name| service(name, "")).to_vec();
    place.apply(&all.iter().map(String::as_str).collect::<Vec<_>>(), "").await;
    for list in ["/api/v1/documents", "/api/v1/namespaces/shop/services", "/api/v1/services"] {
        let first = place.get(&format!("{list}?limit=2")).await.json();
        assert_eq!((names(&first).len(), &first["remaining"]), (2, &json!(2)), "{first}");
        let next = first["continue"].as_str().unwrap();
        let second = place.get(&format!("{list}?limit=2&continue={next}")).await.json();
        assert_eq!((names(&second).len(), &second["continue"]), (2, &Value::Null), "{second}");
        let other = place.get(&format!("{list}?limit=2&labelSelector=a&continue={next}")).await;
        let problem = other.is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
        assert_eq!(problem["errors"][0]["parameter"], "continue", "{problem}");
    }
    let first = place.get("/api/v1/documents?limit=2").await.json();
    assert_eq!(names(&first), ["b", "d"]);
    place.ask(Method::DELETE, "/api/v1/namespaces/shop/services/d", &[], Body::empty()).await;
    place.apply(&[&service("a", ""), &service("e", "")], "").await;
    let next = first["continue"].as_str().unwrap();
    assert_eq!(names(&place.get(&format!("/api/v1/documents?limit=9&continue={next}")).await.json()), ["e", "f", "h"]);
}

#[tokio::test]
async fn lists_are_narrowed_by_labels_and_namespace_and_a_bad_selector_is_told() {
    let place = Place::new().await;
    let bank = SERVICE.replace("namespace: shop", "namespace: bank");
    place.apply(&[&service("a", "tier: web, zone: x"), &service("b", "tier: cache"), &bank], "").await;
    for (query, expected) in [
        ("labelSelector=tier%3Dweb", vec!["a"]),
        ("labelSelector=tier", vec!["a", "b"]),
        ("labelSelector=tier%20in%20(web,cache),!zone", vec!["b"]),
        ("labelSelector=!tier", vec!["orders"]),
        ("namespace=bank", vec!["orders"]),
        ("namespace=shop&labelSelector=tier!%3Dweb", vec!["b"]),
    ] {
        let listed = place.get(&format!("/api/v1/documents?{query}")).await.json();
        assert_eq!(names(&listed), expected, "{query}");
        let services = place.get(&format!("/api/v1/services?{query}")).await.json();
        assert_eq!(names(&services).len(), expected.len(), "{query}");
    }
    let odd = place.get("/api/v1/services?labelSelector=a%20b&limit=0&nmespace=shop").await;
    let problem = odd.is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
    let told: Vec<&str> =
        problem["errors"].as_array().unwrap().iter().map(|one| one["parameter"].as_str().unwrap()).collect();
    assert_eq!(told, ["limit", "labelSelector", "nmespace"], "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("did you mean namespace?"), "{problem}");
    place
        .get("/api/v1/namespaces/shop/services?namespace=bank")
        .await
        .is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
}

#[tokio::test]
async fn mistakes_in_a_body_are_told_with_json_pointers() {
    let place = Place::new().await;
    let pointers = |problem: &Value| -> Vec<String> {
        let errors = problem["errors"].as_array().unwrap();
        errors.iter().map(|one| one["pointer"].as_str().unwrap().to_owned()).collect()
    };
    let bad = "{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {\"name\": \"orders\", \"namespace\": \"shop\"}, \"spec\": {\"ports\": [{\"name\": \"a\", \"port\": 80}, {\"name\": \"b\", \"port\": \"x\"}], \"selctor\": {}}}";
    let refused = place.ask(Method::PUT, "/api/v1/namespaces/shop/services/orders", &[], bad).await;
    let problem = refused.is_a_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid");
    assert_eq!(pointers(&problem), ["/spec/ports/1/port", "/spec/selctor"], "{problem}");
    for (body, pointer) in [
        (json!({"files": [{"name": "a.yaml", "text": ""}, {"name": "b.yaml", "text": 7}]}), "/files/1/text"),
        (json!({"files": "x"}), "/files"),
    ] {
        let refused = place.ask(Method::POST, "/api/v1/apply", &[], body.to_string()).await;
        let problem = refused.is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
        assert_eq!(pointers(&problem), [pointer], "{problem}");
    }
    let instances = json!({"instances": [
        {"id": "a", "account": "shop/orders", "inbound": "10.0.0.7:15006", "ports": [8080]},
        {"id": "b", "account": "orders", "inbound": "10.0.0.7:15006", "ports": [8080]},
        {"id": "c", "account": "shop/orders", "inbound": "10.0.0.7:15006", "ports": [0]}]});
    let refused = place.ask(Method::POST, "/api/v1/instances:bulk", &[], instances.to_string()).await;
    let problem = refused.is_a_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid");
    assert_eq!(pointers(&problem), ["/instances/1/account", "/instances/2/ports"], "{problem}");
    let put = instance(&place, "a", json!({"leaseSeconds": 0})).await;
    assert_eq!(pointers(&put.is_a_problem(StatusCode::BAD_REQUEST, "bad_request")), ["/leaseSeconds"]);
}

#[tokio::test]
async fn a_lease_is_renewed_by_putting_it_again_and_a_service_says_why_a_member_takes_no_traffic() {
    let place = Place::new().await;
    place.apply(&[SERVICE, ROUTE, TENANT], "").await;
    assert_eq!(instance(&place, "orders-1", json!({"leaseSeconds": 60})).await.status, StatusCode::OK);
    let put =
        instance(&place, "orders-2", json!({"healthy": false, "detail": "the disk is full", "leaseSeconds": 1})).await;
    assert_eq!(put.json()["leaseMs"], 1_000);
    let before = place.get("/api/v1/instances/orders-1?namespace=shop").await.json();
    assert_eq!((&before["services"], &before["connected"]), (&json!(["shop/orders"]), &json!(false)), "{before}");
    let begun = Instant::now();
    while place.get("/api/v1/instances/orders-1?namespace=shop").await.json()["leaseMs"] == before["leaseMs"] {
        assert!(begun.elapsed() < PATIENCE);
    }
    assert_eq!(instance(&place, "orders-1", json!({"leaseSeconds": 60})).await.json()["leaseMs"], 60_000);

    let described = place.get("/api/v1/services/shop/orders").await.json();
    assert_eq!((&described["healthy"], &described["total"]), (&json!(1), &json!(2)));
    assert_eq!(described["members"][1]["detail"], "the disk is full", "{described}");
    assert_eq!(described["accounts"], json!(["shop/orders"]));
    assert_eq!(described["ports"][0]["targetPort"], 8080);
    let policies: Vec<(&str, &str)> = described["policies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["kind"].as_str().unwrap(), one["how"].as_str().unwrap()))
        .collect();
    assert!(policies.contains(&("HTTPRoute", "names")) && policies.contains(&("Tenant", "names")), "{described}");

    // A Service that comes later and does not list the account says whom it leaves out.
    let later = SERVICE.replace("name: orders,", "name: later,").replace("accounts: orders", "accounts: others");
    place.apply(&[&later], "").await;
    let later = place.get("/api/v1/services/shop/later").await.json();
    assert_eq!((&later["total"], later["leftOut"].as_array().unwrap().len()), (&json!(0), 2), "{later}");

    place.control.expire_leases(Instant::now() + Duration::from_secs(2)).await;
    let left = place.get("/api/v1/instances?service=shop/orders").await.json();
    assert_eq!(left["items"].as_array().unwrap().len(), 1, "the other was not put again: {left}");
    place.get("/api/v1/instances/orders-2?namespace=shop").await.is_a_problem(StatusCode::NOT_FOUND, "not_found");
    place.get("/api/v1/instances/orders-1").await.is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
}

#[tokio::test]
async fn policies_about_a_service_are_found_however_they_name_it() {
    let place = Place::new().await;
    let policy = |name: &str, namespace: &str, spec: &str| {
        format!(
            "apiVersion: equerry.dev/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{action: DENY, rules: [{{}}]{spec}}}\n"
        )
    };
    let texts = [
        policy("named", "shop", ", targetRefs: [{kind: Service, name: orders}]"),
        policy("selected", "shop", ", selector: {matchLabels: {app: orders}}"),
        policy("selects-others", "shop", ", selector: {matchLabels: {app: payments}}"),
        policy("everywhere-here", "shop", ""),
        policy("elsewhere", "bank", ""),
        policy("whole-mesh", "equerry-system", ""),
    ];
    let mut all: Vec<&str> = texts.iter().map(String::as_str).collect();
    all.push(SERVICE);
    assert_eq!(place.apply(&all, "").await.status, StatusCode::OK);
    let described = place.get("/api/v1/services/shop/orders").await.json();
    let mut found: Vec<(&str, &str)> = described["policies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["name"].as_str().unwrap(), one["how"].as_str().unwrap()))
        .collect();
    found.sort_unstable();
    let expected =
        [("everywhere-here", "namespace"), ("named", "names"), ("selected", "selects"), ("whole-mesh", "mesh")];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_proxy_that_is_away_says_so_and_lists_of_proxies_are_narrowed_by_state() {
    let place = Place::new().await;
    place.apply(&[SERVICE], "").await;
    place.beat("orders-1").await;
    let all = place.get("/api/v1/proxies").await.json();
    let proxy = &all["items"][0];
    assert_eq!((&proxy["state"], &proxy["account"]), (&json!("away"), &json!("shop/orders")), "{all}");
    assert!(proxy["why"].as_str().unwrap().contains("has no config stream"), "{all}");
    assert_eq!(proxy["certificateNotAfterUnix"], Value::Null, "nothing was ever issued to it: {all}");
    // What is known of its account from before this control plane started, and then what it showed itself.
    let (now, known) = (SystemTime::now(), Duration::from_secs(900));
    let id = SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/orders").unwrap();
    let row = LeafRow { serial: "7".into(), id: id.clone(), root: String::new(), until: now + known };
    place.control.leaf_issued(row, "a line".into(), None);
    let end =
        async || place.get("/api/v1/proxies").await.json()["items"][0]["certificateNotAfterUnix"].as_u64().unwrap();
    assert_eq!(end().await, unix(now + known));
    let instance = InstanceKey { namespace: id.namespace.clone(), id: "orders-1".parse().unwrap() };
    let connection = place.control.listeners().connected(instance.clone(), id, "0.1.0".into(), now);
    place.control.listeners().certified(&instance, connection, now + 2 * known);
    place.control.listeners().disconnected(&instance, connection);
    assert_eq!(end().await, unix(now + 2 * known));
    assert_eq!(place.get("/api/v1/proxies?state=away").await.json()["items"].as_array().unwrap().len(), 1);
    assert_eq!(place.get("/api/v1/proxies?state=in_step").await.json()["items"].as_array().unwrap().len(), 0);
    assert_eq!(place.get("/api/v1/proxies?labelSelector=app%3Dx").await.json()["items"], json!([]));
    place.get("/api/v1/proxies?state=well").await.is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
    let id = SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/orders").unwrap();
    place.control.revoke_identity(id, "stolen".into(), By::name("test")).await.unwrap();
    place.control.expire_leases(Instant::now()).await;
    let away = place.get("/api/v1/proxies?state=away").await.json();
    let why = away["items"][0]["why"].as_str().unwrap();
    assert!(why.contains("was revoked at") && why.contains("equerry certs restore spiffe://"), "{away}");
}

#[tokio::test]
async fn usage_is_told_of_every_tenant_with_who_holds_what() {
    let place = Place::new().await;
    place.apply(&[SERVICE, TENANT], "").await;
    let usage = place.get("/api/v1/usage").await.json();
    let quota = &usage["items"][0]["quotas"][0];
    assert_eq!((&usage["items"][0]["tenant"], &quota["limit"]), (&json!("acme"), &json!(100)), "{usage}");
    assert_eq!((&quota["services"], &quota["windowSeconds"]), (&json!(["shop/orders"]), &json!(5)));
    assert!(quota["endsInMs"].as_u64().unwrap() <= 5_000, "{usage}");
    place.get("/api/v1/usage?watch=1").await.is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
}

fn told(events: &[(&str, &str)]) -> Vec<(String, String)> {
    events.iter().map(|(name, key)| ((*name).to_owned(), (*key).to_owned())).collect()
}

#[tokio::test]
async fn documents_are_watched_and_a_watch_goes_on_from_the_epoch_it_had() {
    let place = Place::new().await;
    place.apply(&[&service("a", "")], "").await;
    let mut watch = Events::open(&place, "/api/v1/documents?watch=1&kind=service", &[]).await;
    assert_eq!(watch.batch().await, (told(&[("added", "Service shop/a")]), 1));
    place.apply(&[&service("b", "")], "").await;
    assert_eq!(watch.batch().await, (told(&[("added", "Service shop/b")]), 2));
    place.apply(&[TENANT.replace("shop/orders", "shop/a").as_str()], "").await;
    assert_eq!(watch.batch().await, (vec![], 3), "an epoch that changes nothing asked for is told alone");
    drop(watch);

    place.apply(&[&service("a", "x: y"), &service("c", "")], "").await;
    place.apply(&[&service("d", "")], "").await;
    place.ask(Method::DELETE, "/api/v1/namespaces/shop/services/d", &[], Body::empty()).await;
    place.ask(Method::DELETE, "/api/v1/namespaces/shop/services/b", &[], Body::empty()).await;
    let missed = told(&[("deleted", "Service shop/b"), ("changed", "Service shop/a"), ("added", "Service shop/c")]);
    let mut again = Events::open(&place, "/api/v1/documents?watch=1&kind=service", &[("last-event-id", "3")]).await;
    assert_eq!(again.batch().await, (missed.clone(), 7));
    let mut by_query = Events::open(&place, "/api/v1/namespaces/shop/services?watch=1&resumeAfter=3", &[]).await;
    assert_eq!(by_query.batch().await, (missed, 7));
    let unknown = place.get("/api/v1/documents?watch=1&resumeAfter=8").await;
    unknown.is_a_problem(StatusCode::GONE, "epoch_gone");
    place.get("/api/v1/documents?watch=1&limit=2").await.is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
}

#[tokio::test]
async fn services_instances_and_proxies_are_watched_and_beats_are_no_change() {
    let place = Place::new().await;
    place.apply(&[SERVICE], "").await;
    let mut services = Events::open(&place, "/api/v1/services?watch=1", &[]).await;
    let mut instances = Events::open(&place, "/api/v1/instances?watch=1&labelSelector=app%3Dorders", &[]).await;
    let mut proxies = Events::open(&place, "/api/v1/proxies?watch=1", &[]).await;
    assert_eq!(services.batch().await, (told(&[("added", "shop/orders")]), 1));
    assert_eq!(instances.batch().await, (vec![], 1));
    assert_eq!(proxies.batch().await, (vec![], 1));
    place.beat("orders-1").await;
    assert_eq!(services.batch().await, (told(&[("changed", "shop/orders")]), 1));
    assert_eq!(instances.batch().await, (told(&[("added", "shop/orders-1")]), 1));
    assert_eq!(proxies.batch().await, (told(&[("added", "shop/orders-1")]), 1));
    // A beat, and then something that is worth telling: the beat was not told.
    instance(&place, "orders-1", json!({})).await;
    instance(&place, "orders-1", json!({"healthy": false, "detail": "no disk"})).await;
    let (name, data, _) = instances.next().await.unwrap();
    assert_eq!((name.as_str(), &data["object"]["detail"]), ("changed", &json!("no disk")));
    instances.batch().await;
    place.ask(Method::DELETE, "/api/v1/instances/orders-1?namespace=shop", &[], Body::empty()).await;
    assert_eq!(instances.batch().await, (told(&[("deleted", "shop/orders-1")]), 1));
}

#[tokio::test]
async fn a_watch_ends_when_its_token_is_revoked_or_the_control_plane_stops_and_there_is_room_for_so_many() {
    let mut place = Place::new().await;
    let admin = place.token.clone();
    let made =
        place.ask(Method::POST, "/api/v1/tokens", &[], json!({"kind": "admin", "name": "guest"}).to_string()).await;
    place.token = made.json()["token"].as_str().unwrap().to_owned();
    let mut guest = Events::open(&place, "/api/v1/documents?watch=1", &[]).await;
    guest.batch().await;
    place.token = admin;
    let mut own = Events::open(&place, "/api/v1/documents?watch=1", &[]).await;
    own.batch().await;
    let id = place.get("/api/v1/admin-tokens").await.json()["items"][1]["id"].as_str().unwrap().to_owned();
    place.ask(Method::DELETE, &format!("/api/v1/admin-tokens/{id}"), &[], Body::empty()).await;
    let (name, problem, _) = guest.next().await.unwrap();
    assert_eq!((name.as_str(), &problem["reason"]), ("error", &json!("token_invalid")));
    assert!(guest.next().await.is_none(), "and that was the end");

    // The place of the one that ended is free a moment later.
    let room = crate::control::STREAMS - 1;
    let begun = Instant::now();
    while place.control.streams().available_permits() < room {
        assert!(begun.elapsed() < PATIENCE);
        tokio::task::yield_now().await;
    }
    let many: Vec<_> =
        futures_util::future::join_all((0..room).map(|_| Events::open(&place, "/api/v1/documents?watch=1", &[]))).await;
    place.get("/api/v1/documents?watch=1").await.is_a_problem(StatusCode::SERVICE_UNAVAILABLE, "overload");
    drop(many);
    place.control.stop();
    assert!(own.next().await.is_none());
}

#[tokio::test]
async fn the_audit_log_is_asked_for_after_any_number() {
    let place = Place::new().await;
    for after in [0, u64::MAX >> 1] {
        let log = place.get(&format!("/api/v1/audit?after={after}")).await;
        assert_eq!(log.status, StatusCode::OK, "{after}: {}", log.text());
    }
    let beyond = place.get(&format!("/api/v1/audit?after={}", u64::MAX)).await;
    beyond.is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
}

#[tokio::test]
async fn every_operation_is_described_under_a_name_of_its_own() {
    let place = Place::new().await;
    let described = place.send(super::harness::bare("/openapi.json")).await.json();
    let routes = described["paths"].as_object().unwrap().values().flat_map(|route| route.as_object().unwrap().values());
    let mut names: Vec<&str> = routes.map(|route| route["operationId"].as_str().unwrap()).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!((names.len(), all > 40), (all, true), "{names:?}");
}

/// Each field of each answer, its type, and whether it is always there, as the description tells them; schemathesis holds answers to that.
fn fields(description: &Value) -> String {
    let kind = |schema: &Value| -> String {
        let name = |schema: &Value| schema["$ref"].as_str().map(|path| path.rsplit('/').next().unwrap().to_owned());
        let plain = |schema: &Value| match &schema["type"] {
            Value::String(one) => one.clone(),
            Value::Array(several) => several.iter().map(|one| one.as_str().unwrap()).collect::<Vec<_>>().join(" or "),
            _ => "anything".to_owned(),
        };
        let one = |schema: &Value| name(schema).unwrap_or_else(|| plain(schema));
        match (schema["items"].is_object(), schema["additionalProperties"].is_object(), schema["oneOf"].as_array()) {
            (true, ..) => format!("{} of {}", one(schema), one(&schema["items"])),
            (_, true, _) => format!("{} of {}", one(schema), one(&schema["additionalProperties"])),
            (.., Some(several)) => several.iter().map(one).collect::<Vec<_>>().join(" or "),
            _ => one(schema),
        }
    };
    let mut lines = Vec::new();
    let schemas = &description["components"]["schemas"];
    for (name, schema) in schemas.as_object().unwrap() {
        let mut parts = schema["allOf"].as_array().cloned().unwrap_or_else(|| vec![schema.clone()]);
        let mut whole = 0;
        while let Some(part) = parts.get(whole).cloned() {
            whole += 1;
            // What it has of another, it has as if it were its own.
            if let Some(other) = part["$ref"].as_str().map(|path| path.rsplit('/').next().unwrap()) {
                lines.push(format!("{name}: all of {other}"));
                parts.extend(
                    schemas[other]["allOf"].as_array().cloned().unwrap_or_else(|| vec![schemas[other].clone()]),
                );
            }
        }
        for part in &parts {
            if let Some(words) = part["enum"].as_array() {
                lines.push(format!("{name}: one of {}", Value::from(words.clone())));
            }
            let always = part["required"].as_array().cloned().unwrap_or_default();
            for (field, schema) in part["properties"].as_object().into_iter().flatten() {
                let maybe = if always.contains(&json!(field)) { "" } else { ", may be absent" };
                lines.push(format!("{name}.{field}: {}{maybe}", kind(schema)));
            }
        }
    }
    lines.sort();
    lines.join("\n") + "\n"
}

/// Programs read these: a field may come, and none may go or change its type. `EQUERRY_BLESS=1` writes down new ones.
#[tokio::test]
async fn the_fields_of_every_answer_are_those_that_programs_know() {
    let place = Place::new().await;
    let told = fields(&place.send(super::harness::bare("/openapi.json")).await.json());
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/serve/admin/fields.txt");
    if std::env::var_os("EQUERRY_BLESS").is_some() {
        std::fs::write(&file, &told).unwrap();
    }
    let known = std::fs::read_to_string(&file).unwrap();
    for line in known.lines() {
        assert!(told.lines().any(|told| told == line), "gone or changed: {line}");
    }
    let new: Vec<&str> = told.lines().filter(|line| !known.lines().any(|known| known == *line)).collect();
    assert!(new.is_empty(), "new, write them down with EQUERRY_BLESS=1: {new:?}");
}

/// How long each takes is measured by the benchmark R1; here, that it answers at all, and whole.
#[tokio::test]
async fn every_list_answers_with_ten_thousand_instances() {
    let place = Place::new().await;
    let texts: Vec<String> = (0..100).map(|n| service(&format!("s{n}"), "tier: web")).collect();
    place.apply(&texts.iter().map(String::as_str).collect::<Vec<_>>(), "").await;
    let line = |n: usize| {
        json!({"id": format!("i{n}"), "account": "shop/orders", "labels": {"app": format!("s{}", n % 100)}, "inbound": "10.0.0.7:15006", "ports": [8080], "leaseSeconds": 600}).to_string()
    };
    let lines: Vec<String> = (0..10_000).map(line).collect();
    let kind = [("content-type", "application/x-ndjson")];
    let put = place.ask(Method::POST, "/api/v1/instances:bulk", &kind, lines.join("\n")).await;
    assert_eq!(put.status, StatusCode::OK);
    for (list, items) in
        [("documents", 100), ("services", 100), ("instances", 10_000), ("instances?service=shop/s7", 100)]
    {
        let answer = place.get(&format!("/api/v1/{list}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{list}");
        assert_eq!(answer.json()["items"].as_array().unwrap().len(), items, "{list}");
    }
    for list in ["proxies", "calls", "usage"] {
        assert_eq!(place.get(&format!("/api/v1/{list}")).await.json()["items"], json!([]), "{list}");
    }
    let one = place.get("/api/v1/services/shop/s1").await.json();
    assert_eq!((&one["healthy"], &one["total"]), (&json!(100), &json!(100)));
}
