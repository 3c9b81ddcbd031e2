//! The root of all trust is replaced under load, certificates are renewed again and again, and an identity that is revoked
//! is cut off everywhere: nobody else notices any of it.

use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use equerry::demo::check::knock;
use equerry::demo::driver;
use equerry::demo::ports::HeldPort;
use equerry::demo::town::{Home, SHOP, Town};
use equerry::demo::web::Caller;
use equerry_certs::{Authority, AuthorityPem, Identity, Leaf, Request};
use equerry_tests::{Mesh, eventually, listen};
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

use crate::{PAIR, program};

/// Longest wait for what must happen at once.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Only the first of the two instances is behind it: the other may be away.
const ONE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: inventory, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {version: v1}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}
";

#[tokio::test]
async fn the_root_is_rotated_under_load_and_no_call_fails_and_who_was_away_comes_back() -> Result<()> {
    let mesh = Mesh::found(program(), &PAIR, ONE).await?;
    let town = &mesh.town;
    let (orders, v1, away) = (town.home("orders")?, town.home("inventory-v1")?, town.home("inventory-v2")?);
    for home in town.homes.iter().filter(|home| home.resident.name != v1.resident.name) {
        town.start_app(home).await?;
    }
    v1.app.release();
    tokio::spawn(answer_posts_late(listen(v1.app.number()).await?));
    mesh.start_sidecars(&[]).await?;
    eventually(Duration::from_secs(15), "inventory to be reached", async || {
        let answer = orders.through_sidecar().get("inventory", "/", &[]).await?;
        Ok((answer.status == 200).then_some(()))
    })
    .await?;
    let before = knock::trust(town)?;
    let signed_before = signed_by_the_root_of_today(town)?;
    let answer = knock::get_over_tls(v1, &before, Some(&signed_before)).await?;
    ensure!(answer == 200, "what today's root has signed was answered {answer}");
    town.stop_sidecar(away).await;
    let (over, answered, posted) = (Notify::new(), Notify::new(), Cell::new(0));
    let caller = orders.through_sidecar();
    let post = |number| {
        posted.set(number + 1);
        caller.call("POST", "inventory", "/", &[])
    };
    let (rotated, posts, gets) = tokio::join!(
        async {
            rotate(&mesh, away).await?;
            // However fast that was: calls have gone out all the while.
            eventually(Duration::from_secs(15), "ten POSTs", async || Ok((posted.get() >= 10).then_some(()))).await
        }
        .inspect(|_| over.notify_one()),
        // Nobody may repeat these, and some are under way whatever happens.
        async {
            let posts = driver::steady(10.0, over.notified(), post).await;
            answered.notify_one();
            posts
        },
        driver::steady(40.0, answered.notified(), |_| caller.get("inventory", "/", &[])),
    );
    rotated?;
    for (what, outcomes) in [("POST", &posts), ("GET", &gets)] {
        if let Some(failure) = driver::first_failure(outcomes) {
            bail!("a {what} failed while the root was rotated: {failure}");
        }
        ensure!(outcomes.len() >= 10, "only {} times {what} was called meanwhile", outcomes.len());
    }
    let after = knock::trust(town)?;
    ensure!(after.roots().len() == 1 && after.pin()? != before.pin()?, "ca.pem holds {after:?}");
    for home in [orders, v1, away] {
        let shown = knock::shown_certificate(home, &after).await?;
        ensure!(Leaf::read(&shown)?.id == knock::expected(home)?);
        let answer = knock::get_over_tls(home, &after, Some(&signed_before)).await;
        ensure!(answer.is_err(), "what the old root has signed was answered {answer:?}");
    }
    let steady = town.equerry(&["certs", "rotate", "status"]).await?.succeeded()?.out;
    ensure!(steady.contains("no rotation is under way"), "{steady}");
    let shown = town.equerry(&["certs"]).await?.succeeded()?.out;
    for said in ["shop/orders", "shop/inventory-v1", "goes dark first", "this control plane"] {
        ensure!(shown.contains(said), "{said:?} is missing in\n{shown}");
    }
    let soon = town.equerry(&["certs", "--expiring", "14d"]).await?;
    ensure!(soon.code == Some(0) && soon.out.contains("nothing ends within"), "{soon:?}");
    let within = town.equerry(&["certs", "--expiring", "400d"]).await?;
    ensure!(within.code == Some(1) && within.err.contains("within 400 d"), "the issuing certificate ends in a year");
    let metrics = orders.telemetry().get("localhost", "/metrics", &[]).await?;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    for kind in ["leaf", "issuing", "root"] {
        let gauge = metrics.lines().find(|line| line.contains("not_after") && line.contains(&format!("\"{kind}\"")));
        ensure!(gauge.is_some_and(|line| !line.ends_with(" 0")), "no gauge of the {kind}: {metrics}");
    }
    Ok(())
}

