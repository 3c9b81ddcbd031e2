//! Kills a process just before its nth write to disk: strace counts the calls of each kind, and SIGKILL comes where it says.
//!
//! The program under test is the one that ships; nothing in it knows of this.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Every call by which SQLite, and we ourselves, change what is on disk. Sockets and logs are written by others.
pub const WRITES: [&str; 6] = ["pwrite64", "fsync", "fdatasync", "ftruncate", "rename", "unlink"];

/// A tracer that waits for its moment.
#[derive(Debug)]
pub struct Killer {
    tracer: Child,
}

impl Killer {
    /// Attaches to a running process. One of its threads that enters its `nth` `call` from now on (the first is 1) ends it.
    ///
    /// # Errors
    /// When it cannot be attached to.
    pub async fn wait_for(process: u32, call: &str, nth: u32) -> Result<Self> {
        let mut tracer = Command::new("strace")
            .args(["-f", "-q", "-o", "/dev/null", "-p", &process.to_string()])
            .args(["-e", &format!("trace={call}"), "-e", &format!("inject={call}:signal=KILL:when={nth}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting strace")?;
        let said = tracer.stderr.take().context("strace has no standard error")?;
        attached(process).await.with_context(|| format!("attaching to process {process}"))?;
        let mut lines = BufReader::new(said).lines();
        // Read on, so that it never waits for a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { tracer })
    }

    /// Lets go of the process, if it lives.
    pub async fn lets_go(mut self) {
        if let Some(id) =
            self.tracer.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw)
        {
            // It detaches from what it traces, which goes on.
            let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
        let _ = tokio::time::timeout(Duration::from_secs(10), self.tracer.wait()).await;
    }
}

/// Waits until every thread of a process is traced.
async fn attached(process: u32) -> Result<()> {
    let tasks = format!("/proc/{process}/task");
    crate::eventually(Duration::from_secs(20), "strace to attach", async || {
        for task in std::fs::read_dir(&tasks).context("the process has ended")? {
            let Ok(status) = std::fs::read_to_string(task?.path().join("status")) else { continue };
            let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:")).map(str::trim);
            if tracer == Some("0") {
                bail!("a thread is not traced yet");
            }
        }
        Ok(Some(()))
    })
    .await
}
