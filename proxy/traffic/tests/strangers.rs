//! Strangers' bytes: what fuzz targets begin with, and what is like it, on any compiler.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests read the files they are about, and fail by panic"
)]

#[path = "../../../fuzz/src/traffic.rs"]
mod bodies;
#[path = "../../../fuzz/src/replay.rs"]
mod replay;

#[test]
fn heads_in_any_spelling_and_tokens_of_nobody_are_borne() {
    replay::replay("normal_form", bodies::normal_form);
    replay::replay("token", bodies::token);
}
