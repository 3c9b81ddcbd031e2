//! Programs of others as applications: each answers with the method and target that it understood, and writes them down.
//!
//! They read HTTP/1.1 with parsers that nobody here wrote. What one of them takes for a request that nobody sent is in its log.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::peers;

/// Who serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// nginx.
    Nginx,
    /// HAProxy, answering by itself.
    HaProxy,
    /// Node's own `http`.
    Node,
    /// hyper, in this process.
    Hyper,
}

/// All of them.
pub const ALL: [Kind; 4] = [Kind::Nginx, Kind::HaProxy, Kind::Node, Kind::Hyper];

const NODE: &str = "\
const [log, port] = process.argv.slice(1);
const write = (line) => require('fs').appendFileSync(log, line + '\\n');
const server = require('http').createServer((request, response) => {
  const line = request.method + ' ' + request.url;
  write(line);
  request.on('error', () => {}).resume().on('end', () => response.end(line));
});
server.on('clientError', (error, socket) => { if (!['ECONNRESET', 'HPE_INVALID_EOF_STATE'].includes(error.code)) write('BAD ' + error.code); socket.destroy(); });
server.listen(Number(port), '127.0.0.1');
";

/// One that runs; ends when dropped.
#[derive(Debug)]
pub struct Stranger {
    running: Running,
    dir: TempDir,
}

#[derive(Debug)]
enum Running {
    Child { _child: Child },
    Here(JoinHandle<()>),
}

impl Drop for Stranger {
    fn drop(&mut self) {
        if let Running::Here(task) = &self.running {
            task.abort();
        }
    }
}

impl Kind {
    /// Whether it can be started here.
    ///
    /// # Errors
    /// When it cannot and `EQUERRY_REQUIRE_PEERS=1`.
    pub fn is_installed(self) -> Result<bool> {
        match self {
            Self::Nginx => peers::installed("nginx", crate::nginx::INSTALL),
            Self::HaProxy => peers::installed("haproxy", "apt-get install haproxy"),
            Self::Node => peers::installed("node", "apt-get install nodejs"),
            Self::Hyper => Ok(true),
        }
    }

    /// Starts it on a port of loopback.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(self, port: u16) -> Result<Stranger> {
        let dir = tempfile::Builder::new().prefix("equerry-stranger-").tempdir()?;
        let log = dir.path().join("seen.log");
        std::fs::write(&log, "")?;
        let running = match self {
            Self::Nginx => child(nginx(dir.path(), port)?, dir.path())?,
            Self::HaProxy => child(haproxy(dir.path(), port)?, &log)?,
            Self::Node => {
                let mut command = Command::new("node");
                command.args(["-e", NODE]).arg(&log).arg(port.to_string());
                child(command, dir.path())?
            }
            Self::Hyper => Running::Here(hyper(&log, port).await?),
        };
        Ok(Stranger { running, dir })
    }
}

impl Stranger {
    fn log(&self) -> PathBuf {
        self.dir.path().join("seen.log")
    }

    /// What it took for requests so far: `METHOD target`, one to a line.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn seen(&self) -> Result<Vec<String>> {
        let text = std::fs::read(self.log()).context("reading what the application saw")?;
        Ok(String::from_utf8_lossy(&text).lines().map(str::to_owned).collect())
    }
}

/// Starts a program. What it says goes to `out`, where that is a file.
fn child(mut command: Command, out: &Path) -> Result<Running> {
    let out = if out.is_file() { Stdio::from(std::fs::File::options().append(true).open(out)?) } else { Stdio::null() };
    let child = command.stdin(Stdio::null()).stdout(out).stderr(Stdio::null()).kill_on_drop(true).spawn();
    Ok(Running::Child { _child: child.with_context(|| format!("starting {:?}", command.as_std().get_program()))? })
}

fn nginx(dir: &Path, port: u16) -> Result<Command> {
    let config = format!(
        "daemon off; master_process off; pid nginx.pid; error_log /dev/null;\nevents {{ worker_connections 512; }}\n\
         http {{\n  log_format seen '$request_method $request_uri'; access_log seen.log seen; client_body_temp_path t0;\n  \
         proxy_temp_path t1; fastcgi_temp_path t2; uwsgi_temp_path t3; scgi_temp_path t4;\n  server {{\n    \
         listen 127.0.0.1:{port}; location / {{ return 200 '$request_method $request_uri'; }}\n  }}\n}}\n"
    );
    std::fs::write(dir.join("nginx.conf"), config)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(dir).arg("-c").arg(dir.join("nginx.conf"));
    Ok(command)
}

fn haproxy(dir: &Path, port: u16) -> Result<Command> {
    let config = format!(
        "global\n  maxconn 500\n  log stdout format raw local0\ndefaults\n  mode http\n  timeout client 20s\n  timeout server 20s\n  \
         timeout connect 5s\n  log global\n  option dontlognull\nfrontend application\n  bind 127.0.0.1:{port}\n  log-format \"%HM %HU\"\n  \
         http-request return status 200 content-type text/plain lf-string \"%HM %HU\"\n"
    );
    std::fs::write(dir.join("haproxy.cfg"), config)?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(dir.join("haproxy.cfg"));
    Ok(command)
}

async fn hyper(log: &Path, port: u16) -> Result<JoinHandle<()>> {
    let listener = crate::listen(port).await?;
    let log = log.to_owned();
    Ok(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let log = log.clone();
            let serves = service_fn(move |request: Request<Incoming>| {
                let line = format!("{} {}", request.method(), request.uri());
                let written = write_down(&log, &line);
                async move {
                    written?;
                    let mut body = request.into_body();
                    while let Some(Ok(_)) = body.frame().await {}
                    Ok::<_, std::io::Error>(Response::new(Full::new(Bytes::from(line))))
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), serves));
        }
    }))
}

fn write_down(log: &Path, line: &str) -> std::io::Result<()> {
    writeln!(std::fs::File::options().append(true).open(log)?, "{line}")
}
