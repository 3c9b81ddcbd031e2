//! kill -9 just before every write of an apply, of a joining workload and of a lease, and at random moments under load. After
//! each restart: all that was acknowledged is there, nothing is half there, and the audit log proves itself.

use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use equerry_certs::Request;
use equerry_tests::killer::{Killer, WRITES};
use equerry_tests::{Mesh, api, grpc, peers};
use equerry_wire::proto::LeaseRequest;
use equerry_wire::proto::registry_client::RegistryClient;

use crate::program;

/// More writes than one transaction of a test makes.
const MOST_WRITES: u32 = 200;

/// A control plane that is killed and comes back.
struct Victim {
    mesh: Mesh,
}

impl Victim {
    async fn start() -> Result<Self> {
        let mesh = Mesh::plan(program(), &[]).await?;
        mesh.town.start_control_plane(&[]).await?;
        Ok(Self { mesh })
    }

    async fn killer(&self, call: &str, nth: u32) -> Result<Killer> {
        let process = self.mesh.town.control_plane_id().await.context("the control plane does not run")?;
        Killer::wait_for(process, call, nth).await
    }

    /// Comes back, and the audit log must prove itself.
    async fn restart(&self) -> Result<()> {
        self.mesh.town.kill_control_plane().await;
        self.mesh.town.start_control_plane(&[]).await?;
        let proved = self.mesh.town.equerry(&["audit", "verify"]).await?.succeeded();
        proved.context("the audit log after a kill").map(drop)
    }

    /// Whether the store has rows of this kind: what stands there is all that a restart can know.
    fn has(&self, query: &str, name: &str) -> Result<bool> {
        let store = rusqlite::Connection::open(self.mesh.town.control_plane_state().join("equerry.db"))?;
        Ok(store.query_row(query, [name], |row| row.get::<_, u64>(0))? > 0)
    }

    /// Does something again and again, each time killed one write later, until it is through; so for each call that writes.
    /// `prepare` is told which time it is; `act` says whether it was acknowledged; `check` finds what is wrong after the
    /// restart. Returns the writes it took.
    async fn killed_at_every_write<T>(
        &self,
        what: &str,
        mut prepare: impl AsyncFnMut(&str) -> Result<T>,
        mut act: impl AsyncFnMut(&T) -> Result<bool>,
        mut check: impl AsyncFnMut(&T, bool) -> Result<()>,
    ) -> Result<Vec<String>> {
        let mut killed_at = Vec::new();
        for call in WRITES {
            for nth in 1..MOST_WRITES {
                let place = format!("{call}-{nth}");
                let said = || format!("{what}, killed at {place}");
                let errand = prepare(&place).await.with_context(said)?;
                let killer = self.killer(call, nth).await?;
                let acknowledged = act(&errand).await.with_context(said)?;
                // Not acknowledged: it ends now, or is stuck.
                let killed = self.ended(!acknowledged).await;
                killer.lets_go().await;
                if !killed {
                    ensure!(acknowledged, "{what}: nobody was killed at {place}, and it was not done");
                    check(&errand, true).await?;
                    break;
                }
                self.restart().await.with_context(said)?;
                check(&errand, acknowledged).await.with_context(said)?;
                killed_at.push(place);
            }
        }
        Ok(killed_at)
    }

    /// Whether it was killed; a kill at the last write may come with the answer.
    async fn ended(&self, expected: bool) -> bool {
        for _ in 0..if expected { 1_000 } else { 5 } {
            if !self.mesh.town.control_plane_runs().await {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    }
}

fn documents(name: &str) -> String {
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{port: 80}}]}}\n---\n"
        )
    };
    format!("{}{}", service(&format!("{name}-a")), service(&format!("{name}-b")))
}

const DOCUMENT: &str = "SELECT count(*) FROM documents WHERE name = ?1";
const INSTANCE: &str = "SELECT count(*) FROM instances WHERE id = ?1";

fn strace() -> Result<bool> {
    peers::installed("strace", "apt-get install strace")
}

