//! Many calls at once through a sidecar, over both versions of HTTP, and what became of each as its caller sees it.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use equerry::demo::web::{Answer, Caller};
use futures_util::stream::{self, StreamExt};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::faulty::ANSWER_LENGTH;

/// Calls of one kind in flight at once: half of them over HTTP/1.1, half over one connection of HTTP/2.
pub const AT_ONCE: usize = 8;

/// Calls that are alike.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// What the table calls them.
    pub name: &'static str,
    /// Their method.
    pub method: &'static str,
    /// Their path.
    pub path: &'static str,
    /// The path by which they want their answer soon.
    pub soon: &'static str,
    /// Bytes in the body of each.
    pub body: usize,
}

impl Kind {
    /// The same, in a hurry.
    #[must_use]
    pub fn soon(self) -> Self {
        Self { path: self.soon, ..self }
    }
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The application's own answer, whole, with this status.
    Whole(u16),
    /// The mesh's refusal, with its reason.
    Refused(String),
    /// The answer began and broke off.
    Cut,
    /// Anything else, in words: it should never be seen.
    Wrong(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(status) => write!(f, "{status}"),
            Self::Refused(reason) => f.write_str(reason),
            Self::Cut => f.write_str("cut"),
            Self::Wrong(words) => write!(f, "WRONG: {words}"),
        }
    }
}

/// A call and what became of it.
#[derive(Debug)]
pub struct Told {
    /// Its own name, as it arrived at the application.
    pub call: String,
    /// What became of it.
    pub outcome: Outcome,
    /// The application that answered.
    pub by: Option<String>,
}

/// What is sent by gRPC: a message of five bytes.
const GRPC_MESSAGE: Bytes = Bytes::from_static(b"\0\0\0\0\x05hello");
/// Calls made so far: no two have the same name.
static MADE: AtomicUsize = AtomicUsize::new(0);

/// Clients of one sidecar.
#[derive(Debug)]
pub struct Storm<'a> {
    http1: &'a Caller,
    http2: SendRequest<Full<Bytes>>,
}

