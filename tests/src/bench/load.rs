//! Load, and what came of it: one measurement of one target.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::machine::{self, LOAD};
use super::peers::{Site, sources};
use super::server;
use super::tools;

/// Longer than any measurement.
const ENDLESS: Duration = Duration::from_secs(3600);

/// Connections that are many.
const MANY: u32 = 64;
/// Each of these takes less to be made, with mutual TLS behind it at the slowest of proxies.
const CONNECT: Duration = Duration::from_millis(4);

/// What is asked, and how.
#[derive(Debug, Clone)]
pub(crate) enum Load {
    /// wrk: as fast as answers come back.
    Closed {
        /// Connections kept open.
        connections: u32,
        /// What is asked for.
        path: &'static str,
        /// wrk's script, in `tests/bench`.
        script: &'static str,
    },
    /// h2load: HTTP/2, as fast as answers come back.
    Http2 {
        /// Connections kept open.
        connections: u32,
        /// Streams on each.
        streams: u32,
    },
    /// A fixed rate whatever the answers take.
    Paced {
        /// Requests per second.
        rate: u32,
        /// Connections kept open.
        connections: u32,
    },
}

impl Load {
    /// How long it takes to make its connections, and those behind them, where they are so many that their handshakes would pass for a
    /// cost of requests.
    pub(crate) fn connecting(&self) -> Option<Duration> {
        match self {
            Self::Closed { connections, .. } if *connections >= MANY => Some(CONNECT * *connections),
            _ => None,
        }
    }
}

/// What one measurement found.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Sample {
    /// Answers.
    pub(crate) requests: u64,
    /// Answers per second.
    pub(crate) per_second: f64,
    /// Requests that failed.
    pub(crate) errors: u64,
    /// Microseconds of processor time of the proxy processes for each request.
    pub(crate) cpu_micros: f64,
    /// Median latency, microseconds.
    pub(crate) p50: f64,
    /// 99th percentile.
    pub(crate) p99: f64,
    /// 99.9th percentile.
    pub(crate) p999: f64,
    /// Resident MiB of the proxy processes under load.
    pub(crate) resident_mib: f64,
    /// Share of both processors' time that went to anybody but these processes, load and application. High: distrust.
    pub(crate) foreign: f64,
}

/// What a load generator prints.
#[derive(Debug, Deserialize)]
struct Said {
    requests: u64,
    micros: u64,
    errors: u64,
    p50: f64,
    p99: f64,
    p999: f64,
}

