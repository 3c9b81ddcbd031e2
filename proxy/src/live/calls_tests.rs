//! What is told of calls, against a control plane that wishes exactly what each test makes it wish.

use equerry_traffic::Reason;
use equerry_wire::proto::calls_server::{Calls as CallsService, CallsServer};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::observe::tests::an_exchange;
use crate::observe::{AccessLogTarget, Exchange, ObserverOptions, SERIES_CAP};

struct Talk {
    heard: Streaming<proto::CallReport>,
    wish: UnboundedSender<Result<proto::CallWish, Status>>,
}

struct Scripted(UnboundedSender<Talk>);

#[tonic::async_trait]
impl CallsService for Scripted {
    type ReportStream = UnboundedReceiverStream<Result<proto::CallWish, Status>>;
    async fn report(
        &self,
        request: Request<Streaming<proto::CallReport>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let (wish, wishes) = unbounded_channel();
        let _ = self.0.send(Talk { heard: request.into_inner(), wish });
        Ok(Response::new(UnboundedReceiverStream::new(wishes)))
    }
}

impl Talk {
    /// The next report that `fits`.
    async fn report(&mut self, fits: impl Fn(&proto::CallReport) -> bool) -> proto::CallReport {
        let next = async {
            loop {
                let report = self.heard.message().await.unwrap().expect("the stream stands");
                if fits(&report) {
                    return report;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), next).await.expect("it is told in time")
    }

    fn wish(&self, wish: proto::CallWish) {
        self.wish.send(Ok(wish)).unwrap();
    }
}

async fn sidecar() -> (Observer, UnboundedReceiver<Talk>) {
    let observe = Observer::new(ObserverOptions { access_log: AccessLogTarget::Off, series_cap: SERIES_CAP }).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (talks, told) = unbounded_channel();
    let serving = tonic::transport::Server::builder().add_service(CallsServer::new(Scripted(talks)));
    tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
    let instance = InstanceId::parse("frontend-1").unwrap();
    tokio::spawn(run(instance, observe.clone(), Link::plain(address)));
    (observe, told)
}

fn ended(reason: Reason, status: u16) -> Exchange {
    Exchange { reason, status, duration: Duration::from_millis(3), ..an_exchange() }
}

#[tokio::test]
async fn counts_are_told_as_totals_that_agree_with_the_metrics_and_only_when_they_change() {
    let (observe, mut talks) = sidecar().await;
    for _ in 0..3 {
        observe.finished(Box::new(Some(ended(Reason::Ok, 200))));
    }
    observe.finished(Box::new(Some(ended(Reason::BreakerOpen, 503))));
    observe.finished(Box::new(Some(Exchange {
        tunnel: true,
        status: 0,
        bytes_in: 10,
        bytes_out: 20,
        ..an_exchange()
    })));
    let mut talk = talks.recv().await.unwrap();
    let report = talk.report(|report| !report.counts.is_empty()).await;
    assert_eq!((report.instance_id.as_str(), report.counts.len()), ("frontend-1", 1));
    let count = &report.counts[0];
    assert_eq!(
        (count.outbound, count.source.as_str(), count.destination.as_str()),
        (true, "shop/frontend", "shop/orders")
    );
    let ends: Vec<_> =
        count.ends.iter().map(|end| (end.status, end.reason.as_str(), end.tcp, end.failed, end.count)).collect();
    let expected = [(0, "ok", true, false, 1), (200, "ok", false, false, 3), (503, "breaker_open", false, true, 1)];
    assert_eq!(ends, expected);
    assert_eq!(
        (count.took.len(), count.took[3]),
        (equerry_wire::limits::CALL_BOUNDS_MS.len() + 1, 4),
        "3 ms is in 2.5 to 5: {count:?}"
    );
    assert_eq!((count.bytes_in, count.bytes_out), (10, 20));
    let quiet = talk.report(|report| report.answer.is_none()).await;
    assert!(quiet.counts.is_empty(), "nothing changed: {quiet:?}");
    observe.finished(Box::new(Some(ended(Reason::Ok, 200))));
    let more = talk.report(|report| !report.counts.is_empty()).await;
    assert_eq!(more.counts[0].ends[1].count, 4, "a running total");
}

#[tokio::test]
async fn single_calls_are_told_to_who_follows_and_a_question_is_answered_from_what_was_kept() {
    let (observe, mut talks) = sidecar().await;
    let mut talk = talks.recv().await.unwrap();
    observe.finished(Box::new(Some(ended(Reason::Quota, 429))));
    talk.wish(proto::CallWish {
        questions: vec![proto::CallQuestion {
            id: 7,
            limit: 10,
            filter: Some(proto::CallFilter { failed: true, ..Default::default() }),
        }],
        ..Default::default()
    });
    let answer = talk.report(|report| report.answer.is_some()).await.answer.unwrap();
    assert_eq!((answer.question, answer.samples.len(), answer.samples[0].reason.as_str()), (7, 1, "quota"));

    let follow = proto::CallFollow { id: 9, per_second: 100, filter: None };
    talk.wish(proto::CallWish { follows: vec![follow], ..Default::default() });
    // Whoever follows is told from the moment the wish has come: calls end until then.
    let sample = loop {
        observe.finished(Box::new(Some(ended(Reason::Ok, 200))));
        let told = talk.report(|_| true);
        if let Ok(report) = tokio::time::timeout(Duration::from_millis(20), told).await
            && let Some(sample) = report.samples.into_iter().next()
        {
            break sample;
        }
    };
    assert_eq!((sample.follows.as_slice(), sample.status, sample.path.as_str()), ([9].as_slice(), 200, "/"));
    assert_eq!((sample.source.as_str(), sample.took_us, sample.upstream_us), ("shop/frontend", 3_000, 2_000));
}

#[tokio::test]
async fn who_followed_is_forgotten_with_the_stream_and_a_new_one_begins_with_all_counts() {
    let (observe, mut talks) = sidecar().await;
    observe.finished(Box::new(Some(ended(Reason::Ok, 200))));
    let mut talk = talks.recv().await.unwrap();
    talk.wish(proto::CallWish {
        follows: vec![proto::CallFollow { id: 1, ..Default::default() }],
        ..Default::default()
    });
    talk.report(|report| !report.counts.is_empty()).await;
    let followed = async {
        while observe.lookout().followers() != [1] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), followed).await.expect("the wish is taken in time");
    talk.wish.send(Err(Status::unavailable("stopping"))).unwrap();
    let mut again = talks.recv().await.unwrap();
    assert_eq!(observe.lookout().followers(), [0_u64; 0]);
    assert_eq!(again.report(|report| !report.counts.is_empty()).await.counts[0].ends[0].count, 1);
}

#[test]
fn bounds_on_the_wire_are_those_of_the_metrics() {
    let milliseconds = crate::observe::BUCKETS.map(|bound| bound * 1_000.0);
    assert_eq!(milliseconds, equerry_wire::limits::CALL_BOUNDS_MS);
}
