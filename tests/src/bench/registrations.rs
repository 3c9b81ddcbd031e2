//! The control plane as a registry: how many instances a second it takes, each on disk before its answer, and how long its
//! lists take once 10,000 are known.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use equerry_tests::api::Admin;
use http::StatusCode;
use serde_json::json;

use super::found::{Bar, Figure, Found};
use super::ground::Ground;
use super::mesh::Mesh;
use super::say;

/// Instances in one request.
const BATCH: usize = 1_000;
/// Connections that register at once.
const CONNECTIONS: usize = 4;
/// What is to be beaten.
const WANTED_PER_SECOND: f64 = 87_746.0;
/// How many instances lists are asked with.
const LISTED: usize = 10_000;
/// How long a list may take, 99 times of a hundred.
const LIST_WITHIN: Duration = Duration::from_millis(100);
/// Services that the instances stand behind.
const SERVICES: usize = 100;
/// Each list is asked for this often.
const ASKED: usize = 100;

const BULK: &str = "/api/v1/instances:bulk";
const LINES: &str = "application/x-ndjson";

/// Lists first, at 10,000 instances; then registers new ones for `ground.time`.
///
/// # Errors
/// When the control plane does not answer, or refuses.
pub(crate) fn run(ground: &Ground) -> Result<Found> {
    let services: Vec<String> = (0..SERVICES).map(|n| Mesh::service(&format!("r{n}"), "STRICT")).collect();
    ground.mesh.apply("registrations", &services.join("---\n"))?;
    let (town, runtime) = ground.mesh.parts();
    let mut found = Found::default();
    runtime.block_on(async {
        let mut admin = Admin::connect(town).await?;
        for batch in 0..LISTED / BATCH {
            register(&mut admin, &lines("listed", batch)).await?;
        }
        for (what, path) in [
            ("list of services", "/api/v1/services"),
            ("list of proxies", "/api/v1/proxies"),
            ("list of instances", "/api/v1/instances"),
            ("list of documents", "/api/v1/documents"),
            ("list by label", "/api/v1/instances?labelSelector=app%20in%20(r1,r2),version%3Dv1"),
            ("instances of a Service", "/api/v1/instances?service=shop/r99"),
            ("one service", "/api/v1/services/shop/r1"),
            ("map of calls", "/api/v1/calls"),
            ("usage of tenants", "/api/v1/usage"),
            ("certificates", "/api/v1/certificates"),
        ] {
            let [median, p99] = times_of_list(&mut admin, path).await.context(path)?;
            found.figures.push(Figure { of: "median", what, value: median.as_secs_f64() * 1e3, unit: "ms" });
            found.figures.push(Figure { of: "p99", what, value: p99.as_secs_f64() * 1e3, unit: "ms" });
            found.bars.push(Bar {
                says: format!("{what} at {LISTED} instances, p99 ≤ {} ms", LIST_WITHIN.as_millis()),
                ratio: p99.as_secs_f64() * 1e3,
                limit: LIST_WITHIN.as_secs_f64() * 1e3,
            });
        }
        anyhow::Ok(())
    })?;
    let (per_second, slowest) = runtime.block_on(registering(ground))?;
    found.figures.push(Figure { of: "control plane", what: "registrations/s", value: per_second, unit: "" });
    found.figures.push(Figure {
        of: "control plane",
        what: "slowest batch",
        value: slowest.as_secs_f64() * 1e3,
        unit: "ms",
    });
    let says = format!("{WANTED_PER_SECOND} registrations/s ÷ ours ≤ 1");
    found.bars.push(Bar { says, ratio: WANTED_PER_SECOND / per_second, limit: 1.0 });
    Ok(found)
}

/// Registrations a second over `ground.time`, and the slowest batch.
async fn registering(ground: &Ground) -> Result<(f64, Duration)> {
    let (town, _) = ground.mesh.parts();
    say(&format!("  {CONNECTIONS} connections register batches of {BATCH}"));
    let began = Instant::now();
    let one = async |connection: usize| {
        let mut admin = Admin::connect(town).await?;
        let (mut registered, mut slowest) = (0, Duration::ZERO);
        for batch in 0.. {
            if began.elapsed() >= ground.time {
                break;
            }
            let body = lines(&format!("c{connection}"), batch);
            let asked = Instant::now();
            register(&mut admin, &body).await?;
            slowest = slowest.max(asked.elapsed());
            registered += BATCH;
        }
        anyhow::Ok((registered, slowest))
    };
    let outcomes = futures_util::future::try_join_all((0..CONNECTIONS).map(one)).await?;
    let took = began.elapsed().as_secs_f64();
    let registered: usize = outcomes.iter().map(|(registered, _)| registered).sum();
    let slowest = outcomes.iter().map(|(_, slowest)| *slowest).max().unwrap_or_default();
    Ok((registered as f64 / took, slowest))
}

async fn register(admin: &mut Admin, body: &Bytes) -> Result<()> {
    let (status, answer) = admin.ask("POST", BULK, LINES, body.clone()).await?;
    let accepted = accepted_in(&answer);
    ensure!(status == StatusCode::OK && accepted == BATCH, "{status}: {}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// Answers that name a Service: the accepted.
fn accepted_in(answer: &[u8]) -> usize {
    answer.split(|byte| *byte == b'\n').filter(|line| line.windows(8).any(|part| part == b"[\"shop/r")).count()
}

/// A batch of instances that nobody has registered yet, one a line.
fn lines(name: &str, batch: usize) -> Bytes {
    let line = |n: usize| {
        let service = format!("r{}", n % SERVICES);
        let instance = json!({
            "id": format!("{name}-{batch}-{n}"),
            "account": format!("shop/{service}"),
            "labels": {"app": service, "version": "v1"},
            "inbound": format!("10.{}.{}.{}:15006", batch % 256, n / 256, n % 256),
            "ports": [8080],
            "leaseSeconds": 3600,
        });
        format!("{instance}\n")
    };
    (0..BATCH).map(line).collect::<String>().into()
}

/// Median and 99th percentile.
async fn times_of_list(admin: &mut Admin, path: &str) -> Result<[Duration; 2]> {
    let mut times = Vec::with_capacity(ASKED);
    for _ in 0..ASKED {
        let asked = Instant::now();
        let (status, body) = admin.ask("GET", path, "application/json", Bytes::new()).await?;
        ensure!(status == StatusCode::OK, "{status}: {}", String::from_utf8_lossy(&body));
        times.push(asked.elapsed());
    }
    times.sort();
    Ok([times[ASKED / 2], times[ASKED * 99 / 100 - 1]])
}
