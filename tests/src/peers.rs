//! Third-party programs that tests speak to the mesh with. One that is not installed is said to be skipped, unless
//! `EQUERRY_REQUIRE_PEERS=1` makes that a failure.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use equerry::demo::process::Said;

/// Whether a program can be used; says how to get it when not.
///
/// # Errors
/// When it is not installed and `EQUERRY_REQUIRE_PEERS=1`.
pub fn installed(program: &str, install_with: &str) -> Result<bool> {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    usable(found, program, install_with)
}

/// Whether `python3` is there and can import a module; says how to get it when not.
///
/// # Errors
/// When it cannot and `EQUERRY_REQUIRE_PEERS=1`.
pub fn python_has(module: &str, install_with: &str) -> Result<bool> {
    let import = format!("import {module}");
    let found = std::process::Command::new("python3")
        .args(["-c", &import])
        .output()
        .is_ok_and(|output| output.status.success());
    usable(found, &format!("python3 with module {module}"), install_with)
}

fn usable(found: bool, program: &str, install_with: &str) -> Result<bool> {
    if !found {
        if std::env::var_os("EQUERRY_REQUIRE_PEERS").is_some_and(|value| value == "1") {
            bail!("{program} is required (EQUERRY_REQUIRE_PEERS=1) and not installed: {install_with}");
        }
        eprintln!("skipped: {program} is not installed; install with `{install_with}`");
    }
    Ok(found)
}

/// Runs it.
///
/// # Errors
/// When it cannot be started or does not end within 60 s.
pub async fn run(program: &str, args: &[&str]) -> Result<Said> {
    crate::run(Path::new(program), args, Duration::from_secs(60)).await
}
