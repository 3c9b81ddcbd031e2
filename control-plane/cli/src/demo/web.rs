//! A small HTTP/1.1 client for one address: keep-alive connections, nothing decided on the caller's behalf.
//!
//! The driver, the applications and the check use it. It tries nothing twice, but a request that a closing connection
//! handed back unsent: what the mesh does must be seen as it is.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// No call of the demo may take longer.
const CALL_LIMIT: Duration = Duration::from_secs(15);

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, read to the end.
    pub body: Bytes,
}

impl Answer {
    /// A header as text; empty when it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON; null when it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The status and the beginning of the body, for messages.
    pub fn shown(&self) -> String {
        let body: String = String::from_utf8_lossy(&self.body).chars().take(300).collect();
        format!("{} {}", self.status, body.trim())
    }
}

/// A client for one address.
#[derive(Debug)]
pub struct Caller {
    address: SocketAddr,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Caller {
    /// Speaks to `address`.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, idle: Mutex::new(Vec::new()) }
    }

    /// Speaks to a port on loopback.
    pub fn local(port: u16) -> Self {
        Self::new(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// `GET path` at `host`, with more headers.
    ///
    /// # Errors
    /// As [`Caller::send`].
    pub async fn get(&self, host: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        self.call("GET", host, path, headers).await
    }

    /// Any method without a body.
    ///
    /// # Errors
    /// As [`Caller::send`].
    pub async fn call(&self, method: &str, host: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(path).header("host", host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Full::default()).context("building a request")?).await
    }

    /// Sends one request and reads the whole answer.
    ///
    /// # Errors
    /// When there is no connection, no answer within 15 s, or the answer breaks off.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer> {
        tokio::time::timeout(CALL_LIMIT, self.exchange(request))
            .await
            .map_err(|_| anyhow!("no answer within {CALL_LIMIT:?}"))?
    }

    async fn exchange(&self, mut request: Request<Full<Bytes>>) -> Result<Answer> {
        let (response, connection) = loop {
            let (mut connection, fresh) = match self.take_idle() {
                Some(idle) => (idle, false),
                None => (self.connect().await?, true),
            };
            match connection.try_send_request(request).await {
                Ok(response) => break (response, connection),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !fresh => request = unsent,
                    _ => return Err(anyhow!(error.into_error()).context(format!("calling {}", self.address))),
                },
            }
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await.with_context(|| format!("reading the answer of {}", self.address))?.to_bytes();
        self.give_back(connection);
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(connection) = idle.pop() {
            if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    fn give_back(&self, connection: SendRequest<Full<Bytes>>) {
        if !connection.is_closed() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).insert(0, connection);
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream =
            TcpStream::connect(self.address).await.with_context(|| format!("connecting to {}", self.address))?;
        stream.set_nodelay(true).context("setting TCP_NODELAY")?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("beginning HTTP/1.1")?;
        // Its error, if any, is told to the request in flight.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}
