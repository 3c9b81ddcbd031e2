//! The scenarios: who stands where, what load they get, and the bar for each.

use anyhow::{Context, Result, bail};

use super::found::{Found, Table};
use super::ground::Ground;
use super::handshakes::{self, Call};
use super::load::Load;
use super::machine::PROXIES;
use super::measure::{self, Row, Side, Target};
use super::mesh::Mesh;
use super::peers::{Site, Standing};
use super::server::Server;
use super::{bulk, memory, pairs, registrations, say, soak};

/// All scenarios, in the order they run: name, title, what runs it.
pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        id: "S1",
        title: "one hop, HTTP/1.1 → HTTP/1.1, 1 KiB, 64 connections, policy off",
        quick: true,
        anew: true,
        run: one_hop,
    },
    Scenario {
        id: "S2",
        title: "mutual-TLS pair, HTTP/1.1 client, 1 KiB, 64 and 500 connections",
        quick: true,
        anew: true,
        run: pairs::plain_policy,
    },
    Scenario {
        id: "S3",
        title: "HTTP/2 client (8 connections × 8 streams) → HTTP/1.1 application, 1 KiB",
        quick: true,
        anew: true,
        run: http2_in,
    },
    Scenario {
        id: "S1p-in",
        title: "S1 inbound: token, 100 rules, tenant quota, metrics, JSON access log",
        quick: false,
        anew: true,
        run: policy_in,
    },
    Scenario {
        id: "S1p-out",
        title: "S1 outbound: route, retries, breaker, metrics, JSON access log",
        quick: false,
        anew: true,
        run: policy_out,
    },
    Scenario {
        id: "S2p",
        title: "S2 with the full policy on both sides",
        quick: false,
        anew: true,
        run: pairs::full_policy,
    },
    Scenario {
        id: "S5",
        title: "open loop at 5,000 requests/s through a pair, latency from when each request was due",
        quick: false,
        anew: false,
        run: pairs::open_loop,
    },
    Scenario {
        id: "S7",
        title: "memory: idle, by idle connection over 1,000, and after load",
        quick: false,
        anew: false,
        run: memory::run,
    },
    Scenario {
        id: "S6",
        title: "full mutual-TLS handshakes, one request on each connection",
        quick: false,
        anew: false,
        run: full_handshakes,
    },
    Scenario {
        id: "R1",
        title: "control plane: instances registered in batches of 1,000, each on disk before its answer; lists at 10,000",
        quick: false,
        anew: false,
        run: registrations::run,
    },
    Scenario {
        id: "S4",
        title: "10 MiB responses and uploads, plain and through a pair, 4 connections",
        quick: false,
        anew: true,
        run: bulk::run,
    },
];

/// What `--soak` runs.
pub(crate) const SOAK: &Scenario = &Scenario {
    id: "soak",
    title: "S2p's load for long: does memory stand still",
    quick: false,
    anew: false,
    run: soak::run,
};

/// One scenario.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// Its name on the command line.
    pub(crate) id: &'static str,
    /// What it is.
    pub(crate) title: &'static str,
    /// Whether `--quick` runs it.
    pub(crate) quick: bool,
    /// Whether each round starts its processes anew, after one round of all other such scenarios: what luck a process has with its
    /// memory, and what neighbours this machine has for a minute, is the matter of one round then.
    pub(crate) anew: bool,
    /// Runs it.
    pub(crate) run: fn(&Ground) -> Result<Found>,
}

impl Ground {
    /// Measures targets under one load.
    ///
    /// # Errors
    /// When one does not answer.
    pub(crate) fn table(&self, load_words: &str, targets: &[Target], load: &Load) -> Result<Table> {
        say(&format!(" {load_words}"));
        let rows = measure::all(&self.site, targets, load, self.rounds, self.time, &self.application())?;
        Ok(Table { load: load_words.to_owned(), rows })
    }
}

