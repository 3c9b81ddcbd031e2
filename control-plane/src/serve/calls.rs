//! `Calls`: one stream for each sidecar, on which it reports whom it called and who called it, and hears who looks on.
//!
//! What is said here costs nobody anything if it is lost: counts are totals, and single calls are samples.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::Instant;

use equerry_policies::names::AccountName;
use equerry_wire::limits::MAX_CALL_REPORT;
use equerry_wire::proto::calls_server::{Calls, CallsServer};
use equerry_wire::proto::{CallReport, CallWish};
use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::lease::instance_id;
use super::{until_true, workload_of};
use crate::control::ControlPlane;
use crate::registry::InstanceKey;

/// Answered questions of one stream that are remembered.
const ANSWERED: usize = 1_024;

/// The service.
pub(super) struct Reports {
    control: ControlPlane,
}

/// The service, ready to be routed to.
pub(super) fn service(control: ControlPlane) -> CallsServer<Reports> {
    CallsServer::new(Reports { control }).max_decoding_message_size(MAX_CALL_REPORT)
}

#[tonic::async_trait]
impl Calls for Reports {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<CallWish, Status>> + Send>>;

    async fn report(&self, request: Request<Streaming<CallReport>>) -> Result<Response<Self::ReportStream>, Status> {
        let account = workload_of(&self.control, request.extensions())?.account_name();
        let (wishes, stream) = mpsc::channel(1);
        let control = self.control.clone();
        let mut reports = request.into_inner();
        tokio::spawn(async move {
            let ended = match reports.message().await {
                Ok(Some(first)) => match Reporter::open(control, account, &first) {
                    Ok(mut reporter) => reporter.run(first, reports, &wishes).await,
                    Err(status) => Err(status),
                },
                Ok(None) => Ok(()),
                Err(status) => Err(status),
            };
            if let Err(status) = ended {
                let _ = wishes.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// One sidecar's stream.
struct Reporter {
    control: ControlPlane,
    account: AccountName,
    key: InstanceKey,
    /// What it said last of calls that it could not tell.
    dropped: u64,
    answered: BTreeSet<u64>,
    /// What it was told last.
    wished: CallWish,
}

impl Reporter {
    fn open(control: ControlPlane, account: AccountName, first: &CallReport) -> Result<Self, Status> {
        let key = InstanceKey { namespace: account.namespace.clone(), id: instance_id(&first.instance_id)? };
        if control.instance(&key).is_some_and(|known| known.account != account) {
            return Err(Status::permission_denied(format!("instance {key} is held by another account than {account}")));
        }
        let (answered, wished) = (BTreeSet::new(), CallWish::default());
        Ok(Self { control, account, key, dropped: first.dropped, answered, wished })
    }

    async fn run(
        &mut self,
        first: CallReport,
        mut reports: Streaming<CallReport>,
        wishes: &mpsc::Sender<Result<CallWish, Status>>,
    ) -> Result<(), Status> {
        let mut changed = self.control.wishes();
        let mut stopping = self.control.stopping();
        self.take(first)?;
        loop {
            changed.borrow_and_update();
            let wish = self.control.wish_of(&self.key, &self.answered);
            if wish != self.wished {
                self.wished = wish.clone();
                // A question is put once on one stream.
                self.answered.extend(wish.questions.iter().map(|question| question.id));
                self.wished.questions.clear();
                while self.answered.len() > ANSWERED {
                    self.answered.pop_first();
                }
                wishes.send(Ok(wish)).await.map_err(|_| Status::cancelled("the sidecar is gone"))?;
            }
            tokio::select! {
                report = reports.message() => match report? {
                    Some(report) => self.take(report)?,
                    None => return Ok(()),
                },
                _ = changed.changed() => {}
                () = until_true(&mut stopping) => return Err(Status::unavailable("the control plane is stopping")),
                () = wishes.closed() => return Ok(()),
            }
        }
    }

    fn take(&mut self, report: CallReport) -> Result<(), Status> {
        if report.instance_id != self.key.id.as_str() {
            return Err(Status::invalid_argument(format!(
                "found another instance's report on the stream of {}",
                self.key
            )));
        }
        self.control.take_calls(&self.key, &self.account, &report);
        let more = report.dropped.saturating_sub(self.dropped);
        self.dropped = report.dropped;
        if report.samples.is_empty() && report.answer.is_none() && more == 0 {
            return Ok(());
        }
        let (reporting, now) = (self.control.reporters_known(), Instant::now());
        let mut lookers = self.control.lookers();
        lookers.lost(&self.key, more);
        for sample in report.samples {
            lookers.saw(&self.key, &self.account, sample, reporting, now);
        }
        if let Some(answer) = report.answer {
            lookers.answered(&self.key, &self.account, answer);
        }
        Ok(())
    }
}
