//! The two pipelines, read downwards. Each value is made only by the stage before it: no route without the proof that a
//! request may leave, nothing forwarded without a permit.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use equerry_policies::compile::{CompiledWorkload, Tenant};
use equerry_policies::names::{Authority, ServiceName, TenantName};
use equerry_policies::policy::{ErrorDetail, MtlsMode, ServicePort};
use equerry_traffic::authorize::{self, Permit};
use equerry_traffic::balance::Source;
use equerry_traffic::deadline::Deadline;
use equerry_traffic::normalize::{self, Normal, normalize};
use equerry_traffic::quota::Share;
use equerry_traffic::route::{self, Choice, Known, MayLeave};
use equerry_traffic::token::Caller;
use equerry_traffic::{Reason, Refusal, tenant, token};
use http::header::{HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Version};

use super::attempt::{self, Outgoing};
use super::body::{Answer, ToSend};
use super::facts::{self, Record};
use super::now;
use super::reply::{self, Style};
use super::tries::{self, Answered, Errand};
use crate::app::Shared;
use crate::codec::http1::Bad;
use crate::codec::{Incoming, MAX_HEADER_BYTES, spare};
use crate::inbound::{Inbound, Via};
use crate::live::{self, Backend, Destination, Live, NotThere};
use crate::observe::Direction;
use crate::outbound::{self, Outbound};
use crate::upstream::{Protocol, Target};

/// Where `--app-port` says the application listens; it must be there, so a connection takes no time.
const APPLICATION_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Shorter than the keep-alive of common application servers (Node's is 5 s), so that it is we who close.
const APPLICATION_IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Who called, as the application's frameworks know it (Envoy's header).
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// A request whose head cannot be read.
pub(crate) fn unreadable(shared: &Shared, direction: Direction, from: SocketAddr, bad: &Bad) -> Response<Answer> {
    let mut head = Request::new(()).into_parts().0;
    // Nobody knows which it was.
    head.method = Method::from_bytes(b"-").unwrap_or_default();
    let record = Record::open(facts::describe(direction, &mut head, from), &shared.observe);
    shared.observe.handshake_failed(direction, bad.word());
    let refusal = match bad {
        Bad::TooLarge => Refusal::HeadTooLarge { limit: u64::from(MAX_HEADER_BYTES) },
        bad => Refusal::bad_request(format!("the head of the request cannot be read: {bad}")),
    };
    let style = Style::of(&Method::GET, &head.headers, head.version, ErrorDetail::Reason, true);
    reply::refuse(&refusal, &style, record)
}

/// An exchange that the application begins.
pub(crate) async fn outbound(at: &Outbound, from: &outbound::Via, request: Request<Incoming>) -> Response<Answer> {
    let busy = from.quiet.begin();
    let (mut head, body) = request.into_parts();
    let mut record = Record::open(facts::describe(Direction::Outbound, &mut head, from.address), &at.shared.observe);
    let live = at.shared.live.load();
    record.note(|exchange| (exchange.epoch, exchange.source) = (live.epoch, Some(live.own.clone())));
    let style = Style::of(&head.method, &head.headers, head.version, error_detail(&live), false);
    let left = leave(at, from.address.ip(), live, &mut head, body, &mut record).await;
    spare::keep(head.headers);
    match left {
        Ok((answered, held)) => reply::answer(answered, (Some(held), Some(busy)), &style, record),
        Err(refusal) => reply::refuse(&refusal, &style, record),
    }
}

