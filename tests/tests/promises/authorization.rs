//! Who may do what is decided by identity, and every refusal names its cause.

use anyhow::{Result, ensure};
use equerry_tests::Mesh;

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
