//! The way of a request through both sidecars, decision by decision, with the functions they ask themselves.

use equerry_policies::compile::{self, CompiledDestination};
use equerry_policies::complaint::Complaint;
use equerry_policies::names::{AccountName, Authority, ServiceName, SpiffeId, TrustDomain};
use equerry_policies::policy::{
    AppProtocol, Meaning, Origin, PeerAuthentication, Service, ServicePort, Target as Scope,
};
use equerry_policies::view::{self, WorkloadFacts};
use equerry_traffic::Refusal;
use equerry_traffic::explain::{self, Coming, Outcome, Step};
use equerry_traffic::filter::{self, Answer, Filters};
use equerry_traffic::normalize::{Direction, Normal, normalize};
use equerry_traffic::outside::{self, ChosenBy, Host};
use equerry_traffic::route::{Choice, Decision, Known, may_leave};
use http::request::Parts;

use super::{Question, traffic};

pub(crate) use equerry_traffic::explain::{Callee, Explanation, Stage, Verdict};

/// A backend and its share.
struct Target<'m> {
    service: &'m Service,
    port: &'m ServicePort,
    percent: f64,
    /// The request as it is sent there.
    sent: Parts,
}

/// What the caller's sidecar does with a request that it does not refuse.
enum Sent<'m> {
    /// It goes to one of these.
    To(Vec<Target<'m>>),
    /// It is answered there, because a filter says so.
    Answered(Answer),
    /// It goes to somebody outside the mesh.
    Outside,
}

/// Walks the request through the mesh that the documents describe.
///
/// # Errors
/// Complaints of the compiler: documents that a sidecar of this version would not accept.
pub(crate) fn walk(meaning: &Meaning, question: &Question) -> Result<Explanation, Vec<Complaint>> {
    let mut parts = question.parts.clone();
    let mut explanation = Explanation {
        request: format!("{} {}", parts.method, parts.uri),
        from: question.from.to_string(),
        live: None,
        verdict: Verdict::ok(),
        caller: Vec::new(),
        callees: Vec::new(),
    };
    let normal = match normalize(&mut parts, Direction::Outbound) {
        Ok(normal) => normal,
        Err(refusal) => {
            explanation.caller.push(stage(
                "request",
                vec![step("the request", Outcome::NoMatch, refusal.to_string(), &Origin::default())],
            ));
            explanation.verdict = Verdict::refused(&refusal, &[]);
            return Ok(explanation);
        }
    };
    explanation.request = if question.tcp {
        format!("TCP {}", normal.authority())
    } else {
        format!("{} http://{}{}", parts.method, normal.authority(), normal.target())
    };
    let (stages, targets) = outbound(meaning, question, &normal, &parts)?;
    explanation.caller = stages;
    match targets {
        Err(refusal) => explanation.verdict = Verdict::refused(&refusal, &[]),
        Ok(Sent::Answered(answer)) => explanation.verdict = Verdict::answered(&answer),
        Ok(Sent::Outside) => explanation.verdict = Verdict::outside(),
        Ok(Sent::To(targets)) => {
            for target in targets {
                explanation.callees.push(inbound(meaning, question, &target)?);
            }
            let worst = explanation.callees.iter().find(|callee| !callee.verdict.allowed);
            explanation.verdict = worst.map_or_else(Verdict::ok, |callee| callee.verdict.clone());
        }
    }
    Ok(explanation)
}

/// Destination, route, and how the exchange is protected.
#[expect(clippy::type_complexity, reason = "stages beside the outcome: both are told")]
fn outbound<'m>(
    meaning: &'m Meaning,
    question: &Question,
    normal: &Normal,
    parts: &Parts,
) -> Result<(Vec<Stage>, Result<Sent<'m>, Refusal>), Vec<Complaint>> {
    let named = match Authority::parse(normal.authority(), &question.from.namespace) {
        Ok(named) => named,
        Err(bad) => {
            let refusal = Refusal::NoService { name: normal.authority().to_owned(), nearest: None };
            let unknown = step(normal.authority(), Outcome::NoMatch, bad.to_string(), &Origin::default());
            return Ok(beyond(meaning, normal, unknown, refusal));
        }
    };
    let view = view::destination(meaning, &named.service, &question.from.namespace);
    let compiled = view.map(|view| compile::destination(&view)).transpose()?;
    let nearest = view::nearest_service(meaning, &named.service).map(ToString::to_string);
    let known = compiled.as_ref().map_or(Known::Nothing { nearest: nearest.as_deref() }, Known::Service);
    let leave = match may_leave(&named, known) {
        Ok(leave) => leave,
        Err(refusal) => {
            let origin = compiled.as_ref().map(|destination| destination.origin.clone()).unwrap_or_default();
            let unknown = step(named.service.to_string(), Outcome::NoMatch, refusal.to_string(), &origin);
            return Ok(match &refusal {
                Refusal::NoService { .. } => beyond(meaning, normal, unknown, refusal),
                _ => (vec![stage("destination", vec![unknown])], Err(refusal)),
            });
        }
    };
    let Some(destination) = compiled else {
        return Ok((Vec::new(), Err(Refusal::NoService { name: named.service.to_string(), nearest })));
    };
    let because = format!("{:?} means Service {}, port {}", normal.authority(), leave.service(), leave.port());
    let mut meant = vec![step(leave.service().to_string(), Outcome::Decided, because, &destination.origin)];
    meant.extend(traffic::undeclared(meaning, &destination, leave.port()));
    let mut stages = vec![stage("destination", meant)];
    let mut chance = fastrand::Rng::with_seed(0);
    let (steps, decision) = if question.tcp {
        explain::connect(&leave, &destination, &mut chance)
    } else {
        explain::route(&leave, &destination, parts, &mut chance)
    };
    stages.push(stage("route", steps));
    let choice = match decision {
        Ok(Decision::Forward(choice)) => choice,
        Ok(Decision::Answer(answer)) => return Ok((stages, Ok(Sent::Answered(answer)))),
        Err(refusal) => return Ok((stages, Err(refusal))),
    };
    let targets = targets(meaning, &destination, &choice, leave.port(), (parts, normal));
    stages.push(stage("traffic", traffic::traffic(meaning, question, &destination, &choice)));
    stages.push(stage("endpoints", traffic::endpoints(meaning, question, parts, &choice)));
    Ok((stages, targets.map(Sent::To)))
}

