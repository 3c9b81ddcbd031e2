//! The talk about tenants' quotas: report what is spent, hear what is granted, and know when nobody listens.
//!
//! A report goes out at once when a slice runs low or gave something back, otherwise a few times a second while there is
//! something new to say. Totals are told, so a lost message is made good by the next.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use equerry_traffic::quota::Report;
use equerry_wire::proto;
use equerry_wire::proto::quota_client::QuotaClient;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::Quotas;
use super::backoff::Backoff;
use super::link::Link;

/// How often news is looked for.
const BEAT: Duration = Duration::from_millis(200);
/// So many beats later everything is reported again, news or not: the control plane hears who is still there.
const REPEAT: u32 = 5;

/// Talks for as long as the process runs; without quotas there is nothing to say, and no stream.
pub(crate) async fn run(quotas: Arc<Quotas>, link: Link) {
    let mut backoff = Backoff::default();
    loop {
        while quotas.is_empty() {
            quotas.asked().await;
        }
        let ended = talk(&quotas, &link, &mut backoff).await;
        quotas.set_connected(false, SystemTime::now());
        if let Err(why) = ended {
            if backoff.is_fresh() {
                tracing::warn!(
                    error = why.message(),
                    "the quota stream ended; what tenants set for that case holds until it stands again"
                );
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }
}

/// One stream. `Ok`: the identity was renewed, so that a new one is made at once.
async fn talk(quotas: &Quotas, link: &Link, backoff: &mut Backoff) -> Result<(), tonic::Status> {
    let mut renewals = link.renewals();
    let (reports, sent) = unbounded_channel();
    let mut told = Told { reports, last: HashMap::new() };
    // Told before the stream is asked for: the control plane knows who speaks from the first report.
    told.news(quotas);
    let mut client = QuotaClient::new(link.channel());
    let mut grants = client.slices(UnboundedReceiverStream::new(sent)).await?.into_inner();
    quotas.set_connected(true, SystemTime::now());
    let mut beats = 0;
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            grant = grants.message() => {
                let Some(grant) = grant? else { return Err(tonic::Status::unavailable("the control plane ended the stream")) };
                backoff.reset();
                tracing::trace!(quota = grant.quota, window = grant.window, granted = grant.granted, give_back = grant.give_back, exhausted = grant.exhausted, "granted");
                quotas.grant(&grant, SystemTime::now());
                told.urgent(quotas);
            }
            () = quotas.asked() => told.news(quotas),
            _ = beat.tick() => {
                beats = (beats + 1) % REPEAT;
                if beats == 0 { told.everything(quotas) } else { told.news(quotas) }
            }
            _ = renewals.changed() => return Ok(()),
        }
    }
}

/// What was reported last, by quota.
struct Told {
    reports: UnboundedSender<proto::SliceReport>,
    last: HashMap<String, Report>,
}

impl Told {
    /// Reports every quota of which there is something new.
    fn news(&mut self, quotas: &Quotas) {
        self.report_if(quotas, |last, now| last != now);
    }

    /// Reports what somebody waits for: what was given back, and where even the latest grant is not enough.
    fn urgent(&mut self, quotas: &Quotas) {
        self.report_if(quotas, |last, now| {
            last != now && (now.wants_more || (last.window == now.window && last.returned != now.returned))
        });
    }

    fn everything(&mut self, quotas: &Quotas) {
        self.report_if(quotas, |_, _| true);
    }

    fn report_if(&mut self, quotas: &Quotas, news: impl Fn(&Report, &Report) -> bool) {
        for (quota, report) in quotas.reports(SystemTime::now()) {
            if self.last.get(&quota).is_none_or(|last| news(last, &report)) {
                tracing::trace!(quota, ?report, "reported");
                self.last.insert(quota.clone(), report);
                // The receiving end is gone only when the stream is, which its reader then says.
                let _ = self.reports.send(quotas.message(quota, report));
            }
        }
    }
}

#[cfg(test)]
#[path = "slices_tests.rs"]
mod tests;
