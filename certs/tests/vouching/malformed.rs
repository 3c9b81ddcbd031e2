//! Certificates that a strict reader refuses, shown in real handshakes by clients and by servers: each is refused by the
//! other end, for its own reason, however sound the chain.

use std::sync::Arc;
use std::time::Duration;

use equerry_certs::tls::ClientAuth;
use equerry_certs::{CertificateDer, PeerFault, Zeroizing, tls};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    SanType,
};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::handshake::{client, meet, server};
use crate::made::{DAY, Forge, id, now, raw_san, uri};

const ORDERS: &str = "spiffe://equerry.local/ns/shop/sa/orders";
const SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];

/// A certificate as a sound one, changed; what becomes of it.
type Case = (&'static str, fn(&mut CertificateParams), fn(&PeerFault) -> bool);

fn names(p: &mut CertificateParams, uris: &[&[u8]]) {
    p.subject_alt_names.clear();
    p.custom_extensions.push(CustomExtension::from_oid_content(SUBJECT_ALT_NAME, raw_san(uris)));
}

/// What the library that verifies chains cannot read is refused by it, before ours looks.
fn unreadable(fault: &PeerFault) -> bool {
    matches!(fault, PeerFault::NotACertificate | PeerFault::UnknownSigner { .. } | PeerFault::BadUri { .. })
}

const CASES: &[Case] = &[
    ("no name at all", |p| p.subject_alt_names.clear(), |f| matches!(f, PeerFault::NoUri)),
    (
        "a common name that looks like an identity",
        |p| {
            p.subject_alt_names.clear();
            p.distinguished_name.push(DnType::CommonName, ORDERS);
        },
        |f| matches!(f, PeerFault::NoUri),
    ),
    (
        "a DNS name that looks like an identity's",
        |p| p.subject_alt_names = vec![SanType::DnsName("orders.shop".try_into().unwrap())],
        |f| matches!(f, PeerFault::NoUri),
    ),
    (
        "an e-mail address that holds the identity",
        |p| p.subject_alt_names = vec![SanType::Rfc822Name("orders@equerry.local".try_into().unwrap())],
        |f| matches!(f, PeerFault::NoUri),
    ),
    (
        "the same URI twice",
        |p| p.subject_alt_names.push(uri(ORDERS)),
        |f| matches!(f, PeerFault::SeveralUris { found: 2 }),
    ),
    (
        "a second URI of somebody else",
        |p| p.subject_alt_names.push(uri("spiffe://equerry.local/ns/shop/sa/admin")),
        |f| matches!(f, PeerFault::SeveralUris { found: 2 }),
    ),
    (
        "a NUL after a sound identity",
        |p| names(p, &[b"spiffe://equerry.local/ns/shop/sa/orders\0.evil.example"]),
        unreadable,
    ),
    ("a NUL before the end", |p| names(p, &[b"spiffe://equerry.local/ns/shop/sa/orders\0"]), unreadable),
    ("bytes that are not text", |p| names(p, &[b"spiffe://equerry.local/ns/shop/sa/\xff\xfe"]), unreadable),
    ("a line break in the name", |p| names(p, &[b"spiffe://equerry.local/ns/shop/sa/orders\n"]), unreadable),
    (
        "an escaped letter",
        |p| p.subject_alt_names = vec![uri("spiffe://equerry.local/ns/shop/sa/or%64ers")],
        unreadable,
    ),
    (
        "a slash at the end",
        |p| p.subject_alt_names = vec![uri("spiffe://equerry.local/ns/shop/sa/orders/")],
        unreadable,
    ),
    (
        "dots in the path",
        |p| p.subject_alt_names = vec![uri("spiffe://equerry.local/ns/shop/../x/sa/orders")],
        unreadable,
    ),
    ("a query", |p| p.subject_alt_names = vec![uri("spiffe://equerry.local/ns/shop/sa/orders?x=1")], unreadable),
    ("a fragment", |p| p.subject_alt_names = vec![uri("spiffe://equerry.local/ns/shop/sa/orders#x")], unreadable),
    ("a port", |p| p.subject_alt_names = vec![uri("spiffe://equerry.local:443/ns/shop/sa/orders")], unreadable),
    ("a user", |p| p.subject_alt_names = vec![uri("spiffe://admin@equerry.local/ns/shop/sa/orders")], unreadable),
    ("capitals", |p| p.subject_alt_names = vec![uri("SPIFFE://equerry.local/ns/shop/sa/orders")], unreadable),
    ("the trust domain alone", |p| p.subject_alt_names = vec![uri("spiffe://equerry.local")], unreadable),
    ("another scheme", |p| p.subject_alt_names = vec![uri("https://equerry.local/ns/shop/sa/orders")], unreadable),
    (
        "another trust domain under our root",
        |p| p.subject_alt_names = vec![uri("spiffe://other.example/ns/shop/sa/orders")],
        |f| matches!(f, PeerFault::OtherTrustDomain { .. }),
    ),
    (
        "basic constraints: CA",
        |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)),
        |f| matches!(f, PeerFault::Signer | PeerFault::UnknownSigner { .. }),
    ),
    (
        "key usage: signs certificates",
        |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign),
        |f| matches!(f, PeerFault::Signer),
    ),
    (
        "key usage: signs revocation lists",
        |p| p.key_usages.push(KeyUsagePurpose::CrlSign),
        |f| matches!(f, PeerFault::Signer),
    ),
    ("no extended key usage", |p| p.extended_key_usages.clear(), |f| matches!(f, PeerFault::WrongUse)),
    (
        "servers only",
        |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
        |f| matches!(f, PeerFault::WrongUse),
    ),
    (
        "clients only",
        |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
        |f| matches!(f, PeerFault::WrongUse),
    ),
    (
        "code signing",
        |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
        |f| matches!(f, PeerFault::WrongUse),
    ),
    ("any use", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any], |f| matches!(f, PeerFault::WrongUse)),
    (
        "expired a second ago",
        |p| p.not_after = (now() - Duration::from_secs(1)).into(),
        |f| matches!(f, PeerFault::Clock { .. }),
    ),
    (
        "not yet valid",
        |p| p.not_before = (now() + Duration::from_secs(1)).into(),
        |f| matches!(f, PeerFault::Clock { .. }),
    ),
    (
        "an unknown critical extension",
        |p| {
            let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
            unknown.set_criticality(true);
            p.custom_extensions.push(unknown);
        },
        |f| matches!(f, PeerFault::UnknownSigner { .. } | PeerFault::NotACertificate),
    ),
];

