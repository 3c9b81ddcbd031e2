//! From the mesh to the application: which port is meant, whether the caller may, now and after every change of
//! configuration.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use equerry_policies::compile::CompiledWorkload;
use equerry_policies::names::ServiceName;
use equerry_policies::policy::{AppProtocol, Mesh, ServicePort};
use equerry_traffic::authorize::{self, Permit};
use equerry_traffic::token::{Caller, Shown};
use equerry_traffic::{Reason, Refusal, token};
use http::HeaderMap;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

use super::{Cut, Flow, ask_for_life, carry, ended, not_tcp, open, reset};
use crate::accept::detect::{self, Spoken};
use crate::codec::Ahead;
use crate::exchange::door;
use crate::exchange::facts::Record;
use crate::inbound::{self, Inbound};
use crate::live::trust::Vouched;
use crate::observe::Direction;

/// Where `--app-port` says the application listens; it must be there, so a connection takes no time.
const APPLICATION_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a caller may take to hear why it is refused.
const FAREWELL: Duration = Duration::from_secs(1);

/// Leads a connection from the mesh to the application's port that it names.
pub(crate) async fn inbound(at: &Inbound, via: &inbound::Via, mut near: TlsStream<Ahead<Spoken<TcpStream>>>) {
    let mut record = open(Direction::Inbound, via.address, &at.shared);
    record.note(|exchange| {
        exchange.source = via.peer.clone();
        exchange.sni = via.server_name.clone();
        exchange.tls = true;
    });
    ask_for_life(near.get_ref().0.inner().inner());
    // Listening begins before the first judgement: no change falls between the two.
    let changes = at.shared.live.publications();
    let mut far = match enter(at, via, &mut record).await {
        Ok(far) => far,
        Err(refusal) => {
            let farewell = async {
                tell(&mut near, refusal.reason()).await?;
                near.shutdown().await
            };
            // Whoever does not listen is not waited for.
            let _ = tokio::time::timeout(FAREWELL, farewell).await;
            return ended(&mut record, &Flow::new(), Err(refusal.into()));
        }
    };
    let flow = Flow::new();
    let end = tokio::select! {
        carried = async {
            tell(&mut near, Reason::Ok).await.map_err(|error| Cut::by_the_caller(&error))?;
            carry(&mut near, &mut far, &[], &flow).await
        } => carried,
        refusal = no_longer_allowed(at, via, changes) => Err(refusal.into()),
        cut = over(via) => Err(cut),
    };
    if end.is_err() {
        reset(near.get_ref().0.inner().inner());
        reset(&far);
    }
    ended(&mut record, &flow, end);
}

/// What a connection in plain text may be: it names no port, so that the only one of the application is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plain {
    /// Requests, or nothing.
    Requests,
    /// Bytes, whatever they look like, and whoever begins; first bytes that are TLS may take so long, and where nobody takes TLS
    /// (`None`) they are bytes too.
    Bytes(Option<Duration>),
    /// What its first bytes say; those of TLS are bytes like others where nobody takes it.
    AsItBegins {
        /// Somebody takes it.
        tls: bool,
    },
}

/// What may come in plain text now.
pub(crate) fn plain(at: &Inbound) -> Plain {
    let live = at.shared.live.load();
    let Some(workload) = &live.workload else { return Plain::Requests };
    match plain_port(at, workload, None) {
        Ok((_, known)) if known.app_protocol == AppProtocol::Tcp => {
            let written = workload.mesh.protocol_detection_timeout.unwrap_or(Mesh::PROTOCOL_DETECTION_TIMEOUT);
            // TLS must be told from bytes also where nobody is to wait.
            let patience = if written.is_zero() { detect::PATIENCE } else { written };
            Plain::Bytes(takes_tls(at, workload).then_some(patience))
        }
        Ok((_, known)) if known.takes_bytes() && !workload.has_rules_about_http(known.target_port) => {
            Plain::AsItBegins { tls: takes_tls(at, workload) }
        }
        Ok(_) | Err(_) => Plain::Requests,
    }
}

