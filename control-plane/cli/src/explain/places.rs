//! The lines of documents that a running sidecar's decisions go by: it is told what holds, and not where that was written.
//!
//! A document is named only where it says what is in force there: the sidecar shows what it was told, and a document that says
//! something else is called different.

use equerry_policies::names::{AccountName, Namespace, ServiceName};
use equerry_policies::policy::{Meaning, Origin};
use equerry_policies::view::WorkloadFacts;
use equerry_traffic::explain::{Explanation, Outcome, Stage, Step};
use serde::Serialize;
use serde_json::Value;

use super::walk::mode_origin;

/// What stands for a secret in what a sidecar shows.
const MASKED: &str = "***";

/// Documents, beside what a sidecar shows as in force.
pub(super) struct Places<'m> {
    meaning: &'m Meaning,
    /// What it was told: `[{type, name, body}]`.
    told: &'m [Value],
}

/// A document, and whether it is the one in force.
struct Found {
    origin: Origin,
    in_force: bool,
}

impl<'m> Places<'m> {
    /// Of documents, beside `config`, what the sidecar's `/config` says.
    pub(super) fn new(meaning: &'m Meaning, config: &'m Value) -> Self {
        Self { meaning, told: config["resources"].as_array().map_or(&[], Vec::as_slice) }
    }

    /// Says of every decision where what it goes by was written.
    pub(super) fn fill(&self, explanation: &mut Explanation) {
        for stage in &mut explanation.caller {
            self.stage(stage, None);
        }
        for callee in &mut explanation.callees {
            let account = callee.account.as_deref().and_then(|account| AccountName::parse(account).ok());
            let facts = self.facts(&callee.service, account);
            for stage in &mut callee.stages {
                self.stage(stage, facts.as_ref());
            }
            callee.verdict.origin = self.cause(callee.verdict.cause.as_deref(), &callee.stages);
        }
        let decisions = explanation.callees.iter().find(|callee| !callee.verdict.allowed);
        let decisions = decisions.map_or(&explanation.caller, |callee| &callee.stages);
        explanation.verdict.origin = self.cause(explanation.verdict.cause.as_deref(), decisions);
    }

    /// Where what refused it was written: a rule's line if one decided, else that of the document the cause names first.
    fn cause(&self, cause: Option<&str>, decisions: &[Stage]) -> Option<Origin> {
        let cause = cause?;
        let steps = decisions.last()?.steps.iter();
        let decided = steps.clone().find(|step| step.outcome == Outcome::Decided && step.origin.file.is_some());
        if let Some(step) = decided {
            return Some(step.origin.clone());
        }
        let name = named(cause)?;
        let policy = self.meaning.authorization.values().find(|policy| policy.name.to_string() == name)?;
        let same = steps.filter(|step| named(&step.subject) == Some(name)).all(|step| step.origin.file.is_some());
        same.then(|| policy.origin.clone())
    }

    fn stage(&self, stage: &mut Stage, facts: Option<&WorkloadFacts>) {
        for step in &mut stage.steps {
            match self.find(&stage.name, step, facts) {
                Some(found) if found.in_force => step.origin = found.origin,
                Some(Found { origin: Origin { file, line }, .. }) => {
                    let file = file.unwrap_or_default();
                    step.because = format!("{}; the one in force differs from {file}:{line}", step.because);
                }
                None if ["authorization", "token"].contains(&&*stage.name) && named(&step.subject).is_some() => {
                    step.because = format!("{}; it is in none of these files", step.because);
                }
                None => {}
            }
        }
    }

    fn find(&self, stage: &str, step: &Step, facts: Option<&WorkloadFacts>) -> Option<Found> {
        let name = named(&step.subject);
        match stage {
            "authorization" if step.subject == "Mesh.authorization.default" => {
                let (ours, theirs) = (json(&self.meaning.mesh), &self.workload()?["mesh"]);
                let in_force = same(&ours["authorization"], &theirs["authorization"]);
                Some(Found { origin: self.meaning.mesh.origin.clone(), in_force })
            }
            "authorization" => self.authorization(name?, number(&step.subject)),
            "token" => self.token(name?, step.subject.split(" issuer ").nth(1)?),
            "route" | "destination" | "traffic" => self.destination(name?, number(&step.subject)),
            "mtls" => facts.and_then(|facts| self.mode(facts)),
            "tenant" => self.tenant(step.subject.strip_prefix("Tenant ")?),
            _ => None,
        }
    }

