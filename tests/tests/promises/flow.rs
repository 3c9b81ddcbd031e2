//! Flow control is each stream's own: who reads slowly holds up nobody else, and full windows both ways are no deadlock.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use equerry_tests::workshop::{Workshop, pattern, sum};
use equerry_tests::{Mesh, eventually, peers};
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::{PAIR, program};

/// The same application, spoken to in HTTP/2 and in HTTP/1.1.
const DOCUMENTS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: work, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {app: inventory}, ports: [{port: 80, targetPort: 8080, appProtocol: kubernetes.io/h2c}]}
---
apiVersion: v1
kind: Service
metadata: {name: work1, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {app: inventory}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}
";
const MEBIBYTE: usize = 1 << 20;
/// Long enough for two cores that do other things too.
const PATIENCE: Duration = Duration::from_secs(40);

type Body = BoxBody<Bytes, std::convert::Infallible>;

struct Ground {
    mesh: Mesh,
    _app: Workshop,
}

impl Ground {
    async fn lay() -> Result<Self> {
        let mesh = Mesh::found(program(), &PAIR[..2], DOCUMENTS).await?;
        let home = mesh.town.home("inventory-v1")?;
        home.app.release();
        let app = Workshop::open(home.app.number()).await?;
        mesh.start_sidecars(&[]).await?;
        let orders = mesh.town.home("orders")?;
        for service in ["work", "work1"] {
            eventually(Duration::from_secs(15), "the application to be reached", async || {
                let answer = orders.through_sidecar().get(service, "/status/200", &[]).await?;
                ensure!(answer.status == 200, "{}", answer.shown());
                Ok(Some(()))
            })
            .await?;
        }
        Ok(Self { mesh, _app: app })
    }

