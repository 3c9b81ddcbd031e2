//! Backends that lead to nothing, over real sockets: their share is answered with 500, and everybody can see why.

use super::harness::*;
use super::limits_tests::grpc;

fn yaml(protocol: &str, kind: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: orders, namespace: shop, annotations: {{equerry.dev/accounts: orders}}}}
spec: {{selector: {{app: orders}}, ports: [{{port: 80, targetPort: 8080, appProtocol: {protocol}}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: orders, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: orders}}]
  rules: [{{backendRefs: [{{name: orders, port: 80}}, {{name: ordres, port: 80}}]}}]
"
    )
}

const WHY: &str = "shop/orders rules[0].backendRefs[1] leads to nothing: Service shop/ordres does not exist";

#[test]
fn the_share_of_a_backend_that_does_not_exist_is_answered_with_500_and_the_rest_is_served() {
    on_one_thread(async {
        let application = application(|_, _| async { says(200, "fine") }).await;
        let world = World::new(&yaml("http", "HTTPRoute"));
        let here = [("shop/orders", vec![At::Plain(80, application.address)])];
        let sidecar = world.sidecar("shop/frontend", &[("app", "frontend")], &[], &here).await;
        let mut refused = Vec::new();
        for _ in 0..60 {
            let answered = call(sidecar.outbound, request("GET", "orders", "/", "")).await;
            match answered.status().as_u16() {
                200 => {}
                500 => refused.push(answered),
                other => panic!("{other}: {answered:?}"),
            }
        }
        let served = application.seen.borrow().len();
        assert!(served + refused.len() == 60 && (10..=50).contains(&served), "half of them: {served}");
        let status = refused[0].headers()["proxy-status"].to_str().unwrap();
        assert_eq!(status, "equerry; error=destination_not_found; details=\"invalid_backend\"");
        let told: serde_json::Value = serde_json::from_slice(refused[0].body()).unwrap();
        assert_eq!((told["reason"].as_str(), told["detail"].as_str()), (Some("invalid_backend"), Some(WHY)));
        let lines = sidecar.log(60).await;
        let line = lines.iter().find(|line| line["reason"] == "invalid_backend").unwrap();
        assert_eq!(line["response_code"], 500, "{line}");
        assert!(line.to_string().contains("shop/orders rules[0].backendRefs[1]"), "{line}");
    });
}

#[test]
fn a_call_by_grpc_is_told_that_it_is_unavailable() {
    on_one_thread(async {
        let yaml = yaml("grpc", "GRPCRoute").replace("{name: orders, port: 80}, ", "");
        let sidecar = World::new(&yaml).sidecar("shop/frontend", &[("app", "frontend")], &[], &[]).await;
        let answered = call_http2(sidecar.outbound, grpc(&[])).await;
        assert_eq!((answered.status().as_u16(), &answered.headers()["grpc-status"]), (200, &"14".parse().unwrap()));
        assert!(answered.headers()["grpc-message"].to_str().unwrap().starts_with("invalid_backend: "), "{answered:?}");
    });
}
