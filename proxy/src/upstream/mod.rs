//! Reaching those we send to: endpoints to choose from, connections to them, and the pool that keeps connections.
//!
//! Nothing here knows what an exchange is. Whoever asks for a connection says where to, what to speak there and whose
//! identity is accepted; what comes back sends one request and is given back after its response was read.

mod body;
mod connect;
mod endpoints;
mod pool;

pub(crate) use body::{BrokeOff, RequestBody};
pub(crate) use connect::{ConnectFailure, Places, Protocol, Target, Whom};
pub(crate) use endpoints::{Chosen, choose};
pub(crate) use pool::{Lease, Pool, SendFailure};

use std::future::Future;

/// Largest header section taken from anybody, HTTP/2 (RFC 9113 section 10.5.1 counts 32 bytes for each field beside its
/// text) and HTTP/1.1: Envoy's 60 KiB, which large cookies and tokens are known to fit. hyper's default is 16 KiB.
pub(crate) const MAX_HEADER_BYTES: u32 = 60 * 1024;
/// Most header fields taken from anybody: Envoy's 100.
pub(crate) const MAX_HEADERS: usize = 100;

/// No connection to a sidecar is kept idle for longer, whatever the policy says: its inbound side waits a little longer,
/// so that it is always the caller who closes.
pub(crate) const LONGEST_IDLE: std::time::Duration = std::time::Duration::from_secs(90);

/// Runs hyper's background work on the current thread's `LocalSet`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OnThisThread;

impl<F> hyper::rt::Executor<F> for OnThisThread
where
    F: Future + 'static,
{
    fn execute(&self, work: F) {
        // Detached on purpose: such work ends with its connection.
        drop(tokio::task::spawn_local(async move {
            work.await;
        }));
    }
}
