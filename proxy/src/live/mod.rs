//! What this proxy knows of the mesh right now, kept true by the control plane and handed out as one [`Live`] value.
//!
//! A change of configuration is compiled off the request path and published whole; an exchange takes one `Arc<Live>`
//! at its start. What must outlive a change (breakers, budgets, counts) hangs on it by id and is kept by `keep`.

mod answers;
mod backoff;
pub(crate) mod calls;
mod habits;
pub mod health;
mod keep;
pub mod last_good;
mod lease;
mod limits;
mod link;
mod quotas;
mod renew;
pub(crate) mod slices;
pub mod state_dir;
mod status;
mod subscribe;
mod swap;
pub(crate) mod trust;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use equerry_certs::tls::{self, ClientAuth, TlsFault};
use equerry_certs::{CertificateDer, Identity, Pin, TrustBundle};
use equerry_policies::compile::{CompiledDestination, CompiledWorkload};
use equerry_policies::names::{HostName, InstanceId, ServiceName, SpiffeId};
use equerry_policies::policy::{ServicePort, TrafficPolicy};
use equerry_policies::quick::Quick;
use equerry_policies::view::{EndpointAddress, UnwellView};
use equerry_traffic::balance::{Balancer, EndpointState};
use equerry_traffic::retry::RetryBudget;
use tokio::sync::{Notify, mpsc, watch};

pub use answers::AnswerSizes;
pub(crate) use habits::{Habit, Habits};
pub(crate) use lease::Lease;
pub use limits::{Held, LimitState};
pub use link::Link;
pub use quotas::Quotas;
pub(crate) use renew::Keeper;
pub use renew::NoIdentity;
pub use status::Status;
pub(crate) use subscribe::{Parts, Subscriber, Who};
pub(crate) use swap::Swap;

/// How long the first request for a name waits for the control plane's answer.
pub const FIRST_REQUEST_WAIT: Duration = Duration::from_secs(1);

/// The addresses of names outside the mesh, as far as they were asked for; a name without any has an empty list.
pub(crate) type Found = HashMap<HostName, Arc<[IpAddr]>>;

/// One generation of configuration, immutable.
#[derive(Debug)]
pub struct Live {
    /// Every document change up to this one is in force.
    pub epoch: u64,
    /// This workload's identity.
    pub own: SpiffeId,
    /// What inbound enforces. `None`: it is not known, so everything is denied (`policy_unavailable`).
    pub workload: Option<Arc<CompiledWorkload>>,
    /// Every Service known here, as a destination and as a backend.
    pub destinations: Quick<ServiceName, Arc<Destination>>,
    /// Names the control plane says do not exist, each with the nearest one that does.
    pub unknown: HashMap<ServiceName, Option<String>>,
}

/// A Service as callers name it.
#[derive(Debug)]
pub struct Destination {
    /// Routes, ports and traffic policy.
    pub compiled: Arc<CompiledDestination>,
    /// Retries allowed toward it; kept across changes.
    pub budget: Arc<RetryBudget>,
    /// The same Service as traffic reaches it.
    pub backend: Arc<Backend>,
    /// What its ports that declare nothing were seen to do; kept across changes.
    pub(crate) habits: Arc<Habits>,
    /// Every backend its routes can send to is here too, so callers may name it.
    pub(crate) complete: bool,
    /// Set on use, so that names nobody calls any more are let go.
    pub(crate) used: Arc<AtomicBool>,
}

impl Destination {
    /// A Service that is known whole, and of which nothing was seen yet.
    pub fn new(compiled: Arc<CompiledDestination>, backend: Arc<Backend>) -> Self {
        let (budget, habits, used) = (Arc::default(), Arc::default(), Arc::default());
        Self { compiled, budget, backend, habits, complete: true, used }
    }
}

/// A Service as traffic reaches it.
#[derive(Debug)]
pub struct Backend {
    /// Its name.
    pub name: ServiceName,
    /// Timeouts, breaker, limits and balancing toward it.
    pub traffic: TrafficPolicy,
    /// The identities accepted there.
    pub accounts: Arc<[SpiffeId]>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Where it can be reached now.
    pub endpoints: Vec<Endpoint>,
    /// Instances that get no traffic, because their own sidecars say that they are not well.
    pub unwell: Vec<UnwellView>,
    /// How one of them is chosen; made for this very list.
    pub balancer: Arc<Balancer>,
    /// What is in flight to it from this proxy; kept across changes.
    pub limits: Arc<LimitState>,
    /// How large its answers are; kept across changes.
    pub answers: Arc<AnswerSizes>,
}

