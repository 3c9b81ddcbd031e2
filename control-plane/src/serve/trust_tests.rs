//! Roots that are rotated and identities that are revoked, as sidecars meet it over real TLS.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use equerry_certs::{CertificateDer, Leaf, Pin, TrustBundle};
use equerry_policies::names::{SpiffeId, TrustDomain};
use equerry_wire::proto;
use equerry_wire::proto::from_proxy::Message;
use equerry_wire::proto::identity_client::IdentityClient;
use equerry_wire::proto::registry_client::RegistryClient;
use tonic::Code;

use super::harness::{House, Sidecar, Talk, house};
use crate::audit::By;
use crate::authority::trust::Phase;
use crate::authority::{Authority, BroughtFiles};
use crate::control::{ControlPlane, TrustError};
use crate::store::trust::{self, Kept, KeptPhase};
use crate::store::{Store, StoreOptions, unix_ms};

fn by() -> By {
    By::name("ada")
}

fn domain() -> TrustDomain {
    TrustDomain::parse("equerry.local").unwrap()
}

fn standing(generation: u64, leaf: &Leaf, root: &str) -> Message {
    let until = i64::try_from(unix_ms(leaf.not_after) / 1000).unwrap();
    Message::Standing(proto::Standing {
        trust_generation: generation,
        leaf_serial: leaf.serial.clone(),
        root: root.into(),
        leaf_not_after_unix: until,
    })
}

fn leaf_of(sidecar: &Sidecar) -> Leaf {
    Leaf::read(&sidecar.identity.chain()[0]).unwrap()
}

async fn trust_heard(talk: &mut Talk, generation: u64) -> proto::Trust {
    loop {
        if let Some(trust) = talk.accept().await.trust {
            assert!(trust.generation <= generation, "{trust:?}");
            if trust.generation == generation {
                return trust;
            }
        }
    }
}

async fn renew(sidecar: &Sidecar) -> Result<proto::SignResponse, tonic::Status> {
    let csr_der = equerry_certs::Request::new().unwrap().csr_der;
    let now_unix_ms = unix_ms(SystemTime::now());
    let asked = proto::SignRequest { csr_der, join_token: String::new(), now_unix_ms };
    IdentityClient::new(sidecar.channel.clone()).sign(asked).await.map(tonic::Response::into_inner)
}

fn waits_for(control: &ControlPlane, who: &str, why: &str) -> bool {
    control.rotation().waiting.iter().any(|one| one.who == who && one.why.contains(why))
}

