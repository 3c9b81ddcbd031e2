//! Whom the mesh believes at one moment: one root, or two while they are rotated, and who is believed no more.
//!
//! A value that is replaced whole. Its generation grows with every change and is what proxies report, so that it is known
//! who still acts on an older one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use equerry_certs::{Pin, TrustBundle};
use equerry_policies::names::{SpiffeId, TrustDomain};

use super::files::{keep, keep_ca};
use super::{Authority, AuthorityError, Signers};
use crate::store::trust::{Kept, KeptPhase, KeptRotation, Revocation};

/// How far a rotation of the root is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// One root is believed.
    Steady,
    /// Two are believed, the old one signs.
    Trusting,
    /// Two are believed, the new one signs.
    Issuing,
}

impl Phase {
    /// As people and programs read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Trusting => "trusting",
            Self::Issuing => "issuing",
        }
    }
}

/// A root that takes the place of another.
#[derive(Debug)]
pub struct Rotation {
    /// How far it is; never steady.
    pub phase: Phase,
    /// When it began.
    pub began: SystemTime,
    /// The authority that comes in.
    pub next: equerry_certs::Authority,
}

impl Rotation {
    /// As it is kept.
    pub fn kept(&self, phase: KeptPhase) -> KeptRotation {
        KeptRotation { phase, began: self.began, next: self.next.to_pem() }
    }
}

/// One root and what signs under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Of the root's key.
    pub pin: Pin,
    /// Whether certificates are signed under it now.
    pub signs: bool,
    /// Whether it is the one that comes in.
    pub coming: bool,
    /// Whether the root is somebody else's.
    pub brought: bool,
    /// Whether who knows only the root before it believes what it signs.
    pub certified_twice: bool,
    /// Until when the root holds.
    pub root_until: SystemTime,
    /// Until when its issuing certificate holds.
    pub issuing_until: SystemTime,
}

/// Whom the mesh believes.
#[derive(Debug)]
pub struct Trust {
    /// Grows with every change.
    pub generation: u64,
    /// How far a rotation is.
    pub phase: Phase,
    /// When the rotation began.
    pub began: Option<SystemTime>,
    /// The roots, the one that signs first; without revocations.
    pub roots: TrustBundle,
    /// The pin of the root that signs.
    pub signing: Pin,
    /// Identities believed no more.
    pub revoked: Arc<BTreeMap<SpiffeId, Revocation>>,
    /// Every root that is believed.
    pub anchors: Vec<Anchor>,
}

impl Trust {
    pub(super) fn of(
        current: &equerry_certs::Authority,
        rotation: Option<&Rotation>,
        generation: u64,
        revoked: Arc<BTreeMap<SpiffeId, Revocation>>,
    ) -> Result<Self, AuthorityError> {
        let phase = rotation.map_or(Phase::Steady, |rotation| rotation.phase);
        let mut all = vec![(current, false)];
        all.extend(rotation.map(|rotation| (&rotation.next, true)));
        if phase == Phase::Issuing {
            all.reverse();
        }
        let mut anchors = Vec::new();
        for (index, (authority, coming)) in all.iter().enumerate() {
            anchors.push(Anchor {
                pin: Pin::of(authority.root())?,
                signs: index == 0,
                coming: *coming,
                brought: authority.is_brought(),
                certified_twice: authority.is_certified_twice(),
                root_until: authority.root_not_after(),
                issuing_until: authority.issuing_not_after(),
            });
        }
        let roots = all.iter().map(|(authority, _)| authority.root().clone()).collect();
        let roots = TrustBundle::new(current.trust_domain().clone(), roots)?;
        let (signing, began) = (roots.pin()?, rotation.map(|rotation| rotation.began));
        Ok(Self { generation, phase, began, roots, signing, revoked, anchors })
    }

    /// Whether an identity is believed no more.
    pub fn revokes(&self, id: &SpiffeId) -> bool {
        self.revoked.contains_key(id)
    }
}

impl Kept {
    /// Whether a root was this mesh's before, or comes in.
    pub(super) fn knows(&self, root: &Pin, trust_domain: &TrustDomain) -> Result<bool, AuthorityError> {
        let coming = self.rotation.as_ref().map(|rotation| {
            let texts = TrustBundle::from_pem(trust_domain.clone(), &rotation.next.root)?;
            texts.pin()
        });
        Ok(self.past_roots.iter().any(|past| past == root.as_str()) || coming.transpose()?.as_ref() == Some(root))
    }
}

