//! As many sidecars as a large mesh has, as far as the control plane sees them: each joins with a token, holds a lease that it renews,
//! and a stream of configuration that it acknowledges; those of one machine share a connection, on which one of them tells of calls.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use equerry::demo::town::Town;
use equerry_certs::{Identity, JoinToken, Request, TrustBundle};
use equerry_tests::api::Admin;
use equerry_tests::grpc;
use equerry_wire::limits::CALL_BOUNDS_MS;
use equerry_wire::proto::calls_client::CallsClient;
use equerry_wire::proto::config_client::ConfigClient;
use equerry_wire::proto::from_proxy::Message;
use equerry_wire::proto::identity_client::IdentityClient;
use equerry_wire::proto::registry_client::RegistryClient;
use equerry_wire::{ResourceKey, proto};
use futures_util::future::try_join_all;
use futures_util::stream::SelectAll;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::say;

/// Sidecars that share a connection.
const ON_ONE: usize = 50;
/// Connections that join at once.
const AT_ONCE: usize = 32;
/// How often a lease is renewed, and calls are told.
const BEAT: Duration = Duration::from_secs(5);
/// How long all of them may take to be in step.
const PATIENCE: Duration = Duration::from_secs(60);

/// All of them; they live on a thread of their own.
#[derive(Debug)]
pub(crate) struct Sidecars {
    machines: Vec<Arc<Machine>>,
    running: Vec<JoinHandle<Result<()>>>,
    runtime: Runtime,
}

/// Sidecars behind one Service on one connection.
#[derive(Debug)]
struct Machine {
    channel: Channel,
    service: String,
    /// Which of how many it is.
    number: usize,
    of: usize,
    /// All Services that are called from here.
    destinations: Vec<String>,
    ids: Vec<String>,
}

impl Sidecars {
    /// Brings up `count` sidecars behind `services` of namespace `shop`, each with an account of its Service's name, and waits until
    /// all are in step.
    ///
    /// # Errors
    /// When one does not get in, or they are not in step in time.
    pub(crate) fn up(town: &Town, services: &[String], count: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let began = Instant::now();
        let each = count / ON_ONE / services.len();
        let machines = services.iter().flat_map(|service| (0..each).map(move |n| (service.as_str(), n)));
        let joining = async {
            let joining = machines.enumerate().map(|(number, (service, n))| async move {
                let machine = Machine::join(town, service, n, services).await?;
                anyhow::Ok(Machine { number, of: count / ON_ONE, ..machine })
            });
            futures_util::stream::iter(joining).buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await
        };
        let machines: Vec<_> = runtime.block_on(joining)?.into_iter().map(Arc::new).collect();
        say(&format!("  {count} sidecars joined after {:.1} s", began.elapsed().as_secs_f64()));
        // First all leases: whoever listens is told of each that comes.
        runtime.block_on(try_join_all(machines.iter().map(|machine| machine.beat())))?;
        say(&format!("  ... hold a lease after {:.1} s", began.elapsed().as_secs_f64()));
        let running = machines.iter().map(|machine| runtime.spawn(Arc::clone(machine).run())).collect();
        let sidecars = Self { machines, running, runtime };
        sidecars.runtime.block_on(in_step(town, count))?;
        say(&format!("  ... and are in step after {:.1} s", began.elapsed().as_secs_f64()));
        Ok(sidecars)
    }

    /// Takes all of them out, as they do when they stop.
    ///
    /// # Errors
    /// What went wrong with one that was not there any more.
    pub(crate) fn down(self) -> Result<()> {
        self.runtime.block_on(async {
            for running in self.running {
                if running.is_finished() {
                    running.await??;
                    bail!("a connection of sidecars ended");
                }
                running.abort();
            }
            try_join_all(self.machines.iter().map(|machine| machine.release())).await.map(drop)
        })
    }
}

/// Waits until so many proxies are in step.
async fn in_step(town: &Town, count: usize) -> Result<()> {
    let mut admin = Admin::connect(town).await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let path = "/api/v1/proxies?state=in_step&limit=1";
        let (status, body) = admin.ask("GET", path, "application/json", Bytes::new()).await?;
        ensure!(status == StatusCode::OK, "{status}: {}", String::from_utf8_lossy(&body));
        let page: Value = serde_json::from_slice(&body)?;
        let told = page["items"].as_array().map_or(0, Vec::len) as u64;
        let found = told + page["remaining"].as_u64().unwrap_or(0);
        if found == count as u64 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{found} of {count} proxies are in step after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn now_unix_ms() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}

impl Machine {
    /// Each sidecar gets a token and a certificate; the last one's is shown.
    async fn join(town: &Town, service: &str, machine: usize, services: &[String]) -> Result<Self> {
        let mut admin = Admin::connect(town).await?;
        let mut stranger = None;
        let mut shown = None;
        for _ in 0..ON_ONE {
            let token = token(&mut admin, service).await?;
            let channel = match &stranger {
                Some(channel) => Channel::clone(channel),
                None => stranger.insert(grpc::without_certificate(town, token.pin()).await?).clone(),
            };
            let request = Request::new()?;
            let asked = proto::SignRequest {
                csr_der: request.csr_der,
                join_token: token.credential().to_string(),
                now_unix_ms: now_unix_ms()?,
            };
            let signed = IdentityClient::new(channel).sign(asked).await.context("joining")?.into_inner();
            shown = Some((request.key, signed));
        }
        let (key, signed) = shown.context("nobody joined")?;
        let identity = Identity::new(key, signed.chain_der.into_iter().map(Into::into).collect())?;
        let roots = signed.roots_der.into_iter().map(Into::into).collect();
        let bundle = TrustBundle::new(identity.id().trust_domain.clone(), roots)?;
        Ok(Self {
            channel: grpc::with_certificate(town, &identity, &bundle).await?,
            service: service.to_owned(),
            number: 0,
            of: 1,
            destinations: services.to_vec(),
            ids: (0..ON_ONE).map(|n| format!("{service}-{machine}-{n}")).collect(),
        })
    }

