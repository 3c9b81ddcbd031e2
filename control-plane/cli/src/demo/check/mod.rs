//! `equerry demo --check`: the story as a script. Each step looks at the mesh from outside, through the public commands
//! and ports, and says what it saw; the first that does not hold ends the story.

mod authorization;
mod breaker;
mod canary;
mod identity;
mod jwt;
pub mod knock;
mod metrics;
mod mtls;
mod outage;
mod proof;
mod quota;
mod retries;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::documents::{Facts, Policies};
use super::issuer::Issuer;
use super::town::{Home, Town};
use super::web::Answer;
use super::{say, say_error};
use crate::client::Client;
use crate::context::Connection;
use crate::failure::Failure;

/// The steps, in the order they are played.
pub const STEPS: [&str; 11] =
    ["identity", "mtls", "canary", "jwt", "authorization", "retries", "breaker", "quota", "proof", "outage", "metrics"];

/// What every step may look at.
#[derive(Debug)]
pub struct Story<'a> {
    /// Who lives where.
    pub town: &'a Town,
    /// What is written in the policy files.
    pub policies: &'a Policies,
    /// Who signs tokens.
    pub issuer: &'a Issuer,
    /// What the story must know of the policy files.
    pub facts: Facts,
}

/// Brings the town up and plays the story; `only` these steps, if any are named.
///
/// # Errors
/// When the town does not come up, or a step does not hold.
pub async fn play(story: &Story<'_>, only: &[String]) -> Result<()> {
    if let Some(unknown) = only.iter().find(|step| !STEPS.contains(&step.as_str())) {
        bail!("the story has no step {unknown:?}, only {}", STEPS.join(", "));
    }
    let begun = Instant::now();
    story.town.bring_up().await.context("bringing the town up")?;
    story.settle().await?;
    told("up", begun, &format!("a control plane and {} applications with their sidecars", story.town.homes.len()));
    for step in STEPS.iter().filter(|step| only.is_empty() || only.iter().any(|one| one == *step)) {
        let started = Instant::now();
        match play_step(step, story).await {
            Ok(seen) => told(step, started, &seen),
            Err(error) => {
                say_error(&format!("FAILED  {step}: {error:#}"));
                bail!("step {step} did not hold (--keep leaves logs and state behind, --step {step} plays it alone)");
            }
        }
    }
    say(&format!("the story held, in {:.1} s", begun.elapsed().as_secs_f64()));
    Ok(())
}

fn told(step: &str, started: Instant, seen: &str) {
    say(&format!("ok  {step:<14}{:>5.1} s  {seen}", started.elapsed().as_secs_f64()));
}

async fn play_step(step: &str, story: &Story<'_>) -> Result<String> {
    match step {
        "identity" => identity::check(story).await,
        "mtls" => mtls::check(story).await,
        "canary" => canary::check(story).await,
        "jwt" => jwt::check(story).await,
        "authorization" => authorization::check(story).await,
        "retries" => retries::check(story).await,
        "breaker" => breaker::check(story).await,
        "quota" => quota::check(story).await,
        "proof" => proof::check(story).await,
        "outage" => outage::check(story).await,
        _ => metrics::check(story).await,
    }
}

