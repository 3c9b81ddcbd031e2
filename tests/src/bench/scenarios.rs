//! The scenarios: who stands where, what load they get, and the bar for each.

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::ground::Ground;
use super::handshakes::{self, Call};
use super::load::{Load, Sample};
use super::machine::PROXIES;
use super::measure::{self, Row, Side, Target};
use super::mesh::Mesh;
use super::peers::{Site, Standing};
use super::say;
use super::server::Server;

/// All scenarios, in the order they run: name, title, what runs it.
pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        id: "S1",
        title: "one hop, HTTP/1.1 → HTTP/1.1, 1 KiB, 64 connections, policy off",
        quick: true,
        run: one_hop,
    },
    Scenario {
        id: "S2",
        title: "mutual-TLS pair, HTTP/1.1 client, 1 KiB, 64 and 500 connections",
        quick: true,
        run: pair,
    },
    Scenario {
        id: "S3",
        title: "HTTP/2 client (8 connections × 8 streams) → HTTP/1.1 application, 1 KiB",
        quick: true,
        run: http2_in,
    },
    Scenario {
        id: "S1p-in",
        title: "S1 inbound: token, 100 rules, tenant quota, metrics, JSON access log",
        quick: false,
        run: policy_in,
    },
    Scenario {
        id: "S1p-out",
        title: "S1 outbound: route, retries, breaker, metrics, JSON access log",
        quick: false,
        run: policy_out,
    },
    Scenario { id: "S2p", title: "S2 with the full policy on both sides", quick: false, run: policy_pair },
    Scenario {
        id: "S5",
        title: "open loop at 5,000 requests/s through a pair, latency from when each request was due",
        quick: false,
        run: open_loop,
    },
    Scenario {
        id: "S7",
        title: "memory: idle, by idle connection over 1,000, and after load",
        quick: false,
        run: super::memory::run,
    },
    Scenario {
        id: "S6",
        title: "full mutual-TLS handshakes, one request on each connection",
        quick: false,
        run: full_handshakes,
    },
    Scenario { id: "S4", title: "10 MiB responses, plain and through a pair, 4 connections", quick: false, run: bulk },
];

/// One scenario.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// Its name on the command line.
    pub(crate) id: &'static str,
    /// What it is.
    pub(crate) title: &'static str,
    /// Whether `--quick` runs it.
    pub(crate) quick: bool,
    /// Runs it.
    pub(crate) run: fn(&Ground) -> Result<Found>,
}

/// What a scenario found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Found {
    /// One table for each kind of load.
    pub(crate) tables: Vec<Table>,
    /// How we stand against what was asked.
    pub(crate) bars: Vec<Bar>,
    /// What no table holds.
    pub(crate) figures: Vec<Figure>,
}

/// A figure of its own.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    /// What it is of.
    pub(crate) what: String,
    /// The value.
    pub(crate) value: f64,
    /// What it is in.
    pub(crate) unit: &'static str,
}

/// The targets under one kind of load.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    /// The load.
    pub(crate) load: String,
    /// One row for each target.
    pub(crate) rows: Vec<Row>,
}

/// What was asked for, most often a ratio of processor time, and what it is.
#[derive(Debug, Serialize)]
pub(crate) struct Bar {
    /// In words.
    pub(crate) says: String,
    /// What it is: ours divided by theirs, or a figure.
    pub(crate) ratio: f64,
    /// At most this.
    pub(crate) limit: f64,
}

impl Bar {
    /// Whether it is reached.
    pub(crate) fn passed(&self) -> bool {
        self.ratio <= self.limit
    }
}

impl Table {
    /// Whether `ours` takes at most `limit` times the processor time of the best of `theirs`; nothing when none was there.
    fn bar(&self, ours: &str, theirs: &[&str], limit: f64) -> Option<Bar> {
        let cpu = |name: &str| self.rows.iter().find(|row| row.name == name).map(|row| row.median.cpu_micros);
        let ours_took = cpu(ours)?;
        let (best, took) =
            theirs.iter().filter_map(|name| Some((*name, cpu(name)?))).min_by(|a, b| a.1.total_cmp(&b.1))?;
        Some(Bar { says: format!("{}: {ours} ≤ {limit} × {best}", self.load), ratio: ours_took / took, limit })
    }
}

