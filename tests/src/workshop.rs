//! A well-behaved application of our own, over both versions of HTTP: it sends what is asked for, tells what came, and gives back
//! whatever is sent to it while it comes.

use std::collections::hash_map::DefaultHasher;
use std::convert::Infallible;
use std::hash::Hasher;
use std::io;
use std::sync::LazyLock;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::AsyncWriteExt;

/// The largest piece it sends at once.
const PIECE: usize = 64 * 1024;

type Body = BoxBody<Bytes, hyper::Error>;

/// Serves on a port of loopback until dropped.
///
/// - `/bytes/N`: N bytes of a pattern, in pieces, with their sum as a trailer;
/// - `/sum`: how many bytes came, and their sum; trailers that came with them, if any;
/// - `/`: the same;
/// - `/echo`: what comes, while it comes, with its trailers; after an upgrade, if one is asked for;
/// - `/status/N`: that status, and nothing else.
#[derive(Debug)]
pub struct Workshop(tokio::task::JoinHandle<()>);

impl Workshop {
    /// Opens.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn open(port: u16) -> io::Result<Self> {
        let listener = crate::listen(port).await?;
        Ok(Self(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(async move {
                    let serves = service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) });
                    let server = auto::Builder::new(TokioExecutor::new());
                    // A peer that breaks off is its own business.
                    let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), serves).await;
                });
            }
        })))
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The sum of some bytes, as the application tells it.
pub fn sum(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    shown(&hasher)
}

fn shown(hasher: &DefaultHasher) -> String {
    format!("{:016x}", hasher.finish())
}

/// What `/bytes/N` sends.
pub fn pattern(length: usize) -> Vec<u8> {
    pieces(length).flatten().collect()
}

/// The same, in pieces of one memory.
fn pieces(length: usize) -> impl Iterator<Item = Bytes> {
    static PATTERN: LazyLock<Bytes> = LazyLock::new(|| {
        (0..PIECE).map(|place| u8::try_from((place ^ (place >> 8)) & 0xff).unwrap_or_default()).collect()
    });
    (0..length).step_by(PIECE).map(move |from| PATTERN.slice(..PIECE.min(length - from)))
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let number = path.rsplit('/').next().and_then(|number| number.parse::<usize>().ok());
    match (path.split('/').nth(1), number) {
        (Some("bytes"), Some(length)) => bytes(length),
        (Some("status"), Some(code)) => {
            status(StatusCode::from_u16(u16::try_from(code).unwrap_or(500)).unwrap_or_default())
        }
        (Some("sum" | ""), _) => told(request.into_body()).await,
        (Some("echo"), _) if request.headers().contains_key("upgrade") => upgraded(request),
        (Some("echo"), _) => Response::new(request.into_body().boxed()),
        _ => status(StatusCode::NOT_FOUND),
    }
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Full::default().map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    if status == StatusCode::NOT_MODIFIED {
        response.headers_mut().insert("etag", HeaderValue::from_static("\"same\""));
    }
    response
}

fn bytes(length: usize) -> Response<Body> {
    let mut hasher = DefaultHasher::new();
    pieces(length).for_each(|piece| hasher.write(&piece));
    let mut trailers = HeaderMap::new();
    trailers.extend(HeaderValue::try_from(shown(&hasher)).map(|sum| (HeaderName::from_static("x-sum"), sum)));
    let frames = pieces(length).map(Frame::data).chain([Frame::trailers(trailers)]).map(Ok);
    let mut response = Response::new(StreamBody::new(stream::iter(frames)).boxed());
    // HTTP/1.1 sends only those that it announced.
    response.headers_mut().insert("trailer", HeaderValue::from_static("x-sum"));
    response
}

/// Takes whatever protocol is asked for, and says what it hears.
fn upgraded(mut request: Request<Incoming>) -> Response<Body> {
    let mut response = status(StatusCode::SWITCHING_PROTOCOLS);
    let asked = request.headers().get("upgrade").cloned();
    response.headers_mut().extend(asked.map(|protocol| (UPGRADE, protocol)));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    tokio::spawn(async move {
        if let Ok(both) = hyper::upgrade::on(&mut request).await {
            let (mut heard, mut says) = tokio::io::split(TokioIo::new(both));
            // A peer that breaks off is its own business.
            let _ = tokio::io::copy(&mut heard, &mut says).await;
            let _ = says.shutdown().await;
        }
    });
    response
}

async fn told(mut body: Incoming) -> Response<Body> {
    let (mut hasher, mut length, mut trailers) = (DefaultHasher::new(), 0, HeaderMap::new());
    while let Some(Ok(frame)) = body.frame().await {
        match frame.into_data() {
            Ok(data) => {
                hasher.write(&data);
                length += data.len();
            }
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    let trailers: Vec<_> =
        trailers.iter().map(|(name, value)| format!(" {name}={}", value.to_str().unwrap_or_default())).collect();
    let text = format!("{length} bytes, sum {}{}", shown(&hasher), trailers.concat());
    Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed())
}
