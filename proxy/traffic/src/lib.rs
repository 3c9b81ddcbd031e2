//! Decisions about traffic, and nothing else: no sockets, no clock, no global randomness.
//!
//! A request meets them in this order: [`normalize`], then at the caller's side [`route`], [`deadline`], [`balance`] with
//! [`breaker`], [`retry`]; at the callee's side [`token`], [`authorize`], [`tenant`], [`quota`]. Each takes the proof that
//! the one before it made. Whatever they refuse is a [`refusal::Refusal`]; [`explain`] tells the same decisions in words.

pub mod authorize;
pub mod balance;
pub mod breaker;
mod cors;
mod csrf;
pub mod deadline;
pub mod explain;
pub mod fault;
pub mod filter;
pub mod health;
pub mod normalize;
pub mod outlier;
pub mod outside;
pub mod quota;
pub mod refusal;
pub mod retry;
pub mod route;
pub mod tenant;
pub mod texts;
pub mod token;
pub mod trace_state;

#[cfg(test)]
mod gamma_tests;
#[cfg(test)]
mod measure;
#[cfg(test)]
mod sim;

pub use refusal::{Fault, Reason, Refusal};
