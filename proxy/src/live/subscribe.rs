//! The configuration stream: ask for what is used, take what comes, publish it, acknowledge it, save it.
//!
//! An update is acknowledged once it is in force on every worker. What cannot be understood is refused by name while the
//! rest of its update is taken. When the stream breaks, everything stays in force and the stream is made again.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use equerry_policies::compile::{FetchedKeys, KeySource};
use equerry_policies::names::{HostName, InstanceId, ServiceName};
use equerry_wire::proto::config_client::ConfigClient;
use equerry_wire::proto::from_proxy::Message;
use equerry_wire::{MAX_MESSAGE, ResourceKey, proto};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::backoff::Backoff;
use super::last_good::LastGood;
use super::link::Link;
use super::status::Status;
use super::swap::Swap;
use super::{Found, IdentityHandle, LiveHandle, Quotas};
use crate::drain::{Drain, Working};
use crate::observe::Observer;

/// A name nobody has called for this long is let go.
const IDLE: Duration = Duration::from_secs(300);
/// How often that is looked at.
const IDLE_LOOK: Duration = Duration::from_secs(30);
/// An update waits at most this long for the backends that its routes name anew.
const SETTLE: Duration = Duration::from_secs(2);
/// Changes of what is held already are saved at most this often; what is newly held is saved at once.
const SAVE: Duration = Duration::from_secs(1);
/// Names an application may have this proxy ask for.
const MOST_NAMES: usize = 4_096;
/// Of those, names that do not exist. An application may name every host of the Internet; the control plane need not
/// watch for each, and they must not keep out names that do exist.
const MOST_UNKNOWN: usize = 256;

/// Who is subscribed.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub(crate) instance: InstanceId,
    pub(crate) version: &'static str,
}

/// The life of the stream.
#[derive(Debug)]
pub(crate) struct Subscriber {
    pub(crate) who: Who,
    pub(crate) link: Link,
    pub(crate) swap: Swap,
    pub(crate) live: LiveHandle,
    pub(crate) wants: UnboundedReceiver<ServiceName>,
    /// Names outside the mesh that Services stand for, for whoever asks the DNS.
    pub(crate) want_names: watch::Sender<BTreeSet<HostName>>,
    /// What the DNS says of them.
    pub(crate) found: watch::Receiver<Found>,
    /// Where keys are published that the policy believes, for whoever fetches them.
    pub(crate) want_keys: watch::Sender<BTreeSet<Arc<KeySource>>>,
    /// What is published there.
    pub(crate) keys: watch::Receiver<FetchedKeys>,
    pub(crate) quotas: Arc<Quotas>,
    pub(crate) observe: Observer,
    pub(crate) status: Status,
    pub(crate) last_good: Arc<Mutex<LastGood>>,
    pub(crate) drain: Drain,
    /// Which certificate is shown and whom it believes, to be reported.
    pub(crate) identity: IdentityHandle,
    /// Told what the control plane says of trust.
    pub(crate) trust: UnboundedSender<proto::Trust>,
    named: HashMap<ServiceName, Instant>,
    save_at: Option<Instant>,
    /// When the last save ended; `None`: nothing was saved by this process yet.
    saved_at: Option<Instant>,
    /// Held while something is to be saved, so that the process does not leave without it.
    unsaved: Option<Working>,
    /// How many resources the last save held.
    size_saved: usize,
    shares_saved: Vec<(String, u64)>,
}

/// What the parts of a [`Subscriber`] are made of.
pub(crate) struct Parts {
    pub(crate) who: Who,
    pub(crate) link: Link,
    pub(crate) swap: Swap,
    pub(crate) live: LiveHandle,
    pub(crate) wants: UnboundedReceiver<ServiceName>,
    /// Names outside the mesh that Services stand for, for whoever asks the DNS.
    pub(crate) want_names: watch::Sender<BTreeSet<HostName>>,
    /// What the DNS says of them.
    pub(crate) found: watch::Receiver<Found>,
    /// Where keys are published that the policy believes, for whoever fetches them.
    pub(crate) want_keys: watch::Sender<BTreeSet<Arc<KeySource>>>,
    /// What is published there.
    pub(crate) keys: watch::Receiver<FetchedKeys>,
    pub(crate) quotas: Arc<Quotas>,
    pub(crate) observe: Observer,
    pub(crate) status: Status,
    pub(crate) last_good: Arc<Mutex<LastGood>>,
    pub(crate) drain: Drain,
    /// Which certificate is shown and whom it believes, to be reported.
    pub(crate) identity: IdentityHandle,
    /// Told what the control plane says of trust.
    pub(crate) trust: UnboundedSender<proto::Trust>,
}

