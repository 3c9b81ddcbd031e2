//! nginx as somebody's application: files up and down, and answers without a body.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// How to install it.
pub const INSTALL: &str = "apt-get install nginx-light";

/// A running nginx: one process, so that a signal stops all of it. Killed when dropped.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    dir: TempDir,
}

impl Nginx {
    /// Serves its directory on a port of loopback and calls itself `name` in a header; under `/up/` files may be put, under
    /// `/small/` those of a kilobyte at most.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, port: u16) -> Result<Self> {
        Self::with(name, &format!("listen 127.0.0.1:{port}"))
    }

    /// The same over HTTP/2 only, where it says GOAWAY after every so many requests.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restless(name: &str, port: u16, requests: u32) -> Result<Self> {
        Self::with(name, &format!("listen 127.0.0.1:{port} http2; keepalive_requests {requests}"))
    }

    fn with(name: &str, listen: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("equerry-nginx-").tempdir()?;
        let root = dir.path().join("files");
        for sub in ["up", "small"] {
            std::fs::create_dir_all(root.join(sub))?;
        }
        let config = format!(
            "daemon off; master_process off; pid nginx.pid; error_log stderr;\nevents {{ worker_connections 512; }}\n\
             http {{\n  access_log off; client_body_temp_path temp; proxy_temp_path t1; fastcgi_temp_path t2; uwsgi_temp_path t3;\n  \
             scgi_temp_path t4; client_max_body_size 0;\n  server {{\n    {listen}; root {root}; add_header x-app {name};\n    \
             location /nothing {{ return 204; }}\n    location /up/ {{ dav_methods PUT DELETE; }}\n    \
             location /small/ {{ dav_methods PUT; client_max_body_size 1k; }}\n  }}\n}}\n",
            root = root.display()
        );
        let file = dir.path().join("nginx.conf");
        std::fs::write(&file, config)?;
        let mut command = Command::new("nginx");
        command.arg("-p").arg(dir.path()).arg("-c").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
        let log = std::fs::File::create(dir.path().join("error.log"))?;
        let child = command.stderr(log).kill_on_drop(true).spawn().context("starting nginx")?;
        Ok(Self { child, dir })
    }

    /// Where its files are.
    pub fn files(&self) -> PathBuf {
        self.dir.path().join("files")
    }

    /// Writes a file that it serves.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.files().join(Path::new(name));
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        kill_process(id.context("nginx has ended")?, signal).context("sending a signal")
    }
}
