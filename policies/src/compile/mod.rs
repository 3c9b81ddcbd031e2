//! Policy as the data path sees it: matchers parsed, sorted and indexed, so that a decision neither parses nor searches.
//!
//! A view goes in, a compiled value comes out, or every [`Complaint`] at once. The control plane compiles before it
//! stores, and the proxy compiles off its request path before it publishes: both run exactly this code.

mod access_log;
mod authorization;
mod csrf;
mod destination;
mod fault;
mod filter;
pub mod keys;
mod routes;
mod tenants;
mod text;
mod tokens;
mod workload;

pub use access_log::{AccessLog, LoggedClaim};
pub use authorization::{Authorization, Candidates, Policy, Predicate, Rule, RuleId, TokenPattern, Turn, Values};
pub use csrf::Csrf;
pub use destination::{Backend, CompiledDestination, HeaderMatch, RouteRule};
pub use fault::Fault;
pub use filter::{Allowed, Cors, Filter, HeaderEdits, Mirror, PathEdit, Redirect, Rewrite};
pub use routes::{PortRoutes, QueryMatch, RouteEntry};
pub use tenants::{ClaimTenants, HeaderTenants, Tenant, Tenants};
pub use text::{HeaderPattern, Pattern};
pub use tokens::{ClaimHeader, ClaimPath, FetchedKeys, KeySource, Place, RequiredClaim, RuleKeys, TokenRule, Tokens};
pub use workload::CompiledWorkload;

use crate::complaint::Complaint;
use crate::view::{DestinationView, WorkloadView};

/// Compiles what a workload enforces at its inbound.
///
/// # Errors
/// Every part that cannot be enforced exactly as written; nothing is left out silently.
pub fn workload(view: &WorkloadView) -> Result<CompiledWorkload, Vec<Complaint>> {
    workload::compile(view)
}

/// Compiles a Service as its callers use it.
///
/// # Errors
/// Every part that cannot be followed exactly as written.
pub fn destination(view: &DestinationView) -> Result<CompiledDestination, Vec<Complaint>> {
    destination::compile(view)
}

/// Whether something with the scope `ports` (`None`: all) holds on `port`.
pub(crate) fn in_scope(ports: Option<&[u16]>, port: u16) -> bool {
    ports.is_none_or(|ports| ports.contains(&port))
}
