//! Strangers' bytes: what fuzz targets begin with, and what is like it, on any compiler.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests read the files they are about, and fail by panic"
)]

#[path = "../../../fuzz/src/wire.rs"]
mod bodies;
#[path = "../../../fuzz/src/replay.rs"]
mod replay;

#[test]
fn messages_of_something_broken_are_borne() {
    replay::replay("wire_message", bodies::wire_message);
    replay::replay("wire_resource", bodies::wire_resource);
}
