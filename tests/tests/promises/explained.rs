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

/// The decisions of these kinds, in order.
fn stages(of: &Value, kinds: &[&str]) -> Vec<Value> {
    let all = placeless(of).as_array().cloned().unwrap_or_default();
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
    }
    let told =
        mesh.town.equerry(&["explain", "http://inventory-v1/", "--proxy", &admin(orders)]).await?.succeeded()?.out;
    ensure!(told.contains("inventory-v1 inventory-v1: usable"), "no endpoint is told of: {told}");
    let nobody = mesh.town.equerry(&["explain", "http://inventory-v1/", "--proxy", "127.0.0.1:1"]).await?;
    ensure!(nobody.code == Some(1) && nobody.err.contains("does not answer"), "{nobody:?}");
    Ok(())
}
