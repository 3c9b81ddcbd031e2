//! `Sign`: the one call a stranger may make, with a join token; and how everybody renews.
//!
//! The authority decides the identity: the token's account for a newcomer, the certificate's for a renewal. A token is
//! used up last, when nothing else stands in the way, so that a mistake in a request does not cost it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use equerry_certs::{Issued, JoinToken, Pin, SignFault, Skew, rfc3339, skew};
use equerry_policies::names::{SpiffeId, control_plane_id};
use equerry_wire::limits::MAX_CSR;
use equerry_wire::proto::identity_server::{Identity, IdentityServer};
use equerry_wire::proto::{SignRequest, SignResponse};
use tonic::{Request, Response, Status};

use super::Peer;
use crate::audit::{By, Note};
use crate::authority::Authority;
use crate::authority::trust::Trust;
use crate::control::ControlPlane;
use crate::store::tokens::{self, JoinRefusal};
use crate::store::{Store, StoreError};

/// Longest message of this service in bytes: a request, a token, and room for fields to come.
const MAX_SIGN_MESSAGE: usize = MAX_CSR + 4096;

/// The `Identity` service.
pub struct Signer {
    control: ControlPlane,
}

impl Signer {
    /// The service over a control plane.
    pub fn new(control: ControlPlane) -> Self {
        Self { control }
    }

    /// The service as tonic serves it, with its size limit.
    pub fn service(control: ControlPlane) -> IdentityServer<Self> {
        IdentityServer::new(Self::new(control)).max_decoding_message_size(MAX_SIGN_MESSAGE)
    }
}

#[tonic::async_trait]
impl Identity for Signer {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let known = peer.as_ref().and_then(|peer| peer.id.clone());
        let shown = peer.as_ref().and_then(|peer| peer.serial.clone());
        let from = peer.map_or_else(|| "?".to_owned(), |peer| peer.address.to_string());
        let (store, authority, now) = (self.control.store(), self.control.authority(), SystemTime::now());
        let line = self.line(shown.as_deref(), request.get_ref());
        let turn = || self.control.take_turn(&line, now);
        let done = sign(store, authority, known.as_ref(), request.get_ref(), turn, now).await;
        match done {
            Ok(signed) => {
                self.control.metrics().signed(signed.how);
                self.control.note_issued(&signed.issued, &signed.answer.root, line, shown);
                tracing::info!(spiffe_id = %signed.id, %from, how = signed.how, not_after = signed.answer.not_after_unix, "certificate issued");
                Ok(Response::new(signed.answer))
            }
            Err(refusal) => {
                self.control.metrics().signed("refused");
                tracing::warn!(%from, spiffe_id = known.as_ref().map(ToString::to_string), %refusal, "certificate refused");
                let who = known.map_or_else(|| format!("somebody at {from}"), |id| id.to_string());
                let about = vec!["a certificate".to_owned()];
                let note = Note::refused(By::name(who), "identity.sign", about, "refused", &refusal.to_string());
                self.control.refused(note).await;
                Err(refusal.into())
            }
        }
    }
}

impl Signer {
    /// The line of renewals that somebody asks for: it begins with a join token.
    fn line(&self, shown: Option<&str>, request: &SignRequest) -> Arc<str> {
        match (JoinToken::read_credential(&request.join_token), shown) {
            (Ok((id, _)), _) => format!("join token {id}").into(),
            (Err(_), Some(shown)) => self.control.line_of(shown),
            (Err(_), None) => "nobody".into(),
        }
    }
}

/// What was issued, and to whom.
#[derive(Debug)]
struct Signed {
    answer: SignResponse,
    issued: Issued,
    id: SpiffeId,
    /// `issued` or `renewed`, as metrics say it.
    how: &'static str,
}

