//! The way to a collector: OTLP over HTTP, protobuf bodies, in batches, by one task on the control thread.
//!
//! What the collector asks to be sent again (429, 502, 503, 504, or no answer) is, up to five times and never sooner than it
//! says; meanwhile new spans wait in their queue, and beyond that are counted and lost.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use prometheus::IntCounterVec;
use prost::Message as _;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::collector::{Collector, Spoken, Unreached};
use super::otlp::{ExportRequest, ExportResponse, KeyValue, Resource, ResourceSpans, Scope, ScopeSpans, Span, text};
use crate::codec::in_words;

/// Spans of one request (OpenTelemetry's usual number).
const BATCH: usize = 512;
/// A span waits no longer for others.
const EVERY: Duration = Duration::from_secs(1);
/// How long a collector may take to answer (OpenTelemetry's usual time).
const PATIENCE: Duration = Duration::from_secs(10);
/// Tries of one batch.
const TRIES: u32 = 5;
/// The wait after the first; it doubles.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// No collector is believed to mean a longer one.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Of an answer nobody reads more.
const LONGEST_ANSWER: usize = 64 * 1024;
/// Complaints that are remembered, so that none is made twice.
const MOST_COMPLAINTS: usize = 8;

/// Sends spans until it is told to finish.
pub(crate) struct Exporter {
    to: Collector,
    spans: mpsc::Receiver<Span>,
    resource: Vec<KeyValue>,
    outcomes: IntCounterVec,
    connection: Option<Spoken>,
    stop: Arc<Notify>,
    stopping: bool,
    /// What was said of it since spans were last taken.
    complained: Vec<String>,
}

/// A running exporter.
#[derive(Debug)]
pub(crate) struct Exports {
    stop: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Exports {
    /// Sends what still waits; at most `patience` long.
    pub(crate) async fn finish(self, patience: Duration) {
        self.stop.notify_one();
        let _ = tokio::time::timeout(patience, self.task).await;
    }
}

/// What came of one request.
enum Posted {
    Taken(ExportResponse),
    /// Is to be sent again, perhaps not before this.
    Again(Option<Duration>, String),
    Refused(String),
}

impl Exporter {
    /// An exporter of `spans`, which tells what becomes of them. `about` are attributes of this process, such as
    /// `service.name`.
    pub(crate) fn new(
        to: Collector,
        spans: mpsc::Receiver<Span>,
        outcomes: IntCounterVec,
        about: &[(&str, &str)],
    ) -> Self {
        let own = [("telemetry.sdk.name", "equerry"), ("telemetry.sdk.language", "rust")];
        let version = ("telemetry.sdk.version", env!("CARGO_PKG_VERSION"));
        let resource = about.iter().chain(&own).chain([&version]).map(|(key, value)| text(key, *value)).collect();
        // What is lost first is to be seen as an increase.
        for outcome in ["sent", "rejected", "failed", "dropped"] {
            outcomes.with_label_values(&[outcome]);
        }
        let (connection, stop) = (None, Arc::default());
        Self { to, spans, resource, outcomes, connection, stop, stopping: false, complained: Vec::new() }
    }

    /// Starts it.
    pub(crate) fn start(self) -> Exports {
        let stop = Arc::clone(&self.stop);
        Exports { stop, task: tokio::spawn(self.run()) }
    }

    async fn run(mut self) {
        while !self.stopping {
            let mut batch = Vec::new();
            self.fill(&mut batch).await;
            while !batch.is_empty() {
                let rest = batch.split_off(batch.len().min(BATCH));
                self.deliver(std::mem::replace(&mut batch, rest)).await;
            }
        }
    }

    /// Waits for spans: for the first as long as it takes, for more a while. Of those that wait at the end, takes all.
    async fn fill(&mut self, batch: &mut Vec<Span>) {
        let stop = Arc::clone(&self.stop);
        let filled = async {
            if self.spans.recv_many(batch, BATCH).await == 0 {
                // Nobody is left to send any.
                return true;
            }
            let until = tokio::time::Instant::now() + EVERY;
            while batch.len() < BATCH {
                let more = self.spans.recv_many(batch, BATCH - batch.len());
                if !tokio::time::timeout_at(until, more).await.is_ok_and(|more| more > 0) {
                    break;
                }
            }
            false
        };
        let stopped = tokio::select! {
            over = filled => over,
            () = stop.notified() => true,
        };
        if stopped {
            self.stopping = true;
            while let Ok(span) = self.spans.try_recv() {
                batch.push(span);
            }
        }
    }

