//! Secrets stay secret: a mesh is given every sort of them, in calls that succeed and in calls that fail, every program logs as much
//! as it is asked for, and then all that anybody can read of it is searched: logs, metrics, pages, answers, commands, the audit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use equerry::demo::town::Home;
use equerry::demo::web::Caller;
use equerry_tests::api::{self, Events};
use equerry_tests::{Mesh, eventually};
use http::Request;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{PAIR, program};

const SOON: Duration = Duration::from_secs(30);
/// What every caller's secret holds, so that it is found whole and in part.
const SESAME: &str = "sEsAmE4711";

/// Access logs are asked for all that callers have.
const MESH: &str = "\
apiVersion: equerry.dev/v1
kind: Mesh
metadata: {name: default}
spec:
  authorization: {default: DENY}
  errorDetail: full
  accessLog:
    requestHeaders: [{name: authorization}, {name: cookie, show: HASH}, {name: x-api-key}, {name: referer}, {name: x-note}]
    responseHeaders: [{name: set-cookie}, {name: location}]
    queryParameters: [{name: access_token}, {name: code, show: HASH}, {name: page}]
    cookies: [{name: sid}, {name: csrf, show: HASH}]
    claims: [{name: sub, show: HASH}, {name: refresh_token}]
";

/// The mesh, what it must not tell, and all that it was found to tell.
struct Ground {
    mesh: Mesh,
    secrets: BTreeMap<String, String>,
    told: BTreeMap<String, String>,
}

impl Ground {
    async fn lay() -> Result<Self> {
        let mesh = Mesh::plan(program(), &PAIR).await?;
        mesh.town.start_control_plane(&["--log", "debug"]).await?;
        mesh.town.equerry(&["apply", "-f", &mesh.town.policies().display().to_string()]).await?.succeeded()?;
        mesh.apply(MESH).await?;
        let mut secrets = BTreeMap::from([("a caller's secret".to_owned(), SESAME.to_owned())]);
        for home in &mesh.town.homes {
            mesh.town.start_app(home).await?;
            mesh.town.join(home).await?;
            let token =
                std::fs::read_to_string(home.state_dir().with_file_name("join-token")).context("the join token")?;
            let secret = token.trim().split('.').nth(2).context("a join token without a secret")?;
            secrets.insert(format!("the join token of {}", home.resident.name), secret.to_owned());
            mesh.town.start_sidecar_with(home, &["--log", "debug"]).await?;
        }
        for home in &mesh.town.homes {
            mesh.town.wait_ready(home).await?;
        }
        mesh.settle().await?;
        let mut ground = Self { mesh, secrets, told: BTreeMap::new() };
        ground.learn()?;
        Ok(ground)
    }