/// An application that answers a POST when forty others were answered after it has come: about a second later.
async fn answer_posts_late(listener: TcpListener) {
    let (answered, _) = watch::channel(0_u64);
    while let Ok((mut stream, _)) = listener.accept().await {
        let answered = answered.clone();
        tokio::spawn(async move {
            let mut asked = Vec::new();
            while stream.read_buf(&mut asked).await? > 0 {
                if !asked.ends_with(b"\r\n\r\n") {
                    continue;
                }
                if asked.starts_with(b"POST ") {
                    let mut others = answered.subscribe();
                    let enough = *others.borrow_and_update() + 40;
                    let _ = others.wait_for(|count| *count >= enough).await;
                } else {
                    answered.send_modify(|count| *count += 1);
                }
                asked.clear();
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await?;
            }
            std::io::Result::Ok(())
        });
    }
}

/// An identity of `orders` as whoever steals today's keys could make it.
fn signed_by_the_root_of_today(town: &Town) -> Result<Identity> {
    let read = |name: &str| std::fs::read_to_string(town.control_plane_state().join(name));
    let kept = AuthorityPem {
        root: read("root.pem")?,
        root_key: Some(read("root.key")?.into()),
        issuing: read("issuing.pem")?,
        cross: None,
        issuing_key: read("issuing.key")?.into(),
    };
    let id = knock::expected(town.home("orders")?)?;
    let request = Request::new()?;
    let issued = Authority::from_pem(&kept, &id.trust_domain)?.sign(
        &request.csr_der,
        &id,
        Duration::from_secs(3600),
        SystemTime::now(),
    )?;
    Ok(Identity::new(request.key, issued.chain)?)
}

/// All three steps; `away` comes back when the new root signs already.
async fn rotate(mesh: &Mesh, away: &Home) -> Result<()> {
    let town = &mesh.town;
    let rotate = async |step: &[&str]| {
        let args: Vec<&str> = ["certs", "rotate"].iter().chain(step).copied().collect();
        town.equerry(&args).await?.succeeded()
    };
    let started = rotate(&["start", "--wait"]).await?;
    ensure!(started.out.contains("nobody would be stranded"), "{started:?}");
    ensure!(knock::trust(town)?.roots().len() == 2, "ca.pem holds both");
    let issuing = rotate(&["advance"]).await?;
    ensure!(issuing.out.contains("goes out"), "{issuing:?}");
    let early = town.equerry(&["certs", "rotate", "advance"]).await?;
    ensure!(early.code == Some(1) && early.err.contains("would strand"), "{early:?}");
    ensure!(early.err.contains("spiffe://equerry.local/ns/shop/sa/inventory"), "who is away is named: {early:?}");
    town.start_sidecar(away).await?;
    town.wait_ready(away).await?;
    let done = rotate(&["advance", "--wait", "--timeout", "60s"]).await?;
    ensure!(done.out.contains("no rotation is under way"), "{done:?}");
    Ok(())
}

/// The generation of a sidecar's certificate, and until when it holds.
async fn certificate(home: &Home) -> Result<serde_json::Value> {
    let config = Caller::local(home.admin.number()).get("localhost", "/config", &[]).await?;
    Ok(config.json()["certificate"].clone())
}

