//! Reaching those we send to: endpoints to choose from, connections to them, and the pool that keeps connections.
//!
//! Nothing here knows what an exchange is. Whoever asks for a connection says where to, what to speak there and whose
//! identity is accepted; what comes back sends one request and is given back after its response was read.

mod body;
mod connect;
mod endpoints;
mod lease;
pub(crate) mod outside;
mod pool;
pub(crate) mod resolve;

#[cfg(test)]
pub(crate) use body::IMPATIENT;
pub(crate) use body::{BrokeOff, RequestBody, ResponseBody, Switched, Told, patience};
pub(crate) use connect::{ConnectFailure, Places, Protocol, Target, Tunnel, Whom};
pub(crate) use endpoints::{Chosen, census, choose, refusal};
pub(crate) use lease::{Lease, Message, SendFailure};
pub use outside::Outsiders;
pub(crate) use pool::Pool;

/// No connection to a sidecar is kept idle for longer, whatever the policy says: its inbound side waits a little longer,
/// so that it is always the caller who closes.
pub(crate) const LONGEST_IDLE: std::time::Duration = std::time::Duration::from_secs(90);

/// Runs the background work of hyper, which tests use as their peers, on the current thread's `LocalSet`.
#[cfg(test)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct OnThisThread;

#[cfg(test)]
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
