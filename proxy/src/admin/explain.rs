//! What this sidecar would decide about a request, asked on its admin port: the same functions that requests go through, over the
//! configuration, the keys and the endpoints of now. Nothing is sent, and nothing of what is asked is kept or logged.

use std::cell::OnceCell;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use equerry_policies::compile::CompiledWorkload;
use equerry_policies::names::{AccountName, Authority, ServiceName, SpiffeId};
use equerry_policies::policy::{Origin, OutboundTraffic, ServicePort};
use equerry_traffic::Refusal;
use equerry_traffic::explain::{self, Callee, Coming, Explanation, Outcome, Sidecar, Stage, Step, Verdict};
use equerry_traffic::health::Standing;
use equerry_traffic::normalize::{Direction, Normal, normalize};
use equerry_traffic::outside::{self, ChosenBy, Host};
use equerry_traffic::route::{Choice, Decision, Known, may_leave};
use http::header::{HOST, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Uri};
use serde::Deserialize;

use crate::app::Shared;
use crate::exchange::{door, tries};
use crate::inbound::Via;
use crate::live::{Backend, Destination, Live, NotThere};
use crate::tunnel;

/// The longest question: a request's head, and a little.
pub(super) const LONGEST: usize = 256 * 1024;
/// So many endpoints of a backend are told.
const ENDPOINTS: usize = 64;

/// What is asked.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Question {
    method: String,
    /// Host and port, as the application says them.
    authority: String,
    /// Path and query.
    target: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
    /// It is a connection, in whose bytes nobody looks for requests.
    #[serde(default)]
    tcp: bool,
    /// Who makes it, as `namespace/account`: this workload, or, when it is another, this workload is its callee.
    #[serde(default)]
    from: Option<String>,
    /// The address of the caller's sidecar.
    #[serde(default)]
    from_ip: Option<IpAddr>,
    /// When, in seconds since 1970; now when it is not said.
    #[serde(default)]
    at: Option<u64>,
}

/// The answer to a question, as JSON.
///
/// # Errors
/// With what is wrong with the question, which is not repeated.
pub(super) async fn answer(shared: &Shared, asked: &[u8]) -> Result<String, String> {
    let question: Question = serde_json::from_slice(asked)
        .map_err(|error| format!("this is no question: mistake in line {}, column {}", error.line(), error.column()))?;
    let (parts, live) = (question.parts()?, shared.live.load());
    let own = live.own.account_name();
    let from = match &question.from {
        Some(text) => AccountName::parse(text).map_err(|bad| format!("from: {bad}"))?,
        None => own.clone(),
    };
    let mut told = Explanation {
        request: if question.tcp {
            format!("TCP {}", question.authority)
        } else {
            format!("{} http://{}{}", parts.method, question.authority, parts.uri)
        },
        from: from.to_string(),
        live: Some(Sidecar { id: live.own.to_string(), epoch: live.epoch }),
        verdict: Verdict::ok(),
        caller: Vec::new(),
        callees: Vec::new(),
    };
    if from == own {
        let left = leave(shared, &question, parts, &mut told.caller).await;
        told.verdict = left.unwrap_or_else(|refusal| Verdict::refused(&refusal, &[]));
    } else {
        let callee = enter(shared, &live, &question, &from, parts);
        told.verdict = callee.verdict.clone();
        told.callees.push(callee);
    }
    serde_json::to_string(&told).map_err(|error| error.to_string())
}

impl Question {
    /// The request as the application sends it to its sidecar.
    fn parts(&self) -> Result<Parts, String> {
        let mut request = Request::new(());
        *request.method_mut() = Method::from_bytes(self.method.as_bytes()).map_err(|_| "method: this is none")?;
        *request.uri_mut() = self.target.parse::<Uri>().map_err(|_| "target: this is no path")?;
        let host = HeaderValue::from_str(&self.authority).map_err(|_| "authority: this is no host")?;
        for (name, value) in &self.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "headers: a name is none")?;
            let value = HeaderValue::from_str(value).map_err(|_| format!("headers: the value of {name} is none"))?;
            request.headers_mut().append(name, value);
        }
        request.headers_mut().insert(HOST, host);
        Ok(request.into_parts().0)
    }

    fn now(&self) -> SystemTime {
        let said = self.at.and_then(|at| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(at)));
        said.unwrap_or_else(SystemTime::now)
    }
}