    /// One connection to the sidecar, with windows of this size.
    async fn connect(&self, stream_window: u32, connection_window: u32) -> Result<SendRequest<Body>> {
        let socket = TcpStream::connect(self.mesh.town.home("orders")?.outbound.address()).await?;
        socket.set_nodelay(true)?;
        let (send, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(stream_window)
            .initial_connection_window_size(connection_window)
            .handshake(TokioIo::new(socket))
            .await?;
        tokio::spawn(connection);
        Ok(send)
    }
}

fn get(service: &str, path: &str) -> Result<Request<Body>> {
    Ok(Request::builder().uri(format!("http://{service}{path}")).body(Empty::new().boxed())?)
}

async fn send(to: &SendRequest<Body>, request: Request<Body>) -> Result<Response<Incoming>> {
    tokio::time::timeout(PATIENCE, to.clone().send_request(request)).await.context("no answer")?.context("sending")
}

async fn whole(answer: Response<Incoming>) -> Result<Bytes> {
    ensure!(answer.status() == 200, "{}", answer.status());
    Ok(tokio::time::timeout(PATIENCE, answer.into_body().collect()).await.context("the body stands still")??.to_bytes())
}

#[tokio::test]
async fn streams_that_nobody_reads_hold_up_no_other_stream() -> Result<()> {
    let ground = Ground::lay().await?;
    for service in ["work", "work1"] {
        // The connection's window has room for all that the unread streams' windows let through.
        let caller = ground.connect(64 * 1024, 4 * 1024 * 1024).await?;
        let mut unread = Vec::new();
        for _ in 0..8 {
            unread.push(send(&caller, get(service, &format!("/bytes/{}", 16 * MEBIBYTE))?).await?);
        }
        for number in 0..200 {
            let answer = whole(send(&caller, get(service, "/bytes/1000")?).await?).await;
            ensure!(answer.with_context(|| format!("{service}, small answer {number}"))? == pattern(1000));
        }
        let large = whole(send(&caller, get(service, &format!("/bytes/{}", 4 * MEBIBYTE))?).await?).await;
        ensure!(large.context("a large answer")? == pattern(4 * MEBIBYTE), "{service}: a large answer came changed");
        // Those that were not read are whole when somebody does.
        let late = whole(unread.pop().context("a stream")?).await.context("an answer that was left")?;
        ensure!(late.len() == 16 * MEBIBYTE && sum(&late) == sum(&pattern(16 * MEBIBYTE)), "{service}: {}", late.len());
    }
    Ok(())
}

/// Between the sidecars they may share a connection.
#[tokio::test]
async fn callers_of_http1_that_do_not_read_hold_up_nobody() -> Result<()> {
    let ground = Ground::lay().await?;
    let orders = ground.mesh.town.home("orders")?;
    for service in ["work", "work1"] {
        let mut unread = Vec::new();
        for _ in 0..8 {
            let mut caller = TcpStream::connect(orders.outbound.address()).await?;
            let head = format!("GET /bytes/{} HTTP/1.1\r\nhost: {service}\r\n\r\n", 16 * MEBIBYTE);
            caller.write_all(head.as_bytes()).await?;
            caller.readable().await?;
            unread.push(caller);
        }
        for number in 0..200 {
            let answer = orders.through_sidecar().get(service, "/bytes/1000", &[]).await?;
            ensure!(answer.status == 200 && answer.body == pattern(1000), "{service}, {number}: {}", answer.status);
        }
        let large = orders.through_sidecar().get(service, &format!("/bytes/{}", 4 * MEBIBYTE), &[]).await?;
        ensure!(large.body == pattern(4 * MEBIBYTE), "{service}: a large answer came changed");
    }
    Ok(())
}

#[tokio::test]
async fn sixty_four_mebibytes_go_out_and_come_back_at_once() -> Result<()> {
    let ground = Ground::lay().await?;
    let piece = Bytes::from(pattern(64 * 1024));
    for (service, mebibytes) in [("work", 64), ("work1", 16)] {
        let count = mebibytes * MEBIBYTE / piece.len();
        let caller = ground.connect(64 * 1024, 64 * 1024).await?;
        let pieces = stream::repeat(piece.clone()).take(count).map(|piece| Ok(Frame::data(piece)));
        let request = Request::builder().method("POST").uri(format!("http://{service}/echo"));
        let answer = send(&caller, request.body(BodyExt::boxed(StreamBody::new(pieces)))?).await?;
        ensure!(answer.status() == 200, "{service}: {}", answer.status());
        let mut body = pin!(answer.into_body());
        let mut came = 0;
        while let Some(frame) = tokio::time::timeout(PATIENCE, body.frame()).await.context("the echo stands still")? {
            let frame = frame.with_context(|| format!("{service}, after {came} bytes"))?;
            let mut data = frame.into_data().unwrap_or_default();
            while !data.is_empty() {
                let expected = &piece[came % piece.len()..];
                let here = data.split_to(expected.len().min(data.len()));
                ensure!(here == expected[..here.len()], "{service}: what came back after {came} bytes is changed");
                came += here.len();
            }
        }
        ensure!(came == mebibytes * MEBIBYTE, "{service}: {came} bytes came back");
    }
    Ok(())
}

#[tokio::test]
async fn a_slow_curl_reads_on_while_others_are_served() -> Result<()> {
    if !peers::installed("curl", "apt-get install curl")? {
        return Ok(());
    }
    let ground = Ground::lay().await?;
    let orders = ground.mesh.town.home("orders")?;
    let sidecar = format!("http://{}/bytes/1000000", orders.outbound.address());
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let slow = [
            "-sS",
            version,
            "-H",
            "host: work",
            "--limit-rate",
            "1M",
            "-o",
            "/dev/null",
            "-w",
            "%{size_download}",
            &sidecar,
        ];
        let others = async {
            for number in 0..100 {
                let answer = orders.through_sidecar().get("work", "/bytes/1000", &[]).await?;
                ensure!(answer.status == 200 && answer.body == pattern(1000), "{number}: {}", answer.status);
            }
            anyhow::Ok(())
        };
        let (slow, others) = tokio::join!(peers::run("curl", &slow), others);
        others?;
        let said = slow?.succeeded()?.out;
        ensure!(said == "1000000", "{version}: {said}");
    }
    Ok(())
}
