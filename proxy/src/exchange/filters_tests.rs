//! What routes do beside sending a request somewhere, and faults made on purpose, over real sockets: what the application
//! sees, and what its caller.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::*;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders}}
spec: {selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: orders-next, namespace: shop, annotations: {equerry.dev/accounts: orders}}
spec: {selector: {app: next}, ports: [{port: 80, targetPort: 8080}]}
";

/// The Services, and a route to `orders` whose one rule says `rule` beside its backend.
fn route(rule: &str) -> String {
    format!(
        "{SERVICES}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: orders, namespace: shop}}
spec: {{parentRefs: [{{group: '', kind: Service, name: orders}}], rules: [{{{rule}}}]}}
"
    )
}

const TO_ORDERS: &str = "backendRefs: [{name: orders, port: 80}]";

fn faults(spec: &str) -> String {
    format!(
        "{SERVICES}
---
apiVersion: equerry.dev/v1
kind: FaultInjection
metadata: {{name: rehearsal, namespace: shop}}
spec: {{targetRefs: [{{kind: Service, name: orders}}], {spec}}}
"
    )
}

/// A caller's sidecar that reaches both Services in plain text.
async fn caller(yaml: &str, orders: &[SocketAddr], next: &[SocketAddr]) -> Sidecar {
    let at = |addresses: &[SocketAddr]| addresses.iter().map(|address| At::Plain(80, *address)).collect();
    let endpoints = [("shop/orders", at(orders)), ("shop/orders-next", at(next))];
    World::new(yaml).sidecar("shop/frontend", &[("app", "frontend")], &[], &endpoints).await
}

async fn greeting() -> Application {
    application(|_, _| async { says(200, "hello") }).await
}

fn header<'a>(answered: &'a Response<Bytes>, name: &str) -> Option<&'a str> {
    answered.headers().get(name).map(|value| value.to_str().unwrap())
}

fn mirrored(sidecar: &Sidecar, outcome: &str) -> Option<u64> {
    let lines = sidecar.metrics(&format!("equerry_mirrored_total{{outcome=\"{outcome}\"}}"));
    lines.first().and_then(|line| line.rsplit(' ').next()?.parse().ok())
}

#[test]
fn a_redirect_is_answered_by_the_callers_own_sidecar() {
    on_one_thread(async {
        let application = greeting().await;
        let rule = "matches: [{path: {type: PathPrefix, value: /old}}], filters: [{type: RequestRedirect, requestRedirect: \
                    {path: {type: ReplacePrefixMatch, replacePrefixMatch: /v1}, statusCode: 308}}]";
        let sidecar = caller(&route(rule), &[application.address], &[]).await;
        for http2 in [false, true] {
            let asked = request("POST", "orders", "/old/7?x=1", "some body");
            let answered =
                if http2 { call_http2(sidecar.outbound, asked).await } else { call(sidecar.outbound, asked).await };
            assert_eq!((answered.status().as_u16(), answered.body().len()), (308, 0));
            assert_eq!(header(&answered, "location"), Some("http://orders/v1/7?x=1"));
            assert_eq!(header(&answered, "proxy-status"), None, "nothing went wrong");
        }
        assert!(application.seen.borrow().is_empty());
        let line = sidecar.log(2).await.remove(0);
        assert!(
            line["response_code"] == 308 && line["reason"] == "ok" && line["route_name"] == "shop/orders",
            "{line}"
        );
        assert_eq!(line["upstream_request_attempt_count"], 0);
    });
}

