//! Traces by OTLP: what a request did is told to a collector of somebody else, which sends it on to one made of OpenTelemetry's own
//! messages, span below span.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use equerry::demo::ports::HeldPort;
use equerry_tests::{Mesh, eventually, peers};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
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
        let (port, spans, running) = sink(&[]).await?;
        let endpoint = format!("http://127.0.0.1:{port}");
        Ok(match rotel(&endpoint).await? {
            Some((between, rotel)) => Self { endpoint: between, spans, _running: vec![running, rotel] },
            None => Self { endpoint, spans, _running: vec![running] },
        })
    }

    /// One that shows this certificate, and takes spans of those alone that tell it `key`.
    async fn open_secure(certificate: &Path, private_key: &Path, key: &str) -> Result<Self> {
        let (certificate, private_key) = (certificate.display().to_string(), private_key.display().to_string());
        let (port, spans, running) = sink(&[&certificate, &private_key, key]).await?;
        Ok(Self { endpoint: format!("https://127.0.0.1:{port}"), spans, _running: vec![running] })
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

/// An endpoint of OpenTelemetry's own messages: its port, and the spans it is sent.
async fn sink(args: &[&str]) -> Result<(u16, Arc<Mutex<Vec<Value>>>, Child)> {
    let sink = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/otlp_sink.py");
    let mut running = Command::new("python3");
    running.arg(sink).args(args).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut running = running.spawn()?;
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
    Ok((port.parse()?, spans, running))
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

const MESSAGES: &str = "opentelemetry.proto.collector.trace.v1.trace_service_pb2";

#[tokio::test]
async fn a_collector_hears_what_a_sampled_request_did_span_below_span() -> Result<()> {
    if !peers::python_has(MESSAGES, "pip install opentelemetry-proto")? {
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
    eventually(Duration::from_secs(10), "what was sent to be counted", async || {
        let sent = orders.scrape().await?.sum("equerry_spans_total", &[("outcome", "sent")]);
        Ok((sent >= 4.0).then_some(()))
    })
    .await
}

/// An authority of the test's own in `dir`: `NAME.pem`, and the certificate and key that it gave a collector at 127.0.0.1.
fn authority(dir: &Path, name: &str) -> Result<[PathBuf; 3]> {
    let (key, mut root) = (KeyPair::generate()?, CertificateParams::new(Vec::new())?);
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.distinguished_name.push(DnType::CommonName, name);
    let leaf_key = KeyPair::generate()?;
    let files = ["pem", "collector.pem", "collector.key"].map(|ending| dir.join(format!("{name}.{ending}")));
    std::fs::write(&files[0], root.self_signed(&key)?.pem())?;
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
    std::fs::write(&files[1], leaf.signed_by(&leaf_key, &Issuer::new(root, key))?.pem())?;
    std::fs::write(&files[2], leaf_key.serialize_pem())?;
    Ok(files)
}

#[tokio::test]
async fn a_collector_elsewhere_must_prove_its_name_and_is_told_the_key_it_asks_for() -> Result<()> {
    if !peers::python_has(MESSAGES, "pip install opentelemetry-proto")? {
        return Ok(());
    }
    let mesh = Mesh::plan(program(), &PAIR).await?;
    let dir = mesh.town.dir();
    let ([root, certificate, key], [other, ..]) = (authority(dir, "collectors")?, authority(dir, "others")?);
    let collector = Collector::open_secure(&certificate, &key, "SECRET").await?;
    let (ca, headers) = (dir.join("otlp-ca.pem"), dir.join("otlp-headers"));
    std::fs::copy(other, &ca)?;
    std::fs::write(&headers, "x-key: WRONG\n")?;
    mesh.town.start_control_plane(&[]).await?;
    mesh.town.equerry(&["apply", "-f", &mesh.town.policies().display().to_string()]).await?.succeeded()?;
    for home in &mesh.town.homes {
        mesh.town.start_app(home).await?;
    }
    let files = [ca.display().to_string(), headers.display().to_string()];
    let args = ["--otlp-endpoint", &collector.endpoint, "--otlp-ca", &files[0], "--otlp-headers-file", &files[1]];
    mesh.start_sidecars(&[&args[..], &["--trace-sampling", "0"]].concat()).await?;
    mesh.settle().await?;
    let (orders, bearer) = (mesh.town.home("orders")?, mesh.bearer()?);
    let ask = async |trace: &str| {
        let parent = format!("00-{trace}-{SPAN}-01");
        let headers = [("authorization", bearer.as_str()), ("traceparent", &parent)];
        let answer = orders.through_sidecar().get("inventory", "/stock", &headers).await?;
        ensure!(answer.status == 200, "{}", answer.shown());
        Ok(())
    };
    // Each thing that is wrong is said once, in words that tell what to do, and costs its spans, which are counted.
    let lost = async |count: f64, words: &str| {
        eventually(Duration::from_secs(20), &format!("{count} lost spans and {words:?}"), async || {
            let failed = orders.scrape().await?.sum("equerry_spans_total", &[("outcome", "failed")]);
            let log = mesh.town.sidecar_log(orders);
            ensure!(failed >= count && log.contains(words), "{failed} are lost; {log}");
            Ok(Some(()))
        })
        .await
    };
    ask("00000000000000000000000000000001").await?;
    lost(1.0, "leads to no root of --otlp-ca").await?;
    std::fs::copy(&root, &ca)?;
    ask("00000000000000000000000000000002").await?;
    lost(2.0, "is the key of --otlp-headers-file the one it gave you?").await?;
    std::fs::write(&headers, "x-key: SECRET\n")?;
    ask(TRACE).await?;
    let client = collector.span(TRACE, "SPAN_KIND_CLIENT").await.with_context(|| mesh.town.sidecar_log(orders))?;
    let server = collector.span(TRACE, "SPAN_KIND_SERVER").await?;
    ensure!(server["parent"] == client["span"], "{client} {server}");
    ensure!(collector.spans().iter().all(|span| span["trace"] == TRACE), "{:?}", collector.spans());
    eventually(Duration::from_secs(10), "the log to say that it is right again", async || {
        Ok(mesh.town.sidecar_log(orders).contains("spans are taken again").then_some(()))
    })
    .await?;
    let log = mesh.town.sidecar_log(orders);
    ensure!(log.matches("spans cannot be sent").count() == 2, "each is said once: {log}");
    ensure!(!log.contains("SECRET") && !log.contains("WRONG"), "{log}");
    Ok(())
}
