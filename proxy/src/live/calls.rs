//! What is told of calls: counts every few seconds, and single calls to those who look on.
//!
//! Counts are running totals read out of the metrics, so a lost report is made good by the next. A control plane of a version that
//! does not listen is asked again now and then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use equerry_policies::names::InstanceId;
use equerry_wire::proto;
use equerry_wire::proto::calls_client::CallsClient;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_stream::wrappers::ReceiverStream;

use super::backoff::Backoff;
use super::link::Link;
use super::unix_ms;
use crate::observe::lookout::{Filter, Follow, Lookout, Sample, went_wrong};
use crate::observe::shadows::{Change, Totals};
use crate::observe::tally::{Tally, Way, verdict};
use crate::observe::{Direction, Observer};

/// How often counts are told.
const BEAT: Duration = Duration::from_secs(5);
/// The first counts are told this soon after somebody began to listen.
const FIRST: Duration = Duration::from_millis(500);
/// When to ask again whether somebody listens.
const NOBODY_LISTENS: Duration = Duration::from_secs(60);
/// Counts in one report.
const MOST_COUNTS: usize = 512;
/// Single calls in one report.
const MOST_SAMPLES: usize = 256;
/// Reports that may wait to be sent.
const WAITING: usize = 16;
/// Those who may look on at once.
const MOST_FOLLOWS: usize = 64;

/// Tells for as long as the process runs.
pub(crate) async fn run(instance: InstanceId, observe: Observer, link: Link) {
    let lookout = Arc::clone(observe.lookout());
    let Some(mut told) = lookout.told() else { return };
    let mut teller = Teller {
        instance,
        observe,
        lookout,
        started: SystemTime::now(),
        since: Instant::now(),
        last: BTreeMap::new(),
        shadows: BTreeMap::new(),
    };
    let mut backoff = Backoff::default();
    loop {
        let ended = teller.talk(&link, &mut told, &mut backoff).await;
        teller.lookout.follow(Vec::new());
        let Err(why) = ended else { continue };
        let rest = if why.code() == tonic::Code::Unimplemented { NOBODY_LISTENS } else { backoff.next() };
        tracing::debug!(error = why.message(), "calls are told to nobody for now");
        tokio::time::sleep(rest).await;
    }
}

struct Teller {
    instance: InstanceId,
    observe: Observer,
    lookout: Arc<Lookout>,
    started: SystemTime,
    since: Instant,
    /// What was told on this stream.
    last: BTreeMap<Way, Tally>,
    /// And of policies that are not enforced.
    shadows: BTreeMap<String, Totals>,
}

impl Teller {
    /// One stream. `Ok`: the identity was renewed, so that a new one is made at once.
    async fn talk(
        &mut self,
        link: &Link,
        told: &mut Receiver<Sample>,
        backoff: &mut Backoff,
    ) -> Result<(), tonic::Status> {
        let mut renewals = link.renewals();
        let (reports, sent) = channel(WAITING);
        self.last.clear();
        // Told before the stream is asked for: the control plane knows who speaks from the first report.
        self.shadows.clear();
        for report in self.news().into_iter().take(WAITING) {
            send(&reports, report).await?;
        }
        let mut client = CallsClient::new(link.channel());
        let mut wishes = client.report(ReceiverStream::new(sent)).await?.into_inner();
        let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + FIRST, BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut samples = Vec::new();
        loop {
            tokio::select! {
                wish = wishes.message() => {
                    let Some(wish) = wish? else { return Err(tonic::Status::unavailable("the control plane ended the stream")) };
                    backoff.reset();
                    for answer in self.take(wish) {
                        send(&reports, proto::CallReport { answer: Some(answer), ..self.report() }).await?;
                    }
                }
                _ = beat.tick() => {
                    for report in self.news() {
                        send(&reports, report).await?;
                    }
                }
                count = told.recv_many(&mut samples, MOST_SAMPLES) => {
                    if count == 0 {
                        return Err(tonic::Status::cancelled("this process ends"));
                    }
                    let samples = samples.drain(..).map(sample).collect();
                    send(&reports, proto::CallReport { samples, ..self.report() }).await?;
                }
                _ = renewals.changed() => return Ok(()),
            }
        }
    }

    /// A report that says nothing yet.
    fn report(&self) -> proto::CallReport {
        proto::CallReport {
            instance_id: self.instance.to_string(),
            started_unix_ms: unix_ms(self.started),
            age_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            dropped: self.lookout.dropped(),
            ..proto::CallReport::default()
        }
    }

    /// Everything that changed since it was told on this stream.
    fn news(&mut self) -> Vec<proto::CallReport> {
        let mut shadows = self.shadows();
        let counts = self.counts();
        let report = |counts| proto::CallReport { counts, shadows: std::mem::take(&mut shadows), ..self.report() };
        counts.into_iter().map(report).collect()
    }

    /// What policies that are not enforced looked at, where that changed.
    fn shadows(&mut self) -> Vec<proto::ShadowCount> {
        let mut news = Vec::new();
        for (policy, (totals, last)) in self.observe.shadows() {
            if self.shadows.get(&policy) != Some(&totals) {
                news.push(shadow(&policy, totals, last));
                self.shadows.insert(policy, totals);
            }
        }
        news
    }

