//! Whom this proxy believes, as that changes under connections that exist: whoever was believed when a connection was made
//! may be revoked since, or the root that vouched for them may be gone.
//!
//! Whoever is revoked is cut off at once. That a root is gone says nothing against who was vouched for by it: what is under way over
//! such a connection has the time of a drain to be finished, and nothing new is begun.
//!
//! What the control plane says of trust arrives on the configuration stream and is put in force by `renew`, with new TLS
//! configurations: a ticket from before resumes nothing.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, SystemTime};

use equerry_certs::{CertificateDer, Pin, TrustBundle, tls};
use equerry_policies::names::{SpiffeId, TrustDomain};
use equerry_wire::proto;
use futures_util::future::LocalBoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::codec::Seldom;

/// Who is at the other end of a connection, and which roots vouched for them when it was made.
#[derive(Debug, Clone)]
pub(crate) struct Vouched {
    peer: SpiffeId,
    by: Arc<[Pin]>,
    trust: watch::Receiver<Option<TrustBundle>>,
    /// How long what is under way may go on once the root is gone.
    grace: Duration,
}

/// What speaks against whoever is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    Revoked,
    RootGone,
}

impl Vouched {
    /// After a handshake in which `shown` was verified with `identity`'s bundle.
    pub(crate) fn new(
        identity: &super::TlsIdentity,
        trust: watch::Receiver<Option<TrustBundle>>,
        peer: SpiffeId,
        shown: Option<&[CertificateDer<'_>]>,
    ) -> Self {
        // With one root there is no question which one it was.
        let by = if identity.pins.len() == 1 {
            Arc::clone(&identity.pins)
        } else {
            tls::vouching(shown.unwrap_or_default(), &identity.bundle, SystemTime::now()).into()
        };
        Self { peer, by, trust, grace: identity.grace }
    }

    /// Why they would not be believed now, were they to come now.
    fn doubt(&mut self) -> Option<Doubt> {
        let bundle = self.trust.borrow_and_update();
        let bundle = bundle.as_ref()?;
        if bundle.revokes(&self.peer) {
            return Some(Doubt::Revoked);
        }
        (!self.by.iter().any(|pin| bundle.holds(pin))).then_some(Doubt::RootGone)
    }

    /// Waits until nothing new is to be begun with them.
    pub(crate) async fn doubted(mut self) {
        while self.doubt().is_none() {
            if self.trust.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Waits until nothing may go on with them; says why.
    pub(crate) async fn believed_no_more(mut self) -> String {
        let mut until = None;
        loop {
            until = match self.doubt() {
                Some(Doubt::Revoked) => return format!("the identity {} was revoked", self.peer),
                Some(Doubt::RootGone) => until.or_else(|| Instant::now().checked_add(self.grace)),
                None => None,
            };
            let grace_is_over = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = grace_is_over => return format!("the root that vouched for {} is believed no more", self.peer),
                Ok(()) = self.trust.changed() => {}
                else => return std::future::pending().await,
            }
        }
    }
}

/// Says that whoever is at the other end of a connection is believed no more. It is asked with every byte, and costs a comparison
/// until then.
pub(crate) struct Distrust {
    over: Seldom<LocalBoxFuture<'static, ()>>,
    why: Rc<OnceCell<Distrusted>>,
    /// Who asked last: a connection is used by one task after the other.
    asked_by: Option<Waker>,
}

/// Whoever is at the other end is believed no more, because of this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Distrusted(pub(crate) String);

impl Distrusted {
    /// What an error of a connection says, if it is this.
    pub(crate) fn in_error(error: &std::io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<Distrusted> for std::io::Error {
    fn from(why: Distrusted) -> Self {
        Self::new(std::io::ErrorKind::ConnectionReset, why)
    }
}

impl fmt::Debug for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Distrust").field("why", &self.why).finish_non_exhaustive()
    }
}

impl Distrust {
    /// Of whoever is vouched for.
    pub(crate) fn of(vouched: Vouched) -> Self {
        let why = Rc::new(OnceCell::new());
        let tell = Rc::clone(&why);
        let over = async move {
            let _ = tell.set(Distrusted(vouched.believed_no_more().await));
        };
        Self { over: Seldom::new(Box::pin(over)), why, asked_by: None }
    }

    /// Why they are believed no more, if so; whoever asked last is woken then.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Option<&Distrusted> {
        if !self.asked_by.as_ref().is_some_and(|before| before.will_wake(cx.waker())) {
            self.over.asked_by(cx.waker());
            self.asked_by = Some(cx.waker().clone());
        }
        self.over.is_over(cx);
        self.why.get()
    }
}

/// What the control plane says of trust, understood.
pub(super) struct Heard {
    pub(super) bundle: TrustBundle,
    /// Pin of the root that signs now.
    pub(super) signing: String,
    /// How long all may take to ask for new certificates.
    pub(super) renew_within: Duration,
}

/// Reads what the control plane says of trust.
///
/// # Errors
/// When it cannot be used; what was believed before stays.
pub(super) fn heard(told: proto::Trust, trust_domain: &TrustDomain) -> Result<Heard, String> {
    let roots = told.roots_der.into_iter().map(CertificateDer::from).collect();
    let bundle = TrustBundle::new(trust_domain.clone(), roots).map_err(|error| error.to_string())?;
    let bundle = bundle.of_generation(told.generation, revoked(&told.revoked));
    Ok(Heard { bundle, signing: told.signing_root, renew_within: Duration::from_millis(told.renew_within_ms) })
}

/// Identities as they were told. One of another form is nobody's here.
pub(super) fn revoked(told: &[String]) -> BTreeSet<SpiffeId> {
    let read = |text: &String| {
        let read = SpiffeId::parse(text);
        if read.is_err() {
            tracing::error!(identity = text, "a revoked identity of a form that this version does not know");
        }
        read.ok()
    };
    told.iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use equerry_certs::Authority;

    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    fn domain() -> TrustDomain {
        TrustDomain::parse("equerry.local").unwrap()
    }

    fn authority() -> Authority {
        Authority::create(domain(), SystemTime::now()).unwrap()
    }

    fn web() -> SpiffeId {
        SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/web").unwrap()
    }

    fn vouched(root: &TrustBundle) -> (watch::Sender<Option<TrustBundle>>, Vouched) {
        let (tell, trust) = watch::channel(Some(root.clone()));
        (tell, Vouched { peer: web(), by: root.pins().into(), trust, grace: GRACE })
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_revoked_is_believed_no_more_and_everybody_else_still_is() {
        let root = authority().roots().unwrap();
        let (tell, vouched) = vouched(&root);
        let waits = tokio::spawn(vouched.believed_no_more());
        let other = SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/web2").unwrap();
        tell.send(Some(root.clone().of_generation(2, BTreeSet::from([other])))).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waits.is_finished());
        tell.send(Some(root.of_generation(3, BTreeSet::from([web()])))).unwrap();
        assert!(waits.await.unwrap().contains("sa/web was revoked"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_outlives_a_new_root_and_has_a_grace_after_the_end_of_its_own() {
        let (old, new) = (authority(), authority());
        let (tell, vouched) = vouched(&old.roots().unwrap());
        let (begins, goes_on) = (tokio::spawn(vouched.clone().doubted()), tokio::spawn(vouched.believed_no_more()));
        let both = vec![new.root().clone(), old.root().clone()];
        let both = TrustBundle::new(domain(), both).unwrap();
        tell.send(Some(both.clone())).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!begins.is_finished() && !goes_on.is_finished());
        let gone = Instant::now();
        tell.send(Some(new.roots().unwrap())).unwrap();
        begins.await.unwrap();
        assert_eq!(gone.elapsed(), Duration::ZERO, "nothing new is begun");
        tokio::time::sleep(GRACE / 2).await;
        // What else is told meanwhile does not begin the grace anew.
        tell.send(Some(new.roots().unwrap().of_generation(9, BTreeSet::new()))).unwrap();
        assert!(goes_on.await.unwrap().contains("is believed no more"));
        let took = gone.elapsed();
        assert!((GRACE..GRACE + Duration::from_secs(1)).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_root_that_comes_back_ends_the_grace_and_a_revocation_waits_for_none() {
        let (old, new) = (authority(), authority());
        let (tell, vouched) = vouched(&old.roots().unwrap());
        let goes_on = tokio::spawn(vouched.believed_no_more());
        tell.send(Some(new.roots().unwrap())).unwrap();
        tokio::time::sleep(GRACE / 2).await;
        tell.send(Some(old.roots().unwrap())).unwrap();
        tokio::time::sleep(GRACE * 2).await;
        assert!(!goes_on.is_finished());
        tell.send(Some(new.roots().unwrap())).unwrap();
        tokio::time::sleep(GRACE / 2).await;
        let revoked = Instant::now();
        tell.send(Some(new.roots().unwrap().of_generation(3, BTreeSet::from([web()])))).unwrap();
        assert!(goes_on.await.unwrap().contains("was revoked"));
        assert_eq!(revoked.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_change_between_handshake_and_watch_is_not_missed() {
        let root = authority().roots().unwrap();
        let (tell, vouched) = vouched(&root);
        tell.send(Some(root.of_generation(2, BTreeSet::from([web()])))).unwrap();
        assert!(vouched.believed_no_more().await.contains("was revoked"));
    }

    #[test]
    fn what_is_told_is_read_strictly_and_a_name_that_is_none_revokes_nobody() {
        let roots_der: Vec<Vec<u8>> = vec![authority().root().to_vec()];
        let told = proto::Trust {
            generation: 7,
            roots_der,
            revoked: vec![web().to_string(), "what".into()],
            signing_root: "ab".into(),
            renew_within_ms: 5,
        };
        let heard = heard(told.clone(), &domain()).unwrap();
        assert_eq!((heard.bundle.generation(), heard.bundle.revoked().len()), (7, 1));
        for roots_der in [Vec::new(), vec![vec![1, 2, 3]]] {
            assert!(super::heard(proto::Trust { roots_der, ..told.clone() }, &domain()).is_err());
        }
    }
}
