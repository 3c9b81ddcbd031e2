//! Limits that were reached, in words that let somebody find them: which, its value, how many there are, and the document.

use std::fmt;
use std::time::Duration;

use equerry_policies::names::ServiceName;

use crate::deadline::Timer;

/// A limit on time that was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expired {
    /// Which.
    pub timer: Timer,
    /// The time allowed.
    pub after: Duration,
    /// The document that set it, as [`Authors`](crate::deadline::Authors) names it; written down by
    /// [`Refusal::signed`](crate::Refusal::signed).
    pub document: Option<Box<str>>,
}

impl fmt::Display for Expired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.after, self.timer.as_str())?;
        self.document.as_ref().map_or(Ok(()), |document| write!(f, " of {document}"))
    }
}

/// Which limit of a `TrafficPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// `limits.pending`.
    Pending,
    /// `limits.pendingTimeout`: it waited so long for a connection.
    Waited(Duration),
    /// `limits.requests`.
    Requests,
}

/// A limit that is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverLimit {
    /// Which. Of `Waited`, value and count are those of the connections it waited for.
    pub limit: Limited,
    /// The backend.
    pub service: ServiceName,
    /// The limit's value.
    pub value: u32,
    /// How many there are now.
    pub present: u32,
    /// The TrafficPolicy, `namespace/name`.
    pub policy: Option<Box<str>>,
}

impl fmt::Display for OverLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, service, value, present, policy } = self;
        let (name, what) = match limit {
            Limited::Pending => ("pending", format!("{present} wait for a connection to {service}")),
            Limited::Requests => ("requests", format!("{present} requests to {service} are in flight")),
            Limited::Waited(after) => (
                "connections",
                format!(
                    "no connection to {service} became free in {after:?} (limits.pendingTimeout): {present} are open"
                ),
            ),
        };
        write!(f, "{what}, and limits.{name} is {value}")?;
        policy.as_ref().map_or(Ok(()), |policy| write!(f, ": {policy}"))
    }
}
