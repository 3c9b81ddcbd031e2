//! A local port that leads to a Service port of which nobody wrote down what is spoken there: requests are served as such, other
//! bytes are carried, and who says nothing is waited for until it is plain that the server is to speak first.
//!
//! First bytes decide whenever there are some; what was seen of the port before decides only how long silence lasts. A server is
//! taken to speak first when it did, not because a caller was idle: an idle caller must not turn requests into bytes.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use equerry_policies::names::Authority;
use equerry_policies::policy::{Mesh, ServicePort};
use equerry_traffic::route::{self, Known};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::outbound::{bytes, named};
use super::{BUFFER, Cut};
use crate::accept::detect::{self, Guess, Spoken};
use crate::live::{Destination, Habit};
use crate::outbound::{Outbound, Via};
use crate::upstream::Tunnel;

/// A port that declares nothing, as it was when its connection came.
pub(super) struct Undeclared {
    meant: Authority,
    port: ServicePort,
    destination: Arc<Destination>,
    timeout: Duration,
}

/// Leads a connection of the application to the Service port that it `named`: as it is, or as requests.
pub(crate) async fn outbound(at: &Rc<Outbound>, name: &str, near: TcpStream, from: SocketAddr) {
    let Some(port) = undeclared(at, name).await else {
        return bytes(at, name, Spoken::unheard(near), from, None).await;
    };
    if port.patience().is_zero() {
        return bytes(at, name, Spoken::unheard(near), from, Some(&port)).await;
    }
    match detect::guess(near, port.patience()).await {
        Ok((Guess::Requests(speaks), near)) => {
            port.note(Habit::Requests);
            let via = Via { address: from, meant: Some(Rc::new(port.meant)) };
            at.serve_requests(near, speaks, via).await;
        }
        Ok((Guess::Silence, near)) if port.silence_is_idle() => {
            tracing::debug!(peer = %from, to = name, "an idle connection to a port of requests is let go");
            drop(near);
        }
        Ok((Guess::Silence, near)) => bytes(at, name, near, from, Some(&port)).await,
        Ok((Guess::Bytes, near)) => bytes(at, name, near, from, None).await,
        Err(error) => tracing::debug!(%error, peer = %from, to = name, "a connection ended before it said anything"),
    }
}

/// The port meant, if nobody wrote down what it speaks. What is wrong with the name is told by whoever leads the connection on.
async fn undeclared(at: &Outbound, name: &str) -> Option<Undeclared> {
    let (live, meant) = named(at, name).await.ok()?;
    let destination = Arc::clone(live.destination(&meant.service)?);
    let leave = route::may_leave(&meant, Known::Service(&destination.compiled)).ok()?;
    let port = destination.compiled.port(leave.port()).filter(|port| port.undeclared)?.clone();
    let written = live.workload.as_ref().and_then(|workload| workload.mesh.protocol_detection_timeout);
    let timeout = written.unwrap_or(Mesh::PROTOCOL_DETECTION_TIMEOUT);
    Some(Undeclared { meant, port, destination, timeout })
}

impl Undeclared {
    /// How long the first bytes may take; zero: nobody looks at them.
    fn patience(&self) -> Duration {
        let ruled = self.destination.compiled.has_rules_about_http(self.port.port);
        match self.habit() {
            Some(Habit::Requests) => detect::PATIENCE,
            // Where nothing but requests may pass, no wait is no use.
            _ if ruled && self.timeout.is_zero() => detect::PATIENCE,
            _ if ruled => self.timeout,
            Some(Habit::ServerFirst) => Duration::ZERO,
            None => self.timeout,
        }
    }

    /// Whether who says nothing is a caller of requests that has none now.
    fn silence_is_idle(&self) -> bool {
        self.habit() == Some(Habit::Requests)
    }

    fn habit(&self) -> Option<Habit> {
        self.destination.habits.of(&self.port)
    }

    fn note(&self, habit: Habit) {
        self.destination.habits.note(&self.port, habit, &self.destination.compiled.ports);
    }

    /// Waits until one side says something, and remembers it when that is the server; its first bytes come after `early`.
    pub(super) async fn watch_who_begins(
        &self,
        near: &Spoken<TcpStream>,
        tunnel: &mut Tunnel,
        early: &mut Vec<u8>,
    ) -> Result<(), Cut> {
        if early.is_empty() {
            early.reserve(BUFFER);
            let first: io::Result<usize> = tokio::select! {
                biased;
                read = tunnel.wire.read_buf(early) => read,
                ready = near.inner().readable() => ready.map(|()| 0),
            };
            first.map_err(|error| Cut::by_the_other(&error))?;
        }
        if !early.is_empty() {
            self.note(Habit::ServerFirst);
        }
        Ok(())
    }
}
