//! From the application into the mesh: which Service port is meant, one endpoint after the other until one lets the
//! connection in, and how long it may last.

use std::net::SocketAddr;
use std::sync::Arc;

use equerry_policies::names::Authority;
use equerry_policies::policy::ServicePort;
use equerry_traffic::balance::{self, Source};
use equerry_traffic::deadline::Authors;
use equerry_traffic::route::{self, Known, MayLeave};
use equerry_traffic::{Reason, Refusal};
use http::{HeaderValue, Request};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::inbound::distrusted;
use super::limits::Limits;
use super::undeclared::Undeclared;
use super::{BUFFER, Flow, ask_for_life, carry, ended, not_tcp, open, reset};
use crate::accept::detect::Spoken;
use crate::exchange::facts::Record;
use crate::exchange::watch::Watch;
use crate::exchange::{attempt, meant, now, tries};
use crate::live::{Backend, Destination, Live, NotThere, TlsIdentity};
use crate::observe::Direction;
use crate::outbound::Outbound;
use crate::upstream::{self, Chosen, ConnectFailure, Places, Protocol, Target, Tunnel, Whom};

/// Endpoints tried until one takes the connection: nothing was said yet, so that nothing is said twice.
const ENDPOINTS: usize = 3;
/// The longest first line of a callee: longer than any reason.
const LONGEST_ANSWER: usize = 64;

/// Leads a connection of the application to the Service that it `named`, as it is. `silent`: nothing was said to that port, which
/// declares nothing.
pub(super) async fn bytes(
    at: &Outbound,
    named: &str,
    mut near: Spoken<TcpStream>,
    from: SocketAddr,
    silent: Option<&Undeclared>,
) {
    let mut record = open(Direction::Outbound, from, &at.shared);
    let authority = HeaderValue::from_str(named).unwrap_or_else(|_| HeaderValue::from_static(""));
    record.note(|exchange| exchange.authority = authority);
    ask_for_life(near.inner());
    let Reached { mut tunnel, mut early, watch } =
        match reach(at, named, Caller { from, near: Some(&near) }, &mut record).await {
            Ok(reached) => reached,
            Err(refusal) => {
                ended(&mut record, &Flow::new(), Err(refusal.into()));
                return reset(near.inner());
            }
        };
    ask_for_life(tunnel.wire.socket());
    let (flow, limits) = (Flow::new(), Limits::after(watch));
    let vouched = tunnel.facts.vouched.clone();
    let end = tokio::select! {
        carried = async {
            if let Some(port) = silent {
                port.watch_who_begins(&near, &mut tunnel, &mut early).await?;
            }
            carry(&mut near, &mut tunnel.wire, &early, &flow).await
        } => carried,
        refusal = limits.reached(&flow) => Err(refusal.into()),
        cut = distrusted(vouched) => Err(cut),
    };
    if end.is_err() {
        reset(near.inner());
        reset(tunnel.wire.socket());
    }
    ended(&mut record, &flow, end);
}

/// Who wants a connection.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) from: SocketAddr,
    /// Their own; `None` where HTTP watches over it.
    pub(super) near: Option<&'a Spoken<TcpStream>>,
}

impl Caller<'_> {
    /// Waits until they have left.
    async fn left(self) {
        match self.near {
            Some(near) => near.left().await,
            None => std::future::pending().await,
        }
    }
}

/// A connection to an endpoint, what it said before it was spoken to, and how long it may last.
pub(super) struct Reached {
    pub(super) tunnel: Tunnel,
    pub(super) early: Vec<u8>,
    pub(super) watch: Watch,
}

/// Which Service is meant by a name, and the configuration that knows it.
pub(super) async fn named(at: &Outbound, named: &str) -> Result<(Arc<Live>, Authority), Refusal> {
    let live = at.shared.live.load();
    let named = Authority::parse(named, &live.own.namespace)
        .map_err(|_| Refusal::NoService { name: named.to_owned(), nearest: None })?;
    let live = at.shared.live.want(&named.service).await.map_err(|none| match none {
        NotThere::Unknown { nearest } => Refusal::NoService { name: named.service.to_string(), nearest },
        NotThere::Unavailable => Refusal::ConfigUnavailable { service: named.service.clone() },
    })?;
    Ok((live, named))
}

async fn reach(at: &Outbound, name: &str, caller: Caller<'_>, record: &mut Record) -> Result<Reached, Refusal> {
    let (live, named) = named(at, name).await?;
    record.note(|exchange| (exchange.epoch, exchange.source) = (live.epoch, Some(live.own.clone())));
    let destination = live
        .destination(&named.service)
        .ok_or_else(|| Refusal::ConfigUnavailable { service: named.service.clone() })?;
    let leave = route::may_leave(&named, Known::Service(&destination.compiled))?;
    lead(at, &live, (&leave, destination), caller, record).await
}