    /// Every count that changed, as many reports as it takes; one that says nothing when none did: this sidecar is still there.
    fn counts(&mut self) -> Vec<Vec<proto::CallCount>> {
        let now = self.observe.tally();
        let news: Vec<proto::CallCount> = now
            .iter()
            .filter(|(way, tally)| self.last.get(*way) != Some(*tally))
            .map(|(way, tally)| count(way, tally))
            .collect();
        self.last = now;
        if news.is_empty() {
            return vec![Vec::new()];
        }
        news.chunks(MOST_COUNTS).map(<[_]>::to_vec).collect()
    }

    /// Takes what is wished now; the answers to questions.
    fn take(&self, wish: proto::CallWish) -> Vec<proto::CallAnswer> {
        // Who goes on looking keeps their place: what they were told this second still counts.
        let mut wanted: Vec<u64> = wish.follows.iter().map(|follow| follow.id).collect();
        wanted.sort_unstable();
        let mut present = self.lookout.followers();
        present.sort_unstable();
        if wanted != present {
            let follows = wish.follows.into_iter().take(MOST_FOLLOWS);
            let follows = follows.map(|one| Follow::new(one.id, filter(one.filter), u64::from(one.per_second)));
            self.lookout.follow(follows.collect());
        }
        let answer = |question: proto::CallQuestion| {
            let limit = usize::try_from(question.limit).unwrap_or(usize::MAX);
            let samples = self.lookout.recent(&filter(question.filter), limit);
            proto::CallAnswer { question: question.id, samples: samples.into_iter().map(sample).collect() }
        };
        wish.questions.into_iter().map(answer).collect()
    }
}

async fn send(reports: &Sender<proto::CallReport>, report: proto::CallReport) -> Result<(), tonic::Status> {
    reports.send(report).await.map_err(|_| tonic::Status::unavailable("the stream is gone"))
}

fn count(way: &Way, tally: &Tally) -> proto::CallCount {
    let (direction, source, destination) = way;
    let end = |((status, reason, tcp), count): (&(u16, String, bool), &u64)| {
        let (failed, refused) = verdict(*status, reason);
        proto::CallEnd { status: u32::from(*status), reason: reason.clone(), tcp: *tcp, failed, refused, count: *count }
    };
    proto::CallCount {
        outbound: *direction == Direction::Outbound,
        source: source.clone(),
        destination: destination.clone(),
        ends: tally.ends.iter().map(end).collect(),
        took: tally.took.clone(),
        bytes_in: tally.bytes_in,
        bytes_out: tally.bytes_out,
    }
}

fn shadow(policy: &str, totals: Totals, last: Option<Change>) -> proto::ShadowCount {
    let last = last.map(|change| proto::ShadowChange {
        ago_ms: u64::try_from(change.ago().as_millis()).unwrap_or(u64::MAX),
        source: change.source.map(|account| account.to_string()).unwrap_or_default(),
        destination: change.destination.map(|service| service.to_string()).unwrap_or_default(),
        rule: change.rule,
        allow: change.allow,
    });
    let Totals { unchanged, would_deny, would_allow } = totals;
    proto::ShadowCount { policy: policy.to_owned(), unchanged, would_deny, would_allow, last }
}

fn sample(sample: Sample) -> proto::CallSample {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    proto::CallSample {
        outbound: sample.direction == Direction::Outbound,
        started_unix_ms: unix_ms(sample.started),
        took_us: micros(sample.took),
        upstream_us: sample.upstream.map_or(0, |time| micros(time).max(1)),
        source: sample.source.unwrap_or_default(),
        destination: sample.destination.unwrap_or_default(),
        method: sample.method.unwrap_or_default(),
        path: sample.path.unwrap_or_default(),
        authority: sample.authority,
        protocol: sample.protocol.to_owned(),
        status: u32::from(sample.status),
        reason: sample.reason.as_str().to_owned(),
        policy: sample.policy.unwrap_or_default(),
        route: sample.route.unwrap_or_default(),
        tenant: sample.tenant.unwrap_or_default(),
        attempts: sample.attempts,
        upstream: sample.upstream_address.unwrap_or_default(),
        bytes_in: sample.bytes_in,
        bytes_out: sample.bytes_out,
        request_id: sample.request_id,
        trace_id: sample.trace_id.unwrap_or_default(),
        tls: sample.tls,
        epoch: sample.epoch,
        detail: sample.detail.unwrap_or_default(),
        failed: went_wrong(sample.reason, sample.status),
        follows: sample.follows,
    }
}

fn filter(asked: Option<proto::CallFilter>) -> Filter {
    let asked = asked.unwrap_or_default();
    let set = |text: String| Some(text).filter(|text| !text.is_empty());
    let status = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    Filter {
        source: set(asked.source),
        destination: set(asked.destination),
        direction: set(asked.direction),
        method: set(asked.method),
        path_prefix: set(asked.path_prefix),
        status: (asked.status_from > 0).then(|| (status(asked.status_from), status(asked.status_to))),
        reason: set(asked.reason),
        tenant: set(asked.tenant),
        failed: asked.failed,
    }
}

#[cfg(test)]
#[path = "calls_tests.rs"]
mod tests;
