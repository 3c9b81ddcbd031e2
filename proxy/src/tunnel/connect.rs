//! CONNECT (RFC 9110 section 9.3.6): an application asks its sidecar by name for a connection to a port that takes bytes, and is
//! answered 200 only when the other side has let it in.
//!
//! A port that speaks HTTP is called, not connected to: its rules would be passed by. Outside the mesh, where callers may name
//! anybody, any port is reached so.

use std::sync::Arc;

use equerry_traffic::Refusal;
use equerry_traffic::normalize::normalize_connect;
use http::Response;
use http::request::Parts;

use super::outbound::{self, Caller, Reached};
use crate::exchange::body::Answer;
use crate::exchange::facts::{self, Record};
use crate::exchange::reply::{self, Style};
use crate::exchange::{meant, serve};
use crate::live::Live;
use crate::observe::Direction;
use crate::outbound::{Outbound, Via};
use crate::upstream::Switched;

/// Answers a CONNECT; after 200 the connection goes on in [`super::opened_outbound`].
pub(crate) async fn connect(at: &Outbound, from: &Via, head: &mut Parts) -> Response<Answer> {
    let mut record = Record::open(facts::describe(Direction::Outbound, head, from.address), &at.shared.observe);
    let live = at.shared.live.load();
    record.note(|exchange| (exchange.epoch, exchange.source) = (live.epoch, Some(live.own.clone())));
    let style = Style::of(&head.method, &head.headers, head.version, serve::error_detail(&live), false);
    match reach(at, live, from, head, &mut record).await {
        Ok(Reached { tunnel, early, watch }) => {
            reply::connected(Switched::of_tunnel(tunnel, &early), None, watch, record)
        }
        Err(refusal) => reply::refuse(&refusal, &style, record),
    }
}

async fn reach(
    at: &Outbound,
    live: Arc<Live>,
    from: &Via,
    head: &Parts,
    record: &mut Record,
) -> Result<Reached, Refusal> {
    serve::version_served(head.version, &live)?;
    let normal = normalize_connect(head)?;
    record.note(|exchange| exchange.authority = normal.host_header().clone());
    record.asked_with(&live, &head.headers);
    let (live, named) = meant::resolve(at, live, &normal).await?;
    record.note(|exchange| exchange.epoch = live.epoch);
    let (leave, destination) = meant::may_leave(&named)?;
    let caller = Caller { from: from.address, near: None };
    outbound::lead(at, &live, (&leave, destination), caller, record).await
}
