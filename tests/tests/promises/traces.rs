//! Traces by OTLP: what a request did is told to a collector of somebody else, which sends it on to one made of OpenTelemetry's own
//! messages, span below span.

use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use equerry::demo::ports::HeldPort;
use equerry_tests::{Mesh, eventually, peers};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::{PAIR, program};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// The collector, and the spans it was sent.
struct Collector {
    endpoint: String,
    spans: Arc<Mutex<Vec<Value>>>,
    _running: Vec<Child>,
}

impl Collector {
    async fn open() -> Result<Self> {
        let sink = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/otlp_sink.py");
        let mut running = Command::new("python3").arg(sink).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut lines = BufReader::new(running.stdout.take().context("no standard output")?).lines();
        let port = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await??.context("no port")?;
        let spans: Arc<Mutex<Vec<Value>>> = Arc::default();
        let kept = Arc::clone(&spans);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let span = serde_json::from_str(&line).unwrap_or(Value::String(line));
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(span);
            }
        });
        let endpoint = format!("http://127.0.0.1:{port}");
        Ok(match rotel(&endpoint).await? {
            Some((between, rotel)) => Self { endpoint: between, spans, _running: vec![running, rotel] },
            None => Self { endpoint, spans, _running: vec![running] },
        })
    }

    fn spans(&self) -> Vec<Value> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The span of this kind in a trace, once it came.
    async fn span(&self, trace: &str, kind: &str) -> Result<Value> {
        eventually(Duration::from_secs(20), &format!("a span {kind} of trace {trace}"), async || {
            let found = self.spans().into_iter().find(|span| span["trace"] == trace && span["kind"] == kind);
            ensure!(found.is_some(), "the collector has {:?}", self.spans());
            Ok(found)
        })
        .await
    }
}

/// Rotel, an OpenTelemetry collector, where it is installed: it reads what it is sent, and writes it anew to `endpoint`.
async fn rotel(endpoint: &str) -> Result<Option<(String, Child)>> {
    if !peers::python_has("rotel", "pip install -r .ci/requirements.txt")? {
        return Ok(None);
    }
    let place = "import pathlib, rotel; print(pathlib.Path(rotel.__file__).parent / 'rotel-agent')";
    let place = peers::run("python3", &["-c", place]).await?.succeeded()?;
    let ports = [HeldPort::take()?, HeldPort::take()?];
    let [http, grpc] = [0, 1].map(|at: usize| ports[at].address());
    ports.iter().for_each(HeldPort::release);
    let args = ["start", "--otlp-http-endpoint", &http, "--otlp-grpc-endpoint", &grpc, "--disable-batching"];
    let out = ["--exporter", "otlp", "--otlp-exporter-protocol", "http", "--otlp-exporter-endpoint", endpoint];
    let mut rotel = Command::new(place.out.trim());
    rotel.args(args).args(out).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let rotel = rotel.spawn().context("starting rotel")?;
    eventually(Duration::from_secs(20), "rotel to listen", async || {
        Ok(tokio::net::TcpStream::connect(&http).await.is_ok().then_some(()))
    })
    .await?;
    Ok(Some((format!("http://{http}"), rotel)))
}

