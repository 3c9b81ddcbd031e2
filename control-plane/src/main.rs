//! The control plane as a program of its own; `equerry control-plane` is the same.

fn main() -> std::process::ExitCode {
    equerry_control_plane::run(std::env::args_os())
}
