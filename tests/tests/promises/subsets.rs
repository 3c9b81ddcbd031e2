//! Requests of a tenant, or with a header, go to the instances that were set aside for them, which Services select by label.

use std::time::Duration;

use anyhow::{Result, ensure};
use equerry_tests::{Mesh, eventually};

use crate::{PAIR, program};

/// The demo's own Services select inventory by version; its route is replaced by one that splits by tenant and by header.
const BY_TENANT: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: inventory, namespace: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: inventory}]
  rules:
  - name: acme
    matches: [{headers: [{name: x-tenant, value: acme}]}]
    backendRefs: [{name: inventory-v2, port: 80}]
  - name: testers
    matches: [{headers: [{name: x-version, type: RegularExpression, value: \"v[2-9]\"}]}]
    backendRefs: [{name: inventory-v2, port: 80}]
  - name: everybody
    backendRefs: [{name: inventory-v1, port: 80}]
";

#[tokio::test]
async fn a_tenants_requests_and_those_with_a_header_go_to_the_instances_set_aside_for_them() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let orders = mesh.town.home("orders")?;
    mesh.apply(BY_TENANT).await?;
    let by = async |headers: &[(&str, &str)]| -> Result<String> {
        let answer = orders.through_sidecar().get("inventory", "/", headers).await?;
        ensure!(answer.status == 200, "{}", answer.shown());
        Ok(answer.shown())
    };
    eventually(Duration::from_secs(15), "both versions", async || {
        let answers = [by(&[("x-tenant", "acme")]).await?, by(&[]).await?];
        Ok((answers[0].contains("inventory-v2") && answers[1].contains("inventory-v1")).then_some(()))
    })
    .await?;
    let expected: [(&[(&str, &str)], &str); 6] = [
        (&[("x-tenant", "acme")], "inventory-v2"),
        (&[("x-tenant", "globex")], "inventory-v1"),
        (&[("x-version", "v3")], "inventory-v2"),
        (&[("x-version", "v1")], "inventory-v1"),
        (&[("x-tenant", "globex"), ("x-version", "v2")], "inventory-v2"),
        (&[], "inventory-v1"),
    ];
    for (headers, instance) in expected {
        for _ in 0..10 {
            let said = by(headers).await?;
            ensure!(said.contains(instance), "{headers:?} went to {said}, not to {instance}");
        }
    }
    Ok(())
}
