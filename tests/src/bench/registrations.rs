//! The control plane as a registry: how many instances a second it takes, each on disk before its answer, beside SQLite alone; and
//! how long its lists take while 10,000 sidecars hold their leases and streams, and with 10,000 instances that somebody registered.
//!
//! It has the whole machine, and so has whoever asks it: a control plane of its own, which no core is kept from.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use equerry::demo::town::Town;
use equerry_tests::api::Admin;
use http::StatusCode;

use super::found::{Bar, Figure, Found};
use super::ground::Ground;
use super::machine;
use super::mesh::Mesh;
use super::say;
use super::sidecars::Sidecars;

/// Instances in one request.
const BATCH: usize = 1_000;
/// Connections that register at once.
const CONNECTIONS: usize = 4;
/// What is to be beaten.
const WANTED_PER_SECOND: f64 = 87_746.0;
/// How many instances, or sidecars, are there while lists are asked for.
const LISTED: usize = 10_000;
/// How long a list may take, 99 times of a hundred.
const LIST_WITHIN: Duration = Duration::from_millis(100);
/// Services that the instances stand behind.
const SERVICES: usize = 100;
/// Each list is asked for this often.
const ASKED: usize = 100;

const BULK: &str = "/api/v1/instances:bulk";
const LINES: &str = "application/x-ndjson";

/// What is asked for, and what it is called while sidecars are connected and while instances are only registered.
const LISTS: [(&str, &str, &str); 10] = [
    ("/api/v1/services", "list of services, sidecars", "list of services, registered"),
    ("/api/v1/proxies", "list of proxies, sidecars", "list of proxies, registered"),
    ("/api/v1/instances", "list of instances, sidecars", "list of instances, registered"),
    ("/api/v1/documents", "list of documents, sidecars", "list of documents, registered"),
    (
        "/api/v1/instances?labelSelector=app%20in%20(r1,r2),version%3Dv1",
        "list by label, sidecars",
        "list by label, registered",
    ),
    ("/api/v1/instances?service=shop/r99", "instances of a Service, sidecars", "instances of a Service, registered"),
    ("/api/v1/services/shop/r1", "one service, sidecars", "one service, registered"),
    ("/api/v1/calls", "map of calls, sidecars", "map of calls, registered"),
    ("/api/v1/usage", "usage of tenants, sidecars", "usage of tenants, registered"),
    ("/api/v1/certificates", "certificates, sidecars", "certificates, registered"),
];

/// Lists first, among 10,000 sidecars and then among 10,000 instances; then registers new ones for `ground.time`.
///
/// # Errors
/// When the control plane does not answer, or refuses.
pub(crate) fn run(ground: &Ground) -> Result<Found> {
    let dir = ground.site.dir.join("registry");
    std::fs::create_dir_all(&dir)?;
    machine::rest_anywhere();
    let town = Town::plan(&std::env::current_exe()?, &dir, &[])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(town.start_control_plane(&[])).and_then(|()| {
        let mut found = lists(&town, &runtime, &dir)?;
        found.figures.extend(registrations(&town, &runtime, &dir, ground.time, &mut found.bars)?);
        Ok(found)
    });
    runtime.block_on(town.stop());
    machine::rest_on(machine::LOAD);
    found
}

fn lists(town: &Town, runtime: &tokio::runtime::Runtime, dir: &Path) -> Result<Found> {
    let services: Vec<String> = (0..SERVICES).map(|n| format!("r{n}")).collect();
    let file = dir.join("registrations.yaml");
    std::fs::write(&file, services.iter().map(|name| documents(name)).collect::<String>())?;
    runtime.block_on(town.equerry(&["apply", "-f", &file.display().to_string()]))?.succeeded()?;
    let mut found = Found::default();
    let sidecars = Sidecars::up(town, &services, LISTED)?;
    for (path, what, _) in LISTS {
        runtime.block_on(list(town, path, what, &mut found)).context(path)?;
    }
    sidecars.down()?;
    runtime.block_on(async {
        let mut admin = Admin::connect(town).await?;
        let mut batches = Batches::new("listed");
        for _ in 0..LISTED / BATCH {
            register(&mut admin, &mut batches).await?;
        }
        anyhow::Ok(())
    })?;
    for (path, _, what) in LISTS {
        runtime.block_on(list(town, path, what, &mut found)).context(path)?;
    }
    Ok(found)
}

