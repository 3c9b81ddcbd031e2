//! Explanations over the examples that ship with the language, and tokens minted here.

use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::Parser;
use serde_json::{Value, json};

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: ExplainArgs,
}

/// What `explain` says of `line`, asked of documents that are files of the examples or texts.
fn explained(line: &[&str], documents: &[(&str, &str)]) -> Value {
    let line = ["explain"].iter().chain(line).chain(&["--policies", "-"]);
    let args = Line::try_parse_from(line).unwrap_or_else(|error| panic!("{error}")).args;
    let files: Vec<_> = documents
        .iter()
        .map(|(name, text)| files::NamedText { name: (*name).to_owned(), text: (*text).to_owned() })
        .collect();
    let (_, meaning) = complaints::read_all(&files).unwrap();
    serde_json::to_value(walk::walk(&meaning, &read(&args).unwrap()).unwrap()).unwrap()
}

fn example(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies/examples").join(name)).unwrap()
}

fn of_example(name: &str, line: &[&str]) -> Value {
    explained(line, &[(name, &example(name))])
}

fn subjects<'v>(explanation: &'v Value, stage: &str) -> Vec<(&'v str, &'v str)> {
    let stages =
        explanation["callees"].as_array().unwrap().iter().flat_map(|callee| callee["stages"].as_array().unwrap());
    let stages = stages.chain(explanation["caller"].as_array().unwrap()).filter(|found| found["name"] == stage);
    stages
        .flat_map(|stage| stage["steps"].as_array().unwrap())
        .map(|step| (step["subject"].as_str().unwrap(), step["outcome"].as_str().unwrap()))
        .collect()
}

const SHOP: &str = "\
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders}}
spec: {selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: no-deletes, namespace: shop}
spec:
  action: DENY
  targetRefs: [{kind: Service, name: orders}]
  rules:
  - to: [{operation: {methods: [PATCH]}}]
  - to: [{operation: {methods: [DELETE]}}]
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: orders-callers, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: orders}]
  rules:
  - from: [{source: {principals: [equerry.local/ns/shop/sa/frontend]}}]
";

#[test]
fn a_refusal_is_named_in_the_words_of_logs_with_file_and_line() {
    let stranger = explained(&["http://orders/x", "--from", "shop/basket"], &[("shop.yaml", SHOP)]);
    assert_eq!(stranger["verdict"]["cause"], "no rule of shop/orders-callers matched", "{stranger:#}");
    assert_eq!((&stranger["verdict"]["status"], &stranger["verdict"]["reason"]), (&json!(403), &json!("authz_denied")));

    let denied = explained(&["http://orders/x", "-X", "DELETE", "--from", "shop/frontend"], &[("shop.yaml", SHOP)]);
    assert_eq!(denied["verdict"]["cause"], "shop/no-deletes rules[1]");
    assert_eq!(denied["verdict"]["origin"], json!({"file": "shop.yaml", "line": 14}));

    let allowed =
        explained(&["http://orders.shop.svc.cluster.local:80/x", "--from", "shop/frontend"], &[("shop.yaml", SHOP)]);
    assert_eq!(allowed["verdict"]["allowed"], true, "{allowed:#}");
    assert!(subjects(&allowed, "authorization").contains(&("ALLOW shop/orders-callers rules[0]", "decided")));
}

