//! Requests that ask to change the protocol of their connection (RFC 9110 section 7.8): whether that is possible, and what they
//! were judged by, which is judged again when policy changes.
//!
//! Until the application has answered 101 with a protocol that was asked for, such a request is one like any other: routed,
//! tried, refused. Afterwards the connection is a tunnel (`tunnel::upgraded`).

use std::time::SystemTime;

use equerry_traffic::deadline::Kind;
use equerry_traffic::normalize::Normal;
use equerry_traffic::token::Shown;
use equerry_traffic::{Refusal, authorize, token};
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
    /// As they came.
    headers: HeaderMap,
    at: SystemTime,
}

impl Asked {
    /// Taken before a token's claims change the headers.
    pub(super) fn of(head: &Parts, normal: &Normal) -> Self {
        let (method, headers) = (head.method.clone(), head.headers.clone());
        Self { method, normal: normal.clone(), headers, at: SystemTime::now() }
    }

    /// Judges it again, as if it had come under the policy of now. A token that has ended since is no reason to refuse: it was
    /// good when it was shown.
    ///
    /// # Errors
    /// When it would not be let in.
    pub(crate) fn judged_again(&self, at: &Inbound, via: &Via) -> Result<(), Refusal> {
        let live = at.shared.live.load();
        let workload = live.workload.as_ref().ok_or(Refusal::PolicyUnavailable)?;
        let door = door::door(at, workload, via, &self.normal)?;
        let mut headers = self.headers.clone();
        let caller = token::verify(workload, door.port, Shown::headers(&mut headers), via.peer.as_ref(), self.at)?;
        let facts = authorize::Facts {
            method: &self.method,
            authority: self.normal.authority(),
            path: self.normal.path(),
            headers: &headers,
            connection: via.connection(door.port),
        };
        authorize::authorize(&caller, &facts, workload).map(drop)
    }
}
