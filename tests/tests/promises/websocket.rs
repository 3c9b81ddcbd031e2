//! Connections that are no row of requests pass two sidecars too: WebSockets, as a library of others speaks them, and whatever
//! an application asks for by CONNECT. They are judged like requests, and again when policy changes.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use equerry_tests::{Mesh, eventually, peers};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::{PAIR, program};

const DOCUMENTS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: inventory, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {version: v1}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: inventory, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: inventory}]
  rules: [{timeouts: {request: 2s}, backendRefs: [{name: inventory, port: 80}]}]
";
const CLOSED_ROOM: &str = "\
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: closed-room, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: inventory}]
  action: DENY
  rules: [{to: [{operation: {paths: [/room]}}]}]
";
const RAW: &str = "\
apiVersion: v1
kind: Service
metadata: {name: raw, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {version: v1}, ports: [{port: 7000, targetPort: 8080, appProtocol: tcp}]}
";
const CONVERSATION: &str = "\
opened chat.v2 permessage-deflate
text hello
fragmented fragmented
in pieces ['one ', 'two ', 'three']
mebibyte True
pong True
pinged you are there
closed 4003 as you asked
told 4242 going home
";

/// Lines of an access log about connections that changed to WebSocket.
fn upgraded(log: &std::path::Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(log).context("reading an access log")?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(lines.filter(|line| line["upgrade"] == "websocket").collect())
}

fn server(mesh: &Mesh, script: &str) -> Result<Child> {
    let home = mesh.town.home("inventory-v1")?;
    home.app.release();
    let mut server = Command::new("python3");
    server.args([script, "serve", &home.app.number().to_string()]).stdout(Stdio::null()).kill_on_drop(true);
    Ok(server.spawn()?)
}

#[tokio::test]
async fn websockets_pass_two_sidecars_whole_and_end_when_policy_says_so() -> Result<()> {
    if !peers::python_has("websockets", "pip install websockets")? {
        return Ok(());
    }
    let mesh = Mesh::found(program(), &PAIR[..2], DOCUMENTS).await?;
    let script = mesh.file("websocket_peer.py", include_str!("../../src/websocket_peer.py"))?.display().to_string();
    let _server = server(&mesh, &script)?;
    mesh.start_sidecars(&[]).await?;
    let (orders, inventory) = (mesh.town.home("orders")?, mesh.town.home("inventory-v1")?);
    let sidecar = orders.outbound.address();
    let play = async |mode: &str, path: &str| {
        let uri = format!("ws://inventory{path}");
        anyhow::Ok(peers::run("python3", &[&script, mode, &sidecar, &uri]).await?.succeeded()?.out)
    };
    eventually(Duration::from_secs(20), "a conversation", async || {
        let said = play("call", "/room").await?;
        if said.starts_with("refused 50") {
            bail!("{said}")
        }
        ensure!(said == CONVERSATION, "the conversation went otherwise: {said}");
        Ok(Some(()))
    })
    .await?;
    eventually(Duration::from_secs(5), "a line for each connection on both sides", async || {
        for home in [orders, inventory] {
            let lines = upgraded(&home.access_log())?;
            let much = lines.iter().filter(|line| line["bytes_sent"].as_u64() > Some(1000)).count();
            let well = lines.iter().all(|line| line["reason"] == "ok" && line["response_code"] == 101);
            if lines.len() < 3 || !well || much != 1 {
                bail!("{lines:?}")
            }
        }
        Ok(Some(()))
    })
    .await?;

    // One that is open when policy changes is cut, and the next is refused like any request.
    let mut holds = Command::new("python3");
    holds.args([&script, "hold", &sidecar, "ws://inventory/room"]).stdout(Stdio::piped()).kill_on_drop(true);
    let mut holds = holds.spawn()?;
    let mut said = BufReader::new(holds.stdout.take().context("no output")?).lines();
    ensure!(said.next_line().await?.as_deref() == Some("open"), "no connection was opened");
    mesh.apply(CLOSED_ROOM).await?;
    let end = tokio::time::timeout(Duration::from_secs(10), said.next_line()).await.context("it went on")??;
    ensure!(end.as_deref() == Some("cut"), "it ended with {end:?}");
    let refused = play("call", "/room").await?;
    ensure!(refused.starts_with("refused 403") && refused.contains("authz_denied"), "{refused}");
    ensure!(play("call", "/other-room").await? == CONVERSATION, "policy closed another room");
    eventually(Duration::from_secs(5), "the callee to say why", async || {
        let lines = upgraded(&inventory.access_log())?;
        let why = lines.iter().find(|line| line["reason"] == "authz_denied").map(|line| &line["policy"]);
        if why.is_none_or(|policy| policy != "shop/closed-room rules[0]") {
            bail!("{lines:?}")
        }
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn curl_tunnels_by_connect_to_a_port_that_speaks_tcp_and_to_no_other() -> Result<()> {
    if !peers::installed("curl", "apt-get install curl")? {
        return Ok(());
    }
    let mesh = Mesh::found(program(), &PAIR[..2], &format!("{DOCUMENTS}---\n{RAW}")).await?;
    let (orders, inventory) = (mesh.town.home("orders")?, mesh.town.home("inventory-v1")?);
    mesh.town.start_app(inventory).await?;
    mesh.start_sidecars(&[]).await?;
    let sidecar = format!("http://{}", orders.outbound.address());
    let curl = async |url: &str| {
        let args =
            ["-sS", "--max-time", "10", "-w", " %{http_connect} %{http_code}", "--proxytunnel", "-x", &sidecar, url];
        peers::run("curl", &args).await
    };
    eventually(Duration::from_secs(20), "curl to get through", async || {
        let said = curl("http://raw.shop:7000/").await?;
        if said.code == Some(0) && said.out.ends_with(" 200 200") { Ok(Some(())) } else { bail!("{said:?}") }
    })
    .await?;
    // The same over HTTP/2 is refused wherever it would lead.
    for port in ["raw.shop:7000", "inventory.shop:80"] {
        let (status, said) = connect_by_http2(&orders.outbound.address(), port).await?;
        ensure!(status == 400 && said.contains("CONNECT"), "{port}: {status} {said}");
    }
    for (url, status) in
        [("http://inventory.shop:80/", 400), ("http://raw.shop:7001/", 404), ("http://rawr:7000/", 502)]
    {
        let said = curl(url).await?;
        ensure!(said.code != Some(0) && said.out.ends_with(&format!(" {status} 000")), "{url}: {said:?}");
    }
    Ok(())
}

/// What is answered to CONNECT over HTTP/2.
async fn connect_by_http2(sidecar: &str, port: &str) -> Result<(StatusCode, String)> {
    let socket = TcpStream::connect(sidecar).await?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await?;
    tokio::spawn(connection);
    let request = Request::connect(port).body(Empty::<Bytes>::new())?;
    let answer = tokio::time::timeout(Duration::from_secs(10), sender.send_request(request)).await??;
    let status = answer.status();
    Ok((status, String::from_utf8_lossy(&answer.into_body().collect().await?.to_bytes()).into_owned()))
}
