//! The tries of one outbound exchange: an endpoint is chosen, the request sent, the outcome told to the endpoint, and
//! whether to go on is judged.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use equerry_policies::names::InstanceId;
use equerry_policies::policy::{Retry, ServicePort};
use equerry_traffic::balance::{self, NoEndpoint};
use equerry_traffic::breaker::Transition;
use equerry_traffic::deadline::Deadline;
use equerry_traffic::retry::{self, Failure, Verdict};
use equerry_traffic::{Reason, Refusal};
use http::Response;

use super::attempt::{self, Failed, Outgoing};
use super::facts::Record;
use super::{now, reply};
use crate::live::{Backend, Destination, TlsIdentity};
use crate::observe::BreakerState;
use crate::upstream::{self, Chosen, LONGEST_IDLE, Places, Pool, Protocol, ResponseBody, Target, Whom};

/// A response whose head is here.
pub(crate) type Answered = Response<ResponseBody>;

/// Everything that the tries of one exchange share.
#[derive(Debug)]
pub(crate) struct Errand<'a> {
    /// The Service the caller named: its budget pays for retries.
    pub(crate) destination: &'a Destination,
    /// The Service the request goes to.
    pub(crate) backend: &'a Backend,
    /// The port of that Service.
    pub(crate) port: &'a ServicePort,
    /// What the backend's balancer hashes, if it does.
    pub(crate) key: Option<u64>,
    /// What the caller speaks; between sidecars the same is spoken.
    pub(crate) protocol: Protocol,
    /// As whom we call; `None` while we have no valid certificate.
    pub(crate) identity: Option<Arc<TlsIdentity>>,
    /// When there must be a response head.
    pub(crate) deadline: Deadline,
    /// How long each try may take.
    pub(crate) try_timeout: Option<Duration>,
    /// When to try again.
    pub(crate) retry: Option<&'a Retry>,
    /// The rule names the method, so that it may be repeated though it is not idempotent.
    pub(crate) method_named: bool,
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
    errand.destination.budget.original(now());
    let mut tried = Vec::new();
    let mut retries = 0;
    loop {
        let chosen = choose(errand, &mut tried, record)?;
        let outcome = once(errand, chosen, pool, outgoing, record).await;
        let verdict = judge(errand, &outcome, outgoing, retries);
        let Verdict::Again { after } = verdict else {
            conclude(&outcome, verdict, retries, record);
            return outcome.map_err(|failed| failed.refusal);
        };
        record.observe().retry("sent");
        retries += 1;
        if let Ok(answered) = outcome {
            attempt::discard(answered);
        }
        tokio::time::sleep(after).await;
    }
}

fn choose<'a>(errand: &Errand<'a>, tried: &mut Vec<usize>, record: &Record) -> Result<Chosen<'a>, Refusal> {
    let backend = errand.backend;
    let chosen = with_randomness(|rng| upstream::choose(backend, errand.port.port, errand.key, tried, now(), rng));
    let chosen = chosen.map_err(|none| match none {
        NoEndpoint::None => Refusal::NoHealthyEndpoint { service: backend.name.clone() },
        NoEndpoint::AllOpen => Refusal::BreakerOpen { service: backend.name.clone() },
    })?;
    report(chosen.this_try.transition, backend, &chosen.endpoint.instance, record);
    Ok(chosen)
}

/// One try. The endpoint learns how it ended, also when the caller leaves meanwhile (then: neither well nor badly).
async fn once(
    errand: &Errand<'_>,
    mut chosen: Chosen<'_>,
    pool: &Rc<Pool>,
    outgoing: &mut Outgoing<'_>,
    record: &mut Record,
) -> Result<Answered, Failed> {
    let Errand { backend, .. } = *errand;
    let began = now();
    record.note(|exchange| {
        exchange.attempts += 1;
        exchange.upstream_address = Some(chosen.address);
        exchange.tls = chosen.mesh;
    });
    let target = target(errand, &chosen)?;
    let deadline = errand.deadline.for_try(began, errand.try_timeout);
    let outcome = attempt::send(pool, &target, outgoing, Some(deadline)).await;
    let ended = now();
    record.note(|exchange| exchange.upstream_time = Some(ended.saturating_duration_since(began)));
    let verdict = match &outcome {
        Ok(answered) => {
            record.note(|exchange| exchange.destination_principal = answered.body().peer().cloned());
            verdict(answered)
        }
        Err(failed) if failed.refusal.reason().counts_against_endpoint() => Some(balance::Verdict::Failure),
        Err(_) => None,
    };
    if let Some(verdict) = verdict {
        let breaker = backend.traffic.breaker.as_ref();
        let change = with_randomness(|rng| chosen.this_try.finish(verdict, breaker, &backend.endpoints, ended, rng));
        report(change, backend, &chosen.endpoint.instance, record);
    }
    outcome
}

