//! Where spans are sent: a collector beside this sidecar by plain HTTP, or one elsewhere by HTTPS, with the headers it knows
//! its customers by.
//!
//! Files are read again with each connection, so that a new root or key needs no restart; what cannot be connected to says in
//! words what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bytes::Bytes;
use http::Uri;
use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::{CertificateError, Error as TlsError};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::codec::in_words;
use crate::web;

/// OTLP's own port, of plain HTTP.
const PORT: u16 = 4318;
/// Collectors elsewhere are named as web servers are.
const TLS_PORT: u16 = 443;
const PATH: &str = "/v1/traces";
/// Of a file with headers, or with roots, no more is read.
const LONGEST_FILE: u64 = 1 << 20;
/// What says how a request is made is not the operator's.
const OURS: [HeaderName; 9] =
    [CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, TE, TRANSFER_ENCODING, UPGRADE, USER_AGENT];

/// Where spans are sent: `http[s]://HOST[:PORT][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    secure: bool,
    /// As in a URL: an IPv6 address in brackets.
    host: String,
    port: u16,
    path: String,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        let expected =
            || format!("{given:?}: expected http://HOST:PORT or https://HOST:PORT, such as http://127.0.0.1:{PORT}");
        let uri: Uri = given.parse().map_err(|_| expected())?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(expected()),
        };
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(expected)?;
        if uri.query().is_some() || authority.host().is_empty() {
            return Err(expected());
        }
        let base = uri.path().trim_end_matches('/');
        let path = if base.ends_with(PATH) { base.to_owned() } else { format!("{base}{PATH}") };
        let port = authority.port_u16().unwrap_or(if secure { TLS_PORT } else { PORT });
        let endpoint = Self { secure, host: authority.host().to_owned(), port, path };
        if secure && endpoint.name().is_none() { Err(expected()) } else { Ok(endpoint) }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}{}", self.host, self.port, self.path)
    }
}

