//! An issuing certificate that somebody else's root signed: read from PEM, judged before anything is issued with it.
//!
//! Whatever is wrong is told with the part it is wrong in, so that the floor above can name the file. At last a certificate
//! is issued on trial and judged as both ends of a mesh connection would.

use std::fmt;
use std::time::SystemTime;

use equerry_policies::names::{TrustDomain, control_plane_id};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Authority, AuthorityFault, MIN_LIFETIME, signed_by};
use crate::identity::key_signs;
use crate::pem;
use crate::request::Request;
use crate::skew::{from_unix, rfc3339};

/// One of the three texts of which an authority is brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The root's certificate.
    Root,
    /// The issuing certificate, and those between it and the root.
    Issuer,
    /// The issuing certificate's key.
    Key,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "the root",
            Self::Issuer => "the issuing certificate",
            Self::Key => "the issuing key",
        })
    }
}

/// What is wrong with an authority that was brought, and in which part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{part} cannot be used: {what}")]
pub struct BroughtFault {
    /// Where.
    pub part: Part,
    /// What, and what is expected.
    pub what: String,
}

fn wrong(part: Part, what: impl fmt::Display) -> BroughtFault {
    BroughtFault { part, what: what.to_string() }
}

/// The three texts.
#[derive(Clone, Copy)]
pub struct Texts<'a> {
    /// PEM of the root, alone.
    pub root: &'a str,
    /// PEM of the issuing certificate, then of those between it and the root.
    pub issuer: &'a str,
    /// PEM of the issuing key, PKCS#8.
    pub key: &'a str,
}

impl Authority {
    /// Reads an authority whose root is somebody else's, for `trust_domain`.
    ///
    /// # Errors
    /// What is wrong with it, and in which part.
    pub fn brought(trust_domain: &TrustDomain, texts: Texts<'_>, now: SystemTime) -> Result<Self, BroughtFault> {
        let root = the_root(texts.root, now)?;
        let issuing = pem::read_certificates(texts.issuer).map_err(|bad| wrong(Part::Issuer, bad))?;
        for certificate in &issuing {
            a_signer(certificate, Part::Issuer, trust_domain, now)?;
        }
        if issuing.contains(&root) {
            return Err(wrong(
                Part::Issuer,
                "it holds the root itself, expected the issuing certificate and those between it and the root only",
            ));
        }
        for (below, above) in issuing.iter().zip(issuing.iter().skip(1).chain([&root])) {
            if !signed_by(below, above) {
                let (below, above) = (subject(below), subject(above));
                return Err(wrong(
                    Part::Issuer,
                    format_args!(
                        "the certificate of {below:?} is not signed by that of {above:?}; expected the issuing \
                         certificate first, each signed by the next, the last by the root"
                    ),
                ));
            }
        }
        let key = the_key(texts.key)?;
        let own = issuing.first().ok_or_else(|| wrong(Part::Issuer, "it is empty"))?;
        if !key_signs(&key, own).map_err(|fault| wrong(Part::Key, fault))? {
            let whose = subject(own);
            return Err(wrong(
                Part::Key,
                format_args!("it is not the key of the issuing certificate, whose subject is {whose:?}"),
            ));
        }
        let authority =
            Self::assemble(root, None, issuing, key, None, trust_domain).map_err(|fault| wrong(Part::Issuer, fault))?;
        authority.on_trial(now)?;
        Ok(authority)
    }

    /// Issues a certificate on trial, and judges it as others will.
    fn on_trial(&self, now: SystemTime) -> Result<(), BroughtFault> {
        let failed = |what: &dyn fmt::Display| {
            wrong(Part::Issuer, format_args!("a certificate that it issued on trial is not believed: {what}"))
        };
        let request = Request::new().map_err(|fault| wrong(Part::Key, fault))?;
        let id = control_plane_id(self.trust_domain.clone());
        let issued = self.sign(&request.csr_der, &id, MIN_LIFETIME, now).map_err(|fault| failed(&fault))?;
        #[cfg(feature = "tls")]
        {
            let bundle = self.roots().map_err(|fault| wrong(Part::Root, fault))?;
            crate::tls::prove(&issued.chain, &bundle, now).map_err(|fault| failed(&fault))?;
        }
        drop(issued);
        Ok(())
    }
}

