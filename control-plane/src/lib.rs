//! What is true, told to each proxy.
//!
//! Documents are written to the [`store`], instances register with the [`registry`], tenants' [`quota`]s are shared out, and
//! [`serve`] tells each proxy what concerns it. [`control`] is the one place where these meet; only `app` sees all.

pub mod access;
pub mod app;
pub mod audit;
pub mod authority;
pub mod backup;
pub mod calls;
pub mod config;
pub mod control;
mod log;
pub mod metrics;
pub mod quota;
pub mod registry;
pub mod serve;
pub mod snapshot;
pub mod store;

pub use app::run;
