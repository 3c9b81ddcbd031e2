//! Whether what a token let in may go on: a stream that began with it, a connection that changed its protocol.
//!
//! Policy may change while it lasts, so it is asked again whether its issuer, audience and claims are accepted. Only where
//! the rule said so (`endStreamsWithToken`) does it also end with the token itself: with its time, or with its key.

use std::time::{Duration, SystemTime};

use equerry_policies::compile::{CompiledWorkload, TokenRule};
use serde_json::Value;

use super::check::{check_claims, check_meant};
use super::{Caller, Verified, fault};
use crate::refusal::{Reason, Refusal};

impl Caller {
    /// Whether what the caller's token let in ends with the token.
    pub fn ends_with_token(&self) -> bool {
        self.token.as_ref().is_some_and(|token| token.ends_with.is_some())
    }

    /// When it ends by the token's time, if it does.
    pub fn ends_at(&self, workload: &CompiledWorkload, app_port: u16) -> Option<SystemTime> {
        let token = self.token.as_ref().filter(|token| token.ends_with.is_some())?;
        let seconds = token.claims.get("exp").and_then(Value::as_f64)?.max(0.0);
        let skew = accepting(workload, app_port, token).map(|rule| rule.clock_skew).max().unwrap_or_default();
        // A time too far away to be written down is never.
        SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)?.checked_add(skew)
    }

    /// Whether the token, as it was verified, would still be accepted under the policy and keys of `workload`.
    ///
    /// # Errors
    /// Why not.
    pub fn still_believed(&self, workload: &CompiledWorkload, app_port: u16, now: SystemTime) -> Result<(), Refusal> {
        let mut rules = workload.tokens.on(app_port);
        let Some(token) = &self.token else {
            return match rules.find(|rule| rule.required) {
                Some(rule) => {
                    Err(fault(Reason::TokenMissing, "a token is required now, and there is none", Some(rule)))
                }
                None => Ok(()),
            };
        };
        if rules.next().is_none() {
            return Ok(());
        }
        let gone = format!("issuer {:?} is not accepted here any more", token.issuer);
        let mut refused = fault(Reason::TokenInvalid, gone, None);
        for rule in accepting(workload, app_port, token) {
            match stands(token, rule, now) {
                Ok(()) => return Ok(()),
                Err(why) => refused = why,
            }
        }
        Err(refused)
    }
}

fn accepting<'w>(
    workload: &'w CompiledWorkload,
    app_port: u16,
    token: &'w Verified,
) -> impl Iterator<Item = &'w TokenRule> {
    workload.tokens.on(app_port).filter(|rule| *rule.issuer == *token.issuer)
}

fn stands(token: &Verified, rule: &TokenRule, now: SystemTime) -> Result<(), Refusal> {
    let Some(key) = &token.ends_with else { return check_meant(&token.claims, rule) };
    check_claims(&token.claims, rule, now)?;
    // Keys that nobody knows at the moment were not withdrawn.
    if rule.keys.now().is_some_and(|keys| !keys.contains(key)) {
        return Err(fault(Reason::TokenUnknownKey, "the key of the token was withdrawn", Some(rule)));
    }
    Ok(())
}