/// Median and 99th percentile of one list.
async fn list(town: &Town, path: &str, what: &'static str, found: &mut Found) -> Result<()> {
    let mut admin = Admin::connect(town).await?;
    let mut size = 0;
    let mut times = Vec::with_capacity(ASKED);
    for _ in 0..ASKED {
        let asked = Instant::now();
        let (status, body) = admin.ask("GET", path, "application/json", Bytes::new()).await?;
        ensure!(status == StatusCode::OK, "{status}: {}", String::from_utf8_lossy(&body));
        times.push(asked.elapsed());
        size = body.len();
    }
    times.sort();
    let ms = |place: usize| times.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e3);
    let (median, p99) = (ms(ASKED / 2), ms(ASKED * 99 / 100 - 1));
    say(&format!("  {what}: median {median:.1} ms, p99 {p99:.1} ms, {size} bytes"));
    found.figures.push(Figure { of: "median", what, value: median, unit: "ms" });
    found.figures.push(Figure { of: "p99", what, value: p99, unit: "ms" });
    let limit = LIST_WITHIN.as_secs_f64() * 1e3;
    found.bars.push(Bar { says: format!("{what}: {LISTED}, p99 ≤ {limit} ms"), ratio: p99, limit, between: None });
    Ok(())
}

/// Registrations a second, beside what SQLite alone writes of the same rows, before and after.
fn registrations(
    town: &Town,
    runtime: &tokio::runtime::Runtime,
    dir: &Path,
    time: Duration,
    bars: &mut Vec<Bar>,
) -> Result<Vec<Figure>> {
    let before = sqlite_alone(&dir.join("before.db"))?;
    let (per_second, slowest) = runtime.block_on(registering(town, time))?;
    let after = sqlite_alone(&dir.join("after.db"))?;
    let alone = f64::midpoint(before, after);
    bars.push(Bar {
        says: format!("{WANTED_PER_SECOND} registrations/s ÷ ours ≤ 1"),
        ratio: WANTED_PER_SECOND / per_second,
        limit: 1.0,
        between: None,
    });
    let figure = |of, what, value, unit| Figure { of, what, value, unit };
    Ok(vec![
        figure("control plane", "registrations/s", per_second, ""),
        figure("control plane", "slowest batch", slowest.as_secs_f64() * 1e3, "ms"),
        figure("SQLite alone", "rows/s", alone, ""),
        figure("control plane ÷ SQLite alone", "registrations/s", per_second / alone, ""),
    ])
}

