//! Instances over the admin API, one by one and by the thousand.

use axum::body::Body;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::harness::{Place, SERVICE};

/// Where the mistakes of a body are.
fn pointers(problem: &Value) -> Vec<&str> {
    let errors = problem["errors"].as_array();
    errors.into_iter().flatten().map(|one| one["pointer"].as_str().unwrap()).collect()
}

fn line(id: &str, account: &str) -> String {
    json!({"id": id, "account": account, "labels": {"app": "orders"}, "inbound": "10.0.0.7:15006", "ports": [8080]})
        .to_string()
}

const LINES: [(&str, &str); 1] = [("content-type", "application/x-ndjson")];
const BULK: &str = "/api/v1/instances:bulk";

#[tokio::test]
async fn instances_are_registered_refused_and_taken_out() {
    let place = Place::new().await;
    place.apply(&[SERVICE], "").await;
    let instance = |account: &str| json!({"account": account, "labels": {"app": "orders"}, "inbound": "10.0.0.7:15006", "ports": [8080]});
    let registered =
        place.ask(Method::PUT, "/api/v1/instances/orders-1", &[], instance("shop/orders").to_string()).await;
    assert_eq!(registered.json(), json!({"instance": "shop/orders-1", "services": ["shop/orders"], "leaseMs": 15_000}));
    let stranger =
        place.ask(Method::PUT, "/api/v1/instances/orders-2", &[], instance("shop/frontend").to_string()).await;
    assert!(
        stranger.is_a_problem(StatusCode::FORBIDDEN, "not_listed")["detail"].as_str().unwrap().contains("shop/orders")
    );
    let held = place.ask(Method::PUT, "/api/v1/instances/orders-1", &[], instance("shop/frontend").to_string()).await;
    assert!(held.status.is_client_error());

    let mut second = instance("shop/orders");
    second["id"] = json!("orders-2");
    let mut third = instance("shop/frontend");
    third["id"] = json!("orders-3");
    let bulk = place
        .ask(Method::POST, "/api/v1/instances:bulk", &[], json!({"instances": [second, third]}).to_string())
        .await
        .json();
    assert_eq!(pointers(&bulk), ["/instances/1/account"], "{bulk}");
    let second = json!({"instances": [second]}).to_string();
    let bulk = place.ask(Method::POST, "/api/v1/instances:bulk", &[], second).await.json();
    assert_eq!(bulk["items"][0]["services"], json!(["shop/orders"]), "{bulk}");

    let service = place.get("/api/v1/services/shop/orders").await.json();
    assert_eq!((&service["healthy"], &service["total"]), (&json!(2), &json!(2)));
    assert_eq!(
        place.ask(Method::DELETE, "/api/v1/instances/orders-1?namespace=shop", &[], Body::empty()).await.status,
        StatusCode::NO_CONTENT
    );
    place
        .ask(Method::DELETE, "/api/v1/instances/orders-1?namespace=shop", &[], Body::empty())
        .await
        .is_a_problem(StatusCode::NOT_FOUND, "not_found");
}

