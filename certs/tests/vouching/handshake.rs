//! Real rustls handshakes over buffers: who gets through, who does not, and what each side is told.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use equerry_certs::tls::{self, ALPN_GRPC, ALPN_H1, ALPN_H2, ClientAuth, TicketWatch};
use equerry_certs::{Authority, HostName, Identity, JoinToken, PeerFault, Request, TrustBundle, rfc3339};
use equerry_policies::names::{SpiffeId, control_plane_id};
use rustls::time_provider::TimeProvider;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Error, HandshakeKind, ProtocolVersion, ServerConfig,
    ServerConnection,
};
use rustls_pki_types::{ServerName, UnixTime};

use crate::made::{DAY, Forge, authority, bundle, id, identity, now, uri};

const ORDERS: &str = "spiffe://equerry.local/ns/shop/sa/orders";
const WEB: &str = "spiffe://equerry.local/ns/shop/sa/web";

#[derive(Debug)]
struct Fixed(SystemTime);

impl TimeProvider for Fixed {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

pub(crate) fn server(identity: &Identity, bundle: &TrustBundle, auth: ClientAuth) -> Arc<ServerConfig> {
    let mut config = tls::server_config(identity, bundle, auth, &[ALPN_H2, ALPN_H1]).unwrap();
    config.time_provider = Arc::new(Fixed(now()));
    Arc::new(config)
}

pub(crate) fn client(identity: Option<&Identity>, bundle: &TrustBundle, expected: &[&str]) -> ClientConfig {
    let expected = expected.iter().map(|text| id(text)).collect();
    let mut config = tls::client_config(identity, bundle, expected, &[ALPN_H1]).unwrap();
    config.time_provider = Arc::new(Fixed(now()));
    config
}

/// Both ends after everything each had to say has been read by the other.
pub(crate) struct Met {
    pub(crate) client: ClientConnection,
    pub(crate) server: ServerConnection,
    client_error: Option<Error>,
    server_error: Option<Error>,
}

pub(crate) fn meet(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Met {
    let name = ServerName::try_from("p8080.orders.shop.mesh").unwrap();
    let mut met = Met {
        client: ClientConnection::new(client, name).unwrap(),
        server: ServerConnection::new(server).unwrap(),
        client_error: None,
        server_error: None,
    };
    loop {
        let mut moved = 0;
        let mut wire = Vec::new();
        moved += met.client.write_tls(&mut wire).unwrap();
        if !wire.is_empty() && met.server_error.is_none() {
            met.server.read_tls(&mut wire.as_slice()).unwrap();
            met.server_error = met.server.process_new_packets().err();
        }
        let mut wire = Vec::new();
        moved += met.server.write_tls(&mut wire).unwrap();
        if !wire.is_empty() && met.client_error.is_none() {
            met.client.read_tls(&mut wire.as_slice()).unwrap();
            met.client_error = met.client.process_new_packets().err();
        }
        if moved == 0 {
            return met;
        }
    }
}

impl Met {
    pub(crate) fn well(self) -> Self {
        assert_eq!((&self.client_error, &self.server_error), (&None, &None));
        assert!(!self.client.is_handshaking() && !self.server.is_handshaking());
        self
    }

    pub(crate) fn client_fault(&self) -> &PeerFault {
        tls::fault_of(self.client_error.as_ref().expect("the client refused")).expect("for a reason of ours")
    }

    pub(crate) fn server_fault(&self) -> &PeerFault {
        tls::fault_of(self.server_error.as_ref().expect("the server refused")).expect("for a reason of ours")
    }
}

#[test]
fn two_workloads_meet_and_know_each_other() {
    let authority = authority("equerry.local");
    let bundle = bundle(&authority);
    let (orders, web) = (identity(&authority, ORDERS), identity(&authority, WEB));
    let met =
        meet(Arc::new(client(Some(&web), &bundle, &[ORDERS])), server(&orders, &bundle, ClientAuth::Required)).well();
    assert_eq!(tls::peer(met.client.peer_certificates(), now()).unwrap().id, id(ORDERS));
    assert_eq!(tls::peer(met.server.peer_certificates(), now()).unwrap().id, id(WEB));
    assert_eq!(met.client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(met.client.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(met.client.alpn_protocol(), Some(ALPN_H1));
}

#[test]
fn any_of_the_expected_identities_may_answer() {
    let authority = authority("equerry.local");
    let (orders, web) = (identity(&authority, ORDERS), identity(&authority, WEB));
    let expected = ["spiffe://equerry.local/ns/shop/sa/orders-v2", ORDERS];
    meet(
        Arc::new(client(Some(&web), &bundle(&authority), &expected)),
        server(&orders, &bundle(&authority), ClientAuth::Required),
    )
    .well();
}

#[test]
fn somebody_else_than_expected_is_an_identity_mismatch() {
    let authority = authority("equerry.local");
    let (orders, web) = (identity(&authority, ORDERS), identity(&authority, WEB));
    let inventory = "spiffe://equerry.local/ns/shop/sa/inventory";
    let met = meet(
        Arc::new(client(Some(&web), &bundle(&authority), &[inventory])),
        server(&orders, &bundle(&authority), ClientAuth::Required),
    );
    assert_eq!(met.client_fault(), &PeerFault::OtherIdentity { found: id(ORDERS), expected: vec![id(inventory)] });
    assert!(tls::is_identity_mismatch(met.client_error.as_ref().unwrap()));
    assert!(met.client_fault().to_string().contains(ORDERS) && met.client_fault().to_string().contains(inventory));
}

#[test]
fn a_stranger_without_a_certificate_is_refused_where_one_is_required() {
    let authority = authority("equerry.local");
    let orders = identity(&authority, ORDERS);
    let met = meet(
        Arc::new(client(None, &bundle(&authority), &[ORDERS])),
        server(&orders, &bundle(&authority), ClientAuth::Required),
    );
    assert_eq!(met.server_error, Some(Error::NoCertificatesPresented));
    assert_eq!(met.client_error, Some(Error::AlertReceived(AlertDescription::CertificateRequired)));
}

#[test]
fn a_newcomer_without_a_certificate_is_let_in_where_one_is_optional_but_is_nobody() {
    let authority = authority("equerry.local");
    let orders = identity(&authority, ORDERS);
    let met = meet(
        Arc::new(client(None, &bundle(&authority), &[ORDERS])),
        server(&orders, &bundle(&authority), ClientAuth::Optional),
    )
    .well();
    assert_eq!(tls::peer(met.server.peer_certificates(), now()), Err(PeerFault::NoCertificate));
}

#[test]
fn a_client_of_another_trust_domain_is_refused_even_where_a_certificate_is_optional() {
    let (ours, theirs) = (authority("equerry.local"), authority("other.example"));
    let stranger = identity(&theirs, "spiffe://other.example/ns/shop/sa/web");
    let impostor = identity(&authority("equerry.local"), WEB);
    for auth in [ClientAuth::Required, ClientAuth::Optional] {
        for bad in [&stranger, &impostor] {
            let met = meet(
                Arc::new(client(Some(bad), &bundle(&ours), &[ORDERS])),
                server(&identity(&ours, ORDERS), &bundle(&ours), auth),
            );
            assert!(matches!(met.server_fault(), PeerFault::UnknownSigner { .. }), "{:?}", met.server_error);
            assert!(matches!(met.client_error, Some(Error::AlertReceived(_))), "{:?}", met.client_error);
        }
    }
}

#[test]
fn a_name_of_another_trust_domain_under_our_own_root_is_refused_by_both_sides() {
    let forge = Forge::new();
    let (leaf, key) = forge.leaf(|p| p.subject_alt_names = vec![uri("spiffe://other.example/ns/shop/sa/orders")]);
    let stranger = Identity::new(key, vec![leaf]).unwrap();
    let (leaf, key) = forge.leaf(|_| ());
    let ours = Identity::new(key, vec![leaf]).unwrap();
    let bundle = forge.bundle("equerry.local");
    let met = meet(Arc::new(client(Some(&stranger), &bundle, &[ORDERS])), server(&ours, &bundle, ClientAuth::Required));
    assert!(matches!(met.server_fault(), PeerFault::OtherTrustDomain { .. }));
    let met = meet(Arc::new(client(Some(&ours), &bundle, &[ORDERS])), server(&stranger, &bundle, ClientAuth::Required));
    assert!(matches!(met.client_fault(), PeerFault::OtherTrustDomain { .. }));
}

#[test]
fn malformed_certificates_are_refused_by_both_sides() {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
    type Spoil = fn(&mut CertificateParams);
    let forge = Forge::new();
    let bundle = forge.bundle("equerry.local");
    let (leaf, key) = forge.leaf(|_| ());
    let sound = Identity::new(key, vec![leaf]).unwrap();
    let spoiled: [(&str, Spoil); 8] = [
        ("two URIs", |p| p.subject_alt_names.push(uri(WEB))),
        ("no URI", |p| p.subject_alt_names = vec![rcgen::SanType::DnsName("orders".try_into().unwrap())]),
        ("a signer", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        ("a signer by key usage", |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        ("for servers only", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
        ("for clients only", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
        ("expired", |p| p.not_after = (now() - Duration::from_secs(1)).into()),
        ("not valid yet", |p| p.not_before = (now() + Duration::from_secs(1)).into()),
    ];
    for (what, spoil) in spoiled {
        let (leaf, key) = forge.leaf(spoil);
        let as_client = raw_client(&leaf, &key, &bundle);
        let met = meet(as_client, server(&sound, &bundle, ClientAuth::Required));
        let _ = met.server_fault();
        let met = meet(Arc::new(client(Some(&sound), &bundle, &[ORDERS])), raw_server(&leaf, &key));
        assert!(!tls::is_identity_mismatch(met.client_error.as_ref().unwrap()), "{what}");
        let _ = met.client_fault();
    }
}

/// A client that shows any certificate, with rustls alone: what a peer that is not Equerry could do.
fn raw_client(leaf: &equerry_certs::CertificateDer<'static>, key: &[u8], bundle: &TrustBundle) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(bundle.roots()[0].clone()).unwrap();
    let believes_all = client(None, bundle, &[ORDERS]);
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![leaf.clone()], rustls_pki_types::PrivatePkcs8KeyDer::from(key.to_vec()).into())
        .unwrap();
    config.time_provider = believes_all.time_provider.clone();
    config.dangerous().set_certificate_verifier(Arc::new(Anyone));
    Arc::new(config)
}

fn raw_server(leaf: &equerry_certs::CertificateDer<'static>, key: &[u8]) -> Arc<ServerConfig> {
    let config = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.clone()], rustls_pki_types::PrivatePkcs8KeyDer::from(key.to_vec()).into())
        .unwrap();
    Arc::new(config)
}

#[derive(Debug)]
struct Anyone;

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &equerry_certs::CertificateDer<'_>,
        _: &[equerry_certs::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &equerry_certs::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &equerry_certs::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

#[test]
fn a_wrong_clock_is_told_with_both_times() {
    let authority = authority("equerry.local");
    let (orders, web) = (identity(&authority, ORDERS), identity(&authority, WEB));
    let early = now() - Duration::from_secs(3600);
    let mut behind = client(Some(&web), &bundle(&authority), &[ORDERS]);
    behind.time_provider = Arc::new(Fixed(early));
    let met = meet(Arc::new(behind), server(&orders, &bundle(&authority), ClientAuth::Required));
    let told = met.client_fault().to_string();
    assert!(told.contains(&rfc3339(early)) && told.contains(&rfc3339(orders.not_before())), "{told}");
}

fn control_plane(authority: &Authority) -> Identity {
    let request = Request::new().unwrap();
    let names = [HostName::parse("localhost").unwrap()];
    let own = control_plane_id(authority.trust_domain().clone());
    let issued = authority.issue_server(&request.csr_der, &own, &names, DAY, now()).unwrap();
    Identity::new(request.key, issued.chain).unwrap()
}

fn pinned(authority: &Authority) -> (ClientConfig, JoinToken) {
    let token = JoinToken::create(bundle(authority).pin().unwrap()).unwrap();
    let mut config = tls::pinned_client_config(token.pin()).unwrap();
    config.time_provider = Arc::new(Fixed(now()));
    config.alpn_protocols.clear();
    (config, token)
}

#[test]
fn a_newcomer_learns_the_mesh_from_the_pinned_root() {
    let authority = authority("equerry.local");
    let (config, token) = pinned(&authority);
    let met =
        meet(Arc::new(config), server(&control_plane(&authority), &bundle(&authority), ClientAuth::Optional)).well();
    assert_eq!(tls::learned(met.client.peer_certificates().unwrap(), token.pin()).unwrap(), bundle(&authority));
}

#[test]
fn another_control_plane_does_not_pass_the_pin() {
    let (ours, theirs) = (authority("equerry.local"), authority("equerry.local"));
    let (config, token) = pinned(&ours);
    let met = meet(Arc::new(config), server(&control_plane(&theirs), &bundle(&theirs), ClientAuth::Optional));
    assert!(matches!(met.client_fault(), PeerFault::OtherPin { .. }), "{:?}", met.client_error);
    assert!(met.client_fault().to_string().contains("nothing was sent"));
    assert!(tls::learned(&[], token.pin()).is_err());
}

#[test]
fn showing_the_pinned_root_is_not_enough_it_must_have_signed() {
    let (ours, theirs) = (authority("equerry.local"), authority("equerry.local"));
    let (config, _) = pinned(&ours);
    let forged = control_plane(&theirs);
    let mut shown = tls::server_config(&forged, &bundle(&ours), ClientAuth::Optional, &[]).unwrap();
    shown.time_provider = Arc::new(Fixed(now()));
    let met = meet(Arc::new(config), Arc::new(shown));
    assert!(matches!(met.client_fault(), PeerFault::UnknownSigner { .. }), "{:?}", met.client_error);
}

#[test]
fn a_workload_cannot_play_control_plane_to_a_newcomer() {
    let authority = authority("equerry.local");
    let (config, _) = pinned(&authority);
    let met = meet(Arc::new(config), server(&identity(&authority, ORDERS), &bundle(&authority), ClientAuth::Optional));
    assert!(matches!(met.client_fault(), PeerFault::OtherIdentity { found, .. } if *found == id(ORDERS)));
}

#[test]
fn people_reach_the_admin_api_by_host_name() {
    let authority = authority("equerry.local");
    let ca = bundle(&authority);
    let mut config = tls::https_client_config(ca.roots(), &[]).unwrap();
    config.time_provider = Arc::new(Fixed(now()));
    let config = Arc::new(config);
    let served =
        tls::server_config(&control_plane(&authority), &ca, ClientAuth::None, &[ALPN_GRPC]).map(Arc::new).unwrap();
    let try_name = |name: &'static str| {
        let mut client = ClientConnection::new(config.clone(), ServerName::try_from(name).unwrap()).unwrap();
        let mut server = ServerConnection::new(served.clone()).unwrap();
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets().unwrap();
        let mut wire = Vec::new();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets().map(drop)
    };
    assert_eq!(try_name("localhost"), Ok(()));
    assert!(matches!(try_name("elsewhere.example"), Err(Error::InvalidCertificate(_))));
}

#[test]
fn the_ticket_tells_one_connection_that_its_client_was_accepted() {
    let authority = authority("equerry.local");
    let (orders, web) = (identity(&authority, ORDERS), identity(&authority, WEB));
    let shared = client(Some(&web), &bundle(&authority), &[ORDERS]);
    let sessions = TicketWatch::sessions(64);
    let (served, mut context) =
        (server(&orders, &bundle(&authority), ClientAuth::Required), Context::from_waker(Waker::noop()));
    let (first, first_watch) = TicketWatch::on(&shared, &sessions);
    let (second, second_watch) = TicketWatch::on(&shared, &sessions);
    assert!(second_watch.poll_arrived(&mut context).is_pending());
    let met = meet(first, served.clone()).well();
    assert_eq!(met.client.handshake_kind(), Some(HandshakeKind::Full));
    assert!(first_watch.arrived() && !second_watch.arrived());
    let met = meet(second, served).well();
    assert_eq!(met.client.handshake_kind(), Some(HandshakeKind::Resumed), "the store is shared");
    assert_eq!(second_watch.poll_arrived(&mut context), Poll::Ready(()));
    assert_eq!(tls::peer(met.server.peer_certificates(), now()).unwrap().id, id(WEB));
}

#[test]
fn no_ticket_arrives_when_the_client_is_refused() {
    let (ours, theirs) = (authority("equerry.local"), authority("equerry.local"));
    let impostor = identity(&theirs, WEB);
    let (config, watch) =
        TicketWatch::on(&client(Some(&impostor), &bundle(&ours), &[ORDERS]), &TicketWatch::sessions(64));
    let met = meet(config, server(&identity(&ours, ORDERS), &bundle(&ours), ClientAuth::Required));
    assert!(met.server_error.is_some() && !watch.arrived());
}

#[test]
fn a_session_does_not_outlive_a_change_of_trust_or_expectation() {
    let authority = authority("equerry.local");
    let (orders, web) = (identity(&authority, ORDERS), identity(&authority, WEB));
    let sessions = TicketWatch::sessions(64);
    let old = client(Some(&web), &bundle(&authority), &[ORDERS]);
    let served = server(&orders, &bundle(&authority), ClientAuth::Required);
    meet(TicketWatch::on(&old, &sessions).0, served.clone()).well();
    let expects_another: [SpiffeId; 1] = [id("spiffe://equerry.local/ns/shop/sa/inventory")];
    let new = client(Some(&web), &bundle(&authority), &[&expects_another[0].to_string()]);
    let met = meet(TicketWatch::on(&new, &sessions).0, served.clone());
    assert!(tls::is_identity_mismatch(met.client_error.as_ref().expect("verified anew, not resumed")));
    meet(TicketWatch::on(&old, &sessions).0, served).well();
    let changed = server(&orders, &bundle(&authority), ClientAuth::Required);
    let met = meet(TicketWatch::on(&old, &sessions).0, changed).well();
    assert_eq!(
        met.client.handshake_kind(),
        Some(HandshakeKind::Full),
        "a new server configuration knows no old ticket"
    );
}

#[test]
fn a_resumed_session_of_an_expired_certificate_is_found_out() {
    let authority = authority("equerry.local");
    let (orders, web) = (identity(&authority, ORDERS), identity(&authority, WEB));
    let (config, _) = TicketWatch::on(&client(Some(&web), &bundle(&authority), &[ORDERS]), &TicketWatch::sessions(64));
    let met = meet(config, server(&orders, &bundle(&authority), ClientAuth::Required)).well();
    let late = web.not_after() + Duration::from_secs(1);
    assert!(matches!(tls::peer(met.server.peer_certificates(), late), Err(PeerFault::Clock { .. })));
}

#[test]
fn expecting_nobody_is_refused_before_connecting() {
    let authority = authority("equerry.local");
    let made = tls::client_config(None, &bundle(&authority), Vec::new(), &[]);
    assert!(matches!(made, Err(tls::TlsFault::NobodyExpected)));
}
