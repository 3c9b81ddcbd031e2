//! Bulk: bodies of 10 MiB, down and up, through one proxy and through a pair.

use anyhow::{Context, Result};

use super::found::Found;
use super::ground::Ground;
use super::load::Load;
use super::measure::Target;
use super::mesh::Mesh;
use super::pairs::{OURS, Pair, pair_peers, pair_policies};
use super::peers::Site;

const DOWN: Load = Load::Closed { connections: 4, path: "/10m", script: "report.lua" };
const UP: Load = Load::Closed { connections: 4, path: "/up", script: "upload.lua" };

/// S4.
///
/// # Errors
/// When something does not come up, or does not answer.
pub(crate) fn run(ground: &Ground) -> Result<Found> {
    pair_policies(ground)?;
    let services = Mesh::service("bulk", "PERMISSIVE")
        + &Mesh::application("file", ground.app)
        + &Mesh::application("drain", ground.sink)
        + "---\n"
        + &Mesh::service("sink", "STRICT");
    ground.mesh.apply("bulk", &services)?;
    let mut found = Found::default();
    for (words, load, site, service) in [
        ("10 MiB responses, plain", &DOWN, ground.site.clone(), "file"),
        ("10 MiB uploads, plain", &UP, ground.site.facing(ground.sink), "drain"),
    ] {
        let solo = ground.mesh.sidecar("bulk", ground.app, false)?;
        let mut targets = vec![Target::ours("equerry", solo.outbound, service, solo.server.family())];
        single_peers(ground, &mut targets, &site)?;
        let table = ground.table(words, &targets, load).context(words)?;
        found.bars.extend(table.bar("equerry", &["HAProxy"], 0.7));
        found.tables.push(table);
    }
    for (words, load, site, app, service) in [
        ("10 MiB responses, pair", &DOWN, ground.site.clone(), ground.app, "server"),
        ("10 MiB uploads, pair", &UP, ground.site.facing(ground.sink), ground.sink, "sink"),
    ] {
        let ours = Pair::start(ground, "client", service, app, false, &[])?;
        let mut targets = vec![ours.target(OURS, service)];
        pair_peers(ground, &mut targets, &site)?;
        let table = ground.table(words, &targets, load).context(words)?;
        found.bars.extend(table.bar(OURS, &["HAProxy pair, HTTP/1", "HAProxy pair, HTTP/2"], 0.7));
        found.tables.push(table);
    }
    Ok(found)
}

fn single_peers(ground: &Ground, targets: &mut Vec<Target>, site: &Site) -> Result<()> {
    ground.peer(targets, "nginx", "nginx", |_| site.single("nginx", "plain.nginx.conf"))?;
    ground.peer(targets, "HAProxy", "haproxy", |_| site.single("haproxy", "plain.haproxy.cfg"))?;
    ground.peer(targets, "Envoy", "envoy", |_| site.single("envoy", "plain.envoy.yaml"))
}
