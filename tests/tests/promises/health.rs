//! Who is not well gets no requests: an address that is asked and does not answer, and an instance whose own sidecar says so. It
//! is told which it was, since when and why; and whoever is well again is used again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use equerry::demo::ports::HeldPort;
use equerry::demo::town::{Home, SHOP};
use equerry::demo::web::Caller;
use equerry_tests::nginx::{self, Nginx};
use equerry_tests::{Mesh, eventually, peers};

use crate::{PAIR, program};

const SOON: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(500);
const THRESHOLD: u32 = 2;
/// What a machine that does much else may be late by.
const SLACK: Duration = Duration::from_secs(3);

/// The `EndpointSlice` of one server alone.
fn slice(name: &str, port: &HeldPort) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: web-{name}, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nendpoints: [{{addresses: [127.0.0.1]}}]\nports: [{{port: {}}}]\n",
        port.number()
    )
}

fn start(name: &str, port: &HeldPort) -> Result<Nginx> {
    port.release();
    Nginx::start(name, port.number())
}

/// One call of `web`: its status, and who answered or what the mesh said.
async fn call(home: &Home) -> Result<(u16, String)> {
    let answer = home.through_sidecar().get("web", "/nothing", &[]).await?;
    let said = format!("{} {}", answer.header("x-app"), String::from_utf8_lossy(&answer.body));
    Ok((answer.status, said))
}

/// What the sidecar shows of the instances of a Service that are out: the reason's word, and the sentence.
async fn out(home: &Home, service: &str) -> Result<Vec<(String, String)>> {
    let shown = Caller::local(home.admin.number()).get("localhost", "/endpoints", &[]).await?.json();
    let services = shown.as_array().context("no list")?.iter().filter(|one| one["service"] == service);
    let endpoints = services.flat_map(|one| one["endpoints"].as_array().cloned().unwrap_or_default());
    let unusable = endpoints.filter(|one| one["health"] == "unusable");
    Ok(unusable.map(|one| (one["by"].as_str().unwrap_or("").to_owned(), one["because"].to_string())).collect())
}

/// Waits until so many instances of `web` are out, and says how long that took.
async fn until_out(home: &Home, many: usize) -> Result<Duration> {
    let since = Instant::now();
    eventually(SOON, &format!("{many} to be out"), async || {
        Ok((out(home, "shop/web").await?.len() == many).then_some(()))
    })
    .await?;
    Ok(since.elapsed())
}

#[tokio::test]
async fn a_server_that_dies_gets_no_requests_within_its_intervals_and_is_used_again_when_it_is_back() -> Result<()> {
    if !peers::installed("nginx", nginx::INSTALL)? {
        return Ok(());
    }
    let mesh = Mesh::plan(program(), &[SHOP[2]]).await?;
    let ports = (HeldPort::take()?, HeldPort::take()?);
    let (first, second) = (start("first", &ports.0)?, start("second", &ports.1)?);
    mesh.town.bring_up().await?;
    let home = &mesh.town.homes[0];
    let policy = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {{ports: [{{port: 80}}]}}\n{}{}\
         ---\napiVersion: equerry.dev/v1\nkind: TrafficPolicy\nmetadata: {{name: web, namespace: shop}}\nspec:\n  \
         targetRefs: [{{kind: Service, name: web}}]\n  \
         healthCheck: {{http: {{path: /nothing, statuses: [\"204\"]}}, interval: {}ms, timeout: 500ms, unhealthyThreshold: {THRESHOLD}}}\n\
         ---\napiVersion: equerry.dev/v1\nkind: Mesh\nmetadata: {{name: default}}\nspec: {{errorDetail: full}}\n",
        slice("first", &ports.0),
        slice("second", &ports.1),
        INTERVAL.as_millis()
    );
    mesh.apply(&policy).await?;
    eventually(SOON, "both to answer", async || {
        let answers = [call(home).await?.1, call(home).await?.1, call(home).await?.1, call(home).await?.1];
        Ok(["first", "second"].iter().all(|name| answers.iter().any(|answer| answer.contains(name))).then_some(()))
    })
    .await?;

    drop(first);
    let took = until_out(home, 1).await?;
    let due = INTERVAL.mul_f64(1.1) * THRESHOLD + SLACK;
    ensure!(took < due, "it was out after {took:?}, and {due:?} is enough");
    for number in 0..200 {
        let (status, said) = call(home).await?;
        ensure!(status == 204 && said.contains("second"), "call {number} after it was out: {said}");
    }
    let (by, because) = out(home, "shop/web").await?.pop().context("nobody is out")?;
    ensure!(by == "health_check" && because.contains("refused"), "{by}: {because}");
    let scraped = home.scrape().await?;
    let verdict = |word| [("destination", "shop/web"), ("verdict", word)];
    let (out_now, well) = (verdict("health_check"), verdict("well"));
    ensure!(scraped.sum("equerry_endpoint_health", &out_now) == 1.0, "{}", scraped.text);
    ensure!(scraped.sum("equerry_endpoint_health", &well) == 1.0, "{}", scraped.text);
    ensure!(scraped.sum("equerry_endpoint_ejections_total", &[("reason", "health_check")]) == 1.0, "{}", scraped.text);

    drop(second);
    until_out(home, 2).await?;
    let (status, said) = call(home).await?;
    let named = [&ports.0, &ports.1].iter().all(|port| said.contains(&format!("static-127.0.0.1-{}", port.number())));
    ensure!(status == 503 && said.contains("no_healthy_endpoint") && named, "{said}");

    let _first = start("first", &ports.0)?;
    until_out(home, 1).await?;
    for number in 0..50 {
        let (status, said) = call(home).await?;
        ensure!(status == 204 && said.contains("first"), "call {number} after it is back: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_caller_who_finds_nobody_learns_what_the_sidecars_there_say() -> Result<()> {
    let mesh = Mesh::plan(program(), &PAIR[..2]).await?;
    let town = &mesh.town;
    let (orders, inventory) = (town.home("orders")?, town.home("inventory-v1")?);
    town.start_control_plane(&[]).await?;
    town.equerry(&["apply", "-f", &town.policies().display().to_string()]).await?.succeeded()?;
    mesh.apply("apiVersion: equerry.dev/v1\nkind: Mesh\nmetadata: {name: default}\nspec: {errorDetail: full}\n")
        .await?;
    for (home, more) in [(inventory, ["--health-path", "/"].as_slice()), (orders, &[])] {
        town.start_app(home).await?;
        town.join(home).await?;
        town.start_sidecar_with(home, more).await?;
        town.wait_ready(home).await?;
    }
    let call = async || orders.through_sidecar().get("inventory", "/", &[]).await;
    eventually(SOON, "inventory to answer", async || Ok((call().await?.status == 200).then_some(()))).await?;
    inventory.fail(1.0, None).await?;
    eventually(SOON, "the word of its sidecar", async || {
        let said = call().await?.shown();
        let told = said.contains("no_healthy_endpoint")
            && said.contains("its sidecar says: GET /")
            && said.contains("status 5");
        ensure!(told, "{said}");
        Ok(Some(()))
    })
    .await?;
    let (by, because) = out(orders, "shop/inventory").await?.pop().context("nobody is out")?;
    ensure!(by == "lease" && because.contains("its sidecar says"), "{by}: {because}");
    inventory.fail(0.0, None).await?;
    eventually(SOON, "inventory to answer again", async || Ok((call().await?.status == 200).then_some(()))).await
}
