//! A server under test, or the application: one process on one core, ended when this value is dropped.

use std::ffi::OsString;
use std::fs::File;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::machine;

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(20);
/// How long it may take to end when asked.
const END: Duration = Duration::from_secs(2);

/// One process and its children.
#[derive(Debug)]
pub(crate) struct Server {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts `program args` on `core`, its output going to `DIR/NAME.log`. Linux ends it when this program dies.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(
        name: &str,
        core: usize,
        program: &Path,
        args: &[impl Into<OsString> + Clone],
        dir: &Path,
    ) -> Result<Self> {
        Self::start_with(name, core, program, args, &[], dir)
    }

    /// The same with further environment variables.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start_with(
        name: &str,
        core: usize,
        program: &Path,
        args: &[impl Into<OsString> + Clone],
        variables: &[(String, String)],
        dir: &Path,
    ) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let out = File::create(&log).with_context(|| format!("opening {}", log.display()))?;
        let mut command = on_core(core, program, "TERM");
        command.args(args.iter().cloned().map(Into::into)).envs(variables.iter().cloned());
        command.stdin(Stdio::null()).stderr(out.try_clone()?).stdout(out);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Waits until it listens on a port of this machine.
    ///
    /// # Errors
    /// When it does not, or has ended; with the end of its log.
    pub(crate) fn listens_on(mut self, port: u16) -> Result<Self> {
        let deadline = Instant::now() + START;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} has ended ({status}):\n{}", self.name, self.log_tail());
            }
            if Instant::now() > deadline {
                bail!("{} does not listen on {port} after {START:?}:\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(self)
    }

    /// It and its children.
    pub(crate) fn family(&self) -> Vec<u32> {
        machine::family(self.child.id())
    }

    /// What it wrote last.
    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(id) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(id, Signal::TERM);
        }
        let deadline = Instant::now() + END;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that runs `program` on one core, and gets `last` when this one dies (util-linux does both).
pub(crate) fn on_core(core: usize, program: &Path, last: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string(), "setpriv", "--pdeathsig", last, "--"]).arg(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EQUERRY_")) {
        command.env_remove(name);
    }
    command
}
