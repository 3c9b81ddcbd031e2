//! Whether this proxy is ready, and if not, why: one place that every part reports to and `/healthz/ready` reads.

use std::sync::{Arc, Mutex, PoisonError};

use super::{IdentityHandle, LiveHandle};
use crate::drain::Drain;

/// What the parts reported. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Status {
    parts: Arc<Mutex<Parts>>,
}

#[derive(Debug, Default)]
struct Parts {
    started: Option<Started>,
    /// Why there is no identity yet, as far as it is known.
    identity: Option<String>,
    /// Why the control plane cannot be reached.
    stream: Option<String>,
    /// Why this instance is not registered.
    lease: Option<String>,
    connected: bool,
}

#[derive(Debug)]
struct Started {
    live: LiveHandle,
    identity: IdentityHandle,
    drain: Drain,
}

impl Status {
    /// The listeners are bound and the workers run.
    pub fn started(&self, live: LiveHandle, identity: IdentityHandle, drain: Drain) {
        self.set(|parts| parts.started = Some(Started { live, identity, drain }));
    }

    /// Why there is no valid identity; `None`: there is one.
    pub fn identity(&self, problem: Option<String>) {
        self.set(|parts| parts.identity = problem);
    }

    /// The configuration stream stands (`None`), or why it does not.
    pub fn stream(&self, problem: Option<String>) {
        self.set(|parts| {
            parts.connected = problem.is_none();
            parts.stream = problem;
        });
    }

    /// The control plane refuses to register this instance, and why; `None`: it does not refuse.
    pub fn lease(&self, refusal: Option<String>) {
        self.set(|parts| parts.lease = refusal);
    }

    /// Whether the configuration stream stands now.
    pub fn connected(&self) -> bool {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).connected
    }

    /// What is missing until this proxy is ready, in words that say what to look at; empty: ready.
    pub fn missing(&self) -> Vec<String> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(started) = &parts.started else {
            return vec![parts.identity.clone().unwrap_or_else(|| "starting: no identity yet".to_owned())];
        };
        let mut missing = Vec::new();
        if started.drain.begun() {
            missing.push("draining: the proxy was told to stop".to_owned());
        }
        if started.identity.current().is_none() {
            missing.push(parts.identity.clone().unwrap_or_else(|| "no valid certificate".to_owned()));
        }
        if started.live.load().workload.is_none() {
            let why = parts.stream.as_deref().map_or_else(String::new, |why| format!(" ({why})"));
            missing.push(format!("no configuration yet, and no usable one from before{why}"));
        }
        if let Some(refusal) = &parts.lease {
            missing.push(format!("this instance is not registered: {refusal}"));
        }
        missing
    }

    /// Whether this workload can be called: everything but its application.
    pub fn is_ready(&self) -> bool {
        self.missing().is_empty()
    }

    /// Whether there is an identity and a configuration, so that registering makes sense whatever the registry said before.
    pub(crate) fn can_serve(&self) -> Result<(), String> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        match &parts.started {
            None => Err("the sidecar is starting".to_owned()),
            Some(started) if started.drain.begun() => Err("the sidecar is draining".to_owned()),
            Some(started) if started.live.load().workload.is_none() => {
                Err("the sidecar has no configuration yet".to_owned())
            }
            Some(_) => Ok(()),
        }
    }

    fn set(&self, change: impl FnOnce(&mut Parts)) {
        change(&mut self.parts.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
