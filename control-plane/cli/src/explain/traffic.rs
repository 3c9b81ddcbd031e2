//! What happens to a request or a connection on its way, in words: how long it may take, what is tried again, what protects its
//! destination, how an endpoint is chosen and who says that it is well.

use std::borrow::Cow;
use std::collections::BTreeSet;

use equerry_policies::compile::CompiledDestination;
use equerry_policies::names::{ServiceName, SpiffeId};
use equerry_policies::policy::{Meaning, Mesh, TrafficPolicy};
use equerry_traffic::balance::Source;
use equerry_traffic::explain::{self, Outcome, Step};
use equerry_traffic::route::Choice;
use http::request::Parts;

use super::Question;
use super::walk::step;

/// How it is told what is spoken at a port of which nobody wrote it down. Nothing of one where somebody did.
pub(super) fn undeclared(meaning: &Meaning, destination: &CompiledDestination, port: u16) -> Option<Step> {
    destination.port(port).filter(|port| port.undeclared)?;
    let wait = meaning.mesh.protocol_detection_timeout.unwrap_or(Mesh::PROTOCOL_DETECTION_TIMEOUT);
    let told = match (destination.has_rules_about_http(port), wait.is_zero()) {
        (true, _) => {
            "told from the first bytes, and nothing but requests passes: there are rules about HTTP".to_owned()
        }
        (false, true) => "not looked at (protocolDetectionTimeout is 0), and led on as bytes".to_owned(),
        (false, false) => format!(
            "told from the first bytes: requests are served as such, anything else is led on as bytes, and so is who says \
             nothing for {wait:?} (protocolDetectionTimeout)"
        ),
    };
    let because = format!("no appProtocol says what is spoken there; at a local TCP port it is {told}");
    Some(step(format!("port {port}"), Outcome::Noted, because, &destination.origin))
}

/// Times, retries and protection: nothing that refuses by itself, but what happens when something goes wrong.
pub(super) fn traffic(
    meaning: &Meaning,
    question: &Question,
    destination: &CompiledDestination,
    choice: &Choice,
) -> Vec<Step> {
    let rule = choice.rule.as_ref();
    let origin = rule.map(|rule| rule.origin.clone()).unwrap_or_default();
    let limit = |time: Option<std::time::Duration>| {
        time.filter(|time| !time.is_zero()).map_or_else(|| "no limit".to_owned(), |time| format!("{time:?}"))
    };
    let times =
        format!("the whole exchange: {}; each try: {}", limit(choice.request_timeout()), limit(choice.try_timeout()));
    let mut steps = Vec::new();
    if question.tcp {
        let because = "until one lets it in, up to three endpoints: nothing was said yet";
        steps.push(step("tries", Outcome::Decided, because, &origin));
        steps.extend(breakers(meaning, choice));
        return steps;
    }
    steps.push(step("timeouts", Outcome::Decided, times, &origin));
    let budget = &destination.traffic.retry_budget;
    let retries = match choice.retry() {
        Some(retry) => {
            let codes: Vec<String> = retry.codes.iter().map(ToString::to_string).collect();
            let codes = if codes.is_empty() { String::new() } else { format!(" on {}", codes.join(", ")) };
            let own = if choice.method_named {
                "; the rule names the method, so it may be retried even when it is not idempotent"
            } else {
                ""
            };
            format!(
                "at most {}{codes}, within {}% of the originals and {} per second{own}",
                retry.attempts, budget.percent, budget.min_per_second
            )
        }
        None => "only what was provably not processed".to_owned(),
    };
    steps.push(step("retries", Outcome::Decided, retries, &origin));
    steps.extend(breakers(meaning, choice));
    steps
}

/// Everywhere a rule sends to, with the policy for traffic there.
fn backends<'a>(meaning: &'a Meaning, choice: &'a Choice) -> Vec<(&'a ServiceName, Cow<'a, TrafficPolicy>)> {
    let names: BTreeSet<&ServiceName> = match &choice.rule {
        Some(rule) => {
            rule.backends.iter().filter(|backend| backend.weight > 0).map(|backend| &backend.service).collect()
        }
        None => BTreeSet::from([&choice.backend]),
    };
    let policy = |name: &ServiceName| meaning.traffic.values().find(|policy| policy.services.contains(name));
    names.into_iter().map(|name| (name, policy(name).map(Cow::Borrowed).unwrap_or_default())).collect()
}

/// How an endpoint of each backend is chosen, and who says whether it is well.
pub(super) fn endpoints(meaning: &Meaning, question: &Question, parts: &Parts, choice: &Choice) -> Vec<Step> {
    let domain = meaning.mesh.trust_domain.clone().unwrap_or_else(|| question.trust_domain.clone());
    let identity = SpiffeId::new(domain, question.from.namespace.clone(), question.from.name.clone());
    let source = Source { address: question.from_ip, instance: "", identity: &identity };
    let mut steps = Vec::new();
    for (backend, policy) in backends(meaning, choice) {
        let request = Some(parts).filter(|_| !question.tcp);
        steps.push(explain::balancer(backend, &policy, request, &source));
        if let Some(service) = meaning.services.get(backend) {
            steps.extend(explain::health(service, &policy));
        }
    }
    steps
}

fn breakers(meaning: &Meaning, choice: &Choice) -> Vec<Step> {
    let mut steps = Vec::new();
    for (backend, policy) in backends(meaning, choice) {
        let breaker = match &policy.breaker {
            Some(breaker) => format!(
                "opens after {} failures in a row, for {:?} to {:?}",
                breaker.consecutive_failures, breaker.penalty_min, breaker.penalty_max
            ),
            None => "off".to_owned(),
        };
        steps.push(step(format!("breaker of {backend}"), Outcome::Decided, breaker, &policy.origin));
    }
    steps
}
