//! What the certificate authority signs, what it refuses, and that it survives being kept.

use std::time::Duration;

use equerry_certs::authority::{MAX_LIFETIME, MIN_LIFETIME};
use equerry_certs::{Authority, AuthorityFault, HostName, Leaf, Pin, Request, SignFault, TrustBundle, pem};
use equerry_policies::names::TrustDomain;
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P384_SHA384, SanType};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::made::{DAY, authority, bundle, id, now, uri};

const ORDERS: &str = "spiffe://equerry.local/ns/shop/sa/orders";

fn csr(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    change(&mut params);
    params.serialize_request(key).unwrap().der().to_vec()
}

#[test]
fn a_leaf_has_one_name_the_asked_life_and_is_backdated_five_minutes() {
    let authority = authority("equerry.local");
    let issued = authority.sign(&Request::new().unwrap().csr_der, &id(ORDERS), DAY, now()).unwrap();
    let leaf = Leaf::read(&issued.chain[0]).unwrap();
    assert_eq!(
        (leaf.id.to_string().as_str(), leaf.not_before, leaf.not_after),
        (ORDERS, now() - Duration::from_secs(300), now() + DAY)
    );
    assert_eq!((issued.not_before, issued.not_after), (leaf.not_before, leaf.not_after));
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "RFC 5280: critical when there is no subject");
    assert_eq!(names.value.general_names, [GeneralName::URI(ORDERS)]);
    assert!(leaf.raw_serial().len() >= 16 && leaf.raw_serial()[0] & 0x80 == 0);
}

