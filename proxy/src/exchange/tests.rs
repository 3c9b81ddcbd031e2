//! Whole exchanges over real sockets: a caller, two sidecars, an application.

use std::future::Future;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::Value;

use super::harness::*;

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders}}
spec: {selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: two-ports, namespace: shop, annotations: {equerry.dev/accounts: orders}}
spec: {selector: {app: two}, ports: [{name: a, port: 80}, {name: b, port: 81}]}
";

/// frontend → orders, orders' application answering as `answer` says.
async fn pair<F, B>(
    yaml: &str,
    answer: impl Fn(usize, Request<Incoming>) -> F + 'static,
) -> (Sidecar, Sidecar, Application)
where
    F: Future<Output = Response<B>> + 'static,
    B: hyper::body::Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let world = World::new(yaml);
    let application = application(answer).await;
    let orders = world.sidecar("shop/orders", &[("app", "orders")], &[(8080, application.address)], &[]).await;
    let frontend = world
        .sidecar("shop/frontend", &[("app", "frontend")], &[], &[("shop/orders", vec![At::Mesh(orders.inbound)])])
        .await;
    (frontend, orders, application)
}

#[test]
fn a_request_goes_through_both_sidecars_and_each_knows_who_speaks() {
    on_one_thread(async {
        let (frontend, orders, application) = pair(MESH, |_, _| async { says(200, "hello") }).await;
        let mut asked = request("GET", "orders", "/a/../b?q=1", "");
        asked.headers_mut().insert("x-forwarded-client-cert", "forged".parse().unwrap());
        let answered = call(frontend.outbound, asked).await;
        assert_eq!((answered.status().as_u16(), &answered.body()[..]), (200, &b"hello"[..]));
        assert!(!answered.headers().contains_key("proxy-status"));
        let seen = application.seen.borrow()[0].clone();
        assert_eq!(seen.uri.to_string(), "/b?q=1", "what is forwarded is what was judged");
        assert_eq!(seen.headers["host"], "orders");
        let introduced = "By=spiffe://equerry.local/ns/shop/sa/orders;URI=spiffe://equerry.local/ns/shop/sa/frontend";
        assert_eq!(seen.headers["x-forwarded-client-cert"], introduced);
        let (out, into) = (frontend.log(1).await.remove(0), orders.log(1).await.remove(0));
        let id = seen.headers["x-request-id"].to_str().unwrap();
        assert_eq!((out["request_id"].as_str(), into["request_id"].as_str()), (Some(id), Some(id)));
        assert!(seen.headers["traceparent"].to_str().unwrap().contains(into["trace_id"].as_str().unwrap()));
        for line in [&out, &into] {
            let text = line.to_string();
            assert!(
                text.contains("spiffe://equerry.local/ns/shop/sa/frontend")
                    && text.contains("spiffe://equerry.local/ns/shop/sa/orders"),
                "{text}"
            );
        }
        for sidecar in [&frontend, &orders] {
            let counted = sidecar.metrics("equerry_requests_total{");
            assert!(
                counted.len() == 1 && counted[0].contains("reason=\"ok\"") && counted[0].contains("tls=\"mutual\""),
                "{counted:?}"
            );
        }
    });
}

#[test]
fn connections_are_used_again_between_sidecars_and_to_the_application() {
    on_one_thread(async {
        let (frontend, orders, application) = pair(MESH, |_, _| async { says(200, "hello") }).await;
        for _ in 0..5 {
            let answered = call(frontend.outbound, request("POST", "orders:80", "/", "some body")).await;
            assert_eq!(answered.status(), 200);
        }
        assert_eq!(application.connections.borrow().len(), 1);
        let open = orders.metrics("equerry_connections{direction=\"inbound\",tls=\"mutual\"}");
        assert!(open[0].ends_with(" 1"), "{open:?}");
    });
}

#[test]
fn http2_stays_http2_between_sidecars_and_becomes_http1_for_the_application() {
    on_one_thread(async {
        let (frontend, orders, application) = pair(MESH, |_, _| async { says(200, "hello") }).await;
        let mut asked = request("GET", "orders.shop.svc.cluster.local", "/", "");
        asked.headers_mut().append("cookie", "a=1".parse().unwrap());
        asked.headers_mut().append("cookie", "b=2".parse().unwrap());
        let answered = call_http2(frontend.outbound, asked).await;
        assert_eq!((answered.status().as_u16(), &answered.body()[..]), (200, &b"hello"[..]));
        assert_eq!(orders.log(1).await[0]["protocol"], "HTTP/2");
        let seen = application.seen.borrow()[0].clone();
        assert_eq!((seen.version, seen.headers["cookie"].to_str().unwrap()), (http::Version::HTTP_11, "a=1; b=2"));
    });
}