#[test]
fn a_rewritten_request_is_what_the_application_sees_and_its_sidecar_judges() {
    on_one_thread(async {
        let application = greeting().await;
        let rule = format!(
            "matches: [{{path: {{type: PathPrefix, value: /v1}}}}], filters: [{{type: URLRewrite, urlRewrite: \
             {{hostname: internal.example, path: {{type: ReplacePrefixMatch, replacePrefixMatch: /api}}}}}}], {TO_ORDERS}"
        );
        let world = World::new(&route(&rule));
        let orders = world.sidecar("shop/orders", &[("app", "orders")], &[(8080, application.address)], &[]).await;
        let known = [("shop/orders", vec![At::Mesh(orders.inbound)])];
        let sidecar = world.sidecar("shop/frontend", &[("app", "frontend")], &[], &known).await;
        assert_eq!(call(sidecar.outbound, request("GET", "orders", "/v1/a?q=1", "")).await.status(), 200);
        assert_eq!(call_http2(sidecar.outbound, request("GET", "orders", "/v1", "")).await.status(), 200);
        for (seen, target) in application.seen.borrow().iter().zip(["/api/a?q=1", "/api"]) {
            assert_eq!(seen.uri.to_string(), target);
            assert_eq!(seen.headers["host"], "internal.example");
        }
        let (asked, judged) = (sidecar.log(1).await.remove(0), orders.log(1).await.remove(0));
        assert_eq!((&asked["path"], &asked["authority"]), (&"/v1/a".into(), &"orders".into()), "as it was asked for");
        assert_eq!((&judged["path"], &judged["authority"]), (&"/api/a".into(), &"internal.example".into()));
    });
}

#[test]
fn headers_are_changed_on_the_way_there_and_on_the_way_back() {
    on_one_thread(async {
        let answer = |_, _| async {
            let mut answer = says(200, "hello");
            answer.headers_mut().insert("server", "secret/1.0".parse().unwrap());
            answer
        };
        let application = application(answer).await;
        let rule = "filters: [
          {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-version, value: '1'}], remove: [x-debug]}},
          {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [server], add: [{name: x-by, value: rule}]}}],
          backendRefs: [{name: orders, port: 80, filters: [
          {type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x-version, value: '2'}]}}]}]";
        let sidecar = caller(&route(rule), &[application.address], &[]).await;
        let mut asked = request("GET", "orders", "/", "");
        asked.headers_mut().insert("x-debug", "on".parse().unwrap());
        asked.headers_mut().insert("x-version", "0".parse().unwrap());
        let answered = call(sidecar.outbound, asked).await;
        assert_eq!((header(&answered, "server"), header(&answered, "x-by")), (None, Some("rule")));
        assert_eq!(&answered.body()[..], b"hello");
        let seen = application.seen.borrow()[0].headers.clone();
        let versions: Vec<_> = seen.get_all("x-version").iter().collect();
        assert!(versions == ["1", "2"] && !seen.contains_key("x-debug"), "{seen:?}");
    });
}

/// A rule that rewrites the path, and copies so many percent of the requests.
fn copying(percent: u32) -> String {
    route(&format!(
        "filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplaceFullPath, replaceFullPath: /new}}}}}}, {{type: \
         RequestMirror, requestMirror: {{backendRef: {{name: orders-next, port: 80}}, percent: {percent}}}}}], {TO_ORDERS}"
    ))
}

#[test]
fn a_copy_is_what_the_backend_gets_and_nobody_sees_its_answer() {
    on_one_thread(async {
        let application = greeting().await;
        let bodies: Rc<RefCell<Vec<Bytes>>> = Rc::default();
        let kept = Rc::clone(&bodies);
        let next = super::harness::application(move |_, request| {
            let kept = Rc::clone(&kept);
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                kept.borrow_mut().push(body);
                says(500, "the next version is broken")
            }
        })
        .await;
        let sidecar = caller(&copying(100), &[application.address], &[next.address]).await;
        let mut asked = request("POST", "orders", "/old?q=1", "some body");
        asked.headers_mut().insert("x-from", "test".parse().unwrap());
        let answered = call(sidecar.outbound, asked).await;
        assert_eq!((answered.status().as_u16(), &answered.body()[..]), (200, &b"hello"[..]));
        until("the copy has been answered", || mirrored(&sidecar, "answered") == Some(1)).await;
        {
            let (copy, original) = (&next.seen.borrow()[0], &application.seen.borrow()[0]);
            assert_eq!((&copy.method, copy.uri.to_string().as_str()), (&http::Method::POST, "/new?q=1"));
            assert_eq!(copy.uri, original.uri);
            assert_eq!(copy.headers["x-from"], "test");
            assert_eq!(copy.headers["x-request-id"], original.headers["x-request-id"], "the two can be compared");
        }
        assert_eq!(*bodies.borrow(), ["some body"]);
        assert_eq!(call_http2(sidecar.outbound, request("GET", "orders", "/", "")).await.status(), 200);
        until("the second as well", || mirrored(&sidecar, "answered") == Some(2)).await;
        assert_eq!(sidecar.log(2).await.len(), 2, "a copy is no exchange");
    });
}

