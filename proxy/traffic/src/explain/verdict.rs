//! What becomes of a request, and the decisions that led there, in the form in which they are told.

use std::borrow::Cow;

use equerry_policies::policy::Origin;
use serde::{Deserialize, Serialize};

use super::Step;
use crate::filter::Answer;
use crate::refusal::{Reason, Refusal};

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// It reaches the application.
    pub allowed: bool,
    /// The mesh's own status when it is refused.
    pub status: Option<u16>,
    /// One of the mesh's reasons; `ok` when it is allowed.
    pub reason: Cow<'static, str>,
    /// What refused it, in the words of logs and response bodies.
    pub cause: Option<String>,
    /// The same in a sentence.
    pub detail: Option<String>,
    /// Where what refused it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// Decisions of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Which kind.
    pub name: Cow<'static, str>,
    /// What was looked at.
    pub steps: Vec<Step>,
}

impl Stage {
    /// Decisions of one kind.
    pub fn new(name: &'static str, steps: Vec<Step>) -> Self {
        Self { name: Cow::Borrowed(name), steps }
    }
}

impl Verdict {
    /// It passes.
    pub fn ok() -> Self {
        let reason = Cow::Borrowed(Reason::Ok.as_str());
        Self { allowed: true, status: None, reason, cause: None, detail: None, origin: None }
    }

    /// It leaves the mesh.
    pub fn outside() -> Self {
        Self { detail: Some("it leaves the mesh, where nothing is asked of it".to_owned()), ..Self::ok() }
    }

    /// The mesh gives the answer itself, as a filter says.
    pub fn answered(answer: &Answer) -> Self {
        let rule = &answer.rule;
        Self {
            status: Some(answer.status.as_u16()),
            cause: Some(format!("{} rules[{}]", rule.route, rule.number)),
            detail: Some(format!("answered by the caller's sidecar: {}", answer.kind)),
            origin: Some(rule.origin.clone()),
            ..Self::ok()
        }
    }

    /// It is refused; `stages` are the decisions that led there.
    pub fn refused(refusal: &Refusal, stages: &[Stage]) -> Self {
        let own = if let Refusal::Authz(denied) = refusal { Some(denied.origin.clone()) } else { None };
        // A token's fault names its document only; the step that decided knows the line.
        let decided = || {
            let mut steps = stages.last()?.steps.iter();
            steps.find(|step| step.outcome == super::Outcome::Decided).map(|step| step.origin.clone())
        };
        Self {
            allowed: false,
            status: Some(refusal.status().as_u16()),
            reason: Cow::Borrowed(refusal.reason().as_str()),
            cause: refusal.cause().map(str::to_owned),
            detail: Some(refusal.to_string()),
            origin: own.or_else(decided),
        }
    }
}

/// Everything that was decided about a request, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The request in its normal form.
    pub request: String,
    /// Who makes it.
    pub from: String,
    /// Which sidecar says so; none when it was asked of documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<Sidecar>,
    /// What becomes of it; of several callees, the worst.
    pub verdict: Verdict,
    /// What the caller's sidecar decides.
    pub caller: Vec<Stage>,
    /// What the sidecar of each possible callee decides.
    pub callees: Vec<Callee>,
}

/// A sidecar, and what it goes by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sidecar {
    /// Its identity.
    pub id: String,
    /// The epoch in force.
    pub epoch: u64,
}

/// What a possible callee decides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Callee {
    /// The backend Service.
    pub service: String,
    /// The application's port.
    pub port: u16,
    /// The account it is taken to run as; none for endpoints without a sidecar.
    pub account: Option<String>,
    /// Its share of the requests, in percent.
    pub percent: f64,
    /// What becomes of a request there.
    pub verdict: Verdict,
    /// Its decisions.
    pub stages: Vec<Stage>,
}