#[test]
fn an_application_that_speaks_http2_gets_it() {
    on_one_thread(async {
        let yaml = MESH.replace("targetPort: 8080}", "targetPort: 8080, appProtocol: kubernetes.io/h2c}");
        let (frontend, _orders, application) = pair(&yaml, |_, _| async { says(200, "hello") }).await;
        assert_eq!(call(frontend.outbound, request("POST", "orders", "/x?y", "body")).await.status(), 200);
        let seen = application.seen.borrow()[0].clone();
        assert_eq!((seen.version, seen.uri.to_string().as_str()), (http::Version::HTTP_2, "http://orders/x?y"));
    });
}

#[test]
fn a_call_that_streams_both_ways_passes_message_by_message_with_its_trailers() {
    on_one_thread(async {
        let yaml = MESH.replace("targetPort: 8080}", "targetPort: 8080, appProtocol: grpc}");
        // The echo begins to answer before the request has ended, and ends with what the request ended with.
        let echo = |_, request: Request<Incoming>| async { Response::new(request.into_body()) };
        let (frontend, orders, _application) = pair(&yaml, echo).await;
        let (say, said) = tokio::sync::mpsc::channel::<Result<http_body::Frame<Bytes>, std::convert::Infallible>>(1);
        let body = http_body_util::StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(said));
        let stream = tokio::net::TcpStream::connect(frontend.outbound).await.unwrap();
        let stream = hyper_util::rt::TokioIo::new(stream);
        let (mut send, connection) =
            hyper::client::conn::http2::handshake(crate::upstream::OnThisThread, stream).await.unwrap();
        tokio::task::spawn_local(connection);
        let asked = Request::post("http://orders/shop.Orders/Watch").header("te", "trailers").body(body).unwrap();
        let mut answered = send.send_request(asked).await.unwrap();
        for message in ["one", "two", "three"] {
            say.send(Ok(http_body::Frame::data(Bytes::from(message)))).await.unwrap();
            let frame = answered.body_mut().frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), message);
        }
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        trailers.insert("x-forwarded-client-cert", "forged".parse().unwrap());
        say.send(Ok(http_body::Frame::trailers(trailers))).await.unwrap();
        drop(say);
        let last = answered.body_mut().frame().await.unwrap().unwrap();
        let last = last.into_trailers().unwrap();
        assert_eq!(
            (last.len(), &last["grpc-status"]),
            (1, &http::HeaderValue::from_static("0")),
            "a forged introduction passed"
        );
        assert!(answered.body_mut().frame().await.is_none());
        for sidecar in [&frontend, &orders] {
            let line = sidecar.log(1).await.remove(0);
            assert_eq!((line["reason"].as_str(), line["bytes_sent"].as_u64()), (Some("ok"), Some(11)), "{line}");
        }
    });
}

#[test]
fn a_large_body_passes_both_ways_and_is_counted() {
    const SIZE: usize = 5 << 20;
    on_one_thread(async {
        let echo = |_, request: Request<Incoming>| async {
            Response::new(Full::new(request.into_body().collect().await.unwrap().to_bytes()))
        };
        let (frontend, orders, _application) = pair(MESH, echo).await;
        for call_it in [true, false] {
            let asked = request("POST", "orders", "/", vec![7_u8; SIZE]);
            let answered =
                if call_it { call(frontend.outbound, asked).await } else { call_http2(frontend.outbound, asked).await };
            assert!(answered.body().len() == SIZE && answered.body().iter().all(|byte| *byte == 7));
        }
        for line in orders.log(2).await {
            assert_eq!(
                (line["bytes_received"].as_u64(), line["bytes_sent"].as_u64()),
                (Some(SIZE as u64), Some(SIZE as u64)),
                "{line}"
            );
        }
    });
}

#[test]
fn an_unknown_name_and_an_unnamed_port_are_refused_with_what_would_help() {
    on_one_thread(async {
        let (frontend, _orders, _application) = pair(MESH, |_, _| async { says(200, "") }).await;
        let answered = call(frontend.outbound, request("GET", "order", "/", "")).await;
        assert_eq!(answered.status(), 502);
        assert_eq!(answered.headers()["proxy-status"], "equerry; error=destination_not_found; details=\"no_service\"");
        assert_eq!(answered.headers()["content-type"], "application/problem+json");
        assert!(String::from_utf8_lossy(answered.body()).contains("did you mean \\\"orders\\\"?"), "{answered:?}");
        let answered = call(frontend.outbound, request("GET", "not.a.service.name", "/", "")).await;
        assert_eq!(answered.status(), 502);
        let answered = call(frontend.outbound, request("GET", "two-ports", "/", "")).await;
        let problem: Value = serde_json::from_slice(answered.body()).unwrap();
        assert_eq!((answered.status().as_u16(), problem["reason"].as_str()), (400, Some("bad_request")));
        assert!(problem["detail"].as_str().unwrap().contains("80, 81"), "{problem}");
        assert!(problem["request_id"].as_str().unwrap().len() == 36);
        let answered = call(frontend.outbound, request("GET", "orders:81", "/", "")).await;
        assert_eq!(answered.status(), 404);
        let answered = call(frontend.outbound, request("GET", "two-ports:80", "/", "")).await;
        assert_eq!(answered.status(), 503, "no endpoint");
        let answered = call(frontend.outbound, request("HEAD", "order", "/", "")).await;
        assert!(answered.status() == 502 && answered.body().is_empty());
        assert!(frontend.log(6).await.iter().all(|line| line["reason"] != "client_gone"));
    });
}

