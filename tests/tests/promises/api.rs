//! The admin API tells what happens between real sidecars: who calls whom, single calls as they end, changes as they are made; and
//! whatever a client sends, it answers as it is described.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use equerry_tests::api::{self, Events};
use equerry_tests::{Mesh, eventually, peers};
use serde_json::Value;

use crate::{PAIR, program};

const SOON: Duration = Duration::from_secs(20);

async fn get(mesh: &Mesh, path: &str) -> Result<Value> {
    let (status, body) = api::ask(&mesh.town, "GET", path, Bytes::new()).await?;
    ensure!(status.is_success(), "{path}: {status} {body}");
    serde_json::from_str(&body).context("reading the answer")
}

/// The next event of a name.
async fn event(events: &mut Events, wanted: &str) -> Result<Value> {
    let next = async {
        loop {
            let (name, data) = events.next().await?;
            if name == wanted {
                return Ok(data);
            }
        }
    };
    tokio::time::timeout(SOON, next).await.with_context(|| format!("waiting for {wanted}"))?
}

#[tokio::test]
async fn who_calls_whom_is_told_as_both_sides_counted_it_and_single_calls_as_they_end() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let orders = mesh.town.home("orders")?;
    let mut tap = Events::open(&mesh.town, "/api/v1/calls/tap?destination=shop/inventory&direction=outbound").await?;
    event(&mut tap, "told").await?;
    // Sidecars are told of the wish at once; until each has heard it, calls end unseen.
    let call = eventually(SOON, "a call to be told", async || {
        let answer = orders.through_sidecar().get("inventory", "/looked-at?secret=1", &[]).await?;
        ensure!(answer.status == 200, "{}", answer.shown());
        let told = tokio::time::timeout(Duration::from_millis(500), event(&mut tap, "call")).await;
        let Ok(call) = told else { return Ok(None) };
        Ok(Some(call?).filter(|call| call["path"] == "/looked-at"))
    })
    .await?;
    ensure!(call["source"] == "shop/orders" && call["instance"] == "shop/orders", "{call}");
    ensure!(call["status"] == 200 && call["reason"] == "ok" && call["tls"] == true, "{call}");
    ensure!(call["durationMs"].as_f64() > Some(0.0) && call["upstreamMs"].as_f64() > Some(0.0), "{call}");
    ensure!(!call.to_string().contains("secret"), "a query is nobody's business: {call}");

    for _ in 0..20 {
        orders.through_sidecar().get("inventory", "/", &[]).await?;
    }
    eventually(SOON, "both sides to tell what their metrics count", async || {
        let (told, counted) = (told(&mesh).await?, counted(&mesh).await?);
        ensure!(told == counted, "told {told:?}, counted {counted:?}");
        Ok(Some(()))
    })
    .await?;
    let described = get(&mesh, "/api/v1/services/shop/inventory").await?;
    ensure!(described["callers"][0]["source"] == "shop/orders", "{described}");
    ensure!(described["members"][0]["connected"] == true, "{described}");

    for version in ["inventory-v1", "inventory-v2"] {
        mesh.town.home(version)?.fail(1.0, None).await?;
    }
    let answer = orders.through_sidecar().get("inventory", "/broken", &[]).await?;
    ensure!(answer.status >= 500, "{}", answer.shown());
    eventually(SOON, "both sides to tell of it", async || {
        let recent = get(&mesh, "/api/v1/calls/recent?failed=1&path=/broken").await?;
        ensure!(recent["asked"] == recent["answered"] && recent["asked"] == 3, "{recent}");
        let broken = recent["items"].as_array().context("no items")?;
        let by_the_caller = |call: &Value| call["direction"] == "outbound" && call["status"] == answer.status;
        ensure!(broken.iter().any(by_the_caller), "{recent}");
        ensure!(broken.iter().any(|call| call["direction"] == "inbound"), "{recent}");
        Ok(Some(()))
    })
    .await
}

/// Calls of inventory by orders within the last minute, as the caller's and as the callee's sidecars told of them.
async fn told(mesh: &Mesh) -> Result<(u64, u64)> {
    let map = get(mesh, "/api/v1/calls?source=shop/orders&destination=shop/inventory").await?;
    let side = |side: &str| map["items"][0][side]["requests"].as_u64();
    Ok((side("caller").unwrap_or(0), side("callee").unwrap_or(0)))
}

/// The same, as their metrics count since they started, which is less than a minute ago.
async fn counted(mesh: &Mesh) -> Result<(u64, u64)> {
    let sum = async |name: &str, direction: &str| -> Result<u64> {
        let labels = [("direction", direction), ("source", "shop/orders"), ("destination", "shop/inventory")];
        Ok(mesh.town.home(name)?.scrape().await?.sum("equerry_requests_total", &labels) as u64)
    };
    let callees = sum("inventory-v1", "inbound").await? + sum("inventory-v2", "inbound").await?;
    Ok((sum("orders", "outbound").await?, callees))
}

