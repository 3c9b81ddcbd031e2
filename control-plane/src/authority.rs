//! The certificate authority in its state directory: made on first start, or brought; read again on every other. And what
//! the mesh believes at this moment ([`trust`]), which is more than one root while they are rotated.
//!
//! Keys are 0600, written to a temporary file, synced and renamed; a key that others can read is refused. A first start
//! that was interrupted begins again, an authority that was once complete is never replaced.

pub mod trust;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use equerry_certs::pem::BadPem;
use equerry_certs::{
    AuthorityFault, AuthorityPem, BroughtFault, BundleFault, HostName, Identity, IdentityFault, Issued, KeyFault, Part,
    Pin, Request, SignFault, SigningKey, Texts, TrustBundle, Zeroizing,
};
use equerry_policies::names::{BadName, SpiffeId, TrustDomain, control_plane_id};
use tokio::sync::watch;

use trust::{Phase, Rotation, Trust};

const ROOT_KEY: &str = "root.key";
const ROOT: &str = "root.pem";
const ISSUING_KEY: &str = "issuing.key";
/// Signs the audit log.
const AUDIT_KEY: &str = "audit.key";
const ISSUING: &str = "issuing.pem";
/// What people and programs outside are given, to believe the admin API.
pub const CA_FILE: &str = "ca.pem";
/// All of them: what a backup must hold.
pub const FILES: [&str; 6] = [ROOT_KEY, ROOT, ISSUING_KEY, ISSUING, CA_FILE, AUDIT_KEY];
/// Stands in the place of a root's key that is not here: the root was brought, and its key stays with whoever brought it.
const BROUGHT: &str = "the root is somebody else's, and its key is not here\n";
/// Stands in the directory while the first files are being made.
const MAKING: &str = "authority.making";
/// By these names this machine reaches its own admin API.
const ALWAYS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The authority, and where it is kept.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    trust_domain: TrustDomain,
    lifetime: Duration,
    audit_key: Arc<SigningKey>,
    inner: RwLock<Signers>,
    trust: ArcSwap<Trust>,
    changes: watch::Sender<u64>,
}

/// Who signs, and who will.
#[derive(Debug)]
struct Signers {
    /// What the files hold.
    current: equerry_certs::Authority,
    rotation: Option<Rotation>,
}

impl Signers {
    /// Who signs at this moment.
    fn signing(&self) -> &equerry_certs::Authority {
        match &self.rotation {
            Some(rotation) if rotation.phase == Phase::Issuing => &rotation.next,
            _ => &self.current,
        }
    }
}

/// Where an authority is that somebody brings: three files of PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BroughtFiles {
    /// The root's certificate.
    pub root: PathBuf,
    /// The issuing certificate, and those between it and the root.
    pub issuer: PathBuf,
    /// The issuing key.
    pub key: PathBuf,
}

impl BroughtFiles {
    /// Reads and judges them.
    ///
    /// # Errors
    /// When a file cannot be read, others can read the key, or they are not an authority; naming the file.
    pub fn read(
        &self,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<equerry_certs::Authority, AuthorityError> {
        let (root, issuer, key) = (read_text(&self.root)?, read_text(&self.issuer)?, read_private(&self.key)?);
        let texts = Texts { root: &root, issuer: &issuer, key: &key };
        equerry_certs::Authority::brought(trust_domain, texts, now).map_err(|fault| AuthorityError::Brought {
            path: match fault.part {
                Part::Root => self.root.clone(),
                Part::Issuer => self.issuer.clone(),
                Part::Key => self.key.clone(),
            },
            fault,
        })
    }
}

impl Authority {
    /// Reads the authority kept in `dir`, or makes one at first start. `lifetime` is that of the certificates it issues.
    /// Blocks on the disk.
    ///
    /// # Errors
    /// When the files are broken, incomplete, readable by others, of another trust domain, or cannot be written.
    pub fn open(
        dir: &Path,
        trust_domain: &TrustDomain,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        Self::open_brought(dir, trust_domain, lifetime, None, now)
    }

