//! gRPC as its users know it, through two sidecars, with a server and a client that others wrote: every shape of call, what
//! belongs to it besides messages, how calls end, and that a channel is no reason to stay with one instance.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use equerry::demo::town::Home;
use equerry_tests::{Mesh, eventually, peers};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::{PAIR, program};

/// `inventory` is both instances, `one` is the first alone, `empty` is nobody.
const DOCUMENTS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: inventory, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {app: inventory}, ports: [{port: 80, targetPort: 8080, appProtocol: grpc}]}
---
apiVersion: v1
kind: Service
metadata: {name: one, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {version: v1}, ports: [{port: 80, targetPort: 8080, appProtocol: grpc}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {app: nobody}, ports: [{port: 80, targetPort: 8080, appProtocol: grpc}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: inventory, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: inventory}]
  rules:
  - matches: [{path: {type: Exact, value: /echo.Echo/Flaky}, method: POST}]
    backendRefs: [{name: inventory, port: 80}]
    retry: {codes: [503], attempts: 2, backoff: 5ms}
  - backendRefs: [{name: inventory, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: one, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: one}]
  rules:
  - matches: [{path: {type: Exact, value: /echo.Echo/Patient}, method: POST}]
    backendRefs: [{name: one, port: 80}]
    timeouts: {request: 300ms}
  - backendRefs: [{name: one, port: 80}]
---
apiVersion: equerry.dev/v1
kind: TrafficPolicy
metadata: {name: inventory, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: inventory}]
  loadBalancer: {type: round_robin}
  retryBudget: {percent: 100, minPerSecond: 100}
---
apiVersion: equerry.dev/v1
kind: FaultInjection
metadata: {name: slow, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: one}]
  match: {headers: [{name: x-slow, value: 'yes'}]}
  delay: {percent: 100, fixed: 500ms}
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: no-secrets, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: one}]
  action: DENY
  rules: [{to: [{operation: {paths: [/echo.Echo/Secret]}}]}]
---
apiVersion: equerry.dev/v1
kind: Tenant
metadata: {name: acme}
spec:
  match: [{header: {name: x-tenant, value: acme, trustedFrom: [shop/orders]}}]
  quotas: [{services: [shop/one], requests: 5, window: 24h}]
";

/// What each scene prints where one instance serves it all.
const AT_ONE: [(&str, &str); 17] = [
    ("unary", "OK echo hello"),
    ("server-stream", "0 1 2"),
    ("client-stream", "4950"),
    ("chat", "re one, re two, re three"),
    ("many", "True"),
    ("large", "True True"),
    ("metadata", "True True"),
    ("fail", "RESOURCE_EXHAUSTED nothing left"),
    ("late", "so far so good, DATA_LOSS it is gone: 100% ✓"),
    ("details", "INVALID_ARGUMENT no such thing, True, the other one"),
    ("unknown-method", "UNIMPLEMENTED Method not found!"),
    ("deadline", "DEADLINE_EXCEEDED, promptly: True, seen: OK yes, OK yes"),
    ("shrunk", "as it should"),
    ("cancel", "cancelled: True, seen: OK yes, OK yes"),
    ("cancel-stream", "re begin, re begin, re go on"),
    ("secret", "PERMISSION_DENIED authz_denied: the policy of this workload does not allow it"),
    (
        "patient",
        "DEADLINE_EXCEEDED request_timeout: the exchange took longer than 300ms: timeouts.request of shop/one rules[0], \
         seen: OK yes, OK yes",
    ),
];
/// And where both do.
const AT_BOTH: [(&str, &str); 3] = [
    ("balanced", "OK one, OK two"),
    ("retried", "OK served by one"),
    ("not-retried", "OK served by one, UNAVAILABLE not here"),
];

fn serve(home: &Home, script: &str, name: &str) -> Result<Child> {
    home.app.release();
    let mut server = Command::new("python3");
    server.args([script, "serve", &home.app.number().to_string(), name]).stdin(Stdio::piped()).kill_on_drop(true);
    Ok(server.spawn()?)
}