/// What becomes of a request of the application beside us.
async fn leave(
    shared: &Shared,
    question: &Question,
    mut parts: Parts,
    stages: &mut Vec<Stage>,
) -> Result<Verdict, Refusal> {
    let not = |name, subject: String, refusal: &Refusal| {
        Stage::new(name, vec![step(subject, Outcome::NoMatch, refusal.to_string(), &Origin::default())])
    };
    let normal = normalize(&mut parts, Direction::Outbound)
        .inspect_err(|refusal| stages.push(not("request", "the request".to_owned(), refusal)))?;
    let live = shared.live.load();
    let Ok(named) = Authority::parse(normal.authority(), &live.own.namespace) else {
        return beyond(&live, &normal, None, stages);
    };
    let live = match shared.live.want(&named.service).await {
        Ok(live) => live,
        Err(NotThere::Unknown { nearest }) => return beyond(&live, &normal, Some((&named, nearest)), stages),
        Err(NotThere::Unavailable) => return Err(Refusal::ConfigUnavailable { service: named.service }),
    };
    let unavailable = || Refusal::ConfigUnavailable { service: named.service.clone() };
    let destination = live.destination(&named.service).ok_or_else(unavailable)?;
    let compiled = &destination.compiled;
    let leave = may_leave(&named, Known::Service(compiled)).inspect_err(|refusal| {
        let subject = named.service.to_string();
        let found = step(subject, Outcome::NoMatch, refusal.to_string(), &compiled.origin);
        stages.push(Stage::new("destination", vec![found]));
    })?;
    let because = format!("{:?} means Service {}, port {}", normal.authority(), leave.service(), leave.port());
    let meant = step(leave.service().to_string(), Outcome::Decided, because, &compiled.origin);
    stages.push(Stage::new("destination", vec![meant]));
    let (steps, decision) = tries::with_randomness(|rng| {
        if question.tcp {
            explain::connect(&leave, compiled, rng)
        } else {
            explain::route(&leave, compiled, &parts, rng)
        }
    });
    stages.push(Stage::new("route", steps));
    match decision? {
        Decision::Answer(answer) => Ok(Verdict::answered(&answer)),
        Decision::Forward(choice) => {
            stages.push(Stage::new("endpoints", endpoints(&live, destination, &choice)));
            Ok(Verdict::ok())
        }
    }
}

/// What becomes of a request for a name that no Service has.
fn beyond(
    live: &Live,
    normal: &Normal,
    named: Option<(&Authority, Option<String>)>,
    stages: &mut Vec<Stage>,
) -> Result<Verdict, Refusal> {
    let mode = live.workload.as_ref().map_or(OutboundTraffic::RegistryOnly, |workload| workload.mesh.outbound_traffic);
    let (subject, nearest) = match named {
        Some((named, nearest)) => (named.service.to_string(), nearest),
        None => (normal.authority().to_owned(), None),
    };
    let refusal = Refusal::NoService { name: subject.clone(), nearest };
    let unknown = step(subject, Outcome::NoMatch, refusal.to_string(), &Origin::default());
    let Ok(to) = outside::may_leave(normal.authority(), None, mode) else {
        stages.push(Stage::new("destination", vec![unknown]));
        return Err(refusal);
    };
    let host = to.host().to_string();
    let forbidden = match to.host() {
        Host::Address(address) => outside::forbidden(*address, ChosenBy::Caller),
        Host::Name(_) => None,
    };
    let refused = forbidden.map(|why| Refusal::Forbidden { host: host.clone(), why });
    let because = match &refused {
        Some(refused) => refused.to_string(),
        None => format!("ALLOW_ANY lets it leave the mesh; plain text to port {}", to.port()),
    };
    stages.push(Stage::new("destination", vec![unknown, step(host, Outcome::Decided, because, &Origin::default())]));
    refused.map_or_else(|| Ok(Verdict::outside()), Err)
}

/// How the endpoints stand to which a request can go.
fn endpoints(live: &Live, destination: &Destination, choice: &Choice) -> Vec<Step> {
    let names: Vec<&ServiceName> = match &choice.rule {
        Some(rule) => rule.backends.iter().filter(|to| to.weight > 0).map(|to| &to.service).collect(),
        None => vec![&choice.backend],
    };
    let backends = names.into_iter().map(|name| {
        if *name == destination.backend.name {
            return Ok(&*destination.backend);
        }
        live.destinations.get(name).map(|known| &*known.backend).ok_or(name)
    });
    let mut steps = Vec::new();
    for backend in backends {
        match backend {
            Ok(backend) => of_backend(backend, &mut steps),
            Err(name) => {
                let because = "nothing is known of it here yet";
                steps.push(step(name.to_string(), Outcome::NoMatch, because.to_owned(), &Origin::default()));
            }
        }
    }
    steps
}

