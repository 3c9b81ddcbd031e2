//! The certificate authority: a root (ten years) that signs an issuing certificate (one year), which signs workloads. Or
//! an issuing certificate that somebody else's root signed, brought as PEM ([`brought`]).
//!
//! It decides the names: of a request only the key is believed, once its signature proves that the asker holds it. A
//! request that names somebody else is refused, naming both. Keys leave only as PEM, for the floor above to keep.

pub mod brought;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand;
use equerry_policies::names::{BadName, SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use crate::BACKDATE;
use crate::bundle::{BundleFault, TrustBundle, hex};
use crate::identity::key_signs;
use crate::pem::{self, BadPem};
use crate::request::{KeyFault, any_key_in, new_key};
use crate::skew::{from_unix, in_seconds, rfc3339};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a root holds.
const ROOT_LIFE: Duration = DAY.saturating_mul(3652);
/// How long an issuing certificate holds.
const ISSUING_LIFE: Duration = DAY.saturating_mul(365);
/// An issuing certificate with less than this left is replaced.
const ISSUING_MARGIN: Duration = DAY.saturating_mul(60);
/// The shortest life of a workload's certificate.
pub const MIN_LIFETIME: Duration = Duration::from_secs(10);
/// The longest life of a workload's certificate: what is left of the issuing certificate when it is replaced.
pub const MAX_LIFETIME: Duration = DAY.saturating_mul(30);
/// The life of a workload's certificate unless somebody says otherwise.
pub const DEFAULT_LIFETIME: Duration = DAY;
/// Longest request read, in bytes.
const MAX_REQUEST: usize = 16 << 10;

/// The mesh's certificate authority.
pub struct Authority {
    trust_domain: TrustDomain,
    root: CertificateDer<'static>,
    /// `None`: the root is somebody else's.
    root_key: Option<Zeroizing<Vec<u8>>>,
    /// The issuing certificate, then those between it and the root.
    issuing: Vec<CertificateDer<'static>>,
    /// The issuing key once more, certified by the root before this one.
    cross: Option<CertificateDer<'static>>,
    issuing_key: Zeroizing<Vec<u8>>,
    issuing_not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

/// An authority as it is kept in files.
#[derive(Clone)]
pub struct AuthorityPem {
    /// Certificate of the root.
    pub root: String,
    /// Private key of the root, PKCS#8; `None` when the root is somebody else's.
    pub root_key: Option<Zeroizing<String>>,
    /// Issuing certificate, then those between it and the root.
    pub issuing: String,
    /// The issuing key as the root before this one certified it; `None` outside a rotation.
    pub cross: Option<String>,
    /// Private key of the issuing certificate, PKCS#8.
    pub issuing_key: Zeroizing<String>,
}

/// A name by which the admin API is reached, beside the control plane's identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostName {
    /// A DNS name.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

impl HostName {
    /// Reads a DNS name or an address.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if !text.is_empty() && text.len() <= 253 && text.split('.').all(label) {
            return Ok(Self::Dns(text.to_ascii_lowercase()));
        }
        Err(BadName { found: text.chars().take(80).collect(), expected: "a DNS name or an IP address" })
    }
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Leaf first, then the issuing certificate, then whatever else leads to a root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its serial number, in lower-case hexadecimal.
    pub serial: String,
    /// Whose it is.
    pub id: SpiffeId,
    /// From when it holds: five minutes before it was issued.
    pub not_before: SystemTime,
    /// Until when it holds.
    pub not_after: SystemTime,
}

impl Authority {
    /// Makes a new root and a new issuing certificate.
    ///
    /// # Errors
    /// When no key can be made.
    #[expect(clippy::needless_pass_by_value, reason = "the name becomes this authority's; nobody makes two of one")]
    pub fn create(trust_domain: TrustDomain, now: SystemTime) -> Result<Self, AuthorityFault> {
        let (root_pair, root_key) = new_key()?;
        let params = signer_params(&trust_domain, "root", BasicConstraints::Constrained(1), ROOT_LIFE, now)?;
        let root = params.self_signed(&root_pair).map_err(AuthorityFault::unusable)?.der().clone();
        let (issuing, issuing_key) = new_issuing(&trust_domain, &root, &root_key, now)?;
        Self::assemble(root, Some(root_key), vec![issuing], issuing_key, None, &trust_domain)
    }

