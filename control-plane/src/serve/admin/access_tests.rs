//! Who may do what over the admin API, and that it is written down.

use axum::body::Body;
use equerry_policies::names::Namespace;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::harness::{Place, ROUTE, SERVICE, TENANT};
use crate::access::{Limits, Role};
use crate::audit::By;

/// The same place, asked with a token of its own.
async fn as_someone(place: &mut Place, role: Role, namespaces: &[&str]) -> String {
    let namespaces = namespaces.iter().map(|name| Namespace::parse(name).unwrap()).collect();
    let limits = Limits { namespaces, tenants: Vec::new() };
    let token = place.control.create_admin_token("someone", role, limits, By::name("test")).await.unwrap();
    std::mem::replace(&mut place.token, token)
}

#[tokio::test]
async fn a_viewer_looks_and_changes_nothing() {
    let mut place = Place::new().await;
    place.apply(&[SERVICE], "").await;
    as_someone(&mut place, Role::Viewer, &[]).await;
    assert_eq!(place.get("/api/v1/documents").await.json()["items"].as_array().unwrap().len(), 1);
    assert_eq!(place.apply(&[ROUTE], "?dryRun=true").await.status, StatusCode::OK, "to judge is to look");
    let refused = place.apply(&[ROUTE], "").await.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
    assert!(refused["detail"].as_str().unwrap().contains("permission documents:write is missing"), "{refused}");
    let path = "/api/v1/namespaces/shop/services/orders";
    place.ask(Method::PUT, path, &[], SERVICE).await.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
    place.ask(Method::DELETE, path, &[], Body::empty()).await.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
    let all = json!({"documents": [{"kind": "Service", "namespace": "shop", "name": "orders"}]}).to_string();
    place.ask(Method::POST, "/api/v1/delete", &[], all).await.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
    let instance = json!({"account": "shop/orders", "inbound": "10.0.0.7:15006", "ports": [8080]}).to_string();
    let put = place.ask(Method::PUT, "/api/v1/instances/orders-1", &[], instance).await;
    put.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
    for body in [
        json!({"kind": "join", "namespace": "shop", "account": "orders", "ttlSeconds": 60}),
        json!({"kind": "admin", "name": "me"}),
    ] {
        let made = place.ask(Method::POST, "/api/v1/tokens", &[], body.to_string()).await;
        made.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
    }
    assert_eq!(place.get("/api/v1/epochs/2").await.status, StatusCode::NOT_FOUND, "nothing was changed");
}