#[test]
fn no_request_is_copied_where_none_in_a_hundred_is() {
    on_one_thread(async {
        let (application, next) = (greeting().await, greeting().await);
        let sidecar = caller(&copying(0), &[application.address], &[next.address]).await;
        for _ in 0..20 {
            assert_eq!(call(sidecar.outbound, request("GET", "orders", "/", "")).await.status(), 200);
        }
        assert!(next.seen.borrow().is_empty() && sidecar.metrics("equerry_mirrored_total{").is_empty());
    });
}

#[test]
fn copies_that_are_never_answered_delay_nobody_and_grow_to_a_bound() {
    on_one_thread(async {
        let application = greeting().await;
        let never = |_, _| std::future::pending::<Response<Full<Bytes>>>();
        let stuck = super::harness::application(never).await;
        let sidecar = caller(&copying(100), &[application.address], &[stuck.address]).await;
        for _ in 0..70 {
            assert_eq!(call(sidecar.outbound, request("GET", "orders", "/", "")).await.status(), 200);
        }
        assert_eq!(mirrored(&sidecar, "skipped_busy"), Some(70 - 64));
        until("all others were sent", || stuck.seen.borrow().len() == 64).await;
        assert_eq!(mirrored(&sidecar, "answered"), None);
    });
}

#[test]
fn a_copy_that_reaches_nobody_is_counted_and_a_body_that_is_not_held_is_not_copied() {
    on_one_thread(async {
        let (application, next) = (greeting().await, greeting().await);
        let alone = caller(&copying(100), &[application.address], &[]).await;
        assert_eq!(call(alone.outbound, request("GET", "orders", "/", "")).await.status(), 200);
        until("it failed", || mirrored(&alone, "failed") == Some(1)).await;

        let sidecar = caller(&copying(100), &[application.address], &[next.address]).await;
        let large = Bytes::from(vec![b'x'; 1_000_000]);
        assert_eq!(call(sidecar.outbound, request("POST", "orders", "/", large)).await.status(), 200);
        let mut stream = tokio::net::TcpStream::connect(sidecar.outbound).await.unwrap();
        let chunked = b"POST / HTTP/1.1\r\nhost: orders\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
        stream.write_all(chunked).await.unwrap();
        let mut answered = String::new();
        stream.read_to_string(&mut answered).await.unwrap();
        assert!(answered.starts_with("HTTP/1.1 200"), "{answered}");
        assert_eq!(mirrored(&sidecar, "skipped_body"), Some(2));
        assert!(next.seen.borrow().is_empty());
    });
}

const BROWSERS: &str = "filters: [{type: CORS, cors: {allowOrigins: ['https://shop.example'], allowMethods: [PUT], \
                        allowHeaders: [x-cart], allowCredentials: true, maxAge: 600}}], backendRefs: [{name: orders, port: 80}]";

