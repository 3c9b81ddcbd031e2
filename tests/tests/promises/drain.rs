//! Sidecars come and go, and so does configuration, while calls pass: none of them fails, and no connection is dropped.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use equerry::demo::town::{Home, Resident, SHOP};
use equerry::demo::web::Caller;
use equerry_tests::load::Load;
use equerry_tests::workshop::Workshop;
use equerry_tests::{Mesh, api, eventually};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::{PAIR, program};

const SOON: Duration = Duration::from_secs(15);
/// One Service with as many instances as there are, and no routes.
const INVENTORY: &str = "\
apiVersion: v1
kind: Service
metadata: {name: inventory, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {app: inventory}, ports: [{port: 80, targetPort: 8080}]}
";

/// And one whose application keeps streams open.
const STREAMING: &str = "\
apiVersion: v1
kind: Service
metadata: {name: streaming, namespace: shop, annotations: {equerry.dev/accounts: frontend}}
spec: {selector: {app: frontend}, ports: [{port: 80, targetPort: 8080, appProtocol: kubernetes.io/h2c}]}
";

/// A mesh in which `orders` calls the instances of `inventory`.
async fn mesh(residents: &[Resident], of_orders: &[&str]) -> Result<Mesh> {
    let mesh = Mesh::found(program(), residents, INVENTORY).await?;
    for home in &mesh.town.homes {
        let is_caller = home.resident.name == "orders";
        mesh.town.join(home).await?;
        mesh.town.start_sidecar_with(home, if is_caller { of_orders } else { &[] }).await?;
        if home.resident.account == "inventory" {
            mesh.town.start_app(home).await?;
        }
    }
    for home in &mesh.town.homes {
        mesh.town.wait_ready(home).await?;
    }
    // A client of its own, that keeps no connection beyond this.
    let caller = Caller::local(mesh.town.home("orders")?.outbound.number());
    for home in mesh.town.homes.iter().filter(|home| home.resident.account == "inventory") {
        eventually(SOON, &format!("orders to reach {}", home.resident.name), async || {
            let answer = caller.get("inventory", "/", &[]).await?;
            Ok((answer.shown().contains(home.resident.name)).then_some(()))
        })
        .await?;
    }
    Ok(mesh)
}

fn load(home: &Home, gets: usize, posts: usize, http2: usize) -> Result<Load> {
    Ok(Load { to: home.outbound.address().parse()?, host: "inventory".to_owned(), gets, posts, http2 })
}

/// A stream as gRPC keeps them open: every word comes back while both sides go on.
struct Words {
    say: mpsc::UnboundedSender<Result<Frame<Bytes>, Infallible>>,
    heard: Incoming,
}

impl Words {
    async fn begin(home: &Home) -> Result<Self> {
        let socket = TcpStream::connect(home.outbound.address()).await?;
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await?;
        tokio::spawn(connection);
        let (say, said) = mpsc::unbounded_channel();
        let request = Request::post("http://streaming/echo").header("content-type", "application/grpc");
        let body = StreamBody::new(UnboundedReceiverStream::new(said));
        let answer = timeout(SOON, sender.send_request(request.body(body)?)).await.context("no answer")??;
        ensure!(answer.status() == 200, "{}", answer.status());
        Ok(Self { say, heard: answer.into_body() })
    }

    /// Says something, which comes back.
    async fn exchange(&mut self, word: &str) -> Result<()> {
        self.say.send(Ok(Frame::data(Bytes::copy_from_slice(word.as_bytes()))))?;
        let mut heard = Vec::new();
        while heard.len() < word.len() {
            let data = self.next().await?.into_data().ok().context("trailers")?;
            heard.extend_from_slice(&data);
        }
        ensure!(heard == word.as_bytes(), "{}", String::from_utf8_lossy(&heard));
        Ok(())
    }

    /// Ends, as gRPC does, with trailers.
    async fn end(mut self) -> Result<()> {
        let trailers = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
        self.say.send(Ok(Frame::trailers(trailers.clone())))?;
        let last = self.next().await?.into_trailers().ok().context("more data")?;
        ensure!(last == trailers, "{last:?}");
        Ok(())
    }

