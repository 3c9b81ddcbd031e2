//! Tokens from programs that others wrote: what three libraries can forge is refused, each for its reason, and a real OIDC
//! provider is followed while its keys turn over, while it is away, and over a restart.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use equerry_tests::workshop::Workshop;
use equerry_tests::{Mesh, eventually, peers};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::{PAIR, program};

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: inventory, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {app: inventory}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}
";
/// Issuers of tests are on this machine, where sidecars usually ask nobody.
const ALLOW: [&str; 2] = ["--jwks-allow", "127.0.0.0/8"];
const PIP: &str = "pip install -r .ci/requirements.txt";

fn policy(issuer: &str, keys: &str) -> String {
    format!(
        "apiVersion: equerry.dev/v1\nkind: RequestAuthentication\nmetadata: {{name: tokens, namespace: shop}}\nspec:\n  targetRefs: \
         [{{kind: Service, name: inventory}}]\n  jwtRules:\n  - issuer: {issuer}\n    audiences: [orders]\n    required: true\n    {keys}\n"
    )
}

/// orders → inventory, whose application answers what it is asked for.
struct Ground {
    mesh: Mesh,
    _app: Workshop,
}

impl Ground {
    async fn lay() -> Result<Self> {
        let mesh = Mesh::found(program(), &PAIR[..2], SERVICE).await?;
        let home = mesh.town.home("inventory-v1")?;
        home.app.release();
        let app = Workshop::open(home.app.number()).await?;
        mesh.start_sidecars(&ALLOW).await?;
        let ground = Self { mesh, _app: app };
        eventually(Duration::from_secs(15), "the application to be reached", async || {
            let (status, reason) = ground.get(None).await?;
            ensure!(status == 200, "{status} {reason}");
            Ok(Some(()))
        })
        .await?;
        Ok(ground)
    }

    /// What a call with this token comes to: the status, and the reason where the mesh answered.
    async fn get(&self, token: Option<&str>) -> Result<(u16, String)> {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<(&str, &str)> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        let orders = self.mesh.town.home("orders")?;
        let answer = orders.through_sidecar().get("inventory", "/status/200", &headers).await?;
        Ok((answer.status, answer.json()["reason"].as_str().unwrap_or("ok").to_owned()))
    }

    async fn is_believed(&self, what: &str, token: &str) -> Result<()> {
        let (status, reason) = self.get(Some(token)).await?;
        ensure!(status == 200, "{what}: {status} {reason}");
        Ok(())
    }

    async fn is_refused(&self, what: &str, token: &str, expected: (u16, &str)) -> Result<()> {
        let (status, reason) = self.get(Some(token)).await?;
        ensure!((status, reason.as_str()) == expected, "{what}: {status} {reason}, expected {expected:?}");
        Ok(())
    }
}

/// What each library that is installed makes.
async fn made() -> Result<Vec<(&'static str, Value)>> {
    let mut made = Vec::new();
    for (library, module) in [("pyjwt", "jwt"), ("jwcrypto", "jwcrypto")] {
        if peers::python_has(module, PIP)? {
            let script = include_str!("../../src/tokens/forge.py");
            let said = peers::run("python3", &["-c", script, library]).await?.succeeded()?.out;
            made.push((library, serde_json::from_str(&said).context(library)?));
        }
    }
    if let Some(modules) = peers::node_has("jose")? {
        let said = peers::node(&modules, include_str!("../../src/tokens/forge.mjs"), &[]).output().await?;
        ensure!(said.status.success(), "jose: {}", String::from_utf8_lossy(&said.stderr));
        made.push(("jose", serde_json::from_slice(&said.stdout).context("jose")?));
    }
    Ok(made)
}

