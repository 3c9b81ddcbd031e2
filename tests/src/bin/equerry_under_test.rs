//! The `equerry` command under another name, so that plain `cargo test` builds the program its tests start.

use std::process::ExitCode;

fn main() -> ExitCode {
    equerry::run(std::env::args_os())
}