#[tokio::test]
async fn a_collector_hears_what_a_sampled_request_did_span_below_span() -> Result<()> {
    let has_messages = "opentelemetry.proto.collector.trace.v1.trace_service_pb2";
    if !peers::python_has(has_messages, "pip install opentelemetry-proto")? {
        return Ok(());
    }
    let collector = Collector::open().await?;
    let mesh = Mesh::plan(program(), &PAIR).await?;
    mesh.town.start_control_plane(&[]).await?;
    mesh.town.equerry(&["apply", "-f", &mesh.town.policies().display().to_string()]).await?.succeeded()?;
    for home in &mesh.town.homes {
        mesh.town.start_app(home).await?;
    }
    // Nothing is sampled but what a caller samples.
    mesh.start_sidecars(&["--otlp-endpoint", &collector.endpoint, "--trace-sampling", "0"]).await?;
    mesh.settle().await?;
    ensure!(collector.spans().is_empty(), "{:?}", collector.spans());
    let (orders, bearer) = (mesh.town.home("orders")?, mesh.bearer()?);
    let ask = async |service: &str, name: &str, value: &str| {
        let headers = [("authorization", bearer.as_str()), (name, value)];
        orders.through_sidecar().get(service, "/stock?secret=SECRET", &headers).await
    };

    let parent = format!("00-{TRACE}-{SPAN}-01");
    let answer = ask("inventory", "traceparent", &parent).await?;
    ensure!(answer.status == 200, "{}", answer.shown());
    let (client, server) =
        (collector.span(TRACE, "SPAN_KIND_CLIENT").await?, collector.span(TRACE, "SPAN_KIND_SERVER").await?);
    ensure!(client["parent"] == SPAN && server["parent"] == client["span"], "{client} {server}");
    ensure!(client["service"] == "orders" && server["service"] == "inventory", "{client} {server}");
    ensure!(client["namespace"] == "shop" && client["instance"] == "orders" && client["scope"] == "equerry-proxy");
    let (from, to) = (client["start"].as_u64(), client["end"].as_u64());
    ensure!(from <= server["start"].as_u64() && server["end"].as_u64() > server["start"].as_u64() && to > from);
    for span in [&client, &server] {
        let says = &span["attributes"];
        ensure!(
            span["name"] == "GET" && says["http.request.method"] == "GET" && says["http.response.status_code"] == 200
        );
        ensure!(
            says["url.path"] == "/stock" && says["equerry.destination"].to_string().contains("shop/inventory"),
            "{span}"
        );
        ensure!(says["equerry.source"] == "spiffe://equerry.local/ns/shop/sa/orders", "{span}");
        ensure!(span["status"] == 0 && !span.to_string().contains("SECRET"), "{span}");
    }

    // By B3 the same, with a trace id of 64 bits.
    let answer = ask("inventory", "b3", &format!("a3ce929d0e0e4736-{SPAN}-1")).await?;
    ensure!(answer.status == 200, "{}", answer.shown());
    let short = format!("{}a3ce929d0e0e4736", "0".repeat(16));
    let (client, server) =
        (collector.span(&short, "SPAN_KIND_CLIENT").await?, collector.span(&short, "SPAN_KIND_SERVER").await?);
    ensure!(client["parent"] == SPAN && server["parent"] == client["span"], "{client} {server}");

    // A refusal names its reason, and nobody was asked.
    let refused = "11112222333344445555666677778888";
    let answer = ask("nowhere", "traceparent", &format!("00-{refused}-{SPAN}-01")).await?;
    ensure!(answer.status == 502, "{}", answer.shown());
    let span = collector.span(refused, "SPAN_KIND_INTERNAL").await?;
    ensure!(span["attributes"]["error.type"] == "no_service" && span["status"] == 2, "{span}");

    // What its caller does not sample leaves nothing, nor does what began here.
    let unsampled = "99992222333344445555666677778888";
    ask("inventory", "traceparent", &format!("00-{unsampled}-{SPAN}-00")).await?;
    ask("inventory", "x-other", "1").await?;
    let last = "aaaa2222333344445555666677778888";
    let answer = ask("inventory", "traceparent", &format!("00-{last}-{SPAN}-01")).await?;
    ensure!(answer.status == 200, "{}", answer.shown());
    collector.span(last, "SPAN_KIND_SERVER").await.with_context(|| mesh.town.sidecar_log(orders))?;
    collector.span(last, "SPAN_KIND_CLIENT").await?;
    let traces: Vec<_> = collector.spans().iter().map(|span| span["trace"].clone()).collect();
    let known = [TRACE, &short, refused, last];
    ensure!(traces.iter().all(|trace| known.iter().any(|known| trace == known)), "{traces:?}");
    let sent = orders.scrape().await?;
    ensure!(sent.sum("equerry_spans_total", &[("outcome", "sent")]) >= 4.0, "what was sent is counted");
    Ok(())
}
