//! Joining and renewing against an authority over real TLS.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use equerry_certs::{Authority, Pin};
use equerry_policies::names::{TrustDomain, control_plane_id};
use equerry_wire::proto::identity_server::{Identity as Identities, IdentityServer};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::{Request as Asked, Response, Status as Refused};

use super::super::last_good::SavedConfig;
use super::super::state_dir::StateDir;
use equerry_certs::tls::ClientAuth;

use super::*;
use crate::observe::{AccessLogTarget, ObserverOptions, SERIES_CAP};

/// Signs whoever shows the one token, once, and whoever shows a certificate.
#[derive(Clone)]
struct Signer {
    authority: Arc<Mutex<Authority>>,
    credential: String,
    asked: Arc<AtomicUsize>,
    /// The key that the token was used with.
    used: Arc<Mutex<Option<Vec<u8>>>>,
    /// What becomes of the next answers.
    answers: Arc<Mutex<VecDeque<Fate>>>,
    lifetime: Duration,
}

/// What becomes of an answer, where it does not simply arrive.
#[derive(Clone, Copy)]
enum Fate {
    /// Signed, and lost on its way.
    Lost,
    /// Never given.
    Hangs,
    /// Of this generation of trust.
    Generation(u64),
}

/// Whether the peer of a connection showed a certificate.
#[derive(Clone, Copy)]
struct Known(bool);

#[tonic::async_trait]
impl Identities for Signer {
    async fn sign(&self, asked: Asked<proto::SignRequest>) -> Result<Response<proto::SignResponse>, Refused> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let Known(known) = *asked.extensions().get::<Known>().unwrap();
        let asked = asked.into_inner();
        if !known {
            if asked.join_token != self.credential {
                return Err(Refused::permission_denied("there is no such join token"));
            }
            if self.used.lock().unwrap().get_or_insert_with(|| asked.csr_der.clone()) != &asked.csr_der {
                return Err(Refused::permission_denied("this join token was used already; make a new one"));
            }
        }
        let fate = self.answers.lock().unwrap().pop_front();
        match fate {
            Some(Fate::Lost) => return Err(Refused::unavailable("the connection broke")),
            Some(Fate::Hangs) => return std::future::pending().await,
            _ => {}
        }
        let authority = self.authority.lock().unwrap();
        let issued = authority.sign(&asked.csr_der, &workload(), self.lifetime, SystemTime::now()).unwrap();
        Ok(Response::new(proto::SignResponse {
            chain_der: issued.chain.iter().map(|c| c.to_vec()).collect(),
            roots_der: authority.roots().unwrap().roots().iter().map(|c| c.to_vec()).collect(),
            spiffe_id: issued.id.to_string(),
            trust_generation: if let Some(Fate::Generation(generation)) = fate { generation } else { 0 },
            ..Default::default()
        }))
    }
}

fn workload() -> SpiffeId {
    SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/orders").unwrap()
}

fn authority() -> Authority {
    Authority::create(TrustDomain::parse("equerry.local").unwrap(), SystemTime::now()).unwrap()
}

struct World {
    address: SocketAddr,
    token: JoinToken,
    asked: Arc<AtomicUsize>,
    answers: Arc<Mutex<VecDeque<Fate>>>,
    dir: tempfile::TempDir,
}

impl World {
    /// A control plane that signs, with a valid token for it.
    async fn begin() -> Self {
        let authority = authority();
        let bundle = authority.roots().unwrap();
        let token = JoinToken::create(bundle.pin().unwrap()).unwrap();
        let request = Request::new().unwrap();
        let id = control_plane_id(bundle.trust_domain().clone());
        let issued =
            authority.issue_server(&request.csr_der, &id, &[], Duration::from_secs(3600), SystemTime::now()).unwrap();
        let identity = Identity::new(request.key, issued.chain).unwrap();
        let config = tls::server_config(&identity, &bundle, ClientAuth::Optional, &[tls::ALPN_GRPC]).unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let answers = Arc::default();
        let signer = Signer {
            authority: Arc::new(Mutex::new(authority)),
            credential: token.credential().to_string(),
            asked: Arc::clone(&asked),
            used: Arc::default(),
            answers: Arc::clone(&answers),
            lifetime: Duration::from_secs(3600),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let known = Known(stream.get_ref().1.peer_certificates().is_some());
                let service = IdentityServer::with_interceptor(signer.clone(), move |mut asked: Asked<()>| {
                    asked.extensions_mut().insert(known);
                    Ok(asked)
                });
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));
            }
        });
        Self { address, token, asked, answers, dir: tempfile::tempdir().unwrap() }
    }

    fn keeper(&self, token: Option<&JoinToken>) -> Keeper {
        keeper(self.dir.path(), self.address, token)
    }
}

