//! Sidecars come and go, and so does configuration, while calls pass: none of them fails, and no connection is dropped.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use equerry::demo::town::{Home, Resident, SHOP};
use equerry::demo::web::Caller;
use equerry_tests::conversation::{Channel, Chat, Words};
use equerry_tests::load::{Load, UnderWay};
use equerry_tests::workshop::Workshop;
use equerry_tests::{Mesh, api, eventually};
use http::StatusCode;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{PAIR, program};

const SOON: Duration = Duration::from_secs(15);
/// One Service with as many instances as there are, and no routes.
const INVENTORY: &str = "\
apiVersion: v1
kind: Service
metadata: {name: inventory, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {app: inventory}, ports: [{port: 80, targetPort: 8080}]}
";

/// And one whose application keeps streams open.
const STREAMING: &str = "\
apiVersion: v1
kind: Service
metadata: {name: streaming, namespace: shop, annotations: {equerry.dev/accounts: frontend}}
spec: {selector: {app: frontend}, ports: [{port: 80, targetPort: 8080, appProtocol: kubernetes.io/h2c}]}
";

/// Both instances by two names: one calls them by gRPC, the other changes its protocol.
const BOTH_WAYS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: calls, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {app: inventory}, ports: [{port: 80, targetPort: 8080, appProtocol: grpc}]}
---
apiVersion: v1
kind: Service
metadata: {name: chats, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {app: inventory}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}
";

/// A mesh in which `orders` calls the instances of `inventory`.
async fn mesh(residents: &[Resident], of_orders: &[&str]) -> Result<Mesh> {
    let mesh = Mesh::found(program(), residents, INVENTORY).await?;
    for home in &mesh.town.homes {
        let is_caller = home.resident.name == "orders";
        mesh.town.join(home).await?;
        mesh.town.start_sidecar_with(home, if is_caller { of_orders } else { &[] }).await?;
        if home.resident.account == "inventory" {
            mesh.town.start_app(home).await?;
        }
    }
    for home in &mesh.town.homes {
        mesh.town.wait_ready(home).await?;
    }
    // A client of its own, that keeps no connection beyond this.
    let caller = Caller::local(mesh.town.home("orders")?.outbound.number());
    for home in mesh.town.homes.iter().filter(|home| home.resident.account == "inventory") {
        eventually(SOON, &format!("orders to reach {}", home.resident.name), async || {
            let answer = caller.get("inventory", "/", &[]).await?;
            // A refusal would name it too.
            Ok((answer.status == 200 && answer.shown().contains(home.resident.name)).then_some(()))
        })
        .await?;
    }
    Ok(mesh)
}

fn load(home: &Home, gets: usize, posts: usize, http2: usize) -> Result<Load> {
    Ok(Load { to: home.outbound.address().parse()?, host: "inventory".to_owned(), gets, posts, http2 })
}

/// Waits until the application of `home` is called.
async fn is_called(home: &Home) -> Result<()> {
    home.forget().await?;
    eventually(SOON, &format!("{} to be called", home.resident.name), async || {
        Ok((!home.arrivals().await?.is_empty()).then_some(()))
    })
    .await
}

#[tokio::test]
async fn sidecars_of_a_callee_restarted_one_after_the_other_under_load_fail_no_call() -> Result<()> {
    restarts_fail_no_call("http1").await
}

#[tokio::test]
async fn the_same_over_whatever_sidecars_choose_to_speak() -> Result<()> {
    restarts_fail_no_call("auto").await
}

