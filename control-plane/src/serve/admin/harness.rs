//! The admin API in process, for tests: a real store and authority in a temporary directory, no socket.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use equerry_policies::names::TrustDomain;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::problem::PROBLEM_JSON;
use super::router;
use crate::access::{Limits, Role};
use crate::audit::By;
use crate::authority::Authority;
use crate::control::ControlPlane;
use crate::registry::{LEASE, Registration};
use crate::store::{Store, StoreOptions};

pub(super) const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders}}\nspec: {selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}\n";
pub(super) const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: orders, namespace: shop}\nspec:\n  parentRefs: [{kind: Service, group: \"\", name: orders}]\n  rules: [{backendRefs: [{name: orders, port: 80}]}]\n";
pub(super) const TENANT: &str = "apiVersion: equerry.dev/v1\nkind: Tenant\nmetadata: {name: acme}\nspec:\n  match: [{claim: {name: tenant, value: acme}}]\n  quotas: [{services: [shop/orders], requests: 100, window: 5s}]\n";

/// Longest wait for something that must happen.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The API, and a token for it. The directory lives as long as the place.
pub(super) struct Place {
    pub(super) router: Router,
    pub(super) control: ControlPlane,
    pub(super) token: String,
    dir: tempfile::TempDir,
}

/// An answer, read whole.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(super) fn etag(&self) -> String {
        self.headers[header::ETAG].to_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(super) fn is_a_problem(&self, status: StatusCode, reason: &str) -> Value {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.headers[header::CONTENT_TYPE], PROBLEM_JSON);
        let problem = self.json();
        assert_eq!((&problem["reason"], &problem["status"]), (&json!(reason), &json!(status.as_u16())), "{problem}");
        problem
    }
}

impl Place {
    pub(super) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("equerry.db"), &StoreOptions::default()).unwrap();
        let domain = TrustDomain::parse("equerry.local").unwrap();
        let authority = Authority::open(dir.path(), &domain, Duration::from_secs(3600), SystemTime::now()).unwrap();
        let control = ControlPlane::restore(store, Arc::new(authority)).await.unwrap();
        let token = control.create_admin_token("test", Role::Admin, Limits::default(), By::name("test")).await.unwrap();
        Self { router: router(control.clone()), control, token, dir }
    }

    /// Somebody at the file of the store, behind the control plane's back.
    pub(super) fn at_the_file(&self, statement: &str) {
        let file = rusqlite::Connection::open(self.dir.path().join("equerry.db")).unwrap();
        assert!(file.execute(statement, ()).unwrap() > 0, "{statement}");
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        Answer { status: head.status, headers: head.headers, body: body.collect().await.unwrap().to_bytes().to_vec() }
    }

    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request =
            Request::builder().method(method).uri(path).header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(body.into()).unwrap()).await
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, &[], Body::empty()).await
    }

    /// The sidecar of an instance of Service `orders` registers it.
    pub(super) async fn beat(&self, id: &str) {
        let registration = Registration {
            id: id.parse().unwrap(),
            account: "shop/orders".parse().unwrap(),
            generation: 1,
            labels: [("app".to_owned(), "orders".to_owned())].into(),
            inbound: "10.0.0.7:15006".parse().unwrap(),
            ports: vec![8080],
            healthy: true,
            health_detail: String::new(),
            lease: LEASE,
            by_api: false,
        };
        self.control.put_instance(registration, None).await.unwrap();
    }

    pub(super) async fn apply(&self, texts: &[&str], query: &str) -> Answer {
        let files: Vec<_> = texts
            .iter()
            .enumerate()
            .map(|(index, text)| json!({"name": format!("{index}.yaml"), "text": text}))
            .collect();
        self.ask(Method::POST, &format!("/api/v1/apply{query}"), &[], json!({"files": files}).to_string()).await
    }
}

pub(super) fn bare(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

/// An open stream of events.
pub(super) struct Events {
    body: Body,
    text: String,
}

impl Events {
    pub(super) async fn open(place: &Place, path: &str, headers: &[(&str, &str)]) -> Self {
        let mut request = Request::get(path).header(header::AUTHORIZATION, format!("Bearer {}", place.token));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = place.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
        Self { body: response.into_body(), text: String::new() }
    }

    /// The next event: its name, its data, and its id.
    pub(super) async fn next(&mut self) -> Option<(String, Value, Option<u64>)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = event.to_owned();
                self.text = rest.to_owned();
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                let Some(name) = field("event:") else { continue };
                let id = field("id:").map(|id| id.parse().unwrap());
                return Some((name.to_owned(), serde_json::from_str(field("data:").unwrap()).unwrap(), id));
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("something is told in time")?;
            self.text.push_str(std::str::from_utf8(frame.unwrap().data_ref().unwrap()).unwrap());
        }
    }

    /// What is told up to the next `synced`, and its epoch.
    pub(super) async fn batch(&mut self) -> (Vec<(String, String)>, u64) {
        let mut told = Vec::new();
        loop {
            let (name, data, id) = self.next().await.expect("the stream goes on");
            if name == "synced" {
                assert_eq!(data["epoch"].as_u64(), id);
                return (told, id.unwrap());
            }
            assert_eq!(id, None, "only what is told whole can be gone on from");
            told.push((name, data["key"].as_str().unwrap().to_owned()));
        }
    }
}
