//! Memory: of an idle process, by idle connection, and what stays after load.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::ground::Ground;
use super::handshakes::{self, Call};
use super::load::{self, Load};
use super::machine::{self, LOAD, PROXIES};
use super::measure::{Side, Target};
use super::mesh::Mesh;
use super::say;
use super::scenarios::{Bar, Figure, Found, pair_policies};
use super::server::on_core;

/// Idle connections held at once.
const CONNECTIONS: usize = 1_000;
/// Before memory is read: kept upstream connections end, and what is handed back is handed back.
const REST: Duration = Duration::from_secs(6);

/// Measures idle memory, 1,000 idle connections plain and in mutual TLS, and memory after load, of ours and of peers.
///
/// # Errors
/// When something does not come up.
pub(crate) fn run(ground: &Ground) -> Result<Found> {
    ground.mesh.apply("memory", &Mesh::service("memory", "PERMISSIVE"))?;
    pair_policies(ground)?;
    let mut found = Found::default();
    let mut plain = Vec::new();
    ground.peer(&mut plain, "nginx", "nginx", |site| site.single("nginx", "plain.nginx.conf"))?;
    ground.peer(&mut plain, "HAProxy", "haproxy", |site| site.single("haproxy", "plain.haproxy.cfg"))?;
    ground.peer(&mut plain, "Envoy", "envoy", |site| site.single("envoy", "plain.envoy.yaml"))?;
    let ours = ground.mesh.sidecar("memory", ground.app, false)?;
    plain.insert(0, Target::ours("equerry", ours.inbound, "memory", ours.server.family()));
    for target in &plain {
        let (idle, each, after) = plain_connections(ground, target).context(target.name)?;
        tell(&mut found, format!("{}, idle process", target.name), idle / 1024.0, "MiB");
        tell(&mut found, format!("{}, each idle plain connection", target.name), each, "KiB");
        tell(&mut found, format!("{}, after load, of what it was idle", target.name), after / idle, "×");
        if target.side == Side::Ours {
            bar(&mut found, "idle process, MiB ≤ 12", idle / 1024.0, 12.0);
            bar(&mut found, "each idle plain connection, KiB ≤ 24", each, 24.0);
            bar(&mut found, "after load, of what it was idle ≤ 1.25", after / idle, 1.25);
        }
    }
    let mut secured = Vec::new();
    ground.peer(&mut secured, "nginx", "nginx", |site| {
        Ok(site.one("nginx", "pair-server.nginx.conf", PROXIES, None)?.into())
    })?;
    ground.peer(&mut secured, "HAProxy", "haproxy", |site| {
        Ok(site.one("haproxy", "pair-server-h1.haproxy.cfg", PROXIES, None)?.into())
    })?;
    ground.peer(&mut secured, "Envoy", "envoy", |site| {
        Ok(site.one("envoy", "pair-server-h1.envoy.yaml", PROXIES, None)?.into())
    })?;
    let server = ground.mesh.sidecar("server", ground.app, false)?;
    secured.insert(0, Target::ours("equerry", server.inbound, "server", server.server.family()));
    let (mesh, peers) = (ground.mesh.call("client", "server")?, Call::peers(&ground.site)?);
    for target in &secured {
        let call = if target.side == Side::Ours { &mesh } else { &peers };
        let each = secured_connections(target, call).context(target.name)?;
        tell(&mut found, format!("{}, each idle mutual-TLS connection", target.name), each, "KiB");
        if target.side == Side::Ours {
            bar(&mut found, "each idle mutual-TLS connection, KiB ≤ 40", each, 40.0);
        }
    }
    Ok(found)
}

fn tell(found: &mut Found, what: String, value: f64, unit: &'static str) {
    say(&format!("  {what}: {value:.1} {unit}"));
    found.figures.push(Figure { what, value, unit });
}

fn bar(found: &mut Found, says: &str, value: f64, limit: f64) {
    found.bars.push(Bar { says: says.to_owned(), ratio: value, limit });
}

/// KiB at rest before anything, KiB for each idle connection, KiB at rest after load.
fn plain_connections(ground: &Ground, target: &Target) -> Result<(f64, f64, f64)> {
    let resident = || machine::resident(&target.pids()) as f64;
    let idle = resident();
    // One connection beforehand: what the first request loads is not its share.
    open(target, 1)?;
    let before = resident();
    let mut held = open(target, CONNECTIONS)?;
    std::thread::sleep(REST);
    let each = (resident() - before) / CONNECTIONS as f64;
    held.kill()?;
    held.wait()?;
    let load = Load::Closed { connections: 500, path: "/", script: "report.lua" };
    load::put(&ground.site, &load, target.port, &target.headers, ground.time, &target.pids(), &[])?;
    std::thread::sleep(REST);
    Ok((idle, each, resident()))
}

fn open(target: &Target, connections: usize) -> Result<std::process::Child> {
    let mut command = on_core(LOAD, &std::env::current_exe()?);
    command.args(["idle", &format!("127.0.0.1:{}", target.port), &connections.to_string()]).args(&target.headers);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    let out = child.stdout.take().context("no output")?;
    BufReader::new(out).read_line(&mut line)?;
    if line.trim() != "open" {
        bail!("{connections} connections were not opened");
    }
    Ok(child)
}

fn secured_connections(target: &Target, call: &Call) -> Result<f64> {
    let resident = || machine::resident(&target.pids()) as f64;
    drop(handshakes::hold(call, target.port, 1)?);
    let before = resident();
    let held = handshakes::hold(call, target.port, CONNECTIONS)?;
    std::thread::sleep(REST);
    let each = (resident() - before) / CONNECTIONS as f64;
    drop(held);
    Ok(each)
}
