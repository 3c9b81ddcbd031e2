//! The admin API: documents, views, the door, and how errors look.

use axum::body::Body;
use http::{Method, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::harness::{Answer, Place, ROUTE, SERVICE, TENANT, bare};
use super::*;

#[tokio::test]
async fn nobody_without_a_token_sees_anything_but_health_metrics_and_the_description() {
    let place = Place::new().await;
    for path in [
        "/api/v1/documents",
        "/api/v1/proxies",
        "/api/v1/tokens",
        "/api/v1/namespaces/shop/services/orders",
        "/api/v1/tenants/acme",
    ] {
        let answer = place.send(bare(path)).await;
        answer.is_a_problem(StatusCode::UNAUTHORIZED, "token_missing");
        assert!(answer.headers[header::WWW_AUTHENTICATE].to_str().unwrap().starts_with("Bearer"), "{path}");
    }
    for wrong in ["Bearer eqa1.AAAA.BBBB", "Basic YTpi", "Bearer", &format!("Bearer {}x", place.token)] {
        let mut request = bare("/api/v1/proxies");
        request.headers_mut().insert(header::AUTHORIZATION, wrong.parse().unwrap());
        assert_eq!(place.send(request).await.status, StatusCode::UNAUTHORIZED, "{wrong}");
    }
    let mut twice = bare("/api/v1/proxies");
    for _ in 0..2 {
        twice.headers_mut().append(header::AUTHORIZATION, format!("Bearer {}", place.token).parse().unwrap());
    }
    assert_eq!(place.send(twice).await.status, StatusCode::UNAUTHORIZED, "two tokens are none");
    for path in ["/healthz", "/metrics", "/openapi.json"] {
        assert_eq!(place.send(bare(path)).await.status, StatusCode::OK, "{path}");
    }
    assert_eq!(place.get("/api/v1/proxies").await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_apply_is_one_epoch_and_an_unchanged_one_is_none() {
    let place = Place::new().await;
    let first = place.apply(&[SERVICE, ROUTE], "").await;
    assert_eq!(first.status, StatusCode::OK, "{}", String::from_utf8_lossy(&first.body));
    let reply = first.json();
    assert_eq!(reply["epoch"], 1);
    assert_eq!(reply["changes"][1]["kind"], "HTTPRoute");
    assert_eq!(reply["changes"][1]["action"], "created");
    let again = place.apply(&[SERVICE], "").await.json();
    assert_eq!((&again["epoch"], &again["changes"][0]["action"]), (&json!(1), &json!("unchanged")));
}

#[tokio::test]
async fn a_dry_run_tells_what_would_change_and_changes_nothing() {
    let place = Place::new().await;
    let reply = place.apply(&[SERVICE], "?dryRun=true").await.json();
    assert_eq!((&reply["dryRun"], &reply["changes"][0]["action"]), (&json!(true), &json!("created")));
    assert_eq!(place.get("/api/v1/documents").await.json(), json!({"epoch": 0, "items": []}));
    place.apply(&[SERVICE], "?dryrun=true").await.is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
}

#[tokio::test]
async fn every_mistake_is_told_with_file_line_and_column_and_nothing_changes() {
    let place = Place::new().await;
    let bad = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec:\n  parentRefs: [{kind: Service, group: \"\", name: ordrs}]\n  rulez: []\n";
    let problem = place
        .apply(&[SERVICE, bad, "kind: Nonsense\n"], "")
        .await
        .is_a_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid");
    let complaints = problem["complaints"].as_array().unwrap();
    for (file, line) in [("1.yaml", 5), ("1.yaml", 6), ("2.yaml", 1)] {
        let found = complaints.iter().find(|complaint| complaint["file"] == file && complaint["line"] == line);
        assert!(found.is_some_and(|complaint| complaint["column"].as_u64() > Some(0)), "{file}:{line} in {problem:#}");
    }
    assert_eq!(place.control.epoch(), 0);
}

#[tokio::test]
async fn a_document_is_read_and_replaced_only_by_who_knows_its_version() {
    let place = Place::new().await;
    let path = "/api/v1/namespaces/shop/services/orders";
    let created = place.ask(Method::PUT, path, &[("if-none-match", "*")], SERVICE).await;
    assert_eq!(created.status, StatusCode::CREATED, "{}", String::from_utf8_lossy(&created.body));
    place
        .ask(Method::PUT, path, &[("if-none-match", "*")], SERVICE)
        .await
        .is_a_problem(StatusCode::CONFLICT, "conflict");

    let read = place.get(path).await;
    assert_eq!(read.etag(), created.etag());
    assert_eq!(read.json()["metadata"]["name"], "orders");
    let known = place.ask(Method::GET, path, &[("if-none-match", &read.etag())], Body::empty()).await;
    assert_eq!((known.status, known.body.len()), (StatusCode::NOT_MODIFIED, 0));

    let mut changed = read.json();
    changed["spec"]["ports"][0]["targetPort"] = json!(9090);
    let replaced = place.ask(Method::PUT, path, &[("if-match", &read.etag())], changed.to_string()).await;
    assert_eq!(replaced.status, StatusCode::OK);
    assert_ne!(replaced.etag(), read.etag());
    place
        .ask(Method::PUT, path, &[("if-match", &read.etag())], changed.to_string())
        .await
        .is_a_problem(StatusCode::CONFLICT, "conflict");
    place
        .ask(Method::DELETE, path, &[("if-match", &read.etag())], Body::empty())
        .await
        .is_a_problem(StatusCode::CONFLICT, "conflict");
    place
        .ask(Method::DELETE, path, &[("if-match", "unquoted")], Body::empty())
        .await
        .is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
    assert_eq!(
        place.ask(Method::DELETE, path, &[("if-match", &replaced.etag())], Body::empty()).await.status,
        StatusCode::OK
    );
    place.get(path).await.is_a_problem(StatusCode::NOT_FOUND, "not_found");
}

#[tokio::test]
async fn a_document_that_another_needs_stays() {
    let place = Place::new().await;
    place.apply(&[SERVICE, ROUTE], "").await;
    let problem = place.ask(Method::DELETE, "/api/v1/namespaces/shop/services/orders", &[], Body::empty()).await;
    let problem = problem.is_a_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid");
    assert!(!problem["complaints"].as_array().unwrap().is_empty());
    assert_eq!(place.control.epoch(), 1);
}

#[tokio::test]
async fn documents_that_need_each_other_go_together_in_one_epoch() {
    let place = Place::new().await;
    place.apply(&[SERVICE, ROUTE], "").await;
    let named = |kind: &str, name: &str| json!({"kind": kind, "namespace": "shop", "name": name});
    let ask = async |documents: Vec<Value>, ignore: bool| {
        place
            .ask(
                Method::POST,
                "/api/v1/delete",
                &[],
                json!({"documents": documents, "ignoreNotFound": ignore}).to_string(),
            )
            .await
    };
    let both = vec![named("service", "orders"), named("httproutes", "orders"), named("Service", "orders")];
    let missing = vec![named("service", "orders"), named("service", "nobody"), named("route", "orders")];
    ask(missing.clone(), false).await.is_a_problem(StatusCode::NOT_FOUND, "not_found");
    ask(vec![named("service", "orders")], false).await.is_a_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid");
    let reply = ask(both, false).await.json();
    assert_eq!((&reply["epoch"], reply["changes"].as_array().unwrap().len()), (&json!(2), 2), "{reply}");
    assert_eq!(ask(missing, true).await.json()["epoch"], 2, "nothing is left to delete");
}

#[tokio::test]
async fn the_path_and_the_document_must_name_the_same() {
    let place = Place::new().await;
    let problem = place.ask(Method::PUT, "/api/v1/namespaces/shop/services/other", &[], SERVICE).await;
    assert!(
        problem.is_a_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid")["detail"]
            .as_str()
            .unwrap()
            .contains("Service shop/other")
    );
    place
        .ask(Method::PUT, "/api/v1/namespaces/shop/services/orders", &[], format!("{SERVICE}---\n{ROUTE}"))
        .await
        .is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
    place.get("/api/v1/namespaces/shop/tenants/acme").await.is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
    place.get("/api/v1/httproutes/orders").await.is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
    let unknown =
        place.get("/api/v1/namespaces/shop/servces/orders").await.is_a_problem(StatusCode::NOT_FOUND, "not_found");
    assert!(unknown["detail"].as_str().unwrap().contains("did you mean services?"), "{unknown}");
}

#[tokio::test]
async fn documents_are_listed_by_kind_and_namespace_beside_the_routes_of_the_same_name() {
    let place = Place::new().await;
    assert_eq!(place.apply(&[SERVICE, ROUTE, TENANT], "").await.status, StatusCode::OK);
    let names = |answer: Answer| {
        answer.json()["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["kind"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(place.get("/api/v1/documents").await).len(), 3);
    assert_eq!(names(place.get("/api/v1/documents?kind=route").await), ["HTTPRoute"]);
    assert_eq!(names(place.get("/api/v1/documents?namespace=elsewhere").await).len(), 0);
    assert_eq!(names(place.get("/api/v1/namespaces/shop/HTTPRoute").await), ["HTTPRoute"]);
    assert_eq!(names(place.get("/api/v1/tenants").await), ["Tenant"]);
    assert_eq!(place.get("/api/v1/tenants/acme").await.json()["metadata"]["name"], "acme");
    let usage = place.get("/api/v1/tenants/acme/usage").await.json();
    assert_eq!(
        (&usage["quotas"][0]["limit"], &usage["quotas"][0]["windowSeconds"]),
        (&json!(100), &json!(5)),
        "{usage}"
    );
    place.get("/api/v1/tenants/nobody/usage").await.is_a_problem(StatusCode::NOT_FOUND, "not_found");
    assert_eq!(place.get("/api/v1/services").await.json()["items"][0]["service"], "shop/orders");
    let near = place.get("/api/v1/services/shop/order").await.is_a_problem(StatusCode::NOT_FOUND, "not_found");
    assert!(near["detail"].as_str().unwrap().contains("did you mean shop/orders?"));
}

#[tokio::test]
async fn a_token_is_shown_once_and_an_admin_token_lets_in() {
    let place = Place::new().await;
    let join = place
        .ask(
            Method::POST,
            "/api/v1/tokens",
            &[],
            json!({"kind": "join", "namespace": "shop", "account": "orders", "ttlSeconds": 1}).to_string(),
        )
        .await;
    assert_eq!(join.status, StatusCode::CREATED);
    let token = join.json()["token"].as_str().unwrap().to_owned();
    assert!(token.starts_with("eqj1."));
    let list = place.get("/api/v1/tokens").await;
    assert_eq!(list.json()["items"][0]["account"], "shop/orders");
    let secret = token.split('.').nth(2).unwrap();
    assert!(!String::from_utf8_lossy(&list.body).contains(secret));
    for wrong in [
        json!({"kind": "join", "namespace": "Shop", "account": "orders", "ttlSeconds": 1}),
        json!({"kind": "join", "namespace": "shop", "account": "orders", "ttlSeconds": 0}),
        json!({"kind": "root"}),
    ] {
        place
            .ask(Method::POST, "/api/v1/tokens", &[], wrong.to_string())
            .await
            .is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
    }
    let admin = place
        .ask(Method::POST, "/api/v1/tokens", &[], json!({"kind": "admin", "name": "ada"}).to_string())
        .await
        .json();
    let mut request = bare("/api/v1/version");
    request
        .headers_mut()
        .insert(header::AUTHORIZATION, format!("bearer {}", admin["token"].as_str().unwrap()).parse().unwrap());
    assert_eq!(place.send(request).await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_epoch_that_is_not_made_yet_is_not_found() {
    let place = Place::new().await;
    assert_eq!(place.get("/api/v1/epochs/0").await.json(), json!({"epoch": 0, "complete": true, "proxies": []}));
    place.get("/api/v1/epochs/1").await.is_a_problem(StatusCode::NOT_FOUND, "not_found");
    place.get("/api/v1/epochs/x").await.is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
}

#[tokio::test]
async fn what_is_too_large_or_nowhere_is_a_problem_too() {
    let place = Place::new().await;
    let huge = place.ask(Method::POST, "/api/v1/apply", &[], vec![b' '; MAX_BODY + 1]).await;
    huge.is_a_problem(StatusCode::PAYLOAD_TOO_LARGE, "too_large");
    let ten_megabytes = "#".repeat(10 << 20);
    let problem = place.apply(&[&ten_megabytes], "").await.is_a_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid");
    assert!(problem["detail"].as_str().unwrap().contains("1 MiB"), "{problem}");
    place.get("/api/v2/nothing").await.is_a_problem(StatusCode::NOT_FOUND, "not_found");
    let wrong = place.ask(Method::DELETE, "/api/v1/apply", &[], Body::empty()).await;
    assert!(
        wrong.status == StatusCode::METHOD_NOT_ALLOWED || wrong.status == StatusCode::NOT_FOUND,
        "{}",
        wrong.status
    );
    assert_eq!(wrong.headers[header::CONTENT_TYPE], PROBLEM_JSON);
    place
        .ask(Method::POST, "/api/v1/apply", &[], "not json")
        .await
        .is_a_problem(StatusCode::BAD_REQUEST, "bad_request");
}

#[tokio::test]
async fn metrics_count_by_route_template_and_never_by_what_a_client_wrote() {
    let place = Place::new().await;
    place.get("/api/v1/namespaces/evil-name/services/evil-name").await;
    place.send(bare("/evil-name")).await;
    let mut request = bare("/api/v1/proxies");
    *request.method_mut() = Method::from_bytes(b"EVIL").unwrap();
    place.send(request).await;
    let text = String::from_utf8(place.send(bare("/metrics")).await.body).unwrap();
    assert!(text.contains("equerry_control_plane_admin_request_duration_seconds_count{code=\"404\",method=\"GET\",route=\"/api/v1/namespaces/{namespace}/{kind}/{name}\"} 1"), "{text}");
    assert!(!text.to_lowercase().contains("evil"), "{text}");
}

#[tokio::test]
async fn the_description_is_openapi_3_1_and_names_every_route() {
    let place = Place::new().await;
    let description = place.send(bare("/openapi.json")).await.json();
    assert!(description["openapi"].as_str().unwrap().starts_with("3.1"), "{}", description["openapi"]);
    for path in [
        "/api/v1/namespaces/{namespace}/{kind}/{name}",
        "/api/v1/{kind}/{name}",
        "/api/v1/apply",
        "/api/v1/instances/{id}",
        "/api/v1/instances:bulk",
        "/api/v1/services",
        "/api/v1/services/{namespace}/{name}",
        "/api/v1/proxies",
        "/api/v1/epochs/{epoch}",
        "/api/v1/tenants/{name}/usage",
        "/api/v1/tokens",
        "/api/v1/tokens/{id}",
        "/api/v1/admin-tokens",
        "/api/v1/admin-tokens/{id}",
        "/api/v1/audit",
        "/api/v1/audit/head",
    ] {
        assert!(description["paths"][path].is_object(), "{path}");
    }
    assert_eq!(description["components"]["securitySchemes"]["adminToken"]["scheme"], "bearer");
    assert!(description["components"]["schemas"]["Problem"]["properties"]["complaints"].is_object());
    for (path, route) in description["paths"].as_object().unwrap() {
        for (method, operation) in route.as_object().unwrap() {
            for (status, response) in operation["responses"].as_object().unwrap() {
                assert!(
                    response["description"].is_string(),
                    "{method} {path} {status}: OpenAPI asks for a description"
                );
            }
            assert!(operation["responses"]["default"].is_object(), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn whoever_comes_when_all_hands_are_busy_is_told_to_come_back() {
    let place = Place::new().await;
    for (error, reason) in [
        (axum::BoxError::from(tower::load_shed::error::Overloaded::new()), "overload"),
        (axum::BoxError::from(tower::timeout::error::Elapsed::new()), "timeout"),
    ] {
        let response = door::beyond_limits(State(place.control.clone()), error).await.into_response();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        let answer = Answer { status: head.status, headers: head.headers, body };
        answer.is_a_problem(StatusCode::SERVICE_UNAVAILABLE, reason);
        assert!(answer.headers.contains_key(header::RETRY_AFTER));
    }
    let text = String::from_utf8(place.send(bare("/metrics")).await.body).unwrap();
    assert!(text.contains("equerry_control_plane_admin_refused_total{reason=\"overload\"} 1"), "{text}");
}
