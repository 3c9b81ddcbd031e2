//! Who calls whom and how it goes: the map of what sidecars count, the last calls they kept, and calls as they end.
//!
//! Counts are for every viewer. Single calls show paths and callers, so they take a permission of their own, and each look is written
//! down in the audit log.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use equerry_policies::names::{AccountName, InstanceId, Namespace, ServiceName, TenantName};
use equerry_wire::proto;
use http::StatusCode;
use serde_json::json;
use tokio::sync::mpsc;

use super::page::page;
use super::params::{Listing, Params};
use super::pieces::in_pieces;
use super::problem::PROBLEM_JSON;
use super::shapes::{CallList, EdgeReply, EndReply, Problem, SampleList, SampleReply, SideReply};
use super::watch::{self, event};
use crate::access::{Actor, Limits, Permission, Place};
use crate::audit::{By, Note};
use crate::calls::lookers::{MOST_LOOKERS, Told, Where};
use crate::calls::{Edge, Numbers, Pair, Seen, WINDOW};
use crate::control::{ControlPlane, Looking};
use crate::registry::InstanceKey;
use crate::serve::until_true;
use crate::store::unix_ms;

/// Sidecars that are asked for their last calls at once.
const MOST_ASKED: usize = 200;
/// How long they have to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// The most single calls in one answer, and in one second.
const MOST_CALLS: u64 = 1_000;
/// How often somebody who follows is told how many calls they missed, and whether they still may look.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// Who called whom within the last minute, and how it went.
#[utoipa::path(get, path = "/api/v1/calls", tag = "calls",
    params(("limit" = Option<u32>, Query, minimum = 1, maximum = 1000), ("continue" = Option<String>, Query,),
        ("namespace" = Option<String>, Query, description = "Only where the caller or the Service is of this namespace"),
        ("source" = Option<String>, Query, description = "Only this caller: namespace/account"),
        ("destination" = Option<String>, Query, description = "Only to this Service: namespace/name")),
    responses((status = 200, body = CallList)))]
pub(super) async fn list(
    State(control): State<ControlPlane>,
    actor: Actor,
    mut params: Params,
) -> Result<Response, Problem> {
    let listing = Listing::paged(&mut params);
    let namespace = params.read("namespace", Namespace::parse);
    let source = params.read("source", source_of);
    let destination = params.read("destination", destination_of);
    params.finish()?;
    let of = format!("calls {namespace:?} {source:?} {destination:?}");
    let wanted = |pair: &Pair| {
        let (from, to) = pair;
        source.as_ref().is_none_or(|source| source == from)
            && destination.as_ref().is_none_or(|destination| destination == to)
            && namespace.as_ref().is_none_or(|wanted| is_of(from, wanted) || is_of(to, wanted))
            && seen_by(&actor, pair)
    };
    let all = control.calls(wanted).into_iter().map(|edge| (edge.0.clone(), edge)).collect();
    let found = page(all, &listing, &of)?;
    let list = CallList {
        window_seconds: WINDOW.as_secs(),
        reporting: control.reporting(),
        items: Vec::new(),
        rest: found.rest,
    };
    in_pieces(&list, "items", found.items.into_iter().map(edge_reply))
}

/// Whether a name is of a namespace.
fn is_of(name: &str, namespace: &Namespace) -> bool {
    name.split_once('/').is_some_and(|(first, _)| first == namespace.as_str())
}

/// Whoever may see one end may know who is at the other.
fn seen_by(actor: &Actor, (from, to): &Pair) -> bool {
    actor.limits.is_empty()
        || actor.limits.namespaces.iter().any(|namespace| is_of(from, namespace) || is_of(to, namespace))
}

fn source_of(text: &str) -> Result<String, String> {
    match text {
        "unknown" => Ok(text.to_owned()),
        _ => AccountName::parse(text).map(|name| name.to_string()).map_err(|bad| bad.to_string()),
    }
}

fn destination_of(text: &str) -> Result<String, String> {
    match text {
        "unknown" => Ok(text.to_owned()),
        _ => ServiceName::parse(text).map(|name| name.to_string()).map_err(|bad| bad.to_string()),
    }
}

/// Who called a Service lately.
pub(super) fn callers_of(control: &ControlPlane, service: &ServiceName) -> Vec<EdgeReply> {
    let name = service.to_string();
    control.calls(|(_, to)| *to == name).into_iter().map(edge_reply).collect()
}

/// Whom these accounts called lately.
pub(super) fn callees_of(control: &ControlPlane, accounts: &[AccountName]) -> Vec<EdgeReply> {
    let names: BTreeSet<String> = accounts.iter().map(ToString::to_string).collect();
    control.calls(|(from, _)| names.contains(from)).into_iter().map(edge_reply).collect()
}

