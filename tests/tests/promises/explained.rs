//! A running sidecar explains what it would decide, in the words of the explanation without one, and of its own log.

use anyhow::{Context, Result, ensure};
use equerry::demo::town::Home;
use equerry_tests::Mesh;
use serde_json::Value;

use crate::{PAIR, program};

const NO_SECRETS: &str = "\
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: no-secrets, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: inventory}]
  action: DENY
  rules:
  - to: [{operation: {paths: [/nothing]}}]
  - to: [{operation: {paths: [/secret, /secret/*]}}]
";
/// What nobody may find in any log.
const FORGED: &str = "no-token-but-a-secret";

async fn explained(mesh: &Mesh, line: &[&str], of: &[&str]) -> Result<Value> {
    let line = [&["explain"][..], line, of, &["-o", "json"][..]].concat();
    let said = mesh.town.equerry(&line).await?;
    serde_json::from_str(&said.out).with_context(|| format!("{line:?} said {} {}", said.out, said.err))
}

fn admin(home: &Home) -> String {
    format!("127.0.0.1:{}", home.admin.number())
}

/// The same without the places where things were written, which a sidecar is not told.
fn placeless(of: &Value) -> Value {
    match of {
        Value::Object(all) => {
            all.iter().filter(|(key, _)| *key != "origin").map(|(key, value)| (key.clone(), placeless(value))).collect()
        }
        Value::Array(all) => all.iter().map(placeless).collect(),
        other => other.clone(),
    }
}

/// The decisions of these kinds, in order, wherever they were written.
fn stages(of: &Value, kinds: &[&str]) -> Vec<Value> {
    placed_stages(&placeless(of), kinds)
}

/// The same with the places.
fn placed_stages(of: &Value, kinds: &[&str]) -> Vec<Value> {
    let all = of.as_array().cloned().unwrap_or_default();
    all.into_iter().filter(|stage| stage["name"].as_str().is_some_and(|name| kinds.contains(&name))).collect()
}

#[tokio::test]
async fn a_running_sidecar_explains_in_the_words_of_the_documents_and_of_its_log() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let (orders, v1) = (mesh.town.home("orders")?, mesh.town.home("inventory-v1")?);
    let more = mesh.file("more.yaml", NO_SECRETS)?.display().to_string();
    mesh.town.equerry(&["apply", "--wait", "-f", &more]).await?.succeeded()?;
    let policies = mesh.town.policies().display().to_string();
    let written = ["--from", "shop/orders", "--policies", &policies, "--policies", &more];
    let token = mesh.bearer()?;
    let token = token.trim_start_matches("Bearer ");

    // What the callee decides, beside the documents, and beside the log of the request really sent.
    let cases: [(&str, &str, Option<&str>, &str); 5] = [
        ("GET", "/", None, "ok"),
        ("GET", "/", Some(token), "ok"),
        ("DELETE", "/", None, "authz_denied"),
        ("GET", "/secret/plans", None, "authz_denied"),
        ("GET", "/", Some(FORGED), "token_invalid"),
    ];
    for (number, (method, path, token, reason)) in cases.into_iter().enumerate() {
        let url = format!("http://inventory-v1{path}");
        let mut line = vec![url.as_str(), "-X", method];
        if let Some(token) = token {
            line.extend(["--token", token]);
        }
        let offline = explained(&mesh, &line, &written).await?;
        let live = explained(&mesh, &line, &["--from", "shop/orders", "--proxy", &admin(v1)]).await?;
        ensure!(placeless(&offline["verdict"]) == placeless(&live["verdict"]), "{offline:#}\n{live:#}");
        let kinds = ["token", "authorization", "tenant"];
        let of = |explanation: &Value| stages(&explanation["callees"][0]["stages"], &kinds);
        ensure!(of(&offline) == of(&live) && !of(&live).is_empty(), "{offline:#}\n{live:#}");
        ensure!(live["verdict"]["reason"] == reason, "{live:#}");
        // Beside the documents that are in force it names their lines, as they do.
        let from: [&str; 4] = ["--from", "shop/orders", "--proxy", &admin(v1)];
        let placed = explained(&mesh, &line, &[&from[..], &written[2..]].concat()).await?;
        let of = |explanation: &Value| placed_stages(&explanation["callees"][0]["stages"], &kinds);
        ensure!(of(&offline) == of(&placed), "{offline:#}\n{placed:#}");
        ensure!(offline["verdict"]["origin"] == placed["verdict"]["origin"], "{offline:#}\n{placed:#}");
        ensure!(reason != "authz_denied" || placed["verdict"]["origin"]["line"].is_u64(), "{placed:#}");

        let id = format!("explained-{number}");
        let bearer = token.map(|token| format!("Bearer {token}"));
        let mut headers = vec![("x-request-id", id.as_str())];
        headers.extend(bearer.iter().map(|bearer| ("authorization", bearer.as_str())));
        let answer = orders.through_sidecar().call(method, "inventory-v1", path, &headers).await?;
        let logged = v1.logged_inbound(&id).await?;
        let expected = live["verdict"]["status"].as_u64().unwrap_or(200);
        ensure!(u64::from(answer.status) == expected, "{} is not {live:#}", answer.shown());
        ensure!(logged["reason"] == reason && logged["policy"] == live["verdict"]["cause"], "{logged}\n{live:#}");
    }
    for logged in [mesh.town.sidecar_log(v1), std::fs::read_to_string(v1.access_log())?] {
        ensure!(!logged.contains(FORGED), "a secret is in the log: {logged}");
    }

    // What the caller decides.
    for (url, reason) in [
        ("http://inventory-v1/", "ok"),
        ("http://inventry/", "no_service"),
        ("http://inventory-v1:81/", "no_such_port"),
        ("http://inventory-v1/a%2Fb", "bad_request"),
    ] {
        let offline = explained(&mesh, &[url], &written).await?;
        let live = explained(&mesh, &[url], &["--proxy", &admin(orders)]).await?;
        let kinds = ["request", "destination", "route"];
        let of = |explanation: &Value| stages(&explanation["caller"], &kinds);
        ensure!(of(&offline) == of(&live) && !of(&live).is_empty(), "{offline:#}\n{live:#}");
        ensure!(live["verdict"]["reason"] == reason, "{live:#}");
        let same = placeless(&offline["verdict"]) == placeless(&live["verdict"]);
        ensure!(reason == "ok" || same, "{offline:#}\n{live:#}");
        ensure!(live["live"]["id"] == "spiffe://equerry.local/ns/shop/sa/orders", "{live:#}");
        let placed = explained(&mesh, &[url], &[&["--proxy", &admin(orders)][..], &written[2..]].concat()).await?;
        let of = |explanation: &Value| placed_stages(&explanation["caller"], &kinds);
        ensure!(of(&offline) == of(&placed), "{offline:#}\n{placed:#}");
    }
    documents_that_are_not_in_force_lend_no_lines(&mesh, v1).await?;
    let told =
        mesh.town.equerry(&["explain", "http://inventory-v1/", "--proxy", &admin(orders)]).await?.succeeded()?.out;
    ensure!(told.contains("inventory-v1 inventory-v1: usable"), "no endpoint is told of: {told}");
    ensure!(told.contains("with --policies FILE|DIR"), "nobody says where the lines are to be had: {told}");
    let nobody = mesh.town.equerry(&["explain", "http://inventory-v1/", "--proxy", "127.0.0.1:1"]).await?;
    ensure!(nobody.code == Some(1) && nobody.err.contains("does not answer"), "{nobody:?}");
    Ok(())
}

/// Where a file says something else than what is in force, or nothing of it, that is said instead of a line.
async fn documents_that_are_not_in_force_lend_no_lines(mesh: &Mesh, v1: &Home) -> Result<()> {
    let (at, policies) = (admin(v1), mesh.town.policies().display().to_string());
    let line = [
        "http://inventory-v1/secret",
        "--from",
        "shop/orders",
        "--proxy",
        at.as_str(),
        "--policies",
        policies.as_str(),
        "--policies",
    ];
    let changed = mesh.file("changed.yaml", &NO_SECRETS.replace("/secret/*", "/secrets/*"))?.display().to_string();
    let differs = explained(mesh, &line, &[changed.as_str()]).await?;
    let said = serde_json::to_string(&differs["callees"])?;
    ensure!(said.contains(&format!("; the one in force differs from {changed}:1\"")), "{differs:#}");
    ensure!(differs["verdict"]["origin"].is_null(), "{differs:#}");
    let renamed = mesh.file("renamed.yaml", &NO_SECRETS.replace("no-secrets", "others"))?.display().to_string();
    let unknown = explained(mesh, &line, &[renamed.as_str()]).await?;
    ensure!(serde_json::to_string(&unknown["callees"])?.contains("; it is in none of these files"), "{unknown:#}");
    Ok(())
}
