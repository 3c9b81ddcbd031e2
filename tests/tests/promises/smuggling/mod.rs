//! No request hides in another: whatever two readers could read differently is refused by the mesh, and what passes is read by
//! nginx, HAProxy, Node and hyper as it was judged. After each row the next request is answered for itself, on the same
//! connection where it stays, and on a fresh one.
//!
//! What the application took for requests is compared, in the
//! end, with all that it was to see: nothing may be missing, twice, or there beside it.

mod answers;
mod rows;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use equerry_tests::by_hand::{Came, Wire, ask_http2};
use equerry_tests::strangers::{ALL, Kind, Stranger};
use equerry_tests::{Mesh, eventually};

use crate::{PAIR, program};
use rows::Must::{BeRefused, Break, Pass, PassThenRefuse};
use rows::{HIDDEN, HTTP2, Must};

const SOON: Duration = Duration::from_secs(15);

const DOCUMENTS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: inventory, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {app: inventory}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: equerry.dev/v1
kind: PeerAuthentication
metadata: {name: inventory, namespace: shop}
spec: {selector: {matchLabels: {app: inventory}}, mtls: {mode: PERMISSIVE}}
";

/// A row whose targets are its own.
struct Asked {
    name: &'static str,
    bytes: Vec<u8>,
    must: Must,
    number: usize,
}

impl Asked {
    fn own(&self, text: &str) -> String {
        let number = self.number;
        let text = text.replace("ROW", &format!("/row-{number}")).replace("SECOND", &format!("/second-{number}"));
        text.replace("HIDDEN", &format!("/hidden-{number}"))
    }
}

fn rows(from: usize) -> Vec<Asked> {
    let all = rows::heads().into_iter().chain(rows::chunks()).chain(rows::good()).chain(rows::upgrades()).enumerate();
    all.map(|(number, (name, text, must))| {
        let mut row = Asked { name, bytes: Vec::new(), must, number: from + number };
        // Targets of one length, so that lengths are right.
        row.bytes = with_lengths(&row, &text);
        row
    })
    .collect()
}

/// The text with its own targets; a body that is a whole request is as long as its length says.
fn with_lengths(row: &Asked, text: &str) -> Vec<u8> {
    let (was, is) = (HIDDEN.len(), row.own(HIDDEN).len());
    let text = text.replace(&format!("content-length: {was}\r\n"), &format!("content-length: {is}\r\n"));
    let text = text.replace(&format!("\r\n{was:x}\r\n"), &format!("\r\n{is:x}\r\n"));
    row.own(&text).into_bytes()
}

/// How often the application may have taken something for a request.
type Counts = BTreeMap<String, (usize, usize)>;

async fn asks(wire: &mut Wire, counts: &mut Counts, target: String) -> Result<()> {
    wire.say(format!("GET {target} HTTP/1.1\r\nhost: inventory\r\n\r\n").as_bytes()).await;
    let line = format!("GET {target}");
    let answer = wire.answer("GET").await?.context("the next request is not answered")?;
    ensure!((answer.status, answer.body.as_str()) == (200, line.as_str()), "the next request got {answer:?}");
    counts.insert(line, (1, 1));
    Ok(())
}

async fn is_refused(wire: &mut Wire, silence_is_one: bool) -> Result<()> {
    match wire.answer("GET").await? {
        Some(answer) => ensure!((400..600).contains(&answer.status) && answer.status != 503, "{answer:?}"),
        None => ensure!(silence_is_one, "it was not answered"),
    }
    ensure!(wire.is_over().await?, "the connection stays");
    Ok(())
}

/// Sends a row to a door, and the requests that come after it.
async fn row(asked: &Asked, door: SocketAddr, counts: &mut Counts) -> Result<()> {
    let mut wire = Wire::to(door).await?;
    wire.say(&asked.bytes).await;
    match asked.must {
        BeRefused => is_refused(&mut wire, false).await?,
        Break => {
            counts.insert(asked.own("POST ROW"), (0, 1));
            is_refused(&mut wire, true).await?;
        }
        Pass(lines, stays) => {
            for line in lines {
                let line = asked.own(line);
                let answer = wire.answer("GET").await?.with_context(|| format!("{line} was not answered"))?;
                ensure!((answer.status, answer.body.as_str()) == (200, line.as_str()), "{line} got {answer:?}");
                counts.insert(line, (1, 1));
            }
            if stays {
                ensure!(wire.is_quiet(), "more came than was asked for");
                asks(&mut wire, counts, format!("/same-{}", asked.number)).await?;
            } else {
                ensure!(wire.is_over().await?, "the connection stays");
            }
        }
        PassThenRefuse(line) => {
            let line = asked.own(line);
            let answer = wire.answer("GET").await?.with_context(|| format!("{line} was not answered"))?;
            ensure!((answer.status, answer.body.as_str()) == (200, line.as_str()), "{line} got {answer:?}");
            counts.insert(line, (1, 1));
            is_refused(&mut wire, false).await?;
        }
    }
    asks(&mut Wire::to(door).await?, counts, format!("/fresh-{}", asked.number)).await
}

