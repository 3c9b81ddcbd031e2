//! The tries of one outbound exchange: an endpoint is chosen, the request sent, the outcome told to the endpoint, and
//! whether to go on is judged.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use equerry_policies::compile::RouteRule;
use equerry_policies::names::InstanceId;
use equerry_policies::policy::{BreakerMode, Retry, ServicePort};
use equerry_traffic::balance;
use equerry_traffic::breaker::{Cause, Transition};
use equerry_traffic::deadline::{self, Deadline, Kind, grpc_timeout};
use equerry_traffic::retry::{self, Failure, Hops, Pushback, Stop, TraceId, Verdict};
use equerry_traffic::trace_state::{self, Carried, Other};
use equerry_traffic::{Reason, Refusal};
use http::{HeaderMap, Response, StatusCode};
use http_body::Body;

use super::attempt::{self, Failed, Outgoing, Time};
use super::door;
use super::facts::Record;
use super::{now, reply};
use crate::live::{Backend, Destination, IdentityHandle, TlsIdentity};
use crate::observe::BreakerState;
use crate::observe::trace::TryOutcome;
use crate::upstream::{self, Chosen, LONGEST_IDLE, Places, Pool, Protocol, ResponseBody, Target, Whom};

/// How long the head of a gRPC response waits for trailers. Servers that fail at once send both together; tests, which share
/// the machine with many others, wait for theirs however late they come.
const TRAILERS_PATIENCE: Duration = if cfg!(test) { Duration::from_secs(10) } else { Duration::from_millis(50) };

/// A response whose head is here.
pub(crate) type Answered = Response<ResponseBody>;

/// Everything that the tries of one exchange share.
#[derive(Debug)]
pub(crate) struct Errand<'a> {
    /// The Service the caller named: its budget pays for retries.
    pub(crate) destination: &'a Destination,
    /// The Service the request goes to.
    pub(crate) backend: &'a Arc<Backend>,
    /// The rule that chose it; `None`: the Service has no routes.
    pub(crate) rule: Option<&'a Arc<RouteRule>>,
    /// The port of that Service.
    pub(crate) port: &'a ServicePort,
    /// What the backend's balancer hashes, if it does.
    pub(crate) key: Option<u64>,
    /// What is spoken between sidecars.
    pub(crate) protocol: Protocol,
    /// As whom we call, where that is asked for.
    pub(crate) identities: &'a IdentityHandle,
    /// In which traces retries were made lately; `None`: nobody is told of these.
    pub(crate) hops: Option<&'a Hops>,
    /// What kind of exchange it is, by its request.
    pub(crate) kind: Kind,
    /// When the exchange began.
    pub(crate) began: Instant,
    /// When there must be a response head.
    pub(crate) deadline: Deadline,
    /// What came with the request from the hops before; `None`: nothing at all.
    pub(crate) carried: Option<Carried>,
    /// How long each try may take.
    pub(crate) try_timeout: Option<Duration>,
    /// When to try again.
    pub(crate) retry: Option<&'a Retry>,
    /// The rule names the method, so that it may be repeated though it is not idempotent.
    pub(crate) method_named: bool,
    /// The endpoint whose answer has begun well, and that is judged by how it ends.
    pub(crate) unjudged: Cell<Option<usize>>,
}

/// Tries until there is an answer to pass on, or no reason to try again.
///
/// # Errors
/// With the refusal that the last try ended in.
pub(crate) async fn until_answered(
    errand: &Errand<'_>,
    pool: &Rc<Pool>,
    outgoing: &mut Outgoing<'_>,
    record: &mut Record,
) -> Result<Answered, Refusal> {
    // The clock is read once for each thing that may have taken time.
    let mut began = now();
    errand.destination.budget.original(began);
    let mut tried = Vec::new();
    let mut retries = 0;
    let mut place = None;
    let mut stranger: Option<Box<Refusal>> = None;
    loop {
        errand.deadline.still_wanted(began)?;
        // Where somebody else was met and nobody is left, who was met says more than that nobody is left.
        let chosen = choose(errand, &tried, began, record);
        let chosen = chosen.map_err(|none| stranger.take().map_or(none, |met| *met))?;
        let place_tried = chosen.this_try.index;
        tell_next_hop(errand, outgoing, (retries, began));
        let outcome = once(errand, (chosen, began), pool, outgoing, record).await;
        drop(place.take());
        let mut verdict = judge(errand, &outcome, outgoing, retries);
        if let Verdict::Again { .. } = verdict {
            place = errand.backend.limits.retry(errand.backend.traffic.limits.retries);
            // Somebody else took the last one meanwhile.
            verdict = if place.is_some() { verdict } else { Verdict::Stop(Stop::Limit) };
        }
        let Verdict::Again { after } = verdict else {
            conclude(&outcome, verdict, retries, record);
            return outcome.map_err(|failed| failed.refusal);
        };
        record.observe().retry("sent");
        remember_retry(errand, outgoing);
        retries += 1;
        tried.push(place_tried);
        match outcome {
            Ok(answered) => attempt::discard(answered),
            Err(Failed { refusal: met @ Refusal::IdentityMismatch { .. }, .. }) => stranger = Some(Box::new(met)),
            Err(_) => {}
        }
        tokio::time::sleep(after).await;
        began = now();
    }
}

