//! Two small HTTP servers beside the data path: telemetry for scrapers and kubelets, admin for people on this machine.
//!
//! Both run on the control thread, never on a worker. Nothing here shows a secret. Browsers are kept from changing
//! anything: a request that carries an `Origin` may only read.

mod config;
mod explain;
mod health;
mod level;

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::app::Shared;
use crate::live::Status;
use crate::log::Levels;
use crate::observe::Observer;

/// Connections each of the two servers holds at once.
const MOST_CONNECTIONS: usize = 64;
/// A client that has not sent its request head by then is cut off.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);

/// What the two servers show.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    pub(crate) observe: Observer,
    pub(crate) status: Status,
    /// Set once there is an identity.
    pub(crate) shared: Arc<OnceLock<Shared>>,
    /// Told to drain.
    pub(crate) stop: Arc<tokio::sync::Notify>,
    /// What is logged.
    pub(crate) levels: Levels,
}

/// Which of the two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Telemetry,
    Admin,
}

/// Serves until the process ends.
pub(crate) async fn serve(listener: TcpListener, side: Side, window: Window) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection for telemetry or admin was lost");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let window = window.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let window = &window;
                async move { Ok::<_, Infallible>(window.respond(side, request).await) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE);
            if let Err(error) = http.serve_connection(TokioIo::new(stream), answer).await {
                tracing::debug!(%error, "a telemetry or admin connection ended badly");
            }
            drop(place);
        });
    }
}

impl Window {
    async fn respond(&self, side: Side, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let asks = side == Side::Admin && request.uri().path() == "/explain" && request.method() == Method::POST;
        if !asks || request.headers().contains_key(http::header::ORIGIN) {
            return self.answer(side, &request);
        }
        let Some(shared) = self.shared.get() else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "starting: there is no identity yet\n");
        };
        let read = Limited::new(request.into_body(), explain::LONGEST).collect();
        let Ok(Ok(question)) = tokio::time::timeout(HEAD_PATIENCE, read).await else {
            return text(StatusCode::BAD_REQUEST, "the question is too long, or did not come whole\n");
        };
        match explain::answer(shared, &question.to_bytes()).await {
            Ok(told) => reply(StatusCode::OK, "application/json", told),
            Err(why) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
        }
    }

    fn answer<B>(&self, side: Side, request: &Request<B>) -> Response<Full<Bytes>> {
        match (side, request.method(), request.uri().path()) {
            (Side::Telemetry, &Method::GET, "/metrics") => {
                if let Some(shared) = self.shared.get() {
                    self.observe.config_generations(shared.live.generations());
                    self.observe.dns(&shared.outsiders.resolver().census());
                    self.observe.keys_age(&shared.keys.ages());
                    self.observe.endpoint_health(health::census(&shared.live.load()));
                }
                reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", self.observe.render())
            }
            (Side::Telemetry, &Method::GET, "/healthz/live") => text(StatusCode::OK, "alive\n"),
            (Side::Telemetry, &Method::GET, "/healthz/ready") | (Side::Admin, &Method::GET, "/healthz") => self.ready(),
            (Side::Admin, &Method::GET, "/") => text(StatusCode::OK, ADMIN_PAGE),
            (Side::Telemetry, &Method::GET, "/") => text(StatusCode::OK, TELEMETRY_PAGE),
            (Side::Admin, &Method::GET, "/config") => self.config(),
            (Side::Admin, &Method::GET, "/endpoints") => self.endpoints(),
            (Side::Admin, method, _) if !method.is_safe() && request.headers().contains_key(http::header::ORIGIN) => {
                text(StatusCode::FORBIDDEN, "a web page may not change this proxy\n")
            }
            (Side::Admin, _, "/explain") => text(StatusCode::METHOD_NOT_ALLOWED, "use POST\n"),
            (Side::Admin, method, "/log") => level::answer(&self.levels, method, request.uri().query()),
            (Side::Admin, &Method::POST, "/certificate/renew") => self.renew(),
            (Side::Admin, _, "/certificate/renew") => text(StatusCode::METHOD_NOT_ALLOWED, "use POST\n"),
            (Side::Admin, &Method::POST, "/drain") => {
                self.stop.notify_one();
                text(StatusCode::ACCEPTED, "draining; the process ends when its connections are gone\n")
            }
            (Side::Admin, _, "/drain") => text(StatusCode::METHOD_NOT_ALLOWED, "use POST\n"),
            _ => text(StatusCode::NOT_FOUND, "there is no such page; GET / lists them\n"),
        }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let missing = self.status.missing();
        if missing.is_empty() {
            return text(StatusCode::OK, "ready\n");
        }
        let mut why = String::new();
        for line in missing {
            let _ = writeln!(why, "not ready: {line}");
        }
        text(StatusCode::SERVICE_UNAVAILABLE, why)
    }

    /// What is in force, secrets masked.
    fn config(&self) -> Response<Full<Bytes>> {
        let Some(shared) = self.shared.get() else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "starting: there is no identity yet\n");
        };
        reply(StatusCode::OK, "application/json", format!("{:#}\n", config::shown(self, shared)))
    }

    /// Has the certificate renewed now.
    fn renew(&self) -> Response<Full<Bytes>> {
        let current = self.shared.get().and_then(|shared| Some((shared, shared.identity.latest()?)));
        let Some((shared, current)) = current else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "starting: there is no identity yet\n");
        };
        shared.identity.ask_renewal();
        let until = equerry_certs::rfc3339(current.not_after);
        text(
            StatusCode::ACCEPTED,
            format!(
                "the certificate is being renewed; the present one, of generation {}, holds until {until}\n",
                current.generation
            ),
        )
    }

    /// How every endpoint stands.
    fn endpoints(&self) -> Response<Full<Bytes>> {
        let Some(shared) = self.shared.get() else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "starting: there is no identity yet\n");
        };
        let shown = health::shown(&shared.live.load());
        reply(StatusCode::OK, "application/json", format!("{shown:#}\n"))
    }
}