/// Registrations a second over `time`, and the slowest batch.
async fn registering(town: &Town, time: Duration) -> Result<(f64, Duration)> {
    say(&format!("  {CONNECTIONS} connections register batches of {BATCH}"));
    let began = Instant::now();
    let one = async |connection: usize| {
        let mut admin = Admin::connect(town).await?;
        let mut batches = Batches::new(&format!("c{connection}"));
        let (mut registered, mut slowest) = (0, Duration::ZERO);
        while began.elapsed() < time {
            let asked = Instant::now();
            register(&mut admin, &mut batches).await?;
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

async fn register(admin: &mut Admin, batches: &mut Batches) -> Result<()> {
    let (body, last) = batches.next();
    let (status, answer) = admin.ask("POST", BULK, LINES, body).await?;
    // Each line answers one instance; the last names the last one and its Service.
    let accepted = answer.iter().filter(|byte| **byte == b'\n').count();
    let tail = answer.get(answer.len().saturating_sub(last.len())..).unwrap_or_default();
    let as_asked = status == StatusCode::OK && accepted == BATCH && tail == last.as_bytes();
    ensure!(as_asked, "{status}, {accepted} lines: {}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// Batches of instances that nobody has registered yet, one a line. What is the same in all is written once, so that the time it
/// takes to make them is not what is measured.
struct Batches {
    name: String,
    text: Vec<u8>,
    /// Where each line says the number of the batch.
    places: Vec<usize>,
    batch: usize,
}

impl Batches {
    fn new(name: &str) -> Self {
        let (mut text, mut places) = (String::new(), Vec::with_capacity(BATCH));
        for n in 0..BATCH {
            let (service, third, fourth) = (n % SERVICES, n / 256, n % 256);
            text.push_str(&format!("{{\"id\":\"{name}-"));
            places.push(text.len());
            text.push_str(&format!(
                "000000-{n}\",\"account\":\"shop/r{service}\",\"labels\":{{\"app\":\"r{service}\",\"version\":\"v1\"}},\
                 \"inbound\":\"10.0.{third}.{fourth}:15006\",\"ports\":[8080],\"leaseSeconds\":3600}}\n"
            ));
        }
        Self { name: name.to_owned(), text: text.into(), places, batch: 0 }
    }

    /// The next batch, and how its answer ends.
    fn next(&mut self) -> (Bytes, String) {
        let number = format!("{:06}", self.batch);
        self.batch += 1;
        for place in &self.places {
            if let Some(digits) = self.text.get_mut(*place..place + number.len()) {
                digits.copy_from_slice(number.as_bytes());
            }
        }
        let (name, n) = (&self.name, BATCH - 1);
        let last = format!("{{\"instance\":\"shop/{name}-{number}-{n}\",\"services\":[\"shop/r{}\"]}}\n", n % SERVICES);
        (Bytes::copy_from_slice(&self.text), last)
    }
}

/// Rows a second that SQLite alone writes, as the control plane has it write: in batches of `BATCH`, each synced before the next.
fn sqlite_alone(path: &Path) -> Result<f64> {
    const FOR: Duration = Duration::from_secs(2);
    let mut db = rusqlite::Connection::open(path)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "secure_delete", true)?;
    db.execute_batch(
        "CREATE TABLE instances (namespace TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (namespace, id))
         STRICT, WITHOUT ROWID;",
    )?;
    let (mut spent, mut rows) = (Duration::ZERO, 0);
    for batch in 0.. {
        let of = |n: usize| {
            let (id, service) = (format!("c{}-{:06}-{n}", batch % CONNECTIONS, batch / CONNECTIONS), n % SERVICES);
            let body = format!(
                "{{\"id\":\"{id}\",\"account\":\"shop/r{service}\",\"generation\":1,\"labels\":{{\"app\":\"r{service}\",\"version\":\"v1\"}},\
                 \"inbound\":\"10.0.1.2:15006\",\"ports\":[8080],\"healthy\":true,\"healthDetail\":\"\",\"lease\":{{\"secs\":3600,\"nanos\":0}},\"byApi\":true}}"
            );
            (id, body)
        };
        let all: Vec<(String, String)> = (0..BATCH).map(of).collect();
        let began = Instant::now();
        let transaction = db.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO instances (namespace, id, body) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET body = excluded.body",
            )?;
            for (id, body) in &all {
                insert.execute(("shop", id, body))?;
            }
        }
        transaction.commit()?;
        spent += began.elapsed();
        rows += BATCH;
        if spent >= FOR {
            break;
        }
    }
    Ok(rows as f64 / spent.as_secs_f64())
}

/// A Service that selects instances of its name, and a tenant with a quota that is counted there.
fn documents(name: &str) -> String {
    format!(
        "{}---\napiVersion: equerry.dev/v1\nkind: Tenant\nmetadata: {{name: {name}}}\nspec:\n  match: [{{claim: {{name: tenant, value: {name}}}}}]\n  \
         quotas: [{{services: [shop/{name}], requests: 1000000, window: 1h}}]\n---\n",
        Mesh::service(name, "STRICT")
    )
}
