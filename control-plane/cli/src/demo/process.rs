//! One child process: its log, its end, and a leash so that it never outlives its parent.
//!
//! The leash is a pipe on the child's stdin. When the parent ends, however it ends, the pipe closes and the child exits:
//! see [`exit_with_stdin_if_asked`], which `equerry` calls before anything else.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};

/// Set for children: exit when stdin ends.
const LEASH: &str = "EQUERRY_EXIT_WITH_STDIN";

/// Exits this process when stdin ends, if the parent asked for it by setting `EQUERRY_EXIT_WITH_STDIN`.
pub fn exit_with_stdin_if_asked() {
    if std::env::var_os(LEASH).is_none() {
        return;
    }
    std::thread::spawn(|| {
        let mut nothing = [0; 64];
        let mut stdin = std::io::stdin().lock();
        while matches!(stdin.read(&mut nothing), Ok(read) if read > 0) {}
        std::process::exit(1);
    });
}

/// A running child; it is killed when this value is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// Apart from the child, which would let go of it when waited for: a child asked to end is to end in its own time.
    _leash: Option<ChildStdin>,
    log: PathBuf,
}

impl Process {
    /// Starts `program args` with its standard output and error appended to `log`.
    ///
    /// # Errors
    /// When the program cannot be started or the log not be written.
    pub fn start(program: &Path, name: &str, args: &[OsString], log: &Path) -> Result<Self> {
        let out = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        let err = out.try_clone().context("sharing a log file")?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(out).stderr(err);
        // A group of its own: Ctrl-C in the terminal reaches the demo only, which then stops its children in order.
        command.kill_on_drop(true).process_group(0);
        strangers_settings().for_each(|name| {
            command.env_remove(name);
        });
        let mut child =
            command.env(LEASH, "1").spawn().with_context(|| format!("starting {name} ({})", program.display()))?;
        let leash = child.stdin.take();
        Ok(Self { name: name.to_owned(), child, _leash: leash, log: log.to_owned() })
    }

    /// The operating system's number for it, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Sends a signal; a process that has ended already is left alone.
    pub fn signal(&self, signal: Signal) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(id) = id {
            // It may end just now by itself, which is what was asked for.
            let _ = kill_process(id, signal);
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it has not ended by then.
    pub async fn wait(&mut self, at_most: Duration) -> Result<ExitStatus> {
        tokio::time::timeout(at_most, self.child.wait())
            .await
            .map_err(|_| anyhow!("{} did not end within {at_most:?}", self.name))?
            .with_context(|| format!("waiting for {}", self.name))
    }

    /// Asks it to end (SIGTERM), and kills it when it has not after `grace`.
    pub async fn stop(&mut self, grace: Duration) {
        self.signal(Signal::TERM);
        if self.wait(grace).await.is_err() {
            self.kill().await;
        }
    }

    /// Kills it at once (SIGKILL) and waits until it is gone.
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait().await;
    }

    /// What it wrote last.
    pub fn log_tail(&self, lines: usize) -> String {
        let text =
            std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// What a program that ran to its end said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Said {
    /// The output of a program that succeeded.
    ///
    /// # Errors
    /// When it did not, with what it said.
    pub fn succeeded(self) -> Result<Self> {
        if self.code == Some(0) {
            return Ok(self);
        }
        Err(anyhow!("exit code {:?}: {}", self.code, self.everything().trim()))
    }

    /// Both outputs, for looking something up.
    pub fn everything(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

/// Runs `program args` to its end, at most for `at_most`, then kills it.
///
/// # Errors
/// When it cannot be started or does not end in time.
pub async fn run_to_end(
    program: &Path,
    args: &[OsString],
    settings: &[(&str, OsString)],
    at_most: Duration,
) -> Result<Said> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    strangers_settings().for_each(|name| {
        command.env_remove(name);
    });
    command.envs(settings.iter().map(|(name, value)| (*name, value))).env(LEASH, "1");
    let mut child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
    let leash = child.stdin.take();
    let output = tokio::time::timeout(at_most, child.wait_with_output())
        .await
        .map_err(|_| anyhow!("`{}` did not end within {at_most:?}", shown(args)))?
        .with_context(|| format!("running `{}`", shown(args)))?;
    drop(leash);
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) })
}

fn shown(args: &[OsString]) -> String {
    args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Settings for other Equerry processes that this one was started with; children get theirs as arguments.
fn strangers_settings() -> impl Iterator<Item = OsString> {
    std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_string_lossy().starts_with("EQUERRY_"))
}