fn keeper(dir: &Path, address: SocketAddr, token: Option<&JoinToken>) -> Keeper {
    Keeper {
        control_plane: address.to_string(),
        token: token.map(|token| JoinTokenFrom::Text(token.reveal().to_string())),
        last_good: Arc::new(Mutex::new(LastGood::open(&StateDir::open(dir).unwrap()).unwrap())),
        identity: IdentityHandle::default(),
        status: Status::default(),
        observe: Observer::new(ObserverOptions { access_log: AccessLogTarget::Off, series_cap: SERIES_CAP }).unwrap(),
        joining: Joining::default(),
    }
}

#[tokio::test]
async fn a_newcomer_gets_its_identity_and_a_restart_needs_neither_token_nor_control_plane() {
    let world = World::begin().await;
    let keeper_one = world.keeper(Some(&world.token));
    keeper_one.first().await.unwrap();
    assert_eq!(keeper_one.identity.current().unwrap().id, workload());

    let nobody: SocketAddr = ([127, 0, 0, 1], 1).into();
    for token in [None, Some(&world.token)] {
        let restarted = keeper(world.dir.path(), nobody, token);
        restarted.first().await.unwrap();
        assert_eq!(restarted.identity.current().unwrap().id, workload());
    }
}

#[tokio::test]
async fn a_used_token_is_refused_in_the_words_of_the_control_plane() {
    let world = World::begin().await;
    world.keeper(Some(&world.token)).first().await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let error = keeper(elsewhere.path(), world.address, Some(&world.token)).first().await.unwrap_err();
    assert!(matches!(&error, NoIdentity::Refused(said) if said.contains("used already")), "{error}");
}

#[tokio::test]
async fn a_wrong_pin_is_noticed_before_the_secret_is_sent() {
    let world = World::begin().await;
    let other = JoinToken::create(Pin::parse(&"a1".repeat(32)).unwrap()).unwrap();
    let error = world.keeper(Some(&other)).first().await.unwrap_err();
    assert!(matches!(error, NoIdentity::NotBelieved { .. }), "{error}");
    assert_eq!(world.asked.load(Ordering::SeqCst), 0, "nothing was asked");
}

#[tokio::test]
async fn without_identity_and_token_the_command_is_named() {
    let world = World::begin().await;
    let error = world.keeper(None).first().await.unwrap_err().to_string();
    assert!(error.contains("equerry token create join --namespace NAMESPACE --account ACCOUNT"), "{error}");
}

#[tokio::test]
async fn a_damaged_identity_needs_a_new_token_and_the_command_knows_whose() {
    let world = World::begin().await;
    let first = world.keeper(Some(&world.token));
    first.first().await.unwrap();
    let config = SavedConfig { epoch: 1, own: workload(), resources: Vec::new(), shares: Vec::new() };
    first.last_good.lock().unwrap().save_config(&config).unwrap();
    std::fs::write(world.dir.path().join("identity.sealed"), b"eqlg1\nnonsense").unwrap();
    drop(first);
    let error = world.keeper(None).first().await.unwrap_err().to_string();
    assert!(
        error.contains("kept aside") && error.contains("equerry token create join --namespace shop --account orders"),
        "{error}"
    );
}

#[tokio::test]
async fn a_renewed_certificate_is_put_in_force_and_saved() {
    let world = World::begin().await;
    let keeper = world.keeper(Some(&world.token));
    keeper.first().await.unwrap();
    let before = keeper.identity.current().unwrap();
    let link = Link::new(world.address.to_string(), keeper.identity.clone());
    keeper.renew(&link).await.unwrap();
    let after = keeper.identity.current().unwrap();
    assert_eq!((before.generation, after.generation), (1, 2));
    assert_ne!(before.identity.key(), after.identity.key(), "each certificate has a key of its own");
    let saved = keeper.last_good.lock().unwrap().identity().unwrap().unwrap();
    assert_eq!(saved.identity.key(), after.identity.key());
}

