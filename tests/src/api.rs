//! The admin API as any HTTPS client sees it, for what the `equerry` command would never send.

use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use equerry::demo::town::Town;
use equerry_certs::pem::read_certificates;
use equerry_certs::tls::https_client_config;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A kept connection to the admin API.
#[derive(Debug)]
pub struct Admin {
    sender: http1::SendRequest<Full<Bytes>>,
    token: String,
}

impl Admin {
    /// Connects to the town's admin API with its admin token.
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn connect(town: &Town) -> Result<Self> {
        let state = town.control_plane_state();
        let roots = read_certificates(&std::fs::read_to_string(state.join("ca.pem")).context("reading ca.pem")?)?;
        let token = std::fs::read_to_string(state.join("admin.token")).context("reading admin.token")?;
        let config = https_client_config(&roots, &[b"http/1.1"])?;
        let stream = TcpStream::connect(town.admin.address()).await.context("connecting")?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from("localhost")?, stream)
            .await
            .context("speaking TLS")?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, token: token.trim().to_owned() })
    }

    /// Sends one request of a media type, and reads the answer.
    ///
    /// # Errors
    /// When no whole answer comes back.
    pub async fn ask(&mut self, method: &str, path: &str, kind: &str, body: Bytes) -> Result<(StatusCode, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", kind)
            .body(Full::new(body))?;
        self.sender.ready().await.context("connected")?;
        let response = self.sender.send_request(request).await.context("sending")?;
        let status = response.status();
        Ok((status, response.into_body().collect().await.context("reading the answer")?.to_bytes()))
    }
}

/// Sends one request to the town's admin API with its admin token, and reads the answer.
///
/// # Errors
/// When no whole answer comes back.
pub async fn ask(town: &Town, method: &str, path: &str, body: Bytes) -> Result<(StatusCode, String)> {
    let (status, body) = Admin::connect(town).await?.ask(method, path, "application/json", body).await?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Server-sent events of the admin API.
#[derive(Debug)]
pub struct Events {
    body: hyper::body::Incoming,
    text: String,
}

impl Events {
    /// Opens a stream of events on a connection of its own.
    ///
    /// # Errors
    /// When it is not answered with events.
    pub async fn open(town: &Town, path: &str) -> Result<Self> {
        let mut admin = Admin::connect(town).await?;
        let request = Request::builder()
            .uri(path)
            .header("host", "localhost")
            .header("authorization", format!("Bearer {}", admin.token))
            .body(Full::default())?;
        let response = admin.sender.send_request(request).await.context("sending")?;
        let (status, kind) = (response.status(), response.headers().get("content-type").cloned());
        anyhow::ensure!(kind.is_some_and(|kind| kind == "text/event-stream"), "answered with {status}");
        Ok(Self { body: response.into_body(), text: String::new() })
    }

    /// The next event: its name and its data.
    ///
    /// # Errors
    /// When the stream ends or breaks.
    pub async fn next(&mut self) -> Result<(String, serde_json::Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = event.to_owned();
                self.text = rest.to_owned();
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                if let (Some(name), Some(data)) = (field("event:"), field("data:")) {
                    return Ok((name.to_owned(), serde_json::from_str(data)?));
                }
                continue;
            }
            let frame = self.body.frame().await.context("the stream ended")??;
            self.text.push_str(std::str::from_utf8(frame.data_ref().context("no data")?)?);
        }
    }
}
