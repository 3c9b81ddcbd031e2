//! The `equerry` command. Everything is in the library, so that tests and the demo can start the same program.
use std::process::ExitCode;

fn main() -> ExitCode {
    equerry::run(std::env::args_os())
}
