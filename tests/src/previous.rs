//! A hop between proxies and their control plane that speaks the protocol of version 0.1.0 and no later one: whatever is newer
//! is lost on it, in both directions. To each side, the other is of that version.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use equerry::demo::town::Town;
use equerry_certs::tls::{self, ALPN_GRPC, ClientAuth, client_config, server_config};
use equerry_certs::{Identity, Request as CertificateRequest};
use equerry_control_plane::authority::Authority;
use equerry_policies::names::{SpiffeId, TrustDomain, control_plane_id};
use futures_util::StreamExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::grpc;

/// The protocol of then.
pub mod proto {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        reason = "generated: the comments are those of the .proto file"
    )]
    include!(concat!(env!("OUT_DIR"), "/equerry.v1.rs"));
}

use proto::config_client::ConfigClient;
use proto::config_server::{Config, ConfigServer};
use proto::identity_client::IdentityClient;
use proto::identity_server::{Identity as Sign, IdentityServer};
use proto::quota_client::QuotaClient;
use proto::quota_server::{Quota, QuotaServer};
use proto::registry_client::RegistryClient;
use proto::registry_server::{Registry, RegistryServer};

/// The certificates of the hop live longer than any test.
const LIFE: Duration = Duration::from_secs(3600);

/// Listens until dropped.
#[derive(Debug)]
pub struct Previous {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Previous {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Previous {
    /// A hop before the town's control plane, which must have been started: it shows itself as that control plane, and there as
    /// whoever calls.
    ///
    /// # Errors
    /// When the authority cannot be read, or no port be had.
    pub async fn before(town: &Town) -> Result<Self> {
        let trust_domain = TrustDomain::parse("equerry.local").context("the demo's trust domain")?;
        let authority = Authority::open(&town.control_plane_state(), &trust_domain, LIFE, SystemTime::now())?;
        let shown = authority.server_identity(&[], SystemTime::now())?;
        let server = server_config(&shown, &authority.bundle(), ClientAuth::Optional, &[ALPN_GRPC])?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (acceptor, control_plane) = (TlsAcceptor::from(Arc::new(server)), town.grpc.address());
        let authority = Arc::new(authority);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, authority, to) = (acceptor.clone(), Arc::clone(&authority), control_plane.clone());
                tokio::spawn(async move {
                    if let Err(error) = attend(stream, &acceptor, &authority, to).await {
                        eprintln!("the hop: {error:#}");
                    }
                });
            }
        });
        Ok(Self { address, task })
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.address.to_string()
    }
}

/// One connection, and the one behind it.
async fn attend(stream: TcpStream, acceptor: &TlsAcceptor, authority: &Authority, to: String) -> Result<()> {
    let stream = acceptor.accept(stream).await?;
    let caller = tls::peer(stream.get_ref().1.peer_certificates(), SystemTime::now()).ok().map(|leaf| leaf.id);
    let behind = connect(authority, caller.as_ref(), to).await?;
    let hop = Hop { behind };
    let routes = Routes::new(IdentityServer::new(hop.clone()))
        .add_service(ConfigServer::new(hop.clone()))
        .add_service(RegistryServer::new(hop.clone()))
        .add_service(QuotaServer::new(hop))
        .prepare();
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    // A proxy that leaves is its own business.
    let _ = served.await;
    Ok(())
}

async fn connect(authority: &Authority, caller: Option<&SpiffeId>, to: String) -> Result<Channel> {
    let identity = caller.map(|id| -> Result<Identity> {
        let request = CertificateRequest::new()?;
        let issued = authority.sign(&request.csr_der, id, SystemTime::now())?;
        Ok(Identity::new(request.key, issued.chain)?)
    });
    let expected = vec![control_plane_id(authority.trust_domain().clone())];
    let config = client_config(identity.transpose()?.as_ref(), &authority.bundle(), expected, &[ALPN_GRPC])?;
    grpc::channel(to, config).await
}

/// Hands everything on, in the messages of then.
#[derive(Debug, Clone)]
struct Hop {
    behind: Channel,
}

#[tonic::async_trait]
impl Sign for Hop {
    async fn sign(&self, asked: Request<proto::SignRequest>) -> Result<Response<proto::SignResponse>, Status> {
        IdentityClient::new(self.behind.clone()).sign(asked.into_inner()).await
    }
}

#[tonic::async_trait]
impl Registry for Hop {
    async fn lease(&self, asked: Request<proto::LeaseRequest>) -> Result<Response<proto::LeaseResponse>, Status> {
        RegistryClient::new(self.behind.clone()).lease(asked.into_inner()).await
    }

    async fn release(&self, asked: Request<proto::ReleaseRequest>) -> Result<Response<proto::ReleaseResponse>, Status> {
        RegistryClient::new(self.behind.clone()).release(asked.into_inner()).await
    }
}

#[tonic::async_trait]
impl Config for Hop {
    type SubscribeStream = Streaming<proto::ToProxy>;

    async fn subscribe(
        &self,
        said: Request<Streaming<proto::FromProxy>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let said = said.into_inner().filter_map(|one| std::future::ready(one.ok()));
        ConfigClient::new(self.behind.clone()).subscribe(said).await
    }
}

#[tonic::async_trait]
impl Quota for Hop {
    type SlicesStream = Streaming<proto::SliceGrant>;

    async fn slices(
        &self,
        said: Request<Streaming<proto::SliceReport>>,
    ) -> Result<Response<Self::SlicesStream>, Status> {
        let said = said.into_inner().filter_map(|one| std::future::ready(one.ok()));
        QuotaClient::new(self.behind.clone()).slices(said).await
    }
}
