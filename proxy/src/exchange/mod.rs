//! One HTTP exchange, from the head of a request to the last byte of its response.
//!
//! [`serve`] is the pipeline, read downwards; each stage makes the value that the next one needs. [`reply`] alone writes
//! statuses that the mesh invents, and [`facts`] keeps what the log and the metrics are told at the end.

pub(crate) mod attempt;
pub(crate) mod body;
pub(crate) mod connection;
pub(crate) mod facts;
pub(crate) mod reply;
pub(crate) mod serve;
pub(crate) mod tries;

#[cfg(test)]
mod door_tests;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tries_tests;

/// Now, on the clock that tests pause.
pub(crate) fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}
