//! The authority's files: each is wholly there or not. Keys are 0600, and a key that others can read is refused.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::SystemTime;

use equerry_certs::{AuthorityFault, AuthorityPem, SigningKey, TrustBundle, Zeroizing};
use equerry_policies::names::TrustDomain;

use super::AuthorityError;

pub(super) const ROOT_KEY: &str = "root.key";
pub(super) const ROOT: &str = "root.pem";
pub(super) const ISSUING_KEY: &str = "issuing.key";
/// Signs the audit log.
pub(super) const AUDIT_KEY: &str = "audit.key";
pub(super) const ISSUING: &str = "issuing.pem";
/// What people and programs outside are given, to believe the admin API.
pub const CA_FILE: &str = "ca.pem";
/// All of them: what a backup must hold.
pub const FILES: [&str; 6] = [ROOT_KEY, ROOT, ISSUING_KEY, ISSUING, CA_FILE, AUDIT_KEY];
/// Stands in the place of a root's key that is not here: the root was brought, and its key stays with whoever brought it.
pub(super) const BROUGHT: &str = "the root is somebody else's, and its key is not here\n";
/// Stands in the directory while the first files are being made.
pub(super) const MAKING: &str = "authority.making";

/// The key kept in `dir`, or a new one. One that was lost is replaced, which the log's readers see: its checkpoints are
/// signed by another key from then on.
pub(super) fn audit_key(dir: &Path) -> Result<SigningKey, AuthorityError> {
    let path = dir.join(AUDIT_KEY);
    if path.try_exists().map_err(|error| io_error("look at", &path, error))? {
        let broken = |bad| AuthorityError::AuditKey { path: path.clone(), bad };
        return SigningKey::read(&read_private(&path)?).map_err(broken);
    }
    let (key, kept) = SigningKey::create()?;
    write_whole(dir, AUDIT_KEY, kept.as_bytes())?;
    Ok(key)
}

/// Whether there is no authority in the directory yet; what an interrupted first start left is removed.
pub(super) fn is_first_start(dir: &Path) -> Result<bool, AuthorityError> {
    let all = [ROOT_KEY, ROOT, ISSUING_KEY, ISSUING, CA_FILE];
    let exists = |name: &str| dir.join(name).try_exists().map_err(|error| io_error("look at", &dir.join(name), error));
    if exists(MAKING)? {
        for name in all {
            remove(&dir.join(name))?;
        }
    } else {
        let mut missing = Vec::new();
        for name in [ROOT_KEY, ROOT, ISSUING_KEY, ISSUING] {
            if !exists(name)? {
                missing.push(name);
            }
        }
        match missing.as_slice() {
            [] => return Ok(false),
            [_, _, _, _] if !exists(CA_FILE)? => {}
            _ => return Err(AuthorityError::Incomplete { dir: dir.to_owned(), missing: missing.join(", ") }),
        }
    }
    write_whole(dir, MAKING, b"")?;
    Ok(true)
}

/// Reads what was kept; `true` when something had to be made anew and is to be kept.
pub(super) fn read(
    dir: &Path,
    brought_for: &TrustDomain,
    now: SystemTime,
) -> Result<(equerry_certs::Authority, bool), AuthorityError> {
    let root_key = read_private(&dir.join(ROOT_KEY))?;
    let kept = AuthorityPem {
        root: read_text(&dir.join(ROOT))?.to_string(),
        root_key: (root_key.as_str() != BROUGHT).then_some(root_key),
        issuing: read_text(&dir.join(ISSUING))?.to_string(),
        cross: None,
        issuing_key: read_private(&dir.join(ISSUING_KEY))?,
    };
    match (equerry_certs::Authority::from_pem(&kept, brought_for), &kept.root_key) {
        (Ok(authority), _) => Ok((authority, false)),
        (Err(AuthorityFault::OtherKey { which: "issuing" }), Some(root_key)) => {
            tracing::warn!(dir = %dir.display(), "issuing.key and issuing.pem do not belong together, as after a crash while renewing: making new ones");
            Ok((equerry_certs::Authority::from_root_pem(&kept.root, root_key, now)?, true))
        }
        (Err(fault), _) => Err(AuthorityError::Broken { dir: dir.to_owned(), fault }),
    }
}

pub(super) fn keep(dir: &Path, authority: &AuthorityPem, bundle: &TrustBundle) -> Result<(), AuthorityError> {
    write_whole(dir, ROOT_KEY, authority.root_key.as_ref().map_or(BROUGHT, |key| key.as_str()).as_bytes())?;
    write_whole(dir, ROOT, authority.root.as_bytes())?;
    keep_issuing(dir, authority)?;
    keep_ca(dir, bundle)?;
    remove(&dir.join(MAKING))
}

/// What people outside believe: every root that is believed inside.
pub(super) fn keep_ca(dir: &Path, bundle: &TrustBundle) -> Result<(), AuthorityError> {
    write_whole(dir, CA_FILE, bundle.to_pem().as_bytes())?;
    let ca = dir.join(CA_FILE);
    fs::set_permissions(&ca, fs::Permissions::from_mode(0o644)).map_err(|error| io_error("open up", &ca, error))
}

pub(super) fn keep_issuing(dir: &Path, authority: &AuthorityPem) -> Result<(), AuthorityError> {
    write_whole(dir, ISSUING_KEY, authority.issuing_key.as_bytes())?;
    write_whole(dir, ISSUING, authority.issuing.as_bytes())
}

/// Writes a file that is either wholly there or not: a new temporary file (0600), synced, renamed, the directory synced.
fn write_whole(dir: &Path, name: &str, content: &[u8]) -> Result<(), AuthorityError> {
    let path = dir.join(name);
    let temporary = dir.join(format!(".{name}.new"));
    remove(&temporary)?;
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|error| io_error("write", &path, error))
}

fn remove(path: &Path) -> Result<(), AuthorityError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path, error)),
        _ => Ok(()),
    }
}

pub(super) fn read_text(path: &Path) -> Result<Zeroizing<String>, AuthorityError> {
    fs::read_to_string(path).map(Zeroizing::new).map_err(|error| io_error("read", path, error))
}

pub(super) fn read_private(path: &Path) -> Result<Zeroizing<String>, AuthorityError> {
    let mode = fs::metadata(path).map_err(|error| io_error("read", path, error))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(AuthorityError::TooOpen { path: path.to_owned(), mode });
    }
    read_text(path)
}

fn io_error(doing: &'static str, path: &Path, error: io::Error) -> AuthorityError {
    AuthorityError::Io { doing, path: path.to_owned(), error }
}
