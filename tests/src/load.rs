//! Load for promises: callers that each keep one connection, or share one of HTTP/2, and ask again as soon as they are answered,
//! every failure kept.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Failures that are kept in words; the rest is counted.
const KEPT: usize = 5;
/// Callers that share a connection of HTTP/2: every second one sends a body that nobody may send twice.
const STREAMS: usize = 4;

/// What came of a load.
#[derive(Debug, Default)]
pub struct Tally {
    /// Calls answered with 200.
    pub answered: u64,
    /// Calls that were not.
    pub failed: u64,
    /// Connections made.
    pub connections: u64,
    /// The first failures, in words.
    pub failures: Vec<String>,
}

impl Tally {
    /// Nothing failed, and something was asked.
    ///
    /// # Errors
    /// With the first failures.
    pub fn all_well(&self) -> Result<()> {
        if self.failed > 0 || self.answered == 0 {
            bail!("{} calls failed, {} were answered: {:#?}", self.failed, self.answered, self.failures);
        }
        Ok(())
    }

    pub(crate) fn add(&mut self, more: Self) {
        self.answered += more.answered;
        self.failed += more.failed;
        self.connections += more.connections;
        self.failures.extend(more.failures);
        self.failures.truncate(KEPT);
    }
}

/// What is asked, and through which door.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where callers connect.
    pub to: SocketAddr,
    /// Whom they ask for.
    pub host: String,
    /// Callers that ask with GET.
    pub gets: usize,
    /// Callers that ask with POST and a small body: nobody may send that twice.
    pub posts: usize,
    /// Connections of HTTP/2, each shared by four callers.
    pub http2: usize,
}

/// A load under way.
#[derive(Debug)]
pub struct UnderWay {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    callers: JoinSet<Tally>,
}

impl Load {
    /// Begins.
    pub fn begin(&self) -> UnderWay {
        let (stop, answered, mut callers) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), JoinSet::new());
        for number in 0..self.gets + self.posts {
            let method = if number < self.gets { Method::GET } else { Method::POST };
            callers.spawn(call_until(self.clone(), method, Arc::clone(&stop), Arc::clone(&answered)));
        }
        for _ in 0..self.http2 {
            callers.spawn(share_until(self.clone(), Arc::clone(&stop), Arc::clone(&answered)));
        }
        UnderWay { stop, answered, callers }
    }
}

impl UnderWay {
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
        let mut all = Tally::default();
        while let Some(one) = self.callers.join_next().await {
            all.add(one.context("a caller")?);
        }
        Ok(all)
    }
}

async fn call_until(load: Load, method: Method, stop: Arc<AtomicBool>, answered: Arc<AtomicU64>) -> Tally {
    let (mut tally, mut open) = (Tally::default(), None);
    while !stop.load(Ordering::Relaxed) {
        match call(&load, &method, &mut open, &mut tally.connections).await {
            Ok(()) => {
                tally.answered += 1;
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                tally.failed += 1;
                open = None;
                if tally.failures.len() < KEPT {
                    tally.failures.push(format!("{method}: {error:#}"));
                }
                // A door that is shut must not be knocked at in a busy loop.
                tokio::task::yield_now().await;
            }
        }
    }
    tally
}

type Connection = SendRequest<Full<Bytes>>;

async fn call(load: &Load, method: &Method, open: &mut Option<Connection>, connections: &mut u64) -> Result<()> {
    if open.as_ref().is_none_or(Connection::is_closed) {
        let (sender, connection) = http1::handshake(connect(load).await?).await?;
        tokio::spawn(connection);
        *connections += 1;
        *open = Some(sender);
    }
    let Some(sender) = open else { bail!("no connection") };
    sender.ready().await.context("the connection was closed")?;
    let request = Request::builder().method(method).uri("/").header("host", &load.host).body(body_of(method))?;
    well(sender.send_request(request).await.context("asking")?).await
}

/// Callers that share a connection of HTTP/2, and make another when one of them has failed.
async fn share_until(load: Load, stop: Arc<AtomicBool>, answered: Arc<AtomicU64>) -> Tally {
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        match share(&load).await {
            Ok(sender) => {
                tally.connections += 1;
                let one = |number| stream_until(&load, number, sender.clone(), &stop, &answered);
                join_all((0..STREAMS).map(one)).await.into_iter().for_each(|one| tally.add(one));
            }
            Err(error) => {
                tally.failed += 1;
                tally.failures.push(format!("{error:#}"));
                tally.failures.truncate(KEPT);
            }
        }
        tokio::task::yield_now().await;
    }
    tally
}

type Shared = http2::SendRequest<Full<Bytes>>;

async fn share(load: &Load) -> Result<Shared> {
    let (sender, connection) = http2::handshake(TokioExecutor::new(), connect(load).await?).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// One caller of a shared connection, until it is told to stop or a call has failed.
async fn stream_until(load: &Load, number: usize, sender: Shared, stop: &AtomicBool, answered: &AtomicU64) -> Tally {
    let mut tally = Tally::default();
    let method = if number.is_multiple_of(2) { Method::GET } else { Method::POST };
    while !stop.load(Ordering::Relaxed) {
        match ask(load, &method, sender.clone()).await {
            Ok(()) => {
                tally.answered += 1;
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                tally.failed += 1;
                tally.failures.push(format!("{method} over HTTP/2: {error:#}"));
                break;
            }
        }
    }
    tally
}

async fn ask(load: &Load, method: &Method, mut sender: Shared) -> Result<()> {
    sender.ready().await.context("the connection was closed")?;
    let request = Request::builder().method(method).uri(format!("http://{}/", load.host)).body(body_of(method))?;
    well(sender.send_request(request).await.context("asking")?).await
}

async fn connect(load: &Load) -> Result<TokioIo<TcpStream>> {
    let stream = TcpStream::connect(load.to).await.context("connecting")?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(stream))
}

fn body_of(method: &Method) -> Full<Bytes> {
    Full::new(Bytes::from(if *method == Method::POST { "something" } else { "" }))
}

/// The answer is 200, and whole.
async fn well(answer: Response<Incoming>) -> Result<()> {
    let status = answer.status();
    let said = answer.into_body().collect().await.context("reading the answer")?.to_bytes();
    if status != http::StatusCode::OK {
        bail!("{status}: {}", String::from_utf8_lossy(&said));
    }
    Ok(())
}