/// One place where a backend can be reached.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The instance.
    pub instance: InstanceId,
    /// Where to connect and what to speak there.
    pub address: EndpointAddress,
    /// Service ports on which plain text is spoken with its sidecar, because the control plane says that it takes nothing else.
    pub open: Vec<u16>,
    /// In-flight count, latency and breaker; kept across changes by (backend, instance).
    pub state: Arc<EndpointState>,
}

impl AsRef<EndpointState> for Endpoint {
    fn as_ref(&self) -> &EndpointState {
        &self.state
    }
}

impl Live {
    /// Before anything is known.
    pub fn nothing(own: SpiffeId) -> Self {
        Self { epoch: 0, own, workload: None, destinations: Quick::default(), unknown: HashMap::new() }
    }

    /// Whether every port asks of its callers what it asks in `other`.
    fn asks_for_the_same(&self, other: &Self) -> bool {
        match (&self.workload, &other.workload) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one.has_modes_of(other),
            (None, None) => true,
            _ => false,
        }
    }

    /// The destination of that name, marked as used. (A backend that a route chose is found in `destinations`.)
    pub fn destination(&self, name: &ServiceName) -> Option<&Arc<Destination>> {
        let found = self.destinations.get(name).filter(|found| found.complete)?;
        // A read first: the flag is shared by all workers, and writing it each time would bounce the cache line.
        if !found.used.load(Ordering::Relaxed) {
            found.used.store(true, Ordering::Relaxed);
        }
        Some(found)
    }
}

/// Why a name cannot be used now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotThere {
    /// The control plane says there is no such Service (`no_service`).
    Unknown {
        /// The nearest name it knows.
        nearest: Option<String>,
    },
    /// The control plane did not answer in time (`config_unavailable`).
    Unavailable,
}

/// Where the current [`Live`] is found. Clones share it.
#[derive(Debug, Clone)]
pub struct LiveHandle {
    now: Arc<ArcSwap<Live>>,
    generations: Arc<Mutex<Vec<Weak<Live>>>>,
    changed: watch::Sender<()>,
    modes: watch::Sender<()>,
    wanted: mpsc::UnboundedSender<ServiceName>,
    resources: Arc<ArcSwap<Vec<Received>>>,
}

/// What the control plane sent, as it sent it: for people who look.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) version: String,
    /// JSON.
    pub(crate) body: Arc<[u8]>,
}

impl LiveHandle {
    /// A handle that starts at `first`, and the names that requests will want.
    pub fn new(first: Live) -> (Self, mpsc::UnboundedReceiver<ServiceName>) {
        let (changed, _) = watch::channel(());
        let (modes, _) = watch::channel(());
        let (wanted, wants) = mpsc::unbounded_channel();
        let now = Arc::new(ArcSwap::from_pointee(first));
        (Self { now, generations: Arc::default(), changed, modes, wanted, resources: Arc::default() }, wants)
    }

    /// The configuration in force. Take it once per exchange.
    pub fn load(&self) -> Arc<Live> {
        self.now.load_full()
    }

    /// Publishes the next generation.
    pub fn publish(&self, next: Live) {
        let next = Arc::new(next);
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.retain(|generation| generation.strong_count() > 0);
        generations.push(Arc::downgrade(&next));
        drop(generations);
        let before = self.now.swap(Arc::clone(&next));
        if !before.asks_for_the_same(&next) {
            self.modes.send_replace(());
        }
        self.changed.send_replace(());
    }

    /// Of what the configuration in force was made, but for endpoints.
    pub(crate) fn resources(&self) -> Arc<Vec<Received>> {
        self.resources.load_full()
    }

    /// Keeps that, for people who look.
    pub(crate) fn keep_resources(&self, resources: Vec<Received>) {
        self.resources.store(Arc::new(resources));
    }

    /// How many generations are still held by somebody, the one in force included.
    pub fn generations(&self) -> usize {
        let generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.iter().filter(|generation| generation.strong_count() > 0).count()
    }