/// Leads a connection that may leave to an endpoint of the backend that its routes choose.
pub(super) async fn lead(
    at: &Outbound,
    live: &Live,
    (leave, destination): (&MayLeave, &Destination),
    caller: Caller<'_>,
    record: &mut Record,
) -> Result<Reached, Refusal> {
    record.note(|exchange| exchange.destination = Some(leave.service().clone()));
    let outside = upstream::outside::is(&destination.backend.name);
    let choice = if outside {
        route::connect_outside(leave)
    } else {
        tries::with_randomness(|rng| route::connect(leave, &destination.compiled, rng))?
    };
    record.note(|exchange| exchange.route = choice.route().cloned());
    let backend = meant::backend(live, destination, &choice)?;
    let port = meant::service_port(backend, choice.port)?;
    if !port.takes_bytes() && !outside {
        return Err(not_tcp(port.port, &backend.name));
    }
    let (tunnel, early) = connect(at, live, backend, port, caller, record).await?;
    Ok(Reached { tunnel, early, watch: Watch::over_connection(backend) })
}

/// Connects to one endpoint after the other until one takes us.
async fn connect(
    at: &Outbound,
    live: &Live,
    backend: &Backend,
    port: &ServicePort,
    caller: Caller<'_>,
    record: &mut Record,
) -> Result<(Tunnel, Vec<u8>), Refusal> {
    let identity = at.shared.identity.current();
    let source =
        Source { address: caller.from.ip(), instance: at.shared.settings.instance.as_str(), identity: &live.own };
    let key = backend.balancer.key(&Request::new(()).into_parts().0, &source);
    let mut tried = Vec::new();
    loop {
        let choose = |rng: &mut _| upstream::choose(backend, port.port, key, &tried, now(), rng);
        let mut chosen =
            tries::with_randomness(choose).map_err(|none| upstream::refusal(none, backend, port.port, now()))?;
        tried.push(chosen.this_try.index);
        tries::report(chosen.this_try.transition, backend, &chosen.endpoint.instance, record);
        record.note(|exchange| {
            exchange.attempts += 1;
            exchange.upstream_address = Some(chosen.address);
            exchange.tls = chosen.mesh;
        });
        let target = target(backend, port, &chosen, identity.as_ref())?;
        let outcome = over(at, &target, caller).await;
        let verdict = match &outcome {
            Ok(_) => Some(balance::Verdict::Success),
            Err(refusal) if refusal.reason().counts_against_endpoint() => Some(balance::Verdict::Failure),
            Err(_) => None,
        };
        match &outcome {
            Ok(_) => tries::met(&chosen, None, backend, record),
            Err(refusal) if refusal.reason() == Reason::IdentityMismatch => {
                tries::met(&chosen, Some(&refusal.to_string()), backend, record);
            }
            Err(_) => {}
        }
        if let Some(verdict) = verdict {
            let breaker = backend.traffic.breaker.as_ref();
            let change =
                tries::with_randomness(|rng| chosen.this_try.finish(verdict, breaker, &backend.endpoints, now(), rng));
            tries::report(change, backend, &chosen.endpoint.instance, record);
        }
        match outcome {
            Ok((mut tunnel, early)) => {
                tunnel.in_flight = chosen.this_try.goes_on(&chosen.endpoint.state);
                record.note(|exchange| exchange.destination_principal = tunnel.facts.peer.clone());
                return Ok((tunnel, early));
            }
            Err(refusal)
                if !refusal.reason().provably_unprocessed()
                    || tried.len() >= ENDPOINTS.min(backend.endpoints.len()) =>
            {
                return Err(refusal.signed(&Authors { rule: None, policy: Some(&backend.traffic) }));
            }
            Err(_) => {}
        }
    }
}

/// One connection, as soon as the other side lets us in.
async fn over(at: &Outbound, target: &Target<'_>, caller: Caller<'_>) -> Result<(Tunnel, Vec<u8>), Refusal> {
    let no_connection = |failure| attempt::no_connection(failure, target).refusal;
    let tunnel = at.pool.tunnel(target, caller.left()).await.map_err(no_connection)?;
    let mut tunnel = tunnel.ok_or(Refusal::ClientGone)?;
    if target.whom.is_none() {
        return Ok((tunnel, Vec::new()));
    }
    let answer = tokio::time::timeout(target.connect_timeout, answer(&mut tunnel)).await;
    let slow = || no_connection(ConnectFailure::TooSlow(target.connect_timeout));
    let (word, early) = answer.map_err(|_| slow())?.map_err(no_connection)?;
    match word.parse() {
        Ok(Reason::Ok) => Ok((tunnel, early)),
        Ok(reason) => Err(Refusal::Told { reason, detail: format!("the sidecar of {} says {word}", target.address) }),
        Err(_) => Err(no_connection(ConnectFailure::Failed(format!("an answer not understood: {word:?}")))),
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
    identity: Option<&'a Arc<TlsIdentity>>,
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
