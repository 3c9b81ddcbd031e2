//! Why there is no authority: each text says what to do next.

use std::io;
use std::path::PathBuf;

use equerry_certs::pem::BadPem;
use equerry_certs::{AuthorityFault, BroughtFault, BundleFault, IdentityFault, KeyFault, SignFault};
use equerry_policies::names::{BadName, TrustDomain};

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be reached.
    #[error("cannot {doing} {}: {error}; the state directory must be writable by the user that runs the control plane", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A key that others can read is no secret.
    #[error("{} can be reached by others than its owner (mode {mode:04o}): if nobody has read it, run `chmod 600 {}`", .path.display(), .path.display())]
    TooOpen {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The audit log's key is none.
    #[error("{} cannot be read: {bad}; restore it from a backup, or remove it: a new one is made, and readers of the log see that the key changed", .path.display())]
    AuditKey {
        /// Which file.
        path: PathBuf,
        /// What the reader said.
        bad: BadPem,
    },
    /// Files are missing beside others.
    #[error("the certificate authority in {} is incomplete, missing: {missing}; restore it from a backup (a new one would be believed by no workload that has joined)", .dir.display())]
    Incomplete {
        /// The state directory.
        dir: PathBuf,
        /// Which files.
        missing: String,
    },
    /// Files cannot be read as an authority.
    #[error("the certificate authority in {} cannot be read: {fault}; restore it from a backup", .dir.display())]
    Broken {
        /// The state directory.
        dir: PathBuf,
        /// Why.
        fault: AuthorityFault,
    },
    /// The directory belongs to another mesh.
    #[error("the state directory {} belongs to trust domain {found}, but --trust-domain says {asked}: the trust domain is fixed at first start; use another state directory, or {found}", .dir.display())]
    OtherTrustDomain {
        /// The state directory.
        dir: PathBuf,
        /// What its root names.
        found: TrustDomain,
        /// What was asked for.
        asked: TrustDomain,
    },
    /// What was brought cannot be used.
    #[error("{}: {fault}", .path.display())]
    Brought {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        fault: BroughtFault,
    },
    /// What was brought is of another root.
    #[error("the mesh in {} believes another root than --root: workloads that have joined would believe nothing that this issuer signs; start without --root, --issuer-cert and --issuer-key, and bring the new root in by `equerry certs rotate start --root FILE --issuer-cert FILE --issuer-key FILE`", .dir.display())]
    OtherRoot {
        /// The state directory.
        dir: PathBuf,
    },
    /// A new authority could not be made.
    #[error(transparent)]
    Fault(#[from] AuthorityFault),
    /// The root cannot be used.
    #[error(transparent)]
    Bundle(#[from] BundleFault),
    /// A name to advertise is not a name.
    #[error("cannot put a name into the control plane's certificate (--advertise): {0}")]
    Name(#[from] BadName),
    /// The control plane's own key could not be made.
    #[error(transparent)]
    Key(#[from] KeyFault),
    /// The control plane's own certificate could not be issued.
    #[error(transparent)]
    Sign(#[from] SignFault),
    /// The control plane's own certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityFault),
}