    /// The secrets that the mesh made itself.
    fn learn(&mut self) -> Result<()> {
        let bearer = self.mesh.bearer()?;
        let signature = bearer.rsplit('.').next().context("a token without a signature")?;
        self.secrets.insert("a good token".to_owned(), signature.to_owned());
        let state = self.mesh.town.control_plane_state();
        let admin = std::fs::read_to_string(state.join("admin.token")).context("the admin token")?;
        self.secrets.insert("the admin token".to_owned(), admin.trim().to_owned());
        let mut keys = 0;
        for path in files(&state)? {
            let text = std::fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())?;
            let Some((_, key)) = text.split_once("PRIVATE KEY-----\n") else { continue };
            let line = key.lines().next().context("an empty key")?;
            self.secrets.insert(format!("the key {}", path.display()), line.to_owned());
            keys += 1;
        }
        ensure!(keys >= 2, "the authority's keys were not found in {}", state.display());
        Ok(())
    }

    fn tells(&mut self, what: impl Into<String>, text: impl Into<String>) {
        self.told.insert(what.into(), text.into());
    }

    fn orders(&self) -> Result<&Home> {
        self.mesh.town.home("orders")
    }

    /// Calls that succeed and calls that fail, each with as many secrets as it can carry.
    async fn call(&mut self) -> Result<()> {
        let (good, bad) = (self.mesh.bearer()?, format!("Bearer {SESAME}.{SESAME}.{SESAME}"));
        let basic = format!("Basic {SESAME}");
        let inbound = self.mesh.town.home("inventory-v1")?.inbound.address();
        let mut statuses = Vec::new();
        for (service, authorization) in [
            ("inventory", good.as_str()),
            ("inventory", &bad),
            ("inventory", &basic),
            ("nowhere", &bad),
            ("inventory:9", &bad),
        ] {
            let cookie = format!("sid={SESAME}; csrf={SESAME}");
            let referer = format!("https://shop.example/cart?code={SESAME}");
            let carried = [
                ("authorization", authorization),
                ("cookie", cookie.as_str()),
                ("x-api-key", SESAME),
                ("referer", referer.as_str()),
                ("x-note", authorization),
            ];
            let path = format!("/stock?access_token={SESAME}&code={SESAME}&page=2#{SESAME}");
            let path = path.split('#').next().unwrap_or_default();
            let answer = self.orders()?.through_sidecar().get(service, path, &carried).await?;
            statuses.push(answer.status);
            self.tells(format!("the answer of {service} to {}", &authorization[..6]), told_by_the_mesh(&answer));
        }
        // What is no bearer token is none that the mesh looks at.
        ensure!(statuses[..3] == [200, 401, 200] && statuses[3..].iter().all(|status| *status >= 400), "{statuses:?}");
        let body = Bytes::from(format!("password={SESAME}"));
        let request =
            Request::post("http://inventory/stock").header("host", "inventory").header("authorization", &good);
        let answer = self.orders()?.through_sidecar().send(request.body(Full::new(body))?).await?;
        self.tells("the answer to a body", told_by_the_mesh(&answer));
        // What nobody can read, and what nobody may say in plain text.
        let outbound = self.orders()?.outbound.address();
        for (name, to) in [("an unreadable head", &outbound), ("plain text", &inbound)] {
            for head in [
                format!("GET /?access_token={SESAME} HTTP/1.1\r\nhost: inventory\r\nauthorization : {SESAME}\r\n\r\n"),
                format!("GET /%zz?access_token={SESAME} HTTP/1.1\r\nhost: inventory\r\ncookie: {SESAME}\r\n\r\n"),
                format!("GET /?t={SESAME} HTTP/1.1\r\nhost: inventory\r\nx-api-key: {SESAME}\u{1}\r\n\r\n"),
            ] {
                let mut stream = TcpStream::connect(to).await?;
                stream.write_all(head.as_bytes()).await?;
                let mut answer = Vec::new();
                let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await;
                self.tells(format!("the answer to {name} {}", self.told.len()), String::from_utf8_lossy(&answer));
            }
        }
        Ok(())
    }

    /// Commands and requests that fail with a secret in their hands.
    async fn fail_to_command(&mut self) -> Result<()> {
        let town = &self.mesh.town;
        let wrong = self.mesh.file("wrong.token", &format!("eqa1.{SESAME}.{SESAME}\n"))?;
        let mut settings = town.settings();
        settings.retain(|(name, _)| *name != "EQUERRY_TOKEN_FILE");
        settings.push(("EQUERRY_TOKEN_FILE", wrong.into()));
        let args = ["status".into()];
        let said = equerry::demo::process::run_to_end(town.program(), &args, &settings, SOON).await?;
        ensure!(said.code != Some(0), "a wrong token was believed");
        let wrong = format!("{}{}", said.out, said.err);
        let passphrase = self.mesh.file("passphrase", &format!("{SESAME}-passphrase\n"))?;
        std::fs::set_permissions(&passphrase, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let state = town.control_plane_state().display().to_string();
        let backup = self.mesh.file("backup", "")?;
        std::fs::remove_file(&backup)?;
        let (to, passphrase) = (backup.display().to_string(), passphrase.display().to_string());
        let args = ["control-plane", "backup", "--state-dir", &state, "--to", &to, "--passphrase-file", &passphrase];
        let backed = town.equerry(&args).await?;
        let sealed =
            std::fs::read(&backup).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        self.tells("a command with a wrong token", wrong);
        self.tells("a backup", format!("{}{}", backed.out, backed.err));
        self.tells("what is in a backup", sealed);
        Ok(())
    }

    /// Everything that anybody can read.
    async fn read_all(&mut self) -> Result<()> {
        for home in ["orders", "inventory-v1", "inventory-v2"] {
            let home = self.mesh.town.home(home)?;
            let (name, admin) = (home.resident.name, Caller::local(home.admin.number()));
            let mut pages = Vec::new();
            for path in ["/", "/config", "/endpoints", "/log", "/healthz", "/nothing"] {
                pages.push((format!("{path} of {name}"), admin.get("localhost", path, &[]).await?));
            }
            pages.push((format!("metrics of {name}"), home.telemetry().get("localhost", "/metrics", &[]).await?));
            for (what, answer) in pages {
                self.tells(what, heard(&answer));
            }
        }
        for path in [
            "/api/v1/proxies",
            "/api/v1/services",
            "/api/v1/instances",
            "/api/v1/calls/recent",
            "/api/v1/audit",
            "/api/v1/tokens",
            "/api/v1/admin-tokens",
            "/api/v1/certificates",
            "/api/v1/shadows",
            "/config",
            "/metrics",
            "/openapi.json",
            "/api/v1/namespaces/shop/nothing/x",
        ] {
            let (status, answer) = api::ask(&self.mesh.town, "GET", path, Bytes::new()).await?;
            ensure!(status.is_success() != path.contains("nothing"), "GET {path}: {status}");
            self.tells(format!("GET {path}"), format!("{status} {answer}"));
        }
        for args in [
            "status -o json",
            "status",
            "certs",
            "top --once",
            "tap --recent",
            "tap --recent -o json",
            "get all -A -o yaml",
            "token list --admin",
            "token list -o json",
            "audit export",
            "describe proxy orders -n shop",
        ] {
            let args: Vec<&str> = args.split(' ').collect();
            let said = self.mesh.town.equerry(&args).await?.succeeded()?;
            self.tells(format!("equerry {}", args.join(" ")), format!("{}{}", said.out, said.err));
        }
        Ok(())
    }

    /// Every log, once they hold the last call.
    async fn read_logs(&mut self) -> Result<()> {
        let orders = self.orders()?.access_log();
        eventually(SOON, "the calls to be in the access log", async || {
            let log = std::fs::read_to_string(&orders).unwrap_or_default();
            ensure!(log.lines().filter(|line| line.contains("\"query_parameters\"")).count() >= 4, "{log}");
            Ok(Some(()))
        })
        .await?;
        let log = std::fs::read_to_string(&orders)?;
        ensure!(
            log.contains("\"authorization\":\"***\"")
                && log.contains("\"page\":\"2\"")
                && log.contains("\"sid\":\"***\""),
            "what was asked for: {log}"
        );
        let mut logs = 0;
        for path in files(self.mesh.town.dir())? {
            if path.extension().is_some_and(|end| end == "log") {
                let text = std::fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())?;
                logs += usize::from(text.contains("DEBUG"));
                self.tells(path.display().to_string(), text);
            }
        }
        ensure!(logs >= 4, "only {logs} programs logged as much as they were asked for");
        Ok(())
    }

    /// Where a secret was found.
    fn found(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (what, text) in &self.told {
            for (secret, value) in &self.secrets {
                if let Some(at) = text.find(value.as_str()) {
                    let around = text.get(at.saturating_sub(120)..at).unwrap_or_default();
                    found.push(format!("{secret} in {what}: ...{around}"));
                }
            }
            if text.contains("PRIVATE KEY") {
                found.push(format!("a private key in {what}"));
            }
        }
        found
    }
}