    /// Told of every publication after the call.
    pub(crate) fn publications(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Told of every publication after the call that changes which ports ask for mutual TLS.
    pub(crate) fn modes(&self) -> watch::Receiver<()> {
        self.modes.subscribe()
    }

    /// Waits for the next publication after the call.
    pub async fn changed(&self) {
        let mut seen = self.changed.subscribe();
        let _ = seen.changed().await;
    }

    /// The configuration in force once it knows `name`: at once when it is known, else after asking the control plane,
    /// at most [`FIRST_REQUEST_WAIT`] later.
    ///
    /// # Errors
    /// [`NotThere`] when the control plane says there is no such Service, or does not answer in time.
    pub async fn want(&self, name: &ServiceName) -> Result<Arc<Live>, NotThere> {
        let live = self.load();
        if live.destination(name).is_some() {
            return Ok(live);
        }
        let mut seen = self.changed.subscribe();
        if self.wanted.send(name.clone()).is_err() {
            return Err(NotThere::Unavailable);
        }
        let answered = async {
            loop {
                let live = self.load();
                if live.destination(name).is_some() {
                    return Ok(live);
                }
                if let Some(nearest) = live.unknown.get(name) {
                    return Err(NotThere::Unknown { nearest: nearest.clone() });
                }
                if seen.changed().await.is_err() {
                    return Err(NotThere::Unavailable);
                }
            }
        };
        tokio::time::timeout(FIRST_REQUEST_WAIT, answered).await.unwrap_or(Err(NotThere::Unavailable))
    }
}

/// This workload's identity, ready for use in TLS.
#[derive(Debug)]
pub struct TlsIdentity {
    /// Who we are.
    pub id: SpiffeId,
    /// When the certificate ends.
    pub not_after: SystemTime,
    /// Grows with each renewal: connections made under an older one are not reused for new exchanges.
    pub generation: u64,
    /// Whom we believe.
    pub bundle: TrustBundle,
    /// Key and chain, for client configurations.
    pub identity: Identity,
    /// For the inbound listener: mutual TLS required, ALPN `eq-h2`, `eq-h1`, `eq-tcp`.
    pub server: Arc<rustls::ServerConfig>,
    /// Pin of the root that our certificate leads to, as the control plane said; empty: it did not.
    pub root: String,
    /// Pins of the roots that are believed.
    pub pins: Arc<[Pin]>,
    /// Whom is believed from now on, for connections made under this.
    trust: watch::Receiver<Option<TrustBundle>>,
    /// How long what is under way over a connection may go on when the root is gone that vouched for its peer.
    grace: Duration,
}

impl TlsIdentity {
    /// Makes one ready. It has TLS configurations of its own: no ticket from before is good for anything.
    ///
    /// # Errors
    /// When key, chain or roots cannot be used.
    pub fn new(identity: Identity, bundle: TrustBundle, root: String, generation: u64) -> Result<Self, TlsFault> {
        let alpn = [tls::ALPN_H2, tls::ALPN_H1, tls::ALPN_TCP];
        let server = Arc::new(tls::server_config(&identity, &bundle, ClientAuth::Required, &alpn)?);
        let (id, not_after, pins) = (identity.id().clone(), identity.not_after(), bundle.pins().into());
        let (_, trust) = watch::channel(None);
        Ok(Self { id, not_after, generation, bundle, identity, server, root, pins, trust, grace: Duration::ZERO })
    }

    /// Who answered a connection that was made as this, for as long as they are believed.
    pub(crate) fn vouched(&self, peer: SpiffeId, shown: Option<&[CertificateDer<'_>]>) -> trust::Vouched {
        trust::Vouched::new(self, self.trust.clone(), peer, shown)
    }
}

/// Where the current identity is found. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct IdentityHandle {
    now: Arc<arc_swap::ArcSwapOption<TlsIdentity>>,
    trust: watch::Sender<Option<TrustBundle>>,
    renewal: Arc<Notify>,
    grace: Duration,
}

impl IdentityHandle {
    /// One under which what is under way with a peer whose root is gone may go on for so long.
    pub fn with_grace(grace: Duration) -> Self {
        Self { grace, ..Self::default() }
    }

    /// The identity, while its certificate is valid; `None`: none was issued yet, or it has expired (`identity_expired`).
    pub fn current(&self) -> Option<Arc<TlsIdentity>> {
        self.now.load_full().filter(|identity| SystemTime::now() < identity.not_after)
    }

    /// The identity, expired or not.
    pub fn latest(&self) -> Option<Arc<TlsIdentity>> {
        self.now.load_full()
    }

    /// Puts a renewed identity in force; connections that exist go on under the old one, as long as whoever is at their
    /// other end is believed.
    pub fn put(&self, mut identity: TlsIdentity) {
        (identity.trust, identity.grace) = (self.trust.subscribe(), self.grace);
        let bundle = identity.bundle.clone();
        self.now.store(Some(Arc::new(identity)));
        self.trust.send_replace(Some(bundle));
    }

    /// Sees every identity that is put in force from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<Option<TrustBundle>> {
        self.trust.subscribe()
    }

    /// Has the certificate renewed now, whatever is left of its life.
    pub fn ask_renewal(&self) {
        self.renewal.notify_one();
    }

    /// Waits until somebody asks for a renewal.
    pub(crate) async fn renewal_asked(&self) {
        self.renewal.notified().await;
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
