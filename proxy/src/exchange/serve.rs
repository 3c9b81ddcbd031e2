//! The two pipelines, read downwards. Each value is made only by the stage before it: no route without the proof that a
//! request may leave, nothing forwarded without a permit.

use std::cell::{Cell, OnceCell};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use equerry_policies::compile::{CompiledDestination, CompiledWorkload, Tenant};
use equerry_policies::names::{Authority, TenantName};
use equerry_policies::policy::{AppProtocol, ErrorDetail, Http10};
use equerry_traffic::authorize::{self, Permit};
use equerry_traffic::balance::Source;
use equerry_traffic::deadline::{self, Authors, Deadline, Kind, grpc_timeout};
use equerry_traffic::normalize::{self, Normal, normalize};
use equerry_traffic::quota::Share;
use equerry_traffic::retry::TraceId;
use equerry_traffic::route::{self, Choice, Decision};
use equerry_traffic::token::{Caller, Shown};
use equerry_traffic::trace_state::{self, Carried, Other};
use equerry_traffic::{Reason, Refusal, fault, filter, tenant, token};
use http::header::{HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Version};

use super::attempt::{self, Outgoing, Time};
use super::between;
use super::body::{Answer, ToSend};
use super::door::{Door, door, named_in_plain_text, not_http};
use super::facts::{self, Record};
use super::meant::{backend, fixed, may_leave, resolve, service_port, take_place};
use super::mirror;
use super::now;
use super::reply::{self, Style};
use super::standing::{self, Again, Standing, UnderWay};
use super::tries::{self, Answered, Errand};
use super::upgrade;
use super::watch::Watch;
use crate::app::Shared;
use crate::codec::http1::Bad;
use crate::codec::{Early, Incoming, MAX_HEADER_BYTES, spare};
use crate::inbound::{Inbound, Via};
use crate::live::{self, Live};
use crate::observe::Direction;
use crate::outbound::{self, Outbound};
use crate::timers::Timers;
use crate::tunnel;
use crate::upstream::{Protocol, Target};

/// Where `--app-port` says the application listens; it must be there, so a connection takes no time.
const APPLICATION_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Shorter than the keep-alive of common application servers (Node's is 5 s), so that it is we who close.
const APPLICATION_IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// A callee ends what its caller should have ended so long ago.
const CALLER_FIRST: Duration = Duration::from_millis(50);
/// Who called, as the application's frameworks know it (Envoy's header).
pub(super) const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// A request whose head cannot be read.
pub(crate) fn unreadable(shared: &Shared, direction: Direction, from: SocketAddr, bad: &Bad) -> Response<Answer> {
    let mut head = Request::new(()).into_parts().0;
    // Nobody knows which it was.
    head.method = Method::from_bytes(b"-").unwrap_or_default();
    let record = Record::open(facts::describe(direction, &mut head, from), &shared.observe);
    shared.observe.handshake_failed(direction, bad.word());
    let refusal = match bad {
        Bad::TooLarge => Refusal::HeadTooLarge { limit: u64::from(MAX_HEADER_BYTES) },
        Bad::Slow(after) => Refusal::HeadTimeout { after: *after },
        bad => Refusal::bad_request(format!("the head of the request cannot be read: {bad}")),
    };
    let style = Style::of(&Method::GET, &head.headers, head.version, ErrorDetail::Reason, true);
    reply::refuse(&refusal, &style, record)
}

/// An exchange that the application begins.
pub(crate) async fn outbound(
    at: &Outbound,
    from: &outbound::Via,
    head: &mut Parts,
    body: Incoming,
    early: &Early,
) -> Response<Answer> {
    // What leads to one port leads nowhere else.
    if head.method == Method::CONNECT && from.meant.is_none() {
        return Box::pin(tunnel::connect(at, from, head)).await;
    }
    let mut record = facts::open(Direction::Outbound, head, from.address, &at.shared.observe);
    let live = at.shared.live.load();
    record.note(|exchange| (exchange.epoch, exchange.source) = (live.epoch, Some(live.own.clone())));
    let style = Style::of(&head.method, &head.headers, head.version, error_detail(&live), false);
    let mut filtered = None;
    let asker = Asker { address: from.address.ip(), meant: from.meant.as_ref(), early };
    let left = leave(at, asker, live, head, body, &mut record, &mut filtered).await;
    spare::keep(std::mem::take(&mut head.headers));
    let mut response = match left {
        Ok(Left::Answered(answered, held, watch)) => reply::answer(answered, Some(held), Some(watch), &style, record),
        Ok(Left::ByRule(answer)) => reply::by_rule(answer, &style, record),
        Err(refusal) => reply::refuse(&refusal, &style, record),
    };
    if let Some(filtered) = filtered {
        filter::apply_response(filtered.choice.filters(), filtered.origin.as_ref(), response.headers_mut());
    }
    Answer::log_answer(&mut response);
    response
}

/// Whoever asks: where they are, and what they hear before their answer.
#[derive(Clone, Copy)]
struct Asker<'a> {
    address: IpAddr,
    /// The Service port that is meant, where the request need not name it.
    meant: Option<&'a Rc<Authority>>,
    early: &'a Early,
}