fn of_backend(backend: &Backend, steps: &mut Vec<Step>) {
    let now = tokio::time::Instant::now().into_std();
    for endpoint in backend.endpoints.iter().take(ENDPOINTS) {
        let health = endpoint.state.health(backend.traffic.breaker.as_ref(), now);
        let usable = health.standing != Standing::Unusable;
        let plain: Vec<String> = endpoint.open.iter().map(ToString::to_string).collect();
        let plain = if plain.is_empty() {
            String::new()
        } else {
            format!("; plain text to its sidecar on port {}: nobody is known there", plain.join(", "))
        };
        let found = if usable { Outcome::Decided } else { Outcome::NoMatch };
        let because = format!("{}: {}{plain}", health.standing.as_str(), health.because);
        steps.push(step(format!("{} {}", backend.name, endpoint.instance), found, because, &Origin::default()));
    }
    for unwell in &backend.unwell {
        let subject = format!("{} {}", backend.name, unwell.instance);
        steps.push(step(subject, Outcome::NoMatch, unwell.detail.clone(), &Origin::default()));
    }
    if backend.endpoints.is_empty() && backend.unwell.is_empty() {
        let because = "no instance is registered, and no address is written down".to_owned();
        steps.push(step(backend.name.to_string(), Outcome::NoMatch, because, &Origin::default()));
    }
}

/// What becomes of a request of somebody else for the application beside us.
fn enter(shared: &Shared, live: &Live, question: &Question, from: &AccountName, parts: Parts) -> Callee {
    let mut callee = Callee {
        service: question.authority.clone(),
        port: 0,
        account: Some(live.own.account_name().to_string()),
        percent: 100.0,
        verdict: Verdict::ok(),
        stages: Vec::new(),
    };
    let outcome = match live.workload.as_ref().ok_or(Refusal::PolicyUnavailable) {
        Ok(workload) => judge(shared, (live, workload), question, (from, parts), &mut callee),
        Err(refusal) => Err((refusal, Vec::new())),
    };
    if let Err((refusal, stages)) = outcome {
        callee.verdict = Verdict::refused(&refusal, &stages);
        callee.stages.extend(stages);
    }
    callee
}

/// What refuses a request, and the decisions that led there.
type Refused = (Refusal, Vec<Stage>);

fn judge(
    shared: &Shared,
    (live, workload): (&Live, &Arc<CompiledWorkload>),
    question: &Question,
    (from, mut parts): (&AccountName, Parts),
    callee: &mut Callee,
) -> Result<(), Refused> {
    let early = |refusal| (refusal, Vec::new());
    let normal = normalize(&mut parts, Direction::Outbound).map_err(early)?;
    let (service, port) = meant(workload, &normal, from).map_err(early)?;
    (callee.service, callee.port) = (service.to_string(), port.target_port);
    let peer = SpiffeId::new(live.own.trust_domain.clone(), from.namespace.clone(), from.name.clone());
    let mode = workload.mtls(port.target_port);
    let known = mode.takes_tls().then_some(&peer);
    let secured = explain::mode(mode, port.target_port, known, &live.own, &Origin::default());
    callee.stages.push(Stage::new("mtls", vec![secured]));
    let server_name = format!("p{}.{}.{}.mesh", port.target_port, service.name, service.namespace);
    let peer_ip = question.from_ip.unwrap_or(Ipv4Addr::LOCALHOST.into());
    if question.tcp {
        tunnel::opens(port, service, workload).map_err(early)?;
    } else {
        let via = Via {
            address: (peer_ip, 0).into(),
            peer: known.cloned(),
            not_after: None,
            vouched: None,
            distrusted: Default::default(),
            server_name: known.map(|_| server_name.as_str().into()),
            port: Some(port.target_port),
            local: None,
            introduction: OnceCell::new(),
        };
        door::door(shared, workload, &via, &normal, Some(port.target_port)).map_err(early)?;
    }
    let coming = Coming {
        port: port.target_port,
        peer: known,
        peer_ip,
        sni: known.map(|_| server_name.as_str()),
        tcp: question.tcp,
        now: question.now(),
    };
    let (stages, outcome) = explain::callee(workload, &coming, parts);
    match outcome {
        Ok(()) => callee.stages.extend(stages),
        Err(refusal) => return Err((refusal, stages)),
    }
    Ok(())
}

/// The Service and port of this workload that a request means.
fn meant<'w>(
    workload: &'w CompiledWorkload,
    normal: &Normal,
    from: &AccountName,
) -> Result<(&'w ServiceName, &'w ServicePort), Refusal> {
    let unknown = || Refusal::NoService { name: normal.authority().to_owned(), nearest: None };
    let named = Authority::parse(normal.authority(), &from.namespace).map_err(|_| unknown())?;
    let (service, ports) =
        workload.services.iter().find(|(service, _)| *service == named.service).ok_or_else(unknown)?;
    let found = match (named.port, ports.as_slice()) {
        (None, [only]) => Some(only),
        (wanted, ports) => ports.iter().find(|port| Some(port.port) == wanted),
    };
    let port = found.ok_or_else(|| Refusal::NoSuchPort {
        of: service.to_string(),
        port: named.port.unwrap_or_default(),
        ports: ports.iter().map(|port| port.port).collect(),
    })?;
    Ok((service, port))
}

fn step(subject: String, outcome: Outcome, because: String, origin: &Origin) -> Step {
    Step { subject, outcome, because, origin: origin.clone() }
}