#[test]
fn a_refusal_at_the_other_side_is_told_and_counted_here_as_what_it_is() {
    const DENIED: &str = "
---
apiVersion: equerry.dev/v1
kind: Mesh
metadata: {name: default}
spec: {errorDetail: full}
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: shop}
spec: {selector: {matchLabels: {app: orders}}, action: ALLOW, rules: [{from: [{source: {principals: [equerry.local/ns/shop/sa/other]}}]}]}
";
    on_one_thread(async {
        let (frontend, orders, application) = pair(&format!("{MESH}{DENIED}"), |_, _| async { says(200, "") }).await;
        let answered = call(frontend.outbound, request("GET", "orders", "/", "")).await;
        let problem: Value = serde_json::from_slice(answered.body()).unwrap();
        assert_eq!(
            (answered.status().as_u16(), problem["rule"].as_str()),
            (403, Some("no rule of shop/callers matched"))
        );
        assert_eq!(problem["policy"], "shop/callers");
        let mut asked = request("POST", "orders", "/", "");
        asked.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let answered = call_http2(frontend.outbound, asked).await;
        assert_eq!((answered.status().as_u16(), answered.headers()["grpc-status"].to_str().unwrap()), (200, "7"));
        assert_eq!(answered.headers()["content-type"], "application/grpc");
        assert!(application.seen.borrow().is_empty());
        for sidecar in [&frontend, &orders] {
            for line in sidecar.log(2).await {
                assert_eq!(line["reason"], "authz_denied", "{line}");
            }
        }
        assert!(orders.log(2).await[0].to_string().contains("no rule of shop/callers matched"));
    });
}

#[test]
fn an_applications_proxy_status_is_not_passed_on_and_its_other_headers_are() {
    on_one_thread(async {
        let forged = |_, _| async {
            let mut answer = says(503, "");
            answer.headers_mut().insert("proxy-status", "equerry; error=x; details=\"draining\"".parse().unwrap());
            answer.headers_mut().insert("x-equerry-anything", "said by an application".parse().unwrap());
            answer.headers_mut().insert("server", "mine".parse().unwrap());
            answer
        };
        let (frontend, _orders, _application) = pair(MESH, forged).await;
        let answered = call(frontend.outbound, request("GET", "orders", "/", "")).await;
        assert!(answered.status() == 503 && !answered.headers().contains_key("proxy-status"));
        assert!(!answered.headers().contains_key("x-equerry-anything"), "{answered:?}");
        assert_eq!(answered.headers()["server"], "mine");
        assert_eq!(frontend.log(1).await[0]["reason"], "ok");
    });
}

#[test]
fn a_caller_that_leaves_ends_the_work_behind_it_and_is_logged() {
    on_one_thread(async {
        let never = |_, _| std::future::pending::<Response<Full<Bytes>>>();
        let (frontend, orders, application) = pair(MESH, never).await;
        for http2 in [false, true] {
            let asked = request("GET", "orders", "/", "");
            let begun = application.seen.borrow().len();
            let arrived = until("the request at the application", || application.seen.borrow().len() > begun);
            tokio::select! {
                _ = async { if http2 { call_http2(frontend.outbound, asked).await } else { call(frontend.outbound, asked).await } } => unreachable!(),
                () = arrived => {}
            }
        }
        for sidecar in [&frontend, &orders] {
            for line in sidecar.log(2).await {
                assert_eq!(
                    (line["reason"].as_str(), line["response_code"].as_u64()),
                    (Some("client_gone"), Some(499)),
                    "{line}"
                );
            }
        }
    });
}

