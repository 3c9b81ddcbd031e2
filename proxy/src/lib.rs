//! The sidecar: everything that touches a socket.
//!
//! Decisions are made in `equerry_traffic`; this crate listens, speaks, keeps what must be kept and tells what
//! happened. [`run`] is the whole program; the README of this crate tells the life of a request with file names.

pub mod accept;
mod admin;
pub mod app;
mod codec;
pub mod config;
pub mod drain;
pub mod exchange;
pub mod inbound;
pub mod keys;
pub mod live;
mod log;
pub mod observe;
pub mod outbound;
mod probe;
mod reload;
#[cfg(any(test, feature = "fuzzing"))]
pub mod strangers;
mod tidy;
mod timers;
mod tunnel;
pub mod upstream;
mod wait;
mod web;

pub use app::run;