async fn restarts_fail_no_call(between: &str) -> Result<()> {
    let mesh = mesh(&PAIR, &["--mesh-protocol", between]).await?;
    let town = &mesh.town;
    let under_way = load(town.home("orders")?, 4, 4, 2)?.begin();
    for _ in 0..2 {
        for name in ["inventory-v1", "inventory-v2"] {
            let home = town.home(name)?;
            is_called(home).await?;
            town.stop_sidecar(home).await;
            town.start_sidecar(home).await?;
            town.wait_ready(home).await?;
            is_called(home).await?;
        }
    }
    let tally = under_way.end().await?;
    tally.all_well()?;
    ensure!(
        tally.connections == 10,
        "{} connections instead of 10: the caller's own sidecar went nowhere",
        tally.connections
    );
    eprintln!("{} calls over {between} while four sidecars were restarted", tally.answered);
    Ok(())
}

#[tokio::test]
async fn a_hundred_changes_of_configuration_under_load_drop_no_connection_and_fail_no_call() -> Result<()> {
    let mesh = mesh(&SHOP, &[]).await?;
    let (town, orders) = (&mesh.town, mesh.town.home("orders")?);
    mesh.apply(STREAMING).await?;
    let frontend = town.home("frontend")?;
    frontend.app.release();
    let _app = Workshop::open(frontend.app.number()).await?;
    let mut words =
        eventually(SOON, "a stream", async || Words::begin(&orders.outbound.address(), "streaming").await.map(Some))
            .await?;
    let under_way = load(orders, 4, 4, 2)?.begin();
    is_called(town.home("inventory-v1")?).await?;
    let epoch = mesh.epoch().await?;
    for number in 0..100 {
        // The configuration of sidecars on both sides changes: how calls go, and who may call.
        let changed = format!(
            "\
apiVersion: equerry.dev/v1
kind: TrafficPolicy
metadata: {{name: inventory, namespace: shop}}
spec: {{targetRefs: [{{kind: Service, name: inventory}}, {{kind: Service, name: streaming}}], timeouts: {{connect: {}ms}}}}
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {{name: change, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, name: inventory}}, {{kind: Service, name: streaming}}]
  action: DENY
  rules: [{{to: [{{operation: {{paths: [/never/{number}]}}}}]}}]
",
            1000 + number
        );
        let files = serde_json::json!({"files": [{"name": "change.yaml", "text": changed}]});
        let (status, said) = api::ask(town, "POST", "/api/v1/apply", files.to_string().into()).await?;
        ensure!(status == StatusCode::OK, "change {number}: {status} {said}");
        words.exchange(&format!("word {number}")).await.with_context(|| format!("change {number}"))?;
    }
    let last = mesh.epoch().await?;
    ensure!(last >= epoch + 100, "only {} epochs", last - epoch);
    eventually(SOON, "every sidecar to have the last change", async || {
        for home in &town.homes {
            let page = home.telemetry().get("localhost", "/metrics", &[]).await?;
            let text = String::from_utf8_lossy(&page.body).into_owned();
            let at = text.lines().find_map(|line| line.strip_prefix("equerry_config_epoch ")).context("no epoch")?;
            if at.trim().parse::<u64>()? != last {
                bail!("{} is at {at}", home.resident.name);
            }
        }
        Ok(Some(()))
    })
    .await?;
    words.exchange("the last word").await?;
    words.end().await?;
    let tally = under_way.end().await?;
    tally.all_well()?;
    ensure!(tally.connections == 10, "{} connections instead of 10", tally.connections);
    println!("{} calls over the same connections while {} epochs went by", tally.answered, last - epoch);
    Ok(())
}