/// Whether some port of the application takes mutual TLS.
fn takes_tls(at: &Inbound, workload: &CompiledWorkload) -> bool {
    at.shared.settings.app_ports.iter().any(|known| workload.mtls(known.port).takes_tls())
}

/// The only port of the application that may be spoken to in plain text; on a connection that stands, the one that was `meant`.
fn plain_port<'a>(
    at: &Inbound,
    workload: &'a CompiledWorkload,
    meant: Option<u16>,
) -> Result<(&'a ServiceName, &'a ServicePort), Refusal> {
    let ports = || at.shared.settings.app_ports.iter().map(|known| known.port);
    let mut open = ports().filter(|port| workload.mtls(*port).takes_plain_text() && meant.is_none_or(|it| it == *port));
    let Some(port) = open.next() else {
        return Err(Refusal::TlsRequired { port: meant.or(ports().next()).unwrap_or_default() });
    };
    let mut services = workload.services.iter().flat_map(|(name, ports)| ports.iter().map(move |known| (name, known)));
    let only = services.find(|(_, known)| known.target_port == port).filter(|_| open.next().is_none());
    only.ok_or_else(|| Refusal::NoSuchPort { of: "this instance".to_owned(), port, ports: ports().collect() })
}

/// Leads a connection in plain text to the only port of the application.
pub(crate) async fn plain_inbound(at: &Inbound, via: &inbound::Via, mut near: Spoken<TcpStream>) {
    let mut record = open(Direction::Inbound, via.address, &at.shared);
    ask_for_life(near.inner());
    // Listening begins before the first judgement: no change falls between the two.
    let changes = at.shared.live.publications();
    // What is opened beside it later makes nothing unclear that is clear now.
    let meant = at
        .shared
        .live
        .load()
        .workload
        .as_ref()
        .and_then(|workload| plain_port(at, workload, None).ok()?.1.target_port.into());
    let via = &inbound::Via { port: meant, ..via.clone() };
    let mut far = match enter(at, via, &mut record).await {
        Ok(far) => far,
        Err(refusal) => {
            reset(near.inner());
            return ended(&mut record, &Flow::new(), Err(refusal.into()));
        }
    };
    let flow = Flow::new();
    let end = tokio::select! {
        carried = carry(&mut near, &mut far, &[], &flow) => carried,
        refusal = no_longer_allowed(at, via, changes) => Err(refusal.into()),
    };
    if end.is_err() {
        reset(near.inner());
        reset(&far);
    }
    ended(&mut record, &flow, end);
}

/// The first line of a callee.
async fn tell(near: &mut TlsStream<Ahead<Spoken<TcpStream>>>, reason: Reason) -> io::Result<()> {
    near.write_all(format!("{reason}\n").as_bytes()).await?;
    near.flush().await
}

async fn enter(at: &Inbound, via: &inbound::Via, record: &mut Record) -> Result<TcpStream, Refusal> {
    let live = at.shared.live.load();
    record.note(|exchange| (exchange.epoch, exchange.destination_principal) = (live.epoch, Some(live.own.clone())));
    let workload = live.workload.as_ref().ok_or(Refusal::PolicyUnavailable)?;
    let door = door(at, workload, via)?;
    record.note(|exchange| exchange.destination = Some(door.service.clone()));
    let caller = caller(&door, workload, via)?;
    let (connection, judged) = (via.connection(door.port), authorize(&door, workload, via));
    record.note(|exchange| exchange.noted = authorize::note_connection(&caller, &connection, workload, &judged));
    let permit = judged?;
    record.note(|exchange| (exchange.attempts, exchange.upstream_address) = (1, Some(door.local)));
    forward(&permit, &door).await
}

/// The application's port that a connection means.
struct Door {
    port: u16,
    local: SocketAddr,
    service: ServiceName,
}

