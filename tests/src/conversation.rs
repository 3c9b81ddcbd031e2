//! What goes on for as long as both sides like, and what comes in a row: streams and calls as gRPC makes them, and connections
//! that were upgraded, each with a [`Workshop`](crate::workshop::Workshop) at its other end.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::load::Tally;

/// Longer than anything here takes that has not stopped.
const SOON: Duration = Duration::from_secs(15);

/// A stream as gRPC keeps them open: every word comes back while both sides go on.
#[derive(Debug)]
pub struct Words {
    say: mpsc::UnboundedSender<Result<Frame<Bytes>, Infallible>>,
    heard: Incoming,
}

impl Words {
    /// Begins, through the sidecar at an address, with the Service called `host`.
    ///
    /// # Errors
    /// When it is not answered with 200.
    pub async fn begin(sidecar: &str, host: &str) -> Result<Self> {
        let socket = TcpStream::connect(sidecar).await?;
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await?;
        tokio::spawn(connection);
        let (say, said) = mpsc::unbounded_channel();
        let request = Request::post(format!("http://{host}/echo")).header("content-type", "application/grpc");
        let body = StreamBody::new(UnboundedReceiverStream::new(said));
        let answer = timeout(SOON, sender.send_request(request.body(body)?)).await.context("no answer")??;
        ensure!(answer.status() == 200, "{}", answer.status());
        Ok(Self { say, heard: answer.into_body() })
    }

    /// Says something, which comes back.
    ///
    /// # Errors
    /// When something else does, or nothing.
    pub async fn exchange(&mut self, word: &str) -> Result<()> {
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
    ///
    /// # Errors
    /// When they do not come back.
    pub async fn end(mut self) -> Result<()> {
        self.say.send(Ok(Frame::trailers(well())))?;
        let last = self.next().await?.into_trailers().ok().context("more data")?;
        ensure!(last == well(), "{last:?}");
        Ok(())
    }

    async fn next(&mut self) -> Result<Frame<Bytes>> {
        let next = timeout(SOON, self.heard.frame()).await.context("the stream stands still")?;
        next.context("the stream has ended")?.context("the stream was cut")
    }
}

/// A connection that speaks something else after 101, where every word comes back.
#[derive(Debug)]
pub struct Chat(TcpStream);

impl Chat {
    /// Begins, through the sidecar at an address, with the Service called `host`.
    ///
    /// # Errors
    /// When it is not answered with 101.
    pub async fn begin(sidecar: &str, host: &str) -> Result<Self> {
        let mut socket = TcpStream::connect(sidecar).await?;
        let asked = format!("GET /echo HTTP/1.1\r\nhost: {host}\r\nconnection: upgrade\r\nupgrade: chatter\r\n\r\n");
        socket.write_all(asked.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(SOON, socket.read_u8()).await.context("no answer")??);
        }
        let head = String::from_utf8_lossy(&head);
        ensure!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Ok(Self(socket))
    }

    /// Says something, which comes back.
    ///
    /// # Errors
    /// When something else does, or nothing.
    pub async fn exchange(&mut self, word: &str) -> Result<()> {
        self.0.write_all(word.as_bytes()).await?;
        let mut heard = vec![0; word.len()];
        timeout(SOON, self.0.read_exact(&mut heard)).await.context("the connection stands still")??;
        ensure!(heard == word.as_bytes(), "{}", String::from_utf8_lossy(&heard));
        Ok(())
    }

    /// Ends: whoever says that this was all hears the same, and no word more.
    ///
    /// # Errors
    /// When it is cut instead.
    pub async fn end(mut self) -> Result<()> {
        self.0.shutdown().await?;
        let mut rest = Vec::new();
        timeout(SOON, self.0.read_to_end(&mut rest)).await.context("the connection stays open")??;
        ensure!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
        Ok(())
    }
}

/// Callers of gRPC that share one connection, as a channel does, and call again as soon as they are answered. Nobody may make such
/// a call twice.
#[derive(Debug)]
pub struct Channel {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    callers: JoinSet<Tally>,
}

impl Channel {
    /// Opens, through the sidecar at an address, to the Service called `host`.
    ///
    /// # Errors
    /// When the sidecar takes no connection.
    pub async fn open(sidecar: &str, host: &str, callers: usize) -> Result<Self> {
        let socket = TcpStream::connect(sidecar).await?;
        socket.set_nodelay(true)?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await?;
        tokio::spawn(connection);
        let mut channel = Self { stop: Arc::default(), answered: Arc::default(), callers: JoinSet::new() };
        for _ in 0..callers {
            let (stop, answered) = (Arc::clone(&channel.stop), Arc::clone(&channel.answered));
            let (sender, host) = (sender.clone(), host.to_owned());
            channel.callers.spawn(async move {
                let mut tally = Tally::default();
                while !stop.load(Ordering::Relaxed) {
                    if let Err(error) = call(sender.clone(), &host).await {
                        tally.failed += 1;
                        tally.failures.push(format!("gRPC: {error:#}"));
                        break;
                    }
                    tally.answered += 1;
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                tally
            });
        }
        Ok(channel)
    }

    /// How many calls were answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Ends when every caller has the answer it waits for.
    ///
    /// # Errors
    /// When a caller panicked.
    pub async fn end(mut self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally { connections: 1, ..Tally::default() };
        while let Some(one) = self.callers.join_next().await {
            all.add(one.context("a caller")?);
        }
        Ok(all)
    }
}

/// One call: its message comes back with the status that says that all is well.
async fn call(mut sender: http2::SendRequest<StreamOfOne>, host: &str) -> Result<()> {
    sender.ready().await.context("the connection was closed")?;
    let message = Bytes::from_static(b"\0\0\0\0\x05hello");
    let body = Full::new(message.clone()).with_trailers(std::future::ready(Some(Ok(well()))));
    let request = Request::post(format!("http://{host}/echo")).header("content-type", "application/grpc");
    let request = request.header("te", "trailers").body(body)?;
    let answer = timeout(SOON, sender.send_request(request)).await.context("no answer")??;
    let status = answer.status();
    let said = timeout(SOON, answer.into_body().collect()).await.context("no end")??;
    let trailers = said.trailers().cloned().unwrap_or_default();
    let said = said.to_bytes();
    if status != 200 || said != message || trailers != well() {
        bail!("{status} {trailers:?}: {}", String::from_utf8_lossy(&said));
    }
    Ok(())
}

type Trailers = std::future::Ready<Option<Result<HeaderMap, Infallible>>>;
type StreamOfOne = http_body_util::combinators::WithTrailers<Full<Bytes>, Trailers>;

fn well() -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))])
}