#[tokio::test]
async fn proxies_say_how_they_stand_until_when_and_what_changes_is_told_to_who_watches() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let mut watch = Events::open(&mesh.town, "/api/v1/proxies?watch=1&namespace=shop").await?;
    event(&mut watch, "synced").await?;
    let proxies = eventually(SOON, "all in step", async || {
        let proxies = get(&mesh, "/api/v1/proxies?state=in_step").await?;
        Ok((proxies["items"].as_array().is_some_and(|items| items.len() == 3)).then_some(proxies))
    })
    .await?;
    let proxy = &proxies["items"][0];
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    ensure!(proxy["certificateNotAfterUnix"].as_u64() > Some(now), "{proxy}");
    ensure!(proxy["services"][0] == "shop/inventory" && proxy["healthy"] == true, "{proxy}");
    ensure!(proxy["labels"]["app"] == "inventory", "{proxy}");

    mesh.town.stop_sidecar(mesh.town.home("inventory-v2")?).await;
    let away = event(&mut watch, "deleted").await;
    ensure!(away?["key"] == "shop/inventory-v2", "who took itself out is nobody's concern any more");
    Ok(())
}

/// How schemathesis writes JSON, one a line, which it does not know by itself.
const HOOKS: &str = r#"
import json
import schemathesis

@schemathesis.serializer("application/x-ndjson")
def lines(ctx, value):
    return (json.dumps(value) + "\n").encode()
"#;

/// What lists need to have something to tell.
const SOMETHING_OF_EACH: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders}}
spec: {selector: {app: orders}, ports: [{port: 80}]}
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: trial, namespace: shop}
spec: {mode: shadow, action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}
---
apiVersion: equerry.dev/v1
kind: Tenant
metadata: {name: acme}
spec: {match: [{claim: {name: tenant, value: acme}}], quotas: [{services: [shop/orders], requests: 100, window: 1m}]}
";

#[tokio::test]
async fn schemathesis_finds_no_answer_that_the_description_does_not_promise() -> Result<()> {
    let install = "pip install -r .ci/requirements.txt";
    if !peers::installed("schemathesis", install)? {
        return Ok(());
    }
    let mesh = Mesh::found(program(), &[], SOMETHING_OF_EACH).await?;
    let shadows = get(&mesh, "/api/v1/shadows").await?;
    ensure!(shadows["items"][0]["policy"] == "shop/trial", "{shadows}");
    let state = mesh.town.control_plane_state();
    let token = std::fs::read_to_string(state.join("admin.token"))?;
    let url = format!("https://localhost:{}/openapi.json", mesh.town.admin.number());
    let (authorization, ca) = (format!("Authorization: Bearer {}", token.trim()), state.join("ca.pem"));
    let ca = ca.display().to_string();
    if peers::installed("openapi-spec-validator", install)? {
        let (_, description) = api::ask(&mesh.town, "GET", "/openapi.json", Bytes::new()).await?;
        let file = mesh.file("openapi.json", &description)?.display().to_string();
        peers::run("openapi-spec-validator", &[&file]).await?.succeeded()?;
    }
    // What a document must say to be accepted is more than a schema can tell, so that data which fits the schema may be refused.
    let without = "positive_data_acceptance";
    // A connection that was kept may end just when it is used again, as any client of HTTP/1.1 knows: that is tried again.
    // Streams of events have no end to wait for; they have tests of their own. And a list of admin tokens teaches it the id of
    // its own, which it then revokes: that too is tested elsewhere.
    let hooks = mesh.file("hooks.py", HOOKS)?;
    let config = format!("hooks = \"{}\"\n[parameters]\n\"query.watch\" = false\n", hooks.display());
    let config = mesh.file("schemathesis.toml", &config)?.display().to_string();
    let args = [
        "--config-file",
        &config,
        "run",
        &url,
        "--header",
        &authorization,
        "--tls-verify",
        &ca,
        "--exclude-checks",
        without,
        "--max-examples",
        "15",
        "--seed",
        "1",
        "--phases",
        "examples,coverage,fuzzing",
        "--exclude-path-regex",
        "calls/tap|certs|admin-tokens/",
        "--request-timeout",
        "20",
        "--request-retries",
        "3",
        "--workers",
        "2",
        "--no-color",
    ];
    let args: Vec<std::ffi::OsString> = args.iter().map(std::ffi::OsString::from).collect();
    let program = std::path::Path::new("schemathesis");
    let run = async || equerry::demo::process::run_to_end(program, &args, &[], Duration::from_secs(240)).await;
    let mut said = run().await?;
    // An error, which is no failure of an answer, is a request that schemathesis itself did not get through.
    if said.code != Some(0) && !said.everything().contains("= FAILURES =") {
        said = run().await?;
    }
    said.succeeded()?;
    // It is alive, and nothing of what was sent is left half done.
    ensure!(get(&mesh, "/api/v1/version").await?["epoch"].is_number());
    Ok(())
}