/// Whoever called our application makes no retries on top of these.
fn remember_retry(errand: &Errand<'_>, outgoing: &mut Outgoing<'_>) {
    if let Some((hops, trace)) = errand.hops.zip(TraceId::of(outgoing.headers_mut())) {
        hops.retried(trace, now());
    }
}

/// Writes what is left of the time, and that this is a retry, for those behind.
fn tell_next_hop(errand: &Errand<'_>, outgoing: &mut Outgoing<'_>, (retries, now): (u32, Instant)) {
    let deadline = &errand.deadline;
    if errand.carried.is_none() && retries == 0 && deadline.at().is_none() {
        return;
    }
    let headers = outgoing.headers_mut();
    grpc_timeout::shorten(headers, deadline.asked_remaining(now));
    let retried = retries > 0 || errand.carried.is_some_and(|carried| carried.retried);
    let carried = Carried { remaining: deadline.remaining(now), retried };
    trace_state::write(headers, carried, Other::Peer, SystemTime::now);
}

fn choose<'a>(errand: &Errand<'a>, tried: &[usize], now: Instant, record: &Record) -> Result<Chosen<'a>, Refusal> {
    let backend = errand.backend;
    let chosen = with_randomness(|rng| upstream::choose(backend, errand.port.port, errand.key, tried, now, rng));
    let chosen = chosen.map_err(|none| upstream::refusal(none, backend, errand.port.port, now))?;
    report(chosen.this_try.transition, backend, &chosen.endpoint.instance, record);
    Ok(chosen)
}

