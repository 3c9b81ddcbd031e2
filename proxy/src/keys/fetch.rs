//! Fetching a key set once: look its host up, judge the address, connect to the very address that was judged, ask.
//!
//! A policy can name any URL, and whoever answers there may be anybody: so nothing is sent to loopback, link-local and
//! metadata addresses unless the operator of this process allows it, nobody is followed elsewhere, an answer is bounded in
//! size and depth, and nothing of it is ever repeated. It must prove its name by certificate.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use equerry_policies::compile::KeySource;
use equerry_policies::compile::keys::{BadKeySet, Key, read_published};
use equerry_policies::policy::UrlHost;
use equerry_traffic::outside::{ChosenBy, OwnDoors, forbidden};
use http::header::{ACCEPT, CACHE_CONTROL, CONNECTION, HOST, USER_AGENT};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::codec::in_words;
use crate::config::AddressBlock;
use crate::upstream::resolve::{Asker, Outcome};
use crate::web;

/// Largest answer, in bytes.
const LARGEST: usize = 1 << 20;
/// Bytes of an answer's head.
const LARGEST_HEAD: usize = 16 * 1024;
/// Addresses of one name that are tried.
const MOST_ADDRESSES: usize = 4;
/// How long one of them may keep silent before the next is tried beside it (RFC 8305 section 5), where there is time.
const SILENCE: Duration = Duration::from_millis(250);

/// What a fetch brought.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) keys: Vec<Key>,
    /// The set as it came.
    pub(super) text: String,
    /// Keys of the set that cannot be used.
    pub(super) passed_over: Vec<BadKeySet>,
    /// For how long it is new, if its server says so.
    pub(super) new_for: Option<Duration>,
}

/// Why it brought nothing: a word for metrics and callers, and what happened, for logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) word: &'static str,
    pub(super) detail: String,
}

fn failed(word: &'static str, detail: impl Into<String>) -> Failed {
    Failed { word, detail: detail.into() }
}

/// Fetches key sets.
pub struct Fetcher {
    asker: Asker,
    /// Addresses that may be asked although they are blocked for all.
    allowed: Vec<AddressBlock>,
    /// This process's own listeners.
    doors: OwnDoors,
    /// Whom the machine trusts; read when it is first needed.
    machine: OnceLock<Result<Arc<ClientConfig>, String>>,
}

impl Fetcher {
    /// Asks these name servers (none: those of the machine), and may call these addresses although they are blocked.
    pub fn new(servers: Vec<SocketAddr>, allowed: Vec<AddressBlock>, doors: OwnDoors) -> Self {
        Self { asker: Asker::new(servers), allowed, doors, machine: OnceLock::new() }
    }

    /// Fetches the set once, within its time.
    pub(super) async fn fetch(&self, from: &KeySource) -> Result<Fetched, Failed> {
        let fetching = tokio::time::timeout(from.timeout, self.ask(from)).await;
        fetching.unwrap_or_else(|_| Err(failed("timeout", format!("no answer within {:?}", from.timeout))))
    }

    async fn ask(&self, from: &KeySource) -> Result<Fetched, Failed> {
        let config = self.trusting(from)?;
        let name = match from.url.host() {
            UrlHost::Name(name) => ServerName::try_from(name.to_string()),
            UrlHost::Address(address) => Ok(ServerName::from(*address)),
        };
        let name = name.map_err(|_| failed("tls", "its host is no name that a certificate could hold"))?;
        let stream = self.connect(from, &TlsConnector::from(config), &name).await?;
        let builder = {
            let mut builder = http1::Builder::new();
            builder.max_headers(100).max_buf_size(LARGEST_HEAD);
            builder
        };
        let (mut send, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(|error| failed("http", in_words(&error)))?;
        // It ends with the answer, or with the time: the guard drops it.
        let driven = AbortOnDrop(tokio::spawn(async move { connection.await.map_err(|error| in_words(&error)) }));
        let answer = send.send_request(request(from)?).await.map_err(|error| failed("http", in_words(&error)))?;
        let fetched = read(answer).await;
        drop(driven);
        fetched
    }

    /// A connection to an address of the host that was judged: to the first that speaks TLS, each tried beside those before
    /// it as soon as they keep silent, so that one that nobody answers at does not use the whole time up.
    async fn connect(
        &self,
        from: &KeySource,
        tls: &TlsConnector,
        name: &ServerName<'static>,
    ) -> Result<TlsStream<TcpStream>, Failed> {
        let addresses = match from.url.host() {
            UrlHost::Address(address) => vec![*address],
            UrlHost::Name(name) => match self.asker.ask(name).await {
                Outcome::Found { addresses, .. } => addresses,
                Outcome::Nobody { .. } => return Err(failed("dns", format!("the DNS knows no {name}"))),
                Outcome::Failed(why) => return Err(failed("dns", format!("{name} cannot be looked up: {why}"))),
            },
        };
        let mut last = failed("dns", "there is no address");
        let mut allowed = Vec::new();
        for address in addresses.into_iter().take(MOST_ADDRESSES) {
            let address = SocketAddr::new(address, from.url.port());
            match self.blocked(address) {
                Some(why) => last = failed("blocked", format!("{} is {why}; --jwks-allow may allow it", address.ip())),
                None => allowed.push(address),
            }
        }
        let silence = SILENCE.min(from.timeout / u32::try_from(2 * MOST_ADDRESSES).unwrap_or(u32::MAX));
        let (mut allowed, mut trying) = (allowed.into_iter().peekable(), JoinSet::new());
        loop {
            if let Some(address) = allowed.next() {
                trying.spawn(secure(address, tls.clone(), name.clone()));
            }
            tokio::select! {
                Some(tried) = trying.join_next() => match tried {
                    Ok(Ok(stream)) => return Ok(stream),
                    Ok(Err(why)) => last = why,
                    Err(ended) => last = failed("connect", ended.to_string()),
                },
                () = tokio::time::sleep(silence), if allowed.peek().is_some() => {}
                else => return Err(last),
            }
        }
    }

    /// What is at an address where nobody is asked; `None`: it may be asked.
    fn blocked(&self, address: SocketAddr) -> Option<&'static str> {
        if self.doors.is_own(address) {
            return Some("this sidecar itself");
        }
        let allowed = self.allowed.iter().any(|block| block.contains(address.ip()));
        forbidden(address.ip(), ChosenBy::Caller).filter(|_| !allowed)
    }