#[tokio::test]
async fn everything_that_grpcio_does_works_through_two_sidecars() -> Result<()> {
    if !peers::python_has("grpc", "pip install grpcio")? {
        return Ok(());
    }
    let mesh = Mesh::found(program(), &PAIR, DOCUMENTS).await?;
    let script = mesh.file("grpc_echo.py", include_str!("../../src/grpc_echo.py"))?.display().to_string();
    let _one = serve(mesh.town.home("inventory-v1")?, &script, "one")?;
    let _two = serve(mesh.town.home("inventory-v2")?, &script, "two")?;
    mesh.start_sidecars(&[]).await?;
    let target = mesh.town.home("orders")?.outbound.address();
    let play = async |authority: &str, scenes: &[&str]| {
        let args = [&[script.as_str(), "call", &target, authority], scenes].concat();
        anyhow::Ok(peers::run("python3", &args).await?.succeeded()?.out)
    };
    eventually(Duration::from_secs(20), "both instances to answer", async || {
        let (one, both) = (play("one", &["unary"]).await?, play("inventory", &["balanced"]).await?);
        if one == "unary: OK echo hello\n" && both == "balanced: OK one, OK two\n" {
            return Ok(Some(()));
        }
        bail!("{one}{both}")
    })
    .await?;
    for (authority, expected) in [("one", AT_ONE.as_slice()), ("inventory", &AT_BOTH)] {
        let scenes: Vec<&str> = expected.iter().map(|(scene, _)| *scene).collect();
        let seen = play(authority, &scenes).await?;
        let mut wrong = Vec::new();
        for ((scene, expected), seen) in expected.iter().zip(seen.lines()) {
            if seen != format!("{scene}: {expected}") {
                wrong.push(format!("{seen}\n  instead of {expected}"));
            }
        }
        ensure!(wrong.is_empty() && seen.lines().count() == expected.len(), "{}\nof\n{seen}", wrong.join("\n"));
    }
    // What the mesh says by itself.
    let quota = play("one", &["quota"]).await?;
    ensure!(quota.starts_with("quota: some: True, then RESOURCE_EXHAUSTED quota: "), "{quota}");
    let unknown = play("inventry", &["unary"]).await?;
    ensure!(unknown.contains("UNIMPLEMENTED no_service: ") && unknown.contains("inventory"), "{unknown}");
    let empty = play("empty", &["unary"]).await?;
    ensure!(empty.contains("UNAVAILABLE no_healthy_endpoint: "), "{empty}");
    streams_are_judged_again(&mesh, &script, &target).await
}

const NO_TICKS: &str = "\
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: no-ticks, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: one}]
  action: DENY
  rules: [{to: [{operation: {paths: [/echo.Echo/Ticks, /echo.Echo/Pour]}}]}]
";

/// What a policy that is applied allows no more ends, with a status that says why: an answer under way, and a request. What it still
/// allows goes on.
async fn streams_are_judged_again(mesh: &Mesh, script: &str, target: &str) -> Result<()> {
    let mut scenes = Vec::new();
    for (scene, word) in [("listen", "tick"), ("pour", "drop"), ("listen-on", "tick")] {
        let mut plays = Command::new("python3");
        plays.args([script, "call", target, "one", scene]).stdout(Stdio::piped()).kill_on_drop(true);
        let mut plays = plays.spawn()?;
        let said = BufReader::new(plays.stdout.take().context("no output")?).lines();
        scenes.push((scene, word, said, plays));
    }
    for (scene, word, said, _) in &mut scenes {
        for _ in 0..3 {
            let line = tokio::time::timeout(Duration::from_secs(30), said.next_line()).await.context(*scene)??;
            ensure!(line.as_deref() == Some(*word), "{scene} begins with {line:?}");
        }
    }
    mesh.apply(NO_TICKS).await?;
    for (scene, word, said, _) in &mut scenes[..2] {
        let end = async {
            loop {
                let line = said.next_line().await?;
                if line.as_deref() != Some(*word) {
                    return anyhow::Ok(line);
                }
            }
        };
        let end =
            tokio::time::timeout(Duration::from_secs(20), end).await.with_context(|| format!("{scene} goes on"))??;
        let denied = format!("{scene}: PERMISSION_DENIED authz_denied: the policy of this workload does not allow it");
        ensure!(end.as_deref() == Some(&denied), "{end:?}");
    }
    let (_, word, said, _) = &mut scenes[2];
    // More than may have been on its way.
    for _ in 0..30 {
        let line = tokio::time::timeout(Duration::from_secs(20), said.next_line()).await??;
        ensure!(line.as_deref() == Some(*word), "what is still allowed ended with {line:?}");
    }
    let log = mesh.town.home("inventory-v1")?.access_log();
    eventually(Duration::from_secs(20), "the callee to say why", async || {
        let text = std::fs::read_to_string(&log)?;
        let said = |path: &str| {
            let mut lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            lines.any(|line| line["path"] == path && line["policy"] == "shop/no-ticks rules[0]")
        };
        Ok((said("/echo.Echo/Ticks") && said("/echo.Echo/Pour")).then_some(()))
    })
    .await
}
