//! `equerry demo-app`: one small application, as people write them, that knows nothing of the mesh.
//!
//! It answers who it is and what it saw. If it depends on another service it calls that through the port beside it
//! (its sidecar) and hands on what it got. A second listener, outside the mesh, makes it fail in earnest and tells when it
//! was called.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;

use super::web::Caller;

/// Headers an application hands on when it calls another: who asks, and which trace this belongs to.
const HANDED_ON: [&str; 4] = ["authorization", "traceparent", "tracestate", "x-request-id"];
/// Headers of an answer it hands back.
const HANDED_BACK: [&str; 6] =
    ["www-authenticate", "retry-after", "ratelimit", "ratelimit-policy", "proxy-status", "x-request-id"];
/// Calls whose arrival is remembered.
const REMEMBERED: usize = 50_000;
/// Largest body it reads.
const MAX_BODY: usize = 1 << 20;

/// `equerry demo-app`
#[derive(Debug, clap::Args)]
pub struct AppArgs {
    /// What it calls itself
    #[arg(long)]
    name: String,
    /// Where it serves, on loopback
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Where it can be made to fail, on loopback: POST /fail?rate=0.1[&method=GET], GET /calls, POST /forget
    #[arg(long, value_name = "IP:PORT")]
    controls: SocketAddr,
    /// The Service it calls for every call it gets
    #[arg(long, value_name = "SERVICE", requires = "through")]
    calls: Option<String>,
    /// Its sidecar's outbound port
    #[arg(long, value_name = "IP:PORT")]
    through: Option<SocketAddr>,
}

#[derive(Debug)]
struct App {
    name: String,
    next: Option<(String, Caller)>,
    mood: Mutex<Mood>,
}

/// How it fails, and when it was called.
#[derive(Debug, Default)]
struct Mood {
    failing: f64,
    only: Option<Method>,
    calls: u64,
    failed: u64,
    arrivals_ms: VecDeque<u64>,
}

/// Serves until the process ends.
///
/// # Errors
/// When a port is taken.
pub(super) async fn serve(args: AppArgs) -> Result<()> {
    let next = args.calls.zip(args.through).map(|(service, sidecar)| (service, Caller::new(sidecar)));
    let app = Arc::new(App { name: args.name, next, mood: Mutex::default() });
    let bind = async |address| TcpListener::bind(address).await.with_context(|| format!("listening on {address}"));
    let (calls, controls) = (bind(args.listen).await?, bind(args.controls).await?);
    let controlled = Arc::clone(&app);
    tokio::spawn(accept(controls, move |request| {
        let app = Arc::clone(&controlled);
        async move { app.control(&request) }
    }));
    accept(calls, move |request| {
        let app = Arc::clone(&app);
        async move { app.answer(request).await }
    })
    .await;
    Ok(())
}

async fn accept<F, A>(listener: TcpListener, answer: F)
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    loop {
        // Out of file descriptors, or a peer that left: the next accept may succeed.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let reply = answer(request);
                async move { Ok::<_, Infallible>(reply.await) }
            });
            // A peer that breaks off is its own business.
            let _ =
                http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl App {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        // Read to the end, so that the connection can be used again.
        let sent = Limited::new(body, MAX_BODY).collect().await.map_or(0, |body| body.to_bytes().len());
        let told = json!({
            "app": self.name, "method": head.method.as_str(), "path": head.uri.path(), "body_bytes": sent, "headers": shown(&head.headers),
        });
        if self.called(&head.method) {
            return reply(StatusCode::SERVICE_UNAVAILABLE, &HeaderMap::new(), &told);
        }
        let Some((service, sidecar)) = &self.next else {
            return reply(StatusCode::OK, &HeaderMap::new(), &told);
        };
        let path = head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let handed_on: Vec<(&str, &str)> =
            HANDED_ON.iter().filter_map(|name| Some((*name, head.headers.get(*name)?.to_str().ok()?))).collect();
        let mut told = told;
        match sidecar.call(head.method.as_str(), service, path, &handed_on).await {
            Ok(answer) => {
                told["next"] = answer.json();
                reply(StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY), &answer.headers, &told)
            }
            Err(error) => {
                told["error"] = format!("{error:#}").into();
                reply(StatusCode::BAD_GATEWAY, &HeaderMap::new(), &told)
            }
        }
    }

    /// Counts a call, and decides whether it fails.
    fn called(&self, method: &Method) -> bool {
        let mut mood = self.mood.lock().unwrap_or_else(PoisonError::into_inner);
        let fails = mood.only.as_ref().is_none_or(|only| only == method) && fastrand::f64() < mood.failing;
        mood.calls += 1;
        mood.failed += u64::from(fails);
        if mood.arrivals_ms.len() == REMEMBERED {
            mood.arrivals_ms.pop_front();
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        mood.arrivals_ms.push_back(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        fails
    }

    fn control(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let mut mood = self.mood.lock().unwrap_or_else(PoisonError::into_inner);
        match (request.method().as_str(), request.uri().path()) {
            ("POST", "/fail") => {
                let asked = |name: &str| {
                    request.uri().query()?.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
                };
                let Some(share) =
                    asked("rate").and_then(|rate| rate.parse::<f64>().ok()).filter(|rate| (0.0..=1.0).contains(rate))
                else {
                    return reply(
                        StatusCode::BAD_REQUEST,
                        &HeaderMap::new(),
                        &json!({"error": "rate is a share from 0 to 1: /fail?rate=0.1"}),
                    );
                };
                mood.failing = share;
                mood.only = asked("method").and_then(|method| method.parse().ok());
            }
            ("POST", "/forget") => *mood = Mood { failing: mood.failing, only: mood.only.take(), ..Mood::default() },
            ("GET", "/calls") => {}
            _ => {
                let known = json!({"error": "POST /fail?rate=0.1[&method=GET], GET /calls, POST /forget"});
                return reply(StatusCode::NOT_FOUND, &HeaderMap::new(), &known);
            }
        }
        let told = json!({"app": self.name, "failing": mood.failing, "calls": mood.calls, "failed": mood.failed, "arrivals_ms": mood.arrivals_ms});
        reply(StatusCode::OK, &HeaderMap::new(), &told)
    }
}

/// All headers; several of one name are joined as HTTP joins them, so that a forged copy cannot hide behind a true one.
fn shown(headers: &HeaderMap) -> Value {
    let joined = |name: &http::HeaderName| {
        let values: Vec<_> =
            headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        // A token is a secret, even in a demo's answer.
        let text = if name == "authorization" { "(present)".to_owned() } else { values.join(", ") };
        (name.to_string(), Value::from(text))
    };
    headers.keys().map(joined).collect::<Map<_, _>>().into()
}

fn reply(status: StatusCode, from: &HeaderMap, told: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{told}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    for name in HANDED_BACK {
        for value in from.get_all(name) {
            response.headers_mut().append(name, value.clone());
        }
    }
    response
}