#[tokio::test]
async fn an_expired_certificate_is_no_identity_and_says_what_helps() {
    let world = World::begin().await;
    let authority = authority();
    let request = Request::new().unwrap();
    let yesterday = SystemTime::now() - Duration::from_secs(86_400);
    let issued = authority.sign(&request.csr_der, &workload(), Duration::from_secs(60), yesterday).unwrap();
    let expired = SavedIdentity {
        identity: Identity::new(request.key, issued.chain).unwrap(),
        bundle: authority.roots().unwrap(),
        root: String::new(),
    };
    let keeper = world.keeper(None);
    keeper.last_good.lock().unwrap().save_identity(&expired).unwrap();
    keeper.first().await.unwrap();
    assert!(keeper.identity.current().is_none() && keeper.identity.latest().is_some());
    let latest = keeper.identity.latest().unwrap();
    let said = keeper.anew(&latest, &mut None).await.unwrap_err();
    assert!(said.contains("expired at") && said.contains("--namespace shop --account orders"), "{said}");

    let with_token = keeper_with(&keeper, &world.token);
    with_token.anew(&latest, &mut None).await.unwrap();
    assert_eq!(with_token.identity.current().unwrap().id, workload());
}

fn keeper_with(keeper: &Keeper, token: &JoinToken) -> Keeper {
    Keeper { token: Some(JoinTokenFrom::Text(token.reveal().to_string())), ..keeper.clone() }
}

#[tokio::test]
async fn an_answer_that_was_lost_is_asked_for_again_with_the_same_key_and_the_token_is_still_good() {
    let world = World::begin().await;
    world.answers.lock().unwrap().extend([Fate::Lost, Fate::Lost]);
    let keeper = world.keeper(Some(&world.token));
    keeper.first().await.unwrap();
    assert_eq!((keeper.identity.current().unwrap().id.clone(), world.asked.load(Ordering::SeqCst)), (workload(), 3));
    assert!(keeper.joining.0.lock().unwrap().is_none(), "the key is the identity's alone");
}