/// How an exchange that nothing refused is answered.
#[allow(
    clippy::large_enum_variant,
    reason = "the large one is what nearly every exchange makes, and a box costs an allocation"
)]
enum Left {
    /// By an upstream.
    Answered(Answered, live::Held, Watch),
    /// By the route itself: nothing was sent.
    ByRule(filter::Answer),
}

/// What filters have still to do, once there is an answer of any kind: a browser reads refusals too.
struct Filtered {
    choice: Choice,
    /// Of the request, as it came.
    origin: Option<HeaderValue>,
}

async fn leave(
    at: &Outbound,
    asker: Asker<'_>,
    live: Arc<Live>,
    head: &mut Parts,
    body: Incoming,
    record: &mut Record,
    filtered: &mut Option<Box<Filtered>>,
) -> Result<Left, Refusal> {
    // Waiting for a name or a fault made on purpose takes of the caller's time.
    let began = record.began();
    version_served(head.version, &live)?;
    let normal = normalize(head, normalize::Direction::Outbound)?;
    record.note(|exchange| {
        (exchange.target, exchange.authority) = (normal.target().clone(), normal.host_header().clone());
    });
    record.asked_with(&live, &head.headers);
    let (live, named) = match asker.meant {
        Some(meant) => Box::pin(fixed(at, live, meant)).await,
        None => resolve(at, live, &normal).await?,
    };
    record.note(|exchange| exchange.epoch = live.epoch);
    let (may_leave, destination) = may_leave(&named)?;
    record.note(|exchange| exchange.destination = Some(may_leave.service().clone()));
    if !destination.compiled.faults.is_empty() {
        suffer(&destination.compiled, &head.headers, record).await?;
    }
    let choice = match tries::with_randomness(|rng| route::decide(&may_leave, &destination.compiled, head, rng))? {
        Decision::Forward(choice) => choice,
        Decision::Answer(answer) => return Ok(Left::ByRule(answer)),
    };
    record.note(|exchange| exchange.route = choice.route().cloned());
    let filters = choice.filters();
    let (mut normal, mut copies) = (normal, Vec::new());
    if !filters.is_empty() {
        let origin = filter::origin(filters, &head.headers);
        *filtered = Some(Box::new(Filtered { choice: choice.clone(), origin }));
        copies = tries::with_randomness(|rng| filter::mirrors(filters, rng));
        normal = filter::apply_request(filters, head, normal)?;
    }
    let kind = Kind::of_request(&head.method, &head.headers);
    let carried = trace_state::read(&head.headers, Other::Application, SystemTime::now);
    let deadline = deadline(&choice, began, kind, carried, &head.headers);
    let backend = backend(&live, destination, &choice)?;
    let port = service_port(backend, choice.port)?;
    if port.app_protocol == AppProtocol::Tcp {
        return Err(not_http(port.port));
    }
    upgrade::possible(kind, Protocol::of(port.app_protocol), port.port)?;
    let held = take_place(backend)?;
    let protocol = between::protocol(at.shared.settings.mesh_protocol, kind, &body, backend);
    let authors = Authors { rule: choice.rule.as_deref(), policy: Some(&backend.traffic) };
    let body = ToSend::take(body, choice.retry().is_some() || !copies.is_empty(), &backend.traffic, kind, record);
    let body = in_time(&at.pool.timers, (deadline, began), body).await.map_err(|refusal| refusal.signed(&authors))?;
    let source = Source { address: asker.address, instance: at.shared.settings.instance.as_str(), identity: &live.own };
    let key = backend.balancer.key(head, &source);
    // Nobody would speak the other protocol with those who get a copy.
    if !copies.is_empty() && kind != Kind::Upgrade {
        let from = asker.address;
        let original = mirror::Original { head, normal: &normal, body: &body, protocol, kind, carried, from };
        mirror::send(at, &live, &copies, &original);
    }
    let mut outgoing = Outgoing::new(head, normal, body, asker.early);
    let errand = Errand {
        destination,
        backend,
        rule: choice.rule.as_ref(),
        port,
        key,
        protocol,
        identities: &at.shared.identity,
        hops: Some(&at.shared.hops),
        kind,
        began,
        deadline,
        carried,
        try_timeout: choice.try_timeout(),
        retry: choice.retry(),
        method_named: choice.method_named,
        unjudged: Cell::new(None),
    };
    let answered = tries::until_answered(&errand, &at.pool, &mut outgoing, record).await;
    let answered = answered.map_err(|refusal| refusal.signed(&authors))?;
    let watch = Watch::over(&answered, &errand, outgoing.told())?;
    let decided_there = tries::believed(&answered).unwrap_or(Reason::Ok);
    record.broke(decided_there);
    Ok(Left::Answered(answered, held, watch))
}