#[tokio::test]
async fn renewal_forced_again_and_again_through_the_admin_ports_fails_no_call() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let orders = mesh.town.home("orders")?;
    let (over, (called, mut calls)) = (Notify::new(), watch::channel(0_usize));
    let forced = async {
        // More often than every ten seconds, and with calls between any two.
        for round in 1..=5_u64 {
            for home in &mesh.town.homes {
                let admin = Caller::local(home.admin.number());
                let asked = admin.call("POST", "localhost", "/certificate/renew", &[]).await?;
                ensure!(asked.status == 202, "{}", asked.shown());
            }
            for home in &mesh.town.homes {
                eventually(Duration::from_secs(5), "a new certificate", async || {
                    let generation = certificate(home).await?["generation"].as_u64().context("no generation")?;
                    Ok((generation > round).then_some(()))
                })
                .await?;
            }
            let enough = *calls.borrow_and_update() + 200;
            calls.wait_for(|count| *count >= enough).await?;
        }
        anyhow::Ok(())
    };
    let (forced, outcomes) = tokio::join!(
        async {
            let forced = forced.await;
            over.notify_one();
            forced
        },
        driver::steady(60.0, over.notified(), |_| {
            called.send_modify(|count| *count += 1);
            orders.through_sidecar().get("inventory", "/", &[])
        }),
    );
    forced?;
    if let Some(failure) = driver::first_failure(&outcomes) {
        bail!("a call failed while certificates were renewed: {failure}");
    }
    ensure!(outcomes.len() >= 1000, "only {} calls were made meanwhile", outcomes.len());
    let admin = Caller::local(orders.admin.number());
    let page = admin.call("POST", "localhost", "/certificate/renew", &[("origin", "https://evil.example")]).await?;
    ensure!(page.status == 403, "a web page had a certificate renewed");
    ensure!(admin.get("localhost", "/certificate/renew", &[]).await?.status == 405);
    Ok(())
}

const SERVICES: &str = "\
apiVersion: v1
kind: Service
metadata: {name: inventory, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {version: v1}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {version: v2}, ports: [{port: 5432, targetPort: 8080, appProtocol: tcp}]}
";

/// An application that never ends what it says: a response without end, a connection that left HTTP, or, where nobody asks
/// in HTTP, just bytes.
async fn talk_for_ever(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut asked = vec![0; 4096];
            let read = stream.read(&mut asked).await?;
            let asked = String::from_utf8_lossy(&asked[..read]).to_lowercase();
            let (head, piece) = if asked.contains("upgrade: chat") {
                ("HTTP/1.1 101 Switching Protocols\r\nupgrade: chat\r\nconnection: upgrade\r\n\r\n", "tick\n")
            } else if asked.starts_with("get /stream") {
                ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "5\r\ntick\n\r\n")
            } else if asked.starts_with("get ") {
                ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", "")
            } else {
                ("", "tick\n")
            };
            stream.write_all(head.as_bytes()).await?;
            while !piece.is_empty() {
                stream.write_all(piece.as_bytes()).await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            std::io::Result::Ok(())
        });
    }
}

/// A connection through a caller's sidecar that hears ticks without end.
struct Listening(TcpStream);

impl Listening {
    async fn to(port: u16, says: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(says.as_bytes()).await?;
        let mut listening = Self(stream);
        listening.ticks(1).await?;
        Ok(listening)
    }

    /// Hears so many more.
    async fn ticks(&mut self, count: usize) -> Result<()> {
        let (mut heard, mut buffer) = (String::new(), [0; 4096]);
        while heard.matches("tick").count() < count {
            let read = tokio::time::timeout(AT_ONCE * 3, self.0.read(&mut buffer)).await??;
            ensure!(read > 0, "it ended after {heard:?}");
            heard.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        Ok(())
    }

    /// How long it takes to end.
    async fn end(mut self) -> Result<Duration> {
        let (began, mut buffer) = (Instant::now(), [0; 4096]);
        let ended = async { while self.0.read(&mut buffer).await.is_ok_and(|read| read > 0) {} };
        tokio::time::timeout(Duration::from_secs(10), ended).await.context("it goes on")?;
        Ok(began.elapsed())
    }
}

const STREAM: &str = "GET /stream HTTP/1.1\r\nhost: inventory\r\n\r\n";
const CHAT: &str = "GET /chat HTTP/1.1\r\nhost: inventory\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n";

/// The reasons that a sidecar has logged for what went this way.
fn reasons(home: &Home, direction: &str) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(home.access_log())?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let theirs = lines.filter(|line| line["direction"] == direction);
    Ok(theirs.map(|line| line["reason"].as_str().unwrap_or_default().to_owned()).collect())
}

