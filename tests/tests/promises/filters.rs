//! What routes do beside sending requests somewhere, and faults made on purpose, reach sidecars like any other policy.

use std::time::Duration;

use anyhow::{Result, ensure};
use equerry_tests::{Mesh, eventually};

use crate::{PAIR, program};

const POLICY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: inventory-filters, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: inventory}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]
  - matches: [{path: {type: PathPrefix, value: /copied}}]
    filters:
    - {type: RequestMirror, requestMirror: {backendRef: {name: orders, port: 80}}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-by, value: rule}]}}
    backendRefs: [{name: inventory, port: 80}]
---
apiVersion: equerry.dev/v1
kind: FaultInjection
metadata: {name: rehearsal, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: inventory}]
  match: {headers: [{name: x-chaos, value: 'on'}]}
  abort: {percent: 100, httpStatus: 418}
";

#[tokio::test]
async fn redirects_copies_and_faults_hold_as_soon_as_they_are_applied() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    mesh.apply(POLICY).await?;
    let home = mesh.town.home("orders")?;
    let caller = home.through_sidecar();
    let moved = caller.get("inventory", "/old/1", &[]).await?;
    ensure!((moved.status, moved.header("location")) == (302, "http://inventory/new/1"), "{moved:?}");
    let failed = caller.get("inventory", "/", &[("x-chaos", "on")]).await?;
    ensure!(failed.status == 418 && failed.header("proxy-status").contains("fault"), "{failed:?}");
    let copied = caller.get("inventory", "/copied", &[]).await?;
    ensure!((copied.status, copied.header("x-by")) == (200, "rule"), "{copied:?}");
    eventually(Duration::from_secs(10), "the copy was answered", async || {
        let text = home.scrape().await?.text;
        Ok(text.contains("equerry_mirrored_total{outcome=\"answered\"} 1").then_some(()))
    })
    .await
}