async fn step_is_refused(house: &House) -> String {
    match house.control.advance_rotation(false, by()).await {
        Err(stranded @ TrustError::Stranded(_)) => stranded.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_takes_each_step_only_when_nobody_is_stranded_and_says_who_would_be() {
    let house = house().await;
    let control = &house.control;
    let (orders, old) = (house.join("shop/orders").await, house.join("shop/inventory").await);
    let old_root = control.authority().pin();
    assert_eq!(orders.root, old_root.as_str(), "whoever joins is told which root signed");
    let mut talk = orders.subscribe("orders-1", Vec::new()).await;
    let first = trust_heard(&mut talk, 1).await;
    assert_eq!((first.roots_der.len(), first.signing_root.as_str()), (1, old_root.as_str()));
    talk.say(standing(1, &leaf_of(&orders), &orders.root)).await;
    // A proxy of an older version takes what it is sent, and never says how it stands.
    let mut silent = old.subscribe("inventory-1", Vec::new()).await;
    silent.accept().await;

    control.start_rotation(None, by()).await.unwrap();
    let both = trust_heard(&mut talk, 2).await;
    assert_eq!((both.roots_der.len(), both.signing_root.as_str()), (2, old_root.as_str()));
    let refused = step_is_refused(&house).await;
    assert!(refused.contains("shop/orders-1") && refused.contains("shop/inventory-1"), "{refused}");
    assert!(waits_for(control, "shop/inventory-1", "does not say which roots it believes: upgrade it"));
    talk.say(standing(2, &leaf_of(&orders), &orders.root)).await;
    house.until("orders to be ready", |control| control.rotation().waiting.len() == 1).await;
    drop(silent);
    drop(old);
    // Away, it still gets in: what the new root signs is certified by the old one too.
    house.until("nobody to be waited for", |control| control.rotation().waiting.is_empty()).await;

    control.advance_rotation(false, by()).await.unwrap();
    let new_root = control.authority().pin();
    assert_ne!(new_root, old_root);
    assert_eq!(trust_heard(&mut talk, 3).await.signing_root, new_root.as_str());
    talk.say(standing(3, &leaf_of(&orders), &orders.root)).await;
    house.until("the old leaf to be seen", |c| waits_for(c, "shop/orders-1", "leads to the old root")).await;
    let renewed = renew(&orders).await.unwrap();
    assert_eq!((renewed.root.as_str(), renewed.trust_generation), (new_root.as_str(), 3));
    let chain: Vec<CertificateDer<'static>> = renewed.chain_der.into_iter().map(CertificateDer::from).collect();
    let asleep = TrustBundle::new(domain(), vec![CertificateDer::from(first.roots_der[0].clone())]).unwrap();
    equerry_certs::tls::prove(&chain, &asleep, SystemTime::now()).expect("believed by who slept through it all");
    talk.say(standing(3, &Leaf::read(&chain[0]).unwrap(), &renewed.root)).await;
    house.until("orders to be through", |control| control.rotation().waiting.len() == 1).await;
    let inventory = "spiffe://equerry.local/ns/shop/sa/inventory";
    assert!(waits_for(control, inventory, "no proxy that is connected shows it"), "{:?}", control.rotation().waiting);
    assert!(step_is_refused(&house).await.contains(inventory));

    control.advance_rotation(true, by()).await.unwrap();
    let only = control.authority().trust();
    assert_eq!((only.phase, only.roots.roots().len(), &only.signing), (Phase::Steady, 1, &new_root));
    // Its connection stands on a certificate of the old root: it comes again with the one it has now.
    house.until("what the old root vouched for to end", |c| c.proxies().iter().all(|proxy| !proxy.connected)).await;
    let log = control.audit_lines(0, 100).await.unwrap().join("\n");
    assert_eq!(log.matches("\"trust.rotate\"").count(), 3, "{log}");
    assert!(log.contains("left behind: spiffe://equerry.local/ns/shop/sa/inventory"), "{log}");
    let ca = std::fs::read_to_string(house.dir.path().join("ca.pem")).unwrap();
    assert_eq!(TrustBundle::from_pem(domain(), &ca).unwrap().pin().unwrap(), new_root);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_outlives_the_process_in_every_phase_and_a_crash_while_the_old_root_goes() {
    let dir = tempfile::tempdir().unwrap();
    let start = async |dir: &std::path::Path| {
        let store = Store::open(&dir.join("equerry.db"), &StoreOptions::default()).unwrap();
        Authority::complete(dir, &trust::read(&store).await.unwrap(), &domain()).unwrap();
        let authority = Authority::open(dir, &domain(), Duration::from_secs(3600), SystemTime::now()).unwrap();
        ControlPlane::restore(store, Arc::new(authority)).await.unwrap()
    };
    let control = start(dir.path()).await;
    let old = control.authority().pin();
    control.start_rotation(None, by()).await.unwrap();
    assert!(control.start_rotation(None, by()).await.unwrap_err().to_string().contains("is under way"));
    drop(control);
    let control = start(dir.path()).await;
    let trust = control.authority().trust();
    assert_eq!((trust.phase, trust.generation, &trust.signing), (Phase::Trusting, 2, &old));
    assert_eq!(trust.roots.roots().len(), 2);
    control.advance_rotation(false, by()).await.unwrap();
    let new = control.authority().pin();
    drop(control);
    let control = start(dir.path()).await;
    assert_eq!((control.authority().trust().phase, control.authority().pin()), (Phase::Issuing, new.clone()));
    assert!(control.cancel_rotation(by()).await.unwrap_err().to_string().contains("signs already"));
    // As after a crash: it is written down that the old root goes, and its files are half replaced.
    let kept = control.authority().rotation_in(KeptPhase::Dropping);
    trust::put_rotation(control.store(), kept, None, SystemTime::now()).await.unwrap();
    std::fs::write(dir.path().join("root.pem"), "half").unwrap();
    drop(control);
    let control = start(dir.path()).await;
    let trust = control.authority().trust();
    assert_eq!((trust.phase, &trust.signing, trust.roots.roots().len()), (Phase::Steady, &new, 1));
    assert!(trust::read(control.store()).await.unwrap().rotation.is_none());
    drop(control);
    assert_eq!(start(dir.path()).await.authority().pin(), new);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_is_given_up_while_the_new_root_has_signed_nothing() {
    let house = house().await;
    let before = house.control.authority().pin();
    house.control.start_rotation(None, by()).await.unwrap();
    house.control.cancel_rotation(by()).await.unwrap();
    let trust = house.control.authority().trust();
    assert_eq!((trust.phase, &trust.signing, trust.generation), (Phase::Steady, &before, 3));
    let none = house.control.advance_rotation(false, by()).await.unwrap_err().to_string();
    assert!(none.contains("rotate start"), "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_identity_gets_nothing_any_more_and_everybody_is_told_so() {
    let house = house().await;
    let control = &house.control;
    let (orders, web) = (house.join("shop/orders").await, house.join("shop/web").await);
    let mut victim = orders.subscribe("orders-1", Vec::new()).await;
    victim.accept().await;
    orders.lease("orders-1").await;
    let mut witness = web.subscribe("web-1", Vec::new()).await;
    trust_heard(&mut witness, 1).await;
    let id = SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/orders").unwrap();
    let (generation, new) = control.revoke_identity(id.clone(), "stolen".into(), by()).await.unwrap();
    assert!(new && generation == 2);
    assert_eq!(trust_heard(&mut witness, 2).await.revoked, [id.to_string()]);
    victim.end().await;
    assert!(control.instances().is_empty(), "nobody is sent to it");
    for refused in [
        renew(&orders).await.unwrap_err(),
        RegistryClient::new(orders.channel.clone()).lease(orders.lease_request("orders-1", 2)).await.unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("was revoked at"), "{refused}");
    }
    assert_eq!(control.revoke_identity(id.clone(), "again".into(), by()).await.unwrap(), (2, false));
    assert!(renew(&web).await.is_ok(), "others are untouched");
    assert_eq!(control.revocations()[0].reason, "stolen");

    assert_eq!(control.restore_identity(&id, by()).await.unwrap(), Some(3));
    assert_eq!(control.restore_identity(&id, by()).await.unwrap(), None);
    assert!(trust_heard(&mut witness, 3).await.revoked.is_empty());
    assert!(renew(&orders).await.is_ok());
    let log = control.audit_lines(0, 100).await.unwrap().join("\n");
    assert!(log.contains("\"identity.revoke\"") && log.contains("stolen") && log.contains("\"identity.restore\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_of_a_revoked_account_lets_nobody_in_and_is_not_used_up() {
    let house = house().await;
    let id = SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/orders").unwrap();
    let token = house.control.create_join_token(id.account_name(), Duration::from_secs(60), by()).await.unwrap();
    house.control.revoke_identity(id.clone(), String::new(), by()).await.unwrap();
    let token = equerry_certs::JoinToken::parse(&token).unwrap();
    let join = async || {
        let stranger = house.channel(equerry_certs::tls::pinned_client_config(token.pin()).unwrap());
        let csr_der = equerry_certs::Request::new().unwrap().csr_der;
        let (join_token, now_unix_ms) = (token.credential().to_string(), unix_ms(SystemTime::now()));
        IdentityClient::new(stranger).sign(proto::SignRequest { csr_der, join_token, now_unix_ms }).await
    };
    assert_eq!(join().await.unwrap_err().code(), Code::PermissionDenied);
    house.control.restore_identity(&id, by()).await.unwrap();
    join().await.unwrap();
}

/// Files of an authority under a root that openssl or anybody else could have made.
fn brought(dir: &std::path::Path) -> BroughtFiles {
    let params = |name: &str| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        params
    };
    let (root_key, key) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    let root = params("Example Root").self_signed(&root_key).unwrap();
    let issuer = rcgen::Issuer::new(params("Example Root"), root_key);
    let issuing = params("Example Issuing").signed_by(&key, &issuer).unwrap();
    let write = |name: &str, text: String| {
        use std::os::unix::fs::PermissionsExt as _;
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    BroughtFiles {
        root: write("their-root.pem", root.pem()),
        issuer: write("issuer.pem", issuing.pem()),
        key: write("issuer.key", key.serialize_pem()),
    }
}

#[test]
fn an_authority_that_was_brought_is_kept_renewed_by_whoever_brought_it_and_never_swapped_for_another() {
    let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let theirs = brought(files.path());
    let (life, now) = (Duration::from_secs(3600), SystemTime::now());
    let open = |files: Option<&BroughtFiles>| {
        Authority::open_brought(dir.path(), &domain(), life, files, &Kept::default(), now)
    };
    let first = open(Some(&theirs)).unwrap();
    assert!(first.trust().anchors[0].brought);
    let root = std::fs::read_to_string(&theirs.root).unwrap();
    assert_eq!(first.pin(), TrustBundle::from_pem(domain(), &root).unwrap().pin().unwrap());
    assert_eq!(open(None).unwrap().pin(), first.pin(), "it is kept, without the files too");
    Authority::probe(dir.path(), now).unwrap();
    let other = tempfile::tempdir().unwrap();
    let refused = open(Some(&brought(other.path()))).unwrap_err().to_string();
    assert!(refused.contains("another root") && refused.contains("equerry certs rotate start --root"), "{refused}");
    let own = tempfile::tempdir().unwrap();
    Authority::open(own.path(), &domain(), life, now).unwrap();
    let opened = Authority::open_brought(own.path(), &domain(), life, Some(&theirs), &Kept::default(), now);
    let refused = opened.unwrap_err().to_string();
    assert!(refused.contains("another root"), "{refused}");
}

#[test]
fn what_is_wrong_with_what_was_brought_is_told_with_the_file() {
    let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let theirs = brought(files.path());
    let open = || {
        let life = Duration::from_secs(3600);
        let opened =
            Authority::open_brought(dir.path(), &domain(), life, Some(&theirs), &Kept::default(), SystemTime::now());
        opened.unwrap_err().to_string()
    };
    let key = std::fs::read_to_string(&theirs.key).unwrap();
    std::fs::write(&theirs.key, key.replace("PRIVATE KEY", "EC PRIVATE KEY")).unwrap();
    let told = open();
    assert!(told.contains("issuer.key") && told.contains("openssl pkcs8"), "{told}");
    std::fs::write(&theirs.key, key).unwrap();
    std::fs::write(&theirs.issuer, std::fs::read_to_string(&theirs.root).unwrap()).unwrap();
    let told = open();
    assert!(told.contains("issuer.pem") && told.contains("it holds the root itself"), "{told}");
    std::fs::remove_file(&theirs.root).unwrap();
    assert!(open().contains("their-root.pem"));
    assert!(!dir.path().join("root.pem").exists(), "nothing was made instead");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_moves_to_a_root_that_is_brought_and_nobody_who_is_away_is_forgotten() {
    let house = house().await;
    let orders = house.join("shop/orders").await;
    let files = tempfile::tempdir().unwrap();
    let theirs = brought(files.path()).read(&domain(), SystemTime::now()).unwrap();
    let pin = Pin::of(theirs.root()).unwrap();
    house.control.start_rotation(Some(theirs), by()).await.unwrap();
    // Nobody here can certify it under the old root: whoever is away now would not get in again.
    let refused = step_is_refused(&house).await;
    assert!(refused.contains("spiffe://equerry.local/ns/shop/sa/orders"), "{refused}");
    house.control.advance_rotation(true, by()).await.unwrap();
    assert_eq!(renew(&orders).await.unwrap().root, pin.as_str());
    house.control.advance_rotation(true, by()).await.unwrap();
    let trust = house.control.authority().trust();
    assert!(trust.signing == pin && trust.anchors[0].brought && trust.phase == Phase::Steady);
    let kept = std::fs::read_to_string(house.dir.path().join("root.key")).unwrap();
    assert!(!kept.contains("PRIVATE KEY"), "the old root's key is gone, and the new one's was never here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_that_was_started_with_a_root_starts_with_it_again_after_moving_on_from_it() {
    let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let theirs = brought(files.path());
    let start = async || {
        let store = Store::open(&dir.path().join("equerry.db"), &StoreOptions::default()).unwrap();
        let (kept, life, now) = (trust::read(&store).await.unwrap(), Duration::from_secs(3600), SystemTime::now());
        Authority::complete(dir.path(), &kept, &domain()).unwrap();
        let authority = Authority::open_brought(dir.path(), &domain(), life, Some(&theirs), &kept, now).unwrap();
        ControlPlane::restore(store, Arc::new(authority)).await.unwrap()
    };
    let control = start().await;
    let old = control.authority().pin();
    control.start_rotation(None, by()).await.unwrap();
    control.advance_rotation(true, by()).await.unwrap();
    control.advance_rotation(true, by()).await.unwrap();
    let new = control.authority().pin();
    assert_ne!(new, old);
    assert_eq!(start().await.authority().pin(), new, "what is brought is passed over");
    // So it is with the files of a root on its way in, and with nobody else's.
    let other = tempfile::tempdir().unwrap();
    let coming = brought(other.path());
    let control = start().await;
    control.start_rotation(Some(coming.read(&domain(), SystemTime::now()).unwrap()), by()).await.unwrap();
    let kept = trust::read(control.store()).await.unwrap();
    let (life, now) = (Duration::from_secs(3600), SystemTime::now());
    let open = |files: &BroughtFiles| Authority::open_brought(dir.path(), &domain(), life, Some(files), &kept, now);
    assert_eq!(open(&coming).unwrap().pin(), new);
    let stranger = tempfile::tempdir().unwrap();
    assert!(open(&brought(stranger.path())).unwrap_err().to_string().contains("another root"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_says_of_its_certificate_is_checked_and_a_lie_does_not_end_a_rotation() {
    let house = house().await;
    let control = &house.control;
    let (orders, liar) = (house.join("shop/orders").await, house.join("shop/orders").await);
    let mut talk = liar.subscribe("orders-2", Vec::new()).await;
    trust_heard(&mut talk, 1).await;
    control.start_rotation(None, by()).await.unwrap();
    control.advance_rotation(true, by()).await.unwrap();
    trust_heard(&mut talk, 3).await;
    let new_root = control.authority().pin().to_string();
    let sibling = "spiffe://equerry.local/ns/shop/sa/orders";
    for (lie, why) in [
        (standing(3, &leaf_of(&orders), &orders.root), "was not issued to whoever showed"),
        (standing(3, &leaf_of(&liar), &new_root), "and it was issued under"),
    ] {
        talk.say(lie).await;
        house.until("the lie to be seen", |control| waits_for(control, "shop/orders-2", why)).await;
        let doubted = control.proxies().into_iter().find_map(|proxy| proxy.standing?.doubt.clone()).unwrap();
        assert!(doubted.contains(why), "and it is shown: {doubted}");
        assert!(waits_for(control, sibling, "no proxy that is connected shows it"), "{:?}", control.rotation().waiting);
        assert!(step_is_refused(&house).await.contains("orders-2"));
    }
    let renewed = renew(&liar).await.unwrap();
    let leaf = Leaf::read(&CertificateDer::from(renewed.chain_der[0].clone())).unwrap();
    talk.say(standing(3, &leaf, &renewed.root)).await;
    house.until("the truth to be believed", |control| !waits_for(control, "shop/orders-2", "")).await;
    assert_eq!(control.rotation().waiting.len(), 1, "the sibling is still away: {:?}", control.rotation().waiting);
}
