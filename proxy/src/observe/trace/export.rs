//! The way to a collector: OTLP over HTTP, protobuf bodies, in batches, by one task on the control thread.
//!
//! What the collector asks to be sent again (429, 502, 503, 504, or no answer) is, up to five times and never sooner than it
//! says; meanwhile new spans wait in their queue, and beyond that are counted and lost.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use prometheus::IntCounterVec;
use prost::Message as _;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::otlp::{ExportRequest, ExportResponse, KeyValue, Resource, ResourceSpans, Scope, ScopeSpans, Span, text};

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
const PORT: u16 = 4318;
const PATH: &str = "/v1/traces";

/// Where spans are sent: `http://HOST[:PORT][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    host: String,
    port: u16,
    path: String,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        let expected = || format!("{given:?}: expected http://HOST:PORT, such as http://127.0.0.1:{PORT}");
        let uri: Uri = given.parse().map_err(|_| expected())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(format!(
                    "{given:?}: https is not supported by this version; send to a collector on this machine, which speaks it onwards"
                ));
            }
            _ => return Err(expected()),
        }
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(expected)?;
        if uri.query().is_some() {
            return Err(expected());
        }
        let base = uri.path().trim_end_matches('/');
        let path = if base.ends_with(PATH) { base.to_owned() } else { format!("{base}{PATH}") };
        Ok(Self { host: authority.host().to_owned(), port: authority.port_u16().unwrap_or(PORT), path })
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}:{}{}", self.host, self.port, self.path)
    }
}

/// Sends spans until it is told to finish.
pub(crate) struct Exporter {
    endpoint: Endpoint,
    spans: mpsc::Receiver<Span>,
    resource: Vec<KeyValue>,
    outcomes: IntCounterVec,
    connection: Option<SendRequest<Full<Bytes>>>,
    stop: Arc<Notify>,
    stopping: bool,
    complained: bool,
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
        endpoint: Endpoint,
        spans: mpsc::Receiver<Span>,
        outcomes: IntCounterVec,
        about: &[(&str, &str)],
    ) -> Self {
        let own = [("telemetry.sdk.name", "equerry"), ("telemetry.sdk.language", "rust")];
        let version = ("telemetry.sdk.version", env!("CARGO_PKG_VERSION"));
        let resource = about.iter().chain(&own).chain([&version]).map(|(key, value)| text(key, *value)).collect();
        let (connection, stop) = (None, Arc::default());
        Self { endpoint, spans, resource, outcomes, connection, stop, stopping: false, complained: false }
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
        let connection = match self.connection.take().filter(SendRequest::is_ready) {
            Some(kept) => Ok(kept),
            None => self.connect().await,
        };
        let mut connection = match connection {
            Ok(connection) => connection,
            Err(error) => return Posted::Again(None, format!("{}: {error}", self.endpoint)),
        };
        let request = Request::post(&self.endpoint.path)
            .header(http::header::HOST, format!("{}:{}", self.endpoint.host, self.endpoint.port))
            .header(http::header::CONTENT_TYPE, "application/x-protobuf")
            .header(http::header::USER_AGENT, concat!("equerry-proxy/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body));
        let Ok(request) = request else { return Posted::Refused("the endpoint's path is none".to_owned()) };
        let answered = match connection.send_request(request).await {
            Ok(answered) => answered,
            Err(error) => return Posted::Again(None, format!("{}: {error}", self.endpoint)),
        };
        let (head, body) = answered.into_parts();
        let body = Limited::new(body, LONGEST_ANSWER).collect().await.map(|whole| whole.to_bytes()).unwrap_or_default();
        if !connection.is_closed() {
            self.connection = Some(connection);
        }
        judge(head.status, &head.headers, body)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let Endpoint { host, port, .. } = &self.endpoint;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, *port)).await.map_err(|error| error.to_string())?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the collector ended");
            }
        });
        Ok(sender)
    }

    fn taken(&mut self, count: u64, answer: ExportResponse) {
        let partial = answer.partial_success.unwrap_or_default();
        let rejected = u64::try_from(partial.rejected_spans).unwrap_or(0).min(count);
        self.count("sent", count - rejected);
        if rejected > 0 {
            self.count("rejected", rejected);
            self.complain(&format!("it does not want {rejected} spans: {}", partial.error_message));
        } else if std::mem::take(&mut self.complained) {
            tracing::info!(endpoint = %self.endpoint, "spans are taken again");
        }
    }

    fn lost(&mut self, count: u64, why: &str) {
        self.count("failed", count);
        self.complain(why);
    }

    /// Says once what is wrong, until it is right again.
    fn complain(&mut self, why: &str) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(endpoint = %self.endpoint, why, "spans cannot be sent");
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
            Posted::Refused(format!("it answered {status} {says}"))
        }
    }
}
