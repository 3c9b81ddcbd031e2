//! The quota stream against a control plane that grants exactly what each test makes it grant.

use equerry_policies::compile;
use equerry_policies::names::{InstanceId, TenantName};
use equerry_policies::policy::{Mesh, MtlsMode, OnControlPlaneLoss, Origin, Quota, Tenant};
use equerry_policies::view::{Scoped, TenantView, WorkloadView};
use equerry_wire::proto::quota_server::{Quota as QuotaService, QuotaServer};
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

use super::*;

struct Talk {
    heard: Streaming<proto::SliceReport>,
    say: UnboundedSender<Result<proto::SliceGrant, Status>>,
}

struct Scripted(UnboundedSender<Talk>);

#[tonic::async_trait]
impl QuotaService for Scripted {
    type SlicesStream = UnboundedReceiverStream<Result<proto::SliceGrant, Status>>;
    async fn slices(
        &self,
        request: Request<Streaming<proto::SliceReport>>,
    ) -> Result<Response<Self::SlicesStream>, Status> {
        let (say, said) = unbounded_channel();
        let _ = self.0.send(Talk { heard: request.into_inner(), say });
        Ok(Response::new(UnboundedReceiverStream::new(said)))
    }
}

impl Talk {
    /// The next report that `fits`.
    async fn report(&mut self, fits: impl Fn(&proto::SliceReport) -> bool) -> proto::SliceReport {
        let next = async {
            loop {
                let report = self.heard.message().await.unwrap().expect("the stream stands");
                if fits(&report) {
                    return report;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), next).await.expect("it is reported in time")
    }

    fn grant(&self, window: u64, granted: u64, give_back: u64) {
        let server_unix_ms = super::super::unix_ms(SystemTime::now());
        let grant =
            proto::SliceGrant { quota: "acme/0".into(), window, granted, give_back, server_unix_ms, exhausted: false };
        self.say.send(Ok(grant)).unwrap();
    }
}

/// A day, so that no test meets the end of a window but at midnight, in UTC.
fn quota(requests: u64) -> Quota {
    Quota { id: "acme/0".into(), services: Vec::new(), requests, window: Duration::from_secs(86_400) }
}

fn configured(quotas: &Quotas, quota: Quota) {
    let tenant = Tenant {
        name: TenantName::parse("acme").unwrap(),
        matches: Vec::new(),
        quotas: Vec::new(),
        on_control_plane_loss: OnControlPlaneLoss::LastShare,
        origin: Origin::default(),
    };
    let view = WorkloadView {
        mesh: Mesh::default(),
        services: Vec::new(),
        peer: MtlsMode::Strict,
        peer_ports: Vec::new(),
        plain_only: false,
        plain_only_ports: Vec::new(),
        tokens: Vec::new(),
        authorization: Vec::new(),
        csrf: vec![],
        trusted_hops: vec![],
        tenants: vec![TenantView { tenant, quotas: vec![Scoped { ports: None, policy: quota }] }],
    };
    quotas.configure(&compile::workload(&view).unwrap());
}

fn spend(quotas: &Quotas, tries: usize) -> usize {
    (0..tries).filter(|_| quotas.admit([&quota(0)], SystemTime::now()).is_ok()).count()
}

async fn begin() -> (Arc<Quotas>, UnboundedReceiver<Talk>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (talking, talks) = unbounded_channel();
    tokio::spawn(async move {
        let service = QuotaServer::new(Scripted(talking));
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
            .unwrap();
    });
    let quotas = Arc::new(Quotas::new(InstanceId::parse("orders-1").unwrap()));
    tokio::spawn(run(Arc::clone(&quotas), Link::plain(address)));
    (quotas, talks)
}

async fn until(what: impl Fn() -> bool) {
    let waiting = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it happens in time");
}

#[tokio::test]
async fn a_slice_is_asked_for_spent_and_asked_for_again_when_half_is_gone() {
    let (quotas, mut talks) = begin().await;
    configured(&quotas, quota(100));
    let mut talk = talks.recv().await.unwrap();
    let first = talk.report(|_| true).await;
    assert_eq!((first.instance_id.as_str(), first.quota.as_str(), first.spent), ("orders-1", "acme/0", 0));
    assert_eq!(spend(&quotas, 3), 0, "nothing is granted yet");

    talk.grant(first.window, 10, 0);
    until(|| spend(&quotas, 1) == 1).await;
    assert_eq!(spend(&quotas, 20), 9);
    let more = talk.report(|report| report.wants_more && report.granted == 10 && report.spent >= 5).await;
    assert!(more.spent <= 10);
}

#[tokio::test]
async fn what_is_asked_back_is_given_back_as_far_as_it_is_unspent() {
    let (quotas, mut talks) = begin().await;
    configured(&quotas, quota(100));
    let mut talk = talks.recv().await.unwrap();
    let window = talk.report(|_| true).await.window;
    talk.grant(window, 10, 0);
    until(|| spend(&quotas, 1) == 1).await;
    talk.grant(window, 10, 50);
    let back = talk.report(|report| report.returned > 0).await;
    assert_eq!((back.returned, back.spent), (9, 1));
    assert_eq!(spend(&quotas, 5), 0);
}

#[tokio::test]
async fn a_change_of_the_quota_forgets_nothing_that_was_spent() {
    let (quotas, mut talks) = begin().await;
    configured(&quotas, quota(100));
    let mut talk = talks.recv().await.unwrap();
    let window = talk.report(|_| true).await.window;
    talk.grant(window, 10, 0);
    until(|| spend(&quotas, 1) == 1).await;
    assert_eq!(spend(&quotas, 5), 5);
    configured(&quotas, quota(200));
    assert_eq!(spend(&quotas, 20), 4);
}

#[tokio::test]
async fn when_the_stream_ends_its_share_still_holds_and_the_stream_is_made_again() {
    let (quotas, mut talks) = begin().await;
    configured(&quotas, quota(100));
    let mut talk = talks.recv().await.unwrap();
    let window = talk.report(|_| true).await.window;
    talk.grant(window, 10, 0);
    until(|| spend(&quotas, 1) == 1).await;
    assert_eq!(quotas.shares(), [("acme/0".to_owned(), 10)]);
    talk.say.send(Err(Status::unavailable("the control plane restarts"))).unwrap();
    drop(talk);
    let mut again = tokio::time::timeout(Duration::from_secs(10), talks.recv()).await.unwrap().unwrap();
    let report = again.report(|_| true).await;
    assert_eq!((report.granted, report.spent), (10, 1), "totals of the window are told again");
    assert_eq!(spend(&quotas, 20), 9);
}