fn edge_reply(((source, destination), caller, callee): Edge) -> EdgeReply {
    EdgeReply { source, destination, caller: caller.map(side_reply), callee: callee.map(side_reply) }
}

fn side_reply(seen: Seen) -> SideReply {
    let Seen { numbers, over, told } = seen;
    let (requests, failed) = (numbers.count(|_| true), numbers.count(|end| end.failed));
    let refused = numbers.count(|end| end.refused);
    #[expect(clippy::cast_precision_loss, reason = "counts of a minute")]
    let per_second = |count: u64| rounded(count as f64 / over.as_secs_f64());
    let quantile = |share| numbers.quantile(share).map(rounded);
    let told = SystemTime::now().checked_sub(told.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH);
    SideReply {
        requests_per_second: per_second(requests),
        failed_per_second: per_second(failed),
        refused_per_second: per_second(refused),
        p50_ms: quantile(0.5),
        p95_ms: quantile(0.95),
        p99_ms: quantile(0.99),
        requests,
        failed,
        refused,
        connections: numbers.count(|end| end.tcp),
        bytes_in: numbers.bytes_in,
        bytes_out: numbers.bytes_out,
        ends: ends(&numbers),
        last_report_unix_ms: unix_ms(told),
    }
}

/// Three digits behind the point are more than is known.
fn rounded(number: f64) -> f64 {
    (number * 1_000.0).round() / 1_000.0
}

fn ends(numbers: &Numbers) -> Vec<EndReply> {
    let of = numbers.ends.iter().filter(|(_, count)| **count > 0);
    let mut ends: Vec<EndReply> =
        of.map(|(end, count)| EndReply { status: end.status, reason: end.reason.clone(), requests: *count }).collect();
    ends.sort_by_key(|end| std::cmp::Reverse(end.requests));
    ends
}

/// Which single calls are asked for.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `Asked::read` reads")]
pub(super) struct CallsFilter {
    /// Only those that sidecars of this namespace saw.
    namespace: Option<String>,
    /// Only those that the sidecar of this instance saw: namespace/id.
    instance: Option<String>,
    /// Only of this caller: namespace/account.
    source: Option<String>,
    /// Only to this Service: namespace/name.
    destination: Option<String>,
    /// `inbound` or `outbound`.
    direction: Option<String>,
    /// Only this method.
    method: Option<String>,
    /// Only paths that begin so.
    path: Option<String>,
    /// A status, or all of a hundred: 503, 5xx.
    status: Option<String>,
    /// Only what ended so.
    reason: Option<String>,
    /// Only what this tenant was charged for.
    tenant: Option<String>,
    /// Only what failed or was refused.
    failed: Option<bool>,
}

/// Single calls that somebody asks for, and where.
struct Asked {
    place: Where,
    filter: proto::CallFilter,
}

impl Asked {
    fn read(params: &mut Params, actor: &Actor) -> Self {
        let text = |text: &str| {
            let fits = !text.is_empty() && text.len() <= 256;
            fits.then(|| text.to_owned()).ok_or("found nothing, or more than 256 bytes")
        };
        let direction = |text: &str| match text {
            "inbound" | "outbound" => Ok(text.to_owned()),
            _ => Err("found something else, expected inbound or outbound"),
        };
        let place = Where {
            namespace: params.read("namespace", Namespace::parse),
            instance: params.read("instance", instance_of),
            within: Vec::new(),
            tenant: None,
        };
        let (status_from, status_to) = params.read("status", statuses_of).unwrap_or_default();
        let filter = proto::CallFilter {
            source: params.read("source", source_of).unwrap_or_default(),
            destination: params.read("destination", destination_of).unwrap_or_default(),
            direction: params.read("direction", direction).unwrap_or_default(),
            method: params.read("method", text).unwrap_or_default(),
            path_prefix: params.read("path", text).unwrap_or_default(),
            status_from,
            status_to,
            reason: params.read("reason", text).unwrap_or_default(),
            tenant: params.read("tenant", text).unwrap_or_default(),
            failed: params.flag("failed"),
        };
        let mut asked = Self { place, filter };
        if !actor.limits.is_empty() {
            asked.keep_within(params, &actor.limits);
        }
        asked
    }

    /// A token that is limited looks where it holds: in its namespaces, or, wherever that was, at what one of its tenants was charged for.
    fn keep_within(&mut self, params: &mut Params, limits: &Limits) {
        let named = TenantName::parse(&self.filter.tenant).ok();
        let tenant = match (&named, limits.tenants.as_slice()) {
            (Some(named), tenants) => tenants.iter().find(|tenant| *tenant == named),
            (None, [only]) if limits.namespaces.is_empty() => Some(only),
            _ => None,
        };
        if let Some(tenant) = tenant {
            self.filter.tenant = tenant.to_string();
            self.place.tenant = Some(tenant.clone());
        } else {
            self.place.within.clone_from(&limits.namespaces);
            if limits.namespaces.is_empty() && named.is_none() {
                params.mistake(
                    "tenant",
                    format_args!("found nothing, expected one of those that the token is limited to: {limits}"),
                );
            }
        }
    }

