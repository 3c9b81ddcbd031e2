//! Authorities, identities and certificates for the tests, some of them wrong on purpose.

use std::time::{Duration, SystemTime};

use equerry_certs::{Authority, CertificateDer, Identity, Request, TrustBundle, Zeroizing};
use equerry_policies::names::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The time of every test, unless it says otherwise.
pub(crate) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

pub(crate) fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

pub(crate) fn authority(trust_domain: &str) -> Authority {
    Authority::create(TrustDomain::parse(trust_domain).unwrap(), now()).unwrap()
}

pub(crate) fn bundle(authority: &Authority) -> TrustBundle {
    authority.roots().unwrap()
}

pub(crate) fn identity(authority: &Authority, account: &str) -> Identity {
    let request = Request::new().unwrap();
    let issued = authority.sign(&request.csr_der, &id(account), DAY, now()).unwrap();
    Identity::new(request.key, issued.chain).unwrap()
}

/// A root of its own, with which certificates of any shape are made.
pub(crate) struct Forge {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) root: CertificateDer<'static>,
}

impl Forge {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = (now() - DAY).into();
        params.not_after = (now() + DAY * 10).into();
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    pub(crate) fn bundle(&self, trust_domain: &str) -> TrustBundle {
        TrustBundle::new(TrustDomain::parse(trust_domain).unwrap(), vec![self.root.clone()]).unwrap()
    }

    /// A certificate as a workload's should be, changed by `spoil`, and its key.
    pub(crate) fn leaf(
        &self,
        spoil: impl FnOnce(&mut CertificateParams),
    ) -> (CertificateDer<'static>, Zeroizing<Vec<u8>>) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri("spiffe://equerry.local/ns/shop/sa/orders")];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = (now() - Duration::from_secs(300)).into();
        params.not_after = (now() + DAY).into();
        spoil(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (leaf, Zeroizing::new(key.serialize_der()))
    }
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// DER of a subjectAltName's value with these URIs, bytes and all; for names that no library would write.
pub(crate) fn raw_san(uris: &[&[u8]]) -> Vec<u8> {
    let names: Vec<u8> =
        uris.iter().flat_map(|uri| [&[0x86, u8::try_from(uri.len()).unwrap()], *uri].concat()).collect();
    [&[0x30, 0x81, u8::try_from(names.len()).unwrap()], names.as_slice()].concat()
}