async fn sign(
    store: &Store,
    authority: &Authority,
    known: Option<&SpiffeId>,
    request: &SignRequest,
    turn: impl FnOnce() -> Result<(), Duration>,
    now: SystemTime,
) -> Result<Signed, SignRefusal> {
    skew::check(told(request.now_unix_ms), now)?;
    let (id, how) = match known {
        Some(id) if request.join_token.is_empty() => (id.clone(), "renewed"),
        None if request.join_token.is_empty() => return Err(SignRefusal::Nobody),
        _ => {
            let account = tokens::look_at_join(store, &request.join_token, now).await?;
            (SpiffeId::new(authority.trust_domain().clone(), account.namespace.clone(), account.name.clone()), "issued")
        }
    };
    // No token is ever made for it, and its own certificate is not renewed here.
    if id == control_plane_id(authority.trust_domain().clone()) {
        return Err(SignRefusal::ControlPlane { id });
    }
    let trust = authority.trust();
    if let Some(revocation) = trust.revoked.get(&id) {
        return Err(SignRefusal::Revoked { id, at: revocation.at });
    }
    turn().map_err(|wait| SignRefusal::TooMany { id: id.clone(), wait })?;
    let issued = authority.sign(&request.csr_der, &id, now)?;
    if how == "issued" {
        let key = issued.chain.first().map(Pin::of).transpose().map_err(|_| SignRefusal::NoKey)?;
        tokens::spend_join(store, &request.join_token, &key.ok_or(SignRefusal::NoKey)?, now).await?;
    }
    Ok(Signed { answer: answer(&issued, &trust), issued, id, how })
}

/// The time a proxy told; one that no clock can show counts as 1970, which is refused as skew.
fn told(unix_ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms)).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn answer(issued: &Issued, trust: &Trust) -> SignResponse {
    let seconds = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
    };
    SignResponse {
        chain_der: issued.chain.iter().map(|certificate| certificate.to_vec()).collect(),
        roots_der: trust.roots.roots().iter().map(|root| root.to_vec()).collect(),
        spiffe_id: issued.id.to_string(),
        not_before_unix: seconds(issued.not_before),
        not_after_unix: seconds(issued.not_after),
        trust_generation: trust.generation,
        revoked: trust.revoked.keys().map(ToString::to_string).collect(),
        root: trust.signing.to_string(),
    }
}

