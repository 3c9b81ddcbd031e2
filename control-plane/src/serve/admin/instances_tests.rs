//! Instances over the admin API, one by one and by the thousand.

use axum::body::Body;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::harness::{Place, SERVICE};

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
    assert_eq!(bulk["items"][0]["services"], json!(["shop/orders"]), "{bulk}");
    assert!(bulk["items"][1]["refused"].is_string());

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
async fn many_instances_come_as_lines_all_readable_or_none() {
    let place = Place::new().await;
    place.apply(&[SERVICE], "").await;
    let line = |id: &str, account: &str| {
        json!({"id": id, "account": account, "labels": {"app": "orders"}, "inbound": "10.0.0.7:15006", "ports": [8080]})
            .to_string()
    };
    let lines = [("content-type", "application/x-ndjson")];
    let bulk = "/api/v1/instances:bulk";

    let bad = [
        line("orders-1", "shop/orders"),
        "{\"id\": \"orders-2\"".into(),
        String::new(),
        line("Orders_3", "shop/orders"),
    ];
    let refused = place.ask(Method::POST, bulk, &lines, bad.join("\n")).await;
    let problem = refused.is_a_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid");
    let told: Vec<_> = problem["complaints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["line"].as_u64(), one["key"].as_str()))
        .collect();
    assert_eq!(told, [(Some(2), Some("")), (Some(4), Some("id"))], "{problem}");
    let last = &problem["errors"][1];
    assert_eq!(last["pointer"], "/id", "{problem}");
    assert!(last["detail"].as_str().unwrap().starts_with("line 4: found"), "{problem}");
    assert_eq!(place.get("/api/v1/services/shop/orders").await.json()["total"], 0, "nothing is half applied");

    let good = [line("orders-1", "shop/orders"), line("orders-2", "shop/frontend"), line("orders-3", "shop/orders")];
    let answer = place.ask(Method::POST, bulk, &lines, good.join("\n") + "\n").await;
    assert_eq!(answer.status, StatusCode::OK);
    let replies: Vec<Value> = answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(replies[0], json!({"instance": "shop/orders-1", "services": ["shop/orders"]}));
    assert!(replies[1]["refused"].as_str().unwrap().contains("equerry.dev/accounts"), "{}", replies[1]);
    assert_eq!(place.get("/api/v1/services/shop/orders").await.json()["total"], 2);

    let again = place.ask(Method::POST, bulk, &lines, good.join("\n")).await;
    assert_eq!(again.text(), answer.text(), "put again, they are renewed");
}
