//! Plain TCP through the mesh: a connection is authorized, an endpoint picked, and bytes are copied both ways until both
//! ends are done; a half that is closed stays closed while the other goes on.
//!
//! Nobody looks at the bytes and nobody waits for the first of them, so whoever speaks first may. Only ports declared
//! `appProtocol: tcp` are reached. Between sidecars (ALPN `eq-tcp`) the callee's first line is the reason for which it goes no
//! further, or `ok`; then the application's bytes begin. What is cut later is reset: nobody takes half for all.

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use equerry_policies::compile::CompiledWorkload;
use equerry_policies::names::{Authority, ServiceName};
use equerry_policies::policy::{AppProtocol, ServicePort, TrafficPolicy};
use equerry_traffic::authorize::{self, Permit};
use equerry_traffic::balance::{self, NoEndpoint, Source};
use equerry_traffic::deadline::{Authors, Deadline, Kind, Rest};
use equerry_traffic::route::{self, Known};
use equerry_traffic::{Reason, Refusal, token};
use http::{HeaderMap, HeaderValue, Request};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use crate::accept::detect::Spoken;
use crate::app::Shared;
use crate::drain::Drain;
use crate::exchange::facts::{self, Record};
use crate::exchange::{attempt, now, serve, tries};
use crate::inbound::{self, Inbound};
use crate::live::{Backend, Live, NotThere, TlsIdentity};
use crate::observe::Direction;
use crate::outbound::Outbound;
use crate::upstream::{self, Chosen, ConnectFailure, Places, Protocol, Target, Tunnel, Whom};

/// Endpoints tried until one takes the connection: nothing was said yet, so that nothing is said twice.
const ENDPOINTS: usize = 3;
/// A connection on which nothing passes for so long is cut where no policy says otherwise (Envoy's TCP proxy).
const USUAL_IDLE: Duration = Duration::from_secs(3600);
/// Where `--app-port` says the application listens; it must be there, so a connection takes no time.
const APPLICATION_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// While the process leaves, a connection on which nothing passed for so long is taken to be done.
const QUIET: Duration = Duration::from_secs(5);
/// A peer that went silent is asked for a sign of life after this, and then this often.
const SIGN_OF_LIFE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(10));
/// The longest first line of a callee: longer than any reason.
const LONGEST_ANSWER: usize = 64;
/// How long a caller may take to hear why it is refused.
const FAREWELL: Duration = Duration::from_secs(1);
/// What one read takes.
const BUFFER: usize = 16 * 1024;

/// Why a connection does not go on.
#[derive(Debug)]
struct Cut {
    reason: Reason,
    /// The policy that decided it.
    cause: Option<String>,
    detail: String,
}

impl From<Refusal> for Cut {
    fn from(refusal: Refusal) -> Self {
        Self { reason: refusal.reason(), cause: refusal.cause().map(str::to_owned), detail: refusal.to_string() }
    }
}

/// Leads a connection of the application to the Service that it `named`.
pub(crate) async fn outbound(at: &Outbound, named: &str, mut near: TcpStream, from: SocketAddr) {
    let mut record = open(Direction::Outbound, from, &at.shared);
    let authority = HeaderValue::from_str(named).unwrap_or_else(|_| HeaderValue::from_static(""));
    record.note(|exchange| exchange.authority = authority);
    ask_for_life(&near);
    let Reached { mut tunnel, early, limits } = match reach(at, named, from, &mut record).await {
        Ok(reached) => reached,
        Err(cut) => {
            ended(&mut record, &Flow::new(), Err(cut));
            return reset(&near);
        }
    };
    ask_for_life(tunnel.wire.socket());
    let flow = Flow::new();
    let end = tokio::select! {
        carried = carry(&mut near, &mut tunnel.wire, &early, &flow) => carried,
        refusal = limits.reached(&flow) => Err(refusal.into()),
        () = hold_the_process(&at.shared.drain, &flow) => Ok(()),
    };
    if end.is_err() {
        reset(&near);
        reset(tunnel.wire.socket());
    }
    ended(&mut record, &flow, end);
}