/// Why no certificate is issued; each text says what to do next.
#[derive(Debug, thiserror::Error)]
enum SignRefusal {
    #[error(
        "no certificate and no join token: a workload without an identity joins with --join-token (equerry token create join), one with an identity renews over mutual TLS"
    )]
    Nobody,
    #[error("{id} is the control plane itself, no workload may be it: make a token of another account")]
    ControlPlane { id: SpiffeId },
    #[error(
        "{id} was revoked at {}: it gets no certificate until `equerry certs restore {id}`",
        rfc3339(*.at)
    )]
    Revoked { id: SpiffeId, at: SystemTime },
    #[error("{id} asks for certificates again and again: the next one in {} s; what is wrong stands in its sidecar's log", .wait.as_secs() + 1)]
    TooMany { id: SpiffeId, wait: Duration },
    #[error("the certificate that was made holds no key")]
    NoKey,
    #[error(transparent)]
    Clock(#[from] Skew),
    #[error(transparent)]
    Token(#[from] JoinRefusal),
    #[error(transparent)]
    Request(#[from] SignFault),
}

impl From<SignRefusal> for Status {
    fn from(refusal: SignRefusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            SignRefusal::Nobody => Self::unauthenticated(text),
            SignRefusal::Clock(_) | SignRefusal::Request(SignFault::AuthorityExpired { .. }) => {
                Self::failed_precondition(text)
            }
            SignRefusal::TooMany { .. } | SignRefusal::Token(JoinRefusal::Store(StoreError::Full)) => {
                Self::resource_exhausted(text)
            }
            SignRefusal::Token(JoinRefusal::Store(_)) => Self::unavailable(text),
            SignRefusal::Token(_) => Self::unauthenticated(text),
            SignRefusal::ControlPlane { .. }
            | SignRefusal::Revoked { .. }
            | SignRefusal::Request(SignFault::OtherIdentity { .. } | SignFault::OtherTrustDomain { .. }) => {
                Self::permission_denied(text)
            }
            SignRefusal::NoKey | SignRefusal::Request(SignFault::Failed { .. }) => Self::internal(text),
            SignRefusal::Request(_) => Self::invalid_argument(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use equerry_certs::{CertificateDer, Identity as Held, Leaf, TrustBundle};
    use equerry_policies::names::{AccountName, TrustDomain};
    use tonic::Code;

    use super::*;
    use crate::store::StoreOptions;

    const TTL: Duration = Duration::from_secs(600);
    const ORDERS: &str = "spiffe://equerry.local/ns/shop/sa/orders";

    struct House {
        store: Store,
        authority: Authority,
        _dir: tempfile::TempDir,
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn house() -> House {
        in_dir(tempfile::tempdir().unwrap())
    }

    fn in_dir(dir: tempfile::TempDir) -> House {
        let store = Store::open(&dir.path().join("equerry.db"), &StoreOptions::default()).unwrap();
        let authority = Authority::open(dir.path(), &TrustDomain::parse("equerry.local").unwrap(), TTL, now()).unwrap();
        House { store, authority, _dir: dir }
    }

    impl House {
        async fn token(&self, account: &str) -> String {
            let account = AccountName::parse(account).unwrap();
            let whole = tokens::create_join(&self.store, &self.authority.pin(), &account, TTL, By::name("test"), now())
                .await
                .unwrap();
            JoinToken::parse(&whole).unwrap().credential().to_string()
        }

        async fn ask(
            &self,
            known: Option<&str>,
            join_token: &str,
            csr_der: Vec<u8>,
            clock: SystemTime,
        ) -> Result<Signed, Status> {
            let known = known.map(|id| SpiffeId::parse(id).unwrap());
            let clock = u64::try_from(clock.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()).unwrap();
            let request = SignRequest { csr_der, join_token: join_token.to_owned(), now_unix_ms: clock };
            sign(&self.store, &self.authority, known.as_ref(), &request, || Ok(()), now()).await.map_err(Status::from)
        }
    }

    fn csr() -> Vec<u8> {
        equerry_certs::Request::new().unwrap().csr_der
    }

    #[tokio::test]
    async fn a_newcomer_gets_the_identity_of_its_token_once() {
        let house = house();
        let token = house.token("shop/orders").await;
        let request = equerry_certs::Request::new().unwrap();
        let signed = house.ask(None, &token, request.csr_der.clone(), now()).await.unwrap();
        assert_eq!((signed.answer.spiffe_id.as_str(), signed.how), (ORDERS, "issued"));
        let chain = signed.answer.chain_der.into_iter().map(CertificateDer::from).collect();
        let held = Held::new(request.key, chain).unwrap();
        assert_eq!((held.id().to_string().as_str(), held.not_after()), (ORDERS, now() + TTL));
        let roots = signed.answer.roots_der.into_iter().map(CertificateDer::from).collect();
        assert!(TrustBundle::new(held.id().trust_domain.clone(), roots).unwrap().holds(&house.authority.pin()));
        let lost = house.ask(None, &token, request.csr_der, now()).await.unwrap();
        assert_eq!(lost.answer.spiffe_id, ORDERS, "an answer that was lost is given again for the same key");
        assert_ne!(lost.issued.serial, signed.issued.serial);
        let again = house.ask(None, &token, csr(), now()).await.unwrap_err();
        assert_eq!(again.code(), Code::Unauthenticated);
        assert!(again.message().contains("was used at 2027-01-15T08:00:00Z"), "{again}");
    }

    #[tokio::test]
    async fn an_answer_that_was_lost_is_given_again_by_a_control_plane_that_started_again_meanwhile() {
        let house = house();
        let token = house.token("shop/orders").await;
        let asked = csr();
        house.ask(None, &token, asked.clone(), now()).await.unwrap();
        let House { store, authority, _dir: dir } = house;
        drop((store, authority));
        let again = in_dir(dir);
        let signed = again.ask(None, &token, asked, now()).await.unwrap();
        assert_eq!((signed.answer.spiffe_id.as_str(), signed.how), (ORDERS, "issued"));
        assert_eq!(again.ask(None, &token, csr(), now()).await.unwrap_err().code(), Code::Unauthenticated);
    }

    #[tokio::test]
    async fn a_renewal_gets_the_identity_of_its_certificate() {
        let signed = house().ask(Some(ORDERS), "", csr(), now()).await.unwrap();
        assert_eq!((signed.answer.spiffe_id.as_str(), signed.how), (ORDERS, "renewed"));
        let leaf = Leaf::read(&CertificateDer::from(signed.answer.chain_der[0].clone())).unwrap();
        assert_eq!(leaf.id.to_string(), ORDERS);
    }

    #[tokio::test]
    async fn a_stranger_with_neither_is_told_how_to_join() {
        let refused = house().ask(None, "", csr(), now()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(refused.message().contains("equerry token create join"), "{refused}");
    }

    #[tokio::test]
    async fn a_request_for_somebody_else_is_refused_and_the_token_is_not_used_up() {
        let house = house();
        let token = house.token("shop/orders").await;
        let mut asks = rcgen::CertificateParams::default();
        asks.subject_alt_names =
            vec![rcgen::SanType::URI("spiffe://equerry.local/ns/shop/sa/admin".try_into().unwrap())];
        let asks = asks.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec();
        let refused = house.ask(None, &token, asks.clone(), now()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("sa/admin") && refused.message().contains(ORDERS), "{refused}");
        assert_eq!(house.ask(Some(ORDERS), "", asks, now()).await.unwrap_err().code(), Code::PermissionDenied);
        assert!(house.ask(None, &token, csr(), now()).await.is_ok());
    }

    #[tokio::test]
    async fn a_clock_an_hour_off_is_refused_naming_both_times() {
        let house = house();
        let token = house.token("shop/orders").await;
        let hour = Duration::from_secs(3600);
        for clock in [now() - hour, now() + hour, SystemTime::UNIX_EPOCH] {
            for (known, token) in [(None, token.as_str()), (Some(ORDERS), "")] {
                let refused = house.ask(known, token, csr(), clock).await.unwrap_err();
                assert_eq!(refused.code(), Code::FailedPrecondition);
                assert!(
                    refused.message().contains(&rfc3339(clock)) && refused.message().contains(&rfc3339(now())),
                    "{refused}"
                );
            }
        }
        assert!(
            house.ask(None, &token, csr(), now() + Duration::from_secs(299)).await.is_ok(),
            "and the token is still good"
        );
    }

    #[tokio::test]
    async fn nobody_becomes_the_control_plane_here() {
        let own = control_plane_id(TrustDomain::parse("equerry.local").unwrap()).to_string();
        assert_eq!(house().ask(Some(&own), "", csr(), now()).await.unwrap_err().code(), Code::PermissionDenied);
    }

    #[tokio::test]
    async fn a_request_that_is_none_is_refused_as_the_askers_mistake() {
        let house = house();
        for bad in [Vec::new(), vec![0x30, 0x80], vec![0; MAX_CSR + 1]] {
            assert_eq!(house.ask(Some(ORDERS), "", bad, now()).await.unwrap_err().code(), Code::InvalidArgument);
        }
    }

    #[tokio::test]
    async fn a_token_of_another_control_plane_is_unknown() {
        let (ours, theirs) = (house(), house());
        let token = theirs.token("shop/orders").await;
        let refused = ours.ask(None, &token, csr(), now()).await.unwrap_err();
        assert!(refused.message().contains("is not known here"), "{refused}");
    }
}