    fn trusting(&self, from: &KeySource) -> Result<Arc<ClientConfig>, Failed> {
        match &from.ca {
            Some(own) => {
                web::of_roots(own.iter().map(|der| &der[..])).map_err(|why| failed("ca", format!("jwksCa: {why}")))
            }
            None => {
                let machine = self.machine.get_or_init(web::of_machine).clone();
                machine.map_err(|why| failed("ca", format!("{why}, or write jwksCa")))
            }
        }
    }
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

/// A connection to the very address that was judged, to whoever proves the name.
async fn secure(
    address: SocketAddr,
    tls: TlsConnector,
    name: ServerName<'static>,
) -> Result<TlsStream<TcpStream>, Failed> {
    let stream = TcpStream::connect(address).await.map_err(|error| failed("connect", format!("{address}: {error}")))?;
    tls.connect(name, stream).await.map_err(|error| failed("tls", error.to_string()))
}

/// Ends a task that nobody waits for any more.
struct AbortOnDrop(tokio::task::JoinHandle<Result<(), String>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn request(from: &KeySource) -> Result<Request<Empty<Bytes>>, Failed> {
    Request::get(from.url.target())
        .header(HOST, from.url.authority())
        .header(USER_AGENT, "equerry")
        .header(ACCEPT, "application/jwk-set+json, application/json")
        .header(CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| failed("http", error.to_string()))
}

async fn read(answer: Response<Incoming>) -> Result<Fetched, Failed> {
    let (head, body) = answer.into_parts();
    if head.status.is_redirection() {
        return Err(failed("redirect", format!("it redirects ({}), which is not followed", head.status.as_u16())));
    }
    if head.status != StatusCode::OK {
        return Err(failed("status", format!("status {}", head.status.as_u16())));
    }
    let body = match Limited::new(body, LARGEST).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(failed("too_large", "it is larger than 1 MiB"));
        }
        Err(error) => return Err(failed("http", error.to_string())),
    };
    let text = String::from_utf8(body.into()).map_err(|_| failed("content", "it is not text"))?;
    // What is wrong is told, what stands there is not: it may be anything.
    let (keys, passed_over) = read_published(&text).map_err(|bad| failed("content", told(&bad)))?;
    Ok(Fetched { keys, text, passed_over, new_for: max_age(&head.headers) })
}

fn told(bad: &BadKeySet) -> String {
    match bad {
        BadKeySet::NotASet(_) => "it is no key set".to_owned(),
        BadKeySet::Secret(index) => {
            format!("keys[{index}] is a private or symmetric key: the issuer gives its secrets away")
        }
        other => other.to_string(),
    }
}

/// For how long the answer is new (RFC 9111 section 5.2.2.1).
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut directives = values.flat_map(|value| value.split(',')).map(str::trim);
    directives.find_map(|directive| match directive.split_once('=') {
        Some((name, age)) if name.eq_ignore_ascii_case("max-age") => {
            age.trim_matches('"').parse().ok().map(Duration::from_secs)
        }
        None if directive.eq_ignore_ascii_case("no-store") || directive.eq_ignore_ascii_case("no-cache") => {
            Some(Duration::ZERO)
        }
        _ => None,
    })
}

/// Addresses judged as a fetch judges them, for tests.
#[cfg(test)]
impl Fetcher {
    pub(super) fn blocks(&self, address: std::net::IpAddr) -> bool {
        self.blocked(SocketAddr::new(address, 443)).is_some()
    }
}