/// wrk with this many connections.
pub(crate) fn closed(connections: u32) -> Load {
    Load::Closed { connections, path: "/", script: "report.lua" }
}

fn relay(site: &Site, app: u16) -> Result<Standing> {
    let port = equerry::demo::ports::HeldPort::take()?;
    let number = port.number();
    port.release();
    let args = ["relay".to_owned(), format!("127.0.0.1:{number}"), format!("127.0.0.1:{app}")];
    let server = Server::start("relay", PROXIES, &std::env::current_exe()?, &args, &site.dir)?.listens_on(number)?;
    Ok(Standing { port: number, servers: vec![server] })
}

fn one_hop(ground: &Ground) -> Result<Found> {
    let mesh = &ground.mesh;
    let services = Mesh::service("solo", "PERMISSIVE") + "---\n" + &Mesh::service("caller", "PERMISSIVE");
    mesh.apply("solo", &(services + &Mesh::application("direct", ground.app)))?;
    let solo = mesh.sidecar("solo", ground.app, false)?;
    let caller = mesh.sidecar("caller", ground.app, false)?;
    let mut targets = vec![
        Target { name: "TCP relay (floor)", side: Side::Floor, ..Target::peer("", relay(&ground.site, ground.app)?) },
        Target::ours("equerry inbound", solo.inbound, "solo", solo.server.family()),
        Target::ours("equerry outbound", caller.outbound, "direct", caller.server.family()),
    ];
    ground.peer(&mut targets, "nginx", "nginx", |site| site.single("nginx", "plain.nginx.conf"))?;
    ground.peer(&mut targets, "HAProxy", "haproxy", |site| site.single("haproxy", "plain.haproxy.cfg"))?;
    ground.peer(&mut targets, "Envoy", "envoy", |site| site.single("envoy", "plain.envoy.yaml"))?;
    let table = ground.table("64 connections", &targets, &closed(64))?;
    let bars = ["equerry inbound", "equerry outbound"]
        .into_iter()
        .filter_map(|ours| table.bar(ours, &["nginx", "HAProxy"], 1.2))
        .collect();
    Ok(Found { tables: vec![table], bars, ..Found::default() })
}

fn http2_in(ground: &Ground) -> Result<Found> {
    if ground.site.program("h2load").is_none() {
        bail!("h2load is not installed: apt-get install nghttp2-client");
    }
    let mesh = &ground.mesh;
    mesh.apply("solo2", &Mesh::service("solo2", "PERMISSIVE"))?;
    let solo = mesh.sidecar("solo2", ground.app, false)?;
    let mut targets = vec![Target::ours("equerry", solo.inbound, "solo2", solo.server.family())];
    ground.peer(&mut targets, "nginx", "nginx", |site| site.single("nginx", "h2.nginx.conf"))?;
    ground.peer(&mut targets, "HAProxy", "haproxy", |site| site.single("haproxy", "h2.haproxy.cfg"))?;
    ground.peer(&mut targets, "Envoy", "envoy", |site| site.single("envoy", "h2.envoy.yaml"))?;
    let table = ground.table("8 connections × 8 streams", &targets, &Load::Http2 { connections: 8, streams: 8 })?;
    let bars = [table.bar("equerry", &["nginx"], 1.25), table.bar("equerry", &["HAProxy"], 1.8)]
        .into_iter()
        .flatten()
        .collect();
    Ok(Found { tables: vec![table], bars, ..Found::default() })
}