#[tokio::test]
async fn many_instances_come_as_lines_all_or_none() {
    let place = Place::new().await;
    place.apply(&[SERVICE], "").await;

    let bad = [
        line("orders-1", "shop/orders"),
        "{\"id\": \"orders-2\"".into(),
        String::new(),
        line("Orders_3", "shop/orders"),
    ];
    let refused = place.ask(Method::POST, BULK, &LINES, bad.join("\n")).await;
    let problem = refused.is_a_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid");
    let told: Vec<_> = problem["complaints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["line"].as_u64(), one["key"].as_str()))
        .collect();
    assert_eq!(told, [(Some(2), Some("[1]")), (Some(4), Some("[3].id"))], "{problem}");
    let last = &problem["errors"][1];
    assert_eq!(last["pointer"], "/3/id", "{problem}");
    assert!(last["detail"].as_str().unwrap().starts_with("line 4: found"), "{problem}");
    assert!(!problem.to_string().contains("at line 1"), "one line is no body of its own: {problem}");
    assert_eq!(place.get("/api/v1/services/shop/orders").await.json()["total"], 0, "nothing is half applied");

    let good = [line("orders-1", "shop/orders"), line("orders-3", "shop/orders")];
    let answer = place.ask(Method::POST, BULK, &LINES, good.join("\n") + "\n").await;
    assert_eq!(answer.status, StatusCode::OK);
    let replies: Vec<Value> = answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(replies[0], json!({"instance": "shop/orders-1", "services": ["shop/orders"]}));
    assert_eq!(place.get("/api/v1/services/shop/orders").await.json()["total"], 2);

    let again = place.ask(Method::POST, BULK, &LINES, good.join("\n")).await;
    assert_eq!(again.text(), answer.text(), "put again, they are renewed");
}

#[tokio::test]
async fn one_line_that_may_not_register_keeps_all_out_and_is_named_and_written_down() {
    let place = Place::new().await;
    place.apply(&[SERVICE], "").await;
    let first = place.ask(Method::POST, BULK, &LINES, line("orders-1", "shop/orders")).await;
    assert_eq!(first.status, StatusCode::OK, "{}", first.text());
    let lease =
        async || place.get("/api/v1/instances/orders-1?namespace=shop").await.json()["leaseMs"].as_u64().unwrap();
    let before = lease().await;

    // The first renews, the second is new, the third is of nobody's, the fourth is held by another.
    let lines = [
        line("orders-1", "shop/orders"),
        line("orders-2", "shop/orders"),
        line("orders-3", "shop/frontend"),
        line("orders-1", "shop/frontend").replace("\"orders\"}", "\"other\"}"),
    ];
    let all = place.ask(Method::POST, BULK, &LINES, lines.join("\n")).await;
    let twice = all.is_a_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid");
    assert_eq!(pointers(&twice), ["/3/id"], "{twice}");
    assert!(twice["detail"].as_str().unwrap().contains("as in line 1"), "{twice}");

    let refused = place.ask(Method::POST, BULK, &LINES, lines[1..].join("\n")).await;
    let refused = refused.is_a_problem(StatusCode::CONFLICT, "refused");
    assert_eq!(pointers(&refused), ["/1/account", "/2/account"], "{refused}");
    let detail = |index: usize| refused["errors"][index]["detail"].as_str().unwrap();
    assert!(detail(0).starts_with("line 2: ") && detail(0).contains("equerry.dev/accounts"), "{refused}");
    assert!(detail(1).starts_with("line 3: ") && detail(1).contains("is held by account shop/orders"), "{refused}");
    assert!(refused["detail"].as_str().unwrap().contains("2 of 3 instances are refused, nothing was registered"));

    let renewing = place.ask(Method::POST, BULK, &LINES, [lines[0].as_str(), lines[2].as_str()].join("\n")).await;
    assert_eq!(pointers(&renewing.is_a_problem(StatusCode::CONFLICT, "refused")), ["/1/account"]);
    assert!(lease().await <= before, "no lease is extended by a body that is refused");
    assert_eq!(place.get("/api/v1/services/shop/orders").await.json()["total"], 1, "nothing is half applied");
    let log = place.get("/api/v1/audit").await;
    let told = log.text().lines().filter(|entry| entry.contains("instances:bulk") && entry.contains("\"refused\""));
    assert_eq!(told.filter(|entry| entry.contains("line 2: ")).count(), 2, "{}", log.text());
    let written = crate::store::instances::read_all(place.control.store()).await.unwrap();
    assert_eq!(written.len(), 1, "{written:?}");
}

#[tokio::test]
async fn every_mistake_of_a_line_is_told_with_its_place() {
    let place = Place::new().await;
    place.apply(&[SERVICE], "").await;
    for (wrong, pointers_to) in [
        (line("a", "shop/orders").replace("account", "acount"), vec!["/1/acount"]),
        (line("a", "shop/orders").replace("10.0.0.7:15006", "10.0.0.7"), vec!["/1/inbound"]),
        (line("a", "shop/orders").replace("8080", "80800"), vec!["/1/ports/0"]),
        (r#"{"id": "a", "inbound": "10.0.0.7:15006", "ports": []}"#.to_owned(), vec!["/1/account"]),
        (r#"{"account": "shop/orders", "inbound": "10.0.0.7:15006", "ports": []}"#.to_owned(), vec!["/1/id"]),
        (line("A", "orders").replace("8080", "0"), vec!["/1/id", "/1/account", "/1/ports"]),
    ] {
        let body = [line("good", "shop/orders"), wrong].join("\n");
        let refused = place.ask(Method::POST, BULK, &LINES, body).await;
        let problem = refused.is_a_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid");
        assert_eq!(pointers(&problem), pointers_to, "{problem}");
        assert!(
            problem["errors"]
                .as_array()
                .unwrap()
                .iter()
                .all(|one| one["detail"].as_str().unwrap().starts_with("line 2: "))
        );
    }
}

#[tokio::test]
async fn an_instance_that_was_registered_over_the_api_is_no_proxy_that_is_away() {
    let place = Place::new().await;
    place.apply(&[SERVICE], "").await;
    place.ask(Method::POST, BULK, &LINES, line("orders-1", "shop/orders")).await;
    place.beat("orders-2").await;
    let proxies = place.get("/api/v1/proxies").await.json();
    assert_eq!(proxies["items"].as_array().unwrap().len(), 1, "{proxies}");
    assert_eq!(proxies["items"][0]["instance"], "shop/orders-2", "a sidecar that beats and has no stream is away");
    let scraped = place.send(super::harness::bare("/metrics")).await;
    assert!(scraped.text().contains("equerry_control_plane_proxies{state=\"away\"} 1"), "{}", scraped.text());
    let instances = place.get("/api/v1/instances").await.json();
    let told: Vec<_> = instances["items"].as_array().unwrap().iter().map(|one| &one["sidecar"]).collect();
    assert_eq!(told, [false, true], "{instances}");

    // What a sidecar registered stays the sidecar's, whoever puts it again.
    place.ask(Method::POST, BULK, &LINES, line("orders-2", "shop/orders")).await;
    assert_eq!(place.get("/api/v1/proxies").await.json()["items"].as_array().unwrap().len(), 1);
    // Nobody waits for a proxy there is none of.
    place.apply(&[&SERVICE.replace("port: 80,", "port: 81,")], "").await;
    let epoch = place.get("/api/v1/epochs/2").await.json();
    assert_eq!(epoch["proxies"].as_array().unwrap().len(), 1, "{epoch}");
}