/// Whether callers of this version are served.
pub(crate) fn version_served(version: Version, live: &Live) -> Result<(), Refusal> {
    let serves = |workload: &Arc<CompiledWorkload>| workload.mesh.http10 == Http10::Serve;
    if version >= Version::HTTP_11 || live.workload.as_ref().is_some_and(serves) {
        return Ok(());
    }
    Err(Refusal::OldVersion)
}

/// Faults made on purpose: the request waits, is answered with an error, or both.
async fn suffer(destination: &CompiledDestination, headers: &HeaderMap, record: &mut Record) -> Result<(), Refusal> {
    let injected = tries::with_randomness(|rng| fault::inject(destination, headers, rng));
    let Some(injected) = injected else { return Ok(()) };
    if let Some(delay) = injected.delay {
        record.note(|exchange| exchange.policy_rule = Some(injected.policy.to_owned()));
        Box::pin(tokio::time::sleep(delay)).await;
    }
    injected.refusal().map_or(Ok(()), Err)
}

/// When there must be an answer: by the rule, by what the caller asked for, and by the exchange it is part of.
fn deadline(choice: &Choice, now: Instant, kind: Kind, carried: Option<Carried>, headers: &HeaderMap) -> Deadline {
    let asked = if kind == Kind::Grpc { grpc_timeout::read(headers) } else { None };
    let inherited = carried.and_then(|carried| carried.remaining);
    Deadline::after(now, choice.request_timeout()).asked(now, asked).inherited(now, inherited)
}

/// Holding a body for retries is part of the exchange's time.
async fn in_time(
    timers: &Timers,
    (deadline, began): (Deadline, Instant),
    taking: impl Future<Output = Result<ToSend, Refusal>>,
) -> Result<ToSend, Refusal> {
    let until = deadline.for_try(began, None);
    match until.at {
        Some(at) => timers.within(at.into(), pin!(taking)).await.ok_or_else(|| until.passed())?,
        None => taking.await,
    }
}

/// An exchange that somebody begins with our application.
pub(crate) async fn inbound(
    at: &Rc<Inbound>,
    via: &Rc<Via>,
    head: &mut Parts,
    body: Incoming,
    early: &Early,
) -> Response<Answer> {
    let mut record = facts::open(Direction::Inbound, head, via.address, &at.shared.observe);
    let round = at.rounds.now();
    let live = at.shared.live.load();
    record.note(|exchange| {
        exchange.epoch = live.epoch;
        exchange.source = via.peer.clone();
        exchange.destination_principal = Some(live.own.clone());
        exchange.tls = via.peer.is_some();
        exchange.sni = via.server_name.clone();
    });
    let style = Style::of(&head.method, &head.headers, head.version, error_detail(&live), at.shared.drain.begun());
    let entered = enter(at, (&live, round), via, head, (body, early), &mut record).await;
    let retried_in = via.peer.as_ref().filter(|_| at.shared.hops.any()).and_then(|_| TraceId::of(&head.headers));
    let retried_in = retried_in.zip(record.started());
    let mut response = match entered {
        Ok(Entered { answered, mut watch, counted }) => {
            if let Some(watch) = &mut watch {
                watch.keep(&mut head.headers);
            }
            let mut response = reply::answer(answered, None, watch, &style, record);
            if let Some((tenant, share)) = counted {
                reply::rate_limit(response.headers_mut(), &tenant, &share);
            }
            response
        }
        Err(refusal) => reply::refuse(&refusal, &style, record),
    };
    if let Some((trace, began)) = retried_in
        && at.shared.hops.since(trace, began, now())
    {
        reply::retried_behind(&mut response, &style);
    }
    spare::keep(std::mem::take(&mut head.headers));
    Answer::log_answer(&mut response);
    response
}

