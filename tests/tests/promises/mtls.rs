//! STRICT accepts mutual TLS only; PERMISSIVE accepts plain text beside it, without an identity.

use anyhow::{Result, ensure};
use equerry::demo::check::knock;
use equerry::demo::web::Caller;
use equerry_tests::Mesh;

use crate::{PAIR, program};

const PERMISSIVE: &str = "\
apiVersion: equerry.dev/v1
kind: PeerAuthentication
metadata: {name: inventory, namespace: shop}
spec:
  selector: {matchLabels: {app: inventory}}
  mtls: {mode: PERMISSIVE}
";
const ALLOW_READING: &str = "\
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: anybody-may-read, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: inventory}]
  action: ALLOW
  rules:
  - to: [{operation: {methods: [GET]}}]
";

#[tokio::test]
async fn plain_text_is_refused_under_strict_and_judged_without_identity_under_permissive() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let v1 = mesh.town.home("inventory-v1")?;
    let stranger = Caller::local(v1.inbound.number());
    let refused = stranger.get("inventory", "/", &[]).await?;
    ensure!(refused.status == 403 && refused.json()["reason"] == "tls_required", "STRICT answered {}", refused.shown());

    mesh.apply(PERMISSIVE).await?;
    let judged = stranger.get("inventory:8080", "/", &[]).await?;
    ensure!(
        judged.status == 403 && judged.json()["reason"] == "authz_denied",
        "PERMISSIVE answered somebody without identity {}",
        judged.shown()
    );
    mesh.apply(&format!("{PERMISSIVE}{ALLOW_READING}")).await?;
    let allowed = stranger.get("inventory:8080", "/", &[]).await?;
    ensure!(allowed.status == 200, "PERMISSIVE answered an allowed call {}", allowed.shown());
    let secured = mesh.town.home("orders")?.through_sidecar().get("inventory", "/", &[]).await?;
    ensure!(secured.status == 200, "PERMISSIVE answered over mutual TLS {}", secured.shown());
    Ok(())
}

#[tokio::test]
async fn a_stranger_without_a_certificate_of_this_mesh_is_refused() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let v1 = mesh.town.home("inventory-v1")?;
    let trust = knock::trust(&mesh.town)?;
    ensure!(knock::get_over_tls(v1, &trust, None).await.is_err(), "no certificate at all");
    for domain in ["other.example", "equerry.local"] {
        let stranger = knock::stranger(domain, "orders")?;
        let answer = knock::get_over_tls(v1, &trust, Some(&stranger)).await;
        ensure!(answer.is_err(), "a certificate of {domain} from another authority was answered {answer:?}");
    }
    Ok(())
}
