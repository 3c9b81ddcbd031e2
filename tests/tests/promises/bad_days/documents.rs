//! Documents that cannot be meant: refused whole, offline and by the control plane alike, with every mistake named.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use equerry_tests::{Mesh, api, run};

use crate::program;

/// `validate` and `apply` must both refuse `text` naming each of `complaints` (`":LINE:"` and a word), and nothing may
/// change.
async fn refused(text: &str, complaints: &[(&str, &str)]) -> Result<()> {
    let mesh = Mesh::up(program(), &[]).await?;
    let before = everything(&mesh).await?;
    let file = mesh.file("bad.yaml", text)?.display().to_string();
    let begun = Instant::now();
    let offline = run(program(), &["validate", "-f", &file], Duration::from_secs(20)).await?;
    let online = mesh.town.equerry(&["apply", "-f", &file]).await?;
    ensure!(begun.elapsed() < Duration::from_secs(15), "it took {:?} to refuse", begun.elapsed());
    for (command, said) in [("validate", &offline), ("apply", &online)] {
        ensure!(said.code == Some(1), "{command} ended with {:?}: {}", said.code, said.everything());
        for (line, word) in complaints {
            let at = format!("{file}{line}");
            let named = said.everything().lines().any(|said| said.contains(&at) && said.contains(word));
            ensure!(named, "{command} does not name {word:?} at {at}: {}", said.everything());
        }
    }
    ensure!(everything(&mesh).await? == before, "something changed");
    Ok(())
}

async fn everything(mesh: &Mesh) -> Result<(u64, String)> {
    let documents = mesh.town.equerry(&["get", "all", "-A", "-o", "json"]).await?.succeeded()?.out;
    Ok((mesh.epoch().await?, documents))
}

#[tokio::test]
async fn several_mistakes_are_all_named_at_once() -> Result<()> {
    let text = "\
apiVersion: v1
kind: Service
metadata: {name: Basket, namespace: shop, annotations: {equerry.dev/accounts: basket}}
spec:
  selector: {app: basket}
  prots: [{port: 80}]
  ports: [{name: http, port: 70000}]
---
apiVersion: equerry.dev/v1
kind: Mesh
metadata: {name: default}
spec:
  mtls: {mode: STRIKT}
";
    refused(text, &[(":3:", "Basket"), (":6:", "prots"), (":7:", "70000"), (":13:", "STRICT")]).await
}

#[tokio::test]
async fn an_unknown_kind_is_refused_with_the_nearest() -> Result<()> {
    let text =
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRout\nmetadata: {name: a, namespace: shop}\nspec: {}\n";
    refused(text, &[(":2:", "HTTPRoute")]).await
}

#[tokio::test]
async fn an_unknown_key_is_refused_with_the_nearest() -> Result<()> {
    let text = "apiVersion: equerry.dev/v1\nkind: Tenant\nmetadata: {name: initech}\nspec:\n  match:\n  - claim: {name: tenant, value: initech}\n  quotaz: []\n";
    refused(text, &[(":7:", "quotas")]).await
}

#[tokio::test]
async fn a_route_of_a_missing_service_is_refused_and_told_beside_it_is_a_missing_backend() -> Result<()> {
    let text = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: nowhere-to-be-found}]
  rules:
  - backendRefs:
    - {name: neither-here, port: 80}
";
    refused(text, &[(":5:", "nowhere-to-be-found"), (":8:", "neither-here")]).await
}

#[tokio::test]
async fn something_not_built_yet_is_refused_as_such() -> Result<()> {
    let text = "apiVersion: equerry.dev/v1\nkind: Telemetry\nmetadata: {name: a, namespace: shop}\nspec: {}\n";
    refused(text, &[(":2:", "not supported by this version")]).await
}

#[tokio::test]
async fn a_document_of_ten_megabytes_is_refused() -> Result<()> {
    let mesh = Mesh::up(program(), &[]).await?;
    let before = everything(&mesh).await?;
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: big, namespace: shop, labels: {{a: \"{}\"}}}}\n",
        "x".repeat(10 << 20)
    );
    let file = mesh.file("big.yaml", &text)?.display().to_string();
    for said in [
        run(program(), &["validate", "-f", &file], Duration::from_secs(20)).await?,
        mesh.town.equerry(&["apply", "-f", &file]).await?,
    ] {
        ensure!(said.code == Some(1), "{}", said.everything());
        ensure!(said.everything().contains("big.yaml") && said.everything().contains("1 MiB"), "{}", said.everything());
    }
    // The command refuses to send it; the control plane refuses to take it too.
    let body = serde_json::json!({"files": [{"name": "big.yaml", "text": text}]}).to_string();
    match api::ask(&mesh.town, "POST", "/api/v1/apply", Bytes::from(body)).await {
        Ok((status, said)) => ensure!(matches!(status.as_u16(), 413 | 422), "the API answered {status}: {said}"),
        // It may also close the connection while the body is still on its way.
        Err(error) => ensure!(format!("{error:#}").contains("sending"), "{error:#}"),
    }
    ensure!(everything(&mesh).await? == before, "something changed");
    Ok(())
}

#[tokio::test]
async fn an_alias_bomb_is_refused_at_once() -> Result<()> {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let inner = vec![format!("*a{}", level - 1); 10].join(", ");
        writeln!(text, "a{level}: &a{level} [{inner}]")?;
    }
    writeln!(text, "apiVersion: v1\nkind: Service\nmetadata: {{name: bomb, namespace: shop}}\nspec: {{ports: *a11}}")?;
    refused(&text, &[]).await
}