/// One stream, from its first message to its end.
struct Session {
    to_control_plane: UnboundedSender<proto::FromProxy>,
    subscribed: BTreeSet<ResourceKey>,
    /// Updates taken and not yet acknowledged, oldest first.
    unanswered: VecDeque<Unanswered>,
}

struct Unanswered {
    nonce: u64,
    complaints: Vec<proto::Complaint>,
    until: Instant,
}

impl Subscriber {
    /// A subscriber that goes on with what `swap` holds already.
    pub(crate) fn new(parts: Parts) -> Self {
        let now = Instant::now();
        let named = parts.swap.services().map(|service| (service.clone(), now)).collect();
        let Parts {
            who,
            link,
            swap,
            live,
            wants,
            want_names,
            found,
            want_keys,
            keys,
            quotas,
            observe,
            status,
            last_good,
            drain,
            identity,
            trust,
        } = parts;
        let mut subscriber = Self {
            who,
            link,
            swap,
            live,
            wants,
            want_names,
            found,
            want_keys,
            keys,
            quotas,
            observe,
            status,
            last_good,
            drain,
            identity,
            trust,
            named,
            save_at: None,
            saved_at: None,
            unsaved: None,
            size_saved: 0,
            shares_saved: Vec::new(),
        };
        subscriber.publish();
        subscriber
    }