#[tokio::test]
async fn a_revoked_identity_is_cut_off_within_two_seconds_and_nobody_else_is() -> Result<()> {
    let mesh = Mesh::found(program(), &SHOP, SERVICES).await?;
    let town = &mesh.town;
    let [frontend, orders, v1, v2] = ["frontend", "orders", "inventory-v1", "inventory-v2"].map(|name| town.home(name));
    let (frontend, orders, v1, v2) = (frontend?, orders?, v1?, v2?);
    for home in [v1, v2] {
        home.app.release();
        tokio::spawn(talk_for_ever(listen(home.app.number()).await?));
    }
    let mut tcp = Vec::new();
    for home in &town.homes {
        let port = HeldPort::take()?;
        port.release();
        town.join(home).await?;
        town.start_sidecar_with(home, &["--tcp", &format!("{}=db", port.number())]).await?;
        tcp.push(port.number());
    }
    for home in &town.homes {
        town.wait_ready(home).await?;
    }
    let reach = async |home: &Home| {
        eventually(Duration::from_secs(20), "inventory to be reached", async || {
            let answer = home.through_sidecar().get("inventory", "/", &[]).await?;
            if answer.status == 200 { Ok(Some(())) } else { bail!("{}", answer.shown()) }
        })
        .await
    };
    for home in [frontend, orders] {
        reach(home).await?;
    }
    let open = async |home: &Home, tcp: u16| {
        let outbound = home.outbound.number();
        anyhow::Ok([
            Listening::to(outbound, STREAM).await.context("a response over HTTP/2 between sidecars")?,
            Listening::to(outbound, CHAT).await.context("an upgrade over HTTP/1.1 between sidecars")?,
            Listening::to(tcp, "hello\n").await.context("TCP between sidecars")?,
        ])
    };
    let mut bystanders = open(frontend, tcp[0]).await?;
    let victims = open(orders, tcp[1]).await?;

    let revoked = town.equerry(&["certs", "revoke", "shop/orders", "--reason", "laptop stolen", "--wait"]).await?;
    let revoked = revoked.succeeded()?.out;
    ensure!(revoked.contains("spiffe://equerry.local/ns/shop/sa/orders revoked"), "{revoked}");
    ensure!(revoked.contains("in force on 3 of 3"), "{revoked}");
    for (what, victim) in ["a response", "an upgrade", "TCP"].into_iter().zip(victims) {
        let took = victim.end().await.with_context(|| format!("{what} of the revoked identity"))?;
        ensure!(took < AT_ONCE, "{what} of the revoked identity ended after {took:?}");
    }
    for bystander in &mut bystanders {
        bystander.ticks(10).await.context("somebody else's connection")?;
    }
    let refused = orders.through_sidecar().get("inventory", "/", &[]).await?;
    ensure!(refused.status == 503, "the revoked identity was answered {}", refused.shown());
    ensure!(frontend.through_sidecar().get("inventory", "/", &[]).await?.status == 200);
    for (home, count) in [(v1, 2), (v2, 1)] {
        eventually(Duration::from_secs(5), "the reason in the log", async || {
            let reasons = reasons(home, "inbound")?;
            ensure!(reasons.iter().filter(|reason| *reason == "identity_revoked").count() == count, "{reasons:?}");
            Ok(Some(()))
        })
        .await?;
    }
    let failures = v1.telemetry().get("localhost", "/metrics", &[]).await?;
    ensure!(String::from_utf8_lossy(&failures.body).contains("\"revoked\""), "handshakes refused say why");
    let listed = town.equerry(&["certs", "revocations"]).await?.succeeded()?.out;
    ensure!(listed.contains("sa/orders") && listed.contains("laptop stolen"), "{listed}");
    // Its own sidecar hears why it gets nothing any more.
    eventually(Duration::from_secs(15), "the revoked sidecar to be told", async || {
        Ok(town.sidecar_log(orders).contains("was revoked at").then_some(()))
    })
    .await?;

    town.equerry(&["certs", "restore", "shop/orders", "--wait"]).await?.succeeded()?;
    reach(orders).await?;
    for bystander in &mut bystanders {
        bystander.ticks(3).await.context("somebody else's connection, after all")?;
    }
    let log = town.equerry(&["audit", "list", "-o", "json"]).await?.succeeded()?.out;
    ensure!(log.contains("identity.revoke") && log.contains("identity.restore"), "{log}");

    // Whoever is revoked is heard no further either: what others have asked of it ends, and their own sidecar says why.
    town.equerry(&["certs", "revoke", "shop/inventory", "--reason", "stolen too", "--wait"]).await?.succeeded()?;
    for (what, asked) in ["a response", "an upgrade", "TCP"].into_iter().zip(bystanders) {
        let took = asked.end().await.with_context(|| format!("{what} of a revoked callee"))?;
        ensure!(took < AT_ONCE, "{what} of a revoked callee ended after {took:?}");
    }
    eventually(Duration::from_secs(20), "the reason in the caller's log", async || {
        let reasons = reasons(frontend, "outbound")?;
        Ok((reasons.iter().filter(|reason| *reason == "identity_revoked").count() >= 3).then_some(()))
    })
    .await
}
