//! Certificates that are no workload's: each is refused, for its own reason.

use std::time::Duration;

use equerry_certs::{Identity, IdentityFault, Leaf, PeerFault};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
};

use crate::made::{Forge, authority, id, identity, now, raw_san, uri};

const SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];

fn read(spoil: impl FnOnce(&mut CertificateParams)) -> Result<Leaf, PeerFault> {
    Leaf::read(&Forge::new().leaf(spoil).0)
}

#[test]
fn a_sound_certificate_is_read() {
    let leaf = read(|_| ()).unwrap();
    assert_eq!(leaf.id, id("spiffe://equerry.local/ns/shop/sa/orders"));
    assert_eq!(leaf.not_before, now() - Duration::from_secs(300));
}

#[test]
fn without_a_uri_there_is_no_identity_whatever_else_is_named() {
    assert_eq!(read(|p| p.subject_alt_names.clear()), Err(PeerFault::NoUri));
    let dns =
        |p: &mut CertificateParams| p.subject_alt_names = vec![SanType::DnsName("orders.shop".try_into().unwrap())];
    assert_eq!(read(dns), Err(PeerFault::NoUri));
    let common_name = |p: &mut CertificateParams| {
        p.subject_alt_names.clear();
        p.distinguished_name.push(rcgen::DnType::CommonName, "spiffe://equerry.local/ns/shop/sa/orders");
    };
    assert_eq!(read(common_name), Err(PeerFault::NoUri));
}

#[test]
fn two_uris_are_one_too_many_even_when_equal() {
    for second in
        ["spiffe://equerry.local/ns/shop/sa/admin", "spiffe://equerry.local/ns/shop/sa/orders", "https://example.com"]
    {
        assert_eq!(
            read(|p| p.subject_alt_names.push(uri(second))),
            Err(PeerFault::SeveralUris { found: 2 }),
            "{second}"
        );
    }
}

#[test]
fn two_extensions_of_names_are_refused() {
    let second = |p: &mut CertificateParams| {
        let names = raw_san(&[b"spiffe://equerry.local/ns/shop/sa/admin"]);
        p.custom_extensions.push(CustomExtension::from_oid_content(SUBJECT_ALT_NAME, names));
    };
    assert!(read(second).is_err());
}

#[test]
fn a_nul_in_the_name_is_refused_and_not_a_place_to_stop_reading() {
    let nul = |p: &mut CertificateParams| {
        p.subject_alt_names.clear();
        let names = raw_san(&[b"spiffe://equerry.local/ns/shop/sa/orders\0.evil.example"]);
        p.custom_extensions.push(CustomExtension::from_oid_content(SUBJECT_ALT_NAME, names));
    };
    assert!(matches!(read(nul), Err(PeerFault::BadUri { .. } | PeerFault::NotACertificate)), "{:?}", read(nul));
}

#[test]
fn bytes_that_are_not_text_in_the_name_are_refused() {
    let broken = |p: &mut CertificateParams| {
        p.subject_alt_names.clear();
        let names = raw_san(&[b"spiffe://equerry.local/ns/shop/sa/\xff\xfe"]);
        p.custom_extensions.push(CustomExtension::from_oid_content(SUBJECT_ALT_NAME, names));
    };
    assert!(read(broken).is_err());
}

#[test]
fn a_uri_of_another_form_is_refused_and_shown() {
    for bad in [
        "spiffe://equerry.local",
        "spiffe://equerry.local/ns/shop/sa/orders/",
        "spiffe://equerry.local/ns/shop",
        "spiffe://EQUERRY.local/ns/shop/sa/orders",
        "spiffe://equerry.local/ns/shop/sa/or%64ers",
        "https://equerry.local/ns/shop/sa/orders",
    ] {
        let fault = read(|p| p.subject_alt_names = vec![uri(bad)]).unwrap_err();
        assert_eq!(fault, PeerFault::BadUri { found: bad.to_owned() });
        assert!(fault.to_string().contains(bad));
    }
}

#[test]
fn a_certificate_that_may_sign_others_is_no_peer() {
    assert_eq!(read(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), Err(PeerFault::Signer));
    assert_eq!(read(|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)), Err(PeerFault::Signer));
    assert_eq!(read(|p| p.key_usages.push(KeyUsagePurpose::CrlSign)), Err(PeerFault::Signer));
}

#[test]
fn both_uses_must_be_allowed() {
    for uses in [
        vec![],
        vec![ExtendedKeyUsagePurpose::ServerAuth],
        vec![ExtendedKeyUsagePurpose::ClientAuth],
        vec![ExtendedKeyUsagePurpose::CodeSigning],
        vec![ExtendedKeyUsagePurpose::Any],
    ] {
        assert_eq!(read(|p| p.extended_key_usages = uses.clone()), Err(PeerFault::WrongUse), "{uses:?}");
    }
}

#[test]
fn bytes_of_any_kind_never_panic() {
    let sound = Forge::new().leaf(|_| ()).0;
    for cut in 0..sound.len() {
        assert!(Leaf::read(&sound[..cut].to_vec().into()).is_err(), "cut at {cut}");
    }
    for flipped in 0..sound.len() {
        let mut bytes = sound.to_vec();
        bytes[flipped] ^= 0xff;
        let _ = Leaf::read(&bytes.into());
    }
    let trailing = [sound.as_ref(), b"x"].concat();
    assert_eq!(Leaf::read(&trailing.into()), Err(PeerFault::NotACertificate));
}

#[test]
fn time_is_judged_naming_both_times() {
    let leaf = read(|_| ()).unwrap();
    assert_eq!(leaf.holds_at(now()), Ok(()));
    for when in [leaf.not_before - Duration::from_secs(1), leaf.not_after + Duration::from_secs(1)] {
        let told = leaf.holds_at(when).unwrap_err().to_string();
        assert!(
            told.contains(&equerry_certs::rfc3339(when)) && told.contains(&equerry_certs::rfc3339(leaf.not_after)),
            "{told}"
        );
    }
}

#[test]
fn an_identity_is_kept_and_read_back_and_never_shows_its_key() {
    let made = identity(&authority("equerry.local"), "spiffe://equerry.local/ns/shop/sa/orders");
    let kept = serde_json::to_string(&made).unwrap();
    let read: Identity = serde_json::from_str(&kept).unwrap();
    assert_eq!((read.id(), read.key(), read.chain()), (made.id(), made.key(), made.chain()));
    assert!(!format!("{made:?}").contains("key"));
    assert!(serde_json::from_str::<Identity>(&kept.replace("\"key\":\"M", "\"key\":\"N")).is_err());
}

#[test]
fn a_certificate_of_another_key_makes_no_identity() {
    let authority = authority("equerry.local");
    let (one, other) = (
        identity(&authority, "spiffe://equerry.local/ns/shop/sa/orders"),
        identity(&authority, "spiffe://equerry.local/ns/shop/sa/web"),
    );
    let mixed = Identity::new(one.key().to_vec().into(), other.chain().to_vec());
    assert!(matches!(mixed, Err(IdentityFault::OtherKey { .. })));
    assert_eq!(Identity::new(one.key().to_vec().into(), Vec::new()).unwrap_err(), IdentityFault::NoChain);
}

#[test]
fn renewal_is_due_at_two_thirds_of_life() {
    let identity = identity(&authority("equerry.local"), "spiffe://equerry.local/ns/shop/sa/orders");
    assert_eq!(identity.renew_at(), now() + Duration::from_secs(16 * 60 * 60));
}
