//! An issuing certificate under somebody else's root: what is accepted, and every way in which it is refused, with the part
//! that is wrong and what is wrong with it.

use std::sync::Arc;

use equerry_certs::tls::{self, ClientAuth};
use equerry_certs::{Authority, Identity, Part, Request, Texts, TrustBundle, pem};
use equerry_policies::names::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
};

use crate::handshake::{client, meet, server};
use crate::made::{DAY, id, now, uri};

const ORDERS: &str = "spiffe://equerry.local/ns/shop/sa/orders";

struct Signer {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    key: String,
}

fn params(name: &str, spoil: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = (now() - DAY).into();
    params.not_after = (now() + DAY * 100).into();
    spoil(&mut params);
    params
}

fn root(spoil: impl FnOnce(&mut CertificateParams)) -> Signer {
    let params = params("Example Root", spoil);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Signer { pem, key: key.serialize_pem(), issuer: Issuer::new(params, key) }
}

fn under(above: &Signer, name: &str, key: KeyPair, spoil: impl FnOnce(&mut CertificateParams)) -> Signer {
    let params = params(name, spoil);
    let pem = params.signed_by(&key, &above.issuer).unwrap().pem();
    Signer { pem, key: key.serialize_pem(), issuer: Issuer::new(params, key) }
}

fn p256() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn read(root: &str, issuer: &str, key: &str) -> Result<Authority, equerry_certs::BroughtFault> {
    let domain = TrustDomain::parse("equerry.local").unwrap();
    Authority::brought(&domain, Texts { root, issuer, key }, now())
}

/// An authority of two levels, and its root.
pub(crate) fn sound() -> (Authority, String) {
    let root = root(|_| ());
    let issuing = under(&root, "Example Issuing", p256(), |_| ());
    (read(&root.pem, &issuing.pem, &issuing.key).unwrap(), root.pem)
}

fn meets(authority: &Authority) {
    let trust = authority.roots().unwrap();
    let make = |name: &str| {
        let request = Request::new().unwrap();
        let issued = authority.sign(&request.csr_der, &id(name), DAY, now()).unwrap();
        Identity::new(request.key, issued.chain).unwrap()
    };
    let (web, orders) = (make("spiffe://equerry.local/ns/shop/sa/web"), make(ORDERS));
    meet(Arc::new(client(Some(&web), &trust, &[ORDERS])), server(&orders, &trust, ClientAuth::Required)).well();
}

#[test]
fn what_was_brought_issues_certificates_that_are_believed_whatever_kind_of_key_it_has() {
    for key in
        [p256(), KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(), KeyPair::generate_for(&PKCS_ED25519).unwrap()]
    {
        let root = root(|_| ());
        let issuing = under(&root, "Example Issuing", key, |_| ());
        let authority = read(&root.pem, &issuing.pem, &issuing.key).unwrap();
        assert!(authority.is_brought());
        meets(&authority);
    }
}