async fn enter(
    at: &Rc<Inbound>,
    (live, round): (&Live, u64),
    via: &Rc<Via>,
    head: &mut Parts,
    (body, early): (Incoming, &Early),
    record: &mut Record,
) -> Result<Entered, Refusal> {
    version_served(head.version, live)?;
    let trusted_hops = live.workload.as_ref().map_or(0, |workload| workload.mesh.trusted_hops);
    let named = named_in_plain_text(at, &head.headers, via);
    let mut normal = normalize(head, normalize::Direction::Inbound { mesh_peer: via.peer.is_some(), trusted_hops })?;
    record.note(|exchange| {
        (exchange.target, exchange.authority) = (normal.target().clone(), normal.host_header().clone());
    });
    record.asked_with(live, &head.headers);
    let workload = live.workload.as_ref().ok_or(Refusal::PolicyUnavailable)?;
    let mut began = record.began();
    let door = door(&at.shared, workload, via, &normal, named)?;
    record.note(|exchange| exchange.destination = door.service.clone());
    let shown = Shown { headers: &mut head.headers, normal: Some(&mut normal) };
    let mut moment = Moment::default();
    let caller = match caller(at, workload, door.port, shown, (via, &moment)) {
        Err(refusal) if refusal.wants_keys().is_some() => {
            let caller = Box::pin(ask_for_keys(at, workload, door.port, (head, &mut normal), via, refusal)).await?;
            began = now();
            moment = Moment::default();
            caller
        }
        judged => judged?,
    };
    if let Some(logged) = record.logged() {
        logged.claims(|path| caller.claim(path));
    }
    let asked = authorize::Facts {
        method: &head.method,
        authority: normal.authority(),
        path: normal.path(),
        headers: &head.headers,
        connection: via.connection(door.port),
    };
    let judged = authorize::authorize(&caller, &asked, workload);
    record.note(|exchange| exchange.noted = authorize::note(&caller, &asked, workload, &judged));
    let permit = judged?;
    let tenant = tenant::which(workload, &caller, &head.headers);
    record.note(|exchange| exchange.tenant = tenant.map(|tenant| tenant.name.clone()));
    let counted = count(at, tenant, door.port, &moment)?;
    introduce(&mut head.headers, via, live);
    let kind = Kind::of_request(&head.method, &head.headers);
    upgrade::possible(kind, door.protocol, door.port)?;
    let carried = trace_state::read(&head.headers, Other::Peer, SystemTime::now);
    let deadline = deadline_that_came(began, kind, carried, &head.headers)?;
    if let Some(carried) = carried {
        trace_state::write(&mut head.headers, carried, Other::Application, || moment.get());
    }
    let body = ToSend::streaming(body, workload.tokens.claim_headers().into(), record);
    let time = Time { until: deadline.for_try(began, None), kind, idle: deadline::usual_idle(kind) };
    let mut outgoing = Outgoing::new(head, normal, body, early);
    let under_way = UnderWay::new((at, via), &caller, named, Again::after(round, caller.ends_at(workload, door.port)));
    outgoing.judged_by(&under_way);
    let answered = forward(&permit, at, &door, &mut outgoing, (time, began), record).await?;
    record.broke(Reason::Ok);
    let (normal, judged) = (outgoing.into_normal(), under_way.into_judged());
    let standing = standing::may_last(&answered)
        .then(|| Standing::new((at, via), (head.method.clone(), normal, named), caller, judged));
    let watched = deadline.at().is_some() || standing.is_some() || kind == Kind::Grpc;
    let watch = watched.then(|| Watch::at_callee(&answered, &deadline, kind, began).standing(standing));
    Ok(Entered { answered, watch, counted })
}

/// What came of a request that nothing refused.
struct Entered {
    answered: Answered,
    watch: Option<Watch>,
    counted: Counted,
}

/// What the wall clock showed when it was first asked for: read once for all that is decided without waiting.
#[derive(Default)]
struct Moment(OnceCell<SystemTime>);

