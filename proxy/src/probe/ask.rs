//! One question: a connection, a status, or `grpc.health.v1`. What is wrong is said in words that stand in logs and answers.
//!
//! Each question has a connection of its own, as Envoy's and the kubelet's do not always: a kept one would say that an
//! application is well which accepts nobody any more.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use equerry_policies::policy::Ask;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, TE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;

use crate::codec::in_words;

/// Who asks, as applications write it in their logs.
const ASKER: &str = "equerry-health";
/// The longest answer of a gRPC health service that is read.
const LONGEST: usize = 4096;

/// What is asked, of whom, and how long that may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) address: SocketAddr,
    pub(super) ask: Ask,
    /// HTTP is asked over HTTP/2.
    pub(super) http2: bool,
    pub(super) patience: Duration,
}

impl Question {
    /// Asks once.
    ///
    /// # Errors
    /// Why whoever is asked is not well.
    pub(super) async fn put(&self) -> Result<(), String> {
        let answer = async {
            let stream = TcpStream::connect(self.address).await.map_err(|error| error.to_string())?;
            match &self.ask {
                Ask::Tcp {} => Ok(()),
                Ask::Http { path, host, statuses } => self.http(stream, path, host.as_deref(), statuses).await,
                Ask::Grpc { service } => self.grpc(stream, service).await,
            }
        };
        let answer = tokio::time::timeout(self.patience, answer).await;
        answer.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.patience))).map_err(|why| self.about(&why))
    }

    /// Why, after what was asked.
    fn about(&self, why: &str) -> String {
        match &self.ask {
            Ask::Tcp {} => format!("connecting to {}: {why}", self.address),
            Ask::Http { path, .. } => format!("GET {path} at {}: {why}", self.address),
            Ask::Grpc { service } if service.is_empty() => format!("gRPC health at {}: {why}", self.address),
            Ask::Grpc { service } => format!("gRPC health of {service} at {}: {why}", self.address),
        }
    }

    async fn http(
        &self,
        stream: TcpStream,
        path: &str,
        host: Option<&str>,
        statuses: &[(u16, u16)],
    ) -> Result<(), String> {
        let address = self.address.to_string();
        let request = request(Method::GET, host.unwrap_or(&address), path, self.http2, Full::default())?;
        let answer = if self.http2 { over_http2(stream, request).await? } else { over_http1(stream, request).await? };
        let status = answer.status().as_u16();
        if statuses.iter().any(|(from, to)| (*from..=*to).contains(&status)) {
            Ok(())
        } else {
            Err(format!("status {status}"))
        }
    }

    async fn grpc(&self, stream: TcpStream, service: &str) -> Result<(), String> {
        let body = Full::new(Bytes::from(framed(service)));
        let mut request = request(Method::POST, &self.address.to_string(), "/grpc.health.v1.Health/Check", true, body)?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        let (head, body) = over_http2(stream, request).await?.into_parts();
        if head.status != http::StatusCode::OK {
            return Err(format!("status {}", head.status.as_u16()));
        }
        let read = Limited::new(body, LONGEST).collect().await.map_err(|error| error.to_string())?;
        let trailers = read.trailers().cloned().unwrap_or_default();
        match grpc_status(&trailers).or_else(|| grpc_status(&head.headers)) {
            Some(0) => serving(&read.to_bytes()),
            Some(12) => Err("gRPC status 12: there is no health service".to_owned()),
            Some(5) => Err("gRPC status 5: its health service does not know that service".to_owned()),
            Some(code) => Err(format!("gRPC status {code}")),
            None => Err("an answer without gRPC status".to_owned()),
        }
    }
}

fn request(
    method: Method,
    host: &str,
    path: &str,
    http2: bool,
    body: Full<Bytes>,
) -> Result<Request<Full<Bytes>>, String> {
    let asked = Request::builder().method(method).header(USER_AGENT, ASKER);
    let asked = if http2 {
        asked.version(Version::HTTP_2).uri(format!("http://{host}{path}"))
    } else {
        asked.uri(path).header(HOST, host).header(CONNECTION, "close")
    };
    asked.body(body).map_err(|error| error.to_string())
}

async fn over_http1(stream: TcpStream, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
    let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| in_words(&error))?;
    let driven = tokio::spawn(connection);
    let answer = send.send_request(request).await.map_err(|error| in_words(&error));
    // What is left of the answer is of no interest.
    driven.abort();
    answer
}

async fn over_http2(stream: TcpStream, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
    let builder = {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).max_header_list_size(16 * 1024);
        builder
    };
    let (mut send, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|error| in_words(&error))?;
    // It ends once `send` and the answer are dropped.
    tokio::spawn(connection);
    send.send_request(request).await.map_err(|error| in_words(&error))
}

fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// A `HealthCheckRequest` in a gRPC frame: its only field is the service, number 1.
fn framed(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(1 << 3 | 2);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend(message);
    frame
}

/// Whether a `HealthCheckResponse` in a gRPC frame says `SERVING`: its only field is the status, number 1.
fn serving(frame: &[u8]) -> Result<(), String> {
    let message = match frame {
        [0, a, b, c, d, message @ ..] if u32::from_be_bytes([*a, *b, *c, *d]) as usize == message.len() => message,
        _ => return Err("an answer that is not one message".to_owned()),
    };
    let status = match message {
        [] => 0,
        [8, status] => *status,
        _ => return Err("an answer that is no HealthCheckResponse".to_owned()),
    };
    match status {
        1 => Ok(()),
        0 => Err("UNKNOWN".to_owned()),
        2 => Err("NOT_SERVING".to_owned()),
        3 => Err("SERVICE_UNKNOWN".to_owned()),
        other => Err(format!("the status {other}")),
    }
}

#[cfg(test)]
#[path = "ask_tests.rs"]
mod tests;
