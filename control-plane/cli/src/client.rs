//! A small HTTPS client for the admin API: one kept connection, TLS 1.3, the server checked against the file named
//! with `--ca` and nothing else.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::context::Connection;
use crate::events::Events;
use crate::failure::{Code, Failure};

/// Time to connect, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for one answer; the server itself gives up after 30 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);
/// Largest answer that is read: every document of a large mesh.
const MAX_ANSWER: usize = 256 * 1024 * 1024;

/// A client of one control plane.
pub(crate) struct Client {
    connection: Connection,
    tls: TlsConnector,
    sender: Option<SendRequest<Full<Bytes>>>,
}

/// An answer, whatever its status.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: StatusCode,
    /// Its headers.
    pub(crate) headers: HeaderMap,
    /// Its body.
    pub(crate) body: Bytes,
}

impl Client {
    /// A client that has not connected yet.
    pub(crate) fn new(connection: Connection) -> Result<Self, Failure> {
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::usage(format_args!("{} holds no certificates: {error}", connection.ca_path.display()))
                .hint("--ca names the control plane's STATE-DIR/ca.pem")
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&connection.ca_pem) {
            let certificate = certificate.map_err(|error| wrong(&error))?;
            roots.add(certificate).map_err(|error| wrong(&error))?;
        }
        if roots.is_empty() {
            return Err(wrong(&"no PEM block of a certificate in it"));
        }
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| Failure::usage(format_args!("TLS 1.3 cannot be set up: {error}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { connection, tls: TlsConnector::from(Arc::new(config)), sender: None })
    }

    /// Asks, and reads the answer as JSON when its status is a success; otherwise tells what the server said.
    pub(crate) async fn json<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, Failure> {
        let answer = self.ask(method, path, body).await?;
        if !answer.status.is_success() {
            return Err(answer.failure());
        }
        answer.read()
    }

    /// Asks with GET.
    pub(crate) async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Failure> {
        self.json(Method::GET, path, None::<&()>).await
    }

    /// Asks that something be gone.
    pub(crate) async fn delete(&mut self, path: &str) -> Result<(), Failure> {
        let answer = self.ask(Method::DELETE, path, None::<&()>).await?;
        if answer.status.is_success() { Ok(()) } else { Err(answer.failure()) }
    }

    /// Asks, and gives the answer whatever its status.
    pub(crate) async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<Answer, Failure> {
        let body = match body {
            Some(value) => Bytes::from(
                serde_json::to_vec(value)
                    .map_err(|error| Failure::usage(format_args!("cannot write the request as JSON: {error}")))?,
            ),
            None => Bytes::new(),
        };
        let request = self.request(method, path, body)?;
        match tokio::time::timeout(ANSWER_TIMEOUT, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.unreachable(&format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))),
        }
    }

    /// Asks with GET for events, which then come as they happen; the connection is theirs.
    pub(crate) async fn events(&mut self, path: &str) -> Result<Events, Failure> {
        let request = self.request(Method::GET, path, Bytes::new())?;
        let opening = async {
            let response =
                self.sender().await?.send_request(request).await.map_err(|error| self.unreachable(&error))?;
            let (head, body) = response.into_parts();
            if head.status.is_success() {
                return Ok(Events::new(body));
            }
            let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| self.unreachable(&error))?;
            Err(Answer { status: head.status, headers: head.headers, body: body.to_bytes() }.failure())
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(self.unreachable(&format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))),
        }
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, Failure> {
        let connection = &self.connection;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, host_header(&connection.host, connection.port))
            .header(header::ACCEPT, "application/json, application/problem+json, text/event-stream")
            .header(header::USER_AGENT, concat!("equerry/", env!("CARGO_PKG_VERSION")));
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(token) = &connection.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request
            .body(Full::new(body))
            .map_err(|error| Failure::usage(format_args!("cannot make the request {path}: {error}")))
    }

    /// The kept connection while it is open, or a new one.
    async fn sender(&mut self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        if let Some(mut sender) = self.sender.take()
            && sender.ready().await.is_ok()
        {
            return Ok(sender);
        }
        self.connect().await
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        let mut sender = self.sender().await?;
        let response = sender.send_request(request).await.map_err(|error| self.unreachable(&error))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| self.unreachable(&error))?.to_bytes();
        self.sender = Some(sender);
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let Connection { host, port, .. } = &self.connection;
        let name = ServerName::try_from(host.clone())
            .map_err(|_| Failure::usage(format_args!("{host:?} is neither a host name nor an address")))?;
        let connecting = async {
            let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(|error| self.unreachable(&error))?;
            stream.set_nodelay(true).map_err(|error| self.unreachable(&error))?;
            self.tls.connect(name, stream).await.map_err(|error| self.distrusted(&error))
        };
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(stream) => stream?,
            Err(_) => return Err(self.unreachable(&format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()))),
        };
        let (sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unreachable(&error))?;
        // The driver ends with the connection; whoever uses the connection hears of its errors.
        tokio::spawn(async move {
            let _ = driver.await;
        });
        Ok(sender)
    }

    fn unreachable(&self, error: &dyn std::fmt::Display) -> Failure {
        let Connection { host, port, .. } = &self.connection;
        Failure::refused(format_args!("cannot reach the control plane at {host}:{port}: {error}"))
            .with_code(Code::Unreachable)
            .hint("is `equerry-control-plane serve` running there, and is its admin address (--admin) this one?")
    }

    fn distrusted(&self, error: &std::io::Error) -> Failure {
        let Connection { host, port, ca_path, .. } = &self.connection;
        let hint = if error.to_string().contains("NotValidForName") || error.to_string().contains("not valid for name")
        {
            format!("its certificate does not name {host}: start it with `--advertise {host}`, or use a name it has")
        } else {
            format!(
                "{} must be the ca.pem of this very control plane; a new state directory has a new one",
                ca_path.display()
            )
        };
        Failure::refused(format_args!(
            "the server at {host}:{port} does not prove that it is the control plane: {error}"
        ))
        .with_code(Code::Unreachable)
        .hint(hint)
    }
}

/// An IPv6 address stands in brackets.
fn host_header(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl Answer {
    /// A header's text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What is hardly meant in what was asked for: the texts of `Warning` headers.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let all = self.headers.get_all(header::WARNING).iter().filter_map(|value| value.to_str().ok());
        let text =
            |value: &str| Some(value.split_once('"')?.1.strip_suffix('"')?.replace("\\\"", "\"").replace("\\\\", "\\"));
        all.filter_map(text).collect()
    }

    /// The body as JSON of the expected shape.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Failure::refused(format_args!(
                "the control plane answered {} with something this version does not understand: {error}",
                self.status
            ))
            .hint("compare `equerry version` with the version of the control plane")
        })
    }

    /// What the server said, for people.
    pub(crate) fn failure(&self) -> Failure {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let text = |key: &str| problem.get(key).and_then(serde_json::Value::as_str);
        let said = text("detail")
            .or_else(|| text("title"))
            .map_or_else(|| format!("the control plane answered {}", self.status), str::to_owned);
        let failure = Failure::refused(said);
        match self.status {
            StatusCode::UNAUTHORIZED => failure
                .hint("give an admin token with --token-file (STATE-DIR/admin.token on the control plane's machine)"),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::REQUEST_TIMEOUT => failure.hint("try again in a moment"),
            _ => failure,
        }
    }
}
