//! Measures the sidecar beside nginx, HAProxy, Envoy and a bare TCP relay, on this machine, in one run.
//!
//! `cargo run --release -p equerry-tests --bin bench -- --help`. The same program is also the relay, the open-loop load, and
//! the `equerry` command that the control plane of a run needs: it starts itself under those names.

#[path = "../bench/mod.rs"]
mod bench;

use std::process::ExitCode;

fn main() -> ExitCode {
    let first = std::env::args().nth(1).unwrap_or_default();
    match first.as_str() {
        word if bench::tools::knows(word) => bench::tools::run(),
        word if word.is_empty() || word.starts_with('-') => bench::run(),
        _ => equerry::run(std::env::args_os()),
    }
}
