//! Which pages may change something at a workload, by application port.

use super::in_scope;
use crate::names::PolicyName;
use crate::policy::{CsrfPolicy, Origin, OriginPattern};
use crate::view::Scoped;

/// Protection against requests that a page of another site makes a browser send.
#[derive(Debug, Clone)]
pub struct Csrf {
    /// The document.
    pub name: PolicyName,
    /// Where it was written.
    pub origin: Origin,
    /// Other origins whose pages may change something here.
    pub allowed: Vec<OriginPattern>,
    ports: Option<Vec<u16>>,
}

impl Csrf {
    /// Whether it holds on the application port `port`.
    pub fn holds_on(&self, port: u16) -> bool {
        in_scope(self.ports.as_deref(), port)
    }

    pub(super) fn compile(from: &Scoped<CsrfPolicy>) -> Self {
        let Scoped { ports, policy } = from;
        Self {
            name: policy.name.clone(),
            origin: policy.origin.clone(),
            allowed: policy.allowed_origins.clone(),
            ports: ports.clone(),
        }
    }
}