#[test]
fn where_plain_text_is_spoken_nobody_is_known_and_that_is_said_with_file_and_line() {
    let disable = "\
apiVersion: equerry.dev/v1
kind: PeerAuthentication
metadata: {name: old, namespace: shop}
spec: {selector: {matchLabels: {app: orders}}, portLevelMtls: {\"8080\": {mode: DISABLE}}}
";
    let line = ["http://orders/x", "--from", "shop/frontend"];
    let refused = explained(&line, &[("shop.yaml", SHOP), ("old.yaml", disable)]);
    assert_eq!(refused["verdict"]["cause"], "no rule of shop/orders-callers matched", "{refused:#}");
    let step = &refused["callees"][0]["stages"][0]["steps"][0];
    assert_eq!((&step["outcome"], &step["origin"]["file"]), (&json!("noted"), &json!("old.yaml")), "{step:#}");
    assert_eq!(
        step["because"],
        "DISABLE on port 8080; plain text, between sidecars too: nobody is known by an identity, and rules about principals match \
         nobody"
    );
}

#[test]
fn what_the_application_asks_for_wrongly_is_refused_by_its_own_sidecar() {
    for (url, status, reason, says) in [
        ("http://ordrs/", 502, "no_service", "did you mean"),
        ("http://orders:81/", 404, "no_such_port", "it has 80"),
        ("http://orders/a%2Fb", 400, "bad_request", ""),
        ("http://www.example.com.evil/", 502, "no_service", ""),
    ] {
        let explanation = explained(&[url, "--from", "shop/frontend"], &[("shop.yaml", SHOP)]);
        let verdict = &explanation["verdict"];
        assert_eq!(
            (&verdict["status"], &verdict["reason"]),
            (&json!(status), &json!(reason)),
            "{url}: {explanation:#}"
        );
        assert!(verdict["detail"].as_str().unwrap().contains(says), "{verdict}");
        assert_eq!(explanation["callees"], json!([]));
    }
}

#[test]
fn every_backend_of_a_split_is_asked_the_likeliest_first() {
    let explanation = of_example("canary.yaml", &["http://inventory/", "--from", "shop/orders"]);
    let shares: Vec<_> =
        explanation["callees"].as_array().unwrap().iter().map(|callee| callee["percent"].as_f64().unwrap()).collect();
    assert_eq!(shares, [90.0, 10.0], "{explanation:#}");
}

#[test]
fn a_callee_of_an_account_that_its_service_does_not_list_is_not_believed() {
    let line = ["http://orders/", "--from", "shop/frontend", "--to-account", "shop/intruder"];
    let explanation = explained(&line, &[("shop.yaml", SHOP)]);
    assert_eq!(explanation["verdict"]["reason"], "identity_mismatch", "{explanation:#}");
    assert!(explanation["verdict"]["detail"].as_str().unwrap().contains("sa/intruder"));
}

#[test]
fn a_missing_token_is_refused_where_it_is_required() {
    let explanation = of_example("tokens.yaml", &["http://orders/", "--from", "shop/frontend"]);
    assert_eq!(
        (&explanation["verdict"]["status"], &explanation["verdict"]["reason"]),
        (&json!(401), &json!("token_missing"))
    );
    assert_eq!(explanation["verdict"]["cause"], "shop/orders-tokens");
    assert_eq!(explanation["verdict"]["origin"]["file"], "tokens.yaml");
}

/// An issuer: its policy, and tokens it signs.
struct Issuer(EcdsaKeyPair);

impl Issuer {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn policy(&self) -> String {
        let point = self.0.public_key().as_ref();
        let part = |range: std::ops::Range<usize>| BASE64_URL_SAFE_NO_PAD.encode(&point[range]);
        format!(
            "---\napiVersion: equerry.dev/v1\nkind: RequestAuthentication\nmetadata: {{name: tokens, namespace: shop}}\nspec:\n  targetRefs: [{{kind: Service, name: orders}}]\n  jwtRules:\n  - issuer: https://login.test\n    audiences: [orders]\n    required: true\n    claimsToHeaders: [{{claim: sub, header: x-user}}]\n    jwks: {{keys: [{{kty: EC, crv: P-256, kid: k, alg: ES256, use: sig, x: {}, y: {}}}]}}\n---\napiVersion: equerry.dev/v1\nkind: Tenant\nmetadata: {{name: acme}}\nspec:\n  match: [{{claim: {{name: tenant, value: acme}}}}]\n  quotas: [{{services: [shop/orders], requests: 100, window: 5s}}]\n",
            part(1..33),
            part(33..65),
        )
    }

    fn token(&self, claims: &Value) -> String {
        let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&json!({"alg": "ES256", "kid": "k"})), encode(claims));
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}

#[test]
fn a_token_is_believed_at_the_time_asked_for_and_names_its_tenant() {
    let issuer = Issuer::new();
    let text = format!("{SHOP}{}", issuer.policy());
    let claims = json!({"iss": "https://login.test", "aud": "orders", "sub": "ada", "tenant": "acme", "iat": 1_800_000_000, "exp": 1_800_000_600});
    let token = issuer.token(&claims);
    let ask = |at: &str, token: &str| {
        explained(&["http://orders/", "--from", "shop/frontend", "--token", token, "--at", at], &[("shop.yaml", &text)])
    };

    let good = ask("2027-01-15T08:05:00Z", &token);
    assert_eq!(good["verdict"]["allowed"], true, "{good:#}");
    assert!(subjects(&good, "tenant").contains(&("Tenant acme", "decided")), "{good:#}");
    assert!(subjects(&good, "tenant").contains(&("quota acme/0", "decided")));

    assert_eq!(ask("2027-01-15T09:05:00Z", &token)["verdict"]["reason"], "token_expired");
    assert_eq!(ask("2027-01-15T08:05:00Z", &Issuer::new().token(&claims))["verdict"]["status"], 401);
}

#[test]
fn a_question_that_cannot_be_asked_says_how_it_is_written() {
    let refused = |line: &[&str]| {
        let args = Line::try_parse_from(["explain"].iter().chain(line).chain(&["--policies", "-"]))
            .unwrap_or_else(|error| panic!("{error}"))
            .args;
        let failure = read(&args).err().unwrap_or_else(|| panic!("{line:?} was understood"));
        assert_eq!(failure.code, Code::Usage);
        failure.message
    };
    assert!(refused(&["https://orders/", "--from", "shop/frontend"]).contains("plain HTTP"));
    assert!(refused(&["http:///x", "--from", "shop/frontend"]).contains("host"));
    assert!(refused(&["http://orders/", "--from", "frontend"]).contains("--from"));
    assert!(refused(&["http://orders/", "--from", "shop/a", "-H", "nonsense"]).contains("header"));
    assert!(refused(&["http://orders/", "--from", "shop/a", "--at", "noon"]).contains("--at"));
}

#[test]
fn an_explanation_reads_as_it_always_did() {
    let args = Line::try_parse_from(["explain", "http://orders/x", "--from", "shop/basket", "--policies", "-"])
        .unwrap_or_else(|error| panic!("{error}"))
        .args;
    let files = [files::NamedText { name: "shop.yaml".to_owned(), text: SHOP.to_owned() }];
    let (_, meaning) = complaints::read_all(&files).unwrap();
    let told = tell::tell(&walk::walk(&meaning, &read(&args).unwrap()).unwrap());
    let told = anstream::adapter::strip_str(&told).to_string();
    assert_eq!(told, include_str!("golden.txt").trim_end(), "\n{told}");
}

#[test]
fn a_filter_that_answers_is_told_and_the_callee_judges_the_request_as_it_is_sent() {
    let moved = of_example("filters.yaml", &["http://orders/old/7?a=b", "--from", "shop/frontend"]);
    assert_eq!((&moved["verdict"]["allowed"], &moved["verdict"]["status"]), (&json!(true), &json!(308)), "{moved:#}");
    assert_eq!(moved["verdict"]["cause"], "shop/orders rules[1]");
    assert_eq!(moved["callees"], json!([]));
    let denied = "\
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec: {action: DENY, targetRefs: [{kind: Service, name: orders}], rules: [{to: [{operation: {paths: [/admin]}}]}]}
";
    let documents = format!("{}{denied}", example("filters.yaml"));
    let of = |path: &str| explained(&[path, "--from", "shop/frontend"], &[("filters.yaml", &documents)]);
    assert_eq!(
        of("http://orders/v1/admin")["verdict"]["reason"],
        "authz_denied",
        "the prefix is gone when it is judged"
    );
    assert_eq!(of("http://orders/v1/orders")["verdict"]["allowed"], true);
}

const ANYBODY: &str = "\
apiVersion: equerry.dev/v1
kind: Mesh
metadata: {name: default}
spec: {outboundTraffic: ALLOW_ANY}
---
apiVersion: v1
kind: Service
metadata: {name: payments, namespace: shop}
spec: {type: ExternalName, externalName: payments.partner.example, ports: [{port: 80}]}
";

#[test]
fn a_name_no_service_has_leaves_the_mesh_only_where_anybody_may_be_named() {
    let documents = [("any.yaml", ANYBODY)];
    for url in ["http://api.example.com:8080/x", "http://paymnts/", "http://192.0.2.1/"] {
        let told = explained(&[url, "--from", "shop/frontend"], &documents);
        assert_eq!((&told["verdict"]["allowed"], &told["callees"]), (&json!(true), &json!([])), "{told:#}");
        let steps = told["caller"][0]["steps"].as_array().unwrap();
        assert!(steps[1]["because"].as_str().unwrap().starts_with("ALLOW_ANY lets it leave the mesh"), "{told:#}");
        assert_eq!(steps[1]["origin"]["file"], "any.yaml", "{told:#}");

        let refused = explained(&[url, "--from", "shop/frontend"], &[("shop.yaml", SHOP)]);
        assert_eq!(refused["verdict"]["reason"], "no_service", "{refused:#}");
    }
    let credentials = explained(&["http://169.254.169.254/", "--from", "shop/frontend"], &documents);
    assert_eq!(credentials["verdict"]["reason"], "authz_denied", "{credentials:#}");
}

#[test]
fn a_service_that_stands_for_a_name_outside_is_called_in_plain_text() {
    let told = explained(&["http://payments/", "--from", "shop/frontend"], &[("any.yaml", ANYBODY)]);
    let mtls = &told["callees"][0]["stages"][0]["steps"][0];
    assert!(mtls["because"].as_str().unwrap().contains("payments.partner.example"), "{told:#}");
    assert_eq!((&told["verdict"]["allowed"], &told["callees"][0]["account"]), (&json!(true), &Value::Null));
}

const DATABASE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop, annotations: {equerry.dev/accounts: db}}
spec: {selector: {app: db}, ports: [{port: 5432, appProtocol: tcp}]}
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: db-callers, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: db}]
  rules:
  - from: [{source: {principals: [equerry.local/ns/shop/sa/orders]}}]
  - to: [{operation: {methods: [GET]}}]