    /// Keeps a stream open for as long as the process runs.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let ended = self.session(&mut backoff).await;
            self.observe.control_plane_connected(false);
            let Err(why) = ended else { continue };
            if backoff.is_fresh() {
                tracing::warn!(
                    error = why.message(),
                    "the configuration stream ended; everything stays in force, and it is made again"
                );
            }
            self.status.stream(Some(format!("the control plane does not answer: {}", why.message())));
            self.swap.forget_unknown();
            self.publish();
            self.rest(backoff.next()).await;
        }
    }

    /// Waits before the next try, and notes meanwhile what requests want.
    async fn rest(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        loop {
            tokio::select! {
                () = sleep_until(until) => return,
                Some(name) = self.wants.recv() => self.name(name),
                Ok(()) = self.found.changed() => self.take_found(),
                Ok(()) = self.keys.changed() => self.take_keys(),
                () = due(self.save_at, &self.drain) => self.save().await,
            }
        }
    }

    /// One stream. `Ok`: the identity was renewed, so that a new one is made at once.
    async fn session(&mut self, backoff: &mut Backoff) -> Result<(), tonic::Status> {
        let mut renewals = self.link.renewals();
        let mut identities = self.identity.changes();
        let (to_control_plane, messages) = unbounded_channel();
        let mut session = Session { to_control_plane, subscribed: BTreeSet::new(), unanswered: VecDeque::new() };
        session.send(Message::Hello(proto::Hello {
            instance_id: self.who.instance.to_string(),
            version: self.who.version.to_owned(),
            epoch: self.swap.epoch(),
            held: self.swap.held(),
        }));
        self.stand(&session);
        self.interest(&mut session);
        let mut client = ConfigClient::new(self.link.channel())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let mut opening = std::pin::pin!(client.subscribe(UnboundedReceiverStream::new(messages)));
        let mut updates = loop {
            tokio::select! {
                opened = &mut opening => break opened?.into_inner(),
                Ok(()) = self.found.changed() => self.take_found(),
                Ok(()) = self.keys.changed() => self.take_keys(),
                () = due(self.save_at, &self.drain) => self.save().await,
            }
        };
        tracing::info!(epoch = self.swap.epoch(), "the configuration stream stands");
        self.observe.control_plane_connected(true);
        self.status.stream(None);
        let mut idle_look = tokio::time::interval_at(Instant::now() + IDLE_LOOK, IDLE_LOOK);
        loop {
            let settle_by = session.unanswered.front().map(|update| update.until);
            tokio::select! {
                update = updates.message() => {
                    let Some(update) = update? else { return Err(tonic::Status::unavailable("the control plane ended the stream")) };
                    backoff.reset();
                    self.take(update, &mut session);
                }
                Some(name) = self.wants.recv() => {
                    self.name(name);
                    self.interest(&mut session);
                }
                Ok(()) = self.found.changed() => {
                    self.take_found();
                    self.answer(&mut session);
                }
                Ok(()) = self.keys.changed() => self.take_keys(),
                () = sleep_until(settle_by.unwrap_or_else(Instant::now)), if settle_by.is_some() => {
                    tracing::warn!("a route's new backend did not come in time; the route is put in force without it");
                    self.swap.settle();
                    self.publish();
                    self.answer(&mut session);
                }
                () = due(self.save_at, &self.drain) => self.save().await,
                _ = idle_look.tick() => {
                    self.let_go(&mut session);
                    self.save_shares().await;
                }
                _ = renewals.changed() => return Ok(()),
                Ok(()) = identities.changed() => self.stand(&session),
            }
        }
    }

    /// Reports which certificate is shown, and whom this sidecar believes.
    fn stand(&self, session: &Session) {
        let Some(identity) = self.identity.latest() else { return };
        session.send(Message::Standing(proto::Standing {
            trust_generation: identity.bundle.generation(),
            leaf_serial: identity.identity.serial().to_owned(),
            root: identity.root.clone(),
            leaf_not_after_unix: i64::try_from(super::unix_ms(identity.not_after) / 1000).unwrap_or(i64::MAX),
        }));
    }

    /// Takes one update as far as it can be understood, publishes it, and answers it when it is in force.
    fn take(&mut self, mut update: proto::ToProxy, session: &mut Session) {
        if let Some(trust) = update.trust.take() {
            // It is reported when it is in force.
            let _ = self.trust.send(trust);
        }
        let nonce = update.nonce;
        let complaints = self.swap.take(update);
        for complaint in &complaints {
            tracing::error!(
                kind = complaint.r#type,
                name = complaint.name,
                error = complaint.message,
                "this part of the configuration is refused"
            );
        }
        if !complaints.is_empty() {
            self.observe.config_refused();
        }
        session.unanswered.push_back(Unanswered { nonce, complaints, until: Instant::now() + SETTLE });
        self.forget_oldest_unknown();
        self.publish();
        self.interest(session);
        self.answer(session);
        self.save_soon();
    }

    /// Answers every update taken, once all of them are in force.
    fn answer(&self, session: &mut Session) {
        if !self.swap.settled() {
            return;
        }
        for Unanswered { nonce, complaints, .. } in std::mem::take(&mut session.unanswered) {
            session.send(if complaints.is_empty() {
                Message::Ack(proto::Ack { nonce })
            } else {
                Message::Nack(proto::Nack { nonce, complaints })
            });
        }
    }

    /// Puts what is held in force.
    fn publish(&mut self) {
        let live = self.swap.next(std::time::Instant::now());
        if let Some(workload) = &live.workload {
            self.quotas.configure(workload);
        }
        let epoch = live.epoch;
        self.live.publish(live);
        self.live.keep_resources(self.swap.received());
        self.observe.config_applied(epoch);
        send_news(&self.want_names, self.swap.names());
        send_news(&self.want_keys, self.swap.key_sources());
    }

    /// The DNS says something else: addresses alone change, which no epoch counts and nobody saves.
    fn take_found(&mut self) {
        self.swap.set_found(self.found.borrow_and_update().clone());
        self.publish();
    }

    /// Issuers publish other keys: like addresses, no epoch counts them.
    fn take_keys(&mut self) {
        self.swap.set_keys(self.keys.borrow_and_update().clone());
        self.publish();
    }

    /// A request named a Service.
    fn name(&mut self, name: ServiceName) {
        if self.named.len() < MOST_NAMES || self.named.contains_key(&name) {
            self.named.insert(name, Instant::now());
        }
    }

    /// When too many of the names called do not exist, lets go of those that were called the longest time ago.
    fn forget_oldest_unknown(&mut self) {
        if self.swap.unknown().len() <= MOST_UNKNOWN {
            return;
        }
        let called = |name: &ServiceName| Some((*self.named.get(name)?, name.clone()));
        let mut unknown: Vec<(Instant, ServiceName)> = self.swap.unknown().filter_map(called).collect();
        unknown.sort_unstable_by_key(|(at, _)| *at);
        for (_, name) in unknown.drain(..unknown.len() / 2) {
            self.named.remove(&name);
            self.swap.forget_unknown_name(&name);
        }
    }

    /// Tells the control plane what is newly of interest, and what no longer is.
    fn interest(&mut self, session: &mut Session) {
        let wanted = self.swap.interest(self.named.keys().cloned());
        let subscribe: Vec<_> = wanted.difference(&session.subscribed).map(ResourceKey::to_proto).collect();
        let unsubscribe: Vec<_> = session.subscribed.difference(&wanted).map(ResourceKey::to_proto).collect();
        if !subscribe.is_empty() || !unsubscribe.is_empty() {
            session.send(Message::Interest(proto::Interest { subscribe, unsubscribe }));
            session.subscribed = wanted;
        }
    }

    /// Lets go of names nobody has called for a while, and of the states of endpoints that have long been gone.
    fn let_go(&mut self, session: &mut Session) {
        let now = Instant::now();
        for (name, used) in &mut self.named {
            if self.swap.was_used(name) {
                *used = now;
            }
        }
        let before = self.named.len();
        self.named.retain(|_, used| now.duration_since(*used) < IDLE);
        if self.named.len() < before {
            self.interest(session);
            self.swap.retain(&session.subscribed);
            self.publish();
            self.save_soon();
        }
        for (service, instance) in self.swap.forget(std::time::Instant::now()) {
            self.observe.endpoint_forgotten(&service, &instance);
        }
    }

    /// Has what is held saved: at once when some of it is new, so that a cold start knows every name ever answered, else
    /// when the last save is long enough ago.
    fn save_soon(&mut self) {
        let now = Instant::now();
        self.unsaved.get_or_insert_with(|| self.drain.guard());
        if self.swap.size() > self.size_saved {
            self.save_at = Some(now);
        }
        self.save_at.get_or_insert(self.saved_at.map_or(now, |saved| now.max(saved + SAVE)));
    }

    /// Saves what is held, off this thread.
    async fn save(&mut self) {
        self.save_at = None;
        let _until_done = self.unsaved.take();
        // Without a workload there is nothing to start from: what was saved before is better.
        if !self.swap.has_workload() {
            return;
        }
        self.shares_saved = self.quotas.shares();
        self.size_saved = self.swap.size();
        let saved = self.swap.saved(self.shares_saved.clone());
        let last_good = Arc::clone(&self.last_good);
        let saving = tokio::task::spawn_blocking(move || {
            last_good.lock().unwrap_or_else(PoisonError::into_inner).save_config(&saved)
        });
        if let Ok(Err(error)) = saving.await {
            tracing::error!(%error, "the last good configuration cannot be saved: a restart while the control plane is away would use an older one");
        }
        self.saved_at = Some(Instant::now());
    }

    /// Saves when what was granted for quotas differs from what was saved.
    async fn save_shares(&mut self) {
        if self.shares_saved != self.quotas.shares() {
            self.save().await;
        }
    }
}

/// Tells a value where it differs from the one told before.
fn send_news<T: PartialEq>(to: &watch::Sender<T>, now: T) {
    to.send_if_modified(|before| {
        let news = *before != now;
        *before = now;
        news
    });
}

/// Waits until what is to be saved is due: at its time, or at once when the process is leaving.
async fn due(save_at: Option<Instant>, drain: &Drain) {
    match save_at {
        None => std::future::pending().await,
        Some(_) if drain.begun() => {}
        Some(at) => tokio::select! {
            () = sleep_until(at) => {}
            () = drain.wait_begun() => {}
        },
    }
}

impl Session {
    fn send(&self, message: Message) {
        // The receiving end is gone only when the stream is, which its reader then says.
        let _ = self.to_control_plane.send(proto::FromProxy { message: Some(message) });
    }
}

#[cfg(test)]
#[path = "subscribe_tests.rs"]
pub(crate) mod tests;