/// One try. The endpoint learns how it ended, also when the caller leaves meanwhile (then: neither well nor badly).
async fn once(
    errand: &Errand<'_>,
    (mut chosen, began): (Chosen<'_>, Instant),
    pool: &Rc<Pool>,
    outgoing: &mut Outgoing<'_>,
    record: &mut Record,
) -> Result<Answered, Failed> {
    let Errand { backend, .. } = *errand;
    errand.unjudged.set(None);
    record.note(|exchange| {
        exchange.attempts += 1;
        exchange.upstream_address = Some(chosen.address);
        exchange.tls = chosen.mesh;
    });
    record.begins_try(began, chosen.address, outgoing.headers_mut());
    let identity = if chosen.mesh { errand.identities.current() } else { None };
    let target = target(errand, &chosen, identity.as_ref())?;
    record.note(|exchange| exchange.upstream_protocol = target.protocol.version());
    let deadline = errand.deadline.for_try(began, errand.try_timeout);
    let time = Time { until: deadline, kind: errand.kind, idle: deadline::idle(errand.kind, &backend.traffic) };
    if chosen.open {
        outgoing.headers_mut().insert(door::PORT, errand.port.target_port.into());
    }
    let mut outcome = attempt::send(pool, &target, outgoing, time).await;
    if chosen.open {
        outgoing.headers_mut().remove(door::PORT);
    }
    if let Ok(answered) = &mut outcome {
        look_for_trailers(answered, errand, outgoing, chosen.this_try.is_probe()).await;
        answered.body_mut().counts(chosen.this_try.goes_on(&chosen.endpoint.state));
    }
    let ended = now();
    record.note(|exchange| exchange.upstream_time = Some(ended.saturating_duration_since(began)));
    record.ends_try(ended, told_outcome(&outcome));
    let verdict = match &outcome {
        Ok(answered) => {
            record.note(|exchange| exchange.destination_principal = answered.body().peer().cloned());
            if let Some(wait) = leave_alone(answered, errand.kind) {
                chosen.this_try.avoid_until(ended + wait, ended);
            }
            verdict(answered, errand.kind)
        }
        Err(failed) if failed.refusal.reason().counts_against_endpoint() => Some(balance::Verdict::Failure),
        Err(_) => None,
    };
    match &outcome {
        Ok(_) => met(&chosen, None, backend, record),
        Err(Failed { refusal: stranger @ Refusal::IdentityMismatch { .. }, .. }) => {
            met(&chosen, Some(&stranger.to_string()), backend, record);
        }
        Err(_) => {}
    }
    let breaker = backend.traffic.breaker.as_ref();
    // A gRPC call that fails says so at its end: that counts without a breaker too.
    let ends_matter = breaker.is_some() || errand.kind == Kind::Grpc;
    if ends_matter && verdict == Some(balance::Verdict::Success) && may_break_off(&chosen, &outcome, errand.kind) {
        errand.unjudged.set(Some(chosen.this_try.index));
        chosen.this_try.begins_well(breaker, ended);
    } else if let Some(verdict) = verdict {
        let change = with_randomness(|rng| chosen.this_try.finish(verdict, breaker, &backend.endpoints, ended, rng));
        report(change, backend, &chosen.endpoint.instance, record);
    }
    outcome
}

/// What a trace says of a try.
fn told_outcome(outcome: &Result<Answered, Failed>) -> TryOutcome {
    match outcome {
        Ok(answered) => TryOutcome::Status(answered.status().as_u16()),
        Err(failed) => TryOutcome::Failed(failed.refusal.reason().as_str()),
    }
}

/// Whether there is more to come of an answer, by which its endpoint is judged. A probe is judged by its head: others wait for
/// that.
fn may_break_off(chosen: &Chosen<'_>, outcome: &Result<Answered, Failed>, kind: Kind) -> bool {
    let more = outcome.as_ref().is_ok_and(|answered| !answered.body().is_end_stream());
    more && kind != Kind::Upgrade && !chosen.this_try.is_probe()
}

/// Tells an endpoint how an answer of its ended that had begun well, and for how long it asked to be left `alone` then.
pub(crate) fn judge_end(
    backend: &Backend,
    index: usize,
    (verdict, alone): (balance::Verdict, Option<Duration>),
    record: &Record,
) {
    let Some(endpoint) = backend.endpoints.get(index) else { return };
    let (breaker, random, now) = (backend.traffic.breaker.as_ref(), with_randomness(fastrand::Rng::f64), now());
    let state: &balance::EndpointState = endpoint.as_ref();
    if let Some(alone) = alone {
        state.avoid_until(now + alone, now);
    }
    let change = state.ended(verdict, breaker, &backend.endpoints, now, random);
    report(change, backend, &endpoint.instance, record);
}

/// A gRPC call that failed at once has its status in trailers that follow its head: where it could lead to a retry, or the call
/// is a probe, they are looked for, and the head waits for them a little.
async fn look_for_trailers(answered: &mut Answered, errand: &Errand<'_>, outgoing: &Outgoing<'_>, is_probe: bool) {
    let (head, has_come) = (answered.headers(), outgoing.has_come());
    let wanted = retry::may_look_for_trailers(head, errand.retry, has_come)
        || (is_probe && has_come && retry::status(head).is_none());
    if errand.kind == Kind::Grpc && wanted && believed(answered).is_none() {
        let _ = tokio::time::timeout(TRAILERS_PATIENCE, answered.body_mut().look_ahead()).await;
    }
}

/// For how long an application that is not available, or has had enough, asks to be left alone.
fn leave_alone(answered: &Answered, kind: Kind) -> Option<Duration> {
    let away = matches!(answered.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
    let failed = || grpc_verdict(answered, kind) != balance::Verdict::Success;
    if !(away || failed()) || believed(answered).is_some() {
        return None;
    }
    asked_alone(answered.body().trailers_ahead()).or_else(|| asked_alone(Some(answered.headers())))
}

/// For how long a head or trailers that say so ask that their endpoint be left alone.
pub(crate) fn asked_alone(says: Option<&HeaderMap>) -> Option<Duration> {
    match retry::pushback(says?, SystemTime::now()) {
        // Longer than anybody is ever left alone, and short enough for any clock.
        Pushback::After(wait) => Some(wait.min(Duration::from_secs(3600))),
        Pushback::None | Pushback::Never => None,
    }
}

/// `identity` is `None` while we have no valid certificate.
fn target<'a>(
    errand: &'a Errand<'a>,
    chosen: &Chosen<'_>,
    identity: Option<&'a Arc<TlsIdentity>>,
) -> Result<Target<'a>, Failed> {
    let Errand { backend, port, .. } = *errand;
    let traffic = &backend.traffic;
    let (protocol, whom, longest) = if chosen.mesh {
        let Some(identity) = identity else {
            return Err(Failed { refusal: Refusal::IdentityExpired, unprocessed: false });
        };
        let whom = Whom { service: &backend.name, port: port.target_port, accounts: &backend.accounts, identity };
        (errand.protocol, Some(whom), LONGEST_IDLE)
    } else if chosen.open {
        (errand.protocol, None, LONGEST_IDLE)
    } else {
        (Protocol::of(port.app_protocol), None, Duration::MAX)
    };
    Ok(Target {
        address: chosen.address,
        protocol,
        whom,
        connect_timeout: traffic.connect_timeout,
        idle_timeout: traffic.idle_timeout.min(longest),
        places: Some(Places { service: &backend.name, state: &backend.limits, traffic }),
    })
}