    /// As [`Authority::open`], where somebody brings an authority: it is the one of a first start, and of every other when
    /// its root is the one that is kept.
    ///
    /// # Errors
    /// As there, and when what was brought cannot be used, or is of another root than the mesh's.
    pub fn open_brought(
        dir: &Path,
        trust_domain: &TrustDomain,
        lifetime: Duration,
        brought: Option<&BroughtFiles>,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let brought = brought.map(|files| files.read(trust_domain, now)).transpose()?;
        let (mut current, mut changed) = match (is_first_start(dir)?, &brought) {
            (true, None) => (equerry_certs::Authority::create(trust_domain.clone(), now)?, true),
            (true, Some(brought)) => (equerry_certs::Authority::from_pem(&brought.to_pem(), trust_domain)?, true),
            (false, _) => read(dir, trust_domain, now)?,
        };
        let found = current.trust_domain().clone();
        if found != *trust_domain {
            return Err(AuthorityError::OtherTrustDomain { dir: dir.to_owned(), found, asked: trust_domain.clone() });
        }
        if let Some(brought) = brought {
            if Pin::of(brought.root())? != Pin::of(current.root())? {
                return Err(AuthorityError::OtherRoot { dir: dir.to_owned() });
            }
            if brought.issuing() != current.issuing() {
                tracing::info!("the issuing certificate that was brought takes the place of the one before");
                (current, changed) = (brought, true);
            }
        }
        let trust = Trust::of(&current, None, 1, Arc::default())?;
        if changed || !dir.join(CA_FILE).exists() {
            keep(dir, &current.to_pem(), &trust.roots)?;
        }
        let authority = Self {
            dir: dir.to_owned(),
            trust_domain: found,
            lifetime,
            audit_key: Arc::new(audit_key(dir)?),
            inner: RwLock::new(Signers { current, rotation: None }),
            trust: ArcSwap::from_pointee(trust),
            changes: watch::Sender::new(0),
        };
        authority.renew_issuing_if_due(now)?;
        Ok(authority)
    }

    /// Whether an authority can be read from `dir`; changes nothing.
    ///
    /// # Errors
    /// When it cannot.
    pub fn probe(dir: &Path, now: SystemTime) -> Result<(), AuthorityError> {
        // Which trust domain a root that was brought is used for is known only to whoever starts the control plane.
        let any = TrustDomain::parse("equerry.local")?;
        read(dir, &any, now).map(drop)
    }

    /// What it vouches for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Whom the mesh believes now.
    pub fn trust(&self) -> Arc<Trust> {
        self.trust.load_full()
    }

    /// Sees every change of trust from now on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The roots that are believed, the one that signs first.
    pub fn bundle(&self) -> TrustBundle {
        self.trust.load().roots.clone()
    }

    /// The pin in every join token: of the root that signs.
    pub fn pin(&self) -> Pin {
        self.trust.load().signing.clone()
    }

    /// How long the certificates it issues hold.
    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// Signs the audit log.
    pub fn audit_key(&self) -> &Arc<SigningKey> {
        &self.audit_key
    }

    /// Issues a workload's certificate for the key of a request.
    ///
    /// # Errors
    /// See [`SignFault`].
    pub fn sign(&self, csr_der: &[u8], id: &SpiffeId, now: SystemTime) -> Result<Issued, SignFault> {
        self.signers().signing().sign(csr_der, id, self.lifetime, now)
    }

