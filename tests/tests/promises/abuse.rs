//! Under abuse of HTTP/2 with frames made by hand a bystander is answered as fast as before, and the sidecar's memory stays bounded:
//! at the port where applications call, and at the one that others may reach in plain text.
//!
//! Each abuse goes on for as long as the sidecar bears it, and begins anew when it is thrown out.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use equerry::demo::town::Home;
use equerry::demo::web::Caller;
use equerry_tests::by_hand::{END_HEADERS, END_STREAM, Wire, block, frame};
use equerry_tests::workshop::Workshop;
use equerry_tests::{Mesh, eventually};
use tokio::task::JoinSet;

use crate::{PAIR, program};

const SOON: Duration = Duration::from_secs(15);
/// How long each abuse goes on.
const GOES_ON: Duration = Duration::from_millis(500);
/// Connections that abuse at once.
const AT_ONCE: usize = 1;
/// What a bystander's slowest request may take, in a build that is not optimised, beside an abuser and other tests on two cores.
const PATIENCE: Duration = Duration::from_secs(3);
/// How much a sidecar may grow by it all, in KiB. Where callers take nothing of what they ask for, a piece of their answers waits
/// for each of their streams.
const ROOM: u64 = 192 * 1024;

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

/// Frames that are sent again and again; `number` counts them on one connection.
type Frames = fn(number: u32) -> Vec<u8>;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

fn fields(path: &'static [u8]) -> Vec<(&'static [u8], &'static [u8])> {
    vec![(b":method", b"GET"), (b":scheme", b"http"), (b":path", path), (b":authority", b"inventory")]
}

/// The head of a request on the connection's stream of that number.
fn get(number: u32, path: &'static [u8]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 2 * number + 1, &block(&fields(path)))
}

fn post(number: u32) -> Vec<u8> {
    let mut fields = fields(b"/sum");
    fields[0].1 = b"POST";
    frame(HEADERS, END_HEADERS, 2 * number + 1, &block(&fields))
}

/// A first field of 4,000 bytes that enters the table, and 12,000 times its number: 48 MB when decompressed.
fn bomb(number: u32) -> Vec<u8> {
    let large = [&[0x40, 1, b'a', 0x7f, 0xa1, 0x1e][..], &[b'v'; 4_000], &[0xbe; 12_000]].concat();
    frame(HEADERS, END_STREAM | END_HEADERS, 2 * number + 1, &[block(&fields(b"/status/200")), large].concat())
}

/// Ten thousand fields of no length.
fn many(number: u32) -> Vec<u8> {
    let tiny = [0, 1, b'x', 0].repeat(3_000);
    frame(HEADERS, END_STREAM | END_HEADERS, 2 * number + 1, &[block(&fields(b"/status/200")), tiny].concat())
}

/// As many requests as an honest caller might have open, and then nothing.
fn many_at_once(number: u32, path: &'static [u8]) -> Vec<u8> {
    if number <= 128 { get(number, path) } else { Vec::new() }
}

/// A first frame on its own; then what follows it.
fn after(number: u32, first: Vec<u8>, then: Vec<u8>) -> Vec<u8> {
    if number == 0 { first } else { then }
}

const ABUSES: [(&str, Frames); 19] = [
    ("streams begun and reset", |number| {
        [get(number, b"/bytes/100000"), frame(3, 0, 2 * number + 1, &[0, 0, 0, 8])].concat()
    }),
    ("streams that we are made to reset by a window", |number| {
        [get(number, b"/bytes/10"), frame(8, 0, 2 * number + 1, &[0; 4])].concat()
    }),
    ("streams that we are made to reset by a priority", |number| {
        [get(number, b"/bytes/10"), frame(2, 0, 2 * number + 1, b"")].concat()
    }),
    ("a block without an end", |number| {
        after(number, frame(HEADERS, END_STREAM, 1, b""), frame(CONTINUATION, 0, 1, &[0; 8_000]))
    }),
    ("a block of empty frames", |number| {
        after(number, frame(HEADERS, END_STREAM, 1, b""), frame(CONTINUATION, 0, 1, b""))
    }),
    ("PING", |_| frame(6, 0, 0, &[7; 8])),
    ("SETTINGS", |_| frame(4, 0, 0, b"")),
    ("SETTINGS that change the table", |number| frame(4, 0, 0, &[0, 1, 0, 0, (number & 15) as u8, 0])),
    ("empty DATA", |number| after(number, post(0), frame(0, 0, 1, b""))),
    ("DATA of nothing but padding", |number| after(number, post(0), frame(0, 8, 1, &[200; 201]))),
    ("tiny DATA", |number| after(number, post(0), frame(0, 0, 1, b"x"))),
    ("PRIORITY", |number| frame(2, 0, 2 * (number % 1000) + 1, &[0, 0, 0, 0, 16])),
    ("WINDOW_UPDATE", |_| frame(8, 0, 0, &[0, 0, 0, 1])),
    ("frames that nobody knows", |_| frame(0xee, 0, 0, &[1; 100])),
    ("GOAWAY", |_| frame(7, 0, 0, &[0; 8])),
    ("a bomb of fields", bomb),
    ("a great many fields", many),
    ("answers that nobody takes", |number| many_at_once(number, b"/bytes/1000000")),
    ("answers for which there is no window", |number| {
        // INITIAL_WINDOW_SIZE of 0.
        after(number, frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]), many_at_once(number, b"/bytes/100000"))
    }),
];