    async fn next(&mut self) -> Result<Frame<Bytes>> {
        let next = timeout(SOON, self.heard.frame()).await.context("the stream stands still")?;
        next.context("the stream has ended")?.context("the stream was cut")
    }
}

/// Waits until the application of `home` is called.
async fn is_called(home: &Home) -> Result<()> {
    home.forget().await?;
    eventually(SOON, &format!("{} to be called", home.resident.name), async || {
        Ok((!home.arrivals().await?.is_empty()).then_some(()))
    })
    .await
}

#[tokio::test]
async fn sidecars_of_a_callee_restarted_one_after_the_other_under_load_fail_no_call() -> Result<()> {
    restarts_fail_no_call("http1").await
}

#[tokio::test]
async fn the_same_over_whatever_sidecars_choose_to_speak() -> Result<()> {
    restarts_fail_no_call("auto").await
}

async fn restarts_fail_no_call(between: &str) -> Result<()> {
    let mesh = mesh(&PAIR, &["--mesh-protocol", between]).await?;
    let town = &mesh.town;
    let under_way = load(town.home("orders")?, 4, 4, 2)?.begin();
    for _ in 0..2 {
        for name in ["inventory-v1", "inventory-v2"] {
            let home = town.home(name)?;
            is_called(home).await?;
            town.stop_sidecar(home).await;
            town.start_sidecar(home).await?;
            town.wait_ready(home).await?;
            is_called(home).await?;
        }
    }
    let tally = under_way.end().await?;
    tally.all_well()?;
    ensure!(
        tally.connections == 10,
        "{} connections instead of 10: the caller's own sidecar went nowhere",
        tally.connections
    );
    eprintln!("{} calls over {between} while four sidecars were restarted", tally.answered);
    Ok(())
}

#[tokio::test]
async fn a_hundred_changes_of_configuration_under_load_drop_no_connection_and_fail_no_call() -> Result<()> {
    let mesh = mesh(&SHOP, &[]).await?;
    let (town, orders) = (&mesh.town, mesh.town.home("orders")?);
    mesh.apply(STREAMING).await?;
    let frontend = town.home("frontend")?;
    frontend.app.release();
    let _app = Workshop::open(frontend.app.number()).await?;
    let mut words = eventually(SOON, "a stream", async || Words::begin(orders).await.map(Some)).await?;
    let under_way = load(orders, 4, 4, 2)?.begin();
    is_called(town.home("inventory-v1")?).await?;
    let epoch = mesh.epoch().await?;
    for number in 0..100 {
        // The configuration of sidecars on both sides changes: how calls go, and who may call.
        let changed = format!(
            "\
apiVersion: equerry.dev/v1
kind: TrafficPolicy
metadata: {{name: inventory, namespace: shop}}
spec: {{targetRefs: [{{kind: Service, name: inventory}}, {{kind: Service, name: streaming}}], timeouts: {{connect: {}ms}}}}
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {{name: change, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, name: inventory}}, {{kind: Service, name: streaming}}]
  action: DENY
  rules: [{{to: [{{operation: {{paths: [/never/{number}]}}}}]}}]
",
            1000 + number
        );
        let files = serde_json::json!({"files": [{"name": "change.yaml", "text": changed}]});
        let (status, said) = api::ask(town, "POST", "/api/v1/apply", files.to_string().into()).await?;
        ensure!(status == StatusCode::OK, "change {number}: {status} {said}");
        words.exchange(&format!("word {number}")).await.with_context(|| format!("change {number}"))?;
    }
    let last = mesh.epoch().await?;
    ensure!(last >= epoch + 100, "only {} epochs", last - epoch);
    eventually(SOON, "every sidecar to have the last change", async || {
        for home in &town.homes {
            let page = home.telemetry().get("localhost", "/metrics", &[]).await?;
            let text = String::from_utf8_lossy(&page.body).into_owned();
            let at = text.lines().find_map(|line| line.strip_prefix("equerry_config_epoch ")).context("no epoch")?;
            if at.trim().parse::<u64>()? != last {
                bail!("{} is at {at}", home.resident.name);
            }
        }
        Ok(Some(()))
    })
    .await?;
    words.exchange("the last word").await?;
    words.end().await?;
    let tally = under_way.end().await?;
    tally.all_well()?;
    ensure!(tally.connections == 10, "{} connections instead of 10", tally.connections);
    println!("{} calls over the same connections while {} epochs went by", tally.answered, last - epoch);
    Ok(())
}