#[test]
fn exchanges_at_once_share_one_http2_connection_between_sidecars() {
    on_one_thread(async {
        let (frontend, orders, application) = pair(MESH, |_, _| async { says(200, "hello") }).await;
        let all: Vec<_> = (0..20)
            .map(|_| tokio::task::spawn_local(call_http2(frontend.outbound, request("POST", "orders", "/", "x"))))
            .collect();
        for one in all {
            assert_eq!(one.await.unwrap().status(), 200);
        }
        assert_eq!(application.seen.borrow().len(), 20);
        let open = orders.metrics("equerry_connections{direction=\"inbound\",tls=\"mutual\"}");
        assert!(open[0].ends_with(" 1"), "{open:?}");
    });
}

#[test]
fn a_renewed_identity_is_used_for_new_exchanges_and_an_idle_connection_is_closed_in_time() {
    on_one_thread(async {
        let idle = "
---
apiVersion: equerry.dev/v1
kind: TrafficPolicy
metadata: {name: orders, namespace: shop}
spec: {targetRefs: [{kind: Service, name: orders}], timeouts: {idle: 1s}}
";
        let (frontend, orders, _application) = pair(&format!("{MESH}{idle}"), |_, _| async { says(200, "") }).await;
        let open = || orders.metrics("equerry_connections{direction=\"inbound\",tls=\"mutual\"}")[0].clone();
        assert_eq!(call(frontend.outbound, request("GET", "orders", "/", "")).await.status(), 200);
        assert!(open().ends_with(" 1"), "{}", open());
        let before = frontend.shared.identity.current().unwrap();
        let (identity, bundle) = (before.identity.clone(), before.bundle.clone());
        let renewed = crate::live::TlsIdentity::new(identity, bundle, String::new(), before.generation + 1);
        frontend.shared.identity.put(renewed.unwrap());
        assert_eq!(call(frontend.outbound, request("GET", "orders", "/", "")).await.status(), 200);
        assert!(open().ends_with(" 2"), "a connection of its own: {}", open());
        until("both to be closed when idle", || open().ends_with(" 0")).await;
    });
}

#[test]
fn a_missing_token_and_a_spent_quota_are_answered_with_what_their_clients_understand() {
    const POLICY: &str = r#"
---
apiVersion: equerry.dev/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  selector: {matchLabels: {app: orders}}
  jwtRules:
  - issuer: https://login.example.com
    required: REQUIRED
    jwks: '{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"k","x":"WKn-ZIGevcwGIyyrzFoZNBdaq9_TsqzGl96oc0CWuis","y":"y77t-RvAHRKTsSGdIYUfweuOvwrvDD-Q3Hv5J0fSKbE"}]}'
---
apiVersion: equerry.dev/v1
kind: Tenant
metadata: {name: acme}
spec:
  match: [{header: {name: x-tenant, value: acme, trustedFrom: [shop/frontend]}}]
  quotas: [{services: [shop/orders], requests: 10, window: 5s}]
"#;
    on_one_thread(async {
        let with = |required| format!("{MESH}{}", POLICY.replace("REQUIRED", required));
        let (frontend, _orders, application) = pair(&with("true"), |_, _| async { says(200, "") }).await;
        let answered = call(frontend.outbound, request("GET", "orders", "/", "")).await;
        assert_eq!(
            (answered.status().as_u16(), answered.headers()["www-authenticate"].to_str().unwrap()),
            (401, "Bearer")
        );
        let mut asked = request("GET", "orders", "/", "");
        asked.headers_mut().insert("authorization", "Bearer nonsense".parse().unwrap());
        let answered = call(frontend.outbound, asked).await;
        let expected = "Bearer error=\"invalid_token\", error_description=\"token_invalid\"";
        assert_eq!(
            (answered.status().as_u16(), answered.headers()["www-authenticate"].to_str().unwrap()),
            (401, expected)
        );
        assert!(application.seen.borrow().is_empty());

        let (frontend, orders, application) = pair(&with("false"), |_, _| async { says(200, "") }).await;
        orders.shared.quotas.configure(orders.shared.live.load().workload.as_ref().unwrap());
        let mut asked = request("GET", "orders", "/", "");
        asked.headers_mut().insert("x-tenant", "acme".parse().unwrap());
        let answered = call(frontend.outbound, asked).await;
        assert_eq!(answered.status(), 429, "no slice, no admission");
        let seconds = |name: &str| answered.headers()[name].to_str().unwrap().parse::<u64>().unwrap();
        assert!((1..=5).contains(&seconds("retry-after")));
        assert!(
            answered.headers()["ratelimit"].to_str().unwrap().starts_with("\"acme\";r=0;t="),
            "{:?}",
            answered.headers()
        );
        assert_eq!(answered.headers()["ratelimit-policy"], "\"acme\";q=0;w=5");
        assert!(application.seen.borrow().is_empty());
        assert_eq!(call(frontend.outbound, request("GET", "orders", "/", "")).await.status(), 200, "nobody's request");
    });
}
