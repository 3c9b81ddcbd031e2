//! This workload's identity: got with a join token the first time, kept across restarts, renewed while it holds.
//!
//! The private key is made here and never leaves. A renewed identity is put in force without touching connections that
//! exist. An identity that ran out can only be had anew with another join token, and every message says so. Whom the control
//! plane believes is put in force here too, as it changes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use equerry_certs::tls;
use equerry_certs::{CertificateDer, Identity, JoinToken, Pin, Request, TrustBundle, holds_until, rfc3339};
use equerry_policies::names::SpiffeId;
use equerry_wire::proto;
use equerry_wire::proto::identity_client::IdentityClient;
use tokio::sync::mpsc::UnboundedReceiver;
use tonic::transport::Channel;

use super::backoff::Backoff;
use super::last_good::{LastGood, SavedIdentity, Unreadable};
use super::link::{self, Link};
use super::status::Status;
use super::{IdentityHandle, TlsIdentity, trust};
use crate::config::JoinTokenFrom;
use crate::observe::Observer;

/// A signature takes longer only when something is broken.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at the clock while waiting for the time to renew, so that a clock set anew is noticed.
const LOOK: Duration = Duration::from_secs(60);

/// Why there is no identity and trying again would not help.
#[derive(Debug, thiserror::Error)]
pub enum NoIdentity {
    /// Neither an identity from before nor a token to get one.
    #[error("{why}this proxy has no identity: make a join token with `{}` and give it with --join-token-file", command(.id.as_ref()))]
    NeedsToken {
        /// What became of the identity from before, if there was one.
        why: String,
        /// Who it was, as far as that is known.
        id: Option<SpiffeId>,
    },
    /// The token cannot be read.
    #[error("join token: {0}")]
    BadToken(String),
    /// The control plane is not the one the token was made by, or its clock differs.
    #[error("the control plane at {address} is not believed: {why}")]
    NotBelieved {
        /// Where it is.
        address: String,
        /// What is wrong.
        why: String,
    },
    /// The control plane said no.
    #[error("the control plane refuses to issue an identity: {0}")]
    Refused(String),
}

/// The command that makes a new join token for `id`.
pub(crate) fn command(id: Option<&SpiffeId>) -> String {
    match id {
        Some(id) => format!("equerry token create join --namespace {} --account {}", id.namespace, id.account),
        None => "equerry token create join --namespace NAMESPACE --account ACCOUNT".to_owned(),
    }
}

/// Everything that getting and keeping an identity needs.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    pub(crate) control_plane: String,
    pub(crate) token: Option<JoinTokenFrom>,
    pub(crate) last_good: Arc<Mutex<LastGood>>,
    pub(crate) identity: IdentityHandle,
    pub(crate) status: Status,
    pub(crate) observe: Observer,
    pub(crate) joining: Joining,
}

/// The key with which a join token was shown, until that token brought an identity: an answer that got lost on its way is asked
/// for again with the same key, and with no other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Joining(Arc<Mutex<Option<Shown>>>);

/// The id of the token that was shown, and with which key.
type Shown = (String, Arc<Request>);