#[tokio::test]
async fn a_sidecar_told_to_stop_serves_its_application_until_that_has_hung_up() -> Result<()> {
    // With more time to leave than anybody here takes.
    let mesh = mesh(&PAIR[..2], &["--drain-timeout", "60s"]).await?;
    let (town, orders) = (&mesh.town, mesh.town.home("orders")?);
    let under_way = load(orders, 2, 2, 1)?.begin();
    is_called(town.home("inventory-v1")?).await?;
    // A connection that is kept for later, as pools do.
    let kept = TcpStream::connect(orders.outbound.address()).await?;
    town.signal_sidecar(orders, Signal::TERM).await;
    eventually(SOON, "the sidecar to say that it is not ready", async || {
        let ready = orders.telemetry().get("localhost", "/healthz/ready", &[]).await?;
        Ok((ready.status == 503 && ready.shown().contains("draining")).then_some(()))
    })
    .await?;
    let answered = under_way.answered();
    eventually(SOON, "calls to go on", async || Ok((under_way.answered() > answered + 200).then_some(()))).await?;
    let late = load(orders, 1, 1, 1)?.begin();
    eventually(SOON, "new connections to be served", async || Ok((late.answered() > 100).then_some(()))).await?;
    for load in [under_way, late] {
        load.end().await?.all_well()?;
    }
    drop(kept);
    eventually(SOON, "the sidecar to end", async || {
        match orders.telemetry().get("localhost", "/healthz/live", &[]).await {
            Ok(alive) => bail!("it says {}", alive.shown()),
            Err(_) => Ok(Some(())),
        }
    })
    .await?;
    ensure!(drained(&town.sidecar_log(orders)), "{}", town.sidecar_log(orders));
    Ok(())
}

#[tokio::test]
async fn what_is_open_when_the_grace_period_ends_is_cut_off_and_logged_as_that() -> Result<()> {
    let mesh = mesh(&PAIR[..2], &["--drain-timeout", "1s"]).await?;
    let (town, orders) = (&mesh.town, mesh.town.home("orders")?);
    let mut stream = TcpStream::connect(orders.outbound.address()).await?;
    // The body does not come to its end.
    let head = b"POST / HTTP/1.1\r\nhost: inventory\r\ncontent-length: 100\r\nexpect: 100-continue\r\n\r\n";
    stream.write_all(head).await?;
    let mut word = [0; 25];
    stream.read_exact(&mut word).await?;
    ensure!(&word == b"HTTP/1.1 100 Continue\r\n\r\n", "{}", String::from_utf8_lossy(&word));
    stream.write_all(b"half").await?;
    town.signal_sidecar(orders, Signal::TERM).await;
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest).await;
    ensure!(rest.is_empty(), "{ended:?}: {}", String::from_utf8_lossy(&rest));
    eventually(SOON, "the line in the log", async || {
        let log = std::fs::read_to_string(orders.access_log())?;
        let line = log.lines().find(|line| line.contains("\"draining\""));
        line.map(|line| Some(line.to_owned())).context(log.clone())
    })
    .await?;
    ensure!(town.sidecar_log(orders).contains("the grace period is over"), "{}", town.sidecar_log(orders));
    Ok(())
}

/// What is open at one time: streams of gRPC and upgraded connections.
struct Open {
    words: Vec<Words>,
    chats: Vec<Chat>,
}

impl Open {
    /// Four of each: whoever balances leads them to both instances.
    async fn begin(sidecar: &str) -> Result<Self> {
        let mut open = Self { words: Vec::new(), chats: Vec::new() };
        for _ in 0..4 {
            open.words.push(Words::begin(sidecar, "calls").await.context("a stream")?);
            open.chats.push(Chat::begin(sidecar, "chats").await.context("an upgrade")?);
        }
        open.exchange("begin").await?;
        Ok(open)
    }

    async fn exchange(&mut self, word: &str) -> Result<()> {
        for words in &mut self.words {
            words.exchange(word).await.with_context(|| format!("a stream at {word:?}"))?;
        }
        for chat in &mut self.chats {
            chat.exchange(word).await.with_context(|| format!("an upgraded connection at {word:?}"))?;
        }
        Ok(())
    }