fn policy_in(ground: &Ground) -> Result<Found> {
    let mesh = &ground.mesh;
    let documents = Mesh::service("off", "PERMISSIVE")
        + "---\n"
        + &Mesh::service("on", "PERMISSIVE")
        + &mesh.inbound_policy("on")
        + &Mesh::tenant(&["on"]);
    mesh.apply("policy-in", &documents)?;
    let (off, on) = (mesh.sidecar("off", ground.app, false)?, mesh.sidecar("on", ground.app, true)?);
    let bearer = format!("Authorization: Bearer {}", mesh.token());
    let mut targets = vec![
        Target::ours("equerry, policy off", off.inbound, "off", off.server.family()),
        Target::ours("equerry, full policy", on.inbound, "on", on.server.family()).with(bearer.clone()),
    ];
    ground.peer(&mut targets, "Envoy, policy", "envoy", |site| site.single("envoy", "policy-in.envoy.yaml"))?;
    targets
        .iter_mut()
        .filter(|target| target.side == Side::Peer)
        .for_each(|target| target.headers.push(bearer.clone()));
    policy_bars(ground.table("64 connections", &targets, &closed(64))?)
}

fn policy_out(ground: &Ground) -> Result<Found> {
    let mesh = &ground.mesh;
    let documents = Mesh::service("outer", "PERMISSIVE")
        + "---\n"
        + &Mesh::service("outer-on", "PERMISSIVE")
        + &Mesh::application("bare", ground.app)
        + &Mesh::application("ruled", ground.app)
        + &Mesh::outbound_policy("ruled");
    mesh.apply("policy-out", &documents)?;
    let (off, on) = (mesh.sidecar("outer", ground.app, false)?, mesh.sidecar("outer-on", ground.app, true)?);
    let mut targets = vec![
        Target::ours("equerry, policy off", off.outbound, "bare", off.server.family()),
        Target::ours("equerry, full policy", on.outbound, "ruled", on.server.family()),
    ];
    ground.peer(&mut targets, "Envoy, policy", "envoy", |site| site.single("envoy", "policy-out.envoy.yaml"))?;
    policy_bars(ground.table("64 connections", &targets, &closed(64))?)
}

fn policy_bars(table: Table) -> Result<Found> {
    let bars = [
        table.bar("equerry, full policy", &["equerry, policy off"], 1.3),
        table.bar("equerry, full policy", &["Envoy, policy"], 0.5),
    ];
    Ok(Found { bars: bars.into_iter().flatten().collect(), tables: vec![table], ..Found::default() })
}

fn full_handshakes(ground: &Ground) -> Result<Found> {
    pairs::pair_policies(ground)?;
    let server = ground.mesh.sidecar("server", ground.app, false)?;
    let mut targets = vec![Target::ours("equerry", server.inbound, "server", server.server.family())];
    ground.peer(&mut targets, "nginx", "nginx", |site| {
        Ok(site.one("nginx", "pair-server.nginx.conf", PROXIES, None)?.into())
    })?;
    ground.peer(&mut targets, "HAProxy", "haproxy", |site| {
        Ok(site.one("haproxy", "pair-server-h1.haproxy.cfg", PROXIES, None)?.into())
    })?;
    ground.peer(&mut targets, "Envoy", "envoy", |site| {
        Ok(site.one("envoy", "pair-server-h1.envoy.yaml", PROXIES, None)?.into())
    })?;
    let (ours, theirs) = (ground.mesh.call("client", "server")?, Call::peers(&ground.site)?);
    let mut samples = vec![Vec::new(); targets.len()];
    for round in 1..=ground.rounds {
        for (target, samples) in targets.iter().zip(&mut samples) {
            let call = if target.side == Side::Ours { &ours } else { &theirs };
            let sample = handshakes::put(call, target.port, ground.time, &target.pids()).context(target.name)?;
            say(&format!(
                "  round {round}/{}  {:<28} {:>8.0}/s  {:>7.1} µs CPU",
                ground.rounds, target.name, sample.per_second, sample.cpu_micros
            ));
            samples.push(sample);
        }
    }
    let rows = targets.iter().zip(samples).map(|(target, rounds)| Row::of(target.name, target.side, rounds)).collect();
    let table = Table { load: "one connection after the other".to_owned(), rows };
    let bars = table.bar("equerry", &["nginx"], 0.5).into_iter().collect();
    Ok(Found { tables: vec![table], bars, ..Found::default() })
}
