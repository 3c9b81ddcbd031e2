//! Requests that a page of another site makes a browser send.

use serde::{Deserialize, Serialize};

use super::{Origin, OriginPattern, Target};
use crate::names::PolicyName;

/// The meaning of a `CsrfPolicy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CsrfPolicy {
    /// The document.
    pub name: PolicyName,
    /// Where it holds.
    pub target: Target,
    /// Other origins whose pages may change something here.
    pub allowed_origins: Vec<OriginPattern>,
    /// Where it was written.
    pub origin: Origin,
}