impl Moment {
    fn get(&self) -> SystemTime {
        *self.0.get_or_init(SystemTime::now)
    }
}

/// When the caller stops waiting. The caller's own clock may be the first to say so, because it knows who set the limit: ours
/// only ends what nobody stopped.
fn deadline_that_came(
    now: Instant,
    kind: Kind,
    carried: Option<Carried>,
    headers: &HeaderMap,
) -> Result<Deadline, Refusal> {
    let asked = if kind == Kind::Grpc { grpc_timeout::read(headers) } else { None };
    let inherited = carried.and_then(|carried| carried.remaining);
    let none = Deadline::after(now, None);
    none.asked(now, asked).inherited(now, inherited).still_wanted(now)?;
    let later = |left: Option<Duration>| left.map(|left| left.saturating_add(CALLER_FIRST));
    Ok(none.asked(now, later(asked)).inherited(now, later(inherited)))
}

/// What is left to a tenant, when the request was counted for one.
type Counted = Option<(TenantName, Share)>;

/// Who calls, by certificate and by token.
fn caller(
    at: &Inbound,
    workload: &Arc<CompiledWorkload>,
    port: u16,
    shown: Shown<'_>,
    (via, moment): (&Via, &Moment),
) -> Result<Caller, Refusal> {
    let believed = &mut at.believed.borrow_mut();
    token::verify_remembering(believed, workload, port, shown, via.peer.as_ref(), || moment.get())
}

/// Judges a token again that may be good with keys which are not known here, once their issuers were asked for them.
async fn ask_for_keys(
    at: &Inbound,
    workload: &CompiledWorkload,
    port: u16,
    (head, normal): (&mut Parts, &mut Normal),
    via: &Via,
    mut refusal: Refusal,
) -> Result<Caller, Refusal> {
    let mut with = None;
    // Each issuer twice at most: for what is known of it elsewhere in this process, and for what it says now.
    for _ in 0..2 * workload.tokens.on(port).count() {
        let now: &CompiledWorkload = with.as_ref().unwrap_or(workload);
        let Some(from) = refusal.wants_keys().cloned() else { break };
        let rule = now.tokens.on(port).find(|rule| rule.keys.source() == Some(&from));
        let known = rule.and_then(|rule| rule.keys.now());
        let keys = at.shared.keys.learn(&from, known).await?;
        if known == Some(&*keys) {
            break;
        }
        let next = now.with_keys_of(&from, &keys);
        let shown = Shown { headers: &mut head.headers, normal: Some(&mut *normal) };
        match token::verify(&next, port, shown, via.peer.as_ref(), SystemTime::now()) {
            Ok(caller) => return Ok(caller),
            Err(other) => refusal = other,
        }
        with = Some(next);
    }
    Err(refusal)
}

/// Counts the request against its tenant's quotas.
fn count(at: &Inbound, tenant: Option<&Tenant>, port: u16, moment: &Moment) -> Result<Counted, Refusal> {
    let Some(tenant) = tenant else { return Ok(None) };
    match at.shared.quotas.admit(tenant.quotas(port), moment.get()) {
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

/// Tells the application who called. Whatever the caller said about that is gone.
fn introduce(headers: &mut HeaderMap, via: &Via, live: &Live) {
    let Some(peer) = &via.peer else { return };
    let introduction = via.introduction.get_or_init(|| {
        // It is made of names, which are text.
        HeaderValue::from_str(&format!("By={};URI={peer}", live.own)).unwrap_or(HeaderValue::from_static(""))
    });
    headers.insert(CLIENT_CERT, introduction.clone());
}

/// Sends a permitted request to the application.
async fn forward(
    _: &Permit,
    at: &Inbound,
    door: &Door,
    outgoing: &mut Outgoing<'_>,
    (time, began): (Time, Instant),
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
    record.note(|exchange| (exchange.attempts, exchange.upstream_address) = (1, Some(door.local)));
    record.note(|exchange| exchange.upstream_protocol = door.protocol.version());
    let answered = attempt::send(&at.pool, &target, outgoing, time).await;
    record.note(|exchange| exchange.upstream_time = Some(now().saturating_duration_since(began)));
    answered.map_err(|failed| failed.refusal)
}

pub(crate) fn error_detail(live: &Live) -> ErrorDetail {
    live.workload.as_ref().map_or(ErrorDetail::Reason, |workload| workload.mesh.error_detail)
}
