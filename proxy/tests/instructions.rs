//! What one request costs in instructions: budgets, counted by callgrind, so that work added to every request does not come in
//! unseen. It needs valgrind.
//!
//! The test starts itself again under callgrind as the sidecar alone; caller and application stay here and are not counted.
//! Two runs of different length tell what one request more costs. The kernel's part is never seen.

#![allow(clippy::unwrap_used, reason = "a failed one is a failed test")]

#[path = "support/mod.rs"]
mod support;

use std::env;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use support::{CALLED, CALLED_OVER_HTTP2, Caller, PERMISSIVE, Way};

/// Instructions for a small GET with its answer, as they were measured: optimised (profile dist), which is what a user pays, and
/// as `cargo test` builds it, which sees the same additions. Nothing is encrypted, and each request is alone on its way: over
/// HTTP/2 the work that streams share, reading and writing frames together, is paid by one. Out costs more than in by choosing:
/// a Service by its name, an endpoint, a connection.
const BUDGETS: [(&str, Way, Policies, [f64; 2]); 6] = [
    ("in", Way::In, Policies::Least, [26_100.0, 118_500.0]),
    ("in, full policy", Way::In, Policies::Full, [29_300.0, 143_100.0]),
    ("out", Way::Out, Policies::Least, [28_800.0, 132_000.0]),
    ("out, full policy", Way::Out, Policies::Full, [31_700.0, 151_900.0]),
    ("in, of HTTP/2", Way::InOfHttp2, Policies::Least, [30_000.0, 150_100.0]),
    ("out, to HTTP/2", Way::OutToHttp2, Policies::Least, [35_300.0, 170_700.0]),
];
/// Another processor makes the C library and the cryptography choose other code; the compiler changes a little as well.
const TOLERANCE: f64 = 0.05;

/// Which policies hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policies {
    /// Only what it takes to be served.
    Least,
    /// In: a token sent again, and 100 rules of authorization. Out: a route with times and retries, and a breaker.
    Full,
}

/// Requests of the two runs. What is made once is made in both.
const FEW: u32 = 50;
const MANY: u32 = 250;

/// Where the counted process finds its application, its way, and its policies.
const APPLICATION: &str = "EQUERRY_COUNTED_APPLICATION";
const WAY: &str = "EQUERRY_COUNTED_WAY";
const POLICIES: &str = "EQUERRY_COUNTED_POLICIES";
/// How it says where it listens.
const LISTENS: &str = "listens on ";

#[test]
fn a_small_request_stays_within_its_budget_of_instructions() {
    if let Ok(application) = env::var(APPLICATION) {
        return counted(application.parse().unwrap());
    }
    if !installed() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (inbound, token) = full_policy_in();
    let mut wrong = String::new();
    for (what, way, policies, [optimised, debug]) in BUDGETS {
        let budget = if cfg!(debug_assertions) { debug } else { optimised };
        let (text, headers) = match (way, policies) {
            (Way::In, Policies::Full) => (inbound.clone(), token.as_str()),
            (Way::In | Way::InOfHttp2, _) => (PERMISSIVE.to_owned(), ""),
            (Way::Out, Policies::Full) => (format!("{CALLED}{FULL_POLICY_OUT}"), ""),
            (Way::Out, _) => (CALLED.to_owned(), ""),
            (Way::OutToHttp2, _) => (CALLED_OVER_HTTP2.to_owned(), ""),
        };
        let run = |requests| instructions(directory.path(), (way, &text), headers, requests) as f64;
        let (few, many) = std::thread::scope(|scope| {
            let few = scope.spawn(|| run(FEW));
            let many = run(MANY);
            (few.join().unwrap(), many)
        });
        let each = (many - few) / f64::from(MANY - FEW);
        eprintln!("{what}: {each:.0} instructions a request");
        if !(0.75..1.0 + TOLERANCE).contains(&(each / budget)) {
            let _ = writeln!(wrong, "{what}: {each:.0} instructions a request, of a budget of {budget}");
        }
    }
    assert!(wrong.is_empty(), "find what has changed, or set the budget anew, in this file:\n{wrong}");
}

