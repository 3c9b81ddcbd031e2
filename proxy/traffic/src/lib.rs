//! Decisions about traffic, and nothing else: no sockets, no clock, no global randomness.
//!
//! A request meets them in this order: [`normalize`], then at the caller's side [`route`], [`deadline`], [`balance`] with
//! [`breaker`], [`retry`]; at the callee's side [`token`], [`authorize`], [`tenant`], [`quota`]. Each takes the proof that
//! the one before it made. Whatever they refuse is a [`refusal::Refusal`]; [`explain`] tells the same decisions in words.

pub mod authorize;
pub mod balance;
pub mod breaker;
pub mod deadline;
pub mod explain;
pub mod normalize;
pub mod quota;
pub mod refusal;
pub mod retry;
pub mod route;
pub mod tenant;
pub mod token;

#[cfg(test)]
mod measure;
#[cfg(test)]
mod sim;

pub use refusal::{Fault, Reason, Refusal};