    /// Makes the control plane's own identity. One certificate serves both its ports: the SPIFFE id for proxies, and
    /// `names` (beside localhost) for people. It lives as long as any other: ask again at
    /// [`Identity::renew_at`](equerry_certs::Identity::renew_at).
    ///
    /// # Errors
    /// When a name is neither a DNS name nor an address, or no key can be made.
    pub fn server_identity(&self, names: &[String], now: SystemTime) -> Result<Identity, AuthorityError> {
        self.renew_issuing_if_due(now)?;
        let mut hosts = Vec::new();
        for name in ALWAYS.into_iter().chain(names.iter().map(String::as_str)) {
            let host = HostName::parse(name)?;
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        let request = Request::new()?;
        let id = control_plane_id(self.trust_domain.clone());
        let signers = self.signers();
        let issued = signers.signing().issue_server(&request.csr_der, &id, &hosts, self.lifetime, now)?;
        Ok(Identity::new(request.key, issued.chain)?)
    }

    /// Replaces what signs when little of its life is left. Tells whether it did.
    ///
    /// # Errors
    /// When no key can be made, or the files cannot be written.
    pub fn renew_issuing_if_due(&self, now: SystemTime) -> Result<bool, AuthorityError> {
        let mut signers = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        if !signers.current.renew_issuing_if_due(now)? {
            return Ok(false);
        }
        keep_issuing(&self.dir, &signers.current.to_pem())?;
        tracing::info!("the issuing certificate was replaced: little of its life was left");
        let before = self.trust();
        let trust =
            Trust::of(&signers.current, signers.rotation.as_ref(), before.generation, Arc::clone(&before.revoked))?;
        self.trust.store(Arc::new(trust));
        Ok(true)
    }

    fn signers(&self) -> std::sync::RwLockReadGuard<'_, Signers> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key kept in `dir`, or a new one. One that was lost is replaced, which the log's readers see: its checkpoints are
/// signed by another key from then on.
fn audit_key(dir: &Path) -> Result<SigningKey, AuthorityError> {
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
fn is_first_start(dir: &Path) -> Result<bool, AuthorityError> {
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
fn read(
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

fn keep(dir: &Path, authority: &AuthorityPem, bundle: &TrustBundle) -> Result<(), AuthorityError> {
    write_whole(dir, ROOT_KEY, authority.root_key.as_ref().map_or(BROUGHT, |key| key.as_str()).as_bytes())?;
    write_whole(dir, ROOT, authority.root.as_bytes())?;
    keep_issuing(dir, authority)?;
    keep_ca(dir, bundle)?;
    remove(&dir.join(MAKING))
}

/// What people outside believe: every root that is believed inside.
fn keep_ca(dir: &Path, bundle: &TrustBundle) -> Result<(), AuthorityError> {
    write_whole(dir, CA_FILE, bundle.to_pem().as_bytes())?;
    let ca = dir.join(CA_FILE);
    fs::set_permissions(&ca, fs::Permissions::from_mode(0o644)).map_err(|error| io_error("open up", &ca, error))
}

fn keep_issuing(dir: &Path, authority: &AuthorityPem) -> Result<(), AuthorityError> {
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

fn read_text(path: &Path) -> Result<Zeroizing<String>, AuthorityError> {
    fs::read_to_string(path).map(Zeroizing::new).map_err(|error| io_error("read", path, error))
}

fn read_private(path: &Path) -> Result<Zeroizing<String>, AuthorityError> {
    let mode = fs::metadata(path).map_err(|error| io_error("read", path, error))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(AuthorityError::TooOpen { path: path.to_owned(), mode });
    }
    read_text(path)
}

fn io_error(doing: &'static str, path: &Path, error: io::Error) -> AuthorityError {
    AuthorityError::Io { doing, path: path.to_owned(), error }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn domain() -> TrustDomain {
        TrustDomain::parse("equerry.local").unwrap()
    }

    fn open(dir: &Path) -> Result<Authority, AuthorityError> {
        Authority::open(dir, &domain(), LIFETIME, now())
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_second_start_reads_what_the_first_made() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).unwrap();
        let second = open(dir.path()).unwrap();
        assert_eq!(first.pin(), second.pin());
        assert_eq!(first.bundle(), second.bundle());
        for (name, expected) in [(ROOT_KEY, 0o600), (ISSUING_KEY, 0o600), (CA_FILE, 0o644)] {
            assert_eq!(mode(&dir.path().join(name)), expected, "{name}");
        }
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert!(left.iter().all(|name| !name.starts_with('.') && name != MAKING), "{left:?}");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_command_that_mends_it() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap();
        let key = dir.path().join(ISSUING_KEY);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        let error = open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("mode 0640") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn another_trust_domain_is_refused_naming_both() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap();
        let other = TrustDomain::parse("other.example").unwrap();
        let error = Authority::open(dir.path(), &other, LIFETIME, now()).unwrap_err().to_string();
        assert!(error.contains("equerry.local") && error.contains("other.example"), "{error}");
    }

    #[test]
    fn a_missing_file_is_never_replaced_by_a_new_authority() {
        for name in [ROOT_KEY, ROOT, ISSUING_KEY, ISSUING] {
            let dir = tempfile::tempdir().unwrap();
            open(dir.path()).unwrap();
            fs::remove_file(dir.path().join(name)).unwrap();
            let error = open(dir.path()).unwrap_err();
            assert!(matches!(&error, AuthorityError::Incomplete { missing, .. } if missing == name), "{error}");
        }
    }

    #[test]
    fn what_people_believe_is_proof_that_there_was_an_authority() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap();
        for name in [ROOT_KEY, ROOT, ISSUING_KEY, ISSUING] {
            fs::remove_file(dir.path().join(name)).unwrap();
        }
        assert!(matches!(open(dir.path()), Err(AuthorityError::Incomplete { .. })));
    }

    #[test]
    fn a_lost_ca_file_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap();
        let ca = dir.path().join(CA_FILE);
        let before = fs::read(&ca).unwrap();
        fs::remove_file(&ca).unwrap();
        open(dir.path()).unwrap();
        assert_eq!((fs::read(&ca).unwrap(), mode(&ca)), (before, 0o644));
    }

    #[test]
    fn a_first_start_that_was_interrupted_begins_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(MAKING), "").unwrap();
        fs::write(dir.path().join(ROOT_KEY), "half").unwrap();
        fs::write(dir.path().join(".root.pem.new"), "half").unwrap();
        let made = open(dir.path()).unwrap();
        assert_eq!(open(dir.path()).unwrap().pin(), made.pin());
    }