#[test]
fn a_browsers_question_is_answered_here_and_its_request_by_the_application() {
    on_one_thread(async {
        let application = greeting().await;
        let sidecar = caller(&route(BROWSERS), &[application.address], &[]).await;
        let from = |method: &str, origin: &str| {
            let mut asked = request(method, "orders", "/cart", "");
            asked.headers_mut().insert("origin", origin.parse().unwrap());
            asked
        };
        let mut question = from("OPTIONS", "https://shop.example");
        question.headers_mut().insert("access-control-request-method", "PUT".parse().unwrap());
        let answered = call(sidecar.outbound, question).await;
        assert_eq!((answered.status().as_u16(), answered.body().len()), (200, 0));
        assert_eq!(header(&answered, "access-control-allow-origin"), Some("https://shop.example"));
        assert_eq!(header(&answered, "access-control-allow-methods"), Some("PUT"));
        assert!(application.seen.borrow().is_empty(), "the application never sees the question");

        let answered = call(sidecar.outbound, from("PUT", "https://shop.example")).await;
        assert_eq!(&answered.body()[..], b"hello");
        assert_eq!(header(&answered, "access-control-allow-origin"), Some("https://shop.example"));
        assert_eq!(header(&answered, "access-control-allow-credentials"), Some("true"));
        let answered = call(sidecar.outbound, from("GET", "https://evil.example")).await;
        assert_eq!((answered.status().as_u16(), header(&answered, "access-control-allow-origin")), (200, None));
        assert_eq!(application.seen.borrow().len(), 2);
    });
}

#[test]
fn a_script_may_read_why_its_request_was_refused() {
    on_one_thread(async {
        let sidecar = caller(&route(BROWSERS), &[], &[]).await;
        let mut asked = request("GET", "orders", "/", "");
        asked.headers_mut().insert("origin", "https://shop.example".parse().unwrap());
        let answered = call(sidecar.outbound, asked).await;
        assert_eq!(answered.status(), 503);
        assert_eq!(header(&answered, "access-control-allow-origin"), Some("https://shop.example"));
        assert!(header(&answered, "proxy-status").unwrap().contains("no_healthy_endpoint"));
    });
}

#[test]
fn a_request_waits_on_purpose_and_then_goes_its_way() {
    on_one_thread(async {
        let application = greeting().await;
        let yaml = faults("match: {headers: [{name: x-chaos, value: 'on'}]}, delay: {percent: 100, fixed: 60ms}");
        let sidecar = caller(&yaml, &[application.address], &[]).await;
        let mut asked = request("GET", "orders", "/", "");
        asked.headers_mut().insert("x-chaos", "on".parse().unwrap());
        let began = Instant::now();
        assert_eq!(call(sidecar.outbound, asked).await.status(), 200);
        assert!(began.elapsed() >= Duration::from_millis(60), "{:?}", began.elapsed());
        assert_eq!(call(sidecar.outbound, request("GET", "orders", "/", "")).await.status(), 200);
        let log = sidecar.log(2).await;
        assert!(log[0]["policy"] == "shop/rehearsal" && log[0]["reason"] == "ok", "{}", log[0]);
        assert!(log[1]["policy"].is_null(), "who does not ask for chaos notices nothing: {}", log[1]);
    });
}

#[test]
fn a_request_fails_on_purpose_in_the_words_of_its_protocol() {
    on_one_thread(async {
        let application = greeting().await;
        let sidecar = caller(&faults("abort: {percent: 100, httpStatus: 503}"), &[application.address], &[]).await;
        let answered = call(sidecar.outbound, request("GET", "orders", "/", "")).await;
        assert_eq!(answered.status(), 503);
        assert!(header(&answered, "proxy-status").unwrap().contains("details=\"fault\""));
        let mut asked = request("POST", "orders", "/shop.Orders/Get", "");
        asked.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let answered = call_http2(sidecar.outbound, asked).await;
        assert_eq!((answered.status().as_u16(), header(&answered, "grpc-status")), (200, Some("14")));
        assert!(application.seen.borrow().is_empty());
        let line = sidecar.log(2).await.remove(0);
        assert!(line["response_flags"] == "FI" && line["reason"] == "fault", "{line}");
    });
}