/// What becomes of a request for a name that no Service has: it leaves the mesh where callers may name anybody, else it is
/// refused with `refusal`.
fn beyond<'m>(
    meaning: &Meaning,
    normal: &Normal,
    unknown: Step,
    refusal: Refusal,
) -> (Vec<Stage>, Result<Sent<'m>, Refusal>) {
    let mesh = &meaning.mesh;
    let Ok(to) = outside::may_leave(normal.authority(), None, mesh.outbound_traffic) else {
        return (vec![stage("destination", vec![unknown])], Err(refusal));
    };
    let forbidden = match to.host() {
        Host::Address(address) => outside::forbidden(*address, ChosenBy::Caller),
        Host::Name(_) => None,
    };
    let host = to.host().to_string();
    let (because, sent) = match forbidden {
        Some(why) => {
            let refusal = Refusal::Forbidden { host: host.clone(), why };
            (refusal.to_string(), Err(refusal))
        }
        None => {
            let how = match to.host() {
                Host::Name(_) => {
                    "looked up in the DNS when it is called, which may lead to an address where nothing is sent"
                }
                Host::Address(_) => "called there",
            };
            let port = to.port();
            (format!("ALLOW_ANY lets it leave the mesh: {how}; plain text to port {port}"), Ok(Sent::Outside))
        }
    };
    (vec![stage("destination", vec![unknown, step(host, Outcome::Decided, because, &mesh.origin)])], sent)
}

/// Every backend that a request by this rule can reach, the likeliest first.
fn targets<'m>(
    meaning: &'m Meaning,
    destination: &CompiledDestination,
    choice: &Choice,
    named: u16,
    (parts, normal): (&Parts, &Normal),
) -> Result<Vec<Target<'m>>, Refusal> {
    let backends: Vec<(ServiceName, Option<u16>, u32, Filters<'_>)> = match &choice.rule {
        Some(rule) => rule
            .backends
            .iter()
            .enumerate()
            .filter(|(_, to)| to.weight > 0)
            .map(|(place, to)| (to.service.clone(), to.port, to.weight, Filters::of(rule, Some(place))))
            .collect(),
        None => vec![(choice.backend.clone(), choice.port, 1, Filters::NONE)],
    };
    let total = choice.rule.as_ref().map_or(1, |rule| rule.total_weight);
    let mut targets = Vec::new();
    for (name, port, weight, filters) in backends {
        let service =
            meaning.services.get(&name).ok_or_else(|| Refusal::NoService { name: name.to_string(), nearest: None })?;
        let wanted = port.or((name == destination.service).then_some(named));
        let found = match (wanted, service.ports.as_slice()) {
            (None, [only]) => Some(only),
            (wanted, ports) => ports.iter().find(|port| Some(port.port) == wanted),
        };
        let ports = || service.ports.iter().map(|port| port.port).collect();
        let port = found.ok_or_else(|| Refusal::NoSuchPort {
            of: name.to_string(),
            port: wanted.unwrap_or_default(),
            ports: ports(),
        })?;
        let mut sent = parts.clone();
        filter::apply_request(filters, &mut sent, normal.clone())?;
        targets.push(Target { service, port, percent: f64::from(weight) * 100.0 / total as f64, sent });
    }
    targets.sort_by(|a, b| b.percent.total_cmp(&a.percent));
    Ok(targets)
}

