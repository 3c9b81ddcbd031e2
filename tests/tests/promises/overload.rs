//! More than a sidecar can bear: thousands that say nothing, readers that do not read, heads and bodies without end, no file
//! descriptors. Its memory stays bounded, each is answered or cut as it deserves, and whoever behaves is served meanwhile.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use equerry::demo::town::Home;
use equerry_tests::load::Load;
use equerry_tests::{Mesh, eventually, listen};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::{PAIR, program};

const SOON: Duration = Duration::from_secs(15);
/// Idle connections, where the system lets this process and the sidecar have so many.
const THOUSANDS: usize = 10_000;
/// What an idle connection may cost the sidecar, in KiB; unoptimised builds included.
const KIB_EACH: u64 = 24;

const LIMITS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: inventory, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {app: inventory}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: equerry.dev/v1
kind: TrafficPolicy
metadata: {name: inventory, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: inventory}]
  timeouts: {streamIdle: 2s}
  limits: {requestBytes: 1000000}
";

/// `orders` calls `inventory`, whose application is in this process.
struct Pair {
    mesh: Mesh,
    _application: JoinSet<()>,
}

impl Pair {
    async fn up(more: &[&str]) -> Result<Self> {
        let mesh = Mesh::found(program(), &PAIR[..2], LIMITS).await?;
        let town = &mesh.town;
        let (orders, inventory) = (town.home("orders")?, town.home("inventory-v1")?);
        inventory.app.release();
        let mut application = JoinSet::new();
        application.spawn(serve(listen(inventory.app.number()).await?));
        for (home, more) in [(inventory, &[][..]), (orders, more)] {
            town.join(home).await?;
            town.start_sidecar_with(home, more).await?;
        }
        for home in [inventory, orders] {
            town.wait_ready(home).await?;
        }
        let pair = Self { mesh, _application: application };
        eventually(SOON, "orders to reach inventory", async || pair.is_served().await.map(Some)).await?;
        Ok(pair)
    }

    fn caller(&self) -> Result<&Home> {
        self.mesh.town.home("orders")
    }

    fn door(&self) -> Result<SocketAddr> {
        Ok(self.caller()?.outbound.address().parse()?)
    }

    /// A normal request is answered.
    async fn is_served(&self) -> Result<()> {
        let answer = self.caller()?.through_sidecar().get("inventory", "/", &[]).await?;
        if answer.status == 200 { Ok(()) } else { bail!("{}", answer.shown()) }
    }

    /// Resident KiB of the caller's sidecar.
    async fn resident(&self) -> Result<u64> {
        let id = self.mesh.town.sidecar_id(self.caller()?).await.context("the sidecar does not run")?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse()?)
    }

    /// The sum of what the caller's sidecar counts in series that begin like this.
    async fn counted(&self, series: &str) -> Result<u64> {
        let page = self.caller()?.telemetry().get("localhost", "/metrics", &[]).await?;
        let text = String::from_utf8_lossy(&page.body).into_owned();
        let values = text.lines().filter(|line| line.starts_with(series)).filter_map(|line| line.rsplit(' ').next());
        Ok(values.filter_map(|value| value.parse::<u64>().ok()).sum())
    }
}

/// Says hello; `/endless` never ends, `/take` takes what it is sent.
async fn serve(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let service =
            service_fn(|request: Request<Incoming>| async move { Ok::<_, Infallible>(answer(request).await) });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(request: Request<Incoming>) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    if request.uri().path() == "/endless" {
        let piece = Bytes::from_static(&[b'x'; 64 * 1024]);
        let pieces = tokio_stream::iter(std::iter::repeat_with(move || Ok(Frame::data(piece.clone()))));
        return Response::new(StreamBody::new(pieces).boxed_unsync());
    }
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    Response::new(Full::new(Bytes::from_static(b"hello")).boxed_unsync())
}

/// Everything that comes back until the other side ends; a reset ends it too.
async fn rest(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said).await;
    String::from_utf8_lossy(&said).into_owned()
}

/// Raises what this process may open to what the system allows; how many that is.
fn descriptors() -> Result<usize> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    Ok(limit.maximum.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX))
}