/// A connection to an endpoint, what it said before it was spoken to, and how long it may last.
struct Reached {
    tunnel: Tunnel,
    early: Vec<u8>,
    limits: Limits,
}

async fn reach(at: &Outbound, named: &str, from: SocketAddr, record: &mut Record) -> Result<Reached, Cut> {
    let live = at.shared.live.load();
    let named = Authority::parse(named, &live.own.namespace)
        .map_err(|_| Refusal::NoService { name: named.to_owned(), nearest: None })?;
    let live = at.shared.live.want(&named.service).await.map_err(|none| match none {
        NotThere::Unknown { nearest } => Refusal::NoService { name: named.service.to_string(), nearest },
        NotThere::Unavailable => Refusal::ConfigUnavailable { service: named.service.clone() },
    })?;
    record.note(|exchange| (exchange.epoch, exchange.source) = (live.epoch, Some(live.own.clone())));
    let destination = live
        .destination(&named.service)
        .ok_or_else(|| Refusal::ConfigUnavailable { service: named.service.clone() })?;
    let leave = route::may_leave(&named, Known::Service(&destination.compiled))?;
    record.note(|exchange| exchange.destination = Some(leave.service().clone()));
    let choice = tries::with_randomness(|rng| route::connect(&leave, &destination.compiled, rng))?;
    record.note(|exchange| exchange.route = choice.route().cloned());
    let backend = serve::backend(&live, destination, &choice)?;
    let port = serve::service_port(backend, choice.port)?;
    if port.app_protocol != AppProtocol::Tcp {
        return Err(not_tcp(port.port, &backend.name).into());
    }
    let (tunnel, early) = connect(at, &live, backend, port, from, record).await?;
    Ok(Reached { tunnel, early, limits: Limits::of(&backend.traffic) })
}

fn not_tcp(port: u16, of: &ServiceName) -> Refusal {
    Refusal::bad_request(format!("port {port} of {of} speaks HTTP, and this is TCP"))
}

/// Connects to one endpoint after the other until one takes us.
async fn connect(
    at: &Outbound,
    live: &Live,
    backend: &Backend,
    port: &ServicePort,
    from: SocketAddr,
    record: &mut Record,
) -> Result<(Tunnel, Vec<u8>), Cut> {
    let identity = at.shared.identity.current();
    let source = Source { address: from.ip(), instance: at.shared.settings.instance.as_str(), identity: &live.own };
    let key = backend.balancer.key(&Request::new(()).into_parts().0, &source);
    let mut tried = Vec::new();
    loop {
        let choose = |rng: &mut _| upstream::choose(backend, port.port, key, &mut tried, now(), rng);
        let mut chosen = tries::with_randomness(choose).map_err(|none| match none {
            NoEndpoint::None => Refusal::NoHealthyEndpoint { service: backend.name.clone() },
            NoEndpoint::AllOpen => Refusal::BreakerOpen { service: backend.name.clone() },
        })?;
        tries::report(chosen.this_try.transition, backend, &chosen.endpoint.instance, record);
        record.note(|exchange| {
            exchange.attempts += 1;
            exchange.upstream_address = Some(chosen.address);
            exchange.tls = chosen.mesh;
        });
        let target = target(backend, port, &chosen, identity.as_ref())?;
        let outcome = over(at, &target).await;
        let verdict = match &outcome {
            Ok(_) => Some(balance::Verdict::Success),
            Err(cut) if cut.reason.counts_against_endpoint() => Some(balance::Verdict::Failure),
            Err(_) => None,
        };
        if let Some(verdict) = verdict {
            let breaker = backend.traffic.breaker.as_ref();
            let change =
                tries::with_randomness(|rng| chosen.this_try.finish(verdict, breaker, &backend.endpoints, now(), rng));
            tries::report(change, backend, &chosen.endpoint.instance, record);
        }
        match outcome {
            Ok((tunnel, early)) => {
                record.note(|exchange| exchange.destination_principal = tunnel.facts.peer.clone());
                return Ok((tunnel, early));
            }
            Err(cut) if !cut.reason.provably_unprocessed() || tried.len() >= ENDPOINTS.min(backend.endpoints.len()) => {
                return Err(cut);
            }
            Err(_) => {}
        }
    }
}