fn target<'a>(errand: &'a Errand<'a>, chosen: &Chosen<'_>) -> Result<Target<'a>, Failed> {
    let Errand { backend, port, .. } = *errand;
    let traffic = &backend.traffic;
    let (protocol, whom, longest) = if chosen.mesh {
        let Some(identity) = &errand.identity else {
            return Err(Failed { refusal: Refusal::IdentityExpired, unprocessed: false });
        };
        let whom = Whom { service: &backend.name, port: port.target_port, accounts: &backend.accounts, identity };
        (errand.protocol, Some(whom), LONGEST_IDLE)
    } else {
        (Protocol::of(port.app_protocol), None, Duration::MAX)
    };
    Ok(Target {
        address: chosen.address,
        protocol,
        whom,
        connect_timeout: traffic.connect_timeout,
        idle_timeout: traffic.idle_timeout.min(longest),
        places: Some(Places {
            service: &backend.name,
            state: &backend.limits,
            connections: traffic.limits.connections,
            pending: traffic.limits.pending,
        }),
    })
}

/// The reason that the sidecar beside the application gives for a response of its own making.
pub(crate) fn believed(answered: &Answered) -> Option<Reason> {
    answered.body().peer().and_then(|_| reply::believed(answered.headers()))
}

/// What an answer says about its endpoint; `None`: nothing, because policy decided it there.
fn verdict(answered: &Answered) -> Option<balance::Verdict> {
    const UNAVAILABLE: &str = "14";
    match believed(answered) {
        Some(reason) if reason.counts_against_endpoint() => Some(balance::Verdict::Failure),
        Some(_) => None,
        None => {
            let unavailable = answered.headers().get("grpc-status").is_some_and(|status| status == UNAVAILABLE);
            let failed = answered.status().is_server_error() || unavailable;
            Some(if failed { balance::Verdict::Failure } else { balance::Verdict::Success })
        }
    }
}

fn judge(errand: &Errand<'_>, outcome: &Result<Answered, Failed>, outgoing: &Outgoing<'_>, retries: u32) -> Verdict {
    let failure = match outcome {
        Ok(answered) => {
            let status = answered.status().as_u16();
            match believed(answered) {
                Some(reason) => Failure::Mesh { reason, status, unprocessed: reason.provably_unprocessed() },
                None => Failure::Status(status),
            }
        }
        Err(Failed { refusal, unprocessed }) => {
            Failure::Mesh { reason: refusal.reason(), status: refusal.status().as_u16(), unprocessed: *unprocessed }
        }
    };
    let attempt = retry::Attempt {
        method: outgoing.method(),
        retry: errand.retry,
        method_named: errand.method_named,
        replayable: outgoing.can_be_sent(),
        marked: false,
        pushback: retry::Pushback::None,
        place: true,
        retries,
        deadline: errand.deadline,
    };
    let Destination { budget, compiled, .. } = errand.destination;
    with_randomness(|rng| retry::judge(failure, &attempt, budget, &compiled.traffic.retry_budget, now(), rng))
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

fn report(change: Option<Transition>, backend: &Backend, instance: &InstanceId, record: &Record) {
    let Some(change) = change else { return };
    let state = match change {
        Transition::Opened { .. } | Transition::Reopened { .. } => BreakerState::Open,
        Transition::Probing => BreakerState::HalfOpen,
        Transition::Closed | Transition::Kept { .. } => BreakerState::Closed,
    };
    record.observe().breaker(&backend.name, instance, state);
    if state == BreakerState::Open {
        record.observe().ejected(change.as_str());
    }
    tracing::info!(service = %backend.name, %instance, ?state, reason = change.as_str(), "the breaker changed its state");
}

/// The randomness of this worker.
pub(crate) fn with_randomness<T>(work: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
    thread_local! {
        static RNG: std::cell::RefCell<fastrand::Rng> = std::cell::RefCell::new(fastrand::Rng::new());
    }
    RNG.with_borrow_mut(work)
}
