//! A control plane on loopback over real TLS, and sidecars as tonic clients, for tests.

use std::time::Instant;

use equerry_certs::tls::{client_config, pinned_client_config};
use equerry_certs::{CertificateDer, Identity, JoinToken};
use equerry_policies::document::{DocumentKey, Kind, read};
use equerry_policies::names::{AccountName, ResourceName, TrustDomain, control_plane_id};
use equerry_wire::proto::config_client::ConfigClient;
use equerry_wire::proto::from_proxy::Message;
use equerry_wire::proto::identity_client::IdentityClient;
use equerry_wire::proto::registry_client::RegistryClient;
use equerry_wire::{ResourceKey, proto};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::audit::By;
use crate::control::{ApplyOptions, EpochState};
use crate::store::{Store, StoreOptions, unix_ms};

const LIFETIME: Duration = Duration::from_secs(3600);
/// Longest wait for something that must happen.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct House {
    pub(super) control: ControlPlane,
    pub(super) address: SocketAddr,
    pub(super) dir: tempfile::TempDir,
}

pub(super) async fn house() -> House {
    house_in(tempfile::tempdir().unwrap(), None).await
}

pub(super) async fn house_in(dir: tempfile::TempDir, max_pages: Option<u32>) -> House {
    let store = Store::open(&dir.path().join("equerry.db"), &StoreOptions { max_pages }).unwrap();
    let authority =
        Authority::open(dir.path(), &TrustDomain::parse("equerry.local").unwrap(), LIFETIME, SystemTime::now())
            .unwrap();
    let control = ControlPlane::restore(store, Arc::new(authority)).await.unwrap();
    let (face, _) = Face::new(control.authority(), &[], SystemTime::now()).unwrap();
    let listener = listen("--grpc", "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve_grpc(control.clone(), Arc::new(face), listener));
    House { control, address, dir }
}

impl House {
    pub(super) async fn apply(&self, text: &str) -> u64 {
        let documents = read("test.yaml", text).unwrap();
        self.control.apply(documents, ApplyOptions::default()).await.unwrap().epoch
    }

    pub(super) async fn delete(&self, kind: Kind, name: &str) -> u64 {
        let key =
            DocumentKey { kind, namespace: Some("shop".parse().unwrap()), name: ResourceName::parse(name).unwrap() };
        self.control.delete(vec![key], ApplyOptions::default()).await.unwrap().epoch
    }

    pub(super) fn channel(&self, config: ClientConfig) -> Channel {
        let (address, config) = (self.address, Arc::new(config));
        let connect = tower::service_fn(move |_: http::Uri| {
            let connector = TlsConnector::from(Arc::clone(&config));
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = ServerName::try_from("control-plane").map_err(io::Error::other)?;
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        });
        Endpoint::from_static("http://control-plane").connect_with_connector_lazy(connect)
    }

    /// Joins as a stranger does: token, pin, Sign.
    pub(super) async fn join(&self, account: &str) -> Sidecar {
        let account = AccountName::parse(account).unwrap();
        let token =
            self.control.create_join_token(account.clone(), Duration::from_secs(60), By::name("test")).await.unwrap();
        let token = JoinToken::parse(&token).unwrap();
        let request = equerry_certs::Request::new().unwrap();
        let stranger = self.channel(pinned_client_config(token.pin()).unwrap());
        let join_token = token.credential().to_string();
        let asked = proto::SignRequest {
            csr_der: request.csr_der.clone(),
            join_token,
            now_unix_ms: unix_ms(SystemTime::now()),
        };
        let signed = IdentityClient::new(stranger).sign(asked).await.unwrap().into_inner();
        let chain = signed.chain_der.into_iter().map(CertificateDer::from).collect();
        let identity = Identity::new(request.key, chain).unwrap();
        let bundle = self.control.authority().bundle();
        let expected = vec![control_plane_id(bundle.trust_domain().clone())];
        let channel = self.channel(client_config(Some(&identity), &bundle, expected, &[ALPN_GRPC]).unwrap());
        Sidecar { channel, account, identity, root: signed.root }
    }

    pub(super) async fn until(&self, what: &str, holds: impl Fn(&ControlPlane) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&self.control) {
            assert!(Instant::now() < deadline, "never happened: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) fn state(&self, epoch: u64) -> Vec<EpochState> {
        self.control.epoch_status(epoch).unwrap().proxies.into_iter().map(|proxy| proxy.state).collect()
    }
}

pub(super) struct Sidecar {
    pub(super) channel: Channel,
    pub(super) account: AccountName,
    pub(super) identity: Identity,
    pub(super) root: String,
}

impl Sidecar {
    pub(super) fn lease_request(&self, id: &str, generation: u64) -> proto::LeaseRequest {
        proto::LeaseRequest {
            instance_id: id.into(),
            generation,
            labels: [("app".to_owned(), self.account.name.to_string())].into_iter().collect(),
            inbound: "127.0.0.1:15006".into(),
            ports: vec![8080],
            healthy: true,
            health_detail: String::new(),
            now_unix_ms: unix_ms(SystemTime::now()),
        }
    }

    pub(super) async fn lease(&self, id: &str) -> Vec<String> {
        let request = self.lease_request(id, 1);
        RegistryClient::new(self.channel.clone()).lease(request).await.unwrap().into_inner().services
    }

    pub(super) async fn subscribe(&self, id: &str, held: Vec<proto::Held>) -> Talk {
        let (messages, stream) = mpsc::channel(16);
        let hello = proto::Hello { instance_id: id.into(), version: "test".into(), epoch: 0, held };
        messages.send(proto::FromProxy { message: Some(Message::Hello(hello)) }).await.unwrap();
        let updates =
            ConfigClient::new(self.channel.clone()).subscribe(ReceiverStream::new(stream)).await.unwrap().into_inner();
        Talk { messages, updates }
    }
}

/// One config stream.
pub(super) struct Talk {
    pub(super) messages: mpsc::Sender<proto::FromProxy>,
    pub(super) updates: Streaming<proto::ToProxy>,
}

impl Talk {
    pub(super) async fn say(&self, message: Message) {
        self.messages.send(proto::FromProxy { message: Some(message) }).await.unwrap();
    }

    pub(super) async fn interest(&self, subscribe: &[ResourceKey], unsubscribe: &[ResourceKey]) {
        let names = |keys: &[ResourceKey]| keys.iter().map(ResourceKey::to_proto).collect();
        self.say(Message::Interest(proto::Interest { subscribe: names(subscribe), unsubscribe: names(unsubscribe) }))
            .await;
    }

    pub(super) async fn hear(&mut self) -> proto::ToProxy {
        tokio::time::timeout(PATIENCE, self.updates.message()).await.unwrap().unwrap().unwrap()
    }

    /// Hears and acknowledges.
    pub(super) async fn accept(&mut self) -> proto::ToProxy {
        let update = self.hear().await;
        self.say(Message::Ack(proto::Ack { nonce: update.nonce })).await;
        update
    }

    pub(super) async fn end(&mut self) -> Status {
        loop {
            match tokio::time::timeout(PATIENCE, self.updates.message()).await.unwrap() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without saying why"),
                Err(status) => return status,
            }
        }
    }
}