    #[test]
    fn a_crash_between_issuing_key_and_certificate_is_mended_under_the_same_root() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pin = open(dir.path()).unwrap().pin();
        open(other.path()).unwrap();
        fs::copy(other.path().join(ISSUING_KEY), dir.path().join(ISSUING_KEY)).unwrap();
        let mended = open(dir.path()).unwrap();
        assert_eq!(mended.pin(), pin);
        assert_eq!(open(dir.path()).unwrap().pin(), pin);
    }

    #[test]
    fn a_mixed_up_root_is_refused() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        open(dir.path()).unwrap();
        open(other.path()).unwrap();
        fs::copy(other.path().join(ROOT_KEY), dir.path().join(ROOT_KEY)).unwrap();
        assert!(matches!(open(dir.path()), Err(AuthorityError::Broken { .. })));
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("nowhere");
        let error = open(&missing).unwrap_err().to_string();
        assert!(error.contains("nowhere") && error.contains("must be writable"), "{error}");
    }

    #[test]
    fn an_issuing_certificate_near_its_end_is_replaced_and_the_root_stays() {
        let dir = tempfile::tempdir().unwrap();
        let pin = open(dir.path()).unwrap().pin();
        let later = now() + Duration::from_secs(330 * 24 * 60 * 60);
        let before = fs::read_to_string(dir.path().join(ISSUING)).unwrap();
        let renewed = Authority::open(dir.path(), &domain(), LIFETIME, later).unwrap();
        assert_eq!(renewed.pin(), pin);
        assert_ne!(fs::read_to_string(dir.path().join(ISSUING)).unwrap(), before);
        Authority::open(dir.path(), &domain(), LIFETIME, later).unwrap().server_identity(&[], later).unwrap();
    }

    #[test]
    fn the_control_planes_certificate_carries_its_identity_and_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let authority = open(dir.path()).unwrap();
        let identity = authority.server_identity(&["mesh.example.com".into(), "10.1.2.3".into()], now()).unwrap();
        assert_eq!(identity.id(), &control_plane_id(domain()));
        assert!(
            authority.server_identity(&["not a name".into()], now()).unwrap_err().to_string().contains("not a name")
        );
    }
}