async fn leave(
    at: &Outbound,
    from: IpAddr,
    live: Arc<Live>,
    head: &mut Parts,
    body: Incoming,
    record: &mut Record,
) -> Result<(Answered, live::Held), Refusal> {
    let normal = normalize(head, normalize::Direction::Outbound)?;
    record.note(|exchange| {
        (exchange.target, exchange.authority) = (normal.target().clone(), normal.host_header().clone());
    });
    let (live, named) = resolve(at, live, &normal).await?;
    record.note(|exchange| exchange.epoch = live.epoch);
    let (may_leave, destination) = may_leave(&live, &named)?;
    record.note(|exchange| exchange.destination = Some(may_leave.service().clone()));
    let choice = tries::with_randomness(|rng| route::route(&may_leave, &destination.compiled, head, rng))?;
    record.note(|exchange| exchange.route = choice.route().cloned());
    let deadline = Deadline::after(now(), choice.request_timeout());
    let backend = backend(&live, &choice)?;
    let port = service_port(backend, choice.port)?;
    let held = take_place(backend)?;
    let protocol = if head.version == Version::HTTP_2 { Protocol::Http2 } else { Protocol::Http1 };
    let body = in_time(deadline, ToSend::take(body, choice.retry().is_some(), record)).await?;
    let source = Source { address: from, instance: at.shared.settings.instance.as_str(), identity: &live.own };
    let key = backend.balancer.key(head, &source);
    let mut outgoing = Outgoing::new(head, normal, body);
    let errand = Errand {
        destination,
        backend,
        port,
        key,
        protocol,
        identity: at.shared.identity.current(),
        deadline,
        try_timeout: choice.try_timeout(),
        retry: choice.retry(),
        method_named: choice.method_named,
    };
    let answered = tries::until_answered(&errand, &at.pool, &mut outgoing, record).await?;
    let decided_there = tries::believed(&answered).unwrap_or(Reason::Ok);
    record.broke(decided_there);
    Ok((answered, held))
}

/// Which Service is meant, and the configuration that knows it: at most a second later, the first time it is named.
async fn resolve(at: &Outbound, live: Arc<Live>, normal: &Normal) -> Result<(Arc<Live>, (Authority, Found)), Refusal> {
    let authority = Authority::parse(normal.authority(), &live.own.namespace)
        .map_err(|_| Refusal::NoService { name: normal.authority().to_owned(), nearest: None })?;
    if live.destination(&authority.service).is_some() {
        return Ok((live, (authority, Found::Here)));
    }
    match at.shared.live.want(&authority.service).await {
        Ok(live) => Ok((live, (authority, Found::Here))),
        Err(NotThere::Unknown { nearest }) => Ok((live, (authority, Found::Unknown { nearest }))),
        Err(NotThere::Unavailable) => Ok((live, (authority, Found::NotYet))),
    }
}

/// What asking for a Service found.
#[derive(Debug)]
enum Found {
    Here,
    Unknown { nearest: Option<String> },
    NotYet,
}

fn may_leave<'a>(live: &'a Live, named: &(Authority, Found)) -> Result<(MayLeave, &'a Destination), Refusal> {
    let (authority, found) = named;
    let destination = live.destination(&authority.service);
    let known = match (found, destination) {
        (Found::Here, Some(destination)) => Known::Service(&destination.compiled),
        (Found::Unknown { nearest }, _) => Known::Nothing { nearest: nearest.as_deref() },
        (Found::NotYet | Found::Here, _) => Known::NotYet,
    };
    let may_leave = route::may_leave(authority, known)?;
    let destination = destination.ok_or_else(|| Refusal::ConfigUnavailable { service: authority.service.clone() })?;
    Ok((may_leave, destination))
}

/// A backend need not be one that callers may name yet: its own routes are not asked.
fn backend<'a>(live: &'a Live, choice: &Choice) -> Result<&'a Backend, Refusal> {
    live.destinations
        .get(&choice.backend)
        .map(|destination| &*destination.backend)
        .ok_or_else(|| Refusal::ConfigUnavailable { service: choice.backend.clone() })
}

fn service_port(backend: &Backend, named: Option<u16>) -> Result<&ServicePort, Refusal> {
    let found = match (named, backend.ports.as_slice()) {
        (Some(port), ports) => ports.iter().find(|known| known.port == port),
        (None, [only]) => Some(only),
        (None, _) => None,
    };
    found.ok_or_else(|| Refusal::NoSuchPort {
        of: backend.name.to_string(),
        port: named.unwrap_or_default(),
        ports: backend.ports.iter().map(|known| known.port).collect(),
    })
}

fn take_place(backend: &Backend) -> Result<live::Held, Refusal> {
    let limit = backend.traffic.limits.requests;
    backend.limits.request(limit).ok_or_else(|| Refusal::LimitPending {
        service: backend.name.clone(),
        limit: limit.unwrap_or(u32::MAX),
        what: "in flight",
    })
}

