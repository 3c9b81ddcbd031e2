//! The sidecar as a program of its own.

fn main() -> std::process::ExitCode {
    equerry_proxy::run(std::env::args_os())
}
