//! `equerry status`: is the mesh well? Proxies and what they have, services and who stands behind them.

use equerry_control_plane::serve::admin::shapes::{
    AuditProofReply, ProxyList, ProxyReply, ProxyState, ServiceList, ServiceReply, VersionReply,
};
use serde_json::json;

use crate::args::Output;
use crate::client::Client;
use crate::failure::Failure;
use crate::get::plain;
use crate::out;
use crate::rows::{proxies_table, services_table};

pub(crate) async fn run(output: Output, client: &mut Client) -> Result<(), Failure> {
    let version: VersionReply = client.get("/api/v1/version").await?;
    let proxies: ProxyList = client.get("/api/v1/proxies").await?;
    let services: ServiceList = client.get("/api/v1/services").await?;
    if plain(output, &json!({"controlPlane": version, "proxies": proxies.items, "services": services.items})) {
        return Ok(());
    }
    let connected = proxies.items.iter().filter(|proxy| proxy.connected).count();
    let in_step = proxies.items.iter().filter(|proxy| proxy.state == ProxyState::InStep).count();
    out::data(format_args!(
        "control plane {}, epoch {}; {connected} of {} proxies connected, {in_step} in step",
        version.version,
        version.epoch,
        proxies.items.len()
    ));
    if proxies.items.is_empty() {
        out::data(
            "\nno proxy has joined yet: `equerry token create join --namespace NS --account ACCOUNT` lets one in",
        );
    } else {
        out::data(format_args!("\n{}", proxies_table(&proxies.items, false)));
    }
    if services.items.is_empty() {
        out::data("\nthere are no services yet: `equerry apply -f FILE`");
    } else {
        out::data(format_args!("\n{}", services_table(&services.items, false)));
    }
    let mut amiss = amiss(&proxies.items, &services.items);
    amiss.extend(version.audit.as_ref().and_then(of_audit));
    if !amiss.is_empty() {
        out::data(format_args!("\n{}\n{}", out::styled(out::HEAD, "Amiss"), amiss.join("\n")));
    }
    Ok(())
}

/// What is not as it should be, and why: one line each.
fn amiss(proxies: &[ProxyReply], services: &[ServiceReply]) -> Vec<String> {
    let mut lines = Vec::new();
    for proxy in proxies.iter().filter(|proxy| proxy.state != ProxyState::InStep) {
        lines.push(format!("{}: {}", proxy.instance, proxy.why.as_deref().unwrap_or("not in step")));
    }
    for service in services.iter().filter(|service| service.external_name.is_none()) {
        for member in service.members.iter().filter(|member| !member.healthy) {
            let why = if member.detail.is_empty() { "unhealthy" } else { &member.detail };
            lines.push(format!("{} behind {}: {why}", member.instance, service.service));
        }
        for out in &service.left_out {
            lines.push(format!("{} is left out of {}: {}", out.instance, service.service, out.reason));
        }
        if service.total == 0 {
            lines.push(format!("{}: nobody stands behind it; `equerry describe service` says why", service.service));
        }
    }
    lines
}

/// An audit log that does not prove itself.
fn of_audit(proof: &AuditProofReply) -> Option<String> {
    let found = proof.found.as_ref()?;
    Some(format!("audit log: {found}; compare it with an exported copy: `equerry audit verify -f FILE`"))
}

/// The control plane's version, after this program's own.
pub(crate) async fn version(client: &mut Client) -> Result<(), Failure> {
    let reply: VersionReply = client.get("/api/v1/version").await?;
    out::data(format_args!("control plane {} (epoch {})", reply.version, reply.epoch));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_amiss_is_told_with_its_reason() {
        let proxies: Vec<ProxyReply> = serde_json::from_value(json!([
            {"instance": "shop/a", "connected": true, "ackedEpoch": 7, "wantedEpoch": 7, "state": "in_step"},
            {"instance": "shop/b", "connected": false, "ackedEpoch": 3, "wantedEpoch": 7, "state": "away", "why": "it is not connected"}]))
        .unwrap();
        let services: Vec<ServiceReply> = serde_json::from_value(json!([
            {"service": "shop/orders", "healthy": 1, "total": 2, "members": [
                {"instance": "a", "account": "shop/orders", "address": "10.0.0.1:15006", "healthy": true, "leaseMs": 1},
                {"instance": "b", "account": "shop/orders", "address": "10.0.0.2:15006", "healthy": false, "detail": "probe: 503", "leaseMs": 1}],
             "leftOut": [{"instance": "c", "account": "shop/x", "reason": "its account is not listed"}]},
            {"service": "shop/empty", "healthy": 0, "total": 0, "members": []}]))
        .unwrap();
        assert_eq!(
            amiss(&proxies, &services),
            [
                "shop/b: it is not connected",
                "b behind shop/orders: probe: 503",
                "c is left out of shop/orders: its account is not listed",
                "shop/empty: nobody stands behind it; `equerry describe service` says why",
            ]
        );
    }

    #[test]
    fn an_audit_log_that_does_not_prove_itself_is_amiss() {
        let proof = |found: Option<&str>| AuditProofReply {
            verified: found.is_none(),
            up_to: 7,
            at_unix: Some(1),
            found: found.map(str::to_owned),
        };
        assert_eq!(of_audit(&proof(None)), None);
        let told = of_audit(&proof(Some("entry 4 does not follow from entry 3"))).unwrap();
        assert!(told.starts_with("audit log: entry 4 does not follow from entry 3; compare"), "{told}");
    }
}
