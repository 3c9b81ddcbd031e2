//! Databases and caches that speak their own protocols stand in the mesh like everybody else: reached by a local port,
//! encrypted between sidecars, allowed or not by who calls, and cut off when that changes.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use equerry::demo::ports::HeldPort;
use equerry_tests::{Mesh, eventually, peers};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use crate::{PAIR, program};

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec:
  selector: {app: inventory}
  ports: [{port: 5432, targetPort: 8080, appProtocol: tcp}]
";
const ONLY_OTHERS: &str = "\
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: only-others, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: db}]
  action: ALLOW
  rules:
  - from: [{source: {principals: [equerry.local/ns/shop/sa/frontend]}}]
";

/// A mesh in which the account `inventory` runs a server of somebody else's making.
struct Served {
    mesh: Mesh,
    /// Where the application of `orders` reaches it.
    local: String,
    _server: Child,
    _dir: TempDir,
}

/// Brings it up; `serve` says how the server is started on a port, given a directory of its own.
async fn served(serve: impl AsyncFnOnce(u16, &Path) -> Result<Command>) -> Result<Served> {
    let mesh = Mesh::plan(program(), &PAIR[..2]).await?;
    let town = &mesh.town;
    let (orders, inventory) = (town.home("orders")?, town.home("inventory-v1")?);
    town.start_control_plane(&[]).await?;
    mesh.apply(SERVICE).await?;
    let dir = tempfile::Builder::new().prefix("equerry-server-").tempdir()?;
    inventory.app.release();
    let mut server = serve(inventory.app.number(), dir.path()).await?;
    let server = server.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn()?;
    let local = HeldPort::take()?;
    local.release();
    let named = format!("{}=db", local.number());
    for (home, more) in [(inventory, vec![]), (orders, vec!["--tcp", &named])] {
        town.join(home).await?;
        town.start_sidecar_with(home, &more).await?;
    }
    for home in [inventory, orders] {
        town.wait_ready(home).await?;
    }
    let local = local.number().to_string();
    Ok(Served { mesh, local, _server: server, _dir: dir })
}

/// The reasons that a sidecar has logged for its TCP connections.
fn reasons(log: PathBuf) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(log).context("reading an access log")?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let of_tcp = lines.filter(|line| line["protocol"] == "TCP");
    Ok(of_tcp.map(|line| line["reason"].as_str().unwrap_or_default().to_owned()).collect())
}

/// Debian keeps PostgreSQL's own programs where no PATH leads.
fn postgres_programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    versions.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).find(|bin| bin.join("initdb").is_file())
}

