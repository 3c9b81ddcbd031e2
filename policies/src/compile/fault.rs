//! Faults as the data path sees them: header names and patterns parsed.

use super::destination::HeaderMatch;
use super::text::HeaderPattern;
use crate::complaint::Complaint;
use crate::policy::{FaultAbort, FaultDelay, FaultInjection, Origin};

/// Faults made on purpose for the callers of a Service.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The document, `namespace/name`.
    pub policy: Box<str>,
    /// Each must be there and match.
    pub when: Vec<HeaderMatch>,
    /// Some requests wait.
    pub delay: Option<FaultDelay>,
    /// Some requests are answered with an error.
    pub abort: Option<FaultAbort>,
    /// A request may ask for its own faults.
    pub by_headers: bool,
    /// Where it was written.
    pub origin: Origin,
}

pub(super) fn fault(from: &FaultInjection, complaints: &mut Vec<Complaint>) -> Fault {
    let mut when = Vec::new();
    for (index, header) in from.when.iter().enumerate() {
        let key = format!("spec.match.headers[{index}]");
        match HeaderMatch::new(header, &from.origin, &key) {
            Ok(header) => when.push(header),
            Err(complaint) => complaints.push(complaint.in_document(format_args!("FaultInjection {}", from.name))),
        }
    }
    Fault {
        policy: from.name.to_string().into(),
        when,
        delay: from.delay,
        abort: from.abort,
        by_headers: from.by_headers,
        origin: from.origin.clone(),
    }
}

impl HeaderMatch {
    /// Compiles a header's match; `key` names it in a complaint.
    pub(super) fn new(from: &crate::policy::HeaderMatch, origin: &Origin, key: &str) -> Result<Self, Complaint> {
        let name = http::HeaderName::from_bytes(from.name.as_bytes())
            .map_err(|_| Complaint::at(origin, key, format!("{:?}", from.name), "the name of a header"))?;
        Ok(Self { name, value: HeaderPattern::new(&from.value, origin, key)? })
    }
}