/// Holding a body for retries is part of the exchange's time.
async fn in_time(deadline: Deadline, taking: impl Future<Output = Result<ToSend, Refusal>>) -> Result<ToSend, Refusal> {
    let until = deadline.for_try(now(), None);
    match until.at {
        Some(at) => tokio::time::timeout_at(at.into(), taking).await.map_err(|_| until.passed())?,
        None => taking.await,
    }
}

/// An exchange that somebody begins with our application.
pub(crate) async fn inbound(at: &Inbound, via: &Via, request: Request<Incoming>) -> Response<Answer> {
    let (mut head, body) = request.into_parts();
    let mut record = Record::open(facts::describe(Direction::Inbound, &mut head, via.address), &at.shared.observe);
    let live = at.shared.live.load();
    record.note(|exchange| {
        exchange.epoch = live.epoch;
        exchange.source = via.peer.clone();
        exchange.destination_principal = Some(live.own.clone());
        exchange.tls = via.peer.is_some();
        exchange.sni = via.server_name.clone();
    });
    let style = Style::of(&head.method, &head.headers, head.version, error_detail(&live), at.shared.drain.begun());
    let entered = enter(at, &live, via, &mut head, body, &mut record).await;
    spare::keep(head.headers);
    match entered {
        Ok((answered, counted)) => {
            let mut response = reply::answer(answered, (None, None), &style, record);
            if let Some((tenant, share)) = counted {
                reply::rate_limit(response.headers_mut(), &tenant, &share);
            }
            response
        }
        Err(refusal) => reply::refuse(&refusal, &style, record),
    }
}

async fn enter(
    at: &Inbound,
    live: &Live,
    via: &Via,
    head: &mut Parts,
    body: Incoming,
    record: &mut Record,
) -> Result<(Answered, Counted), Refusal> {
    let normal = normalize(head, normalize::Direction::Inbound { mesh_peer: via.peer.is_some() })?;
    record.note(|exchange| {
        (exchange.target, exchange.authority) = (normal.target().clone(), normal.host_header().clone());
    });
    let workload = live.workload.as_ref().ok_or(Refusal::PolicyUnavailable)?;
    let door = door(at, workload, via, &normal)?;
    record.note(|exchange| exchange.destination = door.service.clone());
    let caller = caller(at, workload, door.port, &mut head.headers, via)?;
    let asked = authorize::Facts {
        method: &head.method,
        authority: normal.authority(),
        path: normal.path(),
        port: door.port,
        peer_ip: via.address.ip(),
    };
    let permit = authorize::authorize(&caller, &asked, workload)?;
    let tenant = tenant::which(workload, &caller, &head.headers);
    record.note(|exchange| exchange.tenant = tenant.map(|tenant| tenant.name.clone()));
    let counted = count(at, tenant, door.port)?;
    introduce(&mut head.headers, via, live);
    let body = ToSend::streaming(body, workload.tokens.claim_headers().into(), record);
    let answered = forward(&permit, at, &door, &mut Outgoing::new(head, normal, body), record).await?;
    record.broke(Reason::Ok);
    Ok((answered, counted))
}

/// What is left to a tenant, when the request was counted for one.
type Counted = Option<(TenantName, Share)>;

/// The application's port that a request means.
#[derive(Debug)]
struct Door {
    /// As the mesh knows it.
    port: u16,
    /// Where the application listens.
    local: SocketAddr,
    protocol: Protocol,
    /// The Service that the port belongs to.
    service: Option<ServiceName>,
}