#[test]
fn of_a_request_only_the_key_is_believed() {
    let authority = authority("equerry.local");
    let key = KeyPair::generate().unwrap();
    let asks_for_more = csr(&key, |p| {
        p.distinguished_name.push(DnType::CommonName, "admin");
        p.subject_alt_names = vec![uri(ORDERS), SanType::DnsName("evil.example".try_into().unwrap())];
        p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    });
    let issued = authority.sign(&asks_for_more, &id(ORDERS), DAY, now()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    assert_eq!(leaf.subject_alternative_name().unwrap().unwrap().value.general_names, [GeneralName::URI(ORDERS)]);
    assert!(!leaf.is_ca() && leaf.subject().iter().next().is_none());
}

#[test]
fn a_request_for_somebody_else_is_refused_naming_both() {
    let admin = "spiffe://equerry.local/ns/shop/sa/admin";
    let asked = csr(&KeyPair::generate().unwrap(), |p| p.subject_alt_names = vec![uri(admin)]);
    let fault = authority("equerry.local").sign(&asked, &id(ORDERS), DAY, now()).unwrap_err();
    assert!(matches!(fault, SignFault::OtherIdentity { .. }));
    assert!(fault.to_string().contains(admin) && fault.to_string().contains(ORDERS), "{fault}");
}

#[test]
fn a_request_that_does_not_prove_its_key_is_refused() {
    let sound = csr(&KeyPair::generate().unwrap(), |_| ());
    let mut forged = sound.clone();
    *forged.last_mut().unwrap() ^= 1;
    let authority = authority("equerry.local");
    assert_eq!(authority.sign(&forged, &id(ORDERS), DAY, now()).unwrap_err(), SignFault::NotProven);
    assert!(authority.sign(&sound, &id(ORDERS), DAY, now()).is_ok());
}

#[test]
fn requests_that_are_none_are_refused_without_panic() {
    let authority = authority("equerry.local");
    let sound = csr(&KeyPair::generate().unwrap(), |_| ());
    for cut in 0..sound.len() {
        assert!(authority.sign(&sound[..cut], &id(ORDERS), DAY, now()).is_err(), "cut at {cut}");
    }
    let trailing = [sound.as_slice(), b"x"].concat();
    assert!(matches!(authority.sign(&trailing, &id(ORDERS), DAY, now()), Err(SignFault::NotARequest { .. })));
    assert!(matches!(authority.sign(&vec![0x30; 1 << 20], &id(ORDERS), DAY, now()), Err(SignFault::TooLarge { .. })));
    let other_key = csr(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(), |_| ());
    assert_eq!(authority.sign(&other_key, &id(ORDERS), DAY, now()).unwrap_err(), SignFault::OtherKeyType);
}

#[test]
fn another_trust_domain_is_not_vouched_for() {
    let fault =
        authority("equerry.local").sign(&Request::new().unwrap().csr_der, &id("spiffe://other/ns/a/sa/b"), DAY, now());
    assert!(matches!(fault, Err(SignFault::OtherTrustDomain { .. })));
}

#[test]
fn a_life_is_kept_within_bounds_and_within_the_issuing_certificates() {
    let authority = authority("equerry.local");
    let life = |asked, at| {
        authority
            .sign(&Request::new().unwrap().csr_der, &id(ORDERS), asked, at)
            .map(|i| i.not_after.duration_since(at).unwrap())
    };
    assert_eq!(life(Duration::ZERO, now()), Ok(MIN_LIFETIME));
    assert_eq!(life(DAY * 1000, now()), Ok(MAX_LIFETIME));
    assert_eq!(life(DAY, now() + DAY * 365 - Duration::from_secs(60)), Ok(Duration::from_secs(60)));
    assert!(matches!(life(DAY, now() + DAY * 365), Err(SignFault::AuthorityExpired { .. })));
}

#[test]
fn an_authority_is_read_back_as_it_was_kept() {
    let made = authority("equerry.local");
    let read = Authority::from_pem(&made.to_pem(), made.trust_domain()).unwrap();
    assert_eq!(bundle(&read), bundle(&made));
    assert_eq!(read.trust_domain(), made.trust_domain());
    let issued = read.sign(&Request::new().unwrap().csr_der, &id(ORDERS), DAY, now()).unwrap();
    assert_eq!(pem::certificates(&issued.chain[1..]), made.to_pem().issuing);
    assert!(!format!("{read:?}").contains("PRIVATE"));
}

#[test]
fn files_of_two_authorities_are_not_mixed() {
    let (one, other) = (authority("equerry.local").to_pem(), authority("equerry.local").to_pem());
    let domain = || TrustDomain::parse("equerry.local").unwrap();
    let mut mixed = authority("equerry.local").to_pem();
    (mixed.root, mixed.root_key, mixed.issuing, mixed.issuing_key) =
        (one.root.clone(), one.root_key.clone(), other.issuing.clone(), other.issuing_key.clone());
    assert_eq!(Authority::from_pem(&mixed, &domain()).unwrap_err(), AuthorityFault::NotOfRoot);
    (mixed.issuing, mixed.issuing_key) = (one.issuing, other.issuing_key);
    assert_eq!(Authority::from_pem(&mixed, &domain()).unwrap_err(), AuthorityFault::OtherKey { which: "issuing" });
    mixed.root = "nothing".into();
    assert!(matches!(Authority::from_pem(&mixed, &domain()), Err(AuthorityFault::Pem(_))));
}

#[test]
fn an_issuing_certificate_is_replaced_in_time_under_the_same_root() {
    let mut authority = authority("equerry.local");
    let (roots, end) = (bundle(&authority), authority.issuing_not_after());
    assert!(!authority.renew_issuing_if_due(now() + DAY * 300).unwrap());
    assert!(authority.renew_issuing_if_due(now() + DAY * 310).unwrap());
    assert!(authority.issuing_not_after() > end);
    assert_eq!(bundle(&authority), roots);
}

#[test]
fn host_names_are_read_strictly() {
    assert_eq!(HostName::parse("Mesh.Example.com").unwrap(), HostName::Dns("mesh.example.com".into()));
    assert_eq!(HostName::parse("::1").unwrap(), HostName::Ip("::1".parse().unwrap()));
    for bad in ["", "a b", "-a", "a-", "a..b", "a/b", "*.example.com", "http://x"] {
        assert!(HostName::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_bundle_is_kept_and_pinned_by_its_roots_key() {
    let bundle = bundle(&authority("equerry.local"));
    let pin = bundle.pin().unwrap();
    assert!(bundle.holds(&pin) && !bundle.holds(&Pin::parse(&"0".repeat(64)).unwrap()));
    assert_eq!(pin.as_str().len(), 64);
    let kept = serde_json::to_string(&bundle).unwrap();
    assert_eq!(serde_json::from_str::<TrustBundle>(&kept).unwrap(), bundle);
    assert_eq!(TrustBundle::from_pem(bundle.trust_domain().clone(), &bundle.to_pem()).unwrap(), bundle);
    assert!(TrustBundle::new(bundle.trust_domain().clone(), Vec::new()).is_err());
}

#[test]
fn a_leaf_is_no_root() {
    let authority = authority("equerry.local");
    let issued = authority.sign(&Request::new().unwrap().csr_der, &id(ORDERS), DAY, now()).unwrap();
    assert!(TrustBundle::new(authority.trust_domain().clone(), issued.chain[..1].to_vec()).is_err());
}