/// What the control plane would say of trust: its root, and these revoked.
fn trust(world: &TrustBundle, generation: u64, revoked: &[&str], signing: &str) -> proto::Trust {
    proto::Trust {
        generation,
        roots_der: world.roots().iter().map(|root| root.to_vec()).collect(),
        revoked: revoked.iter().map(|id| (*id).to_owned()).collect(),
        signing_root: signing.to_owned(),
        renew_within_ms: 1,
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn who_is_revoked_is_put_in_force_at_once_and_survives_a_restart_without_a_control_plane() {
    const WEB: &str = "spiffe://equerry.local/ns/shop/sa/web";
    let world = World::begin().await;
    let keeper = world.keeper(Some(&world.token));
    keeper.first().await.unwrap();
    let before = keeper.identity.latest().unwrap();
    let link = Link::new(world.address.to_string(), keeper.identity.clone());
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    let (identity, asked) = (keeper.identity.clone(), world.asked.load(Ordering::SeqCst));
    tokio::spawn(keeper.keep(link, told));
    tell.send(trust(&before.bundle, 5, &[WEB], "")).unwrap();
    let web = SpiffeId::parse(WEB).unwrap();
    until("the revocation to be in force", || identity.latest().unwrap().bundle.revokes(&web)).await;
    let now = identity.latest().unwrap();
    assert_eq!((now.bundle.generation(), now.generation), (5, before.generation + 1));
    assert_eq!(now.identity.serial(), before.identity.serial(), "the certificate is the one from before");
    assert!(!Arc::ptr_eq(&now.server, &before.server), "and no ticket from before is good for anything");
    assert_eq!(world.asked.load(Ordering::SeqCst), asked, "nobody was asked for a certificate");
    // Nonsense changes nothing, nor does the same once more.
    tell.send(proto::Trust { roots_der: vec![vec![1]], ..trust(&before.bundle, 6, &[], "") }).unwrap();
    tell.send(trust(&before.bundle, 5, &[WEB], "")).unwrap();
    tell.send(trust(&before.bundle, 7, &[WEB], "")).unwrap();
    until("the next generation", || identity.latest().unwrap().bundle.generation() == 7).await;
    assert_eq!(identity.latest().unwrap().generation, before.generation + 2);
    let nobody: SocketAddr = ([127, 0, 0, 1], 1).into();
    let restarted = self::keeper(world.dir.path(), nobody, None);
    let saved = || restarted.last_good.lock().unwrap().identity().unwrap().unwrap().bundle.generation();
    until("it to be saved", || saved() == 7).await;
    restarted.first().await.unwrap();
    assert!(restarted.identity.latest().unwrap().bundle.revokes(&web));
}

#[tokio::test]
async fn a_certificate_of_a_root_that_signs_no_more_is_renewed_and_so_is_one_that_somebody_wants_renewed() {
    let world = World::begin().await;
    let keeper = world.keeper(Some(&world.token));
    keeper.first().await.unwrap();
    let before = keeper.identity.latest().unwrap();
    let link = Link::new(world.address.to_string(), keeper.identity.clone());
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    let identity = keeper.identity.clone();
    tokio::spawn(keeper.keep(link, told));
    tell.send(trust(&before.bundle, 5, &[], "another root")).unwrap();
    let serial = |identity: &IdentityHandle| identity.latest().unwrap().identity.serial().to_owned();
    until("a certificate of the other root", || serial(&identity) != before.identity.serial()).await;
    let second = serial(&identity);
    identity.ask_renewal();
    until("yet another", || serial(&identity) != second).await;
}

#[tokio::test]
async fn a_revocation_waits_for_no_certificate_that_is_asked_for() {
    const WEB: &str = "spiffe://equerry.local/ns/shop/sa/web";
    let world = World::begin().await;
    let keeper = world.keeper(Some(&world.token));
    keeper.first().await.unwrap();
    let before = keeper.identity.latest().unwrap();
    let link = Link::new(world.address.to_string(), keeper.identity.clone());
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    // It is there when the work begins, which ends when it is in force.
    tell.send(trust(&before.bundle, 5, &[WEB], "another root")).unwrap();
    let (web, identity) = (SpiffeId::parse(WEB).unwrap(), keeper.identity.clone());
    let mut asked = None;
    let revoked = until("the revocation to be in force", || identity.latest().unwrap().bundle.revokes(&web));
    keeper.believing_meanwhile(&mut told, &mut asked, revoked).await;
    assert_eq!(
        asked.map(|asked| asked.root).as_deref(),
        Some("another root"),
        "and what it asked for is not forgotten"
    );
    // So it is while the control plane lets us wait for a signature.
    world.answers.lock().unwrap().push_back(Fate::Hangs);
    let asked_before = world.asked.load(Ordering::SeqCst);
    identity.ask_renewal();
    tokio::spawn(keeper.keep(link, told));
    until("it to be asked", || world.asked.load(Ordering::SeqCst) > asked_before).await;
    let began = std::time::Instant::now();
    tell.send(trust(&before.bundle, 6, &[], "")).unwrap();
    until("the next generation", || identity.latest().unwrap().bundle.generation() == 6).await;
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    assert_eq!(
        identity.latest().unwrap().identity.serial(),
        before.identity.serial(),
        "the answer is still waited for"
    );
}

#[tokio::test]
async fn whom_this_sidecar_believes_never_goes_back_a_generation() {
    const WEB: &str = "spiffe://equerry.local/ns/shop/sa/web";
    let world = World::begin().await;
    let keeper = world.keeper(Some(&world.token));
    keeper.first().await.unwrap();
    let before = keeper.identity.latest().unwrap();
    let (web, link) = (SpiffeId::parse(WEB).unwrap(), Link::new(world.address.to_string(), keeper.identity.clone()));
    keeper.believe(trust(&before.bundle, 5, &[WEB], "")).await;
    let of = || keeper.identity.latest().unwrap().bundle.clone();
    keeper.believe(trust(&before.bundle, 4, &[], "")).await;
    assert!(of().generation() == 5 && of().revokes(&web), "an older word");
    for (answered, known) in [(4, 5), (6, 6)] {
        world.answers.lock().unwrap().push_back(Fate::Generation(answered));
        let serial = keeper.identity.latest().unwrap().identity.serial().to_owned();
        keeper.renew(&link).await.unwrap();
        assert_ne!(keeper.identity.latest().unwrap().identity.serial(), serial, "the certificate is the new one");
        assert_eq!((of().generation(), of().revokes(&web)), (known, known == 5), "answered as of {answered}");
        let saved = keeper.last_good.lock().unwrap().identity().unwrap().unwrap();
        assert_eq!(saved.bundle.generation(), known);
    }
    // Another mesh counts for itself.
    let other = authority().roots().unwrap();
    keeper.believe(trust(&other, 1, &[], "")).await;
    assert_eq!(of().generation(), 1);
}