/// One connection, as soon as the other side lets us in.
async fn over(at: &Outbound, target: &Target<'_>) -> Result<(Tunnel, Vec<u8>), Cut> {
    let no_connection = |failure| attempt::no_connection(failure, target).refusal;
    let mut tunnel = at.pool.tunnel(target).await.map_err(no_connection)?;
    if target.whom.is_none() {
        return Ok((tunnel, Vec::new()));
    }
    let answer = tokio::time::timeout(target.connect_timeout, answer(&mut tunnel)).await;
    let slow = || no_connection(ConnectFailure::Failed(format!("no answer within {:?}", target.connect_timeout)));
    let (word, early) = answer.map_err(|_| slow())?.map_err(no_connection)?;
    match word.parse() {
        Ok(Reason::Ok) => Ok((tunnel, early)),
        Ok(reason) => {
            Err(Cut { reason, cause: None, detail: format!("the sidecar of {} says {word}", target.address) })
        }
        Err(_) => Err(no_connection(ConnectFailure::Failed(format!("an answer not understood: {word:?}"))).into()),
    }
}

/// The first line of a callee, and what it said after it.
async fn answer(tunnel: &mut Tunnel) -> Result<(String, Vec<u8>), ConnectFailure> {
    let mut said = Vec::with_capacity(BUFFER);
    loop {
        let read = tunnel.wire.read_buf(&mut said).await;
        if let Some(refusal) = tunnel.facts.refusal() {
            return Err(ConnectFailure::Failed(refusal.to_owned()));
        }
        let read = read.map_err(|error| ConnectFailure::Failed(error.to_string()))?;
        if let Some(end) = said.iter().take(LONGEST_ANSWER).position(|byte| *byte == b'\n') {
            let early = said.split_off(end + 1);
            return Ok((String::from_utf8_lossy(&said[..end]).into_owned(), early));
        }
        if read == 0 || said.len() >= LONGEST_ANSWER {
            return Err(ConnectFailure::Failed("the peer gave no answer".to_owned()));
        }
    }
}

fn target<'a>(
    backend: &'a Backend,
    port: &ServicePort,
    chosen: &Chosen<'_>,
    identity: Option<&'a std::sync::Arc<TlsIdentity>>,
) -> Result<Target<'a>, Refusal> {
    let whom = if chosen.mesh {
        let identity = identity.ok_or(Refusal::IdentityExpired)?;
        Some(Whom { service: &backend.name, port: port.target_port, accounts: &backend.accounts, identity })
    } else {
        None
    };
    let traffic = &backend.traffic;
    Ok(Target {
        address: chosen.address,
        protocol: Protocol::Tcp,
        whom,
        connect_timeout: traffic.connect_timeout,
        idle_timeout: traffic.idle_timeout,
        places: Some(Places { service: &backend.name, state: &backend.limits, traffic }),
    })
}

/// Leads a connection from the mesh to the application's port that it names.
pub(crate) async fn inbound(at: &Inbound, via: &inbound::Via, mut near: TlsStream<Spoken<TcpStream>>) {
    let mut record = open(Direction::Inbound, via.address, &at.shared);
    record.note(|exchange| {
        exchange.source = via.peer.clone();
        exchange.sni = via.server_name.clone();
        exchange.tls = true;
    });
    ask_for_life(near.get_ref().0.inner());
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
        cut = expired(via.not_after) => Err(cut),
        () = hold_the_process(&at.shared.drain, &flow) => Ok(()),
    };
    if end.is_err() {
        reset(near.get_ref().0.inner());
        reset(&far);
    }
    ended(&mut record, &flow, end);
}