    fn authorization(&self, name: &str, rule: Option<usize>) -> Option<Found> {
        let theirs = |list: &str| scoped(&self.workload()?[list], |policy| policy["name"] == name).next();
        if let Some(policy) = self.meaning.csrf.values().find(|policy| policy.name.to_string() == name)
            && let Some(theirs) = theirs("csrf")
        {
            return Some(Found { origin: policy.origin.clone(), in_force: same(&json(policy), theirs) });
        }
        let policy = self.meaning.authorization.values().find(|policy| policy.name.to_string() == name)?;
        let in_force = theirs("authorization").is_some_and(|theirs| same(&json(policy), theirs));
        let rule = rule.and_then(|rule| policy.rules.get(rule)).filter(|_| in_force);
        Some(Found { origin: rule.map_or(&policy.origin, |rule| &rule.origin).clone(), in_force })
    }

    fn token(&self, name: &str, issuer: &str) -> Option<Found> {
        let policy = self.meaning.tokens.values().find(|policy| policy.name.to_string() == name)?;
        let is_ours = |rule: &Value| rule["policy"] == name && rule["rule"]["issuer"] == issuer;
        let theirs = scoped(&self.workload()?["tokens"], is_ours).next();
        let ours = policy.rules.iter().find(|rule| json(rule)["issuer"] == issuer);
        let in_force = ours.zip(theirs).is_some_and(|(ours, theirs)| same(&json(ours), &theirs["rule"]));
        Some(Found { origin: ours.map_or(&policy.origin, |rule| &rule.origin).clone(), in_force })
    }

    /// A rule of a route, or the Service itself.
    fn destination(&self, name: &str, rule: Option<usize>) -> Option<Found> {
        let told = |list: &'static str| {
            let bodies = self.told.iter().filter(|told| told["type"] == "destination").map(|told| &told["body"]);
            bodies
                .flat_map(move |body| body[list].as_array().into_iter().flatten())
                .filter(|route| route["name"] == name)
        };
        let Some(rule) = rule else {
            let service = self.meaning.services.values().find(|service| service.name.to_string() == name)?;
            let theirs = self.told.iter().find(|told| told["type"] == "destination" && told["name"] == name)?;
            let in_force = same(&json(&service.ports), &theirs["body"]["ports"])
                && same(&json(&service.accounts), &theirs["body"]["accounts"]);
            return Some(Found { origin: service.origin.clone(), in_force });
        };
        let http = self.meaning.routes.values().chain(self.meaning.grpc_routes.values());
        // A GRPCRoute may have the name of an HTTPRoute.
        for route in http.filter(|route| route.name.to_string() == name) {
            if let (Some(written), true) = (route.rules.get(rule), told("routes").any(|told| same(&json(route), told)))
            {
                return Some(Found { origin: written.origin.clone(), in_force: true });
            }
        }
        let tcp = self.meaning.tcp_routes.values().find(|route| route.name.to_string() == name);
        if let Some(route) = tcp.filter(|route| told("tcpRoutes").any(|told| same(&json(route), told))) {
            return Some(Found { origin: route.origin.clone(), in_force: true });
        }
        let mut http = self.meaning.routes.values().chain(self.meaning.grpc_routes.values());
        let origin = http.find(|route| route.name.to_string() == name).map(|route| &route.origin);
        let origin = origin.or(tcp.map(|route| &route.origin))?.clone();
        Some(Found { origin, in_force: false })
    }

    fn tenant(&self, name: &str) -> Option<Found> {
        let tenant = self.meaning.tenants.values().find(|tenant| tenant.name.to_string() == name)?;
        let theirs = self.workload()?["tenants"].as_array()?.iter().find(|told| told["tenant"]["name"] == name)?;
        let mut ours = json(tenant);
        let quotas = std::mem::take(&mut ours["quotas"]);
        let mut told = theirs["tenant"].clone();
        told["quotas"] = Value::Null;
        // Only what is counted there is told there.
        let counted = theirs["quotas"].as_array().into_iter().flatten().map(|quota| &quota["policy"]);
        let known = |quota: &Value| quotas.as_array().is_some_and(|ours| ours.iter().any(|ours| same(ours, quota)));
        let in_force = same(&ours, &told) && counted.into_iter().all(known);
        Some(Found { origin: tenant.origin.clone(), in_force })
    }

    /// Who may speak in plain text there.
    fn mode(&self, facts: &WorkloadFacts) -> Option<Found> {
        let (ours, theirs) = (json(&equerry_policies::view::workload(self.meaning, facts)), self.workload()?);
        let in_force =
            ["peer", "peerPorts", "plainOnly", "plainOnlyPorts"].iter().all(|key| same(&ours[*key], &theirs[*key]));
        Some(Found { origin: mode_origin(self.meaning, facts), in_force })
    }

    /// Whom the documents say that a sidecar stands beside.
    fn facts(&self, service: &str, account: Option<AccountName>) -> Option<WorkloadFacts> {
        let name = ServiceName::parse(service).ok()?;
        let service = self.meaning.services.get(&name)?;
        let ports = service.ports.iter().map(|port| port.target_port).collect();
        Some(WorkloadFacts { account: account?, labels: service.selector.clone(), ports })
    }

    /// What the sidecar enforces.
    fn workload(&self) -> Option<&'m Value> {
        self.told.iter().find(|told| told["type"] == "workload").map(|told| &told["body"])
    }
}