async fn over_http2(door: SocketAddr) -> Result<()> {
    for (name, odd) in HTTP2 {
        let given = |name| odd.iter().find(|(given, _)| *given == name).map(|(_, value)| *value);
        let usual = [(":method", "GET"), (":scheme", "http"), (":path", "/row"), (":authority", "inventory")];
        let pseudo = usual.map(|(name, value)| (name, given(name).unwrap_or(value)));
        let more = odd.iter().copied().filter(|(name, _)| !name.starts_with(':'));
        let fields: Vec<(&[u8], &[u8])> =
            pseudo.into_iter().chain(more).map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        let came = ask_http2(door, &fields).await?;
        let refused =
            matches!(&came, Came::Reset) || matches!(&came, Came::Answer(400, body) if body.contains("bad_request"));
        ensure!(refused, "HTTP/2, {name}: {came:?}");
    }
    Ok(())
}

/// The mesh with this application, and what of all rows went wrong.
async fn against(kind: Kind) -> Result<()> {
    if !kind.is_installed()? {
        return Ok(());
    }
    let mesh = Mesh::found(program(), &PAIR[..2], DOCUMENTS).await?;
    let (orders, inventory) = (mesh.town.home("orders")?, mesh.town.home("inventory-v1")?);
    inventory.app.release();
    let stranger = kind.start(inventory.app.number()).await?;
    mesh.start_sidecars(&[]).await?;
    let mut counts = Counts::new();
    eventually(SOON, "orders to reach inventory", async || {
        let answer = orders.through_sidecar().get("inventory", "/ready", &[]).await?;
        Ok((answer.status == 200).then_some(()))
    })
    .await?;
    counts.insert("GET /ready".to_owned(), (1, usize::MAX));

    let mut wrong = Vec::new();
    for (door, address, from) in
        [("outbound", orders.outbound.address(), 1000), ("inbound", inventory.inbound.address(), 2000)]
    {
        let address = address.parse()?;
        for asked in rows(from) {
            let passed = row(&asked, address, &mut counts).await;
            wrong.extend(passed.err().map(|error| format!("{door}, {}: {error:#}", asked.name)));
        }
        wrong.extend(over_http2(address).await.err().map(|error| format!("{door}, {error:#}")));
    }
    let disagreement = agrees(&stranger, &counts).await.err();
    wrong.extend(disagreement.map(|error| format!("{error:#}")));
    ensure!(wrong.is_empty(), "{kind:?}:\n{}", wrong.join("\n"));
    Ok(())
}

/// Compares what the application took for requests with what it was to see.
async fn agrees(stranger: &Stranger, counts: &Counts) -> Result<()> {
    eventually(SOON, "the application to have seen what it was to see, and nothing else", async || {
        let mut seen = BTreeMap::<String, usize>::new();
        for line in stranger.seen()? {
            *seen.entry(line).or_default() += 1;
        }
        for (line, times) in &seen {
            // A connection that ends in the middle is logged by some as a request that cannot be read.
            let (_, most) = counts.get(line).copied().unwrap_or_default();
            ensure!(*times <= most, "{line:?} was seen {times} times, at most {most} were sent");
        }
        let missing = counts.iter().find(|(line, (least, _))| seen.get(*line).copied().unwrap_or_default() < *least);
        if let Some((line, _)) = missing {
            bail!("{line:?} was not seen");
        }
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn no_request_hides_from_the_mesh_before_nginx() -> Result<()> {
    against(ALL[0]).await
}

#[tokio::test]
async fn no_request_hides_from_the_mesh_before_haproxy() -> Result<()> {
    against(ALL[1]).await
}

#[tokio::test]
async fn no_request_hides_from_the_mesh_before_node() -> Result<()> {
    against(ALL[2]).await
}

#[tokio::test]
async fn no_request_hides_from_the_mesh_before_hyper() -> Result<()> {
    against(ALL[3]).await
}
