//! Pairs: client → sidecar → mutual TLS 1.3 → sidecar → application, of ours and of peers.

use anyhow::Result;

use super::found::{Figure, Found, Table};
use super::ground::Ground;
use super::load::{Load, Sample};
use super::measure::{Row, Side, Target};
use super::mesh::{Mesh, Sidecar};
use super::peers::Site;
use super::say;
use super::scenarios::closed;

/// Ours, as it chooses its protocol itself.
pub(crate) const OURS: &str = "equerry pair";
/// Ours, told to speak HTTP/1.1 between the two.
const OURS_HTTP1: &str = "equerry pair, HTTP/1";
/// HAProxy's, as its bars ask for it.
const HAPROXY_HTTP2: &str = "HAProxy pair, HTTP/2";

/// The two sidecars of a pair; their processes end when this is dropped.
#[derive(Debug)]
pub(crate) struct Pair {
    /// The caller's.
    pub(crate) client: Sidecar,
    /// The application's.
    pub(crate) server: Sidecar,
}

impl Pair {
    /// Starts `client` in front of `server` in front of the application on `app`, both with these further words.
    ///
    /// # Errors
    /// When one does not come up.
    pub(crate) fn start(
        ground: &Ground,
        client: &str,
        server: &str,
        app: u16,
        access_log: bool,
        more: &[&str],
    ) -> Result<Self> {
        Ok(Self {
            server: ground.mesh.sidecar_with(server, app, access_log, more)?,
            client: ground.mesh.sidecar_with(client, app, access_log, more)?,
        })
    }

    /// It, asked for a Service.
    pub(crate) fn target(&self, name: &'static str, service: &str) -> Target {
        let pids = [self.client.server.family(), self.server.server.family()].concat();
        Target::ours(name, self.client.outbound, service, pids)
    }
}

/// The Service of the pair.
pub(crate) fn pair_policies(ground: &Ground) -> Result<()> {
    ground.mesh.apply("pair", &Mesh::service("server", "STRICT"))
}

/// Every peer's pair in front of the application that `site` names.
///
/// # Errors
/// When one is there and does not come up.
pub(crate) fn pair_peers(ground: &Ground, targets: &mut Vec<Target>, site: &Site) -> Result<()> {
    ground.peer(targets, "nginx pair", "nginx", |_| {
        site.pair("nginx", "pair-client.nginx.conf", "pair-server.nginx.conf")
    })?;
    ground.peer(targets, "HAProxy pair, HTTP/1", "haproxy", |_| {
        site.pair("haproxy", "pair-client-h1.haproxy.cfg", "pair-server-h1.haproxy.cfg")
    })?;
    ground.peer(targets, HAPROXY_HTTP2, "haproxy", |_| {
        site.pair("haproxy", "pair-client-h2.haproxy.cfg", "pair-server-h2.haproxy.cfg")
    })?;
    ground.peer(targets, "Envoy pair, HTTP/1", "envoy", |_| {
        site.pair("envoy", "pair-client-h1.envoy.yaml", "pair-server-h1.envoy.yaml")
    })?;
    ground.peer(targets, "Envoy pair, HTTP/2", "envoy", |_| {
        site.pair("envoy", "pair-client-h2.envoy.yaml", "pair-server-h2.envoy.yaml")
    })
}

/// S2.
///
/// # Errors
/// When something does not come up, or does not answer.
pub(crate) fn plain_policy(ground: &Ground) -> Result<Found> {
    pair_policies(ground)?;
    let ours = Pair::start(ground, "client", "server", ground.app, false, &[])?;
    let mut targets = vec![ours.target(OURS, "server")];
    let http1 = if ground.mesh.proxy_knows("--mesh-protocol")? {
        ground.mesh.apply("pair-2", &Mesh::service("server-2", "STRICT"))?;
        let words = ["--mesh-protocol", "http1"];
        Some(Pair::start(ground, "client-2", "server-2", ground.app, false, &words)?)
    } else {
        say("  this equerry-proxy has no --mesh-protocol: no pair of ours over HTTP/1.1");
        None
    };
    targets.extend(http1.as_ref().map(|pair| pair.target(OURS_HTTP1, "server-2")));
    pair_peers(ground, &mut targets, &ground.site)?;
    let mut found = Found::default();
    for connections in [64, 500] {
        let table = ground.table(&format!("{connections} connections"), &targets, &closed(connections))?;
        found.bars.extend(table.bar(OURS, &[HAPROXY_HTTP2], 1.4));
        found.bars.extend(table.bar(OURS, &["nginx pair"], 1.0));
        found.bars.extend(table.bar(OURS, &["Envoy pair, HTTP/1", "Envoy pair, HTTP/2"], 0.5));
        found.tables.push(table);
    }
    Ok(found)
}

/// Applies everything that a pair can be asked for, on both sides.
///
/// # Errors
/// When it is refused.
pub(crate) fn full_policies(ground: &Ground) -> Result<()> {
    let documents = Mesh::service("server-on", "STRICT")
        + &ground.mesh.inbound_policy("server-on")
        + &Mesh::outbound_policy("server-on")
        + &Mesh::tenant(&["server-on"]);
    ground.mesh.apply("policy-pair", &documents)
}

/// S2p.
///
/// # Errors
/// When something does not come up, or does not answer.
pub(crate) fn full_policy(ground: &Ground) -> Result<Found> {
    pair_policies(ground)?;
    full_policies(ground)?;
    let off = Pair::start(ground, "client", "server", ground.app, false, &[])?;
    let on = Pair::start(ground, "client-on", "server-on", ground.app, true, &[])?;
    let bearer = format!("Authorization: Bearer {}", ground.mesh.token());
    let targets = [
        off.target("equerry pair, policy off", "server"),
        on.target("equerry pair, full policy", "server-on").with(bearer),
    ];
    let table = ground.table("64 connections", &targets, &closed(64))?;
    let bars = table.bar("equerry pair, full policy", &["equerry pair, policy off"], 1.3).into_iter().collect();
    Ok(Found { tables: vec![table], bars, ..Found::default() })
}

/// S5.
///
/// # Errors
/// When something does not come up, or does not answer.
pub(crate) fn open_loop(ground: &Ground) -> Result<Found> {
    pair_policies(ground)?;
    let ours = Pair::start(ground, "client", "server", ground.app, false, &[])?;
    let direct = Target {
        name: "no proxy at all",
        side: Side::Floor,
        port: ground.app,
        headers: Vec::new(),
        servers: Vec::new(),
        shared: Vec::new(),
    };
    let mut targets = vec![direct, ours.target(OURS, "server")];
    pair_peers(ground, &mut targets, &ground.site)?;
    let load = Load::Paced { rate: 5_000, connections: 64 };
    let table = ground.table("5,000 requests/s over 64 connections", &targets, &load)?;
    let figures = added(&table);
    Ok(Found { tables: vec![table], figures, ..Found::default() })
}

/// A percentile: its name, and where it is in a sample.
type Share = (&'static str, fn(&Sample) -> f64);

/// What each pair adds to the latency without any proxy, the first row.
fn added(table: &Table) -> Vec<Figure> {
    let Some((bare, others)) = table.rows.split_first() else { return Vec::new() };
    let shares: [Share; 3] =
        [("added at p50", |of| of.p50), ("added at p99", |of| of.p99), ("added at p99.9", |of| of.p999)];
    let added = |row: &Row| {
        let (median, of) = (row.median.clone(), row.name);
        shares.map(|(what, at)| Figure { of, what, value: at(&median) - at(&bare.median), unit: "µs" })
    };
    others.iter().flat_map(added).collect()
}