/// The document that a subject or a cause names: the first `NAMESPACE/NAME` in it.
fn named(text: &str) -> Option<&str> {
    let words = text.split_whitespace().map(|word| word.trim_end_matches([',', ':']));
    let mut names =
        words.filter(|word| word.split_once('/').is_some_and(|(namespace, _)| Namespace::parse(namespace).is_ok()));
    names.next()
}

/// The number of the rule that a subject names.
fn number(subject: &str) -> Option<usize> {
    subject.split_once(" rules[")?.1.split_once(']')?.0.parse().ok()
}

/// What of a list with ports is asked for.
fn scoped(list: &Value, wanted: impl Fn(&Value) -> bool) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten().map(|scoped| &scoped["policy"]).filter(move |policy| wanted(policy))
}

fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// Whether two say the same, wherever they were written, as far as what is `told` is shown.
fn same(ours: &Value, told: &Value) -> bool {
    match (ours, told) {
        (_, Value::String(text)) if text == MASKED => true,
        (Value::Object(ours), Value::Object(told)) => {
            let counts = |(key, value): &(&String, &Value)| *key != "origin" && !value.is_null();
            let theirs = |key: &String| told.get(key).unwrap_or(&Value::Null);
            let only_theirs = told.iter().filter(counts).any(|(key, _)| !ours.contains_key(key));
            !only_theirs && ours.iter().filter(|(key, _)| *key != "origin").all(|(key, value)| same(value, theirs(key)))
        }
        (Value::Array(ours), Value::Array(told)) => {
            ours.len() == told.len() && ours.iter().zip(told).all(|(ours, told)| same(ours, told))
        }
        (Value::String(ours), Value::String(told)) => ours == told || same_text(ours, told),
        _ => ours == told,
    }
}

/// Texts in which something may be masked: JSON of its own, or an address with a password.
fn same_text(ours: &str, told: &str) -> bool {
    if let (Ok(ours @ Value::Object(_)), Ok(told)) = (serde_json::from_str(ours), serde_json::from_str::<Value>(told)) {
        return same(&ours, &told);
    }
    let Some((before, after)) = told.split_once(MASKED) else { return false };
    ours.len() >= before.len() + after.len() && ours.starts_with(before) && ours.ends_with(after)
}
