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