/// The reason that the sidecar beside the application gives for a response of its own making.
pub(crate) fn believed(answered: &Answered) -> Option<Reason> {
    answered.body().peer().and_then(|_| reply::believed(answered.headers()))
}

/// What an answer says about its endpoint; `None`: nothing, because policy decided it there.
fn verdict(answered: &Answered, kind: Kind) -> Option<balance::Verdict> {
    match believed(answered) {
        Some(reason) if reason.counts_against_endpoint() => Some(balance::Verdict::Failure),
        Some(_) => None,
        None => match balance::Verdict::of_status(answered.status()) {
            balance::Verdict::Success => Some(grpc_verdict(answered, kind)),
            bad => Some(bad),
        },
    }
}

/// The same of the status of a gRPC call; as long as there is none all is well.
fn grpc_verdict(answered: &Answered, kind: Kind) -> balance::Verdict {
    let none_will_come = kind == Kind::Grpc
        && answered.body().is_end_stream()
        && retry::owes_status(answered.status(), answered.headers());
    if none_will_come {
        return balance::Verdict::Failure;
    }
    grpc_status(answered, kind).map_or(balance::Verdict::Success, balance::Verdict::of_grpc)
}

/// The status of a gRPC call, as far as it is known before any data.
fn grpc_status(answered: &Answered, kind: Kind) -> Option<u8> {
    if kind != Kind::Grpc {
        return None;
    }
    retry::status(answered.headers()).or_else(|| answered.body().trailers_ahead().and_then(retry::status))
}

fn judge(
    errand: &Errand<'_>,
    outcome: &Result<Answered, Failed>,
    outgoing: &mut Outgoing<'_>,
    retries: u32,
) -> Verdict {
    let failure = match outcome {
        Ok(answered) => {
            let status = answered.status().as_u16();
            match believed(answered) {
                Some(reason) => Failure::Mesh { reason, status, unprocessed: reason.provably_unprocessed() },
                None => match grpc_status(answered, errand.kind) {
                    Some(status) => Failure::Grpc(status),
                    None => Failure::Status(status),
                },
            }
        }
        Err(Failed { refusal, unprocessed }) => {
            Failure::Mesh { reason: refusal.reason(), status: refusal.status().as_u16(), unprocessed: *unprocessed }
        }
    };
    let behind = failure.is_one() && outcome.as_ref().is_ok_and(retried_behind);
    if behind {
        // So our own caller is told, whether we would retry or not.
        remember_retry(errand, outgoing);
    }
    // Nearly always all is well, and nothing else has to be known.
    if !failure.worth(errand.retry) {
        return Verdict::Stop(Stop::NotRetriable);
    }
    let attempt = retry::Attempt {
        method: outgoing.method(),
        retry: errand.retry,
        method_named: errand.method_named,
        replayable: outgoing.can_be_sent(),
        marked: errand.carried.is_some_and(|carried| carried.retried),
        behind,
        pushback: pushback(outcome, errand.kind),
        place: errand.backend.limits.has_place_for_retry(errand.backend.traffic.limits.retries),
        retries,
        deadline: errand.deadline,
    };
    let Destination { budget, compiled, .. } = errand.destination;
    with_randomness(|rng| retry::judge(failure, &attempt, budget, &compiled.traffic.retry_budget, now(), rng))
}

