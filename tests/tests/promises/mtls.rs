//! STRICT accepts mutual TLS only; PERMISSIVE accepts plain text beside it, without an identity.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use equerry::demo::check::knock;
use equerry::demo::town::Home;
use equerry::demo::web::Caller;
use equerry_tests::{Mesh, eventually};

use crate::{PAIR, program};

const PERMISSIVE: &str = "\
apiVersion: equerry.dev/v1
kind: PeerAuthentication
metadata: {name: inventory, namespace: shop}
spec:
  selector: {matchLabels: {app: inventory}}
  mtls: {mode: PERMISSIVE}
";
const DISABLE: &str = "\
apiVersion: equerry.dev/v1
kind: PeerAuthentication
metadata: {name: inventory, namespace: shop}
spec:
  selector: {matchLabels: {app: inventory}}
  mtls: {mode: DISABLE}
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
async fn under_disable_sidecars_speak_plain_text_by_nobodys_identity_and_everybody_is_told_loudly() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let (orders, v1) = (mesh.town.home("orders")?, mesh.town.home("inventory-v1")?);
    let caller = orders.through_sidecar();
    let path = mesh.file("disable.yaml", &format!("{DISABLE}{ALLOW_READING}"))?;
    let said = mesh.town.equerry(&["apply", "--wait", "-f", &path.display().to_string()]).await?.succeeded()?;
    let warned = format!("{}{}", said.out, said.err);
    ensure!(warned.contains("nobody is known by identity"), "apply said {warned}");
    // Endpoints belong to no epoch: callers hear a moment later.
    eventually(Duration::from_secs(30), "callers to speak plain text", async || {
        let answer = caller.get("inventory", "/", &[]).await?;
        if answer.status != 200 {
            bail!("{}", answer.shown());
        }
        let plain = orders
            .scrape()
            .await?
            .sum("equerry_requests_total", &[("direction", "outbound"), ("tls", "none"), ("code", "200")]);
        Ok((plain > 0.0).then_some(()))
    })
    .await?;
    // Rules about principals, such as those that let orders write, match nobody.
    let refused = caller.call("POST", "inventory", "/", &[]).await?;
    ensure!(refused.status == 403, "{}", refused.shown());
    let trust = knock::trust(&mesh.town)?;
    let knocked = knock::get_over_tls(v1, &trust, None).await;
    ensure!(knocked.is_err(), "TLS was answered {knocked:?}");
    // Counted once the alert is on its way.
    eventually(Duration::from_secs(10), "the refused handshake to be counted", async || {
        let refused = v1.scrape().await?.sum("equerry_handshake_failures_total", &[("reason", "plain_text_only")]);
        Ok((refused > 0.0).then_some(()))
    })
    .await?;
    let status = mesh.town.equerry(&["status"]).await?.succeeded()?.out;
    ensure!(
        status.contains("In plain text, by nobody's identity")
            && status.contains("inventory-v1 behind shop/inventory: port"),
        "{status}"
    );
    let described = mesh.town.equerry(&["describe", "service", "inventory", "-n", "shop"]).await?.succeeded()?.out;
    ensure!(described.contains("nobody is known by identity there"), "{described}");

    // And back: what is open in plain text ends, and mutual TLS is spoken again.
    mesh.apply(&DISABLE.replace("DISABLE", "STRICT")).await?;
    eventually(Duration::from_secs(30), "callers to speak mutual TLS again", async || {
        let before = secured(orders).await?;
        let answer = caller.get("inventory", "/", &[]).await?;
        Ok((answer.status == 200 && secured(orders).await? > before).then_some(()))
    })
    .await?;
    let stranger = Caller::local(v1.inbound.number()).get("inventory", "/", &[]).await?;
    ensure!(stranger.json()["reason"] == "tls_required", "{}", stranger.shown());
    Ok(())
}

async fn secured(home: &Home) -> Result<f64> {
    let labels = [("direction", "outbound"), ("tls", "mutual"), ("code", "200")];
    Ok(home.scrape().await?.sum("equerry_requests_total", &labels))
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