/// The first line of a callee.
async fn tell(near: &mut TlsStream<Spoken<TcpStream>>, reason: Reason) -> io::Result<()> {
    near.write_all(format!("{reason}\n").as_bytes()).await?;
    near.flush().await
}

async fn enter(at: &Inbound, via: &inbound::Via, record: &mut Record) -> Result<TcpStream, Refusal> {
    let live = at.shared.live.load();
    record.note(|exchange| (exchange.epoch, exchange.destination_principal) = (live.epoch, Some(live.own.clone())));
    let workload = live.workload.as_ref().ok_or(Refusal::PolicyUnavailable)?;
    let door = door(at, workload, via)?;
    record.note(|exchange| exchange.destination = Some(door.service.clone()));
    let permit = authorize(&door, workload, via)?;
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
    let port = via.port.unwrap_or_default();
    let no_such_port = || Refusal::NoSuchPort {
        of: "this instance".to_owned(),
        port,
        ports: settings.app_ports.iter().map(|known| known.port).collect(),
    };
    let local = settings.local_port(port).ok_or_else(no_such_port)?;
    let called = via.server_name.as_deref().unwrap_or_default();
    let (service, ports) =
        workload.services.iter().find(|(name, _)| serve::is_called(name, called)).ok_or_else(no_such_port)?;
    match ports.iter().find(|known| known.target_port == port) {
        Some(known) if known.app_protocol == AppProtocol::Tcp => {
            Ok(Door { port, local: (Ipv4Addr::LOCALHOST, local).into(), service: service.clone() })
        }
        Some(known) => Err(not_tcp(known.port, service)),
        None => Err(no_such_port()),
    }
}