/// Puts `load` on a port for a time. `proxies` are the processes whose time counts, `application` those whose does not.
///
/// # Errors
/// When the load generator fails, or nothing was answered.
pub(crate) fn put(
    site: &Site,
    load: &Load,
    port: u16,
    headers: &[String],
    time: Duration,
    proxies: &[u32],
    application: &[u32],
) -> Result<Sample> {
    let log = site.dir.join("h2load.log");
    let mut command = command(site, load, port, headers, time, &log)?;
    let (before, busy, apps) = (machine::ran(proxies), machine::busy(), machine::ran(application));
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the load")?;
    std::thread::sleep(time.mul_f64(0.75));
    let resident = machine::resident(proxies);
    // The load's own time: read while it still stands, then carried on to its end.
    let own = machine::ran(&machine::family(child.id())) as f64 / 0.75;
    let output = child.wait_with_output()?;
    let ran = machine::ran(proxies).saturating_sub(before);
    let busy = machine::busy().saturating_sub(busy);
    // A thread of the application that has ended takes its account along.
    let apps = machine::ran(application).saturating_sub(apps);
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("the load failed ({}): {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let said = said(load, &log, &text)?;
    if said.requests == 0 {
        bail!("nothing was answered: {text}");
    }
    let foreign = (busy as f64 - ran as f64 - apps as f64 - own).max(0.0) / (2.0 * time.as_nanos() as f64);
    Ok(Sample {
        requests: said.requests,
        per_second: said.requests as f64 / said.micros as f64 * 1e6,
        errors: said.errors,
        cpu_micros: ran as f64 / 1e3 / said.requests as f64,
        p50: said.p50,
        p99: said.p99,
        p999: said.p999,
        resident_mib: resident as f64 / 1024.0,
        foreign,
    })
}

/// A load generator that goes on until it is interrupted, and writes to `log` what it does not print.
///
/// # Errors
/// When it is not installed.
pub(crate) fn endless(site: &Site, load: &Load, port: u16, headers: &[String], log: &Path) -> Result<Command> {
    command(site, load, port, headers, ENDLESS, log)
}

/// How many answers a load generator counted, by what it printed and its log.
///
/// # Errors
/// When it told of none.
pub(crate) fn answers(load: &Load, log: &Path, text: &str) -> Result<u64> {
    Ok(said(load, log, text)?.requests)
}

fn said(load: &Load, log: &Path, text: &str) -> Result<Said> {
    if matches!(load, Load::Http2 { .. }) {
        return logged(log, text);
    }
    let line = text.lines().rev().find_map(|line| serde_json::from_str::<Said>(line).ok());
    line.with_context(|| format!("the load said {text}"))
}

fn command(site: &Site, load: &Load, port: u16, headers: &[String], time: Duration, log: &Path) -> Result<Command> {
    // One that is stopped for a while hears nothing but this.
    let on_core = |program: &Path| server::on_core(LOAD, program, "KILL");
    let program = |name| site.program(name).with_context(|| format!("{name} is not installed"));
    let seconds = time.as_secs().max(1);
    let mut command = match load {
        Load::Closed { connections, script, .. } => {
            let mut command = on_core(program("wrk")?);
            command
                .args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s"), "--timeout", "10s", "-s"])
                .arg(sources().join(script));
            command
        }
        Load::Http2 { connections, streams } => {
            let mut command = on_core(program("h2load")?);
            let _ = std::fs::remove_file(log);
            command
                .args(["-t1", &format!("-c{connections}"), &format!("-m{streams}"), &format!("-D{seconds}")])
                .arg("--log-file")
                .arg(log);
            command
        }
        Load::Paced { rate, connections } => {
            let mut command = on_core(&std::env::current_exe()?);
            command.args([
                "paced",
                &format!("127.0.0.1:{port}"),
                &rate.to_string(),
                &connections.to_string(),
                &seconds.to_string(),
            ]);
            command.args(headers);
            return Ok(command);
        }
    };
    for header in headers {
        // h2load sends :authority for a Host of ours only when it is named so.
        let header = match (load, header.split_once(": ")) {
            (Load::Http2 { .. }, Some((name, value))) if name.eq_ignore_ascii_case("host") => {
                format!(":authority: {value}")
            }
            _ => header.clone(),
        };
        command.args(["-H", &header]);
    }
    let path = if let Load::Closed { path, .. } = load { path } else { "/" };
    command.arg(format!("http://127.0.0.1:{port}{path}"));
    Ok(command)
}

/// h2load's log of every answer: start, status and duration, in microseconds, one line each.
fn logged(log: &Path, text: &str) -> Result<Said> {
    let lines =
        std::fs::read_to_string(log).with_context(|| format!("reading {}: {text}", PathBuf::from(log).display()))?;
    let (mut micros, mut errors, mut first, mut last) = (Vec::new(), 0, f64::MAX, 0.0_f64);
    for line in lines.lines() {
        let words: Vec<f64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [start, status, took] = words[..] else { continue };
        if (200.0..300.0).contains(&status) {
            micros.push(took);
            first = first.min(start);
            last = last.max(start + took);
        } else {
            errors += 1;
        }
    }
    micros.sort_by(f64::total_cmp);
    let requests = micros.len() as u64;
    Ok(Said {
        requests,
        micros: (last - first).max(1.0) as u64,
        errors,
        p50: tools::at(&micros, 0.5),
        p99: tools::at(&micros, 0.99),
        p999: tools::at(&micros, 0.999),
    })
}