/// Whether valgrind is there; says how to get it when not.
fn installed() -> bool {
    let found = Command::new("valgrind").arg("--version").output().is_ok_and(|said| said.status.success());
    if !found {
        let required = env::var_os("EQUERRY_REQUIRE_PEERS").is_some_and(|value| value == "1");
        assert!(!required, "valgrind is required (EQUERRY_REQUIRE_PEERS=1): apt-get install valgrind");
        eprintln!("skipped: valgrind is not installed; install with `apt-get install valgrind`");
    }
    found
}

/// Instructions of a whole run of the sidecar that serves so many requests.
fn instructions(directory: &Path, (way, policies): (Way, &str), headers: &str, requests: u32) -> u64 {
    let out = directory.join(format!("callgrind.out.{requests}"));
    let mut child = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(env::current_exe().unwrap())
        .args(["--exact", "a_small_request_stays_within_its_budget_of_instructions", "--nocapture"])
        .env(APPLICATION, support::application(way).to_string())
        .env(WAY, format!("{way:?}"))
        .env(POLICIES, policies)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let address = said.find_map(|line| Some(line.split_once(LISTENS)?.1.parse::<SocketAddr>().unwrap())).unwrap();
    let mut caller = Caller::connect(address, way);
    (0..requests).for_each(|_| caller.call(headers));
    // The sidecar ends with its one connection; callgrind writes at the end.
    drop(caller);
    said.for_each(drop);
    assert!(child.wait().unwrap().success());
    let totals = std::fs::read_to_string(&out).unwrap();
    totals.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok()).unwrap()
}

/// A route with times and retries, a retry budget and a breaker.
const FULL_POLICY_OUT: &str = "
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: orders}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /}, method: GET}]
    backendRefs: [{name: orders, port: 80}]
    timeouts: {request: 15s, backendRequest: 5s}
    retry: {codes: [502, 503, 504], attempts: 2, backoff: 25ms}
---
apiVersion: equerry.dev/v1
kind: TrafficPolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: orders}]
  retryBudget: {percent: 20, minPerSecond: 10}
  breaker: {consecutiveFailures: 5, penalty: {min: 1s, max: 60s}}
";

/// The process under callgrind.
#[allow(clippy::print_stdout, reason = "this is how it is asked")]
fn counted(application: SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("\n{LISTENS}{}", listener.local_addr().unwrap());
    let way = [Way::In, Way::InOfHttp2, Way::Out, Way::OutToHttp2];
    let way = way.into_iter().find(|way| env::var(WAY).is_ok_and(|named| named == format!("{way:?}"))).unwrap();
    support::serve_one(&listener, (way, application), &env::var(POLICIES).unwrap(), || ());
}

/// A token is required, and of 100 rules only the last allows what is asked; and the header line with such a token.
fn full_policy_in() -> (String, String) {
    let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let (x, y) = key.public_key().as_ref()[1..].split_at(32);
    let keys = json!({"keys": [{"kty": "EC", "crv": "P-256", "x": b64(x), "y": b64(y)}]});
    let claims = json!({"iss": "https://issuer", "sub": "alice", "aud": "orders", "exp": 4_000_000_000_u64});
    let signed = format!("{}.{}", b64(br#"{"alg":"ES256"}"#), b64(claims.to_string().as_bytes()));
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    let mut policies = format!(
        "{PERMISSIVE}---\napiVersion: equerry.dev/v1\nkind: RequestAuthentication\nmetadata: {{name: tokens, namespace: shop}}\n\
         spec:\n  jwtRules:\n  - {{issuer: https://issuer, audiences: [orders], required: true, jwks: {}}}\n\
         ---\napiVersion: equerry.dev/v1\nkind: AuthorizationPolicy\nmetadata: {{name: rules, namespace: shop}}\nspec:\n  rules:\n",
        json!(keys.to_string())
    );
    for path in (1..100).map(|n| format!("/part-{n}/*")).chain(["/*".to_owned()]) {
        let _ = writeln!(policies, "  - to: [{{operation: {{methods: [GET], paths: [\"{path}\"]}}}}]");
    }
    (policies, format!("authorization: Bearer {signed}.{}\r\n", b64(signature.as_ref())))
}