    /// Reads an authority that was kept. One that was brought names no trust domain: it is `brought_for` one.
    ///
    /// # Errors
    /// When a part is broken, or the parts do not belong together.
    pub fn from_pem(kept: &AuthorityPem, brought_for: &TrustDomain) -> Result<Self, AuthorityFault> {
        let one = |text: &str| {
            let mut all = pem::read_certificates(text)?;
            Ok::<_, AuthorityFault>(all.swap_remove(0))
        };
        Self::assemble(
            one(&kept.root)?,
            kept.root_key.as_ref().map(|key| pem::read_private_key(key)).transpose()?,
            pem::read_certificates(&kept.issuing)?,
            pem::read_private_key(&kept.issuing_key)?,
            kept.cross.as_deref().map(one).transpose()?,
            brought_for,
        )
    }

    /// Reads only the root that was kept and makes a new issuing certificate under it: for when the kept issuing key and
    /// certificate do not belong together, as after a crash between writing one and the other.
    ///
    /// # Errors
    /// When the root's parts are broken or do not belong together.
    pub fn from_root_pem(root: &str, root_key: &str, now: SystemTime) -> Result<Self, AuthorityFault> {
        let root = pem::read_certificates(root)?.swap_remove(0);
        let root_key = pem::read_private_key(root_key)?;
        let (trust_domain, _) = read_signer(&root, "root")?;
        let (issuing, issuing_key) = new_issuing(&trust_domain, &root, &root_key, now)?;
        Self::assemble(root, Some(root_key), vec![issuing], issuing_key, None, &trust_domain)
    }

    /// What to keep: two certificates and two private keys.
    pub fn to_pem(&self) -> AuthorityPem {
        AuthorityPem {
            root: pem::certificates(std::slice::from_ref(&self.root)),
            root_key: self.root_key.as_ref().map(|key| pem::private_key(key)),
            issuing: pem::certificates(&self.issuing),
            cross: self.cross.as_ref().map(|cross| pem::certificates(std::slice::from_ref(cross))),
            issuing_key: pem::private_key(&self.issuing_key),
        }
    }

