//! Everything a proxy enforces at its inbound, in the order it is asked: mutual TLS, tokens, authorization, tenants.

use std::collections::BTreeMap;

use super::authorization::Authorization;
use super::tenants::Tenants;
use super::tokens::Tokens;
use crate::complaint::Complaint;
use crate::names::ServiceName;
use crate::policy::{Mesh, MtlsMode, ServicePort};
use crate::view::WorkloadView;

/// What a workload enforces at its inbound.
#[derive(Debug, Clone)]
pub struct CompiledWorkload {
    /// Mesh-wide settings.
    pub mesh: Mesh,
    /// The Services this workload is a member of, each with its ports.
    pub services: Vec<(ServiceName, Vec<ServicePort>)>,
    /// Which tokens are accepted.
    pub tokens: Tokens,
    /// Who may do what.
    pub authorization: Authorization,
    /// Who is a tenant, and what is counted here.
    pub tenants: Tenants,
    peer: MtlsMode,
    peer_ports: BTreeMap<u16, MtlsMode>,
}

impl CompiledWorkload {
    /// Whether the application port `port` asks for mutual TLS.
    pub fn mtls(&self, port: u16) -> MtlsMode {
        self.peer_ports.get(&port).copied().unwrap_or(self.peer)
    }

    /// Whether some port accepts plain text, so that the listener must wait to see what is spoken.
    pub fn accepts_plain_text(&self) -> bool {
        self.peer == MtlsMode::Permissive || self.peer_ports.values().any(|mode| *mode == MtlsMode::Permissive)
    }
}

pub(super) fn compile(view: &WorkloadView) -> Result<CompiledWorkload, Vec<Complaint>> {
    let mut complaints = Vec::new();
    let tokens = Tokens::compile(&view.tokens, &mut complaints);
    let authorization = Authorization::compile(&view.authorization, view.mesh.authorization_default);
    let tenants = Tenants::compile(&view.tenants, &mut complaints);
    if !complaints.is_empty() {
        return Err(complaints);
    }
    Ok(CompiledWorkload {
        mesh: view.mesh.clone(),
        services: view.services.clone(),
        tokens,
        authorization,
        tenants,
        peer: view.peer,
        peer_ports: view.peer_ports.iter().copied().collect(),
    })
}
