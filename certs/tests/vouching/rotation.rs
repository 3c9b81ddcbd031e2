//! Two roots at once, one after the other, and identities that are believed no more: who still meets whom, and that no
//! resumed session outlives any of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use equerry_certs::tls::{self, ClientAuth, TicketWatch};
use equerry_certs::{Authority, Identity, PeerFault, Pin, TrustBundle};
use rustls::HandshakeKind;

use crate::handshake::{client, meet, server};
use crate::made::{DAY, authority, bundle, id, identity, now};

const ORDERS: &str = "spiffe://equerry.local/ns/shop/sa/orders";
const WEB: &str = "spiffe://equerry.local/ns/shop/sa/web";

fn both(first: &Authority, second: &Authority) -> TrustBundle {
    let roots = vec![first.root().clone(), second.root().clone()];
    TrustBundle::new(first.trust_domain().clone(), roots).unwrap()
}

#[test]
fn while_both_roots_are_believed_old_and_new_certificates_meet_in_every_way() {
    let (old, new) = (authority("equerry.local"), authority("equerry.local"));
    let trust = both(&new, &old);
    for (callers, callees) in [(&old, &new), (&new, &old), (&new, &new), (&old, &old)] {
        let (web, orders) = (identity(callers, WEB), identity(callees, ORDERS));
        meet(Arc::new(client(Some(&web), &trust, &[ORDERS])), server(&orders, &trust, ClientAuth::Required)).well();
    }
}

#[test]
fn who_slept_through_the_first_phase_still_believes_what_the_new_root_issues() {
    let (old, mut new) = (authority("equerry.local"), authority("equerry.local"));
    assert!(new.be_certified_by(&old, now()).unwrap() && new.is_certified_twice());
    let (asleep, awake) = (bundle(&old), both(&new, &old));
    // A new certificate and an old believer, either way round.
    let (web, orders) = (identity(&old, WEB), identity(&new, ORDERS));
    meet(Arc::new(client(Some(&web), &asleep, &[ORDERS])), server(&orders, &awake, ClientAuth::Required)).well();
    let (web, orders) = (identity(&new, WEB), identity(&old, ORDERS));
    meet(Arc::new(client(Some(&web), &awake, &[ORDERS])), server(&orders, &asleep, ClientAuth::Required)).well();
    // And so it is kept.
    let kept = Authority::from_pem(&new.to_pem(), new.trust_domain()).unwrap();
    assert!(kept.is_certified_twice());
    let orders = identity(&kept, ORDERS);
    assert_eq!(tls::vouching(orders.chain(), &awake, now()).len(), 2);
    new.stand_alone();
    let orders = identity(&new, ORDERS);
    assert_eq!(tls::vouching(orders.chain(), &awake, now()), [Pin::of(new.root()).unwrap()]);
    let refused = meet(
        Arc::new(client(Some(&identity(&old, WEB)), &asleep, &[ORDERS])),
        server(&orders, &awake, ClientAuth::Required),
    );
    assert!(matches!(refused.client_fault(), PeerFault::UnknownSigner { .. }));
}

#[test]
fn what_was_certified_twice_holds_no_longer_than_either_root() {
    let old = authority("equerry.local");
    let late = now() + DAY * 3652 - DAY;
    let mut new = Authority::create(old.trust_domain().clone(), late).unwrap();
    assert!(new.be_certified_by(&old, late).unwrap());
    let request = equerry_certs::Request::new().unwrap();
    let issued = new.sign(&request.csr_der, &id(WEB), DAY, late).unwrap();
    let two_days = late + DAY * 2;
    let trust = bundle(&new);
    assert!(tls::vouching(&issued.chain, &trust, late).len() == 1);
    assert!(tls::prove(&issued.chain, &bundle(&old), late).is_ok(), "while the old root holds");
    assert!(tls::prove(&issued.chain, &bundle(&old), two_days).is_err(), "and no longer");
}

#[test]
fn an_authority_that_was_brought_can_be_certified_by_nobody_here_and_says_so() {
    let own = authority("equerry.local");
    let (mut brought, _) = crate::brought::sound();
    assert!(!brought.be_certified_by(&own, now()).unwrap());
    let mut next = authority("equerry.local");
    assert!(!next.be_certified_by(&brought, now()).unwrap() && !next.is_certified_twice());
}

/// A caller with a ticket of a session with `orders` under `trust`.
fn with_ticket(
    web: &Identity,
    orders: &Identity,
    trust: &TrustBundle,
) -> (rustls::ClientConfig, Arc<rustls::client::ClientSessionMemoryCache>) {
    let (config, sessions) = (client(Some(web), trust, &[ORDERS]), TicketWatch::sessions(64));
    let served = server(orders, trust, ClientAuth::Required);
    meet(TicketWatch::on(&config, &sessions).0, served.clone()).well();
    let resumed = meet(TicketWatch::on(&config, &sessions).0, served).well();
    assert_eq!(resumed.client.handshake_kind(), Some(HandshakeKind::Resumed), "there is a ticket to try");
    (config, sessions)
}

