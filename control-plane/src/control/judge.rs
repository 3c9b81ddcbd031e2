//! Whether documents may be true together: they must mean something, and compile with the code that proxies run.

use equerry_policies::compile;
use equerry_policies::complaint::Complaint;
use equerry_policies::document::Document;
use equerry_policies::interpret::interpret;
use equerry_policies::names::TrustDomain;
use equerry_policies::policy::{Meaning, Mesh};
use equerry_policies::view::{self, NamedJwtRule, Scoped, TenantView, WorkloadView};

/// What the documents mean together, when proxies of this version will accept it.
///
/// # Errors
/// With every mistake in them.
pub(super) fn judge(documents: &[Document], trust_domain: &TrustDomain) -> Result<Meaning, Vec<Complaint>> {
    let meaning = interpret(documents)?;
    let mut complaints = Vec::new();
    complaints.extend(foreign_trust_domain(&meaning.mesh, trust_domain));
    complaints.extend(compile::workload(&everything_inbound(&meaning)).err().unwrap_or_default());
    for service in meaning.services.keys() {
        for caller in view::callers(&meaning, service) {
            let view = view::destination(&meaning, service, caller);
            complaints.extend(view.and_then(|view| compile::destination(&view).err()).unwrap_or_default());
        }
    }
    if complaints.is_empty() {
        return Ok(meaning);
    }
    complaints.sort();
    complaints.dedup();
    Err(complaints)
}

fn foreign_trust_domain(mesh: &Mesh, ours: &TrustDomain) -> Option<Complaint> {
    let named = mesh.trust_domain.as_ref().filter(|named| *named != ours)?;
    let expected =
        format!("{ours}: the control plane was first started with --trust-domain {ours}, which cannot be changed");
    Some(
        Complaint::at(&mesh.origin, "spec.trustDomain", format!("{:?}", named.as_str()), expected)
            .in_document("Mesh default"),
    )
}

/// A workload that every policy selects: what compiles for it compiles for each.
fn everything_inbound(meaning: &Meaning) -> WorkloadView {
    WorkloadView {
        mesh: meaning.mesh.clone(),
        services: meaning.services.values().map(|service| (service.name.clone(), service.ports.clone())).collect(),
        peer: meaning.mesh.mtls,
        peer_ports: Vec::new(),
        plain_only: false,
        plain_only_ports: Vec::new(),
        tokens: meaning
            .tokens
            .iter()
            .flat_map(|(name, document)| document.rules.iter().map(move |rule| (name, rule)))
            .map(|(name, rule)| Scoped {
                ports: None,
                policy: NamedJwtRule { policy: name.to_string(), rule: rule.clone() },
            })
            .collect(),
        authorization: meaning
            .authorization
            .values()
            .map(|policy| Scoped { ports: None, policy: policy.clone() })
            .collect(),
        csrf: meaning.csrf.values().map(|policy| Scoped { ports: None, policy: policy.clone() }).collect(),
        trusted_hops: vec![],
        tenants: meaning
            .tenants
            .values()
            .map(|tenant| TenantView {
                tenant: tenant.clone(),
                quotas: tenant.quotas.iter().map(|quota| Scoped { ports: None, policy: quota.clone() }).collect(),
            })
            .collect(),
    }
}