---
apiVersion: equerry.dev/v1
kind: TrafficPolicy
metadata: {name: db, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: db}]
  loadBalancer: {type: maglev, hash: {identity: true}}
";

#[test]
fn of_a_port_that_declares_nothing_it_is_told_how_its_first_bytes_decide() {
    let route = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders}]
  rules: [{backendRefs: [{name: orders, port: 80}]}]
";
    let blind = "\
apiVersion: equerry.dev/v1
kind: Mesh
metadata: {name: default}
spec: {protocolDetectionTimeout: 0s}
";
    let declared = SHOP.replace("targetPort: 8080}", "targetPort: 8080, appProtocol: http}");
    let told = |text: &str| {
        let told = explained(&["http://orders/x", "--from", "shop/frontend"], &[("shop.yaml", text)]);
        let steps = told["caller"][0]["steps"].as_array().unwrap().clone();
        assert_eq!(told["caller"][0]["name"], "destination", "{told:#}");
        steps.get(1).map(|step| format!("{}: {}", step["subject"].as_str().unwrap(), step["because"].as_str().unwrap()))
    };
    let begins = "port 80: no appProtocol says what is spoken there; at a local TCP port it is ";
    for (more, says) in [
        (String::new(), "told from the first bytes: requests are served as such"),
        (format!("---\n{route}"), "told from the first bytes, and nothing but requests passes"),
        (format!("---\n{blind}"), "not looked at (protocolDetectionTimeout is 0), and led on as bytes"),
    ] {
        let told = told(&format!("{SHOP}{more}")).unwrap();
        assert!(told.strip_prefix(begins).is_some_and(|told| told.starts_with(says)), "{told}");
    }
    assert_eq!(told(&declared), None);
}