impl Ground {
    fn table(&self, load_words: &str, targets: &[Target], load: &Load) -> Result<Table> {
        say(&format!(" {load_words}"));
        let rows = measure::all(&self.site, targets, load, self.rounds, self.time, &self.application())?;
        Ok(Table { load: load_words.to_owned(), rows })
    }
}

fn closed(connections: u32) -> Load {
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
    mesh.apply("solo", &(Mesh::service("solo", "PERMISSIVE") + &Mesh::application("direct", ground.app)))?;
    let solo = mesh.sidecar("solo", ground.app, false)?;
    let mut targets = vec![
        Target { name: "TCP relay (floor)", side: Side::Floor, ..Target::peer("", relay(&ground.site, ground.app)?) },
        Target::ours("equerry inbound", solo.inbound, "solo", solo.server.family()),
        Target::ours("equerry outbound", solo.outbound, "direct", solo.server.family()),
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

/// The two sidecars of a pair; their processes end when this is dropped.
struct Pair {
    client: super::mesh::Sidecar,
    server: super::mesh::Sidecar,
}

impl Pair {
    fn start(ground: &Ground, client: &'static str, server: &'static str, access_log: bool) -> Result<Self> {
        Ok(Self {
            server: ground.mesh.sidecar(server, ground.app, access_log)?,
            client: ground.mesh.sidecar(client, ground.app, access_log)?,
        })
    }

    fn target(&self, name: &'static str, service: &str) -> Target {
        let pids = [self.client.server.family(), self.server.server.family()].concat();
        Target::ours(name, self.client.outbound, service, pids)
    }
}

/// The Service of the pair.
pub(crate) fn pair_policies(ground: &Ground) -> Result<()> {
    ground.mesh.apply("pair", &Mesh::service("server", "STRICT"))
}

fn pair_peers(ground: &Ground, targets: &mut Vec<Target>) -> Result<()> {
    ground.peer(targets, "nginx pair", "nginx", |site| {
        site.pair("nginx", "pair-client.nginx.conf", "pair-server.nginx.conf")
    })?;
    ground.peer(targets, "HAProxy pair, HTTP/1", "haproxy", |site| {
        site.pair("haproxy", "pair-client-h1.haproxy.cfg", "pair-server-h1.haproxy.cfg")
    })?;
    ground.peer(targets, "HAProxy pair, HTTP/2", "haproxy", |site| {
        site.pair("haproxy", "pair-client-h2.haproxy.cfg", "pair-server-h2.haproxy.cfg")
    })?;
    ground.peer(targets, "Envoy pair, HTTP/1", "envoy", |site| {
        site.pair("envoy", "pair-client-h1.envoy.yaml", "pair-server-h1.envoy.yaml")
    })?;
    ground.peer(targets, "Envoy pair, HTTP/2", "envoy", |site| {
        site.pair("envoy", "pair-client-h2.envoy.yaml", "pair-server-h2.envoy.yaml")
    })
}

fn pair(ground: &Ground) -> Result<Found> {
    pair_policies(ground)?;
    let ours = Pair::start(ground, "client", "server", false)?;
    let mut targets = vec![ours.target("equerry pair", "server")];
    pair_peers(ground, &mut targets)?;
    let mut found = Found::default();
    for connections in [64, 500] {
        let table = ground.table(&format!("{connections} connections"), &targets, &closed(connections))?;
        found.bars.extend(table.bar("equerry pair", &["HAProxy pair, HTTP/2"], 1.4));
        found.bars.extend(table.bar("equerry pair", &["nginx pair"], 1.0));
        found.bars.extend(table.bar("equerry pair", &["Envoy pair, HTTP/1", "Envoy pair, HTTP/2"], 0.5));
        found.tables.push(table);
    }
    Ok(found)
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

fn policy_pair(ground: &Ground) -> Result<Found> {
    let mesh = &ground.mesh;
    pair_policies(ground)?;
    let documents = Mesh::service("server-on", "STRICT")
        + &mesh.inbound_policy("server-on")
        + &Mesh::outbound_policy("server-on")
        + &Mesh::tenant(&["server-on"]);
    mesh.apply("policy-pair", &documents)?;
    let off = Pair::start(ground, "client", "server", false)?;
    let on = Pair::start(ground, "client-on", "server-on", true)?;
    let bearer = format!("Authorization: Bearer {}", mesh.token());
    let targets = [
        off.target("equerry pair, policy off", "server"),
        on.target("equerry pair, full policy", "server-on").with(bearer),
    ];
    let table = ground.table("64 connections", &targets, &closed(64))?;
    let bars = table.bar("equerry pair, full policy", &["equerry pair, policy off"], 1.3).into_iter().collect();
    Ok(Found { tables: vec![table], bars, ..Found::default() })
}

fn open_loop(ground: &Ground) -> Result<Found> {
    pair_policies(ground)?;
    let ours = Pair::start(ground, "client", "server", false)?;
    let direct = Target {
        name: "no proxy at all",
        side: Side::Floor,
        port: ground.app,
        headers: Vec::new(),
        servers: Vec::new(),
        shared: Vec::new(),
    };
    let mut targets = vec![direct, ours.target("equerry pair", "server")];
    pair_peers(ground, &mut targets)?;
    let table = ground.table(
        "5,000 requests/s over 64 connections",
        &targets,
        &Load::Paced { rate: 5_000, connections: 64 },
    )?;
    let figures = added(&table);
    Ok(Found { tables: vec![table], figures, ..Found::default() })
}

/// A percentile: its name, and where it is in a sample.
type Share = (&'static str, fn(&Sample) -> f64);

/// What each pair adds to the latency without any proxy, the first row.
fn added(table: &Table) -> Vec<Figure> {
    let Some((bare, others)) = table.rows.split_first() else { return Vec::new() };
    let shares: [Share; 3] = [("p50", |of| of.p50), ("p99", |of| of.p99), ("p99.9", |of| of.p999)];
    let added = |row: &Row| {
        let (median, name) = (row.median.clone(), row.name);
        shares.map(|(share, of)| Figure {
            what: format!("{name} adds at {share}"),
            value: of(&median) - of(&bare.median),
            unit: "µs",
        })
    };
    others.iter().flat_map(added).collect()
}

fn full_handshakes(ground: &Ground) -> Result<Found> {
    pair_policies(ground)?;
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
    let rows = targets.iter().zip(samples).map(|(target, rounds)| measure::row(target, rounds)).collect();
    let table = Table { load: "one connection after the other".to_owned(), rows };
    let bars = table.bar("equerry", &["nginx"], 0.5).into_iter().collect();
    Ok(Found { tables: vec![table], bars, ..Found::default() })
}

fn bulk(ground: &Ground) -> Result<Found> {
    let mesh = &ground.mesh;
    pair_policies(ground)?;
    mesh.apply("bulk", &(Mesh::service("bulk", "PERMISSIVE") + &Mesh::application("file", ground.app)))?;
    let solo = mesh.sidecar("bulk", ground.app, false)?;
    let ours = Pair::start(ground, "client", "server", false)?;
    let mut plain = vec![Target::ours("equerry", solo.outbound, "file", solo.server.family())];
    ground.peer(&mut plain, "nginx", "nginx", |site| site.single("nginx", "plain.nginx.conf"))?;
    ground.peer(&mut plain, "HAProxy", "haproxy", |site| site.single("haproxy", "plain.haproxy.cfg"))?;
    ground.peer(&mut plain, "Envoy", "envoy", |site| site.single("envoy", "plain.envoy.yaml"))?;
    let mut pairs = vec![ours.target("equerry pair", "server")];
    pair_peers(ground, &mut pairs)?;
    let down = Load::Closed { connections: 4, path: "/10m", script: "report.lua" };
    let mut found = Found::default();
    for (words, targets, ours, theirs) in [
        ("10 MiB responses, plain", &plain, "equerry", &["HAProxy"][..]),
        ("10 MiB responses, pair", &pairs, "equerry pair", &["HAProxy pair, HTTP/1", "HAProxy pair, HTTP/2"][..]),
    ] {
        let table = ground.table(words, targets, &down).context(words)?;
        found.bars.extend(table.bar(ours, theirs, 0.7));
        found.tables.push(table);
    }
    Ok(found)
}