impl Authority {
    /// Takes up what was kept about trust. Tells whether a rotation was found that only has to be forgotten: the old root is
    /// gone.
    ///
    /// # Errors
    /// When the root that comes in cannot be read, or files cannot be written.
    pub fn take_up(&self, kept: &Kept) -> Result<bool, AuthorityError> {
        let mut signers = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let mut is_over = false;
        if let Some(rotation) = &kept.rotation {
            let next = equerry_certs::Authority::from_pem(&rotation.next, &self.trust_domain)
                .map_err(|fault| AuthorityError::Broken { dir: self.dir.clone(), fault })?;
            let began = rotation.began;
            match rotation.phase {
                // Its files were completed before they were read.
                KeptPhase::Dropping => is_over = true,
                KeptPhase::Trusting => signers.rotation = Some(Rotation { phase: Phase::Trusting, began, next }),
                KeptPhase::Issuing => signers.rotation = Some(Rotation { phase: Phase::Issuing, began, next }),
            }
        }
        let revoked = kept.revocations.iter().map(|one| (one.id.clone(), one.clone())).collect();
        self.publish(&signers, kept.generation, Arc::new(revoked))?;
        Ok(is_over)
    }

    /// Completes, before the files are read, what a crash may have left half done: the files of a root that took the place
    /// of another. Blocks on the disk.
    ///
    /// # Errors
    /// When the new root cannot be read, or files cannot be written.
    pub fn complete(dir: &Path, kept: &Kept, trust_domain: &TrustDomain) -> Result<(), AuthorityError> {
        let Some(rotation) = kept.rotation.as_ref().filter(|rotation| rotation.phase == KeptPhase::Dropping) else {
            return Ok(());
        };
        put_in_place(dir, &rotation.next, trust_domain).map(drop)
    }

    /// A rotation begins, goes on or, with `None`, is given up.
    ///
    /// # Errors
    /// When files cannot be written; what is believed has changed all the same.
    pub fn rotate(&self, rotation: Option<Rotation>, generation: u64) -> Result<(), AuthorityError> {
        let mut signers = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        signers.rotation = rotation;
        self.publish(&signers, generation, Arc::clone(&self.trust().revoked))
    }

    /// The new root signs from now on.
    ///
    /// # Errors
    /// As [`Authority::rotate`].
    pub fn issue_from_new(&self, generation: u64) -> Result<(), AuthorityError> {
        let mut signers = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(rotation) = &mut signers.rotation {
            rotation.phase = Phase::Issuing;
        }
        self.publish(&signers, generation, Arc::clone(&self.trust().revoked))
    }

    /// The old root is believed no more, once the files hold the new one. Blocks on the disk.
    ///
    /// # Errors
    /// When files cannot be written; what is believed is then what it was, and this may be called again.
    pub fn forget_old(&self, generation: u64) -> Result<(), AuthorityError> {
        let mut signers = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(rotation) = &signers.rotation {
            signers.current = put_in_place(&self.dir, &rotation.next.to_pem(), &self.trust_domain)?;
            signers.rotation = None;
        }
        self.publish(&signers, generation, Arc::clone(&self.trust().revoked))
    }

    /// Other identities are revoked from now on.
    ///
    /// # Errors
    /// Never: the roots were read before.
    pub fn revoke(&self, revoked: BTreeMap<SpiffeId, Revocation>, generation: u64) -> Result<(), AuthorityError> {
        self.publish(&self.signers(), generation, Arc::new(revoked))
    }

    /// The rotation under way as it is to be kept, in another phase.
    pub fn rotation_in(&self, phase: KeptPhase) -> Option<KeptRotation> {
        self.signers().rotation.as_ref().map(|rotation| rotation.kept(phase))
    }

    /// A root that could come in: made here, or brought; certified by the present one where that can be.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn prepare(
        &self,
        brought: Option<equerry_certs::Authority>,
        now: SystemTime,
    ) -> Result<Rotation, AuthorityError> {
        let mut next = match brought {
            Some(brought) => brought,
            None => equerry_certs::Authority::create(self.trust_domain.clone(), now)?,
        };
        next.be_certified_by(&self.signers().current, now)?;
        Ok(Rotation { phase: Phase::Trusting, began: now, next })
    }

    fn publish(
        &self,
        signers: &Signers,
        generation: u64,
        revoked: Arc<BTreeMap<SpiffeId, Revocation>>,
    ) -> Result<(), AuthorityError> {
        let trust = Trust::of(&signers.current, signers.rotation.as_ref(), generation, revoked)?;
        let roots = trust.roots.clone();
        let changed = roots.roots() != self.trust.load().roots.roots();
        self.trust.store(Arc::new(trust));
        self.changes.send_modify(|count| *count += 1);
        if changed { keep_ca(&self.dir, &roots) } else { Ok(()) }
    }
}

/// Writes the files of a root that takes the place of the one before; what they hold then.
fn put_in_place(
    dir: &Path,
    next: &equerry_certs::AuthorityPem,
    trust_domain: &TrustDomain,
) -> Result<equerry_certs::Authority, AuthorityError> {
    let mut next = equerry_certs::Authority::from_pem(next, trust_domain)
        .map_err(|fault| AuthorityError::Broken { dir: dir.to_owned(), fault })?;
    next.stand_alone();
    keep(dir, &next.to_pem(), &next.roots()?)?;
    Ok(next)
}
