//! `Mesh` and `PeerAuthentication`.

use std::collections::BTreeMap;

use super::access_log::{Tokens, access_log};
use super::at::At;
use super::{Claim, World, target};
use crate::document::Document;
use crate::document::shape::Notes;
use crate::names::PolicyName;
use crate::policy::{ErrorDetail, Http10, Mesh, MtlsMode, OutboundTraffic, PeerAuthentication, Target, Verdict};

pub(super) fn mesh(document: &Document, root: &At<'_>, tokens: &Tokens, notes: &mut Notes<'_>) -> Option<Mesh> {
    if document.key().name.as_str() != "default"
        && let Some(name) = root.get("metadata").and_then(|m| m.get("name"))
    {
        name.complain(notes, "the one name a Mesh has, default");
    }
    let spec = root.get("spec")?;
    Some(Mesh {
        trust_domain: spec.parse("trustDomain"),
        mtls: spec.get("mtls").and_then(|mtls| mode_in(&mtls, notes)).unwrap_or_default(),
        authorization_default: match spec.get("authorization").and_then(|a| a.text_of("default")) {
            Some("DENY") => Verdict::Deny,
            _ => Verdict::Allow,
        },
        error_detail: if spec.text_of("errorDetail") == Some("full") { ErrorDetail::Full } else { ErrorDetail::Reason },
        outbound_traffic: match spec.text_of("outboundTraffic") {
            Some("ALLOW_ANY") => OutboundTraffic::AllowAny,
            _ => OutboundTraffic::RegistryOnly,
        },
        http10: if spec.text_of("http10") == Some("SERVE") { Http10::Serve } else { Http10::Refuse },
        trusted_hops: spec.whole("trustedHops").unwrap_or(0),
        protocol_detection_timeout: spec.duration("protocolDetectionTimeout"),
        access_log: spec.get("accessLog").map(|log| Box::new(access_log(&log, tokens, notes))),
        origin: root.origin(notes),
    })
}

pub(super) fn peer_authentication(
    name: &PolicyName,
    root: &At<'_>,
    world: &mut World,
    notes: &mut Notes<'_>,
) -> Option<PeerAuthentication> {
    let spec = root.get("spec")?;
    let target = target::target(Some(&spec), &name.namespace, world, notes)?;
    let mut ports = BTreeMap::new();
    for (port, settings) in spec.map("portLevelMtls") {
        if let (Ok(port), Some(mode)) = (port.parse(), mode_in(&settings, notes)) {
            ports.insert(port, mode);
        }
    }
    if !matches!(target, Target::Workloads(_)) {
        if let Some(at) = spec.get("portLevelMtls") {
            at.complain(notes, "a selector beside it: modes of ports hold for selected workloads only");
        }
        let what = format!("one for all of namespace {}", name.namespace);
        let at = root.get("metadata").and_then(|m| m.get("name")).unwrap_or_else(|| root.clone());
        let found = "another PeerAuthentication without a selector";
        world.claim(&at, Claim::Peer(name.namespace.to_string()), found, &what, notes);
    }
    Some(PeerAuthentication {
        name: name.clone(),
        target,
        mode: spec.get("mtls").and_then(|mtls| mode_in(&mtls, notes)),
        ports,
        origin: root.origin(notes),
    })
}

/// Reads the mode in a `mtls` and warns of what DISABLE gives up.
fn mode_in(mtls: &At<'_>, notes: &mut Notes<'_>) -> Option<MtlsMode> {
    let written = mtls.get("mode")?;
    let mode = mode(mtls.text_of("mode")?);
    if mode == Some(MtlsMode::Disable) {
        written.warn_near(
            notes,
            "STRICT or PERMISSIVE: with DISABLE everything goes in plain text between sidecars too, and nobody is known by identity, so \
             that no rule about principals, namespaces or accounts matches anybody",
            None,
        );
    }
    mode
}

/// `None` for UNSET, which inherits, and for what the check has refused.
fn mode(word: &str) -> Option<MtlsMode> {
    match word {
        "STRICT" => Some(MtlsMode::Strict),
        "PERMISSIVE" => Some(MtlsMode::Permissive),
        "DISABLE" => Some(MtlsMode::Disable),
        _ => None,
    }
}