impl<'a> Storm<'a> {
    /// Calls through the sidecar that listens at `address`, and that `http1` speaks to.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn through(address: &str, http1: &'a Caller) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("connecting for HTTP/2")?;
        stream.set_nodelay(true)?;
        let (http2, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { http1, http2 })
    }

    /// Makes `count` calls to a Service; `meanwhile` is told the number of each call before it is made.
    pub async fn calls(&self, service: &str, kind: Kind, count: usize, meanwhile: impl AsyncFn(usize)) -> Vec<Told> {
        let meanwhile = &meanwhile;
        let call = |number| async move {
            meanwhile(number).await;
            self.call(service, kind, number % 2 == 0).await
        };
        stream::iter((0..count).map(call)).buffer_unordered(AT_ONCE).collect().await
    }

    /// Makes one call.
    pub async fn call(&self, service: &str, kind: Kind, http2: bool) -> Told {
        let version = if http2 { "h2" } else { "h1" };
        let call = format!("{}-{version}-{}", kind.name, MADE.fetch_add(1, Ordering::Relaxed));
        let (outcome, by) = match self.answer(service, kind, &call, http2).await {
            Ok(Ok(answer)) => judged(&answer, &call),
            Ok(Err(_)) => (Outcome::Cut, None),
            Err(error) => (Outcome::Wrong(format!("{error:#}")), None),
        };
        Told { call, outcome, by }
    }

    /// The same by gRPC: a message and a status come back.
    pub async fn grpc_calls(
        &self,
        service: &str,
        path: &str,
        count: usize,
        meanwhile: impl AsyncFn(usize),
    ) -> Vec<Told> {
        let meanwhile = &meanwhile;
        let call = |number| async move {
            meanwhile(number).await;
            let call = format!("gRPC-{}", MADE.fetch_add(1, Ordering::Relaxed));
            let (outcome, by) = match self.grpc_answer(service, path, &call).await {
                Ok(answered) => answered,
                Err(error) => (Outcome::Wrong(format!("{error:#}")), None),
            };
            Told { call, outcome, by }
        };
        stream::iter((0..count).map(call)).buffer_unordered(AT_ONCE).collect().await
    }

    async fn grpc_answer(&self, service: &str, path: &str, call: &str) -> Result<(Outcome, Option<String>)> {
        let request = Request::post(format!("http://{service}{path}")).header("content-type", "application/grpc");
        let request = request.header("te", "trailers").header("x-call", call).header("x-request-id", call);
        let (head, mut body) = self.http2.clone().send_request(request.body(GRPC_MESSAGE.into())?).await?.into_parts();
        let (mut said, mut last) = (Vec::new(), head.headers);
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return Ok((Outcome::Cut, None)) };
            match frame.into_data() {
                Ok(data) => said.extend_from_slice(&data),
                Err(frame) => last = frame.into_trailers().unwrap_or_default(),
            }
        }
        let field = |name| last.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let text = String::from_utf8_lossy(said.get(5..).unwrap_or_default()).into_owned();
        let by = text.split_once(&format!(" answers {call}\n")).map(|(by, _)| by.to_owned());
        Ok(match (head.status.as_u16(), field("grpc-status"), by) {
            (200, "0", Some(by)) if said.len() == ANSWER_LENGTH + 5 => (Outcome::Whole(200), Some(by)),
            (200, code, _) if code != "0" && !code.is_empty() && !said.is_empty() => (Outcome::Cut, None),
            (200, "14", _) => {
                let reason = field("grpc-message").split(':').next().unwrap_or_default();
                (Outcome::Refused(reason.to_owned()), None)
            }
            (status, code, _) => {
                (Outcome::Wrong(format!("{status}, grpc-status {code:?}, {} bytes", said.len())), None)
            }
        })
    }

    /// The answer, or how it broke off.
    async fn answer(&self, service: &str, kind: Kind, call: &str, http2: bool) -> Result<Result<Answer>> {
        let body = Full::new(Bytes::from(vec![b'b'; kind.body]));
        // By the second name every sidecar's log tells of it.
        let request = Request::builder().method(kind.method).header("x-call", call).header("x-request-id", call);
        if !http2 {
            let answer = self.http1.send(request.uri(kind.path).header("host", service).body(body)?).await;
            return match answer {
                Err(error) if error.to_string().starts_with("reading the answer") => Ok(Err(error)),
                other => other.map(Ok),
            };
        }
        let request = request.uri(format!("http://{service}{}", kind.path)).body(body)?;
        let (head, body) = match self.http2.clone().send_request(request).await {
            Ok(answer) => answer.into_parts(),
            // hyper forgets a head that came together with the reset of its stream.
            Err(error) => {
                let error = anyhow!(error);
                let reset = format!("{error:#}").contains("stream error received");
                return if reset { Ok(Err(error)) } else { Err(error) };
            }
        };
        Ok(match body.collect().await {
            Ok(body) => Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes() }),
            Err(error) => Err(error.into()),
        })
    }
}

/// Whether an answer is what the application sends, or the mesh's own.
fn judged(answer: &Answer, call: &str) -> (Outcome, Option<String>) {
    if let Some(reason) = answer.json()["reason"].as_str() {
        return (Outcome::Refused(reason.to_owned()), None);
    }
    let text = String::from_utf8_lossy(&answer.body);
    if answer.status == 413 && text == "too much" {
        return (Outcome::Whole(413), None);
    }
    let by = text.split_once(&format!(" answers {call}\n")).map(|(by, _)| by.to_owned());
    match by {
        Some(by) if answer.status == 200 && answer.body.len() == ANSWER_LENGTH => (Outcome::Whole(200), Some(by)),
        _ => (Outcome::Wrong(format!("{} with {} bytes: {}", answer.status, answer.body.len(), answer.shown())), None),
    }
}