/// One certificate, signed by itself.
fn the_root(text: &str, now: SystemTime) -> Result<CertificateDer<'static>, BroughtFault> {
    let mut all = pem::read_certificates(text).map_err(|bad| wrong(Part::Root, bad))?;
    if all.len() != 1 {
        return Err(wrong(Part::Root, format_args!("found {} certificates, expected one", all.len())));
    }
    let root = all.swap_remove(0);
    a_certificate(&root, Part::Root, now)?;
    if !signed_by(&root, &root) {
        return Err(wrong(
            Part::Root,
            format_args!("the certificate of {:?} is not signed by itself, so it is no root", subject(&root)),
        ));
    }
    Ok(root)
}

/// A certificate that may sign others, and holds now.
fn a_certificate(certificate: &CertificateDer<'_>, part: Part, now: SystemTime) -> Result<(), BroughtFault> {
    let (_, read) = X509Certificate::from_der(certificate)
        .map_err(|error| wrong(part, format_args!("it is not a certificate ({error})")))?;
    let whose = read.subject().to_string();
    if !read.is_ca() {
        return Err(wrong(
            part,
            format_args!("the certificate of {whose:?} may not sign others (basic constraints: CA is not true)"),
        ));
    }
    let usage =
        read.key_usage().map_err(|error| wrong(part, format_args!("its key usage cannot be read ({error})")))?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(wrong(part, format_args!("the certificate of {whose:?} lacks the key usage keyCertSign")));
    }
    let (from, until) = (read.validity().not_before.timestamp(), read.validity().not_after.timestamp());
    let (from, until) = (from_unix(from).unwrap_or(now), from_unix(until).unwrap_or(now));
    if now < from || now >= until {
        return Err(wrong(
            part,
            format_args!(
                "the certificate of {whose:?} holds from {} until {}, and the clock says {}",
                rfc3339(from),
                rfc3339(until),
                rfc3339(now)
            ),
        ));
    }
    Ok(())
}

/// A certificate that may sign others, and vouches for no other trust domain than ours.
fn a_signer(
    certificate: &CertificateDer<'_>,
    part: Part,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<(), BroughtFault> {
    a_certificate(certificate, part, now)?;
    match domain_named(certificate) {
        Some(other) if other != *trust_domain => Err(wrong(
            part,
            format_args!(
                "the certificate of {:?} is of trust domain {other}, this mesh is {trust_domain}",
                subject(certificate)
            ),
        )),
        _ => Ok(()),
    }
}

/// The trust domain that a signing certificate names, if it does.
pub fn domain_named(certificate: &CertificateDer<'_>) -> Option<TrustDomain> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok().flatten()?;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => TrustDomain::parse(uri.strip_prefix("spiffe://")?).ok(),
        _ => None,
    })
}

fn the_key(text: &str) -> Result<zeroize::Zeroizing<Vec<u8>>, BroughtFault> {
    pem::read_private_key(text).map_err(|bad| {
        let other = ["EC PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY"];
        match other.into_iter().find(|label| text.contains(&format!("-----BEGIN {label}-----"))) {
            Some("ENCRYPTED PRIVATE KEY") => wrong(
                Part::Key,
                "found an encrypted key, expected PKCS#8 in plain text in a file of mode 0600: \
                 `openssl pkcs8 -topk8 -nocrypt -in KEY -out NEW`",
            ),
            Some(label) => wrong(
                Part::Key,
                format_args!(
                    "found {label:?}, expected PKCS#8 (\"PRIVATE KEY\"): `openssl pkcs8 -topk8 -nocrypt -in KEY -out NEW`"
                ),
            ),
            None => wrong(Part::Key, bad),
        }
    })
}

fn subject(certificate: &CertificateDer<'_>) -> String {
    X509Certificate::from_der(certificate).map_or_else(|_| "?".to_owned(), |(_, read)| read.subject().to_string())
}

/// Until when a certificate holds.
pub(super) fn end_of(certificate: &CertificateDer<'_>) -> Result<SystemTime, AuthorityFault> {
    let (_, read) =
        X509Certificate::from_der(certificate).map_err(|_| AuthorityFault::NotASigner { which: "issuing" })?;
    from_unix(read.validity().not_after.timestamp()).ok_or(AuthorityFault::NotASigner { which: "issuing" })
}