impl Joining {
    fn request(&self, token: &JoinToken) -> Result<Arc<Request>, tonic::Status> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((id, request)) if id == token.id() => Ok(Arc::clone(request)),
            _ => {
                let request = Arc::new(made()?);
                *kept = Some((token.id().to_owned(), Arc::clone(&request)));
                Ok(request)
            }
        }
    }

    fn done(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A new key.
fn made() -> Result<Request, tonic::Status> {
    Request::new().map_err(|error| tonic::Status::internal(error.to_string()))
}

/// An identity as it was signed.
struct Signed {
    identity: Identity,
    bundle: TrustBundle,
    /// Pin of the root that its certificate leads to.
    root: String,
}

/// A certificate that the control plane wants us to ask for.
struct Asked {
    /// Pin of the root that signs now.
    root: String,
    /// When.
    at: SystemTime,
}

/// Why one try failed.
enum Failure {
    /// The control plane could not be reached, or could not answer: try again.
    Later(String),
    /// It will fail again.
    Never(NoIdentity),
}

impl Keeper {
    /// Puts an identity in force: the one from before, even an expired one, else one got with the join token, however
    /// long the control plane takes to come up.
    pub(crate) async fn first(&self) -> Result<(), NoIdentity> {
        let kept = self.last_good.lock().unwrap_or_else(PoisonError::into_inner).identity();
        let why = match kept {
            Ok(Some(SavedIdentity { identity, bundle, root })) => match self.put(Signed { identity, bundle, root }) {
                Ok(()) => return Ok(()),
                Err(error) => format!("the identity from before cannot be used ({error}); "),
            },
            Ok(None) => String::new(),
            Err(error @ (Unreadable::Damaged { .. } | Unreadable::KeyLost { .. } | Unreadable::Io { .. })) => {
                format!("{error}; ")
            }
        };
        let Some(source) = &self.token else {
            let id = self
                .last_good
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .config()
                .ok()
                .flatten()
                .map(|config| config.own);
            return Err(NoIdentity::NeedsToken { why, id });
        };
        if !why.is_empty() {
            tracing::warn!("{why}the join token is used to get a new one");
        }
        let mut backoff = Backoff::default();
        loop {
            match self.join(&read(source)?).await {
                Ok(()) => return Ok(()),
                Err(Failure::Never(error)) => return Err(error),
                Err(Failure::Later(error)) => {
                    if backoff.is_fresh() {
                        tracing::warn!(control_plane = %self.control_plane, %error, "the control plane cannot be reached; trying again until it can");
                    }
                    self.status.identity(Some(format!(
                        "no identity yet: the control plane at {} cannot be reached ({error})",
                        self.control_plane
                    )));
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    }

    /// Keeps the identity fresh for as long as the process runs, and believes whom the control plane says.
    pub(crate) async fn keep(self, link: Link, mut told: UnboundedReceiver<proto::Trust>) {
        let mut refused_token = None;
        let mut asked: Option<Asked> = None;
        loop {
            let Some(current) = self.identity.latest() else { return };
            let due = renewal(&current.identity);
            let due = asked.as_ref().map_or(due, |asked| due.min(asked.at));
            tokio::select! {
                () = wait_until(due) => {}
                () = self.identity.renewal_asked() => {}
                Some(trust) = told.recv() => {
                    asked = self.believe(trust).await.or(asked);
                    continue;
                }
            }
            asked = self.renew_until_done(&link, &mut refused_token, &mut told).await;
        }
    }

    /// Asks for a new certificate until there is one. Returns what the control plane said meanwhile that it does not meet.
    async fn renew_until_done(
        &self,
        link: &Link,
        refused_token: &mut Option<String>,
        told: &mut UnboundedReceiver<proto::Trust>,
    ) -> Option<Asked> {
        let mut backoff = Backoff::default();
        let mut asked = None;
        loop {
            let current = self.identity.latest()?;
            let expired = SystemTime::now() >= current.not_after;
            let trying =
                async { if expired { self.anew(&current, refused_token).await } else { self.renew(link).await } };
            let tried = self.believing_meanwhile(told, &mut asked, trying).await;
            let Err(error) = tried else {
                self.status.identity(None);
                link.renew();
                tracing::info!(until = %self.identity.latest().map_or_else(String::new, |new| rfc3339(new.not_after)), "the certificate was renewed");
                return asked.filter(|asked| self.identity.latest().is_none_or(|new| new.root != asked.root));
            };
            if backoff.is_fresh() {
                tracing::warn!(%error, until = %rfc3339(current.not_after), "the certificate cannot be renewed; trying again until it can");
            }
            if expired {
                self.status.identity(Some(error));
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next()) => {}
                () = self.identity.renewal_asked() => {}
                Some(trust) = told.recv() => asked = self.believe(trust).await.or(asked),
            }
        }
    }

    /// Does `work`, and believes what is told meanwhile: a revocation waits for nobody's answer.
    async fn believing_meanwhile<T>(
        &self,
        told: &mut UnboundedReceiver<proto::Trust>,
        asked: &mut Option<Asked>,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                Some(trust) = told.recv() => *asked = self.believe(trust).await.or(asked.take()),
                done = &mut work => return done,
            }
        }
    }

    /// Believes whom the control plane believes. Returns when to ask for a certificate of the root that signs now, if ours
    /// leads to another.
    async fn believe(&self, told: proto::Trust) -> Option<Asked> {
        let current = self.identity.latest()?;
        let heard = match trust::heard(told, &current.id.trust_domain) {
            Ok(heard) => heard,
            Err(error) => {
                tracing::error!(%error, "what the control plane says of trust cannot be used; what was believed before stays");
                return None;
            }
        };
        if is_older(&heard.bundle, &current.bundle) {
            let (told, known) = (heard.bundle.generation(), current.bundle.generation());
            tracing::debug!(told, known, "what was said of trust is older than what is known, and is passed over");
            return None;
        }
        if heard.bundle != current.bundle {
            let (roots, revoked) = (heard.bundle.roots().len(), heard.bundle.revoked().len());
            let generation = heard.bundle.generation();
            let (identity, root) = (current.identity.clone(), current.root.clone());
            match self.accept(Signed { identity, bundle: heard.bundle, root }).await {
                Ok(()) => tracing::info!(generation, roots, revoked, "whom this sidecar believes has changed"),
                Err(error) => tracing::error!(%error, "what the control plane says of trust cannot be put in force"),
            }
        }
        let wait = heard.renew_within.mul_f64(fastrand::f64());
        (heard.signing != current.root).then(|| Asked { root: heard.signing, at: SystemTime::now() + wait })
    }

    /// Asks for a new certificate under the present one.
    async fn renew(&self, link: &Link) -> Result<(), String> {
        let request = made().map_err(|status| status.message().to_owned())?;
        match self.sign(link.channel(), &request, String::new()).await {
            Ok(signed) => self.accept(signed).await.map_err(|error| error.to_string()),
            Err(status) => Err(status.message().to_owned()),
        }
    }

    /// The certificate ran out: only a join token that was not refused before can help.
    async fn anew(&self, expired: &TlsIdentity, refused: &mut Option<String>) -> Result<(), String> {
        let needs = |why: &str| {
            format!(
                "the certificate expired at {}{why}: make a join token with `{}` and give it with --join-token-file",
                rfc3339(expired.not_after),
                command(Some(&expired.id))
            )
        };
        let Some(source) = &self.token else { return Err(needs("")) };
        let token = read(source).map_err(|error| needs(&format!(", and {error}")))?;
        if refused.as_deref() == Some(token.id()) {
            return Err(needs(""));
        }
        match self.join(&token).await {
            Ok(()) => Ok(()),
            Err(Failure::Later(error)) => Err(format!("{} ({error})", needs(""))),
            Err(Failure::Never(error)) => {
                *refused = Some(token.id().to_owned());
                Err(needs(&format!(", and {error}")))
            }
        }
    }

    /// Gets an identity with a join token. The control plane's root is checked against the token's pin before the secret
    /// is sent.
    async fn join(&self, token: &JoinToken) -> Result<(), Failure> {
        let never = |why: &dyn std::fmt::Display| {
            Failure::Never(NoIdentity::NotBelieved { address: self.control_plane.clone(), why: why.to_string() })
        };
        let config = tls::pinned_client_config(token.pin()).map_err(|error| never(&error))?;
        let stream = match link::tls(&self.control_plane, Arc::new(config)).await {
            Ok(stream) => stream,
            Err(error) => match tls::fault_of_io(&error) {
                Some(fault) => return Err(never(fault)),
                None => return Err(Failure::Later(error.to_string())),
            },
        };
        let (_, session) = stream.get_ref();
        let pinned = tls::learned(session.peer_certificates().unwrap_or_default(), token.pin())
            .map_err(|fault| never(&fault))?;
        // The channel gets this one stream, whose peer is known, and no way to make another.
        let once = Arc::new(Mutex::new(Some(stream)));
        let channel = link::channel(move || {
            let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
            async move { stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::ConnectionReset)) }
        });
        let request = self.joining.request(token).map_err(|status| Failure::Later(status.message().to_owned()))?;
        match self.sign(channel, &request, token.credential().to_string()).await {
            Ok(signed) if signed.bundle.holds(token.pin()) && signed.bundle.trust_domain() == pinned.trust_domain() => {
                self.joining.done();
                self.accept(signed).await.map_err(|error| never(&error))
            }
            Ok(_) => Err(never(&"its answer does not hold the root that the token names")),
            Err(status) if is_refusal(status.code()) => {
                Err(Failure::Never(NoIdentity::Refused(status.message().to_owned())))
            }
            Err(status) => Err(Failure::Later(status.message().to_owned())),
        }
    }

    /// Has a key certified.
    async fn sign(&self, channel: Channel, request: &Request, join_token: String) -> Result<Signed, tonic::Status> {
        let asked = proto::SignRequest {
            csr_der: request.csr_der.clone(),
            join_token,
            now_unix_ms: super::unix_ms(SystemTime::now()),
        };
        let mut asking = tonic::Request::new(asked);
        asking.set_timeout(PATIENCE);
        let answer = IdentityClient::new(channel).sign(asking).await?.into_inner();
        let unusable = |error: &dyn std::fmt::Display| {
            tonic::Status::internal(format!("the control plane's answer cannot be used: {error}"))
        };
        let chain = answer.chain_der.into_iter().map(CertificateDer::from).collect();
        let identity = Identity::new(request.key.clone(), chain).map_err(|error| unusable(&error))?;
        let roots = answer.roots_der.into_iter().map(CertificateDer::from).collect();
        let bundle = TrustBundle::new(identity.id().trust_domain.clone(), roots).map_err(|error| unusable(&error))?;
        let bundle = bundle.of_generation(answer.trust_generation, trust::revoked(&answer.revoked));
        Ok(Signed { identity, bundle, root: answer.root })
    }

    /// Puts a new identity in force and saves what is in force when it is its turn to write: of two that come together
    /// nobody writes what is older last.
    async fn accept(&self, signed: Signed) -> Result<(), tls::TlsFault> {
        self.put(signed)?;
        let (last_good, identity) = (Arc::clone(&self.last_good), self.identity.clone());
        let saving = tokio::task::spawn_blocking(move || {
            let mut last_good = last_good.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(now) = identity.latest() else { return Ok(()) };
            let (identity, bundle, root) = (now.identity.clone(), now.bundle.clone(), now.root.clone());
            last_good.save_identity(&SavedIdentity { identity, bundle, root })
        });
        if let Ok(Err(error)) = saving.await {
            tracing::error!(%error, "the identity cannot be saved: a restart would need a new join token");
        }
        Ok(())
    }

    /// What is believed never goes back: an answer that was long under way may tell of less than was told since.
    fn put(&self, signed: Signed) -> Result<(), tls::TlsFault> {
        let Signed { identity, bundle, root } = signed;
        let before = self.identity.latest();
        let generation = before.as_ref().map_or(1, |before| before.generation + 1);
        let newest = before.map(|before| before.bundle.clone()).filter(|known| is_older(&bundle, known));
        let ready = TlsIdentity::new(identity, newest.unwrap_or(bundle), root, generation)?;
        self.tell_ends(&ready);
        self.identity.put(ready);
        Ok(())
    }

    /// Until when our certificate, its signer and its root hold, for whoever watches them.
    fn tell_ends(&self, ready: &TlsIdentity) {
        self.observe.certificate("leaf", ready.not_after);
        if let Some(end) = ready.identity.chain().get(1).and_then(holds_until) {
            self.observe.certificate("issuing", end);
        }
        let is_ours = |root: &&CertificateDer<'_>| Pin::of(root).is_ok_and(|pin| pin.as_str() == ready.root);
        let roots = ready.bundle.roots();
        if let Some(end) = roots.iter().find(is_ours).or(roots.first()).and_then(holds_until) {
            self.observe.certificate("root", end);
        }
    }
}

