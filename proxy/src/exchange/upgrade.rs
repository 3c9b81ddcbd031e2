//! Requests that ask to change the protocol of their connection (RFC 9110 section 7.8): whether that is possible.
//!
//! Until the application has answered 101 with a protocol that was asked for, such a request is one like any other: routed,
//! tried, refused. Afterwards the connection is a tunnel (`tunnel::opened`), which is
//! judged again when policy changes (`standing`).

use equerry_traffic::Refusal;
use equerry_traffic::deadline::Kind;

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