    /// Replaces the issuing certificate (and its key) when too little of its life is left. Tells whether it did: then the
    /// authority is to be kept again. One that was brought is replaced by whoever brought it.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn renew_issuing_if_due(&mut self, now: SystemTime) -> Result<bool, AuthorityFault> {
        let Some(root_key) = self.root_key.as_ref().filter(|_| self.issuing_not_after <= now + ISSUING_MARGIN) else {
            return Ok(false);
        };
        let (issuing, issuing_key) = new_issuing(&self.trust_domain, &self.root, root_key, now)?;
        let (root, root_key, domain) = (self.root.clone(), Some(root_key.clone()), self.trust_domain.clone());
        *self = Self::assemble(root, root_key, vec![issuing], issuing_key, None, &domain)?;
        Ok(true)
    }

    /// Has the root of `older` certify this authority's issuing key too: whoever knows only that root believes what this
    /// one issues. Tells whether it could: not where one of the two was brought.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn be_certified_by(&mut self, older: &Self, now: SystemTime) -> Result<bool, AuthorityFault> {
        let ours = !self.is_brought() && older.trust_domain == self.trust_domain;
        let Some(older_key) = older.root_key.as_ref().filter(|_| ours) else { return Ok(false) };
        let (_, older_end) = read_signer(&older.root, "root")?;
        let signer = Issuer::from_ca_cert_der(&older.root, any_key_in(older_key)?).map_err(AuthorityFault::unusable)?;
        // Chains are built by names: the subject is the very one that leaves name as their issuer.
        let below = BasicConstraints::Constrained(0);
        let mut params = signer_params(&self.trust_domain, "issuing", below, ISSUING_LIFE, now)?;
        params.not_after = in_seconds(self.issuing_not_after.min(older_end));
        let key = any_key_in(&self.issuing_key)?;
        let cross = params.signed_by(&key, &signer).map_err(AuthorityFault::unusable)?;
        self.cross = Some(cross.der().clone());
        Ok(true)
    }

    /// The same authority, no longer vouched for by the root before it.
    pub fn stand_alone(&mut self) {
        self.cross = None;
    }

    /// Whether the root before this one vouches for it too.
    pub fn is_certified_twice(&self) -> bool {
        self.cross.is_some()
    }

    /// Whether the root is somebody else's, who brought the issuing certificate.
    pub fn is_brought(&self) -> bool {
        self.root_key.is_none()
    }

    /// Until when the root holds.
    pub fn root_not_after(&self) -> SystemTime {
        brought::end_of(&self.root).unwrap_or(self.issuing_not_after)
    }

    /// The root's certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The issuing certificate, then those between it and the root.
    pub fn issuing(&self) -> &[CertificateDer<'static>] {
        &self.issuing
    }

    /// The trust domain this authority vouches for, fixed when it was made.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Whom to believe: the root.
    ///
    /// # Errors
    /// Never: the root was read when the authority was put together.
    pub fn roots(&self) -> Result<TrustBundle, BundleFault> {
        TrustBundle::new(self.trust_domain.clone(), vec![self.root.clone()])
    }

    /// Until when the issuing certificate holds, and all that lead from it to the root.
    pub fn issuing_not_after(&self) -> SystemTime {
        self.issuing_not_after
    }

    /// Issues a workload's certificate for the key of a request.
    ///
    /// `lifetime` counts from `now`; it is cut to what is left of the issuing certificate.
    ///
    /// # Errors
    /// When the request is broken, not signed by its own key, not of an ECDSA P-256 key, or names another identity.
    pub fn sign(
        &self,
        csr_der: &[u8],
        id: &SpiffeId,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, SignFault> {
        self.issue(&key_of_request(csr_der, id)?, id, &[], lifetime, now)
    }

    /// Issues the control plane's own certificate: its identity for gRPC, and host names for the admin API.
    ///
    /// # Errors
    /// As [`Authority::sign`].
    pub fn issue_server(
        &self,
        csr_der: &[u8],
        id: &SpiffeId,
        names: &[HostName],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, SignFault> {
        self.issue(&key_of_request(csr_der, id)?, id, names, lifetime, now)
    }

    fn issue(
        &self,
        key: &SubjectPublicKeyInfo,
        id: &SpiffeId,
        names: &[HostName],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, SignFault> {
        if id.trust_domain != self.trust_domain {
            return Err(SignFault::OtherTrustDomain { asked: id.clone(), ours: self.trust_domain.clone() });
        }
        let lifetime = lifetime.clamp(MIN_LIFETIME, MAX_LIFETIME);
        let not_after = (now + lifetime).min(self.issuing_not_after);
        if not_after <= now {
            return Err(SignFault::AuthorityExpired { not_after: self.issuing_not_after });
        }
        let params = leaf_params(id, names, now - BACKDATE, not_after)?;
        let (not_before, not_after) = (params.not_before.into(), params.not_after.into());
        let params_serial = params.serial_number.as_ref().map(SerialNumber::to_bytes).unwrap_or_default();
        let leaf =
            params.signed_by(key, &self.issuer).map_err(|error| SignFault::Failed { error: error.to_string() })?;
        let above = self.issuing.iter().chain(&self.cross).cloned();
        let chain = std::iter::once(leaf.der().clone()).chain(above).collect();
        Ok(Issued { chain, serial: hex(&params_serial), id: id.clone(), not_before, not_after })
    }

    fn assemble(
        root: CertificateDer<'static>,
        root_key: Option<Zeroizing<Vec<u8>>>,
        issuing: Vec<CertificateDer<'static>>,
        issuing_key: Zeroizing<Vec<u8>>,
        cross: Option<CertificateDer<'static>>,
        brought_for: &TrustDomain,
    ) -> Result<Self, AuthorityFault> {
        let own = issuing.first().ok_or(AuthorityFault::NotASigner { which: "issuing" })?;
        let mut issuing_not_after = brought::end_of(own)?;
        for (below, above) in issuing.iter().zip(issuing.iter().skip(1).chain([&root])) {
            if !signed_by(below, above) {
                return Err(AuthorityFault::NotOfRoot);
            }
            issuing_not_after = issuing_not_after.min(brought::end_of(above)?);
        }
        let trust_domain = match &root_key {
            Some(_) => {
                let ((ours, _), (issuing_domain, _)) = (read_signer(&root, "root")?, read_signer(own, "issuing")?);
                if ours != issuing_domain {
                    return Err(AuthorityFault::NotOfRoot);
                }
                ours
            }
            None => brought_for.clone(),
        };
        let pairs = [(root_key.as_ref(), &root, "root"), (Some(&issuing_key), own, "issuing")];
        for (key, certificate, which) in pairs.into_iter().filter_map(|(key, of, which)| Some((key?, of, which))) {
            if !key_signs(key, certificate)? {
                return Err(AuthorityFault::OtherKey { which });
            }
        }
        let issuer = Issuer::from_ca_cert_der(own, any_key_in(&issuing_key)?).map_err(AuthorityFault::unusable)?;
        Ok(Self { trust_domain, root, root_key, issuing, cross, issuing_key, issuing_not_after, issuer })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .field("issuing_not_after", &rfc3339(self.issuing_not_after))
            .finish_non_exhaustive()
    }
}

/// The key of a request, believed once the request's signature proves it; its names are only looked at to refuse.
fn key_of_request(csr_der: &[u8], id: &SpiffeId) -> Result<SubjectPublicKeyInfo, SignFault> {
    if csr_der.len() > MAX_REQUEST {
        return Err(SignFault::TooLarge { bytes: csr_der.len() });
    }
    let (rest, csr) = X509CertificationRequest::from_der(csr_der)
        .map_err(|error| SignFault::NotARequest { error: error.to_string() })?;
    if !rest.is_empty() {
        return Err(SignFault::NotARequest { error: format!("{} bytes after its end", rest.len()) });
    }
    let key = &csr.certification_request_info.subject_pki;
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != Some(OID_EC_P256) {
        return Err(SignFault::OtherKeyType);
    }
    csr.verify_signature().map_err(|_| SignFault::NotProven)?;
    for extension in csr.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            if let GeneralName::URI(asked) = name
                && *asked != id.to_string()
            {
                return Err(SignFault::OtherIdentity { asked: asked.chars().take(200).collect(), allowed: id.clone() });
            }
        }
    }
    SubjectPublicKeyInfo::from_der(key.raw).map_err(|error| SignFault::NotARequest { error: error.to_string() })
}