#[tokio::test]
async fn an_apply_killed_at_any_write_is_there_whole_or_not_at_all() -> Result<()> {
    if !strace()? {
        return Ok(());
    }
    let victim = &Victim::start().await?;
    let prepare = async |place: &str| {
        let name = format!("n-{place}");
        let file = victim.mesh.file("killed.yaml", &documents(&name))?;
        Ok((name, file.display().to_string(), victim.mesh.epoch().await?))
    };
    let act = async |(_, file, _): &(String, String, u64)| {
        Ok(victim.mesh.town.equerry(&["apply", "-f", file]).await?.code == Some(0))
    };
    let check = async |(name, _, before): &(String, String, u64), acknowledged: bool| {
        let (one, other) = (victim.has(DOCUMENT, &format!("{name}-a"))?, victim.has(DOCUMENT, &format!("{name}-b"))?);
        ensure!(one == other, "half an epoch is there");
        ensure!(one || !acknowledged, "what was acknowledged is gone");
        let now = victim.mesh.epoch().await?;
        ensure!(now == before + u64::from(one), "epoch {now} after {before}");
        Ok(())
    };
    let writes = victim.killed_at_every_write("an apply", prepare, act, check).await?;
    was_watched("an apply", &writes)
}

#[tokio::test]
async fn a_workload_that_joined_has_spent_its_token_whenever_the_control_plane_was_killed() -> Result<()> {
    if !strace()? {
        return Ok(());
    }
    let victim = &Victim::start().await?;
    let sign = async |token: &String| grpc::sign(&victim.mesh.town, token, Request::new()?.csr_der, 0).await;
    let prepare = async |_: &str| victim.mesh.town.join_token("orders", "10m").await;
    let act = async |token: &String| Ok(matches!(sign(token).await, Ok(Ok(_))));
    let check = async |token: &String, acknowledged: bool| {
        match sign(token).await? {
            Err(refused) => ensure!(refused.message().contains("used"), "{refused}"),
            Ok(_) => ensure!(!acknowledged, "a token lets in a second workload"),
        }
        Ok(())
    };
    let writes = victim.killed_at_every_write("a certificate", prepare, act, check).await?;
    was_watched("a certificate", &writes)
}

#[tokio::test]
async fn an_instance_that_was_told_its_lease_stands_is_registered_whenever_the_control_plane_was_killed() -> Result<()>
{
    if !strace()? {
        return Ok(());
    }
    let victim = &Victim::start().await?;
    let prepare = async |place: &str| {
        let token = victim.mesh.town.join_token("orders", "10m").await?;
        Ok((grpc::joined(&victim.mesh.town, &token).await?, token, lease(&format!("orders-{place}"), 7)))
    };
    type Errand = (tonic::transport::Channel, String, LeaseRequest);
    let act = async |(channel, _, lease): &Errand| {
        Ok(RegistryClient::new(channel.clone()).lease(lease.clone()).await.is_ok())
    };
    let check = async |(_, _, known): &Errand, acknowledged: bool| {
        ensure!(victim.has(INSTANCE, &known.instance_id)? || !acknowledged, "the instance is gone");
        if acknowledged {
            // An older start of it is refused only by a control plane that knows of this one.
            let token = victim.mesh.town.join_token("orders", "10m").await?;
            let channel = grpc::joined(&victim.mesh.town, &token).await?;
            let older = RegistryClient::new(channel).lease(lease(&known.instance_id, 6)).await;
            ensure!(older.is_err(), "the registry does not know {}", known.instance_id);
        }
        Ok(())
    };
    let writes = victim.killed_at_every_write("a lease", prepare, act, check).await?;
    was_watched("a lease", &writes)
}

/// Pages were written, and the log of writes brought to disk.
fn was_watched(what: &str, killed_at: &[String]) -> Result<()> {
    let (pages, synced) =
        (killed_at.iter().any(|at| at == "pwrite64-2"), killed_at.iter().any(|at| at.contains("sync-1")));
    ensure!(pages && synced, "{what} was killed at {killed_at:?} only: was anybody watched?");
    Ok(())
}

