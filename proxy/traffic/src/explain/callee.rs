//! What the sidecar of a callee decides of a request or connection, in the order in which it asks.

use std::net::IpAddr;
use std::time::SystemTime;

use equerry_policies::compile::CompiledWorkload;
use equerry_policies::names::SpiffeId;
use equerry_policies::policy::{MtlsMode, Origin};
use http::request::Parts;

use super::{Outcome, Stage, Step};
use crate::authorize::{Connection, Facts};
use crate::normalize::{Direction, normalize};
use crate::refusal::Refusal;
use crate::token::Shown;

/// What comes in, and what is known of it.
#[derive(Debug, Clone, Copy)]
pub struct Coming<'a> {
    /// The application port that is meant.
    pub port: u16,
    /// Who speaks; `None`: nobody is known.
    pub peer: Option<&'a SpiffeId>,
    /// Their address.
    pub peer_ip: IpAddr,
    /// The server name of their TLS.
    pub sni: Option<&'a str>,
    /// It is a connection, in whose bytes nobody looks for requests.
    pub tcp: bool,
    /// When.
    pub now: SystemTime,
}

/// Whether the port asks for mutual TLS, and who is known by it to whoever is `own`.
pub fn mode(mode: MtlsMode, port: u16, peer: Option<&SpiffeId>, own: &SpiffeId, origin: &Origin) -> Step {
    let how = match peer {
        Some(peer) => format!("between sidecars always mutual TLS: {peer} calls {own}"),
        None if mode == MtlsMode::Disable => {
            "plain text, between sidecars too: nobody is known by an identity, and rules about principals match nobody"
                .to_owned()
        }
        None => "this comes in plain text: nobody is known by an identity".to_owned(),
    };
    let found = if peer.is_some() { Outcome::Decided } else { Outcome::Noted };
    Step::new("mutual TLS", found, format!("{} on port {port}; {how}", mode.as_str()), origin)
}

/// Token, authorization and tenant, until one refuses.
pub fn callee(workload: &CompiledWorkload, coming: &Coming<'_>, mut parts: Parts) -> (Vec<Stage>, Result<(), Refusal>) {
    let mut stages = Vec::new();
    let outcome = judge(workload, coming, &mut parts, &mut stages);
    (stages, outcome)
}

fn judge(
    workload: &CompiledWorkload,
    coming: &Coming<'_>,
    parts: &mut Parts,
    stages: &mut Vec<Stage>,
) -> Result<(), Refusal> {
    let trusted_hops = workload.mesh.trusted_hops;
    let mut normal = normalize(parts, Direction::Inbound { mesh_peer: coming.peer.is_some(), trusted_hops })?;
    let shown = Shown { headers: &mut parts.headers, normal: Some(&mut normal) };
    let (mut steps, caller) = super::token(workload, coming.port, shown, coming.peer, coming.now);
    if steps.is_empty() {
        let because = "no RequestAuthentication selects the workload here: tokens are passed on unread";
        steps.push(Step::new("token", Outcome::NotHere, because, &Origin::default()));
    }
    stages.push(Stage::new("token", steps));
    let caller = caller?;
    let connection = Connection { port: coming.port, peer_ip: coming.peer_ip, local_ip: None, sni: coming.sni };
    let facts = Facts {
        method: &parts.method,
        authority: normal.authority(),
        path: normal.path(),
        headers: &parts.headers,
        connection,
    };
    let (steps, permitted) = if coming.tcp {
        super::connection(&caller, &connection, workload)
    } else {
        super::authorization(&caller, &facts, workload)
    };
    stages.push(Stage::new("authorization", steps));
    permitted?;
    if !coming.tcp {
        stages.push(Stage::new("tenant", super::tenant(workload, &caller, &parts.headers, coming.port)));
    }
    Ok(())
}