#[tokio::test]
async fn what_three_libraries_can_forge_is_refused_each_for_its_reason() -> Result<()> {
    let made = made().await?;
    if made.is_empty() {
        return Ok(());
    }
    let ground = Ground::lay().await?;
    let mut wrong = Vec::new();
    for (library, made) in &made {
        let issuer = made["issuer"].as_str().context("no issuer")?;
        ground.mesh.apply(&policy(issuer, &format!("jwks: '{}'", made["jwks"]))).await?;
        let tokens = made["tokens"].as_array().context("no tokens")?;
        ensure!(tokens.len() > 25, "{library} made only {}", tokens.len());
        for one in tokens {
            let token = one["token"].as_str().context("no token")?;
            let (status, reason) = ground.get(Some(token)).await?;
            let expected = one["expected"].as_str().unwrap_or_default();
            if reason != expected || status != if expected == "ok" { 200 } else { 401 } {
                wrong.push(format!("{library}, {}: {status} {reason}, expected {expected}", one["name"]));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// A real OIDC provider, told what to do.
struct Provider {
    _process: Child,
    tell: ChildStdin,
    heard: Lines<BufReader<ChildStdout>>,
    issuer: String,
    jwks_uri: String,
    /// Its certificate.
    ca: String,
}

impl Provider {
    async fn start(mesh: &Mesh, modules: &std::path::Path) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
        let ca = made.cert.pem();
        let certificate = mesh.file("provider.pem", &ca)?.display().to_string();
        let key = mesh.file("provider.key", &made.signing_key.serialize_pem())?.display().to_string();
        let script = include_str!("../../src/tokens/provider.mjs");
        let mut process = peers::node(modules, script, &[&certificate, &key])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let tell = process.stdin.take().context("no input")?;
        let heard = BufReader::new(process.stdout.take().context("no output")?).lines();
        let (issuer, jwks_uri) = (String::new(), String::new());
        let mut provider = Self { _process: process, tell, heard, issuer, jwks_uri, ca };
        let discovered = provider.hear().await?;
        let said = |name: &str| discovered[name].as_str().map(str::to_owned).context("the provider tells no place");
        (provider.issuer, provider.jwks_uri) = (said("issuer")?, said("jwksUri")?);
        Ok(provider)
    }

    /// Its next answer; it has more to say, which is not for us.
    async fn hear(&mut self) -> Result<Value> {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(30), self.heard.next_line()).await;
            let line = next.context("the provider says nothing")??.context("the provider has ended")?;
            if line.starts_with('{') {
                return Ok(serde_json::from_str(&line)?);
            }
        }
    }

    async fn told(&mut self, command: &str) -> Result<Value> {
        self.tell.write_all(format!("{command}\n").as_bytes()).await?;
        let answer = self.hear().await?;
        if answer.get("error").is_some() {
            bail!("{command}: {answer}");
        }
        Ok(answer)
    }

    async fn token(&mut self) -> Result<String> {
        let answer = self.told("token").await?;
        Ok(answer["access_token"].as_str().with_context(|| format!("no token in {answer}"))?.to_owned())
    }

    fn policy(&self) -> String {
        let ca: String = self.ca.lines().map(|line| format!("      {}\n", line.trim_end())).collect();
        policy(&self.issuer, &format!("jwksUri: {}\n    jwksCa: |\n{ca}", self.jwks_uri))
    }
}

/// A token of this issuer under a key that nobody published.
fn forged(issuer: &str, number: usize) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(json!({"alg": "ES256", "kid": format!("forged-{number}")}));
    let claims = part(json!({"iss": issuer, "aud": "orders", "sub": "root", "exp": 9_999_999_999_u64}));
    format!("{header}.{claims}.{}", URL_SAFE_NO_PAD.encode([1; 64]))
}

const UNKNOWN: (u16, &str) = (401, "token_unknown_key");
const NOBODY_KNOWS: (u16, &str) = (503, "keys_unavailable");

#[tokio::test]
async fn an_oidc_provider_is_followed_through_rotations_outages_and_a_restart_without_a_wrong_answer() -> Result<()> {
    let Some(modules) = peers::node_has("oidc-provider")? else { return Ok(()) };
    let ground = Ground::lay().await?;
    let mut provider = Provider::start(&ground.mesh, &modules).await?;
    ground.mesh.apply(&provider.policy()).await?;
    let mut tokens = vec![provider.token().await?];
    ground.is_believed("the first token", &tokens[0]).await?;
    for turn in 0..3 {
        provider.told("rotate").await?;
        let newest = provider.token().await?;
        // Right after the rotation, among forgeries that ask for keys as well.
        let flood = (0..5).map(|number| {
            let token = forged(&provider.issuer, turn * 10 + number);
            let ground = &ground;
            async move { ground.is_refused("a forgery", &token, UNKNOWN).await }
        });
        let (believed, flood) =
            tokio::join!(ground.is_believed("a key just published", &newest), futures_util::future::join_all(flood));
        believed?;
        flood.into_iter().collect::<Result<Vec<()>>>()?;
        tokens.push(newest);
        for (age, token) in tokens.iter().rev().enumerate() {
            ground.is_believed(&format!("turn {turn}: a key of {age} rotations ago, still published"), token).await?;
        }
    }

    // Away: keys from before hold, nothing is called bad that may be good, also after a restart.
    let newest = tokens.last().context("no token")?.clone();
    provider.told("away").await?;
    ground.is_believed("a known key while the provider is away", &newest).await?;
    ground.is_refused("an unknown key then", &forged(&provider.issuer, 100), NOBODY_KNOWS).await?;
    let home = ground.mesh.town.home("inventory-v1")?;
    ground.mesh.town.stop_sidecar(home).await;
    ground.mesh.town.start_sidecar_with(home, &ALLOW).await?;
    ground.mesh.town.wait_ready(home).await?;
    eventually(Duration::from_secs(15), "the restarted sidecar to be called", async || {
        let (status, reason) = ground.get(Some(&newest)).await?;
        ensure!(status != 401 && reason != "keys_unavailable", "{status} {reason}");
        Ok((status == 200).then_some(()))
    })
    .await?;
    provider.told("back").await?;

    // Retired keys are noticed with the next answer, and the keys that stay are believed throughout.
    provider.told("rotate").await?;
    let newest = provider.token().await?;
    ground.is_believed("a key published after the outage", &newest).await?;
    provider.told("retire").await?;
    eventually(Duration::from_secs(15), "retired keys to be forgotten", async || {
        ground.is_refused("a forgery", &forged(&provider.issuer, 101), UNKNOWN).await?;
        ground.is_believed("the key that stays", &newest).await?;
        let (status, reason) = ground.get(Some(&tokens[0])).await?;
        ensure!((status, reason.as_str()) == UNKNOWN, "{status} {reason}");
        Ok(Some(()))
    })
    .await?;
    let scrape = home.telemetry().get("localhost", "/metrics", &[]).await?;
    let scrape = String::from_utf8_lossy(&scrape.body).into_owned();
    let age = format!("equerry_jwks_age_seconds{{issuer=\"{}\"}} ", provider.issuer);
    ensure!(scrape.contains(&age), "no {age} in\n{scrape}");
    Ok(())
}