/// Whether what is told of trust is older than what is known of the same mesh. Generations of a mesh that shares no root with it
/// are another count.
fn is_older(told: &TrustBundle, known: &TrustBundle) -> bool {
    told.generation() < known.generation() && told.pins().iter().any(|pin| known.holds(pin))
}

/// Two thirds of life, less up to a tenth of it, so that sidecars started together do not renew together.
fn renewal(identity: &Identity) -> SystemTime {
    let due = identity.renew_at();
    let third = identity.not_after().duration_since(due).unwrap_or_default();
    due.checked_sub(third.mul_f64(0.3 * fastrand::f64())).unwrap_or(due)
}

async fn wait_until(time: SystemTime) {
    while let Ok(left) = time.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.clamp(Duration::from_millis(1), LOOK)).await;
    }
}

fn read(source: &JoinTokenFrom) -> Result<JoinToken, NoIdentity> {
    match source {
        JoinTokenFrom::Text(text) => JoinToken::parse(text).map_err(|error| NoIdentity::BadToken(error.to_string())),
        JoinTokenFrom::File(path) => {
            let said = |error: &dyn std::fmt::Display| NoIdentity::BadToken(format!("{}: {error}", path.display()));
            let text = equerry_certs::Zeroizing::new(std::fs::read_to_string(path).map_err(|error| said(&error))?);
            JoinToken::parse(&text).map_err(|error| said(&error))
        }
    }
}

/// Whether an answer means no, rather than not now.
pub(crate) fn is_refusal(code: tonic::Code) -> bool {
    use tonic::Code;
    matches!(
        code,
        Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::NotFound
            | Code::OutOfRange
            | Code::Unimplemented
    )
}

#[cfg(test)]
#[path = "renew_tests.rs"]
mod tests;
