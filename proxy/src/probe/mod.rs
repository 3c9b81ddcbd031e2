//! Asking applications whether they are well: the one beside this sidecar, whose verdict travels with the lease, and endpoints
//! without a sidecar, which their callers ask.
//!
//! All of it runs on the control thread, over connections of its own, and decides nothing: what answers mean is written in
//! `equerry_traffic::health`.

mod ask;
mod endpoints;
mod own;

pub(crate) use endpoints::Prober;
pub(crate) use own::ask_own;