#[test]
fn a_ticket_from_before_a_root_was_dropped_resumes_nothing() {
    let (old, new) = (authority("equerry.local"), authority("equerry.local"));
    let (web, orders) = (identity(&old, WEB), identity(&new, ORDERS));
    let (config, sessions) = with_ticket(&web, &orders, &both(&new, &old));
    let after = server(&orders, &bundle(&new), ClientAuth::Required);
    let refused = meet(TicketWatch::on(&config, &sessions).0, after);
    assert!(matches!(refused.server_fault(), PeerFault::UnknownSigner { .. }), "verified anew, and refused");
}

#[test]
fn a_ticket_from_before_a_revocation_resumes_nothing() {
    let authority = authority("equerry.local");
    let (web, orders) = (identity(&authority, WEB), identity(&authority, ORDERS));
    let (config, sessions) = with_ticket(&web, &orders, &bundle(&authority));
    let revoking = bundle(&authority).of_generation(7, BTreeSet::from([id(WEB)]));
    let after = server(&orders, &revoking, ClientAuth::Required);
    let refused = meet(TicketWatch::on(&config, &sessions).0, after);
    assert_eq!(refused.server_fault(), &PeerFault::Revoked { found: id(WEB) });
}

#[test]
fn a_ticket_from_before_any_change_of_trust_is_worth_nothing_even_to_who_is_still_believed() {
    let authority = authority("equerry.local");
    let (web, orders) = (identity(&authority, WEB), identity(&authority, ORDERS));
    let (config, sessions) = with_ticket(&web, &orders, &bundle(&authority));
    let revoking = bundle(&authority).of_generation(7, BTreeSet::from([id("spiffe://equerry.local/ns/x/sa/y")]));
    let met = meet(TicketWatch::on(&config, &sessions).0, server(&orders, &revoking, ClientAuth::Required)).well();
    assert_eq!(met.client.handshake_kind(), Some(HandshakeKind::Full));
}

#[test]
fn a_revoked_identity_is_believed_neither_as_caller_nor_as_callee_and_all_others_are() {
    let authority = authority("equerry.local");
    let (web, orders) = (identity(&authority, WEB), identity(&authority, ORDERS));
    let revoking = |whom: &str| bundle(&authority).of_generation(1, BTreeSet::from([id(whom)]));
    let trust = revoking(WEB);
    let met = meet(Arc::new(client(Some(&web), &trust, &[ORDERS])), server(&orders, &trust, ClientAuth::Required));
    assert_eq!(met.server_fault(), &PeerFault::Revoked { found: id(WEB) });
    let trust = revoking(ORDERS);
    let met = meet(Arc::new(client(Some(&web), &trust, &[ORDERS])), server(&orders, &trust, ClientAuth::Required));
    assert_eq!(met.client_fault(), &PeerFault::Revoked { found: id(ORDERS) });
    let trust = revoking("spiffe://equerry.local/ns/shop/sa/web2");
    meet(Arc::new(client(Some(&web), &trust, &[ORDERS])), server(&orders, &trust, ClientAuth::Required)).well();
}

#[test]
fn a_bundle_is_kept_with_its_generation_and_its_revocations_and_one_of_an_earlier_version_is_read() {
    let plain = bundle(&authority("equerry.local"));
    let full = plain.clone().of_generation(9, BTreeSet::from([id(WEB)]));
    let kept = serde_json::to_string(&full).unwrap();
    let read: TrustBundle = serde_json::from_str(&kept).unwrap();
    assert_eq!((read.generation(), read.revokes(&id(WEB)), read.revokes(&id(ORDERS))), (9, true, false));
    assert_eq!(read, full);
    let older = kept.replace(",\"generation\":9", "").replace(&format!(",\"revoked\":[\"{WEB}\"]"), "");
    assert!(!older.contains("revoked") && !older.contains("generation"), "{older}");
    assert_eq!(serde_json::from_str::<TrustBundle>(&older).unwrap(), plain);
}

#[test]
fn which_root_vouches_is_told_also_while_there_are_two() {
    let (old, new) = (authority("equerry.local"), authority("equerry.local"));
    let trust = both(&new, &old);
    let of = |authority: &Authority| tls::vouching(identity(authority, WEB).chain(), &trust, now());
    assert_eq!(of(&old), [Pin::of(old.root()).unwrap()]);
    assert_eq!(of(&new), [Pin::of(new.root()).unwrap()]);
    assert!(of(&authority("equerry.local")).is_empty());
    assert!(tls::vouching(identity(&old, WEB).chain(), &trust, now() + DAY + Duration::from_secs(1)).is_empty());
}
