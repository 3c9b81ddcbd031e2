//! Load for promises: callers that each keep one connection and ask again as soon as they are answered, every failure kept.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Failures that are kept in words; the rest is counted.
const KEPT: usize = 5;

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
            let Tally { answered, failed, connections, failures } = one.context("a caller")?;
            all.answered += answered;
            all.failed += failed;
            all.connections += connections;
            all.failures.extend(failures);
            all.failures.truncate(KEPT);
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
        let stream = TcpStream::connect(load.to).await.context("connecting")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        *connections += 1;
        *open = Some(sender);
    }
    let Some(sender) = open else { bail!("no connection") };
    sender.ready().await.context("the connection was closed")?;
    let body = if *method == Method::POST { "something" } else { "" };
    let request = Request::builder().method(method).uri("/").header("host", &load.host);
    let answer = sender.send_request(request.body(Full::new(Bytes::from(body)))?).await.context("asking")?;
    let status = answer.status();
    let said = answer.into_body().collect().await.context("reading the answer")?.to_bytes();
    if status != http::StatusCode::OK {
        bail!("{status}: {}", String::from_utf8_lossy(&said));
    }
    Ok(())
}