/// PostgreSQL on a new and empty data directory. It refuses to run as root, so root lends it the account that its package made.
async fn postgres(bin: &Path, port: u16, dir: &Path) -> Result<Command> {
    let data = dir.join("data");
    let root = rustix::process::geteuid().is_root();
    if root {
        let owner = ["-R", "postgres:", &dir.display().to_string()].map(str::to_owned);
        equerry_tests::run(Path::new("chown"), &owner.each_ref().map(String::as_str), Duration::from_secs(10))
            .await?
            .succeeded()?;
    }
    let as_nobody_special = |name: &str| {
        let mut command = Command::new(if root { Path::new("setpriv").to_owned() } else { bin.join(name) });
        if root {
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(bin.join(name));
        }
        command.current_dir(dir).arg("-D").arg(&data);
        command
    };
    let made = as_nobody_special("initdb").args(["-A", "trust", "-U", "postgres", "--no-sync"]).output().await?;
    ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
    let mut server = as_nobody_special("postgres");
    server.args(["-p", &port.to_string(), "-h", "127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]);
    server.args(["-c", "shared_memory_type=mmap", "-c", "dynamic_shared_memory_type=mmap"]);
    Ok(server)
}

#[tokio::test]
async fn psql_queries_postgresql_through_two_sidecars_until_policy_says_no() -> Result<()> {
    const INSTALL: &str = "apt-get install postgresql postgresql-client";
    let Some(bin) = postgres_programs().filter(|_| peers::installed("psql", INSTALL).unwrap_or_default()) else {
        peers::installed("initdb", INSTALL)?;
        return Ok(());
    };
    let Served { mesh, local, _server, _dir } = served(async |port, dir| postgres(&bin, port, dir).await).await?;
    let (orders, inventory) = (mesh.town.home("orders")?, mesh.town.home("inventory-v1")?);
    let psql = async |query: &str| {
        let to = ["-h", "127.0.0.1", "-p", &local, "-U", "postgres", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c"];
        peers::run("psql", &[to.as_slice(), &[query]].concat()).await
    };
    eventually(Duration::from_secs(20), "psql to reach PostgreSQL", async || {
        Ok(Some(
            psql("create table stock as select n, md5(n::text) from generate_series(1, 50000) n").await?.succeeded()?,
        ))
    })
    .await?;
    let said = psql("select count(*), max(n) from stock").await?.succeeded()?;
    ensure!(said.out.trim() == "50000|50000", "psql said {}", said.out);
    let said = psql("select * from stock order by n").await?.succeeded()?;
    ensure!(said.out.lines().count() == 50_000 && said.out.contains("\n49999|"), "{} bytes", said.out.len());

    copies_both_ways(&mesh, &local, &psql).await?;
    hears_what_others_say(&local, &psql).await?;
    sees_a_server_that_was_killed(&psql).await?;

    // Requests go nowhere there, and say why.
    let refused = orders.through_sidecar().get("db:5432", "/", &[]).await?;
    ensure!(refused.status == 400 && refused.shown().contains("speaks TCP"), "HTTP was answered {}", refused.shown());

    // A query that runs is cut off with the change, and the next is not let in.
    let sleeping = psql("select pg_sleep(60)");
    let denied = async {
        let sleeps = "select count(*) from pg_stat_activity where query like 'select pg_sleep%'";
        eventually(Duration::from_secs(10), "the query to run", async || {
            Ok((psql(sleeps).await?.succeeded()?.out.trim() == "1").then_some(()))
        })
        .await?;
        mesh.apply(ONLY_OTHERS).await
    };
    let (cut, applied) = tokio::join!(sleeping, denied);
    applied?;
    let cut = cut?;
    ensure!(cut.code != Some(0), "the query went on: {}", cut.out);
    ensure!(psql("select 1").await?.code != Some(0), "a connection was let in");
    eventually(Duration::from_secs(5), "both sidecars to say so", async || {
        let (near, far) = (reasons(orders.access_log())?, reasons(inventory.access_log())?);
        let refused = |reasons: &[String]| reasons.iter().filter(|reason| *reason == "authz_denied").count();
        if refused(&far) < 2 || refused(&near) < 1 {
            bail!("callee: {far:?}, caller: {near:?}");
        }
        Ok(Some(()))
    })
    .await
}

/// Twenty megabytes out of PostgreSQL, and into it again.
async fn copies_both_ways(
    mesh: &Mesh,
    local: &str,
    psql: &impl AsyncFn(&str) -> Result<equerry::demo::process::Said>,
) -> Result<()> {
    const ROWS: usize = 500_000;
    let out = psql(&format!("copy (select n, md5(n::text) from generate_series(1, {ROWS}) n) to stdout")).await?;
    let rows = out.succeeded()?.out;
    ensure!(rows.lines().count() == ROWS && rows.ends_with("\n"), "{} bytes came", rows.len());
    let file = mesh.file("rows", &rows)?;
    psql("create table copied (n integer, text text)").await?.succeeded()?;
    let copy = format!("\\copy copied from '{}'", file.display());
    let to = ["-h", "127.0.0.1", "-p", local, "-U", "postgres", "-X", "-c", &copy];
    peers::run("psql", &to).await?.succeeded()?;
    let said = psql("select count(*), count(distinct text), bool_and(md5(n::text) = text) from copied").await?;
    ensure!(said.succeeded()?.out.trim() == format!("{ROWS}|{ROWS}|t"), "what was copied is not what came");
    Ok(())
}

/// A connection that asked for nothing is told something.
async fn hears_what_others_say(
    local: &str,
    psql: &impl AsyncFn(&str) -> Result<equerry::demo::process::Said>,
) -> Result<()> {
    let mut listener = Command::new("psql");
    listener.args(["-h", "127.0.0.1", "-p", local, "-U", "postgres", "-X", "-A", "-t"]).stdin(Stdio::piped());
    let mut listener = listener.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut says = listener.stdin.take().context("psql's input")?;
    let mut hears = BufReader::new(listener.stdout.take().context("psql's output")?).lines();
    let heard = async {
        says.write_all(b"listen news;\n\\echo listens\n").await?;
        while hears.next_line().await?.context("psql has ended")? != "listens" {}
        psql("notify news, 'it rains'").await?.succeeded()?;
        loop {
            // psql looks for what came whenever it has run a command.
            says.write_all(b"select 'nothing';\n").await?;
            let line = hears.next_line().await?.context("psql has ended")?;
            if line != "nothing" && line != "LISTEN" {
                return anyhow::Ok(line);
            }
        }
    };
    let heard = tokio::time::timeout(Duration::from_secs(10), heard).await.context("nothing was heard")??;
    ensure!(heard.contains("\"news\"") && heard.contains("it rains"), "psql heard {heard}");
    Ok(())
}

/// A query whose server process dies ends at once, and PostgreSQL is reached again when it is back.
async fn sees_a_server_that_was_killed(
    psql: &impl AsyncFn(&str) -> Result<equerry::demo::process::Said>,
) -> Result<()> {
    let sleeping = psql("select pg_sleep(60), 'to be killed'");
    let killed = async {
        let find = "select pid from pg_stat_activity where query like 'select pg_sleep%to be killed%'";
        let pid = eventually(Duration::from_secs(10), "the query to run", async || {
            Ok(psql(find).await?.succeeded()?.out.trim().parse().ok().and_then(rustix::process::Pid::from_raw))
        })
        .await?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        anyhow::Ok(std::time::Instant::now())
    };
    let (ended, killed) = tokio::join!(sleeping, killed);
    let (ended, after) = (ended?, killed?.elapsed());
    ensure!(ended.code == Some(2) && ended.err.contains("server closed the connection"), "{}", ended.everything());
    ensure!(after < Duration::from_secs(5), "noticed after {after:?}");
    eventually(Duration::from_secs(20), "PostgreSQL to be back", async || {
        let said = psql("select count(*) from stock").await?.succeeded()?;
        ensure!(said.out.trim() == "50000", "psql said {}", said.out);
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn redis_cli_speaks_to_redis_through_two_sidecars() -> Result<()> {
    const INSTALL: &str = "apt-get install redis-server redis-tools";
    if !peers::installed("redis-server", INSTALL)? || !peers::installed("redis-cli", INSTALL)? {
        return Ok(());
    }
    let Served { mesh, local, _server, _dir } = served(async |port, dir| {
        let mut server = Command::new("redis-server");
        server.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]);
        server.arg(dir);
        Ok(server)
    })
    .await?;
    let cli = async |args: &[&str]| peers::run("redis-cli", &[&["-h", "127.0.0.1", "-p", &local], args].concat()).await;
    eventually(Duration::from_secs(20), "redis-cli to reach Redis", async || {
        let said = cli(&["ping"]).await?.succeeded()?.out;
        if said.trim() == "PONG" { Ok(Some(())) } else { bail!("{said}") }
    })
    .await?;
    let much = "x".repeat(100_000);
    ensure!(cli(&["set", "much", &much]).await?.succeeded()?.out.trim() == "OK", "a large value was not taken");
    ensure!(cli(&["get", "much"]).await?.succeeded()?.out.trim() == much, "a large value came back changed");
    let said = cli(&["-r", "200", "incr", "counted"]).await?.succeeded()?.out;
    ensure!(said.lines().last() == Some("200"), "200 commands on one connection: {said}");
    pipelines(&mesh, &local).await?;
    subscribes(&local, &cli).await?;
    let orders = mesh.town.home("orders")?;
    eventually(Duration::from_secs(10), "connections that ended well to be counted", async || {
        let well = [("destination", "shop/db"), ("reason", "ok")];
        Ok((orders.scrape().await?.sum("equerry_tcp_connections_total", &well) > 0.0).then_some(()))
    })
    .await
}

/// A hundred thousand commands are sent without waiting for their answers.
async fn pipelines(mesh: &Mesh, local: &str) -> Result<()> {
    let commands: String = (0..100_000).map(|number| format!("SET key:{number} {number}\r\n")).collect();
    let file = mesh.file("commands", &commands)?;
    let command = format!("redis-cli -h 127.0.0.1 -p {local} --pipe < {}", file.display());
    let said = peers::run("sh", &["-c", &command]).await?.succeeded()?.out;
    ensure!(said.contains("errors: 0, replies: 100000"), "{said}");
    Ok(())
}

/// A connection that asks for nothing more is told what others publish.
async fn subscribes(local: &str, cli: &impl AsyncFn(&[&str]) -> Result<equerry::demo::process::Said>) -> Result<()> {
    let mut subscriber = Command::new("redis-cli");
    subscriber.args(["-h", "127.0.0.1", "-p", local, "subscribe", "news"]).stdin(Stdio::null());
    let mut subscriber = subscriber.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut hears = BufReader::new(subscriber.stdout.take().context("its output")?).lines();
    eventually(Duration::from_secs(10), "somebody to hear", async || {
        Ok((cli(&["publish", "news", "it rains"]).await?.succeeded()?.out.trim() == "1").then_some(()))
    })
    .await?;
    let heard = async {
        while hears.next_line().await?.context("redis-cli has ended")? != "it rains" {}
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(10), heard).await.context("nothing was heard")?
}