    /// Sends one batch, again where that is asked for.
    async fn deliver(&mut self, spans: Vec<Span>) {
        let count = spans.len() as u64;
        let body = Bytes::from(self.request(spans).encode_to_vec());
        let mut wait = FIRST_WAIT;
        for tried in 1..=TRIES {
            let posted = tokio::time::timeout(PATIENCE, self.post(body.clone())).await;
            let (asked, why) = match posted.unwrap_or_else(|_| Posted::Again(None, "no answer in time".to_owned())) {
                Posted::Taken(answer) => return self.taken(count, answer),
                Posted::Refused(why) => return self.lost(count, &why),
                Posted::Again(asked, why) => (asked, why),
            };
            self.connection = None;
            if tried == TRIES || self.stopping {
                return self.lost(count, &why);
            }
            self.complain(&why);
            let stop = Arc::clone(&self.stop);
            tokio::select! {
                () = tokio::time::sleep(asked.unwrap_or(wait).min(LONGEST_WAIT)) => {}
                // Once more, then.
                () = stop.notified() => self.stopping = true,
            }
            wait *= 2;
        }
    }

    fn request(&self, spans: Vec<Span>) -> ExportRequest {
        let scope = Scope { name: "equerry-proxy".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        ExportRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource { attributes: self.resource.clone() }),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans }],
            }],
        }
    }

    async fn post(&mut self, body: Bytes) -> Posted {
        let connection = match self.connection.take().filter(Spoken::is_ready) {
            Some(kept) => Ok(kept),
            None => self.to.connect().await,
        };
        let mut connection = match connection {
            Ok(connection) => connection,
            Err(Unreached { why, again: true }) => return Posted::Again(None, why),
            Err(Unreached { why, again: false }) => return Posted::Refused(why),
        };
        let request = Request::post(self.to.endpoint.path())
            .header(http::header::HOST, self.to.endpoint.authority())
            .header(http::header::CONTENT_TYPE, "application/x-protobuf")
            .header(http::header::USER_AGENT, concat!("equerry-proxy/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body));
        let Ok(mut request) = request else { return Posted::Refused("the endpoint's path is none".to_owned()) };
        request.headers_mut().extend(connection.headers.clone());
        let answered = match connection.send.send_request(request).await {
            Ok(answered) => answered,
            Err(error) => return Posted::Again(None, in_words(&error)),
        };
        let (head, body) = answered.into_parts();
        let body = Limited::new(body, LONGEST_ANSWER).collect().await.map(|whole| whole.to_bytes()).unwrap_or_default();
        // Whoever refused is asked anew, with the headers as they then stand in their file.
        if head.status.is_success() && !connection.send.is_closed() {
            self.connection = Some(connection);
        }
        match judge(head.status, &head.headers, body) {
            Posted::Refused(why) if matches!(head.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Posted::Refused(format!("{why}: {}", self.to.about_keys()))
            }
            posted => posted,
        }
    }

    fn taken(&mut self, count: u64, answer: ExportResponse) {
        let partial = answer.partial_success.unwrap_or_default();
        let rejected = u64::try_from(partial.rejected_spans).unwrap_or(0).min(count);
        self.count("sent", count - rejected);
        if rejected > 0 {
            self.count("rejected", rejected);
            self.complain(&format!("it does not want {rejected} spans: {}", partial.error_message));
        } else if !std::mem::take(&mut self.complained).is_empty() {
            tracing::info!(endpoint = %self.to.endpoint, "spans are taken again");
        }
    }

    fn lost(&mut self, count: u64, why: &str) {
        self.count("failed", count);
        self.complain(why);
    }

    /// Says once what is wrong, until it is right again.
    fn complain(&mut self, why: &str) {
        if self.complained.len() < MOST_COMPLAINTS && !self.complained.iter().any(|said| said == why) {
            tracing::warn!(endpoint = %self.to.endpoint, why, "spans cannot be sent");
            self.complained.push(why.to_owned());
        }
    }

    fn count(&self, outcome: &str, spans: u64) {
        self.outcomes.with_label_values(&[outcome]).inc_by(spans);
    }
}

/// What an answer means (OTLP/HTTP, "OTLP/HTTP Response").
fn judge(status: StatusCode, headers: &HeaderMap, body: Bytes) -> Posted {
    let again = matches!(status.as_u16(), 429 | 502 | 503 | 504);
    match status {
        status if status.is_success() => Posted::Taken(ExportResponse::decode(body).unwrap_or_default()),
        _ if again => {
            let after = headers.get(http::header::RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
            Posted::Again(after.map(Duration::from_secs), format!("it answered {status}"))
        }
        _ => {
            let says: String = String::from_utf8_lossy(&body).chars().filter(|c| !c.is_control()).take(200).collect();
            Posted::Refused(format!("it answered {status} {says}").trim_end().to_owned())
        }
    }
}