fn new_issuing(
    trust_domain: &TrustDomain,
    root: &CertificateDer<'_>,
    root_key: &[u8],
    now: SystemTime,
) -> Result<(CertificateDer<'static>, Zeroizing<Vec<u8>>), AuthorityFault> {
    let signer = Issuer::from_ca_cert_der(root, any_key_in(root_key)?).map_err(AuthorityFault::unusable)?;
    let (pair, key) = new_key()?;
    let params = signer_params(trust_domain, "issuing", BasicConstraints::Constrained(0), ISSUING_LIFE, now)?;
    let issuing = params.signed_by(&pair, &signer).map_err(AuthorityFault::unusable)?;
    Ok((issuing.der().clone(), key))
}

fn signer_params(
    trust_domain: &TrustDomain,
    role: &str,
    below: BasicConstraints,
    life: Duration,
    now: SystemTime,
) -> Result<CertificateParams, AuthorityFault> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Equerry");
    params.distinguished_name.push(DnType::CommonName, format!("{role} of {trust_domain}"));
    params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}")).map_err(AuthorityFault::unusable)?];
    params.is_ca = IsCa::Ca(below);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = in_seconds(now - BACKDATE);
    params.not_after = in_seconds(now + life);
    params.serial_number = Some(serial()?);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn leaf_params(
    id: &SpiffeId,
    names: &[HostName],
    from: SystemTime,
    until: SystemTime,
) -> Result<CertificateParams, SignFault> {
    let failed = |error: rcgen::Error| SignFault::Failed { error: error.to_string() };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names.push(uri(&id.to_string()).map_err(failed)?);
    for name in names {
        params.subject_alt_names.push(match name {
            HostName::Dns(name) => SanType::DnsName(name.as_str().try_into().map_err(failed)?),
            HostName::Ip(address) => SanType::IpAddress(*address),
        });
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = in_seconds(from);
    params.not_after = in_seconds(until);
    params.serial_number = Some(serial().map_err(|error| SignFault::Failed { error: error.to_string() })?);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn uri(text: &str) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(text.try_into()?))
}