/// What the mesh says: of an answer that came from the application, which repeats what it is sent, the head alone.
fn told_by_the_mesh(answer: &equerry::demo::web::Answer) -> String {
    if answer.status == 200 { format!("{:?}", answer.headers) } else { heard(answer) }
}

fn heard(answer: &equerry::demo::web::Answer) -> String {
    format!("{} {:?} {}", answer.status, answer.headers, String::from_utf8_lossy(&answer.body))
}

/// Every file below a directory.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let (mut all, mut left) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() { left.push(path) } else { all.push(path) }
        }
    }
    Ok(all)
}

#[tokio::test]
async fn no_secret_is_in_anything_that_a_mesh_says_whatever_happens_and_however_much_it_logs() -> Result<()> {
    let mut ground = Ground::lay().await?;
    let mut tap = Events::open(&ground.mesh.town, "/api/v1/calls/tap").await?;
    let looked = tap.next().await?;
    ground.tells("the beginning of a tap", format!("{looked:?}"));
    ground.call().await?;
    let call = tokio::time::timeout(SOON, async {
        loop {
            let (name, data) = tap.next().await?;
            if name == "call" {
                return anyhow::Ok(data.to_string());
            }
        }
    })
    .await??;
    ground.tells("a call in a tap", call);
    ground.fail_to_command().await?;
    ground.read_all().await?;
    ground.read_logs().await?;
    let found = ground.found();
    ensure!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}
