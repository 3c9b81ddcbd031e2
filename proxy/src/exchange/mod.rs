//! One HTTP exchange, from the head of a request to the last byte of its response.
//!
//! [`serve`] is the pipeline, read downwards; each stage makes the value that the next one needs. [`reply`] alone writes
//! statuses that the mesh invents, and [`facts`] keeps what the log and the metrics are told at the end.

pub(crate) mod attempt;
mod between;
pub(crate) mod body;
pub(crate) mod connection;
mod cut_code;
pub(crate) mod door;
pub(crate) mod facts;
pub(crate) mod meant;
pub(crate) mod mirror;
pub(crate) mod overload;
pub(crate) mod reply;
pub(crate) mod rounds;
pub(crate) mod serve;
pub(crate) mod standing;
pub(crate) mod tries;
pub(crate) mod upgrade;
pub(crate) mod watch;

#[cfg(test)]
mod authorize_tests;
#[cfg(test)]
mod between_tests;
#[cfg(test)]
mod bulk_tests;
#[cfg(test)]
mod door_tests;
#[cfg(test)]
mod filters_tests;
#[cfg(test)]
mod given_up_tests;
#[cfg(test)]
pub(crate) mod harness;
#[cfg(test)]
mod health_tests;
#[cfg(test)]
mod hops_tests;
#[cfg(test)]
mod limits_tests;
#[cfg(test)]
mod load_tests;
#[cfg(test)]
mod nowhere_tests;
#[cfg(test)]
mod outside_tests;
#[cfg(test)]
mod plain_text_tests;
#[cfg(test)]
mod slow_tests;
#[cfg(test)]
mod standing_tests;
#[cfg(test)]
mod streams_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod token_tests;
#[cfg(test)]
mod tries_tests;
#[cfg(test)]
mod tunnel_tests;
#[cfg(test)]
mod undeclared_tests;
#[cfg(test)]
mod upgrade_tests;
#[cfg(test)]
mod verdict_tests;
#[cfg(test)]
mod words_tests;

/// Now, on the clock that tests pause.
pub(crate) fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}