/// 127 random bits, positive as RFC 5280 section 4.1.2.2 asks.
fn serial() -> Result<SerialNumber, KeyFault> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| KeyFault::NoRandomness)?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// The trust domain and end of life of a certificate that may sign others.
fn read_signer(
    certificate: &CertificateDer<'_>,
    which: &'static str,
) -> Result<(TrustDomain, SystemTime), AuthorityFault> {
    let broken = || AuthorityFault::NotASigner { which };
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| broken())?;
    if !certificate.is_ca() {
        return Err(broken());
    }
    let names = certificate.subject_alternative_name().ok().flatten().ok_or_else(broken)?;
    let [GeneralName::URI(uri)] = names.value.general_names.as_slice() else { return Err(broken()) };
    let trust_domain =
        uri.strip_prefix("spiffe://").and_then(|name| TrustDomain::parse(name).ok()).ok_or_else(broken)?;
    let not_after = from_unix(certificate.validity().not_after.timestamp()).ok_or_else(broken)?;
    Ok((trust_domain, not_after))
}

fn signed_by(certificate: &CertificateDer<'_>, signer: &CertificateDer<'_>) -> bool {
    let (Ok((_, certificate)), Ok((_, signer))) =
        (X509Certificate::from_der(certificate), X509Certificate::from_der(signer))
    else {
        return false;
    };
    certificate.verify_signature(Some(signer.public_key())).is_ok()
}

/// Why an authority could not be made or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityFault {
    /// A key could not be made or read.
    #[error(transparent)]
    Key(#[from] KeyFault),
    /// Not PEM.
    #[error(transparent)]
    Pem(#[from] BadPem),
    /// Not a certificate of an authority of this mesh.
    #[error(
        "the {which} certificate is not one that Equerry made: expected a signing certificate naming spiffe://TRUST_DOMAIN"
    )]
    NotASigner {
        /// Which file.
        which: &'static str,
    },
    /// Issuing certificate and root do not belong together.
    #[error("the issuing certificate is not signed by the root beside it: files of two authorities are mixed")]
    NotOfRoot,
    /// A key and its certificate do not belong together.
    #[error("the {which} key is not the key of the {which} certificate beside it: files of two authorities are mixed")]
    OtherKey {
        /// Which pair.
        which: &'static str,
    },
    /// The library refused.
    #[error("the certificate authority cannot be used: {error}")]
    Unusable {
        /// What it said.
        error: String,
    },
}

impl AuthorityFault {
    #[expect(clippy::needless_pass_by_value, reason = "shaped for map_err")]
    fn unusable(error: rcgen::Error) -> Self {
        Self::Unusable { error: error.to_string() }
    }
}

/// Why a certificate was not issued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignFault {
    /// Larger than any real request.
    #[error("the certificate request has {bytes} bytes, expected at most {MAX_REQUEST}")]
    TooLarge {
        /// How many.
        bytes: usize,
    },
    /// Not PKCS#10.
    #[error("found something that is not a PKCS#10 certificate request in DER ({error})")]
    NotARequest {
        /// What the reader said.
        error: String,
    },
    /// Another kind of key.
    #[error("the certificate request is for another kind of key, expected ECDSA P-256")]
    OtherKeyType,
    /// The request is not signed by the key in it.
    #[error("the certificate request is not signed by the key it names, so the asker may not hold that key")]
    NotProven,
    /// The request names somebody else.
    #[error(
        "the certificate request names {asked}, but the asker may only be {allowed}: leave names out of the request, or use a token of that account"
    )]
    OtherIdentity {
        /// Who was asked for.
        asked: String,
        /// Who the asker is.
        allowed: SpiffeId,
    },
    /// An identity of another trust domain.
    #[error("{asked} cannot be certified here: this authority vouches for {ours} only")]
    OtherTrustDomain {
        /// Who was asked for.
        asked: SpiffeId,
        /// What this authority vouches for.
        ours: TrustDomain,
    },
    /// The issuing certificate itself has expired.
    #[error("the issuing certificate expired at {}: restart the control plane, which replaces it (one that was brought must be brought anew)", rfc3339(*.not_after))]
    AuthorityExpired {
        /// When.
        not_after: SystemTime,
    },
    /// The library refused.
    #[error("the certificate could not be made: {error}")]
    Failed {
        /// What it said.
        error: String,
    },
}
