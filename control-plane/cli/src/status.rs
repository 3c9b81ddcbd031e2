//! `equerry status`: is the mesh well? Proxies and what they have, services and who stands behind them.

use std::collections::BTreeSet;

use equerry_control_plane::serve::admin::shapes::{
    AuditProofReply, CertificateReport, ProxyList, ProxyReply, ProxyState, ServiceList, ServiceReply, ShadowList,
    ShadowReply, VersionReply,
};
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::args::Output;
use crate::certs;
use crate::client::Client;
use crate::failure::Failure;
use crate::get::plain;
use crate::out;
use crate::rows::{proxies_table, services_table};

pub(crate) async fn run(output: Output, client: &mut Client) -> Result<(), Failure> {
    let version: VersionReply = client.get("/api/v1/version").await?;
    let proxies: ProxyList = client.get("/api/v1/proxies").await?;
    let services: ServiceList = client.get("/api/v1/services").await?;
    let shadows = optional::<ShadowList>("/api/v1/shadows", client).await?.map(|list| list.items).unwrap_or_default();
    let certificates: Option<CertificateReport> = optional("/api/v1/certificates", client).await?;
    let mut amiss = amiss(&proxies.items, &services.items);
    amiss.extend(certificates.iter().flat_map(certs::overdue));
    amiss.extend(version.audit.as_ref().and_then(of_audit));
    let all = json!({"controlPlane": version, "proxies": proxies.items, "services": services.items, "shadows": shadows, "amiss": amiss});
    if plain(output, &all) {
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
    if !shadows.is_empty() {
        let lines: Vec<String> = shadows.iter().map(shadow).collect();
        out::data(format_args!("\n{}\n{}", out::styled(out::HEAD, "Not enforced"), lines.join("\n")));
    }
    let open = in_plain_text(&services.items);
    if !open.is_empty() {
        let heading = out::styled(out::BAD, "In plain text, by nobody's identity");
        out::data(format_args!("\n{heading}\n{}", open.join("\n")));
    }
    if !amiss.is_empty() {
        out::data(format_args!("\n{}\n{}", out::styled(out::HEAD, "Amiss"), amiss.join("\n")));
    }
    Ok(())
}

/// What a control plane of an older version knows nothing of.
async fn optional<T: DeserializeOwned>(path: &str, client: &mut Client) -> Result<Option<T>, Failure> {
    let answer = client.ask(Method::GET, path, None::<&()>).await?;
    if answer.status == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    if answer.status.is_success() { answer.read().map(Some) } else { Err(answer.failure()) }
}

/// What enforcing a policy would have changed, in one line.
fn shadow(shadow: &ShadowReply) -> String {
    let over = match shadow.seconds {
        60 => "minute".to_owned(),
        seconds => format!("{} minutes", seconds / 60),
    };
    let requests = |count: u64| format!("{count} request{}", if count == 1 { "" } else { "s" });
    let mut would = Vec::new();
    if shadow.would_deny > 0 {
        would.push(format!("would have denied {}", requests(shadow.would_deny)));
    }
    if shadow.would_allow > 0 {
        would.push(format!("would have allowed {} that were refused", requests(shadow.would_allow)));
    }
    let told = match (would.is_empty(), shadow.unchanged) {
        (true, 0) => format!("nothing came by it in the last {over}"),
        (true, unchanged) => format!("would have changed none of {} in the last {over}", requests(unchanged)),
        (false, _) => format!("{} in the last {over}", would.join(" and ")),
    };
    let last = shadow.last.as_ref().map_or_else(String::new, |last| {
        let unknown = || "unknown".to_owned();
        let (source, destination) =
            (last.source.clone().unwrap_or_else(unknown), last.destination.clone().unwrap_or_else(unknown));
        format!(" (last: {source} -> {destination}, {}, {})", last.rule, last.at)
    });
    format!("AuthorizationPolicy {} (shadow): {told}{last}", shadow.policy)
}

/// Where sidecars speak plain text with each other: one line for each instance.
fn in_plain_text(services: &[ServiceReply]) -> Vec<String> {
    let mut lines = BTreeSet::new();
    for service in services {
        for member in service.members.iter().filter(|member| !member.plain_text.is_empty()) {
            let ports: Vec<String> = member.plain_text.iter().map(ToString::to_string).collect();
            let port = if ports.len() == 1 { "port" } else { "ports" };
            lines.insert(format!(
                "{} behind {}: {port} {} (PeerAuthentication DISABLE); rules about principals match nobody there",
                member.instance,
                service.service,
                ports.join(", ")
            ));
        }
    }
    lines.into_iter().collect()
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

    #[test]
    fn what_shadows_would_have_changed_is_told_in_a_sentence() {
        let told = |json: serde_json::Value| shadow(&serde_json::from_value(json).unwrap());
        let last = json!({"at": "2026-01-31T12:00:00Z", "source": "shop/frontend", "destination": "shop/orders",
            "rule": "shop/x rules[0]", "would": "deny"});
        assert_eq!(
            told(
                json!({"policy": "shop/x", "seconds": 300, "unchanged": 5, "wouldDeny": 12, "wouldAllow": 0, "last": last})
            ),
            "AuthorizationPolicy shop/x (shadow): would have denied 12 requests in the last 5 minutes (last: shop/frontend -> \
             shop/orders, shop/x rules[0], 2026-01-31T12:00:00Z)"
        );
        assert_eq!(
            told(json!({"policy": "shop/x", "seconds": 300, "unchanged": 1, "wouldDeny": 0, "wouldAllow": 0})),
            "AuthorizationPolicy shop/x (shadow): would have changed none of 1 request in the last 5 minutes"
        );
        assert_eq!(
            told(json!({"policy": "shop/x", "seconds": 300, "unchanged": 0, "wouldDeny": 0, "wouldAllow": 0})),
            "AuthorizationPolicy shop/x (shadow): nothing came by it in the last 5 minutes"
        );
        let both = json!({"policy": "shop/x", "seconds": 60, "unchanged": 0, "wouldDeny": 1, "wouldAllow": 2,
            "last": {"at": "t", "rule": "r", "would": "allow"}});
        assert_eq!(
            told(both),
            "AuthorizationPolicy shop/x (shadow): would have denied 1 request and would have allowed 2 requests that were refused \
             in the last minute (last: unknown -> unknown, r, t)"
        );
    }

    #[test]
    fn ports_that_take_plain_text_alone_are_named_with_what_that_means() {
        let services: Vec<ServiceReply> = serde_json::from_value(json!([
            {"service": "shop/orders", "healthy": 1, "total": 2, "members": [
                {"instance": "a", "account": "shop/orders", "address": "10.0.0.1:15006", "healthy": true, "leaseMs": 1, "ports": [80, 90], "plainText": [90]},
                {"instance": "b", "account": "shop/orders", "address": "10.0.0.2:15006", "healthy": true, "leaseMs": 1, "ports": [80]}]}]))
        .unwrap();
        assert_eq!(
            in_plain_text(&services),
            ["a behind shop/orders: port 90 (PeerAuthentication DISABLE); rules about principals match nobody there"]
        );
    }
}
