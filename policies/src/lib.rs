//! The language people write, and what it means.
//!
//! Text enters as [`document`]s, is read for its meaning by [`interpret`], becomes [`policy`] values, and leaves as
//! [`compile`]d matchers, the only form the data path sees. Everything here is a function of its arguments: no
//! sockets, no clock, no files, no randomness.

pub mod compile;
pub mod complaint;
pub mod document;
pub mod interpret;
pub mod names;
pub mod policy;
pub mod quick;
pub mod schema;
pub mod view;