#[tokio::test]
async fn thousands_of_idle_connections_cost_a_bounded_memory_and_a_request_is_served_beside_them() -> Result<()> {
    let count = THOUSANDS.min(descriptors()?.saturating_sub(1000));
    // Neither side may take the last eighth of all the room.
    let most = (count * 8 / 7 + 100).to_string();
    let pair = Pair::up(&["--max-connections", &most]).await?;
    // That there is no such Service must be known: the question may take a moment.
    eventually(SOON, "nobody to be nobody", async || {
        Ok((pair.caller()?.through_sidecar().get("nobody", "/", &[]).await?.status == 502).then_some(()))
    })
    .await?;
    let (door, before) = (pair.door()?, pair.resident().await?);
    let mut opening = JoinSet::new();
    for part in 0..50 {
        opening.spawn(async move {
            let mut open = Vec::new();
            for _ in (part..count).step_by(50) {
                let mut stream = TcpStream::connect(door).await?;
                // Each has been in use once.
                stream.write_all(b"GET / HTTP/1.1\r\nhost: nobody\r\n\r\n").await?;
                let mut answer = [0; 12];
                stream.read_exact(&mut answer).await?;
                if &answer != b"HTTP/1.1 502" {
                    bail!("{}{}", String::from_utf8_lossy(&answer), rest(&mut stream).await);
                }
                open.push(stream);
            }
            Ok(open)
        });
    }
    let open: Vec<TcpStream> =
        opening.join_all().await.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    ensure!(open.len() == count, "{} connections", open.len());
    ensure!(pair.counted("equerry_connections{direction=\"outbound\"").await? >= count as u64, "some are closed");
    pair.is_served().await?;
    let grown = pair.resident().await?.saturating_sub(before);
    println!(
        "{count} idle connections: {} MiB, {:.1} KiB each, beside {} MiB",
        grown / 1024,
        grown as f64 / count as f64,
        before / 1024
    );
    ensure!(
        grown <= KIB_EACH * count as u64,
        "{} MiB, at most {} are allowed",
        grown / 1024,
        KIB_EACH * count as u64 / 1024
    );
    drop(open);
    eventually(SOON, "them to be gone", async || {
        Ok((pair.counted("equerry_connections{direction=\"outbound\"").await? < 10).then_some(()))
    })
    .await?;
    pair.is_served().await
}

#[tokio::test]
async fn whoever_reads_nothing_or_sends_without_end_is_cut_and_others_are_served_meanwhile() -> Result<()> {
    let pair = Pair::up(&[]).await?;
    let (door, before) = (pair.door()?, pair.resident().await?);
    let normal = Load { to: door, host: "inventory".to_owned(), gets: 2, posts: 0, http2: 0 }.begin();

    let mut strangers = JoinSet::new();
    for _ in 0..100 {
        strangers.spawn(async move {
            let mut deaf = TcpStream::connect(door).await?;
            deaf.write_all(b"GET /endless HTTP/1.1\r\nhost: inventory\r\n\r\n").await?;
            // Kept, and never read.
            Ok(Some(deaf))
        });
    }
    for (count, head, expected) in [
        (50, "GET / HTTP/1.1\r\nhost: inventory\r\nx-giant: ".to_owned() + &"x".repeat(70_000) + "\r\n\r\n", "431 "),
        (50, "GET / HTTP/1.1\r\nhost: inventory\r\n".to_owned() + &"x-many: y\r\n".repeat(5000), "431 "),
        (50, "GET / HTTP/1.1\r\nhost: inv".to_owned(), "408 "),
    ] {
        for _ in 0..count {
            let head = head.clone();
            strangers.spawn(async move {
                let mut stream = TcpStream::connect(door).await?;
                // It may be answered and closed before all of it was sent.
                let _ = stream.write_all(head.as_bytes()).await;
                let said = rest(&mut stream).await;
                ensure!(said.is_empty() || said.starts_with(&format!("HTTP/1.1 {expected}")), "{expected}: {said}");
                ensure!(expected != "408 " || !said.is_empty(), "closed without a word");
                Ok(None)
            });
        }
    }
    for _ in 0..20 {
        strangers.spawn(async move {
            let (mut reads, mut writes) = TcpStream::connect(door).await?.into_split();
            writes.write_all(b"POST /take HTTP/1.1\r\nhost: inventory\r\ntransfer-encoding: chunked\r\n\r\n").await?;
            let chunk = [b"4000\r\n".as_slice(), &[b'x'; 0x4000], b"\r\n"].concat();
            let endless = async { while writes.write_all(&chunk).await.is_ok() {} };
            let mut said = Vec::new();
            let (_, ()) = tokio::join!(reads.read_to_end(&mut said), endless);
            let said = String::from_utf8_lossy(&said).into_owned();
            ensure!(said.is_empty() || said.starts_with("HTTP/1.1 413 "), "{said}");
            Ok(None)
        });
    }
    let deaf = strangers.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
    for (reason, count) in [("stream_idle", 100), ("client_slow", 50), ("too_large", 60)] {
        eventually(SOON, &format!("{count} to end as {reason}"), async || {
            let page = pair.caller()?.telemetry().get("localhost", "/metrics", &[]).await?;
            let text = String::from_utf8_lossy(&page.body).into_owned();
            let ended = text
                .lines()
                .filter(|line| line.starts_with("equerry_requests_total{") && line.contains(&format!("\"{reason}\"")))
                .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
                .sum::<u64>();
            if ended >= count { Ok(Some(())) } else { bail!("{ended}") }
        })
        .await?;
    }
    drop(deaf);
    let tally = normal.end().await?;
    tally.all_well()?;
    let grown = pair.resident().await?.saturating_sub(before);
    println!("{} calls beside 320 strangers, for {} MiB", tally.answered, grown / 1024);
    ensure!(grown < 96 * 1024, "{} MiB", grown / 1024);
    pair.is_served().await
}