/// Whether the sidecar beside the application says that a hop behind it made retries.
fn retried_behind(answered: &Answered) -> bool {
    answered.body().peer().is_some() && reply::was_retried_behind(answered.headers())
}

/// What a failed answer asks for; a success asks for nothing.
fn pushback(outcome: &Result<Answered, Failed>, kind: Kind) -> Pushback {
    let Ok(answered) = outcome else { return Pushback::None };
    if let Some(trailers) = answered.body().trailers_ahead() {
        return retry::pushback(trailers, SystemTime::now());
    }
    let failed = !answered.status().is_success() || grpc_status(answered, kind).is_some_and(|status| status > 0);
    if failed { retry::pushback(answered.headers(), SystemTime::now()) } else { Pushback::None }
}

/// Says what became of retrying, where it was in question.
fn conclude(outcome: &Result<Answered, Failed>, verdict: Verdict, retries: u32, record: &mut Record) {
    let stopped = match verdict {
        Verdict::Stop(stop) => stop.outcome(),
        Verdict::Again { .. } => None,
    };
    let word = match outcome {
        Ok(_) if retries > 0 && stopped.is_none() => Some("succeeded"),
        _ => stopped,
    };
    if let Some(word) = word {
        record.observe().retry(word);
        record.note(|exchange| exchange.retry_outcome = Some(word));
    }
}

/// Tells an endpoint who was met there: whoever should be, or a `stranger`, for whom it is kept away; in words.
pub(crate) fn met(chosen: &Chosen<'_>, stranger: Option<&str>, backend: &Backend, record: &Record) {
    let (service, instance) = (&backend.name, &chosen.endpoint.instance);
    let Some(stranger) = stranger else {
        if chosen.this_try.met_the_right_one() {
            tracing::info!(%service, %instance, "the endpoint has the identity again that it should have");
        }
        return;
    };
    if let Some(penalty) = chosen.this_try.met_a_stranger(stranger, now()) {
        let reason = Reason::IdentityMismatch.as_str();
        tracing::warn!(%service, %instance, stranger, ?penalty, reason, "somebody else was met there: the endpoint gets no requests");
        record.observe().ejected(reason);
    }
}

/// Tells what a breaker did; of one that only observes, what it would have done.
pub(crate) fn report(change: Option<Transition>, backend: &Backend, instance: &InstanceId, record: &Record) {
    let Some(change) = change else { return };
    let (service, why) = (&backend.name, change.as_str());
    let state = match change {
        Transition::Opened { cause: Cause::TooHigh(share), penalty } => {
            let (percent, failures, requests) = (share.percent(), share.failures, share.requests);
            tracing::info!(%service, %instance, percent, failures, requests, ?penalty, "too many requests fail");
            BreakerState::Open
        }
        Transition::Opened { .. } | Transition::Reopened { .. } => BreakerState::Open,
        Transition::Probing => BreakerState::HalfOpen,
        Transition::Kept { cause } => {
            let cause = cause.as_str();
            tracing::info!(%service, %instance, cause, "the breaker stays closed: as many endpoints as may be are kept away");
            record.observe().not_ejected(why);
            return;
        }
        Transition::Closed => BreakerState::Closed,
    };
    let opened = state == BreakerState::Open;
    if backend.traffic.breaker.is_some_and(|breaker| breaker.mode == BreakerMode::Observe) {
        tracing::info!(%service, %instance, ?state, reason = why, "the breaker only observes: it would be in another state");
        if opened {
            record.observe().not_ejected("observed");
        }
        return;
    }
    record.observe().breaker(service, instance, state);
    if opened {
        record.observe().ejected(why);
    }
    tracing::info!(%service, %instance, ?state, reason = why, "the breaker changed its state");
}

/// The randomness of this worker.
pub(crate) fn with_randomness<T>(work: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
    thread_local! {
        static RNG: std::cell::RefCell<fastrand::Rng> = std::cell::RefCell::new(fastrand::Rng::new());
    }
    RNG.with_borrow_mut(work)
}