/// A token that is required is missing: nobody looks for one in the bytes.
fn authorize(door: &Door, workload: &CompiledWorkload, via: &inbound::Via) -> Result<Permit, Refusal> {
    let mut no_headers = HeaderMap::new();
    let caller = token::verify(workload, door.port, &mut no_headers, via.peer.as_ref(), SystemTime::now())?;
    authorize::authorize_connection(&caller, door.port, via.address.ip(), workload)
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

/// The end of the certificate by which the peer is known.
async fn expired(not_after: Option<SystemTime>) -> Cut {
    let Some(end) = not_after else { return std::future::pending().await };
    tokio::time::sleep(end.duration_since(SystemTime::now()).unwrap_or_default()).await;
    let detail = "the certificate of the caller has ended; it connects again with its next one".to_owned();
    Cut { reason: Reason::IdentityExpired, cause: None, detail }
}

/// How long a connection may last, and stand still.
struct Limits {
    rest: Rest,
    policy: TrafficPolicy,
}

impl Limits {
    fn of(policy: &TrafficPolicy) -> Self {
        let mut rest = Deadline::after(now(), None).after_head(Kind::Upgrade, now(), policy);
        if policy.stream_idle_timeout.is_none() {
            rest.idle = Some(USUAL_IDLE);
        }
        Self { rest, policy: policy.clone() }
    }

    async fn reached(&self, flow: &Flow) -> Refusal {
        let over = async {
            match self.rest.end.at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let still = async {
            match self.rest.idle {
                Some(idle) => flow.stands_still(idle).await,
                None => std::future::pending().await,
            }
        };
        let refusal = tokio::select! {
            () = over => self.rest.end.passed(),
            () = still => self.rest.stood_still(),
        };
        refusal.signed(&Authors { rule: None, policy: Some(&self.policy) })
    }
}

/// Bytes that passed, and when the last ones did.
struct Flow {
    received: Cell<u64>,
    sent: Cell<u64>,
    last: Cell<Instant>,
}

impl Flow {
    fn new() -> Self {
        Self { received: Cell::new(0), sent: Cell::new(0), last: Cell::new(Instant::now()) }
    }

    /// Waits until nothing has passed for `long`.
    async fn stands_still(&self, long: Duration) {
        loop {
            let until = self.last.get() + long;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// Which end of one way broke.
enum Broke {
    Reading(io::Error),
    Writing(io::Error),
}

/// Copies both ways until both ends have said all; `early` was read from `far` already.
async fn carry<N, F>(near: &mut N, far: &mut F, early: &[u8], flow: &Flow) -> Result<(), Cut>
where
    N: AsyncRead + AsyncWrite + Unpin,
    F: AsyncRead + AsyncWrite + Unpin,
{
    let (near_reads, near_writes) = tokio::io::split(near);
    let (far_reads, far_writes) = tokio::io::split(far);
    let out = async {
        one_way(&[], near_reads, far_writes, &flow.received, flow).await.map_err(|broke| match broke {
            Broke::Reading(error) => Cut::by_the_caller(&error),
            Broke::Writing(error) => Cut::by_the_other(&error),
        })
    };
    let back = async {
        one_way(early, far_reads, near_writes, &flow.sent, flow).await.map_err(|broke| match broke {
            Broke::Reading(error) => Cut::by_the_other(&error),
            Broke::Writing(error) => Cut::by_the_caller(&error),
        })
    };
    tokio::try_join!(out, back).map(drop)
}

impl Cut {
    fn by_the_caller(error: &io::Error) -> Self {
        Self { reason: Reason::ClientGone, cause: None, detail: error.to_string() }
    }

    fn by_the_other(error: &io::Error) -> Self {
        Refusal::UpstreamReset { detail: error.to_string() }.into()
    }
}

async fn one_way(
    early: &[u8],
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    count: &Cell<u64>,
    flow: &Flow,
) -> Result<(), Broke> {
    let mut buffer = vec![0; BUFFER];
    let mut passing = early;
    loop {
        if !passing.is_empty() {
            to.write_all(passing).await.map_err(Broke::Writing)?;
            // TLS may hold back what the socket did not take.
            to.flush().await.map_err(Broke::Writing)?;
            count.set(count.get() + passing.len() as u64);
            flow.last.set(Instant::now());
        }
        let read = from.read(&mut buffer).await.map_err(Broke::Reading)?;
        passing = &buffer[..read];
        if read == 0 {
            return match to.shutdown().await {
                // The other side had left already; it was told nothing that it did not know.
                Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(Broke::Writing(error)),
                _ => Ok(()),
            };
        }
    }
}

/// While the process leaves, a connection on which something passes is waited for.
async fn hold_the_process(drain: &Drain, flow: &Flow) {
    let working = drain.guard();
    drain.wait_begun().await;
    flow.stands_still(QUIET).await;
    drop(working);
    std::future::pending::<()>().await;
}

fn open(direction: Direction, from: SocketAddr, shared: &Shared) -> Record {
    let mut head = Request::new(()).into_parts().0;
    let mut about = facts::describe(direction, &mut head, from);
    // Nobody tells the other side which trace a connection belongs to.
    (about.tunnel, about.traceparent) = (true, None);
    Record::open(about, &shared.observe)
}

fn ended(record: &mut Record, flow: &Flow, end: Result<(), Cut>) {
    record.received().set(flow.received.get());
    record.sent(usize::try_from(flow.sent.get()).unwrap_or(usize::MAX));
    match end {
        Ok(()) => record.ended(Reason::Ok, 0),
        Err(Cut { reason, cause, detail }) => {
            record.ended(reason, 0);
            record.note(|exchange| (exchange.policy_rule, exchange.detail) = (cause, Some(detail)));
        }
    }
}

fn ask_for_life(socket: &TcpStream) {
    let (after, every) = SIGN_OF_LIFE;
    let asking = socket2::TcpKeepalive::new().with_time(after).with_interval(every);
    if let Err(error) = socket2::SockRef::from(socket).set_tcp_keepalive(&asking) {
        tracing::debug!(%error, "a connection cannot be asked for signs of life");
    }
}

/// Makes dropping the connection a reset: its end must not look like the end of what was to be said.
fn reset(socket: &TcpStream) {
    // A connection that is gone already needs none.
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}
