//! Who may do what is decided by identity, and every refusal names its cause.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use equerry_tests::{Mesh, eventually};

use crate::{PAIR, program};

const DENY_SECRETS: &str = "\
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

#[tokio::test]
async fn a_deny_rule_wins_and_no_spelling_of_a_path_gets_around_it() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    mesh.apply(DENY_SECRETS).await?;
    let caller = mesh.town.home("orders")?.through_sidecar();
    for path in ["/secret", "/secret/plans", "/public/../secret", "/./secret", "/%73ecret", "/secret?x=1"] {
        let answer = caller.get("inventory", path, &[]).await?;
        ensure!(answer.status == 403, "{path}: {}", answer.shown());
        ensure!(answer.shown().contains("shop/no-secrets rules[1]"), "{path}: {}", answer.shown());
    }
    for path in ["/secret%2fplans", "/secret%00", "/a\\..\\secret"] {
        let answer = caller.get("inventory", path, &[]).await;
        ensure!(
            answer.as_ref().map_or(true, |answer| answer.status == 400 || answer.status == 403),
            "{path}: {answer:?}"
        );
    }
    let answer = caller.get("inventory", "/secrets-of-gardening", &[]).await?;
    ensure!(answer.status == 200, "a path that only looks alike: {}", answer.shown());
    Ok(())
}

#[tokio::test]
async fn a_method_that_no_rule_allows_is_refused_with_every_policy_that_was_asked() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let answer = mesh.town.home("orders")?.through_sidecar().call("DELETE", "inventory", "/", &[]).await?;
    ensure!(answer.status == 403, "{}", answer.shown());
    ensure!(answer.shown().contains("no rule of shop/inventory-callers matched"), "{}", answer.shown());
    Ok(())
}

const TRIED_OUT: &str = "\
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: no-debug, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: inventory}]
  action: DENY
  rules:
  - from: [{source: {notServiceAccounts: [support]}}]
    to: [{operation: {notPaths: ['/public/{**}']}}]
    when: [{key: 'request.headers[x-debug]', values: ['*'], notValues: ['off']}]
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: no-reports, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: inventory}]
  mode: shadow
  action: DENY
  rules: [{to: [{operation: {paths: ['/reports/{*}']}}]}]
---
apiVersion: equerry.dev/v1
kind: PolicyTest
metadata: {name: debugging, namespace: shop}
spec:
  cases:
  - name: nobody but support debugs
    from: shop/orders
    request: {url: 'http://inventory/', headers: [{name: x-debug, value: 'on'}]}
    expect: {decision: DENY, reason: authz_denied, rule: 'shop/no-debug rules[0]'}
";

#[tokio::test]
async fn what_a_rule_excludes_passes_and_a_shadow_only_tells() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    mesh.apply(TRIED_OUT).await?;
    let caller = mesh.town.home("orders")?.through_sidecar();
    for (status, path, debug) in
        [(403, "/", "on"), (200, "/", "off"), (200, "/public/a/b", "on"), (200, "/reports/today", "off")]
    {
        let answer = caller.get("inventory", path, &[("x-debug", debug)]).await?;
        ensure!(answer.status == status, "{path} x-debug: {debug}: {}", answer.shown());
    }
    let would_deny = [("policy", "shop/no-reports"), ("decision", "would_deny")];
    let mut told = 0.0;
    for home in &mesh.town.homes {
        told += home.scrape().await?.sum("equerry_authz_shadow_total", &would_deny);
    }
    ensure!(told == 1.0, "the shadow told {told} times what it would refuse");
    // The request went to one of the two versions.
    let begins = "AuthorizationPolicy shop/no-reports (shadow): would have denied 1 request in the last 5 minutes (last: shop/orders -> \
                  shop/inventory";
    eventually(Duration::from_secs(30), "status to tell of the shadow", async || {
        let said = mesh.town.equerry(&["status"]).await?.succeeded()?.out;
        if said.contains(begins) && said.contains(", shop/no-reports rules[0], ") {
            Ok(Some(()))
        } else {
            bail!("{said}")
        }
    })
    .await?;
    let shadows = mesh.status().await?["shadows"].clone();
    ensure!(
        shadows[0]["policy"] == "shop/no-reports"
            && shadows[0]["wouldDeny"] == 1
            && shadows[0]["last"]["would"] == "deny",
        "{shadows}"
    );
    let undone = TRIED_OUT.replace("action: DENY", "action: AUDIT").replace("  mode: shadow\n", "");
    ensure!(mesh.apply(&undone).await.is_err(), "a change was applied that its own test refuses");
    Ok(())
}