#[test]
fn certificates_between_issuing_and_root_travel_with_every_leaf() {
    let root = root(|_| ());
    let between = under(&root, "Example Between", p256(), |_| ());
    let issuing = under(&between, "Example Issuing", p256(), |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let authority = read(&root.pem, &(issuing.pem.clone() + &between.pem), &issuing.key).unwrap();
    assert_eq!(authority.issuing().len(), 2);
    meets(&authority);
    let other_way = read(&root.pem, &(between.pem + &issuing.pem), &issuing.key).unwrap_err();
    assert!(other_way.what.contains("is not signed by"), "{other_way}");
}

#[test]
fn what_was_brought_is_kept_without_the_roots_key_and_read_back() {
    let (authority, _) = sound();
    let kept = authority.to_pem();
    assert!(kept.root_key.is_none());
    let read = Authority::from_pem(&kept, authority.trust_domain()).unwrap();
    assert!(read.is_brought() && read.root() == authority.root());
    meets(&read);
}

#[test]
fn the_life_of_a_leaf_ends_with_the_first_certificate_above_it() {
    let root = root(|p| p.not_after = (now() + DAY * 2).into());
    let issuing = under(&root, "Example Issuing", p256(), |p| p.not_after = (now() + DAY * 50).into());
    let authority = read(&root.pem, &issuing.pem, &issuing.key).unwrap();
    assert_eq!(authority.issuing_not_after(), now() + DAY * 2);
    let request = Request::new().unwrap();
    let issued = authority.sign(&request.csr_der, &id(ORDERS), DAY * 10, now()).unwrap();
    assert_eq!(issued.not_after, now() + DAY * 2);
}

#[test]
fn an_issuing_certificate_that_was_brought_is_never_replaced_here() {
    let (mut authority, _) = sound();
    assert!(!authority.renew_issuing_if_due(now() + DAY * 99).unwrap());
}

#[test]
fn each_way_to_bring_the_wrong_thing_is_refused_with_its_part_and_what_is_wrong() {
    let sound_root = root(|_| ());
    let (root_pem, other_root) = (sound_root.pem.clone(), root(|_| ()).pem);
    let make = |spoil: fn(&mut CertificateParams)| under(&sound_root, "Example Issuing", p256(), spoil);
    let good = make(|_| ());
    let refused = |root: &str, issuer: &str, key: &str, part: Part, says: &str| {
        let fault = read(root, issuer, key).map(|_| ()).unwrap_err();
        assert!(fault.part == part && fault.to_string().contains(says), "expected {part} and {says:?}, found {fault}");
    };
    refused("nothing", &good.pem, &good.key, Part::Root, "BEGIN CERTIFICATE");
    refused(&(root_pem.clone() + &other_root), &good.pem, &good.key, Part::Root, "found 2 certificates, expected one");
    refused(&good.pem, &good.pem, &good.key, Part::Root, "is not signed by itself");
    refused(&other_root, &good.pem, &good.key, Part::Issuer, "is not signed by");
    refused(&root_pem, &(good.pem.clone() + &root_pem), &good.key, Part::Issuer, "it holds the root itself");
    refused(&root_pem, "", &good.key, Part::Issuer, "there is none in the text");
    for (spoil, says) in [
        ((|p| p.is_ca = IsCa::ExplicitNoCa) as fn(&mut CertificateParams), "may not sign others"),
        (|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature], "lacks the key usage keyCertSign"),
        (|p| p.not_after = (now() - DAY / 2).into(), "and the clock says"),
        (|p| p.not_before = (now() + DAY / 2).into(), "and the clock says"),
        (|p| p.subject_alt_names = vec![uri("spiffe://other.example")], "is of trust domain other.example"),
    ] {
        let bad = make(spoil);
        refused(&root_pem, &bad.pem, &bad.key, Part::Issuer, says);
    }
    let narrow = make(|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let between = under(&narrow, "Between", p256(), |_| ());
    let deep = under(&between, "Deep", p256(), |_| ());
    refused(
        &root_pem,
        &(deep.pem + &between.pem + &narrow.pem),
        &deep.key,
        Part::Issuer,
        "issued on trial is not believed",
    );
    refused(&root_pem, &good.pem, &make(|_| ()).key, Part::Key, "is not the key of the issuing certificate");
    refused(&root_pem, &good.pem, "", Part::Key, "PKCS#8");
    let sec1 = good.key.replace("PRIVATE KEY", "EC PRIVATE KEY");
    refused(&root_pem, &good.pem, &sec1, Part::Key, "openssl pkcs8 -topk8");
    let sealed = good.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    refused(&root_pem, &good.pem, &sealed, Part::Key, "found an encrypted key");
}

#[test]
fn a_root_that_was_brought_is_a_bundle_like_any_other() {
    let (authority, root_pem) = sound();
    let bundle = authority.roots().unwrap();
    assert_eq!(bundle, TrustBundle::from_pem(authority.trust_domain().clone(), &root_pem).unwrap());
    assert_eq!(pem::certificates(bundle.roots()), pem::certificates(&[authority.root().clone()]));
    assert!(tls::client_config(None, &bundle, vec![id(ORDERS)], &[]).is_ok());
}
