//! What is sampled and told, what spans say, and what becomes of them when a collector is slow, broken or away.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use equerry_traffic::Reason;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::super::tests::an_exchange;
use super::otlp::{ExportRequest, ExportResponse, Kind, PartialSuccess, STATUS_ERROR, Value};
use super::*;

const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn headers(given: &[(&'static str, &str)]) -> HeaderMap {
    given.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
}

fn tracer(share: f64) -> (Tracer, mpsc::Receiver<Span>) {
    Tracer::new(share, Forms::default())
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|one| one.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::Text(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
    }
}

#[test]
fn a_parent_decides_and_without_one_the_share_does() {
    let began = SystemTime::now();
    let unsampled = GIVEN.replace("-01", "-00");
    for (share, given, kept) in [
        (0.0, &[("traceparent", GIVEN)][..], true),
        (1.0, &[("traceparent", unsampled.as_str())], false),
        (1.0, &[], true),
        (0.0, &[], false),
        (1.0, &[("b3", "0")], false),
        (0.0, &[("b3", "a3ce929d0e0e4736-00f067aa0ba902b7-d")], true),
        (1.0, &[("b3", "a3ce929d0e0e4736-00f067aa0ba902b7")], true),
        (0.0, &[("b3", "a3ce929d0e0e4736-00f067aa0ba902b7")], false),
    ] {
        for direction in [Direction::Inbound, Direction::Outbound] {
            let mut headers = headers(given);
            let (trace, forwarded) = tracer(share).0.begin(direction, &mut headers, began);
            assert_eq!(trace.is_some(), kept, "{share} {given:?}");
            assert_eq!(headers[TRACEPARENT], forwarded);
            let says = forwarded.to_str().unwrap();
            assert!(says.ends_with(if kept { "-01" } else { "-00" }), "{share} {given:?}: {says}");
        }
    }
}

#[test]
fn a_share_keeps_the_same_traces_everywhere_and_about_so_many() {
    let (one, other) = (tracer(0.25).0, tracer(0.25).0);
    let mut random = fastrand::Rng::with_seed(7);
    let traces: Vec<u128> = (0..10_000).map(|_| random.u128(1..)).collect();
    let kept = traces.iter().filter(|trace| one.keeps(**trace)).count();
    assert!((2_300..2_700).contains(&kept), "{kept}");
    assert!(traces.iter().all(|trace| one.keeps(*trace) == other.keeps(*trace)));
}

#[test]
fn the_application_hears_the_servers_span_in_every_form_that_came() {
    let mut headers =
        headers(&[("b3", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1"), ("x-b3-traceid", TRACE)]);
    let (trace, _) = tracer(0.0).0.begin(Direction::Inbound, &mut headers, SystemTime::now());
    let span = format!("{:016x}", trace.unwrap().span);
    assert_eq!(headers["traceparent"], format!("00-{TRACE}-{span}-01"));
    assert_eq!(headers["b3"], format!("{TRACE}-{span}-1-00f067aa0ba902b7"));
    assert_eq!(
        (&headers["x-b3-spanid"], &headers["x-b3-parentspanid"]),
        (&span.parse().unwrap(), &"00f067aa0ba902b7".parse().unwrap())
    );
    let forms = [B3Form::B3multi].into_iter().collect();
    let mut plain = self::headers(&[("traceparent", GIVEN)]);
    Tracer::new(0.0, forms).0.begin(Direction::Inbound, &mut plain, SystemTime::now());
    assert!(plain["x-b3-traceid"] == TRACE && !plain.contains_key("b3"), "{plain:?}");
}

#[test]
fn tries_are_clients_spans_of_their_own_below_one_around_them() {
    let (tracer, _spans) = tracer(1.0);
    let mut headers = headers(&[("traceparent", GIVEN)]);
    let exchange = Exchange { duration: Duration::from_millis(30), attempts: 2, ..an_exchange() };
    let (trace, forwarded) = tracer.begin(Direction::Outbound, &mut headers, SystemTime::now());
    assert_eq!(forwarded, GIVEN, "nobody has been asked yet");
    let mut trace = trace.unwrap();
    let at = |ms| exchange.started + Duration::from_millis(ms);
    trace.begins_try(at(1), ([10, 0, 0, 1], 15_006).into(), &mut headers);
    let first = headers["traceparent"].clone();
    trace.ends_try(at(10), TryOutcome::Failed("connect_failed"));
    trace.begins_try(at(12), ([10, 0, 0, 2], 15_006).into(), &mut headers);
    trace.ends_try(at(20), TryOutcome::Status(200));

    let spans = span::of(&trace, &exchange);
    let [around, failed, well] = spans.as_slice() else { panic!("{spans:?}") };
    assert!(spans.iter().all(|span| span.trace_id == u128::from_str_radix(TRACE, 16).unwrap().to_be_bytes()));
    assert_eq!(around.parent_span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
    assert!([failed, well].iter().all(|one| one.parent_span_id == around.span_id && one.kind() == Kind::Client));
    let id: Vec<String> = failed.span_id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(first, format!("00-{TRACE}-{}-01", id.concat()), "the callee hears the try's span");
    assert_eq!(attribute(failed, "error.type").as_deref(), Some("connect_failed"));
    assert_eq!(failed.status.as_ref().unwrap().code, STATUS_ERROR);
    assert_eq!(attribute(failed, "network.peer.address").as_deref(), Some("10.0.0.1"));
    assert_eq!(
        (attribute(failed, "http.request.resend_count"), attribute(well, "http.request.resend_count")),
        (None, Some("1".into()))
    );
    assert_eq!((attribute(well, "http.response.status_code"), well.status.clone()), (Some("200".into()), None));
    let length = |span: &Span| (span.end_time_unix_nano - span.start_time_unix_nano) / 1_000_000;
    assert_eq!((length(around), length(failed), length(well)), (30, 9, 18), "the last try lasts as long as its answer");
}

#[test]
fn one_try_is_one_span_and_a_refusal_is_one_that_names_its_reason() {
    let (tracer, _spans) = tracer(1.0);
    let mut headers = HeaderMap::new();
    let mut trace = tracer.begin(Direction::Outbound, &mut headers, SystemTime::now()).0.unwrap();
    let refused = Exchange { reason: Reason::NoService, status: 502, attempts: 0, ..an_exchange() };
    let [only] = &span::of(&trace, &refused)[..] else { panic!("more than one") };
    assert_eq!((only.kind(), attribute(only, "error.type").as_deref()), (Kind::Internal, Some("no_service")));
    assert!(only.parent_span_id.is_empty());

    let exchange = an_exchange();
    trace.begins_try(exchange.started, ([10, 0, 0, 1], 1).into(), &mut headers);
    trace.ends_try(exchange.started, TryOutcome::Status(404));
    let [only] = &span::of(&trace, &exchange)[..] else { panic!("more than one") };
    assert_eq!((only.kind(), only.status.as_ref().map(|status| status.code)), (Kind::Client, Some(STATUS_ERROR)));
    let inbound = Exchange { direction: Direction::Inbound, status: 404, ..an_exchange() };
    let [server] = &span::of(&trace, &inbound)[..] else { panic!("more than one") };
    assert_eq!((server.kind(), server.status.clone()), (Kind::Server, None), "404 is the client's fault");
}

#[test]
fn queries_and_strange_methods_stay_out() {
    let target = "/a?token=SECRET".parse().unwrap();
    let exchange =
        Exchange { target, method: "MKCOL".parse().unwrap(), direction: Direction::Inbound, ..an_exchange() };
    let trace = tracer(1.0).0.begin(Direction::Inbound, &mut HeaderMap::new(), SystemTime::now()).0.unwrap();
    let spans = span::of(&trace, &exchange);
    assert!(!format!("{spans:?}").contains("SECRET"));
    assert_eq!(
        (spans[0].name.as_str(), attribute(&spans[0], "http.request.method").as_deref()),
        ("HTTP", Some("_OTHER"))
    );
    assert_eq!(attribute(&spans[0], "http.request.method_original").as_deref(), Some("MKCOL"));
}

#[test]
fn an_endpoint_is_a_base_and_what_cannot_be_spoken_is_refused() {
    for (given, shown) in [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://collector", "http://collector:4318/v1/traces"),
        ("http://[::1]:1/base/", "http://[::1]:1/base/v1/traces"),
        ("http://a:1/v1/traces", "http://a:1/v1/traces"),
        ("https://otlp.example.com", "https://otlp.example.com:443/v1/traces"),
        ("https://[::1]:4318/otlp", "https://[::1]:4318/otlp/v1/traces"),
    ] {
        assert_eq!(given.parse::<Endpoint>().unwrap().to_string(), shown);
    }
    for (wrong, word) in [
        ("a:1", "expected http://"),
        ("grpc://a:1", "expected http://"),
        ("http://user:secret@a:1", "expected http://"),
        ("http://a:1/?x", "expected http://"),
        ("https://a..b", "expected http://"),
        ("https://:443", "expected http://"),
    ] {
        assert!(wrong.parse::<Endpoint>().unwrap_err().contains(word), "{wrong}");
    }
}

#[test]
fn a_full_queue_costs_spans_and_no_time() {
    let (tracer, spans) = tracer(1.0);
    let trace = tracer.begin(Direction::Inbound, &mut HeaderMap::new(), SystemTime::now()).0.unwrap();
    let exchange = Exchange { direction: Direction::Inbound, ..an_exchange() };
    let dropped: u64 = (0..WAITING + 5).map(|_| tracer.finished(&trace, &exchange)).sum();
    assert_eq!((dropped, spans.len()), (5, WAITING));
}

/// A collector that answers with these, in turn, and then 200; and what it was sent.
pub(super) struct Sink {
    pub(super) port: u16,
    seen: Arc<Mutex<Vec<(HeaderMap, ExportRequest)>>>,
}

impl Sink {
    /// By TLS where that is given.
    pub(super) async fn open(answers: Vec<Response<Full<Bytes>>>, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Vec<(HeaderMap, ExportRequest)>>> = Arc::default();
        let answers = Arc::new(Mutex::new(answers.into_iter()));
        let kept = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (kept, answers) = (Arc::clone(&kept), Arc::clone(&answers));
                let serve = service_fn(move |request: Request<Incoming>| {
                    let (kept, answers) = (Arc::clone(&kept), Arc::clone(&answers));
                    async move {
                        assert_eq!(
                            (request.uri().path(), &request.headers()["content-type"]),
                            ("/v1/traces", &"application/x-protobuf".parse().unwrap())
                        );
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let sent = (head.headers, ExportRequest::decode(body).unwrap());
                        kept.lock().unwrap_or_else(PoisonError::into_inner).push(sent);
                        let next = answers.lock().unwrap_or_else(PoisonError::into_inner).next();
                        Ok::<_, Infallible>(next.unwrap_or_else(|| Response::new(Full::default())))
                    }
                });
                let http = hyper::server::conn::http1::Builder::new();
                match tls.clone() {
                    None => drop(tokio::spawn(http.serve_connection(TokioIo::new(stream), serve))),
                    Some(tls) => drop(tokio::spawn(async move {
                        // Who does not believe it leaves.
                        if let Ok(stream) = tls.accept(stream).await {
                            let _ = http.serve_connection(TokioIo::new(stream), serve).await;
                        }
                    })),
                }
            }
        });
        Self { port, seen }
    }

    /// By plain HTTP, with no header of its own.
    pub(super) fn as_plain(&self) -> Collector {
        let endpoint = format!("http://127.0.0.1:{}", self.port).parse().unwrap();
        Collector { endpoint, ca: None, headers: Headers::None }
    }

    pub(super) fn seen(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// What this header was, of each request.
    pub(super) fn header(&self, name: &str) -> Vec<Option<String>> {
        let text = |headers: &HeaderMap| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        self.seen.lock().unwrap().iter().map(|(headers, _)| text(headers)).collect()
    }
}

pub(super) fn outcomes() -> prometheus::IntCounterVec {
    prometheus::IntCounterVec::new(prometheus::Opts::new("spans", "spans"), &["outcome"]).unwrap()
}

pub(super) fn status(code: u16) -> Response<Full<Bytes>> {
    Response::builder().status(code).header("retry-after", "0").body(Full::default()).unwrap()
}

/// Three spans, sent to a collector with these answers until it is finished; what was counted, and what it saw.
async fn sent(answers: Vec<Response<Full<Bytes>>>, expected_requests: usize) -> ([u64; 3], usize) {
    let collector = Sink::open(answers, None).await;
    sent_to(&collector, collector.as_plain(), expected_requests).await
}

/// The same, to a collector that is there already.
pub(super) async fn sent_to(collector: &Sink, to: Collector, expected_requests: usize) -> ([u64; 3], usize) {
    let ((tracer, spans), counted) = (tracer(1.0), outcomes());
    let exporter = Exporter::new(to, spans, counted.clone(), &[("service.name", "orders")]);
    let running = exporter.start();
    let trace = tracer.begin(Direction::Inbound, &mut HeaderMap::new(), SystemTime::now()).0.unwrap();
    for _ in 0..3 {
        tracer.finished(&trace, &Exchange { direction: Direction::Inbound, ..an_exchange() });
    }
    let all_asked = async {
        while collector.seen() < expected_requests {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all_asked).await.unwrap();
    running.finish(Duration::from_secs(5)).await;
    let counts = ["sent", "rejected", "failed"].map(|outcome| counted.with_label_values(&[outcome]).get());
    (counts, collector.seen())
}

#[tokio::test]
async fn spans_go_out_together_and_again_when_the_collector_asks_for_that() {
    assert_eq!(sent(Vec::new(), 1).await, ([3, 0, 0], 1));
    assert_eq!(sent(vec![status(503), status(429)], 3).await, ([3, 0, 0], 3));
    assert_eq!(sent(vec![status(400)], 1).await, ([0, 0, 3], 1), "what is wrong is not sent again");
    assert_eq!(sent((0..9).map(|_| status(503)).collect(), 5).await, ([0, 0, 3], 5), "nobody is asked for ever");
}

#[tokio::test]
async fn what_a_collector_does_not_want_is_counted() {
    let partial = PartialSuccess { rejected_spans: 2, error_message: "too old".to_owned() };
    let body = ExportResponse { partial_success: Some(partial) }.encode_to_vec();
    assert_eq!(sent(vec![Response::new(Full::from(body))], 1).await, ([1, 2, 0], 1));
}

#[tokio::test]
async fn what_waits_at_the_end_is_still_sent() {
    // Nobody waits for a request: finishing sends what is there.
    assert_eq!(sent(Vec::new(), 0).await, ([3, 0, 0], 1));
}