/// Mutual TLS, token, authorization, tenant: what the callee's sidecar asks, until one refuses.
fn inbound(meaning: &Meaning, question: &Question, target: &Target<'_>) -> Result<Callee, Vec<Complaint>> {
    let service = target.service;
    let account = service.accounts.first().map(|first| question.to.clone().unwrap_or_else(|| first.clone()));
    let mut callee = Callee {
        service: service.name.to_string(),
        port: target.port.target_port,
        account: account.as_ref().map(ToString::to_string),
        percent: target.percent,
        verdict: Verdict::ok(),
        stages: Vec::new(),
    };
    let Some(account) = account else {
        let because = match &service.external {
            Some(name) => {
                format!("it stands for {name} outside the mesh: called in plain text, and nothing is asked there")
            }
            None => "its endpoints are written down and have no sidecar: they are called in plain text, and nothing is asked there".to_owned(),
        };
        callee
            .stages
            .push(stage("mtls", vec![step(service.name.to_string(), Outcome::Decided, because, &service.origin)]));
        return Ok(callee);
    };
    let facts = WorkloadFacts {
        account: account.clone(),
        labels: service.selector.clone(),
        ports: service.ports.iter().map(|port| port.target_port).collect(),
    };
    let workload = compile::workload(&view::workload(meaning, &facts))?;
    let trust_domain = meaning.mesh.trust_domain.clone().unwrap_or_else(|| question.trust_domain.clone());
    let identity = |account: &AccountName, domain: &TrustDomain| {
        SpiffeId::new(domain.clone(), account.namespace.clone(), account.name.clone())
    };
    let (peer, own) = (identity(&question.from, &trust_domain), identity(&account, &trust_domain));
    if !service.accounts.contains(&account) {
        let expected = service.accounts.iter().map(|account| identity(account, &trust_domain)).collect();
        let refusal = Refusal::IdentityMismatch { expected, found: Some(Box::new(own)) };
        let refused = step("mutual TLS", Outcome::Decided, refusal.to_string(), &service.origin);
        callee.stages.push(stage("mtls", vec![refused]));
        callee.verdict = Verdict::refused(&refusal, &[]);
        return Ok(callee);
    }
    let mode = workload.mtls(callee.port);
    let known = mode.takes_tls().then_some(&peer);
    let secured = explain::mode(mode, callee.port, known, &own, &mode_origin(meaning, &facts));
    callee.stages.push(Stage::new("mtls", vec![secured]));
    let server_name = format!("p{}.{}.{}.mesh", callee.port, service.name.name, service.name.namespace);
    let coming = Coming {
        port: callee.port,
        peer: known,
        peer_ip: question.from_ip,
        sni: known.map(|_| &*server_name),
        tcp: question.tcp,
        now: question.now,
    };
    let (stages, outcome) = match spoken(target, question.tcp) {
        Ok(()) => explain::callee(&workload, &coming, target.sent.clone()),
        Err(refusal) => (Vec::new(), Err(refusal)),
    };
    if let Err(refusal) = outcome {
        callee.verdict = Verdict::refused(&refusal, &stages);
    }
    callee.stages.extend(stages);
    Ok(callee)
}

/// A port speaks TCP or HTTP, and takes nothing else.
fn spoken(target: &Target<'_>, tcp: bool) -> Result<(), Refusal> {
    let (speaks, met) = match (target.port.app_protocol == AppProtocol::Tcp, tcp) {
        (true, false) => ("TCP", "HTTP"),
        (false, true) => ("HTTP", "TCP"),
        _ => return Ok(()),
    };
    let (port, service) = (target.port.port, &target.service.name);
    Err(Refusal::bad_request(format!("port {port} of {service} speaks {speaks}, and this is {met}")))
}

/// Where the mode of a workload was written: the PeerAuthentication of the narrowest scope that holds for it, or the Mesh.
pub(super) fn mode_origin(meaning: &Meaning, facts: &WorkloadFacts) -> Origin {
    let width = |peer: &PeerAuthentication| match &peer.target {
        Scope::Workloads(labels) if peer.name.namespace == facts.account.namespace => {
            labels.iter().all(|(key, value)| facts.labels.get(key) == Some(value)).then_some(0)
        }
        Scope::Namespace if peer.name.namespace == facts.account.namespace => Some(1),
        Scope::Mesh => Some(2),
        _ => None,
    };
    let narrowest =
        meaning.peers.values().filter_map(|peer| Some((width(peer)?, peer))).min_by_key(|(width, _)| *width);
    narrowest.map_or_else(|| meaning.mesh.origin.clone(), |(_, peer)| peer.origin.clone())
}

fn stage(name: &'static str, steps: Vec<Step>) -> Stage {
    Stage::new(name, steps)
}

pub(super) fn step(subject: impl Into<String>, outcome: Outcome, because: impl Into<String>, origin: &Origin) -> Step {
    Step { subject: subject.into(), outcome, because: because.into(), origin: origin.clone() }
}