#[tokio::test]
async fn a_sidecar_told_to_stop_serves_its_application_until_that_has_hung_up() -> Result<()> {
    // With more time to leave than anybody here takes.
    let mesh = mesh(&PAIR[..2], &["--drain-timeout", "60s"]).await?;
    let (town, orders) = (&mesh.town, mesh.town.home("orders")?);
    let under_way = load(orders, 2, 2, 1)?.begin();
    is_called(town.home("inventory-v1")?).await?;
    // A connection that is kept for later, as pools do.
    let kept = TcpStream::connect(orders.outbound.address()).await?;
    town.signal_sidecar(orders, Signal::TERM).await;
    eventually(SOON, "the sidecar to say that it is not ready", async || {
        let ready = orders.telemetry().get("localhost", "/healthz/ready", &[]).await?;
        Ok((ready.status == 503 && ready.shown().contains("draining")).then_some(()))
    })
    .await?;
    let answered = under_way.answered();
    eventually(SOON, "calls to go on", async || Ok((under_way.answered() > answered + 200).then_some(()))).await?;
    let late = load(orders, 1, 1, 1)?.begin();
    eventually(SOON, "new connections to be served", async || Ok((late.answered() > 100).then_some(()))).await?;
    for load in [under_way, late] {
        load.end().await?.all_well()?;
    }
    drop(kept);
    eventually(SOON, "the sidecar to end", async || {
        match orders.telemetry().get("localhost", "/healthz/live", &[]).await {
            Ok(alive) => bail!("it says {}", alive.shown()),
            Err(_) => Ok(Some(())),
        }
    })
    .await?;
    ensure!(drained(&town.sidecar_log(orders)), "{}", town.sidecar_log(orders));
    Ok(())
}

#[tokio::test]
async fn what_is_open_when_the_grace_period_ends_is_cut_off_and_logged_as_that() -> Result<()> {
    let mesh = mesh(&PAIR[..2], &["--drain-timeout", "1s"]).await?;
    let (town, orders) = (&mesh.town, mesh.town.home("orders")?);
    let mut stream = TcpStream::connect(orders.outbound.address()).await?;
    // The body does not come to its end.
    let head = b"POST / HTTP/1.1\r\nhost: inventory\r\ncontent-length: 100\r\nexpect: 100-continue\r\n\r\n";
    stream.write_all(head).await?;
    let mut word = [0; 25];
    stream.read_exact(&mut word).await?;
    ensure!(&word == b"HTTP/1.1 100 Continue\r\n\r\n", "{}", String::from_utf8_lossy(&word));
    stream.write_all(b"half").await?;
    town.signal_sidecar(orders, Signal::TERM).await;
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest).await;
    ensure!(rest.is_empty(), "{ended:?}: {}", String::from_utf8_lossy(&rest));
    eventually(SOON, "the line in the log", async || {
        let log = std::fs::read_to_string(orders.access_log())?;
        let line = log.lines().find(|line| line.contains("\"draining\""));
        line.map(|line| Some(line.to_owned())).context(log.clone())
    })
    .await?;
    ensure!(town.sidecar_log(orders).contains("the grace period is over"), "{}", town.sidecar_log(orders));
    Ok(())
}

fn drained(log: &str) -> bool {
    log.contains("\"drained\"") && !log.contains("the grace period is over")
}
