//! `Quota`: one stream for each sidecar, on which it reports what it spent and hears what it was granted.
//!
//! A stream that cannot keep up hears the present totals, not a queue of old ones.

use std::pin::Pin;
use std::time::SystemTime;

use equerry_wire::proto::quota_server::{Quota, QuotaServer};
use equerry_wire::proto::{SliceGrant, SliceReport};
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::lease::instance_id;
use super::{until_true, workload_of};
use crate::control::ControlPlane;
use crate::quota::{Heard, Report, Telling};
use crate::registry::InstanceKey;
use crate::store::unix_ms;

/// Largest report in bytes.
const MAX_REPORT: usize = 16 << 10;
/// Reports taken together before they are settled.
const TOGETHER: usize = 256;

/// The service.
pub(super) struct Slices {
    control: ControlPlane,
}

/// The service, ready to be routed to.
pub(super) fn service(control: ControlPlane) -> QuotaServer<Slices> {
    QuotaServer::new(Slices { control }).max_decoding_message_size(MAX_REPORT)
}

#[tonic::async_trait]
impl Quota for Slices {
    type SlicesStream = Pin<Box<dyn Stream<Item = Result<SliceGrant, Status>> + Send>>;

    async fn slices(&self, request: Request<Streaming<SliceReport>>) -> Result<Response<Self::SlicesStream>, Status> {
        let account = workload_of(&self.control, request.extensions())?.account_name();
        let (answers, stream) = mpsc::channel(1);
        let control = self.control.clone();
        let reports = request.into_inner();
        tokio::spawn(async move {
            let namespace = account.namespace.clone();
            let mut talk = Talk { control, holder: None, heard: Heard::new(), answers };
            let is_mine = |control: &ControlPlane, key: &InstanceKey| {
                control.instance(key).is_none_or(|known| known.account == account)
            };
            if let Err(status) = talk
                .run(reports, |control, id| {
                    let key = InstanceKey { namespace: namespace.clone(), id: instance_id(id)? };
                    if is_mine(control, &key) {
                        Ok(key)
                    } else {
                        Err(Status::permission_denied(format!("instance {key} is held by another account")))
                    }
                })
                .await
            {
                let _ = talk.answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// One sidecar's stream.
struct Talk {
    control: ControlPlane,
    holder: Option<InstanceKey>,
    heard: Heard,
    answers: mpsc::Sender<Result<SliceGrant, Status>>,
}

impl Talk {
    async fn run(
        &mut self,
        reports: Streaming<SliceReport>,
        who: impl Fn(&ControlPlane, &str) -> Result<InstanceKey, Status>,
    ) -> Result<(), Status> {
        let mut granted = self.control.grants_told();
        let mut stopping = self.control.stopping();
        let mut reports = std::pin::pin!(reports.ready_chunks(TOGETHER));
        loop {
            tokio::select! {
                several = reports.next() => {
                    let Some(several) = several else { return Ok(()) };
                    for report in several {
                        self.take(&report?, &who)?;
                    }
                    self.control.keep_grants().await;
                }
                _ = granted.changed() => {}
                () = until_true(&mut stopping) => return Err(Status::unavailable("the control plane is stopping")),
                () = self.answers.closed() => return Ok(()),
            }
            granted.borrow_and_update();
            self.tell().await?;
        }
    }

    fn take(
        &mut self,
        report: &SliceReport,
        who: &impl Fn(&ControlPlane, &str) -> Result<InstanceKey, Status>,
    ) -> Result<(), Status> {
        let holder = match &self.holder {
            Some(holder) if holder.id.as_str() == report.instance_id => holder.clone(),
            Some(holder) => {
                return Err(Status::invalid_argument(format!(
                    "found a report of {:?} on the stream of {holder}",
                    report.instance_id
                )));
            }
            None => who(&self.control, &report.instance_id)?,
        };
        let counted = Report {
            window: report.window,
            granted: report.granted,
            spent: report.spent,
            returned: report.returned,
            spent_offline: report.spent_offline,
            wants_more: report.wants_more,
        };
        // A quota that was just deleted, or an instance that registers this moment: the next report will be right.
        if let Err(refused) = self.control.books().report(&holder, &report.quota, &counted, SystemTime::now()) {
            tracing::debug!(%holder, %refused, "a quota report is not counted");
        }
        self.holder = Some(holder);
        Ok(())
    }

    async fn tell(&mut self) -> Result<(), Status> {
        let Some(holder) = &self.holder else { return Ok(()) };
        let now = SystemTime::now();
        let tellings = self.control.books().tell(holder, &mut self.heard, now);
        for telling in tellings {
            let told = self.answers.send(Ok(grant(telling))).await;
            told.map_err(|_| Status::cancelled("the sidecar is gone"))?;
        }
        Ok(())
    }
}

fn grant(telling: Telling) -> SliceGrant {
    SliceGrant {
        quota: telling.quota,
        window: telling.window,
        granted: telling.told.granted,
        give_back: telling.told.give_back,
        server_unix_ms: unix_ms(SystemTime::now()),
        exhausted: telling.told.exhausted,
    }
}