impl Story<'_> {
    /// Waits until a call goes all the way through: every endpoint is known where it is needed.
    async fn settle(&self) -> Result<()> {
        let token = self.bearer();
        within(Duration::from_secs(10), "a call from frontend through orders to both inventories", async || {
            for _ in 0..20 {
                let answer = self.front_call(&token).await?;
                if answer.status != 200 {
                    return Ok(Err(answer.shown()));
                }
            }
            Ok(Ok(()))
        })
        .await
    }

    /// A good token of nobody's tenant, as an `authorization` header.
    pub fn bearer(&self) -> String {
        format!("Bearer {}", self.issuer.mint(&self.facts.token()))
    }

    /// A good token of a tenant, as an `authorization` header.
    ///
    /// # Errors
    /// When the policies do not say how the tenant is named.
    pub fn bearer_of(&self, tenant: &str) -> Result<String> {
        Ok(format!("Bearer {}", self.issuer.mint(&self.facts.token().tenant(self.facts.tenant(tenant)?))))
    }

    /// Calls the frontend from outside the mesh, as a browser would.
    ///
    /// # Errors
    /// When no whole answer comes back.
    pub async fn front_call(&self, bearer: &str) -> Result<Answer> {
        self.home("frontend")?.front_door().get("frontend", "/stock", &[("authorization", bearer)]).await
    }

    /// A resident's home.
    ///
    /// # Errors
    /// When nobody of that name lives here.
    pub fn home(&self, name: &str) -> Result<&Home> {
        self.town.home(name)
    }

    /// Both instances of inventory.
    ///
    /// # Errors
    /// When one of them does not live here.
    pub fn inventories(&self) -> Result<[&Home; 2]> {
        Ok([self.home("inventory-v1")?, self.home("inventory-v2")?])
    }

    /// Applies a file of the story and waits until every proxy has it; the command's words are the result.
    ///
    /// # Errors
    /// When the command fails.
    pub async fn apply(&self, file: &str) -> Result<String> {
        let path = self.town.story(file);
        let said = self.town.equerry(&["apply", "--wait", "-f", &path.display().to_string()]).await?;
        Ok(said.succeeded().with_context(|| format!("applying {file}"))?.out)
    }

    /// Puts the policies back to what the set says, and every application to good health.
    ///
    /// # Errors
    /// When a command fails.
    pub async fn restore(&self) -> Result<()> {
        for home in self.inventories()? {
            home.fail(0.0, None).await?;
        }
        let set = self.town.policies();
        let restored = self.town.equerry(&["apply", "--wait", "-f", &set.display().to_string()]).await?;
        restored.succeeded().context("applying the policies again")?;
        if !self.facts.meaning.traffic.keys().any(|name| name.to_string() == "shop/inventory") {
            // Its end is nothing to wait for: the next apply --wait covers it.
            self.town.equerry(&["delete", "trafficpolicy", "inventory", "-n", "shop"]).await?;
        }
        Ok(())
    }

    /// Asks the admin API, with the administrator's token or without any; the answer is the body.
    ///
    /// # Errors
    /// When it does not answer 200.
    pub async fn admin_api(&self, path: &str, with_token: bool) -> Result<String> {
        let state = self.town.control_plane_state();
        let read =
            |name: &str| std::fs::read(state.join(name)).with_context(|| format!("reading the control plane's {name}"));
        let token = with_token
            .then(|| read("admin.token"))
            .transpose()?
            .map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
        let connection = Connection {
            host: "127.0.0.1".to_owned(),
            port: self.town.admin.number(),
            ca_path: state.join("ca.pem"),
            ca_pem: read("ca.pem")?,
            token,
        };
        let fault = |failure: Failure| anyhow!("{}", failure.message);
        let answer =
            Client::new(connection).map_err(fault)?.ask(http::Method::GET, path, None::<&()>).await.map_err(fault)?;
        if answer.status != 200 {
            bail!("{path} of the control plane answered {}", answer.status);
        }
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// What `equerry status -o json` says.
    ///
    /// # Errors
    /// When the command fails.
    pub async fn status(&self) -> Result<Value> {
        let said = self.town.equerry(&["status", "-o", "json"]).await?.succeeded().context("asking for the status")?;
        serde_json::from_str(&said.out).context("reading the status")
    }
}

/// Asks again and again until the answer is `Ok(Ok)`; when time is up, says what was seen last.
async fn within<T>(limit: Duration, what: &str, mut ask: impl AsyncFnMut() -> Result<Result<T, String>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let seen = match ask().await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(seen)) => seen,
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() > deadline {
            bail!("waited {limit:?} in vain for {what}; seen last: {seen}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// An id for one call, to find it again in logs.
fn request_id(step: &str) -> String {
    format!("check-{step}-{:016x}", fastrand::u64(..))
}
