//! Third-party programs that tests speak to the mesh with. One that is not installed is said to be skipped, unless
//! `EQUERRY_REQUIRE_PEERS=1` makes that a failure.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use equerry::demo::process::Said;
use tokio::process::Command;

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

/// The directory of Node's packages for tests, if `node` and a package are there; says how to get them when not.
///
/// # Errors
/// When they are not and `EQUERRY_REQUIRE_PEERS=1`.
pub fn node_has(package: &str) -> Result<Option<PathBuf>> {
    const INSTALL: &str = "apt-get install nodejs npm; mkdir -p target/ci-npm && cp .ci/npm/* target/ci-npm && npm --prefix target/ci-npm ci";
    if !installed("node", INSTALL)? {
        return Ok(None);
    }
    let given = std::env::var_os("EQUERRY_NPM_PEERS").map(PathBuf::from);
    let modules = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ci-npm"));
    let found = modules.join("node_modules").join(package).is_dir();
    Ok(usable(found, &format!("the package {package} of npm"), INSTALL)?.then_some(modules))
}

/// `node` running a module that finds its packages in this directory.
pub fn node(modules: &Path, script: &str, args: &[&str]) -> Command {
    let mut command = Command::new("node");
    // A module given so looks for its packages where it runs.
    command.current_dir(modules).args(["--input-type=module", "--eval", script, "--"]).args(args);
    command
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