/// Which port is meant, and whether it may be spoken to in this way.
fn door(at: &Inbound, workload: &CompiledWorkload, via: &Via, normal: &Normal) -> Result<Door, Refusal> {
    let settings = &at.shared.settings;
    let ports = || settings.app_ports.iter().map(|known| known.port);
    let named = if via.peer.is_some() { via.port } else { normal.port() };
    let known = named.filter(|named| ports().any(|port| port == *named));
    let port = match (known, named, settings.app_ports.as_slice()) {
        (Some(port), ..) => port,
        // Plain text names no port of ours, but maybe that of this listener: the only one is meant.
        (None, _, [only]) if via.peer.is_none() => only.port,
        (None, named, all) => {
            // A stranger without identity gets no list of the ports of an instance that speaks to none.
            let strict = |port: u16| workload.mtls(port) == MtlsMode::Strict;
            if via.peer.is_none() && all.iter().all(|known| strict(known.port)) {
                let port = named.or(all.first().map(|known| known.port)).unwrap_or_default();
                return Err(Refusal::TlsRequired { port });
            }
            let of = "this instance".to_owned();
            return Err(Refusal::NoSuchPort { of, port: named.unwrap_or_default(), ports: ports().collect() });
        }
    };
    if via.peer.is_none() && workload.mtls(port) == MtlsMode::Strict {
        return Err(Refusal::TlsRequired { port });
    }
    let local = settings.local_port(port).unwrap_or(port);
    let called = via.server_name.as_deref();
    let serving = |service: &&(ServiceName, Vec<ServicePort>)| service.1.iter().any(|known| known.target_port == port);
    let service = workload
        .services
        .iter()
        .filter(serving)
        .max_by_key(|(name, _)| called.is_some_and(|called| is_called(name, called)));
    let app_protocol = service
        .and_then(|(_, ports)| ports.iter().find(|known| known.target_port == port))
        .map(|known| known.app_protocol);
    Ok(Door {
        port,
        local: (Ipv4Addr::LOCALHOST, local).into(),
        protocol: Protocol::of(app_protocol.unwrap_or_default()),
        service: service.map(|(name, _)| name.clone()),
    })
}

/// Whether `p<port>.<service>.<namespace>.mesh` names the Service.
fn is_called(service: &ServiceName, server_name: &str) -> bool {
    let rest = server_name.split_once('.').and_then(|(_, rest)| rest.strip_suffix(".mesh"));
    let namespace =
        rest.and_then(|rest| rest.strip_prefix(service.name.as_str())).and_then(|rest| rest.strip_prefix('.'));
    namespace == Some(service.namespace.as_str())
}

/// Who calls, by certificate and by token.
fn caller(
    at: &Inbound,
    workload: &Arc<CompiledWorkload>,
    port: u16,
    headers: &mut HeaderMap,
    via: &Via,
) -> Result<Caller, Refusal> {
    let believed = &mut at.believed.borrow_mut();
    token::verify_remembering(believed, workload, port, headers, via.peer.as_ref(), SystemTime::now())
}

/// Counts the request against its tenant's quotas.
fn count(at: &Inbound, tenant: Option<&Tenant>, port: u16) -> Result<Counted, Refusal> {
    let Some(tenant) = tenant else { return Ok(None) };
    match at.shared.quotas.admit(tenant.quotas(port), SystemTime::now()) {
        Ok(None) => Ok(None),
        Ok(Some(admitted)) => {
            at.shared.observe.quota(&tenant.name, true);
            Ok(Some((tenant.name.clone(), admitted.share)))
        }
        Err(over) => {
            at.shared.observe.quota(&tenant.name, false);
            Err(Refusal::Quota(Box::new(over)))
        }
    }
}

/// Tells the application who called, in place of whatever the caller said about that.
fn introduce(headers: &mut HeaderMap, via: &Via, live: &Live) {
    let introduction =
        via.peer.as_ref().and_then(|peer| HeaderValue::from_str(&format!("By={};URI={peer}", live.own)).ok());
    match introduction {
        Some(introduction) => headers.insert(CLIENT_CERT, introduction),
        None => headers.remove(CLIENT_CERT),
    };
}

/// Sends a permitted request to the application.
async fn forward(
    _: &Permit,
    at: &Inbound,
    door: &Door,
    outgoing: &mut Outgoing<'_>,
    record: &mut Record,
) -> Result<Answered, Refusal> {
    let target = Target {
        address: door.local,
        protocol: door.protocol,
        whom: None,
        connect_timeout: APPLICATION_CONNECT_TIMEOUT,
        idle_timeout: APPLICATION_IDLE_TIMEOUT,
        places: None,
    };
    let began = now();
    record.note(|exchange| (exchange.attempts, exchange.upstream_address) = (1, Some(door.local)));
    let answered = attempt::send(&at.pool, &target, outgoing, None).await;
    record.note(|exchange| exchange.upstream_time = Some(now().saturating_duration_since(began)));
    answered.map_err(|failed| failed.refusal)
}

fn error_detail(live: &Live) -> ErrorDetail {
    live.workload.as_ref().map_or(ErrorDetail::Reason, |workload| workload.mesh.error_detail)
}
