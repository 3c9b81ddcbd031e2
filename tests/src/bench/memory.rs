//! Memory: of an idle process, by idle connection, and what stays after load.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::found::{Bar, Figure, Found};
use super::ground::Ground;
use super::handshakes::{self, Call};
use super::load::{self, Load};
use super::machine::{self, LOAD, PROXIES};
use super::measure::{self, Side, Target};
use super::mesh::Mesh;
use super::pairs::pair_policies;
use super::peers::Standing;
use super::say;
use super::server::on_core;

/// Open before anything is counted: what the first connections load is no share of theirs.
const BEFORE: usize = 100;
/// Idle connections whose memory is counted.
const CONNECTIONS: usize = 1_000;
/// Memory has settled when it has not moved by 64 KiB for this long.
const STILL: Duration = Duration::from_secs(3);
/// At the latest then.
const SETTLED: Duration = Duration::from_secs(20);
/// A process at rest still does something now and then (ours speaks to its control plane every five seconds), and holds the pages
/// of its program that it needs for that: it is looked at so often after it has settled, and the median counts.
const LOOKS: usize = 36;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// Whom to start and to ask.
type Start<'a> = Box<dyn Fn() -> Result<(Target, Option<super::mesh::Sidecar>)> + 'a>;

/// S7: idle memory, 1,000 idle connections plain and in mutual TLS, and memory after load, of ours and of peers. Each round
/// is a fresh process; figures are medians.
///
/// # Errors
/// When something does not come up.
pub(crate) fn run(ground: &Ground) -> Result<Found> {
    ground.mesh.apply("memory", &Mesh::service("memory", "PERMISSIVE"))?;
    pair_policies(ground)?;
    let mut found = Found::default();
    let ours: Start<'_> = Box::new(|| {
        let sidecar = ground.mesh.sidecar("memory", ground.app, false)?;
        Ok((Target::ours("equerry", sidecar.inbound, "memory", sidecar.server.family()), Some(sidecar)))
    });
    let mut plain = vec![("equerry", ours)];
    plain.extend(peers(ground, ["plain.nginx.conf", "plain.haproxy.cfg", "plain.envoy.yaml"])?);
    for (of, start) in &plain {
        let [idle, each, after] = medians(ground, start, |target| plain_connections(ground, target)).context(*of)?;
        tell(&mut found, of, "idle process", idle / 1024.0, "MiB", 12.0);
        tell(&mut found, of, "each idle plain connection", each, "KiB", 24.0);
        tell(&mut found, of, "after load, of idle", after / idle, "×", 1.25);
    }
    let ours: Start<'_> = Box::new(|| {
        let sidecar = ground.mesh.sidecar("server", ground.app, false)?;
        Ok((Target::ours("equerry", sidecar.inbound, "server", sidecar.server.family()), Some(sidecar)))
    });
    let mut secured = vec![("equerry", ours)];
    secured
        .extend(peers(ground, ["pair-server.nginx.conf", "pair-server-h1.haproxy.cfg", "pair-server-h1.envoy.yaml"])?);
    let (mesh, others) = (ground.mesh.call("client", "server")?, Call::peers(&ground.site)?);
    for (of, start) in &secured {
        let call =
            |target: &Target| secured_connections(target, if target.side == Side::Ours { &mesh } else { &others });
        let [each] = medians(ground, start, call).context(*of)?;
        tell(&mut found, of, "each idle mutual-TLS connection", each, "KiB", 40.0);
    }
    Ok(found)
}

/// The peers that are there, with these configurations of nginx, HAProxy and Envoy.
fn peers<'a>(ground: &'a Ground, files: [&'static str; 3]) -> Result<Vec<(&'static str, Start<'a>)>> {
    let mut there = Vec::new();
    for ((name, program), file) in
        [("nginx", "nginx"), ("HAProxy", "haproxy"), ("Envoy", "envoy")].into_iter().zip(files)
    {
        if !ground.site.wants(program) || ground.site.program(program).is_none() {
            // Says so when it is missing.
            ground.peer(&mut Vec::new(), name, program, |_| bail!("{program} is not there"))?;
            continue;
        }
        let start: Start<'a> = Box::new(move || {
            let standing: Standing = ground.site.one(program, file, PROXIES, None)?.into();
            Ok((Target::peer(name, standing), None))
        });
        there.push((name, start));
    }
    Ok(there)
}

/// Medians, figure by figure, over the rounds.
fn medians<const N: usize>(
    ground: &Ground,
    start: &Start<'_>,
    one: impl Fn(&Target) -> Result<[f64; N]>,
) -> Result<[f64; N]> {
    let mut rounds = Vec::new();
    for _ in 0..ground.rounds {
        let (target, _sidecar) = start()?;
        rounds.push(one(&target)?);
    }
    Ok(std::array::from_fn(|figure| {
        let mut all: Vec<f64> = rounds.iter().map(|round| round[figure]).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
    }))
}

/// Tells a figure, and judges it when it is ours.
fn tell(found: &mut Found, of: &'static str, what: &'static str, value: f64, unit: &'static str, limit: f64) {
    say(&format!("  {of}, {what}: {value:.1} {unit}"));
    found.figures.push(Figure { of, what, value, unit });
    if of == "equerry" {
        found.bars.push(Bar { says: format!("{what}, {unit} ≤ {limit}"), ratio: value, limit, between: None });
    }
}

/// KiB at rest before anything, KiB for each idle connection, KiB at rest after load.
fn plain_connections(ground: &Ground, target: &Target) -> Result<[f64; 3]> {
    let pids = target.pids();
    measure::warm(target)?;
    let idle = at_rest(&pids);
    let few = open(target, BEFORE)?;
    let before = settled(&pids);
    let many = open(target, CONNECTIONS)?;
    let each = (settled(&pids) - before) / CONNECTIONS as f64;
    for mut held in [few, many] {
        held.kill()?;
        held.wait()?;
    }
    let load = Load::Closed { connections: 500, path: "/", script: "report.lua" };
    load::put(&ground.site, &load, target.port, &target.headers, ground.time, &pids, &[])?;
    Ok([idle, each, at_rest(&pids)])
}

/// Resident KiB of processes that have nothing to do.
fn at_rest(pids: &[u32]) -> f64 {
    settled(pids);
    let look = |_| {
        std::thread::sleep(LOOK);
        machine::resident(pids)
    };
    let mut looks: Vec<u64> = (0..LOOKS).map(look).collect();
    looks.sort_unstable();
    looks[LOOKS / 2] as f64
}

/// Waits until memory stands still: KiB that are the processes' own, without the pages of their program files.
fn settled(pids: &[u32]) -> f64 {
    let (began, mut since, mut last) = (Instant::now(), Instant::now(), machine::own(pids));
    while since.elapsed() < STILL && began.elapsed() < SETTLED {
        std::thread::sleep(Duration::from_millis(200));
        let now = machine::own(pids);
        if now.abs_diff(last) > 64 {
            (since, last) = (Instant::now(), now);
        }
    }
    machine::own(pids) as f64
}

/// Opens connections from a process of its own that asks once on each and holds them.
fn open(target: &Target, connections: usize) -> Result<Child> {
    let mut command = on_core(LOAD, &std::env::current_exe()?, "TERM");
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

fn secured_connections(target: &Target, call: &Call) -> Result<[f64; 1]> {
    let pids = target.pids();
    let few = handshakes::hold(call, target.port, BEFORE)?;
    let before = settled(&pids);
    let many = handshakes::hold(call, target.port, CONNECTIONS)?;
    let each = (settled(&pids) - before) / CONNECTIONS as f64;
    drop((few, many));
    Ok([each])
}
