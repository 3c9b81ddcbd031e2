//! What access logs say beyond what they always say, with names read; whatever it was told, a proxy shows no secrets.

use std::sync::Arc;

use http::HeaderName;

use super::tokens::{Place, Tokens};
use crate::complaint::Complaint;
use crate::policy::{self, Logged, Show, holds_secret};

/// What is logged beside the usual.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessLog {
    /// Headers of requests.
    pub request_headers: Vec<Logged<HeaderName>>,
    /// Headers of responses.
    pub response_headers: Vec<Logged<HeaderName>>,
    /// Query parameters, by their decoded names.
    pub query_parameters: Vec<Logged<Box<str>>>,
    /// Single cookies of requests.
    pub cookies: Vec<Logged<Box<str>>>,
    /// Claims of verified tokens.
    pub claims: Vec<LoggedClaim>,
}

/// A claim that is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedClaim {
    /// Its path.
    pub path: Vec<Box<str>>,
    /// What it is called in the log: its parts, with dots between.
    pub name: Box<str>,
    /// How.
    pub show: Show,
}

impl AccessLog {
    pub(super) fn compile(
        from: Option<&policy::AccessLog>,
        tokens: &Tokens,
        complaints: &mut Vec<Complaint>,
    ) -> Option<Arc<Self>> {
        let from = from?;
        let tokens_in =
            |wanted: &dyn Fn(&Place) -> bool| tokens.rules().iter().any(|rule| rule.places.iter().any(wanted));
        let mut headers = |list: &[Logged<String>]| {
            let read = |header: &Logged<String>| match HeaderName::from_bytes(header.name.as_bytes()) {
                Ok(name) => {
                    let secret = holds_secret(name.as_str())
                        || tokens_in(&|place| matches!(place, Place::Header(holds, _) if *holds == name));
                    Some(Logged { name, show: shown(header.show, secret) })
                }
                Err(_) => {
                    let found = format!("{:?}", header.name);
                    let complaint =
                        Complaint { found, expected: "the name of a header".into(), ..Complaint::default() };
                    complaints.push(complaint.in_document("Mesh default"));
                    None
                }
            };
            list.iter().filter_map(read).collect()
        };
        let (request_headers, response_headers) = (headers(&from.request_headers), headers(&from.response_headers));
        let parameter = |parameter: &Logged<String>| {
            let secret = holds_secret(&parameter.name)
                || tokens_in(&|place| matches!(place, Place::Query(holds) if **holds == *parameter.name));
            Logged { name: parameter.name.as_str().into(), show: shown(parameter.show, secret) }
        };
        let cookie = |cookie: &Logged<String>| {
            let secret = holds_secret(&cookie.name)
                || tokens_in(&|place| matches!(place, Place::Cookie(holds) if **holds == *cookie.name));
            Logged { name: cookie.name.as_str().into(), show: shown(cookie.show, secret) }
        };
        let claim = |claim: &Logged<Vec<String>>| {
            let secret = claim.name.iter().any(|part| holds_secret(part));
            let path = claim.name.iter().map(|part| part.as_str().into()).collect();
            LoggedClaim { path, name: claim.name.join(".").into(), show: shown(claim.show, secret) }
        };
        Some(Arc::new(Self {
            request_headers,
            response_headers,
            query_parameters: from.query_parameters.iter().map(parameter).collect(),
            cookies: from.cookies.iter().map(cookie).collect(),
            claims: from.claims.iter().map(claim).collect(),
        }))
    }
}

/// What is asked, unless that would show a secret.
fn shown(asked: Show, secret: bool) -> Show {
    if secret && asked == Show::Value { Show::Mask } else { asked }
}