    async fn end(mut self) -> Result<()> {
        self.exchange("the last word").await?;
        for words in self.words {
            words.end().await.context("ending a stream")?;
        }
        for chat in self.chats {
            chat.end().await.context("ending an upgraded connection")?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn sidecars_of_both_sides_restarted_under_calls_by_grpc_lose_no_call_no_stream_and_no_upgraded_connection()
-> Result<()> {
    let mesh = Mesh::found(program(), &PAIR, BOTH_WAYS).await?;
    let town = &mesh.town;
    let mut apps = Vec::new();
    for home in town.homes.iter().filter(|home| home.resident.account == "inventory") {
        home.app.release();
        apps.push(Workshop::open(home.app.number()).await?);
    }
    // With more time to leave than anybody here takes.
    let patient = ["--drain-timeout", "60s"];
    mesh.start_sidecars(&patient).await?;
    let sidecar = town.home("orders")?.outbound.address();
    eventually(SOON, "both to be reached", async || Open::begin(&sidecar).await?.end().await.map(Some)).await?;
    let mut answered = 0;
    for name in ["inventory-v1", "inventory-v2", "orders"] {
        let home = town.home(name)?;
        let (channel, mut open) = (Channel::open(&sidecar, "calls", 4).await?, Open::begin(&sidecar).await?);
        let load = Load { host: "calls".to_owned(), ..load(town.home("orders")?, 2, 2, 1)? }.begin();
        let seen = async |more: u64| {
            let before = (channel.answered(), load.answered());
            let on = || channel.answered() > before.0 + more && load.answered() > before.1 + more;
            eventually(SOON, "calls to go on", async || Ok(on().then_some(()))).await
        };
        seen(100).await?;
        town.signal_sidecar(home, Signal::TERM).await;
        eventually(SOON, "the sidecar to say that it is not ready", async || {
            let ready = home.telemetry().get("localhost", "/healthz/ready", &[]).await?;
            Ok((ready.status == 503 && ready.shown().contains("draining")).then_some(()))
        })
        .await?;
        for number in 0..50 {
            open.exchange(&format!("word {number}")).await.with_context(|| format!("while {name} leaves"))?;
        }
        let late = Open::begin(&sidecar).await.with_context(|| format!("while {name} leaves"))?;
        seen(100).await?;
        ensure!(town.sidecar_id(home).await.is_some(), "{name} left before its streams");
        late.end().await?;
        open.end().await.with_context(|| format!("while {name} leaves"))?;
        let (mut calls, mut loads) = (Some(channel), Some(load));
        if name == "orders" {
            // Its own application hangs up before it can go.
            answered += over(calls.take(), loads.take()).await.with_context(|| format!("{name} restarted"))?;
        }
        let gone = async || match home.telemetry().get("localhost", "/healthz/live", &[]).await {
            Ok(alive) => bail!("it says {}", alive.shown()),
            Err(_) => Ok(Some(())),
        };
        eventually(SOON, "the sidecar to end", gone).await.with_context(|| name.to_owned())?;
        ensure!(drained(&town.sidecar_log(home)), "{}", town.sidecar_log(home));
        town.stop_sidecar(home).await;
        town.start_sidecar_with(home, &patient).await?;
        town.wait_ready(home).await?;
        if name == "orders" {
            eventually(SOON, "the sidecar to serve", async || Open::begin(&sidecar).await?.end().await.map(Some))
                .await?;
        }
        answered += over(calls, loads).await.with_context(|| format!("{name} restarted"))?;
    }
    eprintln!("{answered} calls while three sidecars were restarted, with streams and upgraded connections open");
    Ok(())
}

/// What is under way ends, and none of it has failed. Gives the number of calls.
async fn over(calls: Option<Channel>, load: Option<UnderWay>) -> Result<u64> {
    let mut answered = 0;
    if let Some(calls) = calls {
        let tally = calls.end().await?;
        tally.all_well()?;
        answered += tally.answered;
    }
    if let Some(load) = load {
        let tally = load.end().await?;
        tally.all_well()?;
        ensure!(tally.connections == 5, "{} connections instead of 5", tally.connections);
        answered += tally.answered;
    }
    Ok(answered)
}

fn drained(log: &str) -> bool {
    log.contains("\"drained\"") && !log.contains("the grace period is over")
}