    /// Whether the bearer may look, and that they do, written down.
    async fn allowed(&self, control: &ControlPlane, actor: &Actor, what: &'static str) -> Result<(), Problem> {
        // A token that is limited looks where it holds, and needs a place to hold in.
        let elsewhere = TenantName::parse(&self.filter.tenant).ok();
        let place = match (&self.place.tenant, actor.limits.namespaces.first(), &elsewhere) {
            (Some(tenant), _, _) => Place::Tenant(tenant),
            (None, Some(namespace), _) => Place::Namespace(namespace),
            (None, None, Some(tenant)) if !actor.limits.is_empty() => Place::Tenant(tenant),
            (None, None, _) => Place::Mesh,
        };
        actor.may(Permission::ReadCalls, place)?;
        let note = Note::done(By::token(actor), what, self.in_words());
        control.note(note).await.map_err(|error| super::views::store_refused(&error))
    }
}

impl Asked {
    /// What is looked at, for those who read the audit log: one text for each way in which it is narrowed.
    fn in_words(&self) -> Vec<String> {
        let (place, filter) = (&self.place, &self.filter);
        let within = place.within.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let status = match (filter.status_from, filter.status_to) {
            (0, 0) => String::new(),
            (from, to) if from == to => from.to_string(),
            (from, to) => format!("{from} to {to}"),
        };
        let set = [
            ("seen by instance", place.instance.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("seen in namespace", place.namespace.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("only in what the token is limited to:", within),
            ("from", filter.source.clone()),
            ("to", filter.destination.clone()),
            ("direction", filter.direction.clone()),
            ("method", filter.method.clone()),
            ("path that begins with", filter.path_prefix.clone()),
            ("status", status),
            ("reason", filter.reason.clone()),
            ("tenant", filter.tenant.clone()),
        ];
        let set = set.into_iter().filter(|(_, value)| !value.is_empty());
        let mut words: Vec<String> = set.map(|(name, value)| format!("{name} {value}")).collect();
        if filter.failed {
            words.push("failed or refused".to_owned());
        }
        words.insert(0, if words.is_empty() { "all calls" } else { "calls" }.to_owned());
        words
    }
}

fn instance_of(text: &str) -> Result<InstanceKey, String> {
    let (namespace, id) = text.split_once('/').ok_or("found no /, expected namespace/id")?;
    let namespace = Namespace::parse(namespace).map_err(|bad| bad.to_string())?;
    Ok(InstanceKey { namespace, id: InstanceId::parse(id).map_err(|bad| bad.to_string())? })
}

/// From and to.
fn statuses_of(text: &str) -> Result<(u32, u32), &'static str> {
    let odd = "found something else, expected a status from 100 to 599, or 1xx to 5xx";
    if let Some(hundred) = text.strip_suffix("xx") {
        let hundred: u32 = hundred.parse().map_err(|_| odd)?;
        return if (1..=5).contains(&hundred) { Ok((hundred * 100, hundred * 100 + 99)) } else { Err(odd) };
    }
    let status: u32 = text.parse().map_err(|_| odd)?;
    if (100..=599).contains(&status) { Ok((status, status)) } else { Err(odd) }
}

fn too_many(what: &str) -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "overload",
        format_args!("{MOST_LOOKERS} {what} are open already; end one, or try again in a moment"),
    )
}

