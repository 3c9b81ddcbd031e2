//! Who may do what over the admin API, and that it is written down.

use axum::body::Body;
use equerry_policies::names::{Namespace, TenantName};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::harness::{Place, ROUTE, SERVICE, TENANT, bare};
use crate::access::{Limits, Role};
use crate::audit::By;
use crate::control::Scope;

/// The same place, asked with a token of its own.
async fn as_someone(place: &mut Place, role: Role, namespaces: &[&str]) -> String {
    let namespaces = namespaces.iter().map(|name| Namespace::parse(name).unwrap()).collect();
    as_limited(place, role, Limits { namespaces, tenants: Vec::new() }).await
}

async fn as_limited(place: &mut Place, role: Role, limits: Limits) -> String {
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
    // Whatever they send, what they lack is what they are told.
    for path in ["apply", "delete", "tokens", "instances:bulk", "certificates/revocations"] {
        let refused = place.ask(Method::POST, &format!("/api/v1/{path}"), &[], "no JSON").await;
        refused.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
    }
    let put = place.ask(Method::PUT, "/api/v1/instances/orders-1", &[], "no JSON").await;
    put.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
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

/// What `/api/v1/version` tells of the audit log, and the metric beside it.
async fn proof(place: &Place) -> (Value, String) {
    let scraped = place.send(bare("/metrics")).await;
    let metric = scraped.text().lines().find(|line| line.starts_with("equerry_control_plane_audit_verified ")).unwrap();
    (place.get("/api/v1/version").await.json()["audit"].clone(), metric.rsplit(' ').next().unwrap().to_owned())
}

/// A place whose audit log has a few entries, all read.
async fn proved() -> Place {
    let place = Place::new().await;
    for name in ["a", "b", "c"] {
        place.apply(&[&SERVICE.replace("name: orders,", &format!("name: {name},"))], "").await;
    }
    place.control.sign_audit().await;
    place.control.prove_audit(Scope::All).await;
    place.apply(&[SERVICE], "").await;
    place.control.prove_audit(Scope::New).await;
    let (told, metric) = proof(&place).await;
    assert_eq!((&told["verified"], &told["upTo"], metric.as_str()), (&json!(true), &json!(6), "1"), "{told}");
    assert!(told["atUnix"].as_u64() > Some(0));
    place
}

#[tokio::test]
async fn an_entry_that_was_edited_in_the_store_is_noticed_without_anybody_asking() {
    let place = proved().await;
    place.at_the_file("UPDATE audit SET line = replace(line, 'Service shop/b', 'Service shop/x') WHERE seq = 3");
    place.control.prove_audit(Scope::All).await;
    let (told, metric) = proof(&place).await;
    assert_eq!((&told["verified"], metric.as_str()), (&json!(false), "0"), "{told}");
    assert!(told["found"].as_str().unwrap().contains("entry 4 does not follow from entry 3"), "{told}");
    let again = place.get("/api/v1/audit?after=6").await;
    assert!(again.text().contains("audit.verify") && again.text().contains("tampered"), "{}", again.text());
    // It stays found, and is written down once.
    place.control.prove_audit(Scope::New).await;
    place.control.prove_audit(Scope::All).await;
    assert_eq!(
        (proof(&place).await.1.as_str(), place.get("/api/v1/audit?after=6").await.text().lines().count()),
        ("0", 1)
    );
    // Somebody brings back what was written.
    place.at_the_file("UPDATE audit SET line = replace(line, 'Service shop/x', 'Service shop/b') WHERE seq = 3");
    place.control.prove_audit(Scope::All).await;
    assert_eq!(proof(&place).await.1, "1");
}

#[tokio::test]
async fn what_was_last_and_is_gone_or_another_is_noticed_within_a_minute() {
    for (statement, found) in [
        ("DELETE FROM audit WHERE seq >= 5", "its end is missing"),
        (
            "UPDATE audit SET line = replace(line, '\"test\"', '\"eve\"') WHERE seq = 6",
            "entry 6 is not the one that was written",
        ),
    ] {
        let place = proved().await;
        place.at_the_file(statement);
        place.control.prove_audit(Scope::New).await;
        let (told, metric) = proof(&place).await;
        assert_eq!(metric, "0", "{told}");
        assert!(told["found"].as_str().unwrap().contains(found), "{told}");
    }
}

#[tokio::test]
async fn a_viewer_reads_the_settings_in_force_and_who_said_each_and_no_secret_is_among_them() {
    let mut place = Place::new().await;
    let setting = |name, value, said: &str| crate::config::Setting { name, value, said: said.to_owned() };
    place.control.tell_settings(vec![
        setting("grpc", json!("127.0.0.1:15012"), "default"),
        setting("issuer-key", json!("/etc/equerry/issuer.key"), "flag"),
    ]);
    as_someone(&mut place, Role::Viewer, &[]).await;
    let told = place.get("/config").await.json();
    assert_eq!(told["settings"][1], json!({"name": "issuer-key", "value": "/etc/equerry/issuer.key", "said": "flag"}));
    assert!(!told.to_string().contains(&place.token));
    as_someone(&mut place, Role::Viewer, &["shop"]).await;
    place.get("/config").await.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
    place.send(bare("/config")).await.is_a_problem(StatusCode::UNAUTHORIZED, "token_missing");
    let described = place.send(bare("/openapi.json")).await.json();
    assert_eq!(described["paths"]["/config"]["get"]["operationId"], "get_config");
}

#[tokio::test]
async fn a_token_of_a_tenant_changes_and_sees_that_tenant_alone() {
    let mut place = Place::new().await;
    let other = TENANT.replace("acme", "other");
    place.apply(&[SERVICE, TENANT, &other], "").await;
    let limits = Limits { namespaces: Vec::new(), tenants: vec![TenantName::parse("acme").unwrap()] };
    as_limited(&mut place, Role::Operator, limits).await;

    let seen = place.get("/api/v1/documents").await.json();
    let names: Vec<&Value> = seen["items"].as_array().unwrap().iter().map(|one| &one["metadata"]["name"]).collect();
    assert_eq!(names, ["acme"], "{seen}");
    let usage = place.get("/api/v1/usage").await.json();
    let tenants: Vec<&Value> = usage["items"].as_array().unwrap().iter().map(|one| &one["tenant"]).collect();
    assert_eq!(tenants, ["acme"], "{usage}");
    assert_eq!(place.get("/api/v1/tenants/acme/usage").await.status, StatusCode::OK);
    let denied =
        place.get("/api/v1/tenants/other/usage").await.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
    assert!(denied["detail"].as_str().unwrap().ends_with("limited to tenant acme"), "{denied}");
    for list in ["services", "instances", "proxies"] {
        assert_eq!(place.get(&format!("/api/v1/{list}")).await.json()["items"], json!([]), "{list}");
    }

    let more = TENANT.replace("requests: 100", "requests: 200");
    assert_eq!(place.apply(&[&more], "").await.status, StatusCode::OK);
    for text in [other.replace("requests: 100", "requests: 200"), SERVICE.replace("port: 80,", "port: 81,")] {
        place.apply(&[&text], "").await.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
    }
    let instance = json!({"account": "shop/orders", "inbound": "10.0.0.7:15006", "ports": [8080]}).to_string();
    let put = place.ask(Method::PUT, "/api/v1/instances/orders-1", &[], instance).await;
    put.is_a_problem(StatusCode::FORBIDDEN, "permission_missing");
}
