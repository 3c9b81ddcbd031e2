//! A connection that lives long is never bound to one endpoint: each of its requests goes where it is best, over HTTP/1.1 and
//! HTTP/2; and connections are spread over the workers.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use equerry::demo::process::Process;
use equerry::demo::town::Home;
use equerry_tests::{Mesh, eventually};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::{PAIR, program};

const CALLS: usize = 200;
/// Both instances of the shop's inventory behind one name, one after the other, so that neither is better.
const STOCK: &str = "\
apiVersion: v1
kind: Service
metadata: {name: stock, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {app: inventory}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: equerry.dev/v1
kind: TrafficPolicy
metadata: {name: stock, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: stock}]
  loadBalancer: {type: round_robin}
";

fn request(uri: &str, service: &str) -> Result<Request<Empty<Bytes>>> {
    Ok(Request::builder().uri(uri).header("host", service).body(Empty::<Bytes>::new())?)
}

async fn connection(home: &Home) -> Result<TokioIo<TcpStream>> {
    Ok(TokioIo::new(TcpStream::connect(home.outbound.address()).await?))
}

/// Who got how many of the calls.
async fn counts(mesh: &Mesh) -> Result<BTreeMap<&'static str, usize>> {
    let mut counts = BTreeMap::new();
    for name in ["inventory-v1", "inventory-v2"] {
        let home = mesh.town.home(name)?;
        counts.insert(name, home.arrivals().await?.len());
        home.forget().await?;
    }
    Ok(counts)
}

fn spread(counts: &BTreeMap<&'static str, usize>, what: &str) -> Result<()> {
    let all: usize = counts.values().sum();
    ensure!(all == CALLS, "{what}: {CALLS} calls were made, and {counts:?} arrived");
    ensure!(
        counts.values().all(|count| count * 3 > CALLS),
        "{what}: one connection was bound to one instance: {counts:?}"
    );
    Ok(())
}

#[tokio::test]
async fn the_requests_of_one_connection_are_spread_over_the_instances() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let orders = mesh.town.home("orders")?;
    mesh.apply(STOCK).await?;
    eventually(Duration::from_secs(15), "both instances to be called", async || {
        for _ in 0..20 {
            orders.through_sidecar().get("stock", "/", &[]).await?;
        }
        Ok(counts(&mesh).await?.values().all(|count| *count > 0).then_some(()))
    })
    .await?;

    let (mut send, driven) = http1::handshake(connection(orders).await?).await?;
    let driven = tokio::spawn(driven);
    for _ in 0..CALLS {
        send.ready().await?;
        let answer = send.send_request(request("/", "stock")?).await?;
        ensure!(answer.status() == 200, "{}", answer.status());
        answer.into_body().collect().await?;
    }
    ensure!(!driven.is_finished(), "the connection was kept all the time");
    spread(&counts(&mesh).await?, "HTTP/1.1")?;

    let (mut send, driven) = http2::handshake(TokioExecutor::new(), connection(orders).await?).await?;
    let driven = tokio::spawn(driven);
    for _ in 0..CALLS / 10 {
        // Ten streams at a time, as a client of gRPC has them.
        let streams: Vec<_> = (0..10)
            .map(|_| request("http://stock/", "stock").map(|asked| send.send_request(asked)))
            .collect::<Result<_>>()?;
        for answer in futures_util::future::try_join_all(streams).await? {
            ensure!(answer.status() == 200, "{}", answer.status());
            answer.into_body().collect().await?;
        }
    }
    ensure!(!driven.is_finished(), "the connection was kept all the time");
    spread(&counts(&mesh).await?, "HTTP/2")
}

/// How long each worker thread of a process has computed, in ticks of the kernel's clock.
fn worked(process: u32) -> Result<BTreeMap<String, u64>> {
    let mut worked = BTreeMap::new();
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let dir = thread?.path();
        let name = std::fs::read_to_string(dir.join("comm"))?.trim().to_owned();
        if !name.starts_with("worker-") {
            continue;
        }
        let stat = std::fs::read_to_string(dir.join("stat"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
        worked.insert(name, ticks(11).zip(ticks(12)).map(|(user, system)| user + system).context("reading stat")?);
    }
    Ok(worked)
}

#[tokio::test]
async fn connections_are_spread_over_the_workers() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR[..2]).await?;
    let (town, orders) = (&mesh.town, mesh.town.home("orders")?);
    town.stop_sidecar(orders).await;
    for port in [&orders.outbound, &orders.inbound, &orders.admin, &orders.telemetry] {
        port.release();
    }
    let mut args = town.sidecar_args(orders);
    let workers = args.iter().position(|arg| arg == "--workers").context("no --workers")?;
    args[workers + 1] = "2".to_owned();
    let args: Vec<OsString> = args.into_iter().map(OsString::from).collect();
    let sidecar = Process::start(program(), "two-workers", &args, &town.dir().join("two-workers.log"))?;
    let id = sidecar.id().context("it has ended")?;
    eventually(Duration::from_secs(20), "orders to reach inventory", async || {
        let answer = orders.through_sidecar().get("inventory", "/", &[]).await?;
        Ok((answer.status == 200).then_some(()))
    })
    .await?;

    let before = worked(id)?;
    ensure!(before.len() == 2, "two workers: {before:?}");
    let calls = (0..16).map(async |_| {
        let (mut send, driven) = http1::handshake::<_, Empty<Bytes>>(connection(orders).await?).await?;
        tokio::spawn(driven);
        for _ in 0..200 {
            send.ready().await?;
            send.send_request(request("/", "inventory")?).await?.into_body().collect().await?;
        }
        Ok::<_, anyhow::Error>(())
    });
    futures_util::future::try_join_all(calls).await?;
    let after = worked(id)?;
    let shares: Vec<u64> = after.iter().map(|(name, now)| now - before.get(name).copied().unwrap_or(0)).collect();
    let all: u64 = shares.iter().sum();
    ensure!(shares.iter().all(|share| share * 4 > all), "one worker did nearly everything: {shares:?} ticks");
    Ok(())
}
