//! Whose token a request carries: verified here against the workload's key sets, or refused with the reason.
//!
//! Only the algorithms of the key are ever tried; what a token says about keys (`jwk`, `jku`, `x5u`) is never read; times
//! are judged against the `now` of the caller. Headers that carry claims to the application are stripped from every
//! request before anything else, and set from what was verified.

mod believed;
mod check;
mod json;
mod place;
mod standing;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use equerry_policies::compile::keys::Key;
use equerry_policies::compile::{CompiledWorkload, Place, TokenRule};
use equerry_policies::names::SpiffeId;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};

pub use believed::Believed;
use believed::Known;
use check::{Times, believe};

use crate::normalize::Normal;
use crate::refusal::{Reason, Refusal, TokenFault};

/// Longest token read, in bytes.
pub const MAX_TOKEN: usize = 16 * 1024;

/// The parts of a request in which a token may be, and out of which it is taken.
pub struct Shown<'a> {
    /// Its headers.
    pub headers: &'a mut HeaderMap,
    /// Its normal form, whose query may carry one; `None`: there is no query.
    pub normal: Option<&'a mut Normal>,
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of where tokens are.
        f.debug_struct("Shown").finish_non_exhaustive()
    }
}

impl<'a> Shown<'a> {
    /// Headers alone.
    pub fn headers(headers: &'a mut HeaderMap) -> Self {
        Self { headers, normal: None }
    }
}

/// Who speaks, as far as it was proved: by the connection, and by a token.
#[derive(Debug, Clone)]
pub struct Caller {
    peer: Option<SpiffeId>,
    token: Option<Arc<Verified>>,
}

/// What a verified token says. Shown without it: claims may be secrets.
pub struct Verified {
    issuer: String,
    /// `issuer/subject`, when there is a subject.
    principal: Option<String>,
    claims: Map<String, Value>,
    times: Times,
    policy: Box<str>,
    /// What the application is told of it.
    told: Vec<(HeaderName, HeaderValue)>,
    /// By which key it was believed, where what it lets in ends with it.
    ends_with: Option<Key>,
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified").field("issuer", &self.issuer).field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl Caller {
    /// The identity of the direct peer's certificate; `None`: plain text.
    pub fn peer(&self) -> Option<&SpiffeId> {
        self.peer.as_ref()
    }

    /// The issuer of the verified token.
    pub fn issuer(&self) -> Option<&str> {
        self.token.as_deref().map(|token| token.issuer.as_str())
    }

    /// `issuer/subject` of the verified token.
    pub fn request_principal(&self) -> Option<&str> {
        self.token.as_deref()?.principal.as_deref()
    }

    /// The document whose rule verified the token, `namespace/name`.
    pub fn token_policy(&self) -> Option<&str> {
        self.token.as_deref().map(|token| &*token.policy)
    }

    /// Every claim of the verified token.
    pub fn claims(&self) -> Option<&Map<String, Value>> {
        self.token.as_deref().map(|token| &token.claims)
    }

    /// A claim of the verified token, by its path.
    pub fn claim(&self, path: &[Box<str>]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.claims()?.get(&**first)?, |value, part| value.get(&**part))
    }
}

#[cfg(test)]
impl Caller {
    /// A caller as a test needs one: with this peer, and these claims as if verified.
    pub(crate) fn assumed(peer: Option<&str>, claims: Option<Value>) -> Self {
        let token = claims.map(|claims| {
            let Value::Object(claims) = claims else { panic!("claims are an object") };
            let principal =
                Some(format!("https://issuer/{}", claims.get("sub").and_then(Value::as_str).unwrap_or("nobody")));
            let (issuer, policy) = ("https://issuer".to_owned(), "shop/tokens".into());
            let times = Times::default();
            Arc::new(Verified { issuer, principal, claims, times, policy, told: vec![], ends_with: None })
        });
        Self { peer: peer.map(|peer| SpiffeId::parse(&format!("spiffe://{peer}")).unwrap()), token }
    }
}

