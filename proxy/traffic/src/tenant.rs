//! Which tenant a request belongs to: over all tenants claims are asked first, then headers; the first that matches wins.
//!
//! A claim is read only where a token was verified; a header is believed only from the accounts its tenant names.

use equerry_policies::compile::{CompiledWorkload, Tenant};
use http::HeaderMap;

use crate::token::{Caller, claim_texts};

/// The tenant a request belongs to; `None`: nobody's.
pub fn which<'a>(workload: &'a CompiledWorkload, caller: &Caller, headers: &HeaderMap) -> Option<&'a Tenant> {
    by_claim(workload, caller).or_else(|| by_header(workload, caller, headers))
}

fn by_claim<'a>(workload: &'a CompiledWorkload, caller: &Caller) -> Option<&'a Tenant> {
    let tenants = &workload.tenants;
    tenants.by_claim.iter().find_map(|by| {
        let claim = caller.claim(&by.claim)?;
        // A tenant is one value: a claim that lists several names nobody.
        let mut texts = claim_texts(claim);
        let (text, None) = (texts.next()?, texts.next()) else { return None };
        tenants.claimed(by, &text)
    })
}

fn by_header<'a>(workload: &'a CompiledWorkload, caller: &Caller, headers: &HeaderMap) -> Option<&'a Tenant> {
    let tenants = &workload.tenants;
    if tenants.by_header.is_empty() {
        return None;
    }
    let peer = caller.peer()?.account_name();
    tenants.by_header.iter().find_map(|by| {
        // Two values could be read as either, so they name nobody.
        let mut values = headers.get_all(&by.header).iter();
        let (value, None) = (values.next()?, values.next()) else { return None };
        tenants.told(by, value.to_str().ok()?, &peer)
    })
}

#[cfg(test)]
mod tests {
    use equerry_policies::compile;
    use equerry_policies::names::{AccountName, TenantName};
    use equerry_policies::policy::{self, Mesh, MtlsMode, OnControlPlaneLoss, Origin, Quota, TenantMatch};
    use equerry_policies::view::{Scoped, TenantView, WorkloadView};
    use http::HeaderValue;
    use serde_json::{Value, json};

    use super::*;

    const FRONTEND: &str = "equerry.local/ns/shop/sa/frontend";

    fn tenant(name: &str, matches: Vec<TenantMatch>) -> TenantView {
        let tenant = policy::Tenant {
            name: TenantName::parse(name).unwrap(),
            matches,
            quotas: vec![],
            on_control_plane_loss: OnControlPlaneLoss::Deny,
            origin: Origin::default(),
        };
        let quota =
            Quota { id: format!("{name}/0"), services: vec![], requests: 1, window: std::time::Duration::from_secs(5) };
        TenantView { tenant, quotas: vec![Scoped { ports: Some(vec![8080]), policy: quota }] }
    }

    fn claim(value: &str) -> TenantMatch {
        TenantMatch::Claim { name: vec!["tenant".to_owned()], value: value.to_owned() }
    }

    fn header(value: &str) -> TenantMatch {
        let trusted_from = vec![AccountName::parse("shop/frontend").unwrap()];
        TenantMatch::Header { name: "x-tenant".to_owned(), value: value.to_owned(), trusted_from }
    }

    fn workload() -> CompiledWorkload {
        compile::workload(&WorkloadView {
            mesh: Mesh::default(),
            services: vec![],
            peer: MtlsMode::Strict,
            peer_ports: vec![],
            plain_only: false,
            plain_only_ports: Vec::new(),
            tokens: vec![],
            authorization: vec![],
            csrf: vec![],
            trusted_hops: vec![],
            tenants: vec![
                tenant("acme", vec![header("acme"), claim("acme")]),
                tenant("globex", vec![header("globex"), claim("globex"), claim("7")]),
            ],
        })
        .unwrap()
    }

    fn named(peer: Option<&str>, claims: Option<Value>, values: &[&'static str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x-tenant", HeaderValue::from_static(value));
        }
        which(&workload(), &Caller::assumed(peer, claims), &headers).map(|tenant| tenant.name.to_string())
    }

    #[test]
    fn a_verified_claim_names_the_tenant_before_any_header() {
        assert_eq!(named(Some(FRONTEND), Some(json!({"tenant": "globex"})), &["acme"]).as_deref(), Some("globex"));
        assert_eq!(named(None, Some(json!({"tenant": 7})), &[]).as_deref(), Some("globex"));
        assert_eq!(named(None, Some(json!({"tenant": ["acme"]})), &[]).as_deref(), Some("acme"));
    }

    #[test]
    fn a_claim_of_several_values_names_nobody() {
        assert_eq!(named(None, Some(json!({"tenant": ["acme", "globex"]})), &[]), None);
    }

    #[test]
    fn a_header_is_believed_only_from_the_accounts_that_its_tenant_trusts() {
        assert_eq!(named(Some(FRONTEND), None, &["acme"]).as_deref(), Some("acme"));
        assert_eq!(named(Some("equerry.local/ns/shop/sa/orders"), None, &["acme"]), None);
        assert_eq!(named(None, None, &["acme"]), None, "plain text has no account");
        assert_eq!(named(Some(FRONTEND), None, &["acme", "globex"]), None, "two values name nobody");
        assert_eq!(named(Some(FRONTEND), None, &["ACME"]), None);
    }

    #[test]
    fn a_quota_counts_on_its_ports_alone() {
        let workload = workload();
        let tenant = &workload.tenants.all()[0];
        assert_eq!((tenant.quotas(8080).count(), tenant.quotas(9090).count()), (1, 0));
    }
}