    /// Takes every lease.
    async fn beat(&self) -> Result<()> {
        for n in 0..self.ids.len() {
            self.beat_of(n).await?;
        }
        Ok(())
    }

    /// Takes or renews one lease.
    async fn beat_of(&self, n: usize) -> Result<()> {
        let mut registry = RegistryClient::new(self.channel.clone());
        if let Some(id) = self.ids.get(n) {
            let labels = [("app", self.service.as_str()), ("version", "v1")];
            let lease = proto::LeaseRequest {
                instance_id: id.clone(),
                generation: 1,
                labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
                inbound: format!("10.0.0.{}:15006", n + 1),
                ports: vec![8080],
                healthy: true,
                health_detail: String::new(),
                now_unix_ms: now_unix_ms()?,
            };
            registry.lease(lease).await.with_context(|| format!("the lease of {id}"))?;
        }
        Ok(())
    }

    /// Gives every lease back.
    async fn release(&self) -> Result<()> {
        let mut registry = RegistryClient::new(self.channel.clone());
        for id in &self.ids {
            registry.release(proto::ReleaseRequest { instance_id: id.clone(), generation: 1 }).await?;
        }
        Ok(())
    }

    /// Hears configuration, beats, and tells of calls, for as long as nothing goes wrong.
    async fn run(self: Arc<Self>) -> Result<()> {
        let mut updates = SelectAll::new();
        for id in &self.ids {
            let (say, said) = mpsc::channel(4);
            let hello = proto::Hello { instance_id: id.clone(), version: "bench".into(), epoch: 0, held: Vec::new() };
            let subscribe = vec![ResourceKey::Workload.to_proto()];
            let interest = proto::Interest { subscribe, unsubscribe: Vec::new() };
            for message in [Message::Hello(hello), Message::Interest(interest)] {
                say.send(proto::FromProxy { message: Some(message) }).await?;
            }
            let stream = ConfigClient::new(self.channel.clone()).subscribe(ReceiverStream::new(said)).await?;
            updates.push(stream.into_inner().map(move |update| (say.clone(), update)).boxed());
        }
        let (reports, told) = mpsc::channel(1);
        let mut wishes = CallsClient::new(self.channel.clone()).report(ReceiverStream::new(told)).await?.into_inner();
        // Each beats at a time of its own, as they do that were not started together.
        let step = BEAT.div_f64(ON_ONE as f64);
        let own = step.mul_f64(self.number as f64 / self.of as f64);
        let mut beats = tokio::time::interval_at(tokio::time::Instant::now() + own, step);
        let mut beaten: usize = 0;
        loop {
            tokio::select! {
                Some((say, update)) = updates.next() => {
                    let ack = Message::Ack(proto::Ack { nonce: update?.nonce });
                    say.send(proto::FromProxy { message: Some(ack) }).await?;
                }
                wish = wishes.message() => ensure!(wish?.is_some(), "the stream of calls ended"),
                _ = beats.tick() => {
                    self.beat_of(beaten % ON_ONE).await?;
                    beaten += 1;
                    if (beaten + self.number).is_multiple_of(ON_ONE) {
                        reports.send(self.calls((beaten / ON_ONE) as u64)?).await?;
                    }
                }
            }
        }
    }

    /// Calls to every Service.
    fn calls(&self, rounds: u64) -> Result<proto::CallReport> {
        let end = |status, reason: &str, failed, count| proto::CallEnd {
            status,
            reason: reason.to_owned(),
            tcp: false,
            failed,
            refused: false,
            count,
        };
        let counts = self.destinations.iter().map(|destination| proto::CallCount {
            outbound: true,
            source: format!("shop/{}", self.service),
            destination: format!("shop/{destination}"),
            ends: vec![end(200, "ok", false, 100 * rounds), end(503, "connect_failed", true, rounds)],
            took: vec![7 * rounds; CALL_BOUNDS_MS.len() + 1],
            bytes_in: 0,
            bytes_out: 0,
        });
        Ok(proto::CallReport {
            instance_id: self.ids.first().context("no sidecar")?.clone(),
            started_unix_ms: 1,
            counts: counts.collect(),
            ..proto::CallReport::default()
        })
    }
}

/// A join token for an account of the Service's name.
async fn token(admin: &mut Admin, account: &str) -> Result<JoinToken> {
    let wanted = json!({"kind": "join", "namespace": "shop", "account": account, "ttlSeconds": 600}).to_string();
    let (status, body) = admin.ask("POST", "/api/v1/tokens", "application/json", wanted.into()).await?;
    ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
    let made: Value = serde_json::from_slice(&body)?;
    Ok(JoinToken::parse(made["token"].as_str().context("no token in the answer")?)?)
}
