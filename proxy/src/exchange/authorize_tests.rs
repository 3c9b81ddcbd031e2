//! What authorization asks about, as it comes over real sockets; and what policies that enforce nothing leave behind.

use http::HeaderValue;

use super::harness::*;

const ORDERS: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders, equerry.dev/trusted-hops: '1'}}
spec: {selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}
";

fn policy(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: equerry.dev/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

/// frontend → orders, under these policies of orders.
async fn pair(policies: &[String]) -> (Sidecar, Sidecar, Application) {
    let world = World::new(&format!("{ORDERS}{}", policies.concat()));
    let application = application(|_, _| async { says(200, "hello") }).await;
    let orders = world.sidecar("shop/orders", &[("app", "orders")], &[(8080, application.address)], &[]).await;
    let to_orders = ("shop/orders", vec![At::Mesh(orders.inbound)]);
    let frontend = world.sidecar("shop/frontend", &[("app", "frontend")], &[], &[to_orders]).await;
    (frontend, orders, application)
}

/// The status of a request with these headers.
async fn status(from: &Sidecar, method: &str, path: &str, lines: &[(&'static str, &'static str)]) -> u16 {
    let mut asked = request(method, "orders", path, "");
    for (name, value) in lines {
        asked.headers_mut().append(*name, HeaderValue::from_static(value));
    }
    call(from.outbound, asked).await.status().as_u16()
}

#[test]
fn a_rule_sees_the_connection_and_every_value_of_a_header() {
    on_one_thread(async {
        let here = "{key: destination.ip, values: [127.0.0.0/8]}, {key: source.ip, values: [127.0.0.0/8]}, {key: connection.sni, \
                    values: [p8080.orders.shop.mesh]}, {key: destination.port, values: ['8080']}";
        let (frontend, _, application) = pair(&[
            policy("AuthorizationPolicy", "here", &format!("{{rules: [{{when: [{here}]}}]}}")),
            policy(
                "AuthorizationPolicy",
                "no-admins",
                "{action: DENY, rules: [{when: [{key: 'request.headers[x-role]', values: [admin]}]}]}",
            ),
            policy(
                "AuthorizationPolicy",
                "blocked",
                "{action: DENY, rules: [{from: [{source: {remoteIpBlocks: [192.0.2.0/24], notRemoteIpBlocks: [192.0.2.1]}}]}]}",
            ),
        ])
        .await;
        assert_eq!(status(&frontend, "GET", "/", &[]).await, 200);
        assert_eq!(status(&frontend, "GET", "/", &[("x-role", "user"), ("x-role", "admin")]).await, 403);
        assert_eq!(status(&frontend, "GET", "/", &[("x-role", "user")]).await, 200);
        assert_eq!(status(&frontend, "GET", "/", &[("x-forwarded-for", "203.0.113.9, 192.0.2.7")]).await, 403);
        assert_eq!(status(&frontend, "GET", "/", &[("x-forwarded-for", "192.0.2.7, 192.0.2.1")]).await, 200);
        assert_eq!(application.seen.borrow().len(), 3, "what is refused never reaches the application");
    });
}

#[test]
fn what_policies_that_enforce_nothing_see_is_counted_and_logged() {
    on_one_thread(async {
        let only = |method: &str| format!("rules: [{{to: [{{operation: {{methods: [{method}]}}}}]}}]");
        let (frontend, orders, _) = pair(&[
            policy("AuthorizationPolicy", "deletions", &format!("{{action: AUDIT, {}}}", only("DELETE"))),
            policy("AuthorizationPolicy", "readers", &format!("{{mode: shadow, {}}}", only("GET"))),
        ])
        .await;
        assert_eq!(status(&frontend, "DELETE", "/", &[]).await, 200, "nothing of it is enforced");
        assert_eq!(status(&frontend, "GET", "/", &[]).await, 200);
        let lines = orders.log(2).await;
        assert_eq!(lines[0]["audit"], "shop/deletions rules[0]", "{}", lines[0]);
        assert_eq!(lines[0]["shadow"], "would_deny: no rule of shop/readers matched", "{}", lines[0]);
        assert!(lines[1]["audit"].is_null() && lines[1]["shadow"].is_null(), "{}", lines[1]);
        assert_eq!(
            orders.metrics("equerry_authz_audit_total{"),
            ["equerry_authz_audit_total{policy=\"shop/deletions\"} 1"]
        );
        let mut shadows = orders.metrics("equerry_authz_shadow_total{");
        shadows.sort();
        assert_eq!(
            shadows,
            [
                "equerry_authz_shadow_total{decision=\"no_change\",policy=\"shop/readers\"} 1",
                "equerry_authz_shadow_total{decision=\"would_deny\",policy=\"shop/readers\"} 1",
            ]
        );
    });
}

#[test]
fn a_page_of_another_site_changes_nothing_here() {
    on_one_thread(async {
        let (frontend, orders, application) =
            pair(&[policy("CsrfPolicy", "web", "{allowedOrigins: [https://app.example.com]}")]).await;
        assert_eq!(status(&frontend, "POST", "/", &[]).await, 200, "programs are not concerned");
        assert_eq!(status(&frontend, "POST", "/", &[("origin", "https://app.example.com")]).await, 200);
        assert_eq!(status(&frontend, "POST", "/", &[("origin", "https://evil.example")]).await, 403);
        assert_eq!(status(&frontend, "DELETE", "/", &[("sec-fetch-site", "cross-site")]).await, 403);
        assert_eq!(status(&frontend, "GET", "/", &[("sec-fetch-site", "cross-site")]).await, 200);
        assert_eq!(application.seen.borrow().len(), 3);
        let refused = orders.log(5).await.remove(2);
        assert_eq!(
            (refused["reason"].as_str(), refused["policy"].as_str()),
            (Some("authz_denied"), Some("CsrfPolicy shop/web"))
        );
    });
}
