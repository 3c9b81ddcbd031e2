//! Requests that ask to change the protocol of their connection (RFC 9110 section 7.8): whether that is possible, and what they
//! were judged by, which is judged again when policy changes.
//!
//! Until the application has answered 101 with a protocol that was asked for, such a request is one like any other: routed,
//! tried, refused. Afterwards the connection is a tunnel (`tunnel::upgraded`).

use std::time::SystemTime;

use equerry_traffic::deadline::Kind;
use equerry_traffic::normalize::Normal;
use equerry_traffic::token::Caller;
use equerry_traffic::{Refusal, authorize};
use http::request::Parts;
use http::{HeaderMap, Method};

use super::door;
use crate::inbound::{Inbound, Via};
use crate::upstream::Protocol;

/// Lets an exchange go on whose application could change to another protocol, if that is asked for: HTTP/2 knows no such
/// thing.
///
/// # Errors
/// When it could not.
pub(super) fn possible(kind: Kind, spoken: Protocol, port: u16) -> Result<(), Refusal> {
    if kind == Kind::Upgrade && spoken != Protocol::Http1 {
        return Err(Refusal::bad_request(format!("port {port} speaks HTTP/2, which knows no upgrade")));
    }
    Ok(())
}

/// What a request that changed the protocol of its connection was judged by.
#[derive(Debug)]
pub(crate) struct Asked {
    method: Method,
    normal: Normal,
    /// As they were judged: claims told in them.
    headers: HeaderMap,
    caller: Caller,
}

impl Asked {
    /// Taken once it is known who asks.
    pub(super) fn of(head: &Parts, normal: &Normal, caller: &Caller) -> Self {
        let (method, headers) = (head.method.clone(), head.headers.clone());
        Self { method, normal: normal.clone(), headers, caller: caller.clone() }
    }

    /// When the token ends that let it in, where that counts.
    pub(crate) fn ends_at(&self, at: &Inbound, via: &Via) -> Option<SystemTime> {
        let live = at.shared.live.load();
        let workload = live.workload.as_ref()?;
        let door = door::door(at, workload, via, &self.normal).ok()?;
        self.caller.ends_at(workload, door.port)
    }

    /// Judges it again, as if it had come under the policy of now. A token that has ended since, or whose key was withdrawn, is
    /// a reason to refuse only where its rule says so: it was good when it was shown.
    ///
    /// # Errors
    /// When it would not be let in.
    pub(crate) fn judged_again(&self, at: &Inbound, via: &Via) -> Result<(), Refusal> {
        let live = at.shared.live.load();
        let workload = live.workload.as_ref().ok_or(Refusal::PolicyUnavailable)?;
        let door = door::door(at, workload, via, &self.normal)?;
        self.caller.still_believed(workload, door.port, SystemTime::now())?;
        let facts = authorize::Facts {
            method: &self.method,
            authority: self.normal.authority(),
            path: self.normal.path(),
            headers: &self.headers,
            connection: via.connection(door.port),
        };
        authorize::authorize(&self.caller, &facts, workload).map(drop)
    }
}