/// The texts of a claim: itself when it is a text, a number or a truth, each such member when it is a list.
pub(crate) fn claim_texts(claim: &Value) -> impl Iterator<Item = Cow<'_, str>> {
    let members = if let Value::Array(members) = claim { members.as_slice() } else { std::slice::from_ref(claim) };
    members.iter().filter_map(|member| match member {
        Value::String(text) => Some(Cow::Borrowed(text.as_str())),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        Value::Bool(truth) => Some(Cow::Borrowed(if *truth { "true" } else { "false" })),
        _ => None,
    })
}

/// Verifies the token of a request to the application port `app_port`. Claim headers that came with the request are
/// stripped in any case; those of a verified token are set, and the token is taken out unless its rule forwards it.
///
/// # Errors
/// [`Refusal::Token`] with one of the `token_*` reasons, when a token is required and missing, or cannot be believed;
/// [`Refusal::KeysUnavailable`] when nobody can say, because the issuer's keys are not known.
pub fn verify(
    workload: &CompiledWorkload,
    app_port: u16,
    shown: Shown<'_>,
    peer: Option<&SpiffeId>,
    now: SystemTime,
) -> Result<Caller, Refusal> {
    let believe = |place: &Place, token: &str| believe(token, place, workload.tokens.on(app_port), now);
    judge(workload, app_port, shown, peer, believe)
}

/// The same as [`verify`]; a token that was `believed` lately under this very configuration is not taken apart again. `now` is
/// asked only where there is a token to judge.
///
/// # Errors
/// As [`verify`].
pub fn verify_remembering(
    believed: &mut Believed,
    workload: &Arc<CompiledWorkload>,
    app_port: u16,
    shown: Shown<'_>,
    peer: Option<&SpiffeId>,
    now: impl FnOnce() -> SystemTime,
) -> Result<Caller, Refusal> {
    let rules = || workload.tokens.on(app_port);
    let believe = |place: &Place, token: &str| {
        let now = now();
        if let Some(known) = believed.recall(workload, app_port, token) {
            // Everything but its times holds of a token as long as the configuration does, and with it the rule.
            let gone = || fault(Reason::TokenInvalid, "the rule that believed the token is gone", None);
            let rule = rules().nth(known.rule).ok_or_else(gone)?;
            // Shown elsewhere, another rule may have to judge it.
            if rule.places.contains(place) {
                known.verified.times.check(rule, now)?;
                return Ok((known.rule, Arc::clone(&known.verified)));
            }
        }
        let (rule, verified) = believe(token, place, rules(), now)?;
        believed.remember(app_port, token, Known { rule, verified: Arc::clone(&verified) });
        Ok((rule, verified))
    };
    judge(workload, app_port, shown, peer, believe)
}

fn judge(
    workload: &CompiledWorkload,
    app_port: u16,
    shown: Shown<'_>,
    peer: Option<&SpiffeId>,
    believe: impl FnOnce(&Place, &str) -> Result<(usize, Arc<Verified>), Refusal>,
) -> Result<Caller, Refusal> {
    let Shown { headers, normal } = shown;
    for header in workload.tokens.claim_headers() {
        headers.remove(header);
    }
    let mut caller = Caller { peer: peer.cloned(), token: None };
    let mut rules = workload.tokens.on(app_port).peekable();
    if rules.peek().is_none() {
        return Ok(caller);
    }
    let query = normal.as_ref().and_then(|normal| normal.target().query());
    let Some((place, token)) = place::shown(workload.tokens.on(app_port), headers, query)? else {
        return match rules.find(|rule| rule.required) {
            Some(rule) => Err(fault(Reason::TokenMissing, "a token is required, and there is none", Some(rule))),
            None => Ok(caller),
        };
    };
    let (number, verified) = believe(place, token)?;
    if !rules.nth(number).is_some_and(|rule| rule.forward) {
        place::take_out(place, headers, normal);
    }
    for (header, value) in &verified.told {
        headers.insert(header.clone(), value.clone());
    }
    caller.token = Some(verified);
    Ok(caller)
}

fn fault(reason: Reason, detail: impl Into<String>, rule: Option<&TokenRule>) -> Refusal {
    let policy = rule.map(|rule| rule.policy.clone());
    Refusal::Token(Box::new(TokenFault { reason, detail: detail.into(), policy, ask: None }))
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
