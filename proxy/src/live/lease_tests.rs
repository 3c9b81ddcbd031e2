//! The lease against a registry that answers exactly what each test makes it answer.

use std::sync::{Arc, Mutex};

use equerry_policies::names::SpiffeId;
use equerry_wire::proto::registry_server::{Registry, RegistryServer};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response};

use super::super::{IdentityHandle, Live, LiveHandle};
use super::*;
use crate::drain::Drain;

#[derive(Debug, PartialEq)]
enum Heard {
    Beat(proto::LeaseRequest),
    Released(proto::ReleaseRequest),
}

struct Scripted {
    heard: UnboundedSender<Heard>,
    refusal: Arc<Mutex<Option<&'static str>>>,
}

#[tonic::async_trait]
impl Registry for Scripted {
    async fn lease(
        &self,
        request: Request<proto::LeaseRequest>,
    ) -> Result<Response<proto::LeaseResponse>, tonic::Status> {
        self.heard.send(Heard::Beat(request.into_inner())).unwrap();
        match *self.refusal.lock().unwrap() {
            Some(why) => Err(tonic::Status::permission_denied(why)),
            None => Ok(Response::new(proto::LeaseResponse {
                lease_ms: 60_000,
                beat_ms: 60_000,
                services: vec!["shop/orders".into()],
            })),
        }
    }

    async fn release(
        &self,
        request: Request<proto::ReleaseRequest>,
    ) -> Result<Response<proto::ReleaseResponse>, tonic::Status> {
        self.heard.send(Heard::Released(request.into_inner())).unwrap();
        Ok(Response::new(proto::ReleaseResponse {}))
    }
}

struct World {
    heard: UnboundedReceiver<Heard>,
    refusal: Arc<Mutex<Option<&'static str>>>,
    verdict: watch::Sender<Health>,
    status: Status,
    drain: Drain,
    held: tokio::task::JoinHandle<()>,
}

/// A lease that is held for an instance whose sidecar can serve.
async fn begin(refusal: Option<&'static str>) -> World {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (hears, heard) = unbounded_channel();
    let refusal = Arc::new(Mutex::new(refusal));
    let service = RegistryServer::new(Scripted { heard: hears, refusal: Arc::clone(&refusal) });
    tokio::spawn(
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)),
    );

    let own = SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/orders").unwrap();
    let workload = super::super::subscribe::tests::compiled_workload();
    let (live, _wants) = LiveHandle::new(Live { workload: Some(workload), ..Live::nothing(own) });
    let (status, drain) = (Status::default(), Drain::new());
    status.started(live, IdentityHandle::default(), drain.clone());
    let lease = Lease {
        request: proto::LeaseRequest {
            instance_id: "orders-1".into(),
            generation: 7,
            ports: vec![8080],
            ..Default::default()
        },
    };
    let verdict = super::super::health::unknown();
    let held = tokio::spawn(lease.hold(Link::plain(address), verdict.subscribe(), status.clone(), drain.clone()));
    World { heard, refusal, verdict, status, drain, held }
}

impl World {
    async fn beat(&mut self) -> proto::LeaseRequest {
        match tokio::time::timeout(Duration::from_secs(10), self.heard.recv()).await.expect("a beat in time").unwrap() {
            Heard::Beat(beat) => beat,
            other @ Heard::Released(_) => panic!("expected a beat, heard {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_change_of_health_is_told_at_once_with_its_reason() {
    let mut world = begin(None).await;
    let first = world.beat().await;
    assert!(!first.healthy && first.health_detail.contains("not been probed"), "{first:?}");
    world.verdict.send_replace(Health { healthy: true, detail: String::new() });
    assert!(world.beat().await.healthy, "long before the next beat is due");
    world.verdict.send_replace(Health { healthy: false, detail: "GET /healthz: status 503".into() });
    let sick = world.beat().await;
    assert!(!sick.healthy && sick.health_detail == "GET /healthz: status 503");
}

#[tokio::test]
async fn a_draining_instance_gives_its_lease_back() {
    let mut world = begin(None).await;
    world.beat().await;
    world.drain.begin();
    world.held.await.unwrap();
    let released = proto::ReleaseRequest { instance_id: "orders-1".into(), generation: 7 };
    assert_eq!(world.heard.recv().await, Some(Heard::Released(released)));
}

#[tokio::test]
async fn a_refusal_is_shown_in_the_words_of_the_control_plane_until_it_is_over() {
    let mut world = begin(Some("Service shop/orders does not list account shop/stranger")).await;
    world.beat().await;
    let shown = |status: &Status, wanted: bool| {
        let status = status.clone();
        async move {
            let told = async {
                while status.missing().iter().any(|line| line.contains("does not list account shop/stranger")) != wanted
                {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), told).await.expect("it is told in time");
        }
    };
    shown(&world.status, true).await;
    *world.refusal.lock().unwrap() = None;
    shown(&world.status, false).await;
}