/// Which port is meant, and whether nobody looks for requests there: where HTTP is spoken its rules hold, and bytes would
/// pass them by.
fn door(at: &Inbound, workload: &CompiledWorkload, via: &inbound::Via) -> Result<Door, Refusal> {
    let settings = &at.shared.settings;
    if via.peer.is_none() {
        let (service, known) = plain_port(at, workload, via.port)?;
        opens(known, service, workload)?;
        return Ok(door_to(known, service, settings.local_port(known.target_port).unwrap_or(known.target_port)));
    }
    let port = via.port.unwrap_or_default();
    let no_such_port = || Refusal::NoSuchPort {
        of: "this instance".to_owned(),
        port,
        ports: settings.app_ports.iter().map(|known| known.port).collect(),
    };
    let local = settings.local_port(port).ok_or_else(no_such_port)?;
    let called = via.server_name.as_deref().unwrap_or_default();
    let (service, ports) =
        workload.services.iter().find(|(name, _)| door::is_called(name, called)).ok_or_else(no_such_port)?;
    let known = ports.iter().find(|known| known.target_port == port).ok_or_else(no_such_port)?;
    opens(known, service, workload)?;
    Ok(door_to(known, service, local))
}

/// Whether bytes may pass to a port of `service`, by its declaration and by the rules that hold there.
pub(crate) fn opens(known: &ServicePort, service: &ServiceName, workload: &CompiledWorkload) -> Result<(), Refusal> {
    let port = known.target_port;
    if known.undeclared && workload.has_rules_about_http(port) {
        return Err(Refusal::not_measured(known.port, service));
    }
    if !known.takes_bytes() {
        return Err(not_tcp(known.port, service));
    }
    Ok(())
}

fn door_to(known: &ServicePort, service: &ServiceName, local: u16) -> Door {
    Door { port: known.target_port, local: (Ipv4Addr::LOCALHOST, local).into(), service: service.clone() }
}

/// A token that is required is missing: nobody looks for one in the bytes.
fn caller(door: &Door, workload: &CompiledWorkload, via: &inbound::Via) -> Result<Caller, Refusal> {
    token::verify(workload, door.port, Shown::headers(&mut HeaderMap::new()), via.peer.as_ref(), SystemTime::now())
}

fn authorize(door: &Door, workload: &CompiledWorkload, via: &inbound::Via) -> Result<Permit, Refusal> {
    authorize::authorize_connection(&caller(door, workload, via)?, &via.connection(door.port), workload)
}

/// Connects a permitted connection to the application.
async fn forward(_: &Permit, door: &Door) -> Result<TcpStream, Refusal> {
    let connected = tokio::time::timeout(APPLICATION_CONNECT_TIMEOUT, TcpStream::connect(door.local)).await;
    let failed = |detail: String| Refusal::ConnectFailed { detail };
    let stream = connected
        .map_err(|_| failed(format!("no connection within {APPLICATION_CONNECT_TIMEOUT:?}")))?
        .map_err(|error| failed(error.to_string()))?;
    stream.set_nodelay(true).map_err(|error| failed(error.to_string()))?;
    Ok(stream)
}

/// Judges a live connection again with every change of configuration, until it is refused.
async fn no_longer_allowed(at: &Inbound, via: &inbound::Via, mut changes: watch::Receiver<()>) -> Refusal {
    loop {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
        let live = at.shared.live.load();
        let Some(workload) = &live.workload else { return Refusal::PolicyUnavailable };
        let judged = door(at, workload, via).and_then(|door| authorize(&door, workload, via));
        if let Err(refusal) = judged {
            return refusal;
        }
    }
}

/// The end of the certificate by which the peer is known, or of all belief in it.
pub(super) async fn over(via: &inbound::Via) -> Cut {
    tokio::select! {
        cut = expired(via.not_after) => cut,
        cut = distrusted(via.vouched.clone()) => cut,
    }
}

/// Whoever is at the other end is believed no more.
pub(super) async fn distrusted(vouched: Option<Vouched>) -> Cut {
    let Some(vouched) = vouched else { return std::future::pending().await };
    Cut { reason: Reason::IdentityRevoked, cause: None, detail: vouched.believed_no_more().await }
}

async fn expired(not_after: Option<SystemTime>) -> Cut {
    let Some(end) = not_after else { return std::future::pending().await };
    tokio::time::sleep(end.duration_since(SystemTime::now()).unwrap_or_default()).await;
    let detail = "the certificate of the caller has ended; it connects again with its next one".to_owned();
    Cut { reason: Reason::IdentityExpired, cause: None, detail }
}