#[test]
fn a_connection_is_explained_as_far_as_anybody_looks_into_it() {
    let allowed = explained(&["tcp://db:5432", "--from", "shop/orders"], &[("db.yaml", DATABASE)]);
    assert_eq!(
        (&allowed["request"], &allowed["verdict"]["allowed"]),
        (&json!("TCP db:5432"), &json!(true)),
        "{allowed:#}"
    );
    assert_eq!(subjects(&allowed, "route"), [("shop/db", "decided")]);
    assert_eq!(subjects(&allowed, "tries"), []);
    let rules = [("ALLOW shop/db-callers rules[0]", "decided"), ("ALLOW shop/db-callers rules[1]", "no_match")];
    assert_eq!(subjects(&allowed, "authorization"), rules);
    assert!(allowed.to_string().contains("it asks about HTTP"), "{allowed:#}");
    assert!(allowed.to_string().contains("all that are alike go to the same endpoint"), "{allowed:#}");

    let stranger = explained(&["tcp://db", "--from", "shop/frontend"], &[("db.yaml", DATABASE)]);
    let verdict = &stranger["verdict"];
    assert_eq!(
        (&verdict["reason"], &verdict["cause"]),
        (&json!("authz_denied"), &json!("no rule of shop/db-callers matched"))
    );

    let request = explained(&["http://db:5432/", "--from", "shop/orders"], &[("db.yaml", DATABASE)]);
    assert_eq!(request["verdict"]["reason"], "bad_request", "{request:#}");
    let connection = explained(&["tcp://orders:80", "--from", "shop/frontend"], &[("shop.yaml", SHOP)]);
    assert_eq!(connection["verdict"]["reason"], "bad_request", "{connection:#}");
    let detail = connection["verdict"]["detail"].as_str().unwrap();
    assert!(detail.contains("speaks HTTP") && detail.contains("this is TCP"), "{detail}");
}

#[test]
fn how_an_endpoint_is_chosen_and_who_says_that_it_is_well_is_told() {
    let search = of_example("health-checks.yaml", &["http://search/", "--from", "shop/frontend"]);
    assert_eq!(
        subjects(&search, "endpoints"),
        [("balancer of shop/search", "decided"), ("health of shop/search", "decided")]
    );
    let told = search.to_string();
    assert!(
        told.contains("GET /_cluster/health is answered with 200-299 within 500ms; 3 failures in a row"),
        "{search:#}"
    );
    let carts = |headers: &[&str]| {
        let line = [&["http://cart/", "--from", "shop/frontend"], headers].concat();
        of_example("sticky-carts.yaml", &line).to_string()
    };
    let (alike, random) = (carts(&["-H", "x-user: ada"]), carts(&[]));
    assert!(alike.contains("all that are alike go to the same endpoint"), "{alike}");
    assert!(random.contains("does not have it, so it goes to one at random"), "{random}");
}
