//! The harness of the promises: towns of real processes, made and ended by tests, and clients for what the public
//! commands do not reach.
//!
//! A town is what `equerry demo` starts, with the residents and policies a test asks for. Towns share two cores with each
//! other, so only a few live at once.

pub mod api;
pub mod by_hand;
pub mod conversation;
pub mod dns;
pub mod faulty;
pub mod grpc;
pub mod killer;
pub mod load;
pub mod machine;
pub mod nginx;
pub mod peers;
pub mod previous;
pub mod refuser;
pub mod storm;
pub mod strangers;
pub mod webhook;
pub mod witness;
pub mod workshop;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use equerry::demo::documents::Policies;
use equerry::demo::issuer::Issuer;
use equerry::demo::process::{Said, run_to_end};
use equerry::demo::town::{Resident, Town};
use equerry::demo::web::Caller;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, SemaphorePermit};

/// How much may live at once: a town with sidecars weighs 2, a control plane alone 1.
static ROOM: Semaphore = Semaphore::const_new(2);

/// A town of a test: its processes end and its directory goes when this is dropped.
pub struct Mesh {
    /// Who lives where.
    pub town: Town,
    /// Its policy files.
    pub policies: Policies,
    /// Its token issuer.
    pub issuer: Issuer,
    dir: TempDir,
    _room: SemaphorePermit<'static>,
}

impl Mesh {
    /// Chooses ports and writes the demo's policy files; starts nothing.
    ///
    /// # Errors
    /// When a directory or port cannot be had.
    pub async fn plan(program: &Path, residents: &[Resident]) -> Result<Self> {
        let room = ROOM.acquire_many(if residents.is_empty() { 1 } else { 2 }).await.context("waiting for room")?;
        let dir = tempfile::Builder::new().prefix("equerry-test-").tempdir().context("making a directory")?;
        let issuer = Issuer::create(&dir.path().join("issuer.key"))?;
        let policies = Policies::built_in().with_keys(&issuer.key_set())?;
        let town = Town::plan(program, dir.path(), residents)?;
        policies.write(&town.policies())?;
        Ok(Self { town, policies, issuer, dir, _room: room })
    }

    /// A town with everything up and ready.
    ///
    /// # Errors
    /// When something does not come up.
    pub async fn up(program: &Path, residents: &[Resident]) -> Result<Self> {
        let mesh = Self::plan(program, residents).await?;
        mesh.town.bring_up().await?;
        mesh.settle().await?;
        Ok(mesh)
    }

    /// A control plane with these documents. Applications are the test's own business; sidecars start when they stand.
    ///
    /// # Errors
    /// When it does not come up, or refuses the documents.
    pub async fn found(program: &Path, residents: &[Resident], documents: &str) -> Result<Self> {
        let mesh = Self::plan(program, residents).await?;
        mesh.town.start_control_plane(&[]).await?;
        mesh.apply(documents).await?;
        Ok(mesh)
    }

    /// Starts everybody's sidecar, with these settings too, and waits until all are ready.
    ///
    /// # Errors
    /// When one does not become ready.
    pub async fn start_sidecars(&self, more: &[&str]) -> Result<()> {
        for home in &self.town.homes {
            self.town.join(home).await?;
            self.town.start_sidecar_with(home, more).await?;
        }
        for home in &self.town.homes {
            self.town.wait_ready(home).await?;
        }
        Ok(())
    }

    /// Waits until every application that calls a Service reaches it, and its sidecar has every instance of it for well: a
    /// sidecar is ready before others know of it, and what they know when the control plane dies is what they go on with.
    ///
    /// # Errors
    /// When one does not in time.
    pub async fn settle(&self) -> Result<()> {
        for home in &self.town.homes {
            let Some(service) = home.resident.calls.filter(|_| self.town.homes.len() > 1) else { continue };
            eventually(Duration::from_secs(15), &format!("{} to reach {service}", home.resident.name), async || {
                let answer = home.through_sidecar().get(service, "/", &[]).await?;
                if answer.status < 500 { Ok(Some(())) } else { bail!("{}", answer.shown()) }
            })
            .await?;
            eventually(Duration::from_secs(15), &format!("{} to know {service}", home.resident.name), async || {
                let shown = Caller::local(home.admin.number()).get("localhost", "/endpoints", &[]).await?.json();
                let known: Vec<&Value> = shown.as_array().into_iter().flatten().flat_map(endpoints_of).collect();
                let well = |name: &str| known.iter().any(|one| one["instance"] == name && one["health"] != "unusable");
                let mut instances = self.town.homes.iter().filter(|other| other.resident.account == service);
                let all = instances.all(|other| well(other.resident.name));
                if all && known.iter().all(|one| one["health"] != "unusable") { Ok(Some(())) } else { bail!("{shown}") }
            })
            .await?;
        }
        Ok(())
    }

    /// A good token of nobody's tenant, as an `authorization` header.
    ///
    /// # Errors
    /// When the policies are not the demo's.
    pub fn bearer(&self) -> Result<String> {
        Ok(format!("Bearer {}", self.issuer.mint(&self.policies.facts()?.token())))
    }

    /// A file in the town's directory with this text.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// Applies documents given as text and waits until every proxy has them.
    ///
    /// # Errors
    /// When they are refused.
    pub async fn apply(&self, text: &str) -> Result<String> {
        let path = self.file("applied.yaml", text)?;
        Ok(self.town.equerry(&["apply", "--wait", "-f", &path.display().to_string()]).await?.succeeded()?.out)
    }

    /// What `equerry status -o json` says.
    ///
    /// # Errors
    /// When the command fails.
    pub async fn status(&self) -> Result<Value> {
        let said = self.town.equerry(&["status", "-o", "json"]).await?.succeeded()?;
        serde_json::from_str(&said.out).context("reading the status")
    }

    /// The store's epoch.
    ///
    /// # Errors
    /// When the control plane does not say.
    pub async fn epoch(&self) -> Result<u64> {
        let status = self.status().await?;
        status.pointer("/controlPlane/epoch").and_then(Value::as_u64).with_context(|| format!("no epoch in {status}"))
    }
}

fn endpoints_of(service: &Value) -> impl Iterator<Item = &Value> {
    service["endpoints"].as_array().into_iter().flatten()
}

/// Runs a program to its end with no settings of this town.
///
/// # Errors
/// When it does not end in time.
pub async fn run(program: &Path, args: &[&str], at_most: Duration) -> Result<Said> {
    let args: Vec<_> = args.iter().map(std::ffi::OsString::from).collect();
    run_to_end(program, &args, &[], at_most).await
}

/// Asks again and again until the answer is `Some`.
///
/// # Errors
/// When time is up.
pub async fn eventually<T>(limit: Duration, what: &str, mut ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let last = match ask().await {
            Ok(Some(seen)) => return Ok(seen),
            Ok(None) => "not yet".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() > deadline {
            bail!("waited {limit:?} in vain for {what}: {last}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Listens at a port of this machine that was held until now. Whoever starts a program at that very moment holds it a little longer,
/// between its fork and its exec: that is waited for.
///
/// # Errors
/// When somebody else listens there.
pub async fn listen(port: u16) -> io::Result<TcpListener> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match TcpListener::bind(("127.0.0.1", port)).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            bound => return bound,
        }
    }
}

/// Room for something as heavy as the whole demo: nothing else lives meanwhile.
///
/// # Errors
/// Never; the semaphore is not closed.
pub async fn whole_machine() -> Result<SemaphorePermit<'static>> {
    ROOM.acquire_many(2).await.context("waiting for room")
}