impl Endpoint {
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// What `host` says: no port where it is the scheme's own.
    pub(super) fn authority(&self) -> String {
        if self.secure && self.port == TLS_PORT { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    /// Whether it is reached by TLS.
    pub(crate) fn is_secure(&self) -> bool {
        self.secure
    }

    fn address(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    fn name(&self) -> Option<ServerName<'static>> {
        ServerName::try_from(self.address().to_owned()).ok()
    }

    /// Whether what is sent there stays on this machine.
    fn is_here(&self) -> bool {
        self.host == "localhost" || self.address().parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    }
}

/// Where headers come from that go with each request: a key, a tenant.
#[derive(Clone, Default)]
pub(crate) enum Headers {
    /// There are none.
    #[default]
    None,
    /// Given as they are.
    Given(HeaderMap),
    /// Lines `NAME: VALUE` of this file.
    File(PathBuf),
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Given(headers) => f.debug_set().entries(headers.keys()).finish(),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl Headers {
    /// `NAME=VALUE` each, what is no letter, digit or common sign as `%XX` (the form of `OTEL_EXPORTER_OTLP_HEADERS`).
    ///
    /// # Errors
    /// Names the header, never its value.
    pub(crate) fn of_pairs(pairs: &[String]) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        for pair in pairs {
            let (name, value) = pair.split_once('=').ok_or("expected NAME=VALUE")?;
            let name = name.trim();
            let plain = decoded(value.trim()).ok_or_else(|| {
                format!("{name:?}: what follows its % is no pair of hexadecimal digits; a % itself is written %25")
            })?;
            add(&mut headers, name, &plain)?;
        }
        Ok(Self::Given(headers))
    }

    /// What they are now.
    fn read(&self) -> Result<HeaderMap, String> {
        match self {
            Self::None => Ok(HeaderMap::new()),
            Self::Given(headers) => Ok(headers.clone()),
            Self::File(path) => {
                let said = |why: String| format!("--otlp-headers-file {}: {why}", path.display());
                of_lines(&text_of(path).map_err(said)?).map_err(said)
            }
        }
    }
}

/// `NAME: VALUE` a line; empty lines and those that begin with # say nothing.
fn of_lines(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'))
    {
        let at = |why: String| format!("line {}: {why}", number + 1);
        let (name, value) = line.split_once(':').ok_or_else(|| at("expected NAME: VALUE".to_owned()))?;
        add(&mut headers, name.trim(), value.trim().as_bytes()).map_err(at)?;
    }
    if headers.is_empty() {
        Err("there is no header in it, expected lines NAME: VALUE".to_owned())
    } else {
        Ok(headers)
    }
}

fn add(headers: &mut HeaderMap, name: &str, value: &[u8]) -> Result<(), String> {
    let known: HeaderName = name.parse().map_err(|_| format!("{name:?} is no name of a header"))?;
    if OURS.contains(&known) {
        return Err(format!("{known} says how spans are sent, and is not to be given"));
    }
    let mut value = HeaderValue::from_bytes(value)
        .ok()
        .filter(|value| !value.is_empty())
        .ok_or_else(|| format!("{known}: its value is none that a header may have"))?;
    value.set_sensitive(true);
    match headers.insert(known.clone(), value) {
        None => Ok(()),
        Some(_) => Err(format!("{known} is given twice")),
    }
}

/// `%XX` undone.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    Some(plain)
}

fn text_of(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > LONGEST_FILE {
        return Err(format!("{size} bytes, at most {LONGEST_FILE} are read"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

/// A collector: where it is, who vouches for it, and what it is told of us.
#[derive(Debug, Clone)]
pub(crate) struct Collector {
    pub(crate) endpoint: Endpoint,
    /// PEM file of the roots that vouch for it; `None`: those this machine trusts.
    pub(crate) ca: Option<PathBuf>,
    pub(crate) headers: Headers,
}

/// A connection to a collector.
pub(super) struct Spoken {
    pub(super) send: SendRequest<Full<Bytes>>,
    /// To be sent with each request.
    pub(super) headers: HeaderMap,
}

impl Spoken {
    /// Whether a request can be sent over it.
    pub(super) fn is_ready(&self) -> bool {
        self.send.is_ready()
    }
}

/// Why there is no connection, and whether another try may make one.
pub(super) struct Unreached {
    pub(super) why: String,
    pub(super) again: bool,
}

impl From<String> for Unreached {
    fn from(why: String) -> Self {
        Self { why, again: true }
    }
}

impl Collector {
    /// Reads the files that belong to it, to say what is wrong with them before anything is to be sent.
    ///
    /// # Errors
    /// Names the setting, its file, and what is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.headers.read()?;
        if self.endpoint.secure { self.trusting().map(drop) } else { Ok(()) }
    }

    /// Whether headers go over the wire where others may read them.
    pub(crate) fn tells_all(&self) -> bool {
        !matches!(self.headers, Headers::None) && !self.endpoint.secure && !self.endpoint.is_here()
    }

    /// What to do when it does not take our word for who we are.
    pub(super) fn about_keys(&self) -> &'static str {
        match self.headers {
            Headers::None => "does it want a key? give it by --otlp-headers-file",
            Headers::Given(_) => "is the key of --otlp-headers the one it gave you?",
            Headers::File(_) => "is the key of --otlp-headers-file the one it gave you? the file is read again",
        }
    }

    pub(super) async fn connect(&self) -> Result<Spoken, Unreached> {
        let headers = self.headers.read()?;
        let stream = TcpStream::connect((self.endpoint.address(), self.endpoint.port)).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let send = if self.endpoint.secure {
            let name = self.endpoint.name().ok_or_else(|| "its host is no name for a certificate".to_owned())?;
            let secured = TlsConnector::from(self.trusting()?).connect(name, stream).await;
            speak(secured.map_err(|error| self.refused(&error))?).await?
        } else {
            speak(stream).await?
        };
        Ok(Spoken { send, headers })
    }

    fn trusting(&self) -> Result<std::sync::Arc<rustls::ClientConfig>, String> {
        match &self.ca {
            Some(path) => {
                let said = |why: String| format!("--otlp-ca {}: {why}", path.display());
                web::of_pem(&text_of(path).map_err(said)?).map_err(said)
            }
            None => web::of_machine().map_err(|why| format!("{why}, or --otlp-ca FILE")),
        }
    }

    /// Why there is no TLS with it, and what to do.
    fn refused(&self, error: &io::Error) -> Unreached {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
        let why = match inner {
            Some(TlsError::InvalidCertificate(fault)) => self.unproven(fault),
            Some(TlsError::InvalidMessage(_)) => {
                "it does not speak TLS there: write http:// if it speaks plain HTTP, or its other port".to_owned()
            }
            _ => return Unreached { why: format!("no TLS with it: {}", in_words(error)), again: true },
        };
        Unreached { why, again: false }
    }

    fn unproven(&self, fault: &CertificateError) -> String {
        let host = self.endpoint.address();
        match fault {
            // A root made anew under its old name is found, and did not sign it.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => match &self.ca {
                Some(path) => format!(
                    "its certificate leads to no root of --otlp-ca {}: put the root there that issued it",
                    path.display()
                ),
                None => "its certificate leads to nobody whom this machine trusts: name the root that issued it by \
                         --otlp-ca FILE"
                    .to_owned(),
            },
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate, or one it leads to, has expired: have it renewed; if it was, look at this machine's clock"
                    .to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet: look at this machine's clock".to_owned()
            }
            CertificateError::NotValidForName => {
                format!("its certificate is not for {host}: write the name it is for in --otlp-endpoint")
            }
            CertificateError::NotValidForNameContext { presented, .. } => format!(
                "its certificate is not for {host} but for {}: write that name in --otlp-endpoint",
                named(presented)
            ),
            // rustls has no name for this one; it comes as the error of the library beneath, which nothing else here knows.
            other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
                "its certificate is an authority's own, which may not stand for a server: have it issue one for the collector"
                    .to_owned()
            }
            other => format!("its certificate is not accepted: {other}"),
        }
    }
}

/// The names of a certificate, which come as `DnsName("NAME")`.
fn named(presented: &[String]) -> String {
    let plain = |name: &String| name.split('"').nth(1).unwrap_or(name).to_owned();
    if presented.is_empty() { "nobody".to_owned() } else { presented.iter().map(plain).collect::<Vec<_>>().join(", ") }
}

async fn speak<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| in_words(&error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = in_words(&error), "a connection to the collector ended");
        }
    });
    Ok(sender)
}