/// The last calls that sidecars kept: some of those that ended well, most of those that did not.
#[utoipa::path(get, path = "/api/v1/calls/recent", tag = "calls",
    params(CallsFilter, ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "At most so many; 100 when it is not said")),
    responses((status = 200, body = SampleList), (status = 403, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn recent(
    State(control): State<ControlPlane>,
    actor: Actor,
    mut params: Params,
) -> Result<Json<SampleList>, Problem> {
    let asked = Asked::read(&mut params, &actor);
    let limit = params.number("limit", 1..=MOST_CALLS).unwrap_or(100);
    params.finish()?;
    asked.allowed(&control, &actor, "calls.recent").await?;
    let mut keys: Vec<InstanceKey> = control.reporters().into_iter().filter(|key| asked.place.concerns(key)).collect();
    let left_out = keys.len().saturating_sub(MOST_ASKED);
    keys.truncate(MOST_ASKED);
    let count = keys.len();
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    let asking = control.lookers().ask(keys.into_iter().collect(), asked.filter, limit);
    let (id, mut answers) = asking.ok_or_else(|| too_many("questions"))?;
    let looking = control.looking(id);
    let mut items = Vec::new();
    let mut answered = 0;
    let all = async {
        while answered < count {
            let Some((key, samples)) = answers.recv().await else { return };
            answered += 1;
            items.extend(
                samples.into_iter().filter(|sample| asked.place.sees(sample)).map(|sample| sample_reply(&key, sample)),
            );
        }
    };
    // Who does not answer in time is not waited for; the answer says how many did.
    let _ = tokio::time::timeout(ANSWER_WITHIN, all).await;
    drop(looking);
    items.sort_by_key(|sample: &SampleReply| std::cmp::Reverse(sample.started_unix_ms));
    items.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(Json(SampleList { asked: count, answered, left_out, items }))
}

/// Calls as they end, as server-sent events: `call` for each, and every second `told`, with how many were left out.
#[utoipa::path(get, path = "/api/v1/calls/tap", tag = "calls",
    params(CallsFilter, ("perSecond" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "At most so many; 100 when it is not said")),
    responses((status = 200, body = SampleReply, content_type = "text/event-stream"), (status = 403, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn tap(
    State(control): State<ControlPlane>,
    actor: Actor,
    mut params: Params,
) -> Result<Response, Problem> {
    let asked = Asked::read(&mut params, &actor);
    let per_second = params.number("perSecond", 1..=MOST_CALLS).unwrap_or(100);
    params.finish()?;
    asked.allowed(&control, &actor, "calls.tap").await?;
    let per_second = u32::try_from(per_second).unwrap_or(u32::MAX);
    let following = control.lookers().follow(asked.place.clone(), asked.filter, per_second, Instant::now());
    let (id, calls) = following.ok_or_else(|| too_many("looks"))?;
    let tap = Tap { looking: control.looking(id), control: control.clone(), actor, place: asked.place, calls };
    watch::answered(&control, |events| tap.run(events))
}

/// Somebody follows calls.
struct Tap {
    looking: Looking,
    control: ControlPlane,
    actor: Actor,
    place: Where,
    calls: mpsc::Receiver<Told>,
}

impl Tap {
    async fn run(mut self, events: mpsc::Sender<Bytes>) {
        let mut stopping = self.control.stopping();
        let mut ticks = tokio::time::interval(TOLD_EVERY);
        loop {
            let next = tokio::select! {
                told = self.calls.recv() => {
                    let Some((key, sample)) = told else { return };
                    event("call", &json!(sample_reply(&key, Arc::unwrap_or_clone(sample))), None)
                }
                _ = ticks.tick() => {
                    if !self.control.knows(&self.actor) {
                        let revoked = Problem::new(StatusCode::UNAUTHORIZED, "token_invalid", "this admin token was revoked");
                        let _ = events.send(event("error", &json!(revoked), None)).await;
                        return;
                    }
                    let proxies = self.control.reporters().iter().filter(|key| self.place.concerns(key)).count();
                    let dropped = self.control.lookers().dropped(self.looking.id);
                    event("told", &json!({"proxies": proxies, "dropped": dropped}), None)
                }
                () = until_true(&mut stopping) => return,
                () = events.closed() => return,
            };
            if events.send(next).await.is_err() {
                return;
            }
        }
    }
}

fn sample_reply(key: &InstanceKey, sample: proto::CallSample) -> SampleReply {
    let set = |text: String| Some(text).filter(|text| !text.is_empty());
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a call")]
    let milliseconds = |micros: u64| micros as f64 / 1_000.0;
    SampleReply {
        instance: key.to_string(),
        direction: if sample.outbound { "outbound" } else { "inbound" }.to_owned(),
        started_unix_ms: sample.started_unix_ms,
        duration_ms: milliseconds(sample.took_us),
        upstream_ms: (sample.upstream_us > 0).then(|| milliseconds(sample.upstream_us)),
        source: set(sample.source),
        destination: set(sample.destination),
        method: set(sample.method),
        path: set(sample.path),
        authority: set(sample.authority),
        protocol: sample.protocol,
        status: u16::try_from(sample.status).unwrap_or_default(),
        reason: sample.reason,
        policy: set(sample.policy),
        route: set(sample.route),
        tenant: set(sample.tenant),
        attempts: sample.attempts,
        upstream: set(sample.upstream),
        bytes_in: sample.bytes_in,
        bytes_out: sample.bytes_out,
        request_id: set(sample.request_id),
        trace_id: set(sample.trace_id),
        tls: sample.tls,
        epoch: sample.epoch,
        detail: set(sample.detail),
    }
}

#[cfg(test)]
#[path = "calls_tests.rs"]
mod tests;