fn lease(instance: &str, generation: u64) -> LeaseRequest {
    LeaseRequest {
        instance_id: instance.to_owned(),
        generation,
        labels: [("app".to_owned(), "orders".to_owned())].into(),
        inbound: "127.0.0.1:1".to_owned(),
        ports: vec![8080],
        healthy: true,
        ..Default::default()
    }
}

#[tokio::test]
async fn what_was_acknowledged_under_load_survives_kills_at_random_moments() -> Result<()> {
    let victim = &Victim::start().await?;
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..ROUNDS {
        let (applied, registered) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        let kill_after = Duration::from_millis(random.u64(20..400));
        let load = async {
            tokio::join!(
                write_until_killed(victim, format!("r{round}x"), &applied, apply_one),
                write_until_killed(victim, format!("r{round}y"), &applied, apply_one),
                write_until_killed(victim, format!("r{round}"), &registered, register_one),
            )
        };
        let kill = async {
            // Not before something was acknowledged, however long this machine takes for that.
            let began = std::time::Instant::now();
            while lock(&applied).len() + lock(&registered).len() == 0 && began.elapsed() < Duration::from_secs(30) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(kill_after).await;
            victim.mesh.town.kill_control_plane().await;
        };
        tokio::join!(load, kill);
        let said = || format!("round {round}, killed after {kill_after:?} (seed {seed})");
        victim.restart().await.with_context(said)?;
        let (applied, registered) = (taken(applied), taken(registered));
        for name in &applied {
            ensure!(victim.has(DOCUMENT, &format!("{name}-a"))?, "{}: document {name}-a is gone", said());
        }
        for name in &registered {
            ensure!(victim.has(INSTANCE, name)?, "{}: instance {name} is gone", said());
        }
        ensure!(applied.len() + registered.len() > 0, "{}: nothing was acknowledged", said());
        let halves = "SELECT count(*) FROM documents WHERE kind = ?1 AND name LIKE '%-a'
            AND replace(name, '-a', '-b') NOT IN (SELECT name FROM documents)";
        ensure!(!victim.has(halves, "Service")?, "{}: half an epoch is there", said());
    }
    Ok(())
}

/// How often the control plane is killed at random.
const ROUNDS: u32 = 6;

fn lock(names: &Mutex<Vec<String>>) -> std::sync::MutexGuard<'_, Vec<String>> {
    names.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn taken(names: Mutex<Vec<String>>) -> Vec<String> {
    names.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Writes one thing after the other, and keeps the names of those that were acknowledged.
async fn write_until_killed(
    victim: &Victim,
    prefix: String,
    acknowledged: &Mutex<Vec<String>>,
    mut write: impl AsyncFnMut(&mut api::Admin, &str) -> Result<bool>,
) {
    let Ok(mut admin) = api::Admin::connect(&victim.mesh.town).await else { return };
    for n in 0.. {
        let name = format!("{prefix}n{n}");
        match write(&mut admin, &name).await {
            Ok(true) => acknowledged.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(name),
            Ok(false) => {}
            Err(_) => return,
        }
    }
}

async fn apply_one(admin: &mut api::Admin, name: &str) -> Result<bool> {
    let body = serde_json::json!({"files": [{"name": "load.yaml", "text": documents(name)}]});
    let (status, _) = admin.ask("POST", "/api/v1/apply", "application/json", body.to_string().into()).await?;
    Ok(status.is_success())
}

async fn register_one(admin: &mut api::Admin, name: &str) -> Result<bool> {
    let body = serde_json::json!({
        "account": "shop/orders", "labels": {"app": "orders"}, "inbound": "127.0.0.1:1", "ports": [8080]
    });
    let path = format!("/api/v1/instances/{name}");
    let (status, _) = admin.ask("PUT", &path, "application/json", Bytes::from(body.to_string())).await?;
    Ok(status.is_success())
}