#[tokio::test]
async fn a_limited_token_neither_changes_nor_sees_what_is_elsewhere() {
    let mut place = Place::new().await;
    place.apply(&[SERVICE, TENANT, &SERVICE.replace("namespace: shop", "namespace: bank")], "").await;
    as_someone(&mut place, Role::Operator, &["bank"]).await;
    let seen = place.get("/api/v1/documents").await.json();
    assert_eq!(seen["items"].as_array().unwrap().len(), 1, "{seen}");
    assert_eq!(seen["items"][0]["metadata"]["namespace"], "bank");
    assert_eq!(place.get("/api/v1/services").await.json()["items"].as_array().unwrap().len(), 1);
    place
        .get("/api/v1/namespaces/shop/services/orders")
        .await
        .is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
    place.get("/api/v1/services/shop/orders").await.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
    place.get("/api/v1/tenants/acme/usage").await.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
    let refused = place.apply(&[ROUTE], "").await.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
    assert!(refused["detail"].as_str().unwrap().contains("limited to namespace bank"), "{refused}");
    assert_eq!(place.apply(&[&ROUTE.replace("namespace: shop", "namespace: bank")], "").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_revoked_token_is_good_for_nothing_at_once_and_the_last_admin_stays() {
    let mut place = Place::new().await;
    let admin = as_someone(&mut place, Role::Viewer, &[]).await;
    let viewer = std::mem::replace(&mut place.token, admin);
    let list = place.get("/api/v1/admin-tokens").await.json();
    let ids: Vec<_> =
        list["items"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!((ids.len(), &list["items"][1]["role"]), (2, &json!("viewer")), "{list}");
    let last = place.ask(Method::DELETE, &format!("/api/v1/admin-tokens/{}", ids[0]), &[], Body::empty()).await;
    last.is_a_problem(StatusCode::CONFLICT, "last");
    let path = format!("/api/v1/admin-tokens/{}", ids[1]);
    assert_eq!(place.ask(Method::DELETE, &path, &[], Body::empty()).await.status, StatusCode::NO_CONTENT);
    place.ask(Method::DELETE, &path, &[], Body::empty()).await.is_a_problem(StatusCode::NOT_FOUND, "not_found");
    place.token = viewer;
    place.get("/api/v1/documents").await.is_a_problem(StatusCode::UNAUTHORIZED, "token_invalid");
}

#[tokio::test]
async fn a_join_token_can_be_taken_back_until_it_is_used() {
    let place = Place::new().await;
    let body = json!({"kind": "join", "namespace": "shop", "account": "orders", "ttlSeconds": 60}).to_string();
    place.ask(Method::POST, "/api/v1/tokens", &[], body).await;
    let id = place.get("/api/v1/tokens").await.json()["items"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/tokens/{id}");
    assert_eq!(place.ask(Method::DELETE, &path, &[], Body::empty()).await.status, StatusCode::NO_CONTENT);
    assert_eq!(place.get("/api/v1/tokens").await.json()["items"][0]["state"], "revoked");
    place.ask(Method::DELETE, &path, &[], Body::empty()).await.is_a_problem(StatusCode::CONFLICT, "over");
}

#[tokio::test]
async fn every_change_and_every_refusal_is_in_a_log_that_proves_itself() {
    let mut place = Place::new().await;
    place.apply(&[SERVICE], "").await;
    place.apply(&["kind: Nonsense"], "").await;
    let admin = as_someone(&mut place, Role::Viewer, &[]).await;
    place.apply(&[ROUTE], "").await.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
    place.get("/api/v1/audit").await.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
    place.token = "eqa1.00.nobody".to_owned();
    place.get("/api/v1/documents").await.is_a_problem(StatusCode::UNAUTHORIZED, "token_invalid");
    place.token = admin;
    place.control.sign_audit().await;

    let head = place.get("/api/v1/audit/head").await.json();
    let log = place.get("/api/v1/audit").await;
    let key = equerry_certs::VerifyingKey::parse(head["key"].as_str().unwrap());
    let known = crate::audit::Head { seq: head["seq"].as_u64().unwrap(), hash: head["hash"].as_str().unwrap().into() };
    let mut verifier = crate::audit::Verifier::new(key.as_ref(), Some(known));
    log.text().lines().try_for_each(|line| verifier.line(line)).unwrap();
    assert_eq!(verifier.finish().unwrap().signed, head["seq"].as_u64().unwrap() - 1);

    let entries: Vec<Value> = log.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = entries
        .iter()
        .map(|entry| {
            format!(
                "{} {} {}",
                entry["by"]["name"].as_str().unwrap(),
                entry["action"].as_str().unwrap(),
                entry["outcome"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            "test token.create done",
            "test apply done",
            "test admin refused",
            "test token.create done",
            "someone admin refused",
            "someone admin refused",
            "somebody without a token that is known here admin refused",
            "control plane checkpoint done",
        ]
    );
    assert_eq!(entries[1]["about"], json!(["Service shop/orders created"]));
    assert_eq!(entries[1]["epoch"], 1);
    assert_eq!((&entries[4]["reason"], &entries[4]["by"]["role"]), (&json!("permission_missing"), &json!("viewer")));
    let after = place.get("/api/v1/audit?after=7&limit=1").await;
    assert_eq!(after.text().lines().count(), 1);
    place.get("/api/v1/audit?limit=0").await.is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
}
