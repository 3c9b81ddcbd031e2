//! The certificate authority in its state directory: made on first start, or brought; read again on every other. And what
//! the mesh believes at this moment ([`trust`]), which is more than one root while they are rotated.
//!
//! Keys are 0600, written to a temporary file, synced and renamed; a key that others can read is refused. A first start
//! that was interrupted begins again, an authority that was once complete is never replaced.

mod fault;
mod files;
pub mod trust;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use equerry_certs::{HostName, Identity, Issued, Part, Pin, Request, SignFault, SigningKey, Texts, TrustBundle};
use equerry_policies::names::{SpiffeId, TrustDomain, control_plane_id};
use tokio::sync::watch;

pub use fault::AuthorityError;
pub use files::{CA_FILE, FILES};
use files::{audit_key, is_first_start, keep, keep_issuing, read, read_private, read_text};
use trust::{Phase, Rotation, Trust};

use crate::store::trust::Kept;

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
        Self::open_brought(dir, trust_domain, lifetime, None, &Kept::default(), now)
    }

    /// As [`Authority::open`], where somebody brings an authority: it is the one of a first start, and of every other when
    /// its root is the one that is kept. One of a root that this mesh has moved on from, or is on its way to, is passed over:
    /// a rotation must not need other settings to start again.
    ///
    /// # Errors
    /// As there, and when what was brought cannot be used, or is of a root that never was the mesh's.
    pub fn open_brought(
        dir: &Path,
        trust_domain: &TrustDomain,
        lifetime: Duration,
        brought: Option<&BroughtFiles>,
        kept: &Kept,
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
            let (theirs, ours) = (Pin::of(brought.root())?, Pin::of(current.root())?);
            if theirs != ours {
                if !kept.knows(&theirs, trust_domain)? {
                    return Err(AuthorityError::OtherRoot { dir: dir.to_owned() });
                }
                tracing::warn!(
                    brought = %theirs, signs = %ours,
                    "the root of --root was this mesh's or comes in by a rotation, and what was brought is passed over: start without --root, --issuer-cert and --issuer-key, or name the files of the root that is believed"
                );
            } else if brought.issuing() != current.issuing() {
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

#[cfg(test)]
mod tests;
