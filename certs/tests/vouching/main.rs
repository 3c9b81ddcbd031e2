//! Who is believed and who is not, with fixed clocks, certificates made wrong on purpose, and real handshakes in memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod authority;
mod brought;
mod handshake;
mod made;
mod malformed;
mod peers;
mod rotation;