fn shown(leaf: &CertificateDer<'static>, key: &Zeroizing<Vec<u8>>) -> Arc<SingleCertAndKey> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
    let key = tls::provider().key_provider.load_private_key(key).unwrap();
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![leaf.clone()], key)))
}

#[test]
fn malformed_certificates_are_refused_whichever_end_shows_them() {
    let forge = Forge::new();
    let bundle = forge.bundle("equerry.local");
    let sound = || {
        let (leaf, key) = forge.leaf(|p| p.subject_alt_names = vec![uri("spiffe://equerry.local/ns/shop/sa/web")]);
        equerry_certs::Identity::new(key, vec![leaf]).unwrap()
    };
    assert!(CASES.len() >= 30);
    for (what, spoil, expected) in CASES {
        let (leaf, key) = forge.leaf(spoil);
        let bad = shown(&leaf, &key);
        let mut caller = client(Some(&sound()), &bundle, &["spiffe://equerry.local/ns/shop/sa/web"]);
        caller.client_auth_cert_resolver = bad.clone();
        let met = meet(Arc::new(caller), server(&sound(), &bundle, ClientAuth::Required));
        assert!(expected(met.server_fault()), "a client showed {what}: {:?}", met.server_fault());

        let mut callee = Arc::unwrap_or_clone(server(&sound(), &bundle, ClientAuth::Required));
        callee.cert_resolver = bad;
        let met = meet(Arc::new(client(Some(&sound()), &bundle, &[ORDERS])), Arc::new(callee));
        assert!(expected(met.client_fault()), "a server showed {what}: {:?}", met.client_fault());
    }
}

#[test]
fn the_same_certificate_without_a_fault_is_believed_so_the_table_proves_something() {
    let forge = Forge::new();
    let bundle = forge.bundle("equerry.local");
    let (leaf, key) = forge.leaf(|_| ());
    let own = equerry_certs::Identity::new(key.clone(), vec![leaf.clone()]).unwrap();
    let mut caller = client(Some(&own), &bundle, &[ORDERS]);
    caller.client_auth_cert_resolver = shown(&leaf, &key);
    let met = meet(Arc::new(caller), server(&own, &bundle, ClientAuth::Required)).well();
    assert_eq!(tls::peer(met.server.peer_certificates(), now()).unwrap().id, id(ORDERS));
}

#[test]
fn the_issuing_certificate_itself_is_no_peer() {
    let authority = crate::made::authority("equerry.local");
    let issuing = authority.to_pem();
    let key = equerry_certs::pem::read_private_key(&issuing.issuing_key).unwrap();
    let bundle = crate::made::bundle(&authority);
    let own = crate::made::identity(&authority, ORDERS);
    let mut caller = client(Some(&own), &bundle, &[ORDERS]);
    caller.client_auth_cert_resolver = shown(&authority.issuing()[0], &key);
    let met = meet(Arc::new(caller), server(&own, &bundle, ClientAuth::Required));
    let fault = met.server_fault();
    assert!(!matches!(fault, PeerFault::Clock { .. }), "{fault:?}");
    assert!(own.not_after() == now() + DAY);
}