/// Abuses for as long as that is borne, and begins anew.
async fn abuse(door: SocketAddr, frames: Frames, until: Instant) -> Result<usize> {
    let mut connections = 0;
    while Instant::now() < until {
        let mut wire = Wire::http2(door).await?;
        connections += 1;
        let mut number = 0;
        // What it answers is not read.
        while Instant::now() < until {
            let next = number + 32;
            let bytes: Vec<u8> = (number..next).flat_map(frames).collect();
            if bytes.is_empty() {
                // What was asked for stays open.
                tokio::time::sleep_until(until.into()).await;
            } else if !wire.says(&bytes, until).await {
                break;
            }
            number = next;
        }
    }
    Ok(connections)
}

/// How long a bystander's requests took, one after the other: the slowest, and how many there were.
async fn bystander(by: &Caller, until: Instant) -> Result<(Duration, usize)> {
    let mut took = Vec::new();
    while Instant::now() < until {
        let began = Instant::now();
        let answer = by.get("inventory", "/status/200", &[]).await?;
        ensure!(answer.status == 200, "a bystander got {}", answer.shown());
        took.push(began.elapsed());
    }
    Ok((took.iter().max().copied().unwrap_or_default(), took.len()))
}

async fn resident(mesh: &Mesh, home: &Home) -> Result<u64> {
    let id = mesh.town.sidecar_id(home).await.context("the sidecar does not run")?;
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_done_with_frames_a_bystander_is_answered_and_memory_stays_bounded() -> Result<()> {
    let mesh = Mesh::found(program(), &PAIR[..2], DOCUMENTS).await?;
    let (orders, inventory) = (mesh.town.home("orders")?, mesh.town.home("inventory-v1")?);
    inventory.app.release();
    let _application = Workshop::open(inventory.app.number()).await?;
    mesh.start_sidecars(&[]).await?;
    eventually(SOON, "orders to reach inventory", async || {
        Ok((orders.through_sidecar().get("inventory", "/status/200", &[]).await?.status == 200).then_some(()))
    })
    .await?;

    let mut wrong = Vec::new();
    for (home, door) in [(orders, orders.outbound.address()), (inventory, inventory.inbound.address())] {
        let door: SocketAddr = door.parse()?;
        let by = Caller::new(door);
        bystander(&by, Instant::now() + GOES_ON).await?;
        let before = resident(&mesh, home).await?;
        let mut most = before;
        for (name, frames) in ABUSES {
            let until = Instant::now() + GOES_ON;
            let mut abusers = JoinSet::new();
            for _ in 0..AT_ONCE {
                abusers.spawn(abuse(door, frames, until));
            }
            let (slowest, answered) = bystander(&by, until).await.with_context(|| name.to_owned())?;
            let connections: usize = abusers.join_all().await.into_iter().sum::<Result<usize>>()?;
            let now = resident(&mesh, home).await?;
            most = most.max(now);
            println!(
                "{name}: {connections} connections, {answered} answers, {slowest:?}, {} KiB",
                now.saturating_sub(before)
            );
            if slowest > PATIENCE {
                wrong.push(format!(
                    "{}: {name}: {answered} answers to a bystander, within {slowest:?}",
                    home.resident.name
                ));
            }
        }
        let grown = most.saturating_sub(before);
        if grown > ROOM {
            wrong.push(format!("{} grew by {} MiB", home.resident.name, grown / 1024));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