const ADMIN_PAGE: &str = "equerry-proxy, admin\n\n\
    GET  /config   what is in force, secrets masked: settings, epoch, certificate, policy, destinations and their endpoints\n\
    GET  /endpoints  where requests can go: each endpoint's health, what says so, and since when\n\
    POST /explain  what would become of a request here, and why; `equerry explain --proxy` asks\n\
    GET  /healthz  ready, or what is missing\n\
    GET  /log      what is logged; PUT /log?filter=info,equerry_proxy::live=debug&for=10m changes it for a while, DELETE ends that\n\
    POST /certificate/renew  ask for a new certificate now, whatever is left of this one\n\
    POST /drain    take no new inbound work, finish what is in flight, end\n\n\
    Metrics are on the telemetry address: /metrics\n";
const TELEMETRY_PAGE: &str = "equerry-proxy, telemetry\n\n\
    GET /metrics        Prometheus text\n\
    GET /healthz/ready  ready, or what is missing\n\
    GET /healthz/live   alive\n";

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", body)
}

fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{AccessLogTarget, ObserverOptions, SERIES_CAP};

    fn window() -> Window {
        let observe =
            Observer::new(ObserverOptions { access_log: AccessLogTarget::Off, series_cap: SERIES_CAP }).unwrap();
        let (levels, _) = crate::log::tests::levels("info");
        Window { observe, status: Status::default(), shared: Arc::default(), stop: Arc::default(), levels }
    }

    async fn ask(window: &Window, side: Side, request: http::request::Builder) -> (u16, String) {
        let answer = window.answer(side, &request.body(()).unwrap());
        let status = answer.status().as_u16();
        (status, String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_starting_proxy_is_alive_but_not_ready_and_says_why() {
        let window = window();
        window
            .status
            .identity(Some("no identity yet: the control plane at x:1 cannot be reached (refused)".to_owned()));
        let (status, body) = ask(&window, Side::Telemetry, Request::get("/healthz/ready")).await;
        assert_eq!(status, 503);
        assert!(body.contains("the control plane at x:1 cannot be reached"), "{body}");
        assert_eq!(ask(&window, Side::Telemetry, Request::get("/healthz/live")).await.0, 200);
        assert_eq!(ask(&window, Side::Admin, Request::get("/config")).await.0, 503);
    }

    #[tokio::test]
    async fn telemetry_cannot_drain_and_neither_can_a_web_page() {
        let window = window();
        assert_eq!(ask(&window, Side::Telemetry, Request::post("/drain")).await.0, 404);
        assert_eq!(ask(&window, Side::Admin, Request::get("/drain")).await.0, 405);
        assert_eq!(
            ask(&window, Side::Admin, Request::post("/drain").header("origin", "https://evil.example")).await.0,
            403
        );
        let told = tokio::time::timeout(Duration::from_millis(1), window.stop.notified());
        assert!(told.await.is_err(), "nobody was told to stop");
        assert_eq!(ask(&window, Side::Admin, Request::post("/drain")).await.0, 202);
        window.stop.notified().await;
    }

    #[tokio::test]
    async fn metrics_are_told_in_prometheus_text() {
        let (status, body) = ask(&window(), Side::Telemetry, Request::get("/metrics")).await;
        assert!(status == 200 && body.contains("# TYPE equerry_config_epoch gauge"), "{body}");
    }
}