#[tokio::test]
async fn beyond_its_room_callers_are_told_so_and_without_descriptors_they_wait() -> Result<()> {
    let pair = Pair::up(&["--max-connections", "40"]).await?;
    let door = pair.door()?;
    let mut open = Vec::new();
    let refused = eventually(SOON, "a connection too many", async || {
        let mut stream = TcpStream::connect(door).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: inventory\r\n\r\n").await?;
        let mut answer = vec![0; 4096];
        let read = stream.read(&mut answer).await?;
        let said = String::from_utf8_lossy(&answer[..read]).into_owned();
        if said.starts_with("HTTP/1.1 200 ") {
            open.push(stream);
            ensure!(open.len() <= 40, "{} are served", open.len());
            return Ok(None);
        }
        Ok(Some(said + &rest(&mut stream).await))
    })
    .await?;
    ensure!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("\"reason\":\"overload\""), "{refused}");
    ensure!(refused.contains("connection: close"), "{refused}");
    ensure!(
        pair.counted("equerry_connections_refused_total{direction=\"outbound\",reason=\"process_full\"}").await? >= 1,
        "not counted"
    );
    drop(open);
    eventually(SOON, "room again", async || pair.is_served().await.map(Some)).await?;

    // Fewer file descriptors than connections: they wait in the kernel, and are served when there are some.
    let id = pair.mesh.town.sidecar_id(pair.caller()?).await.context("the sidecar does not run")?;
    let (pid, held) = (Pid::from_raw(i32::try_from(id)?), std::fs::read_dir(format!("/proc/{id}/fd"))?.count() as u64);
    let usual = prlimit(
        pid,
        Resource::Nofile,
        Rlimit { current: Some(held + 3), maximum: getrlimit(Resource::Nofile).maximum },
    )?;
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(door).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: nobody\r\n\r\n").await?;
        waiting.push(stream);
    }
    eventually(SOON, "the acceptor to pause", async || {
        Ok((pair.counted("equerry_accept_pauses_total{direction=\"outbound\"}").await? > 0).then_some(()))
    })
    .await?;
    prlimit(pid, Resource::Nofile, usual)?;
    for mut stream in waiting {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        ensure!(&answer == b"HTTP/1.1 502", "{}", String::from_utf8_lossy(&answer));
    }
    eventually(SOON, "a normal request to be served", async || pair.is_served().await.map(Some)).await
}
