//! Tenants by what names them, so that naming one is a lookup however many there are.

use http::HeaderName;

use super::in_scope;
use super::tokens::{ClaimPath, path};
use crate::complaint::Complaint;
use crate::names::{AccountName, TenantName};
use crate::policy::{OnControlPlaneLoss, Origin, Quota, TenantMatch};
use crate::quick::Quick;
use crate::view::{Scoped, TenantView};

/// Every tenant, and what names it: claims are asked first, then headers.
#[derive(Debug, Clone, Default)]
pub struct Tenants {
    all: Vec<Tenant>,
    /// By claim, in the order the claims first appear.
    pub by_claim: Vec<ClaimTenants>,
    /// By header, in the order the headers first appear.
    pub by_header: Vec<HeaderTenants>,
}

/// One tenant at one workload.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Its name.
    pub name: TenantName,
    /// What holds while the control plane cannot be reached.
    pub on_control_plane_loss: OnControlPlaneLoss,
    /// Where it was written.
    pub origin: Origin,
    quotas: Vec<Scoped<Quota>>,
}

/// The tenants that one claim names.
#[derive(Debug, Clone)]
pub struct ClaimTenants {
    /// The claim.
    pub claim: ClaimPath,
    values: Quick<Box<str>, usize>,
}

/// The tenants that one header names.
#[derive(Debug, Clone)]
pub struct HeaderTenants {
    /// The header.
    pub header: HeaderName,
    values: Quick<Box<str>, Vec<(Vec<AccountName>, usize)>>,
}

impl Tenant {
    /// Its quotas that are counted on the application port `port`.
    pub fn quotas(&self, port: u16) -> impl Iterator<Item = &Quota> {
        self.quotas.iter().filter(move |quota| in_scope(quota.ports.as_deref(), port)).map(|quota| &quota.policy)
    }

    /// Its quotas that are counted at this workload, on any port.
    pub fn all_quotas(&self) -> impl Iterator<Item = &Quota> {
        self.quotas.iter().map(|quota| &quota.policy)
    }
}

impl Tenants {
    /// Every tenant, by name.
    pub fn all(&self) -> &[Tenant] {
        &self.all
    }

    /// The tenant that the claim names by `value`.
    pub fn claimed(&self, by: &ClaimTenants, value: &str) -> Option<&Tenant> {
        self.all.get(*by.values.get(value)?)
    }

    /// The tenant that the header names by `value`, when `peer` is believed.
    pub fn told(&self, by: &HeaderTenants, value: &str, peer: &AccountName) -> Option<&Tenant> {
        let believed = by.values.get(value)?.iter().find(|(trusted, _)| trusted.contains(peer))?;
        self.all.get(believed.1)
    }

    pub(super) fn compile(from: &[TenantView], complaints: &mut Vec<Complaint>) -> Self {
        let mut tenants = Self::default();
        for (index, TenantView { tenant, quotas }) in from.iter().enumerate() {
            for quota in quotas {
                let seconds = quota.policy.window.as_secs();
                if quota.policy.window.subsec_nanos() != 0 || !(1..=86_400).contains(&seconds) {
                    let found = format!("{:?}", quota.policy.window);
                    complaints.push(
                        Complaint::at(&tenant.origin, "spec.quotas[].window", found, "whole seconds, 1s to 24h")
                            .in_document(format_args!("Tenant {}", tenant.name)),
                    );
                }
            }
            for matcher in &tenant.matches {
                tenants.add(matcher, index, &tenant.origin, complaints);
            }
            tenants.all.push(Tenant {
                name: tenant.name.clone(),
                on_control_plane_loss: tenant.on_control_plane_loss,
                origin: tenant.origin.clone(),
                quotas: quotas.clone(),
            });
        }
        tenants
    }

    fn add(&mut self, matcher: &TenantMatch, tenant: usize, origin: &Origin, complaints: &mut Vec<Complaint>) {
        match matcher {
            TenantMatch::Claim { name, value } => {
                let claim = path(name);
                let place = self.by_claim.iter().position(|known| known.claim == claim).unwrap_or_else(|| {
                    self.by_claim.push(ClaimTenants { claim, values: Quick::default() });
                    self.by_claim.len() - 1
                });
                // One matcher in two tenants is refused when documents are interpreted; the first wins here.
                self.by_claim[place].values.entry(value.as_str().into()).or_insert(tenant);
            }
            TenantMatch::Header { name, value, trusted_from } => {
                let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
                    complaints.push(Complaint::at(
                        origin,
                        "spec.match[].header.name",
                        format!("{name:?}"),
                        "the name of a header",
                    ));
                    return;
                };
                let place = self.by_header.iter().position(|known| known.header == header).unwrap_or_else(|| {
                    self.by_header.push(HeaderTenants { header, values: Quick::default() });
                    self.by_header.len() - 1
                });
                self.by_header[place]
                    .values
                    .entry(value.as_str().into())
                    .or_default()
                    .push((trusted_from.clone(), tenant));
            }
        }
    }
}
