//! HTTPS to servers outside the mesh, for what a sidecar itself asks and tells: who is believed.
//!
//! The roots that the machine trusts are read when somebody first needs them, so that a sidecar which asks nobody there does
//! not carry them.

use std::sync::Arc;

use equerry_certs::{pem, tls};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;

/// Believes whom this machine trusts (`SSL_CERT_FILE`, `SSL_CERT_DIR`, else the system's own).
///
/// # Errors
/// In words, when that is nobody.
pub(crate) fn of_machine() -> Result<Arc<ClientConfig>, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(format!("this machine trusts nobody{why}: install ca-certificates, or set SSL_CERT_FILE"));
    }
    client(roots)
}

/// Believes these roots alone.
///
/// # Errors
/// In words, when one is none.
pub(crate) fn of_roots<'a>(all: impl IntoIterator<Item = &'a [u8]>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    for der in all {
        roots.add(CertificateDer::from(der)).map_err(|error| error.to_string())?;
    }
    client(roots)
}

/// Believes the roots of a PEM text alone.
///
/// # Errors
/// In words, when there is none, or one is broken.
pub(crate) fn of_pem(text: &str) -> Result<Arc<ClientConfig>, String> {
    let roots = pem::read_certificates(text).map_err(|error| error.to_string())?;
    of_roots(roots.iter().map(|root| &**root))
}

/// Speaks HTTP/1.1 with whoever proves its name.
fn client(roots: RootCertStore) -> Result<Arc<ClientConfig>, String> {
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
