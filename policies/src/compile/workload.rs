//! Everything a proxy enforces at its inbound, in the order it is asked: mutual TLS, tokens, authorization, tenants.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::access_log::AccessLog;
use super::authorization::{Authorization, Rule, Turn};
use super::csrf::Csrf;
use super::in_scope;
use super::keys::Key;
use super::tenants::Tenants;
use super::tokens::{FetchedKeys, KeySource, Tokens};
use crate::complaint::Complaint;
use crate::names::ServiceName;
use crate::policy::{Mesh, MtlsMode, ServicePort};
use crate::view::{Scoped, WorkloadView};

/// What a workload enforces at its inbound.
#[derive(Debug, Clone)]
pub struct CompiledWorkload {
    /// Mesh-wide settings.
    pub mesh: Mesh,
    /// What access logs say beyond what they always say; `None`: nothing.
    pub access_log: Option<Arc<AccessLog>>,
    /// The Services this workload is a member of, each with its ports.
    pub services: Vec<(ServiceName, Vec<ServicePort>)>,
    /// Which tokens are accepted.
    pub tokens: Tokens,
    /// Who may do what.
    pub authorization: Authorization,
    /// Which pages may change something here, by the names of the documents.
    pub csrf: Vec<Csrf>,
    /// Who is a tenant, and what is counted here.
    pub tenants: Tenants,
    peer: MtlsMode,
    peer_ports: BTreeMap<u16, MtlsMode>,
    trusted_hops: Vec<Scoped<u8>>,
}

impl CompiledWorkload {
    /// Whether the application port `port` asks for mutual TLS.
    pub fn mtls(&self, port: u16) -> MtlsMode {
        self.peer_ports.get(&port).copied().unwrap_or(self.peer)
    }

    /// How many proxies in front of the application port `port` are believed to say whom they speak for.
    pub fn trusted_hops(&self, port: u16) -> u8 {
        let here = self.trusted_hops.iter().filter(|scoped| in_scope(scoped.ports.as_deref(), port));
        // Of several Services behind one port the one that believes least is right about all.
        here.map(|scoped| scoped.policy).min().unwrap_or(self.mesh.trusted_hops)
    }

    /// Whether some rule holds on the application port `port` that only HTTP requests can be measured by. Shadows and audits do not
    /// count: what they say changes nothing.
    pub fn has_rules_about_http(&self, port: u16) -> bool {
        let authorization = &self.authorization;
        let enforced = |rule: &Rule| {
            let policy = authorization.policy_of(rule);
            matches!(policy.turn, Turn::Deny | Turn::Allow) && policy.holds_on(port)
        };
        authorization.rules().any(|(_, rule)| rule.about_http() && enforced(rule))
            || self.tokens.on(port).next().is_some()
            || self.csrf.iter().any(|csrf| csrf.holds_on(port))
            || self.tenants.all().iter().any(|tenant| tenant.quotas(port).next().is_some())
    }

    /// The same workload with the keys that were fetched for its token rules.
    #[must_use]
    pub fn with_fetched(&self, fetched: &FetchedKeys) -> Self {
        let mut with = self.clone();
        with.tokens.set_fetched(fetched);
        with
    }

    /// The same workload with other keys of one issuer.
    #[must_use]
    pub fn with_keys_of(&self, from: &KeySource, keys: &Arc<[Key]>) -> Self {
        let mut with = self.clone();
        with.tokens.set_keys_of(from, keys);
        with
    }

    /// Whether every port asks of `other` what it asks of this one.
    pub fn has_modes_of(&self, other: &Self) -> bool {
        self.peer == other.peer && self.peer_ports == other.peer_ports
    }
}

pub(super) fn compile(view: &WorkloadView) -> Result<CompiledWorkload, Vec<Complaint>> {
    let mut complaints = Vec::new();
    let tokens = Tokens::compile(&view.tokens, &mut complaints);
    let authorization = Authorization::compile(&view.authorization, view.mesh.authorization_default, &mut complaints);
    let tenants = Tenants::compile(&view.tenants, &mut complaints);
    let access_log = AccessLog::compile(view.mesh.access_log.as_deref(), &tokens, &mut complaints);
    if !complaints.is_empty() {
        return Err(complaints);
    }
    Ok(CompiledWorkload {
        mesh: view.mesh.clone(),
        access_log,
        services: view.services.clone(),
        tokens,
        authorization,
        csrf: view.csrf.iter().map(Csrf::compile).collect(),
        tenants,
        trusted_hops: view.trusted_hops.clone(),
        peer: if view.plain_only { MtlsMode::Disable } else { view.peer },
        peer_ports: view
            .peer_ports
            .iter()
            .copied()
            .chain(view.plain_only_ports.iter().map(|port| (*port, MtlsMode::Disable)))
            .collect(),
    })
}
